"""Who computes the units of a diagnostic: Ray tasks, one for each unit, or this process, one unit after another."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from analysis.format import Row
from analysis.tables.terminal import safe_console
from sweeps.backends.resources import ResourceError
from sweeps.backends.signals import signals
from sweeps.errors import Problem, SpecError, reason, unknown
from sweeps.spec.paths import anchored
from sweeps.watch.displays import Silent

if TYPE_CHECKING:
    from analysis.diagnostics.units import Execute, Unit

RETRIES = 2
"""How often a task starts again after its process died."""
ON_CPU = ("spectrum", "approximation", "full_rank", "intruders")
"""Tables whose tasks take no GPU: they are linear algebra in double precision."""


class DiagnosticError(RuntimeError):
    """A task ended without an answer, again and again. The rows of others stay; the same command goes on."""


_warm: dict[str, Any] = {}  # of a Ray worker: the model and its data, from task to task


def executor(backend: str, address: str | None, *, cpus: float, progress: bool) -> Execute:
    """Return who runs units in `diagnostics.analyze`.

    Args:
        backend: "ray" (`ray_tasks`, which says what the others mean), or "inline": this process, without Ray.

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
    """Who runs units in `diagnostics.analyze`: a task per unit, in a session of Ray's as `sweeps run` has it.

    Args:
        address: the cluster to join; None starts a local one, or takes the session that this process has.
        cpus: of a task.
        progress: a bar on standard error.
    """

    def execute(folder: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
        from sweeps.backends.ray.cluster.session import Session

        with Session(address, Silent().note) as session, signals(None), session.minded():
            session.connect()
            if address is not None:
                from sweeps.backends.ray.cluster.nodes import check_nodes

                check_nodes(folder.absolute() / "work" / "ray")
            with closing(run_units(folder.absolute(), units, cpus)) as done:  # it cancels tasks: with the session up
                yield from _shown(done, units) if progress else done

    return execute


def run_units(folder: Path, units: Sequence[Unit], cpus: float) -> Generator[tuple[Unit, list[Row]]]:
    """Submit all units; each with its rows as its task ends. What still runs when the caller stops is cancelled.

    Raises:
        ResourceError: no machine has the CPUs that a task takes.
        StoreError, TrialError, TrainablesError: of a unit.
        DiagnosticError: Ray lost a task.
    """
    import ray

    gpu = ray.cluster_resources().get("GPU", 0.0) >= 1
    alone = not gpu or any(unit.table in ON_CPU for unit in units)
    for asked, kind in ((alone, ""), (gpu and any(unit.table not in ON_CPU for unit in units), " with a GPU")):
        have = [n["Resources"] for n in ray.nodes() if n["Alive"] and (not kind or n["Resources"].get("GPU", 0.0) >= 1)]
        most = max((each.get("CPU", 0.0) for each in have), default=0.0)
        if asked and cpus > most:
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
        for left in waiting:
            ray.cancel(left, force=True)


def _lost(unit: Unit, why: str) -> str:
    less = "fewer --examples, or " if "examples" in unit.settings else ""
    return (
        f"Ray lost the task of {unit.label}: {why}; where memory ran out, give {less}more --cpus, which is fewer tasks "
        "at a time. What is computed stays, and the same command goes on"
    )


def _anchored(unit: Unit) -> Unit:
    return replace(unit, trials=tuple(anchored(trial) for trial in unit.trials))


def _compute(folder: Path, unit: Unit) -> list[Row]:
    from analysis.diagnostics.analyze import compute

    return compute(folder, unit, _warm)


def _shown(done: Iterator[tuple[Unit, list[Row]]], units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
    """The same with a bar on standard error; in a log, a line at the end."""
    console = safe_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        line = bar.add_task(units[0].table, total=len(units))
        for unit, rows in done:
            yield unit, rows
            bar.update(line, advance=1, description=unit.table)
