"""The setting of a sweep: what was compared, on which data, with which model, and what the budgets mean."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from analysis.findings.batch_sizes import searched_batch_sizes
from analysis.format import Row, amount, listed, plural, quantity, range_text
from analysis.store.columns import NOT_PARAMETERS, limited, of_model
from analysis.store.store import Store
from analysis.styles import budget_order, dataset_text, place_text, size_text, training_text

_CELLS = """
    select c.dataset, c.train_size, c.model, any_value(c.model_params) as model_params,
           any_value(c.target_params) as target_params, any_value(c.classes) as classes,
           any_value(c.val_examples) as val, any_value(c.test_examples) as test, max(t.train) as train,
           any_value(t.unit) as unit, max(t.epochs) as epochs, max(t.samples) as samples,
           any_value(c.space) as space
    from cells c left join (
      select sweep, cell_id, max(train_examples) as train, any_value(unit) as unit, max(epochs) as epochs,
             max(samples) as samples
      from last_attempts where status = 'finished' group by all
    ) t using (sweep, cell_id)
    where c.feasible
    group by c.sweep, c.model, c.dataset, c.train_size order by c.sweep, c.dataset, c.train_size, c.model
"""


def facts_box(store: Store) -> list[tuple[str, str]]:
    """Return (fact, value) pairs. What an older folder did not record is left out."""
    rows = store.sql(_CELLS).to_pylist()
    train = store.stored().get("train")
    batch = train.get("global_batch_size") if isinstance(train, dict) else None
    fixed = [batch] if isinstance(batch, int) and batch > 0 else []
    pairs = [
        ("data", "; ".join(dict.fromkeys(map(_data, rows)))),
        ("classes", _by_place(rows, [f"{r['classes']:,}" if r["classes"] else "" for r in rows])),
        ("training", _by_place(rows, [_training(r, searched_batch_sizes(r) or fixed) for r in rows])),
        ("model", "; ".join(dict.fromkeys(map(_model, rows)))),
        ("budgets", _budgets(store)),
        ("runs", _runs(store)),
    ]
    return [(fact, value) for fact, value in pairs if value]


def _by_place(rows: list[Row], values: list[str]) -> str:
    """Return the value of all rows, or each with its data set and size if they differ."""
    if len(set(values)) == 1:
        return values[0]
    named = (f"{place_text(r['dataset'], r['train_size'])}: {v}" for r, v in zip(rows, values, strict=True) if v)
    return "; ".join(dict.fromkeys(named))


def _data(r: Row) -> str:
    """Name a data set with its id and its numbers of examples."""
    name, unit = dataset_text(r["dataset"]), r["unit"] or "examples"
    name += f" ({r['dataset']})" if name != r["dataset"] else ""
    sizes = [f"{r[k]:,}{word}" for k, word in (("train", ""), ("val", " to validate"), ("test", " to test")) if r[k]]
    if not r["train"]:
        return ", ".join([name, size_text(r["train_size"]), *sizes])
    sizes[0] += f" {unit} to train"
    return f"{name}, {size_text(r['train_size'])}: {listed(sizes)}"


def _training(r: Row, batches: list[int]) -> str:
    if not r["epochs"]:
        return ""
    counts = range_text(math.ceil(r["samples"] / r["epochs"] / size) for size in batches) if r["samples"] else ""
    steps = f" of {counts} steps" if counts else ""
    sizes = f", batches of {listed([f'{size:,}' for size in batches], 'or')}" if batches else ""
    return f"{plural(r['epochs'], 'epoch')}{steps}{sizes}"


def _model(r: Row) -> str:
    if not r["model_params"]:
        return str(r["model"])
    adapted = f", {r['target_params']:,} of them in the adapted weights" if r["target_params"] else ""
    return f"{r['model']}: {r['model_params']:,} parameters{adapted}"


def _budgets(store: Store) -> str:
    """Explain every budget: its number, where it comes from, and its share of the model."""
    rows = store.sql("""
        select reference, list(distinct budget) as counts, max(budget / nullif(model_params, 0)) as share
        from cells where feasible and budget is not null group by all
    """).to_pylist()
    kinds: dict[tuple[str, bool], list[str]] = {}
    for r in sorted(rows, key=lambda r: budget_order(r["reference"])):
        unit = limited([r["reference"]])
        if of_model(r["reference"]):
            ends = min(r["counts"]), max(r["counts"])
            counts = " to ".join(dict.fromkeys(amount(n, r["reference"]) for n in ends))
            share = ""
        else:
            counts = range_text(r["counts"])
            share = "" if r["share"] is None else f" ({100 * r['share']:.2g} % of the model)"
        by_rank = re.fullmatch(rf"(({NOT_PARAMETERS})-)?lora-\d+", r["reference"]) is not None
        kinds.setdefault((unit, by_rank), []).append(f"{r['reference']} is {counts}{share}")
    return " ".join(_kind(unit, by_rank, budgets) for (unit, by_rank), budgets in kinds.items())


def _kind(unit: str, by_rank: bool, budgets: list[str]) -> str:
    if not by_rank:
        return f"In {unit}: {listed(budgets)}."
    if unit == "trainable parameters":
        name, what = "lora-N (or LoRA-N)", f"number of {unit} that LoRA of rank N has"
    elif unit == "degrees of freedom":
        name, what = "dof-lora-N", f"number of {unit} that LoRA of rank N has"
    else:
        name, what = f"{budgets[0].partition('-')[0]}-lora-N", f"{unit} that LoRA of rank N takes"
    return f"{name} is the {what} on the same weights: {listed(budgets)}."


def _runs(store: Store) -> str:
    """Explain how cells were tuned and confirmed."""
    rows = store.sql("""
        select max(tune_trials) as trials, max(allowance_samples) as samples, max(confirm_seeds) as seeds,
               count(*) as cells
        from cells where feasible
    """).to_pylist()
    (r,) = rows
    if not r["cells"] or (store.spec() or {}).get("imported"):
        return ""
    tuned = plural(r["trials"], "run") if r["samples"] is None else f"{quantity(r['samples'])} training examples"
    sentences = [f"{plural(r['cells'], 'cell')} (a cell is one method at one budget on one data set)"]
    if r["trials"]:
        sentences.append(f"Stage TUNE chooses the learning rate of each cell on validation data with {tuned}")
    seeds = plural(r["seeds"], "seed")
    sentences.append(f"Stage CONFIRM then trains each cell with {seeds} at that rate and reads the test data")
    return "".join(f"{sentence}. " for sentence in sentences).strip()


def summary(store: Store) -> list[str]:
    """Say in a sentence for each sweep what it compares."""
    rows = store.sql("""
        select sweep, list(distinct model) as models, list(distinct dataset) as datasets,
               list(distinct train_size) as sizes, count(distinct method) as methods,
               count(distinct reference) as budgets
        from cells where feasible group by all order by sweep
    """).to_pylist()
    return [_summary(r, len(rows) > 1) for r in rows]


def _summary(r: Row, several: bool) -> str:
    names = _some(dataset_text(d) for d in sorted(r["datasets"]))
    if len(r["datasets"]) == len(r["sizes"]) == 1:
        names += f" ({training_text(r['datasets'][0], r['sizes'][0])})"
    budgets = f" at {plural(r['budgets'], 'budget')}" if r["budgets"] else ""
    subject = f"The sweep {r['sweep']}" if several else "This sweep"
    methods = plural(r["methods"], "method")
    return f"{subject} compares {methods}{budgets} on {names} with the model {_some(sorted(r['models']))}."


def _some(names: Iterable[str], most: int = 6) -> str:
    """List names. If there are more than `most`, the last ones are only counted."""
    all_names = list(names)
    uncounted = [f"{len(all_names) - most + 1} more"] if len(all_names) > most else []
    return listed(all_names[: most - len(uncounted)] + uncounted)
