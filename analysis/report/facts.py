"""What the report says besides its figures and tables: question, answer, setting, fairness, costs, provenance."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from analysis.drawing.svg import colour_variables, embedded
from analysis.findings.answer.answer import conclusion_of, more_seeds
from analysis.findings.diagnostics.sheets import FOLDER, SHEETS, WIDE, diagnostic_sheets
from analysis.findings.parity.finding import parity_rows
from analysis.findings.weak import weak_evidence
from analysis.format import Row
from analysis.report.box import facts_box, summary
from analysis.report.foreign import ForeignError, drawing_of
from analysis.store.columns import limited
from analysis.store.left import to_come
from analysis.store.schemas import SCHEMA_VERSION
from analysis.store.store import Store
from analysis.styles import style
from analysis.verdict.question import Question, question, question_names

RANK_OR_PARAMETERS = (
    "When LoRA falls short of full fine-tuning, is it the number of trainable parameters or the rank of the update? "
    "LoRA and RandLoRA train equally many parameters; LoRA's update has low rank, RandLoRA's has full rank."
)
_CALLED = {"at": "last run started", "trial": "trial function"}
_NOT_SHOWN = {"ev", "name", "cells", "versions", "pid", "started"}


def facts(store: Store) -> dict[str, Any]:
    """Return what the page says besides its tables and figures."""
    trials, asked_question = store.table("trials"), question(store)
    concluded = conclusion_of(store)
    coverage = store.table("coverage").to_pylist()
    parity = parity_rows(store)
    imported = (store.spec() or {}).get("imported")
    return {
        "title": ", ".join(store.names),
        "now": datetime.now(UTC),
        "question": _question(asked_question, limited(r["reference"] for r in parity)),
        "baseline": style(asked_question.baseline).name,
        "description": (store.spec() or {}).get("description") or None,
        "concluded": concluded,
        "setting": summary(store),
        "weak": weak_evidence(store.table("signs").to_pylist()),
        "failed_for_good": sum(r["failed"] for r in coverage),
        "missing": sum(sum(left) for left in to_come(store).values() if left),
        "planned": sum(r["tune_planned"] + r["confirm_planned"] for r in coverage if r["feasible"]),
        "attempts": trials.num_rows,
        "more_seeds": more_seeds(store),
        "damaged": [str(d) for d in store.damaged],
        "imported": imported if isinstance(imported, dict) else None,
        "diagnostics": _diagnostics(store),
        "provenance": _provenance(store),
        "spec": None if store.spec() is None else json.dumps(store.spec(), indent=2, ensure_ascii=False),
        "protocol": store.protocol,
        "folder": shlex.quote(str(store.path.resolve())),
        "box": facts_box(store),
        "schema_version": SCHEMA_VERSION,
        "light": colour_variables(dark=False),
        "dark": colour_variables(dark=True),
    }


def _question(asked_question: Question, equal: str) -> str:
    if asked_question == Question() and equal == limited([]):
        return RANK_OR_PARAMETERS
    focus, baseline = question_names(asked_question)
    if asked_question.focus is None:
        return f"Which method scores highest at the same number of {equal}, and is it above {baseline}?"
    return f"Does {focus} score higher than {baseline} at the same number of {equal}?"


def _diagnostics(store: Store) -> list[Row]:
    """Return the figures that `sweeps analyze` left: `stem`, `svg`, `says`, `wide`, and `sheets`, their tables.

    This reads files only: a figure is `diagnostics/STEM.svg`, and its sentence is in `STEM.txt`. `lacks` says why a
    figure has no `svg`.
    """
    sheet_names = {sheet.name for sheet in diagnostic_sheets(store)}
    pictures = []
    for picture in sorted((store.path / FOLDER).glob("*.svg")):
        text = picture.with_suffix(".txt")
        sentence = text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else picture.stem
        shown, lacks = "", None
        try:
            name = re.sub(r"[^\w-]", "-", picture.stem)  # stands in ids
            shown = embedded(drawing_of(picture.read_text(encoding="utf-8")), f"diagnostic-{name}", sentence)
        except (OSError, UnicodeDecodeError, ForeignError) as error:
            lacks = str(error)
        names = [f"diagnostic_{name}" for name in SHEETS.get(picture.stem, ())]
        sheets = [name for name in names if name in sheet_names]
        wide = picture.stem in WIDE
        pictures.append(
            {"stem": picture.stem, "svg": shown, "says": sentence, "wide": wide, "sheets": sheets, "lacks": lacks}
        )
    return pictures


def _provenance(store: Store) -> list[tuple[str, str]]:
    """Return what the journal and the trials record of the runs: versions, devices, seeds."""
    rows: list[tuple[str, str]] = []
    runs = store.events("sweep")
    if runs:
        rows.append(("runs of the sweep", str(len(runs))))
        shown = {key: value for key, value in runs[-1].items() if key not in _NOT_SHOWN}
        rows += [(_CALLED.get(key, key.replace("_", " ")), _text(value)) for key, value in shown.items()]
    trials = store.table("trials")
    for column in ("git_commit", "device", "precision", "backend", "host"):
        values = sorted(v for v in trials.column(column).unique().to_pylist() if v is not None)
        if values:
            rows.append((f"{column.replace('_', ' ')} of trials", ", ".join(values)))
    seeds = sorted(v for v in store.table("confirmed").column("data_seed").unique().to_pylist() if v is not None)
    if seeds:
        rows.append(("CONFIRM seeds", ", ".join(str(v) for v in seeds)))
    versions = [v for v in trials.column("versions").unique().to_pylist() if v is not None] or [
        json.dumps(run["versions"]) for run in runs[-1:] if "versions" in run
    ]
    rows += [
        ("versions" if len(versions) == 1 else f"versions ({i})", _text(json.loads(v)))
        for i, v in enumerate(versions, 1)
    ]
    return rows


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value) or "none"
    return "none" if value is None else str(value)
