"""Finds a trial whose trained weights were kept, by its id, or the best one by validation score."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from analysis import Store, open_store
from analysis.format import Row
from analysis.store.journal import JOURNAL
from sweeps.errors import Problem, SpecError, nearest, unknown
from trainables.config import TrialConfig

BEST = "best"
"""Stands for the id of the kept trial with the best validation score."""

PLACE = ("model", "dataset", "train_size")


@dataclass(frozen=True)
class KeptTrial:
    """A trial with its weights.

    Attributes:
        row: its row in the table `trials`.
        results: the results folder that it is in.
        folder: the folder with its weights.
        config: its configuration, as it was asked for.
    """

    row: Row
    results: Path
    folder: Path
    config: TrialConfig

    @property
    def name(self) -> str:
        """Return method and budget as a file name, such as `randlora-lora-4`."""
        name = "-".join(filter(None, (self.row["method"], self.row["reference"])))
        return re.sub(r"[^A-Za-z0-9.+-]", "-", name).lstrip(".-")


def kept_trial(folder: Path, trial: str = BEST, method: str | None = None, budget: str | None = None) -> KeptTrial:
    """Return a trial of a results folder whose weights were kept.

    Args:
        folder: the results folder.
        trial: a trial id, or an unambiguous beginning of one. Or "best": among cells with kept weights, the cell with
            the best mean validation score, and in it the trial with the best one. Test scores are never used.
        method: with "best", only cells of this method.
        budget: with "best", only cells at this budget, such as "lora-4".

    Raises:
        SpecError: there is no such trial, its weights were not kept, or validation scores cannot tell the best.
    """
    store = open_store(folder)
    kept = folder / "adapters"
    ids = {p.name for p in kept.iterdir()} if kept.is_dir() else set()
    if trial == BEST:
        row = _best(store, ids, method, budget)
    elif method is not None or budget is not None:
        raise SpecError([Problem("trial", trial, "is one trial already; --method and --budget narrow best", BEST)])
    else:
        row = _by_id(store, trial, ids)
    return KeptTrial(row, folder, kept / row["trial_id"], config_of(store, row["trial_id"]))


def config_of(store: Store, trial_id: str) -> TrialConfig:
    """Return the configuration of a trial from the journal.

    Raises:
        SpecError: the journal does not have it.
    """
    configs = [event["config"] for event in store.events("ask") if event["trial_id"] == trial_id]
    if not configs:
        lacks = "imported numbers have none" if (store.path / JOURNAL).exists() else "the folder came without it"
        rule = f"its configuration is not in {store.path / JOURNAL}: {lacks}"
        raise SpecError([Problem("trial", trial_id, rule)])
    return TrialConfig.model_validate(configs[-1])


def _by_id(store: Store, trial: str, kept: set[str]) -> Row:
    rows: dict[str, Row] = {r["trial_id"]: r for r in store.table("last_attempts").to_pylist()}
    matches = [i for i in rows if i.startswith(trial)]
    if not trial or len(matches) != 1:
        rule = f"matches {len(matches)} trials; one is needed" if trial and matches else "no such trial"
        raise SpecError(
            [Problem("trial", trial, rule, ", ".join((matches or sorted(kept))[:5]) or nearest(trial, rows))]
        )
    if matches[0] not in kept:
        raise SpecError([Problem("trial", trial, _not_kept("its"), min(kept, default=None))])
    return rows[matches[0]]


def _not_kept(whose: str) -> str:
    how = 'set [keep] adapters = "best", "confirm" or "all" before the sweep runs'
    return f"{whose} trained weights were not kept; {how}"


def _best(store: Store, kept: set[str], method: str | None, budget: str | None) -> Row:
    rows: list[Row] = [r for r in store.table("confirmed").to_pylist() if r["trial_id"] in kept]
    if not rows:
        raise SpecError([Problem("trial", BEST, _not_kept("the confirmed trials'"))])
    for option, value, column in (("--method", method, "method"), ("--budget", budget, "reference")):
        if value is not None:
            values = {r[column] for r in rows if r[column] is not None}
            rows = [r for r in rows if r[column] == value]
            if not rows:
                raise SpecError([unknown(option, value, f"{column} with kept weights", values)])
    means = {r["cell_id"]: r["mean_val"] for r in store.table("best").to_pylist()}
    if any(r["val_score"] is None or means.get(r["cell_id"]) is None for r in rows):
        rule = 'there are no validation scores (protocol = "paper") to say which is best; give the id of a trial'
        raise SpecError([Problem("trial", BEST, rule, rows[0]["trial_id"])])
    rows.sort(key=lambda r: (-means[r["cell_id"]], r["cell_id"], -r["val_score"], r["slot"]))
    firsts: dict[tuple[str, ...], Row] = {}
    for row in rows:
        firsts.setdefault(tuple(row[column] for column in PLACE), row)
    if len(firsts) > 1:
        listed = "; ".join(f"{r['trial_id']} on {' '.join(place)}" for place, r in firsts.items())
        rule = f"scores of different models, data or sizes don't compare; give the id of the best of one: {listed}"
        raise SpecError([Problem("trial", BEST, rule)])
    return rows[0]
