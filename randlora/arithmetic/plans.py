"""Orders of contraction for a RandLoRA delta, their costs, and the choice between them. All are exact.

The delta is B @ M (or its transpose for a wide weight, in > out), B (D x q) frozen, D >= d the two sides of the weight,
q = n r, and M (q x d) built from lambda, gamma and A. For N input rows the multiply-adds beyond the frozen layer's,
forward and backward together, are (times two for FLOPs):

==========  ==========================  =========================  ==================================
plan        forward                     backward                   cost
==========  ==========================  =========================  ==================================
activation  (x M^T) B^T or (x B) M      through the small factors  N q (2 D + 3 d)
mixed       tall: W0 + B M; wide:       tall: through the factors; tall and wide: D q d + N D q
            (x B) M                     wide: W0 + B M             + 2 N q d
merged      W0 + B M                    W0 + B M, dY^T x           3 D q d + N D d
kept        W0 + B M                    the same one again         D q d + min(N D q + N q d,
                                                                   D q d + N D d)
gather      W0 + B M                    W0 + B M, dY B or x B      p (2 D q d + N D q) + N q d
==========  ==========================  =========================  ==================================

M and W0 + B M are made again in backward instead of being kept, except by `kept`, which trades the memory of one more
weight a layer for time and is in the choice only inside `with keep_merged():`. Kept otherwise is x, or for a wide
weight the smaller x B. `gather` is for a ternary B that `ternary` has a kernel for: its products with B cost the part p
of dense ones. Where the delta is not added to W0 (dropout on its input, low precision) "W0 + B M" is B M in a product
of its own, for N D d more each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

Plan = Literal["activation", "mixed", "merged", "kept", "gather"]


class _Keeping:
    """Plain state of the process, which torch.compile can read."""

    on = False


@contextmanager
def keep_merged(on: bool = True) -> Iterator[None]:
    """Inside, RandLoRA layers may keep W0 + delta from forward to backward where that saves time.

    The switch is the whole process's. The results are the same; memory grows by up to the size of the adapted weights.
    """
    before = _Keeping.on
    _Keeping.on = on
    try:
        yield
    finally:
        _Keeping.on = before


def keeping() -> bool:
    """Whether `keep_merged` is on."""
    return _Keeping.on


def plan_costs(rows: int, large: int, small: int, inner: int, *, apart: bool = False) -> dict[Plan, int]:
    """Multiply-adds of one training step beyond the frozen layer's, by plan (the module's table), for a dense B.

    `apart`: the delta is not added to W0.
    """
    n, big, low, q = rows, large, small, inner
    own = n * big * low if apart else 0
    return {
        "activation": n * q * (2 * big + 3 * low),
        "mixed": big * q * low + n * big * q + 2 * n * q * low + own,
        "merged": 3 * big * q * low + n * big * low + 2 * own,
        "kept": big * q * low + min(n * big * q + n * q * low, big * q * low + n * big * low) + 2 * own,
    }


def choose_plan(
    rows: int,
    large: int,
    small: int,
    inner: int,
    training: bool = True,
    *,
    part: float | None = None,
    keep: bool = False,
    apart: bool = False,
) -> Plan:
    """The cheapest plan; where nothing is differentiated only the forward counts.

    `part` is p where `gather` is possible, else None. `keep` allows `kept`. `apart` as in `plan_costs`.
    """
    if not training:
        own = rows * large * small if apart else 0
        if (1.0 if part is None else part) * large * inner * small + own < rows * inner * (large + small):
            return "merged" if part is None else "gather"
        return "activation"
    costs = _allowed(rows, large, small, inner, part, keep, apart)
    return min(costs, key=costs.__getitem__)


def pays_to_accumulate(
    rows: int, large: int, small: int, inner: int, micro_batches: int, *, part: float | None = None
) -> bool:
    """Whether one W0 + B M for `micro_batches` of `rows` each, gone back through once, beats the cheapest plan.

    It costs N D d for the weight's gradient in every micro-batch, and 2 D q d a step to make it and to go back.
    """
    costs = _allowed(rows, large, small, inner, part, keep=False, apart=False)
    once = 2 * (1.0 if part is None else part) * large * inner * small
    return micro_batches * rows * large * small + once < micro_batches * min(costs.values())


def _allowed(
    rows: int, large: int, small: int, inner: int, part: float | None, keep: bool, apart: bool
) -> dict[Plan, float]:
    """Costs of the plans to choose from; of equal ones the first is taken."""
    costs: dict[Plan, float] = {**plan_costs(rows, large, small, inner, apart=apart)}
    if not keep:
        del costs["kept"]
    if part is not None:
        own = 2 * rows * large * small if apart else 0
        costs["gather"] = part * (2 * large * inner * small + rows * large * inner) + rows * inner * small + own
    return costs


class Steps(NamedTuple):
    """A plan spelled out. False means: through the small factors x M^T or x B."""

    merged_forward: bool
    """The output is made with W0 + B M."""
    merged_grad_x: bool
    """The input's gradient is made with W0 + B M."""
    rows_for_m: bool
    """M's gradient is made from products of rows with B (dY B, or x B kept); else from the weight's gradient."""
    keeps_weight: bool = False
    gathers: bool = False


def steps(plan: Plan, rows: int, large: int, small: int, inner: int, tall: bool) -> Steps:
    """What `plan` does on a layer of these sizes."""
    if plan == "activation":
        return Steps(False, False, True)
    if plan == "mixed":
        return Steps(tall, not tall, True)
    if plan == "merged":
        return Steps(True, True, False)
    if plan == "gather":
        return Steps(True, True, True, gathers=True)
    through_rows = rows * inner * (large + small) < large * small * (inner + rows)
    return Steps(True, True, through_rows, keeps_weight=True)
