"""What is known of a registered data set: where it comes from, how it is split, its words, its terms."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from trainables.data.downloads import UNKNOWN, check_counts, report_difference
from trainables.data.images.dataset import Dataset, Words, check_templates

Load = Callable[[str, Words], Dataset]
"""Makes a data set, given its name and its words."""


@dataclass(frozen=True)
class Sizes:
    """The number of images in a data set's parts.

    Attributes:
        train, val, test: the numbers after splitting. val is taken from what the source calls train, unless the authors
            set it aside.
    """

    train: int
    val: int
    test: int

    @property
    def pool(self) -> int:
        """Return the number of training and validation images together."""
        return self.train + self.val


@dataclass(frozen=True)
class DatasetInfo:
    """A registered data set.

    Attributes:
        load: makes the Dataset, given its name and its words.
        templates: prompts with one "{}"; () for the defaults.
        epochs: epochs on the full data in arXiv 2502.00987, Table 7; None for a set that it does not use.
        about: one line for people.
        prompt: the single prompt of the contrastive loss; None for the first template.
        classes, sizes: what a loaded set is checked against.
        rule: where validation and test come from, in words.
        source: where `load` takes it from.
        others: further sources by name, chosen with "NAME@SOURCE".
        licence: the terms that its makers state; "unknown" if they state none.
        get: how to get it if it is missing.
        unpacked: whether `load` unpacks an archive. If that was interrupted there are fewer images, which is an error.
    """

    load: Load
    templates: tuple[str, ...] = ()
    epochs: int | None = None
    about: str = ""
    prompt: str | None = field(default=None)
    classes: int | None = None
    sizes: Sizes | None = None
    rule: str = ""
    source: str = ""
    others: Mapping[str, Load] = field(default_factory=dict)
    licence: str = UNKNOWN
    get: str = ""
    unpacked: bool = False

    def __post_init__(self) -> None:
        if self.templates:
            check_templates(self.templates, self.about or "registered data set")

    def open(self, name: str, source: str | None = None) -> Dataset:
        """Load the set from one of its sources. Raises DataError for damaged files, or an archive with too few
        images."""
        load = self.load if source is None else self.others[source]
        dataset = load(name, Words(self.templates or None, self.prompt))
        unpacked = self.unpacked and source is None
        report_difference(name, "classes", len(dataset.class_names), self.classes, verified=False, unpacked=unpacked)
        if self.sizes is None:
            return dataset
        return check_counts(dataset, "images", self.sizes.pool, self.sizes.test, verified=False, unpacked=unpacked)


@functools.cache
def class_words(name: str) -> Any:
    """Return words for prompts that a data set's own class names do not give: a tuple, or a table of replacements.

    They come from github.com/fredzzhang/atlas, the code that provides the RandLoRA paper's data sets. Its words for
    GTSRB and EuroSAT are CLIP's, with CLIP's spelling mistakes.
    """
    text = resources.files("trainables.data.images").joinpath("class_names.json").read_text(encoding="utf-8")
    words = json.loads(text)[name]
    return tuple(words) if isinstance(words, list) else words


def clean(name: str, renames: Mapping[str, str] | None = None) -> str:
    """Return a class name in the form for prompts, from names such as '001.Black_footed_Albatross', '/b/bar/indoor',
    'SeaLake'."""
    if renames and name in renames:
        return renames[name]
    words = re.sub(r"^\d+\.", "", name)
    words = re.sub(r"^/[a-z]/", "", words)
    words = re.sub(r"-101$", "", words)
    words = re.sub(r"(?<=[a-z][a-z])(?=[A-Z][a-z])", " ", words) if "_" not in words and " " not in words else words
    words = re.sub(r"(?<=[a-z])/(?=[a-z])", " ", words)  # but not F-16A/B
    return re.sub(r"[\s_]+", " ", words).strip()
