"""Draw the pictures of docs/images that show results, from the tables under docs/results.

python -m tools.pictures          # write them, and print the rows of the forest
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import open_store
from analysis.drawing.charts import MUTED, STYLE, Chart
from analysis.findings.all import pictures
from analysis.findings.finding import View
from analysis.styles import SPARE_COLOURS, style
from tools import bits, forest

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "docs" / "results", ROOT / "docs" / "images"
FIGURES = {
    "quickstart": {"quickstart": "scaling_curve", "quickstart-differences": "differences"},
    "images": {"real-images": "scaling_curve", "real-images-differences": "differences"},
    "photos": {"photos": "scaling_curve"},
    "new-sets": {"new-sets": "scaling_curve"},
    "shots": {"shots": "data_size"},
    "rank": {"rank": "rank"},
    "starts": {"starts": "learning_rates"},
    "lr-matters": {"lr-matters": "learning_rates"},
    "currencies": {"currencies": "fits"},
    "league": {"league": "ranking"},
    "league-language": {"league-language": "ranking"},
}
"""The report's figures that are written, by results folder and name of the picture."""
COSTS = {"currencies": "step_flops"}
"""What a folder's fits have on the horizontal axis, if that is not the number of parameters."""
STUDIES = (
    forest.Study("Images, ViT-S/14: RandLoRA minus LoRA", "images", ("lora-1", "lora-8")),
    forest.Study("the same, a budget that was added later", "images", ("lora-39",), added=True),
    forest.Study("The same three image sets after 960 steps: RandLoRA minus LoRA", "longer-960", ("lora-1",)),
    forest.Study("Three further image sets: RandLoRA minus LoRA", "photos", ("lora-1",)),
    forest.Study("the same, a budget that was added later", "photos", ("lora-39",), added=True),
    forest.Study("Six new image sets: RandLoRA minus LoRA", "new-sets", ("lora-1", "lora-39")),
    forest.Study("Few images and many: RandLoRA minus LoRA", "shots", ("lora-1",)),
    forest.Study("Against each currency, one set: RandLoRA minus LoRA", "currencies", ("lora-1", "lora-4", "lora-16")),
    forest.Study("The same on texts: RandLoRA minus LoRA", "currencies-text", ("lora-1", "lora-16")),
    forest.Study("the same, a budget that was added later", "currencies-text", ("lora-4",), added=True),
    forest.Study("Texts, SmolLM2-135M: RandLoRA minus LoRA", "texts", ("lora-1",)),
    forest.Study("the same, a budget that was added later", "texts", ("lora-16",), added=True),
    forest.Study("Texts, every linear weight: RandLoRA minus LoRA", "weights", ("lora-3",)),
    forest.Study("", "weights-e2e", ("lora-3",)),
    forest.Study("Texts, all linear weights, coarse rates: RandLoRA minus LoRA", "lr-matters", ("lora-8",)),
    forest.Study("Commonsense questions: RandLoRA minus LoRA", "commonsense", ("lora-1",)),
    forest.Study("Images, RandLoRA-a: rank 384 minus rank 16", "real-rank", ("lora-2",)),
    forest.Study("Texts, RandLoRA-a: rank 576 minus rank 16", "text-rank", ("lora-2", "lora-4")),
)
"""The studies that declared to compare a method of full rank with one of low rank at the same budget."""


def draw_bits(found: list[dict[str, Any]]) -> Chart:
    """Draw the bits that adapters learn against the rank of their update: a colour for each number of parameters, a
    marker for each method, hollow if parameters are redundant."""
    chart = Chart(6.6, 3.3)
    axes = chart.add_axes((0.09, 0.14, 0.6, 0.82))
    markers = dict(zip(bits.CENTRES, "sphd^DXPo", strict=True))
    for budget, (colour, _) in zip(bits.BUDGETS, SPARE_COLOURS, strict=False):
        own = [row for row in found if row["budget"] == budget]
        line = sorted((row["rank"], row["bits"]) for row in own if row["method"] == "randlora-a")
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=1)
        for row in own:
            fill = "none" if bits.has_redundant_parameters(row) else colour
            axes.plot(row["rank"], row["bits"], markers[row["method"]], color=colour, mfc=fill)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("largest rank of the update")
    axes.set_ylabel("bits learned")
    colours = [
        Line2D([], [], color=colour, label=f"{bits.Cell('lora', None, budget).solution().count:,} parameters")
        for budget, (colour, _) in zip(bits.BUDGETS, SPARE_COLOURS, strict=False)
    ]
    methods = [
        Line2D([], [], color=MUTED, marker=marker, linestyle="", label=style(method).name)
        for method, marker in markers.items()
    ]
    hollow = Line2D([], [], color=MUTED, marker="o", mfc="none", linestyle="", label="redundant parameters")
    axes.legend(handles=[*colours, *methods, hollow], loc="upper left", bbox_to_anchor=(1.02, 1))
    return chart


def write(figure: Figure, name: str) -> None:
    """Write a picture for a page on the web."""
    with mpl.rc_context(STYLE):
        figure.savefig(IMAGES / f"{name}.png", dpi=200)


def main() -> None:
    """Write all pictures."""
    for folder, wanted in FIGURES.items():
        figure_by_stem = {
            p.stem: p.figure for p in pictures(open_store(RESULTS / folder), View(COSTS.get(folder, "adapter_params")))
        }
        for name, stem in wanted.items():
            write(figure_by_stem[stem], name)
    with mpl.rc_context(STYLE):
        write(draw_bits(bits.results(bits.Study(RESULTS / "bits.jsonl"))), "bits")
    declared = [(study, forest.declared(study, open_store(RESULTS / study.folder))) for study in STUDIES]
    for study, rows in declared:
        print(study.title or "(the same)", f"[docs/results/{study.folder}]")
        for row in rows:
            print(f"  {forest.name(row, study)}: {forest.change_text(row)} {row['verdict']}")
    write(forest.draw(declared), "forest")


if __name__ == "__main__":
    main()
