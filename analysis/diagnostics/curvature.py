"""Measure the curvature of the training loss at the start of each cell, before any training.

Two numbers are computed on the same training examples for all methods, with respect to what the cell trains (the head
of a classifier stays as it starts):

    sharpness   the largest eigenvalue of the Hessian of the mean loss, by Lanczos
    first_rate  the learning rate at which the first step of Adam goes to the minimum of the quadratic approximation.
                That step has the direction of the gradient's signs s, so the rate is |g|_1 / (s' H s).

A product with the Hessian is a difference of two gradients, because not every layer has second derivatives. No trained
weights are needed, but the model and the data of the sweep are.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
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
from trainables.training.adapting import adapted

EXAMPLES = 128
"""Largest number of training examples, by default."""
TOLERANCE = 0.05
"""The relative accuracy of the eigenvalue at which Lanczos ends."""
_KEPT = 8
"""Number of Lanczos vectors that are kept."""
_MOST = 20
"""Largest number of restarts of Lanczos."""
_POWER_STEPS = 3
"""Number of power iterations that find the length of the steps between two gradients."""
_RISE = 1e-3
"""Such a step changes the loss by half of this, along the direction of the largest curvature."""


def plan(store: Store, *, examples: float = EXAMPLES) -> list[Unit]:
    """Return a unit for each cell with a chosen learning rate, at the first seed of stage CONFIRM.

    Prompts are left out, and what trains a head alone.

    Raises:
        StoreError: no such cell has been confirmed, or the sweep's specification is missing.
    """
    facts, methods = sweep_facts(store), store.stored().get("methods") or {}
    cells = {row["cell_id"]: row for row in store.table("cells").to_pylist()}
    units = []
    first_rows = {row["cell_id"]: row for row in sorted(confirmed_as_trained(store), key=lambda r: -r["slot"])}
    for cell_id, cell in cells.items():
        row, base = first_rows.get(cell_id), cell["base"] or cell["method"]
        if row is None or row["lr"] is None or base in (NO_TRAINING, LINEAR_PROBE) or base.startswith(PREFIX):
            continue
        given = (methods.get(cell["method"]) or {}) | json.loads(row["hyperparameters"] or "{}")
        known = () if base in FULL_METHODS else get_method(base).options
        options = {name: value for name, value in given.items() if name in known}
        of_cell = {"method": base, "capacities": json.loads(cell["capacities"] or "{}"), "options": options}
        brief = {name: row[name] for name in BRIEF}
        settings = {"examples": examples, "lr": row["lr"]}
        units.append(Unit("curvature", (brief,), settings, facts | {"cell": of_cell}))
    if not units:
        raise StoreError(f"{store.path} has no confirmed cell of a method that trains weights of the model")
    return units


def rows(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return the row of one unit of `plan`. Arguments as in `analyze.compute`; `folder` is not read.

    Raises:
        StoreError: the loss has no gradient at the start.
    """
    first, of_cell = unit.trials[0], unit.facts["cell"]
    bench = Bench(unit.facts, first, cache)
    config = trial_config(unit.facts, first).model_copy(
        update={
            "method": of_cell["method"],
            "capacities": tuple(of_cell["capacities"].items()),
            "options": tuple(sorted(of_cell["options"].items())),
            "targets": tuple(of_cell["capacities"]),
        }
    )
    examples = bench.examples(("train",), unit.settings["examples"])
    with adapted(bench.module, config, bench.loaded.tokenizer, None, bench.task) as trained:
        start = Curvature(bench, examples, list(trained.parameters.values()))
        gradient = start.gradient()
        if not float(gradient.abs().max()) > 0:
            raise StoreError(f"{unit.label}: the gradient at the start is 0, so no step can be predicted")
        sharpness, products = start.sharpness(gradient)
        found = {"sharpness": sharpness, "first_rate": start.first_rate(gradient), "products": products}
    named = {name: first[name] for name in ("method", "reference", "adapter_params")}
    return [unit.place | named | {"lr": unit.settings["lr"], "examples": len(examples)} | found]


class Curvature:
    """Gradients of a trial's mean training loss, and products of its Hessian with vectors, at the present parameters.

    Args:
        bench: the trial.
        examples: (n,) the training rows of the loss.
        parameters: what is differentiated, P numbers in all.
    """

    def __init__(self, bench: Bench, examples: Tensor, parameters: list[nn.Parameter]) -> None:
        self._bench, self._examples, self._parameters = bench, examples, parameters
        self._start = [p.detach().clone() for p in parameters]
        self._weight = bench.task.weight(examples)
        self._step = 1e-3

    def gradient(self, shift: Tensor | None = None) -> Tensor:
        """Return the gradient (P,), float32 on the CPU, at the start or shifted by (P,) from it."""
        with torch.no_grad():
            at = 0
            for parameter, value in zip(self._parameters, self._start, strict=True):
                parameter.copy_(value)
                if shift is not None:
                    parameter.add_(shift[at : at + value.numel()].view_as(value).to(value.device))
                at += value.numel()
                parameter.grad = None
        for rows_of_part in torch.split(self._examples, self._bench.at_once):
            (self._bench.task.loss_sum(rows_of_part, None) / self._weight).backward()  # type: ignore[no-untyped-call]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        return torch.cat([g.detach().float().reshape(-1).cpu() for g in gradients])

    def product(self, direction: Tensor) -> Tensor:
        """Return the Hessian times a vector (P,) of length 1, from the gradients on both sides of the start."""
        shift = self._step * direction
        return (self.gradient(shift) - self.gradient(-shift)) / (2 * self._step)

    def sharpness(self, gradient: Tensor) -> tuple[float | None, int]:
        """Return the Hessian's largest eigenvalue (None if it was not found), and the number of products computed.

        Args:
            gradient: (P,) the gradient at the start, from which the search begins.
        """
        direction = gradient / gradient.norm()
        for _ in range(_POWER_STEPS):
            image = self.product(direction)
            size = float(image.norm())
            if not size > 0:
                return 0.0, _POWER_STEPS
            self._step, direction = math.sqrt(_RISE / size), image / size
        count = _POWER_STEPS

        def times(vector: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal count
            count += 1
            found = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1), dtype=np.float32))
            length = float(found.norm())
            image: NDArray[np.float32] = (length * self.product(found / length)).numpy()
            return image

        size = len(gradient)
        if size <= _KEPT:
            columns = [times(np.eye(size, dtype=np.float32)[k]) for k in range(size)]
            matrix = np.stack(columns).astype(np.float64)
            return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]), count
        hessian = LinearOperator((size, size), matvec=times, dtype=np.float32)
        try:
            (largest,) = eigsh(
                hessian,
                k=1,
                which="LA",
                v0=direction.numpy(),
                ncv=_KEPT,
                maxiter=_MOST,
                tol=TOLERANCE,
                return_eigenvectors=False,
            )
        except ArpackNoConvergence:
            return None, count
        return float(largest), count

    def first_rate(self, gradient: Tensor) -> float | None:
        """Return the rate at which Adam's first step reaches the quadratic minimum; None if the loss bends down there.

        Args:
            gradient: (P,) the gradient at the start.
        """
        signs = gradient.sign()
        length = float(signs.norm())
        bend = float(signs.double() @ self.product(signs / length).double()) * length
        return float(gradient.double().abs().sum()) / bend if bend > 0 else None
