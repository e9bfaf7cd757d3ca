"""Best learning rates of all published studies: docs/results/rates.parquet, its picture, and the numbers of its page.

python -m tools.rates             # writes the file and docs/images/rates.png
python -m tools.rates --check     # exit 1 if the file is not what the stores say
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import open_store
from analysis.figures.drawing import MUTED, PAPER, STYLE, Chart
from analysis.format import Row, quantity, ranged
from analysis.statistics.best_rates import BEST_RATES, best_rates, ratios_of
from analysis.statistics.runs import by
from analysis.store.columns import INT, TEXT
from analysis.styles import short_name, style

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "docs" / "results", ROOT / "docs" / "images"
FILE = "rates.parquet"
LATER = ("title", "base", "parameters", "capacity")
"""Columns of a study's cells that are added to `best_rates`."""
SCHEMA = pa.schema(
    [
        *(field for field in BEST_RATES if field.name not in ("sweep", "cell_id")),
        pa.field("study", TEXT),
        pa.field("title", TEXT),
        pa.field("base", TEXT),
        pa.field("parameters", INT),
        pa.field("capacity", INT),
    ]
)
"""`study`: the folder under docs/results. `base`: the method that a variant is of. `capacity`: the rank or the like."""
MODELS = {
    "embedded:tiny-clip": "tiny CLIP",
    "local:models/vit-s14": "ViT-S/14",
    "local:models/smollm2-135m": "SmolLM2-135M",
}
"""Models of the studies, as the page names them."""
LEAST = 2
"""Cells of a method on a model that a row of the page needs."""


def atlas(folder: Path = RESULTS) -> pa.Table:
    """Return one row for each tuned cell of every store in a folder; columns `SCHEMA`."""
    rows: list[Row] = []
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        store = open_store(place)
        cells = {(r["sweep"], r["cell_id"]): r for r in store.table("cells").to_pylist()}
        for found in best_rates(store).to_pylist():
            cell = cells[found["sweep"], found["cell_id"]]
            more = {"study": place.name, "title": cell["title"], "base": cell["base"], "capacity": cell["capacity"]}
            rows.append({k: v for k, v in found.items() if k in SCHEMA.names} | more | {"parameters": cell["count"]})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def read(folder: Path = RESULTS) -> list[Row]:
    """The rows of the written file."""
    rows: list[Row] = pq.read_table(folder / FILE).to_pylist()
    return rows


def _middle(values: Sequence[float]) -> float:
    """The median on a logarithmic scale."""
    return 10 ** median(math.log10(v) for v in values)


def _rounded(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-")


def by_method(rows: Sequence[Row]) -> list[list[str]]:
    """The page's first table: of each model and method the best rates over tasks and budgets, and their widths."""
    shown = []
    for model, name in MODELS.items():
        mine = by([r for r in rows if r["model"] == model], "method")
        for (method,), cells in sorted(mine.items(), key=lambda item: (style(item[0][0]).order, item[0][0])):
            if len(cells) < LEAST:
                continue
            best = [r["best"] for r in cells]
            wide = [r["decades"] for r in cells if r["decades"] is not None]
            cut = any(r["open"] for r in cells if r["decades"] is not None)
            shown.append(
                [
                    name,
                    f"`{method}`",
                    _rounded(_middle(best)),
                    f"{_rounded(min(best))} to {_rounded(max(best))}",
                    f"{'≥ ' * cut}{median(wide):.2f}" if wide else "",
                    str(len(cells)),
                    str(sum(r["outside"] is not None for r in cells)),
                ]
            )
    return shown


def size_of(reference: str) -> int:
    """LoRA's rank in the name of a budget, such as 'lora-8'."""
    return int(reference.rpartition("-")[2])


def by_budget(rows: Sequence[Row]) -> list[list[str]]:
    """The page's second table: LoRA's and RandLoRA's best rate at each budget, the median over tasks."""
    shown = []
    for model, name in MODELS.items():
        for method in ("lora", "randlora"):
            cells = [r for r in rows if r["model"] == model and r["method"] == method and r["reference"]]
            for (reference,), same in sorted(by(cells, "reference").items(), key=lambda item: size_of(item[0][0])):
                best = [r["best"] for r in same]
                shown.append([name, style(method).name, reference, _rounded(_middle(best)), str(len(same))])
    return shown


def against_full(rows: Sequence[Row]) -> list[list[str]]:
    """The page's third table: ratios of LoRA's and RandLoRA's best rates to full fine-tuning's, with intervals."""
    shown = []
    for (study,), mine in by(rows, "study").items():
        for r in ratios_of([r | {"sweep": study} for r in mine]):
            if r["method"] in ("lora", "randlora") and r["baseline"] == "full":
                name = MODELS.get(r["model"], r["model"])
                ends = (quantity(r[k]) or "?" for k in ("ratio_low", "ratio_high"))
                ratio = ranged(quantity(r["ratio"]), *ends) + "*" * r["at_edge"]
                shown.append([study, name, short_name(r["dataset"]), style(r["method"]).name, r["reference"], ratio])
    return shown


def draw(rows: Sequence[Row]) -> Chart:
    """Draw the best rates: a line per method, a dot per task and budget, a panel per model."""
    with mpl.rc_context(STYLE):
        panels = {name: [r for r in rows if r["model"] == model] for model, name in MODELS.items()}
        names = {m: [r["method"] for r in mine] for m, mine in panels.items()}
        kept = {m: [k for k in dict.fromkeys(found) if found.count(k) >= LEAST] for m, found in names.items()}
        heights = [len(found) for found in kept.values()]
        figure = Chart(6.4, 0.16 * sum(heights) + 1.6)
        axes: Any = figure.subplots(len(panels), 1, sharex=True, gridspec_kw={"height_ratios": heights})
        for spot, (name, mine) in zip(axes, panels.items(), strict=True):
            order = sorted(kept[name], key=lambda m: (style(m).order, m))
            for r in mine:
                if r["method"] in order:
                    look = style(r["method"])
                    hollow = r["outside"] is not None
                    spot.plot(
                        [r["best"]], [order.index(r["method"])], marker=look.marker or "|", color=look.colour,
                        markerfacecolor=PAPER if hollow else look.colour, markersize=4, linestyle="none",
                    )  # fmt: skip
            spot.set_yticks(range(len(order)), [style(m).name for m in order])
            spot.set_ylim(len(order) - 0.4, -0.6)
            spot.set_xscale("log")
            spot.set_title(name, loc="left", fontsize=8, color=MUTED)
        axes[-1].xaxis.set_major_formatter("{x:g}")
        axes[-1].set_xlabel("best learning rate (hollow: at an edge of the rates that were tried)")
        figure.tight_layout()
        return figure


def texts(folder: Path) -> dict[str, str | tuple[tuple[str, ...], list[list[str]]]]:
    """What replaces the placeholders of docs/rates.md."""
    rows = read(folder)
    columns = (
        "model",
        "method",
        "best rate, median",
        "from to",
        "decades within a point, median",
        "cells",
        "at an edge",
    )
    return {
        "@CELLS@": f"{len(rows):,}",
        "@STUDIES@": str(len({r["study"] for r in rows})),
        "@METHODS@": (columns, by_method(rows)),
        "@BUDGETS@": (("model", "method", "budget", "best rate, median", "cells"), by_budget(rows)),
        "@RATIOS@": (("study", "model", "data", "method", "budget", "best rate / full's [95 %]"), against_full(rows)),
    }


def main() -> None:
    """Write the file and the picture, or compare the file with the stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    found = atlas()
    if parser.parse_args().check:
        if not agree(found.to_pylist(), read()):
            sys.exit(f"docs/results/{FILE} is not what the stores say; run python -m tools.rates")
        return
    pq.write_table(found, RESULTS / FILE)
    with mpl.rc_context(STYLE):
        draw(found.to_pylist()).savefig(IMAGES / "rates.png", dpi=200)
    print(f"{found.num_rows} cells of {len(set(found.column('study').to_pylist()))} studies")


def agree(found: Sequence[Row], written: Sequence[Row]) -> bool:
    """Whether two atlases hold the same cells and numbers, to a millionth: another processor rounds otherwise."""

    def same(a: object, b: object) -> bool:
        if isinstance(a, float) and isinstance(b, float):
            return math.isclose(a, b, rel_tol=1e-6)
        return a == b

    return len(found) == len(written) and all(
        r.keys() == w.keys() and all(same(r[k], w[k]) for k in r) for r, w in zip(found, written, strict=True)
    )


if __name__ == "__main__":
    main()
