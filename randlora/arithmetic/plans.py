"""Choose the cheapest of several exact orders of contraction for a RandLoRA delta.

The delta is B @ M (or its transpose for a wide weight, in > out). B (D x q) is frozen, where D >= d are the two sides
of the weight and q = n r. M (q x d) is built from lambda, gamma and A. The table lists multiply-adds for N input rows,
forward and backward together, beyond those of the frozen layer (times two for FLOPs):

==========  ==========================  =========================  ==================================
plan        forward                     backward                   cost
==========  ==========================  =========================  ==================================
activation  (x M^T) B^T or (x B) M      through the small factors  N q (2 D + 3 d)
mixed       tall: W0 + B M; wide:       tall: through the factors; tall and wide: D q d + N D q
            (x B) M                     wide: W0 + B M             + 2 N q d
merged      W0 + B M                    W0 + B M, dY^T x           3 D q d + N D d
gather      W0 + B M                    W0 + B M, dY B or x B      p (2 D q d + N D q) + N q d
==========  ==========================  =========================  ==================================

Backward makes M and W0 + B M again instead of keeping them. It keeps x, or the smaller x B for a wide weight. `gather`
is for a ternary B that `ternary` has a kernel for. Its products with B take the share p of the dense ones' time. If the
delta is not added to W0 (dropout on its input, or low precision), "W0 + B M" means a separate product with B M, which
costs N D d more each time.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Plan = Literal["activation", "mixed", "merged", "gather"]


def plan_costs(rows: int, large: int, small: int, inner: int, *, apart: bool = False) -> dict[Plan, int]:
    """Return by plan the multiply-adds of a training step beyond those of the frozen layer, for a dense B.

    Args:
        rows: N.
        large, small: D and d, the sides of the weight.
        inner: q.
        apart: whether the delta's product is separate from that of W0.
    """
    n, big, low, q = rows, large, small, inner
    separate = n * big * low if apart else 0
    return {
        "activation": n * q * (2 * big + 3 * low),
        "mixed": big * q * low + n * big * q + 2 * n * q * low + separate,
        "merged": 3 * big * q * low + n * big * low + 2 * separate,
    }


def choose_plan(
    rows: int,
    large: int,
    small: int,
    inner: int,
    training: bool = True,
    *,
    gather_time: float | None = None,
    apart: bool = False,
) -> Plan:
    """Return the cheapest plan.

    Args:
        rows: N.
        large, small: D and d, the sides of the weight.
        inner: q.
        training: whether gradients are needed. If not, only the forward counts.
        gather_time: p, if `gather` is possible; else None.
        apart: whether the delta's product is separate from that of W0.
    """
    if not training:
        separate = rows * large * small if apart else 0
        if (1.0 if gather_time is None else gather_time) * large * inner * small + separate < rows * inner * (
            large + small
        ):
            return "merged" if gather_time is None else "gather"
        return "activation"
    costs = _allowed(rows, large, small, inner, gather_time, apart)
    return min(costs, key=costs.__getitem__)


def pays_to_accumulate(
    rows: int, large: int, small: int, inner: int, micro_batches: int, *, gather_time: float | None = None
) -> bool:
    """Return whether one W0 + B M for several micro-batches, differentiated once, costs less than the cheapest plan.

    It costs N D d in every micro-batch for the weight's gradient, and 2 D q d per step to make it and to differentiate
    it.

    Args:
        rows: N of a micro-batch.
        large, small: D and d, the sides of the weight.
        inner: q.
        micro_batches: the number of micro-batches in an optimiser step.
        gather_time: p, if `gather` is possible; else None.
    """
    costs = _allowed(rows, large, small, inner, gather_time, apart=False)
    once = 2 * (1.0 if gather_time is None else gather_time) * large * inner * small
    return micro_batches * rows * large * small + once < micro_batches * min(costs.values())


def _allowed(
    rows: int, large: int, small: int, inner: int, gather_time: float | None, apart: bool
) -> dict[Plan, float]:
    """Return the costs of the possible plans. Of equal costs, the first plan is taken."""
    costs: dict[Plan, float] = {**plan_costs(rows, large, small, inner, apart=apart)}
    if gather_time is not None:
        separate = 2 * rows * large * small if apart else 0
        costs["gather"] = (
            gather_time * (2 * large * inner * small + rows * large * inner) + rows * inner * small + separate
        )
    return costs


class Steps(NamedTuple):
    """The steps of a plan. False means that the step goes through the small factors x M^T or x B.

    Attributes:
        merged_forward: W0 + B M makes the output.
        merged_grad_x: W0 + B M makes the input's gradient.
        rows_for_m: M's gradient comes from products of rows with B (dY B, or the x B that was kept); else from the
            weight's gradient.
        gathers: products with B are gathered.
    """

    merged_forward: bool

    merged_grad_x: bool

    rows_for_m: bool

    gathers: bool = False


def steps(plan: Plan, tall: bool) -> Steps:
    """Return the steps of `plan`.

    Args:
        plan: the plan.
        tall: whether the layer's output is its longer side.
    """
    if plan == "activation":
        return Steps(False, False, True)
    if plan == "mixed":
        return Steps(tall, not tall, True)
    if plan == "merged":
        return Steps(True, True, False)
    return Steps(True, True, True, gathers=True)
