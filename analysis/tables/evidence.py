"""The report's tables of evidence: parity, tuning, cost, failures, what could not run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from analysis.format import (
    Row,
    amount,
    bytes_text,
    duration,
    freedom_text,
    listed,
    off_budget,
    percent,
    points,
    quantity,
    score_text,
)
from analysis.sheets.columns import BUDGET, METHOD, PARAMETERS, PLACE, columns_of, origins, pivoted, where
from analysis.sheets.sheet import Column, Sheet, number, text
from analysis.statistics.best_rates import rate_ratios
from analysis.statistics.choice import choice_variances, run_noises
from analysis.statistics.runs import group_by
from analysis.statistics.sizing.estimates import estimate_table
from analysis.statistics.tuning import NEAR, best_of_n, rates, sharpness
from analysis.store.columns import limited
from analysis.store.store import Store
from analysis.styles import size_key, style
from analysis.tables.results import LONG
from analysis.words.batch_sizes import chosen_batch_size, searched_batch_sizes
from analysis.words.weak import why_under_tuned

MOST_FAILURES = 50
SPREADS = {"noise": "a run", "choice": "the choice"}
AT_LEAST = "\N{GREATER-THAN OR EQUAL TO} "
COUNTS = "parameters"
CHOICE = "how the rate was chosen"
MACHINE = "device"
"""Groups of columns of `parity`."""
MORE_COST = "all runs, speed and storage"
COLUMNS_BESIDE = 7
"""Columns of scores that a page of 1,280 pixels has room for."""


def parity_rows(store: Store) -> list[Row]:
    """Return the view `parity` in the order of the tables, with the variances of `choice`."""
    noise, choice = run_noises(store), choice_variances(store)
    rows = store.table("parity").to_pylist()
    keys = [(r["sweep"], r["cell_id"]) for r in rows]
    parity_with_noise = [r | {"noise": noise.get(k), "choice": choice.get(k)} for r, k in zip(rows, keys, strict=True)]
    return sorted(parity_with_noise, key=_order)


def _order(r: Row) -> tuple[Any, ...]:
    place = (r["sweep"], r["dataset"], size_key(r["train_size"]))
    return (*place, style(r["method"]).order, r["method"], r["budget"] or 0)


def parity(rows: list[Row]) -> Sheet:
    """Return the table of parameters, tuning and seeds of every cell: what was equal, and what was not."""
    unit = limited(r["reference"] for r in rows).removeprefix("trainable ")
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("parameters built", _built, "number"),
        number("distance from the budget", "residual_fraction", off_budget),
        Column("tuning used / given", _allowance, "number"),
        number("chosen learning rate", "chosen_lr"),
        *(
            [Column("chosen batch size", lambda r: quantity(chosen_batch_size(r)), "number")]
            if any(map(searched_batch_sizes, rows))
            else []
        ),
        Column("perhaps under-tuned", lambda r: why_under_tuned(r) if r["under_tuned"] else "", "long"),
        Column("seeds, run / declared", lambda r: f"{r['seeds_confirmed']} / {r['confirm_seeds']}", "number"),
        Column(f"budget, {unit}", lambda r: amount(r["budget"], r["reference"]), "number", COUNTS),
        Column(
            "degrees of freedom",
            lambda r: freedom_text(r["dof"], r["dof_measured"], r["dof_at_most"]),
            "number",
            COUNTS,
        ),
        text("allocation", "allocation", group=COUNTS),
        *_costs(rows),
        text("rates tried", "rates_tried", "number", CHOICE),
        number("expected gain, points", "expected_gain", points, CHOICE),
        *(Column(f"sd of {head}, points", partial(_sd, part), "number", CHOICE) for part, head in SPREADS.items()),
        text("device and precision", "computed_on", group=MACHINE),
        *([number("images compared", "negatives", group=MACHINE)] if any(r["negatives"] for r in rows) else []),
    )
    note = (
        "A cell is perhaps under-tuned for one of three reasons. Its chosen rate is at the edge of the range, few of "
        "its rates have finished, or the expected gain is above half a point. To continue, give a wider range "
        "(search.widen) or more trials in the sweep file and run the same command. The expected gain is how far a "
        "parabola through the best rate and its two neighbours rises above the score of the best rate. Degrees of "
        "freedom count the directions in which updates can move. \N{ALMOST EQUAL TO} marks those that were measured on "
        "a small update, and \N{LESS-THAN OR EQUAL TO} marks upper bounds. Sd of a run is the standard deviation of "
        "its validation score; all methods share one value unless a method is clearly noisier. Sd of the choice is "
        "the standard deviation of the expected score if that noise were drawn again and another rate chosen."
    )
    if any(r["negatives"] for r in rows):
        note += " Images compared is the number of images that the contrastive loss compares each image with. It is "
        note += "smaller than the batch if train.negatives is 'part'."
    return Sheet("parity", "Parameters, tuning and seeds", columns, rows, note, folded=len(rows) > LONG)


def _costs(rows: list[Row]) -> list[Column]:
    """Return the columns of what training takes, or none if the results are older than these columns."""
    if all(r["step_memory_bytes"] is None and r["saved_bytes"] is None for r in rows):
        return []
    return [
        number("predicted memory of a step", "step_memory_bytes", bytes_text, COUNTS),
        Column("step, in forward passes of the model", _passes, "number", COUNTS),
        number("saved", "saved_bytes", bytes_text, COUNTS),
    ]


def _passes(r: Row) -> str:
    return "" if r["step_flops"] is None or not r["forward_flops"] else f"{r['step_flops'] / r['forward_flops']:.2f}"


def _sd(part: str, r: Row) -> str:
    variance = r.get(part)
    return "" if variance is None or r["chosen_lr"] is None else f"{100 * variance**0.5:.1f}"


def _built(r: Row) -> str:
    predicted = f" (predicted {quantity(r['count'])})" if r["count_holds"] is False else ""
    return quantity(r["adapter_params"]) + predicted


def _allowance(r: Row) -> str:
    used = r["allowance_used"] - r["widened"]
    more = f" + {r['widened']} past the edge" if r["widened"] else ""
    if r["allowance_samples"] is not None:  # theirs are among the examples
        used_text = (
            f"{used} trials{more}, {quantity(r['tune_samples'] or 0)} / {quantity(r['allowance_samples'])} examples"
        )
    else:
        used_text = f"{used} / {r['allowance']}{more}"
    return used_text + (f" ({r['tune_failed']} failed)" if r["tune_failed"] else "")


def learning_rates(store: Store) -> Sheet:
    """Return the table of stage TUNE's validation scores, the numbers of the figures of learning rates."""
    rows = sorted(rates(store).to_pylist(), key=_order)
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("learning rate", lambda r: quantity(r["lr"]) + ("*" if r["chosen"] else ""), "number"),
        *([text("with", "hyperparameters", "code")] if any(r["hyperparameters"] for r in rows) else []),
        number("validation score, %", "mean_val", percent),
        number("runs", "n"),
        text("failed", "failed", "number"),
    )
    return Sheet(
        "learning_rates",
        "Validation score of each learning rate",
        columns,
        rows,
        legend="* The chosen rate.",
        folded=True,
    )


def expected(store: Store) -> Sheet:
    """Return the table of the expected best validation score if fewer rates had been tried."""
    note = (
        "Each number is the expected best validation score in % if only n of the learning rates had been tried, drawn "
        "at random (Tang et al. 2020). If a row still rises at its end, more tuning would probably have helped. A grid "
        "is not a random sample: n evenly spaced rates would do better than n random ones."
    )
    title = "Was a method under-tuned? Expected best of n rates"
    return _by_n("expected_best", title, note, best_of_n(store).to_pylist(), lambda r: percent(r["expected"]))


def effort(store: Store) -> Sheet:
    """Return the table of the expected test score if fewer rates had been tried."""
    rows = [r for r in best_of_n(store).to_pylist() if r["test"] is not None]
    note = (
        "Each number is the expected test score in %, with a pointwise 95 % interval, if only n of the learning rates "
        "had been tried. It is the confirmed score at the chosen rate minus the expected loss in validation score."
    )
    title = "Test score against tuning effort"
    return _by_n("tuning_effort", title, note, rows, lambda r: score_text(r, "test", "test_low", "test_high"))


def _by_n(name: str, title: str, note: str, rows: Sequence[Row], form: Callable[[Row], str]) -> Sheet:
    rows = sorted(pivoted(rows, ("sweep", "cell_id"), "n"), key=_order)

    def cell(n: int) -> Column:
        first = (n - 1) // COLUMNS_BESIDE * COLUMNS_BESIDE + 1
        group = f"n from {first} to {min(most, first + COLUMNS_BESIDE - 1)}" if first > 1 else ""
        return Column(f"n = {n}", lambda r: form(r["by"][n]) if n in r["by"] else "", "number", group)

    most = max((len(r["by"]) for r in rows), default=0)
    columns = columns_of(rows, METHOD, BUDGET, *(cell(n) for n in range(1, most + 1)))
    return Sheet(name, title, columns, rows, note, folded=True)


def sharp(store: Store) -> Sheet:
    """Return the table of how wide the range of good learning rates is for each cell."""
    rows = sorted(sharpness(store).to_pylist(), key=_order)
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("decades within a point", lambda r: f"{AT_LEAST * r['open']}{r['decades']:.2f}", "number"),
        number("decades searched", "searched", lambda v: f"{v:.2f}"),
        number("best validation score, %", "best", percent),
    )
    note = (
        "Decades within a point is the width of the range of learning rates whose validation score is at most "
        f"{100 * NEAR:g} point below the best. A decade is a factor of ten. {AT_LEAST.strip()} marks a range that is "
        "cut off at the edge of what was tried. Scores are noisy, and the best of them is too."
    )
    return Sheet("sharpness", "How exactly the learning rate must be met", columns, rows, note, folded=True)


def ratios(store: Store) -> Sheet:
    """Return each cell's best learning rate, divided by the baseline's in the same place."""
    rows = sorted(rate_ratios(store).to_pylist(), key=_order)
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("best learning rate [95 %]", partial(_best_rate, ""), "number"),
        Column("baseline", lambda r: " ".join(filter(None, (style(r["baseline"]).name, r["baseline_reference"])))),
        Column("its best rate [95 %]", partial(_best_rate, "baseline_"), "number"),
        Column("ratio [95 %]", _ratio, "number"),
    )
    legend = (
        "The baseline is full fine-tuning if the sweep has it, else full fine-tuning of the target weights, else LoRA "
        "at the same budget. An interval with ? at an end is open there: the scores do not say how far it goes."
    )
    if any(r["at_edge"] for r in rows):
        legend += " * A best rate lies at an edge of the rates that were tried."
    note = (
        "A best rate is the top of a quadratic in log rate through the validation scores near the best one. Its "
        "interval has the rates at which the slope of that fit does not differ from zero (Fieller). The interval of "
        "the ratio is made of the ends of both (MOVER, Zou and Donner 2008). The noise of a score is that of a run, or "
        "the residual of the fit if that is larger."
    )
    return Sheet("rate_ratio", "Best learning rates against the baseline's", columns, rows, note, legend, folded=True)


def _best_rate(prefix: str, r: Row) -> str:
    return _with_interval(r, f"{prefix}best", f"{prefix}low", f"{prefix}high")


def _ratio(r: Row) -> str:
    return _with_interval(r, "ratio", "ratio_low", "ratio_high") + ("*" if r["at_edge"] else "")


def _with_interval(r: Row, value: str, low: str, high: str) -> str:
    """Write a value with its interval. An open end is a question mark."""
    return f"{quantity(r[value])} [{quantity(r[low]) or '?'}, {quantity(r[high]) or '?'}]"


def cost(store: Store) -> Sheet:
    """Return the table of what each method and budget cost."""
    rows = store.table("cost").to_pylist()
    rows.sort(key=lambda r: (r["sweep"], style(r["method"]).order, r["method"], r["adapter_params"] or 0))
    sweep = Column("sweep", lambda r: str(r["sweep"]), label=True, beneath=True)
    columns = [
        *([sweep] if len({r["sweep"] for r in rows}) > 1 else []),
        METHOD,
        BUDGET,
        PARAMETERS,
        number("time of a run", "seconds_per_trial", duration),
        number("of it training", "seconds_train", duration),
        number("peak memory, MiB", "peak_memory_bytes", lambda v: "" if v is None else f"{v / 2**20:,.0f}"),
        number("runs", "attempts", group=MORE_COST),
        number("time of all runs", "hours", lambda v: duration(None if v is None else 3600 * v), MORE_COST),
        number("of it neither training nor evaluation", "seconds_overhead", duration, MORE_COST),
        number("examples per second", "samples_per_second", lambda v: "" if v is None else f"{v:,.0f}", MORE_COST),
        number("stored bytes", "stored_bytes", group=MORE_COST),
    ]
    note = (
        "Times of a run are means over finished runs. Stored bytes are those of the frozen bases and the stored "
        "starting points of a method."
    )
    return Sheet("cost", "What each method cost", columns, rows, note)


def estimate(store: Store) -> Sheet:
    """Return the table of estimated and actual cost of the last run of the sweep."""
    rows = estimate_table(store).to_pylist()
    columns = [
        Column("quantity", lambda r: r["quantity"] + (f", {r['unit']}" if r["unit"] else "")),
        METHOD,
        number("estimated", "estimated"),
        number("actual", "actual"),
        number("actual / estimated", "ratio"),
    ]
    return Sheet("estimate", "What the last run was estimated to cost, and what it cost", columns, rows)


def failures(store: Store) -> Sheet:
    """Return the table of the first `MOST_FAILURES` failed attempts, with their reasons."""
    rows = store.table("failures").to_pylist()
    columns = [
        METHOD,
        BUDGET,
        PLACE,
        text("stage", "stage"),
        number("learning rate", "lr"),
        number("attempt", "attempt"),
        text("reason", "reason", "long"),
        Column("afterwards", lambda r: "finished on a later attempt" if r["recovered"] else "not recovered", "long"),
        text("trial", "trial_id", "code"),
    ]
    more = len(rows) - MOST_FAILURES
    folder = shlex.quote(str(store.path.resolve()))
    legend = f"{more} more attempts failed. To list them: sweeps query {folder} failures" if more > 0 else ""
    return Sheet("failures", "Failed attempts", columns, rows[:MOST_FAILURES], legend=legend)


def infeasible(store: Store) -> Sheet:
    """Return the table of cells for which a method has no setting close enough to the budget."""
    cells = [r for r in store.table("cells").to_pylist() if not r["feasible"] and not r["absent"]]
    alike = group_by(cells, "sweep", "model", "method", "reference", "reason")
    rows = [same[0] | {"places": listed([where(r) for r in same])} for same in alike.values()]
    columns = [
        *origins(rows),
        METHOD,
        BUDGET,
        text("data", "places", "long"),
        Column(
            f"budget aimed at, {limited(r['reference'] for r in rows)}",
            lambda r: amount(r["budget"], r["reference"]),
            "number",
        ),
        number("nearest number of parameters", "count"),
        number("distance from the budget", "residual_fraction", off_budget),
        text("why", "reason", "long"),
    ]
    return Sheet("infeasible", "Infeasible cells", columns, rows)
