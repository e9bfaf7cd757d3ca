"""Every cell against its cost, with a stepped line through the front."""

from __future__ import annotations

import matplotlib as mpl
import pyarrow as pa

from analysis.drawing.charts import MUTED, STYLE, Chart
from analysis.findings.fits.figure import SCORE, cost_panels, draw_cells


def draw_front(front: pa.Table, *, score: str = SCORE) -> Chart:
    """Draw every cell's score against its cost. A stepped line connects the front, and other cells are pale.

    Cells at a cost of 0 have no place on the log axis; `at_no_cost` names them.

    Raises:
        ValueError: no cell with a positive cost.
    """
    rows = [r for r in front.to_pylist() if r["cost"] > 0]
    if not rows:
        raise ValueError("no front to draw: no cell has a positive cost")
    with mpl.rc_context(STYLE):
        figure, each = cost_panels(rows, score)
        for axes, _, panel_rows in each:
            best = sorted((r for r in panel_rows if r["on_front"]), key=lambda r: r["cost"])
            beaten = [r for r in panel_rows if not r["on_front"]]
            axes.step([r["cost"] for r in best], [100 * r["score"] for r in best], where="post", color=MUTED, lw=1.0)
            draw_cells(axes, [*best, *beaten], pale=beaten)
        return figure
