"""The numbers of the scaling curve, the comparisons at each budget, and the one sentence that they allow.

Everything here returns an Arrow table or text; `plots`, `console` and `report` only show it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from analysis.statistics.choice import CellKey, choice_variances
from analysis.statistics.inference import (
    SIGN_FLIP,
    Difference,
    blocked_difference,
    common_seed_p,
    detectable,
    effect_size,
    holm,
    mean_interval,
    paired_difference,
    power_at,
    seeds_needed,
    t_difference,
    verdict,
    widened_p,
)
from analysis.store.scaling_schemas import COMPARISONS, CURVE
from analysis.store.store import Store
from analysis.styles import style

Row = dict[str, Any]
Seed = tuple[int, int, int]
Place = tuple[str, str, str, str]
"""Where a comparison is made: (sweep, model, data set, training size)."""

FOCUS, BASELINE = "randlora", "lora"
"""The question's two methods: full rank and low rank at the same count."""

UNTRAINED = "zero-shot"

PLANTED = 0.02
"""The true difference that `power` is given for: 2 points."""

_RUNS = """
select sweep, cell_id, model, dataset, train_size, method, reference, budget, adapter_params, lr,
       data_seed, init_seed, basis_seed, test_score
from confirmed where test_score is not null
order by sweep, model, dataset, train_size, method, budget, data_seed, init_seed, basis_seed
"""


def curve(store: Store) -> pa.Table:
    """Score against trainable parameters: per method and budget the mean over seeds with its 95 % t interval.

    Columns: `CURVE`. Methods without a budget (full fine-tuning, zero-shot) are rows of kind 'line'. A sweep over
    several data sets also has rows with a null `dataset`: the mean over all its data sets, its interval over seeds,
    for methods and budgets that are confirmed on each.
    """
    return store.remember("curve", lambda: _curve(store))


def score_name(store: Store, dataset: str | None = None) -> str:
    """What test scores measure, in words: 'test accuracy', or the confirmed trials' one metric; else 'test score'.

    Of one data set, if it is given.
    """
    query = (
        "select distinct dataset, coalesce(metric, 'accuracy') as metric from confirmed where test_score is not null"
    )
    found = store.remember("metrics", lambda: store.sql(query)).to_pylist()
    kinds = {r["metric"].partition(" (")[0] for r in found if dataset in (None, r["dataset"])}
    return f"test {kinds.pop()}" if len(kinds) == 1 else "test score" if kinds else "test accuracy"


def _runs(store: Store) -> list[Row]:
    return list(store.remember("confirmed runs", lambda: store.sql(_RUNS)).to_pylist())


def _curve(store: Store) -> pa.Table:
    cells: dict[tuple[Place, str, str | None], list[Row]] = defaultdict(list)
    for run in _runs(store):
        cells[_place(run), run["method"], run["reference"]].append(run)
    rows = [_point(place, group, [r["test_score"] for r in group]) for (place, _, _), group in cells.items()]
    datasets: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for sweep, model, dataset, size in {place for place, _, _ in cells}:
        datasets[sweep, model, size].add(dataset)
    for (sweep, model, size), names in datasets.items():
        if len(names) > 1:
            rows += _averages((sweep, model, size), sorted(names), cells)
    rows.sort(key=_order)
    return pa.Table.from_pylist(rows, schema=CURVE)


def _point(place: Place, group: Sequence[Row], scores: Sequence[float]) -> Row:
    first, interval = group[0], mean_interval(scores)
    sweep, model, dataset, size = place
    return {
        "sweep": sweep,
        "model": model,
        "dataset": dataset,
        "train_size": size,
        "method": first["method"],
        "name": style(first["method"]).name,
        "kind": "line" if first["budget"] is None else "curve",
        "reference": first["reference"],
        "budget": first["budget"],
        "adapter_params": first["adapter_params"],
        "lr": first["lr"],
        "n": interval.n,
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "sd": interval.sd,
        "n_datasets": 1,
        "p_seeds": None,
    }


def _averages(
    where: tuple[str, str, str], names: Sequence[str], cells: Mapping[tuple[Place, str, str | None], list[Row]]
) -> list[Row]:
    sweep, model, size = where
    rows = []
    for method, reference in dict.fromkeys((m, r) for p, m, r in cells if (p[0], p[1], p[3]) == where):
        groups = [cells.get(((sweep, model, name, size), method, reference), []) for name in names]
        scores = [_by_seed(group) for group in groups]
        shared = [seed for seed in scores[0] if all(seed in other for other in scores)]
        if shared:
            means = [sum(s[seed] for s in scores) / len(scores) for seed in shared]
            point = _point((sweep, model, names[0], size), groups[0], means)
            rows.append(point | {"dataset": None, "lr": None, "n_datasets": len(names)})
    return rows


def confirmed_scores(store: Store) -> dict[tuple[Place, str, str | None], Row]:
    """(place, method, reference) -> `cell_id`, `scores` by seed, and their `mean`, of every confirmed cell."""
    cells: dict[tuple[Place, str, str | None], list[Row]] = defaultdict(list)
    for run in _runs(store):
        cells[_place(run), run["method"], run["reference"]].append(run)
    found = {}
    for key, group in cells.items():
        scores = _by_seed(group)
        found[key] = {"cell_id": group[0]["cell_id"], "scores": scores, "mean": sum(scores.values()) / len(scores)}
    return found


def comparisons(store: Store, baseline: str = BASELINE, focus: str = FOCUS) -> pa.Table:
    """Every method with a budget against `baseline`, paired by seed; one Holm family.

    Args:
        store: the results.
        baseline: a method with budgets (compared at the same budget) or without ('full': compared at every budget).
        focus: the method that also gets one row over all matched budgets and data sets (`reference` null), where it has
            more than one.

    Returns:
        Columns `COMPARISONS`, ordered by place, method and budget. `p_holm` and `verdict` hold for the whole table: the
        chance of any false 'higher' or 'lower' in it is at most 5 %, given the chosen learning rates; with
        `verdict_choice` it is so over their choice too.
    """
    return store.remember(("comparisons", baseline, focus), lambda: _comparisons(store, baseline, focus))


def _comparisons(store: Store, baseline: str, focus: str) -> pa.Table:
    by_cell: dict[tuple[Place, str, str | None], list[Row]] = defaultdict(list)
    for run in _runs(store):
        by_cell[_place(run), run["method"], run["reference"]].append(run)
    rows: list[Row] = []
    choice = choice_variances(store)
    for (place, method, reference), group in by_cell.items():
        if method == baseline or group[0]["budget"] is None:
            continue
        other = by_cell.get((place, baseline, reference)) or by_cell.get((place, baseline, None))
        difference = _paired(group, other) if other else None
        if other and difference:
            count, base = group[0]["adapter_params"], other[0]["adapter_params"]
            matched = other[0]["budget"] is not None and count is not None and base
            ratio = count / base if matched else None
            added = _added(choice, [(group, other)])
            rows.append(_compared(place, method, baseline, group[0], ratio, difference, added))
    _mark_edges(rows, by_cell, baseline, store)
    rows += _overall(by_cell, rows, baseline, focus, choice)
    rows.sort(key=_order)
    adjusted = holm([row["p"] for row in rows])
    alpha = 0.05 / max(1, sum(p is not None for p in adjusted))
    for row, p in zip(rows, adjusted, strict=True):
        row["p_holm"], row["verdict"] = p, verdict(row["difference"], p)
        row.update(_prospects(row, alpha))
    adjusted = holm([row["p_choice"] for row in rows])
    for row, p in zip(rows, adjusted, strict=True):
        row["p_choice_holm"], row["verdict_choice"] = p, verdict(row["difference"], p)
    return pa.Table.from_pylist(rows, schema=COMPARISONS)


def _paired(group: Sequence[Row], other: Sequence[Row]) -> Difference | None:
    """The difference over common seeds; a baseline that trains nothing has one score, whatever the seed."""
    mine, theirs = _by_seed(group), _by_seed(other)
    if other[0]["method"] == UNTRAINED and len(theirs) == 1:
        theirs = dict.fromkeys(mine, next(iter(theirs.values())))
    return paired_difference(mine, theirs)


def _prospects(row: Row, alpha: float) -> Row:
    """Power for PLANTED, the seeds for it, and the smallest detectable difference."""
    error, freedom = row["error"], row["freedom"]
    if error is None or row["p"] is None:
        return {"power": None, "seeds_needed": None, "detectable": None}
    return {
        "power": power_at(error, freedom, PLANTED, alpha),
        "seeds_needed": seeds_needed(row["sd"], PLANTED, alpha, datasets=row["datasets"]),
        "detectable": detectable(error, freedom, alpha),
    }


def _mark_edges(
    rows: Sequence[Row], by_cell: Mapping[tuple[Place, str, str | None], list[Row]], baseline: str, store: Store
) -> None:
    edges = {(r["sweep"], r["cell_id"]) for r in store.table("chosen").to_pylist() if r["edge"]}
    for row in rows:
        place = _place(row)
        other = by_cell.get((place, baseline, row["reference"])) or by_cell[place, baseline, None]
        own = by_cell[place, row["method"], row["reference"]]
        mine, theirs = ((sweep["sweep"], sweep["cell_id"]) in edges for sweep in (own[0], other[0]))
        row["edge"] = {(True, True): "both", (True, False): "method", (False, True): "baseline"}.get((mine, theirs))


def _added(choice: Mapping[CellKey, float], pairs: Sequence[tuple[list[Row], list[Row]]]) -> float | None:
    """Variance that choices add to a mean over pairs of cells; None where one of them is not known."""
    cells: dict[CellKey, int] = defaultdict(int)
    for mine, theirs in pairs:
        for group in (mine, theirs):
            cells[group[0]["sweep"], group[0]["cell_id"]] += 1
    if any(key not in choice for key in cells):
        return None
    return sum(choice[key] * times**2 for key, times in cells.items()) / len(pairs) ** 2


def _overall(
    by_cell: Mapping[tuple[Place, str, str | None], list[Row]],
    rows: Sequence[Row],
    baseline: str,
    focus: str,
    choice: Mapping[CellKey, float],
) -> list[Row]:
    matched: dict[tuple[str, str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["method"] == focus and row["params_ratio"] is not None:
            matched[row["sweep"], row["model"], row["train_size"]][row["dataset"]].append(row["reference"])
    found = []
    for (sweep, model, size), datasets in matched.items():
        if sum(len(references) for references in datasets.values()) < 2:
            continue
        blocks: dict[str, dict[Seed, float]] = {}
        parts: list[float | None] = []
        for dataset, references in datasets.items():
            place = (sweep, model, dataset, size)
            pairs = [(_by_seed(by_cell[place, focus, r]), _by_seed(by_cell[place, baseline, r])) for r in references]
            shared = [s for s in pairs[0][0] if all(s in a and s in b for a, b in pairs)]
            if shared:
                blocks[dataset] = {s: sum(a[s] - b[s] for a, b in pairs) / len(pairs) for s in shared}
                cells = [(by_cell[place, focus, r], by_cell[place, baseline, r]) for r in references]
                parts.append(_added(choice, cells))
        if blocks:
            one = len(blocks) == 1
            difference = _over_datasets(blocks, len(rows) + 1)
            known = [p for p in parts if p is not None]
            added = sum(known) / len(parts) ** 2 if len(known) == len(parts) else None
            place = (sweep, model, next(iter(blocks)), size)
            row = _compared(place, focus, baseline, {"reference": None, "budget": None}, None, difference, added)
            row |= {"n_datasets": len(blocks), "p_seeds": _common_seeds(blocks) if row["test"] == SIGN_FLIP else None}
            found.append(row | ({} if one else {"dataset": None}))
    return found


def _over_datasets(blocks: Mapping[str, Mapping[Seed, float]], family: int) -> Difference:
    """The mean over data sets of paired differences.

    With few data sets and seeds a permutation test cannot reach 5 % in a family, whatever the data; then it is the t
    test over seeds, each averaged over the data sets. The choice between the two looks at the numbers of blocks and
    comparisons only.
    """
    first = next(iter(blocks.values()))
    shared = [s for s in first if all(s in other for other in blocks.values())]
    floor = 2.0 ** (1 - sum(len(b) for b in blocks.values()))
    if len(blocks) == 1 or (floor * family > 0.05 and len(shared) > 1):
        return t_difference([sum(b[s] for b in blocks.values()) / len(blocks) for s in shared])
    # random flips can't show a p below 2 / resamples: enough of them that a large family does not hide everything
    resamples = max(9999, 200 * family)
    return blocked_difference({d: list(values.values()) for d, values in blocks.items()}, resamples=resamples)


def _common_seeds(blocks: Mapping[str, Mapping[Seed, float]]) -> float | None:
    shared = set.intersection(*(set(b) for b in blocks.values()))
    return common_seed_p([[b[s] for s in sorted(shared)] for b in blocks.values()]) if shared else None


def _compared(
    place: Place,
    method: str,
    baseline: str,
    cell: Row,
    ratio: float | None,
    difference: Difference,
    added: float | None,
) -> Row:
    sweep, model, dataset, size = place
    effect = effect_size(difference)
    return {
        "sweep": sweep,
        "model": model,
        "dataset": dataset,
        "train_size": size,
        "method": method,
        "baseline": baseline,
        "reference": cell["reference"],
        "budget": cell["budget"],
        "params_ratio": ratio,
        "n": difference.n,
        "datasets": difference.datasets,
        "n_datasets": 1,
        "p_seeds": None,
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "sd": difference.sd,
        "error": difference.error,
        "freedom": difference.freedom,
        "choice_sd": None if added is None else added**0.5,
        "p": difference.p,
        "p_choice": None if added is None else widened_p(difference, added),
        "effect": effect and effect.mean,
        "effect_low": effect and effect.low,
        "effect_high": effect and effect.high,
        "test": difference.test,
    }


def _place(run: Row) -> Place:
    return run["sweep"], run["model"], run["dataset"], run["train_size"]


def _by_seed(group: Sequence[Row]) -> dict[Seed, float]:
    return {(r["data_seed"], r["init_seed"], r["basis_seed"]): r["test_score"] for r in group}


def _order(row: Row) -> tuple[Any, ...]:
    method = style(row["method"])
    params = row.get("adapter_params") if row.get("budget") is None else row["budget"]
    place = (row["sweep"], row["model"], row["dataset"] is None, row["dataset"] or "", row["train_size"])
    total = row["budget"] is None and row.get("baseline") is not None  # "all budgets" after the budgets
    return (*place, method.order, row["method"], total, params or 0)
