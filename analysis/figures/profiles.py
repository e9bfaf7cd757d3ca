"""Performance profiles: the share of runs above a score, a panel per budget."""

from __future__ import annotations

import matplotlib as mpl
import pyarrow as pa

from analysis.figures.drawing import COLUMN_INCHES, STYLE, Chart, dot, legend, panels
from analysis.format import Row
from analysis.styles import in_order, size_text, style

Panel = tuple[str, str, str, str]


def panel_of(row: Row) -> Panel:
    """The panel of a profile: (sweep, model, training size, budget)."""
    return row["sweep"], row["model"], row["train_size"], row["reference"]


def draw_profiles(profiles: pa.Table, *, score: str) -> Chart:
    """Share of runs that score more, against the score.

    Args:
        profiles: from `many.profiles`; not empty.
        score: what is measured, in words.

    Raises:
        ValueError: no row.
    """
    rows = profiles.to_pylist()
    if not rows:
        raise ValueError("no profile to draw: the table has no row")
    shown = list(dict.fromkeys(map(panel_of, rows)))
    with mpl.rc_context(STYLE):
        figure, spots = panels(
            len(shown), 2, (COLUMN_INCHES, 2.2), extra=(0.0, 0.35), margins=(0.56, 0.12, 0.45, 0.52), gaps=(0.24, 0.55)
        )
        for panel, spot in zip(shown, spots, strict=True):
            axes = figure.add_subplot(spot)
            for method in reversed(in_order({r["method"] for r in rows})):
                mine = [r for r in rows if panel_of(r) == panel and r["method"] == method]
                x, y = [100 * r["score"] for r in mine], [100 * r["share"] for r in mine]
                with figure.of(method):
                    axes.plot(x, y, color=style(method).colour)
                for r in mine[:: len(mine) // 4 or 1]:
                    said = f"{style(method).name}: {100 * r['share']:.0f} % of runs above {100 * r['score']:.1f} %"
                    dot(axes, method, 100 * r["score"], 100 * r["share"], said, markersize=3.6, markeredgewidth=0.5)
            differing = [panel[i] for i in (0, 1) if len({p[i] for p in shown}) > 1]
            axes.set_title(", ".join([panel[3], size_text(panel[2]), *differing]), loc="left", fontweight="bold")
            axes.set_xlabel(f"{score} (%)")
            if spot.is_first_col():
                axes.set_ylabel("runs above it (%)")
        legend(figure, in_order({r["method"] for r in rows}))
        return figure
