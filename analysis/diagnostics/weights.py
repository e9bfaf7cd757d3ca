"""The trained weights of a results folder, for diagnostics: which trials kept theirs, and their updates."""

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
    """A confirmed trial whose trained weights are on disk. `row`: its row in `trials`; `folder`: the weights."""

    row: Row
    folder: Path

    @property
    def full(self) -> bool:
        """Whether it is full fine-tuning: whole weights, not an adapter."""
        return not (self.folder / META).is_file()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of data, initialisation and bases."""
        return tuple(self.row[k] for k in SEEDS)

    @property
    def matrix(self) -> bool:
        """Whether its update of a weight is a matrix."""
        try:
            return self.full or randlora.get_method(read_meta(self.folder)["method"]).mergeable
        except AdapterError:  # damage is told when the trial is read
            return True

    @property
    def place(self) -> tuple[str, str, str, str]:
        """(sweep, model, data set, training size)."""
        return self.row["sweep"], self.row["model"], self.row["dataset"], self.row["train_size"]

    @property
    def brief(self) -> Row:
        """What a diagnostic needs of the trial, JSON-able."""
        return {k: self.row[k] for k in BRIEF}

    @property
    def named(self) -> Row:
        """The columns that say which trial a diagnostic's row is about, besides its place."""
        return {k: self.row[k] for k in ("method", "reference", "adapter_params", "trial_id")}

    @classmethod
    def of(cls, brief: Row, folder: Path) -> Kept:
        """The inverse of `brief`; `folder`: the results."""
        return cls(brief, folder / ADAPTERS / brief["trial_id"])


def confirmed_as_trained(store: Store) -> list[Row]:
    """The confirmed trials, with the seeds that they trained with where the journal has them."""
    configs = {event["trial_id"]: event.get("config") or {} for event in store.events("ask")}
    rows = store.table("confirmed").to_pylist()
    return [row | {name: configs.get(row["trial_id"], {}).get(name, row[name]) for name in SEEDS} for row in rows]


def every_kept(store: Store) -> list[Kept]:
    """All confirmed trials whose weights are kept, of every seed. Trials with prompts are left out.

    Raises:
        StoreError: none is kept; with what to set.
    """
    return [kept for group in _kept_by_cell(store).values() for kept in sorted(group, key=lambda k: k.row["slot"])]


def _kept_by_cell(store: Store) -> dict[tuple[str, str], list[Kept]]:
    cells: dict[tuple[str, str], list[Kept]] = defaultdict(list)
    for row in confirmed_as_trained(store):
        folder = store.path / ADAPTERS / row["trial_id"]
        if ((folder / META).is_file() and not _of_prompts(folder)) or (folder / FULL_WEIGHTS).is_file():
            cells[row["sweep"], row["cell_id"]].append(Kept(row, folder))
    if not cells:
        raise StoreError(
            f'{store.path} keeps no trained weights; set [keep] adapters = "confirm" and full = true before it runs'
        )
    return cells


def kept_trials(store: Store, *, need_full: bool = False) -> list[Kept]:
    """One kept trial per confirmed cell, by place, method and budget: of several the first of its seeds.

    Trials with prompts are left out: they change more than weights. `need_full`: what is held against full fine-tuning
    of its place, so only trials of its seeds.

    Raises:
        StoreError: none is kept, or no full fine-tuning or nothing of its seeds where that is needed; with what to set.
    """
    cells = _kept_by_cell(store)
    chosen = [min(group, key=lambda k: k.row["slot"]) for group in cells.values()]
    if need_full and not any(k.full for k in chosen):
        raise StoreError(
            "this diagnostic compares with full fine-tuning, whose weights are not kept here; "
            "add [methods.full] and set [keep] full = true before the sweep runs"
        )
    if need_full:  # another seed has other training rows and another head
        beside = {k.row["trial_id"]: (full_of(chosen, k) or k).seeds for k in chain(*cells.values())}
        same = [[k for k in group if k.seeds == beside[k.row["trial_id"]]] for group in cells.values()]
        one_seed = [min(group, key=lambda k: k.row["slot"]) for group in same if group]
        if all(k.full for k in one_seed) and not all(k.full for k in chosen):
            raise StoreError(
                "this diagnostic compares trials of one seed, and none is kept of the seed of full fine-tuning's; set "
                '[keep] adapters = "confirm" before the sweep runs'
            )
        chosen = one_seed
    return sorted(chosen, key=lambda k: (*k.place, style(k.row["method"]).order, k.row["adapter_params"] or 0))


def left_out(store: Store) -> str:
    """Which kept trials have no merged weights to look at, and why, as a sentence; "" where all have."""
    trials = [k.row for k in kept_trials(store) if not k.matrix]
    names = dict.fromkeys(f"{style(row['method']).name} at {row['reference']}" for row in trials)
    return f"Left out, since their updates are no matrices: {', '.join(names)}." if names else ""


def _of_prompts(folder: Path) -> bool:
    try:
        return PLACE in read_meta(folder)["capacities"]
    except CheckpointError:  # damage is told when the trial is read
        return False


def full_of(trials: Sequence[Kept], one: Kept) -> Kept | None:
    """Full fine-tuning in the place of `one`; None where it was not kept."""
    found = [k for k in trials if k.full and k.place == one.place]
    return next((k for k in found if k.row["method"] == "full"), found[0] if found else None)


def target_names(trials: Sequence[Kept], one: Kept) -> list[str]:
    """Weights that the adapters kept in the place of `one` change, sorted; parts of weights as they are named."""
    return sorted({n for k in trials if not k.full and k.place == one.place for n in read_meta(k.folder)["capacities"]})


def deltas(module: nn.Module, kept: Kept, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Weight name -> update (out, in), float32. The module stays as it was.

    For full fine-tuning the weights `names`, as an adapter's are named (parts too); None: every 2-D weight.
    """
    if kept.full:
        trained = read_tensors(kept.folder / FULL_WEIGHTS)
        sites = find_sites(module) if names is None else select(module, names)
        found = {n: s for n, s in sites.items() if s.stored_name in trained}
        return {
            n: s.view(trained[s.stored_name].float() - s.parameter.detach().float().cpu()) for n, s in found.items()
        }
    adapted = randlora.load(module, kept.folder)
    try:
        return {name: delta.detach().float().cpu().clone() for name, delta in adapted.deltas().items()}
    finally:
        adapted.detach()


def trained_state(module: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """Parameters that training changed, by name, as trained (merged)."""
    if kept.full:
        return read_tensors(kept.folder / FULL_WEIGHTS)
    adapted = randlora.load(module, kept.folder)
    try:
        with adapted.merging():
            return {s.stored_name: s.parameter.detach().clone() for s in adapted.sites.values()}
    finally:
        adapted.detach()
