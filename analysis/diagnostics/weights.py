"""The trained weights of a results folder: which trials kept them, and their updates of the base weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

import randlora
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store
from analysis.styles import style
from randlora.errors import AdapterError, CheckpointError
from randlora.files.checkpoint import META, read_meta
from randlora.files.tensors import read_tensors
from randlora.model.prompted import PLACE
from randlora.model.sites import find_sites
from randlora.model.targets import select

FULL_WEIGHTS = "weights.safetensors"
ADAPTERS = "adapters"
SEEDS = ("data_seed", "init_seed", "basis_seed")
BRIEF = (
    "sweep",
    "trial_id",
    "model",
    "adapt",
    "dataset",
    "train_size",
    "method",
    "reference",
    "budget",
    "adapter_params",
    "test_score",
    *SEEDS,
)


@dataclass(frozen=True)
class Kept:
    """A confirmed trial whose trained weights are on disk.

    Attributes:
        row: its row of the table `trials`.
        folder: the folder with its weights.
    """

    row: Row
    folder: Path

    @property
    def full(self) -> bool:
        """Whether the trial is full fine-tuning, so that the folder has whole weights instead of an adapter."""
        return not (self.folder / META).is_file()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of data, initialisation and bases."""
        return tuple(self.row[k] for k in SEEDS)

    @property
    def matrix(self) -> bool:
        """Whether its update of each weight is a matrix that can be merged."""
        try:
            return self.full or randlora.get_method(read_meta(self.folder)["method"]).mergeable
        except AdapterError:  # the error is raised when the trial is read
            return True

    @property
    def place(self) -> tuple[str, str, str, str]:
        """(sweep, model, data set, training size)."""
        return self.row["sweep"], self.row["model"], self.row["dataset"], self.row["train_size"]

    @property
    def brief(self) -> Row:
        """The columns that a diagnostic needs, as JSON values."""
        return {k: self.row[k] for k in BRIEF}

    @property
    def named(self) -> Row:
        """The columns of a diagnostic's row that name the trial, besides its place."""
        return {k: self.row[k] for k in ("method", "reference", "adapter_params", "trial_id")}

    @classmethod
    def of(cls, brief: Row, folder: Path) -> Kept:
        """Return the kept trial of a `brief` in the results folder `folder`."""
        return cls(brief, folder / ADAPTERS / brief["trial_id"])


def confirmed_as_trained(store: Store) -> list[Row]:
    """Return the rows of confirmed trials, with the seeds that they trained with if the journal has them."""
    configs = {event["trial_id"]: event.get("config") or {} for event in store.events("ask")}
    rows = store.table("confirmed").to_pylist()
    return [row | {name: configs.get(row["trial_id"], {}).get(name, row[name]) for name in SEEDS} for row in rows]


def every_kept(store: Store) -> list[Kept]:
    """Return all confirmed trials whose weights are kept, of every seed. Trials with prompts are left out.

    Raises:
        StoreError: none is kept. The error says what to set.
    """
    return [kept for group in _kept_by_cell(store).values() for kept in sorted(group, key=lambda k: k.row["slot"])]


def _kept_by_cell(store: Store) -> dict[tuple[str, str], list[Kept]]:
    cells: dict[tuple[str, str], list[Kept]] = defaultdict(list)
    for row in confirmed_as_trained(store):
        folder = store.path / ADAPTERS / row["trial_id"]
        if ((folder / META).is_file() and not _has_prompts(folder)) or (folder / FULL_WEIGHTS).is_file():
            cells[row["sweep"], row["cell_id"]].append(Kept(row, folder))
    if not cells:
        raise StoreError(
            f'{store.path} keeps no trained weights; set [keep] adapters = "confirm" and full = true before it runs'
        )
    return cells


def kept_trials(store: Store, *, need_full: bool = False) -> list[Kept]:
    """Return one kept trial of each confirmed cell (that of its first seed), ordered by place, method and budget.

    Trials with prompts are left out, because they change more than weights.

    Args:
        need_full: whether the trials are compared with full fine-tuning of their place, so that they must have the same
            seeds.

    Raises:
        StoreError: none is kept; or `need_full`, and no full fine-tuning or no trial of its seeds is kept. The error
            says what to set.
    """
    cells = _kept_by_cell(store)
    chosen = [min(group, key=lambda k: k.row["slot"]) for group in cells.values()]
    if need_full and not any(k.full for k in chosen):
        raise StoreError(
            "this diagnostic compares with full fine-tuning, whose weights are not kept here; "
            "add [methods.full] and set [keep] full = true before the sweep runs"
        )
    if need_full:  # another seed has other training rows and another head
        beside = {k.row["trial_id"]: (full_fine_tuning_of(chosen, k) or k).seeds for k in chain(*cells.values())}
        same = [[k for k in group if k.seeds == beside[k.row["trial_id"]]] for group in cells.values()]
        one_seed = [min(group, key=lambda k: k.row["slot"]) for group in same if group]
        if all(k.full for k in one_seed) and not all(k.full for k in chosen):
            raise StoreError(
                "this diagnostic compares trials of one seed, and none is kept of the seed of full fine-tuning's; set "
                '[keep] adapters = "confirm" before the sweep runs'
            )
        chosen = one_seed
    return sorted(chosen, key=lambda k: (*k.place, style(k.row["method"]).order, k.row["adapter_params"] or 0))


def left_out_sentence(store: Store) -> str:
    """Return a sentence on the kept trials that cannot be merged into weights, or "" if all can."""
    trials = [k.row for k in kept_trials(store) if not k.matrix]
    names = dict.fromkeys(f"{style(row['method']).name} at {row['reference']}" for row in trials)
    return f"Left out, since their updates are no matrices: {', '.join(names)}." if names else ""


def _has_prompts(folder: Path) -> bool:
    try:
        return PLACE in read_meta(folder)["capacities"]
    except CheckpointError:  # the error is raised when the trial is read
        return False


def full_fine_tuning_of(trials: Sequence[Kept], kept: Kept) -> Kept | None:
    """Return full fine-tuning in the place of `kept`, or None if it was not kept."""
    candidates = [k for k in trials if k.full and k.place == kept.place]
    return next((k for k in candidates if k.row["method"] == "full"), candidates[0] if candidates else None)


def target_names(trials: Sequence[Kept], kept: Kept) -> list[str]:
    """Return the sorted names of the weights, or parts of weights, that adapters in the place of `kept` change."""
    return sorted(
        {n for k in trials if not k.full and k.place == kept.place for n in read_meta(k.folder)["capacities"]}
    )


def deltas(module: nn.Module, kept: Kept, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return each weight's update (out, in) in float32, by name. The module is not changed.

    Args:
        module: the base model.
        kept: the trial.
        names: for full fine-tuning, the weights or parts of weights; None: every 2-D weight.
    """
    if kept.full:
        trained = read_tensors(kept.folder / FULL_WEIGHTS)
        sites = find_sites(module) if names is None else select(module, names)
        trained_sites = {n: s for n, s in sites.items() if s.stored_name in trained}
        return {
            n: s.view(trained[s.stored_name].float() - s.parameter.detach().float().cpu())
            for n, s in trained_sites.items()
        }
    adapted = randlora.load(module, kept.folder)
    try:
        return {name: delta.detach().float().cpu().clone() for name, delta in adapted.deltas().items()}
    finally:
        adapted.detach()


def trained_state(module: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """Return the parameters that training changed, by name, with adapters merged."""
    if kept.full:
        return read_tensors(kept.folder / FULL_WEIGHTS)
    adapted = randlora.load(module, kept.folder)
    try:
        with adapted.merging():
            return {s.stored_name: s.parameter.detach().clone() for s in adapted.sites.values()}
    finally:
        adapted.detach()
