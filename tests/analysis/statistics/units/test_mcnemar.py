"""McNemar between two fixed checkpoints: right by scipy, labelled as what it is, refused where it has no meaning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats
from typer.testing import CliRunner

from analysis import Store, StoreError, open_store
from analysis.statistics.units.mcnemar import SCOPE, checkpoint_sentence, compare_checkpoints, exact_p, unpacked
from sweeps.cli.main import app
from tests.analysis.synthetic import N_TEST, make_results


def trials(store: Store, method: str, reference: str | None) -> list[str]:
    query = f"select trial_id from confirmed where method = '{method}' and reference = '{reference}' order by data_seed"
    return [r["trial_id"] for r in store.sql(query).to_pylist()]


def test_counts_and_p_are_scipys(store: Store) -> None:
    a, b = trials(store, "randlora", "lora-8")[0], trials(store, "lora", "lora-1")[0]
    [row] = compare_checkpoints(store, a, b[:12]).to_pylist()
    bits = {
        r["trial_id"]: np.unpackbits(np.frombuffer(r["correct"], np.uint8), count=N_TEST).astype(bool)
        for r in store.table("predictions").to_pylist()
    }
    table = [[int((x & y).sum()) for y in (bits[b], ~bits[b])] for x in (bits[a], ~bits[a])]
    assert [[row["both_right"], row["only_a"]], [row["only_b"], row["both_wrong"]]] == table
    assert sum(map(sum, table)) == row["n_examples"] == N_TEST
    assert row["p"] == pytest.approx(scipy_stats.binomtest(table[0][1], table[0][1] + table[1][0]).pvalue)
    assert (row["a"], row["b"], row["dataset"]) == (a, b, "embedded:fashion")
    assert row["label_a"] == "RandLoRA at lora-8 on fashion, seed 0"
    back = compare_checkpoints(store, b, a).to_pylist()[0]
    assert (back["only_a"], back["only_b"], back["p"]) == (row["only_b"], row["only_a"], row["p"])


def test_the_output_speaks_of_two_checkpoints_only(store: Store, folder: Path) -> None:
    a, b = trials(store, "randlora", "lora-8")[0], trials(store, "lora", "lora-1")[0]
    for words in (["mcnemar", str(folder), a, b], ["mcnemar", str(folder), a, b, "--json"]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert "about these two fixed checkpoints, not about their methods" in " ".join(done.stdout.split())
    answer = json.loads(done.stdout)
    assert answer["scope"] == SCOPE and answer["a"] == a
    row = {"n_examples": 100, "only_a": 12, "only_b": 10, "p": 0.83}
    assert "not distinguishable" in checkpoint_sentence(row)
    assert "checkpoint B is right more often" in checkpoint_sentence(row | {"only_a": 1, "only_b": 30, "p": 1e-6})
    assert "disagree on 0;" in checkpoint_sentence(row | {"only_a": 0, "only_b": 0, "p": 1.0})


def test_what_cannot_be_compared_is_refused(wide: Store) -> None:
    a, b = trials(wide, "lora", "lora-1"), [r["trial_id"] for r in wide.table("trials").to_pylist()]
    on = {r["trial_id"]: r["dataset"] for r in wide.table("trials").to_pylist()}
    other = next(t for t in a if on[t] != on[a[0]])
    with pytest.raises(StoreError, match=r"different data sets.*embedded:.*same examples"):
        compare_checkpoints(wide, a[0], other)
    tune = next(r["trial_id"] for r in wide.table("trials").to_pylist() if r["stage"] == "TUNE")
    with pytest.raises(StoreError, match="no predictions: only a finished CONFIRM trial"):
        compare_checkpoints(wide, tune, a[0])
    with pytest.raises(StoreError, match="same trial"):
        compare_checkpoints(wide, a[0], a[0][:10])
    tested = wide.table("predictions").column("trial_id").to_pylist()
    shared = next(d for d in "0123456789abcdef" if sum(t.startswith(d) for t in tested) > 1)
    with pytest.raises(StoreError, match=f"'{shared}' begins "):
        compare_checkpoints(wide, shared, a[0])
    with pytest.raises(StoreError, match=f"no trial 'x{b[0][1:]}'; nearest"):
        compare_checkpoints(wide, "x" + b[0][1:], a[0])
    with pytest.raises(StoreError, match="no trial ''"):
        compare_checkpoints(wide, "", a[0])


def test_other_examples_of_one_data_set_are_refused(tmp_path: Path) -> None:
    """The same data set, another list of test examples: another order or another version of it."""
    folder = make_results(tmp_path / "mixed", seal=0.0)
    journal = folder / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    tested = [e for e in lines if e.get("prediction")]
    tested[0]["prediction"]["examples_hash"] = "cd" * 8
    journal.write_text("".join(json.dumps(e) + "\n" for e in lines), encoding="utf-8")
    ids = [e["prediction"]["trial_id"] for e in tested[:2]]
    with pytest.raises(StoreError, match="different lists of test examples"):
        compare_checkpoints(open_store(folder), *ids)
    done = CliRunner().invoke(app, ["mcnemar", str(folder), *ids])
    assert done.exit_code == 2 and "same examples" in done.output


def test_p_is_the_binomial_of_the_discordant() -> None:
    assert exact_p(4, 1) == pytest.approx(scipy_stats.binomtest(4, 5).pvalue)
    assert exact_p(0, 0) == 1.0
    assert unpacked(b"\xc0", 3).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="2 bytes"):
        unpacked(b"\xff", 9)
