"""The answer of a sweep, its limits, and what more seeds would cost, computed from a store."""

from __future__ import annotations

from collections.abc import Collection

from analysis.findings.answer.words import Conclusion, conclude
from analysis.findings.parity.finding import ran_with
from analysis.findings.parity.words import devices_apart, versions_apart
from analysis.format import listed, plural, points
from analysis.store.store import Store
from analysis.styles import dataset_text, place_of, style
from analysis.verdict.comparisons import verdict_table
from analysis.verdict.looks import declared, level
from analysis.verdict.question import question
from analysis.verdict.runs import confirmed, failed


def conclusion(store: Store) -> str:
    """Return the sweep's answer in sentences that claim no more than its tests allow."""
    return str(conclusion_of(store))


def conclusion_of(store: Store) -> Conclusion:
    """Return the sweep's answer with its limits, and how it was tested."""
    asked_question = question(store)
    methods = None if asked_question.focus is None else (asked_question.focus, asked_question.baseline)
    limits = [*runs_failed(store, methods), *unlike(store, methods)]
    return conclude(verdict_table(store), level(store), limits, asked_question)


def runs_failed(store: Store, methods: Collection[str] | None = None) -> list[str]:
    """Return a sentence on the confirming runs of `methods` (all if None) that failed, and one on what they change."""
    lost = [rows for (_, method, _), rows in failed(store).items() if methods is None or method in methods]
    if not lost:
        return []
    scored, cells, without_score = confirmed(store), [], []
    for rows in lost:
        r, n = rows[0], len(rows)
        finished = len(scored.get((place_of(r), r["method"], r["reference"]), ()))
        at = f" at {r['reference']}" if r["reference"] else ""
        cell = f"{style(r['method']).name}{at} on {dataset_text(r['dataset'])}"
        cells.append(f"{n} of {n + finished} of {cell}")
        without_score += [] if finished else [cell]
    sentences = [
        f"Confirming runs that failed: {listed(cells)}. A method is only called higher if that also "
        "holds with each of its failed runs scored as the untrained model."
    ]
    if without_score:
        sentences.append(f"No run finished of {listed(without_score)}: there is no difference, and means leave it out.")
    rows = [r for r in verdict_table(store).to_pylist() if r["difference_as_untrained"] is not None]
    rows = [r for r in rows if r["reference"] and (methods is None or r["method"] in methods)]
    for r in rows:
        pair = f"{style(r['method']).name} minus {style(r['baseline']).name} at {r['reference']}"
        so_scored = f"{points(r['difference_as_untrained'])} so scored"
        over = f"{points(r['difference'])} points over finished runs"
        sentences.append(f"{pair} on {dataset_text(r['dataset'])} is {over}, and {so_scored}.")
    return sentences


def unlike(store: Store, methods: Collection[str] | None = None) -> list[str]:
    """Return a sentence if devices or precision differ between `methods` (all if None), and one if versions differ."""
    difference_texts = {
        "Devices or precision": devices_apart(store.table("parity").to_pylist(), methods),
        "Versions of packages": versions_apart(ran_with(store), methods),
    }
    return [f"{what} are NOT equal: {apart}." for what, apart in difference_texts.items() if apart]


def more_seeds(store: Store) -> str:
    """Say how to add seeds, and what they cost in confidence."""
    section = declared(store)
    seeds, most = section.get("seeds"), section.get("max_seeds")
    if not isinstance(seeds, list):
        return ""
    advice = f"Raise seeds under [confirm] in the sweep file (now {len(seeds)}), and run the same command again"
    if not isinstance(most, int):
        return f"{advice}. Each addition is a further look at the test scores, and the tests become stricter."
    if len(seeds) < most:
        return f"{advice}. This sweep declared at most {plural(most, 'seed')} before its first score."
    return (
        f"This sweep declared at most {plural(most, 'seed')} before its first score, so that seeds are not added until "
        "a difference appears. If you add seeds to this folder, its differences are no longer tested. For more seeds "
        "start a new sweep: copy the sweep file, give it another name, and raise seeds and max_seeds under [confirm]."
    )
