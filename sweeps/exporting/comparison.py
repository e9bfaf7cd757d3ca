"""Exports the tuned cells of a sweep as experiments of Hugging Face PEFT's method_comparison.

Each experiment is a folder `experiments/TYPE/NAME` with `adapter_config.json` (none for full fine-tuning) and
`training_params.json`. The latter holds the settings that differ from that project's defaults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import Store, open_store
from analysis.format import Row, plural, score_text
from analysis.sheets.markdown import code, markdown_table
from randlora.adapted.attach import attach
from randlora.adapted.gradients import zero_gradients
from randlora.errors import ExportError
from randlora.files.peft_export import peft_config
from randlora.methods.bridge.installed import PREFIX as PEFTS_OWN
from randlora.methods.registry import get_method
from sweeps.errors import Problem, SpecError
from sweeps.exporting.kept import config_of
from trainables.config import FULL_METHODS, LINEAR_PROBE, NO_TRAINING, QUANTISED, TrialConfig
from trainables.models.families import parse_id
from trainables.models.shapes import meta_model, target_shapes
from trainables.tasks.text.encoding import DEFAULT_MAX_TOKENS

DATASET = "metamathqa-gsm8k"
"""The data set that PEFT's runner trains on."""
THEIRS: Mapping[str, Any] = {
    "model_id": "meta-llama/Llama-3.2-3B",
    "dtype": "bfloat16",
    "max_seq_length": 768,
    "batch_size": 4,
    "max_steps": 5000,
    "eval_steps": 250,
    "grad_norm_clip": 1.0,
    "optimizer_kwargs": {"lr": 1e-4, "weight_decay": 0.1},
    "lr_scheduler": "cosine",
    "use_amp": False,
}
"""The settings of PEFT's `default_training_params.json` (September 2026) that a sweep can change."""
_WARMUP = 0.1
"""The share of the steps over which PEFT's runner warms up."""


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        place: its folder, TYPE/NAME.
        adapter: `adapter_config.json`; None for full fine-tuning.
        training: `training_params.json`.
        row: the cell's row of the view `scaling`.
        tried: the number of learning rates that the cell was tuned over.
        differs: what PEFT's runner always does, and this sweep did in another way.
    """

    place: str
    adapter: Mapping[str, Any] | None
    training: Mapping[str, Any]
    row: Row
    tried: int
    differs: tuple[str, ...]


def export_experiments(folder: Path, to: Path) -> tuple[list[Experiment], list[str]]:
    """Write an experiment for each confirmed cell whose method PEFT can train, and the text of a pull request.

    Args:
        folder: the results folder, with its journal.
        to: folder to write; must not exist yet.

    Returns:
        The experiments, and a line on each cell that was left out.

    Raises:
        SpecError: `to` exists, the sweep used other data, its base model is not on the Hub, or there is no experiment.
    """
    if to.exists():
        raise SpecError([Problem("to", str(to), "exists; give a new folder")])
    store = open_store(folder)
    _refuse_others(store)
    experiments: dict[str, Experiment] = {}
    left_out = []
    tuned = {r["cell_id"]: r["points_tried"] for r in store.table("tuned").to_pylist()}
    for row in store.sql("select * from scaling order by method, budget").to_pylist():
        label = " at ".join(filter(None, (row["method"], row["reference"])))
        try:
            experiment = _experiment(store, row, tuned.get(row["cell_id"], 1))
        except ExportError as error:
            left_out.append(f"{label}: {error}")
            continue
        if experiment.place in experiments:
            left_out.append(f"{label}: is the same experiment as {experiments[experiment.place].row['method']}")
        else:
            experiments[experiment.place] = experiment
    for row in store.sql(_NOT_CONFIRMED).to_pylist():
        left_out.append(f"{' at '.join(filter(None, (row['method'], row['reference'])))}: is not confirmed")
    if not experiments:
        rule = "has no confirmed cell that PEFT can train" + (f" ({'; '.join(left_out)})" if left_out else "")
        raise SpecError([Problem("results", str(folder), rule)])
    for one in experiments.values():
        place = to / "experiments" / one.place
        place.mkdir(parents=True)
        for name, content in (("adapter_config.json", one.adapter), ("training_params.json", one.training)):
            if content is not None:
                (place / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (to / "pull-request.md").write_text(_pull_request([*experiments.values()]), encoding="utf-8")
    return [*experiments.values()], left_out


_NOT_CONFIRMED = """
select method, reference from cells anti join scaling using (sweep, cell_id) where feasible order by all
"""


def _refuse_others(store: Store) -> None:
    """Raise SpecError for data and base models that PEFT's runner cannot load."""
    problems = []
    for row in store.sql("select distinct dataset, model from cells order by all").to_pylist():
        if row["dataset"] != DATASET:
            rule = "PEFT's method_comparison trains on MetaMathQA; rates of other data mean little there"
            problems.append(Problem("data.datasets", row["dataset"], rule, DATASET))
        if not row["model"].startswith("hf:"):
            rule = "PEFT's method_comparison loads the base model from the Hub"
            problems.append(Problem("model.id", row["model"], rule, f"hf:{THEIRS['model_id']}"))
    if problems:
        raise SpecError(problems)


def _experiment(store: Store, row: Row, tried: int) -> Experiment:
    """Return the experiment of a confirmed cell. Raise ExportError if PEFT cannot train it."""
    query = f"select * from confirmed where cell_id = '{row['cell_id']}' order by slot limit 1"  # noqa: S608  our hash
    (run,) = store.sql(query).to_pylist()
    trial = config_of(store, run["trial_id"])
    if trial.method in (NO_TRAINING, LINEAR_PROBE, "full-targets"):
        raise ExportError("PEFT's method_comparison trains adapters, or all weights")
    if trial.train.base_weights in QUANTISED:
        raise ExportError(
            f"its base weights are in {trial.train.base_weights}, and PEFT's runner loads models in float32 or bfloat16"
        )
    if trial.train.schedule == "linear":
        raise ExportError("its learning rate falls linearly, and PEFT's runner knows cosine and constant rates")
    adapter = None if trial.method in FULL_METHODS else _adapter(trial)
    kind = "full-finetuning" if adapter is None else str(adapter["peft_type"]).lower()
    own = trial.method.removeprefix(PEFTS_OWN)
    words = [_short(trial.model), row["reference"], None if own in (kind, "full") else own, f"lr_{trial.lr:g}"]
    training = {name: value for name, value in _training(trial, run).items() if value != THEIRS[name]}
    place = f"{kind}/{'-'.join(filter(None, words))}"
    return Experiment(place, adapter, training, row, tried, tuple(_differences(trial)))


def _short(model: str) -> str:
    """Return a model's name as PEFT's experiments write it: 'llama-3.2-3B' of 'hf:meta-llama/Llama-3.2-3B'."""
    name = model.rpartition("/")[2]
    return name[0].lower() + name[1:]


def _adapter(trial: TrialConfig) -> dict[str, Any]:
    """Return `adapter_config.json`. Raise ExportError if PEFT would train something else."""
    capacities = dict(trial.capacities)
    method = get_method(trial.method)
    config = method.config_for(capacities, dict(trial.options))
    model = meta_model(trial.model)
    gradients = zero_gradients(method, target_shapes(model, list(capacities)))
    adapted = attach(model, config, list(capacities), capacities=capacities, gradients=gradients)
    if adapted.rate_ratios():
        raise ExportError(
            f"{method.title} trains some tensors at another rate, and PEFT's runner would train plain LoRA"
        )
    return peft_config(adapted) | {"task_type": "CAUSAL_LM"}


def _training(trial: TrialConfig, run: Row) -> dict[str, Any]:
    """Return the settings of a trial in the form of PEFT's `training_params.json`."""
    train = trial.train
    steps = math.ceil(run["samples"] / train.global_batch_size)
    decay = train.full_weight_decay if trial.method in FULL_METHODS else train.weight_decay
    return {
        "model_id": parse_id(trial.model).name,
        "dtype": "bfloat16" if train.base_weights == "bf16" else "float32",
        "max_seq_length": train.max_tokens or DEFAULT_MAX_TOKENS,
        "batch_size": train.global_batch_size,
        "max_steps": steps,
        "eval_steps": min(THEIRS["eval_steps"], steps),
        "grad_norm_clip": train.grad_clip,
        "optimizer_kwargs": {"lr": trial.lr, "weight_decay": decay},
        "lr_scheduler": "cosine" if train.schedule == "cosine" else None,
        "use_amp": run["precision"] == "bf16" and train.base_weights == "fp32",
    }


def _differences(trial: TrialConfig) -> list[str]:
    """Return what PEFT's runner always does, and this trial did in another way."""
    train = trial.train
    differences = []
    if train.schedule == "cosine" and (train.warmup_fraction != _WARMUP or train.warmup_steps is not None):
        warmup = (
            f"{train.warmup_steps} steps" if train.warmup_steps else f"{100 * train.warmup_fraction:g} % of the steps"
        )
        differences.append(f"warm-up over 10 % of the steps (here {warmup})")
    if not train.loss_on_prompt:
        differences.append("a loss over the prompt too (here over the response alone)")
    return differences


def _pull_request(experiments: list[Experiment]) -> str:
    """Return the text of a pull request, with the tuned learning rates and the scores here."""
    rows = []
    for one in experiments:
        score, seeds = score_text(one.row), plural(one.row["n"], "seed")
        rates, count = f"{one.row['lr']:.3g}, chosen among {one.tried}", one.row["adapter_params"]
        rows.append([code(one.place), "" if count is None else f"{count:,}", rates, f"{score}, {seeds}"])
    differs = list(dict.fromkeys(text for one in experiments for text in one.differs))
    otherwise = "" if not differs else f"\nThe runner of this repository differs: {'; '.join(differs)}.\n"
    return (
        "# Tuned learning rates for MetaMathQA\n\n"
        "Every method was tuned with the same number of trials on validation questions. The chosen rates were trained "
        "again on new seeds, and tested once. Scores are GSM8K test accuracy in % with 95 % intervals over seeds.\n\n"
        + markdown_table(("experiment", "trainable parameters", "learning rate", "test accuracy"), rows, (1, 3))
        + otherwise
    )
