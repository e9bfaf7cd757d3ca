"""What the report says beside its figures and tables: question, answer, setting, parities, totals, provenance."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from analysis.figures import svg
from analysis.format import Row
from analysis.report.box import facts_box
from analysis.report.foreign import ForeignError, drawing_of
from analysis.statistics import scaling
from analysis.statistics.groups import groups, mean_ranks
from analysis.statistics.looks import level, looks
from analysis.store.columns import limited
from analysis.store.left import to_come
from analysis.store.schemas import SCHEMA_VERSION
from analysis.store.store import Store
from analysis.store.views import SECONDS
from analysis.styles import style
from analysis.tables.console import conclusion_of
from analysis.tables.diagnostics import FOLDER, SHEETS, WIDE, diagnostic_sheets
from analysis.tables.evidence import parity_rows
from analysis.words.conclusions import conclude_gap, early_words, names_of
from analysis.words.figures import conclude_groups, conclude_ranks
from analysis.words.parity import looks_says, parity_says
from analysis.words.weak import weak_evidence

RANK_OR_PARAMETERS = (
    "When LoRA falls short of full fine-tuning, is it the number of trainable parameters or the rank of the update? "
    "LoRA and RandLoRA train equally many parameters; LoRA's update has low rank, RandLoRA's has full rank."
)
_CALLED = {"at": "last run started", "trial": "trial function"}
_NOT_SHOWN = {"ev", "name", "cells", "versions", "pid", "started"}


def facts(store: Store) -> dict[str, Any]:
    """What the page says beside its tables and figures."""
    trials, asked = store.table("trials"), scaling.question(store)
    concluded = conclusion_of(store)
    coverage = store.table("coverage").to_pylist()
    parity = parity_rows(store)
    confirm = store.sql("select count(*) as n from last_attempts where stage = 'CONFIRM' and test_score is not null")
    imported = (store.spec() or {}).get("imported")
    begin = early_words(scaling.comparisons(store))
    ranks_say = conclude_ranks(mean_ranks(store).to_pylist(), level(store))
    return {
        "title": ", ".join(store.names),
        "now": datetime.now(UTC),
        "question": _question(asked, limited(r["reference"] for r in parity)),
        "baseline": style(asked.baseline).name,
        "description": (store.spec() or {}).get("description") or None,
        "answer": " ".join(filter(None, (concluded.answer, concluded.budgets, concluded.reasons, concluded.limits))),
        "given": concluded.basis,
        "gap": conclude_gap(scaling.comparisons(store, baseline="full"), asked),
        "groups_say": begin + conclude_groups(groups(store).to_pylist()),
        "ranks_say": ranks_say and begin + ranks_say,
        "setting": _setting(store),
        "parity_says": [*parity_says(parity, predicted=not imported), *looks_says(looks(store).values())],
        "edges": sum(bool(r["edge"]) for r in parity),
        "weak": weak_evidence(store.table("signs").to_pylist()),
        "under_tuned": [r for r in parity if r["under_tuned"]],
        "test_looks": confirm.column("n")[0].as_py(),
        "superseded": store.table("superseded").num_rows,
        "failed_for_good": sum(r["failed"] for r in coverage),
        "missing": sum(sum(left) for left in to_come(store).values() if left),
        "planned": sum(r["tune_planned"] + r["confirm_planned"] for r in coverage if r["feasible"]),
        "attempts": trials.num_rows,
        "totals": _totals(store),
        "damaged": [str(d) for d in store.damaged],
        "imported": imported if isinstance(imported, dict) else None,
        "diagnostics": _diagnostics(store),
        "provenance": _provenance(store),
        "spec": None if store.spec() is None else json.dumps(store.spec(), indent=2, ensure_ascii=False),
        "protocol": store.protocol,
        "folder": shlex.quote(str(store.path.resolve())),
        "box": facts_box(store),
        "schema_version": SCHEMA_VERSION,
        "light": svg.colour_variables(dark=False),
        "dark": svg.colour_variables(dark=True),
    }


def _question(asked: scaling.Question, equal: str) -> str:
    if asked == scaling.Question() and equal == limited([]):
        return RANK_OR_PARAMETERS
    focus, baseline = names_of(asked)
    if asked.focus is None:
        return f"Which method scores highest at the same number of {equal}, and is it above {baseline}?"
    return f"Does {focus} score higher than {baseline} at the same number of {equal}?"


def _diagnostics(store: Store) -> list[Row]:
    """Figures that `sweeps analyze` left, with what they say: `stem`, `svg`, `says`, `wide`, `sheets` (their tables).

    Reads files only: a figure is `diagnostics/STEM.svg`, its sentence `STEM.txt`. `lacks` says why one has no `svg`.
    """
    there = {sheet.name for sheet in diagnostic_sheets(store)}
    found = []
    for picture in sorted((store.path / FOLDER).glob("*.svg")):
        text = picture.with_suffix(".txt")
        said = text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else picture.stem
        shown, lacks = "", None
        try:
            name = re.sub(r"[^\w-]", "-", picture.stem)  # stands in ids
            shown = svg.embedded(drawing_of(picture.read_text(encoding="utf-8")), f"diagnostic-{name}", said)
        except (OSError, UnicodeDecodeError, ForeignError) as error:
            lacks = str(error)
        names = [f"diagnostic_{name}" for name in SHEETS.get(picture.stem, ())]
        sheets = [name for name in names if name in there]
        wide = picture.stem in WIDE
        found.append({"stem": picture.stem, "svg": shown, "says": said, "wide": wide, "sheets": sheets, "lacks": lacks})
    return found


def _setting(store: Store) -> list[Row]:
    """What was compared, one row per sweep."""
    found = store.sql("""
        select sweep, string_agg(distinct model, ', ') as models, string_agg(distinct adapt, ', ') as adapt,
               string_agg(distinct dataset, ', ') as datasets, string_agg(distinct train_size, ', ') as sizes,
               count(distinct method) filter (feasible) as methods,
               count(distinct reference) filter (feasible) as budgets,
               coalesce(format('{:,} training examples for tuning', max(allowance_samples)),
                        format('{} tuning trials', max(tune_trials))) as tuning,
               max(confirm_seeds) as seeds, count(*) filter (feasible) as cells
        from cells group by all order by sweep
    """)
    return list(found.to_pylist())


def _totals(store: Store) -> Row:
    found = store.sql(f"""
        select sum({SECONDS}) as seconds, min(started_at) as first, max(ended_at) as last,
               sum({SECONDS}) filter (status = 'failed') as seconds_failed,
               sum({SECONDS} - coalesce(seconds_train, 0) - coalesce(seconds_eval, 0))
                 filter (status = 'finished') / nullif(count(*) filter (status = 'finished'), 0) as overhead
        from trials
    """)  # noqa: S608  ours
    return dict(found.to_pylist()[0])


def _provenance(store: Store) -> list[tuple[str, str]]:
    """Facts on what ran: from the journal's `sweep` events and the trial rows."""
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
