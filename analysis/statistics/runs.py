"""The confirmed runs of a store, by cell and by seed: what is compared is compared seed by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from analysis.format import Row
from analysis.statistics.inference import OVER_SEEDS, T_TEST, Difference, stratified_difference, t_difference
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
    """The confirmed, scored runs of every cell."""
    cells: dict[Cell, list[Row]] = defaultdict(list)
    for run in store.sql(_RUNS).to_pylist():
        cells[place_of(run), run["method"], run["reference"]].append(run)
    return dict(cells)


_FAILED = """
select f.sweep, f.model, f.dataset, f.train_size, f.method, f.reference, f.cell_id,
       f.data_seed, f.init_seed, f.basis_seed,
       coalesce(z.score, case when coalesce(f.metric, 'accuracy') = 'accuracy' then 1 / k.classes end, 0) as test_score
from failed f
left join cells k using (sweep, cell_id)
left join (
  select sweep, model, dataset, train_size, avg(test_score) as score
  from confirmed where method = 'zero-shot' group by all
) z on (f.sweep, f.model, f.dataset, f.train_size) = (z.sweep, z.model, z.dataset, z.train_size)
where f.lr is not null
order by f.data_seed, f.init_seed, f.basis_seed
"""


@remembered
def failed(store: Store) -> dict[Cell, list[Row]]:
    """The confirming runs of every cell that gave no score, with that of the untrained model in its place.

    That is the zero-shot score where the sweep has one, else that of guessing a class, else 0.
    """
    cells: dict[Cell, list[Row]] = defaultdict(list)
    for run in store.sql(_FAILED).to_pylist():
        cells[place_of(run), run["method"], run["reference"]].append(run)
    return dict(cells)


def seed_of(run: Row) -> Seed:
    """The seeds of a run; runs that agree in them are paired."""
    return run["data_seed"], run["init_seed"], run["basis_seed"]


def by_seed(runs: Iterable[Row]) -> dict[Seed, float]:
    """Test score by seed."""
    return {seed_of(run): run["test_score"] for run in runs}


def shared_seeds(scores: Sequence[Mapping[Seed, Any]]) -> list[Seed]:
    """The seeds that all have, in the first one's order."""
    return [seed for seed in scores[0] if all(seed in other for other in scores)]


def sharing_seeds(store: Store) -> frozenset[str]:
    """The sweeps whose declared seeds are trained with as they are, on all data sets alike: those of imports.

    What a seed does there it does to all data sets. Our own derive their seeds per data set and training size.
    """
    cells = store.table("cells").select(["sweep", "seed_rule"]).to_pylist()
    return frozenset(r["sweep"] for r in cells if r["seed_rule"] != "per-data-set")


def datasets_of(cells: Iterable[Cell], sweep: str, model: str, size: str) -> set[str | None]:
    """The data sets of a sweep and training size on which anything is confirmed: a mean over data sets is of all."""
    return {place[2] for place, _, _ in cells if (place[0], place[1], place[3]) == (sweep, model, size)}


def averaged(scores: Sequence[Mapping[Seed, float]]) -> dict[Seed, float]:
    """Seed by seed the mean over several, of the seeds that all have."""
    return {seed: sum(each[seed] for each in scores) / len(scores) for seed in shared_seeds(scores)}


def group_by(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by what stands in these columns, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return dict(groups)


def over_datasets(blocks: Sequence[Mapping[Seed, float]], *, shared: bool) -> Difference | None:
    """The mean over data sets of values by seed, its spread from the seeds; None where one of them has no value.

    Args:
        blocks: of each data set.
        shared: whether a seed is the same on all of them (`sharing_seeds`) and moves them together: then each is
            averaged over the data sets, and counts once.
    """
    if not all(blocks):
        return None
    if len(blocks) > 1 and not shared:
        return stratified_difference([list(values.values()) for values in blocks])
    means = list(averaged(blocks).values()) if blocks else []
    return t_difference(means, OVER_SEEDS if len(blocks) > 1 else T_TEST) if means else None


def added_over_datasets(each: Sequence[float | None], *, shared: bool) -> float | None:
    """Variance that choices of rates add to a mean over data sets; None where it is not known of one of them.

    Args:
        each: what they add on each data set. shared: as of `over_datasets`; choices on shared seeds may go wrong alike.
    """
    known = [variance for variance in each if variance is not None]
    return sum(known) / len(each) / (1 if shared else len(each)) if len(known) == len(each) else None


def over_all_datasets(store: Store, rows: Sequence[Row]) -> Iterator[tuple[list[Row], Difference, float | None]]:
    """The differences averaged over data sets, of each method and budget that has one on all of its sweep and size.

    Args:
        rows: of `scaling.comparisons`.

    Yields:
        The rows, their mean, and the variance that the choices of rates add to it; None where that is not known.
    """
    cells, sharing = confirmed(store), sharing_seeds(store)
    single = [r for r in rows if r["reference"] and r["dataset"]]
    for key, of_place in group_by(single, "sweep", "model", "train_size").items():
        sets, shared = len(datasets_of(cells, *key)), key[0] in sharing
        for (method, reference), mine in group_by(of_place, "method", "reference").items():
            if sets < 2 or len(mine) < sets:
                continue
            runs = [cells[place_of(r), method, reference] for r in mine]
            other = [baseline_runs(cells, place_of(r), r["baseline"], reference) for r in mine]
            mean = over_datasets([seed_differences(*pair) for pair in zip(runs, other, strict=True)], shared=shared)
            if mean is not None:
                yield mine, mean, added_over_datasets(list(map(choice_variance_of, mine)), shared=shared)


def choice_variance_of(row: Row) -> float | None:
    """Variance that the choice of rates adds to a comparison; None where it is not known."""
    return None if row["choice_sd"] is None else row["choice_sd"] ** 2


def baseline_runs(
    cells: Mapping[Cell, Sequence[Row]], place: Place, baseline: str, reference: str | None
) -> Sequence[Row]:
    """The baseline's runs at a budget, or its only ones where it has no budget; empty where there are none."""
    return cells.get((place, baseline, reference)) or cells.get((place, baseline, None)) or []


def seed_differences(runs: Sequence[Row], other: Sequence[Row]) -> dict[Seed, float]:
    """Differences of test scores over common seeds; what trains nothing has one score, whatever the seed."""
    mine, theirs = by_seed(runs), by_seed(other)
    if other[0]["method"] == UNTRAINED and len(theirs) == 1:
        theirs = dict.fromkeys(mine, next(iter(theirs.values())))
    return {seed: mine[seed] - theirs[seed] for seed in mine if seed in theirs}


def lost_runs(store: Store, runs: Sequence[Row]) -> list[Row]:
    """The failed runs of the cell that `runs` are of, as of `failed`."""
    return failed(store).get((place_of(runs[0]), runs[0]["method"], runs[0]["reference"]), [])


def seed_differences_as_untrained(
    store: Store, runs: Sequence[Row], other: Sequence[Row], *, ahead: bool
) -> dict[Seed, float]:
    """`seed_differences` with each failed run of the one that is ahead scored as the untrained model.

    Args:
        ahead: whether `runs` are ahead, and not `other`. What failed of the one behind takes nothing from the lead.
    """
    mine, theirs = (lost_runs(store, each) if leads is ahead else [] for each, leads in ((runs, True), (other, False)))
    return seed_differences([*runs, *mine], [*other, *theirs])


@remembered
def _degrees_of_freedom(store: Store) -> dict[tuple[str, str], int | None]:
    return {(r["sweep"], r["cell_id"]): r["dof"] for r in store.table("cells").to_pylist()}


def size_ratios(store: Store, mine: Row, other: Row) -> dict[str, float | None]:
    """What one run trains over what another does, in parameters and in degrees of freedom; None without a budget."""
    known = _degrees_of_freedom(store)
    own, base = (known.get((run["sweep"], run["cell_id"])) for run in (mine, other))
    count, against = mine["adapter_params"], other["adapter_params"]
    matched = other["budget"] is not None
    return {
        "params_ratio": count / against if matched and count is not None and against else None,
        "dof_ratio": own / base if matched and own and base else None,
    }
