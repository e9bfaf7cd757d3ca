"""The quickstart's LoRA trials an hour: this engine against Ray Tune with PEFT, a process for each trial.

`engine.py` runs each side as a process of its own: `python benchmarks/engine_quickstart.py ours|peft QUICK`. The peer
is the usual script as a Tune function: import, load the model and the data, embed the classes, train PEFT's LoRA on the
same weights and as many images for as many steps, validate after every epoch. Both sides have two trials at a time,
one thread each; the clock runs from the end of the first two. Ours confirms on test images too, the peer does not.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

SIDES = ("ours", "peft")
SKIP = 2
MODEL, DATA, SHARE, EPOCHS, BATCH = "embedded:tiny-clip", "embedded:fashion-mnist-turned", 0.5, 4, 64
RATES = (0.0025, 0.0063, 0.016, 0.04)


def plan(folder: Path, quick: bool) -> Any:
    """The quickstart with LoRA alone and fewer re-runs: 14 trials, or 28."""
    import tomllib

    from sweeps.plan import Plan
    from sweeps.spec import SweepSpec

    tree = tomllib.loads((ROOT / "examples" / "quickstart.toml").read_text(encoding="utf-8"))
    tree |= {"methods": {"lora": tree["methods"]["lora"]}, "confirm": {"seeds": 3}, "output": str(folder)}
    tree["search"] |= {"trials": 4, "rerun_rates": 0, "rerun_seeds": 0}
    tree["budgets"]["lora_rank"] = [1, 8] if quick else [1, 4, 8, 16]
    tree["resources"] = {"concurrent": 2}
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(tree), encoding="utf-8")
    return Plan.from_spec(SweepSpec.load(file))


def ours(folder: Path, quick: bool) -> tuple[list[float], dict[str, float]]:
    from engine_many import Watch

    from analysis import open_store
    from sweeps.engine import run

    watch = Watch(every=1)
    summary = run(plan(folder / "results", quick), progress=watch)
    if not summary.complete:
        raise SystemExit(f"ours: {summary.failed} trials failed")
    tuned = [
        t["seconds_total"] for t in open_store(folder / "results").table("trials").to_pylist() if t["stage"] == "TUNE"
    ]
    return [seconds for _, seconds, _ in watch.points], {"a TUNE trial": statistics.median(tuned)}


def usual_script(config: dict[str, Any]) -> None:
    """One trial, everything from the start, as it is commonly written."""
    import torch
    from peft import LoraConfig, get_peft_model
    from ray import tune
    from torch.nn.functional import cross_entropy, normalize
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from trainables.data import load_dataset, split
    from trainables.models import load_model

    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    loaded = load_model(MODEL)
    data = load_dataset(DATA).at("TUNE")
    rows = split(data, SHARE, config["seed"], "TUNE", "standard")
    how = loaded.preprocess
    prepare = transforms.Compose(
        [
            transforms.Resize(how.image_size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(how.image_size),
            transforms.ToTensor(),
            transforms.Normalize(how.mean, how.std),
        ]
    )

    class Images(Dataset):  # type: ignore[type-arg]
        def __init__(self, indices: Any) -> None:
            self.indices = indices.tolist()

        def __len__(self) -> int:
            return len(self.indices)

        def __getitem__(self, k: int) -> tuple[Any, int]:
            row = self.indices[k]
            return prepare(data.train.image(row)), int(data.train.labels[row])

    with torch.no_grad():
        texts = [t.format(c) for c in data.class_names for t in data.templates]
        words = normalize(loaded.module.encode_text(loaded.tokenizer(texts)), dim=-1)
        words = normalize(words.view(len(data.class_names), len(data.templates), -1).mean(dim=1), dim=-1)
        scale = loaded.module.logit_scale.exp()
    depth = len(loaded.module.visual.transformer.resblocks)
    names = [f"visual.transformer.resblocks.{k}.attn.in_proj_weight" for k in range(depth)]
    adapter = LoraConfig(r=config["rank"], lora_alpha=config["rank"], target_modules=[], target_parameters=names)
    model = get_peft_model(loaded.module, adapter)
    parameters = [p for p in model.parameters() if p.requires_grad]
    train = DataLoader(Images(rows.train_idx), batch_size=BATCH, shuffle=True)
    validation = DataLoader(Images(rows.val_idx), batch_size=512)
    optimizer = torch.optim.AdamW(parameters, lr=config["lr"], weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train), eta_min=0.01 * config["lr"])

    def logits(images: Any) -> Any:
        return scale * normalize(model.base_model.model.encode_image(images), dim=-1) @ words.T

    ready = time.process_time()  # of this process from its start
    for epoch in range(EPOCHS):
        model.train()
        for images, labels in train:
            loss = cross_entropy(logits(images), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        model.eval()
        with torch.no_grad():
            right = sum(int((logits(images).argmax(1) == labels).sum()) for images, labels in validation)
        trained, spent = sum(p.numel() for p in parameters), {"ready": ready, "cpu": time.process_time()}
        tune.report({"score": right / len(rows.val_idx), "epoch": epoch + 1, "trained": trained, **spent})


def peft(folder: Path, quick: bool) -> tuple[list[float], dict[str, float]]:
    """A Tune function whose every trial is a fresh process, which is what `reuse_actors=False`, the default, means."""
    from engine_overhead import start_ray, timed
    from ray import tune

    start_ray()
    settings = {"rank": tune.grid_search([1, 8] if quick else [1, 4, 8, 16]), "lr": tune.grid_search(list(RATES))}
    ends, results = timed(usual_script, folder, {"cpu": 1}, {**settings, "seed": 1}, samples=1, reuse=False)
    for result in results:
        wanted = settings_count(result.config["rank"])
        if result.metrics["trained"] != wanted or result.metrics["score"] < 0.2:
            raise SystemExit(
                f"peft: {result.metrics['trained']} trained parameters in place of {wanted}, or no learning"
            )
    ready, whole = (statistics.median(r.metrics[key] for r in results) for key in ("ready", "cpu"))
    return ends, {"before training": ready, "training and validation": whole - ready}


def settings_count(rank: int) -> int:
    """Parameters of LoRA on the three fused q, k, v of width 192."""
    return 3 * rank * (192 + 3 * 192)


def side(name: str, quick: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        ends, spent = (ours if name == "ours" else peft)(Path(folder), quick)
        whole = time.perf_counter() - begun
    seconds = (ends[-1] - ends[SKIP - 1]) / (len(ends) - SKIP)
    print(json.dumps({"side": name, "trials": len(ends), "seconds": seconds, "with start": whole / len(ends),
                      "spent": spent}))  # fmt: skip


def report(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Trials an hour of both sides, and ratios inside rounds."""
    ratios = [one["peft"]["seconds"] / one["ours"]["seconds"] for one in rounds]
    for one in rounds:
        rates = {name: 3600 / one[name]["seconds"] for name in SIDES}
        print("  trials an hour: " + ", ".join(f"{name} {math.floor(rate)}" for name, rate in rates.items()))
    ours_spent, peer = rounds[-1]["ours"]["spent"], rounds[-1]["peft"]["spent"]  # type: ignore[index]
    print(f"  seconds of a lane for a TUNE trial of ours: {ours_spent['a TUNE trial']:.1f}")
    print("  seconds of a processor for a trial of theirs: " + ", ".join(f"{k} {v:.1f}" for k, v in peer.items()))
    print(f"  trials an hour against Ray Tune and PEFT, a process a trial: {statistics.median(ratios):.2f}")
    return {"rounds": rounds, "ratio": statistics.median(ratios), "ratios": ratios}


if __name__ == "__main__":
    side(sys.argv[1], sys.argv[2] == "1")
