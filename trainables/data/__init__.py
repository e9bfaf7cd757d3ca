"""Image sets by name, their nested subsets, and the rule that tuning can't see the test split."""

from trainables.data.dataset import Dataset, ImageSplit
from trainables.data.info import DatasetInfo, DataWarning
from trainables.data.registry import (
    DATASETS,
    check_dataset,
    embedded_datasets,
    known_datasets,
    load_dataset,
    register,
)
from trainables.data.splits import Splits, split
from trainables.errors import DataError, SplitError

__all__ = [
    "DATASETS",
    "DataError",
    "DataWarning",
    "Dataset",
    "DatasetInfo",
    "ImageSplit",
    "SplitError",
    "Splits",
    "check_dataset",
    "embedded_datasets",
    "known_datasets",
    "load_dataset",
    "register",
    "split",
]
