"""What is looked at before a sweep starts: images that open, data that is still the same, a folder that can be made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from randlora import METHODS
from sweeps.backends.needs import Needs
from sweeps.backends.ray.backend import using
from sweeps.backends.resources import ResourceError
from sweeps.cli.plan import weak_of
from sweeps.engine.run import run
from sweeps.errors import Problem, SpecError
from sweeps.plan import digests, inputs, split_sizes
from sweeps.plan.digests import fingerprint, label_digest, model_digest, sliced_digest
from sweeps.plan.inputs import check_files, check_inputs
from sweeps.plan.plan import Plan
from sweeps.spec.sections import ModelSection
from sweeps.spec.spec import SweepSpec
from tests.fakes import TRIAL, FakeCell, fake_plan
from tests.support import sweeps
from tests.sweeps.support import PAIR, begin
from tests.trainables.tiny_language import add_chat_template, chat_rows, save_model
from trainables.data.downloads import DataWarning
from trainables.data.images.dataset import ImageSplit
from trainables.data.registry import load_dataset
from trainables.data.splits import split_of
from trainables.errors import DataError
from trainables.metrics.texts import LIBRARIES
from trainables.models.families import EMBEDDED, ModelError
from trainables.models.loading import tokenizer_of


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of eight images, and of two for the test."""
    for part, count, more in (("train", 8, 0), ("test", 2, 20)):
        for shade, name in ((40, "shirt"), (200, "shoe")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.new("L", (28, 28), shade + k + more).save(folder / f"{k}.png")
    return tmp_path / "images"


def plan(images: Path, output: str, **data: object) -> Plan:
    tree = {
        "name": "t",
        "output": output,
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "data": {"datasets": [f"folder:{images}"], **data},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}},
    }
    return Plan.from_spec(SweepSpec.parse(tree))


@pytest.mark.parametrize("which", ["train", "test"])  # test's would stop CONFIRM, after all of TUNE
def test_a_damaged_image_is_named(images: Path, tmp_path: Path, which: str) -> None:
    next(iter(sorted((images / which / "shoe").iterdir()))).write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=rf"{which} row \d+ .*\.png"):
        check_inputs(plan(images, str(tmp_path / "r")))


def test_weights_that_cannot_be_had_stop_a_sweep_that_leaves_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(model_id: str) -> NoReturn:
        raise ModelError(f"{model_id!r}: no copy")

    monkeypatch.setattr(inputs, "check_weights", unknown)
    with pytest.raises(ModelError, match="no copy"):
        check_inputs(plan(images, str(tmp_path / "r")))
    assert not (tmp_path / "r").exists()


def test_all_data_that_is_missing_is_named_at_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = images.parent
    monkeypatch.setenv("SWEEPS_DATA", str(there / "nowhere"))
    names = [f"folder:{images}", "ucf101", "imagenet@torchvision"]
    planned = plan(images, str(there / "r"), datasets=names)
    with pytest.raises(DataError) as caught:
        check_inputs(planned)
    first, *lines, last = str(caught.value).splitlines()
    assert first == "2 data sets can't be had:"
    assert [name in line for name, line in zip(names[1:], lines, strict=True)] == [True, True]
    assert "put UCF-101-midframes/" in lines[0] and last == "--available runs the others"
    assert not (there / "r").exists() or not list((there / "r").iterdir())
    with pytest.raises(DataError, match=r"^(?!2)[^\n]*ucf101[^\n]*$"):  # one alone is its own message
        check_inputs(plan(images, str(there / "r"), datasets=names[:2]))


def test_bad_images_may_be_skipped(images: Path, tmp_path: Path) -> None:
    (images / "train" / "shoe" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    planned = plan(images, str(tmp_path / "r"), skip_bad=True)
    check_inputs(planned)
    assert planned.cells[0].trial("CONFIRM", 1e-3, (0, 0, 0), planned.spec.train).skip_bad
    assert planned.spec.identity()["data"] == {"skip_bad": True}
    assert "data" not in plan(images, str(tmp_path / "r")).spec.identity()


def test_other_data_under_the_same_name_is_refused(images: Path, tmp_path: Path) -> None:
    planned = plan(images, str(tmp_path / "r"))
    check_inputs(planned)
    begin(planned)
    check_inputs(planned)
    (images / "test" / "shoe" / "1.png").unlink()
    with pytest.raises(SpecError, match="not the data that the trials"):
        check_inputs(planned)


def test_data_that_no_trial_has_seen_may_change(images: Path, tmp_path: Path) -> None:
    """As after Ctrl-C during the estimate."""
    planned, record = plan(images, str(tmp_path / "r")), tmp_path / "r" / "data.json"
    check_inputs(planned)
    begin(Plan(planned.spec, (FakeCell("lora"),)))  # of other data
    before = record.read_text()
    (images / "test" / "shoe" / "1.png").unlink()
    check_inputs(planned)
    assert record.read_text() != before


@pytest.mark.parametrize("words", [{"templates": ["a sketch of a {}."]}, {"prompt": "A sketch of a {}"}])
def test_prompts_belong_to_the_data(images: Path, tmp_path: Path, words: dict[str, object]) -> None:
    planned, record = plan(images, str(tmp_path / "r")), tmp_path / "r" / "data.json"
    check_inputs(planned)
    begin(planned)
    new = record.read_text()
    record.write_text(json.dumps({name: digest.partition(" ")[0] for name, digest in json.loads(new).items()}))
    check_inputs(planned)  # by an older version's digest
    assert record.read_text() == new
    (images / "dataset.json").write_text(json.dumps(words))
    with pytest.raises(SpecError, match="its examples, labels or prompts changed"):
        check_inputs(planned)


def test_other_weights_of_a_local_model_are_refused(images: Path, tmp_path: Path) -> None:
    model = shutil.copytree(EMBEDDED["tiny-clip"], tmp_path / "model")
    planned = plan(images, str(tmp_path / "r"))
    spec = planned.spec.model_copy(update={"model": ModelSection(id=f"local:{model}", adapt="vision")})
    planned = Plan.from_spec(spec)
    check_inputs(planned)
    begin(planned)
    check_inputs(planned)
    (weights,) = model.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(
        SpecError, match=r"model\.id = .*is not the model that the trials .* used \(its files changed\)"
    ):
        check_inputs(planned)
    assert model_digest("embedded:tiny-clip") is None
    before = model_digest(f"local:{model}")
    (model / "vocab.txt").write_text("cat\ndog\n")
    between = model_digest(f"local:{model}")
    (model / "vocab.txt").write_text("dog\ncat\n")
    after = model_digest(f"local:{model}")
    (model / "chat_template.jinja").write_text("{{ messages }}")  # it decides the tokens
    assert len({before, between, after, model_digest(f"local:{model}")}) == 4


def _large_model(folder: Path) -> Path:
    """A local model with a file of weights that is large enough for slices; returns the file."""
    shutil.copytree(EMBEDDED["tiny-clip"], folder)
    weights = folder / "more.safetensors"
    weights.write_bytes(bytes(64 * 2**16) + os.urandom(3 * 2**20))
    return weights


def test_weights_changed_between_the_slices_of_older_versions_are_refused(images: Path, tmp_path: Path) -> None:
    weights, record = _large_model(tmp_path / "model"), tmp_path / "r" / "data.json"
    name = f"local:{tmp_path / 'model'}"
    planned = Plan.from_spec(
        plan(images, str(tmp_path / "r")).spec.model_copy(update={"model": ModelSection(id=name, adapt="vision")})
    )
    begin(planned)
    record.write_text(json.dumps({name: sliced_digest(name)}))
    check_inputs(planned)  # a folder of an older version, with the same weights
    assert json.loads(record.read_text())[name] == model_digest(name) != sliced_digest(name)
    data, was, old = bytearray(weights.read_bytes()), weights.stat(), sliced_digest(name)
    step = (len(data) - 2**16) // 63
    data[2**16 + (step - 2**16) // 2] ^= 1  # between the first slice and the second
    weights.write_bytes(data)
    os.utime(weights, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert sliced_digest(name) == old
    with pytest.raises(SpecError, match=r"model\.id = .*is not the model that the trials .* used"):
        check_inputs(planned)
    data[0] ^= 1
    weights.write_bytes(data)
    record.write_text(json.dumps({name: old}))
    with pytest.raises(SpecError, match=r"model\.id = .*is not the model that the trials .* used"):
        check_inputs(planned)


@pytest.mark.parametrize("terminal", [False, True])
def test_hashing_large_weights_for_the_first_time_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setenv("SWEEPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("trainables.digests.SETTLED_S", 0.0)
    monkeypatch.setattr(digests, "_SHORT" if terminal else "_LONG", 2**20)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    _large_model(tmp_path / "model")
    for k in range(2):
        model_digest(f"local:{tmp_path / 'model'}")
        assert ("reading the weights in model" in capfd.readouterr().err) == (k == 0)


def test_a_hub_model_that_moved_is_refused(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, hub, record = "facebook/dinov2-base", tmp_path / "models--facebook--dinov2-base", tmp_path / "r/data.json"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    kept = ("refs/main", *(f"snapshots/{c}/{n}" for c in "ab" for n in ("config.json", "model.safetensors")))
    for path in kept:
        (hub / path).parent.mkdir(parents=True, exist_ok=True)
        (hub / path).write_text("a")
    spec = plan(images, str(tmp_path / "r")).spec
    planned = Plan.from_spec(spec.model_copy(update={"model": ModelSection(id=f"hf:{name}", adapt="all")}))
    begin(planned)
    check_inputs(planned)  # a folder of an older version does not know its commit
    assert json.loads(record.read_text())[f"hf:{name}"] == "commit:a"
    (hub / "refs" / "main").write_text("b")
    with pytest.raises(SpecError, match=r"model\.id = .*is not the model that the trials .*has another commit"):
        check_inputs(planned)
    (hub / "refs" / "main").unlink()
    assert model_digest(f"hf:{name}") is None


# refusing resources starts a session of Ray, which takes seconds
@pytest.mark.parametrize("wrong", ["data", pytest.param("resources", marks=pytest.mark.slow)])
def test_a_refused_run_leaves_no_folder_behind(images: Path, tmp_path: Path, wrong: str) -> None:
    folder = tmp_path / "results" / "r"
    planned, said = plan(images, str(folder)), r"3\.png"
    if wrong == "data":
        (images / "train" / "shoe" / "3.png").write_bytes(b"no image")
    else:
        asked = planned.spec.resources.model_copy(update={"cpus_per_worker": 4096})
        planned = Plan.from_spec(planned.spec.model_copy(update={"resources": asked}))
        said = "cpus_per_worker = 4096"
    with pytest.raises((DataError, SpecError), match=said):
        run(planned, progress=False)
    assert not folder.exists()
    file = tmp_path / "sweep.json"
    file.write_text(planned.spec.model_dump_json(exclude_none=True))
    assert sweeps("run", file, "--quiet").exit_code == 2 and not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").touch()  # of the user
    with pytest.raises((DataError, SpecError), match=said):
        run(planned, progress=False)
    assert (folder / "notes.txt").is_file()


def recolour(images: Path) -> None:
    """Other pixels in every image, under the same names."""
    for path in images.rglob("*.png"):
        with Image.open(path) as image:
            other = image.point(lambda value: value // 2)
        other.save(path)


def test_other_pixels_under_the_same_names_are_refused(images: Path, tmp_path: Path) -> None:
    planned, journal = plan(images, str(tmp_path / "r")), tmp_path / "r" / "journal.jsonl"
    check_inputs(planned)
    begin(planned)
    before = journal.read_bytes()
    recolour(images)
    with pytest.raises(SpecError, match="not the data that the trials"):
        run(planned, progress=False)  # from Python too
    assert journal.read_bytes() == before


def test_a_folder_of_an_older_version_is_compared_by_its_labels(images: Path, tmp_path: Path) -> None:
    planned, name = plan(images, str(tmp_path / "r")), f"folder:{images}"
    record = tmp_path / "r" / "data.json"
    begin(planned)
    old = label_digest(split_sizes.loaded(name))
    record.write_text(json.dumps({name: "0" * 64}))
    with pytest.raises(SpecError, match="not the data that the trials"):
        check_inputs(planned)
    record.write_text(json.dumps({name: old, "gone": "1" * 64}))
    check_inputs(planned)
    written = json.loads(record.read_text())
    assert written["gone"] == "1" * 64
    assert written[name] != old  # from now on the images count
    recolour(images)
    with pytest.raises(SpecError, match="not the data that the trials"):
        check_inputs(planned)


@pytest.mark.parametrize("copy", [shutil.copytree, lambda old, new: Path(new).symlink_to(old)])
def test_a_test_split_that_copies_train_is_refused(
    images: Path, tmp_path: Path, copy: Callable[[Path, Path], object]
) -> None:
    shutil.rmtree(images / "test")
    copy(images / "train", images / "test")
    with pytest.raises(SpecError, match=r"16 of 16 test examples are in train.*test/shirt/0\.png is .*train/shirt/0"):
        check_inputs(plan(images, str(tmp_path / "r")))
    assert not (tmp_path / "r").exists()


def test_plan_and_data_say_what_a_run_refuses(images: Path, tmp_path: Path) -> None:
    """A run refused a test split that stands in train by nine tenths, and `plan` and `data` had no word on it."""
    for k in range(54):
        Image.new("L", (28, 28), k).save(images / "train" / "shoe" / f"more{k}.png")
        Image.new("L", (28, 28), k).save(images / "test" / "shoe" / f"more{k}.png")
    file = tmp_path / "t.toml"
    file.write_text(
        f'''name = "t"\noutput = "{tmp_path / "r"}"\ndata.datasets = ["folder:{images}"]\nbudgets.lora_rank = [1]
        methods.lora = {{}}\nmodel = {{id = "embedded:tiny-clip", adapt = "vision"}}\n'''
    )
    with pytest.raises(SpecError, match="of 58 test examples are in train"):
        check_inputs(Plan.from_spec(SweepSpec.load(file)))
    refused = sweeps("plan", file)
    assert refused.exit_code == 2 and "of 58 test examples are in train" in " ".join(refused.output.split())
    found = json.loads(sweeps("data", f"folder:{images}", "--json").stdout)
    assert found["test_in_train"] >= 54 and found["shared"].endswith("a run refuses this")
    assert "a run refuses this" in " ".join(sweeps("data", f"folder:{images}").output.split())
    assert not (tmp_path / "r").exists()


def test_an_example_in_both_splits_is_named(images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "train" / "shoe" / "3.png", images / "test" / "shoe" / "9.png")
    with pytest.warns(DataWarning, match=r"1 of 5 test examples .*test/shoe/9\.png is .*train/shoe/3\.png"):
        check_inputs(plan(images, str(tmp_path / "r")))


def test_texts_in_both_splits_are_refused(tmp_path: Path) -> None:
    rows = [{"instruction": f"What is {n}?", "output": str(n)} for n in range(20)]
    for part in ("train", "test"):
        (tmp_path / f"{part}.json").write_text(json.dumps(rows))
    with pytest.raises(SpecError, match=r"20 of 20 test examples are in train.*test\.json, row 0 is .*train\.json"):
        fingerprint(split_sizes.loaded(f"json:{tmp_path}"))


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """A folder with a tiny Llama that has a chat template, and conversations in train.jsonl and test.jsonl."""
    save_model(tmp_path / "llama", "llama")
    add_chat_template(tmp_path / "llama")
    for which, n, seed in (("train", 20, 0), ("test", 6, 1)):
        lines = map(json.dumps, chat_rows(n, seed))
        (tmp_path / f"{which}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def of_chats(folder: Path, **train: Any) -> Plan:
    """The plan of a small sweep on them."""
    return Plan.from_spec(
        SweepSpec.parse(
            {
                "name": "chats",
                "output": str(folder / "r"),
                "model": {"id": f"local:{folder / 'llama'}"},
                "data": {"datasets": [f"sft:{folder}"]},
                "budgets": {"lora_rank": [2]},
                "methods": {"lora": {}},
                "train": train,
            }
        )
    )


def test_conversations_are_written_as_tokens_before_a_run(chats: Path) -> None:
    check_inputs(of_chats(chats))
    assert (chats / "r" / "data.json").exists()
    lengths = [len(ids) for ids in _lengths(chats)]
    words = rf"train texts have more tokens than train\.max_tokens = {max(lengths) - 1}, .* longest has {max(lengths)}"
    with pytest.warns(DataWarning, match=words):
        check_files(of_chats(chats, max_tokens=max(lengths) - 1))


def _lengths(folder: Path) -> list[list[int]]:
    tokenizer, _ = tokenizer_of(f"local:{folder / 'llama'}")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [tokenizer.apply_chat_template(r["messages"], tokenize=True, return_dict=True)["input_ids"] for r in rows]


@pytest.mark.parametrize(
    ("wrong", "field", "words"),
    [
        ("short", "train.max_tokens", r"train\.jsonl, row 0: what is learned begins at token \d+"),
        ("template", "data.datasets", "has no chat template"),
        ("shared", "data.datasets", "6 of 6 test examples are in train"),
        ("column", "data.datasets", r"test\.jsonl, row 0: no column 'prompt'"),
    ],
)
def test_plan_refuses_conversations_that_a_run_would(chats: Path, wrong: str, field: str, words: str) -> None:
    train = {"max_tokens": 4} if wrong == "short" else {}
    if wrong == "template":
        (chats / "llama" / "chat_template.jinja").unlink()
    if wrong == "shared":
        both = [(chats / f"{which}.jsonl").read_text() for which in ("train", "test")]
        (chats / "train.jsonl").write_text("\n".join(both))
    if wrong == "column":
        (chats / "test.jsonl").write_text('{"text": "a"}')
    with pytest.raises((SpecError, DataError), match=words) as error:
        check_files(of_chats(chats, **train))
    if isinstance(error.value, SpecError):
        assert error.value.problems[0].field == field
    else:
        assert wrong == "column"


def _another_users(cache: Path) -> None:
    raise PermissionError(f"{cache} is another user's")


def _no_image(part: object, *_: object) -> bytes:
    raise DataError(f"{part} is read again")


def _as_parquet(images: Path, to: Path, change: int = 0) -> None:
    """Write the images as tables, uncompressed, so that changed bytes leave a file's size as it was."""
    to.mkdir(exist_ok=True)
    for which in ("train", "test"):
        files = sorted((images / which).rglob("*.png"))
        encoded = [file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ change]) for file in files]
        labels = [file.parent.name for file in files]
        table = pa.table({"image": pa.array(encoded, pa.binary()), "label": labels})
        pq.write_table(table, to / f"{which}.parquet", compression="none", use_dictionary=False)


@pytest.mark.parametrize("table", [False, True])
def test_digests_of_images_are_kept_until_a_file_changes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: bool
) -> None:
    """Also if files are as large and as old as they were."""
    monkeypatch.setattr(digests, "MANY", 2)
    monkeypatch.setattr("trainables.digests.SETTLED_S", 0.0)
    monkeypatch.setenv("SWEEPS_CACHE", str(tmp_path / "cache"))
    folder, name = images, f"folder:{images}"
    if table:
        folder = tmp_path / "tables"
        _as_parquet(images, folder)
        name = f"parquet:{folder}"
    planned = plan(images, str(tmp_path / "r"), datasets=[name])
    check_inputs(planned)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as patch:
        patch.setattr(ImageSplit, "digest", None)  # nothing is read again
        patch.setattr("trainables.digests._read", None)
        check_inputs(planned)
    with monkeypatch.context() as patch:
        patch.setattr(f"{'sweeps.plan' if table else 'trainables'}.digests.check_owner", _another_users)
        patch.setattr(ImageSplit, "digest", _no_image)
        patch.setattr("trainables.digests._read", _no_image)
        with pytest.raises(DataError, match="read again"):  # nothing in it is believed
            check_inputs(planned)
    begin(planned)
    before = {path: path.stat() for path in folder.rglob("*.*")}
    if table:
        _as_parquet(images, folder, change=1)
    else:
        for path in images.rglob("*.png"):
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    for path, was in before.items():
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    with pytest.raises(SpecError, match="not the data that the trials"):
        check_inputs(planned)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "[" * 100_000, "\udcff"])
def test_a_damaged_record_of_the_data_is_named(images: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "data.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SpecError, match=r"data\.json.*not a JSON object of data sets.*restore it, or remove it"):
        check_inputs(plan(images, str(tmp_path / "r")))


def test_a_folder_that_cannot_be_made(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=r"output = .*choose another output"):
        check_inputs(plan(images, str(tmp_path / "file" / "r")))


@pytest.mark.parametrize(("select", "kept"), [("last", 0), ("best", 1)])
def test_rows_kept_for_selection_are_counted(images: Path, select: str, kept: int) -> None:
    """Under protocol "paper" workers keep them apart; plans counted no validation, and too many to train on."""
    tree = {
        "name": "t",
        "protocol": "paper",
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "data": {"datasets": [f"folder:{images}"]},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}},
        "train": {"select": select},
    }
    planned = Plan.from_spec(SweepSpec.parse(tree))
    (cell,) = planned.cells
    rows = split_of(load_dataset(cell.dataset), cell.trial("CONFIRM", 1e-3, (0, 0, 0), planned.spec.train))
    assert split_sizes.split_sizes(cell)[:2] == (len(rows.train_idx), len(rows.val_idx)) == (16 - kept, kept)
    assert len(split_sizes.fewer_words([replace(cell, train_size="8-shot")])) == kept


def test_a_plan_knows_small_splits_and_classes_that_test_lacks(images: Path, tmp_path: Path) -> None:
    shutil.rmtree(images / "test" / "shoe")
    before = plan(images, str(tmp_path / "out"))
    (cell,) = before.with_sizes(download=False).cells
    assert (cell.val_examples, cell.test_examples, cell.test_lacks) == (1, 2, ("shoe",))
    assert (before.cells[0].val_examples, cell.cell_id) == (None, before.cells[0].cell_id)
    said = weak_of(before.with_sizes(download=False))
    assert "validation" in said[0] and "100.0 %" in said[0] and "test" in said[1] and "50.0 %" in said[1]
    assert said[2].startswith("The test split of images has no example of shoe")
    registered = plan(images, str(tmp_path / "out"), datasets=["cifar10"])
    assert registered.with_sizes(download=False) == registered  # it may not be here


@pytest.mark.parametrize(
    ("budgets", "methods", "instead"),
    [
        ({"params": [5000]}, {"lora": {}, "dora": {}}, {"params-5000": "budgets.params = [4608]"}),
        ({"lora_rank": [1, 2]}, {"lora": {}, "vera": {}}, {"lora-2": "budgets.lora_rank = [1]"}),
        ({"lora_rank": [16]}, {"lora": {}, "vera": {}}, {}),  # none near it
        ({"lora_rank": [16]}, {"lora": {}, "vera": {"unmatched": True}}, {}),
    ],
)
def test_a_budget_that_every_method_reaches(budgets: object, methods: object, instead: dict[str, str]) -> None:
    model = {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["attn.in_proj_weight"]}
    tree = {"name": "t", "model": model, "data": {"datasets": ["embedded:fashion-mnist"]}}
    planned = Plan.from_spec(SweepSpec.parse({**tree, "budgets": budgets, "methods": methods}))
    assert planned.reachable_budgets() == instead
    for reference, budget in instead.items():
        again = SweepSpec.parse(
            {**tree, "methods": methods, "budgets": {budget[8:].split(" ")[0]: json.loads(budget.split(" = ")[1])}}
        )
        assert all(cell.feasible for cell in Plan.from_spec(again).cells), reference


def test_what_trials_need_of_each_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = (
        FakeCell("lora", model="local:m/a.gguf", dataset="e2e:texts"),
        FakeCell("mine", model="local:m/a.gguf", dataset="pets", base="peft:miss"),
        FakeCell("full", None, model="local:m/a.gguf", dataset="pets"),
        FakeCell("vera", dataset="json:/far", absent="not here"),
    )
    assert inputs.needs_of(fake_plan(tmp_path, cells), "mine.trials:run") == Needs(
        (f"{tmp_path}/m/a.gguf", f"{tmp_path}/texts"), ("lora", "peft:miss"), ("mine.trials", "gguf", *LIBRARIES)
    )


def test_machines_of_a_cluster_are_asked_for_it_before_a_trial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Needs] = []

    def lacking(storage: Path, needs: Needs) -> None:
        asked.append(needs)
        raise ResourceError([Problem("--address", "n2 10.0.0.2", "lacks /data")])

    monkeypatch.setattr("sweeps.backends.ray.backend.check_nodes", lacking)
    pool: Any = SimpleNamespace(address="head:1")
    plan = fake_plan(tmp_path / "r", PAIR)
    with pytest.raises(ResourceError, match=r"n2 10\.0\.0\.2.*lacks /data"):
        run(plan, backend=using(pool), trial=TRIAL, progress=False)
    assert asked == [inputs.needs_of(plan, TRIAL)] and not (tmp_path / "r").exists()


def test_a_count_that_differs_from_what_is_built_is_a_problem_of_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    true = METHODS["lora"]
    wrong = replace(true, count=lambda shape, capacity, **options: true.count(shape, capacity, **options) - 1)
    monkeypatch.setitem(METHODS.registered, "lora", wrong)
    tree = {"name": "t", "model": {"id": "embedded:tiny-clip"}, "data": {"datasets": ["embedded:fashion-mnist"]}}
    tree |= {"budgets": {"lora_rank": [4]}, "methods": {"lora": {}}}
    with pytest.raises(SpecError) as raised:
        Plan.from_spec(SweepSpec.parse(tree))
    rules = {problem.field: problem.rule for problem in raised.value.problems}
    assert "count must agree with build. randlora.testing.check('lora') shows where" in rules["methods.lora"]
