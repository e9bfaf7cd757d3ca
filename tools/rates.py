"""Collect the best learning rates of all published studies, and make their file, picture and page.

python -m tools.rates             # write docs/results/rates.parquet and docs/images/rates.png
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
from analysis.drawing.charts import MUTED, PAPER, STYLE, Chart
from analysis.findings.rate_ratio.numbers import BEST_RATES, best_rates, ratios_of
from analysis.format import Row, quantity, with_interval
from analysis.store.columns import INT, TEXT
from analysis.styles import short_name, style
from analysis.verdict.runs import group_by

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "docs" / "results", ROOT / "docs" / "images"
FILE = "rates.parquet"
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
"""The columns of `best_rates`, and some of the table of cells.

`study` is the folder under docs/results, `base` the method of which the cell's method is a variant, and `capacity` the
rank or the like.
"""
MODELS = {
    "embedded:tiny-clip": "tiny CLIP",
    "local:models/vit-s14": "ViT-S/14",
    "local:models/smollm2-135m": "SmolLM2-135M",
}
"""Each model of the studies, with its name on the page."""
LEAST = 2
"""The page has a row for a method on a model if the method has at least this many cells there."""


def atlas(folder: Path = RESULTS) -> pa.Table:
    """Return one row for each tuned cell of every store in a folder; columns `SCHEMA`."""
    rows: list[Row] = []
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        store = open_store(place)
        cells = {(r["sweep"], r["cell_id"]): r for r in store.table("cells").to_pylist()}
        for rate in best_rates(store).to_pylist():
            cell = cells[rate["sweep"], rate["cell_id"]]
            columns = {name: value for name, value in rate.items() if name in SCHEMA.names}
            columns |= {"study": place.name, "parameters": cell["count"]}
            columns |= {name: cell[name] for name in ("title", "base", "capacity")}
            rows.append(columns)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def read(folder: Path = RESULTS) -> list[Row]:
    """Return the rows of the written file."""
    rows: list[Row] = pq.read_table(folder / FILE).to_pylist()
    return rows


def _middle(values: Sequence[float]) -> float:
    """Return the median on a logarithmic scale."""
    return 10 ** median(math.log10(v) for v in values)


def _rounded(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-")


def by_method(rows: Sequence[Row]) -> list[list[str]]:
    """Return the page's first table: the best rates of each method on each model, over tasks and budgets."""
    shown = []
    for model, name in MODELS.items():
        of_model = group_by([r for r in rows if r["model"] == model], "method")
        for (method,), cells in sorted(of_model.items(), key=lambda item: (style(item[0][0]).order, item[0][0])):
            if len(cells) < LEAST:
                continue
            best = [r["best"] for r in cells]
            wide = [r["decades"] for r in cells if r["decades"] is not None]
            bound = "≥ " if any(r["open"] for r in cells if r["decades"] is not None) else ""
            shown.append(
                [
                    name,
                    f"`{method}`",
                    _rounded(_middle(best)),
                    f"{_rounded(min(best))} to {_rounded(max(best))}",
                    f"{bound}{median(wide):.2f}" if wide else "",
                    str(len(cells)),
                    str(sum(r["outside"] is not None for r in cells)),
                ]
            )
    return shown


def size_of(reference: str) -> int:
    """Return LoRA's rank in the name of a budget, such as 'lora-8'."""
    return int(reference.rpartition("-")[2])


def by_budget(rows: Sequence[Row]) -> list[list[str]]:
    """Return the page's second table: the best rates of LoRA and RandLoRA at each budget, the median over tasks."""
    shown = []
    for model, name in MODELS.items():
        for method in ("lora", "randlora"):
            cells = [r for r in rows if r["model"] == model and r["method"] == method and r["reference"]]
            for (reference,), same in sorted(
                group_by(cells, "reference").items(), key=lambda item: size_of(item[0][0])
            ):
                best = [r["best"] for r in same]
                shown.append([name, style(method).name, reference, _rounded(_middle(best)), str(len(same))])
    return shown


def against_full(rows: Sequence[Row]) -> list[list[str]]:
    """Return the page's third table: the best rates of LoRA and RandLoRA divided by full fine-tuning's."""
    shown = []
    for (study,), of_study in group_by(rows, "study").items():
        for r in ratios_of([r | {"sweep": study} for r in of_study]):
            if r["method"] in ("lora", "randlora") and r["baseline"] == "full":
                name = MODELS.get(r["model"], r["model"])
                ends = (quantity(r[k]) or "?" for k in ("ratio_low", "ratio_high"))
                ratio = with_interval(quantity(r["ratio"]), *ends) + ("*" if r["at_edge"] else "")
                shown.append([study, name, short_name(r["dataset"]), style(r["method"]).name, r["reference"], ratio])
    return shown


def draw(rows: Sequence[Row]) -> Chart:
    """Draw the best rates: a line per method, a dot per task and budget, a panel per model."""
    with mpl.rc_context(STYLE):
        panels = {name: [r for r in rows if r["model"] == model] for model, name in MODELS.items()}
        names = {m: [r["method"] for r in model_rows] for m, model_rows in panels.items()}
        kept = {
            m: [k for k in dict.fromkeys(method_names) if method_names.count(k) >= LEAST]
            for m, method_names in names.items()
        }
        heights = [len(method_names) for method_names in kept.values()]
        figure = Chart(6.4, 0.16 * sum(heights) + 1.6)
        axes: Any = figure.subplots(len(panels), 1, sharex=True, gridspec_kw={"height_ratios": heights})
        for spot, (name, model_rows) in zip(axes, panels.items(), strict=True):
            order = sorted(kept[name], key=lambda m: (style(m).order, m))
            for r in model_rows:
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
    """Return what replaces the placeholders in `tools/page_texts/rates.md`."""
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
    arguments = parser.parse_args()
    table = atlas()
    rows = table.to_pylist()
    if arguments.check:
        if not agree(rows, read()):
            sys.exit(f"docs/results/{FILE} is not what the stores say; run python -m tools.rates")
        return
    pq.write_table(table, RESULTS / FILE)
    with mpl.rc_context(STYLE):
        draw(rows).savefig(IMAGES / "rates.png", dpi=200)
    print(f"{len(rows)} cells of {len({r['study'] for r in rows})} studies")


def agree(computed: Sequence[Row], written: Sequence[Row]) -> bool:
    """Return whether the cells are the same, with numbers equal to a millionth: processors round differently."""

    def same(a: object, b: object) -> bool:
        if isinstance(a, float) and isinstance(b, float):
            return math.isclose(a, b, rel_tol=1e-6)
        return a == b

    return len(computed) == len(written) and all(
        r.keys() == w.keys() and all(same(r[k], w[k]) for k in r) for r, w in zip(computed, written, strict=True)
    )


if __name__ == "__main__":
    main()
