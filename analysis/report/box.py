"""The facts of a sweep that a reader asks for before its numbers: data, training, model, and what counts mean."""

from __future__ import annotations

import math
from collections.abc import Iterable

from analysis.format import Row
from analysis.store.store import Store
from analysis.styles import place_text

_CELLS = """
    select c.dataset, c.train_size, c.model, any_value(c.model_params) as model_params,
           any_value(c.target_params) as target_params, any_value(c.classes) as classes,
           any_value(c.val_examples) as val, any_value(c.test_examples) as test, max(t.train) as train,
           any_value(t.unit) as unit, max(t.epochs) as epochs, max(t.samples) as samples
    from cells c left join (
      select sweep, cell_id, max(train_examples) as train, any_value(unit) as unit, max(epochs) as epochs,
             max(samples) as samples
      from last_attempts where status = 'finished' group by all
    ) t using (sweep, cell_id)
    where c.feasible
    group by c.sweep, c.model, c.dataset, c.train_size order by c.sweep, c.dataset, c.train_size, c.model
"""


def facts_box(store: Store) -> list[tuple[str, str]]:
    """(fact, value) pairs; what older folders did not write is left out."""
    rows = store.sql(_CELLS).to_pylist()
    batch = _batch(store.stored())
    several = len(rows) > 1
    found = [("data", _joined(_data(r, several) for r in rows))]
    found.append(("classes", _joined(_where(r, several) + f"{r['classes']:,}" for r in rows if r["classes"])))
    found.append(("training", _joined(_training(r, batch, several) for r in rows)))
    found.append(("model", _joined(_model(r) for r in rows)))
    found.append(("counts", _counts(store)))
    return [(fact, value) for fact, value in found if value]


def _batch(spec: Row) -> int | None:
    """The batch size of a specification; None where it has no number there."""
    found: object = spec
    for key in ("train", "global_batch_size"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int) and found > 0 else None


def _joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(v for v in values if v))


def _where(r: Row, several: bool) -> str:
    return f"{place_text(r['dataset'], r['train_size'])}: " if several else ""


def _data(r: Row, several: bool) -> str:
    parts = [
        f"{r[k]:,} {name}" for k, name in (("train", "to train"), ("val", "to validate"), ("test", "to test")) if r[k]
    ]
    return _where(r, several) + f"{', '.join(parts)} {r['unit'] or ''}".strip() if parts else ""


def _training(r: Row, batch: int | None, several: bool) -> str:
    if not r["epochs"]:
        return ""
    steps = f" of {math.ceil(r['samples'] / r['epochs'] / batch):,} steps" if batch and r["samples"] else ""
    size = f", batches of {batch:,}" if batch else ""
    return _where(r, several) + f"{r['epochs']:,} epochs{steps}{size}"


def _model(r: Row) -> str:
    if not r["model_params"]:
        return str(r["model"])
    adapted = f", {r['target_params']:,} of them in adapted weights" if r["target_params"] else ""
    return f"{r['model']}: {r['model_params']:,} parameters{adapted}"


def _counts(store: Store) -> str:
    """Budgets as shares of the model."""
    found = store.sql("""
        select reference, max(budget / model_params) as share
        from cells where feasible and budget is not null and model_params > 0 group by all order by 2
    """)
    shares = ", ".join(f"{r['reference']} {100 * r['share']:.2g} %" for r in found.to_pylist())
    return f"of the model: {shares}" if shares else ""
