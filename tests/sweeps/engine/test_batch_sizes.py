"""Batch sizes that are searched with the learning rate, through whole sweeps in this process."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.findings.parity.words import parity_says
from analysis.findings.results.numbers import results_table
from analysis.findings.weak import weak_evidence
from analysis.store.store import Store, open_store
from sweeps.engine.run import run
from sweeps.engine.verifying import verify
from sweeps.packing.choosing import Packing
from sweeps.packing.words import packing_words
from sweeps.plan.plan import Plan
from sweeps.search.stages import SweepState
from sweeps.spec.space import BATCH_SIZE
from sweeps.spec.spec import SweepSpec
from tests.sweeps.inline import go_inline
from tests.sweeps.search.support import row_of
from tests.sweeps.support import assert_same_tables, pairs
from trainables.tasks.images.images import ImageTask

SIZES = (24, 64)
EXAMPLES = 16 * 10


def tree(folder: Path, **given: Any) -> dict[str, Any]:
    return {
        "name": "batches",
        "output": str(folder / "results"),
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "data": {"datasets": ["embedded:fashion-mnist-turned"], "train_size": ["16-shot"]},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}, "randlora": {}, "full": {"lr": 1e-4}, "linear-probe": {}, "zero-shot": {}},
        "search": {"trials": 6, "rerun_rates": 1, "rerun_seeds": 2, "space": {BATCH_SIZE: list(SIZES)}},
        "confirm": {"seeds": 2},
        "train": {"epochs": 1},
    } | given


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Store, dict[tuple[str, int, int], set[tuple[int, ...]]]]:
    """A finished sweep, and by method, seed and batch size the order in which trials saw the training rows."""
    seen: dict[tuple[str, int, int], set[tuple[int, ...]]] = {}
    batches = ImageTask.batches

    def noted(task: ImageTask, epoch: int) -> list[torch.Tensor]:
        found, trial = batches(task, epoch), task._trial
        assert [len(b) for b in found[:-1]] == [trial.train.global_batch_size] * (len(found) - 1)
        rows: Sequence[int] = torch.cat(found).tolist()
        seen.setdefault((trial.method, trial.data_seed, trial.train.global_batch_size), set()).add(tuple(rows))
        return found

    folder = tmp_path_factory.mktemp("batches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageTask, "batches", noted)
        summary = run(Plan.from_spec(SweepSpec.parse(tree(folder))), backend="inline", progress=False)
    assert (summary.finished, summary.failed) == (4 * (6 + 2) + 1, 0)
    return open_store(folder / "results"), seen


def test_every_method_has_the_same_pairs_trials_and_examples(finished: tuple[Store, Any]) -> None:
    store, _ = finished
    rows = store.sql("select * from trials where lr is not null").to_pylist()
    assert {r["samples"] for r in rows} == {EXAMPLES}
    assert Counter(r["method"] for r in rows) == dict.fromkeys(("lora", "randlora", "full", "linear-probe"), 6 + 2)
    first = {r["data_seed"] for r in rows if r["stage"] == "TUNE" and r["slot"] == 0}
    points = [r for r in rows if r["stage"] == "TUNE" and r["data_seed"] in first]
    for method in {r["method"] for r in rows}:
        mine = [r for r in points if r["method"] == method]
        assert Counter(r["global_batch_size"] for r in mine) == dict.fromkeys(SIZES, 2)
        assert len({r["lr"] for r in mine}) == 2
    assert store.sql("select global_batch_size from trials where method = 'zero-shot'").to_pylist() == [
        {"global_batch_size": None}
    ]


def test_confirm_trains_the_chosen_pair(finished: tuple[Store, Any]) -> None:
    store, _ = finished
    rows = store.sql("""
        select t.lr = c.lr as rate, t.global_batch_size = cast(c.hyperparameters ->> 'global_batch_size' as int) as size
        from trials t join chosen c using (sweep, cell_id) where t.stage = 'CONFIRM'
    """).to_pylist()
    assert rows == [{"rate": True, "size": True}] * (4 * 2)
    assert not verify(store).failed


def test_a_seed_has_one_order_of_examples(
    finished: tuple[Any, dict[tuple[str, int, int], set[tuple[int, ...]]]],
) -> None:
    _, seen = finished
    by_seed: dict[int, set[tuple[int, ...]]] = {}
    for (_, seed, _), orders in seen.items():
        by_seed.setdefault(seed, set()).update(orders)
    assert len(by_seed) == 3 + 2
    assert all(len(orders) == 1 for orders in by_seed.values())
    assert {size for _, _, size in seen} == set(SIZES)


def test_tables_and_sentences_name_the_batch_size(finished: tuple[Store, Any]) -> None:
    store, _ = finished
    parity = store.table("parity").to_pylist()
    (said,) = [line for line in parity_says(parity) if line.startswith("Batch size")]
    assert "24 or 64" in said and "NOT equal" not in said
    rows = [r for r in results_table(store).to_pylist() if r["method"] != "zero-shot"]
    assert {r["batch_size"] for r in rows} <= set(SIZES)
    for r in rows:
        assert f"{r['batch_size']} by " in said
        assert f"({r['batch_size']}, the {'smallest' if r['batch_size'] == 24 else 'largest'})" in r["weak"]
    signs = store.table("signs").to_pylist()
    inner = [r | {"space": '{"global_batch_size": {"values": [8, 24, 64, 128]}}'} for r in signs]
    assert not any("batch size" in line for line in weak_evidence(inner))


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.sweeps.inline import go_inline
from tests.sweeps.support import pairs

go_inline(pairs(Path(sys.argv[1])), lambda ended: os.kill(os.getpid(), signal.SIGKILL) if ended == 7 else None)
"""


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_with_the_same_pairs(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    go_inline(pairs(whole))
    done = subprocess.run([sys.executable, "-c", KILLED, str(killed)], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    summary = go_inline(pairs(killed))
    assert (summary.skipped, summary.complete) == (7, True)
    assert_same_tables(whole, killed)


def test_a_pack_has_one_batch_size(tmp_path: Path) -> None:
    plan, packing = pairs(tmp_path), Packing(4, 1)
    state, sizes = SweepState(plan.feasible, plan.spec), []
    while pack := packing.next(state, 0):
        (size,) = {slot.config["train"][BATCH_SIZE] for slot in pack}
        sizes.append((pack[0].stage, len(pack), size))
        for slot in pack:
            state.start(slot)
            state.finish(row_of(slot))
    assert sum(count for _, count, _ in sizes) == plan.n_trials
    assert {count for stage, count, _ in sizes if stage == "CONFIRM"} == {2}


def test_the_plan_says_what_is_searched_and_not_packed(tmp_path: Path) -> None:
    plan = Plan.from_spec(SweepSpec.parse(tree(tmp_path, resources={"pack": 2})))
    assert any("TUNE" in line and "batch size" in line for line in packing_words(plan.spec, plan.feasible))
