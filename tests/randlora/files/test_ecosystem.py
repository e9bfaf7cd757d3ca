"""Adapters under torch's own machinery: compile, gradient checkpointing, DDP, FSDP2, accumulation, real attention."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from randlora import (
    METHODS,
    AdapterConfig,
    AdapterError,
    LoraConfig,
    RandLoraConfig,
    VeraConfig,
    attach,
    export_merged,
    load,
    resolve_targets,
)
from tests.randlora.methods.support import TARGETS as BRIDGED
from tests.randlora.methods.support import configured, network, rows
from tests.randlora.support import CONFIGS, TARGETS, batch, block, config_id, perturb

ON_PACKED = [c for c in CONFIGS if METHODS[c.method].mergeable]
"""The others refuse weights that are read as matrices."""

# torch warns about its own probing of `.grad` while it traces an autograd.Function
compiles = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def results(model: Any, adapted: Any, x: Tensor) -> list[Tensor]:
    """The output and all gradients of the trainables."""
    for p in adapted.parameters():
        p.grad = None
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in adapted.parameters())]


def assert_close(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=3e-5 * float(b.abs().max()))  # float32 sums in another order


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("config", [LoraConfig(3), RandLoraConfig(5), VeraConfig(5)], ids=config_id)
def test_a_layer_traces_into_one_graph(config: AdapterConfig) -> None:
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
    adapted = attach(model, config, ["*"])
    perturb(adapted)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    eager = results(model, adapted, x)
    assert_close(results(torch.compile(model, backend="aot_eager", fullgraph=True), adapted, x), eager)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("config", ON_PACKED, ids=config_id)
def test_compiled_with_inductor(config: AdapterConfig) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile's CPU back end needs a C++ compiler")
    torch.compiler.reset()
    model, x = block(), batch()
    adapted = attach(model, config, TARGETS)
    perturb(adapted)
    eager = results(model, adapted, x)
    assert_close(results(torch.compile(model), adapted, x), eager)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
def test_gradients_by_torch_func(config: AdapterConfig) -> None:
    """Of all rows, and of each alone; torch refuses RandLoRA's own products."""
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8)).double()
    perturb(attach(model, config, ["0", "2"]))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], rows: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(model, parameters, (rows,))
        return y.square().mean()

    if config.method.startswith(("randlora", "hybrid")):
        with pytest.raises(RuntimeError, match=r"autograd\.Function with functorch"):
            torch.func.grad(loss)(trained, x)
        return
    model(x).square().mean().backward()
    whole, each = torch.func.grad(loss)(trained, x), torch.func.vmap(torch.func.grad(loss), (None, 0))(trained, x)
    for name in trained:
        for found in (whole[name], each[name].mean(0)):
            torch.testing.assert_close(found, model.get_parameter(name).grad)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("config", ON_PACKED, ids=config_id)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(config: AdapterConfig, reentrant: bool) -> None:
    model, x = block(), batch()
    adapted = attach(model, config, TARGETS)
    perturb(adapted)
    plain = results(model, adapted, x)
    assert_close(results(Checkpointed(model, reentrant), adapted, x), plain)


def _distributed(rank: int, world: int, folder: str, kind: str) -> None:
    """One process of data-parallel runs of three steps, a method after another; rank 0 writes the trainables."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    for index, config in enumerate(ON_PACKED):
        model = block(torch.float64)
        adapted = attach(model, config, TARGETS)
        perturb(adapted)
        wrapped: Any
        if kind == "ddp":
            wrapped = nn.parallel.DistributedDataParallel(model)
        else:
            from torch.distributed.fsdp import fully_shard

            wrapped = fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (world,)))
        train(wrapped, rank, world)
        if kind == "fsdp2":
            with torch.no_grad():
                wrapped(batch(torch.float64))  # leaves the weights gathered
            adapted.save(f"{folder}/saved{index}")
            for act in (adapted.deltas, adapted.merge, partial(adapted.export_deltas, folder)):
                with pytest.raises(AdapterError, match=r"cannot .* \(FSDP2\); save\(\) in all of them"):
                    act()
            for export in (adapted.export_peft, partial(export_merged, adapted)):
                with pytest.raises(AdapterError, match=r"cannot export .* \(FSDP2\); save\(\)"):
                    export(f"{folder}/none")
        values = {n: p for n, p in model.named_parameters() if p.requires_grad}
        full = {n: getattr(p, "full_tensor", lambda p=p: p)().detach() for n, p in values.items()}
        if rank == 0:
            torch.save(full, f"{folder}/out{index}.pt")
        # the last owner of gloo's threads waits for them, and where that is DDP it holds the GIL, which they want
        del wrapped, model, adapted, values, full
    dist.destroy_process_group()


def _sharing(rank: int, world: int, folder: str) -> None:
    """One process of runs whose layers share trainables, with the whole model split; rank 0 loads what was saved."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mesh, (x, _) = dist.device_mesh.init_device_mesh("cpu", (world,)), rows()
    for name in ("vblora", "lily", "tinylora", "unilora"):
        alone, model = network(), network()
        attach(alone, configured(name), BRIDGED)
        adapted = attach(model, configured(name), BRIDGED)
        split: Any = fully_shard(model, mesh=mesh)
        for each in (alone, split):
            optimiser = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.1)
            for _ in range(3):
                optimiser.zero_grad()
                each(x).square().mean().backward()
                optimiser.step()
        adapted.save(f"{folder}/{name}")
        if rank == 0:
            again = network()
            load(again, f"{folder}/{name}")
            torch.testing.assert_close(again(x), alone(x), rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        del split, model, adapted
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
def test_layers_that_share_trainables_are_split_with_the_whole_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    torch.multiprocessing.spawn(_sharing, (2, str(tmp_path)), nprocs=2)


def train(model: Any, rank: int = 0, world: int = 1) -> None:
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    x = batch(torch.float64, rows=4)[rank::world]
    for _ in range(3):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()


@pytest.mark.slow
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(kind: str, tmp_path: Path) -> None:
    """Every method, each in DistributedDataParallel and with its weights split (FSDP2), from which it is saved."""
    torch.multiprocessing.spawn(_distributed, (2, str(tmp_path), kind), nprocs=2)
    for index, config in enumerate(ON_PACKED):
        model = block(torch.float64)
        perturb(attach(model, config, TARGETS))
        train(model)
        values = torch.load(tmp_path / f"out{index}.pt", weights_only=True)
        alone = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        assert values.keys() == alone.keys()
        for name, value in values.items():
            torch.testing.assert_close(
                value, alone[name], rtol=1e-7, atol=1e-7, msg=lambda m, c=config, n=name: f"{config_id(c)} {n}: {m}"
            )
        if kind == "fsdp2":
            again = block(torch.float64)
            load(again, tmp_path / f"saved{index}")
            x = batch(torch.float64)
            torch.testing.assert_close(
                again(x), model(x), rtol=1e-6, atol=1e-6, msg=lambda m, c=config: f"{config_id(c)}: {m}"
            )


@pytest.mark.parametrize("config", ON_PACKED, ids=config_id)
def test_separate_projections_of_attention(config: AdapterConfig) -> None:
    """With other widths for keys and values torch keeps q, k and v apart: each can be a target of its own."""
    attention = nn.MultiheadAttention(16, 4, kdim=12, vdim=10, batch_first=True).double()
    shapes = resolve_targets(attention, ["q_proj_weight", "v_proj_weight"])
    assert shapes == {"q_proj_weight": (16, 16), "v_proj_weight": (16, 10)}
    adapted = attach(attention, config, ["q_proj_weight", "v_proj_weight"])
    perturb(adapted)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 5, n, generator=g, dtype=torch.float64) for n in (16, 12, 10))
    y = attention(q, k, v, need_weights=False)[0]
    y.sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in adapted.parameters())
    with adapted.merging():
        torch.testing.assert_close(attention(q, k, v, need_weights=False)[0], y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("config", [LoraConfig(3), VeraConfig(5), RandLoraConfig(4)], ids=config_id)
def test_open_clips_own_attention(config: AdapterConfig) -> None:
    """A bare packed parameter, read by F.linear."""
    transformer = pytest.importorskip("open_clip.transformer")
    torch.manual_seed(0)
    attention = transformer.Attention(16, num_heads=4).double()
    adapted = attach(attention, config, ["in_proj_weight", "out_proj"])
    perturb(adapted)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = attention(x)
    y.sum().backward()
    assert all(p.grad is not None for p in adapted.parameters())
    with adapted.merging():
        torch.testing.assert_close(attention(x), y, rtol=1e-10, atol=1e-10)


def test_file_of_llama_3b_is_small(tmp_path: Path) -> None:
    """Llama-3.2-3B, q and v, r = 32: 9.3 M trained numbers, and no copy of the 60 MB of bases."""
    model = nn.ModuleDict()
    with torch.device("meta"):
        for i in range(28):
            model[f"layers_{i}"] = nn.ModuleDict(
                {"q_proj": nn.Linear(3072, 3072, bias=False), "v_proj": nn.Linear(3072, 1024, bias=False)}
            )
    adapted = attach(model, RandLoraConfig(32), ["q_proj", "v_proj"])
    assert adapted.count() == 9_289_728
    assert sum(p.numel() * p.element_size() for p in adapted.parameters()) < 40_000_000
    # a real file of two of the layers, then by proportion: the header is a few hundred bytes a tensor
    real = nn.ModuleDict({"q_proj": nn.Linear(3072, 3072, bias=False), "v_proj": nn.Linear(3072, 1024, bias=False)})
    folder = attach(real, RandLoraConfig(32), ["q_proj", "v_proj"]).save(tmp_path)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert 28 * size < 40_000_000
