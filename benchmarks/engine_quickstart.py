"""Count the quickstart's LoRA trials an hour on this engine, and on Ray Tune with PEFT and a process for each trial.

`engine.py` runs each side in a separate process: `python benchmarks/engine_quickstart.py SIDE QUICK`. SIDE is "ours",
"packed" (a worker trains four trials of a cell together) or "peft", the peer. The peer is the usual script as a Tune
function. It imports the libraries, loads the model and the data, embeds the classes, and trains PEFT's LoRA on the same
weights, with the same number of images and steps. It validates after every epoch, and evaluates the test images in the
same number of trials as CONFIRM has. Each side has two trials (or packs) at a time, with one thread each. The clock
runs from the start of the first trial to the end of the last. For the peer it starts with the first trial's process.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Side = tuple[int, float, dict[str, float]]
"""Number of trials, seconds from the start of the first to the end of the last, and seconds of a trial by activity."""

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

SIDES = ("ours", "packed", "peft")
PACK = 4
MODEL, DATA, SHARE, EPOCHS, BATCH = "embedded:tiny-clip", "embedded:fashion-mnist-turned", 0.5, 4, 64
RATES = (0.0025, 0.0063, 0.016, 0.04)
SEEDS = 3
"""CONFIRM trials of a cell."""


def plan(folder: Path, quick: bool, pack: int = 1) -> Any:
    """Return the plan of the quickstart with LoRA alone and fewer re-runs: 14 trials, or 28."""
    import tomllib

    from sweeps.plan.plan import Plan
    from sweeps.spec.spec import SweepSpec

    tree = tomllib.loads((ROOT / "examples" / "quickstart.toml").read_text(encoding="utf-8"))
    tree |= {"methods": {"lora": tree["methods"]["lora"]}, "confirm": {"seeds": SEEDS}, "output": str(folder)}
    tree["search"] |= {"trials": len(RATES), "rerun_rates": 0, "rerun_seeds": 0}
    tree["budgets"]["lora_rank"] = [1, 8] if quick else [1, 4, 8, 16]
    tree["resources"] = {"concurrent": 2, "pack": pack}
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(tree), encoding="utf-8")
    return Plan.from_spec(SweepSpec.load(file))


def ours(folder: Path, quick: bool, pack: int = 1) -> Side:
    from analysis import open_store
    from sweeps.engine.run import run

    summary = run(plan(folder / "results", quick, pack), progress=False)
    if not summary.complete:
        raise SystemExit(f"ours: {summary.failed} trials failed")
    rows = open_store(folder / "results").table("trials").to_pylist()
    tuned = [row["seconds_total"] for row in rows if row["stage"] == "TUNE"]
    window = max(row["ended_at"] for row in rows) - min(row["started_at"] for row in rows)
    return len(rows), window.total_seconds(), {"a TUNE trial": statistics.median(tuned)}


def packed(folder: Path, quick: bool) -> Side:
    return ours(folder, quick, PACK)


def usual_script(config: dict[str, Any]) -> None:
    """Run one trial as such scripts are commonly written: each trial loads everything anew."""
    import psutil
    import torch
    from peft import LoraConfig, get_peft_model
    from ray import tune
    from torch.nn.functional import cross_entropy, normalize
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from trainables.data.registry import load_dataset
    from trainables.data.splits import split
    from trainables.models.loading import load_model
    from trainables.runtime import pick_device

    device = pick_device()
    began, config = psutil.Process().create_time(), config["trial"]
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    loaded = load_model(MODEL)
    loaded.module.to(device)
    stage = "CONFIRM" if config["test"] else "TUNE"
    data = load_dataset(DATA).at(stage)
    rows = split(data, SHARE, config["seed"], stage, "standard")
    how = loaded.preprocess
    prepare = transforms.Compose(
        [
            transforms.Resize(how.recipe.size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(how.recipe.size),
            transforms.ToTensor(),
            transforms.Normalize(how.mean, how.std),
        ]
    )

    class Images(Dataset):  # type: ignore[type-arg]
        def __init__(self, part: Any, indices: Any) -> None:
            self.part, self.indices = part, indices.tolist()

        def __len__(self) -> int:
            return len(self.indices)

        def __getitem__(self, k: int) -> tuple[Any, int]:
            row = self.indices[k]
            return prepare(self.part.image(row)), int(self.part.labels[row])

    with torch.no_grad():
        texts = [t.format(c) for c in data.class_names for t in data.templates]
        words = normalize(loaded.module.encode_text(loaded.tokenizer(texts).to(device)), dim=-1)
        words = normalize(words.view(len(data.class_names), len(data.templates), -1).mean(dim=1), dim=-1)
        scale = loaded.module.logit_scale.exp()
    depth = len(loaded.module.visual.transformer.resblocks)
    names = [f"visual.transformer.resblocks.{k}.attn.in_proj_weight" for k in range(depth)]
    adapter = LoraConfig(r=config["rank"], lora_alpha=config["rank"], target_modules=[], target_parameters=names)
    model = get_peft_model(loaded.module, adapter).to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    train = DataLoader(Images(data.train, rows.train_idx), batch_size=BATCH, shuffle=True)
    validation = DataLoader(Images(data.train, rows.val_idx), batch_size=512)
    optimizer = torch.optim.AdamW(parameters, lr=config["lr"], weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train), eta_min=0.01 * config["lr"])

    def logits(images: Any) -> Any:
        return scale * normalize(model.base_model.model.encode_image(images.to(device)), dim=-1) @ words.T

    def accuracy(loader: Any) -> float:
        model.eval()
        with torch.no_grad():
            right = sum(int((logits(images).argmax(1).cpu() == labels).sum()) for images, labels in loader)
        return right / len(loader.dataset)

    ready = time.process_time()  # since this process started
    for epoch in range(EPOCHS):
        model.train()
        for images, labels in train:
            loss = cross_entropy(logits(images), labels.to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        result = {"score": accuracy(validation), "epoch": epoch + 1}
        if config["test"] and epoch + 1 == EPOCHS:
            result["test"] = accuracy(DataLoader(Images(data.test, rows.test_idx), batch_size=512))
        trained, spent = sum(p.numel() for p in parameters), {"ready": ready, "cpu": time.process_time()}
        tune.report({**result, "trained": trained, **spent, "began": began, "ended": time.time()})


def peft(folder: Path, quick: bool) -> Side:
    """Run a Tune function with a fresh process for each trial, the default (`reuse_actors=False`)."""
    import torch
    from engine_overhead import CONCURRENT, start_ray, timed
    from ray import tune

    start_ray()
    ranks = [1, 8] if quick else [1, 4, 8, 16]
    tuned = [{"rank": rank, "lr": lr, "seed": 1, "test": False} for rank in ranks for lr in RATES]
    confirmed = [{"rank": rank, "lr": RATES[1], "seed": 2 + k, "test": True} for rank in ranks for k in range(SEEDS)]
    gpu = {"gpu": 1 / CONCURRENT} if torch.cuda.is_available() else {}
    trials = {"trial": tune.grid_search([*tuned, *confirmed])}
    _, results = timed(usual_script, folder, {"cpu": 1} | gpu, trials, samples=1, reuse=False)
    for result in results:
        wanted = settings_count(result.config["trial"]["rank"])
        if result.metrics["trained"] != wanted or result.metrics["score"] < 0.2:
            raise SystemExit(
                f"peft: {result.metrics['trained']} trained parameters in place of {wanted}, or no learning"
            )
    ready, whole = (statistics.median(r.metrics[key] for r in results) for key in ("ready", "cpu"))
    answers = [r.metrics for r in results]
    window = max(m["ended"] for m in answers) - min(m["began"] for m in answers)
    return len(answers), window, {"before training": ready, "training and evaluation": whole - ready}


def settings_count(rank: int) -> int:
    """Return the parameters of LoRA on the three fused q, k, v of width 192."""
    return 3 * rank * (192 + 3 * 192)


def side(name: str, quick: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        count, window, spent = {"ours": ours, "packed": packed, "peft": peft}[name](Path(folder), quick)
    print(json.dumps({"side": name, "trials": count, "seconds": window / count, "spent": spent}))


def report(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the trials an hour of all sides, and ratios within rounds."""
    for one in rounds:
        rates = {name: 3600 / one[name]["seconds"] for name in SIDES}
        print("  trials an hour: " + ", ".join(f"{name} {math.floor(rate)}" for name, rate in rates.items()))
    for name in ("ours", "packed"):
        spent = rounds[-1][name]["spent"]["a TUNE trial"]
        print(f"  seconds of a lane for a TUNE trial, {name}: {spent:.1f}")
    peer = rounds[-1]["peft"]["spent"]
    print("  seconds of a processor for a trial of theirs: " + ", ".join(f"{k} {v:.1f}" for k, v in peer.items()))
    ratios = {name: [one["peft"]["seconds"] / one[name]["seconds"] for one in rounds] for name in ("ours", "packed")}
    for name, of_rounds in ratios.items():
        print(
            f"  trials an hour against Ray Tune and PEFT, a process a trial, {name}: {statistics.median(of_rounds):.2f}"
        )
    return {"rounds": rounds, "ratio": statistics.median(ratios["ours"]), "ratios": ratios}


if __name__ == "__main__":
    side(sys.argv[1], sys.argv[2] == "1")
