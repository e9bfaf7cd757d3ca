"""A published curve beside the curve of the sweep. Nothing is tested."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.drawing.picture import Picture
from analysis.findings.finding import Finding
from analysis.findings.published.publications import overlaid
from analysis.format import Row, points, score_text
from analysis.sheets.columns import METHOD, PARAMETERS
from analysis.sheets.sheet import Column, Sheet, text
from analysis.store.store import Store
from analysis.styles import in_order, style
from analysis.verdict.runs import score_name


def overlay_sheet(store: Store, overlay: str) -> Sheet:
    """Return the table of this sweep's scores and the published ones."""
    ours, theirs, source = overlaid(store, overlay)
    rows = [r | {"whose": "this sweep"} for r in ours.to_pylist()] + [r | {"whose": source} for r in theirs.to_pylist()]
    score = Column("score, % [95 %]", score_text, "number")
    columns = [text("from", "whose"), METHOD, text("setting", "reference"), PARAMETERS, score]
    return Sheet("overlay", "Published numbers beside ours", columns, rows, folded=True)


def overlay_pictures(store: Store, overlay: str | None) -> list[Picture]:
    from analysis.findings.published.figure import draw_overlay

    if overlay is None:
        return []
    score = score_name(store)
    ours, theirs, title = overlaid(store, overlay)
    if not any(r["kind"] == "curve" and r["adapter_params"] for r in [*ours.to_pylist(), *theirs.to_pylist()]):
        return []
    label = "Published curves, dashed, beside the curves of this sweep"
    caption = (
        f"Dashed, hollow markers: published numbers ({overlay}), read off a figure where no table gives them; other "
        "model, data and protocol unless said otherwise. Nothing is tested against them."
    )
    says = conclude_overlay(ours.to_pylist(), theirs.to_pylist())
    figure = draw_overlay(ours, theirs, title, score=score)
    return [Picture("overlay", figure, label, caption, says)]


def conclude_overlay(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """Say how far the published curves lie from ours at overlapping parameter counts. Nothing is tested.

    Args:
        ours, theirs: rows as in `scaling.curve`, each of one place; `theirs` are published.
    """
    parts = []
    for method in in_order({r["method"] for r in ours} & {r["method"] for r in theirs}):
        our_points, published = (_counts_and_means(rows, method) for rows in (ours, theirs))
        if not our_points or not published:
            continue
        inside = {x: y for x, y in our_points.items() if min(published) <= x <= max(published)}
        if not inside:
            continue
        at = np.interp(np.log(list(inside)), np.log(list(published)), list(published.values()))
        gaps = np.asarray(list(inside.values())) - at
        low, high = points(float(gaps.min())), points(float(gaps.max()))
        parts.append(f"{style(method).name} {low if low == high else f'{low} to {high}'} points")
    same = {(r["model"], r["dataset"]) for r in ours} & {(r["model"], r["dataset"]) for r in theirs}
    caveat = "" if same else "; model or data differ, so heights do not compare, shapes at most"
    if not parts:
        return f"The published counts and ours do not overlap, so no distance is given{caveat}; nothing is tested."
    return f"Our score minus the published one, where counts overlap: {'; '.join(parts)}{caveat}; nothing is tested."


def _counts_and_means(rows: Sequence[Row], method: str) -> dict[int, float]:
    means = {
        r["adapter_params"]: r["mean"]
        for r in rows
        if r["method"] == method and r["kind"] == "curve" and r["adapter_params"] and r["mean"] is not None
    }
    return dict(sorted(means.items()))


FINDING = Finding(
    "overlay",
    ("overlay",),
    lambda store, view: [] if view.overlay is None else [overlay_sheet(store, view.overlay)],
    lambda store, view: overlay_pictures(store, view.overlay),
)
