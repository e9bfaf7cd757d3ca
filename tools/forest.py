"""Draws docs/images/forest.png: what every study under docs/results declared to compare, with the declared answers.

python -m tools.forest            # prints the rows, and writes the picture

Parts of a results table are never rewritten, and their names have the time at which they were written. So the folder
as it was when a declared question was answered is the folder without later parts.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from analysis import Store, comparisons, open_store
from analysis.figures import differences
from analysis.figures.drawing import INK, MUTED, SMALL, STYLE, Chart, dot, lying_bar, mark_bands, panels
from analysis.format import Row, change_text
from analysis.statistics.inference import OVER_DATASETS, verdict
from analysis.statistics.looks import margin_of
from analysis.statistics.runs import over_all_datasets
from analysis.statistics.scaling import question
from analysis.styles import short_name

ROOT = Path(__file__).parents[1]
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
"""Data sets whose short name is not how they are written."""


@dataclass(frozen=True)
class Study:
    """A question that a study declared.

    Attributes:
        title: over its rows.
        folder: under docs/results.
        budgets: at which it was asked.
        until: when it was answered, as in the names of parts; later parts hold methods and budgets that were added
            afterwards. None: the whole folder.
        added: the budgets were declared after others had been read, so their mean is not the table's first row.
    """

    title: str
    folder: str
    budgets: tuple[str, ...]
    until: str | None = None
    added: bool = False


STUDIES = (
    Study("Images, ViT-S/14: RandLoRA minus LoRA", "images", ("lora-1", "lora-8"), "20261128T2306"),
    Study("the same, a budget that was added later", "images", ("lora-39",), added=True),
    Study("Three further image sets: RandLoRA minus LoRA", "photos", ("lora-1",), "20261129T1815"),
    Study("the same, a budget that was added later", "photos", ("lora-39",), added=True),
    Study("Few images and many: RandLoRA minus LoRA", "shots", ("lora-1",)),
    Study("Texts, SmolLM2-135M: RandLoRA minus LoRA", "texts", ("lora-1",), "20261129T1935"),
    Study("the same, a budget that was added later", "texts", ("lora-16",), added=True),
    Study("Texts, every linear weight: RandLoRA minus LoRA", "weights", ("lora-3",)),
    Study("", "weights-e2e", ("lora-3",)),
    Study("Commonsense questions: RandLoRA minus LoRA", "commonsense", ("lora-1",)),
    Study("Images, RandLoRA-a: rank 384 minus rank 16", "real-rank", ("lora-2",)),
    Study("Texts, RandLoRA-a: rank 576 minus rank 16", "text-rank", ("lora-2", "lora-4")),
)


def answered(study: Study) -> list[Row]:
    """Return the comparisons of a study as they were when its question was answered; means come last."""

    def later(_: str, names: list[str]) -> set[str]:
        return {n for n in names if study.until and n.startswith("part-") and n[5:] > study.until}

    with tempfile.TemporaryDirectory() as made:
        copy = Path(made) / study.folder
        shutil.copytree(ROOT / "docs" / "results" / study.folder, copy, ignore=later)
        store = open_store(copy)
        focus, table = question(store).focus, comparisons(store).to_pylist()
        mine = [r for r in table if r["method"] == focus and r["test"] != OVER_DATASETS]
        single = [r for r in mine if r["reference"] in study.budgets]
        means = added_means(store, single) if study.added else (r for r in mine if r["reference"] is None)
        return [r | {"margin": margin_of(store)} for r in (*single, *means)]


def added_means(store: Store, rows: list[Row]) -> Iterator[Row]:
    """Yield the mean over data sets at each budget of these comparisons, tested two-sided at 5 % without correction."""
    for of, mean, choice in over_all_datasets(store, rows):
        tested = None if choice is None else mean.widened(choice)
        row = of[0] | {"dataset": None, "difference": mean.mean, "n_datasets": len(of)}
        row |= {"low": tested and tested.low, "high": tested and tested.high}
        yield row | {"verdict": verdict(mean.mean, tested and tested.p, known=tested is not None)}


def name(row: Row, study: Study) -> str:
    """Name a row: its data set or mean, its budget, and its images a class."""
    if row["dataset"] is None:
        what = f"mean of {row['n_datasets']} sets"
    elif row["reference"] is None:
        what = "mean"
    else:
        what = NAMES.get(short_name(row["dataset"]), short_name(row["dataset"]))
    size = {"4-shot": ", 4 a class", "16-shot": ", 16 a class"}.get(row["train_size"], "")
    if study.folder == "shots":
        size = size or ", 96 a class"
    return (
        what + size
        if row["reference"] is None and not size
        else f"{what}{size or ', ' + row['reference'].replace('lora', 'LoRA')}"
    )


def draw(found: list[tuple[Study, list[Row]]]) -> Chart:
    """Draw all rows on one axis, under the titles of their studies."""
    every = [r for _, rows in found for r in rows]
    count = len(every) + sum(bool(study.title) for study, _ in found)
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
        axes.set_xlim(*differences.limits(every))
        axes.set_ylim(count - 0.4, -0.6)
        differences.zero_line(axes, 0, "lora", max(r["margin"] for r in every))
        level = 0
        for study, rows in found:
            if study.title:
                at = (-LABELS / PANEL + 0.02, level)
                axes.text(*at, study.title, transform=axes.get_yaxis_transform(), weight="bold", fontsize=SMALL,
                          va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, zorder=4)  # fmt: skip
                level += 1
            for row in rows:
                _row(axes, level, row, study)
                level += 1
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("difference in test score (points)")
        mark_bands(figure, "pointwise", "intervals")
        return figure


def _row(axes: Any, level: int, row: Row, study: Study) -> None:
    mean = row["reference"] is None or row["dataset"] is None
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": SMALL}
    axes.text(-0.03, level, name(row, study), ha="right", color=INK, **beside)
    lying_bar(axes, level, row, "#D55E00", 2.0 if mean else 1.1)
    dot(axes, "randlora", 100 * row["difference"], level, "", **{"marker": "D"} if mean else {})
    axes.text(1.03, level, change_text(row), color=INK, **beside)
    plain = row["verdict"] == "not distinguishable"
    axes.text(1.47, level, row["verdict"], color=MUTED if plain else INK, weight=None if plain else "bold", **beside)


def main() -> None:
    """Print the rows, and write the picture."""
    found = [(study, answered(study)) for study in STUDIES]
    for study, rows in found:
        print(study.title or "(the same)", f"[docs/results/{study.folder}]")
        for row in rows:
            print(f"  {name(row, study)}: {change_text(row)} {row['verdict']}")
    draw(found).savefig(ROOT / "docs" / "images" / "forest.png", dpi=200)


if __name__ == "__main__":
    main()
