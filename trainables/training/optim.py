"""AdamW, the learning-rate schedule, and gradients that are summed over workers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn

from trainables.config import TrainSettings
from trainables.models.sharded import gathered, split_like


def lr_factor(step: int, total: int, settings: TrainSettings) -> float:
    """Return the share of the peak rate at `step` of 0..total-1: a linear warm-up, then half a cosine (or a line) to
    the lowest."""
    share, steps = settings.warmup_fraction, settings.warmup_steps
    warm = int(share * total) if steps is None else min(steps, total - 1)
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return 1.0
    progress = (step - warm) / max(1, total - warm)
    least = settings.min_lr_ratio
    if settings.schedule == "linear":
        return least + (1.0 - least) * (1.0 - progress)
    return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters by name that share a peak learning rate and a weight decay."""

    parameters: Mapping[str, nn.Parameter]
    lr: float
    weight_decay: float


def make_adamw(groups: Sequence[Group]) -> torch.optim.AdamW:
    """Return AdamW with torch's default betas and epsilon. The update is fused if the device and type allow it."""
    parameters = [p for group in groups for p in group.parameters.values()]
    fusable = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(
        [
            {"params": list(g.parameters.values()), "lr": g.lr, "peak_lr": g.lr, "weight_decay": g.weight_decay}
            for g in groups
        ],
        fused=fusable or None,
        foreach=None if fusable else True,
    )


def add_over_workers(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients over the workers, in one message. A worker without images in this batch adds zeros.

    A parameter that has no gradient on any worker gets none, so that AdamW skips it as on one worker.
    """
    missing = [k for k, p in enumerate(parameters) if p.grad is None]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    used = torch.ones(len(grads), device=grads[0].device)
    for k in missing:
        used[k] = 0.0
    flat = torch.cat([*(g.reshape(-1) for g in grads), used])
    torch.distributed.all_reduce(flat)
    *parts, used = torch.split(flat, [*(g.numel() for g in grads), len(grads)])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    if missing:  # reading a number from a device makes it wait
        counts = used.tolist()
        for k in missing:
            if counts[k] == 0.0:
                parameters[k].grad = None


@torch.no_grad()
def take_first_workers(tensors: Iterable[Tensor]) -> None:
    """Give all workers rank 0's values. What is made from the base weights may differ between unlike machines."""
    for tensor in tensors:
        values = tensor.contiguous()
        torch.distributed.broadcast(values, src=0)
        tensor.copy_(values)


def state_tensors(optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return trainables and AdamW's moments with flat names: `p.NAME`, `m.NAME`, `v.NAME`, `t.NAME` (step count).

    If weights are split over workers, all must call this, and rank 0 gets them whole.
    """
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"p.{name}"] = parameter.detach()
        state = optimizer.state.get(parameter, {})
        if state:  # a parameter that never had a gradient has no state
            moments = {f"m.{name}": state["exp_avg"], f"v.{name}": state["exp_avg_sq"]}
            tensors |= moments | {f"t.{name}": state["step"]}
    return gathered(tensors)


@torch.no_grad()
def load_state_tensors(
    optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Restore what `state_tensors` returned. Raises KeyError or RuntimeError if names or shapes differ."""
    for name, parameter in parameters.items():
        parameter.copy_(split_like(tensors[f"p.{name}"], parameter))
        if f"m.{name}" not in tensors:
            continue
        step = tensors[f"t.{name}"]
        optimizer.state[parameter] = {
            "step": step.to(parameter.device) if parameter.device.type == "cuda" else step.clone(),
            "exp_avg": split_like(tensors[f"m.{name}"].to(parameter.device), parameter).clone(),
            "exp_avg_sq": split_like(tensors[f"v.{name}"].to(parameter.device), parameter).clone(),
        }
