"""What the verbs print. Numbers come from the functions named in each; nothing is computed here but formatting."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.tables.console import print_whole

if TYPE_CHECKING:
    from analysis import Store
    from sweeps.cli.doctor import Check
    from sweeps.engine.run import RunSummary
    from sweeps.plan.estimate import Estimate
    from sweeps.plan.plan import Plan

_MOST_NAMES = 6  # of files that are named on one line

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output: times in ISO form, bytes in base64, null for what is not finite."""
    sys.stdout.write(json.dumps(_plain(value), default=str, allow_nan=False, indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def print_csv(table: pa.Table) -> None:
    """A table as CSV, header first."""
    sys.stdout.write(_csv(table))


def _csv(table: pa.Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")  # as shells read it
    writer.writerow(table.column_names)
    writer.writerows(_plain(list(row.values())) for row in table.to_pylist())
    return text.getvalue()


def as_bytes(table: pa.Table, kind: str) -> bytes:
    """A table as a file of kind 'csv', 'json', 'parquet' or 'arrow' (Arrow's file format) holds it."""
    if kind == "csv":
        return _csv(table).encode()
    if kind == "json":
        return (json.dumps(_plain(table.to_pylist()), default=str, allow_nan=False, indent=2) + "\n").encode()
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pq.write_table(table, sink, compression="zstd")
    elif kind == "arrow":
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        raise ValueError(f"unknown kind {kind!r} of file; known: csv, json, parquet, arrow")
    return bytes(sink.getvalue().to_pybytes())


def print_table(table: pa.Table, title: str | None = None) -> None:
    """Any Arrow table on the terminal."""
    rows = table.to_pylist()
    print_rows(table.column_names, [[_cell(v) for v in row.values()] for row in rows], title)
    out.print(f"{len(rows)} row(s)", style="dim", highlight=False)


def print_header(plan: Plan) -> None:
    """One line on what is about to run."""
    cells, left_out = plan.feasible, len(plan.cells) - len(plan.feasible)
    spec = plan.spec
    out.print(
        f"[bold]{spec.name}[/]: {len(cells)} cells, {plan.n_trials} trials "
        f"({_allowance(plan)} to tune and {len(spec.confirm.seeds)} to confirm per cell) on {spec.model.id}"
        + (f"; {left_out} infeasible cell(s) left out, see `sweeps plan`" if left_out else ""),
        highlight=False,
    )


def print_plan(plan: Plan) -> None:
    """The cells with their solutions; the infeasible ones with the reason and the nearest reachable counts."""
    rows = []
    for cell in plan.cells:
        residual = "" if cell.residual is None or not cell.budget else f"{cell.residual / cell.budget:+.2%}"
        rates = "" if cell.lr_low is None or cell.lr_high is None else f"{cell.lr_low:.1e} .. {cell.lr_high:.1e}"
        rows.append(
            [
                cell.method,
                cell.reference or "",
                cell.dataset,
                str(cell.train_size),
                _count(cell.budget),
                _capacity(cell.capacity, cell.capacities),
                cell.allocation or "",
                "" if cell.update_rank is None else f"{cell.update_rank:.4g}",
                _count(cell.count),
                residual,
                rates,
                str(cell.tune_trials + cell.confirm_seeds) if cell.feasible else "left out",
            ]
        )
    header = [
        "method",
        "reference",
        "data",
        "size",
        "budget",
        "capacity",
        "allocation",
        "rank",
        "count",
        "residual",
        "lr",
    ]
    print_rows([*header, "trials"], rows, f"{plan.spec.name}: {len(plan.feasible)} cells, {plan.n_trials} trials")
    for cell in plan.cells:
        if not cell.feasible:
            around = ", ".join(f"{n['count']:,} at {n['capacity']}" for n in (cell.below, cell.above) if n)
            out.print(
                f"left out  {cell.label}: {cell.reason}" + (f" (reachable: {around})" if around else ""),
                highlight=False,
            )
    print_packing(plan)


def _allowance(plan: Plan) -> str:
    allowance = plan.spec.search.allowance
    return str(plan.spec.search.trials) if allowance is None else f"{allowance.samples:,} samples"


def print_packing(plan: Plan) -> None:
    """Which methods' trials share a worker, and why others do not; nothing where none were asked to."""
    from sweeps.plan.packing import packing_words

    for line in packing_words(plan):
        out.print(line, markup=False, highlight=False)


def print_budget(model: str, answer: Mapping[str, Any]) -> None:
    """The solver's answers for one model and reference."""
    rows = []
    for m in answer["methods"]:
        residual = "" if m["residual"] is None else f"{m['residual'] / answer['budget']:+.2%}"
        near = [_near(m["below"]), _near(m["above"])]
        rows.append([m["method"], m["allocation"], _ranks(m["ranks"]), _count(m["count"]), residual, *near])
    title = f"{model}: {answer['reference']} = {answer['budget']:,} trainable parameters"
    print_rows(["method", "allocation", "capacity", "count", "residual", "below", "above"], rows, title)


def print_estimate(estimate: Estimate) -> None:
    """The estimate as a table and a closing line."""
    rows = [
        [p.method, f"{p.seconds_per_trial:.1f}", str(p.trials), f"{p.seconds_total / 60:.1f}"] for p in estimate.methods
    ]
    print_rows(
        ["method", "seconds/trial", "trials", "minutes of one slot"], rows, "estimate, from a probe of every method"
    )
    print_estimate_line(estimate)
    out.print(
        f"{estimate.accelerator_hours:.3g} accelerator-hours; disk about {estimate.disk_bytes / 2**20:.0f} MiB, "
        f"{estimate.kept_bytes / 2**20:.0f} MiB of them kept weights; "
        f"peak memory of a trial about {estimate.memory_bytes / 2**20:.0f} MiB" + _together(estimate),
        highlight=False,
    )


def _together(estimate: Estimate) -> str:
    """What workers on the CPU share, in words."""
    if not estimate.shared_bytes:
        return ""
    shared, together = (n / 2**20 for n in (estimate.shared_bytes, estimate.together_bytes))
    return f", {shared:.0f} MiB of them one base model for all workers; {together:.0f} MiB for {estimate.concurrent}"


def print_estimate_line(estimate: Estimate) -> None:
    """How long it will take, in one line."""
    if estimate.trials_left == 0:
        out.print("nothing left to run", highlight=False)
        return
    out.print(
        f"about {_minutes(estimate.seconds)} for {estimate.trials_left} trials, {estimate.concurrent} at a time "
        + (f"in packs of up to {estimate.pack} " if estimate.pack > 1 else "")
        + (f"at a cost of about {estimate.cost:.2f} " if estimate.cost is not None else "")
        + f"(probed in {estimate.probe_seconds:.0f} s)",
        highlight=False,
    )
    for words in estimate.short:
        err.print(words, style="yellow", markup=False, highlight=False)
    for limit in estimate.over:
        err.print(f"it will stop before its end: {limit}", style="yellow", markup=False, highlight=False)


def summary_dict(summary: RunSummary) -> dict[str, Any]:
    """A run's summary as JSON-able values."""
    return {
        "folder": str(summary.folder),
        "finished": summary.finished,
        "failed": summary.failed,
        "failed_before": summary.failed_before,
        "skipped": summary.skipped,
        "stuck": list(summary.stuck),
        "damaged": list(summary.damaged),
        "seconds": summary.seconds,
        "interrupted": summary.interrupted,
        "stopped_by": summary.stopped_by,
        "not_uploaded": summary.not_uploaded,
    }


def print_results(folder: Path, summary: RunSummary, paths: Mapping[str, Path]) -> None:
    """The end of a run: results with intervals, the conclusion, and where everything is."""
    from analysis import open_store

    print_best(open_store(folder))
    ran = summary.finished + summary.failed
    done = f"{ran} trial(s) run" if ran else "nothing was left to run"
    failed = summary.failed + summary.failed_before
    out.print(
        f"\n{done} in {_minutes(summary.seconds)}, {summary.skipped} done before, {failed} failed in all",
        highlight=False,
    )
    for label in summary.stuck:
        err.print(f"no learning rate of {label} finished: nothing to confirm", style="red", highlight=False)
    if summary.failed or summary.failed_before:
        _print_failures(folder)
    print_files({"tables": folder / "tables", **paths})


def _print_failures(folder: Path) -> None:
    """Why trials failed, the commonest reasons first, and what to do."""
    from analysis import open_store

    last = {row["trial_id"]: row for row in open_store(folder).table("trials").to_pylist()}
    reasons = Counter(row["reason"] for row in last.values() if row["status"] == "failed")
    for reason, count in reasons.most_common(3):
        err.print(f"{count} trial(s) failed: {reason}", style="red", highlight=False, markup=False)
    err.print("failed trials are tried again by `sweeps run ... --retry-failed`", highlight=False, markup=False)


def print_best(store: Store) -> None:
    """The results table and its one-sentence conclusion."""
    from analysis.tables.console import conclusion, print_results_table

    print_results_table(store, out)
    out.print(f"\n{conclusion(store)}", highlight=False, markup=False)


def print_paths(paths: Mapping[str, Path]) -> None:
    """Names and paths, one a line."""
    width = max((len(k) for k in paths), default=0)
    for name, path in paths.items():
        out.print(f"{name.ljust(width)}  {path}", highlight=False, markup=False)


def print_files(paths: Mapping[str, Path]) -> None:
    """What a report wrote: pages and folders by name, the files of a folder on one line with their suffixes."""
    folders: dict[Path, dict[str, list[str]]] = {}
    shown: dict[str, str] = {}
    for name, path in paths.items():
        stem, _, suffix = name.partition(".")
        if name != path.name or not suffix:
            shown[name] = str(path)
            continue
        folders.setdefault(path.parent, {}).setdefault(stem, []).append(suffix)
    for folder, stems in folders.items():
        suffixes = dict.fromkeys(s for found in stems.values() for s in found)
        names = ", ".join(stems) if len(stems) <= _MOST_NAMES else f"{len(stems)} files"
        shown[folder.name] = f"{folder}  ({names}: {', '.join(suffixes)})"
    if "report" in shown:
        shown["report"] = shown.pop("report")  # last
    width = max((len(k) for k in shown), default=0)
    for name, text in shown.items():
        out.print(f"{name.ljust(width)}  {text}", highlight=False, markup=False)


def print_status(progress: Mapping[str, Any]) -> None:
    """How far a sweep is."""
    state = "running" if progress["running"] else "not running"
    p = progress
    out.print(
        f"{p['sweep']}: {p['finished']} of {p['trials']} trials finished, {p['failed']} failed, "
        f"{p['unfinished']} begun; {p['cells_confirmed']} of {p['cells']} cells confirmed; {state}",
        highlight=False,
    )
    words = [", ".join(f"{n} cell(s) {phase}" for phase, n in p["phases"].items())]
    if p["per_minute"] is not None and p["seconds_left"]:
        words.append(f"{p['per_minute']:.1f} trials/min, about {_minutes(p['seconds_left'])} left")
    words.append(f"{p['accelerator_hours']:.2f} accelerator-hours")
    if p["cost"] is not None:
        words.append(f"cost {p['cost']:.2f}")
    if p["estimate"] is not None:
        guess, took = p["estimate"]["estimated"], p["estimate"]["actual"]
        words.append(f"estimated {_minutes(guess)}" + ("" if took is None else f", took {_minutes(took)}"))
    out.print("; ".join(filter(None, words)), highlight=False)
    for failure in p["failures"]:
        said = f"{failure['count']} failed: {failure['reason']}" + (
            f" ({failure['where']})" if failure["where"] else ""
        )
        out.print(said, style="red", highlight=False, markup=False)
    rows = [[_cell(v) for v in row.values()] for row in progress["methods"]]
    if rows:
        print_rows(list(progress["methods"][0]), rows, None)


def print_checks(checks: Sequence[Check]) -> None:
    """`doctor`'s findings."""
    for check in checks:
        mark = "[green]ok  [/]" if check.ok else "[red]fail[/]"
        out.print(f"{mark} {check.name}: {check.found}", highlight=False)
        if not check.ok:
            out.print(f"       {check.mend}", highlight=False, markup=False)


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    """Texts as a table, no cell cut."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        table.add_column(escape(name), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    print_whole(table, out)


def _is_number(text: str) -> bool:
    return text == "" or text.replace(",", "").lstrip("+-")[:1].isdigit()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _capacity(capacity: int | None, capacities: Sequence[tuple[str, int]]) -> str:
    return str(capacity) if capacity is not None else _ranks(dict(capacities))


def _ranks(ranks: Any) -> str:
    """One rank, or each distinct rank with the number of layers that have it."""
    if isinstance(ranks, Mapping):
        values = sorted(ranks.values())
        return " ".join(f"{r}x{values.count(r)}" for r in sorted(set(values)))
    return "" if ranks is None else str(ranks)


def _near(neighbour: Any) -> str:
    return "" if neighbour is None else f"{neighbour['count']:,} at {neighbour['capacity']}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
