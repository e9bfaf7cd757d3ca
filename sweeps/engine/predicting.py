"""Measures what predicts the learning rates of cells with `lr = "predicted"`, before the first trial.

Each cell, and LoRA's cell beside it, takes nine gradients of the training loss before any training, on
`IMAGES` images or `TEXTS` texts of the training split.
"""

from __future__ import annotations

from dataclasses import replace

from analysis.diagnostics.units import Execute, Unit, facts_of
from analysis.errors import StoreError
from randlora.methods.registry import get_method
from sweeps.errors import Problem, SpecError
from sweeps.plan.plan import Plan
from sweeps.plan.predicted import lora_beside, predicted_centre, with_centres
from sweeps.search.stages import CellState
from sweeps.spec.cell import Cell
from sweeps.spec.search import PREDICTED
from sweeps.spec.sections import TUNE_SEED
from trainables.data.text.registry import text_loader

IMAGES = 128
TEXTS = 32


def predict(plan: Plan, execute: Execute) -> Plan:
    """Return the plan with the centres of all learning-rate ranges. Cells whose centre is known are not measured.

    Args:
        plan: the plan.
        execute: runs the measurements (`sweeps.engine.analyze.executor`).

    Raises:
        SpecError: nothing can be predicted for a cell. There is one problem for each.
        TrialError, TrainablesError: the data or the model can't be read.
    """
    pairs = [(cell, lora) for cell in plan.unpredicted if (lora := lora_beside(cell, plan.cells)) is not None]
    if not pairs:
        return plan
    measured_cells = {cell.cell_id: cell for pair in pairs for cell in pair}
    units = [_unit(cell, plan) for cell in measured_cells.values()]
    first_rates: dict[str, float | None] = {}
    try:
        for unit, rows in execute(plan.spec.folder.absolute(), units):
            first_rates[unit.trials[0]["trial_id"]] = rows[0]["first_rate"]
    except StoreError as error:  # a gradient of 0, or one that is not finite
        raise SpecError([Problem("methods", PREDICTED, f"{error}; give a number as lr")]) from error
    problems = [
        Problem(f"methods.{cell.method}.lr", None if cell.method == "lora" else PREDICTED, _NO_MINIMUM + cell.label)
        for cell in measured_cells.values()
        if first_rates[cell.cell_id] is None
    ]
    if problems:
        raise SpecError(problems)
    centres = {}
    for cell, lora in pairs:
        own, loras = first_rates[cell.cell_id], first_rates[lora.cell_id]
        assert own is not None and loras is not None and lora.lr_centre is not None
        centres[cell.cell_id] = predicted_centre(lora.lr_centre, own, loras)
    return replace(plan, cells=with_centres(plan.cells, centres, plan.spec))


_NO_MINIMUM = (
    "nothing can be predicted, because the loss has no lowest point along Adam's first step; give numbers instead of "
    "predictions beside "
)


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
    examples = IMAGES if text_loader(cell.dataset) is None else TEXTS
    settings = {"examples": examples, "lr": None, "sharpness": False}
    return Unit("curvature", (brief,), settings, facts_of(spec.identity()) | {"adapter": adapter})
