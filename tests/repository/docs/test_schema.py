"""The published schema of sweep files, and the list of pages for programs: current, and true of what they list."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from sweeps.cli.new_file import examples, starter
from sweeps.errors import SpecError
from sweeps.spec.schema import FILE, schema, schema_text
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT, sweeps
from tools.pages import llms_text

LEAST: dict[str, Any] = {
    "name": "t",
    "model": {"id": "embedded:tiny-clip"},
    "data": {"datasets": ["embedded:fashion-mnist"]},
    "budgets": {"lora_rank": [1]},
    "methods": {"lora": {}},
}


def wrong(tree: dict[str, Any]) -> list[str]:
    """What the schema finds wrong in a sweep file."""
    errors = jsonschema.Draft202012Validator(schema()).iter_errors(tree)
    return [".".join(map(str, error.path)) for error in errors]


def test_the_published_schema_is_current_and_itself_valid() -> None:
    published = (ROOT / "docs" / FILE).read_text(encoding="utf-8")
    assert published == schema_text(), "run: python -m tools.pages"
    jsonschema.Draft202012Validator.check_schema(json.loads(published))


@pytest.mark.parametrize("name", examples())
def test_every_example_is_valid(name: str) -> None:
    assert wrong(tomllib.loads(examples()[name].read_text(encoding="utf-8"))) == []


def test_the_starter_is_valid_and_names_the_file_that_init_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = starter(None, None, None)
    assert wrong(tomllib.loads(text)) == []
    named = re.match(r"#:schema \./(\S+)\n", text)
    monkeypatch.chdir(tmp_path)
    assert json.loads(sweeps("init", "--schema", "--json").stdout) == {"path": FILE}
    assert named is not None and (tmp_path / named[1]).read_text(encoding="utf-8") == schema_text()
    again = sweeps("init", "--schema")
    assert again.exit_code == 2 and "--force" in again.output


def test_every_key_has_its_meaning() -> None:
    found = schema()
    for part in (found, *found["$defs"].values()):
        assert all(key.get("description") for key in part["properties"].values())
    keys = found["$defs"]["SearchSection"]["properties"]
    assert "Trials of stage TUNE" in keys["trials"]["description"]


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("confirm", {"seeds": 3}),
        ("confirm", {"seeds": [1, 5]}),
        ("data", LEAST["data"] | {"train_size": "16-shot"}),
        ("data", LEAST["data"] | {"train_size": [1.0, "4-shot"]}),
        ("methods", {"lora": {"lr": 1e-3, "alpha": 2.0}}),
        ("methods", {"lora": {"lr": {"low": 1e-4, "high": 1e-2}, "space": {"dropout": [0.0, 0.1]}}}),
        ("methods", {"lora": {"capacity": [1, 2]}}),
        ("search", {"space": {"alpha": {"low": 1, "high": 64, "log": True}, "dropout": [0.0, 0.1]}}),
        ("search", {"warm_start": "published", "allowance": {"samples": 500_000}}),
        ("resources", {"priority": "lora"}),
        ("train", {"head_lr": "lr", "max_tokens": 64}),
        ("small", {"drop": ["methods.vera"], "confirm": {"seeds": 1}}),
    ],
)
def test_what_the_program_reads_the_schema_takes(section: str, values: dict[str, Any]) -> None:
    tree = LEAST | {section: values}
    SweepSpec.parse({key: value for key, value in tree.items() if key != "small"})
    assert wrong(tree) == []


@pytest.mark.parametrize(
    ("section", "values", "where"),
    [
        ("confirm", {"seeds": "3"}, "confirm.seeds"),
        ("search", {"trails": 9}, "search"),
        ("search", {"sampler": "gird"}, "search.sampler"),
        ("methods", {"lora": {"lr": -1.0}}, "methods.lora.lr"),
        ("train", {"epochs": 0}, "train.epochs"),
        ("data", {"datasets": []}, "data.datasets"),
    ],
)
def test_what_the_schema_refuses_the_program_refuses(section: str, values: dict[str, Any], where: str) -> None:
    tree = LEAST | {section: values}
    assert wrong(tree) == [where]
    with pytest.raises(SpecError):
        SweepSpec.parse(tree)


def test_the_list_of_pages_is_current_and_has_every_page() -> None:
    text = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    assert text == llms_text(), "run: python -m tools.pages"
    listed = re.findall(r"^- \[.+?\]\((\S+?)\.html\)", text, re.M)
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = re.findall(r"[\w/-]+\.md", json.dumps(nav))
    assert [page.replace("index", "README") + ".md" for page in listed] == pages
    on_disk = [page for page in pages if not page.startswith("api/")]
    assert all((ROOT / "docs" / page).is_file() for page in on_disk)
