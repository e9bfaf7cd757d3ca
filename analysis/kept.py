"""The trained weights of a results folder, for diagnostics: which trials kept theirs, their updates, and what to run
them on. Needs torch; of the base model only what the folder's sweep used."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import randlora
from analysis.errors import StoreError
from analysis.methods import style
from analysis.store import Store
from randlora.checkpoint import META
from randlora.sites import find_sites
from randlora.targets import select
from trainables.clip import BothTask, VisionTask, class_embeddings
from trainables.data import load_dataset, split
from trainables.data.batches import Normalise
from trainables.data.pixels import Pixels, Recipe
from trainables.evaluate import Classifier
from trainables.models import LoadedModel, load_model

Row = dict[str, Any]
FULL_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Kept:
    """A confirmed trial whose trained weights are on disk. `row`: its row in `trials`; `folder`: the weights."""

    row: Row
    folder: Path

    @property
    def full(self) -> bool:
        """Whether it is full fine-tuning: whole weights, not an adapter."""
        return not (self.folder / META).is_file()

    @property
    def place(self) -> tuple[str, str, str, str]:
        """(sweep, model, data set, training size)."""
        return self.row["sweep"], self.row["model"], self.row["dataset"], self.row["train_size"]

    @property
    def named(self) -> Row:
        """The columns that say which trial a diagnostic's row is about."""
        keys = ("sweep", "model", "dataset", "train_size", "method", "reference", "adapter_params", "trial_id")
        return {k: self.row[k] for k in keys}


def kept_trials(store: Store) -> list[Kept]:
    """One kept trial per confirmed cell, by place, method and budget; of several, the lowest seed (shared by methods).

    Raises:
        StoreError: none is kept, with what to set.
    """
    cells: dict[tuple[str, str], list[Kept]] = defaultdict(list)
    for row in store.table("confirmed").to_pylist():
        folder = store.path / "adapters" / row["trial_id"]
        if (folder / META).is_file() or (folder / FULL_WEIGHTS).is_file():
            cells[row["sweep"], row["cell_id"]].append(Kept(row, folder))
    if not cells:
        raise StoreError(
            f'{store.path} keeps no trained weights; set [keep] adapters = "confirm" and full = true before it runs'
        )
    chosen = [min(group, key=lambda k: k.row["slot"]) for group in cells.values()]
    return sorted(chosen, key=lambda k: (*k.place, style(k.row["method"]).order, k.row["adapter_params"] or 0))


def full_of(trials: Sequence[Kept], one: Kept) -> Kept | None:
    """Full fine-tuning in the place of `one`; None where it was not kept."""
    found = [k for k in trials if k.full and k.place == one.place]
    return next((k for k in found if k.row["method"] == "full"), found[0] if found else None)


def need_full(trials: Sequence[Kept]) -> None:
    """Raises StoreError where no full fine-tuning is kept."""
    if not any(k.full for k in trials):
        raise StoreError(
            "this diagnostic compares with full fine-tuning, whose weights are not kept here; "
            "add [methods.full] and set [keep] full = true before the sweep runs"
        )


def deltas(module: nn.Module, kept: Kept, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Weight name -> update (out, in), float32. The module stays as it was.

    For full fine-tuning the weights `names`, as an adapter's are named (parts too); None: every 2-D weight.
    """
    if kept.full:
        trained = load_file(kept.folder / FULL_WEIGHTS)
        sites = find_sites(module) if names is None else select(module, names)
        found = {n: s for n, s in sites.items() if s.stored_name in trained}
        return {
            n: s.view(trained[s.stored_name].float() - s.parameter.detach().float().cpu()) for n, s in found.items()
        }
    adapted = randlora.load(module, kept.folder)
    try:
        return {name: delta.detach().float().cpu().clone() for name, delta in adapted.deltas().items()}
    finally:
        adapted.detach()


def trained_state(module: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """Parameters that training changed, by name, as trained (merged)."""
    if kept.full:
        return dict(load_file(kept.folder / FULL_WEIGHTS))
    adapted = randlora.load(module, kept.folder)
    try:
        with adapted.merging():
            return {s.stored_name: s.parameter.detach().clone() for s in adapted.sites.values()}
    finally:
        adapted.detach()


@dataclass(frozen=True, eq=False)
class Bench:
    """A base model with labelled images of its training pool to run it on; the test split is never read.

    Attributes:
        loaded: the base model, in eval mode.
        task: loss and prediction.
        batches: normalised images (B, 3, S, S) and labels (B,).
        modules: residual blocks by name, in order.
    """

    loaded: LoadedModel
    task: Classifier
    batches: tuple[tuple[Tensor, Tensor], ...]
    modules: dict[str, nn.Module]


def bench(row: Row, images: int = 256, batch_size: int = 64, seed: int = 0) -> Bench:
    """What a trial was trained on: its model, its task, and `images` images drawn from its training pool.

    Raises:
        StoreError: a model that is not CLIP.
    """
    loaded = load_model(row["model"])
    if loaded.kind != "clip" or loaded.preprocess is None or loaded.tokenizer is None:
        raise StoreError(f"model {row['model']!r} is of kind {loaded.kind!r}; this diagnostic runs CLIP models only")
    module = loaded.module.eval().requires_grad_(False)
    dataset = load_dataset(row["dataset"])
    pool = split(dataset, 1.0, 0, "TUNE").train_idx
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:images]
    look = loaded.preprocess
    how = "bilinear" if look.interpolation == "bilinear" else "bicubic"
    pixels = Pixels(dataset.train, Recipe(look.image_size, how))  # type: ignore[arg-type]
    normalise = Normalise(look.mean, look.std, torch.device("cpu"))
    parts = torch.split(pool[order], batch_size)
    batches = tuple((normalise(pixels.rows(p)), dataset.train.labels[p]) for p in parts if len(p) == batch_size)
    task: Classifier
    if row["adapt"] == "both":
        tokens = loaded.tokenizer([dataset.prompt.format(c) for c in dataset.class_names])
        task = BothTask(module, tokens, contextlib.nullcontext)
    else:
        words = (dataset.class_names, dataset.templates)
        place = {"device": torch.device("cpu"), "autocast": contextlib.nullcontext}
        classes = class_embeddings(module, loaded.tokenizer, *words, **place)  # type: ignore[arg-type]
        task = VisionTask(module, classes, contextlib.nullcontext)
    blocks = {n: m for n, m in module.named_modules() if n.startswith("visual.") and n.split(".")[-1].isdigit()}
    blocks = {n: m for n, m in blocks.items() if "resblocks" in n}
    return Bench(loaded, task, batches, blocks)


def resumable(folder: Path, name: str, trials: Iterable[Kept], rows_of: Callable[[Kept], list[Row]]) -> pa.Table:
    """Rows of every trial, each trial's in a Parquet file of its own; those already there are not computed again.

    Returns:
        All rows as one table; without a row where no trial gave any.
    """
    place = folder / "diagnostics" / name
    place.mkdir(parents=True, exist_ok=True)
    tables = []
    for kept in trials:
        path = place / f"{kept.row['trial_id']}.parquet"
        if not path.is_file():
            part = path.with_suffix(".tmp")
            pq.write_table(pa.Table.from_pylist(rows_of(kept)), part)
            part.replace(path)
        tables.append(pq.read_table(path))
    full = [t for t in tables if t.num_rows]
    return pa.concat_tables(full, promote_options="permissive") if full else pa.table({})
