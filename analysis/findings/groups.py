"""Which methods of a budget are distinguishable, as a table and in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.findings.finding import Finding
from analysis.findings.shared import LONG
from analysis.format import Row, listed, percent
from analysis.sheets.columns import BUDGET, METHOD, columns_of
from analysis.sheets.sheet import Column, Sheet, number
from analysis.store.store import Store
from analysis.styles import in_order, style
from analysis.verdict.comparisons import comparisons
from analysis.verdict.groups import groups
from analysis.verdict.looks import preliminary_words
from analysis.verdict.question import question

_FAILED_COUNT = (
    " Seeds '4 of 8': the other runs failed. The order counts them as the untrained model; the mean leaves them out."
)


def groups_sheet(store: Store) -> Sheet:
    """Return the table of the methods of each budget, grouped by which are not distinguishable from each other."""
    rows = groups(store).to_pylist()
    return Sheet(
        "groups",
        "Which methods of a budget are distinguishable",
        columns_of(
            rows,
            BUDGET,
            METHOD,
            number("mean score, %", "mean", percent),
            Column("seeds", lambda r: f"{r['n']} of {r['n'] + r['failed']}" if r["failed"] else str(r["n"]), "number"),
            Column("group", lambda r: r["group"] if r["tested"] else f"{r['group']} (not tested)"),
        ),
        rows,
        f"A pair with {style(question(store).baseline).name} has the verdict of the comparisons above. The other pairs "
        "are tested in the same way, with Holm's correction over all of them. A method is not tested if it shares no "
        "seed with another, if its seeds do not differ in score, or if the effect of the choice of rates is unknown.",
        "Two methods of one budget that share a letter are not distinguishable. Group a has the best method."
        + (_FAILED_COUNT if any(r["failed"] for r in rows) else ""),
        folded=len(rows) > LONG,
    )


_MOST = 4  # cells named in a sentence; more are counted


def conclude_groups(rows: Sequence[Row]) -> str:
    """Count how often each method is above every other, from rows of `groups.groups`."""
    blocks: dict[tuple[Any, ...], list[Row]] = {}
    for r in rows:
        blocks.setdefault((r["sweep"], r["model"], r["dataset"], r["train_size"], r["reference"]), []).append(r)
    if not blocks:
        return "No budget has two confirmed methods, so there is nothing to group."
    if all(r["tested"] == 0 for r in rows):
        why = "Without common seeds, a spread between them, and knowing what the choice of rates adds,"
        why = "With one seed" if all(r["n"] < 2 for r in rows) else why
        return f"{why} no two methods can be tested: all of them are in group 'a'."
    alone = Counter(b[0]["method"] for b in blocks.values() if [r for r in b if "a" in r["group"]] == b[:1])
    blind = sum(all(r["tested"] == 0 for r in b) for b in blocks.values())
    shared = len(blocks) - alone.total() - blind
    parts = [
        f"{style(m).name} is above every other method at {_of_all(alone[m], blocks)}" for m in in_order(set(alone))
    ]
    if shared:
        parts.append(f"no single method is above all others at {_of_all(shared, blocks)}")
    if blind:
        parts.append(f"nothing can be tested at {_of_all(blind, blocks)}")
    if len({k[:4] for k in blocks}) == 1 and len(blocks) <= _MOST:
        return " ".join(f"{key[4]}: {_leaders(block)}." for key, block in blocks.items())
    return f"Of {len(blocks)} budgets and data sets at which methods are compared: {'; '.join(parts)}."


def _leaders(block: Sequence[Row]) -> str:
    """Name the methods of one budget that are above all others."""
    if all(r["tested"] == 0 for r in block):
        return "nothing can be tested"
    first_letters = set(block[0]["group"])
    alike = [r for r in block if first_letters & set(r["group"])]
    rest = [r for r in block if r not in alike]
    first, *others = [style(r["method"]).name for r in alike]
    clear = all(set(r["group"]) & set(other["group"]) for r in alike for other in alike)
    clear = clear and not any(set(r["group"]) & set(other["group"]) for r in alike for other in rest)
    if not clear:  # some of these methods are themselves told apart, or are like a method below
        return f"{first} is not distinguishable from {listed(others)}"
    if not others:
        return f"{first} is above {'every other method' if len(block) > 2 else style(block[1]['method']).name}"
    below = " and above every other method" if rest else ""
    return f"{listed([first, *others])} are not distinguishable{below}"


def _of_all(count: int, blocks: Mapping[Any, Any]) -> str:
    return f"all {count}" if count == len(blocks) > 1 else str(count)


def groups_say(store: Store) -> list[str]:
    """Return the sentence of `conclude_groups` on a store."""
    return [preliminary_words(comparisons(store)) + conclude_groups(groups(store).to_pylist())]


FINDING = Finding("comparisons", ("groups",), lambda store, _: [groups_sheet(store)], says=groups_say)
