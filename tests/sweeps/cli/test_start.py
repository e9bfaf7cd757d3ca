"""`init` and `data`: the file and the images that a sweep of one's own starts from."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path

import datasets
import pytest
from PIL import Image

from sweeps.cli.new_file import starter
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT, sweeps
from tests.trainables.tiny_language import completion_rows, save_model, write_rows
from tests.trainables.tiny_sentences import save_encoder, write_sst2
from trainables.data.registry import load_text_dataset
from trainables.data.text.looking import divide, id_of_files, id_of_hub
from trainables.errors import DataError


def test_init_then_plan(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert sweeps("init", str(path)).exit_code == 0
    again = sweeps("init", str(path))
    assert again.exit_code == 2
    assert "--force" in again.output
    assert sweeps("init", str(path), "--force").exit_code == 0
    for suffix in (".yaml", ".yml", ".json"):  # each would be read as what it says
        other = sweeps("init", path.with_suffix(suffix))
        assert other.exit_code == 2 and f"Nearest: {path}." in other.output.replace("\n", "")
        assert not path.with_suffix(suffix).exists()
    planned = sweeps("plan", str(path))
    assert planned.exit_code == 0, planned.output
    assert "randlora" in planned.output


def test_init_writes_an_example_or_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = json.loads(sweeps("init", "--list", "--json").stdout)
    assert listed.keys() >= {"quickstart", "paper/fig1-clip", "real/vit-dtd10"} and all(listed.values())
    assert not list(tmp_path.iterdir())
    assert sweeps("init", "--example", "paper/fig1-clip").exit_code == 0
    assert Path("fig1-clip.toml").read_bytes() == (ROOT / "examples" / "paper" / "fig1-clip.toml").read_bytes()
    for words, said in (
        (("--example", "quickstat"), "quickstart"),
        (("--example", "quickstart", "--name", "x"), "--set"),
        (("--data", "folder:nowhere"), "no folder nowhere"),
        (("--model", "embedded:tiny-clp"), "tiny-clip"),
        (("--name", "two words"), "name"),
    ):
        done = sweeps("init", "other.toml", *words)
        assert (done.exit_code, Path("other.toml").exists()) == (2, False) and said in done.output, words
    words = ("--data", "embedded:fashion-mnist-turned", "--model", "embedded:tiny-clip")
    assert sweeps("init", "own.toml", *words).exit_code == 0
    spec = SweepSpec.load(Path("own.toml"))
    assert (spec.name, spec.data.datasets, spec.model.adapt) == ("fashion-mnist-turned", (words[1],), "vision")
    assert spec.methods["full"].lr is None  # the starter's own is that of its model


def test_init_writes_a_name_of_any_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "photos📷" / part).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "photos📷" / part / "0.png")
    done = sweeps("init", "--data", "folder:photos📷")
    assert done.exit_code == 0, done.output
    assert SweepSpec.load(Path("sweep.toml")).data.datasets == ("folder:photos📷",)


@pytest.mark.parametrize(("family", "fits"), [("llama", True), ("roberta", False)])
def test_a_file_to_start_from_has_zero_shot_where_a_model_can(family: str, fits: bool, tmp_path: Path) -> None:
    texts = f"json:{write_rows(tmp_path / 'texts')}" if fits else f"glue:{write_sst2(tmp_path / 'SST-2')}"
    (save_model if fits else save_encoder)(tmp_path / "model", family)
    text = starter(texts, f"local:{tmp_path / 'model'}", "own")
    plan = Plan.from_spec(SweepSpec.parse(tomllib.loads(text)))
    assert ("zero-shot" in {cell.method for cell in plan.cells}) == fits
    assert '# base_weights = "bf16"' in text and "# gradient_checkpointing = true" in text


def test_data_says_what_is_in_a_folder(tmp_path: Path) -> None:
    for part, classes, count in (("train", "abc", 20), ("test", "ab", 3)):
        for k, name in enumerate(classes):
            folder = tmp_path / "own" / part / name
            folder.mkdir(parents=True)
            for i in range(count + k):
                Image.new("L", (8, 8), 10 * i % 255).save(folder / f"{i}.png")
    found = json.loads(sweeps("data", f"folder:{tmp_path / 'own'}", "--json").stdout)
    assert found["sizes"] == {"train": 57, "val": 6, "test": 7}
    assert (found["classes"], found["class_names"], found["test_lacks"]) == (3, ["a", "b", "c"], ["c"])
    assert found["per_class"] == "20 to 22 for train and validation" and "10 % of train" in found["split"]
    shown = sweeps("data", f"folder:{tmp_path / 'own'}").output
    assert "Weak evidence" in shown and "test split of own has no example of c" in shown
    (tmp_path / "own" / "val").symlink_to(tmp_path / "own" / "test")
    own = json.loads(sweeps("data", f"folder:{tmp_path / 'own'}", "--json").stdout)
    assert (own["sizes"]["val"], own["split"]) == (7, "the validation split is the set's own")
    assert "nearest" in sweeps("data", f"folder:{tmp_path / 'owm'}").output


def test_a_registered_set_is_described_by_each_of_its_names() -> None:
    """The word after @ names the place of the download. All else that is known of the set stays the same."""
    plain, hub = (json.loads(sweeps("data", name, "--json").stdout) for name in ("cifar100", "cifar100@hub"))
    assert hub == plain | {"name": "cifar100@hub"} and "cifar100@hub" in plain["further_sources"]
    assert sweeps("data", "cifar100@nowhere").exit_code == 2


def test_a_folder_of_classes_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    flat, new = tmp_path / "flat", tmp_path / "new"
    for name, count, shade in (("oak", 12, 0), ("silver_birch", 3, 200)):
        (flat / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), shade + 9 * i).save(flat / name / f"{i}.png")
        shutil.copy(flat / name / "0.png", flat / name / "copy.png")
    assert f"--split NEW` makes them of DIR{os.sep}CLASS" in " ".join(sweeps("data", f"folder:{flat}").output.split())
    found = json.loads(sweeps("data", "folder:~/flat", "--split", str(new), "--json").stdout)
    assert (found["name"], found["classes"], found["test_lacks"]) == (f"folder:{new}", 2, [])
    sides = {part: {p.read_bytes() for p in new.glob(f"{part}/*/*.png")} for part in ("train", "test")}
    assert not sides["train"] & sides["test"] and len(sides["test"]) == 3  # 2 of 12, and 1 of 3
    assert len(list(new.glob("*/*/*.png"))) == 12 + 3 + 2
    for words, said in (((flat, new), "exists already"), ((new / "train" / "oak", flat / "x"), "holds no CLASS/IMAGE")):
        refused = sweeps("data", f"folder:{words[0]}", "--split", str(words[1]))
        assert refused.exit_code == 2 and said in " ".join(refused.output.split())
    (tmp_path / "one" / "oak").mkdir(parents=True)
    shutil.copy(flat / "oak" / "0.png", tmp_path / "one" / "oak")
    refused = sweeps("data", f"folder:{tmp_path / 'one'}", "--split", str(tmp_path / "two"))
    assert refused.exit_code == 2 and "has one image" in refused.output and not (tmp_path / "two").exists()
    (tmp_path / "one" / "elm").mkdir()
    refused = sweeps("data", f"folder:{tmp_path / 'one'}", "--split", str(tmp_path / "two"))
    assert refused.exit_code == 2 and "holds no image" in " ".join(refused.output.split())
    shutil.copytree(flat, tmp_path / "same")
    shutil.copy(flat / "oak" / "3.png", tmp_path / "same" / "silver_birch" / "oak.png")
    refused = sweeps("data", f"folder:{tmp_path / 'same'}", "--split", str(tmp_path / "two"))
    assert refused.exit_code == 2 and "one image in two classes" in " ".join(refused.output.split())
    assert "Nearest: folder:DIR" in sweeps("data", "cifar100", "--split", str(tmp_path / "two")).output


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


def test_init_looks_at_text_files_and_writes_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one file of one's own, with columns of its own, to a plan."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "llama", "llama")
    _write(Path("all.jsonl"), [{"Question": f"{r['prompt']}", "reply": r["completion"]} for r in completion_rows(20)])
    refused = sweeps("init", "x.toml", "--data", "all.jsonl", "--model", "local:llama")
    assert refused.exit_code == 2 and "none of its columns (Question, reply) is known" in _flat(refused.output)
    named = "sft:all.jsonl?prompt=Question&completion=reply"
    made = json.loads(sweeps("data", named, "--split", "mine", "--json").stdout)
    assert made["name"] == "sft:mine?prompt=Question&completion=reply"
    assert (made["sizes"], made["metric"]) == ({"train": 15, "val": 1, "test": 4}, "likelihood")
    assert sweeps("init", "x.toml", "--data", made["name"], "--model", "local:llama").exit_code == 0
    spec = SweepSpec.load("x.toml")
    assert (spec.name, spec.data.datasets) == ("mine", (made["name"],))
    planned = sweeps("plan", "x.toml", "--set", "methods.full.lr=1e-4")
    assert planned.exit_code == 0, planned.output

    _write(Path("all.jsonl"), [{"Question": r["prompt"], "Answer": r["completion"]} for r in completion_rows(20)])
    refused = sweeps("init", "y.toml", "--data", "all.jsonl", "--model", "local:llama")
    assert refused.exit_code == 2
    assert "sweeps data 'sft:all.jsonl?prompt=Question&completion=Answer' --split NEW" in _flat(refused.output)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"train": {"messages": []}, "test": {}}, "sft:texts"),
        ({"train_sft": {"conversations": []}, "test_sft": {}, "train_gen": {}}, None),
        (
            {"train_sft": {"conversations": []}, "test_sft": {}},
            "sft:texts?messages=conversations&train=train_sft&test=test_sft",
        ),
        ({"train": {"instruction": "a", "choices": ["x"]}, "test": {}}, "json:texts"),
        ({"train": {"instruction": "a", "output": "b"}, "test": {}}, "sft:texts?prompt=instruction&completion=output"),
        ({"train": {"instruction": "a", "output": "b", "input": "c"}, "test": {}}, None),
        ({"train": {"text": "a"}, "test": {}}, None),
        ({"train": {"prompt": "a", "completion": "b"}, "dev": {}}, None),
    ],
)
def test_the_id_of_text_files_follows_from_their_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, dict[str, object]], found: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for which, row in files.items():
        _write(Path("texts") / f"{which}.jsonl", [row])
    if found is None:
        with pytest.raises(DataError, match=r"2 files called train|in 'input' beside|known to hold|no files called"):
            id_of_files(Path("texts"))
    else:
        assert id_of_files(Path("texts")) == found


def test_the_id_of_a_hub_set_follows_from_its_splits_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list([{"problem": "a", "solution": "b"}])
    given = datasets.DatasetDict({"train_sft": table, "test_sft": table, "validation": table})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: given)
    monkeypatch.setattr("trainables.data.downloads.hub_answers", lambda: True)
    found = "sft-hf:o/n?prompt=problem&completion=solution&train=train_sft&test=test_sft"
    assert id_of_hub("sft-hf:o/n") == found
    assert id_of_hub("sft-hf:o/n?config=small") == f"{found}&config=small"


def test_texts_need_a_model_that_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for which, seed in (("train", 0), ("test", 1)):
        _write(Path("mine") / f"{which}.jsonl", [*completion_rows(4, seed)])
    refused = sweeps("init", "x.toml", "--data", "mine")
    assert refused.exit_code == 2 and "--model hf:" in refused.output


def test_copies_of_a_prompt_stay_in_one_split(tmp_path: Path) -> None:
    rows = [row | {"completion": f" {k}"} for row in completion_rows(10) for k in range(3)]
    _write(tmp_path / "all.jsonl", [*rows])
    name = divide(f"sft:{tmp_path / 'all.jsonl'}", tmp_path / "all.jsonl", tmp_path / "new")
    data = load_text_dataset(name, stage="CONFIRM")
    train, test = ({row.prompt for row in part.rows} for part in (data.train, data.test))  # type: ignore[union-attr]
    assert (len(data.train), len(data.test), train & test) == (24, 6, set())
    with pytest.raises(DataError, match="exists already"):
        divide(name, tmp_path / "all.jsonl", tmp_path / "new")


def _flat(output: str) -> str:
    return " ".join(output.split())
