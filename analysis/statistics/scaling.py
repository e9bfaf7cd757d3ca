"""The scaling curve and the comparisons at each budget: every function returns an Arrow table, or a phrase."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from analysis.format import Row
from analysis.statistics.choice import CellKey, choice_variances
from analysis.statistics.inference import (
    SIGN_FLIP,
    Difference,
    blocked_difference,
    common_seed_p,
    holm,
    mean_interval,
    paired_difference,
    t_difference,
    verdict,
    widened_p,
)
from analysis.statistics.power import detectable, effect_size, power_at, seeds_needed
from analysis.statistics.runs import Cell, Seed, averaged, by, by_seed, confirmed, shared_seeds
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import style

Runs = Sequence[Row]
"""The confirmed runs of a cell."""

FOCUS, BASELINE = "randlora", "lora"
"""The question's two methods: full rank and low rank at the same count."""

UNTRAINED = "zero-shot"

PLANTED = 0.02
"""The true difference that `power` is given for: 2 points."""

CURVE = pa.schema(
    [
        *typed(TEXT, *PLACE),  # dataset null: the mean over `n_datasets` data sets
        *typed(TEXT, "method", "name"),
        ("kind", TEXT),  # 'curve', or 'line' for a method without a budget
        ("reference", TEXT),
        *typed(INT, "budget", "adapter_params"),
        ("lr", REAL),
        ("n", INT),
        *typed(REAL, "mean", "low", "high", "sd"),
        ("n_datasets", INT),
    ]
)

COMPARISONS = pa.schema(
    [
        *typed(TEXT, *PLACE),  # dataset null: all data sets together
        *typed(TEXT, "method", "baseline"),
        ("reference", TEXT),  # null: all matched budgets together
        ("budget", INT),
        ("params_ratio", REAL),  # the method's adapter parameters / the baseline's; null for one without a budget
        ("n", INT),  # pairs; of a permutation test those of all its data sets
        ("datasets", INT),  # whose pairs count by themselves; 1 where each seed is averaged over data sets first
        ("n_datasets", INT),  # that the row is of
        *typed(REAL, "difference", "low", "high"),
        ("sd", REAL),  # of the paired differences; over several data sets pooled within them
        ("error", REAL),  # standard error of the mean difference, from `sd`
        ("freedom", INT),  # degrees of freedom of `sd`
        ("p", REAL),
        # of a permutation test: F test that a seed moves the difference on all data sets alike; small: `p` is too small
        ("p_seeds", REAL),
        ("p_holm", REAL),
        ("verdict", TEXT),
        ("choice_sd", REAL),  # what the choice of both arms' rates adds (`choice`); null where not known
        ("p_choice", REAL),  # of the test that includes it; null where it is not known
        ("p_choice_holm", REAL),
        ("verdict_choice", TEXT),  # 'not testable' where it is not known
        ("test", TEXT),
        ("edge", TEXT),  # which arms chose the end of their range of rates: 'method', 'baseline', 'both'; else null
        ("power", REAL),  # chance to find a true difference of PLANTED in this family; null where not computable
        ("seeds_needed", INT),  # least seeds that would find it 4 times in 5; null: not within 1000, or unknown
        ("detectable", REAL),  # smallest true difference that is found 4 times in 5; null where not computable
        ("effect", REAL),  # Hedges' g of the paired differences: their mean in standard deviations
        *typed(REAL, "effect_low", "effect_high"),
    ]
)


def score_name(store: Store, dataset: str | None = None) -> str:
    """What test scores measure: 'test accuracy', or the one metric of the confirmed trials; else 'test score'.

    Args:
        dataset: its trials alone; default all.
    """
    query = (
        "select distinct dataset, coalesce(metric, 'accuracy') as metric from confirmed where test_score is not null"
    )
    found = store.remember("metrics", lambda: store.sql(query)).to_pylist()
    kinds = {r["metric"].partition(" (")[0] for r in found if dataset in (None, r["dataset"])}
    return f"test {kinds.pop()}" if len(kinds) == 1 else "test score" if kinds else "test accuracy"


@remembered
def curve(store: Store) -> pa.Table:
    """Score against trainable parameters: per method and budget the mean over seeds with its 95 % t interval.

    Columns: `CURVE`. Methods without a budget (full fine-tuning, zero-shot) are rows of kind 'line'. A sweep over
    several data sets also has rows with a null `dataset`: the mean over all its data sets, its interval over seeds,
    for methods and budgets that are confirmed on each.
    """
    cells = confirmed(store)
    rows = [_point(runs, [r["test_score"] for r in runs]) for runs in cells.values()]
    datasets: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for (sweep, model, dataset, size), _, _ in cells:
        datasets[sweep, model, size].add(dataset or "")
    for sweep, model, size, method, reference in dict.fromkeys((p[0], p[1], p[3], m, r) for p, m, r in cells):
        names = sorted(datasets[sweep, model, size])
        groups = [cells.get(((sweep, model, name, size), method, reference), []) for name in names]
        means = averaged([by_seed(runs) for runs in groups])
        if len(names) > 1 and means:
            mean = {"dataset": None, "lr": None, "n_datasets": len(names)}
            rows.append(_point(groups[0], list(means.values())) | mean)
    return pa.Table.from_pylist(sorted(rows, key=_order), schema=CURVE)


def _point(runs: Runs, scores: Sequence[float]) -> Row:
    first = runs[0]
    kind = "line" if first["budget"] is None else "curve"
    shared = {k: first[k] for k in (*PLACE, "method", "reference", "budget", "adapter_params", "lr")}
    named = {"name": style(first["method"]).name, "kind": kind, "n_datasets": 1}
    return shared | named | vars(mean_interval(scores))


@remembered
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
    cells, choice = confirmed(store), choice_variances(store)
    edges = {(r["sweep"], r["cell_id"]) for r in store.table("chosen").to_pylist() if r["edge"]}
    rows: list[Row] = []
    for (place, method, reference), runs in cells.items():
        other = cells.get((place, baseline, reference)) or cells.get((place, baseline, None))
        if method == baseline or runs[0]["budget"] is None or not other:
            continue
        difference = _paired(runs, other)
        if difference is not None:
            row = _compared(runs[0], baseline, difference, _added(choice, [(runs, other)]))
            rows.append(row | {"params_ratio": _ratio(runs[0], other[0]), "edge": _edge(edges, runs[0], other[0])})
    rows += _overall(cells, rows, baseline, focus, choice)
    rows.sort(key=_order)
    for p, said in (("p", "verdict"), ("p_choice", "verdict_choice")):
        for row, adjusted in zip(rows, holm([r[p] for r in rows]), strict=True):
            row |= {f"{p}_holm": adjusted, said: verdict(row["difference"], adjusted)}
    alpha = 0.05 / max(1, sum(row["p"] is not None for row in rows))
    for row in rows:
        row.update(_prospects(row, alpha))
    return pa.Table.from_pylist(rows, schema=COMPARISONS)


def _paired(runs: Runs, other: Runs) -> Difference | None:
    """The difference over common seeds; a baseline that trains nothing has one score, whatever the seed."""
    mine, theirs = by_seed(runs), by_seed(other)
    if other[0]["method"] == UNTRAINED and len(theirs) == 1:
        theirs = dict.fromkeys(mine, next(iter(theirs.values())))
    return paired_difference(mine, theirs)


def _ratio(mine: Row, other: Row) -> float | None:
    count, base = mine["adapter_params"], other["adapter_params"]
    return count / base if other["budget"] is not None and count is not None and base else None


def _edge(edges: set[CellKey], mine: Row, other: Row) -> str | None:
    ours, theirs = ((run["sweep"], run["cell_id"]) in edges for run in (mine, other))
    return {(True, True): "both", (True, False): "method", (False, True): "baseline"}.get((ours, theirs))


def _prospects(row: Row, alpha: float) -> Row:
    """Power for PLANTED, the seeds for it, and the smallest detectable difference."""
    error, freedom = row["error"], row["freedom"]
    if error is None or row["p"] is None:
        return {}
    return {
        "power": power_at(error, freedom, PLANTED, alpha),
        "seeds_needed": seeds_needed(row["sd"], PLANTED, alpha, datasets=row["datasets"]),
        "detectable": detectable(error, freedom, alpha),
    }


def _added(choice: Mapping[CellKey, float], pairs: Sequence[tuple[Runs, Runs]]) -> float | None:
    """Variance that choices add to a mean over pairs of cells; None where one of them is not known."""
    cells: dict[CellKey, int] = defaultdict(int)
    for pair in pairs:
        for runs in pair:
            cells[runs[0]["sweep"], runs[0]["cell_id"]] += 1
    if any(key not in choice for key in cells):
        return None
    return sum(choice[key] * times**2 for key, times in cells.items()) / len(pairs) ** 2


def _overall(
    cells: Mapping[Cell, list[Row]], rows: Sequence[Row], baseline: str, focus: str, choice: Mapping[CellKey, float]
) -> list[Row]:
    """The rows of `focus` over all its matched budgets and data sets."""
    matched = [row for row in rows if row["method"] == focus and row["params_ratio"] is not None]
    found = []
    for (sweep, model, size), several in by(matched, "sweep", "model", "train_size").items():
        if len(several) < 2:
            continue
        blocks: dict[str, dict[Seed, float]] = {}
        parts: list[float | None] = []
        for (dataset,), mine in by(several, "dataset").items():
            place = (sweep, model, dataset, size)
            pairs = [(cells[place, focus, r["reference"]], cells[place, baseline, r["reference"]]) for r in mine]
            scores = [(by_seed(runs), by_seed(other)) for runs, other in pairs]
            differences = averaged([{s: a[s] - b[s] for s in a if s in b} for a, b in scores])
            if differences:
                blocks[dataset] = differences
                parts.append(_added(choice, pairs))
        if blocks:
            difference = _over_datasets(blocks, len(rows) + 1)
            known = [p for p in parts if p is not None]
            added = sum(known) / len(parts) ** 2 if len(known) == len(parts) else None
            dataset = next(iter(blocks)) if len(blocks) == 1 else None
            total = {"sweep": sweep, "model": model, "dataset": dataset, "train_size": size, "method": focus}
            row = _compared(total | {"reference": None, "budget": None}, baseline, difference, added)
            p_seeds = _common_seeds(blocks) if row["test"] == SIGN_FLIP else None
            found.append(row | {"n_datasets": len(blocks), "p_seeds": p_seeds})
    return found


def _over_datasets(blocks: Mapping[str, Mapping[Seed, float]], family: int) -> Difference:
    """The mean over data sets of paired differences.

    With few data sets and seeds a permutation test cannot reach 5 % in a family, whatever the data; then it is the t
    test over seeds, each averaged over the data sets. The choice between the two looks at the numbers of blocks and
    comparisons only.
    """
    means = averaged(list(blocks.values()))
    floor = 2.0 ** (1 - sum(len(b) for b in blocks.values()))
    if len(blocks) == 1 or (floor * family > 0.05 and len(means) > 1):
        return t_difference(list(means.values()))
    # random flips can't show a p below 2 / resamples: a large family needs more of them, lest it hide everything
    resamples = max(9999, 200 * family)
    return blocked_difference({d: list(values.values()) for d, values in blocks.items()}, resamples=resamples)


def _common_seeds(blocks: Mapping[str, Mapping[Seed, float]]) -> float | None:
    shared = shared_seeds(list(blocks.values()))
    return common_seed_p([[b[s] for s in shared] for b in blocks.values()]) if shared else None


def _compared(cell: Row, baseline: str, difference: Difference, added: float | None) -> Row:
    effect = effect_size(difference)
    return (
        {k: cell[k] for k in (*PLACE, "method", "reference", "budget")}
        | {"baseline": baseline, "n_datasets": 1, "difference": difference.mean}
        | vars(difference)
        | {"choice_sd": None if added is None else added**0.5}
        | {"p_choice": None if added is None else widened_p(difference, added)}
        | {"effect": effect and effect.mean, "effect_low": effect and effect.low}
        | {"effect_high": effect and effect.high}
    )


def _order(row: Row) -> tuple[Any, ...]:
    method = style(row["method"])
    params = row.get("adapter_params") if row.get("budget") is None else row["budget"]
    place = (row["sweep"], row["model"], row["dataset"] is None, row["dataset"] or "", row["train_size"])
    total = row["budget"] is None and row.get("baseline") is not None  # "all budgets" after the budgets
    return (*place, method.order, row["method"], total, params or 0)
