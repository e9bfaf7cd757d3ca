"""Measure the loss of language models on general text before and after training: how much they forget.

The loss is the mean over tokens of the cross-entropy of each token given those before it. Before training it is that of
the base model without any adapter. After training it is that of the same windows of text under the trial's weights.
All kept seeds of stage CONFIRM are measured, so that methods can be paired by seed.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.diagnostics.bench import Bench
from analysis.diagnostics.units import Unit, sweep_facts
from analysis.diagnostics.weights import Kept, every_kept
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store
from analysis.styles import in_order, place_of
from analysis.verdict.inference import stratified_difference
from analysis.verdict.runs import Seed, seed_of
from trainables.models.language import LanguageModel
from trainables.runtime import choose_precision
from trainables.tasks.text.rows import TextTask

WINDOW = 256
"""Number of tokens of a window. The last window may have fewer."""
WINDOWS = 64
"""Largest number of windows, evenly spaced through the text."""
OVERLAP = 40
"""A training line with at least this many characters must not stand in the general text."""


def plan(store: Store, texts: Path) -> list[Unit]:
    """Return a unit for each kept trial, of every seed.

    Args:
        texts: a file of general text, UTF-8.

    Raises:
        StoreError: no weights are kept, the sweep's specification is missing, or the file cannot be read or is empty.
    """
    content = read_general_text(texts)
    facts = sweep_facts(store) | {"texts": str(texts.absolute())}
    settings = {"texts": hashlib.sha256(content.encode()).hexdigest(), "window": WINDOW, "windows": WINDOWS}
    return [Unit("retention", (kept.brief,), settings, facts) for kept in every_kept(store)]


def read_general_text(texts: Path) -> str:
    """Return the general text of a file. Raises StoreError if it is missing, empty or not UTF-8."""
    try:
        content = texts.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"--texts {texts} cannot be read as UTF-8 text: {error}") from error
    if not content.strip():
        raise StoreError(f"--texts {texts} is empty; give a file of general text")
    return content


def rows(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return the row of one unit of `plan`. Arguments as in `analyze.compute`.

    Raises:
        StoreError: the model is not a language model, or the text is too short or contains training texts.
    """
    content = read_general_text(Path(unit.facts["texts"]))
    bench, kept = Bench(unit.facts, unit.trials[0], cache), Kept.of(unit.trials[0], folder)
    if bench.loaded.kind != "causal-lm" or bench.loaded.text_tokenizer is None:
        raise StoreError(f"retention needs a language model, and {bench.loaded.model_id!r} is of another kind")
    refuse_overlap(bench, content, unit.facts["texts"])
    parts = windows(content, bench.loaded.text_tokenizer, unit.settings["window"], unit.settings["windows"])
    tokens = sum(len(part) - 1 for part in parts)
    if tokens < 1:
        raise StoreError(f"--texts {unit.facts['texts']} has fewer than two tokens; give a file of general text")
    key = f"retention {unit.settings['texts']} {bench.loaded.model_id}"
    if key not in cache:  # the base model's loss is the same for all trials
        cache[key] = text_loss(bench, parts)
    before: float = cache[key]
    with bench.trained(kept) as state:
        after = float(bench.under(state, text_loss, bench, parts))
    seeds = {name: kept.row[name] for name in ("data_seed", "init_seed", "basis_seed")}
    about = {"texts": Path(unit.facts["texts"]).name, "tokens": tokens, "score": kept.row["test_score"]}
    change = {"before": before, "after": after, "change": after - before}
    return [unit.place | kept.named | seeds | about | change]


def refuse_overlap(bench: Bench, content: str, name: str) -> None:
    """Raise StoreError if a training text of the trial stands in the general text."""
    task = bench.task
    if not isinstance(task, TextTask):
        return
    for line in training_lines(task):
        if line in content:
            raise StoreError(
                f"--texts {name} has a line in it that trials trained on ({line[:60]!r}); give text that is not among "
                "the training data"
            )


def training_lines(task: TextTask[Any]) -> list[str]:
    """Return the long lines of a trial's training rows, without the prompt's template.

    A line counts as part of the template if at least half of the rows have it.
    """
    numbers = task.rows("train").tolist()
    counts = Counter(line for number in numbers for line in _long_lines(task.train_split.rows[number]))
    return [line for line, count in counts.items() if count < max(2, len(numbers) / 2)]


def _long_lines(row: Any) -> set[str]:
    """Return the lines of a training row's texts that have at least `OVERLAP` characters."""
    texts = [value for value in vars(row).values() if isinstance(value, str)]
    lines = {line.strip() for text in texts for line in text.splitlines()}
    return {line for line in lines if len(line) >= OVERLAP}


def windows(content: str, tokenizer: Any, size: int, most: int) -> list[Tensor]:
    """Return the token ids of up to `most` windows of at most `size` tokens, without special tokens."""
    ids = torch.tensor(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
    parts = [part for part in torch.split(ids, size) if len(part) > 1]
    if len(parts) <= most:
        return parts
    return [parts[int(k)] for k in torch.linspace(0, len(parts) - 1, most).round()]


@torch.no_grad()
def text_loss(bench: Bench, parts: Sequence[Tensor]) -> float:
    """Return the mean cross-entropy of all tokens but the first of each window, given those before in the window."""
    _, autocast = choose_precision("fp32", next(bench.module.parameters()).device)
    model, total, count = LanguageModel(bench.module, autocast), 0.0, 0
    for part in parts:
        places = torch.arange(len(part) - 1)
        logits, _ = model.logits(part[None], torch.zeros_like(places), places)
        total += float(cross_entropy(logits.double(), part[1:].to(logits.device), reduction="sum"))
        count += len(places)
    return total / count


def changes(table: pa.Table) -> list[Row]:
    """Return a row for each method and budget with the mean change of the measure, and that change less LoRA's.

    Means are over seeds and data sets. Differences are paired by seed with LoRA at the same budget, so a method without
    a budget has none. Each interval is a 95 % interval by itself, without a correction for several methods. It is null
    with one seed.
    """
    cells: dict[tuple[str, str | None], dict[tuple[Any, ...], dict[Seed, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    sizes: dict[tuple[str, str | None], int] = {}
    for r in table.to_pylist():
        cells[r["method"], r["reference"]][place_of(r)][seed_of(r)] = r["change"]
        sizes[r["method"], r["reference"]] = r["adapter_params"] or 0
    order = in_order({method for method, _ in cells})
    rows_of_cells: list[Row] = []
    for method, reference in sorted(cells, key=lambda key: (order.index(key[0]), sizes[key])):
        seed_changes, lora = cells[method, reference], cells.get(("lora", reference), {})
        mean_change = stratified_difference([list(seeds.values()) for seeds in seed_changes.values()])
        row: Row = {
            "method": method,
            "reference": reference,
            "change": mean_change.mean,
            "low": mean_change.low,
            "high": mean_change.high,
        }
        paired = [
            [v - lora[p][s] for s, v in seeds.items() if s in lora[p]] for p, seeds in seed_changes.items() if p in lora
        ]
        if method != "lora" and any(paired):
            less = stratified_difference(paired)
            row |= {"less_lora": less.mean, "less_low": less.low, "less_high": less.high}
        rows_of_cells.append(row | {"n": mean_change.n})
    return rows_of_cells
