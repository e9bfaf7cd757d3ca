"""The figures of the diagnostics: the tables' numbers, and what is written."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analysis.findings.diagnostics.figure import (
    Drawing,
    draw_cka,
    draw_landscape,
    draw_spectrum,
    draw_surface,
    mean_cka,
    mean_errors,
    mean_spectra,
    write_drawings,
)
from analysis.findings.diagnostics.sheets import CORNERS, diagnostic_sheets
from analysis.store.store import open_store
from analysis.store.tables import to_table, write_part
from analysis.styles import style
from tests.analysis.odd import odd_results
from tests.analysis.synthetic import START

PLACES = list(CORNERS.values())
PLACE = {"sweep": "made", "unit": "u", "model": "m", "dataset": "d", "train_size": "1.0"}


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    spectrum = [
        PLACE | {"method": m, "weight": w, "spectral": 2.0, "singular_values": [2 - k / n for k in range(9)]}
        for m, n in (("lora", 4.5), ("randlora", 9))
        for w in ("a", "b")
    ]
    spectrum.append(PLACE | {"method": "lora", "weight": "none", "spectral": 0.0, "singular_values": [0.0, 0.0]})
    approximation = [
        PLACE | {"weight": w, "form": f, "lora_rank": r, "error": e / r}
        for f, e in (("lora", 0.5), ("randlora", 0.9))
        for r in (1, 2, 4)
        for w in ("a", "b")
    ]
    cka = [
        PLACE | {"method": m, "depth": d, "layer": str(d), "cka": None if d == 3 else 1 - d / k, "adapter_params": k}
        for m, k in (("lora", 9), ("randlora", 12), ("lora", 4))
        for d in range(4)
    ]
    edge = {"kind": "edge", "barrier": 0.25}
    landscape = [
        *(
            PLACE | {"kind": "plane", "split": s, "x": x, "y": y, "loss": None if x == y == 1.5 else 0.1 + x**2 + y**2}
            for s in ("train", "val")
            for x in (-0.5, 0.5, 1.5)
            for y in (-0.5, 0.5, 1.5)
        ),
        *(
            PLACE | edge | {"split": s, "a": a, "b": b, "t": t, "loss": 1.0 + t, "x": PLACES[a][0], "y": PLACES[a][1]}
            for s in ("train", "val")
            for a, b in ((0, 1), (0, 2), (1, 2))
            for t in (0.0, 0.5, 1.0)
        ),
    ]
    rows = {"spectrum": spectrum, "approximation": approximation, "cka": cka, "landscape": landscape}
    return {name: to_table(name, found) for name, found in rows.items()}


def test_the_numbers_are_means_of_the_tables(tables: dict[str, pa.Table]) -> None:
    found = [r for r in mean_spectra(tables["spectrum"]) if r["method"] == "randlora"]
    assert len(found) == 101 and found[0]["relative"] == 1.0 and found[-1]["relative"] == pytest.approx(5 / 9)
    assert [r["relative"] for r in found] == pytest.approx(np.interp(np.linspace(0, 1, 101), (0, 1), (1, 5 / 9)))
    error = {(r["method"], r["lora_rank"]): (r["error"], r["n"]) for r in mean_errors(tables["approximation"])}
    assert error["lora", 4] == (0.125, 2) and next(iter(error))[0] == "randlora"
    at = [(r["method"], r["depth"], r["cka"], r["n"]) for r in mean_cka(tables["cka"])]
    assert ("lora", 1, pytest.approx(1 - 1 / 9), 1) in at and len(at) == 6  # its largest budget, blocks with a number


def test_sheets_are_of_what_was_computed_last(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    """Another trial of a cell, or another setting, is a unit of its own."""
    folder = odd_results(tmp_path / "made", {("lora", "lora-1", "d"): {0: 0.7}})
    for unit, at in (("u", 9.0), ("v", 0.25)):
        for name, value in (("spectrum", "stable_rank"), ("approximation", "error"), ("cka", "cka")):
            more = {"unit": unit, "computed_at": START + timedelta(days=unit == "v"), value: at}
            write_part(folder, name, [r | more for r in tables[name].to_pylist()])
    found = {sheet.name: sheet.cells for sheet in diagnostic_sheets(open_store(folder))}
    assert len(found) == 3 and all("0.25" in row for cells in found.values() for row in cells)
    assert {row[-1] for row in found["diagnostic_approximation"]} == {"2"}  # weights, each once


def test_an_end_that_is_not_finite_has_no_number(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    """Not that of its neighbour."""
    folder = odd_results(tmp_path / "made", {("lora", "lora-1", "d"): {0: 0.7}})
    edges = [r | {"x": 9 * r["b"] + r["t"]} for r in tables["landscape"].to_pylist() if r["kind"] == "edge"]
    write_part(folder, "landscape", [r | {"loss": None if r["t"] == 1.0 else r["loss"]} for r in edges])
    write_part(folder, "cka", tables["cka"].to_pylist())  # none of the last layer
    found = {sheet.name: sheet for sheet in diagnostic_sheets(open_store(folder))}
    for name, ends in (("cka", ("first layer", "last layer")), ("landscape", ("loss at start", "loss at end"))):
        sheet = found[f"diagnostic_{name}"]
        first, last = ([row[sheet.header.index(end)] for row in sheet.cells] for end in ends)
        assert all(first) and not any(last)


def test_they_are_drawn_as_they_are(tables: dict[str, pa.Table]) -> None:
    whole = draw_spectrum(tables["spectrum"], tables["approximation"])
    left, right = whole.axes
    (alone,) = draw_spectrum(tables["spectrum"], tables["approximation"].slice(0, 0)).axes
    found = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert found == {line.get_label(): list(line.get_ydata()) for line in alone.lines}
    assert [v for y in found.values() for v in y] == [r["relative"] for r in mean_spectra(tables["spectrum"])]
    shown = [v for line in right.lines for v in line.get_ydata()]
    assert shown == [r["error"] for r in mean_errors(tables["approximation"])]
    whole.draw_without_rendering()
    ticks = [label.get_text() for axis in (left.yaxis, right.xaxis) for label in axis.get_ticklabels(which="both")]
    assert {"0.01", "1", "2", "4"} <= set(ticks) and not any("$" in text for text in ticks)  # no formula is parsed
    (blocks,) = draw_cka(tables["cka"]).axes
    rows = mean_cka(tables["cka"])
    named = [(line.get_label(), *at) for line in blocks.lines for at in zip(*line.get_data(), strict=True)]
    assert named == [(style(r["method"]).name, r["depth"], r["cka"]) for r in rows]
    plane = draw_landscape(tables["landscape"]).axes[0]
    corners = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in plane.lines]
    assert corners == list(CORNERS.values())


def test_they_are_written_with_their_sentences(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    plane = tables["landscape"]
    found = [
        Drawing("spectrum", draw_spectrum(tables["spectrum"], tables["approximation"]), "Said."),
        Drawing("cka", draw_cka(tables["cka"]), "Said."),
        Drawing("landscape", draw_landscape(plane), "Said."),
        Drawing("landscape-surface", draw_surface(plane), "The same as a surface."),
    ]
    for one in found:
        kind = one.stem.partition("-")[0]
        (tmp_path / "diagnostics").mkdir(exist_ok=True)
        old = tmp_path / "diagnostics" / f"{kind}-9.vl.json"
        old.write_text("{}")
        paths = write_drawings([one], tmp_path, kind)
        assert not old.exists() and set(paths) == {f"{one.stem}.{form}" for form in ("png", "svg", "pdf", "txt")}
        assert paths[f"{one.stem}.txt"].read_text(encoding="utf-8") == one.says + "\n"
