"""The pages on adapters: code that runs, a section for every method, links to their sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from randlora import METHODS
from tests.support import ROOT

PAGE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
METHODS_PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_the_blocks_of_the_adapter_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) >= 6
    for number, block in enumerate(blocks):
        exec(compile(block, f"adapters.md block {number}", "exec"), namespace)
    assert (tmp_path / "my-adapter" / "adapter.json").exists()
    assert (tmp_path / "for-peft" / "adapter_config.json").exists()
    assert (tmp_path / "merged.safetensors").exists()


def test_ten_lines_are_about_ten() -> None:
    first = re.findall(r"```python\n(.*?)```", PAGE, re.S)[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 11


def sections() -> dict[str, str]:
    parts = re.split(r"^## `([a-z0-9-]+)`$", METHODS_PAGE, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_method_has_a_section() -> None:
    missing = METHODS.keys() - sections().keys()
    assert not missing, f"docs/methods.md lacks sections: {sorted(missing)}"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_section_says_what_a_reader_asks(name: str) -> None:
    section = sections().get(name, "")
    for word in ("**Formula**", "**Count**", "**Start**", "**Scale**", "PEFT"):
        assert word in section, f"the section on {name} lacks {word}"
    assert f"(#{name})" in METHODS_PAGE, f"the table at the top lacks {name}"
