"""What a lane keeps between trials: the base model on its device, data sets, decoded images, class embeddings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from trainables.config import Stage
from trainables.data.dataset import Dataset, ImageSplit
from trainables.data.images.pixels import KEEP_BYTES, Pixels, Recipe
from trainables.data.registry import load_dataset, load_text_dataset
from trainables.data.text.dataset import TextDataset
from trainables.models.clip_towers import class_embeddings
from trainables.models.loading import LoadedModel, load_model
from trainables.models.sharing.shared import shared_model
from trainables.runtime import Autocast

T = TypeVar("T")

FEATURE_BYTES = 2**30
"""Vectors of frozen towers that a lane keeps, on its device."""

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pick_device() -> torch.device:
    """The worker's accelerator: the current CUDA device, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


class Marks:
    """How a model's tensors looked when it was loaded: identity, address, write counter and a checksum of the bits."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {n: (id(t), t.data_ptr(), t._version, _checksum(t)) for n, t in _tensors(model).items()}

    def holds(self, model: nn.Module) -> bool:
        """Whether every tensor is the same object with the same bits; only those written to are read."""
        tensors = _tensors(model)
        if tensors.keys() != self._seen.keys():
            return False
        for name, tensor in tensors.items():
            identity, address, version, checksum = self._seen[name]
            if (id(tensor), tensor.data_ptr()) != (identity, address):
                return False
            if tensor._version != version:
                if _checksum(tensor) != checksum:
                    return False
                self._seen[name] = (identity, address, tensor._version, checksum)
        return True


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


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

    def check_model(self, model_id: str) -> bool:
        """Whether the model is as it was loaded; if not, it is dropped and the next trial loads it afresh."""
        found = self._table("models").get(model_id)
        if found is None or self._table("marks")[model_id].holds(found.module):
            return True
        self.forget_model(model_id)
        return False

    def forget_model(self, model_id: str) -> None:
        """Drop a model; the next trial loads it again."""
        for table in ("models", "marks"):
            self._table(table).pop(model_id, None)

    def dataset(self, name: str, stage: Stage) -> Dataset:
        """The data set as `stage` may see it."""
        sets = self._table("datasets")
        if name not in sets:
            sets[name] = load_dataset(name)
        found: Dataset = sets[name]
        return found.at(stage)

    def text_dataset(self, name: str, stage: Stage) -> TextDataset:
        """The text set as `stage` may see it."""
        sets = self._table("texts")
        if name not in sets:
            sets[name] = load_text_dataset(name)
        found: TextDataset = sets[name]
        return found.at(stage)

    def words(self, key: Hashable, make: Callable[[], T]) -> T:
        """Something made from words by the base model that is loaded now, such as texts in tokens; made once."""
        words = self._table("words")
        if key not in words:
            words[key] = make()
        found: T = words[key]
        return found

    def pixels(self, dataset: Dataset, which: Literal["train", "test"], recipe: Recipe) -> Pixels:
        """Decoded images of a split at one size. Raises SplitError for test in stage TUNE.

        The oldest are dropped when all together would take more than the limit.
        """
        split: ImageSplit = dataset.train if which == "train" else dataset.test
        kept = self._table("pixels")
        key = (dataset.name, which, recipe)
        if key not in kept:
            kept[key] = Pixels(split, recipe, keep_bytes=self._keep_bytes)
        kept[key] = kept.pop(key)  # the newest comes last
        while sum(p.kept_bytes for p in kept.values()) > self._keep_bytes and len(kept) > 1:
            kept.pop(next(iter(kept)))
        found: Pixels = kept[key]
        return found

    def features(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """Vectors of a frozen tower, by all that they depend on; made once, the oldest dropped over the limit."""
        kept: dict[tuple[Any, ...], Tensor] = self._table("features")
        if key not in kept:
            kept[key] = make()
        kept[key] = kept.pop(key)  # the newest comes last
        while sum(f.nbytes for f in kept.values()) > FEATURE_BYTES and len(kept) > 1:
            kept.pop(next(iter(kept)))
        return kept[key]

    def class_embeddings(self, loaded: LoadedModel, dataset: Dataset, autocast: Autocast, precision: str) -> Tensor:
        """(C, D) embeddings of the data set's classes by the untouched text tower."""
        words = self._table("words")
        key = ("embeddings", loaded.model_id, dataset.name, precision)
        if key not in words:
            assert loaded.tokenizer is not None
            words[key] = class_embeddings(
                loaded.module,
                loaded.tokenizer,
                dataset.class_names,
                dataset.templates,
                device=self.device,
                autocast=autocast,
            )
        found: Tensor = words[key]
        return found

    def class_tokens(self, loaded: LoadedModel, dataset: Dataset) -> Tensor:
        """(C, context) token ids of the single prompt of each class."""
        words = self._table("words")
        key = ("tokens", loaded.model_id, dataset.name)
        if key not in words:
            assert loaded.tokenizer is not None
            texts: Sequence[str] = [dataset.prompt.format(c) for c in dataset.class_names]
            words[key] = loaded.tokenizer(list(texts)).to(self.device)
        found: Tensor = words[key]
        return found


def freeze_statistics(model: nn.Module) -> None:
    """Keep batch-normalisation statistics as pretrained: they are buffers of the base model, not trainables."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
