"""What trained language models keep: their loss on general text, before and after training.

The loss is the mean over tokens of the cross-entropy of each token given those before it. Before: the base model
without any adapter. After: the same windows under the trial's weights. Every kept seed of CONFIRM is looked at, so that
methods are paired by seed.
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
from analysis.statistics.inference import stratified_difference
from analysis.statistics.runs import Seed, seed_of
from analysis.store.store import Store
from analysis.styles import in_order, place_of
from trainables.models.language import LanguageModel
from trainables.runtime import choose_precision
from trainables.tasks.text.rows import TextTask

WINDOW = 256
"""Tokens of a window; the last one may have fewer."""
WINDOWS = 64
"""Most windows, evenly spaced through the text."""
AT_ONCE = 4
OVERLAP = 40
"""Characters from which on a line of a training text that stands in the general text is an overlap."""


def plan(store: Store, texts: Path) -> list[Unit]:
    """A unit per kept trial with an update of its weights, of every seed.

    Args:
        texts: a file of general text, UTF-8.

    Raises:
        StoreError: nothing kept, no specification of the sweep, or a file that can't be read or is empty.
    """
    content = read(texts)
    facts = sweep_facts(store) | {"texts": str(texts.absolute())}
    settings = {"texts": hashlib.sha256(content.encode()).hexdigest(), "window": WINDOW, "windows": WINDOWS}
    return [Unit("retention", (kept.brief,), settings, facts) for kept in every_kept(store)]


def read(texts: Path) -> str:
    """The general text. Raises StoreError: no such file, another encoding, or nothing in it."""
    try:
        content = texts.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"--texts {texts} cannot be read as UTF-8 text: {error}") from error
    if not content.strip():
        raise StoreError(f"--texts {texts} is empty; give a file of general text")
    return content


def rows(folder: Path, unit: Unit, warm: dict[str, Any]) -> list[Row]:
    """The row of one unit of `plan` (arguments: `analyze.compute`).

    Raises:
        StoreError: no language model, a text that is too short, or one that has training texts in it.
    """
    content = read(Path(unit.facts["texts"]))
    bench, kept = Bench(unit.facts, unit.trials[0], warm), Kept.of(unit.trials[0], folder)
    if bench.loaded.kind != "causal-lm" or bench.loaded.text_tokenizer is None:
        raise StoreError(f"retention needs a language model, and {bench.loaded.model_id!r} is of another kind")
    refuse_overlap(bench, content, unit.facts["texts"])
    found = windows(content, bench.loaded.text_tokenizer, unit.settings["window"], unit.settings["windows"])
    if sum(len(part) - 1 for part in found) < 1:
        raise StoreError(f"--texts {unit.facts['texts']} has fewer than two tokens; give a file of general text")
    key = f"retention {unit.settings['texts']} {bench.loaded.model_id}"
    if key not in warm:  # of the base model, once for all trials
        warm[key] = text_loss(bench, found)
    before: float = warm[key]
    with bench.trained(kept) as state:
        after = float(bench.under(state, text_loss, bench, found))
    seeds = {name: kept.row[name] for name in ("data_seed", "init_seed", "basis_seed")}
    tokens = sum(len(part) - 1 for part in found)
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
    """The long lines of a trial's training rows. What half of the rows or more have is the prompt's template."""
    part, rows = task.train_split, task.rows("train").tolist()
    times = Counter(
        line
        for row in rows
        for line in {
            line.strip()
            for value in vars(part.rows[row]).values()
            if isinstance(value, str)
            for line in value.splitlines()
            if len(line.strip()) >= OVERLAP
        }
    )
    return [line for line, count in times.items() if count < max(2, len(rows) / 2)]


def windows(content: str, tokenizer: Any, size: int, most: int) -> list[Tensor]:
    """Token ids of the windows (at most `size` each), without special tokens."""
    ids = torch.tensor(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
    parts = [part for part in torch.split(ids, size) if len(part) > 1]
    if len(parts) <= most:
        return parts
    return [parts[int(k)] for k in torch.linspace(0, len(parts) - 1, most).round()]


@torch.no_grad()
def text_loss(bench: Bench, found: Sequence[Tensor]) -> float:
    """Mean cross-entropy of each token of the windows but the first, given those before it in its window."""
    _, autocast = choose_precision("fp32", next(bench.module.parameters()).device)
    model, total, count = LanguageModel(bench.module, autocast), 0.0, 0
    for part in found:
        places = torch.arange(len(part) - 1)
        logits, _ = model.logits(part[None], torch.zeros_like(places), places)
        total += float(cross_entropy(logits.double(), part[1:].to(logits.device), reduction="sum"))
        count += len(places)
    return total / count


def changes(table: pa.Table) -> list[Row]:
    """Per method and budget the mean change of the loss over seeds and data sets, and the same less LoRA's.

    Differences are paired by seed with LoRA at the same budget; a method without a budget has none. Intervals are of
    95 % each, not corrected for how many there are; null with one seed.
    """
    cells: dict[tuple[str, str | None], dict[tuple[Any, ...], dict[Seed, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    sizes: dict[tuple[str, str | None], int] = {}
    for r in table.to_pylist():
        cells[r["method"], r["reference"]][place_of(r)][seed_of(r)] = r["change"]
        sizes[r["method"], r["reference"]] = r["adapter_params"] or 0
    order = in_order({method for method, _ in cells})
    found: list[Row] = []
    for method, reference in sorted(cells, key=lambda key: (order.index(key[0]), sizes[key])):
        own, lora = cells[method, reference], cells.get(("lora", reference), {})
        whole = stratified_difference([list(seeds.values()) for seeds in own.values()])
        row: Row = {
            "method": method,
            "reference": reference,
            "change": whole.mean,
            "low": whole.low,
            "high": whole.high,
        }
        paired = [[v - lora[p][s] for s, v in seeds.items() if s in lora[p]] for p, seeds in own.items() if p in lora]
        if method != "lora" and any(paired):
            less = stratified_difference(paired)
            row |= {"less_lora": less.mean, "less_low": less.low, "less_high": less.high}
        found.append(row | {"n": whole.n})
    return found
