"""What trained language models keep: the loss on general text, before without any adapter, labels shifted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import randlora
from analysis import StoreError, open_store
from analysis.diagnostics.analyze import analyze, plan
from analysis.diagnostics.retention import changes, windows
from analysis.diagnostics.weights import every_kept
from analysis.findings.diagnostics.sheets import diagnostic_sheets
from analysis.store.tables import to_table
from tests.analysis.diagnostics.support import tiny_results
from tests.trainables.tiny_language import instruction_rows, save_model, write_rows
from trainables.models.loading import load_model

TEXT = "The river runs to the sea. The grass is green and the snow is white. " * 30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("retention")
    save_model(place / "qwen2", "qwen2")
    write_rows(place / "rows")
    (place / "general.txt").write_text(TEXT, encoding="utf-8")
    tiny_results(
        place / "tiny",
        seeds=2,
        model={"id": f"local:{place / 'qwen2'}"},
        data={"datasets": [f"json:{place / 'rows'}"], "train_size": [1.0]},
        methods={"lora": {}, "full": {}},
        train={"epochs": 1, "global_batch_size": 10},
    )
    return place


def test_the_loss_is_that_of_the_plain_model_before_and_of_the_trained_one_after(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "tiny", tmp_path / "tiny"))
    store = open_store(folder)
    table, paths, says = analyze(store, "retention", texts=made / "general.txt")
    rows = {r["trial_id"]: r for r in table.to_pylist()}
    assert len(rows) == 4 and len({r["before"] for r in rows.values()}) == 1  # every seed; one base model

    loaded = load_model(f"local:{made / 'qwen2'}")
    tokenizer: Any = loaded.text_tokenizer
    parts = windows(TEXT, tokenizer, 256, 64)
    assert len(parts) > 1

    @torch.no_grad()
    def wanted() -> float:
        """transformers shifts the labels itself: its loss is the mean over a window's tokens but the first."""
        losses = [float(loaded.module(input_ids=p[None], labels=p[None]).loss) * (len(p) - 1) for p in parts]
        return sum(losses) / sum(len(p) - 1 for p in parts)

    base = wanted()
    for kept in every_kept(store):
        row = rows[kept.row["trial_id"]]
        assert row["before"] == pytest.approx(base, rel=1e-5)
        assert row["change"] == row["after"] - row["before"] and row["tokens"] == sum(len(p) - 1 for p in parts)
        if kept.row["method"] == "lora":
            adapted = randlora.load(loaded.module, kept.folder)
            assert row["after"] == pytest.approx(wanted(), rel=1e-5) and row["after"] != pytest.approx(base, rel=1e-6)
            adapted.detach()
    assert {"retention.svg", "retention.png"} <= set(paths)
    assert "general.txt" in says and "LoRA at lora-2" in says
    (sheet,) = diagnostic_sheets(store)
    assert sheet.name == "diagnostic_retention" and len(sheet.rows) == 2


def test_changes_are_paired_by_seed_with_lora() -> None:
    place = {"sweep": "s", "unit": "u", "model": "m", "dataset": "d", "train_size": "1.0"}
    values = {("lora", "lora-1"): (0.5, 0.9), ("vera", "lora-1"): (0.1, 0.4), ("full", None): (1.0, 1.0)}
    rows = [
        place
        | {"method": m, "reference": ref, "adapter_params": 3, "trial_id": f"{m}{k}", "change": value}
        | {"data_seed": k, "init_seed": k, "basis_seed": k}
        for (m, ref), both in values.items()
        for k, value in enumerate(both)
    ]
    found = {r["method"]: r for r in changes(to_table("retention", rows))}
    assert found["lora"]["change"] == pytest.approx(0.7) and "less_lora" not in found["lora"]
    assert found["vera"]["less_lora"] == pytest.approx(-0.45)
    assert found["vera"]["less_low"] == pytest.approx(-0.45 - 12.706 * 0.05, abs=1e-3)
    assert "less_lora" not in found["full"] and found["full"]["n"] == 2


def test_windows_are_spread_over_the_text() -> None:
    def numbered(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text)))}

    assert [len(w) for w in windows("x" * 25, numbered, 10, 5)] == [10, 10, 5]
    assert [int(w[0]) for w in windows("x" * 100, numbered, 10, 4)] == [0, 30, 60, 90]
    assert windows("x", numbered, 10, 4) == []


def test_what_can_not_be_measured_names_the_switch(made: Path, tmp_path: Path) -> None:
    store = open_store(made / "tiny")
    with pytest.raises(StoreError, match="--texts FILE"):
        plan(store, "retention")
    with pytest.raises(StoreError, match="spectrum takes no texts"):
        plan(store, "spectrum", texts=made / "general.txt")
    with pytest.raises(StoreError, match=r"--texts .*nothing\.txt cannot be read"):
        plan(store, "retention", texts=tmp_path / "nothing.txt")
    for content, words in (("  \n", "is empty"), ("a", "fewer than two tokens")):
        (tmp_path / "short.txt").write_text(content)
        with pytest.raises(StoreError, match=rf"--texts .*short\.txt.*{words}"):
            analyze(store, "retention", texts=tmp_path / "short.txt")
    (tmp_path / "mixed.txt").write_text(TEXT + "".join(row["instruction"] for row in instruction_rows(40)))
    with pytest.raises(StoreError, match=r"--texts .*mixed\.txt.*that trials trained on"):
        analyze(store, "retention", texts=tmp_path / "mixed.txt")
    shutil.copytree(made / "tiny", tmp_path / "bare", ignore=shutil.ignore_patterns("adapters"))
    with pytest.raises(StoreError, match=r'\[keep\] adapters = "confirm"'):
        plan(open_store(tmp_path / "bare"), "retention", texts=made / "general.txt")
