"""The decision at a budget in words: which methods, and what would change the answer."""

from __future__ import annotations

from analysis.format import Row, percent, points, ranged
from analysis.statistics.inference import NOT_KNOWN
from analysis.styles import style
from analysis.words.conclusions import preliminary


def best_text(row: Row) -> str:
    """The best methods of a row of `decisions.decisions`; of several none is known to be better than the others."""
    if row["methods"] > 1 and not tested(row):
        return f"{style(row['method']).name} (untested)"
    return " = ".join(style(m).name for m in row["best"])


def tested(row: Row) -> bool:
    """Whether the two best could be tested."""
    return row["verdict"] is not None and not row["verdict"].startswith("not testable")


def would_change(row: Row) -> str:
    """What would change the answer of a row of `decisions.decisions`."""
    return preliminary(row["early"]) + _would_change(row)


def _would_change(row: Row) -> str:
    if row["next"] is None:
        return "no other method is confirmed here"
    names = style(row["method"]).name, style(row["next"]).name
    if row["verdict"] == NOT_KNOWN:
        return f"{names[0]} and {names[1]}: not testable, what the choice of rates adds is not known"
    if not tested(row):
        why = "one seed" if row["n"] < 2 else "no seed in common, or no spread between seeds"
        return f"{names[0]} and {names[1]}: not testable, {why}"
    gap = ranged(points(row["ahead"]), points(row["ahead_low"]), points(row["ahead_high"]))
    if row["ahead"] < 0:
        return f"{names[1]} scores more on the seeds that both have ({gap} points): confirm both on the same seeds"
    if row["verdict"] in ("higher", "lower"):
        return f"{names[0]} is ahead of {names[1]} by {gap} points"
    if row["verdict"] == "equivalent":
        return f"{names[1]} is equivalent ({gap} points): cost decides"
    if row["detectable"] is None:
        return f"{names[1]} is {percent(row['ahead'])} points behind; looks have left no level to test at"
    needs = "no number up to 1,000" if row["seeds_needed"] is None else f"{row['seeds_needed']:,}"
    least = percent(row["detectable"]) if row["detectable"] < 1 else "no difference that there can be"
    found = f"{row['pairs']} seeds find {least}"
    return f"{names[1]} is {percent(row['ahead'])} points behind; {found}, and {needs} would find that"
