"""What is known of the registered data sets: their types, and the reader of `sets/images.toml` and `sets/texts.toml`.

A table of a file is one set, and its name is the set's name in sweep files. A set names its source, and the source
names a loader. Loaders are code: `images.registered` has those of images, `text.registry` those of texts.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from randlora.errors import nearest
from trainables.data.templates import check_templates
from trainables.errors import DataError, brief

FOLDER = Path(__file__).parent / "sets"
UNKNOWN = "unknown"
"""The licence of a data set whose makers state none."""

QUESTIONS = "-questions"
"""The end of the name of a set that is answered by the text of a choice. Without it the answer is a label."""

TextKind = Literal["instructions", "questions", "problems", "meanings", "completions", "sentences"]
"""The kinds of rows of text sets.

instructions: LLM-Adapters' rows, answered by a label. questions: answered by the text of a choice. problems: answered
by a number at the end of a solution (GSM8K). meanings: E2E. completions: evaluated by their likelihood alone.
sentences: one or two with a class or a number (GLUE).
"""


class _Facts(BaseModel):
    """A table of a TOML file. Unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Strings = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has lists, and no tuples
Arguments = dict[str, str | bool]


# -- images -----------------------------------------------------------------------------------------------------------


class Sizes(_Facts):
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


class Torchvision(_Facts):
    """A class of `torchvision.datasets`.

    Attributes:
        dataset: the name of the class.
        train: the class's arguments for each part of the training images.
        test: its arguments for the test images.
        val: its arguments for the authors' validation images; None if they set none aside.
        divided: how the one pool of a class without splits is divided here: "per-class" takes 270 validation and 270
            test images of every class, "share" takes 20 % as test.
        class_names: the names, if torchvision has none.
        hyphens_to_spaces: whether every hyphen in a class name becomes a space.
        download: whether torchvision can download it.
    """

    loader: Literal["torchvision"]
    dataset: str
    train: Annotated[tuple[Arguments, ...], Field(strict=False, min_length=1)] = ({"split": "train"},)
    test: Arguments = {"split": "test"}
    val: Arguments | None = None
    divided: Literal["per-class", "share"] | None = None
    class_names: Strings = ()
    hyphens_to_spaces: bool = False
    download: bool = True
    get: ClassVar[str] = "downloads itself"

    @property
    def unpacked(self) -> bool:
        """Return whether loading unpacks an archive. If that was interrupted there are fewer images: an error."""
        return self.download

    @property
    def place(self) -> str:
        """Return where the set comes from, in words. All sources have this, `get` and `unpacked`."""
        return f"torchvision {self.dataset}"


class Hub(_Facts):
    """A repository of the Hugging Face hub.

    Attributes:
        repository, config: its name, and the configuration; None for its only or default one.
        splits: our name of a split (train, test, perhaps validation) -> the repository's name.
        gated: whether its terms must be accepted first.
    """

    loader: Literal["hub"]
    repository: str
    config: str | None = None
    splits: dict[str, str] = {"train": "train", "test": "test"}
    gated: bool = False
    get: ClassVar[str] = "downloads itself from the hub"
    unpacked: ClassVar[bool] = False

    @property
    def place(self) -> str:
        return f"hub {self.repository}" + (" (gated)" if self.gated else "")


class Cub(_Facts):
    """The archive of CUB-200-2011. Attributes: its address, and the MD5 of the file."""

    loader: Literal["cub200"]
    url: str
    md5: str
    get: ClassVar[str] = "downloads itself"
    unpacked: ClassVar[bool] = True
    place: ClassVar[str] = "the makers' archive"


class Voc(_Facts):
    """A crop of every object of VOC2007. Attribute: the names of the classes in its annotations."""

    loader: Literal["voc2007"]
    class_names: Strings
    get: ClassVar[str] = "downloads itself"
    unpacked: ClassVar[bool] = True
    place: ClassVar[str] = "torchvision VOCDetection"


class Lists(_Facts):
    """A folder that the user makes, with splits by a list of CoOp (github.com/KaiyangZhou/CoOp, DATASETS.md).

    Attributes:
        folder: its name in the folder of data sets.
        images: the folder in it that file names start from; "" for itself.
        lists: the list in it is split_zhou_`lists`.json.
    """

    loader: Literal["lists"]
    folder: str
    images: str = ""
    lists: str
    unpacked: ClassVar[bool] = False
    place: ClassVar[str] = "a folder you make"

    @property
    def get(self) -> str:
        images = self.images or "its folders"
        return f"put {images} and split_zhou_{self.lists}.json into {self.folder}/ of the data folder"


ImageSource = Torchvision | Hub | Cub | Voc | Lists
_ImageSource = Annotated[ImageSource, Field(discriminator="loader")]


class ImageSet(_Facts):
    """A registered image set.

    Attributes:
        about: one line for people.
        classes, sizes: what a loaded set is checked against.
        split: where validation and test come from, in words.
        epochs: epochs on the full data in arXiv 2502.00987, Table 7; None for a set that it does not use.
        licence: the terms that its makers state; "unknown" if they state none.
        templates: prompts with one "{}" for the class.
        renames: class names of the source -> words for prompts, if the usual rules (`class_names.clean`) do not give
            them.
        open_clip_words: whether open_clip's class names and templates of ImageNet are used.
        source: where the set comes from.
        others: further sources by name, chosen with "NAME@SOURCE".
        get: how to get it if it is missing; "" for the source's own words.
    """

    about: str
    classes: int
    sizes: Sizes
    split: str = "validation: 10 % of train, 5,000 at most, seed 0"
    epochs: int | None = None
    licence: str = UNKNOWN
    templates: Strings
    renames: dict[str, str] = {}
    open_clip_words: bool = False
    source: _ImageSource
    others: dict[str, _ImageSource] = {}
    get: str = ""

    @field_validator("templates")
    @classmethod
    def _has_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        return check_templates(templates, "templates")

    @property
    def how_to_get(self) -> str:
        """Return how to get the set if it is missing, in words."""
        return self.get or self.source.get


# -- texts ------------------------------------------------------------------------------------------------------------


class LlmAdapters(_Facts):
    """A commonsense task of LLM-Adapters.

    Attributes:
        folder: its folder in `dataset/` there.
        kind: "instructions" if the model answers with a label, "questions" if it answers with the text of a choice.
    """

    loader: Literal["llm-adapters"]
    folder: str
    kind: Literal["instructions", "questions"] = "instructions"

    @property
    def place(self) -> str:
        """Return where the set comes from, in words. All sources have this, and the `kind` of their rows."""
        return f"LLM-Adapters dataset/{self.folder}"


class LlmAdaptersUnion(_Facts):
    """A training file of LLM-Adapters that several tasks share.

    Attributes:
        file: its name in `ft-training_set/` there, without its ending.
        tasks: names of the sets whose test files are its test split.
        kind: as in `LlmAdapters`.
    """

    loader: Literal["llm-adapters-union"]
    file: str
    tasks: Strings
    kind: Literal["instructions", "questions"] = "instructions"

    @property
    def place(self) -> str:
        return f"LLM-Adapters ft-training_set/{self.file}.json"


class Repository(_Facts):
    """A repository of the hub, and one of its configurations; None for its only or default one."""

    repository: str
    config: str | None = None


class Problems(_Facts):
    """Problems whose worked solutions end in a number.

    Attributes:
        train: its split `train` is the training split.
        test: its split `train` is the validation split, and its split `test` the test split.
    """

    loader: Literal["problems"]
    train: Repository
    test: Repository
    kind: ClassVar[Literal["problems"]] = "problems"

    @property
    def place(self) -> str:
        return f"hub {self.train.repository}, {self.test.repository}"


class Sentences(Repository):
    """Sentences, or pairs of sentences, with a label.

    Attributes:
        repository, config: the repository of the hub, and its configuration.
        test: the split that is reported on.
        columns: the columns with one or two sentences. The label is in the column `label`.
        class_names: names in the order of their numbers; () for a regression.
        metric: the score that is reported ("accuracy" for MRPC, as LoRA and RandLoRA report).
        renamed: column names in GLUE's own files -> the hub's names, if they differ.
    """

    loader: Literal["sentences"]
    test: str = "test"
    columns: Strings
    class_names: Strings = ()
    metric: Literal["accuracy", "matthews", "pearson"] = "accuracy"
    renamed: dict[str, str] = {}
    kind: ClassVar[Literal["sentences"]] = "sentences"

    @property
    def place(self) -> str:
        return f"hub {self.repository}"


class Meanings(_Facts):
    """Meaning representations with texts, as in E2E. Attributes: the repository of the hub, and its revision."""

    loader: Literal["meanings"]
    repository: str
    revision: str
    kind: ClassVar[Literal["meanings"]] = "meanings"

    @property
    def place(self) -> str:
        return f"hub {self.repository}"


TextSource = LlmAdapters | LlmAdaptersUnion | Problems | Sentences | Meanings


class TextSet(_Facts):
    """A registered text set.

    Attributes:
        about: one line for people.
        licence: the licence of the data, in words; "unknown" if none is stated.
        train, test: the expected numbers of rows; None if not known.
        verified: whether these numbers were checked against the data. If so a difference is an error, else a warning.
        epochs: epochs of arXiv 2502.00987; None for a set that it does not use.
        source: where the set comes from.
    """

    about: str
    licence: str = UNKNOWN
    train: int | None = None
    test: int | None = None
    verified: bool = False
    epochs: int | None = None
    source: Annotated[TextSource, Field(discriminator="loader")]


# -- the reader -------------------------------------------------------------------------------------------------------

_S = TypeVar("_S", ImageSet, TextSet)


def read_sets(path: Path, kind: type[_S]) -> dict[str, _S]:
    """Return the sets of a TOML file by name, in the file's order. Raises DataError that names file, set and field."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as TOML ({error})") from error
    return {name: _read_set(f"{path}, data set {name!r}", table, kind) for name, table in tables.items()}


def _read_set(where: str, table: object, kind: type[_S]) -> _S:
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        hint = f"; {nearest(field, kind.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise DataError(f"{where}, field {field!r}: {first['msg']}, not {brief(first['input'])}{hint}") from error


def _in_both_forms(sets: Mapping[str, TextSet]) -> dict[str, TextSet]:
    """Return the sets, those of LLM-Adapters as NAME, answered by a label, and as NAME-questions."""
    forms: dict[str, TextSet] = {}
    for kind, suffix, how in (
        ("instructions", "", "answered by a label"),
        ("questions", QUESTIONS, "answered by the text of a choice"),
    ):
        for name, one in sets.items():
            if isinstance(one.source, LlmAdapters | LlmAdaptersUnion):
                source = one.source.model_copy(update={"kind": kind})
                changes = {"about": f"{one.about}; {how}", "source": source}
                forms[name + suffix] = one.model_copy(update=changes)
    return forms | {name: one for name, one in sets.items() if name not in forms}


IMAGE_SETS = read_sets(FOLDER / "images.toml", ImageSet)
TEXT_SETS = _in_both_forms(read_sets(FOLDER / "texts.toml", TextSet))


def facts_of(name: str) -> ImageSet | TextSet | None:
    """Return what is known of a registered set, also of "NAME@SOURCE"; None for an id that is not registered."""
    return TEXT_SETS.get(name) or IMAGE_SETS.get(name.partition("@")[0])
