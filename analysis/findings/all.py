"""All findings, in the order of the report, and what they show of a store.

The report, `sweeps tables` and the page of a running sweep are loops over `FINDINGS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.drawing.picture import Picture
from analysis.errors import StoreError, nearest
from analysis.findings import cost, currencies, estimate, failures, full_fine_tuning, groups, infeasible, seeds
from analysis.findings.absent import absent_data
from analysis.findings.comparisons import finding as comparisons
from analysis.findings.data_sizes import finding as data_sizes
from analysis.findings.decisions import finding as decisions
from analysis.findings.diagnostics import sheets as diagnostics
from analysis.findings.finding import Finding, Section, View
from analysis.findings.fits import finding as fits
from analysis.findings.forest import finding as forest
from analysis.findings.front import finding as front
from analysis.findings.parity import finding as parity
from analysis.findings.published import finding as published
from analysis.findings.rank import finding as rank
from analysis.findings.ranking import finding as ranking
from analysis.findings.rate_ratio import finding as rate_ratio
from analysis.findings.results import finding as results
from analysis.findings.scaling import finding as scaling
from analysis.findings.tuning import finding as tuning
from analysis.sheets.sheet import Sheet
from analysis.store.store import Store

FINDINGS: tuple[Finding, ...] = (
    decisions.FINDING,
    results.FINDING,
    scaling.CURVE,
    ranking.FINDING,
    scaling.AVERAGES,
    comparisons.FINDING,
    comparisons.CHANGES,
    forest.FINDING,
    full_fine_tuning.FINDING,
    groups.FINDING,
    seeds.FINDING,
    rank.FINDING,
    published.FINDING,
    fits.FINDING,
    front.FINDING,
    currencies.FINDING,
    data_sizes.FINDING,
    diagnostics.FINDING,
    parity.FINDING,
    tuning.LEARNING_RATES,
    tuning.EXPECTED_BEST,
    tuning.TUNING_EFFORT,
    tuning.SHARPNESS,
    rate_ratio.FINDING,
    cost.FINDING,
    estimate.FINDING,
    failures.FINDING,
    infeasible.FINDING,
)


@dataclass(frozen=True)
class Shown:
    """What a finding shows of a store: its section, tables that have a row, figures, and sentences."""

    section: Section | None
    sheets: Sequence[Sheet]
    pictures: Sequence[Picture]
    says: Sequence[str]


def show(store: Store, view: View = View()) -> list[Shown]:
    """Return what every finding shows, in the order of the report.

    Raises:
        StoreError: the cost or the published curve of the view is unknown.
    """
    absent = absent_data(store.table("signs").to_pylist())
    return [
        Shown(f.section, _sheets(f, store, view, absent), _pictures(f, store, view, absent), list(f.says(store)))
        for f in FINDINGS
    ]


def sheets(store: Store, view: View = View()) -> dict[str, Sheet]:
    """Return every table that has a row, by name. Raises what `show` raises."""
    absent = absent_data(store.table("signs").to_pylist())
    return {sheet.name: sheet for f in FINDINGS for sheet in _sheets(f, store, view, absent)}


def pictures(store: Store, view: View = View()) -> list[Picture]:
    """Return all figures. Raises what `show` raises."""
    absent = absent_data(store.table("signs").to_pylist())
    return [picture for f in FINDINGS for picture in _pictures(f, store, view, absent)]


def pick(store: Store, names: Sequence[str], view: View = View()) -> list[Sheet]:
    """Return the tables of these names. Only their findings are computed.

    Raises:
        StoreError: a table is unknown (the error lists the known ones), or has no row in this folder.
    """
    asked = [f for f in FINDINGS if f.tables and (view.overlay is not None or f is not published.FINDING)]
    known_names = [name for f in asked for name in f.tables]
    for name in names:
        if name not in known_names:
            raise StoreError(f"no table {name!r} in this report; {nearest(name, known_names)}")
    absent = absent_data(store.table("signs").to_pylist())
    needed = [f for f in asked if set(f.tables) & set(names)]
    by_name = {sheet.name: sheet for f in needed for sheet in _sheets(f, store, view, absent)}
    empty = [name for name in names if name not in by_name]
    if empty:
        raise StoreError(f"table {empty[0]!r} has no row here; `sweeps tables {store.path}` lists those that have")
    return [by_name[name] for name in names]


def _sheets(finding: Finding, store: Store, view: View, absent: Sequence[str]) -> list[Sheet]:
    """Return the tables of a finding that have a row, each with a note on data sets that were left out."""
    note = "".join(f"{line}. " for line in absent)
    made = [sheet for sheet in finding.sheets(store, view) if sheet.rows]
    return [replace(s, legend=note + s.legend, mark=note.strip()) for s in made] if note else made


def _pictures(finding: Finding, store: Store, view: View, absent: Sequence[str]) -> list[Picture]:
    """Return the figures of a finding, each with a note on data sets that were left out."""
    note = "".join(f" {line}." for line in absent)
    return [replace(p, caption=p.caption + note) if note else p for p in finding.pictures(store, view)]
