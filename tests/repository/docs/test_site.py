"""The site of `make docs`: every page is in it, links have their heading, it loads nothing from elsewhere."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT

DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("package", ["randlora", "sweeps", "analysis", "trainables"])
def test_every_public_name_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert inspect.getdoc(module)
    silent = []
    for name in getattr(module, "__all__", ()):
        found = getattr(module, name)
        if inspect.isroutine(found) and not inspect.getdoc(found):
            silent.append(name)
        if inspect.isclass(found):
            of = [
                m
                for m, f in vars(found).items()
                if not m.startswith("_") and (inspect.isroutine(f) or isinstance(f, property))
            ]
            silent += [name] if not inspect.getdoc(found) else []
            silent += [f"{name}.{m}" for m in of if not inspect.getdoc(getattr(found, m))]
    assert not silent


def listed(nav: Any) -> list[str]:
    """Pages of the navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for one in (nav.values() if isinstance(nav, dict) else nav) for page in listed(one)]


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [page for page in listed(CONFIG["nav"]) if not page.startswith("api/")]
    assert sorted(pages) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


def anchor(heading: str) -> str:
    """As GitHub and the site name a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip())
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def test_a_link_to_a_heading_finds_it() -> None:
    lost = []
    for page in [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")), *DOCS.rglob("*.md")]:
        for link, heading in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in link:
                continue
            target = page.parent / link if link else page
            text = re.sub(r"```.*?```", "", target.read_text(encoding="utf-8"), flags=re.S)
            if heading not in {anchor(said) for said in re.findall(r"^#+ (.*)$", text, re.M)}:
                lost.append(f"{page.relative_to(ROOT)}: {link}#{heading}")
    assert not lost


def test_lists_begin_after_an_empty_line() -> None:
    """The site's Markdown needs it, GitHub's does not."""
    for page in DOCS.rglob("*.md"):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        assert not re.findall(r"^(?![-\d|# ])\S.*\n(?:- |1\. ).*", text, re.M), page.name


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="`make docs` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]* href=\"?([^\s\">]+)", text)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page.name
    assert "randlora.RandLoraConfig" in (tmp_path / "api" / "randlora.html").read_text(encoding="utf-8")
    copied = (tmp_path / "files" / "examples" / "quickstart.toml.txt").read_bytes()
    assert copied == (ROOT / "examples" / "quickstart.toml").read_bytes()
    listed_files = (tmp_path / "files" / "examples" / "studies.txt").read_text(encoding="utf-8").splitlines()
    assert listed_files == sorted(path.name for path in (ROOT / "examples" / "studies").iterdir())
