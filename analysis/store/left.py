"""What is left to run of every cell: rates, re-runs of those that lead now, and the seeds of stage CONFIRM.

A results folder does not know a rate past the edge of the range before the engine has asked for it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal, get_args

from analysis.format import Row
from analysis.store.slot_kinds import SlotKind
from analysis.store.store import Store

Left = tuple[int, int] | None
"""TUNE and CONFIRM trials; None if the rates have all ended and none finished, so that nothing will run."""
Phase = Literal["waiting", "tuning", "confirming", "done", "stuck"]
"""The phase of a cell. "stuck": all of its learning rates failed."""
PHASES: tuple[Phase, ...] = get_args(Phase)

_TRIED = """
select cell_id, slot, origin, lr, hyperparameters, concat_ws('/', data_seed, init_seed, basis_seed) as seeds,
       case when status = 'finished' then val_score end as score
from last_attempts where stage = 'TUNE' order by slot
"""


def phase_of(left: Left, *, begun: bool) -> Phase:
    """Return the phase of a cell, from what is left to run of it. `begun`: whether a trial was ever started."""
    if left is None:
        return "stuck"
    tune, confirm = left
    if not (tune or confirm):
        return "done"
    if not begun:
        return "waiting"
    return "tuning" if tune else "confirming"


def to_come(store: Store) -> dict[tuple[str, str], Left]:
    """Return the trials that are left to run for each feasible cell, by (sweep, cell id)."""
    if len(store.paths) > 1:  # each folder has its own search settings
        return {cell: left for path in store.paths for cell, left in to_come(Store((path,))).items()}
    stored = store.stored()
    search, hold = stored.get("search") or {}, stored.get("hold") or (stored.get("confirm") or {}).get("hold") or ()
    rates, seeds = search.get("rerun_rates", 0), search.get("rerun_seeds", 0)
    rerun_seeds = 0 if len(hold) == 3 else seeds
    cells = [r for r in store.table("coverage").to_pylist() if r["feasible"]]
    largest_plans: dict[tuple[str, str], int] = defaultdict(int)  # in samples, a larger training size has fewer trials
    for r in cells:
        place = r["dataset"], r["train_size"]
        largest_plans[place] = max(largest_plans[place], r["tune_planned"])
    tried: dict[str, list[Row]] = {r["cell_id"]: [] for r in cells}
    for row in store.sql(_TRIED).to_pylist():
        tried.setdefault(row["cell_id"], []).append(row)
    asked_for = {r["cell_id"]: (r["tune_points"], r["tune_refined"] or 0) for r in store.table("cells").to_pylist()}
    past_edge = _past_edge(store, seeds, rerun_seeds)
    left_by_cell: dict[tuple[str, str], Left] = {}
    for r in cells:
        rows, planned = tried[r["cell_id"]], r["tune_planned"]
        plain = max(0, planned - sum(t["origin"] != "widened" for t in rows))
        largest = largest_plans[r["dataset"], r["train_size"]]
        fully_planned = rows and planned == largest  # else it was taken out: what it has is all that was planned
        points, refined = asked_for[r["cell_id"]]
        if not fully_planned:
            tune: int | None = plain
        elif points is None:  # an older folder, or an allowance in samples
            tune = _tune_left(rows, planned - rates * seeds, refined, rates, rerun_seeds, plain)
        else:
            tune = _tune_left(rows, points, refined, rates, rerun_seeds, None)
        if tune is not None and fully_planned:
            tune += past_edge[r["cell_id"]]
        left_by_cell[r["sweep"], r["cell_id"]] = None if tune is None else (tune, r["missing"] - plain)
    return left_by_cell


def _past_edge(store: Store, seeds: int, rerun_seeds: int) -> Counter[str]:
    """Return, by cell id, the trials to come of rates past the edge of the range that began and have not ended.

    If the re-runs chose such a rate, it is run on further seeds too. Its re-runs have the slot numbers after its own.

    Args:
        store: the results of one sweep.
        seeds: number of seeds of a re-run in the sweep file.
        rerun_seeds: the same, but 0 if all seeds are fixed.
    """
    ended = set(store.table("trials").column("trial_id").to_pylist())
    trials: Counter[str] = Counter()
    for e in store.events("ask"):
        if e.get("stage") == "TUNE" and e["trial_id"] not in ended:
            kind = SlotKind.of(e["slot"])
            if kind is SlotKind.WIDENED:
                trials[e["cell_id"]] += 1
            elif kind is SlotKind.WIDENED_LATE and (e["slot"] - kind.value) % (1 + seeds) == 0:
                trials[e["cell_id"]] += 1 + rerun_seeds
    return trials


def _tune_left(rows: Sequence[Row], points: int, refined: int, rates: int, seeds: int, plain: int | None) -> int | None:
    """Return the number of TUNE trials that a cell has still to run; None if all its rates failed.

    Args:
        rows: its trials that ended, by slot.
        points: number of rates that the cell tries on the first seed.
        refined: number of these rates that a local fit proposes.
        rates, seeds: the best `rates` rates run again on `seeds` more seeds each (0 if all seeds are fixed).
        plain: the result while rates are missing. If it is None, the result is the number of missing rates and re-runs.
    """
    first = rows[0]["seeds"]
    allowed = SlotKind.within(points, refined)
    ended = [t for t in rows if t["seeds"] == first and (t["slot"] in allowed or t["origin"] == "widened")]
    planned = sum(t["slot"] in allowed for t in ended)
    spread = [t for t in ended if t["slot"] < points - refined]
    if len(spread) == points - refined and not any(t["score"] is not None for t in ended):
        return None  # no rate finished, so that a local fit has nothing to go by
    if planned < points:
        return points - planned + rates * seeds if plain is None else plain
    scored = [t for t in ended if t["score"] is not None]
    late_rows = [t for t in scored if SlotKind.of(t["slot"]) is SlotKind.WIDENED_LATE]
    scores = sorted((t["score"] for t in scored if t not in late_rows), reverse=True)[: rates or 1]
    if not scores:
        return None
    late = {_point(t) for t in late_rows}  # each is run again
    leaders = late | {_point(t) for t in scored if t["score"] >= scores[-1]}
    rerun_trials = sum(_point(t) in leaders for t in rows if t["seeds"] != first)
    return max(0, (min(rates, len(scores)) + len(late)) * seeds - rerun_trials)


def _point(row: Row) -> tuple[float, str | None]:
    return row["lr"], row["hyperparameters"]
