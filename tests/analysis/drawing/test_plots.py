"""What is drawn equals what was computed."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.collections import Collection, LineCollection
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console

from analysis import Store, open_store, print_results_table
from analysis.drawing.charts import count_text, save
from analysis.findings.all import pictures
from analysis.findings.comparisons.figure import draw_differences
from analysis.findings.comparisons.numbers import difference_curves
from analysis.findings.finding import View
from analysis.findings.scaling.figure import draw_scaling
from analysis.findings.scaling.numbers import CURVE
from analysis.findings.scaling.numbers import curve as scaling_curve
from analysis.findings.tuning.figure import draw_rates
from analysis.findings.tuning.numbers import rates
from analysis.styles import STYLES, in_order, places, style
from analysis.verdict.runs import score_name
from randlora import METHODS
from tests.analysis.odd import Cells, odd_results
from tests.analysis.synthetic import make_results
from tests.support import ROOT

SCORED = {"scaling_curve", "differences", "overlay", "fits", "pareto", "learning_rates", "expected_best"}
SCORED |= {"tuning_effort", "sharpness", "rate_ratio", "forest", "ranking", "rank", "data_size"}
"""The figures whose markers say a score or an interval, in percent or points. A new figure may show another unit."""


def lines(figure: Figure) -> dict[str, list[tuple[np.ndarray, np.ndarray, str]]]:
    """Drawn lines by id: x, y, colour."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray, str]]] = {}
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_gid():
                values = (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), to_hex(line.get_color()))
                found.setdefault(line.get_gid(), []).append(values)
    return found


def test_every_line_has_the_tables_numbers(store: Store, wide: Store) -> None:
    for one in (store, wide):
        curve = scaling_curve(one)
        rows = curve.to_pylist()
        figure = draw_scaling(curve)
        drawn, far = lines(figure), [t.get_text() for axes in figure.axes for t in axes.texts]
        wanted, aside = set(), 0
        for index, panel in enumerate(places(curve)):
            mine = [r for r in rows if (r["sweep"], r["model"], r["dataset"], r["train_size"]) == panel]
            for method in {r["method"] for r in mine}:
                points = sorted((r for r in mine if r["method"] == method), key=lambda r: r["adapter_params"])
                gid = f"{index}:{method}"
                if points[0]["kind"] == "line" and gid not in drawn:
                    assert any(text.endswith(f"{style(method).name} {100 * points[0]['mean']:.1f}") for text in far)
                    continue
                wanted.add(gid)
                [(x, y, colour)] = drawn[gid]
                assert colour == style(method).colour.lower()
                if points[0]["kind"] == "line":
                    assert set(y) == {100 * points[0]["mean"]}
                else:
                    assert list(x) == pytest.approx([p["adapter_params"] for p in points], rel=0.5)
                    aside += list(x) != pytest.approx([p["adapter_params"] for p in points])
                    assert list(y) == [100 * p["mean"] for p in points]
                    wanted |= {f"point:{index}:{method}:{i}" for i in range(len(points))}
        assert set(drawn) == wanted and aside < len(wanted) / 4  # most markers stand at their count
        assert set(figure.tips) - wanted == {gid for gid in figure.parts if gid.startswith("far:")}


def test_bands_are_the_intervals(store: Store) -> None:
    curve = scaling_curve(store)
    figure = draw_scaling(curve)
    filled = [c for c in figure.axes[0].collections if len(c.get_facecolor())]
    bands = [c for c in filled if to_hex(c.get_facecolor()[0]) == STYLES["lora"].colour.lower()]
    rows = [r for r in curve.to_pylist() if r["method"] == "lora"]
    heights = bands[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(min(100 * r["low"] for r in rows))
    assert heights.max() == pytest.approx(max(100 * r["high"] for r in rows))


def test_every_point_is_in_the_picture_and_no_band_is_invented(tmp_path: Path) -> None:
    """Scores below zero, zero-shot above all others, and one seed at the budget in between."""
    seeds = {1: (0, 1, 2), 4: (0,), 16: (0, 1, 2)}
    cells: Cells = {("lora", f"lora-{r}", "a"): {s: -0.2 + r / 100 + s / 50 for s in seeds[r]} for r in seeds}
    cells |= {("randlora", f"lora-{r}", "a"): {s: 0.1 + s * s / 50 for s in seeds[r]} for r in seeds}
    store = open_store(odd_results(tmp_path / "odd", cells | {("zero-shot", None, "a"): {0: 0.5}}))
    axes = draw_scaling(scaling_curve(store)).axes[0]
    assert axes.get_ylim()[0] < 100 * min(r["mean"] for r in scaling_curve(store).to_pylist())
    assert [t.get_text() for t in axes.texts if t.get_gid()] == ["\N{UPWARDS ARROW} zero-shot 50.0"]
    for drawn in (axes, draw_differences(difference_curves(store), score="score", focus="randlora").axes[0]):
        assert not [c for c in drawn.collections if c.get_alpha() == 0.16]
        assert next(len(c.get_segments()) for c in drawn.collections if isinstance(c, LineCollection)) == 2


def test_the_parameter_axis_is_logarithmic_and_a_far_method_is_an_arrow(store: Store) -> None:
    [axes] = draw_scaling(scaling_curve(store)).axes
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[0] > 60  # the curves are not flattened by zero-shot at 38 %
    [zero] = [r for r in scaling_curve(store).to_pylist() if r["method"] == "zero-shot"]
    said = [t.get_text() for t in axes.texts if t.get_gid()]
    assert said == [f"\N{DOWNWARDS ARROW} zero-shot {100 * zero['mean']:.1f}"]


def test_one_cell_and_lines_alone_can_be_drawn(store: Store) -> None:
    rows = scaling_curve(store).to_pylist()
    for chosen in (
        [rows[0]],
        [r for r in rows if r["kind"] == "line"],
        [r for r in rows if r["method"] == "zero-shot"],
    ):
        figure = draw_scaling(pa.Table.from_pylist(chosen, schema=CURVE))
        assert len(lines(figure)) >= 1
        figure.canvas.draw()
    with pytest.raises(ValueError, match="no row"):
        draw_scaling(CURVE.empty_table())


def test_rates_are_drawn_as_they_are(store: Store, wide: Store) -> None:
    table = rates(store)
    drawn = lines(draw_rates(table))
    for cell in {r["cell_id"] for r in table.to_pylist()}:
        rows = [r for r in table.to_pylist() if r["cell_id"] == cell and r["mean_val"] is not None]
        [(x, y, _)] = drawn[f"rates:{cell}"]
        assert list(x) == [r["lr"] for r in rows]
        assert list(y) == [100 * r["mean_val"] for r in rows]
    with pytest.raises(ValueError, match="exactly one data set"):
        draw_rates(rates(wide))


def test_files_depend_on_the_numbers_only(store: Store, tmp_path: Path) -> None:
    curve = scaling_curve(store)
    first = save(draw_scaling(curve), tmp_path / "a", "scaling_curve")
    second = save(draw_scaling(curve), tmp_path / "b", "scaling_curve")
    assert list(first) == ["scaling_curve.png", "scaling_curve.svg", "scaling_curve.pdf"]
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name


def test_every_method_has_one_look() -> None:
    looks = [(s.colour, s.marker) for s in STYLES.values()]
    assert len(set(looks)) == len(looks)
    assert len({s.colour for s in STYLES.values()}) == len(STYLES)
    assert style("mine") == style("mine")
    assert style("mine").name == "mine"
    assert in_order({"zero-shot", "mine", "lora", "randlora", "full"}) == [
        "randlora",
        "lora",
        "mine",
        "full",
        "zero-shot",
    ]


def test_methods_that_are_shown_together_look_apart() -> None:
    """Ours everywhere, those of a folder in what is made of it."""
    ours = {*METHODS, *STYLES}
    for folder in sorted(p.parent for p in (ROOT / "docs" / "results").glob("*/tables")):
        shown = {*ours, *open_store(folder).table("cells").column("method").to_pylist()}
        assert len({(style(m).colour, style(m).marker) for m in shown}) == len(shown), folder.name
    assert style("linear-probe").marker is None  # it has no budget


def test_counts_on_the_axis() -> None:
    assert [count_text(v) for v in (500, 12_288, 250_000, 1_500_000, 2e9)] == [
        "500",
        "12.3k",
        "250k",
        "1.5M",
        "2G",
    ]


def test_figures_name_the_metric_that_was_measured(store: Store, tmp_path: Path) -> None:
    assert score_name(store) == "test accuracy"
    folder = make_results(tmp_path / "texts", seal=0.0)
    journal = folder / "journal.jsonl"
    events = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    for event in (e for e in events if e["ev"] == "finish"):
        event["row"]["metric"] = "bleu"
    journal.write_text("".join(json.dumps(e) + "\n" for e in events), encoding="utf-8")
    texts = open_store(folder)
    assert score_name(texts) == "test bleu"
    print_results_table(texts, Console(file=(said := io.StringIO()), width=200))
    assert "test bleu on" in said.getvalue() and "bleu %" in said.getvalue() and "accuracy" not in said.getvalue()
    wanted = dict.fromkeys(["scaling_curve", "fits", "pareto"], "test bleu (%)")
    wanted |= {"differences": "test bleu minus LoRA's (points)", "tuning_effort": "expected test bleu (%)"}
    wanted |= {"learning_rates": "validation score (%)", "expected_best": "expected best validation (%)"}
    wanted |= {"sharpness": "decades within a point"}
    drawn = {p.stem.rstrip("_0123456789"): p for p in pictures(texts)}
    assert wanted.keys() <= drawn.keys()
    for p in pictures(texts):
        named = {axes.get_ylabel() for axes in p.figure.axes if axes.get_ylabel()}
        stem = p.stem.rstrip("_0123456789")
        if stem in wanted or "%" in "".join(named):  # other figures show no scores, such as rates alone
            assert named == {wanted.get(stem, "test bleu (%)")}, p.stem
        assert "accuracy" not in p.label + p.caption + "".join(named)


def test_a_marker_says_its_numbers_in_every_figure(store: Store, wide: Store) -> None:
    for p in (*pictures(store, View(overlay="fig1-clip")), *pictures(wide)):
        assert p.figure.tips and p.svg.count('class="tip"') == len(p.figure.tips), p.stem
        assert all(":" in tip and re.search(r"\d", tip) for tip in p.figure.tips.values()), p.stem
        if p.stem.rstrip("_0123456789") in SCORED:
            assert all("%" in tip or " points" in tip for tip in p.figure.tips.values()), p.stem


@pytest.mark.parametrize("datasets", [("embedded:fashion",), ("embedded:fashion", "embedded:digits")])
def test_a_legend_tells_methods_of_one_colour_apart(tmp_path: Path, datasets: tuple[str, ...]) -> None:
    """Every mark in a method's colour is in its part, in every figure; the page's script shows and hides by these."""
    one, other = [f"v{i}" for i in range(20) if style(f"v{i}").colour == style("v0").colour][:2]
    budgets = ("lora-1", "lora-2", "lora-4")
    plan = {one: budgets, other: budgets, "lora": budgets, "full": (None,)}
    store = open_store(make_results(tmp_path / "r", plan=plan, datasets=datasets))
    colours = {method: style(method).colour.lower() for method in plan}
    stems = set()
    for p in pictures(store):
        figure, markup = p.figure, p.svg
        parts, keys = (re.findall(f' data-{kind}="([^"]*)"', markup) for kind in ("method", "key"))
        assert Counter(parts) == Counter(figure.parts.values()) and keys == list(figure.keys.values()), p.stem
        assert set(keys) <= set(parts), p.stem
        stems |= {p.stem} if keys else set()
        for artist in (artist for axes in figure.axes for artist in axes.get_children() if keys):
            drawn = artist.get_color() if isinstance(artist, Line2D) else artist.get_edgecolor() if isinstance(
                artist, Collection) else "none"  # fmt: skip
            shown = {to_hex(colour) for colour in np.atleast_2d(to_rgba_array(drawn))}
            if shown & set(colours.values()):
                assert {colours[figure.parts[artist.get_gid()]]} == shown, p.stem
        if p.stem == "scaling_curve":
            assert Counter(parts)[one] == Counter(parts)[other] == (1 + 1 + 3) * len(places(scaling_curve(store)))
    assert {"scaling_curve", "differences", "fits", "expected_best"} <= stems


def test_methods_have_the_names_of_their_papers() -> None:
    assert {name: style(name).name for name in METHODS} == {name: method.title for name, method in METHODS.items()}
    assert style("randlora-a-16").name == "randlora-a-16"
