"""Score trained language models on further tasks with lm-eval. These scores never take part in a choice or a verdict.

lm-eval (EleutherAI) has a large collection of tasks, and it also reads the user's own task files. It gets the trained
model in memory with its adapter attached (nothing is exported), and the untouched base model.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

import randlora
from analysis.diagnostics.units import Unit, sweep_facts
from analysis.diagnostics.weights import FULL_WEIGHTS, Kept, kept_trials
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store
from randlora.files.tensors import read_tensors
from trainables.errors import first_line
from trainables.models.shapes import model_kind
from trainables.runtime import pick_device
from trainables.tasks.lane_cache import LaneCache

BATCH = 8
"""Number of texts in one forward pass."""
RESAMPLES = 1000
"""Bootstrap resamples for the standard error of metrics that have no formula for it. lm-eval's default is 100,000."""


def plan(store: Store, *, tasks: Sequence[str], include: Path | None = None, examples: int | None = None) -> list[Unit]:
    """Return a unit for each task of each kept trial, and of each base model.

    Raises:
        StoreError: no task is named, no weights are kept, or a model is not a language model.
    """
    if not tasks:
        raise StoreError("name at least one task of lm-eval: --task arc_easy; `lm-eval ls tasks` lists them")
    trials = kept_trials(store)
    strange = sorted({model for model in {k.row["model"] for k in trials} if model_kind(model) != "causal-lm"})
    if strange:
        raise StoreError(f"lm-eval asks language models, and {strange[0]} is of another kind")
    facts = sweep_facts(store) | {"include": None if include is None else str(include.absolute())}
    bases = {k.row["model"]: k for k in trials}
    briefs = [k.brief for k in trials] + [k.brief | {"trial_id": None} for k in bases.values()]
    settings = [{"task": task, "examples": examples} for task in dict.fromkeys(tasks)]
    return [Unit("tasks", (brief,), setting, facts) for setting in settings for brief in briefs]


def rows(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return a row for each metric that lm-eval reports for the task. Arguments as in `analyze.compute`.

    Raises StoreError if lm-eval is not installed, does not know the task or lacks its data.
    """
    (trial,) = unit.trials  # as `Kept.brief`, without a trial_id for the base model
    kept = None if trial["trial_id"] is None else Kept.of(trial, folder)
    base_weights = unit.facts["train"].get("base_weights", "fp32")
    loaded = LaneCache(cache, pick_device()).model(trial["model"], base_weights)
    with _trained(loaded.module, kept) as module:
        metrics = _ask(module, loaded.text_tokenizer, unit)
    base = {"method": "zero-shot", "reference": None, "adapter_params": 0, "trial_id": None}
    about = unit.place | (base if kept is None else kept.named) | {"task": unit.settings["task"]}
    return [about | row for row in metrics]


@contextlib.contextmanager
def _trained(module: nn.Module, kept: Kept | None) -> Iterator[nn.Module]:
    """Give the model with a trial's trained weights, or the base model if `kept` is None."""
    if kept is None:
        yield module.eval()
    elif kept.full:
        module_copy = copy.deepcopy(module)  # the base model's memory may be shared
        file = kept.folder / FULL_WEIGHTS
        unexpected = module_copy.load_state_dict(read_tensors(file), strict=False).unexpected_keys
        if unexpected:
            raise StoreError(f"{file} has {unexpected[0]!r}, which is no weight of {kept.row['model']!r}")
        yield module_copy.eval()
    else:
        adapted = randlora.load(module, kept.folder)
        try:
            module.eval()
            yield module
        finally:
            adapted.detach()


def _ask(module: nn.Module, tokenizer: Any, unit: Unit) -> list[Row]:
    """Run lm-eval on the unit's task and return a row for each of its metrics."""
    try:
        from lm_eval import __version__, simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        rule = "pip install 'randlora-sweeps[lm-eval]'"
        raise StoreError(f"scores of further tasks need the package lm-eval ({first_line(error)}): {rule}") from error
    name, include = unit.settings["task"], unit.facts["include"]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        answer = simple_evaluate(
            model=HFLM(pretrained=module, tokenizer=tokenizer, batch_size=BATCH),
            tasks=[name],
            task_manager=TaskManager(include_path=include),
            limit=unit.settings["examples"],
            bootstrap_iters=RESAMPLES,
            log_samples=False,
        )
        results = answer["results"][name]
    except Exception as error:  # tasks and their data raise errors of any kind
        raise StoreError(f"{unit.label}: lm-eval fails on {name!r} ({first_line(error)})") from error
    sample_counts = (answer.get("n-samples") or {}).get(name) or {}
    facts = {"shots": (answer.get("n-shot") or {}).get(name), "examples": sample_counts.get("effective")}
    facts |= {"task_version": str(answer["versions"].get(name)), "lm_eval": __version__}
    return [facts | row for row in _metrics(results)]


def _metrics(results: Row) -> Iterator[Row]:
    """Turn lm-eval's 'acc,none' and 'acc_stderr,none' into one row with metric, answer filter, value and error."""
    for key, value in results.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = results.get(f"{metric}_stderr,{chosen}")
            stderr = float(error) if isinstance(error, int | float) else None  # lm-eval writes "N/A" if it has none
            yield {"metric": metric, "answer_filter": chosen, "value": float(value), "stderr": stderr}
