"""docs/league.md: every method at one count, from the published tables of the league and of PEFT's own comparison."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill

from analysis import Store, open_store
from analysis.format import Row, change_text, duration, freedom, percent, quantity, score_text
from analysis.statistics.groups import groups
from analysis.tables.console import DIFFERENCE, conclusion, results_table

COLUMNS = ("method", "accuracy", "vs LoRA", "group", "parameters", "dof", "rank", "rate", "image", "MiB", "stored")
PUBLISHED = ("experiment", "accuracy", "parameters", "rate", "training", "GiB")


def league(store: Store, finished: list[Row]) -> list[list[str]]:
    """Texts of the finished methods, in the order of `COLUMNS`, the best mean first."""
    letters = {r["method"]: r["group"] for r in groups(store).to_pylist()}
    cells = {r["method"]: r for r in store.table("cells").to_pylist()}
    costs = {r["method"]: r for r in store.table("cost").to_pylist()}
    rows = sorted(finished, key=lambda r: -r["mean"])
    return [_texts(r, cells[r["method"]], costs[r["method"]], letters.get(r["method"], "")) for r in rows]


def _texts(row: Row, cell: Row, cost: Row, letters: str) -> list[str]:
    verdict = "" if row["verdict"] == "not distinguishable" else row["verdict"] or ""
    speed, memory = cost["samples_per_second"], cost["peak_memory_bytes"]
    return [
        f"`{row['method']}`",
        score_text(row),
        f"{change_text(row, *DIFFERENCE)} {verdict}".strip(),
        letters,
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


def state(store: Store, done: int) -> str:
    """How far the league has come, in bold, where it is not at its end."""
    cells = sum(r["feasible"] for r in store.table("cells").to_pylist())
    return "" if done == cells else f"**Unfinished: {done} of {cells} methods have their seeds.** "


def texts(results: Path) -> dict[str, object]:
    """What the page's placeholders stand for: sentences, and tables as columns and rows."""
    ours, theirs = open_store(results / "league"), open_store(results / "peft-published")
    finished = _finished(ours)
    return {
        "@ANSWER@": fill(state(ours, len(finished)) + conclusion(ours), 120),
        "@LEAGUE@": (COLUMNS, league(ours, finished)),
        "@UNREACHED@": fill(unreached(ours), 120),
        "@PUBLISHED@": (PUBLISHED, published(theirs)),
    }
