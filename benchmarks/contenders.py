"""Build our adapters, PEFT's and full fine-tuning on a ViT-B/32-shaped model, and time their training steps.

`adapters.py` (on CPUs) and `gpu.py` run these comparisons. Other benchmarks use the functions that measure.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from unittest import mock

RETAIN = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "OMP_NUM_THREADS": "1",
}
TOKENS_PER_IMAGE = 50  # 224 / 32 squared, and the class token
TARGETS = ["qkv", "proj", "fc1", "fc2"]

ROWS = (
    # (label, numerator, denominator, goal at 1,600 tokens, goal at 6,400)
    ("dense RandLoRA / PEFT RandLoRA", "randlora", "peft-randlora", 0.80, 0.70),
    ("dense RandLoRA / PEFT LoRA", "randlora", "peft-lora", 1.50, 1.30),
    ("dense RandLoRA / full fine-tuning", "randlora", "full", 1.24, 1.00),
    ("ternary RandLoRA / PEFT RandLoRA", "ternary", "peft-randlora", 0.60, 0.58),
    ("ternary RandLoRA / PEFT LoRA", "ternary", "peft-lora", 1.18, 1.10),
    ("LoRA / PEFT LoRA", "lora", "peft-lora", 1.00, 0.97),
    ("DoRA / PEFT DoRA", "dora", "peft-dora", 0.95, 0.90),
    ("VeRA / PEFT VeRA", "vera", "peft-vera", 0.95, 0.90),
)
ACCUMULATED = (
    # (label, numerator, denominator), all with the same micro-batches
    ("accumulating() / plain accumulation", "randlora-held", "randlora"),
    ("accumulating() / PEFT RandLoRA", "randlora-held", "peft-randlora"),
    ("accumulating() / PEFT LoRA", "randlora-held", "peft-lora"),
    ("accumulating() / full fine-tuning", "randlora-held", "full"),
)
ON_CUDA = (("ternary RandLoRA, RANDLORA_KERNELS=triton / dense products", "ternary-triton", "ternary"),)
NAMES = sorted({name for row in (*ROWS, *ACCUMULATED) for name in row[1:3]})


def restart_with(settings: dict[str, str]) -> None:
    """Replace this process by itself with `settings` in the environment, unless they are there."""
    if all(os.environ.get(k) == v for k, v in settings.items()):
        return
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


def clock(device: str) -> Callable[[], float]:
    """Return seconds of process CPU time; on a GPU seconds of wall time after all its work is done."""
    if device == "cpu":
        return time.process_time
    import torch

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def build(name: str, depth: int, low: bool = False) -> tuple[Any, list[Any]]:
    """Return the model and the trained parameters of one contender. All contenders have the same random weights.

    Args:
        low: whether the weights are in bf16.
    """
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch32_224", pretrained=False, num_classes=10, depth=depth)
    model.to(torch.bfloat16 if low else torch.float32).train()
    if name == "full":
        return model, [p for n, p in model.named_parameters() if n.endswith("weight") and p.ndim == 2]
    if name.startswith("peft-"):
        import peft

        common: dict[str, Any] = {"target_modules": TARGETS}
        config = {
            "peft-lora": lambda: peft.LoraConfig(r=32, lora_alpha=32, **common),
            "peft-dora": lambda: peft.LoraConfig(r=32, lora_alpha=32, use_dora=True, **common),
            "peft-vera": lambda: peft.VeraConfig(r=256, **common),
            "peft-randlora": lambda: peft.RandLoraConfig(r=6, randlora_alpha=12, **common),
        }[name]()
        # timm's patch embedding is a Conv2d called "proj": keep to the blocks
        names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("blocks")]
        config.target_modules = set(names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(model, config)
        return model, [p for p in model.parameters() if p.requires_grad]
    import randlora

    configs: dict[str, Callable[[], randlora.AdapterConfig]] = {
        "lora": lambda: randlora.LoraConfig(32),
        "dora": lambda: randlora.DoraConfig(32),
        "vera": lambda: randlora.VeraConfig(256),
        "randlora": lambda: randlora.RandLoraConfig(6),
        "randlora-held": lambda: randlora.RandLoraConfig(6),
        "ternary": lambda: randlora.RandLoraConfig(6, distribution="ternary", sparsity=768**0.5),
    }
    configs["ternary-triton"] = configs["ternary"]
    targets = [f"blocks.*.{t}.weight" for t in TARGETS]
    adapted = randlora.attach(model, configs[name](), targets)
    return model, list(adapted.parameters())


class Contender:
    """One model with its optimiser; `step()` returns the seconds of one training step by the device's `clock`.

    `precision`: "float32", "bf16" (base weights and activations) or "autocast" (to bf16, with weights in float32).
    """

    def __init__(self, name: str, depth: int, device: str = "cpu", precision: str = "float32") -> None:
        import torch

        self.name, self.device, self.autocast, self.clock = name, device, precision == "autocast", clock(device)
        self.model, parameters = build(name, depth, precision == "bf16")
        self.model.to(device)
        self.trained = sum(p.numel() for p in parameters)
        wanted = {id(p) for p in parameters}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in wanted)
        self.optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)

    def loss(self, images: Any, labels: Any) -> Any:
        import torch

        cast = torch.autocast(self.device, torch.bfloat16, enabled=self.autocast)
        kernel = {"RANDLORA_KERNELS": "triton"} if self.name == "ternary-triton" else {}
        with mock.patch.dict(os.environ, kernel), cast:
            logits = self.model(images)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    def step(self, images: Any, labels: Any, micro: int = 1) -> float:
        from randlora import accumulating

        start = self.clock()
        self.optimiser.zero_grad(set_to_none=True)
        with accumulating(self.model, micro if self.name == "randlora-held" else 1):
            for part, classes in zip(images.chunk(micro), labels.chunk(micro), strict=True):
                (self.loss(part, classes) / micro).backward()
        self.optimiser.step()
        return self.clock() - start


def data(tokens: int) -> tuple[Any, Any]:
    """Return random images that give `tokens` rows, with labels."""
    import torch

    generator = torch.Generator().manual_seed(1)
    count = tokens // TOKENS_PER_IMAGE
    images = torch.randn(count, 3, 224, 224, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def time_steps(
    names: list[str],
    depth: int,
    tokens: int,
    rounds: int,
    micro: int = 1,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, list[float]]:
    """Return the seconds per step of each contender for every round. A first round warms up and is not counted."""
    contenders = {name: Contender(name, depth, device, precision) for name in names}
    images, labels = (t.to(device) for t in data(tokens))
    images = images.bfloat16() if precision == "bf16" else images
    order, shuffle = list(names), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(rounds + 1):
        shuffle.shuffle(order)
        for name in order:
            seconds = contenders[name].step(images, labels, micro)
            if round_number:
                times[name].append(seconds)
    return times


def ratios(times: Mapping[str, list[float]], rows: Iterable[Sequence[Any]]) -> dict[str, dict[str, float]]:
    """Return the ratios of the rounds for the rows (label, numerator, denominator, ...) whose contenders both ran."""
    return {
        label: summary([a / b for a, b in zip(times[top], times[bottom], strict=True)])
        for label, top, bottom, *_ in rows
        if top in times and bottom in times
    }
