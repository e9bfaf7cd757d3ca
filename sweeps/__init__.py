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
    """Run the missing trials of a plan, and open its results. Finished trials are never repeated.

    Args:
        plan: the plan, such as `Plan.from_spec(SweepSpec.load("sweep.toml"))`.
        backend: what runs the trials: "ray", "inline" (one after another in this process), a name that another package
            registers, or a function that opens a backend.
        address: a Ray cluster to join ("auto" or "HOST:PORT"); None for a local session.
        restart: whether to open the backend again if it is lost.
        progress: True for a live display, False for none, "json" for JSON lines on standard error, or your own object.
        retry_failed: whether to try trials again that failed in earlier runs.
        observers: objects that are told what happens.
        upload: a URI or location that gets a copy of the results; None for no copy.
        estimate: the expected cost (`Estimate.as_dict()`), which the journal keeps for a later comparison.

    Returns:
        The results folder as an `analysis.Store`.

    Raises:
        ValueError: the results folder belongs to another sweep or is in use, or the cluster lacks resources
            (`sweeps.engine.run.run` lists all errors).
    """
    from analysis import open_store
    from sweeps.engine.run import run as run_engine

    summary = run_engine(
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
    return open_store(summary.folder)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
