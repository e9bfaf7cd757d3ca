"""What was equal for all methods, and what was not: the table of parameters, tuning and seeds, and its sentences."""

from __future__ import annotations

from functools import partial

from analysis.findings.batch_sizes import chosen_batch_size, searched_batch_sizes
from analysis.findings.finding import Finding
from analysis.findings.parity.words import looks_says, parity_says, versions_apart
from analysis.findings.shared import LONG, cell_order
from analysis.findings.weak import why_under_tuned
from analysis.format import Row, amount, bytes_text, freedom_text, off_budget, plural, points, quantity
from analysis.sheets.columns import BUDGET, METHOD, columns_of
from analysis.sheets.sheet import Column, Sheet, number, text
from analysis.store.columns import limited
from analysis.store.store import Store
from analysis.verdict.choice import choice_variances
from analysis.verdict.looks import looks
from analysis.verdict.noise import run_noises

SPREADS = {"noise": "a run", "choice": "the choice"}
COUNTS = "parameters"
CHOICE = "how the rate was chosen"
MACHINE = "device"
"""Groups of columns of `parity`."""


def parity_rows(store: Store) -> list[Row]:
    """Return the view `parity` in the order of the tables, with the variances of `choice`."""
    noise, choice = run_noises(store), choice_variances(store)
    rows = store.table("parity").to_pylist()
    keys = [(r["sweep"], r["cell_id"]) for r in rows]
    parity_with_noise = [r | {"noise": noise.get(k), "choice": choice.get(k)} for r, k in zip(rows, keys, strict=True)]
    return sorted(parity_with_noise, key=cell_order)


def parity_sheet(rows: list[Row]) -> Sheet:
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


def ran_with(store: Store) -> list[Row]:
    """Return the versions of packages that finished trials ran with, for `versions_apart`."""
    columns = "sweep, dataset, train_size, method, versions"
    table = store.sql(f"select distinct {columns} from last_attempts where status = 'finished' order by all")  # noqa: S608  ours
    rows: list[Row] = table.to_pylist()
    return rows


def fairness_says(store: Store) -> list[str]:
    """Return sentences on what was equal for all methods, how often results were looked at, and what was tuned."""
    rows = parity_rows(store)
    versions = versions_apart(ran_with(store))
    return [
        *parity_says(rows, predicted=not (store.spec() or {}).get("imported")),
        *looks_says(looks(store).values()),
        *_tuning_says(rows),
        *([f"Versions of packages: NOT equal, {versions}."] if versions else []),
        *_test_says(store),
    ]


def _tuning_says(parity: list[Row]) -> list[str]:
    """Say how many cells might gain from more tuning."""
    tuned = [r for r in parity if r["chosen_lr"] is not None]
    if not tuned:
        return []
    poor, edges = sum(bool(r["under_tuned"]) for r in tuned), sum(bool(r["edge"]) for r in tuned)
    poor_text = f"{plural(poor, 'cell is', 'cells are')} perhaps under-tuned" if poor else "no cell looks under-tuned"
    at = f"the chosen rate of {plural(edges, 'cell')} is at the edge of its range" if edges else ""
    return [f"Enough tuning: {poor_text}, and {at or 'no chosen rate is at the edge of its range'}."]


def _test_says(store: Store) -> list[str]:
    """Say how often the test data was read."""
    confirm = store.sql("select count(*) as n from last_attempts where stage = 'CONFIRM' and test_score is not null")
    reads, superseded = confirm.column("n")[0].as_py(), store.table("superseded").num_rows
    text = f"Test data: stage CONFIRM read it {plural(reads, 'time')}, and stage TUNE cannot read it."
    if superseded:
        were = "was at a rate" if superseded == 1 else "were at rates"
        text += f" {superseded:,} of these {were} or seeds that a later choice replaced, and does not count."
    return [text]


FINDING = Finding("fair", ("parity",), lambda store, _: [parity_sheet(parity_rows(store))], says=fairness_says)
