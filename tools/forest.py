"""Draw the forest of docs/images: every declared comparison of full rank with low rank, study by study, on one axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl

from analysis import Store, comparisons
from analysis.drawing.charts import INK, MUTED, PAPER, SMALL, STYLE, Chart, dot, horizontal_bar, mark_bands, panels
from analysis.findings.comparisons.figure import limits, zero_line
from analysis.format import Row, change_text
from analysis.styles import STYLES, short_name
from analysis.verdict.inference import OVER_DATASETS
from analysis.verdict.looks import margin_of
from analysis.verdict.question import question

ROW, LABELS, PANEL, WORDS = 0.158, 1.75, 2.75, 2.25
"""Inches: the height of a row, the width of its name, of the axis, and of its numbers and verdict."""
NAMES = {
    "fashion-mnist": "Fashion-MNIST",
    "signdigits": "sign digits",
    "cifar10": "CIFAR-10",
    "gtsrb": "traffic signs",
    "dtd10": "textures",
    "sst2": "SST-2",
    "e2e": "E2E",
}
"""The names under which the forest shows data sets, if they differ from the short names."""
A_CLASS = {"4-shot": 4, "16-shot": 16, "1.0": 96}
"""Images a class in the study of few and many images, by training size."""


@dataclass(frozen=True)
class Study:
    """A question that a study declared.

    Attributes:
        title: the title over its rows.
        folder: its results folder under docs/results.
        budgets: the budgets at which it was asked.
        added: whether the budgets were added later, after the results at others had been read. Their verdicts are a
            second analysis.
    """

    title: str
    folder: str
    budgets: tuple[str, ...]
    added: bool = False


def declared(study: Study, store: Store) -> list[Row]:
    """Return the comparisons that a study declared, from its results; means come last.

    If budgets were added later, means are left out, because they also contain the budgets that were declared first.
    """
    focus, table = question(store).focus, comparisons(store).to_pylist()
    rows = [r for r in table if r["method"] == focus and r["test"] != OVER_DATASETS and r["added"] == study.added]
    single = [r for r in rows if r["reference"] in study.budgets]
    means = [] if study.added else [r for r in rows if r["reference"] is None]
    return [r | {"margin": margin_of(store)} for r in (*single, *means)]


def name(row: Row, study: Study) -> str:
    """Name a row by its data set or mean, and by its images a class or its budget. A mean is over all budgets."""
    if row["dataset"] is None:
        what = f"mean of {row['n_datasets']} sets"
    elif row["reference"] is None:
        what = f"mean of {row['n_budgets']} budgets"
    else:
        what = NAMES.get(short_name(row["dataset"]), short_name(row["dataset"]))
    if study.folder == "shots":
        return f"{what}, {A_CLASS[row['train_size']]} a class"
    return what if row["reference"] is None else f"{what}, {row['reference'].replace('lora', 'LoRA')}"


def draw(rows_of_studies: list[tuple[Study, list[Row]]]) -> Chart:
    """Draw all rows on one axis, under the titles of their studies."""
    every = [r for _, rows in rows_of_studies for r in rows]
    count = len(every) + sum(bool(study.title) for study, _ in rows_of_studies)
    with mpl.rc_context(STYLE):
        figure, [cell] = panels(
            1,
            1,
            (PANEL, ROW * count),
            extra=(LABELS + WORDS, 0.5),
            margins=(LABELS, WORDS, 0.42, 0.06),
            gaps=(0, 0),
        )
        axes = figure.add_subplot(cell)
        axes.set_xlim(*limits(every))
        axes.set_ylim(count - 0.4, -0.6)
        zero_line(axes, 0, "lora", max(r["margin"] for r in every))
        level = 0
        for study, rows in rows_of_studies:
            if study.title:
                where = {"transform": axes.get_yaxis_transform(), "va": "center", "zorder": 4}
                shown = {"weight": "bold", "bbox": {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}}
                axes.text(-LABELS / PANEL + 0.02, level, study.title, fontsize=SMALL, **where, **shown)
                level += 1
            for row in rows:
                _row(axes, level, row, study)
                level += 1
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("difference in test score (points)")
        mark_bands(figure, "corrected", "intervals")
        return figure


def _row(axes: Any, level: int, row: Row, study: Study) -> None:
    mean = row["reference"] is None or row["dataset"] is None
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": SMALL}
    axes.text(-0.03, level, name(row, study), ha="right", color=INK, **beside)
    horizontal_bar(axes, level, row, STYLES["randlora"].colour, 2.0 if mean else 1.1)
    dot(axes, "randlora", 100 * row["difference"], level, "", **{"marker": "D"} if mean else {})
    axes.text(1.03, level, change_text(row), color=INK, **beside)
    plain = row["verdict"] == "not distinguishable"
    axes.text(1.47, level, row["verdict"], color=MUTED if plain else INK, weight=None if plain else "bold", **beside)
