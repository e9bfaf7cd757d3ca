"""A type that a release of PEFT adds, renames or removes; and what is measured of types."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from randlora import AdapterError, UnknownMethodError, attach, get_method
from randlora.files import peft_types
from randlora.methods.bridge import entry, kinds, measure
from randlora.methods.bridge.kinds import KINDS, UNFIT, Kind
from tests.randlora.methods.support import TARGETS, network, rows

peft = pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What is cached of types is asked anew, before and after each test."""

    def forget() -> None:
        for cached in (kinds.kind_of, kinds._measured, entry.entry):
            cached.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.parametrize(("name", "per_rank"), [("hira", 36), ("miss", 24), ("loha", 72)])
def test_a_new_type_is_a_method_without_an_entry(name: str, per_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KINDS, name)
    method = get_method(f"peft:{name}")
    assert [method.count((24, 12), r) for r in (1, 5, 12)] == [per_rank, 5 * per_rank, 12 * per_rank]
    assert method.max_capacity([(24, 12)]) == 12
    assert not method.mergeable and method.mixes_rows and method.needs_float_weight
    assert peft_types.is_known(name.upper())
    model, (x, y) = network(), rows()
    start = model(x)
    adapted = attach(model, method.config.from_options(4, {}), TARGETS)
    assert torch.allclose(model(x), start, atol=1e-6)
    assert adapted.count() == method.total(adapted.shapes, 4)
    (model(x) - y).square().mean().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in adapted.parameters())


def test_a_new_type_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KINDS, "unilora")
    for name in ("ln_tuning", "prefix_tuning"):
        monkeypatch.delitem(UNFIT, name)
    with pytest.raises(UnknownMethodError, match=r"newer than this release.*share trainable parameters"):
        get_method("peft:unilora")
    for name in ("ln_tuning", "prefix_tuning"):
        with pytest.raises(UnknownMethodError, match=r"none of the fields of .*Config is known to set the size"):
            get_method(f"peft:{name}")
        assert not peft_types.is_known(name)


def test_a_type_or_a_field_that_peft_has_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "lost", Kind(name="lost", title="Lost"))
    with pytest.raises(AdapterError, match=rf"PEFT {peft.__version__} has no type 'lost'.*nearest: .*'oft'"):
        get_method("peft:lost")
    monkeypatch.setitem(KINDS, "miss", Kind(name="miss", title="MiSS", capacity_field="rang", sizes={"mini_r": 1}))
    with pytest.raises(AdapterError, match=r"MissConfig of PEFT .* has no field rang, which peft:miss needs; .*'r'"):
        get_method("peft:miss")


def test_defaults_of_options_are_those_of_the_installed_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING

    @dataclasses.dataclass
    class Changed(mapping["LOHA"]):  # type: ignore[misc]
        r: int = 4
        alpha: int = 12
        rank_dropout: float = 0.25

    monkeypatch.setitem(mapping, "LOHA", Changed)
    monkeypatch.setitem(KINDS, "loha", Kind(name="loha", title="LoHa", fixed={"use_effective_conv2d": False}))
    method = get_method("peft:loha")
    assert method.options["rank_dropout"] == 0.25
    assert method.scale_rule == "alpha / r, 3 at every rank"


@pytest.mark.parametrize(
    ("law", "limit", "wanted"),
    [
        (lambda o, i, c: c * (o + i), None, 50),
        (lambda o, i, c: c * (c - 1) // 2 + 2 * c, lambda o, i, c: c <= min(o, i), 24),
        (lambda o, i, c: -(-min(o, i) // c) * (c + min(o, i)), None, 50),
        (lambda o, i, c: (min(o, i) - c) * (o + i + 1), lambda o, i, c: c <= min(o, i), 24),
        (lambda o, i, c: o * i // c, lambda o, i, c: o % c == i % c == 0, 24),
        (lambda o, i, c: c, lambda o, i, c: c <= o * i, 50),
        (lambda o, i, c: o, lambda o, i, c: i % c == 0, 24),
    ],
)
def test_formulas_and_limits_are_found(law: Any, limit: Any, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a type that counts by a formula and refuses what breaks a limit, on weights that were not measured."""

    def built(theirs: Any, fields: Any, shape: Any, layers: int = 1) -> int:
        if limit is not None and not limit(*shape, fields["c"]):
            raise ValueError
        return int(law(*shape, fields["c"]))

    monkeypatch.setattr(measure, "built_count", built)
    found = measure.measure(object, lambda c: {"c": c}, 1)
    for shape in ((768, 3072), (100, 64), (48, 24 * 7)):
        assert [found.count(shape, c) for c in (1, 2, 4)] == [law(*shape, c) for c in (1, 2, 4)]
    assert found.legal((48, 24), 50, 1) == wanted


def test_a_count_without_a_formula_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_FORMULAS", ())
    assert get_method("peft:hira").count((40, 24), 5) == 5 * 64
