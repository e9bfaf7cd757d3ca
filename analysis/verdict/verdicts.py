"""Step 8: from corrected p values to a verdict, and the words for it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from analysis.format import Row, end_of_interval, plural, points
from analysis.verdict.inference import LEVEL, OVER_DATASETS
from analysis.verdict.power import PLANTED

Verdict = Literal[
    "higher",
    "lower",
    "equivalent",
    "not distinguishable",
    "not testable",
    "not testable with the choice of rates",
]
NOT_KNOWN: Verdict = "not testable with the choice of rates"
"""The verdict if it is not known what variance the choice of learning rates adds."""


def verdict(
    difference: float | None, adjusted_p: float | None, *, beyond: float | None = None, known: bool = True
) -> Verdict:
    """Return the verdict that corrected tests allow on a difference.

    Args:
        difference: the observed difference; None if there is none.
        adjusted_p: corrected p value of no difference; None if it cannot be tested.
        beyond: corrected p value of a true difference outside the margin; None without a margin.
        known: whether the variance that the choice of rates adds is known. A verdict that takes the rates as given does
            not need it.
    """
    if difference is None or (known and adjusted_p is None):
        return "not testable"
    if adjusted_p is None:
        return NOT_KNOWN
    if adjusted_p <= 1 - LEVEL:
        return "higher" if difference > 0 else "lower"
    return "equivalent" if beyond is not None and beyond <= 1 - LEVEL else "not distinguishable"


TESTED_VERDICTS = ("higher", "lower", "equivalent", "not distinguishable")
"""The verdicts on differences that were tested."""
MANY_SEEDS = 50
"""Runs with more seeds than this are not advised; the number is only stated."""
_SMALL = 0.0005  # shown as 0.0 points


def untested(verdict: str | None) -> bool:
    """Return whether a verdict says that nothing could be tested."""
    return verdict is None or verdict.startswith("not testable")


def seeds_text(row: Row) -> str:
    """Return the number of seeds, such as '5', or '5 of 10' if the others failed."""
    return str(row["n"]) if not row["failed"] else f"{row['n']} of {row['n'] + row['failed']}"


LATER = " (later)"
"""Follows a verdict on cells that were added after the first declaration."""
LATER_MEANS = (
    "(later): a method, budget or data set that was added to the sweep after its first declaration; these comparisons "
    "are corrected separately, and change none of the declared ones"
)


def verdict_text(verdict: str | None) -> str:
    """Return 'higher', 'lower', 'equivalent', 'not distinguishable' or 'not tested', or "" for None."""
    return "" if verdict is None else "not tested" if untested(verdict) else verdict


def meanings(verdicts: Collection[str | None], margin: float | None) -> list[str]:
    """Return a sentence on each of `verdicts` that needs one. `margin` is the margin of equivalence, a fraction."""
    sentences = []
    if "not distinguishable" in verdicts:
        sentences.append("Not distinguishable: the tests found no difference. The methods may still differ.")
    if "equivalent" in verdicts and margin is not None:
        sentences.append(
            f"Equivalent: the tests exclude a difference of more than {size_of(margin)} points. The sweep file says "
            "that smaller ones do not matter (confirm.margin)."
        )
    return sentences


def inconclusive(row: Row) -> bool:
    """Return whether a comparison is not distinguishable and could have missed a difference that matters.

    A difference matters if it is larger than the declared margin and than `power.PLANTED`.
    """
    return bool(row["verdict"] == "not distinguishable") and not _powerful(row)


def _powerful(row: Row) -> bool:
    detectable = row.get("detectable")
    return detectable is not None and detectable <= max(PLANTED, row.get("margin") or 0.0)


def size_of(fraction: float) -> str:
    """Return a difference in points without its sign: '3.6', or '30' from ten points on."""
    value = 100 * abs(fraction)
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def runs_of(row: Row) -> str:
    """Return what a comparison was averaged over: '5 seeds', or '3 data sets'."""
    each = row["n"] / (row.get("datasets") or 1)
    return plural(row["n"], "data set") if row.get("test") == OVER_DATASETS else plural(round(each), "seed")


def apart_text(row: Row, a: str, b: str) -> str:
    """Return how far apart two methods are: 'RandLoRA is 6.9 points above LoRA'."""
    difference = row["difference"]
    if abs(difference) < _SMALL:
        return f"{a} and {b} are less than 0.1 points apart"
    return f"{a} is {size_of(difference)} points {'above' if difference > 0 else 'below'} {b}"


def missed_text(row: Row) -> str:
    """Return what a comparison could have missed: '2 seeds cannot detect differences below 30 points'."""
    detectable = row.get("detectable")
    if row.get("difference_as_untrained") is not None:
        return "the test with failed runs scored as the untrained model does not exclude zero"
    if detectable is None:
        spent = row.get("alpha") == 0.0
        return (
            "earlier looks have left no level to test at" if spent else "how small a difference is detected is unknown"
        )
    if detectable >= 1:
        return f"{runs_of(row)} cannot detect any difference"
    if detectable <= abs(row["difference"]):
        return f"the corrected test does not exclude zero ({runs_of(row)})"
    return f"{runs_of(row)} cannot detect differences below {size_of(detectable)} points"


def remedy(difference: float, seeds: int | None, seeds_given_rates: int | None) -> str:
    """Return a sentence on the seeds that would detect a difference, or on why more seeds would not help.

    It is "" for a difference near zero.

    Args:
        difference: the observed difference.
        seeds: number of seeds that would detect it; None if no number up to 1,000 would.
        seeds_given_rates: the same, without the variance that the choice of learning rates adds.
    """
    if abs(difference) < _SMALL:
        return ""
    if seeds is None:
        if seeds_given_rates is None:
            return f"Not even 1,000 seeds would detect {points(abs(difference)).lstrip('+')} points."
        return "The choice of learning rates limits this: more seeds alone would not help."
    if seeds > MANY_SEEDS:
        return f"It would take {seeds:,} seeds to detect this difference."
    return f"Run a new sweep with {plural(seeds, 'seed')}."


NO_CONCLUSION = "no conclusion"


def interval_text(row: Row) -> str:
    """Return a difference such as '+1.3 points [+0.2, +2.4]', without the bracket if there is no interval."""
    text = f"{points(row['difference'])} points"
    return text if row["low"] is None else f"{text} [{end_of_interval(row['low'])}, {end_of_interval(row['high'])}]"
