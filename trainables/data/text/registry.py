"""Text sets by name, and how each is loaded. What is known of the registered ones is in `data/sets/texts.toml`.

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
from pathlib import Path
from typing import Any

from trainables.data.downloads import FOLDER_VARIABLE, check_counts, data_folder, hub_splits, may_download
from trainables.data.facts import (
    QUESTIONS,
    TEXT_SETS,
    LlmAdapters,
    LlmAdaptersUnion,
    Meanings,
    Problems,
    Repository,
    Sentences,
    TextKind,
    TextSource,
)
from trainables.data.text import fine_tuning
from trainables.data.text.dataset import TextDataset
from trainables.data.text.instructions import Form, assemble, from_json
from trainables.data.text.problems import from_problems_folder, problem_set
from trainables.data.text.tables import Cells, e2e_dataset, from_e2e_folder, from_glue_folder, glue_dataset
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


def open_set(name: str) -> TextDataset:
    """Load a registered set, and compare its size with the known one. Raises DataError if the size was verified and
    differs."""
    info = TEXT_SETS[name]
    data = load_from(info.source, name)
    authors = 0 if data.val_rows is None else len(data.val_rows)
    pool = None if info.train is None else info.train + authors
    return check_counts(data, "rows", pool, info.test, verified=info.verified)


def load_from(source: TextSource, name: str) -> TextDataset:
    """Load a set with the loader that its source names. Raises DataError if it cannot be had or read."""
    match source:
        case LlmAdapters():
            task = name.removesuffix(QUESTIONS)
            return _llm_adapters(name, source.kind, f"dataset/{source.folder}/train.json", {task: source.folder})
        case LlmAdaptersUnion():
            return _llm_adapters(name, source.kind, f"ft-training_set/{source.file}.json", _folders(source.tasks))
        case Problems():
            return _problems(name, source)
        case Sentences():
            return _sentences(name, source)
        case Meanings():
            hub = _hub(name, source.repository, revision=source.revision)
            return e2e_dataset(name, hub, {which: f"{source.repository} ({which})" for which in hub})


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


def _folders(tasks: Sequence[str]) -> dict[str, str]:
    """Return the folder of each task of LLM-Adapters."""
    sources = {task: TEXT_SETS[task].source for task in tasks}
    return {task: source.folder for task, source in sources.items() if isinstance(source, LlmAdapters)}


def _llm_adapters(name: str, form: Form, train: str, folders: Mapping[str, str]) -> TextDataset:
    """Load a training file of LLM-Adapters with the test files of tasks, whose folders are given."""
    tests = {task: _fetch(f"dataset/{folder}/test.json") for task, folder in folders.items()}
    whose = name if len(folders) > 1 else next(iter(folders))
    return assemble(name, form, train={whose: _fetch(train)}, test=tests, validation={})


def _hub(dataset: str, repository: str, **where: str) -> Mapping[str, Callable[[], Cells]]:
    instead = "check the connection, or download its files and use glue:FOLDER or e2e:FOLDER"
    tables = hub_splits(dataset, repository, instead=instead, **where)
    return {which: functools.partial(list, table) for which, table in tables.items()}


def _sentences(name: str, source: Sentences) -> TextDataset:
    hub = _hub(name, source.repository, **({} if source.config is None else {"name": source.config}))
    splits = {"train": "train", "test": source.test}
    if lacking := [theirs for theirs in splits.values() if theirs not in hub]:
        raise DataError(f"data set {name!r}: {source.repository} has no split {lacking[0]!r}; it has {', '.join(hub)}")
    place = " ".join(filter(None, (source.repository, source.config)))
    places = {ours: f"{place} ({theirs})" for ours, theirs in splits.items()}
    return glue_dataset(name, source, {ours: hub[theirs] for ours, theirs in splits.items()}, places)


def _problems(name: str, source: Problems) -> TextDataset:
    def splits(of: Repository) -> dict[str, Any]:
        config = [] if of.config is None else [of.config]
        return hub_splits(name, of.repository, *config, instead="check the connection, or use problems:FOLDER")

    train, judged = splits(source.train)["train"], splits(source.test)
    test = source.test.repository
    return problem_set(
        name,
        (source.train.repository, train),
        lambda: (f"{test} (test)", judged["test"]),
        (f"{test} (train)", judged["train"]),
    )


def text_kind(name: str) -> TextKind | None:
    """Return the kind of a text set's rows, without reading it; None if the id is not one of a text set."""
    if name in TEXT_SETS:
        return TEXT_SETS[name].source.kind
    form, _, rest = name.partition(":")
    if form == fine_tuning.HUB_FORM and rest:
        return "completions"
    return _FORMS[form][0] if form in _FORMS and rest else None


def text_loader(name: str) -> Callable[[], TextDataset] | None:
    """Return the function that loads the text set of an id; None for another id. Raises DataError if a folder is
    missing."""
    if name in TEXT_SETS:
        return functools.partial(open_set, name)
    form, _, rest = name.partition(":")
    if form == fine_tuning.HUB_FORM and rest:
        return fine_tuning.loader(name, None)
    if form not in _FORMS or not rest:
        return None
    if form == fine_tuning.FORM:
        return fine_tuning.loader(name, folder_of(name, fine_tuning.read_place(name).path))
    return functools.partial(_FORMS[form][1], name, folder_of(name, rest))
