"""Trials of prompt learning on the embedded CLIP: losses by hand, the base model afterwards, resuming, answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, kl_div, l1_loss, log_softmax, normalize

import trainables.training.checkpoints
from randlora.methods.prompts.entry import replaced_words
from randlora.methods.prompts.learners import PromptSRC, prompts_in
from randlora.methods.registry import get_method
from randlora.model.prompted import with_room
from tests.trainables.support import outcome, run, weights
from trainables.config import TrialConfig
from trainables.models.loading import load_model
from trainables.models.shapes import method_shapes, target_shapes
from trainables.packing.alike import NotPackableError
from trainables.packing.together import run_pack
from trainables.predicting.answers import answers
from trainables.predicting.trained import load_trained
from trainables.runtime import choose_precision
from trainables.tasks.images.clip import encode_images
from trainables.tasks.images.prompts import RegularisedClassifier, TransferClassifier, names_as_texts
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts
from trainables.training.adapting import adapted
from trainables.training.worker import run_trial

MODEL = "embedded:tiny-clip"
METHODS = ["coop", "cocoop", "maple", "promptsrc", "maple+dept", "coop+lora", "maple+dept+randlora"]
MakeTrial = Callable[..., TrialConfig]


@pytest.fixture
def prompt_trial(make_trial: MakeTrial) -> MakeTrial:
    """`make_trial` for a method of prompts, on the embedded model."""

    def make(method: str, **given: Any) -> TrialConfig:
        shapes = method_shapes(f"prompt:{method}", MODEL, target_shapes(MODEL, None, "both"))
        capacities = tuple((name, 3) for name in shapes)
        more = {"options": (("tokens", 3),)} if "lora" in method else {}
        return make_trial(f"prompt:{method}", model=MODEL, adapt="both", capacities=capacities, **more, **given)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_learns_and_gives_the_model_back(prompt_trial: MakeTrial, tmp_path: Path, method: str) -> None:
    trial, warm = prompt_trial(method, lr=2e-2), {}
    reports = run(trial, tmp_path / "warm", warm)
    result = reports[-1]["result"]
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    assert (result.measured.head_params > 0) == ("dept" in method)
    with adapted(load_model(MODEL).module, trial) as trainables:
        assert trainables.adapter_params == result.measured.adapter_params
    fresh = load_model(MODEL).module
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in weights(warm).items())
    again = run(trial, tmp_path / "again", warm)  # the text features of the trial before must be gone
    assert outcome(again) == outcome(reports) == outcome(run(trial, tmp_path / "cold"))


@pytest.mark.parametrize("method", ["coop", "maple", "maple+dept"])
@pytest.mark.parametrize("m", [1, 2, 4, 6])
def test_the_text_tower_reads_the_released_tokens(method: str, m: int) -> None:
    """What the token embedding is given for three classes, decoded. MaPLe's released code tokenises "a photo of a
    NAME." and puts its vectors in the place of the first m tokens; CoOp's puts its own before the name."""
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    names = ["dog", "grand piano", "Boeing 737-200"]
    loaded = dataclasses.replace(load_model(MODEL), tokenizer=tokenizer)
    config = get_method(f"prompt:{method}").config.from_options(m, {})
    ids = with_room(names_as_texts(loaded, names, torch.device("cpu"), replaced_words(config)), m)
    released = tokenizer([f"a photo of a {name}." for name in names])
    kept = 4 if "coop" in method else min(m, 4)  # of "a photo of a", gone
    for found, whole in zip(ids.tolist(), released.tolist(), strict=True):
        end = found.index(max(found))
        assert found[0] == whole[0]  # the start of a text; the learnt vectors take the m places after it
        assert found[1 + m : end + 1] == whole[1 + kept : whole.index(max(whole)) + 1]
    behind = [tokenizer.decode(row[1 + m : row.index(max(row))]).strip() for row in ids.tolist()]
    if (method, m) == ("maple+dept", 2):
        assert behind == ["of a dog .", "of a grand piano .", "of a boeing 7 3 7 - 2 0 0 ."]
    if method == "coop":
        assert behind == ["dog .", "grand piano .", "boeing 7 3 7 - 2 0 0 ."]


@pytest.mark.parametrize("method", ["coop", "promptsrc", "maple+dept"])
def test_resuming_is_exact(
    prompt_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(trainables.training.checkpoints, "CHECKPOINT_SHARE", 1e9)  # after every epoch
    trial = prompt_trial(method, train={"augment": "crop-flip"})
    generator = run_trial(trial, warm={}, directory=tmp_path / "cut", keep=True)
    next(generator)
    generator.close()
    assert outcome(run(trial, tmp_path / "cut", keep=True)) == outcome(run(trial, tmp_path / "whole", keep=True))
    cut, whole = (load_file(str(tmp_path / d / "adapter" / "adapter.safetensors")) for d in ("cut", "whole"))
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[n], whole[n]) for n in cut)


@pytest.mark.parametrize("method", METHODS)
def test_a_kept_trial_answers_as_it_was_evaluated(
    prompt_trial: MakeTrial, colours: Path, tmp_path: Path, method: str
) -> None:
    trial = prompt_trial(method, lr=2e-2)
    warm: dict[str, Any] = {}
    score = run(trial, tmp_path, warm, keep=True)[-1]["result"].measured.test_score
    test = LaneCache(warm, torch.device("cpu")).dataset(trial.dataset, "CONFIRM").test
    files = []
    for row in range(len(test.labels)):
        files.append(str(tmp_path / f"{row}.png"))
        test.read(row).save(files[-1])
    trained = load_trained(trial, tmp_path / "adapter")
    said = [a.answer for a in answers(trained, files)]
    right = [a == trained.facts.classes[int(y)] for a, y in zip(said, test.labels, strict=True)]
    assert sum(right) / len(right) == score


def parts_of(trial: TrialConfig) -> Parts:
    lane = LaneCache({}, torch.device("cpu"))
    precision, autocast = choose_precision("fp32", lane.device)
    return Parts(trial=trial, lane=lane, loaded=lane.model(trial.model), autocast=autocast, precision=precision)


def test_losses_by_hand(prompt_trial: MakeTrial) -> None:
    for method in ("promptsrc", "maple+dept"):
        trial = prompt_trial(method)
        parts = parts_of(trial)
        module, task = parts.loaded.module, make_task(parts)
        classifier: Any = task.classifier  # type: ignore[attr-defined]
        rows = task.rows("train")[:5]
        images, labels = task.inputs(rows, None)  # type: ignore[attr-defined]
        base = normalize(module.encode_image(images), dim=-1)  # type: ignore[operator]
        with adapted(module, trial, parts.loaded.tokenizer), torch.no_grad():
            raw = encode_images(module, images, parts.autocast, unit=False)
            torch.testing.assert_close(raw, module.encode_image(images))  # type: ignore[operator]  # all tokens
            words = classifier.words(unit=False)
            compared = module.get_parameter("logit_scale").exp() * normalize(raw, dim=-1) @ normalize(words, dim=-1).T
            if isinstance(classifier, RegularisedClassifier):
                assert isinstance(prompts_in(module), PromptSRC)
                unit, teacher = normalize(words, dim=-1), classifier._teacher
                old = log_softmax(module.get_parameter("logit_scale").exp() * base @ teacher.T, dim=1)
                kl = kl_div(log_softmax(compared, dim=1), old, reduction="sum", log_target=True) / compared.numel()
                expected = cross_entropy(compared, labels) + kl
                expected = expected + 25 * l1_loss(unit, teacher) + 10 * l1_loss(normalize(raw, dim=-1), base)
            else:
                assert isinstance(classifier, TransferClassifier)
                by_head = classifier.head.out(torch.cat([words[labels], raw]))  # its scales are 1, its shifts 0
                expected = 0.3 * cross_entropy(compared, labels) + 0.7 * cross_entropy(by_head, labels.repeat(2))
            found = task.loss_sum(rows, None) / task.weight(rows)
            torch.testing.assert_close(found, expected)


def test_prompts_are_not_packed(prompt_trial: MakeTrial, tmp_path: Path) -> None:
    trials = [prompt_trial("coop", lr=lr) for lr in (1e-3, 1e-2)]
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(NotPackableError, match="prompts"):
        next(run_pack(trials, warm={}, directories=folders, keep=[False, False]))


def test_a_batch_of_prompts_is_split_where_memory_is_short(prompt_trial: MakeTrial, tmp_path: Path) -> None:
    """Its loss compares an image with the words of all classes, and not with other images, whatever `adapt` is."""
    trial = prompt_trial("maple", lr=2e-2)
    assert not trial.contrastive
    batch = trial.train.global_batch_size
    halved = run(trial, tmp_path / "half", {}, micro_batch_size=batch // 2)
    whole = run(trial, tmp_path / "whole", {})
    assert halved[-1]["train_loss"] == pytest.approx(whole[-1]["train_loss"], rel=1e-3)
