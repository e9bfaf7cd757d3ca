"""What a sweep reads, looked at before it starts: data sets that load, sizes that can be drawn, images that open."""

from __future__ import annotations

import functools
import importlib.util
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from analysis.store.store import Store
from sweeps.backends.needs import Needs
from sweeps.errors import Problem, SpecError
from sweeps.plan.digests import COMMIT, KIND, WHOLE, fingerprint, label_digest, sliced_digest
from sweeps.plan.plan import Plan
from sweeps.plan.split_sizes import forget, loaded, split_sizes
from sweeps.records.journal import write_atomically
from sweeps.records.locks import make_results_folder
from sweeps.spec.cell import Cell
from sweeps.spec.methods import has_budget
from sweeps.spec.paths import absolute, path_of
from trainables.config import QUANTISED
from trainables.data.downloads import DataWarning, offline
from trainables.data.registry import DATASETS
from trainables.data.splits import split_of
from trainables.data.text.dataset import TextDataset, TextSplit
from trainables.data.text.registry import text_kind
from trainables.errors import DataError, TrialError, first_line
from trainables.metrics.texts import LIBRARIES
from trainables.models.families import GGUF, ModelError
from trainables.models.loading import check_weights, tokenizer_of
from trainables.tasks.text.causal_lm import check_judged
from trainables.tasks.text.encoding import Encoder, TooLongError, completion, make_encoder

OPENED = 4000
"""Images of a data set's training pool that are opened beforehand; of a larger pool, evenly spaced ones."""
FILE = "data.json"


def check_inputs(plan: Plan) -> None:
    """Read what the sweep will read, so that bad input stops it before anything starts.

    The results folder must be this sweep's (`sweeps.records.locks.check_identity`): its record of the data is written.

    Raises:
        SpecError: a model id that names no weights; a package that is missing; a results folder that can't be written,
            or whose trials saw other data, or a model of other files, under the same name; a test split that is a copy
            of train; texts that `evaluate.protocol` can't judge.
        ModelError: weights that are neither here nor to be had.
        DataError: missing or damaged files, a class without images, an image that does not open; of all data sets that
            can't be had at once, each with how to get it.
    """
    model = plan.base_model
    if model.parsed.scheme == "open_clip" and model.parsed.tag is None:
        raise SpecError([Problem("model.id", model.id, "names no weights; write open_clip:ARCH/TAG")])
    check_weights(model.id)
    _check_packages(plan)
    forget()  # files may have changed since this process read them
    now = _check_data(plan)
    weights = model.digest()
    # where a data set of the hub has the model's name, that is the data set's
    _check_seen(plan.spec.folder, ({} if weights is None else {model.id: weights}) | now)


def _check_packages(plan: Plan) -> None:
    held = plan.spec.train.base_weights
    if held in QUANTISED and importlib.util.find_spec("bitsandbytes") is None:
        rule = "needs bitsandbytes, which is not installed: pip install 'randlora-sweeps[quantised]'"
        raise SpecError([Problem("train.base_weights", held, rule, "bf16")])


def check_files(plan: Plan) -> None:
    """Read the data sets that are files of this machine, as `check_inputs` does; nothing is downloaded or written.

    Raises:
        SpecError, DataError: as `check_inputs`, of the data.
    """
    forget()
    _check_data(replace(plan, cells=tuple(cell for cell in plan.cells if path_of(cell.dataset) is not None)))


def _check_data(plan: Plan) -> dict[str, str]:
    """Read the data sets of a plan's cells, and return their fingerprints by name."""
    _check_sizes(plan)
    _check_judged(plan)
    _check_lengths(plan)
    now = {name: fingerprint(loaded(name)) for name in dict.fromkeys(cell.dataset for cell in plan.feasible)}
    for cell in plan.feasible:
        if not cell.skip_bad:
            _open_images(cell.dataset, now[cell.dataset])
    return now


def needs_of(plan: Plan, trial: str) -> Needs:
    """What every machine must have for a plan's trials; models and data sets of the hub are fetched by each.

    Args:
        trial: the trial function as "package.module:function".
    """
    names = dict.fromkeys(name for cell in plan.feasible for name in (cell.model, cell.dataset))
    paths = (str(path) for name in names if (path := path_of(absolute(name))) is not None)
    modules = [trial.partition(":")[0]]
    if any(name.endswith(GGUF) for name in names):
        modules.append("gguf")
    if any(text_kind(name) == "meanings" for name in names):
        modules += LIBRARIES
    if plan.spec.train.base_weights in QUANTISED:
        modules.append("bitsandbytes")
    methods = dict.fromkeys(cell.base for cell in plan.feasible if has_budget(cell.base))
    return Needs(tuple(paths), tuple(methods), tuple(modules))


def available(plan: Plan) -> Plan:
    """The plan of the data sets that are on this machine: cells of others are left out, with the reason in `absent`.

    Nothing is downloaded. Data that trials of the results folder saw is never left out.

    Raises:
        DataError: none of the data sets is here.
        SpecError: as `Plan.with_trials`.
    """
    seen = data_seen(plan.spec.folder) or {}
    with offline():
        lacking = {name: first_line(e) for name, e in _lacking(plan, _whole).items() if name not in seen}
    forget()  # a data set of which a part is here
    if lacking and all(cell.dataset in lacking for cell in plan.feasible):
        raise DataError(
            f"none of the {len(lacking)} data sets is on this machine, {next(iter(lacking.values()))}; "
            "without --available they are downloaded, as far as they can be"
        )
    reasons = {cell.cell_id: lacking[cell.dataset] for cell in plan.feasible if cell.dataset in lacking}
    left_out = (replace(cell, absent=reasons.get(cell.cell_id)) for cell in plan.cells)
    with offline():  # data that trials saw may be gone
        return replace(plan, cells=tuple(left_out)).with_trials()


def _whole(cell: Cell) -> None:
    len(loaded(cell.dataset).test)


def _lacking(plan: Plan, read: Callable[[Cell], object]) -> dict[str, DataError]:
    """Data sets of a plan's cells that can't be read, by name."""
    found: dict[str, DataError] = {}
    for cell in plan.feasible:
        if cell.dataset not in found:
            try:
                read(cell)
            except DataError as error:
                found[cell.dataset] = error
    return found


def _check_sizes(plan: Plan) -> None:
    """Load and split every data set; raise one DataError for all that can't be."""
    found = _lacking(plan, split_sizes)
    if len(found) == 1:
        raise next(iter(found.values()))
    if found:
        get = {name: getattr(DATASETS.get(name), "get", "") for name in found}
        lines = [f"{error}{f' (how to get it: {get[name]})' if get[name] else ''}" for name, error in found.items()]
        rest = "--available runs the others" if len(found) < len({cell.dataset for cell in plan.feasible}) else ""
        raise DataError("\n".join([f"{len(found)} data sets can't be had:", *lines, *filter(None, [rest])]))


def _check_judged(plan: Plan) -> None:
    """Raise SpecError for the first row that a language model's trials could not be judged by."""
    for cell in {(cell.dataset, cell.train_size): cell for cell in plan.feasible}.values():
        data = loaded(cell.dataset)
        if isinstance(data, TextDataset) and data.kind != "sentences":
            trial = cell.trial("CONFIRM", cell.lr_centre, (0, 0, 0), plan.spec.train)
            try:
                check_judged(data, trial.evaluate, split_of(data, trial).val_idx)
            except TrialError as error:
                raise SpecError([Problem("evaluate.protocol", trial.evaluate.protocol, str(error))]) from error


def _check_lengths(plan: Plan) -> None:
    """Tokenize completions and conversations, if the model's tokenizer is on this machine or can be downloaded.

    Warns of texts that are longer than `train.max_tokens`. Raises SpecError for a row that a trial would refuse.
    """
    names = dict.fromkeys(cell.dataset for cell in plan.feasible)
    completions = [name for name in names if text_kind(name) == "completions"]
    if not completions:
        return
    model = plan.spec.model.id
    try:
        tokenizer, config = tokenizer_of(model)
    except ModelError:
        return  # without a tokenizer here, a run reports this when it loads the weights
    try:
        encoder = make_encoder(tokenizer, config, plan.spec.train.max_tokens, model)
    except TrialError as error:
        raise SpecError([Problem("model.id", None, str(error))]) from error
    for name in completions:
        data = loaded(name)
        assert isinstance(data, TextDataset)
        for part in (data.train, data.test):
            _check_tokens(name, part, encoder)


def _check_tokens(name: str, part: TextSplit, encoder: Encoder) -> None:
    """Tokenize the rows of a split; evenly spaced rows if the split is large."""
    lengths = []
    for row in range(0, len(part), max(1, len(part) // OPENED)):
        place = part.place(row)
        try:
            ids, learned = encoder.whole(completion(part, row), place)
            encoder.fitting(ids, learned, place)
        except TooLongError as error:
            enough = str(min(error.needed, encoder.window or error.needed))
            raise SpecError([Problem("train.max_tokens", encoder.max_tokens, str(error), enough)]) from error
        except TrialError as error:
            raise SpecError([Problem("data.datasets", name, str(error))]) from error
        lengths.append(len(ids))
    if cut := sum(length > encoder.max_tokens for length in lengths):
        warnings.warn(
            f"data set {name!r}: {cut:,} of {len(lengths):,} {part.name} texts have more tokens than "
            f"train.max_tokens = {encoder.max_tokens:,}, and lose their end; the longest has {max(lengths):,}",
            DataWarning,
            stacklevel=2,
        )


@functools.cache
def _open_images(name: str, found: str) -> None:
    """Open the images of a data set whose fingerprint is `found`."""
    dataset = loaded(name)
    if isinstance(dataset, TextDataset):
        return  # read whole already
    for split in (dataset.train, dataset.test):  # a test image that can't be read would stop CONFIRM at its end
        for row in range(0, len(split), max(1, len(split) // OPENED)):
            split.image(row)


def _check_seen(folder: Path, now: dict[str, str]) -> None:
    """Compare the digests of data sets and model with what the folder's trials saw; note those that are new."""
    path = folder / FILE
    try:
        make_results_folder(folder)
        seen = data_seen(folder)
    except OSError as error:
        rule = f"can't be made or read ({error.strerror}); choose another output"
        raise SpecError([Problem("output", str(folder), rule)]) from error
    if seen is None:
        rule = "is no JSON object of data sets and their digests; restore it, or remove it to trust the data as it is"
        raise SpecError([Problem("results", str(path), rule)])
    changed = [name for name, found in now.items() if not _is_same(name, seen.get(name, found), found)]
    if changed:
        store = Store((folder,))
        begun = [*(event["config"] for event in store.events("ask")), *store.table("trials").to_pylist()]
        had = {trial[column] for trial in begun for column in ("dataset", "model")}
        if problems := [_changed(name, now[name], folder) for name in changed if name in had]:
            raise SpecError(problems)
    if now.items() - seen.items():
        write_atomically(path, json.dumps(seen | now, indent=1) + "\n")


def _is_same(name: str, known: str, found: str) -> bool:
    """Return whether data or a model is what `known` was made of. Folders of older versions have other digests."""
    if found.startswith(WHOLE) and not known.startswith(WHOLE):
        return known == sliced_digest(name)
    if known.startswith((KIND, COMMIT)):
        return known in (found, found.partition(" ")[0])  # without that of the prompts
    return known == label_digest(loaded(name))  # without the images


def _changed(name: str, found: str, folder: Path) -> Problem:
    field = "data.datasets"
    what = "data"
    how = "its examples, labels or prompts changed"
    if name.startswith("local:"):
        field = "model.id"
        what = "model"
        how = "its files changed"
    elif found.startswith(COMMIT):
        how = f"the hub has another commit; if that left the weights as they were, take the line out of {FILE}"
        field, what = "model.id", "model"
    rule = f"is not the {what} that the trials in {folder} saw ({how}); restore it, or give the sweep another name"
    return Problem(field, name, rule)


def data_seen(folder: Path) -> dict[str, str] | None:
    """Digests of the data, and of the model, that trials of a results folder saw, by name; None: none of ours."""
    path = folder / FILE
    try:
        seen = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, RecursionError):
        return None
    return seen if isinstance(seen, dict) and all(isinstance(value, str) for value in seen.values()) else None
