"""Bases: every bit held by golden digests, moments, and independence from the size of the matrix."""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import pytest
import torch

from randlora import ConfigError
from randlora.arithmetic.bases import DISTRIBUTIONS, Bases, Draw, _log, _normal, draw, random_bits

# sha256 of the float32 bytes of draw(seed=7, stream="B", 257 x 131). A change is a change of GENERATOR_VERSION.
GOLDEN = {
    "uniform": "f51dab3236ef6e31c29bda07b29bf44f299f58aae1530c8b09d12518c6196e75",
    "normal": "d1e8099f58caec00991b9cfb43901dec81ee320150389f72bcbaf630212c2ab0",
    "binary": "fd901c631120a0e6b12936951b102af892b63bd7352ce4b96d86341a197c7af6",
    "ternary": "a3c923d2efec572e460b448530eac847e80dbe096d326c822f29993b93dc03c9",
}


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_golden_digest(distribution: str) -> None:
    assert digest(draw(7, "B", Draw(257, 131, distribution))) == GOLDEN[distribution]


def test_digest_of_the_pair() -> None:
    draws = {"A": Draw(6, 64), "B": Draw(96, 66, "normal", std=0.5)}
    bases = Bases(3, draws, torch.device("cpu"), torch.float32)
    assert bases.digest() == "c84ed361ceba5d47e1bf0f52677f7a50e9f4012d769352d5f2054e686e1312b2"
    assert Bases(4, draws, torch.device("cpu"), torch.float32).digest() != bases.digest()


def test_splitmix_by_hand() -> None:
    """The tensor code against SplitMix64 in Python's integers."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    key = int.from_bytes(hashlib.sha256(b"1\x1f11\x1fA").digest()[:8], "little")
    bits = random_bits(11, "A", range(0, 3), 4)
    for i in range(3):
        row = mix((key + (i + 1) * golden) & mask)
        for j in range(4):
            assert int(bits[i, j]) & mask == mix((row + (j + 1) * golden) & mask)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_moments(distribution: str) -> None:
    x = draw(0, "A", Draw(800, 500, distribution, sparsity=6.0)).double()
    fourth = {"uniform": 9 / 5, "normal": 3.0, "binary": 1.0, "ternary": 3.0}[distribution]
    assert abs(x.mean()) < 0.006
    assert abs(x.var() - 1.0) < 0.01
    assert abs(x.pow(4).mean() - fourth) < 0.05
    correlation = torch.corrcoef(x[:50])
    assert (correlation - torch.eye(50)).abs().max() < 0.25


def test_normal_is_the_inverse_cdf() -> None:
    bits = random_bits(1, "z", range(0, 60), 50)
    extremes = torch.tensor([[0, -1, 1 << 40, 5 << 32, 1 << 62]])
    for values in (bits, extremes):
        p = ((values >> 32) & 0xFFFFFFFF).double().add(0.5).mul(2.0**-32).flatten().tolist()
        expected = torch.tensor([NormalDist().inv_cdf(v) for v in p])
        torch.testing.assert_close(_normal(values).flatten(), expected, rtol=1e-6, atol=1e-7)


def test_log_by_correctly_rounded_operations() -> None:
    x = torch.cat([torch.logspace(-12, 0, 4001, dtype=torch.float64), torch.tensor([0.5, 0.25, 2.0**-33]).double()])
    torch.testing.assert_close(_log(x), torch.log(x), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("sparsity", [2.0, 6.0, 27.7])
def test_ternary_density(sparsity: float) -> None:
    x = draw(0, "B", Draw(600, 600, "ternary", sparsity=sparsity))
    assert abs((x != 0).double().mean().item() - 2 / sparsity) < 0.005
    assert set(x.abs().unique().tolist()) <= {0.0, torch.tensor((sparsity / 2) ** 0.5).item()}


def test_larger_basis_contains_the_smaller() -> None:
    small, large = draw(5, "B", Draw(7, 9)), draw(5, "B", Draw(3000, 501))
    assert torch.equal(large[:7, :9], small)


def test_streams_and_seeds_differ() -> None:
    one = draw(5, "A", Draw(8, 8))
    assert not torch.equal(one, draw(5, "B", Draw(8, 8)))
    assert not torch.equal(one, draw(6, "A", Draw(8, 8)))


def test_never_in_a_state_dict_and_one_cast() -> None:
    bases = Bases(0, {"A": Draw(4, 4)}, torch.device("cpu"), torch.float32)
    assert not bases.state_dict()
    assert bases.get("A", torch.bfloat16) is bases.get("A", torch.bfloat16)


def test_meta_device_draws_nothing() -> None:
    bases = Bases(0, {"A": Draw(1 << 20, 1 << 12)}, torch.device("meta"), torch.float32)
    assert bases.get("A").shape == (1 << 20, 1 << 12)


def test_unknown_distribution_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'unifrom'.*nearest: 'uniform'"):
        draw(0, "A", Draw(2, 2, "unifrom"))
    with pytest.raises(ConfigError, match=r"sparsity must be at least 2 .* but got 1\.0"):
        draw(0, "A", Draw(2, 2, "ternary", sparsity=1.0))
