"""What others build on: public names, the command line, the columns of tables and views.

    python -m tests.repository.public > tests/repository/public.json

writes the list that `test_public` compares with.
"""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import typer

from analysis.findings.scaling.numbers import CURVE
from analysis.store.schemas import SCHEMAS
from analysis.store.sql.queries import run_sql
from analysis.store.sql.views import VIEWS
from analysis.verdict.comparisons import COMPARISONS
from sweeps.cli.main import app
from tests.support import ROOT


def names() -> dict[str, list[str]]:
    return {package: sorted(importlib.import_module(package).__all__) for package in ("randlora", "sweeps", "analysis")}


def commands() -> dict[str, str]:
    """What follows each verb: arguments by name, options by every spelling."""
    found: dict[str, str] = {}

    def visit(path: str, command: Any) -> None:
        given = ["|".join([*p.opts, *p.secondary_opts]) for p in command.params]
        found[path] = " ".join(sorted(given, key=lambda one: (one.startswith("-"), one)))
        for name, below in sorted(getattr(command, "commands", {}).items()):
            visit(f"{path} {name}", below)

    visit("sweeps", typer.main.get_command(app))
    return found


def exit_codes() -> dict[str, str]:
    """As README.md lists them."""
    said = re.search(r"Exit codes: (.*?)\. ", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert said is not None
    plain = re.sub(r"\([^)]*\)", "", " ".join(said[1].split()))
    return dict(part.strip().split(" ", 1) for part in plain.split(", "))


def columns() -> dict[str, dict[str, str]]:
    """Names and types, of the stored tables, of the views over them, and of what `curve` and `comparisons` return."""
    stored = {name: schema.empty_table() for name, schema in SCHEMAS.items()}
    tables = {name: {field.name: str(field.type) for field in schema} for name, schema in SCHEMAS.items()}
    for view in VIEWS:
        described = run_sql(stored, f"describe {view}").to_pylist()
        tables[f"view {view}"] = {row["column_name"]: row["column_type"] for row in described}
    for function, schema in (("curve()", CURVE), ("comparisons()", COMPARISONS)):
        tables[function] = {field.name: str(field.type) for field in schema}
    return tables


def surface() -> dict[str, Any]:
    return {"names": names(), "commands": commands(), "exit codes": exit_codes(), "columns": columns()}


if __name__ == "__main__":
    print(json.dumps(surface(), indent=1))
