"""The gather-add products: equal to dense ones, with and without the compiled part."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import randlora
from randlora import RandLoraConfig, attach
from randlora.arithmetic import kernels, ternary
from randlora.arithmetic.bases import Draw, draw
from randlora.arithmetic.contract import Spread, spread_linear, spread_weight
from randlora.arithmetic.plans import choose_plan
from randlora.methods.random.randlora import RandLora
from tests.randlora.support import TARGETS, batch, block, perturb

compiled = pytest.mark.skipif(kernels.load_compiled() is None, reason=f"no compiled part: {kernels.status()}")


def basis(rows: int, cols: int, sparsity: float = 8.0) -> Tensor:
    return draw(0, "B", Draw(rows, cols, "ternary", sparsity=sparsity))


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_lists_hold_the_matrix() -> None:
    b = basis(37, 21)
    found = ternary.make_lists(b)
    assert found is not None
    for signed, matrix in ((found.rows, b), (found.columns, b.t())):
        again = torch.zeros(matrix.shape[0], matrix.shape[1] + 1)
        for start, index, sign in (
            (signed.plus_start, signed.plus, 1.0),
            (signed.minus_start, signed.minus, -1.0),
        ):
            for o in range(signed.outputs):
                again[o, index[int(start[o]) : int(start[o + 1])].long()] = sign * found.value
        assert torch.equal(again[:, :-1], matrix)
    assert found.density == (b != 0).double().mean() and found.relative_time == ternary.GATHER_COST * found.density


def test_what_has_no_lists() -> None:
    assert ternary.make_lists(normal(5, 5)) is None
    assert ternary.make_lists(basis(20, 20, 2.0)) is None  # dense signs
    assert ternary.make_lists(basis(20, 20).double()) is None
    assert ternary.make_lists(torch.zeros(4, 4)) is None


@compiled
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 100), st.booleans(), st.booleans(), st.sampled_from([1, 3])
)
@example(1, 3, 2, False, True, 1)
@settings(max_examples=60, deadline=None)
def test_products(rows: int, cols: int, lanes: int, tall: bool, with_base: bool, threads: int) -> None:
    b = basis(rows, cols, 6.0)
    found = ternary.make_lists(b)
    if found is None:  # too small to have an entry, or too dense by chance
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        m, x = normal(cols, lanes), normal(lanes, rows, seed=1)
        base = normal(rows, lanes, seed=2) if with_base else None
        if base is not None and not tall:
            base = base.t()
        merged = ternary.merge(base, m, found, tall)
        times = ternary.times_b(x, found)
        strided = ternary.times_b(x.t().contiguous().t(), found)
    finally:
        torch.set_num_threads(before)
    delta = b @ m if tall else (b @ m).t()
    torch.testing.assert_close(merged, delta if base is None else base + delta, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(times, (x @ b).t(), rtol=1e-4, atol=1e-4)
    assert torch.equal(strided, times)


@compiled
@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (64, 64)])
@pytest.mark.parametrize("with_base", [True, False])
def test_the_plan_and_the_matrix_form(shape: tuple[int, int], with_base: bool) -> None:
    r, m, large = 7, min(shape), max(shape)
    n = -(-m // r)
    b, a = basis(large, n * r), normal(r, m).sign()
    dense = Spread(a, b, 0.1, shape[0] >= shape[1])
    sparse = dense._replace(compact=ternary.make_lists(b))
    assert sparse.compact is not None
    lam, gam, x = (normal(*size, seed=3).requires_grad_() for size in ((r, n), (n, m), (70, shape[1])))
    base = normal(*shape, seed=4) if with_base else None
    results = []
    for part, plan in ((dense, "merged"), (sparse, "gather")):
        y = spread_linear(x, base, None, (lam, gam), part, plan=plan)  # type: ignore[arg-type]
        weight = spread_weight(base, (lam, gam), part)
        first = torch.autograd.grad(y.square().sum(), (x, lam, gam))
        second = torch.autograd.grad(weight.square().sum(), (lam, gam))
        results.append((y, weight, *first, *second))
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() < 1e-6 * one.norm()


def test_gather_is_chosen_where_it_is_cheap() -> None:
    assert choose_plan(1600, 768, 768, 768, gather_time=0.25) == "gather"
    assert choose_plan(1600, 768, 768, 768, gather_time=1.15) == "merged"
    assert choose_plan(2, 768, 768, 768, gather_time=0.25) == "activation"
    assert choose_plan(1600, 768, 768, 768, training=False, gather_time=0.25) == "gather"


CONFIG = RandLoraConfig(3, distribution="ternary", sparsity=8.0)


def gradients() -> list[Tensor]:
    model = block()
    adapted = attach(model, CONFIG, TARGETS)
    perturb(adapted)
    y = model(batch(rows=30))
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in adapted.parameters() if p.grad is not None)]


@pytest.fixture
def fresh_library() -> Iterator[None]:
    kernels._library.cache_clear()
    yield
    kernels._library.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_the_same_numbers_without_the_compiled_part(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = gradients()
    kernels._library.cache_clear()
    monkeypatch.setenv("RANDLORA_KERNELS", "off")
    without = gradients()
    assert kernels.load_compiled() is None and "RANDLORA_KERNELS" in kernels.status()
    for one, other in zip(with_it, without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


@compiled
def test_lists_follow_the_basis() -> None:
    """Kept while the basis is the same tensor; none in double precision, none for another distribution."""
    model = nn.Sequential(nn.Linear(64, 64))
    adapted = attach(model, CONFIG, ["0"])
    adapter = adapted.adapters["0.weight"]
    assert isinstance(adapter, RandLora)
    first = adapter.part().compact
    assert first is not None and adapter.part().compact is first
    model.double()
    assert adapter.part().compact is None
    model.float()
    assert adapter.part().compact is not None and adapter.part().compact is not first
    adapted.detach()
    dense = attach(model, RandLoraConfig(3), ["0"]).adapters["0.weight"]
    assert isinstance(dense, RandLora) and dense.part().compact is None


@pytest.mark.usefixtures("fresh_library")
def test_no_compiler_and_a_broken_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RANDLORA_KERNELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert kernels.load_compiled() is None and "no C compiler" in kernels.status()
    kernels._library.cache_clear()
    monkeypatch.setattr("shutil.which", lambda name: "/bin/false")
    assert kernels.load_compiled() is None and "failed" in kernels.status()
    kernels._library.cache_clear()
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")  # nothing went wrong, and nothing was made
    assert kernels.load_compiled() is None and "No such file" in kernels.status()
    assert len(gradients()) == 13


@compiled
@pytest.mark.usefixtures("fresh_library")
def test_built_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels.load_compiled() is not None
    (built,) = (tmp_path / "randlora").iterdir()
    monkeypatch.setattr(kernels, "_build", lambda *a: pytest.fail("built again"))
    kernels._library.cache_clear()
    assert kernels.load_compiled() is not None
    # a folder that others can write is not trusted
    (tmp_path / "randlora").chmod(0o777)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with kernels._cache() as folder:
        assert folder != tmp_path / "randlora"
    built.unlink()


@compiled
@pytest.mark.usefixtures("fresh_library")
def test_a_library_cut_short_is_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_build", lambda compiler, target: target.touch())
    assert kernels.load_compiled() is None and "cannot be loaded" in kernels.status()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels._library.cache_clear()
    assert kernels.load_compiled() is not None
    assert len(list((tmp_path / "randlora").iterdir())) == 1


@compiled
@pytest.mark.usefixtures("fresh_library")
def test_without_a_home_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert kernels.load_compiled() is not None
    assert not list(tmp_path.iterdir())
    assert len(gradients()) == 13, "the library outlives its file"
    kernels._library.cache_clear()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert kernels.load_compiled() is None and "missing" in kernels.status()


@compiled
def test_another_version_of_the_compiler_builds_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library, compiler, asked = kernels.load_compiled(), tmp_path / "cc", []
    monkeypatch.setattr(kernels, "_compiler", lambda: str(compiler))
    monkeypatch.setattr(kernels, "_open", lambda _, target: asked.append(target) or library)
    for version in "112":
        compiler.write_text(version)
        os.utime(compiler, (1, 1))
        kernels._load()
    assert asked[0] == asked[1] != asked[2]


@compiled
def test_a_wrong_build_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    library = kernels.load_compiled()
    assert library is not None and ternary._computes_right(ternary.make_lists, torch.device("cpu"), library)
    ternary._computes_right.cache_clear()
    times_b = ternary.times_b
    monkeypatch.setattr(ternary, "times_b", lambda x, found: times_b(x, found) * 1.1)
    try:
        with pytest.warns(UserWarning, match="wrong numbers on cpu and is not used"):
            assert ternary.compact_form(nn.Module(), basis(64, 64), 64, 64) is None
    finally:
        ternary._computes_right.cache_clear()


def test_importing_builds_nothing(tmp_path: Path) -> None:
    root = Path(randlora.__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path)}
    code = "import torch, randlora; randlora.attach(torch.nn.Linear(4, 4), randlora.RandLoraConfig(2), ['weight'])"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert not list(tmp_path.iterdir())
