"""Makes the sections of the page as HTML. Numbers come from `status` and tables, figures from the report."""

from __future__ import annotations

import base64
import functools
import hashlib
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from analysis.drawing.svg import colour_variables
from analysis.errors import QueryError, StoreError
from analysis.findings.all import FINDINGS
from analysis.findings.finding import Finding, View
from analysis.format import Row, plural, visible
from analysis.report.page import render
from analysis.sheets.html import templates
from analysis.sheets.sheet import Sheet, sheet_of, sheet_of_arrow
from analysis.store.journal import JOURNAL
from analysis.store.schemas import SCHEMAS
from analysis.store.sql.process import run_sql_apart
from analysis.store.store import Store, open_store
from sweeps.cli.progress import progress_of, says
from sweeps.errors import reason

MOST_ROWS, MOST_CELLS, MOST_BEGUN = 1000, 200, 50
"""The largest numbers of SQL rows, of cells, and of running trials that the page shows."""

_DEVICES = """
select host, device, precision, count(*) as attempts, sum(seconds_total) / 3600 as hours,
       date_trunc('second', max(ended_at)) as last_end
from trials where host is not null or device is not null group by all order by all
"""
_TEMPLATES = resources.files("sweeps.cli.watching").joinpath("templates")


class Page:
    """Makes the page of a results folder, which is read again at every call.

    Only one thread may call its methods at a time, except for `answer`.

    Args:
        folder: the folder where the results are or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store: Store | None = None
        self._tables: dict[str, pa.Table] = {name: shape.empty_table() for name, shape in SCHEMAS.items()}
        self._grown: object = None
        self._preliminary = True
        self._drawn: tuple[object, str] = ((), "")
        environment = templates("sweeps.cli.watching")
        parts: Any = environment.get_template("parts.html.j2").module
        self._fault = parts.fault
        environment.globals["table"] = lambda caption, rows: parts.table(_sheet(caption, rows)) if rows else ""
        self._template = environment.get_template("watch.html.j2")

    def whole(self, token: str) -> tuple[str, str]:
        """Return the page with empty sections, and the Content-Security-Policy of its response.

        Args:
            token: the token for its links.
        """
        script = _TEMPLATES.joinpath("watch.js").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        colours = {"light": colour_variables(dark=False), "dark": colour_variables(dark=True)}
        text = self._template.render(folder=self.folder, token=token, script=Markup(script), **colours)  # noqa: S704
        return text, (
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def text_sections(self) -> dict[str, str]:
        """Return the sections without figures, by name. If a section fails, its error is shown instead."""
        try:
            self._store = store = self._store or open_store(self.folder)
            self._tables = {name: store.table(name) for name in SCHEMAS}
            counts = [len(self._tables[name]) for name in ("trials", "choices")]
            self._grown = self._tables["cells"], counts, len(store.events("declare"))
            p = progress_of(store)
            self._preliminary = p["finished"] + p["failed"] < p["trials"]
        except StoreError as error:
            begins = "Nothing is written yet: the sweep begins." if not (self.folder / JOURNAL).exists() else ""
            return {"headline": self._section("headline", says=begins or str(error), done=0, trials=0)}
        except Exception as error:  # noqa: BLE001  # the folder may be in any state, and be fine the next time
            return {"headline": self._failed(error)}
        far, fast = says(p)
        values: dict[str, Callable[[], dict[str, Any]]] = {
            "headline": lambda: {"says": far, "done": p["finished"] + p["failed"], "trials": p["trials"]},
            "pace": lambda: {"says": fast},
            "cells": lambda: {"p": p, "rows": _cells(store, p["phase_of"]), "most": MOST_CELLS},
            "failures": lambda: {"failures": p["failures"]},
            "lanes": lambda: {
                "lanes": _lanes(store),
                "devices": store.sql(_DEVICES).to_pylist(),
                "begun": _begun(store, p["retried"]),
            },
        }
        return {name: self._shown(name, given) for name, given in values.items()}

    def figures(self) -> dict[str, str]:
        """Return the section of figures. It is drawn again after a new trial, choice or change of the sweep file."""
        store = self._store
        if store is None:
            return {}
        if self._grown != self._drawn[0]:
            drawn = (
                self._shown("figures", functools.partial(self._drawn_by, finding, store))
                for finding in FINDINGS
                if finding.live
            )
            self._drawn = self._grown, "".join(drawn).strip() or self._section("figures", pictures=None)
        return {"figures": self._drawn[1]}

    def answer(self, query: str) -> dict[str, Any]:
        """Run SQL over the tables that the page shows. Return `columns`, `rows` of texts and `says`; or `error`."""
        try:
            table = run_sql_apart(self._tables, query)
        except QueryError as error:
            return {"error": visible(str(error))}
        first = sheet_of_arrow(table, MOST_ROWS)
        more = f", the first {MOST_ROWS:,} of them shown; `sweeps query` writes all" if len(table) > MOST_ROWS else ""
        rows = [[visible(text) for text in row] for row in first.cells]
        return {"columns": first.header, "rows": rows, "says": f"{plural(len(table), 'row')}{more}"}

    def report(self) -> str:
        """Return the report of the present results as HTML.

        Raises:
            StoreError: there are no results yet.
        """
        return render(self._store or open_store(self.folder))

    def _drawn_by(self, finding: Finding, store: Store) -> dict[str, Any]:
        return {"pictures": finding.pictures(store, View()), "begin": "Preliminary: " if self._preliminary else ""}

    def _shown(self, name: str, make: Callable[[], dict[str, Any]]) -> str:
        try:
            return self._section(name, **make())
        except Exception as error:  # noqa: BLE001  # of whatever is in the tables; the page goes on with the rest
            return self._failed(error)

    def _failed(self, error: Exception) -> str:
        cause = reason(error)
        return str(self._fault(cause, "".join(traceback.format_exception(error))))

    def _section(self, name: str, **values: Any) -> str:
        return "".join(self._template.blocks[name](self._template.new_context(values)))


def _sheet(title: str, rows: Sequence[Row]) -> Sheet:
    """Return rows with the same keys as a sheet."""
    return sheet_of([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows], title)


def _cells(store: Store, phase_of: dict[str, str]) -> list[Row]:
    return [
        {
            "cell": r["label"],
            "phase": phase_of[r["cell_id"]],
            "tune": f"{r['tune_done']} of {r['tune_planned']}",
            "confirm": f"{r['confirm_done']} of {r['confirm_planned']}",
            "failed": r["failed"],
        }
        for r in store.table("coverage").to_pylist()
        if r["cell_id"] in phase_of
    ][:MOST_CELLS]


def _lanes(store: Store) -> list[str]:
    """Return texts on the lanes of the last run. Lanes of the same shape share a text."""
    run: Row = next(iter(store.events("sweep")[-1:]), {})
    alike = Counter(_lane(shape) for shape in run.get("lanes") or ())
    host = f"on {run['host']}" if "host" in run else ""
    pack = f"{run['pack']} trials at a time on each worker" if run.get("pack", 1) > 1 else ""
    return [*(f"{count} x {lane}" for lane, count in alike.items()), *filter(None, (pack, host))]


def _lane(shape: Row) -> str:
    has = ", ".join(f"{amount:g} {kind}" for kind, amount in shape.get("per_worker", {}).items())
    return (
        f"{plural(shape.get('workers', 1), 'worker')}{' that share a trial' if shape.get('group') else ''}, {has} each"
    )


def _begun(store: Store, retried: Sequence[str]) -> Sequence[Row]:
    """Return the trials that have begun and not ended: cell, stage, rate, last epoch and its validation score."""
    over = set(store.table("trials").column("trial_id").to_pylist()) - set(retried)
    labels = {r["cell_id"]: r["label"] for r in store.table("cells").select(["cell_id", "label"]).to_pylist()}
    last = {e["trial_id"]: e for e in store.events("report")}
    begun = []
    for e in store.events("ask"):
        if e["trial_id"] not in over:
            values = last.get(e["trial_id"], {}).get("values", {})
            trial = {"cell": labels.get(e["cell_id"], e["cell_id"]), "stage": e["stage"], "rate": e["config"].get("lr")}
            begun.append({**trial, "epoch": values.get("epoch"), "validation": values.get("val_score")})
    return begun[-MOST_BEGUN:]
