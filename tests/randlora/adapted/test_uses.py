"""An adapter is right however the model uses its layer, and one that takes no part is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from randlora import (
    AdapterError,
    ConfigError,
    DoraConfig,
    HydraLoraConfig,
    IdleAdapterError,
    LoraConfig,
    RandLoraConfig,
    TargetError,
    attach,
    check_used,
)
from randlora.adapted.uses import _CALLS, _READS
from tests.randlora.support import perturb, stored

WIDTH = 16


def rows(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, WIDTH)), generator=torch.Generator().manual_seed(1))


class Readers(nn.Module):
    """Calls one layer, reads the weight of another, does either with a third, and does nothing with the last."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.either, self.idle = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.reads = False

    def forward(self, x: Tensor) -> Tensor:
        x = linear(self.called(x), self.read.weight, self.read.bias)
        return linear(x, self.either.weight, self.either.bias) if self.reads else self.either(x)


class Experts(nn.Module):
    """Sends every row to one expert by its values."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for index in (x[:, 0] > 0).long().unique().tolist():
            x = x + self.experts[index](x)
        return x


def seeded(make: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def check_right(model: nn.Module, targets: list[str], run: Callable[[], Tensor]) -> None:
    """The adapters take part, and the model computes what it computes with their deltas merged; nothing is left."""
    plain, state = run().detach(), {name: t.clone() for name, t in model.state_dict().items()}
    for config in (LoraConfig(2), DoraConfig(2), RandLoraConfig(3)):
        adapted = attach(model, config, targets)
        perturb(adapted, 0.2)
        check_used(adapted, run)
        y = run()
        y.square().sum().backward()
        assert not torch.allclose(y, plain, rtol=1e-3), config
        assert all(p.grad is not None for p in adapted.parameters()), config
        with torch.no_grad():
            torch.testing.assert_close(run(), y, rtol=1e-4, atol=1e-5)
        with adapted.merging():
            torch.testing.assert_close(run(), y, rtol=1e-4, atol=1e-5)
        adapted.detach()
    assert torch.equal(run(), plain)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("reads", [False, True])
def test_called_read_or_either(reads: bool) -> None:
    model = seeded(Readers)
    model.reads = reads
    check_right(model, ["called", "read", "either"], lambda: model(rows()))


class ParallelReader(nn.Module):
    """A Conv1D of transformers whose weight is read."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = pytest.importorskip("transformers.pytorch_utils").Conv1D(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.c_attn.weight + self.c_attn.bias


def test_a_conv1d_that_is_read() -> None:
    model = seeded(ParallelReader)
    check_right(model, ["c_attn"], lambda: model(rows()))


def timm_model(name: str, **sizes: Any) -> nn.Module:
    model: nn.Module = pytest.importorskip("timm").create_model(name, num_classes=3, embed_dim=16, **sizes)
    perturb(model.parameters(), 0.2)  # Swin V2's blocks do nothing at first
    return model


def swin() -> nn.Module:
    return timm_model("swinv2_tiny_window8_256", img_size=32, depths=(1,), num_heads=(2,))


def torchvision_swin() -> nn.Module:
    kind = pytest.importorskip("torchvision.models").SwinTransformer
    model: nn.Module = kind([4, 4], 16, [2], [2], [7, 7], num_classes=3)
    return model


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 4, 24, dropout=0.0, batch_first=True)


def hf(name: str, **settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    model: nn.Module = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name, **settings))
    return model


def mamba() -> nn.Module:
    return hf("mamba", hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=4, vocab_size=64)


def bloom(tp: int, exact: bool) -> nn.Module:
    return hf("bloom", hidden_size=16, n_layer=1, n_head=2, vocab_size=64, pretraining_tp=tp, slow_but_exact=exact)


IDS = torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "targets", "run"),
    [
        (swin, ["attn.qkv"], lambda model: model(rows(2, 3, 32, 32))),
        (
            lambda: timm_model("eva02_tiny_patch14_224", img_size=28, depth=1, num_heads=2),
            ["attn.qkv"],
            lambda model: model(rows(2, 3, 28, 28)),
        ),
        (torchvision_swin, ["attn.qkv", "attn.proj"], lambda model: model(rows(2, 3, 32, 32))),
        (encoder_layer, ["linear1", "linear2", "in_proj_weight", "out_proj"], lambda model: model(rows(2, 5, WIDTH))),
        (mamba, ["in_proj", "x_proj", "dt_proj", "out_proj"], lambda model: model(IDS)[0]),
        (lambda: bloom(1, False), ["dense", "dense_4h_to_h"], lambda model: model(IDS)[0]),
        (lambda: bloom(2, True), ["dense", "dense_4h_to_h"], lambda model: model(IDS)[0]),
    ],
    ids=[
        "timm's Swin V2",
        "timm's EVA",
        "torchvision's Swin",
        "TransformerEncoderLayer",
        "Mamba",
        "Bloom",
        "Bloom, read in slices",
    ],
)
def test_classes_of_libraries_that_read_their_children(
    make: Callable[[], nn.Module], targets: list[str], run: Callable[[nn.Module], Tensor]
) -> None:
    model = seeded(make)
    check_right(model, targets, lambda: run(model))


def test_attention_in_its_fast_path() -> None:
    model, x = seeded(lambda: nn.MultiheadAttention(WIDTH, 4, batch_first=True)), rows(2, 5, WIDTH)
    check_right(model, ["in_proj_weight", "out_proj"], lambda: model(x, x, x)[0])


def test_the_weight_is_read_as_w0_plus_delta_and_stored_as_w0() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(WIDTH, 24)))
    own = model[0].weight
    adapted = attach(model, LoraConfig(2), ["0"])
    perturb(adapted)
    assert stored(model[0]) is own and adapted.sites["0.weight"].parameter is own
    torch.testing.assert_close(model[0].weight, own + adapted.deltas()["0.weight"])
    model.load_state_dict({name: 2 * t for name, t in model.state_dict().items()}, assign=True)
    assert torch.equal(stored(model[0]), 2 * own)
    model[0].weight = own
    assert stored(model[0]) is own
    model.double().float()
    adapted.detach()
    assert type(model[0]) is nn.Linear and model[0].weight is own


def test_tied_weights_differ_where_one_is_adapted() -> None:
    model = seeded(lambda: nn.ModuleDict({"embed": nn.Embedding(24, WIDTH), "head": nn.Linear(WIDTH, 24, bias=False)}))
    model["embed"].weight = model["head"].weight
    with pytest.warns(UserWarning, match="is tied"):
        adapted = attach(model, LoraConfig(2), ["embed.weight"])
    perturb(adapted)
    check_used(adapted, lambda: model["embed"](IDS % 24))
    with pytest.raises(IdleAdapterError, match=r"embed\.weight"):
        check_used(adapted, lambda: model["head"](rows()))


def test_an_idle_adapter_is_named() -> None:
    model = seeded(Readers)
    adapted = attach(model, LoraConfig(2), ["called", "idle"])
    with pytest.raises(IdleAdapterError, match=r"idle\.weight .* Linear, its module, and Readers around it"):
        check_used(adapted, lambda: model(rows()))
    check_used(adapted, lambda: model.idle(model(rows())))


def test_an_expert_that_no_token_reached_is_told() -> None:
    model = seeded(Experts)
    adapted = attach(model, LoraConfig(2), ["experts.*"])
    with pytest.warns(UserWarning, match=r"no input reached the adapters of experts\.0\.weight, experts\.2\.weight"):
        check_used(adapted, lambda: model(torch.ones(2, WIDTH)))
    adapted.detach()
    adapted = attach(model, LoraConfig(2), ["experts.*", "head"])
    with pytest.raises(IdleAdapterError, match=r"head\.weight"), pytest.warns(UserWarning, match="no input reached"):
        check_used(adapted, lambda: model(torch.ones(2, WIDTH)))


def test_parts_take_part_one_by_one() -> None:
    model = seeded(lambda: nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH)}))
    adapted = attach(model, LoraConfig(2), ["qkv[q,v]"])
    perturb(adapted)
    check_used(adapted, lambda: model["qkv"].weight.sum() + 0.0)
    delta = (model["qkv"].weight - stored(model["qkv"])).detach()
    assert delta[:WIDTH].any() and not delta[WIDTH : 2 * WIDTH].any()


@pytest.mark.parametrize("config", [LoraConfig(2, dropout=0.5), HydraLoraConfig(2)], ids=["dropout", "no matrix"])
def test_what_needs_a_called_layer_is_refused_where_it_is_only_read(config: Any) -> None:
    model = seeded(Readers)
    adapted = attach(model, config, ["read"])
    with pytest.raises(ConfigError, match=r"read\.weight is read as a matrix"):
        check_used(adapted, lambda: model(rows()))
    adapted.detach()
    adapted = attach(model, config, ["called"])
    check_used(adapted, lambda: model(rows()))


@pytest.mark.parametrize("config", [LoraConfig(2, dropout=0.5), HydraLoraConfig(2)], ids=["dropout", "no matrix"])
def test_a_called_layer_may_be_read_too(config: Any) -> None:
    """T5 reads the type of a weight before it calls the layer."""
    model = seeded(Readers)
    adapted = attach(model, config, ["called"])
    check_used(adapted, lambda: model(rows().to(model.called.weight.dtype)))


def test_a_gradient_through_an_update_that_is_no_matrix_is_an_error() -> None:
    model = seeded(Readers)
    attach(model, HydraLoraConfig(2), ["called", "read"])
    assert model.read.weight.shape == (WIDTH, WIDTH)
    with pytest.raises(ConfigError, match="the update of HydraLora is no matrix"):
        model(rows()).sum().backward()


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.parametrize("before", [False, True], ids=["attach first", "compile first"])
@pytest.mark.parametrize("whole", [False, True], ids=["module.compile", "torch.compile"])
def test_a_compiled_model(before: bool, whole: bool) -> None:
    model, x = seeded(Readers), rows()
    targets = ["called", "read", "either"]

    def compiled() -> Any:
        if whole:
            return torch.compile(model, backend="eager", fullgraph=True)
        model.compile(backend="eager", fullgraph=True)
        return model

    run = compiled() if before else model
    plain = run(x).detach()
    adapted = attach(model, LoraConfig(2), targets)
    perturb(adapted, 0.2)
    run = run if before else compiled()
    check_used(adapted, lambda: run(x))
    y = run(x)
    y.sum().backward()
    assert not torch.allclose(y, plain, rtol=1e-3) and all(p.grad is not None for p in adapted.parameters())
    with adapted.merging():
        torch.testing.assert_close(run(x), y, rtol=1e-4, atol=1e-5)
    adapted.detach()
    assert torch.equal(run(x), plain)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_scripts_are_refused() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH)))
    with pytest.raises(TargetError, match=r"0\.weight belongs to a scripted or traced module"):
        attach(torch.jit.script(model), LoraConfig(2), ["0"])
    with pytest.raises(TargetError, match="scripted or traced"):
        attach(torch.jit.trace(model, rows()), LoraConfig(2), ["0"])
    adapted = attach(model, LoraConfig(2), ["0"])
    with pytest.raises(AdapterError, match=r"torch\.jit\.script cannot compile a model with adapters \(Lora\)"):
        torch.jit.script(model)
    with adapted.merging():
        assert torch.equal(torch.jit.script(model)(rows()), model(rows()))


def test_a_method_without_a_matrix_is_never_left_out_of_a_fast_path() -> None:
    """Without gradients, torch's fast path reads the weights of the feed-forward layers."""
    model = seeded(encoder_layer).eval()
    x = rows(2, 5, WIDTH)
    adapted = attach(model, HydraLoraConfig(2), ["linear1", "linear2"])
    perturb(adapted)
    expected = model(x).detach()
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
            assert model.linear1.weight.dtype == torch.float32 and model.linear1.weight.shape == (24, WIDTH)
            with pytest.raises(ConfigError, match="is no matrix"):
                x @ model.linear1.weight.t()


def test_a_replica_of_data_parallel_has_the_tensor_that_it_was_given() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH)))
    attach(model, LoraConfig(2), ["0"])
    replica = model[0]._replicate_for_data_parallel()  # as torch.nn.parallel.replicate does, on one device
    replica.weight = 2 * stored(model[0])
    replica.bias = model[0].bias
    replica.adapter = model[0].adapter
    expected = 2 * linear(rows(), stored(model[0])) + model[0].bias
    torch.testing.assert_close(replica(rows()), expected)


def test_nothing_of_a_recording_is_left() -> None:
    model = seeded(Readers)
    adapted = attach(model, LoraConfig(2), ["called"])
    check_used(adapted, lambda: model(rows()))
    assert not {*_CALLS, *_READS} & vars(adapted.adapters["called.weight"]).keys()
