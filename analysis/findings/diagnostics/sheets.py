"""What `sweeps analyze` left in a results folder: figures, their sentences, and tables of their numbers.

This reads files only, so the report needs neither torch nor the weights. A figure is `diagnostics/STEM.svg`, and its
sentence is in `STEM.txt`. The numbers are in the store's table of that name. A sheet shows what was computed last for
each cell.
"""

from __future__ import annotations

from collections.abc import Callable

from analysis.findings.finding import Finding
from analysis.format import Row
from analysis.sheets.columns import BUDGET, METHOD, PARAMETERS, columns_of
from analysis.sheets.sheet import Column, Sheet, number, text
from analysis.store.store import Store
from analysis.styles import style

FOLDER = "diagnostics"
WIDE = ("spectrum", "curvature")
SHEETS = {
    "spectrum": ("spectrum", "approximation"),
    "intruders": ("intruders",),
    "retention": ("retention",),
    "image-retention": ("image_retention",),
    "cka": ("cka",),
    "landscape": ("landscape",),
    "curvature": ("curvature",),
}
"""The sheets shown with a figure, by its file stem."""
INTRUDER = 0.5
"""A singular vector is an intruder if its largest |cosine| with one of the base weight is below this."""
CORNERS = {"lora": (0.0, 0.0), "randlora": (1.0, 0.0), "full": (0.5, 1.0)}
"""Coordinates of the three models of a loss plane, in order."""


def diagnostic_sheets(store: Store) -> list[Sheet]:
    """Return a table for each diagnostic that the store has rows of."""
    sheets = []
    for name, (title, query, columns) in _SHEETS.items():
        rows = store.sql(query).to_pylist() if store.table(name).num_rows else []
        if rows and "method" in rows[0]:
            rows.sort(key=lambda r: (style(r["method"]).order, r["method"], r["adapter_params"] or 0, r["dataset"]))
        if rows:
            sheets.append(Sheet(f"diagnostic_{name}", title, columns_of(rows, *columns), rows))
    return sheets


def _numbers(*keys: str) -> tuple[Column, ...]:
    """Make a column for each key, with the key as its heading."""
    return tuple(number(key.replace("_", " "), key) for key in keys)


def _corner(key: str) -> Callable[[Row], str]:
    return lambda r: style(list(CORNERS)[r[key]]).name


_PLACE = "sweep, dataset, train_size"
_NEWEST = f"""
qualify unit = first_value(unit) over (partition by {_PLACE}, model, method, reference order by computed_at desc)
"""
_BEFORE_AND_AFTER = ("before", "after", "mean_change", "least", "most", "seeds", "test_score")


def _means_over_seeds(table: str, measured_on: str) -> str:
    """Return a query for the mean change of each cell by training.

    Args:
        table: a table with the columns before, after, change and score of each kept trial.
        measured_on: the column that says on which texts or data they were measured.
    """
    return f"""
    select {_PLACE}, {measured_on}, method, reference, adapter_params, avg(before) as before, avg(after) as after,
           avg(change) as mean_change, min(change) as least, max(change) as most, count(*) as seeds,
           avg(score) as test_score
    from (
      select * from {table} semi join confirmed using (sweep, trial_id) qualify 1 = row_number() over (
        partition by sweep, trial_id, {measured_on} order by computed_at desc)
    ) group by all
    """  # noqa: S608  names of ours


_SHEETS: dict[str, tuple[str, str, tuple[Column, ...]]] = {
    "spectrum": (
        "Spectra of the updates: means over the adapted weights",
        f"""
        select {_PLACE}, method, reference, adapter_params, avg(stable_rank) as stable_rank,
               avg(effective_rank) as effective_rank, avg(frobenius) as frobenius_norm, avg(overlap) as overlap
        from (select * from spectrum {_NEWEST}) group by all
        """,  # noqa: S608  a name of ours
        (METHOD, BUDGET, *_numbers("stable_rank", "effective_rank", "frobenius_norm", "overlap")),
    ),
    "approximation": (
        "Relative error when a method approximates the update of full fine-tuning (mean over the weights)",
        f"""
        select {_PLACE}, form as method, 'lora-' || lora_rank as reference,
               sum(parameters) filter (not random) as adapter_params,
               avg(error) filter (not random) as error, max(error) filter (not random) as largest,
               avg(bound) filter (not random) as bound, avg(error) filter (random) as of_random_matrices,
               count(*) filter (not random) as weights
        from (
          select *, coalesce(target, 'trained') = 'random' as random from approximation qualify 1 = row_number() over (
            partition by {_PLACE}, model, weight, form, lora_rank, random order by computed_at desc)
        )
        group by {_PLACE}, form, lora_rank
        """,  # noqa: S608  a name of ours
        (METHOD, BUDGET, PARAMETERS, *_numbers("error", "largest", "bound", "of_random_matrices", "weights")),
    ),
    "intruders": (
        "Intruders: leading singular vectors of the trained weights that are unlike all of the base weight's",
        f"""
        select {_PLACE}, method, reference, adapter_params, avg(intruders) as per_weight, avg(share) as share,
               max(intruders) as most, max(counted) as of_leading, avg(threshold) as threshold, count(*) as weights
        from (select * from intruders {_NEWEST}) group by all
        """,  # noqa: S608  a name of ours
        (METHOD, BUDGET, PARAMETERS, *_numbers("per_weight", "share", "most", "of_leading", "threshold", "weights")),
    ),
    "retention": (
        "Loss on general text, before and after training",
        _means_over_seeds("retention", "texts"),
        (METHOD, BUDGET, PARAMETERS, *_numbers(*_BEFORE_AND_AFTER)),
    ),
    "image_retention": (
        "Zero-shot accuracy on another data set, before and after training",
        _means_over_seeds("image_retention", "data"),
        (METHOD, BUDGET, PARAMETERS, text("on", "data"), *_numbers(*_BEFORE_AND_AFTER)),
    ),
    "curvature": (
        "Curvature of the training loss at the start, and the chosen learning rate",
        f"select {_PLACE}, method, reference, adapter_params, lr, first_rate, sharpness from curvature {_NEWEST}",  # noqa: S608
        (METHOD, BUDGET, PARAMETERS, *_numbers("lr", "first_rate", "sharpness")),
    ),
    "full_rank": (
        "Probability that RandLoRA's update has full rank",
        f"""
        select {_PLACE}, out_features || ' x ' || in_features as shape, capacity, distribution, sparsity, sparse_a,
               any_value(log10_collinear) as log10_collinear, any_value("full") as full_rank,
               any_value(mean_rank) as mean_rank, any_value(draws) as draws
        from full_rank group by {_PLACE}, out_features, in_features, capacity, distribution, sparsity, sparse_a
        order by {_PLACE}, out_features, in_features, capacity, sparsity nulls first, distribution, sparse_a
        """,  # noqa: S608  a name of ours
        (
            text("shape", "shape"),
            number("rank r", "capacity"),
            text("bases", "distribution"),
            number("s", "sparsity"),
            Column("sparse A", lambda r: "yes" if r["sparse_a"] else ""),
            *_numbers("log10_collinear", "full_rank", "mean_rank", "draws"),
        ),
    ),
    "cka": (
        "CKA with full fine-tuning",
        f"""
        select {_PLACE}, method, reference, adapter_params, first(cka order by depth) as first_layer,
               avg(cka) as mean_over_layers, last(cka order by depth) as last_layer
        from (
          select * from (
            select * from cka qualify examples is not distinct from first_value(examples) over (
              partition by {_PLACE}, model order by computed_at desc)
          ) {_NEWEST}
        ) group by {_PLACE}, method, reference, adapter_params
        """,  # noqa: S608  a name of ours
        (METHOD, BUDGET, *_numbers("first_layer", "mean_over_layers", "last_layer")),
    ),
    "landscape": (
        "Loss barriers on the straight path between two models",
        f"""
        with newest as (
          select * from landscape where kind = 'edge'
          qualify unit = first_value(unit) over (partition by {_PLACE}, a, b order by computed_at desc)
        )
        select {_PLACE}, split, a, b, max(barrier) as barrier, first(loss order by t) as loss_at_start,
               last(loss order by t) as loss_at_end, max(examples) as examples
        from newest group by {_PLACE}, split, a, b order by {_PLACE}, split, a, b
        """,  # noqa: S608  a name of ours
        (
            Column("from", _corner("a")),
            Column("to", _corner("b")),
            Column("examples of", lambda r: {"train": "training", "val": "validation"}[r["split"]]),
            *_numbers("barrier", "loss_at_start", "loss_at_end", "examples"),
        ),
    ),
}

DIAGNOSTIC_SHEETS = tuple(f"diagnostic_{name}" for name in _SHEETS)
"""Names of the possible sheets."""


FINDING = Finding("diagnostics", DIAGNOSTIC_SHEETS, lambda store, _: diagnostic_sheets(store))
