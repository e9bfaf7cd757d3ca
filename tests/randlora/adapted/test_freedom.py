"""What is counted and does not act, against formulas of the methods' geometry."""

from __future__ import annotations

from typing import Any

import pytest

from randlora.adapted.freedom import acting, freedom

SHAPE = (12, 8)


@pytest.mark.parametrize(
    ("name", "capacity", "options", "acts"),
    [
        ("lora", 3, {}, 3 * (20 - 3)),  # G B and A G^-1 are the same update
        ("dora", 3, {}, 3 * (20 - 3) + 12),
        ("peft:lora", 3, {}, 3 * (20 - 3)),
        ("peft:miss", 3, {}, 3 * 12),
        ("peft:waveft", 20, {}, 20),
        ("peft:fourierft", 20, {}, 18),  # two pairs of frequencies are conjugate, and the real part is taken
        ("peft:tinylora", 4, {}, 4),
        ("peft:tinylora", 9, {"r": 2}, 4),  # u beyond r^2
        ("peft:boft", 4, {}, 8 * 3 // 2 + 12),  # whole matrices are stored of which the skew parts act
        ("peft:oft", 4, {}, 8 * 3 // 2),
        ("peft:osf", 5, {}, 3 * 7 + 3 + 3 * 3),  # gradients stay orthogonal to the 5 frozen singular vectors
        ("peft:ia3", 1, {}, 12),
        ("peft:beft", 1, {}, 12),
    ],
)
def test_the_rank_of_the_jacobian(name: str, capacity: int, options: dict[str, Any], acts: int) -> None:
    assert freedom(name, SHAPE, capacity, options) == acts


def test_a_large_weights_share_is_that_of_a_small_one_trained_as_far() -> None:
    assert acting("lora", (768, 768), 96) == pytest.approx(1 - 2 / 32)  # rank 2 of 16, as 96 of 768
    assert acting("peft:miss", (3072, 768), 8) == 1.0
    assert 0.4 < acting("peft:boft", (768, 768), 8) < 0.8
