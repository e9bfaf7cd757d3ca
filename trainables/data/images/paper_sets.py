"""The 22 image sets of the RandLoRA paper (arXiv 2502.00987, Table 7), and Fashion-MNIST.

Sizes and epochs are those of the paper's Table 7. The sizes were not checked against every source, so another size is
only a warning. Validation, unless the authors set one aside, is 10 % of the training images and 5,000 at most, drawn
with seed 0 (`splits`). Prompts of the frozen text tower are those of CLIP (github.com/openai/CLIP, data/prompts.md, MIT
licence). It has none for SVHN, CUB-200 and Caltech-256, which use its prompts of MNIST, Birdsnap and Caltech-101. The
contrastive loss uses the paper's single prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from trainables.data.images import archives
from trainables.data.images import torchvision as vision
from trainables.data.images.coop_sets import load_lists
from trainables.data.images.dataset import DEFAULT_PROMPT, Dataset, Words
from trainables.data.images.info import DatasetInfo, Load, Sizes, class_words, clean
from trainables.data.images.sources import from_hub


def _with(*forms: str) -> tuple[str, ...]:
    """Return every form twice, with "a" and "the" in place of its "@"."""
    return tuple(form.replace("@", article) for article in ("a", "the") for form in forms)


_PHOTO = _with("a photo of @ {}.")
_CIFAR = _with(
    "a photo of @ {}.",
    *(f"a {look} photo of @ {{}}." for look in ("blurry", "black and white", "low contrast", "high contrast")),
    "a bad photo of @ {}.",
    "a good photo of @ {}.",
    "a photo of @ small {}.",
    "a photo of @ big {}.",
)
_CALTECH = _with(
    "a photo of @ {}.",
    "a painting of @ {}.",
    "@ plastic {}.",
    "a sculpture of @ {}.",
    "a sketch of @ {}.",
    "a tattoo of @ {}.",
    "@ toy {}.",
    "a rendition of @ {}.",
    "@ embroidered {}.",
    "@ cartoon {}.",
    "@ {} in a video game.",
    "@ plushie {}.",
    "@ origami {}.",
    "art of @ {}.",
    "graffiti of @ {}.",
    "a drawing of @ {}.",
    "a doodle of @ {}.",
)
_TEXTURE = _with(*(f"a photo of @ {{}} {what}." for what in ("texture", "pattern", "thing", "object")))
_AERIAL = tuple(
    f"{seen} {what} of{article} {{}}."
    for article in ("", " a", " the")
    for what in ("imagery", "photo", "view")
    for seen in ("satellite", "aerial")
)
_CAR = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of my {}.",
    "i love my {}!",
    *(f"a photo of my {state} {{}}." for state in ("dirty", "clean", "new", "old")),
)
_ACTION = tuple(
    f"a {shown} of {article} person{verb} {{}}."
    for verb in ("", " using", " doing", " during", " performing", " practicing")
    for article in ("a", "the")
    for shown in ("photo", "video", "example", "demonstration")
)
_SIGN = tuple(f'a {look} photo of a "{{}}" traffic sign.' for look in ("zoomed in", "centered", "close up"))
_COUNTRY = tuple(
    f"a photo {how} {{}}."
    for how in ("i took in", "i took while visiting", "from my home country of", "from my visit to")
)
_DIGIT = ('a photo of the number: "{}".',)
_BIRD = ("a photo of a {}, a type of bird.",)

_CARVED = "validation: 10 % of train, 5,000 at most, seed 0"
_OWN = "validation: the authors' own"
TRAIN_TEST = {"train": "train", "test": "test"}


def hub(
    repository: str,
    *,
    config: str | None = None,
    splits: Mapping[str, str] | None = None,
    clean: Callable[[str], str] = clean,
    advice: str = "",
) -> Load:
    """Return a `DatasetInfo.load` for a repository of the hub. It has train and test splits unless `splits` says
    otherwise."""
    named = TRAIN_TEST if splits is None else splits
    return lambda name, words: from_hub(
        name, repository, words, config=config, splits=named, clean=clean, advice=advice
    )


def _imagenet(load: Load) -> Load:
    """Return ImageNet's loader with open_clip's words: names that were corrected by hand, and OpenAI's 80 prompts."""

    def loaded(name: str, words: Words) -> Dataset:
        import open_clip

        templates = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
        return load(name, Words(templates, words.prompt, tuple(open_clip.IMAGENET_CLASSNAMES)))

    return loaded


def _info(
    load: Load,
    source: str,
    about: str,
    classes: int,
    sizes: tuple[int, int, int],
    epochs: int | None,
    templates: tuple[str, ...],
    on_hub: str | Load = "",
    *,
    rule: str = _CARVED,
    get: str = "downloads itself",
    **more: Any,
) -> DatasetInfo:
    """Return a registry entry. `on_hub` is a repository that has the set too, chosen with NAME@hub."""
    fields: dict[str, Any] = {"classes": classes, "sizes": Sizes(*sizes), "rule": rule, "source": source, "get": get}
    if on_hub:
        fields["others"] = {"hub": hub(on_hub) if isinstance(on_hub, str) else on_hub}
    return DatasetInfo(load, templates, epochs, about, prompt=DEFAULT_PROMPT, **fields | more)


def _tv(key: str, *facts: Any, **more: Any) -> DatasetInfo:
    """Return the entry of one of torchvision's sets."""
    return _info(vision.source(key), f"torchvision {vision.ENTRIES[key].cls}", *facts, unpacked=True, **more)


def _on_hub(repository: str, *facts: Any) -> DatasetInfo:
    """Return the entry of a set that only the hub has."""
    return _info(hub(repository), f"hub {repository}", *facts, get="downloads itself from the hub")


_VALIDATION_AS_TEST = {"train": "train", "test": "validation"}
_ADVICE = "it is gated: accept its terms on the hub and log in with `hf auth login`"
_HUB_IMAGENET = hub("ILSVRC/imagenet-1k", splits=_VALIDATION_AS_TEST, advice=_ADVICE)
_HUB_EUROSAT = hub("tanganke/eurosat", clean=functools.partial(clean, renames=class_words("eurosat")))
_RESEARCH = "research use only"
_BY_SHARE = {"rule": "test: 20 % at random, seed 0; " + _CARVED, "licence": "CC BY 4.0"}

PAPER_SETS: dict[str, DatasetInfo] = {
    "cars": _on_hub(
        "tanganke/stanford_cars", "Stanford Cars", 196, (7330, 814, 8041), 35, _CAR
    ),
    "dtd": _tv(
        "dtd", "describable textures, split 1, train + val", 47, (3384, 376, 1880), 76, _TEXTURE, "tanganke/dtd",
        licence=_RESEARCH,
    ),
    "eurosat": _tv(
        "eurosat", "EuroSAT, satellite land use", 10, (21600, 2700, 2700), 12,
        tuple(f"a centered satellite photo of{article} {{}}." for article in ("", " a", " the")), _HUB_EUROSAT,
        rule="270 validation and 270 test images of every class, seed 0", licence="MIT",
    ),
    "gtsrb": _tv("gtsrb", "German traffic signs", 43, (23976, 2664, 12630), 11, _SIGN, "tanganke/gtsrb"),
    "mnist": _tv("mnist", "MNIST, handwritten digits", 10, (55000, 5000, 10000), 5, _DIGIT, "ylecun/mnist"),
    "resisc45": _on_hub("tanganke/resisc45", "RESISC45, aerial scenes", 45, (17010, 1890, 6300), 15, _AERIAL),
    "sun397": _on_hub(
        "tanganke/sun397", "SUN397, scenes, Training_01 and Testing_01", 397, (17865, 1985, 19850), 14, _PHOTO
    ),
    "svhn": _tv(
        "svhn", "house numbers, without the extra images", 10, (68257, 5000, 26032), 4,
        _DIGIT, hub("ufldl-stanford/svhn", config="cropped_digits"),
        licence="non-commercial use only",
    ),
    "cifar10": _tv("cifar10", "CIFAR-10, 32 px photographs", 10, (45000, 5000, 10000), 5, _CIFAR, "uoft-cs/cifar10"),
    "cifar100": _tv(
        "cifar100", "CIFAR-100, 32 px photographs", 100, (45000, 5000, 10000), 6, _CIFAR, "uoft-cs/cifar100"
    ),
    "imagenet": _info(
        _imagenet(_HUB_IMAGENET), "hub ILSVRC/imagenet-1k (gated)", "ImageNet-1k; its validation images are the test",
        1000, (1276167, 5000, 50000), 10, _PHOTO,
        others={"torchvision": _imagenet(vision.source("imagenet"))},
        licence="non-commercial research, terms on the hub",
        get="accept the terms on the hub and log in; or put the archives into imagenet/ and name imagenet@torchvision",
    ),
    "stl10": _tv("stl10", "STL-10, 96 px photographs", 10, (4500, 500, 8000), 4, _PHOTO, "tanganke/stl10"),
    "food101": _tv(
        "food101", "Food-101", 101, (70750, 5000, 25250), 15, ("a photo of {}, a type of food.",),
        hub("ethz/food101", splits=_VALIDATION_AS_TEST),
    ),
    "caltech101": _tv(
        "caltech101", "Caltech-101 without its background class", 101, (6247, 694, 1736), 10, _CALTECH, **_BY_SHARE
    ),
    "caltech256": _tv(
        "caltech256", "Caltech-256 with its clutter class", 257, (22037, 2448, 6122), 8, _CALTECH, **_BY_SHARE
    ),
    "fgvc-aircraft": _tv(
        "fgvc-aircraft", "FGVC Aircraft, variants", 100, (3334, 3333, 3333), 60,
        _with("a photo of @ {}, a type of aircraft."),
        rule=_OWN, licence=_RESEARCH,
    ),
    "flowers102": _tv(
        "flowers102", "Oxford Flowers 102", 102, (1020, 1020, 6149), 40, ("a photo of a {}, a type of flower.",),
        rule=_OWN,
    ),
    "oxford-pets": _tv(
        "oxford-pets", "Oxford-IIIT Pet, trainval", 37, (3312, 368, 3669), 5, ("a photo of a {}, a type of pet.",),
        "timm/oxford-iiit-pet", licence="CC BY-SA 4.0",
    ),
    "cub200": _info(
        archives.load_cub, "the makers' archive", "Caltech-UCSD Birds 200, 2011", 200, (5395, 599, 5794), 20, _BIRD,
        "Donghyun99/CUB-200-2011", licence=_RESEARCH, unpacked=True,
    ),
    "voc2007": _info(
        archives.load_voc, "torchvision VOCDetection", "PASCAL VOC 2007, a crop of every annotated object", 20,
        (7844, 7818, 14976), 10, _PHOTO[:1], rule=_OWN, licence="Flickr's terms of use", unpacked=True,
    ),
    "country211": _tv(
        "country211", "Country211, photographs by country", 211, (31650, 10550, 21100), 15,
        (*_COUNTRY, "a photo showing the country of {}."),
        rule=_OWN, licence="Creative Commons, by photograph",
    ),
    "ucf101": _info(
        functools.partial(load_lists, folder="ucf101", images="UCF-101-midframes", lists="UCF101"),
        "a folder you make", "UCF101, the middle frame of every video", 101, (7639, 1898, 3783), 20,
        _ACTION, rule=_OWN,
        get="put UCF-101-midframes/ and split_zhou_UCF101.json into ucf101/ of the data folder (see CoOp's data page)",
    ),
}  # fmt: skip

FURTHER_SETS: dict[str, DatasetInfo] = {
    "fashion-mnist": _tv(
        "fashion-mnist", "Fashion-MNIST, 28 px", 10, (55000, 5000, 10000), None, ("a photo of a {}.",),
        "zalando-datasets/fashion_mnist", licence="MIT",
    ),
}  # fmt: skip
