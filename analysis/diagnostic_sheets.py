"""What `sweeps analyze` left, for the report: its figures with their sentences, and its tables of the store in brief.

Reads files and tables only, so the report needs neither torch nor the weights. One seed per cell: descriptions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from analysis import svg
from analysis.methods import size_key, style
from analysis.sheets import BUDGET, METHOD, Column, Sheet, columns_of, whole
from analysis.store import Store

Row = dict[str, Any]

FOLDER = "diagnostics"
SHEETS = ("spectrum", "approximation", "cka", "barriers")
"""Names of the tables."""
_UNDER = {"spectrum": ("spectrum", "approximation"), "cka": ("cka",), "landscape": ("barriers",)}
_WIDE = ("spectrum",)
_SURFACE = "-surface"
_CORNERS = ("lora", "randlora", "full")
_SPLITS = {"train": "training", "val": "validation"}
_CELL = ("sweep", "model", "dataset", "train_size", "method", "reference")


def diagnostics(folder: Path) -> list[Row]:
    """Figures with what they say: `stem`, `svg` (markup), `says`, `wide`, `sheets` (names of the tables under it)."""
    found = []
    for picture in sorted((folder / FOLDER).glob("*.svg")):
        text = picture.with_name(f"{picture.stem.removesuffix(_SURFACE)}.txt")
        said = text.read_text(encoding="utf-8").strip() if text.is_file() else picture.stem
        said += " Here as a surface." if picture.stem.endswith(_SURFACE) else ""
        shown = svg.embedded(picture.read_text(encoding="utf-8"), f"diagnostic-{picture.stem}", said)
        under = _UNDER.get(picture.stem, ())
        found.append({"stem": picture.stem, "svg": shown, "says": said, "wide": picture.stem in _WIDE, "sheets": under})
    return found


def diagnostic_sheets(store: Store) -> list[Sheet]:
    """The tables of the diagnostics in brief: means over weights and layers, and barrier heights."""
    return [_spectrum(store), _approximation(store), _cka(store), _barriers(store)]


def _spectrum(store: Store) -> Sheet:
    rows = _latest(store.table("spectrum").to_pylist(), lambda r: (r["trial_id"], r["weight"]))
    found = _grouped(rows, _CELL, ("stable_rank", "effective_rank", "rank", "overlap"))
    columns = columns_of(
        found,
        METHOD,
        BUDGET,
        Column("weights", lambda r: whole(r["count"]), "number"),
        _number("stable rank", "stable_rank", 1),
        _number("effective rank", "effective_rank", 1),
        _number("rank", "rank", 1),
        _number("overlap with full fine-tuning", "overlap", 3),
    )
    return Sheet("spectrum", "Ranks of the trained updates, means over target weights", columns, found)


def _approximation(store: Store) -> Sheet:
    rows = store.table("approximation").to_pylist()
    rows = _latest(rows, lambda r: (r["trial_id"], r["weight"], r["form"], r["lora_rank"]))
    place = ("sweep", "model", "dataset", "train_size", "lora_rank")
    forms = {form: _grouped([r for r in rows if r["form"] == form], place, ("error",)) for form in ("lora", "randlora")}
    by = {form: {tuple(r[k] for k in place): r["error"] for r in found} for form, found in forms.items()}
    keys = sorted({key for found in by.values() for key in found}, key=lambda k: (k[:3], size_key(k[3]), k[4]))
    found = [dict(zip(place, k, strict=True)) | {form: errors.get(k) for form, errors in by.items()} for k in keys]
    columns = columns_of(
        found,
        Column("parameters, as LoRA rank", lambda r: whole(r["lora_rank"]), "number"),
        _number("LoRA, relative error", "lora", 3),
        _number("RandLoRA, relative error", "randlora", 3),
    )
    note = "LoRA's is the exact optimum, RandLoRA's a fit and so an upper bound; means over target weights."
    return Sheet("approximation", "How well each form holds full fine-tuning's update", columns, found, note)


def _cka(store: Store) -> Sheet:
    rows = _latest(store.table("cka").to_pylist(), lambda r: (r["trial_id"], r["dataset"], r["train_size"], r["layer"]))
    last = {key: max(r["depth"] for r in mine) for key, mine in _by(rows, _CELL).items()}
    found = _grouped(rows, _CELL, ("cka",))
    ends = _grouped([r for r in rows if r["depth"] == last[tuple(r[k] for k in _CELL)]], _CELL, ("cka",))
    end = {tuple(r[k] for k in _CELL): r["cka"] for r in ends}
    found = [r | {"last": end[tuple(r[k] for k in _CELL)]} for r in found]
    columns = columns_of(
        found,
        METHOD,
        BUDGET,
        Column("layers", lambda r: whole(r["count"]), "number"),
        _number("mean CKA", "cka", 3),
        _number("last layer", "last", 3),
    )
    return Sheet("cka", "CKA with full fine-tuning", columns, found)


def _barriers(store: Store) -> Sheet:
    edges = [r for r in store.table("landscape").to_pylist() if r["kind"] == "edge"]
    key = ("sweep", "model", "dataset", "train_size", "reference", "split", "a", "b")
    rows = _latest(edges, lambda r: tuple(r[k] for k in key))
    columns = columns_of(
        rows,
        BUDGET,
        Column("examples", lambda r: _SPLITS.get(r["split"], str(r["split"]))),
        Column("from", lambda r: style(_CORNERS[r["a"]]).name),
        Column("to", lambda r: style(_CORNERS[r["b"]]).name),
        _number("barrier height, loss", "barrier", 3),
    )
    return Sheet("barriers", "Barriers of the loss between the trained models", columns, rows)


def _latest(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> list[Row]:
    """Of rows that other settings computed again, the last."""
    found: dict[Hashable, Row] = {}
    for row in sorted(rows, key=lambda r: r["computed_at"]):
        found[key(row)] = row
    return list(found.values())


def _by(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[n] for n in names)].append(row)
    return found


def _grouped(rows: Iterable[Row], names: Sequence[str], numbers: Sequence[str]) -> list[Row]:
    """Means of numbers by keys, with the `count` of rows; in the order of tables."""
    found = []
    for key, mine in _by(rows, names).items():
        row: Row = dict(zip(names, key, strict=True)) | {"count": len(mine)}
        for number in numbers:
            known = [r[number] for r in mine if r[number] is not None]
            row[number] = sum(known) / len(known) if known else None
        found.append(row)
    found.sort(key=_order)
    return found


def _order(row: Row) -> tuple[Any, ...]:
    digits = "".join(c for c in row.get("reference") or "" if c.isdigit())
    place = (row["sweep"], row["model"], row["dataset"], size_key(row["train_size"]))
    return (*place, style(row["method"]).order if "method" in row else 0, int(digits or 0))


def _number(head: str, key: str, digits: int) -> Column:
    return Column(head, lambda r: "" if r[key] is None else f"{r[key]:.{digits}f}", "number")
