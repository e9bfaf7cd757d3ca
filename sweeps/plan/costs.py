"""Computes the costs of a cell on its base model. They are currencies for which the budget solver needs a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from analysis.sheets.terminal import safe_console
from randlora.errors import AdapterError
from randlora.methods.method import Method
from sweeps.budget.currencies import DOF, PARAMETERS, Counted, Currency, Shapes, UnknownCountError
from sweeps.errors import Problem
from sweeps.plan.base_model import BaseModelInfo
from sweeps.plan.split_sizes import class_count
from sweeps.spec.batch_sizes import with_largest_batch
from sweeps.spec.cell import Cell
from sweeps.spec.spec import SweepSpec
from trainables.config import TrainSettings, TrialConfig
from trainables.data.registry import classes_of, on_disk

if TYPE_CHECKING:
    from trainables.training.costs import CostModel

COST_COLUMNS = ("step_memory_bytes", "step_flops", "forward_flops", "saved_bytes")
"""The costs of a method, as fields of a `Cell`."""
CLASSES = 10
"""The number of outputs of a head if the number of classes is unknown."""


@dataclass(frozen=True, eq=False)
class ModelCosts:
    """The costs of methods on a base model, at the (largest) batch and the precision of `train`."""

    model: CostModel
    id: str
    adapt: str
    targets: tuple[str, ...]
    train: TrainSettings

    def at(self, micro_batch_size: int | None) -> ModelCosts:
        """Return the costs of a method with its own micro-batch size; None for that of `train`."""
        if micro_batch_size is None:
            return self
        return replace(self, train=self.train.model_copy(update={"micro_batch_size": micro_batch_size}))

    def trial(self, method: str, capacities: Mapping[str, int], options: Mapping[str, Any]) -> TrialConfig:
        """Return a trial configuration of a method, to compute its costs. They do not depend on its data or rate."""
        return TrialConfig.model_validate(
            {
                "stage": "CONFIRM",
                "cell_id": "",
                "model": self.id,
                "adapt": self.adapt,
                "targets": self.targets,
                "dataset": "",
                "train_size": 1.0,
                "method": method,
                "capacities": tuple(capacities.items()),
                "options": tuple(sorted(options.items())),
                "lr": 1.0,
                "data_seed": 0,
                "init_seed": 0,
                "basis_seed": 0,
                "train": self.train,
            }
        )


@dataclass(frozen=True, eq=False)
class OnModel:
    """A currency that needs a model: memory, operations, or bytes of a saved adapter."""

    name: Counted
    noun: str
    costs: ModelCosts

    def total(self, entry: Method, shapes: Shapes, capacities: Mapping[str, int], options: Mapping[str, Any]) -> int:
        """Return the cost of a method at these capacities.

        Raises:
            UnknownCountError: the cost cannot be found.
        """
        from trainables.training.costs import UncountableError

        trial = self.costs.trial(entry.name, capacities, options)
        try:
            if self.name == "bytes":
                return self.costs.model.saved_bytes(trial)
            step = self.costs.model.step(trial)
            return step.memory_bytes if self.name == "memory" else step.flops
        except (UncountableError, AdapterError) as error:
            raise UnknownCountError(str(error)) from error


_NOUNS: dict[str, str] = {
    "memory": "memory of a training step, in bytes,",
    "flops": "number of operations for an image or token",
    "bytes": "size of a saved adapter, in bytes,",
}


def model_costs(spec: SweepSpec, model: BaseModelInfo, targets: Sequence[str]) -> dict[str, ModelCosts]:
    """Return the costs of methods on the sweep's model, by data set. Data sets with as many classes share theirs.

    Raises:
        ModelError: the model's image processor can't be read.
    """
    train, side = with_largest_batch(spec), spec.model.image_size
    classes = {name: _classes(name) for name in spec.data.datasets}
    costs = {
        count: costs_on(model, spec.model.adapt or "both", targets, train, classes=count, side=side)
        for count in set(classes.values())
    }
    return {name: costs[count] for name, count in classes.items()}


def costs_on(
    model: BaseModelInfo,
    adapt: str,
    targets: Sequence[str],
    train: TrainSettings,
    *,
    classes: int = CLASSES,
    side: int | None = None,
) -> ModelCosts:
    """Return the costs of methods on a model.

    Args:
        model: the base model.
        adapt: the part of a CLIP that is adapted.
        targets: the weights that are adapted, by the ends of their names.
        train: the batch and the precision.
        classes: the number of classes of a new head.
        side: the pixels on each side of the images of a transformers model; None for its own. A CLIP's are fixed.

    Raises:
        ModelError: the model's image processor can't be read.
    """
    from trainables.models.loading import input_side
    from trainables.training.costs import CostModel

    if side is None or model.kind != "hf-vision":
        side = input_side(model.id, model.module)
    costs = CostModel(model.module, model.kind, side=side, classes=classes)
    return ModelCosts(costs, model.id, adapt, tuple(targets), train)


def _classes(dataset: str) -> int:
    """Return the number of classes of a data set; `CLASSES` if it is not known without a download."""
    return classes_of(dataset) or (class_count(dataset) if on_disk(dataset) else 0) or CLASSES


def currencies(spec: SweepSpec, model: BaseModelInfo, targets: Sequence[str]) -> dict[str, Currency]:
    """Return what the sweep's budgets limit, by data set. Data sets on which methods cost the same share theirs."""
    name = spec.budgets.count
    if name in ("parameters", "dof"):
        return dict.fromkeys(spec.data.datasets, PARAMETERS if name == "parameters" else DOF)
    costs = model_costs(spec, model, targets)
    on_model = {each: OnModel(name, _NOUNS[name], each) for each in costs.values()}
    return {dataset: on_model[each] for dataset, each in costs.items()}


def own_currency(currency: Currency, micro_batch_size: int | None) -> Currency:
    """Return a currency that counts a method with its own micro-batch size; None for that of the sweep."""
    return replace(currency, costs=currency.costs.at(micro_batch_size)) if isinstance(currency, OnModel) else currency


def with_costs(cell: Cell, costs: ModelCosts) -> Cell:
    """Return the cell with its costs, as far as they can be found. An infeasible cell is returned as it is."""
    if not cell.feasible or cell.lr_centre is None:
        return cell
    costs = costs.at(cell.micro_batch_size)
    return replace(cell, **known_costs(costs, cell.base, cell.capacities, dict(cell.options)))


def known_costs(
    costs: ModelCosts, method: str, capacities: Mapping[str, int], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the costs of a method by `COST_COLUMNS`; None for those that cannot be found."""
    from trainables.training.costs import UncountableError

    found: dict[str, Any] = dict.fromkeys(COST_COLUMNS)
    trial = costs.trial(method, capacities, options)
    with contextlib.suppress(UncountableError, AdapterError):
        step = costs.model.step(trial)
        found |= {
            "step_memory_bytes": step.memory_bytes,
            "step_flops": step.flops,
            "forward_flops": step.forward_flops,
        }
    with contextlib.suppress(UncountableError, AdapterError):
        found["saved_bytes"] = costs.model.saved_bytes(trial)
    return found


@contextlib.contextmanager
def computing_costs(*, shown: bool = True) -> Iterator[None]:
    """Show a status line in the terminal while costs are computed, which takes long for a large model."""
    console = safe_console(stderr=True)
    if not shown or not console.is_terminal:
        yield
        return
    with console.status("computing what a training step of each method costs"):
        yield


def memory_problems(spec: SweepSpec, model: BaseModelInfo) -> list[Problem]:
    """Return a problem for each budget of memory that is smaller than the frozen base model alone.

    If there are budgets of memory, two settings are problems too: `precision = "auto"`, because memory then depends on
    the machine, and `hold_weights`, because the predicted memory leaves out what it keeps.
    """
    from trainables.models.base_weights import held_bytes

    problems = []
    if spec.budgets.count == "memory" and spec.train.precision == "auto":
        rule = "depends on the machine, and so would budgets of memory; write the precision"
        problems.append(Problem("train.precision", "auto", rule, 'precision = "bf16" or precision = "fp32"'))
    if spec.budgets.count == "memory" and spec.train.hold_weights:
        rule = "takes memory that budgets of memory do not count; leave it out"
        problems.append(Problem("train.hold_weights", True, rule, "false"))
    if spec.budgets.memory is None:
        return problems
    base = held_bytes(model.module, spec.train.base_weights)
    rule = f"is below the base model's own weights, {base / 2**20:,.0f} MiB"
    sizes = zip(spec.budgets.memory, spec.budgets.amounts(), strict=True)
    return problems + [
        Problem("budgets.memory", text, rule, f"{-(-base // 2**20) + 1} MiB") for text, size in sizes if size <= base
    ]
