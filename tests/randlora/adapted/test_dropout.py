"""Masks of adapter dropout: by seed and number, and the same ones again when gradient checkpointing recomputes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from randlora import Adapted, AdapterConfig, AdapterError, LoraConfig, RandLoraConfig, attach, dropout
from randlora.dropout import Masks
from tests.randlora.support import CONFIGS, batch, block, config_id, perturb

CALLED = ["fc", "proj", "square"]


def dropping(config: AdapterConfig) -> AdapterConfig:
    return type(config).from_options(config.capacity, {**config.options(), "dropout": 0.4})


class Segments(nn.Module):
    """Three blocks in a row, the last one run twice; each run is checkpointed, and all of them together if `nested`."""

    def __init__(self, reentrant: bool | None, nested: bool = False, **settings: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(torch.float64) for _ in range(3)])
        self.reentrant, self.nested, self.settings = reentrant, nested, settings

    def run(self, x: Tensor) -> Tensor:
        for i in (0, 1, 2, 2):
            x = self.again(self.blocks[i], x)
        return x

    def again(self, function: Any, x: Tensor) -> Any:
        if self.reentrant is None:
            return function(x)
        return checkpoint(function, x, use_reentrant=self.reentrant, **self.settings)

    def forward(self, x: Tensor) -> Any:
        return self.again(self.run, x) if self.nested else self.run(x)


def gradients(model: Segments, adapted: Adapted, micro_batches: int = 2) -> list[Tensor]:
    """Several forwards before any backward, and their backwards in the order of the forwards."""
    adapted.reseed_dropout(3)
    losses = [model(batch(torch.float64) * (i + 1)).square().mean() for i in range(micro_batches)]
    for loss in losses:
        loss.backward()
    found = [p.grad.clone() for p in adapted.parameters() if p.grad is not None]
    for p in adapted.parameters():
        p.grad = None
    return [torch.stack([loss.detach() for loss in losses]), *found]


def run(config: AdapterConfig, reentrant: bool | None, nested: bool = False, **settings: Any) -> list[Tensor]:
    model = Segments(reentrant, nested, **settings)
    adapted = attach(model, dropping(config), CALLED)
    perturb(adapted)
    # reentrant checkpointing differentiates nothing where no input asks for it
    model.register_forward_pre_hook(lambda m, args: (args[0].requires_grad_(),))
    results = gradients(model, adapted)
    assert len(results) == 1 + len(list(adapted.parameters()))
    return results


@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_drops_the_same_again(config: AdapterConfig, reentrant: bool) -> None:
    for plain, again in zip(run(config, None), run(config, reentrant), strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-10, atol=1e-10)


def test_checkpoints_within_a_checkpoint() -> None:
    for plain, again in zip(run(LoraConfig(3), None), run(LoraConfig(3), False, nested=True), strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-10, atol=1e-10)


def test_a_checkpoint_that_forgets_the_random_state_is_refused() -> None:
    with pytest.raises(AdapterError, match="preserve_rng_state=True"):
        run(LoraConfig(3), False, preserve_rng_state=False)


def test_masks_do_not_hang_on_the_global_generator() -> None:
    x = torch.ones(50, 40)
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        masks = Masks(0.25, seed=9)
        drawn.append([masks.draw(x) for _ in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    first, second, _ = drawn[0]
    assert not torch.equal(first, second)
    assert first.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((first != 0).double().mean()) == pytest.approx(0.75, abs=0.03)
    masks.reseed(9)
    assert torch.equal(masks.draw(x), first)
    masks.reseed(10)
    assert not torch.equal(masks.draw(x), first)


def test_masks_on_cuda_are_drawn_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake tensors: a mask of the CPU's would have to be copied for every weight and step."""
    asked: list[Any] = []

    class Generator:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def manual_seed(self, seed: int) -> torch.Generator:
            asked.append((self.device, seed))
            return torch.Generator()  # torch makes none of a device that is not there

    monkeypatch.setattr(dropout, "Generator", Generator)
    masks = Masks(0.25, seed=9)
    seeds = [masks.seed() for _ in range(2)]
    monkeypatch.setattr(masks, "seed", iter(seeds).__next__)  # which reads a number, and fake tensors have none
    with FakeTensorMode(), Copies() as copies:
        x = torch.empty(50, 40, device="cuda", dtype=torch.bfloat16)
        drawn = [masks.draw(x) for _ in seeds]
    assert all((m.device, m.dtype, m.shape) == (x.device, x.dtype, x.shape) for m in drawn)
    assert asked == [(x.device, seed) for seed in seeds]
    assert not copies.between_devices


class Copies(TorchDispatchMode):
    """Counts copies from one device to another."""

    between_devices = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ == "_to_copy":
            self.between_devices += found.device != args[0].device
        return found


def test_masks_on_the_cpu_are_what_they_were() -> None:
    kept = Masks(0.25, seed=9).draw(torch.ones(24)) != 0
    assert "".join(str(int(bit)) for bit in kept) == "011110101111111110111111"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("config", [LoraConfig(3), RandLoraConfig(5)], ids=config_id)
def test_compiled_layers_drop_as_eager_ones(config: AdapterConfig) -> None:
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
    adapted = attach(model, dropping(config), ["*"])
    perturb(adapted)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    compiled: Any = torch.compile(model, backend="aot_eager")
    outputs = []
    for function in (model, compiled):
        adapted.reseed_dropout(1)
        outputs.append(function(x))
        outputs[-1].sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1])
