"""The batch sizes that a sweep searches: one list for all methods, and the settings that contradict it.

Every trial sees the same examples in the same order, whatever its batch size. So a list rules out settings that count
steps or batches.
"""

from __future__ import annotations

from typing import Any

from sweeps.errors import Problem
from sweeps.spec.sections import Sections
from sweeps.spec.space import BATCH_SIZE
from trainables.config import TrainSettings

FIELD = f"search.space.{BATCH_SIZE}"


def batch_sizes(spec: Sections) -> tuple[int, ...]:
    """Return the batch sizes that the sweep searches, in the order of the file; () if it searches none."""
    entry = spec.search.space.get(BATCH_SIZE)
    if entry is None or spec.protocol == "paper":  # protocol paper searches nothing
        return ()
    return tuple(int(value) for value in entry.values)


def with_largest_batch(spec: Sections) -> TrainSettings:
    """Return the training settings with the largest batch of the sweep, whose step takes the most memory."""
    sizes = batch_sizes(spec)
    return spec.train.model_copy(update={BATCH_SIZE: max(sizes)}) if sizes else spec.train


def batch_problems(spec: Sections) -> list[Problem]:
    """Return what is wrong with the searched batch sizes, and settings that they rule out."""
    problems = []
    for name, section in spec.methods.items():
        if BATCH_SIZE in (section.space or {}):
            rule = "batch sizes are searched for all methods alike; write the list under [search.space]"
            problems.append(Problem(f"methods.{name}.space.{BATCH_SIZE}", None, rule, FIELD))
    entry = spec.search.space.get(BATCH_SIZE)
    if problems or entry is None or spec.protocol == "paper":
        return problems
    values = list(entry.values)
    if not values:
        ends = [int(end) for end in (entry.low, entry.high) if end is not None]
        rule = "must be a list of batch sizes, so that it is known before a run which ones are tried"
        return [Problem(FIELD, None, rule, str(ends))]
    for value in values:
        if isinstance(value, bool | str) or value != int(value):
            near = None if isinstance(value, bool | str) else str(max(1, round(value)))
            problems.append(Problem(FIELD, value, "must be a whole number", near))
        elif value < 1:
            problems.append(Problem(FIELD, value, "must be at least 1", "1"))
    if problems:
        return problems
    sizes = sorted({int(value) for value in values})
    if len(sizes) < len(values):
        return [Problem(FIELD, values, "each batch size may be listed once", str(sizes))]
    if len(sizes) == 1:
        rule = "one batch size is no search; set it for all trials"
        return [Problem(FIELD, values, rule, f"train.{BATCH_SIZE} = {sizes[0]}")]
    return _ruled_out(spec, sizes)


def _ruled_out(spec: Sections, sizes: list[int]) -> list[Problem]:
    """Return a problem for each setting of `[train]` that contradicts a search of these batch sizes."""
    train, problems = spec.train, []
    if BATCH_SIZE in train.model_fields_set and train.global_batch_size not in sizes:
        rule = f"is not among the searched {FIELD} = {sizes}; leave it out, or give one of them to start from"
        closest = min(sizes, key=lambda size: abs(size - train.global_batch_size))
        problems.append(Problem(f"train.{BATCH_SIZE}", train.global_batch_size, rule, str(closest)))
    counted: dict[str, tuple[Any, str, str]] = {
        "warmup_steps": (train.warmup_steps, "steps", "train.warmup_fraction"),
        "select_every": (train.select_every, "steps", "leave it out: once an epoch"),
        "min_batches_per_epoch": (train.min_batches_per_epoch, "batches", "data.epochs"),
    }
    for name, (value, unit, near) in counted.items():
        if value:
            rule = f"counts {unit}, which have another number of examples at each of the batch sizes in {FIELD}"
            problems.append(Problem(f"train.{name}", value, rule, near))
    return problems
