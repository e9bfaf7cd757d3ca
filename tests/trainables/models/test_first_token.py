"""The last block of an image tower that is read at its first token: the same numbers for less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from randlora import AdapterConfig, LoraConfig, RandLoraConfig, attach
from randlora.packing.packing import Pack
from trainables.models.forward import first_token_only

SIZES = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "heads": 4, "mlp_ratio": 2.0, "output_dim": 16}


def tower(**changes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = VisionTransformer(**{**SIZES, **changes})
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.2)
    return made.double().eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, x: Tensor, trained: list[nn.Parameter]) -> list[Tensor]:
    """The vectors, and the gradients of a loss of them."""
    y: Tensor = model(x)
    return [y.detach(), *torch.autograd.grad((y**3).sum(), trained, allow_unused=True)]  # type: ignore[list-item]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted) > 1
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"final_ln_after_pool": True}, {"ls_init_value": 0.3}], ids=str)
def test_every_weight_s_gradient_is_that_of_the_whole_block(changes: dict[str, Any]) -> None:
    """As full fine-tuning sees it."""
    model = tower(**changes)
    trained = list(model.parameters())
    wanted = gradients(model, images(), trained)
    with first_token_only(model) as reads_one:
        assert reads_one
        assert_same(gradients(model, images(), trained), wanted)
    assert_same(gradients(model, images(), trained), wanted)


@pytest.mark.parametrize("config", [LoraConfig(2), RandLoraConfig(5)], ids=lambda c: c.method)
@pytest.mark.parametrize("targets", [["attn.in_proj_weight"], ["attn.out_proj", "mlp.c_fc", "mlp.c_proj"]], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_gradients_are_those_of_the_whole_block(
    config: AdapterConfig, targets: list[str], checkpointing: bool
) -> None:
    model = tower()
    model.set_grad_checkpointing(checkpointing)
    adapted = attach(model, config, targets)
    move(adapted.parameters())
    trained = list(adapted.parameters())
    wanted = gradients(model, images(), trained)
    with first_token_only(model):
        assert_same(gradients(model, images(), trained), wanted)


def test_a_pack_s_gradients_are_those_of_the_whole_block() -> None:
    model = tower()
    members = []
    for seed in range(2):
        members.append(attach(model, LoraConfig(2), ["attn.in_proj_weight", "mlp.c_fc"], init_seed=seed))
        move(members[-1].parameters())
        members[-1].disable()
    pack = Pack(members)
    trained = [p for member in members for p in member.parameters()]
    wanted = gradients(model, images(4), trained)
    with first_token_only(model):
        assert_same(gradients(model, images(4), trained), wanted)
    pack.remove()


def test_the_last_mlp_sees_one_token_an_image() -> None:
    model, seen = tower(), []
    for block in model.transformer.resblocks:
        block.mlp.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    with first_token_only(model):
        model(images())
    assert seen == [(3, 5, 32), (3, 1, 32)]


def watched(model: Any) -> Any:
    model.transformer.resblocks[-1].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: tower(pool_type="avg"),
        lambda: tower(attentional_pool=True),
        lambda: tower(output_tokens=True),
        lambda: tower(block_type="custom"),
        lambda: watched(tower()),
        nn.Flatten,
    ],
    ids=["mean of tokens", "attention pool", "tokens too", "custom block", "watched", "no transformer"],
)
def test_any_other_tower_is_left_alone(make: Callable[[], Any]) -> None:
    model = make()
    with first_token_only(model) as reads_one:
        assert not reads_one
        assert all("forward" not in vars(module) for module in model.modules())


def test_the_block_is_given_back_after_an_error() -> None:
    model = tower()
    with pytest.raises(ZeroDivisionError), first_token_only(model):
        raise ZeroDivisionError
    assert all("forward" not in vars(module) for module in model.modules())


def move(parameters: Any) -> None:
    """Away from the start, where deltas are zero."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64), alpha=0.2)
