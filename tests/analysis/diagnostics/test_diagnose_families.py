"""CKA and the loss plane beyond CLIP: an image encoder, a language model and a text encoder, of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import randlora
from analysis import open_store
from analysis.diagnostics.analyze import in_process, plan
from analysis.diagnostics.bench import Bench, mean_vector, repeated_blocks, trial_config
from analysis.diagnostics.cka import minibatch_cka
from analysis.diagnostics.units import sweep_facts
from analysis.diagnostics.weights import Kept, kept_trials
from analysis.store.store import Store
from tests.analysis.diagnostics.support import tiny_results
from tests.trainables.tiny_images import save_dinov2, write_colours
from tests.trainables.tiny_language import save_model, write_rows
from tests.trainables.tiny_sentences import save_encoder, write_sst2
from trainables.models.encoders import load_head
from trainables.models.loading import load_model
from trainables.predicting.trained import load_trained

FAMILIES = ("images", "language", "sentences")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Store]:
    """Results of a family, trained when first asked for."""
    place = tmp_path_factory.mktemp("families")
    made: dict[str, Store] = {}

    def of(family: str) -> Store:
        if family not in made:
            made[family] = open_store(tiny_results(place / f"tiny-{family}", **_sections(family, place)))
        return made[family]

    return of


def _sections(family: str, place: Path) -> dict[str, Any]:
    train: dict[str, Any] = {"epochs": 2, "global_batch_size": 10}
    if family == "images":
        save_dinov2(place / "dinov2")
        write_colours(place / "colours")
        model, data = {"id": f"local:{place / 'dinov2'}", "image_size": 16}, f"parquet:{place / 'colours'}"
        size: Any = "2-shot"
    elif family in ("language", "transposed"):  # GPT-2 keeps its weights (in x out)
        name = "qwen2" if family == "language" else "gpt2"
        save_model(place / name, name)
        write_rows(place / f"{name}-rows")
        model, data, size = {"id": f"local:{place / name}"}, f"json:{place / f'{name}-rows'}", 1.0
    else:
        save_encoder(place / "roberta", dropout=0.1)
        write_sst2(place / "SST-2")
        model, data, size = {"id": f"local:{place / 'roberta'}"}, f"glue:{place / 'SST-2'}", 1.0
    return {"model": model, "data": {"datasets": [data], "train_size": [size]}, "train": train}


def corner(store: Store, method: str) -> Kept:
    return next(k for k in kept_trials(store) if k.row["method"] == method)


def test_the_spectrum_is_of_the_update_of_the_rounded_base(tmp_path: Path) -> None:
    """DoRA's update depends on the base, and a sweep in bfloat16 trained it on one that was rounded."""
    sections = _sections("language", tmp_path)
    sections["train"] |= {"base_weights": "bf16", "epochs": 1}
    store = open_store(tiny_results(tmp_path / "tiny", **sections, methods={"dora": {}}))
    (kept,) = kept_trials(store)
    trial = trial_config(sweep_facts(store), kept.row).model_copy(update={"method": "dora"})
    rows = [r for _, found in in_process(store.path, plan(store, "spectrum")) for r in found]
    adapted = load_trained(trial, kept.folder).adapted
    assert adapted is not None
    wanted = {name: float(delta.norm()) for name, delta in adapted.deltas().items()}
    assert {r["weight"]: r["frobenius"] for r in rows} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "family", ["images", "sentences", *(pytest.param(f, marks=pytest.mark.slow) for f in ("language", "transposed"))]
)
def test_the_corners_of_the_plane_are_the_trained_models(family: str, results: Callable[[str], Store]) -> None:
    """The loss at a corner is that of the kept adapter, loaded and unmerged, or of the kept weights, with the head."""
    store = results(family)
    units = [u for u in plan(store, "landscape", examples=12, points=3) if "edge" in u.settings]
    rows = [r for _, found in in_process(store.path, units) for r in found]
    assert {r["split"] for r in rows} == {"train", "val"} and all(r["barrier"] >= 0 for r in rows)
    for i, method in enumerate(("lora", "randlora", "full")):
        kept = corner(store, method)
        for which in ("train", "val"):
            ends = [r for r in rows if r["split"] == which and (r["a"], r["t"]) == (i, 0.0)]
            ends += [r for r in rows if r["split"] == which and (r["b"], r["t"]) == (i, 1.0)]
            wanted = loss_of(store, kept, which)  # type: ignore[arg-type]
            assert len(ends) == 2 and [r["loss"] for r in ends] == pytest.approx([wanted] * 2, rel=1e-4)


def loss_of(store: Store, kept: Kept, which: Any) -> float:
    bench = Bench(sweep_facts(store), kept.brief, {})
    rows = bench.examples((which,), 12)
    head = bench.task.head
    if head is not None:
        head.load_state_dict(load_head(kept.folder).state_dict())
    if kept.full:
        from safetensors.torch import load_file

        bench.module.load_state_dict(load_file(kept.folder / "weights.safetensors"), strict=False)
    else:
        randlora.load(bench.module, kept.folder)
    with torch.no_grad():
        return float(bench.task.loss_sum(rows, None)) / bench.task.weight(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_cka_of_every_family(family: str, results: Callable[[str], Store]) -> None:
    store = results(family)
    rows = [r for _, found in in_process(store.path, plan(store, "cka", examples=16)) for r in found]
    assert {r["method"] for r in rows} == {"lora", "randlora", "zero-shot"}
    assert {r["depth"] for r in rows} == {0, 1, 2, 3} and len(rows) == 12  # two blocks
    last = {r["depth"]: r["layer"].rpartition(".")[2] for r in rows}
    names = {"images": ("attention", "mlp"), "language": ("self_attn", "mlp"), "sentences": ("attention", "output")}
    assert tuple(last.values())[:2] == names[family]
    assert all(r["cka"] <= 1 + 1e-6 and r["examples"] == 16 for r in rows)
    assert len({round(r["cka"], 9) for r in rows}) > 2


@pytest.mark.parametrize("family", ("language", "sentences"))
def test_padding_is_in_no_mean(family: str, results: Callable[[str], Store]) -> None:
    """A layer's vector of a text is the mean of transformers' own hidden states of that text alone."""
    store = results(family)
    kept = corner(store, "lora")
    bench = Bench(sweep_facts(store), kept.brief, {})
    rows = bench.examples(("train",), 5)
    found = next(iter(bench.activations(bench.state(kept), rows).values()))
    task: Any = bench.task
    model: Any = load_model(kept.row["model"]).module.eval()
    randlora.load(model, kept.folder)
    for i, row in enumerate(rows.tolist()):
        one = task._train[row]
        ids = torch.cat([one.prompt, one.response])[:-1] if family == "language" else one.ids
        with torch.no_grad():
            states = model(input_ids=ids[None], output_hidden_states=True).hidden_states
        torch.testing.assert_close(found[i], states[1][0].mean(dim=0), rtol=1e-4, atol=1e-5)
    if family == "sentences":  # of several lengths, so together they would be padded
        assert len({len(task._train[row]) for row in rows.tolist()}) > 1


def test_nothing_is_written_to(results: Callable[[str], Store]) -> None:
    store = results("sentences")
    warm: dict[str, Any] = {}
    bench = Bench(sweep_facts(store), corner(store, "full").brief, warm)
    before = {n: p.detach().clone() for n, p in bench.base().items()}
    bench.activations(bench.state(corner(store, "randlora")), bench.examples(("val",), 4))
    bench.loss(bench.state(corner(store, "full")), bench.examples(("val",), 4))
    assert all(torch.equal(v, bench.base()[n]) for n, v in before.items())
    states = [bench.state(corner(store, m)) for m in ("lora", "full")]
    assert any(n.startswith("head.") for n in states[0]) and states[1].keys() > states[0].keys()


def test_a_sweep_without_validation_rows_has_training_rows_alone(results: Callable[[str], Store]) -> None:
    store = results("sentences")
    bench = Bench(sweep_facts(store) | {"protocol": "paper"}, corner(store, "full").brief, {})
    assert len(bench.examples(("val",), 9)) == 0 and len(bench.examples(("train", "val"), 9)) == 9
    whole = Bench(sweep_facts(store), corner(store, "full").brief, {})
    assert len(bench.task.rows("train")) == len(whole.task.rows("train")), "the authors' validation rows stay out"


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2)))


def test_blocks_are_the_outermost_lists_of_like_modules() -> None:
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())  # leaves: no blocks
    model.visual.stages = nn.ModuleList([Stage(4), Stage(4)])
    model.text = nn.ModuleList([Stage(4)])
    assert list(repeated_blocks(model, "visual.")) == ["visual.stages.0", "visual.stages.1"]
    assert list(repeated_blocks(model)) == ["visual.stages.0", "visual.stages.1", "text.0"]


def test_the_mean_of_an_output() -> None:
    draw = torch.randn(3, 5, 7)
    assert torch.equal(mean_vector(draw, 3), draw.mean(dim=1))
    assert torch.allclose(mean_vector(draw.transpose(0, 1), 3), draw.mean(dim=1))  # (T, B, D)
    maps = torch.randn(3, 4, 2, 2)
    assert torch.allclose(mean_vector(maps, 3), maps.mean(dim=(2, 3)))
    assert torch.equal(mean_vector(draw[:, 0], 3), draw[:, 0])


def test_mini_batches_against_the_direct_formula() -> None:
    """CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), each HSIC_1 written out in matrices and averaged over batches."""

    def hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        n = len(k)
        k, l = k - torch.diag(k.diag()), l - torch.diag(l.diag())  # noqa: E741
        ones = torch.ones(n, n, dtype=torch.double)
        return (
            torch.trace(k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * torch.trace(k @ l @ ones)
        ) / (n * (n - 3))

    generator = torch.Generator().manual_seed(3)
    pairs = [tuple(torch.randn(8, d, generator=generator, dtype=torch.double) for d in (3, 5)) for _ in range(4)]
    pairs = [(x, y + x @ torch.ones(3, 5, dtype=torch.double)) for x, y in pairs]
    kernels = [(x @ x.T, y @ y.T) for x, y in pairs]
    cross, mine, theirs = (
        torch.stack([hsic(a, b) for a, b in each]).mean()
        for each in (kernels, [(k, k) for k, _ in kernels], [(k, k) for _, k in kernels])
    )
    assert minibatch_cka(pairs) == pytest.approx(float(cross / (mine * theirs).sqrt()), rel=1e-9)
