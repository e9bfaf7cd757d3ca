"""The methods that a sweep can name: randlora's adapters, and those without a budget (such as full, zero-shot)."""

from __future__ import annotations

from dataclasses import dataclass

from randlora.methods.registry import METHODS


@dataclass(frozen=True)
class WithoutBudget:
    """A method without a budget, such as full fine-tuning. Figures draw it as a horizontal line.

    Attributes:
        published_lr: the centre of its range of learning rates; None if it does not train.
        full_rank: whether it trains the target weights themselves.
    """

    published_lr: float | None
    full_rank: bool = False


WITHOUT_BUDGET: dict[str, WithoutBudget] = {
    # RandLoRA paper, Table 8: full fine-tuning of CLIP at 1e-5; small models take more, so specs set their own centre
    "full": WithoutBudget(1e-5, True),
    "full-targets": WithoutBudget(1e-5, True),
    # RandLoRA's released DINOv2 code trains its linear head at 1e-3 (its CLIP probes, with another scale, at 0.02)
    "linear-probe": WithoutBudget(1e-3),
    "zero-shot": WithoutBudget(None),
}


def known_methods() -> tuple[str, ...]:
    """Return the names that a sweep file may use under `[methods]`."""
    return (*METHODS, *WITHOUT_BUDGET)


def has_budget(name: str) -> bool:
    """Return whether the method takes a budget."""
    return name in METHODS


def full_rank(name: str) -> bool:
    """Return whether the method trains the target weights themselves, so that their update can have any rank."""
    return name in WITHOUT_BUDGET and WITHOUT_BUDGET[name].full_rank


def published_lr(name: str) -> float | None:
    """Return the default centre of the method's range of learning rates; None for a method that trains nothing."""
    return METHODS[name].published_lr if name in METHODS else WITHOUT_BUDGET[name].published_lr


def capacity_reference(name: str, capacity: int, count: str) -> str:
    """Return the name of the budget of a capacity in a list: 'randlora-6', or 'bytes-randlora-6' if bytes are equal."""
    return f"{name}-{capacity}" if count == "parameters" else f"{count}-{name}-{capacity}"
