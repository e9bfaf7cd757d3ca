"""Write the numbers of docs/league.md (methods at one budget) and docs/peft-published.md (PEFT's own results)."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from statistics import median
from textwrap import fill

from analysis import Store, open_store
from analysis.findings.results.numbers import results_table
from analysis.findings.shared import DIFFERENCE
from analysis.format import Row, change_text, duration, freedom_text, percent, quantity, score_text
from analysis.styles import style
from analysis.verdict.comparisons import comparisons
from analysis.verdict.groups import groups
from analysis.verdict.question import question

COLUMNS = ("method", "accuracy", "minus LoRA", "parameters", "dof", "rank", "learning rate", "time", "MiB", "stored")
PUBLISHED = ("experiment", "accuracy", "parameters", "learning rate", "training", "GiB")

Places = dict[str, str | tuple[tuple[str, ...], list[list[str]]]]
"""What replaces a placeholder of a page: a text, or a table as its columns and rows."""


def league(store: Store, finished: list[Row]) -> list[list[str]]:
    """Return one row of texts for each finished method, in the order of `COLUMNS`, highest mean first."""
    cells = {r["method"]: r for r in store.table("cells").to_pylist()}
    costs = {r["method"]: r for r in store.table("cost").to_pylist()}
    rows = sorted(finished, key=lambda r: -r["mean"])
    return [_texts(r, cells[r["method"]], costs[r["method"]]) for r in rows]


def _texts(row: Row, cell: Row, cost: Row) -> list[str]:
    verdict = "" if row["verdict"] == "not distinguishable" else row["verdict"] or ""
    speed, memory = cost["samples_per_second"], cost["peak_memory_bytes"]
    return [
        f"`{row['method']}`",
        score_text(row),
        f"{change_text(row, *DIFFERENCE)} {verdict}".strip(),
        quantity(row["adapter_params"]),
        freedom_text(cell["dof"], cell["dof_measured"], cell["dof_at_most"]),
        quantity(cell["update_rank"]),
        quantity(row["lr"]) + "*" * bool(row["under_tuned"]),
        "" if speed is None else f"{1000 / speed:.0f} ms",
        "" if memory is None else f"{memory / 2**20:,.0f}",
        quantity(cost["stored_bytes"]),
    ]


def unreached(store: Store) -> str:
    """Name the methods that cannot reach the budget, each with the nearest number of parameters that it can train."""
    cells = [r for r in store.table("cells").to_pylist() if not r["feasible"]]
    nearest = {r["method"]: _nearest(r) for r in cells}
    most = sorted(nearest, key=nearest.__getitem__, reverse=True)
    listed = ", ".join(f"`{m}` {nearest[m]:,}" for m in most)
    return f"These methods cannot reach the budget on these weights; beside each is its nearest count: {listed}."


def attaching(store: Store) -> str:
    """Name the methods whose median trial takes over a second to attach to a loaded model."""
    spent: dict[str, list[float]] = {}
    for row in sorted(store.table("trials").to_pylist(), key=lambda row: row["started_at"]):
        if row["seconds_setup"] is not None:
            spent.setdefault(row["method"], []).append(row["seconds_setup"])
    medians = sorted(((median(seconds), method) for method, seconds in spent.items()), reverse=True)
    slow = ", ".join(f"`{m}` {spend:.1f} s (first trial {spent[m][0]:.1f} s)" for spend, m in medians if spend > 1)
    exceptions = f", except {slow}" if slow else ""
    return f"- *Starting*: once the model is loaded, a method attaches to it within a second (median){exceptions}."


def _nearest(cell: Row) -> int:
    counts = [int(json.loads(cell[side])["count"]) for side in ("below", "above") if cell[side]]
    return min(counts, key=lambda count: abs(count - cell["budget"]))


def published(store: Store) -> list[list[str]]:
    """Return one row of texts for each experiment of PEFT's comparison, in the order of `PUBLISHED`, highest first."""
    rows = [r for r in store.table("trials").to_pylist() if r["test_score"] is not None]
    rows.sort(key=lambda r: (-r["test_score"], r["cell_id"]))
    return [
        [
            f"`{r['cell_id'].replace('_llama-3.2-3B-', ' ')}`",
            percent(r["test_score"]),
            quantity(r["adapter_params"]),
            quantity(r["lr"]),
            duration(r["seconds_train"]),
            "" if r["peak_memory_bytes"] is None else f"{r['peak_memory_bytes'] / 2**30:.1f}",
        ]
        for r in rows
    ]


def _finished(store: Store) -> list[Row]:
    """Return the results of the methods that have all of their seeds."""
    seeds = {r["method"]: r["confirm_seeds"] for r in store.table("cells").to_pylist()}
    return [r for r in results_table(store).to_pylist() if r["n"] and r["n"] == seeds[r["method"]]]


def state(store: Store, finished: list[Row]) -> str:
    """Say which methods still lack seeds; empty if the league is complete."""
    cells = [r["method"] for r in store.table("cells").to_pylist() if r["feasible"]]
    done = {r["method"] for r in finished}
    missing = ", ".join(f"`{m}`" for m in cells if m not in done)
    if not missing:
        return ""
    return f"- **Unfinished: {len(done)} of {len(cells)} methods have their seeds**, all but {missing}."


def answer(store: Store) -> str:
    """Give the difference of the method in question from LoRA, its verdict, and what the test can detect."""
    asked = question(store)
    rows = [r for r in comparisons(store).to_pylist() if r["method"] == asked.focus and r["reference"]]
    if not rows:
        return ""
    (row,) = rows
    names = f"{style(row['method']).name} minus {style(row['baseline']).name}"
    sentence = f"- **{names} is {change_text(row)} points: {row['verdict']}.**"
    if not row["detectable"]:
        return sentence
    detects = f"It detects a difference of {100 * row['detectable']:.1f} points four times in five."
    corrected = "The sweep's question is about RandLoRA, so this test is not corrected for the other methods."
    return f"{sentence} {corrected} {detects}"


def ranking(store: Store, finished: list[Row]) -> str:
    """Say how many pairs of methods can be distinguished, what can be detected, and how many are under-tuned."""
    done = {r["method"] for r in finished}
    letters = [set(r["group"]) for r in groups(store).to_pylist() if r["method"] in done]
    apart = [not one & other for one, other in combinations(letters, 2)]
    asked = question(store)
    others = sorted(
        100 * r["detectable"] for r in comparisons(store).to_pylist() if r["detectable"] and r["method"] != asked.focus
    )
    detectable = ""
    if others:
        most = others[9 * len(others) // 10]
        until = f"{most:.0f}" if most < 100 else "over 100"
        detectable = (
            " Many methods are compared, so the test is strict and its power is low. For nine in ten methods the "
            f"smallest difference from LoRA that it finds four times in five is {others[0]:.0f} to {until} points. "
            "The printed intervals are corrected in the same way."
        )
    under_tuned = sum(bool(r["under_tuned"]) for r in finished)
    return (
        f"- **The order is no ranking.** Of {len(apart)} pairs of methods {sum(apart) or 'none'} can be distinguished."
        f"{detectable} For {under_tuned} of {len(finished)} methods a better learning rate may exist: scores "
        "change so much between the best rate and its neighbours that a better one may lie between them, or the best "
        "rate is at the edge of its range."
    )


TWINS = ("lora", "peft:lora")


def twins(store: Store, finished: list[Row]) -> str:
    """Compare our LoRA with PEFT's, the same function: their scores, learning rates and single seeds."""
    cells = {r["method"]: r for r in finished if r["method"] in TWINS}
    if len(cells) < len(TWINS):
        return ""
    runs: dict[str, list[float]] = {m: [] for m in TWINS}
    for row in store.table("confirmed").to_pylist():
        if row["method"] in runs:
            runs[row["method"]].append(row["test_score"])
    means = " and ".join(percent(cells[m]["mean"]) for m in TWINS)
    ours, theirs = (quantity(cells[m]["lr"]) for m in TWINS)
    rates = (
        f"both got the learning rate {ours}" if ours == theirs else f"they got the learning rates {ours} and {theirs}"
    )
    seeds = "; ".join(f"`{m}` {', '.join(percent(score) for score in sorted(runs[m]))}" for m in TWINS)
    return (
        f"- **`lora` and `peft:lora` are two implementations of the same method, and score {means} %.** They start "
        f"from different random numbers, and {rates}. Single seeds: {seeds}."
    )


def _item(text: str) -> str:
    return fill(text, 120, subsequent_indent="  ", break_on_hyphens=False)


def texts(results: Path) -> Places:
    """Return what replaces the placeholders of docs/league.md: texts, and tables as columns and rows."""
    text_by_place: Places = {}
    for name, prefix in (("league", ""), ("league-language", "LANGUAGE_")):
        ours = open_store(results / name)
        finished = _finished(ours)
        sentences = (state(ours, finished), ranking(ours, finished), answer(ours), twins(ours, finished))
        text_by_place |= {
            f"@{prefix}ANSWER@": "\n".join(_item(one) for one in sentences if one),
            f"@{prefix}LEAGUE@": (COLUMNS, league(ours, finished)),
            f"@{prefix}ATTACH@": _item(attaching(ours)),
            f"@{prefix}UNREACHED@": fill(unreached(ours), 120),
        }
    return text_by_place


def published_texts(results: Path) -> Places:
    """Return what replaces the placeholders of docs/peft-published.md."""
    return {"@PUBLISHED@": (PUBLISHED, published(open_store(results / "peft-published")))}
