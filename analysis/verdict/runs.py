"""Step 1: the confirmed runs of a store by cell and by seed, and their paired differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.format import Row
from analysis.store.store import Store, remembered
from analysis.styles import Place, place_of

Cell = tuple[Place, str, str | None]
"""(place, method, name of the budget or None without one)."""
Seed = tuple[int, int, int]
"""(data seed, init seed, basis seed)."""

UNTRAINED = "zero-shot"

_RUNS = """
select sweep, cell_id, model, dataset, train_size, method, reference, budget, adapter_params, lr,
       data_seed, init_seed, basis_seed, val_score, test_score
from confirmed where test_score is not null
order by sweep, model, dataset, train_size, method, budget, data_seed, init_seed, basis_seed
"""


@remembered
def confirmed(store: Store) -> dict[Cell, list[Row]]:
    """Return the confirmed runs of each cell that have a test score."""
    cells: dict[Cell, list[Row]] = defaultdict(list)
    for run in store.sql(_RUNS).to_pylist():
        cells[place_of(run), run["method"], run["reference"]].append(run)
    return dict(cells)


_FAILED = """
select f.sweep, f.model, f.dataset, f.train_size, f.method, f.reference, f.cell_id,
       f.data_seed, f.init_seed, f.basis_seed,
       coalesce(z.score, case when coalesce(m.metric, 'accuracy') = 'accuracy' then 1 / k.classes end, 0) as test_score
from failed f
left join cells k using (sweep, cell_id)
left join (  -- a run that failed has no metric
  select sweep, dataset, max(metric) as metric from last_attempts where status = 'finished' group by all
) m on (f.sweep, f.dataset) = (m.sweep, m.dataset)
left join (
  select sweep, model, dataset, train_size, avg(test_score) as score
  from confirmed where method = 'zero-shot' group by all
) z on (f.sweep, f.model, f.dataset, f.train_size) = (z.sweep, z.model, z.dataset, z.train_size)
where f.lr is not null
order by f.data_seed, f.init_seed, f.basis_seed
"""


@remembered
def failed(store: Store) -> dict[Cell, list[Row]]:
    """Return the failed CONFIRM runs of each cell, with the untrained model's score as `test_score`.

    That score is the zero-shot score if the sweep has one, else the accuracy of guessing a class, else 0.
    """
    cells: dict[Cell, list[Row]] = defaultdict(list)
    for run in store.sql(_FAILED).to_pylist():
        cells[place_of(run), run["method"], run["reference"]].append(run)
    return dict(cells)


def seed_of(run: Row) -> Seed:
    """Return the seeds of a run. Runs with the same seeds are paired."""
    return run["data_seed"], run["init_seed"], run["basis_seed"]


def by_seed(runs: Iterable[Row]) -> dict[Seed, float]:
    """Return the test score of each seed."""
    return {seed_of(run): run["test_score"] for run in runs}


def shared_seeds(scores: Sequence[Mapping[Seed, Any]]) -> list[Seed]:
    """Return the seeds that all of `scores` have, in the order of the first one."""
    return [seed for seed in scores[0] if all(seed in other for other in scores)]


def sharing_seeds(store: Store) -> frozenset[str]:
    """Return the sweeps whose declared seeds are used unchanged on every data set. These are the imported ones.

    There, a seed affects all data sets in the same way. Our own sweeps derive other seeds for each data set and
    training size.
    """
    cells = store.table("cells").select(["sweep", "seed_rule"]).to_pylist()
    return frozenset(r["sweep"] for r in cells if r["seed_rule"] != "per-data-set")


def datasets_of(cells: Iterable[Cell], sweep: str, model: str, size: str) -> set[str | None]:
    """Return the data sets of a sweep, model and training size that have a confirmed run."""
    return {place[2] for place, _, _ in cells if (place[0], place[1], place[3]) == (sweep, model, size)}


def averaged(scores: Sequence[Mapping[Seed, float]]) -> dict[Seed, float]:
    """Return the mean of several scores for each seed that all of them have."""
    return {seed: sum(each[seed] for each in scores) / len(scores) for seed in shared_seeds(scores)}


def group_by(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by the values of these columns. The groups are in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return dict(groups)


def baseline_runs(
    cells: Mapping[Cell, Sequence[Row]], place: Place, baseline: str, reference: str | None
) -> Sequence[Row]:
    """Return the baseline's runs at a budget, else its runs without a budget, else an empty list."""
    return cells.get((place, baseline, reference)) or cells.get((place, baseline, None)) or []


def seed_differences(runs: Sequence[Row], base_runs: Sequence[Row]) -> dict[Seed, float]:
    """Return the differences of test scores for the common seeds.

    The untrained model has one score, which is taken for every seed.
    """
    scores, base_scores = by_seed(runs), by_seed(base_runs)
    if base_runs[0]["method"] == UNTRAINED and len(base_scores) == 1:
        base_scores = dict.fromkeys(scores, next(iter(base_scores.values())))
    return {seed: scores[seed] - base_scores[seed] for seed in scores if seed in base_scores}


def lost_runs(store: Store, runs: Sequence[Row]) -> list[Row]:
    """Return the failed runs of the cell to which `runs` belong (see `failed`)."""
    return failed(store).get((place_of(runs[0]), runs[0]["method"], runs[0]["reference"]), [])


def seed_differences_as_untrained(
    store: Store, runs: Sequence[Row], other: Sequence[Row], *, ahead: bool
) -> dict[Seed, float]:
    """Return `seed_differences`, with the untrained model's score for each failed run of the cell that is ahead.

    Failed runs of the cell that is behind are left out: they cannot make the lead smaller.

    Args:
        ahead: whether `runs` are ahead of `other`.
    """
    lost_runs_of_first, lost_runs_of_other = (
        lost_runs(store, each) if leads is ahead else [] for each, leads in ((runs, True), (other, False))
    )
    return seed_differences([*runs, *lost_runs_of_first], [*other, *lost_runs_of_other])


@remembered
def _degrees_of_freedom(store: Store) -> dict[tuple[str, str], int | None]:
    """Return the degrees of freedom of each cell's update, by sweep and cell id."""
    return {(r["sweep"], r["cell_id"]): r["dof"] for r in store.table("cells").to_pylist()}


def size_ratios(store: Store, run: Row, base_run: Row) -> dict[str, float | None]:
    """Return the ratios of one run's trainable parameters and degrees of freedom to those of another run.

    A ratio is None if the other run has no budget, or if a number is not known.
    """
    freedoms = _degrees_of_freedom(store)
    freedom, base_freedom = (freedoms.get((each["sweep"], each["cell_id"])) for each in (run, base_run))
    count, base_count = run["adapter_params"], base_run["adapter_params"]
    matched = base_run["budget"] is not None
    return {
        "params_ratio": count / base_count if matched and count is not None and base_count else None,
        "dof_ratio": freedom / base_freedom if matched and freedom and base_freedom else None,
    }


def score_name(store: Store, dataset: str | None = None) -> str:
    """Return what test scores measure, such as 'test accuracy', or 'test score' if the trials have several metrics.

    Args:
        dataset: look at the trials of this data set only. Default: all.
    """
    query = (
        "select distinct dataset, coalesce(metric, 'accuracy') as metric from confirmed where test_score is not null"
    )
    metrics = store.remember("metrics", lambda: store.sql(query)).to_pylist()
    kinds = {r["metric"].partition(" (")[0] for r in metrics if dataset in (None, r["dataset"])}
    return f"test {kinds.pop()}" if len(kinds) == 1 else "test score" if kinds else "test accuracy"


CellKey = tuple[str, str]
"""(sweep, cell id)."""
