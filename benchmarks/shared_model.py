"""Measure what it saves if all CPU workers of a machine share one base model, as ratios to one copy for each worker.

    python benchmarks/shared_model.py            # a CLIP ViT-B/32 and a Llama in bfloat16, 1, 2 and 4 workers, 3 rounds
    python benchmarks/shared_model.py --quick    # smaller ones, 1 and 2 workers, 1 round
    python benchmarks/shared_model.py --model local:DIR --json FILE
    python benchmarks/shared_model.py --offsets  # instead: products whose bits change with where weights lie in memory

Weights are random, since neither time nor memory depends on them. There are three sides: no cache, an empty cache, and
a cache that has the model. In every round the sides run in shuffled order. The workers of a side start together, load
the model and run it once.

Memory is what the operating system counts for the workers beyond what they had before loading, in units of the model.
USS counts the pages that one worker has alone, its heap included. PSS is the sum over all workers, where a page that n
processes share counts 1/n. Loading is the median over a side's workers in processor time, after libraries are imported.
Steps are forward and backward passes to the input. One process has both models and runs them in turn. Steps are
measured in processor time on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from contenders import summary

from trainables.cache import FOLDER_VARIABLE
from trainables.models.loading import load_model
from trainables.models.shapes import meta_model
from trainables.models.shared import named_tensors
from trainables.tasks.lane_cache import LaneCache

CPU = torch.device("cpu")
SIDES = ("a copy each", "first", "later")
STEPS = 12


def make_clip(folder: Path, name: str) -> str:
    """Write open_clip's local form of one of its architectures, with the embedded model's tokenizer."""
    import shutil

    import open_clip
    from safetensors.torch import save_file

    from trainables.models.families import EMBEDDED

    folder.mkdir()
    config = open_clip.get_model_config(name)
    model = open_clip.CLIP(**config)
    config["text_cfg"]["hf_tokenizer_name"] = "local"
    about = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(about), encoding="utf-8")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED["tiny-clip"] / file, folder / file)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"local:{folder}"


def make_llama(folder: Path, hidden: int, layers: int) -> str:
    """Write a Llama in bfloat16, as most language models are, without a tokenizer."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32_000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=3 * hidden,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return f"local:{folder}"


def passes(module: Any, images: int | None) -> Any:
    """Return a function that makes one forward and backward pass through the model, to its input."""
    module.requires_grad_(False)
    if images is not None:
        inputs = torch.randn(16, 3, images, images, requires_grad=True)
        run = module.encode_image if hasattr(module, "encode_image") else lambda x: module(x).last_hidden_state
    else:
        inputs = torch.randn(4, 64, module.config.hidden_size, requires_grad=True)
        run = lambda x: module(inputs_embeds=x)[0]  # noqa: E731
    return lambda: run(inputs).sum().backward()


def worker(model: str) -> None:
    """Run one worker, which does what is asked on its standard input, in three steps."""
    torch.set_num_threads(1)
    meta_model(model)  # imports
    before = psutil.Process().memory_full_info()
    print("ready", flush=True)
    sys.stdin.readline()
    wall, busy = time.perf_counter(), time.process_time()
    loaded = LaneCache({}, CPU).model(model)
    print(json.dumps([time.perf_counter() - wall, time.process_time() - busy]), flush=True)
    sys.stdin.readline()
    with torch.no_grad():
        if loaded.preprocess is not None:
            side = loaded.preprocess.recipe.size
            getattr(loaded.module, "encode_image", loaded.module)(torch.zeros(1, 3, side, side))
        else:
            loaded.module(torch.zeros(1, 8, dtype=torch.long))
    print("ran", flush=True)
    sys.stdin.readline()
    after = psutil.Process().memory_full_info()
    print(json.dumps([after.uss - before.uss, after.pss - before.pss]), flush=True)
    sys.stdin.readline()


def together(model: str, count: int, cache: str) -> dict[str, float]:
    """Return memory and loading times of `count` workers that start together."""
    command = [sys.executable, __file__, "--worker", model]
    environment = {**os.environ, FOLDER_VARIABLE: cache, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    workers = [subprocess.Popen(command, text=True, env=environment, **pipes) for _ in range(count)]

    def answers() -> list[str]:
        return [w.stdout.readline() for w in workers if w.stdout]

    def go_on() -> None:
        for w in workers:
            assert w.stdin
            w.stdin.write("\n")
            w.stdin.flush()

    try:
        answers()
        go_on()
        loads = [json.loads(a) for a in answers()]
        go_on()
        answers()
        go_on()
        memory = [json.loads(a) for a in answers()]
    finally:
        for w in workers:
            w.communicate("\n", timeout=60)
    return {
        "uss": statistics.mean(uss for uss, _ in memory),
        "pss_together": sum(pss for _, pss in memory),
        "load_wall": statistics.median(wall for wall, _ in loads),
        "load_busy": statistics.median(busy for _, busy in loads),
    }


def steps(model: str, cache: str, rounds: int) -> list[float]:
    """Return the ratios of a pass on mapped weights to one on the process's own weights."""
    torch.set_num_threads(1)
    sides = {}
    for name, folder in (("own", "off"), ("mapped", cache)):
        os.environ[FOLDER_VARIABLE] = folder
        loaded = LaneCache({}, CPU).model(model)
        sides[name] = passes(loaded.module, loaded.preprocess.recipe.size if loaded.preprocess else None)
    quotients = []
    for _ in range(rounds + 1):
        took = {}
        for name in random.sample(list(sides), len(sides)):
            begun = time.process_time()
            sides[name]()
            took[name] = time.process_time() - begun
        quotients.append(took["mapped"] / took["own"])
    return quotients[1:]


def offsets() -> str:
    """Say how many products of layers differ from those of aligned weights, for shapes and offsets that models have."""
    torch.set_num_threads(1)
    draw, different, products = torch.Generator().manual_seed(0), 0, 0
    for rows, width, out in (
        (1, 576, 576),
        (7, 384, 1536),
        (50, 384, 384),
        (128, 768, 3072),
        (17, 100, 33),
        (1, 64, 10),
    ):
        inputs, weight = torch.randn(rows, width, generator=draw), torch.randn(out, width, generator=draw)
        room = torch.empty(weight.numel() + 32)
        outputs = []
        for offset in (0, 4, 8, 16, 32, 40):
            start = (offset - room.data_ptr()) % 64 // 4
            moved = room[start : start + weight.numel()].view(out, width).copy_(weight)
            outputs.append(inputs @ moved.T)
        different += sum(not torch.equal(outputs[0], other) for other in outputs[1:])
        products += len(outputs) - 1
    return f"{different} of {products} products differ in some bit from that of weights at a multiple of 64 bytes"


def measure(model: str, counts: list[int], rounds: int) -> dict[str, Any]:
    """Return all measurements of one model. Memory is in units of its weights."""
    size = sum(t.nbytes for t in named_tensors(load_model(model).module).values())
    results: dict[str, Any] = {"mib": size / 2**20, "workers": {}}
    for count in counts:
        rows: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                order = ["a copy each", "shared"] if random.random() < 0.5 else ["shared", "a copy each"]
                for side in order:
                    if side == "shared":
                        rows["first"].append(together(model, count, cache))
                        rows["later"].append(together(model, count, cache))
                    else:
                        rows[side].append(together(model, count, "off"))
        own = rows["a copy each"]
        results["workers"][count] = {
            side: {
                "uss": summary([row["uss"] / size for row in side_rows]),
                "pss_together": summary([row["pss_together"] / size for row in side_rows]),
                "load": summary([row["load_busy"] / o["load_busy"] for row, o in zip(side_rows, own, strict=True)]),
                "load_wall": summary(
                    [row["load_wall"] / o["load_wall"] for row, o in zip(side_rows, own, strict=True)]
                ),
            }
            for side, side_rows in rows.items()
        }
    with tempfile.TemporaryDirectory() as cache:
        results["step"] = summary(steps(model, cache, STEPS))
    return results


def show(name: str, results: dict[str, Any]) -> None:
    """Print the table of one model."""
    print(f"\n{name}: {results['mib']:.0f} MiB of float32; a pass on mapped weights takes ", end="")
    print("{median:.3f} ({low:.3f} to {high:.3f}) of one on its own".format(**results["step"]))
    print("workers  side         USS each   PSS together   loading, processor   loading, wall")
    for count, sides in results["workers"].items():
        for side, row in sides.items():
            values = (row[k]["median"] for k in ("uss", "pss_together", "load", "load_wall"))
            print("{:>7}  {:<11} {:>9.2f} {:>14.2f} {:>20.2f} {:>15.2f}".format(count, side, *values))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", action="append", help="a model id, instead of the two models that this script makes")
    parser.add_argument("--workers", type=int, nargs="+")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--offsets", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    if arguments.offsets:
        print(offsets())
        return
    counts = arguments.workers or ([1, 2] if arguments.quick else [1, 2, 4])
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    with tempfile.TemporaryDirectory() as folder:
        models = {model: model for model in arguments.model or ()}
        if not models and arguments.quick:
            models = {"Llama": make_llama(Path(folder) / "llama", 256, 4)}
        elif not models:
            models["CLIP ViT-B/32"] = make_clip(Path(folder) / "clip", "ViT-B-32")
            models["Llama"] = make_llama(Path(folder) / "llama", 768, 12)
        results = {}
        for name, model in models.items():
            results[name] = measure(model, counts, rounds)
            show(name, results[name])
            sys.stdout.flush()
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
