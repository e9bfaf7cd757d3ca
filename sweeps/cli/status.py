"""The verb `status`. It works while another process runs the sweep."""

from __future__ import annotations

from datetime import datetime

from analysis.format import Row, duration, percent, plural
from analysis.sheets.sheet import sheet_of
from analysis.sheets.terminal import print_sheet
from sweeps.cli.options import Json, Set, Source, store_of, uri_of
from sweeps.cli.printing import emit, out

_SHOWN = 3
"""The number of reasons of failures that are printed."""


def status(source: Source, overrides: Set = None, as_json: Json = False) -> None:
    """Print how far a sweep is: trials, cells, time left and failures. It works while the sweep runs."""
    from sweeps.cli.progress import progress_of

    progress = progress_of(store_of(source, overrides))
    if uri_of(source) is not None:
        progress |= {"running": None, "idle_seconds": None}  # a copy does not have this
    emit(as_json, lambda: progress, lambda: _print(progress))


def _print(p: Row) -> None:
    from sweeps.cli.progress import says

    far, took = says(p)
    out.print(far if p["idle_seconds"] is None else f"{far}, last event {duration(p['idle_seconds'])} ago")
    out.print(took)
    if p["losses"]:
        last = datetime.fromisoformat(p["losses"][-1]["at"]).strftime("%Y-%m-%d %H:%M UTC")
        out.print(f"Ray was lost and started again {plural(len(p['losses']), 'time')} (last: {last})", style="yellow")
    for line in p["left_out"]:
        out.print(line, style="yellow")
    for failure in p["failures"][:_SHOWN]:
        where = f" ({failure['where']})" if failure["where"] else ""
        out.print(f"{failure['count']} failed: {failure['reason']}{where}", style="red")
    if p["methods"]:
        heads = {"best_val_score": "best validation score, %"}
        rows = [{**row, "best_val_score": percent(row["best_val_score"])} for row in p["methods"]]
        print_sheet(sheet_of([heads.get(k, k) for k in rows[0]], [list(row.values()) for row in rows]), out)
