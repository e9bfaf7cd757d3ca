"""What a lane keeps between trials: the base model on its device, data sets, decoded images, vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from trainables.config import Stage
from trainables.data.images.dataset import Dataset
from trainables.data.images.pixels import KEEP_BYTES, Pixels, Recipe
from trainables.data.registry import load_dataset, load_text_dataset
from trainables.data.text.dataset import TextDataset
from trainables.models.loading import LoadedModel, load_model
from trainables.models.sharing.shared import shared_model
from trainables.models.sharing.skeleton import named_tensors

T = TypeVar("T")

FEATURE_BYTES = 2**30
"""Vectors of frozen towers that a lane keeps, on its device."""

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Marks:
    """How a model's tensors looked when it was loaded: identity, address, write counter and a checksum of the bits."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {n: (id(t), t.data_ptr(), t._version, _checksum(t)) for n, t in named_tensors(model).items()}

    def holds(self, model: nn.Module, *, thorough: bool = False) -> bool:
        """Whether every tensor is the same object with the same bits; only those written to are read.

        A write through `.data` leaves the counter as it was: `thorough` reads every tensor.
        """
        tensors = named_tensors(model)
        if tensors.keys() != self._seen.keys():
            return False
        for name, tensor in tensors.items():
            identity, address, version, checksum = self._seen[name]
            if (id(tensor), tensor.data_ptr()) != (identity, address):
                return False
            if thorough or tensor._version != version:
                if _checksum(tensor) != checksum:
                    return False
                self._seen[name] = (identity, address, tensor._version, checksum)
        return True


@torch.no_grad()
def _checksum(tensor: Tensor) -> int:
    words = tensor.detach().reshape(-1).view(_WORDS[tensor.element_size()])
    return int(words.sum(dtype=torch.int64))


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

    def model(self, model_id: str) -> LoadedModel:
        """The base model on this worker's device, loaded on first use; on the CPU one copy for a machine's workers."""
        models = self._table("models")
        if model_id not in models:
            for table in ("models", "marks", "words", "features"):
                self._table(table).clear()
            loaded = shared_model(model_id) if self.device.type == "cpu" else load_model(model_id)
            loaded.module.to(self.device)
            models[model_id] = loaded
            self._table("marks")[model_id] = Marks(loaded.module)
        found: LoadedModel = models[model_id]
        return found

    def check_model(self, model_id: str, *, thorough: bool = False) -> bool:
        """Whether the model is as it was loaded; if not, it is dropped and the next trial loads it afresh.

        `thorough`: after code of another package, which may write in ways that torch does not count.
        """
        models, marks = self._table("models"), self._table("marks")
        if model_id not in models or marks[model_id].holds(models[model_id].module, thorough=thorough):
            return True
        del models[model_id], marks[model_id]
        return False

    def dataset(self, name: str, stage: Stage) -> Dataset:
        """The data set as `stage` may see it."""
        return self._kept("datasets", name, lambda: load_dataset(name)).at(stage)

    def text_dataset(self, name: str, stage: Stage) -> TextDataset:
        """The text set as `stage` may see it."""
        return self._kept("texts", name, lambda: load_text_dataset(name)).at(stage)

    def words(self, key: Hashable, make: Callable[[], T]) -> T:
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


def _drop_oldest(kept: dict[Any, Any], size: Callable[[Any], int], limit: int) -> None:
    """Shrink a table to `limit` bytes, or to its newest entry."""
    while sum(map(size, kept.values())) > limit and len(kept) > 1:
        kept.pop(next(iter(kept)))
