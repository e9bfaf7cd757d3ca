"""What a lane keeps between trials: the base model on its device, data sets, decoded images, vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from randlora.arithmetic.decompositions import Decompositions
from randlora.model.quantised import is_quantised, scale_tensors
from trainables.config import Stage
from trainables.data.images.dataset import Dataset
from trainables.data.images.pixels import KEEP_BYTES, Pixels, Recipe
from trainables.data.registry import load_dataset, load_text_dataset
from trainables.data.text.dataset import TextDataset
from trainables.models.base_weights import hold
from trainables.models.loading import LoadedModel, load_model
from trainables.models.shared import checksum, named_tensors, shared_model

T = TypeVar("T")

FEATURE_BYTES = 2**30
"""Vectors of frozen towers that a lane keeps, on its device."""
SETS = 2
"""Data sets of images, and of texts, that a lane keeps, the newest: a worker stays with a cell until it is done."""


class Marks:
    """How a model's tensors looked when it was loaded: identity, address and a checksum of the bits and their places.

    torch's counters of writes would spare the reading, but `.data`, NumPy and DLPack write past them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen = _marks(model)

    def holds(self, model: nn.Module) -> bool:
        """Whether every tensor is the same object with the same bits."""
        return _marks(model) == self._seen


def _marks(model: nn.Module) -> dict[str, tuple[int, int, int]]:
    tensors = named_tensors(model)
    for name, layer in model.named_modules():
        if is_quantised(layer):
            tensors |= {f"{name}: scales {i}": t for i, t in enumerate(scale_tensors(layer))}
    return {name: (id(t), t.data_ptr(), checksum(t)) for name, t in tensors.items()}


class Warm:
    """A view of the lane's plain dict, which outlives trials. One base model is kept at a time."""

    def __init__(self, store: dict[str, Any], device: torch.device, *, keep_bytes: int = KEEP_BYTES) -> None:
        self._store = store
        self._keep_bytes = keep_bytes
        self.device = device
        if store.get("device", device) != device:
            store.clear()
        store["device"] = device

    def _table(self, name: str) -> dict[Any, Any]:
        table: dict[Any, Any] = self._store.setdefault(name, {})
        return table

    def _kept(self, table: str, key: Hashable, make: Callable[[], T]) -> T:
        """What a table holds under a key, made on first use. It becomes the table's newest, which comes last."""
        kept = self._table(table)
        kept[key] = kept.pop(key) if key in kept else make()
        found: T = kept[key]
        return found

    def _set(self, table: str, name: str, load: Callable[[], T]) -> T:
        """A data set; where it is new older ones go, and what was made of their rows."""
        kept = self._table(table)
        while name not in kept and len(kept) >= SETS:
            gone = next(iter(kept))
            del kept[gone]
            for of, start in (("pixels", (gone,)), ("words", ("tokens", gone))):
                made = self._table(of)
                for key in [key for key in made if key[: len(start)] == start]:
                    del made[key]
        return self._kept(table, name, load)

    def model(self, model_id: str, weights: str = "fp32") -> LoadedModel:
        """The base model on this worker's device, loaded on first use; on the CPU one copy for a machine's workers.

        `weights`: as `train.base_weights`. Weights that are not in float32 each worker has for itself.
        """
        models, key = self._table("models"), _model_key(model_id, weights)
        if key not in models:
            self.drop_model()
            loaded = shared_model(model_id) if self.device.type == "cpu" else load_model(model_id)
            hold(loaded.module, weights, self.device)
            models[key] = loaded
            self._table("marks")[key] = Marks(loaded.module)
        found: LoadedModel = models[key]
        return found

    def drop_model(self) -> None:
        """Let go of the base model and of all that was made with it."""
        for table in ("models", "marks", "words", "features", "decompositions"):
            self._table(table).clear()

    def check_model(self, model_id: str, weights: str = "fp32") -> bool:
        """Whether the model is as it was loaded; if not, it is dropped and the next trial loads it afresh."""
        models, marks, key = self._table("models"), self._table("marks"), _model_key(model_id, weights)
        if key not in models or marks[key].holds(models[key].module):
            return True
        del models[key], marks[key]
        return False

    def dataset(self, name: str, stage: Stage) -> Dataset:
        """The data set as `stage` may see it."""
        return self._set("datasets", name, lambda: load_dataset(name)).at(stage)

    def text_dataset(self, name: str, stage: Stage) -> TextDataset:
        """The text set as `stage` may see it."""
        return self._set("texts", name, lambda: load_text_dataset(name)).at(stage)

    def decompositions(self) -> Decompositions:
        """What attaching computes of the base model that is loaded now."""
        return self._kept("decompositions", "of the model", Decompositions)

    def words(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """Something made from words by the base model that is loaded now, such as texts in tokens; made once."""
        return self._kept("words", key, make)

    def pixels(self, dataset: Dataset, which: Literal["train", "test"], recipe: Recipe) -> Pixels:
        """Decoded images of a split at one size. Raises SplitError for test in stage TUNE.

        The oldest are dropped when all together would take more than the limit.
        """
        split = dataset.train if which == "train" else dataset.test
        make = functools.partial(Pixels, split, recipe, keep_bytes=self._keep_bytes)
        found = self._kept("pixels", (dataset.name, which, recipe), make)
        _drop_oldest(self._table("pixels"), lambda pixels: pixels.kept_bytes, self._keep_bytes)
        return found

    def features(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """Vectors of a frozen tower, by all that they depend on; made once, the oldest dropped over the limit."""
        found = self._kept("features", key, make)
        _drop_oldest(self._table("features"), lambda vectors: vectors.nbytes, FEATURE_BYTES)
        return found


def _model_key(model_id: str, weights: str) -> str:
    return model_id if weights == "fp32" else f"{model_id} in {weights}"


def _drop_oldest(kept: dict[Any, Any], size: Callable[[Any], int], limit: int) -> None:
    """Shrink a table to `limit` bytes, or to its newest entry."""
    while sum(map(size, kept.values())) > limit and len(kept) > 1:
        kept.pop(next(iter(kept)))
