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
gather      W0 + B M                    W0 + B M, dY B or x B      p (2 D q d + N D q) + N q d
==========  ==========================  =========================  ==================================

M and W0 + B M are made again in backward instead of being kept. Kept is x, or for a wide weight the smaller x B.
`gather` is for a ternary B that `ternary` has a kernel for: its products with B cost the part p of dense ones. Where
the delta is not added to W0 (dropout on its input, low precision) "W0 + B M" is B M in a product of its own, for N D d
more each time.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Plan = Literal["activation", "mixed", "merged", "gather"]


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
    }


def choose_plan(
    rows: int,
    large: int,
    small: int,
    inner: int,
    training: bool = True,
    *,
    part: float | None = None,
    apart: bool = False,
) -> Plan:
    """The cheapest plan; where nothing is differentiated only the forward counts.

    `part` is p where `gather` is possible, else None. `apart` as in `plan_costs`.
    """
    if not training:
        own = rows * large * small if apart else 0
        if (1.0 if part is None else part) * large * inner * small + own < rows * inner * (large + small):
            return "merged" if part is None else "gather"
        return "activation"
    costs = _allowed(rows, large, small, inner, part, apart)
    return min(costs, key=costs.__getitem__)


def pays_to_accumulate(
    rows: int, large: int, small: int, inner: int, micro_batches: int, *, part: float | None = None
) -> bool:
    """Whether one W0 + B M for `micro_batches` of `rows` each, gone back through once, beats the cheapest plan.

    It costs N D d for the weight's gradient in every micro-batch, and 2 D q d a step to make it and to go back.
    """
    costs = _allowed(rows, large, small, inner, part, apart=False)
    once = 2 * (1.0 if part is None else part) * large * inner * small
    return micro_batches * rows * large * small + once < micro_batches * min(costs.values())


def _allowed(rows: int, large: int, small: int, inner: int, part: float | None, apart: bool) -> dict[Plan, float]:
    """Costs of the plans to choose from; of equal ones the first is taken."""
    costs: dict[Plan, float] = {**plan_costs(rows, large, small, inner, apart=apart)}
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
    gathers: bool = False


def steps(plan: Plan, tall: bool) -> Steps:
    """What `plan` does on a layer whose output is the longer side, or not."""
    if plan == "activation":
        return Steps(False, False, True)
    if plan == "mixed":
        return Steps(tall, not tall, True)
    if plan == "merged":
        return Steps(True, True, False)
    return Steps(True, True, True, gathers=True)
