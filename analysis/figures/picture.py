"""One figure of the report and what the sections that draw figures share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from matplotlib.figure import Figure

from analysis.figures import fits as fit_plots
from analysis.figures import svg, vega
from analysis.figures.drawing import Tips
from analysis.styles import place_text
from analysis.words import figures as say

Row = dict[str, Any]

MOST_PANELS = 8


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        stem: of its files; `kind`: which section it belongs to.
        figure: drawn by matplotlib.
        label: what it shows, for a screen reader.
        caption: how to read it. says: its one-sentence conclusion.
        tips: what its markers say on hover, by artist id.
        chart: its Vega-Lite form.
        width: in the page, in rem; None for all of it.
    """

    stem: str
    kind: str
    figure: Figure
    label: str
    caption: str
    says: str
    tips: dict[str, str] = field(default_factory=dict)
    chart: vega.Spec | None = None
    width: int | None = None

    @property
    def svg(self) -> str:
        """Markup for the page."""
        return svg.inline_svg(self.figure, f"fig-{self.stem}", f"{self.label}. {self.says}", self.tips)


def fit_picture(
    stem: str, kind: str, points: pa.Table, bands: pa.Table, crossings: pa.Table, cost: str, score: str
) -> Picture:
    """Fitted curves: of a cost, or of training examples."""
    tips = Tips()
    figure = fit_plots.draw_fits(points, bands, crossings, tips=tips, score=score)
    says = say.conclude_crossings(crossings.to_pylist(), cost.split(" (", maxsplit=1)[0])
    shown = {(*place_of(r), r["method"]) for r in bands.to_pylist()}
    rows = [
        vega.fitted(panel_of(r), r["method"], r["at"], r["score"], low=r["low"], high=r["high"])
        for r in bands.to_pylist()
    ]
    rows += [
        vega.point(panel_of(r), r["method"], r["cost"], r["score"], reference=r.get("reference"), seeds=r.get("n"))
        for r in points.to_pylist()
        if (*place_of(r), r["method"]) in shown
    ]
    caption = (
        f"Isotonic fits (never falling) of mean {score} against {cost}; bands are a 95 % bootstrap over seeds, a "
        "shaded column is a crossing's interval. With few seeds a bootstrap is rough."
    )
    chart = vega.chart(rows, title=f"Fits of score against {cost}", description=says, x=cost, y=f"{score} (%)")
    label = f"Isotonic fits of {score} against {cost} with bootstrap bands, crossings marked"
    return Picture(stem, kind, figure, label, caption, says, tips, chart, width_of(bands))


def few_panels(table: pa.Table) -> pa.Table:
    """The rows of the first panels; the tables below a figure have them all."""
    rows = table.to_pylist()
    kept = list(dict.fromkeys(place_of(r) for r in rows))[:MOST_PANELS]
    return pa.Table.from_pylist([r for r in rows if place_of(r) in kept], schema=table.schema)


def width_of(table: pa.Table) -> int | None:
    """Narrow for one panel; None: all of the page."""
    return 30 if len({place_of(r) for r in table.to_pylist()}) == 1 else None


def place_of(row: Row) -> tuple[str, str, str | None, str]:
    """A panel: of data-size curves it is a data set and a budget."""
    return row["sweep"], row["model"], row["dataset"], row["train_size"] if "train_size" in row else row["reference"]


def panel_of(row: Row) -> str:
    """A panel in words."""
    place = place_of(row)
    return place_text(place[2] or "mean over data sets", place[3] or "")
