"""Options that the verbs share, exit codes, and the functions that find a sweep's plan and results."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.errors import Problem, SpecError, nearest

if TYPE_CHECKING:
    from analysis import Store
    from sweeps.plan.plan import Plan

Spec = Annotated[Path, typer.Argument(help="Sweep file (TOML, YAML or JSON).", show_default=False)]
Source = Annotated[Path, typer.Argument(help="Sweep file, or a results folder.", show_default=False)]
Trial = Annotated[str, typer.Argument(help="Trial id or its beginning; `sweeps query FOLDER trials` lists them.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change a key of the sweep file: --set search.trials=6. Repeatable.")
]
Scale = Annotated[
    str | None,
    typer.Option("--scale", help="Apply the file's table [small] (for a laptop) or [published] (as in the paper)."),
]
Available = Annotated[
    bool, typer.Option("--available", help="Use only the data sets that are on this machine; download none.")
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]

FAILED_TRIALS = 1
BAD_INPUT = 2
LIMITED = 3
INTERRUPTED = 130


def interrupted_by(number: int | None) -> int:
    """Return the exit code of a run that a signal ended, as shells do: 130 for SIGINT, 143 for SIGTERM."""
    return INTERRUPTED if number is None else 128 + number


def load(spec: Path, overrides: Sequence[str] | None, scale: str | None, *, available: bool = False) -> Plan:
    """Return the plan of a sweep file. `available`: only of the data sets that are on this machine."""
    from sweeps.plan import inputs
    from sweeps.plan.plan import Plan
    from sweeps.spec.spec import SweepSpec

    planned = Plan.from_spec(SweepSpec.load(spec, overrides or (), scale), available=available)
    return inputs.available(planned) if available else planned


def folder_of(source: Path, overrides: Sequence[str] | None = None, scale: str | None = None) -> Path:
    """Return the results folder that a sweep file or a folder names.

    Args:
        source: a sweep file or a results folder.
        overrides: values of `--set`; only for a sweep file.
        scale: value of `--scale`; only for a sweep file.

    Raises:
        SpecError: there are no results yet, or a folder was given with overrides or scale.
    """
    if (uri := uri_of(source)) is not None:
        rule = "this verb works on a local folder; best, compare, query, tables and status read a URI"
        raise SpecError([Problem("results", uri, rule)])
    folder = source if source.is_dir() else _folder_of_file(source, overrides, scale)
    if source.is_dir():
        _refuse(overrides, scale)
    if not holds_sweep(folder):
        within, beside = _sweeps_in(folder), [p.name for p in _sweeps_in(folder.parent)]
        near = ", ".join(map(str, within[:3])) or nearest(folder.name, beside)
        raise SpecError([Problem("results", str(folder), "holds no sweep yet; start one with `sweeps run`", near)])
    return folder


def _folder_of_file(source: Path, overrides: Sequence[str] | None, scale: str | None) -> Path:
    from sweeps.spec.reading import READERS
    from sweeps.spec.spec import SweepSpec

    if not source.exists() and source.suffix not in (".toml", *READERS):
        raise SpecError([Problem("results", str(source), "no such results folder or sweep file", _nearby(source))])
    return SweepSpec.load(source, overrides or (), scale).folder


def _refuse(overrides: Sequence[str] | None, scale: str | None) -> None:
    """Raise SpecError if `--set` or `--scale` is given with a results folder, which cannot be changed."""
    for option, values in (("--set", overrides), ("--scale", [scale] if scale else [])):
        if values:
            rule = "changes a sweep file, but a results folder is named, which cannot be changed"
            raise SpecError([Problem(option, ", ".join(values), rule, "leave it out, or name the file")])


def holds_sweep(folder: Path) -> bool:
    """Return whether a folder has a sweep's results."""
    return (folder / "journal.jsonl").exists() or (folder / "tables").is_dir()


def _sweeps_in(folder: Path) -> list[Path]:
    return sorted(filter(holds_sweep, folder.iterdir())) if folder.is_dir() else []


def _nearby(source: Path) -> str | None:
    """Return the results that the user may mean: those of the same name in results/, or the nearest name beside it."""
    if holds_sweep(Path("results") / source):
        return str(Path("results") / source)
    beside = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
    near = nearest(source.name, beside)
    return None if near is None else str(source.parent / near)


def store_of(
    source: Path, overrides: Sequence[str] | None = None, also: Sequence[Path] | None = None, scale: str | None = None
) -> Store:
    """Open the results of a sweep, and print the parts of tables that can't be read.

    Args:
        source: a sweep file, a results folder, or a URI such as that of `run --upload`.
        overrides: values of `--set`; only for a sweep file.
        also: further results to read with it.
        scale: value of `--scale`; only for a sweep file.

    Raises:
        SpecError: there are no results.
    """
    from analysis import open_store
    from sweeps.cli.printing import err

    # what is read lives until the command ends, and Python's default searches it for unused cycles again and again
    gc.set_threshold(50_000, 20, 50)
    beside = (uri_of(p) or folder_of(p) for p in also or ())
    uri = uri_of(source)
    if uri is not None:
        _refuse(overrides, scale)
    store = open_store(uri or folder_of(source, overrides, scale), *beside)
    for part in store.damaged:
        err.print(f"left out: {part}")
    return store


def uri_of(source: Path) -> str | None:
    """Return the URI that the user gave as a path, with the slashes that a path loses; None if it is a path."""
    match = re.fullmatch(r"([a-z][a-z0-9+]+):/+(.*)", str(source))
    if match is None:
        return None
    rest = re.sub(r"(=https?:)/+", r"\1//", match[2])  # in an option such as endpoint_override=http://...
    root = "/" if match[1] == "file" else ""
    return f"{match[1]}://{root}{rest}"
