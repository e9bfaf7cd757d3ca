"""Computes the units of a diagnostic: in Ray tasks, one for each unit, or in this process, one after another."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from analysis.format import Row
from analysis.sheets.terminal import safe_console
from sweeps.backends.resources import ResourceError
from sweeps.backends.signals import stop_on_signals
from sweeps.errors import Problem, SpecError, reason, unknown
from sweeps.spec.paths import absolute, with_absolute_paths
from sweeps.watch.displays import Silent

if TYPE_CHECKING:
    from analysis.diagnostics.units import Execute, Unit

RETRIES = 2
"""How often a task starts again after its process died."""
ON_CPU = ("spectrum", "approximation", "full_rank", "intruders")
"""Tables whose tasks take no GPU: they are linear algebra in double precision."""


class DiagnosticError(RuntimeError):
    """Raised if a task ended without an answer in all attempts. Computed rows stay, and the same command goes on."""


_warm: dict[str, Any] = {}  # cache of a Ray worker: the model and its data, from task to task


def executor(backend: str, address: str | None, *, cpus: float, progress: bool) -> Execute:
    """Return the function that runs units in `diagnostics.analyze`.

    Args:
        backend: "ray" (`ray_tasks`), or "inline": in this process, without Ray.
        address: the Ray cluster to join; None for a local session.
        cpus: CPUs of a task.
        progress: whether to show a bar on standard error.

    Raises:
        SpecError: another backend, or an address to join with "inline".
    """
    if backend == "ray":
        return ray_tasks(address, cpus=cpus, progress=progress)
    if backend != "inline":
        raise SpecError([unknown("--backend", backend, "backend", ("ray", "inline"))])
    if address is not None:
        rule = "the backend inline computes in this process and joins no cluster"
        raise SpecError([Problem("--address", address, rule, "--backend ray")])

    def execute(folder: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
        from analysis.diagnostics.analyze import in_process

        done = in_process(folder, units)
        yield from _shown(done, units) if progress else done

    return execute


def ray_tasks(address: str | None = None, *, cpus: float = 1.0, progress: bool = True) -> Execute:
    """Return a function that runs units in `diagnostics.analyze`, each in a task of Ray.

    Args:
        address: the cluster to join. None starts a local session, or uses the one that this process has.
        cpus: CPUs of a task.
        progress: whether to show a bar on standard error.
    """

    def execute(folder: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
        from sweeps.backends.ray.cluster.session import Session

        with Session(address, Silent().note) as session, stop_on_signals(None), session.convert_lost_errors():
            session.connect()
            if address is not None:
                from sweeps.backends.ray.cluster.nodes import check_nodes

                check_nodes(folder.absolute() / "work" / "ray")
            # closed before the session ends, because closing cancels tasks
            with closing(run_units(folder.absolute(), units, cpus)) as done:
                yield from _shown(done, units) if progress else done

    return execute


def run_units(folder: Path, units: Sequence[Unit], cpus: float) -> Generator[tuple[Unit, list[Row]]]:
    """Submit all units, and yield each with its rows when its task ends. Cancel what still runs if the caller stops.

    Raises:
        ResourceError: no node has the CPUs that a task takes.
        StoreError, TrialError, TrainablesError: raised by a unit.
        DiagnosticError: Ray lost a task.
    """
    import ray

    gpu = ray.cluster_resources().get("GPU", 0.0) >= 1
    any_on_cpu = not gpu or any(unit.table in ON_CPU for unit in units)
    any_on_gpu = gpu and any(unit.table not in ON_CPU for unit in units)
    for needed, kind in ((any_on_cpu, ""), (any_on_gpu, " with a GPU")):
        have = [n["Resources"] for n in ray.nodes() if n["Alive"] and (not kind or n["Resources"].get("GPU", 0.0) >= 1)]
        most = max((each.get("CPU", 0.0) for each in have), default=0.0)
        if needed and cpus > most:
            raise ResourceError([Problem("--cpus", cpus, f"the largest machine{kind} has {most:g}", f"{most:g}")])
    task = ray.remote(num_cpus=cpus, max_retries=RETRIES)(_compute)
    on_gpu = task.options(num_gpus=1) if gpu else task
    waiting = {(task if unit.table in ON_CPU else on_gpu).remote(folder, _anchored(unit)): unit for unit in units}
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            unit = waiting.pop(done)
            try:
                rows: list[Row] = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None
            except ray.exceptions.RayError as error:
                raise DiagnosticError(_lost(unit, reason(error))) from error
            yield unit, [row | unit.place for row in rows]
    finally:
        for task_left in waiting:
            ray.cancel(task_left, force=True)


def _lost(unit: Unit, why: str) -> str:
    """Return the message for a task that Ray lost: why, and what to do."""
    less = "fewer --examples, or " if "examples" in unit.settings else ""
    return (
        f"Ray lost the task of {unit.label}: {why}; if memory ran out, give {less}more --cpus, so that fewer tasks run "
        "at a time. Computed rows stay, and the same command goes on"
    )


def _anchored(unit: Unit) -> Unit:
    """Return the unit with absolute paths in its trials' configurations, and in `facts["data"]` (image retention)."""
    facts = unit.facts | ({"data": absolute(unit.facts["data"])} if "data" in unit.facts else {})
    return replace(unit, trials=tuple(with_absolute_paths(trial) for trial in unit.trials), facts=facts)


def _compute(folder: Path, unit: Unit) -> list[Row]:
    from analysis.diagnostics.analyze import compute

    return compute(folder, unit, _warm)


def _shown(done: Iterator[tuple[Unit, list[Row]]], units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
    """Yield the same items, and show a bar on standard error (in a log, one line at the end)."""
    console = safe_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        line = bar.add_task(units[0].table, total=len(units))
        for unit, rows in done:
            yield unit, rows
            bar.update(line, advance=1, description=unit.table)
