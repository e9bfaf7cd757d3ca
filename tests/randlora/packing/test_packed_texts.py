"""Slices of unequal length in a pack, and a frozen model's dropout: each slice has what a separate run has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from randlora import AdapterConfig, LoraConfig, RandLoraConfig
from randlora.packing.dropouts import drops_activations
from randlora.packing.packing import Pack, PackingError
from tests.randlora.support import K, config_id, members_of

ROWS, WIDTHS, SIZE, HEADS = 2, (5, 3, 4), 8, 2


class Layer(nn.Module):
    """Causal attention and a linear layer, with every kind of dropout that transformers' models have."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.qkv, self.fc = nn.Linear(SIZE, 3 * SIZE), nn.Linear(SIZE, SIZE)
        self.drop, self.attention_dropout, self.flat = nn.Dropout(0.3), 0.4, flat

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        rate = self.attention_dropout if self.training else 0.0
        y = scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        weights = dropout((q @ k.mT).tril(), 0.2, self.training)
        y = (y + weights @ v).transpose(1, 2).reshape(n, length, -1)
        out: Tensor = self.fc(y.flatten(0, 1)).view(n, length, -1) if self.flat else self.fc(y)
        return out


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(ROWS, width, SIZE, dtype=torch.float64, generator=generator) for width in WIDTHS]


def padded(parts: list[Tensor]) -> Tensor:
    return torch.cat([nn.functional.pad(part, (0, 0, 0, max(WIDTHS) - part.shape[1]), value=3.0) for part in parts])


@pytest.mark.parametrize(
    "config", [LoraConfig(2), LoraConfig(2, dropout=0.5), RandLoraConfig(3, dropout=0.5)], ids=config_id
)
@pytest.mark.parametrize("flat", [False, True], ids=["texts", "tokens"])
def test_slices_of_unequal_length_drop_as_alone(config: AdapterConfig, flat: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Layer(flat).to(torch.float64).train()
        members = members_of(model, config, targets=["qkv", "fc"])
        want, grads = [], []
        for k, (member, part) in enumerate(zip(members, texts(), strict=True)):
            member.enable()
            torch.manual_seed(100 + k)
            for _ in range(2):
                y = model(part)
            grads.append(torch.autograd.grad(y.sin().sum(), list(member.parameters())))
            want.append(y.detach())
            member.disable()
            member.reseed_dropout(0)
        pack = Pack(members)
        pack.together(rows=ROWS, widths=WIDTHS)
        before = torch.get_rng_state()
        with pack.drawing({k: 100 + k for k in range(K)}, torch.device("cpu")):
            for _ in range(2):
                ys = model(padded(texts())).chunk(K)
        assert torch.equal(torch.get_rng_state(), before)
        own = [y[:, :width] for y, width in zip(ys, WIDTHS, strict=True)]
        flat_parameters = [p for member in members for p in member.parameters()]
        found = iter(torch.autograd.grad(torch.stack([y.sin().sum() for y in own]).sum(), flat_parameters))
        pack.remove()
    for k in range(K):
        torch.testing.assert_close(own[k], want[k], rtol=0, atol=1e-10)
        for grad in grads[k]:
            torch.testing.assert_close(next(found), grad, rtol=0, atol=1e-10)


def test_fewer_members_keep_their_own_random_numbers() -> None:
    model = Layer().to(torch.float64).train()
    members = members_of(model, LoraConfig(2), targets=["qkv", "fc"])
    pack = Pack(members)
    part = texts()[2]
    with pack.drawing({2: 102}, torch.device("cpu")):
        pack.together([2], rows=ROWS, widths=[part.shape[1]])
        got = model(part)
    pack.remove()
    members[2].enable()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(102)
        torch.testing.assert_close(got, model(part), rtol=0, atol=1e-10)


def test_other_random_numbers_are_found() -> None:
    class Noisy(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    model = Noisy().to(torch.float64).train()
    pack = Pack(members_of(model, LoraConfig(2), targets=["fc"]))
    for seeds in ({k: k for k in range(K)}, None):
        noticed = pytest.raises(PackingError, match="random numbers that are not dropout's")
        with noticed, pack.drawing(seeds, torch.device("cpu")):
            model(torch.cat(texts()[:1] * K))
    pack.remove()


def test_what_a_model_may_drop() -> None:
    assert not drops_activations(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
    assert drops_activations(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
    assert drops_activations(Layer())
    with pytest.raises(PackingError, match=r"at random \(0\.p = 0\.1\)"):
        drops_activations(nn.Sequential(nn.Dropout2d(0.1)))
    layer = Layer()
    layer.drop_path = 0.1  # type: ignore[assignment]
    with pytest.raises(PackingError, match=r"at random \(its\.drop_path = 0\.1\)"):
        drops_activations(layer)


def test_tensors_whose_rows_are_unknown_are_refused() -> None:
    model = Layer().to(torch.float64).train()
    pack = Pack(members_of(model, LoraConfig(2), targets=["fc"]))
    pack.together(rows=ROWS, widths=WIDTHS)
    with pytest.raises(PackingError, match="9 rows are neither the texts nor the tokens of 3 times 2 texts"):
        model.fc(torch.zeros(9, SIZE, dtype=torch.float64))
    pack.together(rows=ROWS, widths=WIDTHS)
    unknown = pytest.raises(PackingError, match=r"cannot tell which dimension .* has the 5 tokens")
    with pack.drawing({k: k for k in range(K)}, torch.device("cpu")), unknown:
        model.drop(torch.zeros(K * ROWS, 7, SIZE, dtype=torch.float64))
    pack.remove()
