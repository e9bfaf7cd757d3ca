"""Measure the curvature of the training loss at the start of each cell, before any training.

Two numbers are computed on the same training examples for all methods, with respect to what the cell trains (the head
of a classifier stays as it starts):

    sharpness   the largest eigenvalue of the Hessian of the mean loss, by Lanczos
    first_rate  the learning rate at which the first step of Adam goes to the minimum of the quadratic approximation.
                That step has the direction of the gradient's signs s, so the rate is |g|_1 / (s' H s). For LoRA+ the
                signs are multiplied by its ratio of rates.

A product with the Hessian is a difference of two gradients, because not every layer has second derivatives. No trained
weights are needed, but the model and the data of the sweep are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor, nn

from analysis.diagnostics.bench import Bench, trial_config
from analysis.diagnostics.units import Unit, sweep_facts
from analysis.diagnostics.weights import BRIEF, confirmed_as_trained
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store
from randlora.methods.prompts.kinds import PREFIX
from randlora.methods.registry import get_method
from trainables.config import FULL_METHODS, LINEAR_PROBE, NO_TRAINING
from trainables.tasks.task import Task
from trainables.training.adapting import adapted

EXAMPLES = 128
"""Largest number of training examples, by default."""
TOLERANCE = 0.05
"""The relative accuracy of the eigenvalue at which Lanczos ends."""
_LANCZOS_VECTORS = 8
_LANCZOS_RESTARTS = 20
_POWER_STEPS = 3
"""Number of power iterations that find the length of the steps between two gradients."""
_RISE = 1e-3
"""The curvature times the squared length of such a step. So a step changes the loss by about half of this."""


def plan(store: Store, *, examples: float = EXAMPLES) -> list[Unit]:
    """Return a unit for each cell with a chosen learning rate, at the first seed of stage CONFIRM.

    Methods of prompt learning, zero-shot and linear probes are left out: they train no weight inside the model.

    Raises:
        StoreError: no such cell has been confirmed, or the sweep's specification is missing.
    """
    facts, methods = sweep_facts(store), store.stored().get("methods") or {}
    cells = {row["cell_id"]: row for row in store.table("cells").to_pylist()}
    capacities = {cell_id: json.loads(cell["capacities"] or "{}") for cell_id, cell in cells.items()}
    of_weights = [capacities[cell_id] for cell_id, cell in cells.items() if not _base(cell).startswith(PREFIX)]
    targets = next((list(names) for names in of_weights if names), [])  # all cells of a sweep have the same
    units = []
    first_rows = {row["cell_id"]: row for row in sorted(confirmed_as_trained(store), key=lambda row: -row["slot"])}
    for cell_id, cell in cells.items():
        row, base = first_rows.get(cell_id), _base(cell)
        if row is None or row["lr"] is None or base in (NO_TRAINING, LINEAR_PROBE) or base.startswith(PREFIX):
            continue
        if base == "full-targets" and not targets:  # no adapter of the sweep says which weights they are
            continue
        given = (methods.get(cell["method"]) or {}) | json.loads(row["hyperparameters"] or "{}")
        option_names = () if base in FULL_METHODS else get_method(base).options
        options = {name: value for name, value in given.items() if name in option_names}
        adapter = {"method": base, "capacities": capacities[cell_id], "options": options, "targets": targets}
        brief = {name: row[name] for name in BRIEF}
        settings = {"examples": examples, "lr": row["lr"]}
        units.append(Unit("curvature", (brief,), settings, facts | {"adapter": adapter}))
    if not units:
        raise StoreError(f"{store.path} has no confirmed cell of a method that trains weights of the model")
    return units


def _base(cell: Row) -> str:
    """Return the method of which a cell's method is a variant, or that method itself."""
    name: str = cell["base"] or cell["method"]
    return name


def rows(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return the row of one unit of `plan`. Arguments as in `analyze.compute`; `folder` is not read.

    Raises:
        StoreError: the gradient at the start is 0 or not finite.
    """
    first, adapter = unit.trials[0], unit.facts["adapter"]
    bench = Bench(unit.facts, first, cache)
    config = trial_config(unit.facts, first).model_copy(
        update={
            "method": adapter["method"],
            "capacities": tuple(adapter["capacities"].items()),
            "options": tuple(sorted(adapter["options"].items())),
            "targets": tuple(adapter["targets"]),
        }
    )
    examples = bench.examples(("train",), unit.settings["examples"])
    at_once = bench.at_once
    if config.contrastive:  # what is compared with each other in training is compared here
        part = config.train.micro_batch_size if config.train.negatives == "part" else None
        at_once = part or config.train.global_batch_size
    with adapted(bench.module, config, bench.loaded.tokenizer, None, bench.task) as trained:
        ratios = {} if trained.added is None else trained.added.rate_ratios()
        named = trained.parameters
        start = Curvature(bench.task, examples, list(named.values()), at_once, [ratios.get(n, 1.0) for n in named])
        size = float(start.gradient.abs().max())
        if not math.isfinite(size) or size == 0:
            raise StoreError(f"{unit.label}: the gradient at the start is {size:g}, so no step can be predicted")
        measured = {"sharpness": start.sharpness(), "first_rate": start.first_rate(), "products": start.products}
    cell_columns = {name: first[name] for name in ("method", "reference", "adapter_params")}
    return [unit.place | cell_columns | {"lr": unit.settings["lr"], "examples": len(examples)} | measured]


class Curvature:
    """The gradient of a trial's mean training loss at the start, and products of its Hessian with vectors.

    Args:
        task: the trial's task.
        examples: (n,) the training rows of the loss.
        parameters: what is differentiated, P numbers in all. They have their values again after every call.
        at_once: number of rows in one forward pass.
        ratios: each parameter's learning rate over the rate of the trial (LoRA+ trains B at a higher rate). Default: 1.

    Attributes:
        gradient: (P,) the gradient at the start, float32 on the CPU.
        products: number of products with the Hessian that were computed so far.
    """

    def __init__(
        self, task: Task, examples: Tensor, parameters: list[nn.Parameter], at_once: int, ratios: Sequence[float] = ()
    ) -> None:
        pairs = zip(parameters, ratios or [1.0] * len(parameters), strict=True)
        self._ratios = torch.cat([torch.full((p.numel(),), ratio) for p, ratio in pairs])
        self._task, self._parts, self._parameters = task, torch.split(examples, at_once), parameters
        self._start = [p.detach().clone() for p in parameters]
        self._weight = task.weight(examples)
        self.products = 0
        self.gradient = self._gradient_at(None)
        self._step = 1e-3
        self._direction = self.gradient / self.gradient.norm()
        for _ in range(_POWER_STEPS):
            image = self.product(self._direction)
            size = float(image.norm())
            if not math.isfinite(size) or size == 0:
                break
            self._step, self._direction = math.sqrt(_RISE / size), image / size

    def _gradient_at(self, shift: Tensor | None) -> Tensor:
        """Return the gradient (P,) at the start, or shifted by (P,) from it."""
        self._move(shift)
        for rows_of_part in self._parts:
            (self._task.loss_sum(rows_of_part, None) / self._weight).backward()  # type: ignore[no-untyped-call]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        whole = torch.cat([g.detach().float().reshape(-1).cpu() for g in gradients])
        self._move(None)
        return whole

    @torch.no_grad()
    def _move(self, shift: Tensor | None) -> None:
        """Set the parameters to the start, or to a point shifted by (P,) from it, without gradients."""
        at = 0
        for parameter, value in zip(self._parameters, self._start, strict=True):
            parameter.copy_(value)
            if shift is not None:
                parameter.add_(shift[at : at + value.numel()].view_as(value).to(value.device))
            at += value.numel()
            parameter.grad = None

    def product(self, direction: Tensor) -> Tensor:
        """Return the Hessian times a vector (P,) of length 1, from the gradients on both sides of the start."""
        self.products += 1
        shift = self._step * direction
        return (self._gradient_at(shift) - self._gradient_at(-shift)) / (2 * self._step)

    def sharpness(self) -> float | None:
        """Return the Hessian's largest eigenvalue; None if it was not found."""

        def times(vector: NDArray[np.float32]) -> NDArray[np.float32]:
            whole = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1), dtype=np.float32))
            length = float(whole.norm())
            image: NDArray[np.float32] = (length * self.product(whole / length)).numpy()
            return image

        size = len(self.gradient)
        if size <= _LANCZOS_VECTORS:
            matrix = np.stack([times(row) for row in np.eye(size, dtype=np.float32)]).astype(np.float64)
            return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
        try:
            (largest,) = eigsh(
                LinearOperator((size, size), matvec=times, dtype=np.float32),
                k=1,
                which="LA",
                v0=self._direction.numpy(),
                ncv=_LANCZOS_VECTORS,
                maxiter=_LANCZOS_RESTARTS,
                tol=TOLERANCE,
                return_eigenvectors=False,
            )
        except ArpackError:  # no convergence, or products that are not finite
            return None
        return float(largest) if math.isfinite(largest) else None

    def first_rate(self) -> float | None:
        """Return the rate at which Adam's first step reaches the minimum of the quadratic approximation.

        None if there is no minimum along this step, because the curvature is negative.
        """
        step = self._ratios * self.gradient.sign()
        length = float(step.norm())
        curvature = float(step.double() @ self.product(step / length).double()) * length
        return float(self.gradient.double() @ step.double()) / curvature if curvature > 0 else None
