"""Checks whether a results folder is as its sweep wrote it: compares rows, choices and declarations with the journal.

Every check reads only the folder. Tables of results and verdicts are not stored but computed from the rows. So the rows
are what is checked.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from pydantic import ValidationError

from analysis.findings.all import pick
from analysis.findings.parity.words import looks_says
from analysis.findings.results.examples import unpacked
from analysis.format import Row, plural
from analysis.sheets import forms
from analysis.sheets.data import sheet_csv
from analysis.store.codec import from_values
from analysis.store.journal import JOURNAL, Event, Journal, choice_of, read_journal, rows_of
from analysis.store.left import to_come
from analysis.store.rows import TrialRow
from analysis.store.schemas import TABLES
from analysis.store.slot_kinds import SlotKind
from analysis.store.store import Store, declarations, open_store
from analysis.store.tables import conform, part_paths, scan_parts, to_table
from analysis.verdict.looks import looks
from sweeps.plan.inputs import data_seen
from sweeps.search.effort import Effort
from sweeps.search.rules import derived_seed
from sweeps.search.slots import Choice, Slot
from sweeps.spec.cell import Cell
from sweeps.spec.search import MOST_TRIALS, SearchSection
from sweeps.spec.space import extra_from
from trainables.config import TrialConfig

Outcome = Literal["holds", "noted", "fails", "not checked"]
"""The result of a check. 'noted': no fault, but something to know. 'not checked': the folder lacks what it needs."""

JOURNALED = ("trials", "metrics", "predictions", "choices")
"""Tables whose rows are also in the journal."""
APART = timedelta(minutes=1)
"""The largest difference between the clocks of two machines that is no fault."""
_IN_RECEIPT = ("rows", "scores", "choices")
_NAMED = 3  # cases that a sentence names
_SEEDS = ("data", "init", "basis")
_WRITTEN = ("decisions", "results", "averages", "comparisons", "changes", "groups")
_COLUMNS = (
    ("methods", "method"),
    ("budgets", "reference"),
    ("data sets", "dataset"),
    ("training sizes", "train_size"),
)
_CHANGES = {"margin": "the margin", "question": "the method in question", "max_seeds": "the maximum of seeds"}


@dataclass(frozen=True)
class Check:
    """One check of a folder.

    Attributes:
        name: what was checked.
        outcome: the result.
        says: texts about it. The first one is a summary.
    """

    name: str
    outcome: Outcome
    says: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """All checks of a folder."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """Return the checks that fail."""
        return tuple(check for check in self.checks if check.outcome == "fails")

    @property
    def receipt(self) -> str:
        """Return one line: what was verified, or which checks fail."""
        if self.failed:
            which = ", ".join(check.name for check in self.failed)
            return f"NOT verified: {len(self.failed)} of {len(self.checks)} checks fail ({which})."
        summaries = [c.says[0] for c in self.checks if c.name in _IN_RECEIPT and c.outcome in ("holds", "noted")]
        if not summaries:
            return f"Nothing to verify: {self.checks[0].says[0]}."
        ends = [
            f"{word}: {', '.join(names)}"
            for word, outcome in (("with notes on", "noted"), ("not checked", "not checked"))
            if (names := [check.name for check in self.checks if check.outcome == outcome])
        ]
        return f"Verified: {'; '.join([*summaries, *ends])}."


def verify(store: Store, *, written: bool = True) -> Verification:
    """Check the (first) results folder of a store.

    Args:
        store: the results.
        written: whether to also check the tables that a report left in the folder.

    Raises:
        StoreError: the journal, or a file beside it, is damaged.
    """
    journal = read_journal(store.path / JOURNAL) if (store.path / JOURNAL).is_file() else None
    if "imported" in (store.spec() or {}):
        return Verification((Check("rows", "not checked", ("the numbers were published elsewhere",)),))
    events = () if journal is None else journal.events
    return Verification(
        (
            _journal(journal),
            _rows(store, journal),
            _scores(store),
            _configurations(store, events),
            _choices(store),
            _test_split(store, events),
            _declared(store, events),
            _attempts(store),
            _complete(store),
            _parameters(store),
            _data(store, events),
            *([_report_tables(store)] if written and (store.path / forms.FOLDER).is_dir() else []),
        )
    )


def receipt_of(folder: Path) -> str:
    """Check a results folder, and return the receipt for its report. The report's own tables are not checked."""
    return verify(open_store(folder), written=False).receipt


def _check(name: str, wrong: Sequence[str], holds: str, noted: Sequence[str] = (), also: Sequence[str] = ()) -> Check:
    """Return a check that fails if `wrong` has a text.

    Args:
        name: what was checked.
        wrong: texts about faults.
        holds: the summary if there is no fault.
        noted: texts about what is no fault.
        also: texts to show in any case.
    """
    if wrong:
        more = [f"and {len(wrong) - _NAMED} more"] if len(wrong) > _NAMED else []
        return Check(name, "fails", (*wrong[:_NAMED], *more, *noted, *also))
    return Check(name, "noted" if noted else "holds", (holds, *noted, *also))


def _journal(journal: Journal | None) -> Check:
    """Check that each line of the journal follows the line before it, by its digest."""
    if journal is None:
        return Check("journal", "not checked", ("this folder has no journal; copies come without one",))
    lines = len(journal.events)
    if lines and journal.unchained == lines:
        says = f"an older version wrote it: {plural(lines, 'line')} without a digest of the line before"
        return Check("journal", "not checked", (says,))
    wrong = [
        f"line {n} does not follow the line before it: lines were changed, moved or removed" for n in journal.broken
    ]
    noted = [f"the first {plural(journal.unchained, 'line')} are not chained"] if journal.unchained else []
    return _check("journal", wrong, f"all {plural(lines, 'line')} follow one another (seal {journal.tip})", noted)


def _rows(store: Store, journal: Journal | None) -> Check:
    """Check that the rows of the tables are those of the journal."""
    wrong = [f"a part of the table {part.table!r} cannot be read ({part.path.name})" for part in store.damaged]
    wrong += _without_cell(store)
    if journal is None and wrong:
        return _check("rows", wrong, "")
    if journal is None:
        return Check("rows", "not checked", ("there is no journal to compare the rows with",))
    written = rows_of(journal.events)
    begun = next((datetime.fromisoformat(e["at"]) for e in journal.events if e["ev"] == "sweep" and e.get("at")), None)
    earlier = _ended_before(store, begun)
    count, before = 0, 0
    head = {"sweep": store.names[0]}
    for name in JOURNALED:
        key = [column for column in TABLES[name].key if column != "sweep"]
        journal_rows: dict[tuple[Any, ...], Row] = {}
        for row in to_table(name, [head | r for r in written.get(name, [])]).to_pylist():
            first_row = journal_rows.setdefault(tuple(row[k] for k in key), row)
            if first_row != row:
                wrong.append(f"the journal has two rows of {name} for {_row_name(row, key)}, which differ")
        for row in scan_parts(store.path, name)[0].to_pylist():
            source = journal_rows.get(tuple(row[k] for k in key))
            if source is not None:
                columns = [c for c in row if row[c] != source[c] and c not in ("sweep", "sequence")]
                wrong += [
                    f"{name}, {_row_name(row, key)}: {c} is {row[c]!r}, {source[c]!r} in the journal" for c in columns
                ]
            elif _is_older(name, row, begun, earlier):
                before += 1
            else:
                wrong.append(f"{name}, {_row_name(row, key)}: the journal has no such row")
        count += len(journal_rows)
    noted = [f"{plural(before, 'row')} of the tables are older than the journal"] if before else []
    return _check("rows", wrong, f"{count:,} of {count + before:,} rows follow from the journal", noted)


def _without_cell(store: Store) -> list[str]:
    """Return texts about tables with rows of cells that the table `cells` lacks. No result shows these rows."""
    cells = {r["cell_id"] for r in store.table("cells").to_pylist()}
    texts = []
    for name in ("trials", "choices"):
        strange = {r["cell_id"] for r in store.table(name).to_pylist()} - cells
        if strange:
            texts.append(
                f"{name} has rows of {plural(len(strange), 'cell')} that the table 'cells' lacks: {min(strange)}"
            )
    return texts


def _is_older(name: str, row: Row, begun: datetime | None, earlier: Container[str]) -> bool:
    """Return whether a row is older than the journal.

    Args:
        begun: when the journal begins; None if it does not say so.
        earlier: the trials that ended before that.
    """
    if name == "choices":
        return begun is not None and bool(row["chosen_at"] < begun)
    return row["trial_id"] in earlier


def _ended_before(store: Store, begun: datetime | None) -> set[str]:
    """Return the trials that ended before the journal began, such as in a folder that goes on from a copy."""
    rows = store.table("trials").to_pylist()
    return {r["trial_id"] for r in rows if begun is not None and r["ended_at"] is not None and r["ended_at"] < begun}


def _row_name(row: Row, key: Sequence[str]) -> str:
    """Return the values of a row's key columns as a text."""
    return " ".join(str(row[k]) for k in key)


def _scores(store: Store) -> Check:
    """Check that each validation score is that of the last epoch, and each test score that of the right answers."""
    trials = {r["trial_id"]: r for r in store.table("last_attempts").to_pylist()}
    wrong = []
    count = 0
    epochs: dict[tuple[str, int | None], dict[int, float | None]] = defaultdict(dict)
    lost: Counter[str] = Counter()
    unchecked: Counter[str] = Counter()
    for r in store.table("metrics").to_pylist():
        lost["epochs"] += r["trial_id"] not in trials
        epochs[r["trial_id"], r["attempt"]][r["epoch"]] = r["val_score"]
    for r in trials.values():
        curve = epochs.get((r["trial_id"], r["attempt"]))
        if r["val_score"] is None or r["status"] != "finished":
            continue
        if not curve:
            unchecked["validation"] += bool(r["epochs"])  # an untrained model has no epochs
            continue
        count += 1
        if (last := curve.get(r["epochs"])) != r["val_score"]:
            wrong.append(f"trial {r['trial_id']}: validation score {r['val_score']}, {last} in its last epoch")
    for r in store.table("predictions").to_pylist():
        trial = trials.get(r["trial_id"])
        if trial is None:
            lost["predictions"] += 1
        elif (trial["metric"] or "").startswith("accuracy") and r["correct"] is not None and r["n_examples"]:
            count += 1
            score = trial["test_score"]
            try:
                share = float(unpacked(r["correct"], r["n_examples"]).mean())
            except ValueError as error:
                wrong.append(f"trial {r['trial_id']}: {error}")
                continue
            if score is None or abs(share - score) > 1e-9:
                wrong.append(f"trial {r['trial_id']}: test score {score}, but {share} of its answers are right")
    wrong += [f"{number} {what} are of trials that the tables lack" for what, number in lost.items() if number]
    answered = {r["trial_id"] for r in store.table("predictions").to_pylist()}
    for r in trials.values():
        by_answers = r["test_score"] is not None and (r["metric"] or "").startswith("accuracy")
        unchecked["test"] += by_answers and r["status"] == "finished" and r["trial_id"] not in answered
    noted = [
        f"{plural(number, f'{kind} score')} cannot be checked: the tables lack their {what}"
        for kind, what in (("validation", "epochs"), ("test", "answers"))
        if (number := unchecked[kind])
    ]
    total = count + unchecked.total()
    return _check("scores", wrong, f"{count:,} of {total:,} scores follow from epochs and answers", noted)


def _configurations(store: Store, events: Sequence[Event]) -> Check:
    """Check that trials ran with the configurations that were asked for.

    A trial's id is the hash of its configuration, so a changed configuration has another id. The row repeats parts of
    the configuration, and these must be the same.
    """
    asks = {e["trial_id"]: e for e in events if e["ev"] == "ask" and "trial_id" in e}
    if not asks:
        return Check("configurations", "not checked", ("only a journal has the configurations of trials",))
    wrong = []
    for trial_id, event in asks.items():
        config = event.get("config") or {}
        try:
            computed_id = TrialConfig.model_validate(config).trial_id
        except ValidationError:
            computed_id = "none"
        if computed_id != trial_id:
            wrong.append(f"trial {trial_id}: the id of its configuration is {computed_id}")
            continue
        seeds = zip(event.get("seeds") or (), (config[f"{kind}_seed"] for kind in _SEEDS), strict=False)
        place = config["dataset"], config["train_size"]
        if any(trained not in (seed, derived_seed(seed, *place)) for seed, trained in seeds):
            wrong.append(f"trial {trial_id}: it trained with other seeds than its declared ones")
    for r in store.table("trials").to_pylist():
        if r["trial_id"] not in asks:
            continue
        event = asks[r["trial_id"]]
        config = {**(event.get("config") or {}), "stage": event.get("stage")}
        for column in ("stage", "model", "dataset", "train_size", "lr"):
            value = config.get(column)
            if r[column] != (str(value) if column == "train_size" else value):
                wrong.append(f"trial {r['trial_id']}: {column} {r[column]!r}, asked for {value!r}")
        if event.get("seeds") and list(event["seeds"]) != [r[f"{kind}_seed"] for kind in _SEEDS]:
            wrong.append(f"trial {r['trial_id']}: its seeds are not those asked for")
    return _check("configurations", wrong, f"{len(asks):,} of {len(asks):,} trials are what was asked for")


def _choices(store: Store) -> Check:
    """Check that the choice of every cell's learning rate follows from its TUNE trials, by the rule of the search."""
    stored = store.stored()
    try:
        search = SearchSection.model_validate({**(stored.get("search") or {}), "trials": MOST_TRIALS})
    except ValidationError:
        return Check("choices", "not checked", ("spec.json has search settings of another version",))
    trials_left = to_come(store)
    trials: dict[str, list[TrialRow]] = defaultdict(list)
    for values in store.table("last_attempts").to_pylist():
        if values["stage"] == "TUNE":
            trials[values["cell_id"]].append(from_values(TrialRow, values))
    wrong = []
    count, coming = 0, 0
    cells = {r["cell_id"]: r for r in store.table("cells").to_pylist()}
    for stored_choice in store.table("chosen").to_pylist():
        cell, rows = cells.get(stored_choice["cell_id"]), trials[stored_choice["cell_id"]]
        if cell is None or not stored_choice["n_trials"]:
            continue
        if (trials_left.get((stored_choice["sweep"], stored_choice["cell_id"])) or (0, 0))[0]:
            coming += 1  # more rates are still to be tried, and a later choice will be made from all of them
            continue
        count += 1
        choice = _recomputed_choice(cell, rows, search)
        if choice is None or (choice.lr, choice.extra) != (
            stored_choice["lr"],
            extra_from(stored_choice["hyperparameters"]),
        ):
            other = "none" if choice is None else f"{choice.lr:g}"
            wrong.append(f"{cell['label']}: rate {stored_choice['lr']:g} was chosen, and its trials choose {other}")
        elif choice.mean_val is not None and abs(choice.mean_val - (stored_choice["mean_val"] or 0.0)) > 1e-9:
            wrong.append(
                f"{cell['label']}: its choice has score {stored_choice['mean_val']}, and its trials {choice.mean_val}"
            )
    noted = [f"{plural(coming, 'cell has', 'cells have')} rates still to try"] if coming else []
    return _check("choices", wrong, f"{count:,} of {count:,} choices of learning rates follow from their trials", noted)


def _recomputed_choice(cell: Row, rows: Sequence[TrialRow], search: SearchSection) -> Choice | None:
    """Return the choice that the rule of the search makes from a cell's TUNE trials; None if there are none."""
    slots = [
        Slot(
            row.cell_id,
            row.stage,
            row.slot,
            row.trial_id,
            {},
            row.lr,
            (row.data_seed or 0, row.init_seed or 0, row.basis_seed or 0),
            extra_from(row.hyperparameters),
        )
        for row in sorted(rows, key=lambda row: row.slot)
    ]
    if not slots:
        return None
    planned = cell["tune_points"] or cell["tune_trials"] - search.reruns
    allowed = SlotKind.within(planned, cell["tune_refined"] or 0)
    widened = (SlotKind.WIDENED, SlotKind.WIDENED_LATE)
    first = slots[0].seeds
    points = {
        s.slot: s
        for s in slots
        if s.seeds == first and (s.slot in allowed or cell["tune_points"] is None or SlotKind.of(s.slot) in widened)
    }
    names = {field.name for field in dataclasses.fields(Cell)}
    empty = {"targets": (), "base": cell["method"], "options": (), "solution": None, "test_lacks": ()}
    cell_of_row = Cell(**{**{k: v for k, v in cell.items() if k in names}, **empty})
    effort, by_id = Effort(cell_of_row, search), {row.trial_id: row for row in rows}
    return effort.choose(dict(points), [s for s in slots if s.seeds != first], by_id)


def _test_split(store: Store, events: Sequence[Event]) -> Check:
    """Check that only stage CONFIRM read the test split, after the rate had been chosen."""
    rows = store.table("last_attempts").to_pylist()
    wrong = [
        f"trial {r['trial_id']} of stage TUNE has a test score"
        for r in rows
        if r["stage"] == "TUNE" and r["test_score"] is not None
    ]
    tuned = {r["cell_id"] for r in store.table("cells").to_pylist() if r["tune_trials"]}
    chosen: dict[str, datetime] = {}
    for c in store.table("choices").to_pylist():
        chosen[c["cell_id"]] = min(c["chosen_at"], chosen.get(c["cell_id"], c["chosen_at"]))
    places: dict[str, int] = {}
    asks: dict[str, int] = {}
    for number, event in enumerate(events):
        if event["ev"] == "choose":
            cell_id = str(event.get("cell_id"))
            if choice_of(event, "").chosen_at == chosen.get(cell_id):  # a copied folder may have an earlier choice
                places.setdefault(cell_id, number)
        elif event["ev"] == "ask":
            asks.setdefault(event["trial_id"], number)
    reads = [r for r in rows if r["stage"] == "CONFIRM" and r["test_score"] is not None]
    for r in reads:
        cell, ask = r["cell_id"], asks.get(r["trial_id"])
        if cell not in tuned:
            continue
        late = chosen.get(cell)
        if ask is not None and cell in places:
            early = ask < places[cell]
        else:
            early = late is None or (r["started_at"] is not None and r["started_at"] < late - APART)
        if early:
            wrong.append(f"trial {r['trial_id']} read the test split before the rate of {cell} was chosen")
    replaced = store.table("superseded").num_rows
    noted = [f"{plural(replaced, 'reading')} at rates or seeds that were replaced later"] if replaced else []
    return _check(
        "test split",
        wrong,
        f"stage CONFIRM read it {plural(len(reads), 'time')}, always after the choice of the rate",
        noted,
    )


def _declared(store: Store, events: Sequence[Event]) -> Check:
    """Check that the declared seeds and cells ran, and note what was changed after test scores could be seen."""
    declared = store.declared()
    if not declared:
        return Check("declared", "not checked", ("nothing was declared: an older version ran it",))
    wrong = []
    if events and declarations(store.path) != declared:
        wrong.append("declared.json does not have the declarations of the journal")
    cells = {r["cell_id"]: r for r in store.table("cells").to_pylist()}
    noted: list[str] = []
    for before, after in pairwise(declared):
        if after["scored"]:
            noted += _changed(before, after, cells, f"after {plural(after['scored'], 'test score')}")
    if declared[0]["scored"]:
        noted.append(f"declared when {plural(declared[0]['scored'], 'test score')} were there")
    seeds = {seed for event in declared for seed in event["seeds"]}
    held = (store.stored().get("hold") or {}).keys()
    for r in store.table("last_attempts").to_pylist():
        free = {r[f"{kind}_seed"] for kind in _SEEDS if f"{kind}_seed" not in held} - {None}
        if r["stage"] == "CONFIRM" and r["lr"] is not None and not free <= seeds:
            wrong.append(f"trial {r['trial_id']} ran on seed {max(free - seeds)}, which was never declared")
    declared_cells = {cell for event in declared for cell in event.get("cells") or ()}
    strange = [r["label"] for r in cells.values() if r["feasible"] and r["cell_id"] not in declared_cells]
    if strange and declared_cells and events:
        wrong += [f"the cell {label} was never declared" for label in strange]
    elif strange:
        noted += _added_by_later_runs(store)
    summary = f"{plural(len(declared[-1]['seeds']), 'seed')}"
    summary += f" and {plural(len(declared_cells & cells.keys()), 'cell')}" if declared_cells else ""
    return _check("declared", wrong, f"{summary} ran as declared", noted, looks_says(looks(store).values()))


def _added_by_later_runs(store: Store) -> list[str]:
    """Return texts about cells that later runs added, for a folder whose declarations do not name cells.

    Each run wrote a part of the table `cells`. Trials of the first run may still have run when the second added cells.
    """
    trials = store.table("last_attempts").to_pylist()
    damaged = {part.path for part in store.damaged}
    earlier_rows: list[Row] = []
    texts = []
    for part in part_paths(store.path, "cells"):
        if part in damaged:
            continue
        rows = [r for r in conform(pq.read_table(part), "cells", str(part)).to_pylist() if r["feasible"]]
        new = [r for r in rows if r["cell_id"] not in {k["cell_id"] for k in earlier_rows}]
        begun = [r["started_at"] for r in trials if r["started_at"] and r["cell_id"] in {n["cell_id"] for n in new}]
        ended = [r["ended_at"] for r in trials if r["test_score"] is not None and r["ended_at"]]
        seen = sum(at < min(begun) for at in ended) if begun else 0
        if earlier_rows and seen:
            texts += _cell_differences(earlier_rows, [*earlier_rows, *new], f"after {plural(seen, 'test score')}")
        earlier_rows += new
    return texts


def _changed(before: Event, after: Event, cells: Mapping[str, Row], when: str) -> list[str]:
    """Return texts about what a declaration changes. `before`: the declaration before it. `cells`: rows, by id."""
    changed = [(word, before.get(key), after.get(key)) for key, word in _CHANGES.items()]
    texts = [f"{word} changed {when}: from {old} to {new}" for word, old, new in changed if old != new]
    if before.get("cells") is not None and after.get("cells") is not None:
        old, new = ([cells[c] for c in event["cells"] if c in cells] for event in (before, after))
        texts += _cell_differences(old, new, when)
    return [*_difference("seeds", before["seeds"], after["seeds"], when), *texts]


def _cell_differences(before: Sequence[Row], after: Sequence[Row], when: str) -> list[str]:
    """Return texts about the methods, budgets and so on that were added or taken out; about cells if there are none."""
    texts: list[str] = []
    for word, column in (*_COLUMNS, ("cells", "label")):
        old, new = (sorted({str(r[column]) for r in rows if r[column] is not None}) for rows in (before, after))
        if not (texts and column == "label"):
            texts += _difference(word, old, new, when)
    return texts


def _difference(word: str, old: Sequence[Any], new: Sequence[Any], when: str) -> list[str]:
    """Return texts about what was added to a list, and what was taken out of it."""
    parts = (("added", [n for n in new if n not in old]), ("taken out", [n for n in old if n not in new]))
    return [f"{word} {what} {when}: {', '.join(map(str, names))}" for what, names in parts if names]


def _attempts(store: Store) -> Check:
    """Check that only failed trials were run again."""
    tries: dict[str, list[Row]] = defaultdict(list)
    for r in store.table("trials").to_pylist():
        tries[r["trial_id"]].append(r)
    wrong = []
    retried: list[Row] = []
    for trial_id, rows in tries.items():
        rows.sort(key=lambda r: r["attempt"])
        if any(r["status"] == "finished" for r in rows[:-1]):
            wrong.append(f"trial {trial_id} was run again after it had finished")
        retried += rows[-1:] if len(rows) > 1 else []
    noted = []
    if retried:
        done = sum(r["status"] == "finished" for r in retried)
        which = ", ".join(f"{n} of {name}" for name, n in Counter(r["method"] for r in retried).most_common())
        noted.append(f"{plural(len(retried), 'failed trial')} ran again ({which}), and {done} finished then")
    return _check("attempts", wrong, f"no finished trial of {len(tries):,} was run again", noted)


def _complete(store: Store) -> Check:
    """Note how much of the plan has a result."""
    rows = [r for r in store.table("coverage").to_pylist() if r["feasible"]]
    planned = sum(r["confirm_planned"] for r in rows)
    done = sum(min(r["confirm_done"], r["confirm_planned"]) for r in rows)
    failed = sum(r["failed"] for r in rows)
    noted = []
    short = [r for r in rows if r["confirm_done"] < r["confirm_planned"]]
    if short:
        worst = min(short, key=lambda r: r["confirm_done"] / r["confirm_planned"])
        name, seeds, planned_seeds = worst["label"], worst["confirm_done"], worst["confirm_planned"]
        noted.append(f"{plural(len(short), 'cell lacks', 'cells lack')} seeds; {name} has {seeds} of {planned_seeds}")
    if failed:
        noted.append(f"{plural(failed, 'trial')} failed at every attempt")
    return _check("complete", [], f"{done:,} of {planned:,} planned CONFIRM trials finished", noted)


def _parameters(store: Store) -> Check:
    """Check that the trained modules have as many parameters as their cells say."""
    built = [r for r in store.table("parity").to_pylist() if r["count_holds"] is not None]
    wrong = [
        f"{r['cell_id']} built {r['adapter_params']:,} parameters, and {r['count']:,} were planned"
        for r in built
        if not r["count_holds"]
    ]
    return _check("parameters", wrong, f"{len(built):,} of {len(built):,} cells built the planned number")


def _data(store: Store, events: Sequence[Event]) -> Check:
    """Check that all trials used the same data."""
    wrong = []
    tested: dict[str, set[tuple[str | None, int | None]]] = defaultdict(set)
    places = {r["trial_id"]: r["dataset"] for r in store.table("last_attempts").to_pylist()}
    for r in store.table("predictions").to_pylist():
        if r["trial_id"] in places:
            tested[places[r["trial_id"]]].add((r["examples_hash"], r["n_examples"]))
    wrong += [f"trials on {name} were tested on different examples" for name, seen in tested.items() if len(seen) > 1]
    now = data_seen(store.path)
    if now is None:
        wrong.append("data.json is no JSON object of data sets and their digests")
        now = {}
    runs = [e["data"] for e in events if e["ev"] == "sweep" and e.get("data")]
    for name, digest in {(name, digest) for run in runs for name, digest in run.items()}:
        if name not in now or not _may_be_same_data(digest, now[name]):
            wrong.append(f"data.json has another digest of {name} than the journal: its data was exchanged")
    if not tested and not runs:
        return Check("data", "not checked", ("neither answers nor digests of the data are recorded",))
    summary = f"{plural(len(tested), 'data set')}, each tested on the same examples by all trials"
    return _check("data", wrong, f"{summary}; its digest is the journal's" if runs else summary)


def _may_be_same_data(old: str, new: str) -> bool:
    """Return whether two digests may be of the same data: a later version may write more parts, or other ones."""
    if old.partition(":")[0] != new.partition(":")[0]:
        return True
    one, other = old.split(" "), new.split(" ")
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def _report_tables(store: Store) -> Check:
    """Check that the tables which a report left in the folder are those that the rows give."""
    place = store.path / forms.FOLDER
    written = [name for name in _WRITTEN if (place / f"{name}.csv").is_file()]
    texts = {name: (place / f"{name}.csv").read_text(encoding="utf-8") for name in written}
    outdated = [sheet.name for sheet in pick(store, written) if sheet_csv(sheet) != texts[sheet.name]]
    noted = (
        [f"{', '.join(outdated)} differ from what the rows give now; `sweeps report` writes them anew"]
        if outdated
        else []
    )
    return _check(
        "report tables", [], f"{len(written) - len(outdated)} of {len(written)} tables are what the rows give", noted
    )
