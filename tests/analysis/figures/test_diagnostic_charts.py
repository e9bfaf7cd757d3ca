"""The Vega-Lite form of the diagnostics' figures: the tables' numbers, the schema, a drawing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from analysis.figures.diagnostic_charts import CORNERS, PLACES, cka_chart, landscape_chart, spectrum_chart
from analysis.figures.diagnostic_numbers import alignment, errors, spectra
from analysis.figures.diagnostic_plots import Drawing, draw_cka, draw_landscape, draw_spectrum, draw_surface, write
from analysis.store.tables import to_table
from analysis.styles import style

Spec = dict[str, Any]
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


@pytest.fixture(scope="module")
def charts(tables: dict[str, pa.Table]) -> dict[str, Spec]:
    return {
        "spectrum": spectrum_chart(tables["spectrum"], tables["approximation"], "Said."),
        "spectrum_alone": spectrum_chart(tables["spectrum"], tables["approximation"].slice(0, 0), "Said."),
        "cka": cka_chart(tables["cka"], "Said."),
        "landscape": landscape_chart(tables["landscape"], "Said."),
    }


def test_the_numbers_are_means_of_the_tables(tables: dict[str, pa.Table]) -> None:
    found = [r for r in spectra(tables["spectrum"]).to_pylist() if r["method"] == "randlora"]
    assert len(found) == 101 and found[0]["relative"] == 1.0 and found[-1]["relative"] == pytest.approx(5 / 9)
    assert [r["relative"] for r in found] == pytest.approx(np.interp(np.linspace(0, 1, 101), (0, 1), (1, 5 / 9)))
    error = {(r["method"], r["lora_rank"]): (r["error"], r["n"]) for r in errors(tables["approximation"]).to_pylist()}
    assert error["lora", 4] == (0.125, 2) and next(iter(error))[0] == "randlora"
    at = [(r["method"], r["depth"], r["cka"], r["n"]) for r in alignment(tables["cka"]).to_pylist()]
    assert ("lora", 1, pytest.approx(1 - 1 / 9), 1) in at and len(at) == 6  # its largest budget, blocks with a number


def test_charts_hold_the_numbers(tables: dict[str, pa.Table], charts: dict[str, Spec]) -> None:
    values = charts["cka"]["data"]["values"]
    named = [(style(r["method"]).name, r["depth"], r["cka"]) for r in alignment(tables["cka"]).to_pylist()]
    assert [(r["method"], r["depth"], r["cka"]) for r in values] == named
    left, right = (panel["data"]["values"] for panel in charts["spectrum"]["hconcat"])
    assert [r["relative"] for r in left] == [r["relative"] for r in spectra(tables["spectrum"]).to_pylist()]
    assert [r["error"] for r in right] == [r["error"] for r in errors(tables["approximation"]).to_pylist()]
    assert "hconcat" not in charts["spectrum_alone"] and charts["spectrum_alone"]["data"]["values"] == left
    plane, edges = charts["landscape"]["hconcat"]
    rows = plane["layer"][0]["data"]["values"]
    assert len(rows) == 2 * 8 and all(r["loss"] == pytest.approx(0.1 + r["x"] ** 2 + r["y"] ** 2) for r in rows)
    assert {(r["x0"], r["x1"]) for r in rows} == {(-1.0, 0.0), (0.0, 1.0), (1.0, 2.0)}
    assert {r["edge"] for r in edges["data"]["values"]} >= {"LoRA to RandLoRA"} and len(edges["data"]["values"]) == 18
    assert charts["landscape"]["params"][0]["bind"]["options"] == ["train", "val"]


def test_hover_colours_and_nothing_to_load(charts: dict[str, Spec]) -> None:
    for stem, chart in charts.items():
        whole = json.dumps(chart)
        assert '"tooltip"' in whole and '"legend"' in whole and '"url"' not in whole, stem
        assert all(style(m).colour in whole for m in CORNERS[:2]), stem
        assert chart["description"] == "Said."


def test_they_hold_to_the_schema_of_vega_lite(charts: dict[str, Spec]) -> None:
    altair = pytest.importorskip("altair", reason="altair, which has Vega-Lite's schema, is not installed")
    jsonschema = pytest.importorskip("jsonschema")
    path = Path(altair.__file__).parent / "vegalite" / "v6" / "schema" / "vega-lite-schema.json"
    if not path.is_file():
        pytest.skip("this altair has another version of Vega-Lite")
    validator = jsonschema.Draft7Validator(json.loads(path.read_text(encoding="utf-8")))
    for stem, chart in charts.items():
        assert [e.message[:200] for e in validator.iter_errors(chart)] == [], stem


def test_they_can_be_drawn(charts: dict[str, Spec]) -> None:
    convert = pytest.importorskip("vl_convert", reason="vl-convert-python, which draws Vega-Lite, is not installed")
    from matplotlib.image import imread

    for stem, chart in charts.items():
        pixels = imread(io.BytesIO(convert.vegalite_to_png(chart, vl_version="6.1")))[..., :3]
        for method in ("randlora", "lora"):
            wanted = [int(style(method).colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            assert (abs(pixels - wanted).max(axis=-1) < 0.02).sum() > 40, (stem, method)


def test_they_are_written_beside_the_figures(
    tables: dict[str, pa.Table], charts: dict[str, Spec], tmp_path: Path
) -> None:
    plane = tables["landscape"]
    found = [
        Drawing("spectrum", draw_spectrum(tables["spectrum"], tables["approximation"]), "Said.", charts["spectrum"]),
        Drawing("cka", draw_cka(tables["cka"]), "Said.", charts["cka"]),
        Drawing("landscape", draw_landscape(plane), "Said.", charts["landscape"]),
        Drawing("landscape-surface", draw_surface(plane), "The same as a surface."),
    ]
    for one in found:
        kind = one.stem.partition("-")[0]
        (tmp_path / "diagnostics").mkdir(exist_ok=True)
        old = tmp_path / "diagnostics" / f"{kind}-9.vl.json"
        old.write_text("{}")
        paths = write([one], tmp_path, kind)
        assert not old.exists() and (f"{one.stem}.vl.json" in paths) == (one.chart is not None)
        if one.chart is not None:
            assert json.loads(paths[f"{one.stem}.vl.json"].read_text(encoding="utf-8")) == one.chart
