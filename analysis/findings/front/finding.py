"""The Pareto front: the cells that no other cell beats in both score and cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from analysis.drawing.picture import BESIDE, Picture, first_panels
from analysis.findings.finding import Finding
from analysis.findings.fits.measured import axis, axis_label
from analysis.findings.fits.pareto import pareto_front
from analysis.findings.shared import cell_name
from analysis.format import Row, percent, plural
from analysis.sheets.columns import BUDGET, METHOD, columns_of
from analysis.sheets.sheet import Sheet, number
from analysis.store.store import Store
from analysis.styles import in_order, style
from analysis.verdict.runs import UNTRAINED, score_name


def front_sheet(store: Store, x: str) -> Sheet:
    """Return the table of the cells on the Pareto front: no other cell has a higher score at a lower cost."""
    rows = [r for r in pareto_front(store, x).to_pylist() if r["on_front"]]
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        number(axis(x).label, "cost"),
        number("score, %", "score", percent),
        number("on the front in % of draws, given the rates", "front_share", percent),
    )
    title = "Cells that no other cell beats in both score and cost"
    return Sheet("front", title, columns, rows, folded=len(rows) > 20)


def front_pictures(store: Store, x: str) -> list[Picture]:
    from analysis.findings.front.figure import draw_front

    score, everything = score_name(store), pareto_front(store, x)
    if len({r["cost"] for r in everything.to_pylist() if r["cost"] > 0}) < 2:
        return []
    shown = first_panels(everything)
    label = f"{score.capitalize()} against cost; a stepped line connects the cells that no other beats"
    caption = "Every confirmed cell. For each pale one there is a cell that costs no more and scores no less."
    caption += at_no_cost(shown) + BESIDE
    says = conclude_front(everything.to_pylist())
    figure = draw_front(shown, score=score)
    return [Picture("pareto", figure, label, caption, says)]


SURE = 0.95
"""A cell is said to be on a front if it is there in at least this share of the draws."""
_MOST = 4  # cells named in a sentence; more are counted


def conclude_front(rows: Sequence[Row]) -> str:
    """Name the cells that no other beats in score and cost, and say how sure that is.

    Args:
        rows: rows of `pareto.pareto_front`.
    """
    on = [r for r in rows if r["on_front"]]
    if not on:
        return "No confirmed cell has this cost."
    cost = axis_label(on[0]["x"])
    if all(r["front_share"] is None or r["method"] == UNTRAINED for r in on):
        counts = Counter(r["method"] for r in on)
        cells_text = ", ".join(f"{style(m).name} ({plural(counts[m], 'cell')})" for m in in_order(set(counts)))
        return (
            f"No other cell scores more at less cost ({cost}) than those of: {cells_text}. With one seed it is not "
            "known how sure that is."
        )
    single = [r for r in on if r["front_share"] is None]
    sure = [r for r in on if r not in single and r["front_share"] >= SURE]
    unsure = [r for r in on if r not in single and r["front_share"] < SURE]
    text = f"No other cell scores more at less cost ({cost}) than these: {_cells(sure) or 'none'}. "
    text += f"A cell is named if that holds in at least {100 * SURE:.0f} % of draws from t distributions over seeds, "
    text += "given the chosen rates."
    text += f" These hold it in fewer draws: {_cells(unsure, share=True)}." if unsure else ""
    text += f" These hold it with one seed, so it is not known how sure that is: {_cells(single)}." if single else ""
    return text


def _cells(rows: Sequence[Row], share: bool = False) -> str:
    if len({(r["sweep"], r["dataset"], r["train_size"]) for r in rows}) > 1 or len(rows) > 2 * _MOST:
        counts = Counter(r["method"] for r in rows)
        return ", ".join(f"{style(m).name} ({plural(counts[m], 'cell')})" for m in in_order(set(counts)))
    return ", ".join(cell_name(r) + (f" ({100 * r['front_share']:.0f} %)" if share else "") for r in rows)


def at_no_cost(front: pa.Table) -> str:
    """Return a sentence on the cells at no cost, which the log axis of the figure cannot show; "" if there are none."""
    free = in_order({r["method"] for r in front.to_pylist() if r["cost"] <= 0})
    named = ", ".join(style(method).name for method in free)
    return f" Not on the logarithmic axis, but compared with: {named}, at a cost of 0." if named else ""


FINDING = Finding(
    "pareto",
    ("front",),
    lambda store, view: [front_sheet(store, view.x)],
    lambda store, view: front_pictures(store, view.x),
)
