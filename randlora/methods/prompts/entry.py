"""A name such as "prompt:maple+dept+lora" as a method: prompts, DePT's head, and the adapters of another method.

"prompt:KIND" has the number of tokens as its capacity, "prompt:KIND-depth" the number of blocks with prompts. "+dept"
adds the head of DePT (Zhang et al. 2024, arXiv 2309.07439), which its task owns, as heads are, and no budget counts.
"+METHOD" adds the adapters of a method of the registry on the target weights: the capacity is then that method's, the
prompts keep the size that the options `tokens` and `depth` give them, and the count is the sum.
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
    """A name, taken apart.

    Attributes:
        transfer: whether DePT's head is trained beside.
        adapter: the method of the adapters beside the prompts; None for prompts alone.
        by_depth: whether the capacity is the depth.
    """

    kind: Kind
    transfer: bool
    adapter: Method | None
    by_depth: bool = False


def name_of(name: str) -> Name:
    """Raises UnknownMethodError for a name that means nothing, with the nearest ones."""
    first, *more = name.removeprefix(PREFIX).split("+")
    bare = first.removesuffix(BY_DEPTH)
    if bare not in KINDS or (first != bare and not KINDS[bare].deep):
        known = [*KINDS, *(kind + BY_DEPTH for kind, entry in KINDS.items() if entry.deep)]
        raise UnknownMethodError(f"unknown method {name!r}; {nearest(first, known)}, after {PREFIX!r}")
    kind, transfer, beside = KINDS[bare], TRANSFER in more, [part for part in more if part != TRANSFER]
    if more.count(TRANSFER) > 1:
        once = name.replace(f"+{TRANSFER}", "", more.count(TRANSFER) - 1)
        raise UnknownMethodError(f"unknown method {name!r}: +{TRANSFER} more than once; nearest: {once!r}")
    if len(beside) > 1 or (beside and beside[0] not in METHODS):
        known = [TRANSFER, *METHODS]
        raise UnknownMethodError(
            f"unknown method {name!r}: +{'+'.join(beside)} is no method; {nearest(beside[0], known)}"
        )
    adapter = METHODS[beside[0]] if beside else None
    why = _conflict(kind, transfer, adapter, by_depth=first != bare)
    if why is not None:
        raise UnknownMethodError(f"{name!r} cannot be: {why}; nearest: '{PREFIX}maple+dept+lora'")
    return Name(kind, transfer, adapter, first != bare)


def _conflict(kind: Kind, transfer: bool, adapter: Method | None, *, by_depth: bool) -> str | None:
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
        return f"{adapter.title} counts its weights together or rounds their capacities, and prompts are no weight"
    if not adapter.mergeable:
        return f"{adapter.title}'s update is no matrix"
    return "the capacity is then the adapter's, so the depth is an option" if by_depth else None


def replaced_words(config: AdapterConfig) -> int | None:
    """Return how many tokens of `WORDS` the vectors of this configuration replace; None if no token of `WORDS` stays.

    In MaPLe's released code two vectors replace "a photo", and "of a NAME." follows them.
    """
    tokens: int = getattr(config, "tokens")  # noqa: B009 - a field of every configuration that `_config` makes
    return tokens if name_of(config.method).kind.keeps_words else None


def entry(name: str) -> Method:
    """The method called `name`. Raises UnknownMethodError as `name_of`."""
    return _entry(name, name_of(name))


@cache
def _entry(name: str, found: Name) -> Method:
    """By what the name stands for now: a method that was registered anew is another."""
    kind, adapter = found.kind, found.adapter
    config = _config(name, found)

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
            own = options if adapter is not None else {**options, config.capacity_field: capacity}
            return kind.count(shape, *sizes(shape, own))
        assert adapter is not None
        return adapter.count(shape, capacity, **options)

    def most(shapes: Sequence[Shape], **options: Any) -> int:
        weights = [shape for shape in shapes if not isinstance(shape, Place)]
        if adapter is not None and weights:
            return adapter.max_capacity(weights, **options)
        place = next(shape for shape in shapes if isinstance(shape, Place))
        return 1 if adapter is not None else place.layers if found.by_depth else place.room

    def build(request: Request) -> dict[str, Adapter]:
        assert isinstance(request.place, Place)
        options: dict[str, Any] = {field: getattr(request.config, field, None) for field in ("tokens", "depth")}
        if adapter is None:
            options[config.capacity_field] = request.capacities[PLACE]
        made: dict[str, Adapter] = {PLACE: kind.learner(request, *sizes(request.place, options))}
        weights = {n: w for n, w in request.weights.items() if n != PLACE}
        if adapter is not None and weights:
            made |= adapter.build(dataclasses.replace(request, weights=weights))
        return made

    titles = [kind.title, *["DePT"] * found.transfer, *([] if adapter is None else [adapter.title])]
    alone = Method(
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
        adapter or alone,
        name=name,
        title=" + ".join(titles),
        config=config,
        count=count,
        max_capacity=most,
        build=build,
        mergeable=False,
        prompts=True,
        update_rank=None,  # prompts are no matrix
        freedom=None,
    )


def _config(name: str, found: Name) -> type[AdapterConfig]:
    """The configuration: the adapter's, if any, and the sizes of the prompts that are no capacity."""
    kind, adapter = found.kind, found.adapter
    base: type[AdapterConfig] = AdapterConfig if adapter is None else adapter.config
    capacity = adapter.capacity_field if adapter is not None else "depth" if found.by_depth else "tokens"
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
