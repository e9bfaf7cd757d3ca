"""What `sweeps analyze` left in a results folder, for the report: figures, their sentences, and their tables.

Reads files only, so the report needs neither torch nor the weights. A diagnostic is `diagnostics/STEM.svg` with
`STEM.txt`, and rows in `diagnostics/STEM/*.parquet`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis import svg
from analysis.methods import style
from analysis.sheets import BUDGET, METHOD, Column, Sheet

Row = dict[str, Any]

FOLDER = "diagnostics"
WIDE = ("spectrum",)
_KEYS = ("method", "reference", "dataset", "train_size")
_NOT_AVERAGED = {"data_seed", "adapter_params", "depth", "layer", "seed", "x", "y"}


def diagnostics(folder: Path) -> list[Row]:
    """Figures with what they say: `stem`, `svg` (markup), `says`, `wide`, `sheet` (the table's name, or None)."""
    tables = {sheet.name for sheet in diagnostic_sheets(folder)}
    found = []
    for picture in sorted((folder / FOLDER).glob("*.svg")):
        text = picture.with_suffix(".txt")
        said = text.read_text(encoding="utf-8").strip() if text.is_file() else picture.stem
        shown = svg.embedded(picture.read_text(encoding="utf-8"), f"diagnostic-{picture.stem}", said)
        name = f"diagnostic_{picture.stem}"
        sheet = name if name in tables else None
        found.append({"stem": picture.stem, "svg": shown, "says": said, "wide": picture.stem in WIDE, "sheet": sheet})
    return found


def diagnostic_sheets(folder: Path) -> list[Sheet]:
    """Per diagnostic the means of its numbers by method and budget, where it left rows that name a method."""
    found = []
    for place in sorted(p for p in (folder / FOLDER).glob("*") if p.is_dir()):
        groups: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for path in sorted(place.glob("*.parquet")):
            table = pq.read_table(path)
            if "method" not in table.column_names:
                continue
            numbers = [f.name for f in table.schema if pa.types.is_floating(f.type) and f.name not in _NOT_AVERAGED]
            for row in table.to_pylist():
                mine = groups[tuple(row.get(k) for k in _KEYS)]
                for name in numbers:
                    if row[name] is not None:
                        mine[name].append(row[name])
        rows = [
            dict(zip(_KEYS, key, strict=True)) | {n: sum(v) / len(v) for n, v in means.items() if v}
            for key, means in groups.items()
        ]
        names = list(dict.fromkeys(n for r in rows for n in r if n not in _KEYS))
        rows.sort(key=lambda r: (style(r["method"]).order, r["method"], _number(r["reference"])))
        if rows and names:
            title = f"{place.name}: means by method and budget"
            found.append(Sheet(f"diagnostic_{place.name}", title, [METHOD, BUDGET, *map(_column, names)], rows))
    return found


def _column(name: str) -> Column:
    return Column(name.replace("_", " "), lambda r: "" if r.get(name) is None else f"{r[name]:.3g}", "number")


def _number(reference: str | None) -> int:
    return int("".join(c for c in reference or "" if c.isdigit()) or 0)
