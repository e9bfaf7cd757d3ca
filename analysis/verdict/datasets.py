"""Means of paired differences over data sets, and what choices of rates add to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from analysis.format import Row
from analysis.store.store import Store
from analysis.styles import place_of
from analysis.verdict.inference import OVER_SEEDS, T_TEST, Difference, stratified_difference, t_difference
from analysis.verdict.runs import (
    Seed,
    averaged,
    baseline_runs,
    confirmed,
    datasets_of,
    group_by,
    lost_runs,
    seed_differences,
    seed_differences_as_untrained,
    sharing_seeds,
)


def over_datasets(blocks: Sequence[Mapping[Seed, float]], *, shared: bool) -> Difference | None:
    """Return the mean over data sets of values by seed, or None if a data set has no value.

    Args:
        blocks: for each data set its values by seed.
        shared: whether a seed is the same on all data sets (`sharing_seeds`), and so affects them together. Then each
            seed is averaged over the data sets and counts once.
    """
    if not all(blocks):
        return None
    if len(blocks) > 1 and not shared:
        return stratified_difference([list(values.values()) for values in blocks])
    means = list(averaged(blocks).values()) if blocks else []
    return t_difference(means, OVER_SEEDS if len(blocks) > 1 else T_TEST) if means else None


def added_over_datasets(each: Sequence[float | None], *, shared: bool) -> float | None:
    """Return the variance that choices of rates add to a mean over data sets, or None if one of them is not known.

    Args:
        each: the variance that they add on each data set.
        shared: as in `over_datasets`. With shared seeds the choices may err in the same direction.
    """
    known_variances = [variance for variance in each if variance is not None]
    return (
        sum(known_variances) / len(each) / (1 if shared else len(each)) if len(known_variances) == len(each) else None
    )


def over_all_datasets(store: Store, rows: Sequence[Row]) -> Iterator[tuple[list[Row], Difference, float | None]]:
    """Yield the mean difference over data sets, for each method and budget that has one on every data set.

    Args:
        rows: rows of `analysis.comparisons`.

    Yields:
        The rows, the mean of their differences, and the variance that the choices of rates add to it (None if that is
        not known).
    """
    cells, sharing = confirmed(store), sharing_seeds(store)
    single = [r for r in rows if r["reference"] and r["dataset"]]
    for key, of_place in group_by(single, "sweep", "model", "train_size").items():
        sets, shared = len(datasets_of(cells, *key)), key[0] in sharing
        for (method, reference), method_rows in group_by(of_place, "method", "reference").items():
            if sets < 2 or len(method_rows) < sets:
                continue
            runs = [cells[place_of(r), method, reference] for r in method_rows]
            base_runs = [baseline_runs(cells, place_of(r), r["baseline"], reference) for r in method_rows]
            pairs = list(zip(runs, base_runs, strict=True))
            blocks = [seed_differences(*pair) for pair in pairs]
            mean = over_datasets(blocks, shared=shared)
            if mean is not None:
                if lost := sum(len(lost_runs(store, each)) for pair in pairs for each in pair):
                    ahead = mean.mean > 0
                    filled = [seed_differences_as_untrained(store, *pair, ahead=ahead) for pair in pairs]
                    also = None if filled == blocks else over_datasets(filled, shared=shared)
                    mean = replace(mean, as_untrained=also, lost=lost)
                yield method_rows, mean, added_over_datasets(list(map(choice_variance_of, method_rows)), shared=shared)


def choice_variance_of(row: Row) -> float | None:
    """Return the variance that the choice of rates adds to a comparison, or None if it is not known."""
    return None if row["choice_sd"] is None else row["choice_sd"] ** 2
