"""Measures what predicts the learning rates of cells with `lr = "predicted"`, before the first trial.

Each cell, and LoRA's cell beside it, takes nine gradients of the training loss before any training, on
`IMAGES` images or `TEXTS` texts of the training split. They are computed in float32, whatever the sweep trains in.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from analysis.diagnostics.units import Execute, Unit, facts_of
from analysis.errors import StoreError
from randlora.methods.registry import get_method
from sweeps.backends.memory import free_memory, out_of_memory
from sweeps.engine.analyze import DiagnosticError
from sweeps.errors import Problem, SpecError, reason
from sweeps.plan.plan import Plan
from sweeps.plan.predicted import lora_beside, predicted_centre, with_centres
from sweeps.search.stages import CellState
from sweeps.spec.cell import Cell
from sweeps.spec.sections import TUNE_SEED
from trainables.data.text.registry import text_loader
from trainables.errors import TrialError

IMAGES = 128
TEXTS = 32


def predict(plan: Plan, execute: Execute) -> Plan:
    """Predict learning rates where the sweep file asks for it, and return the plan with ranges around them.

    A cell whose predicted rate is in the results folder already is not measured again.

    Args:
        plan: the plan.
        execute: runs the measurements (`sweeps.engine.analyze.executor`).

    Raises:
        SpecError: a cell cannot be measured, or nothing can be predicted from it. The error names the cells.
        TrainablesError: the data or the model can't be read.
    """
    pairs = [(cell, lora) for cell in plan.unpredicted if (lora := lora_beside(cell, plan.cells)) is not None]
    measured_cells = {cell.cell_id: cell for pair in pairs for cell in pair}
    first_rates = _measured([_unit(cell, plan) for cell in measured_cells.values()], plan.spec.folder, execute)
    problems = [
        _problem(cell, "the loss has no lowest point along Adam's first step")
        for cell_id, cell in measured_cells.items()
        if first_rates[cell_id] is None
    ]
    if problems:
        raise SpecError(problems)
    centres = {}
    for cell, lora in pairs:
        own, loras = first_rates[cell.cell_id], first_rates[lora.cell_id]
        assert own is not None and loras is not None and lora.lr_centre is not None
        centres[cell.cell_id] = predicted_centre(lora.lr_centre, own, loras)
    return replace(plan, cells=with_centres(plan.cells, centres, plan.spec))


def _measured(units: list[Unit], folder: Path, execute: Execute) -> dict[str, float | None]:
    """Return the rate of the lowest point for each cell id; None if there is no such point."""
    rates: dict[str, float | None] = {}
    try:
        for unit, rows in execute(folder.absolute(), units):
            rates[unit.trials[0]["trial_id"]] = rows[0]["first_rate"]
    except (StoreError, TrialError, DiagnosticError) as error:
        raise SpecError([Problem("methods", None, f"{_WHY} {reason(error)}; {_REMEDY}")]) from error
    except (RuntimeError, MemoryError, ImportError) as error:
        if not out_of_memory(error):
            raise
        rule = f"{_WHY} memory ran out; set a smaller train.micro_batch_size, or {_REMEDY}"
        raise SpecError([Problem("methods", None, rule)]) from error
    finally:
        free_memory()  # this process may be a driver, which would keep it as long as the sweep runs
    return rates


_WHY = "no learning rate can be predicted, because"
_REMEDY = 'give numbers in place of lr = "predicted"'


def _problem(cell: Cell, why: str) -> Problem:
    return Problem(f"methods.{cell.method}.lr", None, f"{_WHY} {why} for {cell.label}; {_REMEDY}")


def _unit(cell: Cell, plan: Plan) -> Unit:
    """Return the measurement of one cell. Its id stands where a trial's would be."""
    spec = plan.spec
    state = CellState(cell, spec)
    data_seed, init_seed, basis_seed = state.trained_seeds(state.seeds(TUNE_SEED))
    names = get_method(cell.base).options
    options = {name: value for name, value in (cell.options + cell.published) if name in names}
    adapter = {
        "method": cell.base,
        "capacities": cell.capacities,
        "options": options,
        "targets": list(cell.targets),
    }
    brief = {
        "sweep": spec.name,
        "trial_id": cell.cell_id,
        "model": cell.model,
        "adapt": cell.adapt,
        "dataset": cell.dataset,
        "train_size": str(cell.train_size),
        "method": cell.method,
        "reference": cell.reference,
        "adapter_params": cell.count,
        "data_seed": data_seed,
        "init_seed": init_seed,
        "basis_seed": basis_seed,
    }
    train = cell.settings(spec.train)
    settings = {
        "examples": IMAGES if text_loader(cell.dataset) is None else TEXTS,
        "at_once": train.micro_batch_size,
        "lr": None,
        "sharpness": False,
    }
    # differences of gradients would be lost in the rounding of bf16, and of packed weights
    facts = {"train": train.model_dump(mode="json") | {"base_weights": "fp32"}, "adapter": adapter}
    return Unit("curvature", (brief,), settings, facts_of(spec.identity()) | facts)
