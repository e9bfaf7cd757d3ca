"""The best methods of a budget in words, and what would change that answer."""

from __future__ import annotations

from analysis.format import Row, end_of_interval, listed, plural, points, with_interval
from analysis.styles import style
from analysis.verdict.looks import preliminary
from analysis.verdict.verdicts import NOT_KNOWN, remedy, size_of, untested

SILENT = "not distinguishable"
_MOST = 4  # methods that are named


def best_text(row: Row) -> str:
    """Return the names of the best methods in a row of `decisions.decisions`. If there are many, some are counted."""
    if row["methods"] > 1 and untested(row["verdict"]):
        return f"{style(row['method']).name} (not tested)"
    best_names = [style(m).name for m in row["best"]]
    counted = [f"{len(best_names) - _MOST + 1} others"] if len(best_names) > _MOST else []
    names = listed([*best_names[: _MOST - len(counted)], *counted], "or")
    return names if len(row["best"]) < 2 else f"{names} ({_how_alike(row)})"


def _how_alike(row: Row) -> str:
    """Return how the best methods of a row differ. Each was compared with the first; of more, two others may differ."""
    if len(row["best"]) > 2:
        return f"no test found a difference from {style(row['method']).name}"
    return "equivalent" if row["verdict"] == "equivalent" else SILENT


def would_change(row: Row) -> str:
    """Return sentences on what would change the answer in a row of `decisions.decisions`."""
    return preliminary(row["early"]) + _would_change(row)


def _would_change(row: Row) -> str:
    if row["next"] is None:
        return "No other method is confirmed here."
    name, other = style(row["method"]).name, style(row["next"]).name
    if row["verdict"] == NOT_KNOWN:
        return f"{other}: not tested, since what the choice of learning rates adds is not known."
    if untested(row["verdict"]):
        why = "there is one seed" if row["n"] < 2 else "they have no seed in common, or no spread between seeds"
        return f"{other}: not tested, since {why}."
    gap = behind_text(row)
    pair = f"{other} minus {name}"
    if row["failed"] and row["verdict"] not in ("higher", "lower"):
        lost = f"{plural(row['failed'], 'run')} of theirs failed, and the answer depends on how these count."
        return f"{pair}: {gap} points, on the seeds that both finished. {lost}"
    if row["ahead"] < 0:
        return f"{pair}: {gap} points, on the seeds that both have. Run both on the same seeds."
    if row["verdict"] in ("higher", "lower"):
        return f"{pair}: {gap} points, so {name} is higher."
    if row["verdict"] == "equivalent":
        return f"{pair}: {gap} points, equivalent. Choose by cost."
    if row["detectable"] is None:
        spent = "earlier looks have left no level to test at"
        return f"{pair}: {points(-row['ahead'])} points. More seeds would not help: {spent}."
    return " ".join(filter(None, (f"{pair}: {points(-row['ahead'])} points.", detectable_text(row), remedy_text(row))))


def behind_text(row: Row) -> str:
    """Return how many points the next method is behind, with the interval: '-2.2 [-4.8, +0.4]'."""
    ends = ("ahead_high", "ahead_low")
    low, high = ("" if row[end] is None else end_of_interval(-row[end]) for end in ends)
    return with_interval(points(-row["ahead"]), low, high)


def detectable_text(row: Row) -> str:
    """Return a sentence on the smallest difference that the seeds can detect."""
    seeds = plural(row["pairs"], "seed")
    if row["detectable"] >= 1:
        return f"With {seeds} no difference can be detected."
    return f"With {seeds} a difference of about {size_of(row['detectable'])} points can be detected."


def remedy_text(row: Row) -> str:
    """Return a sentence on the seeds that a verdict would need; empty while seeds are still to run."""
    return "" if row["early"] else remedy(row["ahead"], row["seeds_needed"], row["seeds_needed_given_rates"])
