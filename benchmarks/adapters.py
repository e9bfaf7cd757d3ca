"""Compare the step time and memory of our adapters with PEFT's and full fine-tuning's, on a ViT-B/32-shaped model.

    python benchmarks/adapters.py            # 12 layers, 1,600 and 6,400 tokens
    python benchmarks/adapters.py --quick    # 3 layers, 1,600 tokens, fewer rounds

In each round every contender makes one step (forward, backward, AdamW), in shuffled order. The script prints the median
of the ratios inside rounds, because a machine that slows down slows all contenders of a round. Time is process CPU time
on one thread. The script starts itself again with a setting that makes glibc keep freed memory. Otherwise the kernel's
page faults would be counted as time of the contenders with large temporary tensors. Peak memory is measured in fresh
processes with the default allocator.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from contenders import ACCUMULATED, NAMES, RETAIN, ROWS, Contender, data, ratios, restart_with, summary, time_steps

MEMORY = ("randlora", "ternary", "lora", "peft-lora", "peft-randlora", "full")


def saved_bytes(name: str, depth: int, tokens: int) -> int:
    """Return the bytes that autograd keeps between forward and backward, without parameters and buffers."""
    import torch

    contender = Contender(name, depth)
    images, labels = data(tokens)
    own = {t.untyped_storage().data_ptr() for t in (*contender.model.parameters(), *contender.model.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept[pointer] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = contender.loss(images, labels)
    total = sum(t.untyped_storage().nbytes() for t in kept.values())
    del loss
    return total


def peak_rss(name: str, depth: int, tokens: int) -> int:
    """Return the peak resident bytes of a fresh process that makes three steps under the default allocator."""
    environment = {k: v for k, v in os.environ.items() if k not in RETAIN} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", name, "--depth", str(depth), "--tokens", str(tokens)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def one_process(name: str, depth: int, tokens: int) -> None:
    """Run the process of `peak_rss`."""
    contender = Contender(name, depth)
    images, labels = data(tokens)
    for _ in range(3):
        contender.step(images, labels)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def bf16_layers(rounds: int, rows: int = 3200) -> dict[str, dict[str, float]]:
    """Time one bf16 layer, forward and backward, as the ratio of ours to PEFT's RandLoRA."""
    import peft
    import torch

    import randlora

    results = {}
    for out, width in ((768, 768), (3072, 768)):
        plain = [torch.nn.Sequential(torch.nn.Linear(width, out)).bfloat16() for _ in range(2)]
        randlora.attach(plain[0], randlora.RandLoraConfig(6), ["0"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peft.get_peft_model(plain[1], peft.RandLoraConfig(r=6, randlora_alpha=12, target_modules=["0"]))
        x = torch.randn(rows, width).bfloat16().requires_grad_()
        grad = torch.randn(rows, out).bfloat16()
        quotients = []
        for round_number in range(rounds + 1):
            seconds = []
            for model in (plain[0], theirs):
                start = time.process_time()
                for _ in range(3):
                    model(x).backward(grad)
                seconds.append(time.process_time() - start)
            if round_number:
                quotients.append(seconds[0] / seconds[1])
        results[f"{out}x{width}"] = summary(quotients)
    return results


def regime() -> dict[str, Any]:
    """Return what the numbers depend on: processor, float32 back end and its accuracy, speed of bf16."""
    import torch

    from randlora.arithmetic import kernels

    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(1600, 768, generator=generator), torch.randn(768, 768, generator=generator)
    exact = a.double() @ b.double()
    facts: dict[str, Any] = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    facts["compiled part"] = kernels.status()
    facts["capability"] = torch.backends.cpu.get_cpu_capability()
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        product = a @ b
        start = time.process_time()
        for _ in range(20):
            a @ b
        seconds = (time.process_time() - start) / 20
        error = float((product - exact).norm() / exact.norm())
        facts[precision] = {"gflops": 2e-9 * 1600 * 768 * 768 / seconds, "relative_error": error}
    low, other = a.bfloat16(), b.bfloat16()
    low @ other
    start = time.process_time()
    for _ in range(20):
        low @ other
    facts["bf16_gflops"] = 2e-9 * 1600 * 768 * 768 * 20 / (time.process_time() - start)
    fast, plain = facts["medium"], facts["highest"]
    facts["fast_float32"] = fast["relative_error"] < 1e-5 and fast["gflops"] > 1.1 * plain["gflops"]
    torch.set_float32_matmul_precision("medium" if facts["fast_float32"] else before)
    return facts


def report(label: str, value: dict[str, float], goal: float | None) -> None:
    verdict = "" if goal is None else f"  goal <= {goal:.2f}  {'met' if value['median'] <= goal else 'missed'}"
    print(f"  {label:<36} {value['median']:.2f}  [{value['low']:.2f}, {value['high']:.2f}]{verdict}", flush=True)


def steps_section(names: list[str], depth: int, tokens: int, rounds: int) -> dict[str, Any]:
    print(f"\n{depth} layers, {tokens:,} tokens, {rounds} rounds: median [lowest, highest] of the per-round ratios")
    times = time_steps(names, depth, tokens, rounds)
    section: dict[str, Any] = {"seconds": {n: summary(t) for n, t in times.items()}, "ratios": ratios(times, ROWS)}
    goals = {label: small if tokens <= 1600 else large for label, _, _, small, large in ROWS}
    for label, ratio in section["ratios"].items():
        report(label, ratio, goals[label])
    print("  seconds: " + ", ".join(f"{n} {v['median']:.2f}" for n, v in section["seconds"].items()))
    return section


def accumulation_section(depth: int, rounds: int, micro: int = 4, rows: int = 400) -> dict[str, Any]:
    print(f"\n{depth} layers, {micro} micro-batches of {rows} tokens a step, {rounds} rounds")
    names = sorted({name for row in ACCUMULATED for name in row[1:3]})
    times = time_steps(names, depth, micro * rows, rounds, micro)
    ratio_by_label = ratios(times, ACCUMULATED)
    for label, ratio in ratio_by_label.items():
        report(label, ratio, None)
    return ratio_by_label


def memory_section(depth: int) -> dict[str, Any]:
    print(f"\nmemory, {depth} layers, 1,600 tokens")
    kept = {n: saved_bytes(n, depth, 1600) for n in MEMORY}
    peak = {n: peak_rss(n, depth, 1600) for n in MEMORY}
    for title, size_by_name, goal in (("bytes saved for backward", kept, 0.81), ("peak resident memory", peak, 0.87)):
        for name in ("randlora", "ternary", "lora"):
            ratio = size_by_name[name] / size_by_name["peft-lora"]
            spread = {"median": ratio, "low": ratio, "high": ratio}
            report(f"{title}, {name} / PEFT LoRA", spread, goal if name == "randlora" else None)
        print("    MiB: " + ", ".join(f"{n} {v / 2**20:.0f}" for n, v in size_by_name.items()))
    return {"saved": kept, "peak": peak}


def profile_section(name: str, depth: int, tokens: int, steps: int = 3) -> None:
    """Print the share of self CPU time by operator, over a few steps after a first one."""
    from torch.profiler import ProfilerActivity, profile

    contender = Contender(name, depth)
    images, labels = data(tokens)
    contender.step(images, labels)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            contender.step(images, labels)
    events = sorted(profiler.key_averages(), key=lambda e: e.self_cpu_time_total, reverse=True)
    total = sum(e.self_cpu_time_total for e in events)
    print(f"\n{name}, {depth} layers, {tokens:,} tokens: {total / steps / 1e6:.2f} s of self CPU time a step")
    for event in events[:12]:
        share = event.self_cpu_time_total / total
        print(f"  {event.key[:44]:<44} {share:6.1%}  {event.count // steps:>5} calls a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 layers, 1,600 tokens, 5 rounds, no memory section")
    parser.add_argument("--depth", type=int, help="layers of the model (12, or 3 with --quick)")
    parser.add_argument("--tokens", type=int, action="append", help="rows per step (1600 and 6400; may be repeated)")
    parser.add_argument("--rounds", type=int, help="kept rounds (7; 5 with --quick)")
    parser.add_argument("--only", nargs="*", choices=NAMES, help="contenders to run")
    parser.add_argument("--profile", nargs="+", choices=NAMES, help="print where the time of these goes, and no ratios")
    parser.add_argument("--skip-memory", action="store_true", help="leave the memory section out")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    depth = options.depth or (3 if options.quick else 12)
    if options.one:
        one_process(options.one, depth, options.tokens[0])
        return
    restart_with(RETAIN)
    import torch

    torch.set_num_threads(1)
    results: dict[str, Any] = {"regime": regime()}
    for key, value in results["regime"].items():
        print(f"{key}: {value}")
    if options.profile:
        for name in options.profile:
            profile_section(name, depth, (options.tokens or [1600])[0])
        return
    rounds = options.rounds or (5 if options.quick else 7)
    names = [name for name in NAMES if name != "randlora-held"]  # it differs under accumulation alone
    for tokens in options.tokens or ([1600] if options.quick else [1600, 6400]):
        results[f"tokens_{tokens}"] = steps_section(options.only or names, depth, tokens, rounds)
    if not options.only:
        results["accumulation"] = accumulation_section(depth, rounds)
        print("\none bf16 layer, 3,200 rows, ours / PEFT RandLoRA")
        results["bf16"] = bf16_layers(max(rounds, 5))
        for shape, goal in (("768x768", 0.32), ("3072x768", 0.46)):
            report(shape, results["bf16"][shape], goal)
    if not (options.quick or options.skip_memory or options.only):
        results["memory"] = memory_section(depth)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
