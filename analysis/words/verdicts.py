"""Verdicts in words, and what a comparison that reaches no conclusion could have detected."""

from __future__ import annotations

from collections.abc import Collection

from analysis.format import Row, percent, plural, points
from analysis.statistics.inference import OVER_DATASETS
from analysis.statistics.measures import LOSS, Separation
from analysis.statistics.scaling import PLANTED

MUCH = 2.0
"""`measures_text` advises to use the loss if it separates methods this many times better than the score."""
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


def further_head(name: str) -> str:
    """Return the heading of the column of the further measure: 'loss', or for example 'accuracy %'."""
    return name if name == LOSS else f"{name.partition(' (')[0]} %"


def further_text(value: float | None, name: str) -> str:
    """Return a value of the further measure: a loss with three decimals, any other measure in percent."""
    return percent(value) if name != LOSS else "" if value is None else f"{value:.3f}"


def measures_text(score: Separation, further: Separation) -> str:
    """Return a sentence on how well the score and the further measure separate methods, with advice if it is clear."""
    text = (
        f"On the validation examples of stage TUNE, the spread between methods is {score.ratio:.1f} times the noise of "
        f"a run by {score.name}, and {further.ratio:.1f} times by {further.name}."
    )
    if further.name == LOSS and further.ratio >= MUCH * score.ratio:
        text += ' So the loss can decide more here. A new sweep with metric = "loss" under [evaluate] goes by it.'
    return text


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

    A difference matters if it is larger than the declared margin and than `scaling.PLANTED`.
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
