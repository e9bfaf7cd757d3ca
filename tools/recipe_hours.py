"""Estimate the accelerator-hours of the recipes in `examples/paper` from the plan, the model's shapes and stated rates.

    python -m tools.recipe_hours                  # print a table
    python -m tools.recipe_hours --write          # also write the lines "length", "paper", "counts", "cache" of headers

Nothing is measured here. Expect the true hours to be within a factor of two. `sweeps estimate FILE` measures on your
machine.

Training a sample costs 6 floating-point operations a weight and token if all weights train (2 forward, 4 backward). The
times of the methods relative to that are the paper's (Table 10), see RELATIVE. Evaluation costs 2 operations a weight
and token. Both run at SHARE of a device's dense bfloat16 rate. A step of generation reads all weights once for a whole
batch.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap

from randlora.methods.prompts.kinds import PREFIX
from sweeps.plan.plan import Plan
from sweeps.spec.cell import Cell
from sweeps.spec.spec import SweepSpec
from trainables.config import shots
from trainables.data.facts import IMAGE_SETS, TEXT_SETS
from trainables.data.images.pixels import WIDER
from trainables.models.shapes import meta_model, model_kind

FOLDER = Path(__file__).parents[1] / "examples" / "paper"

SHARE = 0.35
"""Share of the dense bfloat16 rate that training reaches. For such models 0.3 to 0.45 is usual."""
DEVICES = {"24 GB": 165e12, "80 GB": 312e12}
"""Dense bfloat16 operations a second of an RTX 4090 and an A100."""
BANDWIDTH = 1.0e12
"""Bytes of weights that generation reads in a second."""

RELATIVE = {"lora": 0.94, "dora": 1.6, "randlora": 1.21, "vera": 0.95, "nola": 1.0, "full": 1.0, "linear-probe": 0.4}
"""Training time of methods, as a multiple of full fine-tuning's.

LoRA and RandLoRA have the means over CLIP's three sizes in Table 10. DoRA takes 2.2 times as long as LoRA on Llama-3.
Part of that is checkpointing, which all methods share there, so it has less here. VeRA and NoLA are taken to be as fast
as LoRA. A linear probe only needs the forward pass.
"""
CHECKPOINTING = 4 / 3
"""Training time with gradient checkpointing, as a multiple: the layers' forward pass is computed twice."""

TOKENS = {"commonsense": 130, "glue": 60, "e2e": 60, "arc": 130}
"""Mean number of tokens of a prompt with its response, by the beginning of the data set's name."""
ROWS = {"commonsense-15k": 15_000}
"""Numbers of training rows that the registry does not know."""
COMPUTED = ("length", "paper", "counts", "cache")
"""The lines of a header that this module writes."""
SIDE = 224
"""Pixels of an image's side, if the recipe does not say."""
WIDTH = 110
"""Characters of a header's line after its name."""
TRIAL_SECONDS = 10.0
"""Seconds in which a trial attaches adapters, opens data and writes results."""


@dataclass(frozen=True)
class Work:
    """The cost of one forward pass of a sample.

    Attributes:
        operations: floating-point operations, 2 for each token and each weight that it passes.
        weights: number of the model's weights.
        text: the part of `operations` that a CLIP's text tower takes.
    """

    operations: float
    weights: int
    text: float = 0.0


@cache
def work_of(model: str, dataset: str, image_size: int | None) -> Work:
    """Return the cost of one forward pass of a sample of `dataset`."""
    module = meta_model(model)
    kind = model_kind(model)
    count = {name: p.numel() for name, p in module.named_parameters() if p.ndim > 1}
    if kind == "clip":
        vision = sum(n for name, n in count.items() if name.startswith("visual."))
        text = sum(n for name, n in count.items() if name.startswith("transformer."))
        patch = module.visual.patch_size
        side = module.visual.image_size[0] // (patch[0] if isinstance(patch, tuple) else patch)
        texts = 2.0 * text * module.context_length
        return Work(2.0 * vision * (side * side + 1) + texts, vision + text, texts)
    if kind == "hf-vision":
        weights = sum(n for name, n in count.items() if "embeddings" not in name)
        side = (image_size or module.config.image_size) // module.config.patch_size
        return Work(2.0 * weights * (side * side + 1), weights)
    tokens = next(n for start, n in TOKENS.items() if dataset.startswith(start))
    weights = sum(n for name, n in count.items() if "embed" not in name and "wte" not in name and "wpe" not in name)
    return Work(2.0 * weights * tokens, sum(count.values()))


def samples(cell: Cell, spec: SweepSpec) -> tuple[int, int, int]:
    """Return the number of samples of an epoch, of the validation split and of the test split."""
    few = shots(cell.train_size)
    if cell.dataset in TEXT_SETS:
        info = TEXT_SETS[cell.dataset]
        pool, test = info.train or ROWS[cell.dataset], info.test or 0
        val = spec.evaluate.validation_rows or min(pool // 10, 5000)
        train = round((pool - min(pool // 10, 5000)) * float(cell.train_size))
        return train, val, min(test, spec.evaluate.test_rows or test)
    image = IMAGE_SETS[cell.dataset]
    sizes, classes = image.sizes, image.classes
    train = few * classes if few is not None else round(sizes.train * float(cell.train_size))
    val = min(few, 4) * classes if few is not None else sizes.val
    least = spec.train.min_batches_per_epoch * spec.train.global_batch_size
    return max(train, least), 0 if spec.protocol == "paper" else val, sizes.test


def trial_seconds(cell: Cell, spec: SweepSpec, stage: str, rate: float) -> float:
    """Return the seconds of one trial of a cell on a device of `rate` operations a second."""
    train, val, test = samples(cell, spec)
    work = work_of(cell.model, cell.dataset, cell.image_size)
    epochs = cell.epochs or 0
    again = CHECKPOINTING if spec.train.gradient_checkpointing else 1.0
    operations = work.operations
    if cell.base.startswith(PREFIX):  # each step embeds all classes, while other methods embed one text per image
        classes = IMAGE_SETS[cell.dataset].classes
        operations += work.text * (classes / spec.train.global_batch_size - 1)
    trained = 3 * operations * again * RELATIVE.get(cell.base.partition("-")[0], RELATIVE.get(cell.base, 1.0))
    seconds = TRIAL_SECONDS + train * epochs * trained / (SHARE * rate)
    evaluated = val * max(epochs, 1) + (test if stage == "CONFIRM" else 0)
    seconds += evaluated * work.operations / (SHARE * rate)
    if spec.evaluate.protocol == "generation":
        steps = evaluated / spec.train.eval_batch_size * spec.evaluate.max_new_tokens
        seconds += steps * 2 * work.weights / BANDWIDTH
    return seconds


def hours(plan: Plan, rate: float) -> Counter[str]:
    """Return the hours by data set."""
    hours_by_dataset: Counter[str] = Counter()
    for cell in plan.feasible:
        spent = cell.tune_trials * trial_seconds(cell, plan.spec, "TUNE", rate)
        spent += cell.confirm_seeds * trial_seconds(cell, plan.spec, "CONFIRM", rate)
        hours_by_dataset[cell.dataset] += spent / 3600  # type: ignore[assignment]
    return hours_by_dataset


def cached_gigabytes(plan: Plan) -> float:
    """Return the gigabytes of decoded images that all data sets cache on disk. Images to crop from are wider."""
    wider = WIDER if plan.spec.train.augment == "crop-flip-original" else 1.0
    total = 0.0
    for name in plan.spec.data.datasets:
        info = IMAGE_SETS.get(name)
        if info is None:
            continue
        side = plan.spec.model.image_size or SIDE
        total += 3 * side**2 * (info.sizes.pool * wider**2 + info.sizes.test)
    return total / 1e9


def counts(plan: Plan) -> str:
    """Return the numbers of parameters of each method at its budgets, in words."""
    by_method: dict[str, dict[int, None]] = {}
    for cell in plan.cells:
        if cell.count is not None:
            by_method.setdefault(cell.method, {})[cell.count] = None
    return "; ".join(
        f"{name} {' '.join(f'{count:,}' for count in method_counts)}" for name, method_counts in by_method.items()
    )


def facts(path: Path) -> dict[str, str]:
    """Return the computed lines of a recipe's header, for its fair form and for its published form."""
    text = path.read_text(encoding="utf-8")
    device = next(d for d in DEVICES if d in text)
    plan, published = (Plan.from_spec(SweepSpec.load(path, (), scale)) for scale in ("full", "published"))
    lines = {
        "length": f"{_length(plan, DEVICES[device])} (tools/recipe_hours.py)",
        "paper": f"--scale published: {_length(published, DEVICES[device])}",
        "counts": f"fair: {counts(plan)}\npublished: {counts(published)}",
    }
    if size := cached_gigabytes(plan):
        lines["cache"] = f"{_rounded(size)} GB of decoded images"
    return lines


def _length(plan: Plan, rate: float) -> str:
    by_set = hours(plan, rate)
    total = sum(by_set.values())
    words = f"{plan.n_trials:,} trials, about {_rounded(total)} GPU-hours"
    if by_set["imagenet"]:
        words += f", {_rounded(total - by_set['imagenet'])} without ImageNet"
    return words


def with_facts(text: str, line_by_name: Mapping[str, str]) -> str:
    """Return a recipe's text with these lines in its header, in place of those that an earlier call wrote."""
    lines = []
    for name, value in line_by_name.items():
        wrapped = [part for line in value.split("\n") for part in wrap(line, WIDTH, subsequent_indent="  ")]
        lines += [f"#   {'' if at else name:10} {part}\n" for at, part in enumerate(wrapped)]
    older = rf"^#   (?:{'|'.join(COMPUTED)}) +.*\n(?:#              .*\n)*"
    before, *after = re.split(older, text, flags=re.MULTILINE)
    return before + "".join(lines) + "".join(after)


def _rounded(value: float) -> str:
    """Return a number with two significant digits, because the estimate is not more accurate."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes; default: all")
    parser.add_argument("--write", action="store_true", help="put the lines into the files")
    arguments = parser.parse_args()
    for path in sorted(FOLDER.glob("*.toml")):
        if arguments.names and path.stem not in arguments.names:
            continue
        lines = facts(path)
        for name, line in lines.items():
            print(f"{path.stem:18} {name:10} {line}", flush=True)
        if arguments.write:
            path.write_text(with_facts(path.read_text(encoding="utf-8"), lines), encoding="utf-8")


if __name__ == "__main__":
    main()
