"""Draws the pictures of docs/images that show results, from the tables under docs/results.

python -m tools.pictures          # writes them, and prints the rows of the forest

Parts of a results table are never rewritten, and their names have the time at which they were written. So a folder as
it was when a declared question was answered is the folder without later parts.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis import Store, open_store
from analysis.figures.drawing import STYLE
from analysis.figures.pictures import pictures
from tools import forest

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "docs" / "results", ROOT / "docs" / "images"
IMAGES_ANSWERED, PHOTOS_ANSWERED, TEXTS_ANSWERED = "20261128T2306", "20261129T1815", "20261129T1935"
"""When the declared questions of three studies were answered; methods and budgets were added to them afterwards."""
FIGURES = {
    ("quickstart", None): {"quickstart": "scaling_curve", "quickstart-differences": "differences"},
    ("images", None): {"real-images": "scaling_curve", "real-images-differences": "differences"},
    ("images", IMAGES_ANSWERED): {"real-images-forest": "forest"},
    ("photos", None): {"photos": "scaling_curve"},
    ("photos", PHOTOS_ANSWERED): {"photos-forest": "forest"},
    ("shots", None): {"shots": "data_size"},
    ("rank", None): {"rank": "rank"},
    ("league", None): {"league": "ranking"},
    ("league-language", None): {"league-language": "ranking"},
}
"""Results folder, and when it was answered if later parts are left out -> picture -> the report's figure."""
STUDIES = (
    forest.Study("Images, ViT-S/14: RandLoRA minus LoRA", "images", ("lora-1", "lora-8"), IMAGES_ANSWERED),
    forest.Study("the same, a budget that was added later", "images", ("lora-39",), added=True),
    forest.Study("Three further image sets: RandLoRA minus LoRA", "photos", ("lora-1",), PHOTOS_ANSWERED),
    forest.Study("the same, a budget that was added later", "photos", ("lora-39",), added=True),
    forest.Study("Few images and many: RandLoRA minus LoRA", "shots", ("lora-1",)),
    forest.Study("Texts, SmolLM2-135M: RandLoRA minus LoRA", "texts", ("lora-1",), TEXTS_ANSWERED),
    forest.Study("the same, a budget that was added later", "texts", ("lora-16",), added=True),
    forest.Study("Texts, every linear weight: RandLoRA minus LoRA", "weights", ("lora-3",)),
    forest.Study("", "weights-e2e", ("lora-3",)),
    forest.Study("Commonsense questions: RandLoRA minus LoRA", "commonsense", ("lora-1",)),
    forest.Study("Images, RandLoRA-a: rank 384 minus rank 16", "real-rank", ("lora-2",)),
    forest.Study("Texts, RandLoRA-a: rank 576 minus rank 16", "text-rank", ("lora-2", "lora-4")),
)
"""The studies that declared to compare a method of full rank with one of low rank at the same budget."""


@contextlib.contextmanager
def answered(folder: str, until: str | None = None) -> Iterator[Store]:
    """Open a folder under docs/results, without the parts that were written later than `until`."""

    def later(_: str, names: list[str]) -> set[str]:
        return {n for n in names if until and n.startswith("part-") and n[5:] > until}

    with tempfile.TemporaryDirectory() as made:
        yield open_store(shutil.copytree(RESULTS / folder, Path(made) / folder, ignore=later))


def write(figure: Figure, name: str) -> None:
    """Write a picture for a page on the web."""
    with mpl.rc_context(STYLE):
        figure.savefig(IMAGES / f"{name}.png", dpi=200)


def main() -> None:
    """Write all pictures."""
    for (folder, until), wanted in FIGURES.items():
        with answered(folder, until) as store:
            found = {p.stem: p.figure for p in pictures(store)}
        for name, stem in wanted.items():
            write(found[stem], name)
    declared = []
    for study in STUDIES:
        with answered(study.folder, study.until) as store:
            declared.append((study, forest.declared(study, store)))
    for study, rows in declared:
        print(study.title or "(the same)", f"[docs/results/{study.folder}]")
        for row in rows:
            print(f"  {forest.name(row, study)}: {forest.change_text(row)} {row['verdict']}")
    write(forest.draw(declared), "forest")


if __name__ == "__main__":
    main()
