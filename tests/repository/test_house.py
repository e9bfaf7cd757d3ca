"""What the repository promises about itself: examples that plan, documents in step with code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT

EXAMPLES = sorted(ROOT.glob("examples/*.toml"))
PACKAGES = ("randlora", "trainables", "analysis", "sweeps")


def test_there_are_examples() -> None:
    assert ROOT / "examples" / "quickstart.toml" in EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_plans(path: Path) -> None:
    spec = SweepSpec.load(path)
    here = [i.partition(":")[2] for i in (spec.model.id, *spec.data.datasets) if i.startswith(("local:", "parquet:"))]
    if missing := [name for name in here if not Path(name).is_dir()]:
        pytest.skip(f"read, not planned: {missing} is brought by whoever runs it")
    plan = Plan.from_spec(spec)
    assert plan.feasible
    for cell in plan.feasible:
        pinned = spec.methods[cell.method].capacity is not None
        if cell.budget is not None and cell.count is not None and not pinned:
            assert abs(cell.count - cell.budget) <= plan.spec.budgets.tolerance * cell.budget


def test_the_starter_file_plans() -> None:
    assert Plan.from_spec(SweepSpec.load(ROOT / "sweeps" / "cli" / "starter.toml")).feasible


def test_every_room_says_what_each_module_in_it_is() -> None:
    """Its `__init__` is a docstring alone: a paragraph, and four spaces, name, spaces, words for all that is in it."""
    wrong = {}
    for init in (path for package in PACKAGES for path in (ROOT / package).glob("*/**/__init__.py")):
        room = init.parent
        rooms = {path.parent.name for path in room.glob("*/__init__.py")}
        modules = {path.stem for path in room.glob("*.py")} - {"__init__"}
        module = ast.parse(init.read_text(encoding="utf-8"))
        named = re.findall(r"^    (\w+) {2,}\S", ast.get_docstring(module, clean=False) or "", re.MULTILINE)
        problems = [f"{name} is not named" for name in sorted((modules | rooms) - set(named))]
        problems += [f"{name} is not there" for name in sorted(set(named) - {path.stem for path in room.iterdir()})]
        problems += ["a name twice"] if len(set(named)) < len(named) else []
        problems += ["more than a docstring"] if len(module.body) > 1 else []
        if problems:
            wrong[str(room.relative_to(ROOT))] = problems
    assert not wrong


def test_test_modules_share_by_support_modules_alone() -> None:
    shared = re.compile(r"^\s*(?:from|import) tests\.(?:\w+\.)*(?:test_\w+|conftest)\b", re.MULTILINE)
    found = {
        str(path.relative_to(ROOT)): match[0].strip()
        for folder in ("tests", "benchmarks", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if (match := shared.search(path.read_text(encoding="utf-8")))
    }
    assert not found, "move what two test modules use into the support.py of their room"


def test_wheel_ships_what_the_packages_read() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert set(build["targets"]["wheel"]["packages"]) == set(PACKAGES)
    included = {"examples": "sweeps/examples", "lock.txt": "sweeps/lock.txt"}  # where `init` and `doctor` look for them
    assert build["targets"]["wheel"]["force-include"] == included
    for needed in (
        "sweeps/cli/starter.toml",
        "analysis/report/templates/report.html.j2",
        "analysis/report/templates/macros.html.j2",
        "analysis/report/templates/report.js",
        "sweeps/cli/watching/templates/parts.html.j2",
        "sweeps/cli/watching/templates/watch.html.j2",
        "sweeps/cli/watching/templates/watch.js",
        "trainables/embedded/tiny_clip/open_clip_config.json",
    ):
        assert (ROOT / needed).is_file()


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for page in [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


@pytest.mark.parametrize(
    "module", ["sweeps.cli.main", "sweeps.spec.spec", "sweeps.backends.ray.lanes.broker", "analysis.store.store"]
)
def test_what_must_start_at_once_loads_neither_torch_nor_statistics(module: str) -> None:
    """`--help`, a table, a misspelt key; and the broker's process, 250 MB larger with torch."""
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'scipy.stats'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
