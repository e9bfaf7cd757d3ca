"""Compare the predicted with the measured peak memory of a training step, on this machine's CPU.

python -m benchmarks.step_memory [--methods lora,full] [--out FILE.json]

`trainables.training.costs` predicts the bytes on tensors without values. To measure them, `run_trial` trains two steps
while torch's profiler records every allocation. The measured bytes are the highest sum of these allocations, plus the
tensors of the base model. Before the profiler starts, one trial has loaded the model and the data. The models have
random weights. Base weights in 4 and 8 bits are measured if bitsandbytes is installed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from benchmarks.small_texts import make_bert, make_gpt2, make_llama
from randlora.methods.registry import get_method
from randlora.model.quantised import is_quantised, scale_tensors
from sweeps.plan.base_model import BaseModelInfo
from trainables.config import FULL_METHODS, QUANTISED, TrainSettings, TrialConfig
from trainables.models.loading import input_side
from trainables.training.costs import CostModel
from trainables.training.worker import run_trial

METHODS = ("lora", "dora", "vera", "randlora", "svft", "full")
CAPACITY = 4
CLASSES = 10
IMAGES = "embedded:fashion-mnist-turned"


@dataclass(frozen=True)
class Case:
    """A model, its data, and how it trains."""

    model: str
    dataset: str
    adapt: str
    train: dict[str, Any]
    classes: int = CLASSES
    texts: int = 64


def make_vit(folder: Path, hidden: int, layers: int, side: int) -> str:
    """Write a ViT with random weights into `folder`, and return the id by which a sweep names it."""
    config = transformers.ViTConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=3 * hidden,
        image_size=side, patch_size=8,
    )  # fmt: skip
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return f"local:{folder}"


def cases(folder: Path) -> Iterator[tuple[str, Case]]:
    """Yield the cases with their names. No other part of the project has models of these sizes."""
    for name in ("vit", "llama", "gpt2", "bert"):
        (folder / name).mkdir()
    yield "CLIP, image tower", Case("embedded:tiny-clip", IMAGES, "vision", {"global_batch_size": 64})
    yield "CLIP, both towers", Case("embedded:tiny-clip", IMAGES, "both", {"global_batch_size": 80})
    yield (
        "CLIP, micro-batches",
        Case("embedded:tiny-clip", IMAGES, "vision", {"global_batch_size": 64, "micro_batch_size": 16}),
    )
    yield "ViT 160 x 7", Case(make_vit(folder / "vit", 160, 7, 48), IMAGES, "all", {"global_batch_size": 24})
    texts = {"max_tokens": 20, "loss_on_prompt": True}
    for name, make in (("llama", make_llama), ("gpt2", make_gpt2)):
        model, data = make(folder / name, 120, 5, 64)
        yield f"{name} 120 x 5", Case(model, data, "all", {"global_batch_size": 12, **texts})
    if importlib.util.find_spec("bitsandbytes") is not None:
        (folder / "wide").mkdir()
        model, data = make_llama(folder / "wide", 192, 9, 32)
        for held in QUANTISED:
            train = {"global_batch_size": 4, "base_weights": held, **texts}
            yield f"llama 192 x 9, {held}", Case(model, data, "all", train)
    model, data = make_bert(folder / "bert", 144, 6, 64)
    yield "BERT 144 x 6", Case(model, data, "all", {"global_batch_size": 16, "max_tokens": 12}, classes=2)


def trial_of(case: Case, method: str, info: BaseModelInfo) -> TrialConfig:
    """Return the configuration of a trial of two steps."""
    targets = info.default_targets
    shapes = {} if method == "full" else info.target_shapes(targets, "both" if case.adapt == "all" else case.adapt)
    capacity = 0 if method == "full" else max(CAPACITY, get_method(method).min_capacity)
    size = case.train["global_batch_size"]
    rows = "16-shot" if case.dataset == IMAGES else 1.0
    return TrialConfig(
        stage="TUNE", cell_id="", model=case.model, adapt=case.adapt, targets=targets, dataset=case.dataset,
        train_size=rows, method=method, capacities=tuple(dict.fromkeys(shapes, capacity).items()), lr=1e-4,
        data_seed=0, init_seed=0, basis_seed=0,
        train=TrainSettings(epochs=1, eval_batch_size=min(16, size), precision="fp32", **case.train),
    )  # fmt: skip


def measured(trial: TrialConfig) -> int:
    """Return the peak bytes of a trial when it runs for the second time in this process."""
    warm: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in run_trial(trial, warm=warm, directory=Path(folder) / "first"):
            pass
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            for _ in run_trial(trial, warm=warm, directory=Path(folder) / "second"):
                pass
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for loaded in warm["models"].values()
        for t in (*loaded.module.parameters(), *loaded.module.buffers(), *scales(loaded.module))
    }
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return sum(held.values()) + most


def scales(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield the scales of weights in 4 or 8 bits."""
    for layer in module.modules():
        if is_quantised(layer):
            yield from scale_tensors(layer)


def compare(methods: list[str]) -> list[dict[str, Any]]:
    """Print and return the predicted and the measured bytes of every case and method."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(Path(folder)):
            info = BaseModelInfo(case.model)
            side = input_side(case.model, info.module)
            costs = CostModel(copy.deepcopy(info.module), info.kind, side=side, classes=case.classes)
            held = case.train.get("base_weights", "fp32")
            for method in (m for m in methods if held == "fp32" or m not in FULL_METHODS):
                trial = trial_of(case, method, info)
                predicted, peak = costs.step(trial).memory_bytes, measured(trial)
                rows.append({"case": name, "method": method, "predicted": predicted, "measured": peak})
                share = predicted / peak - 1
                print(
                    f"{name:20} {method:10} {predicted / 2**20:8.2f} MiB {peak / 2**20:8.2f} MiB {share:+.1%}",
                    flush=True,
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = compare(options.methods.split(","))
    worst = max(abs(r["predicted"] / r["measured"] - 1) for r in rows)
    print(f"largest difference: {worst:.1%}")
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
