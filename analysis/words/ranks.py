"""What a doubling of the rank, and of the parameters, brings: in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.format import Row, change_text
from analysis.statistics.rank_effects import PARAMETERS, RANK
from analysis.styles import place_text, style


def conclude_rank_effects(rows: Sequence[Row]) -> str:
    """What a doubling of rank and of parameters brings, in one place or the mean over data sets.

    Args:
        rows: of `rank_effects.effects`.
    """
    if not rows:
        return "No budget has updates of different rank."
    first = rows[0]
    place = [r for r in rows if all(r[k] == first[k] for k in ("sweep", "model", "dataset", "train_size"))]
    where = place_text(first["dataset"] or "the mean over data sets", first["train_size"])
    said = [_brings(place, effect) for effect in (RANK, PARAMETERS)]
    text = f"On {where}, {'; '.join(filter(None, said))}."
    untested = [r for r in place if r["p_holm"] is None]
    if untested:
        return f"{text} Not tested: that takes two seeds or more."
    return f"{text} {_tested([r for r in place if r['verdict'] == 'not distinguishable'])}"


def _brings(rows: Sequence[Row], effect: str) -> str:
    """One effect over all methods, and over the variants of one."""
    mine = sorted((r for r in rows if r["effect"] == effect), key=lambda r: r["scope"] is not None)
    if not mine:
        return ""
    held = "the rank at equal parameters" if effect == RANK else "the parameters at equal rank"
    whose = [f"over {'variants of ' + style(r['scope']).name if r['scope'] else 'all methods'}" for r in mine]
    return f"doubling {held} brings, in points, " + " and ".join(
        f"{change_text(r, 'slope')} {named}" for r, named in zip(mine, whose, strict=True)
    )


def _tested(silent: Sequence[Row]) -> str:
    given = "paired over seeds, Holm-corrected, given the chosen rates"
    if not silent:
        return f"All differ from zero ({given})."
    named = ", ".join(r["effect"] + (f" ({style(r['scope']).name})" if r["scope"] else "") for r in silent)
    return f"Not distinguishable from zero: {named} ({given})."
