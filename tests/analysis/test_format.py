"""How sizes and numbers of operations are written."""

from __future__ import annotations

import pytest

from analysis.format import bytes_text, operations


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, ""),
        (512, "512 B"),
        (1024, "1.00 KiB"),
        (123 * 2**20, "123 MiB"),
        (int(999.7 * 2**20), "0.976 GiB"),  # not 1.00e+03 MiB
        (3 * 2**29, "1.50 GiB"),
    ],
)
def test_bytes_have_three_digits_and_a_unit(count: int | None, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, ""), (12, "12.0 FLOP"), (999_700, "1.00 MFLOP"), (12_300_000_000, "12.3 GFLOP")]
)
def test_operations_have_three_digits_and_a_unit(count: int | None, text: str) -> None:
    assert operations(count) == text
