"""Text sets by name: commonsense, MetaMathQA with GSM8K, GLUE and E2E, where they come from, and how large they are.

| form | what |
|---|---|
| `arc-easy`, `commonsense-170k`, ... | commonsense rows of LLM-Adapters, answered by a label; downloaded on first use |
| `arc-easy-questions`, ... | the same, the bare question answered by the text of a choice |
| `metamathqa-gsm8k`, `glue-sst2`, ..., `e2e` | from the hub |
| `json:FOLDER`, `questions:FOLDER` | `{train,test}.json` in LLM-Adapters' form, read in the one way or the other |
| `problems:FOLDER` | `{train,test}.json` of worked solutions that end in a number |
| `sft:FOLDER`, `sft-hf:ORG/NAME` | prompts with completions, or messages, in TRL's form; of files or the hub |
| `glue:FOLDER`, `e2e:FOLDER` | the files of GLUE tasks and of E2E |
"""

from __future__ import annotations

import functools
import http.client
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainables.data.downloads import FOLDER_VARIABLE, UNKNOWN, check_counts, data_folder, hub_splits, may_download
from trainables.data.text import fine_tuning
from trainables.data.text.dataset import TextDataset, TextKind
from trainables.data.text.instructions import Form, assemble, from_json
from trainables.data.text.problems import from_problems_folder, problem_set
from trainables.data.text.tables import GLUE, Cells, e2e_dataset, from_e2e_folder, from_glue_folder, glue_dataset
from trainables.errors import DataError, folder_of

LLM_ADAPTERS = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main"
"""The address of the commonsense files, which are laid out as in the download folder."""

_FORMS: dict[str, tuple[TextKind, Callable[[str, Path], TextDataset]]] = {
    "json": ("instructions", lambda name, folder: from_json(name, folder, "instructions")),
    "questions": ("questions", lambda name, folder: from_json(name, folder, "questions")),
    "problems": ("problems", from_problems_folder),
    fine_tuning.FORM: ("completions", fine_tuning.from_files),
    "glue": ("sentences", from_glue_folder),
    "e2e": ("meanings", from_e2e_folder),
}
"""Form of an id that names a folder, such as `json:FOLDER` -> the kind of its rows, and the function that reads
them."""
TEXT_FORMS = tuple(_FORMS)


@dataclass(frozen=True)
class TextInfo:
    """A registered text set.

    Attributes:
        load: makes the data set, given its name.
        about: one line for people.
        source: where it comes from.
        licence: the licence of the data, in words; "unknown" if none is stated.
        train, test: the expected numbers of rows; None if not known.
        verified: whether these numbers were checked against the data. If so a difference is an error, else a warning.
        epochs: epochs of arXiv 2502.00987; None for a set that it does not use.
        kind: the kind of its rows.
    """

    load: Callable[[str], TextDataset]
    about: str
    source: str
    licence: str = UNKNOWN
    train: int | None = None
    test: int | None = None
    verified: bool = False
    epochs: int | None = None
    kind: TextKind = "instructions"

    def open(self, name: str) -> TextDataset:
        """Load the set, and compare its size with the known one. Raises DataError if the size was verified and
        differs."""
        data = self.load(name)
        authors = 0 if data.val_rows is None else len(data.val_rows)
        pool = None if self.train is None else self.train + authors
        return check_counts(data, "rows", pool, self.test, verified=self.verified)


@dataclass(frozen=True)
class _Task:
    """A commonsense task: its folder at LLM-Adapters, row counts, licence, and whether its train file was counted."""

    folder: str
    train: int
    test: int
    licence: str
    verified: bool
    about: str


COMMONSENSE: dict[str, _Task] = {
    "boolq": _Task("boolq", 9427, 3270, "CC BY-SA 3.0", True, "yes/no questions on a passage's topic"),
    "piqa": _Task("piqa", 16113, 1838, "unknown", False, "physical everyday reasoning, two solutions"),
    "social-iqa": _Task("social_i_qa", 33410, 1954, "unknown", False, "social situations, three answers"),
    "hellaswag": _Task("hellaswag", 39905, 10042, "MIT", False, "how a sentence goes on, four endings"),
    "winogrande": _Task("winogrande", 63238, 1267, "unknown", False, "whom a pronoun means, two options"),
    "arc-easy": _Task("ARC-Easy", 2251, 2376, "CC BY-SA 4.0", True, "grade-school science, the easier questions"),
    "arc-challenge": _Task(
        "ARC-Challenge", 1119, 1172, "CC BY-SA 4.0", True, "grade-school science, the harder questions"
    ),
    "openbookqa": _Task("openbookqa", 4957, 500, "Apache-2.0", True, "elementary science with a fact to recall"),
}
"""The commonsense tasks, in the order of the paper's tables."""


def _fetch(path: str) -> Path:
    """Return a file of LLM-Adapters in the download folder. It is downloaded if it is missing."""
    target = data_folder() / "llm-adapters" / path
    if target.is_file():
        return target
    url = f"{LLM_ADAPTERS}/{path}"
    try:
        if not may_download():
            raise OSError(f"{target} is not there")
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 the scheme is https, from the constant
            content = answer.read()
        with tempfile.TemporaryDirectory(".part", dir=target.parent) as own:  # other processes may download it too
            partial = Path(own) / target.name
            partial.write_bytes(content)
            partial.replace(target)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{url} could not be downloaded ({error}); put the file at {target} yourself ({FOLDER_VARIABLE} names "
            "another folder), or name a folder of your own with json:FOLDER or questions:FOLDER"
        ) from error
    return target


def _adapters(train: str, tasks: Sequence[str], form: Form) -> Callable[[str], TextDataset]:
    """Return a function that loads a training file of LLM-Adapters with the test files of tasks."""

    def load(name: str) -> TextDataset:
        tests = {task: _fetch(f"dataset/{COMMONSENSE[task].folder}/test.json") for task in tasks}
        whose = tasks[0] if len(tasks) == 1 else name
        return assemble(name, form, train={whose: _fetch(train)}, test=tests, validation={})

    return load


def _hub(dataset: str, repository: str, **where: str) -> Mapping[str, Callable[[], Cells]]:
    instead = "check the connection, or download its files and use glue:FOLDER or e2e:FOLDER"
    tables = hub_splits(dataset, repository, instead=instead, **where)
    return {which: functools.partial(list, table) for which, table in tables.items()}


def _glue(task: str) -> Callable[[str], TextDataset]:
    def load(name: str) -> TextDataset:
        hub = _hub(name, "nyu-mll/glue", name=task)
        # GLUE's test labels are not public: its validation split is reported on, and validation rows come from train
        tables = {"train": hub["train"], "test": hub["validation"]}
        places = {"train": f"nyu-mll/glue {task} (train)", "test": f"nyu-mll/glue {task} (validation)"}
        return glue_dataset(name, GLUE[task], tables, places)

    return load


def _e2e(name: str) -> TextDataset:
    # the main branch has a loading script, which is not run; the hub's own Parquet conversion is data
    hub = _hub(name, "tuetschek/e2e_nlg", revision="refs/convert/parquet")
    return e2e_dataset(name, hub, {which: f"tuetschek/e2e_nlg ({which})" for which in hub})


def _metamath(name: str) -> TextDataset:
    instead = "check the connection, or use problems:FOLDER"
    train = hub_splits(name, "meta-math/MetaMathQA", instead=instead)["train"]
    judged = hub_splits(name, "openai/gsm8k", "main", instead=instead)
    validation = ("openai/gsm8k (train)", judged["train"])
    return problem_set(
        name, ("meta-math/MetaMathQA", train), lambda: ("openai/gsm8k (test)", judged["test"]), validation
    )


def _entries() -> dict[str, TextInfo]:
    entries: dict[str, TextInfo] = {}
    forms: tuple[tuple[Form, str, str], ...] = (
        ("instructions", "", "answered by a label"),
        ("questions", "-questions", "answered by the text of a choice"),
    )
    tests = sum(task.test for task in COMMONSENSE.values())
    union = "the eight commonsense tasks together, tested on each"
    for form, suffix, how in forms:
        for name, task in COMMONSENSE.items():
            about, source = f"{task.about}; {how}", f"LLM-Adapters dataset/{task.folder}"
            facts = (task.licence, task.train, task.test, task.verified)
            entries[name + suffix] = TextInfo(
                _adapters(f"dataset/{task.folder}/train.json", [name], form), about, source, *facts, 3, form
            )
        for file, rows in (("commonsense_15k", None), ("commonsense_170k", 170420)):
            source, licence = f"LLM-Adapters ft-training_set/{file}.json", "mixed: that of each task"
            load = _adapters(f"ft-training_set/{file}.json", list(COMMONSENSE), form)
            known_union = (licence, rows, tests, False)
            entries[file.replace("_", "-") + suffix] = TextInfo(load, f"{union}; {how}", source, *known_union, 3, form)
    about = "mathematical problems with solutions; judged by GSM8K's questions, as in PEFT's method comparison"
    source = "hub meta-math/MetaMathQA, openai/gsm8k"
    entries["metamathqa-gsm8k"] = TextInfo(_metamath, about, source, "MIT", None, 1319, False, None, "problems")
    for name, glue in GLUE.items():
        about = f"GLUE {name}: {' or '.join(glue.classes) or 'how alike'}; reported on its validation split"
        facts = ("mixed", *glue.sizes, False)
        entries[f"glue-{name}"] = TextInfo(_glue(name), about, "hub nyu-mll/glue", *facts, 10, "sentences")
    facts = ("CC BY-SA 4.0", 42061, 630, False)
    entries["e2e"] = TextInfo(_e2e, "E2E, text from restaurant facts", "hub tuetschek/e2e_nlg", *facts, 5, "meanings")
    return entries


TEXT_DATASETS: dict[str, TextInfo] = _entries()


def text_kind(name: str) -> TextKind | None:
    """Return the kind of a text set's rows, without reading it; None if the id is not one of a text set."""
    if name in TEXT_DATASETS:
        return TEXT_DATASETS[name].kind
    form, _, rest = name.partition(":")
    if form == fine_tuning.HUB_FORM and rest:
        return "completions"
    return _FORMS[form][0] if form in _FORMS and rest else None


def text_loader(name: str) -> Callable[[], TextDataset] | None:
    """Return the function that loads the text set of an id; None for another id. Raises DataError if a folder is
    missing."""
    if name in TEXT_DATASETS:
        return functools.partial(TEXT_DATASETS[name].open, name)
    form, _, rest = name.partition(":")
    if form == fine_tuning.HUB_FORM and rest:
        return fine_tuning.loader(name, None)
    if form not in _FORMS or not rest:
        return None
    if form == fine_tuning.FORM:
        return fine_tuning.loader(name, folder_of(name, fine_tuning.read_place(name).path))
    return functools.partial(_FORMS[form][1], name, folder_of(name, rest))
