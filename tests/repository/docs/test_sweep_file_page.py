"""docs/sweep-file.md: every key of a sweep file has a meaning, and the example is one that plans."""

from __future__ import annotations

import re
import tomllib

from sweeps.spec.batch_sizes import batch_sizes
from sweeps.spec.space import TRAIN_FIELDS
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT
from tools.pages import sweep_file_page
from tools.spec_page import sections

PAGE = ROOT / "docs" / "sweep-file.md"


def test_every_key_has_a_meaning() -> None:
    found = dict(sections())
    assert {"", "model", "methods.NAME", "search", "keep"} <= found.keys()
    keys = {row[0] for row in found["methods.NAME"]}
    assert {"`lr`", "`lr.low`", "`unmatched`", "`capacity`"} <= keys
    (space,) = [row[-1] for row in found["search"] if row[0] == "`space`"]
    assert all(f"`{key}`" in space for key in TRAIN_FIELDS)
    for name, rows in found.items():
        assert rows
        for key, kind, _, meaning in rows:
            assert kind and kind != "value" and meaning, f"[{name}] {key} of {kind!r} has no docstring"


def test_the_page_is_up_to_date_and_its_example_is_read() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == sweep_file_page(), "run: python -m tools.pages"
    whole, part = (tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", page, re.S))
    spec = SweepSpec.parse(whole)
    assert spec.methods["vera"].unmatched
    assert spec.search.rates == 7
    searched = SweepSpec.parse(whole | part)
    assert searched.search.rates == 5 * len(batch_sizes(searched)) == 15
