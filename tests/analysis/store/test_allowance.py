"""What the parity table and the report say of an allowance that is not in trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from analysis.findings.parity.finding import parity_sheet
from analysis.findings.parity.words import tuning_says
from analysis.store.schemas import SCHEMAS
from analysis.store.sql.queries import run_sql
from analysis.store.tables import to_table

Row = dict[str, Any]

TIMES: list[Row] = [
    {"seconds_total": 30.0, "seconds_setup": 10.0, "seconds_train": 15.0, "seconds_eval": 2.0, "device": "cpu"},
    {"seconds_total": 5.0, "seconds_setup": 4.0, "seconds_train": 15.0, "seconds_eval": 2.0, "device": "cpu"},
    {"seconds_total": 7.0, "status": "pruned", "workers": 2, "device": "cpu"},
    {"seconds_total": 1.0, "status": "failed"},
    {"seconds_total": None, "seconds_train": 2.0, "device": "cpu"},
    {"seconds_total": 9.0, "seconds_train": 0.5, "seconds_eval": 0.5, "status": "pruned", "device": "cpu"},
]


def tables(times: Sequence[Row], **cell: Any) -> Mapping[str, pa.Table]:
    names = {"sweep": "s", "cell_id": "c", "method": "lora", "dataset": "d", "train_size": "1.0"}
    trials = [
        {**names, "stage": "TUNE", "attempt": 1, "trial_id": f"t{i}", "lr": 10.0**-i, "status": "finished"}
        | {"val_score": 0.5, "samples": 400, "processor": "Xeon 6", **row}
        for i, row in enumerate(times)
    ]
    late = {**trials[0], "trial_id": "late", "stage": "CONFIRM", "processor": "EPYC 9", "val_score": 0.5}
    given = {**names, "feasible": True, "tune_trials": 3, "lr_low": 1e-4, "lr_high": 1e-1, "confirm_seeds": 1, **cell}
    found = {name: to_table(name, []) for name in SCHEMAS}
    return {**found, "trials": to_table("trials", [*trials, late]), "cells": to_table("cells", [given])}


def parity_of(times: Sequence[Row], **cell: Any) -> Row:
    (row,) = run_sql(tables(times, **cell), "select * from parity").to_pylist()
    return dict(row)


def test_seconds_of_tuning_leave_the_set_up_out() -> None:
    row = parity_of(TIMES)
    assert row["tune_seconds"] == pytest.approx(20 + 17 + 14 + 1 + 2 + 1)
    assert (row["allowance_used"], row["tune_failed"]) == (6, 1)
    assert row["devices"] == "Xeon 6"  # CONFIRM may run anywhere
    assert row["under_tuned"] is not None  # the flags do without the allowance


def test_kinds_of_devices_are_named() -> None:
    mixed = [*TIMES, {"device": "NVIDIA H100"}, {"device": "cpu", "processor": None}]
    assert parity_of(mixed)["devices"].split(", ") == ["NVIDIA H100", "Xeon 6", "cpu"]


def test_the_table_shows_what_was_given_and_spent() -> None:
    def shown(times: Sequence[Row] = TIMES, **cell: Any) -> dict[str, str]:
        row = parity_of(times, **cell)
        return {column.head: column.text(row) for column in parity_sheet([row]).columns}

    assert shown()["tuning used / given"] == "6 / 3 (1 failed)"
    assert shown(allowance_samples=2400)["tuning used / given"] == "6 trials, 2,400 / 2,400 examples (1 failed)"
    wider = [row | {"origin": "widened"} if k < 3 else row for k, row in enumerate(TIMES)]
    assert shown(wider)["tuning used / given"] == "3 / 3 + 3 past the edge (1 failed)"
    more = shown(wider, allowance_samples=1200)["tuning used / given"]
    assert more == "3 trials + 3 past the edge, 2,400 / 1,200 examples (1 failed)"


def test_sentences_say_whether_it_was_equal() -> None:
    plain = [{**parity_of(TIMES), "allowance": n} for n in (6, 6)]
    assert tuning_says(plain) == [
        "Tuning: every tuned cell was given 6 trials; 6 were used, 3 of them finished at full length."
    ]
    (said_of_samples,) = tuning_says([parity_of(TIMES, allowance_samples=n) for n in (2400, 4000)])
    assert said_of_samples.startswith(
        "Tuning: cells were given 2,400 to 4,000 training examples; 2,400 were used, in 6"
    )
