"""LoRA's other starts and rates against the published formulas and PEFT: first delta, gradient, one step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from randlora import (
    AdapterConfig,
    AdapterError,
    CheckpointError,
    ConfigError,
    InitAbConfig,
    LoraGaConfig,
    LoraPlusConfig,
    MiloraConfig,
    OloraConfig,
    PissaConfig,
    attach,
    load,
    weight_gradients,
)
from randlora.methods.lowrank.starts import Started
from tests.randlora.support import TARGETS, batch, block, perturb

SHAPES = [(7, 13), (13, 7), (11, 11)]
"""(out, in)."""
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
STARTS = [PissaConfig, MiloraConfig, OloraConfig, InitAbConfig, LoraGaConfig]
every_start = pytest.mark.parametrize("kind", STARTS, ids=[kind.method for kind in STARTS])


def layer(shape: tuple[int, int]) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(shape[1], shape[0])).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return made


def rows(width: int) -> Tensor:
    return torch.randn(9, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def backward(model: nn.Module, x: Tensor) -> None:
    (model(x) - 1.0).square().mean().backward()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return weight_gradients(model, ["0"], lambda: backward(model, x))


def started(kind: Any, shape: tuple[int, int], **options: Any) -> tuple[nn.Module, Started, Tensor]:
    """A model with the adapter, the adapter, and the gradient at the base weight."""
    model, x = layer(shape), rows(shape[1])
    gradient = gradients(model, x)
    adapted = attach(model, kind(**{"r": 3, "alpha": 6.0} | options), ["0"], init_seed=5, gradients=gradient)
    adapter = adapted.adapters["0.weight"]
    assert isinstance(adapter, Started)
    return model, adapter, gradient["0.weight"]


@every_shape
def test_the_first_factors_are_the_published_ones(shape: tuple[int, int]) -> None:
    out, width = shape
    base, m = layer(shape)[0].weight.detach(), min(shape)
    u, s, vh = torch.linalg.svd(base, full_matrices=False)

    def product(kind: Any, **options: Any) -> Tensor:
        _, adapter, _ = started(kind, shape, **options)
        assert (adapter.a_start.shape, adapter.b_start.shape) == ((width, 3), (out, 3))
        return adapter.scale * adapter.b_start @ adapter.a_start.t()

    near = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(product(PissaConfig), (u[:, :3] * s[:3]) @ vh[:3], **near)
    torch.testing.assert_close(product(MiloraConfig), (u[:, m - 3 :] * s[m - 3 :]) @ vh[m - 3 :], **near)
    q, upper = torch.linalg.qr(base)
    torch.testing.assert_close(product(OloraConfig), 2.0 * q[:, :3] @ upper[:3], **near)
    torch.testing.assert_close(product(OloraConfig, r=3, alpha=3.0)[:, :3], base[:, :3], **near)  # Q R's first columns

    _, drawn, _ = started(InitAbConfig, shape)
    for factor in (drawn.a_start, drawn.b_start):
        bound = 1 / math.sqrt(width)
        assert 0.5 * bound < float(factor.abs().max()) <= bound
    assert not torch.equal(drawn.a_start[:7], drawn.b_start[:7])

    _, approximated, gradient = started(LoraGaConfig, shape, gamma=4.0)
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    size = out**0.25 / 2.0
    a, b = approximated.a_start / size, approximated.b_start / size
    torch.testing.assert_close((a.t() @ vh[:3].t()).abs(), torch.eye(3).double(), **near)
    torch.testing.assert_close((b.t() @ u[:, 3:6]).abs(), torch.eye(3).double(), **near)


def test_the_gradient_at_a_weight_is_autograds_however_it_is_kept() -> None:
    model, x = block(torch.float64), batch(torch.float64)
    model.own.in_proj_weight.requires_grad_(False)
    found = weight_gradients(model, [*TARGETS[1:5], "attn.in_proj_weight[k,v]"], lambda: backward(model, x))
    assert not model.own.in_proj_weight.requires_grad and model.fc.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    backward(model, x)
    for name in ("attn.out_proj.weight", "fc.weight", "proj.weight", "square.weight"):
        torch.testing.assert_close(found[name], model.get_parameter(name).grad)
    packed = model.attn.in_proj_weight.grad
    assert packed is not None
    torch.testing.assert_close(found["attn.in_proj_weight[k]"], packed[16:32])
    torch.testing.assert_close(found["attn.in_proj_weight[v]"], packed[32:])


@every_start
@every_shape
def test_it_trains_as_pefts_lora_on_the_base_without_the_start(kind: Any, shape: tuple[int, int]) -> None:
    """The published codes write W0 - scale B_0 A_0 into the model, and train a plain LoRA from A_0 and B_0."""
    peft = pytest.importorskip("peft")
    model, adapter, _ = started(kind, shape)
    plain, x = layer(shape), rows(shape[1])
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)  # the first delta
    config = peft.LoraConfig(r=3, lora_alpha=6.0, target_modules=["0"])
    reference = peft.get_peft_model(layer(shape), config).double()
    theirs = dict(reference.named_parameters())
    a, b = (theirs[f"base_model.model.0.lora_{key}.default.weight"] for key in "AB")
    with torch.no_grad():
        theirs["base_model.model.0.base_layer.weight"].sub_(2.0 * adapter.b_start @ adapter.a_start.t())
        a.copy_(adapter.a_start.t())
        b.copy_(adapter.b_start)
    torch.testing.assert_close(reference(x), plain(x), rtol=1e-9, atol=1e-9)
    ours, others = (torch.optim.AdamW(p, lr=0.05, weight_decay=0.0) for p in ([adapter.a, adapter.b], [a, b]))
    for _ in range(2):
        backward(model, x)
        backward(reference, x)
        assert adapter.a.grad is not None and a.grad is not None
        torch.testing.assert_close(adapter.a.grad, a.grad.t(), rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(adapter.b.grad, b.grad, rtol=1e-8, atol=1e-10)
        ours.step()
        others.step()
        ours.zero_grad()
        others.zero_grad()
        torch.testing.assert_close(model(x), reference(x), rtol=1e-7, atol=1e-7)
    assert not torch.allclose(model(x), plain(x), atol=1e-2)


@every_shape
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # PEFT's, on a model of one layer
def test_olora_is_pefts_and_lora_ga_has_its_directions(shape: tuple[int, int]) -> None:
    """PEFT multiplies LoRA-GA's B by the gradient's singular values, and A by nothing; paper and authors do not."""
    peft = pytest.importorskip("peft")
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    _, adapter, _ = started(OloraConfig, shape)
    reference = peft.get_peft_model(
        layer(shape).float(), peft.LoraConfig(r=3, lora_alpha=6.0, init_lora_weights="olora", target_modules=["0"])
    )
    theirs = dict(reference.named_parameters())
    a, b = (theirs[f"base_model.model.0.lora_{key}.default.weight"].detach().double() for key in "AB")
    torch.testing.assert_close(adapter.b_start @ adapter.a_start.t(), b @ a, rtol=1e-4, atol=1e-4)

    _, adapter, _ = started(LoraGaConfig, shape)
    plain, x = layer(shape).float(), rows(shape[1]).float()
    settings = LoraGAConfig(direction="ArB2r", scale="stable")
    config = peft.LoraConfig(r=3, init_lora_weights="lora_ga", lora_ga_config=settings, target_modules=["0"])
    preprocess_loraga(plain, config, lambda: backward(plain, x))
    theirs = dict(peft.get_peft_model(plain, config).named_parameters())
    a, b = (theirs[f"base_model.model.0.lora_{key}.default.weight"].detach().double() for key in "AB")
    for mine, other in ((adapter.a_start, a.t()), (adapter.b_start, b)):
        cosines = nn.functional.cosine_similarity(mine, other, dim=0)
        torch.testing.assert_close(cosines.abs(), torch.ones(3).double(), rtol=1e-4, atol=1e-4)


@every_start
@pytest.mark.filterwarnings("ignore:.*is above 7")
def test_a_rank_above_what_a_start_fills_goes_on_as_lora(kind: Any) -> None:
    """Of a gradient of rank 7 the 6th and 7th left vectors are left for B at r = 5."""
    rank, filled = (5, 2) if kind is LoraGaConfig else (9, 9 if kind is InitAbConfig else 7)
    _, adapter, _ = started(kind, (7, 13), r=rank)
    assert adapter.count() == rank * 20
    assert adapter.a_start.abs().sum(0).min() > 0
    assert adapter.b_start[:, :filled].abs().sum(0).min() > 0 and not adapter.b_start[:, filled:].any()


@every_start
def test_a_file_gives_the_start_back_without_data(kind: Any, tmp_path: Path) -> None:
    model, x = layer((13, 7)), rows(7)
    adapted = attach(model, kind(3), ["0"], init_seed=5, gradients=gradients(model, x))
    perturb(adapted)
    adapted.save(tmp_path)
    again = layer((13, 7))
    load(again, tmp_path)
    torch.testing.assert_close(again(x), model(x), rtol=1e-12, atol=1e-12)
    (tmp_path / "derived.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load(layer((13, 7)), tmp_path)


def test_without_a_gradient_there_is_no_start_of_it() -> None:
    model = layer((7, 13))
    with pytest.raises(ConfigError, match=r"gradients has none for 0\.weight.*weight_gradients.*pissa"):
        attach(model, LoraGaConfig(3), ["0"])
    attach(layer((7, 13)).to("meta"), LoraGaConfig(3), ["0"])  # only counted
    with pytest.raises(AdapterError, match=r"a gradient of zero at 0\.weight"):
        weight_gradients(model, ["0"], lambda: (0.0 * model(rows(13))).sum().backward())
    with pytest.raises(AdapterError, match=r"no gradient at 0\.weight"):
        weight_gradients(model, ["0"], lambda: None)
    with pytest.raises(AdapterError, match=r"not finite at 0\.weight"):
        weight_gradients(model, ["0"], lambda: (math.inf * model(rows(13))).sum().backward())
    attach(model, PissaConfig(3), ["0"])  # it was left as it was


@pytest.mark.parametrize(
    ("kind", "options"),
    [(LoraGaConfig, {"gamma": 0.0}), (LoraGaConfig, {"rows": 0}), (LoraPlusConfig, {"ratio": -1.0})],
)
def test_bad_options_are_refused(kind: type[AdapterConfig], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        kind.from_options(3, options)


@every_shape
def test_lora_plus_steps_as_pefts_optimiser(shape: tuple[int, int]) -> None:
    peft = pytest.importorskip("peft")
    from peft.optimizers import create_loraplus_optimizer

    model, x = layer(shape), rows(shape[1])
    adapted = attach(model, LoraPlusConfig(3, ratio=4.0), ["0"], init_seed=5)
    assert adapted.rate_ratios() == {"0.weight.b": 4.0}
    own = dict(adapted.named_parameters())
    reference = peft.get_peft_model(layer(shape), peft.LoraConfig(r=3, lora_alpha=3, target_modules=["0"])).double()
    theirs = dict(reference.named_parameters())
    a, b = (theirs[f"base_model.model.0.lora_{key}.default.weight"] for key in "AB")
    with torch.no_grad():
        a.copy_(own["0.weight.a"].t())
    groups = [{"params": [p], "lr": 0.01 * adapted.rate_ratios().get(name, 1.0)} for name, p in own.items()]
    ours = torch.optim.AdamW(groups, weight_decay=0.0)
    others = create_loraplus_optimizer(reference, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=4.0)
    for _ in range(2):
        for each, optimiser in ((model, ours), (reference, others)):
            optimiser.zero_grad()
            backward(each, x)
            optimiser.step()
    torch.testing.assert_close(own["0.weight.a"].t(), a, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own["0.weight.b"], b, rtol=1e-9, atol=1e-9)
