"""The verb `verify`: checks whether a results folder is as its sweep wrote it, and says what was changed. And the verb
`versions`: prints the versions of packages that the sweep ran with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.format import plural
from analysis.sheets.sheet import Sheet, text
from analysis.sheets.terminal import print_sheet
from sweeps.cli.options import FAILED_TRIALS, Json, Source, folder_of, store_of
from sweeps.cli.printing import emit, err, out

if TYPE_CHECKING:
    from sweeps.engine.rerun import Rerun


def verify(
    source: Source,
    again: Annotated[
        int, typer.Option("--again", help="Also train this many finished trials again, drawn at random.", min=0)
    ] = 0,
    as_json: Json = False,
) -> int:
    """Check a results folder: whether rows, scores and choices agree with its journal.

    It also prints what was changed or added while the sweep ran, and the packages that have other versions here. The
    command writes nothing. Exit code 1 if a check fails.
    """
    from dataclasses import asdict

    from analysis.findings.answer.answer import conclusion_of
    from sweeps.engine.verifying import verify as check
    from sweeps.engine.versions import differences, latest

    store = store_of(source)
    verification = check(store)
    other = differences(latest(store))
    trained: list[Rerun] = []
    if again:
        trained = _trained(source, again, as_json=as_json)
    wrong = [each for each in trained if each.verdict == "NOT the same"]

    def answer() -> dict[str, Any]:
        return {
            "sweep": ", ".join(store.names),
            "holds": not verification.failed and not wrong,
            "receipt": verification.receipt,
            "answer": conclusion_of(store).answer,
            "checks": [asdict(each) for each in verification.checks],
            "again": [{**asdict(each), "word": each.verdict} for each in trained],
            "versions": [asdict(each) for each in other],
        }

    def draw() -> None:
        outcomes = {"fails": "FAILS"}
        lines = [(outcomes.get(c.outcome, c.outcome), c.name, "\n".join(c.says)) for c in verification.checks]
        lines += [(one.verdict, f"trial {one.trial_id}", _text_of(one)) for one in trained]
        rows = [{"outcome": outcome, "name": name, "says": says} for outcome, name, says in lines]
        columns = [text("", "outcome", "verdict"), text("", "name"), text("", "says")]
        print_sheet(Sheet("checks", "", columns, rows), out)
        out.print(f"\n{verification.receipt}", style="bold")
        if any(each.outcome in ("noted", "not checked") for each in verification.checks):
            out.print(
                "Noted: no fault, but something to know. Not checked: the folder lacks what the check needs. "
                "`--again K` trains K of its trials again.",
                style="dim",
            )
        out.print(f"The rows give this answer: {conclusion_of(store).answer}")
        if other:
            out.print(
                f"Other versions here: {'; '.join(map(str, other))}. `sweeps versions` prints those of the sweep."
            )
        if trained:
            same = sum(each.same for each in trained)
            out.print(
                f"{same} of {plural(len(trained), 'trial')} trained again gave the same scores to the last digit."
            )

    emit(as_json, answer, draw)
    return FAILED_TRIALS if verification.failed or wrong else 0


def versions(source: Source, as_json: Json = False) -> None:
    """Print the versions of the packages that a sweep ran with, as constraints for pip.

    `pip install --constraint FILE` installs them again. There is a line for each package whose version the sweep
    recorded. Comments give the versions of Python and of this program, and earlier versions if the sweep used several.
    """
    from dataclasses import asdict

    from sweeps.engine.versions import constraints, differences, latest, ran_with
    from sweeps.errors import Problem, SpecError

    store = store_of(source)
    known = ran_with(store)
    if not known:
        raise SpecError([Problem("results", str(source), "has no versions of packages: no trial of it has finished")])
    emit(
        as_json,
        lambda: {"versions": known, "differences": [asdict(each) for each in differences(latest(store))]},
        lambda: out.print("\n".join(constraints(known))),
    )


def _trained(source: Source, count: int, *, as_json: bool) -> list[Rerun]:
    """Train finished trials again that are drawn at random. Return the scores of each, in the sweep and now."""
    from secrets import SystemRandom

    from sweeps.engine.rerun import train_again

    folder = folder_of(source)
    rows = store_of(folder).table("last_attempts").to_pylist()
    finished = sorted(r["trial_id"] for r in rows if r["status"] == "finished")
    drawn = SystemRandom().sample(finished, min(count, len(finished)))
    trained = []
    for number, trial in enumerate(drawn, 1):
        if not as_json:
            err.print(f"training trial {trial} again: {number} of {len(drawn)}", style="dim")
        trained.append(train_again(folder, trial))
    return trained


def _text_of(one: Rerun) -> str:
    """Return the scores of a trial that was trained again, and why they may differ."""
    from sweeps.engine.rerun import CLOSE

    scores = f"validation {one.val_score} and again {one.val_again}"
    if one.test_score is not None:
        scores += f", test {one.test_score} and again {one.test_again}"
    why = ""
    if not one.same:
        where = "; ".join(one.elsewhere) or "hardware and versions are those of the sweep"
        why = f" ({where}; up to {100 * CLOSE:g} points may be due to other hardware or versions)"
    return f"{scores}{why}"
