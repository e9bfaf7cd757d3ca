"""Make a method from a name such as "prompt:maple+dept+lora": prompts, DePT's head, and another method's adapters.

The capacity of "prompt:KIND" is the number of tokens, that of "prompt:KIND-depth" the number of blocks with prompts.
"+dept" adds the head of DePT (Zhang et al. 2024, arXiv 2309.07439). The task owns that head, and no budget counts it,
as for all heads. "+METHOD" adds the adapters of a method of the registry on the target weights. The capacity is then
that method's. The prompts keep the size that the options `tokens` and `depth` give them, and the count is the sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from randlora.adapter import Adapter, AdapterConfig, Request, Shape, check_capacity
from randlora.errors import ConfigError, UnknownMethodError, nearest
from randlora.methods.method import METHODS, Method
from randlora.methods.prompts.kinds import BY_DEPTH, KINDS, PREFIX, TRANSFER, Kind
from randlora.model.prompted import PLACE, Place


@dataclass(frozen=True)
class Name:
    """The parts of a method's name.

    Attributes:
        kind: the method of prompt learning.
        transfer: whether DePT's head is trained too.
        adapter: the method of the adapters beside the prompts; None for prompts alone.
        by_depth: whether the capacity is the depth.
    """

    kind: Kind
    transfer: bool
    adapter: Method | None
    by_depth: bool = False


def name_of(name: str) -> Name:
    """Return the parts of a name. Raises UnknownMethodError with the nearest names if it means nothing."""
    first, *additions = name.removeprefix(PREFIX).split("+")
    bare = first.removesuffix(BY_DEPTH)
    if bare not in KINDS or (first != bare and not KINDS[bare].deep):
        names = [*KINDS, *(kind + BY_DEPTH for kind, entry in KINDS.items() if entry.deep)]
        raise UnknownMethodError(f"unknown method {name!r}; {nearest(first, names)}, after {PREFIX!r}")
    kind = KINDS[bare]
    transfer = TRANSFER in additions
    beside = [part for part in additions if part != TRANSFER]
    if additions.count(TRANSFER) > 1:
        once = name.replace(f"+{TRANSFER}", "", additions.count(TRANSFER) - 1)
        raise UnknownMethodError(f"unknown method {name!r}: +{TRANSFER} more than once; nearest: {once!r}")
    if len(beside) > 1 or (beside and beside[0] not in METHODS):
        names = [TRANSFER, *METHODS]
        raise UnknownMethodError(
            f"unknown method {name!r}: +{'+'.join(beside)} is not a method; {nearest(beside[0], names)}"
        )
    adapter = METHODS[beside[0]] if beside else None
    why = _conflict(kind, transfer, adapter, by_depth=first != bare)
    if why is not None:
        raise UnknownMethodError(f"{name!r} cannot be: {why}; nearest: '{PREFIX}maple+dept+lora'")
    return Name(kind, transfer, adapter, first != bare)


def _conflict(kind: Kind, transfer: bool, adapter: Method | None, *, by_depth: bool) -> str | None:
    """Return why the parts of a name do not go together; None if they do."""
    if transfer and not kind.transfers:
        return f"{kind.title} takes none of DePT's heads here"
    if adapter is None:
        return None
    if kind.teacher:
        return f"{kind.title} learns from the model as it was, which adapters change"
    if adapter.name.startswith("peft:"):
        return f"{adapter.title} has a configuration of PEFT's, which has no place for prompts"
    if adapter.scheduled or adapter.holds_out:
        return f"{adapter.title} has a schedule of its own"
    if adapter.together is not None or adapter.legal is not None:
        return f"{adapter.title} counts its weights together or rounds their capacities, and prompts are not a weight"
    if not adapter.mergeable:
        return f"{adapter.title}'s update is not a matrix"
    return "the capacity is then the adapter's, so the depth is an option" if by_depth else None


def replaced_words(config: AdapterConfig) -> int | None:
    """Return how many tokens of `WORDS` the vectors of this configuration replace; None if no token of `WORDS` stays.

    In MaPLe's released code two vectors replace "a photo", and "of a NAME." follows them.
    """
    tokens: int = getattr(config, "tokens")  # noqa: B009 - a field of every configuration that `_config` makes
    return tokens if name_of(config.method).kind.keeps_words else None


def entry(name: str) -> Method:
    """Return the method of this name. Raises UnknownMethodError as `name_of` does."""
    return _entry(name, name_of(name))


@cache
def _entry(name: str, parts: Name) -> Method:
    """Return the method of a name. It is cached by the parts, so that a method that was registered again makes another
    one."""
    kind, adapter = parts.kind, parts.adapter
    config = _config(name, parts)

    def sizes(place: Place, options: dict[str, Any]) -> tuple[int, int]:
        tokens, depth = options.get("tokens", kind.tokens), kind.depth(place, options.get("depth"))
        for field, size, most in (("tokens", tokens, place.room), ("depth", depth, place.layers)):
            if size > most:
                raise ConfigError(
                    f"{name}: {field} = {size} is more than the {most} of this model; take at most {most}"
                )
        return tokens, depth

    def count(shape: Shape, capacity: int, **options: Any) -> int:
        if isinstance(shape, Place):
            chosen = options if adapter is not None else {**options, config.capacity_field: capacity}
            return kind.count(shape, *sizes(shape, chosen))
        assert adapter is not None
        return adapter.count(shape, capacity, **options)

    def most(shapes: Sequence[Shape], **options: Any) -> int:
        weights = [shape for shape in shapes if not isinstance(shape, Place)]
        if adapter is not None and weights:
            return adapter.max_capacity(weights, **options)
        place = next(shape for shape in shapes if isinstance(shape, Place))
        return 1 if adapter is not None else place.layers if parts.by_depth else place.room

    def build(request: Request) -> dict[str, Adapter]:
        assert isinstance(request.place, Place)
        options: dict[str, Any] = {field: getattr(request.config, field, None) for field in ("tokens", "depth")}
        if adapter is None:
            options[config.capacity_field] = request.capacities[PLACE]
        adapters: dict[str, Adapter] = {PLACE: kind.learner(request, *sizes(request.place, options))}
        weights = {n: w for n, w in request.weights.items() if n != PLACE}
        if adapter is not None and weights:
            adapters |= adapter.build(dataclasses.replace(request, weights=weights))
        return adapters

    titles = [kind.title]
    if parts.transfer:
        titles.append("DePT")
    if adapter is not None:
        titles.append(adapter.title)
    prompts_alone = Method(
        title=kind.title,
        config=config,
        count=count,
        build=build,
        published_lr=kind.rate,
        published_lr_source=kind.source,
        scale_rule="none",
        scheduled=kind.teacher,
        on_weights=False,
    )
    return dataclasses.replace(
        adapter or prompts_alone,
        title=" + ".join(titles),
        config=config,
        count=count,
        max_capacity=most,
        build=build,
        mergeable=False,
        prompts=True,
        update_rank=None,  # prompts are not a matrix
        freedom=None,
    )


def _config(name: str, parts: Name) -> type[AdapterConfig]:
    """Return the configuration class: the adapter's if any, with the sizes of the prompts that are not the capacity."""
    kind, adapter = parts.kind, parts.adapter
    base: type[AdapterConfig] = AdapterConfig if adapter is None else adapter.config
    capacity = adapter.capacity_field if adapter is not None else "depth" if parts.by_depth else "tokens"
    sizes: list[tuple[str, Any, int | None]] = [("tokens", int, kind.tokens)]
    if kind.deep:
        sizes.append(("depth", int | None, None))
    fields: list[Any] = [] if adapter is not None else [(capacity, int)]
    fields += [size for size in sizes if size[0] != capacity]

    def check(self: AdapterConfig) -> None:
        base.__post_init__(self)
        for field, *_ in sizes:
            if (value := getattr(self, field)) is not None:
                check_capacity(name, field, value)

    space = {
        "method": name,
        "capacity_field": capacity,
        "__post_init__": check,
        "__module__": __name__,
        "__doc__": "`tokens`: vectors of the context; `depth`: blocks with prompts.",
    }
    return dataclasses.make_dataclass("PromptConfig", fields, bases=(base,), namespace=space, frozen=True)
