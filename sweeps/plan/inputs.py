"""Checks what a sweep will read, before it starts: data sets must load, training sizes must fit, images must open."""

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
from trainables.data.facts import IMAGE_SETS
from trainables.data.splits import split_of
from trainables.data.text.dataset import TextDataset, TextSplit
from trainables.data.text.registry import text_kind
from trainables.errors import DataError, TrialError, first_line
from trainables.metrics.texts import LIBRARIES
from trainables.models.families import GGUF, ModelError
from trainables.models.loading import check_weights, tokenizer_of
from trainables.tasks.text.causal_lm import choose_protocol
from trainables.tasks.text.encoding import Encoder, TooLongError, completion, make_encoder

OPENED = 4000
"""The number of images (or texts) of a split that are opened. In a larger split, evenly spaced ones are opened."""
FILE = "data.json"


def check_inputs(plan: Plan) -> None:
    """Read the data and weights of a sweep, so that bad input stops it before anything starts.

    It writes the record of the data into the results folder. So the folder must be checked before
    (`sweeps.records.locks.check_identity`).

    Raises:
        SpecError: the model id names no weights; a package is missing; the results folder can't be written, or its
            trials used other data or model files under the same name; the test split is a copy of train; or
            `evaluate.protocol` can't judge a text.
        ModelError: the weights are not here and can't be downloaded.
        DataError: files are missing or damaged, a class has no images, or an image does not open. It lists all data
            sets that can't be read, each with how to get it.
    """
    model = plan.base_model
    if model.parsed.scheme == "open_clip" and model.parsed.tag is None:
        raise SpecError([Problem("model.id", model.id, "names no weights; write open_clip:ARCH/TAG")])
    check_weights(model.id)
    _check_packages(plan)
    forget()  # files may have changed since this process read them
    now = _check_data(plan)
    weights = model.digest()
    # if a data set of the hub has the same name as the model, the digest is the data set's
    _check_seen(plan.spec.folder, ({} if weights is None else {model.id: weights}) | now)


def _check_packages(plan: Plan) -> None:
    """Raise SpecError if the package that loads quantised base weights is missing."""
    held = plan.spec.train.base_weights
    if held in QUANTISED and importlib.util.find_spec("bitsandbytes") is None:
        rule = "needs bitsandbytes, which is not installed: pip install 'randlora-sweeps[quantised]'"
        raise SpecError([Problem("train.base_weights", held, rule, "bf16")])


def check_files(plan: Plan) -> None:
    """Read the data sets that are files on this machine, as `check_inputs` does, but write and download nothing.

    Raises:
        SpecError, DataError: as `check_inputs`.
    """
    forget()
    _check_data(replace(plan, cells=tuple(cell for cell in plan.cells if path_of(cell.dataset) is not None)))


def _check_data(plan: Plan) -> dict[str, str]:
    """Read the data sets of a plan's cells, and return their fingerprints by name."""
    _check_sizes(plan)
    _check_judged(plan)
    _check_smoothing(plan)
    _check_lengths(plan)
    now = {name: fingerprint(loaded(name)) for name in dict.fromkeys(cell.dataset for cell in plan.feasible)}
    for cell in plan.feasible:
        if not cell.skip_bad:
            _open_images(cell.dataset, now[cell.dataset])
    return now


def needs_of(plan: Plan, trial: str) -> Needs:
    """Return what every node must have for a plan's trials. Each node downloads hub models and data sets itself.

    Args:
        plan: the plan.
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
    """Return the plan with only the data sets that are on this machine.

    Cells of other data sets are left out, with the reason in `absent`. Nothing is downloaded. Data that trials of the
    results folder used is never left out.

    Raises:
        DataError: none of the data sets is on this machine.
        SpecError: as `Plan.with_trials`.
    """
    seen = data_seen(plan.spec.folder) or {}
    with offline():
        lacking = {
            name: first_line(error) for name, error in _unreadable(plan, _load_both_splits).items() if name not in seen
        }
    forget()  # a data set may be here only in part
    if lacking and all(cell.dataset in lacking for cell in plan.feasible):
        raise DataError(
            f"none of the {len(lacking)} data sets is on this machine, {next(iter(lacking.values()))}; "
            "without --available they are downloaded, as far as they can be"
        )
    reasons = {cell.cell_id: lacking[cell.dataset] for cell in plan.feasible if cell.dataset in lacking}
    left_out = (replace(cell, absent=reasons.get(cell.cell_id)) for cell in plan.cells)
    with offline():  # data that trials used may be gone
        return replace(plan, cells=tuple(left_out)).with_trials()


def _load_both_splits(cell: Cell) -> None:
    len(loaded(cell.dataset).test)


def _unreadable(plan: Plan, read: Callable[[Cell], object]) -> dict[str, DataError]:
    """Return the errors of the data sets that `read` can't read, by name."""
    errors: dict[str, DataError] = {}
    for cell in plan.feasible:
        if cell.dataset not in errors:
            try:
                read(cell)
            except DataError as error:
                errors[cell.dataset] = error
    return errors


def _check_sizes(plan: Plan) -> None:
    """Load and split every data set. Raise one DataError for all that can't be loaded."""
    errors = _unreadable(plan, split_sizes)
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        get = {name: IMAGE_SETS[name].how_to_get if name in IMAGE_SETS else "" for name in errors}
        lines = [f"{error}{f' (how to get it: {get[name]})' if get[name] else ''}" for name, error in errors.items()]
        rest = "--available runs the others" if len(errors) < len({cell.dataset for cell in plan.feasible}) else ""
        raise DataError("\n".join([f"{len(errors)} data sets can't be had:", *lines, *filter(None, [rest])]))


def _check_judged(plan: Plan) -> None:
    """Raise SpecError for the first row with which `evaluate.protocol` can't judge a language model."""
    for cell in {(cell.dataset, cell.train_size): cell for cell in plan.feasible}.values():
        data = loaded(cell.dataset)
        if isinstance(data, TextDataset) and data.kind != "sentences":
            trial = cell.trial("CONFIRM", cell.lr_centre, (0, 0, 0), plan.spec.train)
            try:
                choose_protocol(data, trial.evaluate, split_of(data, trial).val_idx)
            except TrialError as error:
                raise SpecError([Problem("evaluate.protocol", trial.evaluate.protocol, str(error))]) from error


def _check_smoothing(plan: Plan) -> None:
    """Raise SpecError if labels shall be smoothed and those of a data set are numbers, which have no classes."""
    smoothing = plan.spec.train.label_smoothing
    if not smoothing:
        return
    for name in dict.fromkeys(cell.dataset for cell in plan.feasible):
        data = loaded(name)
        if isinstance(data, TextDataset) and data.kind == "sentences" and not data.class_names:
            rule = f"spreads a share of a label over the other classes, and the labels of {name!r} are numbers; leave "
            rule += "it out, or run this data set in a sweep of its own"
            raise SpecError([Problem("train.label_smoothing", smoothing, rule, "0.0")])


def _check_lengths(plan: Plan) -> None:
    """Tokenize completions and conversations, if the model's tokenizer is here or can be downloaded.

    Warns of texts that are longer than `train.max_tokens`.

    Raises:
        SpecError: a trial would refuse a row.
    """
    names = dict.fromkeys(cell.dataset for cell in plan.feasible)
    completions = [name for name in names if text_kind(name) == "completions"]
    if not completions:
        return
    model = plan.spec.model.id
    try:
        tokenizer, config = tokenizer_of(model)
    except ModelError:
        return  # without a tokenizer, a run raises the error when it loads the weights
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
def _open_images(name: str, fingerprint_of_data: str) -> None:
    """Open images of a data set, once for each `fingerprint_of_data`, so that changed data is opened again."""
    dataset = loaded(name)
    if isinstance(dataset, TextDataset):
        return  # all texts were read already
    for split in (dataset.train, dataset.test):  # a damaged test image would otherwise stop a CONFIRM trial at its end
        for row in range(0, len(split), max(1, len(split) // OPENED)):
            split.image(row)


def _check_seen(folder: Path, now: dict[str, str]) -> None:
    """Compare digests of data and model with those that the folder's trials used. Record the new ones.

    Raises:
        SpecError: they differ, or the folder can't be written.
    """
    path = folder / FILE
    try:
        make_results_folder(folder)
        seen = data_seen(folder)
    except OSError as error:
        rule = f"can't be made or read ({error.strerror}); choose another output"
        raise SpecError([Problem("output", str(folder), rule)]) from error
    if seen is None:
        rule = (
            "is not a JSON object of data sets and their digests; restore it, or remove it to trust the data as it is"
        )
        raise SpecError([Problem("results", str(path), rule)])
    changed = [name for name, digest in now.items() if not _is_same(name, seen.get(name, digest), digest)]
    if changed:
        store = Store((folder,))
        begun = [*(event["config"] for event in store.events("ask")), *store.table("trials").to_pylist()]
        had = {trial[column] for trial in begun for column in ("dataset", "model")}
        if problems := [_changed(name, now[name], folder) for name in changed if name in had]:
            raise SpecError(problems)
    if now.items() - seen.items():
        write_atomically(path, json.dumps(seen | now, indent=1) + "\n")


def _is_same(name: str, recorded: str, current: str) -> bool:
    """Return whether two digests are of the same data or model. Folders of older versions have other digests."""
    if current.startswith(WHOLE) and not recorded.startswith(WHOLE):
        return recorded == sliced_digest(name)
    if recorded.startswith((KIND, COMMIT)):
        return recorded in (current, current.partition(" ")[0])  # without that of the prompts
    return recorded == label_digest(loaded(name))  # without the images


def _changed(name: str, current: str, folder: Path) -> Problem:
    field = "data.datasets"
    what = "data"
    how = "its examples, labels or prompts changed"
    if name.startswith("local:"):
        field = "model.id"
        what = "model"
        how = "its files changed"
    elif current.startswith(COMMIT):
        field = "model.id"
        what = "model"
        how = f"the hub has another commit; if the weights are the same, remove the line from {FILE}"
    rule = f"is not the {what} that the trials in {folder} used ({how}); restore it, or give the sweep another name"
    return Problem(field, name, rule)


def data_seen(folder: Path) -> dict[str, str] | None:
    """Return the digests of data and model that the trials of a results folder used, by name.

    {} if there is no record yet. None if the record can't be read.
    """
    path = folder / FILE
    try:
        seen = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, RecursionError):
        return None
    return seen if isinstance(seen, dict) and all(isinstance(value, str) for value in seen.values()) else None
