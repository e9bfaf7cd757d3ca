"""Two fixed checkpoints on the same test examples: McNemar's exact test, labelled as what it is.

It answers "do these two files differ on examples like these", not "is one method better": another seed is another
checkpoint, and pooled over seeds the test calls a method different from itself far too often (docs/fairness.md).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from analysis.errors import StoreError, nearest
from analysis.format import Row
from analysis.statistics.inference import LEVEL
from analysis.store.columns import INT, REAL, TEXT, typed
from analysis.store.store import Store
from analysis.styles import place_text, style

SCOPE = "two fixed checkpoints, not their methods"

MCNEMAR = pa.schema(
    [
        ("scope", TEXT),  # always SCOPE: what the p value speaks of
        *typed(TEXT, "a", "b"),  # trial ids
        *typed(TEXT, "label_a", "label_b", "model", "dataset"),
        *typed(INT, "n_examples", "both_right", "only_a", "only_b", "both_wrong"),
        ("p", REAL),  # exact, two-sided; of one comparison, uncorrected
    ]
)

_PREDICTED = """
select p.trial_id, p.n_examples, p.correct, p.examples_hash, t.sweep, t.model, t.dataset, t.train_size, t.method,
       t.reference, t.data_seed
from predictions p join last_attempts t using (sweep, trial_id)
order by p.trial_id
"""


def compare_checkpoints(store: Store, a: str, b: str) -> pa.Table:
    """McNemar's exact test between two trials' kept predictions: one row, columns `MCNEMAR`.

    Args:
        store: the results; several sweeps may be open together.
        a, b: trial ids, or beginnings of them that only one trial has.

    Raises:
        StoreError: no such trial, an id that several have, one without predictions (a TUNE trial: it can't read test),
            the same trial twice, or trials tested on different examples.
    """
    rows = store.sql(_PREDICTED).to_pylist()
    known = store.table("last_attempts").column("trial_id").to_pylist()
    first, second = (_find(rows, known, name) for name in (a, b))
    if first["trial_id"] == second["trial_id"]:
        raise StoreError(f"{a!r} and {b!r} name the same trial, {first['trial_id']}; give two")
    for field, called in (
        ("dataset", "data sets"),
        ("n_examples", "numbers of test examples"),
        ("examples_hash", "lists of test examples"),
    ):
        if first[field] != second[field]:
            raise StoreError(
                f"trials {first['trial_id']} and {second['trial_id']} were tested on different {called} "
                f"({first[field]} and {second[field]}); McNemar's test needs the same examples"
            )
    a_right, b_right = (unpacked(r["correct"], r["n_examples"]) for r in (first, second))
    only_a, only_b = int((a_right & ~b_right).sum()), int((b_right & ~a_right).sum())
    row = {
        "scope": SCOPE,
        "a": first["trial_id"],
        "b": second["trial_id"],
        "label_a": _label(first),
        "label_b": _label(second),
        "model": "; ".join(dict.fromkeys((first["model"], second["model"]))),
        "dataset": first["dataset"],
        "n_examples": first["n_examples"],
        "both_right": int((a_right & b_right).sum()),
        "only_a": only_a,
        "only_b": only_b,
        "both_wrong": int((~a_right & ~b_right).sum()),
        "p": exact_p(only_a, only_b),
    }
    return pa.Table.from_pylist([row], schema=MCNEMAR)


def unpacked(correct: bytes, n_examples: int) -> NDArray[np.bool_]:
    """(n_examples,) which test examples a checkpoint got right, from the bits of the table `predictions`.

    Raises:
        ValueError: bits that do not match the number of examples.
    """
    if len(correct) != (n_examples + 7) // 8:
        raise ValueError(f"{n_examples} examples need {(n_examples + 7) // 8} bytes of bits, got {len(correct)}")
    return np.unpackbits(np.frombuffer(correct, np.uint8), count=n_examples).astype(bool)


def exact_p(only_a: int, only_b: int) -> float:
    """McNemar's exact p from the numbers of examples that one checkpoint alone gets right."""
    return 1.0 if only_a + only_b == 0 else float(stats.binomtest(only_a, only_a + only_b).pvalue)


def checkpoint_sentence(row: Row) -> str:
    """What a row of `compare_checkpoints` allows to be said."""
    apart = row["only_a"] + row["only_b"]
    counts = f"of {row['n_examples']:,} test examples they disagree on {apart:,}"
    if apart:
        counts += f": only A is right on {row['only_a']:,}, only B on {row['only_b']:,}"
    p = "p < 0.001" if row["p"] < 0.001 else f"p = {row['p']:.3f}"
    if row["p"] > 1 - LEVEL:
        said = "these two checkpoints are not distinguishable"
    else:
        better = "A" if row["only_a"] > row["only_b"] else "B"
        said = f"checkpoint {better} is right more often than the other"
    return (
        f"{counts[0].upper()}{counts[1:]}; {said} ({p}, McNemar's exact test). This is a statement about these two "
        "fixed checkpoints, not about their methods: another seed is another checkpoint. Methods are compared over "
        "seeds by `sweeps compare`."
    )


def _find(rows: list[Row], known: list[str], name: str) -> Row:
    found = [r for r in rows if r["trial_id"].startswith(name)] if name else []
    if len(found) > 1:
        raise StoreError(f"{name!r} begins {len(found)} trials' ids: {', '.join(r['trial_id'] for r in found[:4])}")
    if found:
        return found[0]
    if name and any(trial.startswith(name) for trial in known):
        raise StoreError(
            f"trial {name!r} has no predictions: only a finished CONFIRM trial is tested; "
            "`sweeps query FOLDER predictions` lists them"
        )
    near = nearest(name, [r["trial_id"] for r in rows], most=3)
    raise StoreError(f"no trial {name!r}; {near}; `sweeps query FOLDER confirmed` lists them")


def _label(row: Row) -> str:
    budget = f" at {row['reference']}" if row["reference"] else ""
    seed = "" if row["data_seed"] is None else f", seed {row['data_seed']}"
    return f"{style(row['method']).name}{budget} on {place_text(row['dataset'], row['train_size'])}{seed}"
