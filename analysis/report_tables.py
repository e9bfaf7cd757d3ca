"""All tables of the report by name, in the order of the page; `sweeps tables` prints them, the report shows them."""

from __future__ import annotations

from collections.abc import Sequence

from analysis import evidence_sheets, fit_sheets, result_sheets
from analysis.diagnostic_files import diagnostic_sheets
from analysis.errors import StoreError, nearest
from analysis.pictures import overlaid
from analysis.sheets import Sheet
from analysis.store import Store


def sheets(store: Store, x: str = "adapter_params", overlay: str | None = None) -> dict[str, Sheet]:
    """Every table that has a row.

    Args:
        store: the results. x: the cost of the fits and of the front. overlay: a published curve beside ours.

    Raises:
        StoreError: an unknown cost or published curve.
    """
    found = [
        result_sheets.results(store),
        result_sheets.averages(store),
        result_sheets.compared(store),
        result_sheets.gaps(store),
        result_sheets.grouped(store),
        result_sheets.ranks(store),
        result_sheets.seeds(store),
    ]
    if overlay is not None:
        ours, theirs, title = overlaid(store, overlay)
        found.append(fit_sheets.overlay(ours.to_pylist(), theirs.to_pylist(), title))
    found += fit_sheets.fitted(store, x)
    found += [fit_sheets.front(store, x), *fit_sheets.sizes(store)]
    found += diagnostic_sheets(store.path)
    found += [
        evidence_sheets.parity(evidence_sheets.parity_rows(store)),
        evidence_sheets.learning_rates(store),
        evidence_sheets.expected(store),
        evidence_sheets.cost(store),
        evidence_sheets.estimate(store),
        evidence_sheets.failures(store),
        evidence_sheets.infeasible(store),
    ]
    return {sheet.name: sheet for sheet in found if sheet.rows}


def pick(store: Store, names: Sequence[str], x: str = "adapter_params") -> list[Sheet]:
    """Tables by name.

    Raises:
        StoreError: a table that this folder does not have, with those it has.
    """
    found = sheets(store, x)
    for name in names:
        if name not in found:
            raise StoreError(f"no table {name!r} in this report; {nearest(name, found)}")
    return [found[name] for name in names]
