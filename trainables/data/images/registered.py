"""Load a registered image set from one of its sources, and compare it with what is known of it."""

from __future__ import annotations

import functools

from trainables.data.downloads import check_counts, report_difference
from trainables.data.facts import Cub, Hub, ImageSet, ImageSource, Lists, Torchvision, Voc
from trainables.data.images import archives
from trainables.data.images import torchvision as vision
from trainables.data.images.class_names import clean
from trainables.data.images.dataset import Dataset, Words
from trainables.data.images.sources import from_hub
from trainables.data.templates import DEFAULT_PROMPT
from trainables.errors import DataError

_GATED = "it is gated: accept its terms on the hub and log in with `hf auth login`"


def source_of(name: str, info: ImageSet) -> ImageSource:
    """Return the source of "NAME" or "NAME@SOURCE". Raises DataError if the set has no such source."""
    plain, at, which = name.partition("@")
    if not at:
        return info.source
    if which not in info.others:
        sources = ", ".join(f"{plain}@{other}" for other in info.others) or "none"
        raise DataError(f"data set {name!r}: {plain!r} has no source {which!r}; further sources: {sources}")
    return info.others[which]


def open_set(name: str, info: ImageSet, source: ImageSource) -> Dataset:
    """Load a registered set. Raises DataError for damaged files, or an archive with too few images."""
    dataset = load_from(source, name, info)
    unpacked = source.unpacked
    report_difference(name, "classes", len(dataset.class_names), info.classes, verified=False, unpacked=unpacked)
    return check_counts(dataset, "images", info.sizes.pool, info.sizes.test, verified=False, unpacked=unpacked)


def load_from(source: ImageSource, name: str, info: ImageSet) -> Dataset:
    """Load a set with the loader that its source names. Raises DataError if it cannot be had or read."""
    words = _open_clip_words() if info.open_clip_words else Words(info.templates, DEFAULT_PROMPT)
    match source:
        case Torchvision():
            return vision.load(name, source, info.renames, words)
        case Hub():
            words_of = functools.partial(clean, renames=info.renames)
            advice = _GATED if source.gated else ""
            splits = source.splits
            return from_hub(
                name, source.repository, words, config=source.config, splits=splits, clean=words_of, advice=advice
            )
        case Cub():
            return archives.load_cub(name, source, words)
        case Voc():
            return archives.load_voc(name, source, info.renames, words)
        case Lists():
            return archives.load_lists(name, source, words)


def _open_clip_words() -> Words:
    """Return open_clip's words for ImageNet: names that were corrected by hand, and OpenAI's 80 prompts."""
    import open_clip

    templates = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return Words(templates, DEFAULT_PROMPT, tuple(open_clip.IMAGENET_CLASSNAMES))
