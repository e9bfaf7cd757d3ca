"""Prompt learning: counts, starts, both towers by hand, prompts beside adapters, files, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn

from randlora import METHODS, AdapterError, TargetError, UnknownMethodError, attach, get_method, load
from randlora.adapted.adapted import Adapted
from randlora.methods.prompts.kinds import WORDS
from randlora.methods.prompts.learners import CoCoOp, GaussianAverage, MaPLe, PromptSRC
from randlora.model.prompted import PLACE, Place, Prompts, place_of, with_room
from tests.randlora.support import perturb

VIT_B32 = Place(768, 512, joint=512, layers=12, room=38)
RELEASED = [  # method, its released size, parameters of the released modules: vectors, and linear layers with biases
    ("prompt:coop", 4, 4 * 512),
    ("prompt:coop", 16, 16 * 512),
    ("prompt:cocoop", 4, 4 * 512 + (512 * 32 + 32) + (32 * 512 + 512)),
    ("prompt:maple", 2, 9 * (2 * 512) + 9 * (512 * 768 + 768)),
    ("prompt:maple-depth", 9, 9 * (2 * 512) + 9 * (512 * 768 + 768)),
    ("prompt:promptsrc", 4, 9 * (4 * 512) + 9 * (4 * 768)),
]
BUILT = [  # method, capacity, options
    ("prompt:coop", 1, {}),
    ("prompt:coop", 7, {}),
    ("prompt:cocoop", 4, {}),
    ("prompt:maple", 2, {}),
    ("prompt:maple", 3, {"depth": 1}),
    ("prompt:maple-depth", 2, {"tokens": 3}),
    ("prompt:promptsrc", 4, {}),
    ("prompt:promptsrc-depth", 1, {}),
    ("prompt:maple+dept", 2, {}),
    ("prompt:coop+lora", 2, {"tokens": 4}),
    ("prompt:maple+randlora", 5, {"tokens": 2, "depth": 2}),
]
TARGETS = ["attn.in_proj_weight", "mlp.c_fc"]
REFUSED = [
    ("prompt:coopp", "nearest: 'coop'"),
    ("prompt:coop-depth", "unknown method"),
    ("prompt:coop+dept+dept", "more than once; nearest: 'prompt:coop\\+dept'"),
    ("prompt:coop+lra", "nearest: 'lora'"),
    ("prompt:coop+lora+dora", "is not a method"),
    ("prompt:promptsrc+lora", "learns from the model as it was"),
    ("prompt:cocoop+dept", "takes none of DePT's heads"),
    ("prompt:coop+adalora", "a schedule of its own"),
    ("prompt:maple-depth+lora", "the capacity is then the adapter's"),
]


def clip(device: str = "cpu") -> open_clip.CLIP:
    """Small towers of random weights, with CLIP's own vocabulary; 3 blocks of images, 2 of texts.

    Frozen, since torch's attention adds up in another order where weights want gradients.
    """
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(5)
        vision = {"image_size": 16, "patch_size": 8, "width": 48, "head_width": 16, "layers": 3}
        text = {"context_length": 77, "vocab_size": 49_408, "width": 32, "heads": 2, "layers": 2}
        return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)


TOKENIZER = open_clip.get_tokenizer("ViT-B-32")
IDS = tuple(TOKENIZER([WORDS])[0, 1:5].tolist())


def images(rows: int = 3) -> Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def prompted(model: nn.Module, name: str, capacity: int, **options: int) -> Adapted:
    method = get_method(name)
    targets = [PLACE, *(TARGETS if method.on_weights else [])]
    return attach(model, method.config.from_options(capacity, options), targets, init_seed=3, words=IDS)


@pytest.mark.parametrize(("name", "size", "parameters"), RELEASED)
def test_the_released_sizes(name: str, size: int, parameters: int) -> None:
    assert get_method(name).count(VIT_B32, size) == parameters


@pytest.mark.parametrize(("name", "capacity", "options"), BUILT)
def test_what_is_counted_is_built(name: str, capacity: int, options: dict[str, int]) -> None:
    method = get_method(name)
    for device in ("meta", "cpu"):
        model = clip(device)
        adapted = prompted(model, name, capacity, **options)
        shapes = list(adapted.shapes.values())
        assert shapes[0] == place_of(model)
        assert adapted.count() == method.total(shapes, capacity, **options)
        assert not [
            n for n, p in model.named_parameters() if p.requires_grad and "prompts" not in n and "adapter" not in n
        ]


@pytest.mark.parametrize("tokens", [1, 2, 4])
@torch.no_grad()
def test_the_start_is_the_hand_written_prompt(tokens: int) -> None:
    names, words = ["dog.", "grand piano.", "sign of 30 km/h."], WORDS.split()[:tokens]
    model = clip()
    written = model.encode_text(TOKENIZER([" ".join([*words, name]) for name in names]))
    prompted(model, "prompt:coop", tokens)
    learnt = model.encode_text(with_room(TOKENIZER(names), tokens))
    torch.testing.assert_close(learnt, written, rtol=0, atol=0)


def by_hand(model: open_clip.CLIP, texts: Tensor, learner: MaPLe | PromptSRC) -> tuple[Tensor, Tensor]:
    """Features of texts and images by the formulas, block after block."""
    m = learner.tokens

    def put(x: Tensor, layer: int) -> Tensor:
        own = learner.text[layer].expand(len(x), -1, -1)
        return torch.cat([x[:, :1], own, x[:, 1 + m :]], dim=1)

    x = put(model.token_embedding(texts), 0) + model.positional_embedding
    for layer, block in enumerate(model.transformer.resblocks):
        x = block(put(x, layer) if 0 < layer < learner.depth else x, attn_mask=model.attn_mask)
    x = model.ln_final(x)[torch.arange(len(x)), texts.argmax(dim=1)] @ model.text_projection
    visual = model.visual
    y = visual.conv1(images()).flatten(2).transpose(1, 2)
    y = torch.cat([visual.class_embedding.expand(len(y), 1, -1), y], dim=1) + visual.positional_embedding
    patches = y.shape[1]
    for layer in range(len(visual.transformer.resblocks)):
        if layer < learner.depth:
            if isinstance(learner, MaPLe):
                own = learner.text[layer] @ learner.coupling[layer].T + learner.coupling_bias[layer]
            else:
                own = learner.image[layer]
            y = torch.cat([y[:, :patches], own.expand(len(y), -1, -1)], dim=1)
        y = visual.transformer.resblocks[layer](visual.ln_pre(y) if layer == 0 else y)
    return x, visual.ln_post(y)[:, 0] @ visual.proj


@pytest.mark.parametrize("name", ["prompt:maple", "prompt:promptsrc"])
@pytest.mark.parametrize("depth", [1, 2])
@torch.no_grad()
def test_deep_prompts_by_hand(name: str, depth: int) -> None:
    texts = with_room(TOKENIZER(["dog.", "a longer name."]), 3)
    model, plain = clip(), clip()
    adapted = prompted(model, name, 3, depth=depth)
    perturb(adapted)
    learner = adapted.adapters[PLACE]
    assert isinstance(learner, MaPLe | PromptSRC)
    expected = by_hand(plain, texts, learner)
    torch.testing.assert_close((model.encode_text(texts), model.encode_image(images())), expected)
    base = plain.encode_image(images())
    assert not torch.allclose(model.encode_image(images()), base, atol=1e-3)
    if isinstance(learner, PromptSRC):
        with learner.without_prompts():
            torch.testing.assert_close(model.encode_image(images()), base, rtol=0, atol=0)


def test_conditional_prompts_by_hand() -> None:
    names, model, plain = TOKENIZER(["dog.", "cat."]), clip(), clip()
    adapted = prompted(model, "prompt:cocoop", 4)
    perturb(adapted)
    learner = adapted.adapters[PLACE]
    assert isinstance(learner, CoCoOp)
    features = nn.functional.normalize(plain.encode_image(images()), dim=-1)
    with learner.conditioned(features, len(names)):
        found = model.encode_text(with_room(names, 4).repeat(3, 1)).view(3, 2, -1)
    for image, own in zip(features, found, strict=True):
        hidden = (learner.inner @ image + learner.inner_bias).relu()
        shifted = learner.text[0] + learner.outer @ hidden + learner.outer_bias
        one = clip()
        twin = prompted(one, "prompt:coop", 4)
        twin.load_state_dict({f"{PLACE}.text": shifted.detach().unsqueeze(0)})
        torch.testing.assert_close(own, one.encode_text(with_room(names, 4)))


@pytest.mark.parametrize(("name", "capacity", "options"), BUILT)
def test_training_files_and_detaching(name: str, capacity: int, options: dict[str, int], tmp_path: Path) -> None:
    model = clip()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    adapted = prompted(model, name, capacity, **options)
    start = {n: t.clone() for n, t in adapted.state_dict().items()}
    texts = with_room(TOKENIZER(["dog.", "cat.", "car."]), adapted.adapters[PLACE].tokens)  # type: ignore[arg-type]
    optimiser = torch.optim.SGD(list(adapted.parameters()), lr=0.5)
    for _ in range(2):  # LoRA's A has no gradient at the start
        features = nn.functional.normalize(model.encode_image(images()), dim=-1)
        learner = adapted.adapters[PLACE]
        if isinstance(learner, CoCoOp):
            with learner.conditioned(features, 1):
                words = model.encode_text(texts)
        else:
            words = model.encode_text(texts)
        optimiser.zero_grad()
        (10 * features * nn.functional.normalize(words, dim=-1)).square().sum().backward()
        optimiser.step()
    assert not [n for n, t in adapted.state_dict().items() if torch.equal(t, start[n])]
    outputs = model.encode_text(texts), model.encode_image(images())
    adapted.save(tmp_path)
    other = clip()
    load(other, tmp_path)
    torch.testing.assert_close((other.encode_text(texts), other.encode_image(images())), outputs, rtol=0, atol=0)
    adapted.detach()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) for n in before)


def pickled(model: open_clip.CLIP) -> open_clip.CLIP:
    return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        *(("prompt:cocoop", copy.deepcopy), ("prompt:maple", copy.deepcopy), ("prompt:coop+lora", copy.deepcopy)),
        *(("prompt:maple", pickled), ("prompt:promptsrc", pickled)),
    ],
)
def test_a_copied_model_has_prompts_of_its_own(name: str, copied: Callable[[open_clip.CLIP], open_clip.CLIP]) -> None:
    model, words = clip(), with_room(TOKENIZER(["dog."]), 4)
    adapted = prompted(model, name, 4, **({"tokens": 4} if "+" in name else {}))
    perturb(adapted)
    twin, before = copied(model), (model.encode_text(words), model.encode_image(images()))
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.zero_()
    after = twin.encode_text(words), twin.encode_image(images())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    torch.cat(after).sum().backward()
    assert all(p.grad is None for p in adapted.parameters())
    own = twin.get_submodule(PLACE)
    assert isinstance(own, Prompts) and own.get_parameter("text").grad is not None
    assert place_of(twin) == place_of(model) == copy.copy(place_of(model))


def test_prompts_and_adapters_train_together_and_count_as_their_sum() -> None:
    alone, beside = get_method("prompt:maple"), get_method("prompt:maple+lora")
    adapted = prompted(clip(), "prompt:maple+lora", 2, tokens=2)
    shapes = dict(adapted.shapes)
    place = shapes.pop(PLACE)
    assert adapted.count() == alone.count(place, 2) + get_method("lora").total(list(shapes.values()), 2)
    assert beside.total(list(adapted.shapes.values()), 2, tokens=2) == adapted.count()


def test_a_method_beside_prompts_keeps_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    hybrid, beside = get_method("hybrid"), get_method("prompt:coop+hybrid")
    assert hybrid.experimental and beside.experimental and not get_method("prompt:coop+lora").experimental
    assert beside.update_rank is None and beside.capacity_field == hybrid.capacity_field
    vera = get_method("vera")
    config = type("OwnConfig", (vera.config,), {"method": "own"})
    own = dataclasses.replace(vera, config=config, mixes_rows=True, published_lr=1.0)
    monkeypatch.setitem(METHODS.registered, "own", own)
    first = get_method("prompt:coop+own")
    assert first.mixes_rows and first is get_method("prompt:coop+own")
    monkeypatch.setitem(METHODS.registered, "own", dataclasses.replace(own, published_lr=2.0))
    assert (first.published_lr, get_method("prompt:coop+own").published_lr) == (1.0, 2.0)
    for field in ("together", "legal"):
        monkeypatch.setitem(METHODS.registered, "own", dataclasses.replace(own, **{field: lambda *_, **__: 7}))
        with pytest.raises(UnknownMethodError, match="VeRA counts its weights together"):
            get_method("prompt:coop+own")


def test_seeds_decide_what_is_drawn() -> None:
    def drawn(seed: int) -> Tensor:
        config = get_method("prompt:coop").config.from_options(6, {})
        return next(attach(clip(), config, [PLACE], init_seed=seed, words=IDS).parameters()).detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert 0.01 < float(drawn(1).std()) < 0.03


def test_the_average_is_gaussian_and_goes_on_after_a_stop() -> None:
    values = torch.linspace(0.0, 1.0, 10)
    weights = torch.exp(-0.5 * ((torch.arange(1, 11) / 10 - 0.6) / 0.6) ** 2)
    parameter = nn.Parameter(torch.zeros(1))
    average = GaussianAverage([parameter])
    for step, value in enumerate(values, start=1):
        if step == 5:
            state = average.state()
            average = GaussianAverage([parameter])
            average.load_state(state)
        with torch.no_grad():
            parameter.fill_(value)
        average.on_step(step, 10)
    torch.testing.assert_close(parameter.detach(), ((weights * values).sum() / weights.sum()).reshape(1))


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(UnknownMethodError, match=message):
        get_method(name)


def test_what_is_refused() -> None:
    model, config = clip(), get_method("prompt:coop").config.from_options(4, {})
    with pytest.raises(TargetError, match=r"the targets of CoOp are \['prompts'\]"):
        attach(model, config, TARGETS)
    with pytest.raises(TargetError, match="prompts need a CLIP"):
        attach(nn.Sequential(nn.Linear(2, 2)), config, [PLACE])
    with pytest.raises(AdapterError, match="tokens = 39 is more than the 38 of this model"):
        prompted(model, "prompt:coop", 39)
    with pytest.raises(AdapterError, match="depth = 3 is more than the 2 of this model"):
        prompted(model, "prompt:maple", 2, depth=3)
    with pytest.raises(AdapterError, match="take at most 74"):
        with_room(TOKENIZER(["dog"]), 75)
    adapted = prompted(model, "prompt:coop", 4)
    for act in (adapted.merge, adapted.deltas):
        with pytest.raises(AdapterError, match="prompts have no delta"):
            act()
    with pytest.raises(AdapterError, match="PEFT has no CoOp"):
        adapted.export_peft("nowhere")
