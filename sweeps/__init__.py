"""Budget-matched sweeps over parameter-efficient fine-tuning methods, on Ray.

from sweeps import Plan, SweepSpec, run, solve

plan = Plan.from_spec(SweepSpec.load("examples/quickstart.toml"))
plan.table()          # cells, solved ranks, counts, residuals: a pyarrow.Table
store = run(plan)     # an analysis.Store
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from analysis import Store
    from analysis.store.remote import Location
    from sweeps.backends.backend import OpenBackend
    from sweeps.budget.solver import solve
    from sweeps.errors import Problem, SpecError
    from sweeps.plan.plan import Plan
    from sweeps.spec.cell import Cell
    from sweeps.spec.solution import Infeasible, Solution
    from sweeps.spec.spec import SweepSpec
    from sweeps.watch.displays import Progress
    from sweeps.watch.observers import Observer

__all__ = ["Cell", "Infeasible", "Plan", "Problem", "Solution", "SpecError", "SweepSpec", "run", "solve"]

_HOMES = {
    "Cell": "sweeps.spec.cell",
    "Infeasible": "sweeps.spec.solution",
    "Plan": "sweeps.plan.plan",
    "Problem": "sweeps.errors",
    "Solution": "sweeps.spec.solution",
    "SpecError": "sweeps.errors",
    "SweepSpec": "sweeps.spec.spec",
    "solve": "sweeps.budget.solver",
}


def run(
    plan: Plan,
    *,
    backend: str | OpenBackend = "ray",
    address: str | None = None,
    restart: bool = True,
    progress: bool | Literal["json"] | Progress = True,
    retry_failed: bool = False,
    observers: Sequence[Observer] = (),
    upload: str | Location | None = None,
    estimate: Mapping[str, Any] | None = None,
) -> Store:
    """Run a plan, or what is missing of it, and open its results: `sweeps.engine.run.run`, which says what each means.

    Raises:
        ValueError: a results folder of another sweep, one in use, or resources that the cluster lacks.
    """
    from analysis import open_store
    from sweeps.engine.run import run as run_engine

    made = run_engine(
        plan,
        backend=backend,
        address=address,
        restart=restart,
        progress=progress,
        retry_failed=retry_failed,
        observers=observers,
        upload=upload,
        estimate=estimate,
    )
    return open_store(made.folder)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
