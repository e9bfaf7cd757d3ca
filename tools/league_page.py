"""docs/league.md: every method at one count, from the published tables of the league and of PEFT's own comparison."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from statistics import median
from textwrap import fill

from analysis import Store, open_store
from analysis.format import Row, change_text, duration, freedom, percent, quantity, score_text
from analysis.statistics.groups import groups
from analysis.statistics.scaling import comparisons, question
from analysis.tables.console import DIFFERENCE, conclusion, results_table

COLUMNS = ("method", "accuracy", "vs LoRA", "parameters", "dof", "rank", "rate", "example", "MiB", "stored")
PUBLISHED = ("experiment", "accuracy", "parameters", "rate", "training", "GiB")


def league(store: Store, finished: list[Row]) -> list[list[str]]:
    """Texts of the finished methods, in the order of `COLUMNS`, the best mean first."""
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
        freedom(cell["dof"], cell["dof_measured"], cell["dof_at_most"]),
        quantity(cell["update_rank"]),
        quantity(row["lr"]) + "*" * bool(row["under_tuned"]),
        "" if speed is None else f"{1000 / speed:.0f} ms",
        "" if memory is None else f"{memory / 2**20:,.0f}",
        quantity(cost["stored_bytes"]),
    ]


def unreached(store: Store) -> str:
    """The methods that can't have the count, with the nearest that they can."""
    cells = [r for r in store.table("cells").to_pylist() if not r["feasible"]]
    nearest = {r["method"]: _nearest(r) for r in cells}
    most = sorted(nearest, key=nearest.__getitem__, reverse=True)
    return f"Out of reach on these weights, with the nearest count: {', '.join(f'`{m}` {nearest[m]:,}' for m in most)}."


def attaching(store: Store) -> str:
    """Which methods take over a second to start on a model that is there, in the median over their trials."""
    spent: dict[str, list[float]] = {}
    for row in sorted(store.table("trials").to_pylist(), key=lambda row: row["started_at"]):
        if row["seconds_setup"] is not None:
            spent.setdefault(row["method"], []).append(row["seconds_setup"])
    medians = sorted(((median(seconds), method) for method, seconds in spent.items()), reverse=True)
    slow = ", ".join(f"`{m}` in {seconds:.1f} s, at first {spent[m][0]:.1f} s" for seconds, m in medians if seconds > 1)
    return (
        f"- In the median over its trials a method starts within a second, its model being there; {slow or 'all do'}."
    )


def _nearest(cell: Row) -> int:
    counts = [int(json.loads(cell[side])["count"]) for side in ("below", "above") if cell[side]]
    return min(counts, key=lambda count: abs(count - cell["budget"]))


def published(store: Store) -> list[list[str]]:
    """Texts of every experiment of PEFT's comparison, in the order of `PUBLISHED`, the best first."""
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
    """The results of the cells that have all of their seeds."""
    seeds = {r["method"]: r["confirm_seeds"] for r in store.table("cells").to_pylist()}
    return [r for r in results_table(store).to_pylist() if r["n"] and r["n"] == seeds[r["method"]]]


def state(store: Store, finished: list[Row]) -> str:
    """How far the league has come, in bold, where it is not at its end."""
    cells = [r["method"] for r in store.table("cells").to_pylist() if r["feasible"]]
    done = {r["method"] for r in finished}
    missing = ", ".join(f"`{m}`" for m in cells if m not in done)
    said = f"**Unfinished: {len(done)} of {len(cells)} methods have their seeds**, all but {missing}. "
    return said if missing else ""


def power(store: Store, finished: list[Row]) -> str:
    """How many pairs a test tells apart, what it would have found, and how many methods are perhaps under-tuned."""
    done = {r["method"] for r in finished}
    letters = [set(r["group"]) for r in groups(store).to_pylist() if r["method"] in done]
    pairs = [not one & other for one, other in combinations(letters, 2)]
    asked, rows = question(store), [r for r in comparisons(store).to_pylist() if r["detectable"]]
    found = [f"of {100 * r['detectable']:.1f} points for RandLoRA" for r in rows if r["method"] == asked.focus]
    others = sorted(100 * r["detectable"] for r in rows if r["method"] != asked.focus)
    if others:
        most = others[9 * len(others) // 10]
        until = f"{most:.0f}" if most < 100 else "more than there can be"
        found.append(f"of {others[0]:.0f} to {until} for nine in ten of the others, who share their 5 %")
    finds = f" Four times in five it finds a difference from LoRA {', and '.join(found)}." if found else ""
    tuned_too_little = sum(bool(r["under_tuned"]) for r in finished)
    return (
        f"**The order is no ranking.** Over all pairs a test tells {sum(pairs) or 'none'} of {len(pairs)} apart."
        f"{finds} {tuned_too_little} of {len(finished)} methods are perhaps under-tuned."
    )


def texts(results: Path) -> dict[str, object]:
    """What the page's placeholders stand for: sentences, and tables as columns and rows."""
    found: dict[str, object] = {"@PUBLISHED@": (PUBLISHED, published(open_store(results / "peft-published")))}
    for name, prefix in (("league", ""), ("league-language", "LANGUAGE_")):
        ours = open_store(results / name)
        finished = _finished(ours)
        found |= {
            f"@{prefix}ANSWER@": fill(state(ours, finished) + conclusion(ours), 120, break_on_hyphens=False),
            f"@{prefix}POWER@": fill(power(ours, finished), 120, break_on_hyphens=False),
            f"@{prefix}LEAGUE@": (COLUMNS, league(ours, finished)),
            f"@{prefix}ATTACH@": fill(attaching(ours), 120, subsequent_indent="  "),
            f"@{prefix}UNREACHED@": fill(unreached(ours), 120),
        }
    return found
