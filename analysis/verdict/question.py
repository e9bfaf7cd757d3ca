"""The question of a sweep: which method is compared with which baseline."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from analysis.format import EVERY_METHOD, Row
from analysis.store.store import Store, remembered
from analysis.styles import in_order, style
from analysis.verdict.looks import declared_before_scores, restrict_to_declared

FOCUS, BASELINE = "randlora", "lora"
"""The default question: full rank (RandLoRA) against low rank (LoRA) at the same number of parameters."""


@dataclass(frozen=True)
class Question:
    """Which methods a sweep compares at equal parameters.

    Attributes:
        focus: the method in question; None if there are several, which are all compared with the `baseline`.
        baseline: the method that the others are compared with.
        every: whether every method is in question (`confirm.question = "all"`). Each then gets its mean over budgets
            and data sets, and all rows are one family. `focus` is None.
    """

    focus: str | None = FOCUS
    baseline: str = BASELINE
    every: bool = False


@remembered
def question(store: Store) -> Question:
    """Return the question of a sweep: the method of `confirm.question` (default RandLoRA) against LoRA.

    If the sweep has no LoRA with a budget, the baseline is the first other method in the order of tables. If it does
    not have the method in question, the focus is the one method that is left besides the baseline, or None if there are
    several. If `confirm.question` is "all", every method is in question. Methods that were added later change nothing.
    """
    declared_cells = restrict_to_declared(store).table("cells").to_pylist()
    rows = [r for r in declared_cells if r["feasible"] and r["reference"] is not None]
    return question_among({r["method"] for r in rows}, declared_before_scores(store).get("question"))


def question_among(names: Collection[str], asked: str | None) -> Question:
    """Return the question of a sweep from the methods of its cells with a budget, and its `confirm.question`."""
    methods = in_order(set(names))
    if asked == EVERY_METHOD:
        return Question(None, BASELINE if BASELINE in methods or not methods else methods[0], every=True)
    focus = asked if asked in methods else FOCUS
    other_methods = [m for m in methods if m != focus]
    baseline = BASELINE if BASELINE in other_methods else other_methods[0] if other_methods else BASELINE
    besides_baseline = [m for m in methods if m != baseline]
    return Question(
        focus if focus in besides_baseline else besides_baseline[0] if len(besides_baseline) == 1 else None, baseline
    )


def question_against(store: Store, baseline: str | None = None) -> Question:
    """Return the sweep's question with another baseline. If that is the focus, focus and baseline are exchanged."""
    asked_question = question(store)
    turned = baseline is not None and baseline == asked_question.focus
    return replace(
        asked_question,
        focus=asked_question.baseline if turned else asked_question.focus,
        baseline=baseline or asked_question.baseline,
    )


ASKED = Question()


def question_names(asked: Question) -> tuple[str, str]:
    """Return the name of the method in question, and the name of its baseline."""
    return "each other method" if asked.focus is None else style(asked.focus).name, style(asked.baseline).name


def rows_of_question(rows: Sequence[Row], asked: Question) -> list[Row]:
    """Return the rows that compare the methods of the question."""
    return [r for r in rows if r["baseline"] == asked.baseline and asked.focus in (None, r["method"])]
