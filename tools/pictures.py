"""Draw the pictures of docs/images that show results, from the tables under docs/results.

python -m tools.pictures          # write them, and print the rows of the forest
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis import open_store
from analysis.figures.drawing import STYLE
from analysis.figures.pictures import pictures
from tools import forest

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "docs" / "results", ROOT / "docs" / "images"
FIGURES = {
    "quickstart": {"quickstart": "scaling_curve", "quickstart-differences": "differences"},
    "images": {"real-images": "scaling_curve", "real-images-differences": "differences"},
    "photos": {"photos": "scaling_curve"},
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
    forest.Study("Three further image sets: RandLoRA minus LoRA", "photos", ("lora-1",)),
    forest.Study("the same, a budget that was added later", "photos", ("lora-39",), added=True),
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


def write(figure: Figure, name: str) -> None:
    """Write a picture for a page on the web."""
    with mpl.rc_context(STYLE):
        figure.savefig(IMAGES / f"{name}.png", dpi=200)


def main() -> None:
    """Write all pictures."""
    for folder, wanted in FIGURES.items():
        figure_by_stem = {
            p.stem: p.figure for p in pictures(open_store(RESULTS / folder), COSTS.get(folder, "adapter_params"))
        }
        for name, stem in wanted.items():
            write(figure_by_stem[stem], name)
    declared = [(study, forest.declared(study, open_store(RESULTS / study.folder))) for study in STUDIES]
    for study, rows in declared:
        print(study.title or "(the same)", f"[docs/results/{study.folder}]")
        for row in rows:
            print(f"  {forest.name(row, study)}: {forest.change_text(row)} {row['verdict']}")
    write(forest.draw(declared), "forest")


if __name__ == "__main__":
    main()
