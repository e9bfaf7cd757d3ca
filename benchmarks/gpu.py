"""Measure on any CUDA machine what needs a GPU, and write the ratios as JSON and Markdown.

    python benchmarks/gpu.py --json gpu.json --markdown gpu.md
    python benchmarks/gpu.py --quick                              # less of each
    python benchmarks/gpu.py --device cpu --quick --only adapters # the same code on a CPU, to see that it runs

    adapters    step times against PEFT's in float32, in bf16 and under autocast, also with the update kept over four
                micro-batches; peak memory of each
    packing     K trials on one copy of a model, against the same trials one by one
    shares      K processes on one device, against one process
    parallel    two devices against one: data-parallel adapters, and full fine-tuning that FSDP2 splits
    paper       time and memory of methods divided by LoRA's (appendix C.6): `examples/paper/cost-clip-b32.toml`, whose
                weights and images come from their hubs; smaller with --quick or on a CPU
    quickstart  trials an hour, against Ray Tune and PEFT

A section that cannot be measured here is listed with its reason. `make test-gpu` tests what happens if memory runs out.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from contenders import (  # noqa: E402
    ACCUMULATED,
    NAMES,
    ON_CUDA,
    ROWS,
    Contender,
    data,
    ratios,
    restart_with,
    summary,
    time_steps,
)

PRECISIONS = ("float32", "bf16", "autocast")
METHODS = ("lora", "dora", "vera", "nola", "randlora", "randlora-a", "pissa", "lora-xs", "adalora")
Found = dict[str, Any]


class SkippedError(Exception):
    """A section, or a part of it, that cannot be measured here."""


def line(name: str, value: dict[str, float]) -> None:
    print(f"  {name:<48} {value['median']:.2f}  [{value['low']:.2f}, {value['high']:.2f}]", flush=True)


def adapters(options: argparse.Namespace) -> Found:
    """Return ratios of step times, and the peak memory of three steps, by precision."""
    depth, tokens = (3, 1600) if options.quick else (12, 12800)
    depth, tokens = options.depth or depth, options.tokens or tokens
    names = options.contenders or [n for n in NAMES if n != "randlora-held"]
    if options.device == "cuda" and "ternary" in names and importlib.util.find_spec("triton"):
        names = [*names, "ternary-triton"]
    results: Found = {}
    rounds = 3 if options.quick else 20
    kept = [row for row in ACCUMULATED if not options.contenders or {*row[1:3]} <= {*options.contenders}]
    those = sorted({name for row in kept for name in row[1:3]})
    results["four micro-batches"] = (
        ratios(time_steps(those, depth, tokens, rounds, 4, options.device), kept) if kept else {}
    )
    for label, ratio in results["four micro-batches"].items():
        line(f"four micro-batches: {label}", ratio)
    for precision in PRECISIONS:
        times = time_steps(names, depth, tokens, rounds, 1, options.device, precision)
        results[precision] = {
            "ratios": ratios(times, (*ROWS, *ON_CUDA)),
            "seconds": {n: summary(t) for n, t in times.items()},
        }
        for label, ratio in results[precision]["ratios"].items():
            line(f"{precision}: {label}", ratio)
        if precision != PRECISIONS[0]:
            medians = {
                p: {n: s["median"] for n, s in results[p]["seconds"].items()} for p in (PRECISIONS[0], precision)
            }
            over = {n: value / medians[PRECISIONS[0]][n] for n, value in medians[precision].items()}
            results[precision]["over float32"] = over
            print(
                f"  {precision} over float32: " + ", ".join(f"{n} {value:.1f}" for n, value in over.items()), flush=True
            )
        if options.device == "cuda":
            results[precision]["peak_bytes"] = {n: peak(n, depth, tokens, precision) for n in names}
    return results


def peak(name: str, depth: int, tokens: int, precision: str) -> int:
    """Return the peak bytes that three steps of a contender take on the device, the model included."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    contender = Contender(name, depth, "cuda", precision)
    images, labels = (t.cuda() for t in data(tokens))
    for _ in range(3):
        contender.step(images.bfloat16() if precision == "bf16" else images, labels)
    return torch.cuda.max_memory_allocated()


def packing(options: argparse.Namespace) -> Found:
    """Return trials an hour, packed over one by one, by method and K."""
    from packing import DATA, MODEL, POOL, Sides, Work, compare

    sizes = options.sizes or ([2, 8] if options.quick else [1, 2, 4, 8, 16, 32])
    methods = options.methods or (METHODS[:5:2] if options.quick else METHODS)
    work = Work(MODEL, DATA, min(1.0, (320 if options.quick else 2700) / POOL), 64, 1)
    sides, results = Sides(), Found()
    for method in methods:
        for size in sizes:
            answer = compare(sides, work.trials(method, size), 1 if options.quick else 3)
            results.setdefault(method, {})[str(size)] = answer["ratio"]
            line(f"{method}, K = {size}", answer["ratio"])
    return results


def one_of(rank: int, count: int, folder: str, quick: bool, ready: Any) -> None:
    """Run one of the processes that share a device: a trial that warms it up, then one that is timed."""
    import torch
    from packing import DATA, MODEL, POOL, Work

    from trainables.training.worker import run_trial

    torch.set_num_threads(1)
    (trial,) = Work(MODEL, DATA, min(1.0, (320 if quick else 2700) / POOL), 64, 1).trials("randlora", 1)
    warm: dict[str, Any] = {}
    list(run_trial(trial, warm=warm, directory=Path(folder) / f"warm{count}-{rank}"))
    ready.wait()
    begun = time.perf_counter()
    list(run_trial(trial, warm=warm, directory=Path(folder) / f"timed{count}-{rank}"))
    (Path(folder) / f"{count}-{rank}.json").write_text(json.dumps(time.perf_counter() - begun), encoding="utf-8")


def shares(options: argparse.Namespace) -> Found:
    """Return the trials an hour of K processes on one device over those of one, and what the engine would choose."""
    import torch.multiprocessing as mp
    from packing import plan_of

    from sweeps.packing.sizes import gpu_share
    from sweeps.plan.estimate import probe_gpu

    results: Found = {"trials_an_hour": {}}
    with tempfile.TemporaryDirectory() as folder:
        measured = probe_gpu(plan_of(Path(folder) / "plan", 1, 0.1, 1))
        cpus = float(os.cpu_count() or 1)
        results["peak_bytes"], results["device_bytes"] = measured.peak, measured.device
        if measured.device:
            results["chosen"] = round(1 / gpu_share(measured, cpus, 1))
        for count in [1, 2] if options.quick else [1, 2, 4, 8]:
            if count > cpus:
                results["skipped"] = f"{count} processes on {cpus:g} cores"
                break
            context = mp.get_context("spawn")
            mp.spawn(one_of, (count, folder, options.quick, context.Barrier(count)), nprocs=count)
            spent = [json.loads((Path(folder) / f"{count}-{k}.json").read_text()) for k in range(count)]
            results["trials_an_hour"][count] = 3600 * count / max(spent)
    rates = results["trials_an_hour"]
    results["ratio"] = {count: rate / rates[1] for count, rate in rates.items()}
    for count, ratio in results["ratio"].items():
        print(
            f"  {count} on one device: {ratio:.2f}; the engine would take {results.get('chosen', 'no GPU')}", flush=True
        )
    return results


def parallel(options: argparse.Namespace) -> Found:
    """Return the samples a second of one trial on two devices over those on one, for each method."""
    import torch
    import torch.multiprocessing as mp
    from packing import Work
    from small_texts import make_llama

    from tests.trainables.support import work

    if options.device == "cuda" and torch.cuda.device_count() < 2:
        raise SkippedError(f"two devices are needed, and torch finds {torch.cuda.device_count()}")
    results: Found = {}
    width, layers, texts = (64, 2, 48) if options.quick else (1024, 12, 512)
    with tempfile.TemporaryDirectory() as folder:
        model, rows = make_llama(Path(folder), width, layers, texts)
        (base,) = Work(model, rows, 0.9, 16, 2, text=True).trials("randlora", 1)
        full = {"method": "full", "capacities": (), "lr": 1e-4}
        split = full | {"train": base.train.model_copy(update={"parallel": "fsdp"})}
        for name, change in {"data-parallel RandLoRA": {}, "full, by FSDP2": split}.items():
            rates = {}
            for world in (1, 2):
                place = Path(tempfile.mkdtemp(dir=folder))
                mp.spawn(work, (world, base.model_copy(update=change), str(place), options.device), nprocs=world)
                rates[world] = json.loads((place / "reports0.json").read_text())[-1]["samples_per_second"]
            results[name] = rates[2] / rates[1]
            print(f"  {name}, two over one: {results[name]:.2f}", flush=True)
    return results


def paper(options: argparse.Namespace) -> Found:
    """Return the training seconds and the peak memory of every method over LoRA's."""
    from analysis import open_store

    small = ["--scale", "small"] if options.quick or options.device == "cpu" else []
    with tempfile.TemporaryDirectory() as folder:
        recipe = str(HERE.parent / "examples" / "paper" / "cost-clip-b32.toml")
        command = [sys.executable, "-m", "sweeps.cli.main", "run", recipe, "-o", folder, "-q", "--no-report", *small]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SkippedError(f"{recipe}: {' '.join(done.stderr.split())[-300:]}")
        trials = open_store(folder).table("trials").to_pylist()
    results: Found = {}
    for column in ("seconds_train", "peak_memory_bytes"):
        by = {m: [t[column] for t in trials if t["method"] == m] for m in dict.fromkeys(t["method"] for t in trials)}
        results[column] = {m: statistics.median(v) / statistics.median(by["lora"]) for m, v in by.items()}
        print(f"  {column} over LoRA's: " + ", ".join(f"{m} {r:.2f}" for m, r in results[column].items()), flush=True)
    return results


def quickstart(options: argparse.Namespace) -> Found:
    """Return the trials an hour of the quickstart's LoRA on all sides."""
    from engine import quickstart as measure

    return measure(argparse.Namespace(quick=options.quick, rounds=1 if options.quick else 3))


SECTIONS: dict[str, Callable[[argparse.Namespace], Found]] = {
    "adapters": adapters,
    "packing": packing,
    "shares": shares,
    "parallel": parallel,
    "paper": paper,
    "quickstart": quickstart,
}


def markdown(results: Found) -> str:
    """Return every ratio as a row of a Markdown table, and what was skipped."""
    rows, reasons = [], []

    def walk(path: tuple[str, ...], value: Any) -> None:
        if isinstance(value, dict) and "median" in value:
            rows.append(f"| {', '.join(path)} | {value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}] |")
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk((*path, str(key)), inner)
        elif path[-1] in ("skipped", "failed"):
            reasons.append(f"- {', '.join(path)}: {value}")
        elif isinstance(value, float | int):
            rows.append(f"| {', '.join(path)} | {value:,.4g} |")

    walk((), {name: value for name, value in results.items() if isinstance(value, dict)})
    head = [f"{results['device']}, torch {results['torch']}", "", "| measured | value |", "|---|---:|"]
    return "\n".join([*head, *rows, "", *reasons]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="less of each section")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION",
                        help=f"of {', '.join(SECTIONS)}")  # fmt: skip
    parser.add_argument("--depth", type=int, help="layers of `adapters` (12; 3 with --quick)")
    parser.add_argument("--tokens", type=int, help="rows of a step of `adapters` (12,800; 1,600 with --quick)")
    parser.add_argument("--contenders", nargs="+", choices=NAMES, metavar="NAME", help="of `adapters`")
    parser.add_argument("--sizes", type=int, nargs="+", help="trials of a pack (1 to 32; 2 and 8 with --quick)")
    parser.add_argument("--methods", nargs="+", help="that are packed (9; 3 with --quick)")
    parser.add_argument("--json", type=Path, help="write all numbers here, also after every section")
    parser.add_argument("--markdown", type=Path, help="write a table here")
    options = parser.parse_args()
    restart_with({"OMP_NUM_THREADS": "1", **({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {})})
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here; --device cpu runs the same code on the CPU")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    results: Found = {"device": name, "torch": torch.__version__, "quick": options.quick}
    for section in dict.fromkeys(options.only):
        print(f"{section}:", flush=True)
        begun = time.perf_counter()
        try:
            results[section] = SECTIONS[section](options)
        except SkippedError as error:
            results[section] = {"skipped": str(error)}
        except Exception as error:  # noqa: BLE001  # the other sections are worth their time
            traceback.print_exc()
            results[section] = {"failed": f"{type(error).__name__}: {error}"}
        results[section]["seconds_of_section"] = time.perf_counter() - begun
        for path, text in ((options.json, json.dumps(results, indent=1) + "\n"), (options.markdown, markdown(results))):
            if path is not None:
                path.write_text(text, encoding="utf-8")
    for section in options.only:
        for how in ("skipped", "failed"):
            if how in results[section]:
                print(f"{section} {how}: {results[section][how]}")


if __name__ == "__main__":
    main()
