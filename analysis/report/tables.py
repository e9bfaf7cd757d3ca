"""All tables of the report by name, in the order of the page; `sweeps tables` prints them, the report shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from analysis.errors import StoreError, nearest
from analysis.sheets.sheet import Sheet
from analysis.statistics.publications.published import overlaid
from analysis.store.store import Store
from analysis.tables import effects, evidence, fits, results
from analysis.tables.diagnostics import DIAGNOSTIC_SHEETS, diagnostic_sheets
from analysis.words.absent import absent_data


def _overlay(store: Store, overlay: str) -> Sheet:
    ours, theirs, title = overlaid(store, overlay)
    return fits.overlay(ours.to_pylist(), theirs.to_pylist(), title)


def _makers(store: Store, x: str, overlay: str | None) -> list[tuple[tuple[str, ...], Callable[[], list[Sheet]]]]:
    """Return the names of tables with the function that makes them, in the order of the page."""
    beside = [(("overlay",), lambda: [_overlay(store, overlay)])] if overlay is not None else []
    return [
        (("decisions",), lambda: [results.decided(store)]),
        (("results",), lambda: [results.results(store)]),
        (("averages",), lambda: [results.averages(store)]),
        (("comparisons",), lambda: [results.compared(store)]),
        (("changes",), lambda: [effects.difference_changes(store)]),
        (("full_fine_tuning",), lambda: [results.gaps(store)]),
        (("groups",), lambda: [results.grouped(store)]),
        (("seeds",), lambda: [results.seeds(store)]),
        (("rank_effects",), lambda: [effects.rank_effects(store)]),
        *beside,
        (fits.FITS, lambda: fits.fitted(store, x)),
        (("front",), lambda: [fits.front(store, x)]),
        (("currencies",), lambda: [fits.currencies(store)]),
        (fits.SIZES, lambda: fits.sizes(store)),
        (DIAGNOSTIC_SHEETS, lambda: diagnostic_sheets(store)),
        (("parity",), lambda: [evidence.parity(evidence.parity_rows(store))]),
        (("learning_rates",), lambda: [evidence.learning_rates(store)]),
        (("expected_best",), lambda: [evidence.expected(store)]),
        (("tuning_effort",), lambda: [evidence.effort(store)]),
        (("sharpness",), lambda: [evidence.sharp(store)]),
        (("rate_ratio",), lambda: [evidence.ratios(store)]),
        (("cost",), lambda: [evidence.cost(store)]),
        (("estimate",), lambda: [evidence.estimate(store)]),
        (("failures",), lambda: [evidence.failures(store)]),
        (("infeasible",), lambda: [evidence.infeasible(store)]),
    ]


def sheets(store: Store, x: str = "adapter_params", overlay: str | None = None) -> dict[str, Sheet]:
    """Return every table that has a row, by name.

    Args:
        store: the results.
        x: the cost of the fits and of the front.
        overlay: name of a published curve to show beside ours.

    Raises:
        StoreError: the cost or the published curve is unknown.
    """
    all_sheets = [sheet for _, make in _makers(store, x, overlay) for sheet in make()]
    return {sheet.name: sheet for sheet in _with_notes(store, all_sheets) if sheet.rows}


def _with_notes(store: Store, unmarked: Iterable[Sheet]) -> list[Sheet]:
    """Return the tables, each with a note on data sets that were left out."""
    mark = "".join(f"{line}. " for line in absent_data(store.table("signs").to_pylist()))
    return [replace(s, legend=mark + s.legend, mark=mark.strip()) for s in unmarked] if mark else list(unmarked)


def pick(store: Store, names: Sequence[str], x: str = "adapter_params") -> list[Sheet]:
    """Return the tables of these names. Only these are computed.

    Raises:
        StoreError: a table is unknown (the error lists the known ones), or has no row in this folder.
    """
    makers = _makers(store, x, None)
    known_names = [name for group, _ in makers for name in group]
    for name in names:
        if name not in known_names:
            raise StoreError(f"no table {name!r} in this report; {nearest(name, known_names)}")
    computed = _with_notes(store, [sheet for group, make in makers if set(group) & set(names) for sheet in make()])
    sheets_by_name = {s.name: s for s in computed if s.rows}
    empty = [name for name in names if name not in sheets_by_name]
    if empty:
        raise StoreError(f"table {empty[0]!r} has no row here; `sweeps tables {store.path}` lists those that have")
    return [sheets_by_name[name] for name in names]
