"""Make the registry's entry of a PEFT type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from randlora.adapter import Shape
from randlora.methods.bridge.build import build
from randlora.methods.bridge.config import config_class
from randlora.methods.bridge.freedom import AT_MOST, FREEDOM, TOGETHER
from randlora.methods.bridge.kinds import kind_of
from randlora.methods.method import Method


@cache
def entry(name: str) -> Method:
    """Return the method of this name, such as "peft:miss".

    Raises:
        AdapterError: `peft` is not installed, or its release lacks the type or a field that is needed.
        UnknownMethodError: PEFT has no such type, or the type does not fit here.
    """
    kind = kind_of(name)
    short = kind.name

    def count(shape: Shape, capacity: int, **options: Any) -> int:
        return kind.count_of(shape, kind.legal_of(shape, capacity, options), options)

    def most(shapes: Sequence[Shape], **options: Any) -> int:
        return kind.reach(kind.most_of(shape, options) for shape in shapes)

    def together(shapes: Mapping[str, Shape], capacity: int, **options: Any) -> int:
        assert kind.together is not None
        merged = {**kind.option_defaults, **options}
        return kind.together(shapes, kind.legal_of(next(iter(shapes.values())), capacity, options), merged)

    def freedom(shape: Shape, capacity: int, **options: Any) -> int | None:
        formula = FREEDOM.get(short)
        return None if formula is None else formula(shape, kind.legal_of(shape, capacity, options), options)

    def freedom_together(shapes: Mapping[str, Shape], capacity: int, **options: Any) -> int:
        return TOGETHER[short](shapes, capacity, options)

    return Method(
        title=f"{kind.title} (PEFT)",
        config=config_class(name, kind),
        count=count,
        together=None if kind.together is None else together,
        max_capacity=most,
        min_capacity=kind.least,
        open_ended=kind.open_ended,
        legal=lambda shape, capacity, **options: kind.legal_of(shape, capacity, options),
        misfit=lambda shapes, **options: kind.misfit_of(shapes, options),
        build=build,
        published_lr=kind.rate,
        published_lr_source=kind.source,
        scale_rule="PEFT's" if kind.alpha is None else f"{kind.alpha[0]} / r, {kind.alpha[1]:g} at every rank",
        mergeable=kind.matrix,
        mixes_rows=kind.mixes_rows,
        needs_float_weight=kind.needs_float_weight,
        freedom=freedom,
        freedom_at_most=lambda **options: any(options[key] for key in AT_MOST.get(short, ())),
        freedom_together=freedom_together if short in TOGETHER else None,
    )
