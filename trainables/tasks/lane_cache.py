"""The cache of a lane between trials: the base model on its device, data sets, decoded images, features."""

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
"""Bytes of frozen towers' features that a lane caches, on its device."""
SETS = 2
"""The number of data sets of images, and of texts, that a lane caches. The newest stay: a worker finishes a
cell first."""


class Snapshot:
    """The state of a model's tensors when it was loaded: identity, address, and a checksum of bits and their places.

    torch's counters of writes would be cheaper to read, but `.data`, NumPy and DLPack write without counting.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen = _tensor_states(model)

    def holds(self, model: nn.Module) -> bool:
        """Return whether every tensor is still the same object with the same bits."""
        return _tensor_states(model) == self._seen


def _tensor_states(model: nn.Module) -> dict[str, tuple[int, int, int]]:
    """Return the state of each tensor of a model."""
    tensors = named_tensors(model)
    for name, layer in model.named_modules():
        if is_quantised(layer):
            tensors |= {f"{name}: scales {i}": t for i, t in enumerate(scale_tensors(layer))}
    return {name: (id(t), t.data_ptr(), checksum(t)) for name, t in tensors.items()}


class LaneCache:
    """A lane's cache. Its content is in the lane's plain dict, which outlives trials. It has one base model at
    a time."""

    def __init__(self, store: dict[str, Any], device: torch.device, *, keep_bytes: int = KEEP_BYTES) -> None:
        self._store = store
        self._keep_bytes = keep_bytes
        self.device = device
        if store.get("device", device) != device:
            store.clear()
        store["device"] = device

    def _table(self, name: str) -> dict[Any, Any]:
        """Return the table of this name, made if missing."""
        table: dict[Any, Any] = self._store.setdefault(name, {})
        return table

    def _cached(self, table: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value under a key of a table, made on first use. It becomes the table's newest value, which comes
        last."""
        entries = self._table(table)
        entries[key] = entries.pop(key) if key in entries else make()
        value: T = entries[key]
        return value

    def _cached_set(self, table: str, name: str, load: Callable[[], T]) -> T:
        """Return a data set. If it is new, older ones are removed with what was made from their rows."""
        sets = self._table(table)
        while name not in sets and len(sets) >= SETS:
            gone = next(iter(sets))
            del sets[gone]
            for table_name, start in (("pixels", (gone,)), ("words", ("tokens", gone))):
                entries = self._table(table_name)
                for key in [key for key in entries if key[: len(start)] == start]:
                    del entries[key]
        return self._cached(table, name, load)

    def model(self, model_id: str, weights: str = "fp32") -> LoadedModel:
        """Return the base model on this worker's device, loaded on first use.

        On the CPU, the workers of a machine share one copy. With `weights` other than "fp32" (`train.base_weights`),
        each worker has its own copy.
        """
        models, key = self._table("models"), _model_key(model_id, weights)
        if key not in models:
            self.drop_model()
            loaded = shared_model(model_id) if self.device.type == "cpu" else load_model(model_id)
            hold(loaded.module, weights, self.device)
            models[key] = loaded
            self._table("marks")[key] = Snapshot(loaded.module)
        base_model: LoadedModel = models[key]
        return base_model

    def drop_model(self) -> None:
        """Remove the base model, and all that was made with it."""
        for table in ("models", "marks", "words", "features", "decompositions"):
            self._table(table).clear()

    def check_model(self, model_id: str, weights: str = "fp32") -> bool:
        """Return whether the model is as it was loaded. If it is not, it is removed, and the next trial loads
        it again."""
        models = self._table("models")
        snapshots = self._table("marks")
        key = _model_key(model_id, weights)
        if key not in models or snapshots[key].holds(models[key].module):
            return True
        del models[key], snapshots[key]
        return False

    def dataset(self, name: str, stage: Stage) -> Dataset:
        """Return the data set as `stage` may see it."""
        return self._cached_set("datasets", name, lambda: load_dataset(name)).at(stage)

    def text_dataset(self, name: str, stage: Stage) -> TextDataset:
        """Return the text set as `stage` may see it."""
        return self._cached_set("texts", name, lambda: load_text_dataset(name)).at(stage)

    def decompositions(self) -> Decompositions:
        """Return the cache of what attaching computes from the base model that is loaded now."""
        return self._cached("decompositions", "of the model", Decompositions)

    def words(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """Return something that the loaded base model makes from words, such as texts in tokens. It is made once."""
        return self._cached("words", key, make)

    def pixels(self, dataset: Dataset, which: Literal["train", "test"], recipe: Recipe) -> Pixels:
        """Return the decoded images of a split at one size. Raises SplitError for "test" in stage TUNE.

        The oldest are removed if all together would exceed the limit.
        """
        split = dataset.train if which == "train" else dataset.test
        make = functools.partial(Pixels, split, recipe, keep_bytes=self._keep_bytes)
        pixels_of_split = self._cached("pixels", (dataset.name, which, recipe), make)
        _drop_oldest(self._table("pixels"), lambda pixels: pixels.kept_bytes, self._keep_bytes)
        return pixels_of_split

    def features(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """Return features of a frozen tower under a key of all that they depend on. They are made once.

        The oldest are removed if all together would exceed the limit.
        """
        features = self._cached("features", key, make)
        _drop_oldest(self._table("features"), lambda vectors: vectors.nbytes, FEATURE_BYTES)
        return features


def _model_key(model_id: str, weights: str) -> str:
    """Return the key of a base model in the cache."""
    return model_id if weights == "fp32" else f"{model_id} in {weights}"


def _drop_oldest(kept: dict[Any, Any], size: Callable[[Any], int], limit: int) -> None:
    """Remove a table's oldest entries until it has at most `limit` bytes, or only its newest entry."""
    while sum(map(size, kept.values())) > limit and len(kept) > 1:
        kept.pop(next(iter(kept)))
