"""One copy of a base model for the workers of a machine: the same bits, trials and write protection, in less memory."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import randlora
from randlora import LoraConfig
from tests.trainables.models.support import files, in_bf16, own_cache, same_bits, size, write_gguf
from tests.trainables.support import outcome, run, weights
from tests.trainables.tiny_images import save_dinov2
from tests.trainables.tiny_language import save_model
from tests.trainables.tiny_sentences import save_encoder
from trainables.config import TrialConfig
from trainables.models.loading import LoadedModel, load_model
from trainables.models.shared import FILE, checksum, named_tensors, shared_bytes, shared_model
from trainables.tasks.lane_cache import LaneCache, Snapshot
from trainables.training.adapting import _own_copy
from trainables.training.worker import run_trial

MakeTrial = Callable[..., TrialConfig]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_cache(tmp_path / "cache", monkeypatch)


def forward(loaded: LoadedModel) -> Tensor:
    module: Any = loaded.module
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if loaded.preprocess is not None:
            side = loaded.preprocess.recipe.size
            images = torch.randn(3, 3, side, side, generator=draw)
            found = module.encode_image(images) if loaded.kind == "clip" else module(images).last_hidden_state
        else:
            found = module(torch.randint(0, 200, (2, 9), generator=draw))[0]
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("kind", ["clip", "gpt2", "llama", "qwen2", "phi3", "roberta", "dinov2", "gguf"])
def test_bits_and_results_are_those_of_the_loaded_model(
    tmp_path: Path, cache: Path, model_dir: Path, kind: str
) -> None:
    if kind == "gguf":
        pytest.importorskip("gguf")
        write_gguf(save_model(tmp_path / "llama", "llama"), tmp_path / "tiny.gguf")
        model = f"local:{tmp_path / 'tiny.gguf'}"
    else:
        folder = {
            "clip": lambda: shutil.copytree(model_dir, tmp_path / "clip"),
            "roberta": lambda: in_bf16(save_encoder(tmp_path / "roberta")),
            "dinov2": lambda: in_bf16(save_dinov2(tmp_path / "dinov2")),
        }.get(kind, lambda: in_bf16(save_model(tmp_path / kind, kind)))()
        model = f"local:{folder}"
    plain = load_model(model)
    for _ in range(2):  # the first worker, and a later one
        shared = shared_model(model)
        assert same_bits(shared.module, plain.module)
        assert torch.equal(forward(shared), forward(plain))
        assert shared_bytes(shared.module) == size(plain.module)
        assert not any(part.training for part in shared.module.modules())
        assert (shared.kind, shared.preprocess) == (plain.kind, plain.preprocess)
        assert (shared.tokenizer is None, shared.text_tokenizer is None) == (
            plain.tokenizer is None,
            plain.text_tokenizer is None,
        )
    module: Any = shared.module
    if plain.kind == "causal-lm":
        asked = {"input_ids": torch.arange(3, 9)[None], "max_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
        assert torch.equal(module.generate(**asked), cast("Any", plain.module).generate(**asked))
    if kind == "gpt2":
        assert module.lm_head.weight is module.transformer.wte.weight
    assert len(files(cache)) == 1
    assert shared_bytes(plain.module) == 0


def test_a_model_whose_loader_maps_its_file_is_left_alone(tmp_path: Path, cache: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 4000}
    model = f"local:{save_model(tmp_path / 'llama', 'llama', **wide)}"  # float32
    if shared_bytes(load_model(model).module) == 0:
        pytest.skip("this transformers copies what it reads")
    shared = shared_model(model)
    assert shared_bytes(shared.module) > 0.9 * size(shared.module)
    assert same_bits(shared.module, load_model(model).module)
    assert not files(cache)


def test_tensors_that_are_not_plain_keep_memory_of_their_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Packed(nn.Parameter):
        pass

    def odd(model_id: str) -> LoadedModel:
        loaded = load_model(model_id)
        module: Any = loaded.module
        module.ln_final.weight = Packed(module.ln_final.weight.detach())
        module.ln_final.bias = nn.Parameter(module.text_projection.detach().view(-1)[: module.ln_final.bias.numel()])
        module.alias = nn.Parameter(module.positional_embedding.detach())  # two parameters, one memory
        module.turned = nn.Parameter(torch.arange(12.0).view(3, 4).t())
        return loaded

    monkeypatch.setattr("trainables.models.shared.load_model", odd)
    plain = odd("embedded:tiny-clip")
    for _ in range(2):
        shared: Any = shared_model("embedded:tiny-clip").module
        assert same_bits(shared, plain.module)
        assert type(shared.ln_final.weight) is Packed
        assert shared.alias.data_ptr() == shared.positional_embedding.data_ptr()
        own = [shared.ln_final.weight, shared.ln_final.bias, shared.turned]
        assert shared_bytes(shared) == size(shared) - sum(t.nbytes for t in own)


def test_a_copy_lies_as_its_original() -> None:
    room = torch.randn(1000)
    for start in (0, 1, 10):
        tensor = room[start : start + 12].view(3, 4)
        found = _own_copy(tensor)
        assert torch.equal(found, tensor)
        assert found.data_ptr() % 64 == tensor.data_ptr() % 64
        assert found.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("method", ["lora", "randlora", "pissa", "full", "full-targets"])
def test_trials_are_the_same_and_leave_the_shared_weights_alone(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    trial = make_trial(method)
    with monkeypatch.context() as m:
        m.setenv("SWEEPS_CACHE", "off")
        apart: dict[str, Any] = {}
        expected = outcome(run(trial, tmp_path / "apart", apart, keep=True))
        assert shared_bytes(apart["models"][trial.model].module) == 0
    warm: dict[str, Any] = {}
    other = LaneCache({}, CPU).model(trial.model).module  # as another worker of the machine has it
    fresh = load_model(trial.model).module
    going = run_trial(trial, warm=warm, directory=tmp_path / "t", keep=True)
    reports = [next(going)]
    assert same_bits(other, fresh)  # in the middle of the trial
    assert same_bits(LaneCache({}, CPU).model(trial.model).module, fresh)
    reports += going
    assert outcome(reports) == expected
    module = warm["models"][trial.model].module
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in weights(warm).items())
    assert shared_bytes(module) == size(fresh)
    name = "weights" if method.startswith("full") else "adapter"
    kept = [load_file(tmp_path / place / "adapter" / f"{name}.safetensors") for place in ("t", "apart")]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(tensor, kept[1][k]) for k, tensor in kept[0].items())


def test_a_write_is_noticed_and_reaches_nobody_else(cache: Path) -> None:
    store: dict[str, Any] = {}
    lane = LaneCache(store, CPU)
    name = "embedded:tiny-clip"
    other = LaneCache({}, CPU).model(name).module
    module: Any = lane.model(name).module
    assert lane.check_model(name)
    content = files(cache)[0].read_bytes()
    with torch.no_grad():
        module.visual.proj.add_(1e-3)
    assert not lane.check_model(name)
    assert same_bits(other, load_model(name).module)
    assert files(cache)[0].read_bytes() == content
    assert same_bits(lane.model(name).module, other)
    assert Snapshot(other).holds(other)


def test_a_write_that_torch_does_not_count_is_noticed(cache: Path) -> None:
    lane = LaneCache({}, CPU)
    module: Any = lane.model("embedded:tiny-clip").module
    assert lane.check_model("embedded:tiny-clip")
    before = module.visual.proj._version
    module.visual.proj.data[0, 0] += 1e-3
    assert module.visual.proj._version == before
    assert not lane.check_model("embedded:tiny-clip")


def test_values_that_changed_places_are_noticed(cache: Path) -> None:
    lane = LaneCache({}, CPU)
    module: Any = lane.model("embedded:tiny-clip").module
    module.visual.proj.data[[0, 2]] = module.visual.proj.data[[2, 0]]
    assert not lane.check_model("embedded:tiny-clip")
    simple = torch.zeros(1024, 128)
    simple[0, 1] = 1.0  # bits at the top of a word
    assert checksum(simple) != checksum(simple.roll(512, 0))


def test_merging_changes_this_worker_alone(cache: Path) -> None:
    lane = LaneCache({}, CPU)
    name = "embedded:tiny-clip"
    other = LaneCache({}, CPU).model(name).module
    module = lane.model(name).module
    adapted = randlora.attach(module, LoraConfig(r=2), ["attn.in_proj_weight", "mlp.c_fc"])
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.fill_(0.1)
    adapted.merge()
    assert not same_bits(module, other)
    assert same_bits(other, load_model(name).module)
    assert not lane.check_model(name)
    assert same_bits(lane.model(name).module, other)


def test_a_split_copy_takes_memory_of_its_own(cache: Path) -> None:
    module = shared_model("embedded:tiny-clip").module
    split = copy.deepcopy(module)  # what `trainables.models.sharded.shard` does
    assert shared_bytes(split) == 0
    assert same_bits(split, module)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in named_tensors(split).values())


def test_only_cpu_workers_share(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.tasks.lane_cache.Snapshot", lambda _: None)
    moved = LaneCache({}, torch.device("meta")).model("embedded:tiny-clip").module  # stands for an accelerator
    assert {t.device.type for t in named_tensors(moved).values()} == {"meta"}
    assert not cache.exists()


WORKER = """
import json, sys, psutil, torch
from trainables.models.shared import checksum, named_tensors
from trainables.tasks.lane_cache import LaneCache
torch.set_num_threads(1)
cpu = torch.device("cpu")
LaneCache({}, cpu).model(sys.argv[2])  # whatever is imported for a model
own = lambda: psutil.Process().memory_full_info().uss
before = own()
lane = LaneCache({}, cpu)
print("ready", flush=True)
sys.stdin.readline()
module = lane.model(sys.argv[1]).module
print(json.dumps(sum(checksum(t) for t in named_tensors(module).values())), flush=True)
sys.stdin.readline()
print(own() - before, flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow
def test_two_processes_that_start_together_hold_one_copy(tmp_path: Path, cache: Path) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "vocab_size": 6000}
    model = f"local:{in_bf16(save_model(tmp_path / 'wide', 'llama', **wide))}"
    small = f"local:{save_model(tmp_path / 'small', 'llama')}"
    plain = load_model(model).module
    command = [sys.executable, "-c", WORKER, model, small]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    def told() -> list[Any]:
        return [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout]

    def go_on() -> None:
        for worker in workers:
            assert worker.stdin
            worker.stdin.write("\n")
            worker.stdin.flush()

    try:
        assert [worker.stdout.readline() for worker in workers if worker.stdout] == ["ready\n"] * 2
        go_on()
        assert told() == [sum(checksum(t) for t in named_tensors(plain).values())] * 2
        go_on()
        own = told()
        go_on()
    finally:
        for worker in workers:
            worker.communicate(timeout=60)
    assert size(plain) > 60e6
    assert sum(own) < 0.95 * size(plain), "one copy of one's own is the model, two are twice that; the rest is the heap"
    assert len(list(cache.glob(f"*/{FILE}"))) == 1
    assert not list(cache.glob("*/*.part"))
