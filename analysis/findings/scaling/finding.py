"""The scaling curve: score against trainable parameters, and means over data sets."""

from __future__ import annotations

from functools import partial

from analysis.drawing.picture import BESIDE, Picture
from analysis.findings.answer.answer import conclusion
from analysis.findings.finding import Finding
from analysis.findings.scaling.numbers import curve, one_budget
from analysis.findings.shared import LONG
from analysis.format import Row, range_text
from analysis.sheets.columns import BUDGET, METHOD, by_size, origins
from analysis.sheets.sheet import Column, Sheet
from analysis.store.store import Store
from analysis.verdict.runs import score_name


def averages_sheet(store: Store) -> Sheet:
    """Return the table of means over data sets for each method and budget, with a column per training size."""
    rows = [r for r in curve(store).to_pylist() if r["dataset"] is None]
    averaged_rows, sizes = by_size(rows, ("sweep", "model", "method", "reference"))
    facts = {"parameters": "adapter_params", "data sets": "n_datasets", "seeds": "n"}
    columns = [Column(head, partial(_over_sizes, key), "number") for head, key in facts.items()]
    return Sheet(
        "averages",
        "Mean test score over data sets",
        [*origins(averaged_rows), METHOD, BUDGET, *columns[:1], *sizes, *columns[1:]],
        averaged_rows,
        "Every data set has the same weight. The t intervals over seeds hold for these data sets and the chosen "
        "rates only. A method and "
        "budget is in the table if it was confirmed on every data set.",
        folded=len(averaged_rows) > LONG,
    )


def _over_sizes(key: str, r: Row) -> str:
    """Return the value of a row's training sizes, or the smallest and the largest if they differ."""
    return range_text({one[key] for one in r["by"].values()} - {None})


def scaling_pictures(store: Store) -> list[Picture]:
    """Draw score against trainable parameters, if the plan has several budgets."""
    from analysis.findings.scaling.figure import MOST_BANDS, draw_scaling

    score, table = score_name(store), curve(store)
    if table.num_rows == 0 or one_budget(store):
        return []
    label = f"{score.capitalize()} against trainable parameters, a curve per method with 95 % bands"
    caption = (
        f"{score.capitalize()} against trainable adapter parameters (log axis): means over seeds with pointwise 95 % t "
        "intervals, given the chosen learning rates. Intervals are bands, or bars if a point has fewer than three "
        "seeds, a method has one point, or a "
        f"panel more than {MOST_BANDS} curves. Dashed lines have no budget, and an arrow points to one far from the "
        "curves. The upper axis is the LoRA rank of a budget. Point at a marker for its numbers, press a name in the "
        f"legend to hide its method.{BESIDE}"
    )
    figure = draw_scaling(table, columns=2, score=score)
    return [Picture("scaling_curve", figure, label, caption, conclusion(store))]


CURVE = Finding("answer", pictures=lambda store, _: scaling_pictures(store), live=True)
AVERAGES = Finding("results", ("averages",), lambda store, _: [averages_sheet(store)])
