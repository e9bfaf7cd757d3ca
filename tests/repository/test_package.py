"""What others expect of a repository: a citation, a workflow, hooks, templates, and archives that install and run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fresh import installed, run
from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_has_what_its_format_requires() -> None:
    """The keys that Citation File Format 1.2.0 requires, of the software and of what it refers to."""
    cited = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() and cited["cff-version"] == "1.2.0"
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    for work in (cited, *cited["references"]):
        assert {"type", "title", "authors"} <= work.keys()
        assert all("name" in author or {"family-names", "given-names"} <= author.keys() for author in work["authors"])
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {cited['version']} - {cited['date-released']}\n" in changes
    assert changes.index("## Unreleased") < changes.index(f"## {cited['version']}")


def test_the_workflow_tests_every_python_and_builds_the_pages() -> None:
    jobs = read(".github/workflows/test.yml")["jobs"]
    listed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert jobs["test"]["strategy"]["matrix"]["python"] == listed and len(listed) >= 3
    for name in ("test", "docs"):
        (made,) = [step["run"] for step in jobs[name]["steps"] if "run" in step]
        assert made == f"make {name} PYTHON=python"
    slow = read(".github/workflows/weekly.yml")["jobs"]["slow"]
    assert slow["strategy"]["matrix"]["ray"] == jobs["ray"]["strategy"]["matrix"]["ray"]
    assert slow["steps"][-1]["run"].endswith("-m slow")
    outside = read(".github/workflows/weekly.yml")["jobs"]["ranges"]["strategy"]["matrix"]["include"]
    assert outside == [
        {"target": "test-newest", "python": listed[-1]},
        {"target": "test-lowest", "python": listed[0]},
    ]
    files = " ".join(step["run"] for step in jobs["extras"]["steps"] if "pytest" in step.get("run", "")).split()[3:]
    assert len(files) >= 6 and all((ROOT / file).is_file() for file in files)


def test_a_release_is_installed_on_the_oldest_and_newest_python_before_it_is_sent_without_a_secret() -> None:
    listed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    workflow = read(".github/workflows/release.yml")
    build, install, publish = (workflow["jobs"][name] for name in ("build", "install", "publish"))
    assert "make dist PYTHON=python" in [step.get("run") for step in build["steps"]]
    assert install["strategy"]["matrix"]["python"] == [listed[0], listed[-1]]
    assert (install["needs"], publish["needs"]) == ("build", "install")
    assert publish["permissions"] == {"id-token": "write"} and workflow["permissions"] == {"contents": "read"}
    assert publish["steps"][-1] == {"uses": "pypa/gh-action-pypi-publish@release/v1"}
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    tried = [step["run"].split()[1] for step in install["steps"] if step.get("run", "").startswith("sweeps ")]
    assert tried == ["--version", "init", "plan", "run"]


def test_the_site_is_sent_by_a_workflow_that_builds_it_strictly() -> None:
    jobs = read(".github/workflows/pages.yml")["jobs"]
    assert "make docs PYTHON=python" in [step.get("run") for step in jobs["build"]["steps"]]
    assert "--strict" in (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndocs:")[2].partition("\n\n")[0]
    assert jobs["deploy"]["needs"] == "build" and jobs["deploy"]["permissions"] == {
        "pages": "write",
        "id-token": "write",
    }


def test_the_page_on_installing_lists_every_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \|", page, re.M)
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(rows))) == sorted(PROJECT["optional-dependencies"])


def test_hooks_and_templates_are_of_their_form() -> None:
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"  # nothing is fetched: the tools of `make setup`
    assert [hook["entry"].split()[0] for hook in local["hooks"]] == [
        ".venv/bin/ruff",
        ".venv/bin/ruff",
        ".venv/bin/mypy",
    ]
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3 and (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").is_file()
    for path in forms:
        form = read(str(path.relative_to(ROOT)))
        assert {"name", "description", "body"} <= form.keys() and form["body"]
        assert all({"type", "id", "attributes"} <= part.keys() for part in form["body"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_made_from_the_sdist_plans_an_example(tmp_path: Path) -> None:
    programs = installed(tmp_path)
    assert all(PROJECT["version"] in path.name for path in (*tmp_path.glob("*.whl"), *tmp_path.glob("*.tar.gz")))
    sweeps = programs / "sweeps"
    assert "Compare parameter-efficient" in run(sweeps, "--help", place=tmp_path).stdout
    assert run(sweeps, "init", "--example", "quickstart", place=tmp_path).returncode == 0
    planned = run(sweeps, "plan", "quickstart.toml", place=tmp_path)
    assert planned.returncode == 0 and "10 cells, 127 trials" in planned.stdout, planned.stdout + planned.stderr
    inside = (
        "from sweeps.engine.versions import lock_file; print(lock_file().name, lock_file().parent.name)\n"
        "from importlib.resources import files; print((files('analysis.report') / 'templates/report.js').is_file())\n"
        "from trainables.data.registry import load_dataset\n"
        "print(len(load_dataset('embedded:fashion-mnist').at('CONFIRM').test.labels))"
    )
    found = run(programs / "python", "-c", inside, place=tmp_path)
    assert re.fullmatch(r"lock.txt sweeps\nTrue\n\d{4,}\n", found.stdout), found.stdout + found.stderr
