"""The Vega-Lite form of figures: the table's numbers, Vega-Lite's schema, a drawing where a renderer is there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from analysis import Store
from analysis.figures import pictures, vega
from analysis.figures.picture import Picture
from analysis.statistics import scaling
from analysis.styles import style


@pytest.fixture(scope="module")
def drawn(store: Store, wide: Store) -> dict[str, Picture]:
    several = {f"wide_{p.stem}": p for p in pictures.pictures(wide) if p.kind in ("scaling", "fits", "rates")}
    return several | {p.stem: p for p in pictures.pictures(store, overlay="fig1-clip")}


def test_the_numbers_are_the_tables(drawn: dict[str, Picture], store: Store) -> None:
    chart = drawn["scaling_curve"].chart
    assert chart is not None
    points = [r for r in chart["data"]["values"] if r["role"] == "point"]
    rows = [r for r in scaling.curve(store).to_pylist() if r["kind"] == "curve"]
    assert {(r["method"], r["x"], r["score"], r["low"], r["high"], r["seeds"]) for r in points} == {
        (style(r["method"]).name, r["adapter_params"], 100 * r["mean"], 100 * r["low"], 100 * r["high"], r["n"])
        for r in rows
    }
    rules = [r["method"] for r in chart["data"]["values"] if r["role"] == "rule"]
    assert rules == ["full fine-tuning"]  # zero-shot lies so far below that it would flatten the curves


def test_colours_hover_and_legend(drawn: dict[str, Picture]) -> None:
    for stem, p in drawn.items():
        assert p.chart is not None
        whole = json.dumps(p.chart)
        for method in ("randlora", "lora"):
            assert style(method).colour in whole, stem
        layers = p.chart.get("layer") or p.chart["spec"]["layer"]
        tips = [t["field"] for layer in layers for t in layer["encoding"].get("tooltip", ())]
        assert {"method", "score", "x"} <= set(tips), stem
        assert any(q.get("bind") == "legend" for layer in layers for q in layer.get("params", ()))
        kind = {"type": "log"} if stem != "expected_best" else {"zero": False}
        assert all(
            kind.items() <= layer["encoding"]["x"]["scale"].items() for layer in layers if "x" in layer["encoding"]
        )
        assert (
            "facet" in p.chart
            if stem in ("learning_rates", "expected_best", "wide_scaling_curve", "wide_fits")
            else True
        )
        assert '"url"' not in whole  # all data inside


def test_a_marker_says_its_numbers_in_every_figure(drawn: dict[str, Picture]) -> None:
    for stem, p in drawn.items():
        assert p.tips and p.svg.count('class="tip"') == len(p.tips), stem
        assert all("%" in tip and ":" in tip for tip in p.tips.values())


def test_an_empty_chart_is_refused() -> None:
    with pytest.raises(ValueError, match="no row"):
        vega.chart([], title="", description="", x="x")


def test_they_hold_to_the_schema_of_vega_lite(drawn: dict[str, Picture]) -> None:
    altair = pytest.importorskip("altair", reason="altair, which has Vega-Lite's schema, is not installed")
    jsonschema = pytest.importorskip("jsonschema")
    path = Path(altair.__file__).parent / "vegalite" / "v6" / "schema" / "vega-lite-schema.json"
    if not path.is_file():
        pytest.skip("this altair has another version of Vega-Lite")
    validator = jsonschema.Draft7Validator(json.loads(path.read_text(encoding="utf-8")))
    for stem, p in drawn.items():
        assert [e.message[:200] for e in validator.iter_errors(p.chart)] == [], stem


def test_they_can_be_drawn(drawn: dict[str, Picture]) -> None:
    convert = pytest.importorskip("vl_convert", reason="vl-convert-python, which draws Vega-Lite, is not installed")
    from matplotlib.image import imread

    for stem in ("scaling_curve", "overlay", "wide_fits"):
        pixels = imread(io.BytesIO(convert.vegalite_to_png(drawn[stem].chart, vl_version="6.1")))[..., :3]
        for method in ("randlora", "lora"):
            wanted = [int(style(method).colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            assert (abs(pixels - wanted).max(axis=-1) < 0.02).sum() > 60, (stem, method)
