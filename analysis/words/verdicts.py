"""Verdicts in words, and what a comparison that reaches no conclusion could have detected."""

from __future__ import annotations

from collections.abc import Collection

from analysis.format import Row, percent, plural, points
from analysis.statistics.inference import OVER_DATASETS
from analysis.statistics.measures import LOSS, Separation
from analysis.statistics.scaling import PLANTED

MUCH = 2.0
"""Times that the loss must tell methods apart better than the score, for `measures_text` to advise it."""
SAID = ("higher", "lower", "equivalent", "not distinguishable")
"""The verdicts on what was tested."""
MANY_SEEDS = 50
"""More seeds than these are stated as what it would take, not advised."""
_SMALL = 0.0005  # shown as 0.0 points


def untested(verdict: str | None) -> bool:
    """Whether nothing could be tested."""
    return verdict is None or verdict.startswith("not testable")


def seeds_text(row: Row) -> str:
    """'5', or '5 of 10' where the others failed."""
    return str(row["n"]) if not row["failed"] else f"{row['n']} of {row['n'] + row['failed']}"


def beside_head(name: str) -> str:
    """The head of the column of the measure beside the score: 'loss', or 'accuracy %'."""
    return name if name == LOSS else f"{name.partition(' (')[0]} %"


def beside_text(value: float | None, name: str) -> str:
    """A value of that column: a loss with three decimals, any other measure in percent."""
    return percent(value) if name != LOSS else "" if value is None else f"{value:.3f}"


def measures_text(score: Separation, other: Separation) -> str:
    """Say how well the score and the measure beside it tell methods apart, and what follows if the loss does better."""
    said = (
        f"On the validation examples of stage TUNE, the spread between methods is {score.ratio:.1f} times the noise of "
        f"a run by {score.name}, and {other.ratio:.1f} times by {other.name}."
    )
    if other.name == LOSS and other.ratio >= MUCH * score.ratio:
        said += ' So the loss can decide more here. A new sweep with metric = "loss" under [evaluate] goes by it.'
    return said


LATER = " (later)"
"""Follows a verdict of the second analysis, of cells that joined after the first declaration."""
LATER_MEANS = (
    "(later): a method, budget or data set that joined the sweep after its first declaration; these comparisons are "
    "corrected by themselves, and change none of the declared ones"
)


def verdict_text(verdict: str | None) -> str:
    """One of 'higher', 'lower', 'equivalent', 'not distinguishable', 'not tested'; empty for None."""
    return "" if verdict is None else "not tested" if untested(verdict) else verdict


def meanings(verdicts: Collection[str | None], margin: float | None) -> list[str]:
    """Explain those of `verdicts` that need it, a sentence each. `margin`: of equivalence, as a fraction."""
    said = []
    if "not distinguishable" in verdicts:
        said.append("Not distinguishable: the tests found no difference. The methods may still differ.")
    if "equivalent" in verdicts and margin is not None:
        said.append(
            f"Equivalent: the tests exclude a difference of more than {size_of(margin)} points. The sweep file says "
            "that smaller ones do not matter (confirm.margin)."
        )
    return said


def inconclusive(row: Row) -> bool:
    """Whether a difference is not distinguishable from zero and a difference that matters could have been missed.

    A difference matters from the declared margin on, or from `scaling.PLANTED` on.
    """
    return bool(row["verdict"] == "not distinguishable") and not _powerful(row)


def _powerful(row: Row) -> bool:
    found = row.get("detectable")
    return found is not None and found <= max(PLANTED, row.get("margin") or 0.0)


def size_of(fraction: float) -> str:
    """A difference in points without its sign: '3.6', or '30' from ten points on."""
    value = 100 * abs(fraction)
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def runs_of(row: Row) -> str:
    """What a comparison is over: '5 seeds', or '3 data sets'."""
    each = row["n"] / (row.get("datasets") or 1)
    return plural(row["n"], "data set") if row.get("test") == OVER_DATASETS else plural(round(each), "seed")


def apart_text(row: Row, a: str, b: str) -> str:
    """'RandLoRA is 6.9 points above LoRA'."""
    difference = row["difference"]
    if abs(difference) < _SMALL:
        return f"{a} and {b} are less than 0.1 points apart"
    return f"{a} is {size_of(difference)} points {'above' if difference > 0 else 'below'} {b}"


def missed_text(row: Row) -> str:
    """What a comparison without a conclusion cannot detect: '2 seeds cannot detect differences below 30 points'."""
    found = row.get("detectable")
    if found is None:
        spent = row.get("alpha") == 0.0
        return (
            "earlier looks have left no level to test at" if spent else "how small a difference is detected is unknown"
        )
    if found >= 1:
        return f"{runs_of(row)} cannot detect any difference"
    if found <= abs(row["difference"]):
        return f"the corrected test does not exclude zero ({runs_of(row)})"
    return f"{runs_of(row)} cannot detect differences below {size_of(found)} points"


def remedy(difference: float, seeds: int | None, seeds_given_rates: int | None) -> str:
    """What would decide on a difference: more seeds, or why these would not help. Empty for a difference near zero.

    Args:
        difference: seen.
        seeds: that would detect it; None if no number up to 1,000 would.
        seeds_given_rates: the same without the uncertainty that the choice of learning rates adds.
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
