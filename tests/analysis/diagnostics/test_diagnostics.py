"""Diagnostics: identities of the measures, and every verb on tiny trained weights."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from analysis import StoreError, open_store
from analysis.diagnostics.analyze import analyze
from analysis.diagnostics.cka import minibatch_cka, unbiased_hsic
from analysis.diagnostics.full_rank import collinear_bound
from analysis.diagnostics.landscape import barrier, barycentric, mix_states, ticks
from analysis.diagnostics.spectrum import (
    effective_rank,
    lora_errors,
    numerical_rank,
    randlora_bound,
    randlora_error,
    stable_rank,
    subspace_overlap,
    vera_error,
)
from analysis.diagnostics.weights import confirmed_as_trained
from analysis.findings.diagnostics.sheets import CORNERS
from randlora import RandLoraConfig
from sweeps.cli.main import app


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- spectrum


def test_ranks_of_known_matrices() -> None:
    flat, one = torch.ones(7), torch.tensor([3.0, 0.0, 0.0])
    assert stable_rank(flat) == pytest.approx(7) and effective_rank(flat) == pytest.approx(7)
    assert stable_rank(one) == pytest.approx(1) and effective_rank(one) == pytest.approx(1)
    assert stable_rank(torch.zeros(4)) == effective_rank(torch.zeros(4)) == 0.0
    low = draw(20, 3) @ draw(3, 15, seed=1)
    assert numerical_rank(torch.linalg.svdvals(low), (20, 15)) == 3


def test_lora_errors_are_those_of_the_truncated_svd() -> None:
    matrix = draw(12, 9)
    errors = lora_errors(torch.linalg.svdvals(matrix))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    for r in range(10):
        best = (u[:, :r] * s[:r]) @ vh[:r]
        assert errors[r] == pytest.approx(float((matrix - best).norm() / matrix.norm()), abs=1e-6)
    assert errors[0] == pytest.approx(1.0) and errors[9] == 0.0


def test_overlap_of_a_subspace_with_itself_and_with_its_complement() -> None:
    q, _ = torch.linalg.qr(draw(16, 16))
    a, b = q[:, :8] @ draw(8, 12, seed=1), q[:, 8:] @ draw(8, 12, seed=2)
    assert subspace_overlap(a, 3 * a, k=8) == pytest.approx(1.0)
    assert subspace_overlap(a, b, k=8) == pytest.approx(0.0, abs=1e-9)
    assert subspace_overlap(a[:, :2], b, k=8) is None


def test_a_fit_recovers_what_its_form_can_hold() -> None:
    from torch import nn

    import randlora

    for shape in ((16, 12), (12, 16)):  # tall, and transposed
        host = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
        adapted = randlora.attach(host, RandLoraConfig(r=4), ["0.weight"], basis_seed=0)
        with torch.no_grad():
            for i, p in enumerate(adapted.parameters()):
                p.copy_(draw(*p.shape, seed=i))
        made = adapted.deltas()["0.weight"].detach()
        count, error = randlora_error(made, 4, sweeps=400, settle=1e-9)
        assert count == adapted.count() and error < 0.05


def test_a_vera_is_recovered_and_noise_is_not() -> None:
    from torch import nn

    import randlora

    for shape in ((16, 12), (12, 16)):
        host = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
        adapted = randlora.attach(host, randlora.VeraConfig(r=shape[1]), ["0.weight"], basis_seed=0)
        with torch.no_grad():
            for i, p in enumerate(adapted.parameters()):
                p.copy_(draw(*p.shape, seed=i))
        made = adapted.deltas()["0.weight"].detach()
        count, error = vera_error(made, shape[1], sweeps=400, settle=1e-9)
        assert count == adapted.count() == sum(shape) and error < 0.05
        noise = vera_error(draw(*shape, seed=7), shape[1])[1]
        assert (1 - count / made.numel()) ** 0.5 - 0.15 < noise < 1  # so many of its dimensions, about
    assert vera_error(torch.zeros(4, 4), 4) == (0, 0.0)


def test_a_fit_of_noise_is_as_good_as_its_dimensions_allow() -> None:
    """Rank 1 spans 12 random directions of 24: half of a random matrix's squares are out of reach."""
    noise = draw(24, 12, seed=3)
    count, error = randlora_error(noise, 1)
    assert count == 12 * 13 and error == pytest.approx(0.5**0.5, abs=0.08)
    assert randlora_error(torch.zeros(4, 4), 1) == (0, 0.0)
    errors = [randlora_error(noise, r)[1] for r in (12, 6, 3)]
    bounds = [randlora_bound(noise, r) for r in (12, 6, 3)]
    assert all(error <= bound for error, bound in zip(errors, bounds, strict=True))
    assert bounds[0] == pytest.approx(errors[0], rel=1e-6)  # n = 1: the theorem's parts are the whole
    assert randlora_bound(torch.zeros(4, 4), 1) == 0.0
    assert errors == sorted(errors, reverse=True)  # more parameters, less error


# -- CKA


def test_cka_identities() -> None:
    x, y = draw(60, 5), draw(60, 7, seed=1)
    rotation, _ = torch.linalg.qr(draw(5, 5, seed=2))
    assert minibatch_cka([(x, x)]) == pytest.approx(1.0)
    assert minibatch_cka([(x, 3 * x @ rotation + 2)]) == pytest.approx(1.0, abs=1e-5)  # rotation, scale, shift
    assert minibatch_cka([(x, y)]) == pytest.approx(minibatch_cka([(y, x)]))


def test_unbiased_cka_of_unrelated_features_is_about_zero() -> None:
    pairs = [(draw(20, 100, seed=2 * i), draw(20, 100, seed=2 * i + 1)) for i in range(20)]
    assert abs(minibatch_cka(pairs)) < 0.05


def test_unbiased_hsic_against_the_definition_by_permutations() -> None:
    """HSIC_1 is the mean over all ordered 4-tuples of distinct rows of k_ij (l_ij + l_qr - 2 l_iq)."""
    x, y = draw(5, 3), draw(5, 2, seed=4)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    from itertools import permutations

    tuples = list(permutations(range(5), 4))
    wanted = sum(float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])) for i, j, q, r in tuples) / len(tuples)
    assert float(unbiased_hsic(k, l)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("value", [1.0, 0.1, 1e-3, 123.456, 1e8])
def test_constant_features_have_no_cka(value: float) -> None:
    x, constant = draw(8, 3), torch.full((8, 5), value)
    noise = constant * (1 + 1e-7 * draw(8, 5))
    for features in (constant, noise):
        for pair in ((x, features), (features, x), (features, features)):
            with pytest.raises(ValueError, match="features that differ between examples"):
                minibatch_cka([pair, pair])


def test_minibatches_agree_with_the_whole() -> None:
    x = draw(400, 6)
    y = x + 0.5 * draw(400, 6, seed=9)
    whole = minibatch_cka([(x, y)])
    parts = minibatch_cka(zip(x.split(40), y.split(40), strict=True))
    assert parts == pytest.approx(whole, abs=0.02)


def test_cka_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="same examples"):
        minibatch_cka([(draw(5, 2), draw(6, 2))])
    with pytest.raises(ValueError, match="differ between examples"):
        minibatch_cka([(torch.zeros(5, 2), draw(5, 2))])
    with pytest.raises(ValueError, match="at least 4"):
        minibatch_cka([(draw(3, 2), draw(3, 2))])


# -- landscape


def test_corners_are_the_models() -> None:
    for i, (x, y) in enumerate(CORNERS.values()):
        assert barycentric(x, y) == pytest.approx(tuple(float(k == i) for k in range(3)))
    assert sum(barycentric(0.3, 1.7)) == pytest.approx(1.0)
    base = {"w": draw(3, 3), "b": draw(3)}
    states = [{"w": draw(3, 3, seed=i)} for i in (1, 2)] + [{"w": draw(3, 3, seed=3), "b": draw(3, seed=4)}]
    at = mix_states(states, base, (1.0, 0.0, 0.0))
    assert torch.equal(at["w"], states[0]["w"]) and torch.equal(at["b"], base["b"])
    half = mix_states(states, base, (0.0, 0.5, 0.5))
    assert torch.allclose(half["b"], 0.5 * (base["b"] + states[2]["b"]))


def test_the_bound_on_collinear_rows_is_appendix_c6s() -> None:
    """Near 8e-44 in the paper for ViT-B/32, s = sqrt(768); the formula gives 6.5e-44 (docs/methods.md)."""
    assert 10 ** collinear_bound(768, 768, math.sqrt(768)) == pytest.approx(6.5e-44, rel=0.01)
    draws = torch.randint(0, 3, (4000, 2, 3), generator=torch.Generator().manual_seed(0)) - 1  # s = 3
    pairs = (draws[:, 0] == draws[:, 1]).all(-1) | (draws[:, 0] == -draws[:, 1]).all(-1)
    assert float(pairs.float().mean()) == pytest.approx(10 ** collinear_bound(2, 3, 3.0), rel=0.15)


def test_the_grid_is_the_papers_seen_from_behind() -> None:
    """25 x 25 points; the released code has x in [-1, 1.5) and y in [-0.5, 2), RandLoRA at (0, 0), LoRA at (1, 0)."""
    across, up = ticks(25)
    assert [1 - x for x in across][::-1] == pytest.approx([-1 + i / 10 for i in range(25)])
    assert up == pytest.approx([-0.5 + i / 10 for i in range(25)])


def test_barrier_heights() -> None:
    assert barrier([1.0, 0.9, 0.8]) == pytest.approx(0.0, abs=1e-12)
    assert barrier([1.0, 3.0, 2.0]) == pytest.approx(1.5)
    assert barrier([2.0, 0.0, 2.0]) == 0.0


# -- what is kept


def test_a_kept_trial_has_the_seeds_that_it_trained_with(folder: Any, tmp_path: Path) -> None:
    """Tables have the declared seeds; its data and its head are those of the journaled configuration."""
    folder = shutil.copytree(folder, tmp_path / "r")
    journal = folder / "journal.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    for event in events:
        if event["ev"] == "ask":
            event["config"] |= {"data_seed": 77, "init_seed": 78, "basis_seed": 79}
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    trained = confirmed_as_trained(open_store(folder))
    assert {(row["data_seed"], row["init_seed"], row["basis_seed"]) for row in trained} == {(77, 78, 79)}
    assert {row["data_seed"] for row in open_store(folder).table("confirmed").to_pylist()} == {0, 1, 2}


def test_without_kept_weights_the_verbs_say_what_to_set(folder: Any) -> None:
    with pytest.raises(StoreError, match="full = true"):
        analyze(open_store(folder), "spectrum")
    done = CliRunner().invoke(app, ["analyze", "spectre", str(folder)])
    assert done.exit_code == 2 and "spectrum" in done.output + (done.stderr or "")
