"""The report's tables of evidence: parity, tuning, cost, failures, what could not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from analysis.format import Row, duration, freedom, off_budget, percent, points, quantity, score_text
from analysis.statistics.choice import choice_variances, run_noises
from analysis.statistics.sizing.estimates import foresight
from analysis.statistics.tuning import NEAR, best_of_n, rates, sharpness
from analysis.store.columns import limited
from analysis.store.store import Store
from analysis.styles import size_key, style
from analysis.tables.results import LONG
from analysis.tables.sheet import BUDGET, METHOD, PARAMETERS, PLACE, Column, Sheet, columns_of, number, pivoted, text

MOST_FAILURES = 50
SPREADS = {"noise": "a run", "choice": "the choice"}
AT_LEAST = "\N{GREATER-THAN OR EQUAL TO} "


def parity_rows(store: Store) -> list[Row]:
    """The view `parity` in the order of the tables, with the variances of `choice`."""
    noise, choice = run_noises(store), choice_variances(store)
    rows = store.table("parity").to_pylist()
    keys = [(r["sweep"], r["cell_id"]) for r in rows]
    found = [r | {"noise": noise.get(k), "choice": choice.get(k)} for r, k in zip(rows, keys, strict=True)]
    return sorted(found, key=_order)


def _order(r: Row) -> tuple[Any, ...]:
    place = (r["sweep"], r["dataset"], size_key(r["train_size"]))
    return (*place, style(r["method"]).order, r["method"], r["budget"] or 0)


def parity(rows: list[Row]) -> Sheet:
    """Counts, allowance and edges, cell by cell."""
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        number(f"budget, {limited(r['reference'] for r in rows).removeprefix('trainable ')}", "budget"),
        Column("built", _built, "number"),
        Column("degrees of freedom", lambda r: freedom(r["dof"], r["dof_measured"], r["dof_at_most"]), "number"),
        number("residual", "residual_fraction", off_budget),
        text("allocation", "allocation"),
        Column("tuning used / given", _allowance, "number"),
        text("rates", "rates_tried", "number"),
        number("chosen", "chosen_lr"),
        number("last gain, points", "last_gain", points),
        text("under-tuned?", "under_tuned"),
        *(Column(f"sd of {head}, points", partial(_sd, part), "number") for part, head in SPREADS.items()),
        text("ran on", "computed_on"),
        *([number("images compared", "negatives")] if any(r["negatives"] for r in rows) else []),
        Column("seeds", lambda r: f"{r['seeds_confirmed']} / {r['confirm_seeds']}", "number"),
    )
    note = (
        "Degrees of freedom: directions that updates can move in, \N{ALMOST EQUAL TO} where measured on a small one, "
        "\N{LESS-THAN OR EQUAL TO} where a bound. Last gain: what the expected best validation score rose by when the "
        "number of learning rates went from one fewer to all of them; a large gain says that more tuning might have "
        "helped. Under-tuned: the choice is the end of its range, few of the points tried have finished, or the last "
        "gain is above half a point; a wider range (search.widen) or more trials, and the same command, go on from "
        "here. Sd of a run: of its validation score, one for all methods unless one is clearly noisier; of the choice: "
        "of the expected score, as another draw of that noise might choose another rate."
        + " Images compared: those that the contrastive loss compares each with; fewer than the batch where "
        "train.negatives is 'part'." * any(r["negatives"] for r in rows)
    )
    return Sheet("parity", "Parity: counts, allowance, edges", columns, rows, note, folded=len(rows) > LONG)


def _sd(part: str, r: Row) -> str:
    variance = r.get(part)
    return "" if variance is None or r["chosen_lr"] is None else f"{100 * variance**0.5:.1f}"


def _built(r: Row) -> str:
    predicted = f" (predicted {quantity(r['count'])})" if r["count_holds"] is False else ""
    return quantity(r["adapter_params"]) + predicted


def _allowance(r: Row) -> str:
    used, more = r["allowance_used"] - r["widened"], f" + {r['widened']} past the edge" * bool(r["widened"])
    if r["allowance_samples"] is not None:  # theirs are among the examples
        said = f"{used} trials{more}, {quantity(r['tune_samples'] or 0)} / {quantity(r['allowance_samples'])} examples"
    else:
        said = f"{used} / {r['allowance']}{more}"
    return said + (f" ({r['tune_failed']} failed)" if r["tune_failed"] else "")


def learning_rates(store: Store) -> Sheet:
    """Stage TUNE's validation scores, the numbers of the figures of learning rates."""
    rows = sorted(rates(store).to_pylist(), key=_order)
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("learning rate", lambda r: quantity(r["lr"]) + "*" * bool(r["chosen"]), "number"),
        *([text("with", "hyperparameters", "code")] if any(r["hyperparameters"] for r in rows) else []),
        number("validation score, %", "mean_val", percent),
        number("runs", "n"),
        text("failed", "failed", "number"),
    )
    return Sheet("learning_rates", "Stage TUNE, rate by rate", columns, rows, "* chosen.", folded=True)


def expected(store: Store) -> Sheet:
    """Expected best validation score of n rates."""
    note = (
        "Expected best validation score, %, had only n of the learning rates been tried, drawn at random (Tang et al. "
        "2020; a grid is no random sample, and n even points would do better): a row still rising at its end says that "
        "more tuning would have helped."
    )
    title = "Was anyone under-tuned? Expected best of n rates"
    return _by_n("expected_best", title, note, best_of_n(store).to_pylist(), lambda r: percent(r["expected"]))


def effort(store: Store) -> Sheet:
    """The same in test terms."""
    rows = [r for r in best_of_n(store).to_pylist() if r["test"] is not None]
    note = (
        "Expected test score, % with its pointwise 95 % interval, had only n of the learning rates been tried: the "
        "confirmed score at the chosen rate, less what the best of n rates validates below it."
    )
    title = "Test score against tuning effort"
    return _by_n("tuning_effort", title, note, rows, lambda r: score_text(r, "test", "test_low", "test_high"))


def _by_n(name: str, title: str, note: str, rows: Sequence[Row], form: Callable[[Row], str]) -> Sheet:
    rows = sorted(pivoted(rows, ("sweep", "cell_id"), "n"), key=_order)

    def cell(n: int) -> Column:
        return Column(f"n = {n}", lambda r: form(r["by"][n]) if n in r["by"] else "", "number")

    most = max((len(r["by"]) for r in rows), default=0)
    columns = columns_of(rows, METHOD, BUDGET, *(cell(n) for n in range(1, most + 1)))
    return Sheet(name, title, columns, rows, note, folded=True)


def sharp(store: Store) -> Sheet:
    """How exactly each cell's rate must be met."""
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
        f"Decades of learning rate around the best one in which the validation score stays within {100 * NEAR:g} point "
        f"of its. {AT_LEAST.strip()}: the range tried ends before. Scores are noisy, and so is the best of them."
    )
    return Sheet("sharpness", "How exactly a rate must be met", columns, rows, note, folded=True)


def cost(store: Store) -> Sheet:
    """What every method and budget took."""
    rows = store.table("cost").to_pylist()
    rows.sort(key=lambda r: (r["sweep"], style(r["method"]).order, r["method"], r["adapter_params"] or 0))
    columns = [
        *([text("sweep", "sweep")] if len({r["sweep"] for r in rows}) > 1 else []),
        METHOD,
        BUDGET,
        PARAMETERS,
        number("attempts", "attempts"),
        number("trial time in all", "hours", lambda v: duration(None if v is None else 3600 * v)),
        number("per trial", "seconds_per_trial", duration),
        number("training", "seconds_train", duration),
        number("overhead", "seconds_overhead", duration),
        number("examples/s", "samples_per_second", lambda v: "" if v is None else f"{v:,.0f}"),
        number("peak memory, MiB", "peak_memory_bytes", lambda v: "" if v is None else f"{v / 2**20:,.0f}"),
        number("stored, bytes", "stored_bytes"),
    ]
    return Sheet("cost", "What it cost", columns, rows)


def estimate(store: Store) -> Sheet:
    """Estimate against actual of the last run."""
    rows = foresight(store).to_pylist()
    columns = [
        Column("quantity", lambda r: r["quantity"] + (f", {r['unit']}" if r["unit"] else "")),
        METHOD,
        number("estimated", "estimated"),
        number("actual", "actual"),
        number("actual / estimated", "ratio"),
    ]
    return Sheet("estimate", "Estimated before the last run, against what it took", columns, rows)


def failures(store: Store) -> Sheet:
    """Failed attempts with their reasons, the first `MOST_FAILURES`."""
    rows = store.table("failures").to_pylist()
    columns = [
        text("trial", "trial_id", "code"),
        number("attempt", "attempt"),
        text("stage", "stage"),
        METHOD,
        BUDGET,
        PLACE,
        number("learning rate", "lr"),
        text("reason", "reason", "long"),
        Column("afterwards", lambda r: "finished on a later attempt" if r["recovered"] else "not recovered"),
    ]
    more = len(rows) - MOST_FAILURES
    note = f"And {more} more: sweeps query {store.path.name} failures" if more > 0 else ""
    return Sheet("failures", "Failed attempts", columns, rows[:MOST_FAILURES], note)


def infeasible(store: Store) -> Sheet:
    """Cells that have no setting near enough to their budget."""
    rows = [r for r in store.table("cells").to_pylist() if not r["feasible"] and not r["absent"]]
    columns = [
        METHOD,
        BUDGET,
        PLACE,
        number("aimed at", "budget"),
        number("nearest", "count"),
        number("off by", "residual_fraction", off_budget),
        text("why", "reason", "long"),
    ]
    return Sheet("infeasible", "Infeasible cells", columns, rows)
