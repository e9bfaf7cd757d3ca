"""Trained models taken out of a results folder: every form predicts by the code in its README what `predict` says."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from randlora.errors import CheckpointError
from randlora.files.tensors import write_tensors
from randlora.model.targets import resolve_targets
from sweeps.errors import SpecError
from sweeps.exporting.export import FORMS, export_trial
from sweeps.exporting.kept import KeptTrial, kept_trial
from sweeps.exporting.usage import _example
from tests.support import flipped
from tests.sweeps.engine.kept_results import keep_trials
from tests.trainables.support import one_tower_trial
from tests.trainables.tiny_images import COLOURS, noisy, save_dinov2, write_colours
from tests.trainables.tiny_language import (
    THINGS,
    add_chat_template,
    chat_rows,
    instruction_rows,
    save_model,
    write_rows,
)
from tests.trainables.tiny_sentences import save_encoder, write_sst2, write_stsb
from trainables.config import TrialConfig
from trainables.errors import DataError, TrialError
from trainables.models.loading import load_model
from trainables.models.shapes import meta_model
from trainables.predicting.answers import Answer, _prompt_and_choices, answers
from trainables.predicting.facts import FACTS_FILE, PLACE, Facts
from trainables.predicting.trained import load_trained

TRAIN = {"epochs": 1, "global_batch_size": 16}


def clip_trial(place: Path, method: str, adapt: str, **more: Any) -> TrialConfig:
    targets = ["mlp.c_fc"]
    names = [n for n in resolve_targets(meta_model("embedded:tiny-clip"), targets) if adapt == "both" or "visual" in n]
    capacities = () if method in ("full-targets", "linear-probe") else tuple((n, 4) for n in names)
    given = {"dataset": f"parquet:{place / 'colours'}", "train_size": 1.0, "adapt": adapt, "targets": tuple(targets)}
    given |= {"capacities": capacities, "train": TRAIN, "cell_id": f"{method} {adapt}", "stage": "CONFIRM", "lr": 0.02}
    seeds = {"data_seed": 1, "init_seed": 2, "basis_seed": 3}
    return TrialConfig.model_validate({"method": method, "model": "embedded:tiny-clip", **given, **seeds, **more})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    save_dinov2(folder / "a base")
    write_colours(folder / "colours")
    save_encoder(folder / "roberta")
    save_encoder(folder / "bert", "bert")
    write_sst2(folder / "SST-2")
    write_stsb(folder / "STS-B")
    save_model(folder / "llama", "llama")
    own = {"repetition_penalty": 1.3, "eos_token_id": [1, 7]}  # as instruction models have; evaluation has neither
    (folder / "llama" / "generation_config.json").write_text(json.dumps(own), encoding="utf-8")
    write_rows(folder / "rows")
    noisy(np.random.default_rng(9), COLOURS["green"]).resize((20, 24)).save(folder / "image.png")
    return folder


def trial_of(place: Path, kind: str) -> TrialConfig:
    match kind:
        case "dinov2":
            data = {"dataset": f"parquet:{place / 'colours'}", "image_size": 16}
            return one_tower_trial("randlora", model=place / "a base", train=TRAIN, **data)
        case "roberta":
            return one_tower_trial("lora", model=place / "roberta", train=TRAIN, dataset=f"glue:{place / 'SST-2'}")
        case "bert":
            return one_tower_trial("lora", model=place / "bert", train=TRAIN, dataset=f"glue:{place / 'STS-B'}")
        case "llama" | "llama in bf16":
            train = TRAIN | {"base_weights": "bf16" if kind.endswith("bf16") else "fp32"}
            rule = {"no_repeat_ngram": 0 if kind.endswith("bf16") else 2}
            data = {"dataset": f"json:{place / 'rows'}", "evaluate": rule}
            return one_tower_trial("lora", model=place / "llama", train=train, **data)
        case _:
            return clip_trial(place, "lora", kind)


KINDS = ("dinov2", "vision", "both", "roberta", "bert", "llama", "llama in bf16")
INPUT = {"roberta": "A sentence.", "bert": "The first sentence.\tThe second sentence."}
QUESTION = "Is water wet?\n\nAnswer format: true/false"


@pytest.fixture(scope="module")
def trained(place: Path) -> dict[str, KeptTrial]:
    """By kind of model, a trial that kept its weights."""
    folders = {kind: keep_trials(place / f"results {kind}", [trial_of(place, kind)]) for kind in KINDS}
    return {kind: kept_trial(folder) for kind, folder in folders.items()}


def says(kept: KeptTrial, given: str) -> Answer:
    (answer,) = answers(load_trained(kept.config, kept.folder), [given])
    return answer


@pytest.mark.filterwarnings("ignore:Found missing adapter keys", "ignore:`is_gradient_checkpointing`")  # as it says
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in ("vision", "llama") else pytest.mark.slow) for kind in KINDS]
)
def test_the_code_in_the_readme_says_what_predict_says(
    place: Path, trained: dict[str, KeptTrial], kind: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    to = export_trial(trained[kind], tmp_path / "out", form)
    assert not [p for p in to.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    (to / "image.png").write_bytes((place / "image.png").read_bytes())
    monkeypatch.chdir(to)
    (code,) = re.findall(r"```python\n(.*?)```", (to / "README.md").read_text(), re.S)
    capsys.readouterr()
    found: dict[str, Any] = {}
    assert "from_pretrained(" not in code or "dtype=torch.float32" in code or kind in ("vision", "both")  # of any base
    assert ("bfloat16" in code) == (kind == "llama in bf16" and form != "merged")
    plain = code.replace(repr(QUESTION), repr("Is water wet?"))  # which names no choices
    exec(compile(plain, f"{kind} {form}", "exec"), found)
    printed = capsys.readouterr().out.splitlines()
    if kind.startswith("llama"):
        assert plain != code and says(trained[kind], "Is water wet?").answer == "\n".join(printed[:-1]).strip()
        exec(compile(code, f"{kind} {form}", "exec"), found)
        answer = says(trained[kind], QUESTION)
        assert capsys.readouterr().out.splitlines()[-1] == f"the correct answer is {answer.answer}"
        scores = torch.tensor([found["log_likelihood"](f"the correct answer is {w}") for w in ("true", "false")])
        assert float(scores.softmax(0).max()) == pytest.approx(answer.probability, abs=1e-4)
        return
    answer = says(trained[kind], INPUT.get(kind, str(place / "image.png")))
    if kind == "bert":  # a number
        assert float(printed[-1]) == pytest.approx(float(answer.answer), abs=1e-3)
        return
    assert printed[-1].startswith(answer.answer)
    assert float(found["probability"]) == pytest.approx(answer.probability, abs=1e-4)


def test_a_model_of_conversations_is_asked_by_its_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "chat", "llama")
    add_chat_template(tmp_path / "chat")
    for seed, which in enumerate(("train", "test")):
        lines = map(json.dumps, chat_rows(20, seed))
        (tmp_path / f"{which}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    trial = one_tower_trial("lora", model=tmp_path / "chat", train=TRAIN, dataset=f"sft:{tmp_path}")
    kept = kept_trial(keep_trials(tmp_path / "r", [trial]))
    assert Facts.read(kept.folder).chat
    to = export_trial(kept, tmp_path / "out", "adapter")
    monkeypatch.chdir(to)
    (code,) = re.findall(r"```python\n(.*?)```", (to / "README.md").read_text(), re.S)
    found: dict[str, Any] = {}
    exec(compile(code, "chat", "exec"), found)
    assert found["tokenizer"].decode(found["prompt"]).endswith(f"user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    assert says(kept, QUESTION).answer == capsys.readouterr().out.strip()


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_a_base_model_for_local(trained: dict[str, KeptTrial], kind: str, tmp_path: Path) -> None:
    to = export_trial(trained[kind], tmp_path / "out", "merged")
    before = load_trained(trained[kind].config, trained[kind].folder)
    again = load_model(f"local:{to}")
    assert (again.kind, again.preprocess) == (before.loaded.kind, before.facts.look)
    assert before.adapted is not None
    before.adapted.merge()
    old, new = before.loaded.module.state_dict(), again.module.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    if kind in ("vision", "both"):
        model, _ = open_clip.create_model_from_pretrained(f"local-dir:{to}")
        assert model.state_dict().keys() == old.keys()


@pytest.mark.parametrize("method", ["lora", "pissa"])  # which splits the base weights
def test_a_base_kept_in_bfloat16_predicts_as_it_was_trained_on(place: Path, tmp_path: Path, method: str) -> None:
    """Also where its files are float32, and out of a merged folder, whose weights have the rounding in them."""
    trial = trial_of(place, "llama in bf16").model_copy(update={"method": method})
    kept = kept_trial(keep_trials(tmp_path / "r", [trial]))
    before = load_trained(kept.config, kept.folder)
    assert before.adapted is not None
    merged = load_model(f"local:{export_trial(kept, tmp_path / 'out', 'merged')}").module.state_dict()
    before.adapted.detach()
    base, found = load_model(trial.model).module.state_dict(), before.loaded.module.state_dict()
    assert all(torch.equal(found[name], weight.bfloat16().float()) for name, weight in base.items())
    assert not all(torch.equal(found[name], weight) for name, weight in base.items())
    adapted = [name for name, _ in trial.capacities]
    assert all(torch.equal(merged[name], found[name]) != (name in adapted) for name in found)
    assert all((merged[name] - found[name]).abs().max() < 0.05 for name in adapted)


def test_what_was_kept_without_facts_reads_its_data(trained: dict[str, KeptTrial], place: Path, tmp_path: Path) -> None:
    """As results folders of before have it."""
    kept = trained["dinov2"]
    (kept.folder / FACTS_FILE).rename(tmp_path / FACTS_FILE)
    try:
        assert says(kept, str(place / "image.png")).answer in COLOURS
        to = export_trial(kept, tmp_path / "out")
        assert json.loads((to / FACTS_FILE).read_text())["classes"] == list(COLOURS)
    finally:
        (tmp_path / FACTS_FILE).rename(kept.folder / FACTS_FILE)


def test_facts_name_the_model_where_it_is_now(trained: dict[str, KeptTrial], tmp_path: Path) -> None:
    shutil.copytree(trained["dinov2"].folder, tmp_path / "kept")
    facts = Facts.read(tmp_path / "kept").model_copy(update={"model": "local:/gone", "dataset": "parquet:/gone"})
    facts.write(tmp_path / "kept")
    kept = replace(trained["dinov2"], folder=tmp_path / "kept")
    to = export_trial(kept, tmp_path / "out")
    assert "/gone" not in (to / FACTS_FILE).read_text() + (to / "README.md").read_text()


def test_inputs_that_a_model_cannot_take_are_named(trained: dict[str, KeptTrial], place: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json: not a readable image"):
        says(trained["vision"], str(place / "llama" / "config.json"))
    with pytest.raises(TrialError, match="two sentences with a tab between them"):
        says(trained["bert"], "One sentence.")
    for text in ("{", '{"kind": "clip", "model": "m", "dataset": "d", "templates": ["{0.__class__}"]}'):
        (tmp_path / FACTS_FILE).write_text(text)
        with pytest.raises(TrialError, match=r"predict\.json can't be read .*remove it, and the data are read"):
            Facts.read(tmp_path)
    shutil.copytree(trained["dinov2"].folder, tmp_path / "kept")
    facts = Facts.read(tmp_path / "kept")
    for change, said in (({"kind": "clip"}, "is of a clip model"), ({"classes": ("a",)}, "1 classes, and the head 4")):
        facts.model_copy(update=change).write(tmp_path / "kept")
        with pytest.raises(TrialError, match=said):
            load_trained(trained["dinov2"].config, tmp_path / "kept")


def test_a_probe_and_base_weights_come_out_too(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("linear-probe", "full-targets"):
        kept = kept_trial(keep_trials(tmp_path / method, [clip_trial(place, method, "vision")]))
        with pytest.raises(SpecError, match=rf"--form = 'peft': {method} trains no adapter.*--form merged"):
            export_trial(kept, tmp_path / "peft", "peft")
        expected = says(kept, str(place / "image.png"))
        for form in ("adapter", "merged"):
            to = export_trial(kept, tmp_path / f"{method} {form}", form)
            (to / "image.png").write_bytes((place / "image.png").read_bytes())
            monkeypatch.chdir(to)
            (code,) = re.findall(r"```python\n(.*?)```", (to / "README.md").read_text(), re.S)
            found: dict[str, Any] = {}
            exec(compile(code, f"{method} {form}", "exec"), found)
            assert float(found["probability"]) == pytest.approx(expected.probability, abs=1e-4)
        file = kept.folder / ("head.safetensors" if method == "linear-probe" else "weights.safetensors")
        if method == "full-targets":
            write_tensors(file, {"of.another": torch.zeros(1)})
            with pytest.raises(TrialError, match=r"weights\.safetensors has 'of\.another', which is no weight"):
                load_trained(kept.config, kept.folder)
        for damaged in (*flipped(file.read_bytes(), 4), file.read_bytes()[:-1]):
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=file.name):
                load_trained(kept.config, kept.folder)
        file.unlink()
        with pytest.raises(TrialError, match=rf"{file.name} is missing"):  # and not the untrained model
            load_trained(kept.config, kept.folder)


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_adapter_is_neither_exported_nor_asked(
    place: Path, trained: dict[str, KeptTrial], tmp_path: Path, form: str
) -> None:
    folder = shutil.copytree(trained["vision"].folder, tmp_path / "kept")
    kept = replace(trained["vision"], folder=folder)
    file = folder / "adapter.safetensors"
    for damaged in flipped(file.read_bytes(), 4):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"adapter\.safetensors is damaged or was changed"):
            export_trial(kept, tmp_path / "out", form)
        with pytest.raises(CheckpointError, match=r"adapter\.safetensors is damaged or was changed"):
            says(kept, str(place / "image.png"))
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_nothing(place: Path, tmp_path: Path) -> None:
    svft = kept_trial(keep_trials(tmp_path / "r", [clip_trial(place, "svft", "vision")]))
    with pytest.raises(SpecError, match=r"PEFT can't hold this adapter .*no SVFT.*--form merged"):
        export_trial(svft, tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(SpecError, match="exists; give a new folder"):
        export_trial(svft, tmp_path / "out")
    hydra = kept_trial(keep_trials(tmp_path / "h", [clip_trial(place, "hydralora", "vision")]))
    for form in ("peft", "merged"):
        with pytest.raises(SpecError, match=rf"--form = '{form}'.*--form adapter"):
            export_trial(hydra, tmp_path / "hydra", form)
    (svft.folder / "adapter.json").unlink()
    with pytest.raises(TrialError, match=r"adapter\.json is missing"):
        export_trial(svft, tmp_path / "other")


def test_names_from_outside_stay_words_in_the_readme(place: Path, tmp_path: Path) -> None:
    kept = kept_trial(keep_trials(tmp_path / "r", [clip_trial(place, "lora", "vision")]))
    kept.row["method"] = "../a:b/c"
    assert kept.name == "a-b-c-lora-4"  # the default folder
    kept.row["dataset"] = "x` <script>\x1b[31m\n# y"
    text = (export_trial(kept, tmp_path / "out") / "README.md").read_text()
    assert "\x1b" not in text and "`x' <script>" in text and "\n# y" not in text


def test_best_is_by_validation_and_never_by_test(place: Path, tmp_path: Path) -> None:
    trials = [clip_trial(place, "lora", "vision", data_seed=s) for s in (1, 2)] + [
        clip_trial(place, "vera", "vision", data_seed=1)
    ]
    folder = keep_trials(tmp_path / "r", trials, scores=(0.2, 0.9, 0.6))  # test scores fall as these rise
    ids = [trial.trial_id for trial in trials]
    assert kept_trial(folder).row["trial_id"] == ids[2]  # the best mean; ids[1] is the best trial
    assert kept_trial(folder, method="vera").row["trial_id"] == ids[2]
    assert kept_trial(folder, budget="lora-4").row["trial_id"] == ids[2]
    assert kept_trial(folder, ids[0][:6]).row["trial_id"] == ids[0]
    with pytest.raises(SpecError, match=r"--method = 'vera-': unknown method with kept weights; known: lora, vera"):
        kept_trial(folder, method="vera-")
    with pytest.raises(SpecError, match=r"--budget = 'lora-8'.*Nearest: lora-4"):
        kept_trial(folder, budget="lora-8")
    with pytest.raises(SpecError, match="is one trial already"):
        kept_trial(folder, ids[0], method="lora")
    with pytest.raises(SpecError, match="no such trial"):
        kept_trial(folder, "zzz")


def test_a_meaning_is_asked_in_the_form_of_training() -> None:
    facts = Facts(kind="causal-lm", model="m", dataset="d", rows="meanings", prompt=PLACE)
    ready = "name : Alimentum | Type : pub"
    assert _example(facts)["example"] == repr(ready)
    assert [_prompt_and_choices(facts, text)[0] for text in ("name[Alimentum], eatType[pub]", ready)] == [ready, ready]


def test_a_question_in_the_form_of_the_data_is_answered_by_a_label(trained: dict[str, KeptTrial]) -> None:
    row = instruction_rows(1, seed=7)[0]
    answer = says(trained["llama"], row["instruction"])
    assert answer.answer in ("answer1", "answer2", "answer3") and 1 / 3 <= (answer.probability or 0) <= 1
    before = load_trained(trained["llama"].config, trained["llama"].folder)
    by_text = replace(before, facts=before.facts.model_copy(update={"rows": "questions"}))
    (answer,) = answers(by_text, [row["instruction"]])
    assert answer.answer in THINGS.values() and answer.probability is None  # compared per byte


def test_an_export_that_was_killed_leaves_no_folder_of_that_name(
    trained: dict[str, KeptTrial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a model looks like one, and the same command would be refused."""
    there: list[bool] = []
    monkeypatch.setattr("sweeps.exporting.export.write_usage", lambda *_: there.append((tmp_path / "out").exists()))
    export_trial(trained["vision"], tmp_path / "out")
    assert there == [False]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
