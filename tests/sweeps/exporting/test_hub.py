"""Models and results sent to a stub of the Hub on this machine; and what is refused before anything is sent."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow.parquet
import pytest
import yaml
from huggingface_hub import ModelCard

from analysis import open_store
from analysis.store.remote import Location
from sweeps.records.upload import Upload
from tests.analysis.diagnostics.support import tiny_results
from tests.stub_hub import StubHub, serving
from tests.support import ROOT, sweeps

QUICKSTART = ROOT / "docs" / "results" / "quickstart"
PUSH = ("--push", "me/q", "--license", "apache-2.0")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    with serving(monkeypatch) as found:
        yield found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of LoRA, RandLoRA and full fine-tuning on two seeds, with their weights and configurations."""
    folder = tiny_results(tmp_path_factory.mktemp("hub") / "tiny", seeds=2)
    (folder / "sweep.json").write_text(json.dumps({"name": "tiny"}), encoding="utf-8")
    return folder


def front(card: bytes) -> dict[str, Any]:
    _, block, _ = card.decode().split("---\n", 2)
    return dict(yaml.safe_load(block))


def test_a_model_is_sent_with_its_card(hub: StubHub, trained: Path, tmp_path: Path) -> None:
    kept = open_store(trained).sql("select trial_id from trials where method = 'randlora' order by slot").to_pylist()
    trial = kept[0]["trial_id"]
    done = sweeps("export", trained, trial, "--push", "team/model", "--license", "mit", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["url"] == f"{hub.url}/team/model" and answer["path"] is None  # written aside, and removed
    files = hub.files["models/team/model"]
    assert {"README.md", "adapter.json", "predict.json", "sweep.json"} <= files.keys()
    assert hub.private["models/team/model"]
    card = ModelCard(files["README.md"].decode())
    about = card.data.to_dict()
    assert (about["license"], about["pipeline_tag"]) == ("mit", "image-classification")
    assert set(about["tags"]) == {"randlora-sweeps", "randlora"}
    (cell,) = open_store(trained).sql("select * from scaling where method = 'randlora'").to_pylist()
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(100 * cell["mean"])
    assert (
        result.metric_type == "accuracy"
        and f"{100 * cell['low']:.1f} to {100 * cell['high']:.1f}" in result.metric_name
    )
    lines = dict(re.findall(r"^\| (\w.*?) \| (.+) \|$", card.text, re.M))
    assert lines["base model"] == "`embedded:tiny-clip`"
    assert lines["budget"].startswith("LoRA-2") and f"{cell['adapter_params']:,}" in lines["budget"]
    assert lines["minus LoRA at this budget"].endswith(("higher", "lower", "not distinguishable", "not tested"))
    assert '"name": "tiny"' in card.text


def test_results_are_sent_as_a_data_set_that_sweeps_reads_there(
    hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    done = sweeps("export", QUICKSTART, out, "--form", "results", *PUSH, "--public")
    assert done.exit_code == 0, done.output
    files = hub.files["datasets/me/q"]
    assert files == {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert not hub.private["datasets/me/q"]
    about = front(files["README.md"])
    assert about["license"] == "apache-2.0"
    for one in about["configs"]:  # as the Hub's viewer and `datasets` take them
        (path,) = out.glob(one["data_files"])
        assert pyarrow.parquet.read_metadata(path).num_rows > 0
    there, here = open_store("hf://datasets/me/q"), open_store(QUICKSTART)
    assert there.table("scaling").equals(here.table("scaling"))


def test_a_repository_that_exists_is_replaced_when_asked(hub: StubHub, tmp_path: Path) -> None:
    hub.files["datasets/me/q"] = {"old.parquet": b"old", ".gitattributes": b"kept"}
    hub.private["datasets/me/q"] = True
    refused = sweeps("export", QUICKSTART, tmp_path / "one", "--form", "results", *PUSH)
    assert refused.exit_code == 2 and "--overwrite" in refused.output and not hub.changes
    done = sweeps("export", QUICKSTART, tmp_path / "two", "--form", "results", *PUSH, "--overwrite")
    assert done.exit_code == 0, done.output
    assert "old.parquet" not in hub.files["datasets/me/q"] and "README.md" in hub.files["datasets/me/q"]


def nobody(hub: StubHub, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_TOKEN", "")
    patch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere/token")


def no_network(hub: StubHub, patch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        patch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")


def refuse_token(hub: StubHub, patch: pytest.MonkeyPatch) -> None:
    hub.refuses["/api/whoami-v2"] = (401, {"error": "Invalid username or password."})


def reader(hub: StubHub, patch: pytest.MonkeyPatch) -> None:
    hub.account["auth"]["accessToken"]["role"] = "read"


def bad_card(hub: StubHub, patch: pytest.MonkeyPatch) -> None:
    hub.refuses["/api/validate-yaml"] = (400, {"errors": [{"message": "license must be one of"}]})


def nothing(hub: StubHub, patch: pytest.MonkeyPatch) -> None: ...


@pytest.mark.parametrize(
    ("words", "cause", "said"),
    [
        (PUSH, nobody, "hf auth login"),
        (PUSH, no_network, "out of reach"),
        (PUSH, refuse_token, "refuses the token"),
        (PUSH, reader, "may only read"),
        (PUSH, bad_card, "license must be one of"),
        (("--push", "me/q"), nothing, "--license"),
        (("--push", "q", "--license", "mit"), nothing, "ORG/q"),
        (("--push", "you/q", "--license", "mit"), nothing, "me/q"),
        (("--push", "me//q", "--license", "mit"), nothing, "ORG/NAME"),
        (("--public",), nothing, "--push ORG/NAME"),
    ],
)
def test_what_is_wrong_is_one_error_before_anything_is_sent(
    hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], cause: Any, said: str
) -> None:
    cause(hub, monkeypatch)
    refused = sweeps("export", QUICKSTART, tmp_path / "out", "--form", "results", *words)
    assert refused.exit_code == 2 and refused.output.count("error: ") == 1
    assert said in " ".join(refused.output.split())
    assert not hub.changes and not hub.files


def test_without_the_flag_nothing_is_asked(hub: StubHub, tmp_path: Path) -> None:
    assert sweeps("export", QUICKSTART, tmp_path / "out", "--form", "results").exit_code == 0
    assert not hub.asked and "license" not in front((tmp_path / "out" / "README.md").read_bytes())
    taken = sweeps("export", QUICKSTART, tmp_path / "out", "--form", "results")
    assert taken.exit_code == 2 and "exists" in taken.output
    mixed = sweeps("export", QUICKSTART, "3fa9", tmp_path / "x", "--form", "results")
    assert mixed.exit_code == 2 and "3fa9" in mixed.output


def test_an_upload_goes_to_a_data_set_of_the_hub(hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--upload hf://datasets/ORG/NAME/FOLDER`: into a repository that exists, each file once."""
    monkeypatch.setenv("SWEEPS_CACHE", str(tmp_path / "cache"))
    hub.files["datasets/me/runs"], hub.private["datasets/me/runs"] = {".gitattributes": b""}, True
    uri = "hf://datasets/me/runs/quickstart"
    assert Upload(QUICKSTART, Location.of(uri)).copy_now() is None
    sent = len(hub.changes)
    assert sent == len(hub.files["datasets/me/runs"]) - 1
    assert Upload(QUICKSTART, Location.of(uri)).copy_now() is None  # the small files of a new driver alone
    assert not [path for path in hub.files["datasets/me/runs"] if not path.startswith(("quickstart/", ".git"))]
    assert open_store(uri).table("scaling").equals(open_store(QUICKSTART).table("scaling"))
