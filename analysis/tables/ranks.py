"""The report's table of what a doubling of the rank, and of the parameters, brings."""

from __future__ import annotations

from analysis.format import change, p_text, quantity
from analysis.statistics.rank_effects import RANK, effects
from analysis.store.store import Store
from analysis.styles import style
from analysis.tables.sheet import Column, Sheet, columns_of


def sheet(store: Store) -> Sheet:
    """Rank against parameters."""
    rows = effects(store).to_pylist()
    return Sheet(
        "rank_effects",
        "Rank against parameters",
        columns_of(
            rows,
            Column("doubled", lambda r: "rank, parameters equal" if r["effect"] == RANK else "parameters, rank equal"),
            Column("over", lambda r: f"variants of {style(r['scope']).name}" if r["scope"] else "all methods"),
            Column("from", lambda r: quantity(r["least"]), "number"),
            Column("to", lambda r: quantity(r["most"]), "number"),
            Column("cells", lambda r: str(r["cells"]), "number"),
            Column("seeds", lambda r: str(r["n"]), "number"),
            Column("points [95 %]", lambda r: change(r, "slope"), "number"),
            Column("p, Holm", lambda r: p_text(r["p_holm"]), "number"),
            Column("verdict", lambda r: r["verdict"], "verdict"),
        ),
        rows,
        "Slopes of the test score per doubling, fitted for each seed: over the methods of one budget, each budget with "
        "a level of its own; over the budgets of methods whose rank stays, each method with a level of its own. The "
        "rank is the largest that an update can have. Methods differ in more than rank: variants of one method are the "
        "cleaner evidence. t tests over seeds, Holm-corrected over this table, given the chosen rates.",
    )
