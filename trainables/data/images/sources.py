"""Read image sets from files: the hub's Parquet form, Arrow files, class folders, and the hub itself.

Every source has a `train` and a `test` split. A `dataset.json` beside the files may give `templates`, `prompt` and
`class_names`. It may have other keys for people to read. Classes that are words are sorted, numbers by their value.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from randlora.errors import nearest
from trainables.data.downloads import hub_splits
from trainables.data.images.dataset import (
    IMAGE_SUFFIXES,
    Dataset,
    ImageSplit,
    Words,
    assemble,
    check_files,
    check_labels,
    combined,
    from_paths,
    image_files,
    is_utf8,
    open_image,
)
from trainables.data.templates import check_templates
from trainables.digests import content_as_opened, content_digest
from trainables.errors import DIGITS, DataError, first_repeated

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")
_VALIDATION = ("validation", "valid", "val")
_Known = Literal["words", "names", "none"]
_AFTER = ("", "-*", "[0-9]*", "[._ ][0-9]*", "[._ ][!0-9]*")
"""What may follow a split's name in the names of its files. All files must be of one kind: else some may be
duplicates."""
UNPACKED, UNPACKED_BYTES = 50, 2**30
"""A table may unpack to this many times its file's size, and always to this many bytes."""


def read_words(folder: Path) -> Words:
    """Return the words in a folder's `dataset.json`, or none if it is missing. Raises DataError if it is malformed."""
    path = folder / "dataset.json"
    if not path.is_file():
        return Words()
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold one JSON object, not {type(content).__name__}")
    lists: dict[str, tuple[str, ...] | None] = {}
    for key in ("templates", "class_names"):
        value = content.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise DataError(f"{path}: {key!r} must be a list of strings, not {value!r}")
        lists[key] = None if value is None else tuple(value)
    prompt = None if content.get("prompt") is None else str(content["prompt"])
    for prompts in (lists["templates"], None if prompt is None else (prompt,)):
        if prompts is not None:
            check_templates(prompts, str(path))
    return Words(lists["templates"], prompt, lists["class_names"])


def from_tables(
    name: str,
    tables: Mapping[str, Callable[[], pa.Table]],
    words: Words,
    files: Mapping[str, Sequence[Path]],
    *,
    clean: Callable[[str], str] | None = None,
    ours: bool = False,
) -> Dataset:
    """Return a data set from tables. The table of each split (train, test, perhaps a validation) is read when it is
    needed.

    Args:
        name: the id, for messages.
        tables: split -> function that reads its table.
        words: prompts and class names.
        files: split -> the files that its table is read from.
        clean: makes the words for prompts from the class names in the table.
        ours: whether the table was made on this machine, so that images may be files that it names.
    """
    contents = {which: content_as_opened(paths) for which, paths in files.items() if paths}
    first = tables["train"]()
    columns = _columns(first, name)
    class_names = _class_names(first, columns[1], words, name)
    names_in_table = _own_names(first, columns[1], name)
    label_form: _Known = (
        "words" if _are_words(first.column(columns[1]), name) else "none" if names_in_table is None else "names"
    )
    validation = next((v for v in _VALIDATION if v in tables), None)

    def read(which: str) -> ImageSplit:
        table = first if which == "train" else tables[which]()
        shown = "validation" if which == validation else which
        return _table_split(table, columns, class_names, label_form, name, shown, contents.get(which), ours)

    names = class_names if clean is None else [clean(c) for c in class_names]
    return assemble(
        name, names, read("train"), lambda: read("test"), words, val=None if validation is None else read(validation)
    )


def from_parquet(name: str, folder: Path) -> Dataset:
    """Return the set of `FOLDER/train*.parquet` and `FOLDER/test*.parquet`, also under `data/` or split folders, as on
    the hub.

    No letter may follow the split's name: `train_0` and `train-a` belong to train, `training` does not.
    """
    return _from_files(name, folder, "parquet", _read_parquet)


def from_arrow(name: str, folder: Path) -> Dataset:
    """Return the set of Arrow files or streams, laid out as in `from_parquet`. `datasets`' `save_to_disk` writes such
    files."""
    return _from_files(name, folder, "arrow", _read_arrow)


def from_folder(name: str, folder: Path) -> Dataset:
    """Return the set of `FOLDER/{train,test}/CLASS/IMAGE`. Underscores in a class's folder name become spaces in its
    prompts."""
    splits = {s: folder / s for s in ("train", "test", *_VALIDATION) if (folder / s).is_dir()}
    if not {"train", "test"} <= splits.keys():
        inside = sorted(p.name for p in folder.iterdir())
        shown = ", ".join(map(repr, inside[:6]))
        if len(inside) > 6:
            shown += f" and {len(inside) - 6} more"
        raise DataError(
            f"data set {name!r}: {folder} needs train/CLASS/IMAGE and test/CLASS/IMAGE, and perhaps val/CLASS/IMAGE; "
            f"it holds {shown or 'nothing'}; `sweeps data folder:DIR --split NEW` makes them of DIR/CLASS/IMAGE"
        )
    _check_one_validation(name, folder, splits)
    folders = _in_order(p.name for p in splits["train"].iterdir() if p.is_dir())
    if unreadable := [folder_of_class for folder_of_class in folders if not is_utf8(folder_of_class)]:
        raise DataError(f"{name}: the name of class folder {unreadable[0]!a} is not UTF-8; rename it")

    def read(which: str) -> ImageSplit:
        class_folders = {p.name for p in splits[which].iterdir() if p.is_dir()}
        if extra := sorted(class_folders - set(folders)):
            hint = nearest(extra[0], folders)
            raise DataError(f"{name}: class folder {extra[0]!r} of {which} is not in train; {hint}")
        paths, labels = [], []
        for index, folder_of_class in enumerate(folders):
            images = image_files(splits[which] / folder_of_class) if folder_of_class in class_folders else []
            if not images and folder_of_class in class_folders:
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                raise DataError(
                    f"{name}: class folder {splits[which] / folder_of_class} holds no image ({suffixes}); "
                    "fill it or remove it"
                )
            paths += images
            labels += [index] * len(images)
        return from_paths(name, which, paths, labels, len(folders))

    validation = next((v for v in _VALIDATION if v in splits), None)
    names = [f.replace("_", " ") for f in folders]
    val = None if validation is None else read(validation)
    return assemble(name, names, read("train"), lambda: read("test"), read_words(folder), val=val)


def from_hub(
    name: str,
    repository: str,
    words: Words | None = None,
    *,
    config: str | None = None,
    splits: Mapping[str, str] | None = None,
    clean: Callable[[str], str] | None = None,
    advice: str = "",
) -> Dataset:
    """Return a data set of the Hugging Face hub, downloaded once into its cache.

    Args:
        name: the id, for messages.
        repository: the repository.
        words: prompts and class names; None for those of the repository.
        config: which of the repository's configurations; None for its only or default one.
        splits: our name of a split -> the hub's name. None uses its `train`, `test` and validation split.
        clean: makes the words for prompts from the class names.
        advice: how else to get the set, for the message if it cannot be had.
    """
    instead = "check the id and the connection, or download it and use 'parquet:FOLDER'"
    if advice:
        instead += f"; {advice}"
    arguments = [config] if config else []
    hub_splits_by_name = hub_splits(name, repository, *arguments, instead=instead)
    hub_names = {
        ours: theirs
        for ours, theirs in (splits or {k: k for k in hub_splits_by_name}).items()
        if theirs in hub_splits_by_name
    }
    _must_have(name, Path(repository), hub_names, "splits")
    tables = {
        ours: lambda split=hub_splits_by_name[theirs]: split.with_format("arrow")[:]
        for ours, theirs in hub_names.items()
    }
    files = {
        ours: [Path(each["filename"]) for each in hub_splits_by_name[theirs].cache_files]
        for ours, theirs in hub_names.items()
    }
    return from_tables(name, tables, words or Words(), files, clean=clean, ours=True)


def _from_files(name: str, folder: Path, suffix: str, read: Callable[[Path], Iterable[pa.RecordBatch]]) -> Dataset:
    """Return the set of files with this suffix."""
    splits: dict[str, list[Path]] = {}
    for which in ("train", "test", *_VALIDATION):
        patterns = (f"{place}{which}{rest}.{suffix}" for place in ("", "data/") for rest in _AFTER)
        candidates = [paths for p in (*patterns, f"{which}/*.{suffix}") if (paths := sorted(folder.glob(p)))]
        if suffix == "arrow" and (state := folder / which / "state.json").is_file():
            others = [paths for paths in candidates if paths[0].parent != state.parent]
            candidates = [paths for paths in (*others, _saved(state)) if paths]
        if len(candidates) > 1:
            shown = " and ".join(str(paths[0].relative_to(folder)) for paths in candidates)
            raise DataError(f"data set {name!r}: {folder} has {shown} for split {which!r}; keep only one kind")
        if candidates:
            splits[which] = candidates[0]
    _must_have(name, folder, splits, f"{suffix} files")
    _check_one_validation(name, folder, splits)

    def opened(which: str) -> pa.Table:
        try:
            return _joined(splits[which], [_table(p, read(p)) for p in splits[which]])
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: of a column's name
            listed = ", ".join(str(p) for p in splits[which])
            raise DataError(f"{name}: cannot read {listed} ({error}); the file is damaged, fetch it again") from error

    tables = {which: functools.partial(opened, which) for which in splits}
    for paths in splits.values():
        check_files(paths)
    return from_tables(name, tables, read_words(folder), splits)


def _saved(state: Path) -> list[Path]:
    """Return the files that `save_to_disk` wrote. Files that `datasets` made of them later (`map`, `filter`) are beside
    them."""
    try:
        return [state.with_name(each["filename"]) for each in json.loads(state.read_text("utf-8"))["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{state}: names no files ({type(error).__name__}: {error}); save the set again") from error


def _read_parquet(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        about = file.metadata
        _check_unpacked(path, sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups)))
        yield from file.iter_batches(1024)


def _read_arrow(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:  # no file footer: a stream
            file.seek(0)
            yield from pa.ipc.open_stream(file)
        else:
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _table(path: Path, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Return the table of a file. Raises DataError if it unpacks to more than encoded images can."""
    record_batches, size = [], 0
    for batch in batches:
        size += batch.nbytes
        _check_unpacked(path, size)
        record_batches.append(batch)
    if not record_batches:
        raise DataError(f"{path}: no rows")
    if (twice := first_repeated(record_batches[0].schema.names)) is not None:
        raise DataError(f"{path}: two columns are called {twice!r}; rename or remove one")
    return pa.Table.from_batches(record_batches)


def _check_unpacked(path: Path, size: int) -> None:
    """Raise DataError if a table is much larger than its file."""
    limit = max(UNPACKED_BYTES, UNPACKED * path.stat().st_size)
    if size > limit:
        raise DataError(
            f"{path}: unpacks to {size:,} bytes or more, from {path.stat().st_size:,}; encoded images do not, and "
            f"{limit:,} are allowed"
        )


def _columns(table: pa.Table, source: str) -> tuple[str, str]:
    names = table.column_names
    image = next((c for c in _IMAGE_COLUMNS if c in names), None)
    label = next((c for c in _LABEL_COLUMNS if c in names), None)
    if image is None or label is None:
        what, accepted = ("image", _IMAGE_COLUMNS) if image is None else ("label", _LABEL_COLUMNS)
        raise DataError(f"{source}: no {what} column among {names}; it must be called one of {', '.join(accepted)}")
    return image, label


def _images(table: pa.Table, column: str, where: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """Return the encoded images of a column, and their paths if it has them. Raises DataError for values of any other
    type.

    An extension type could run code of the file, such as Ray's type of pickled objects.
    """
    kind, cells = table.schema.field(column).type, table.column(column)
    named = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    if named and len(named) < kind.num_fields:
        twice = first_repeated(field.name for field in kind)
        raise DataError(f"{where}: column {column!r} is {kind}, which has {twice!r} more than once; keep one of them")
    encoded = named.get("bytes", kind)
    paths = named.get("path", pa.null())
    plain = pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)
    if not plain or not (pa.types.is_string(paths) or pa.types.is_large_string(paths) or pa.types.is_null(paths)):
        rule = "it must be binary, or a struct with binary 'bytes' and perhaps a text 'path'"
        raise DataError(f"{where}: column {column!r} is {kind}; {rule}")
    if not named:
        return cells, None
    return pc.struct_field(cells, "bytes"), pc.struct_field(cells, "path") if "path" in named else None


def _in_order(names: Iterable[str]) -> list[str]:
    """Return the names sorted; by value if all are numbers, so that 2 comes before 10."""
    ordered = sorted(names)
    numbers = all(each.isdecimal() and len(each) < DIGITS for each in ordered)
    return sorted(ordered, key=int) if numbers else ordered


def _are_words(labels: pa.ChunkedArray, where: str) -> bool:
    """Return whether labels are words. Otherwise they are numbers. Raises DataError for anything else."""
    kind = labels.type.value_type if pa.types.is_dictionary(labels.type) else labels.type
    words = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (words or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"{where}: labels are {kind}; each must be one integer, or text")
    return bool(words)


def _class_names(table: pa.Table, label: str, words: Words, source: str) -> tuple[str, ...]:
    """Return the names of the classes."""
    column = table.column(label)
    if _are_words(column, source):
        return tuple(_in_order(str(v) for v in _values(column.unique(), source) if v is not None))
    if (names := _own_names(table, label, source)) is not None:
        return names
    if words.class_names is not None:
        return words.class_names
    raise DataError(
        f"{source}: column {label!r} has numbers without names; write the names into dataset.json beside the files, "
        '{"class_names": ["...", ...]}'
    )


def _own_names(table: pa.Table, label: str, where: str) -> tuple[str, ...] | None:
    """Return the names that a table itself gives to its class numbers; None if there are none, or none can be read."""
    if label not in table.column_names or _are_words(table.column(label), where):
        return None
    metadata = table.schema.metadata or {}
    try:
        names = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][label]["names"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return tuple(names) if isinstance(names, list) and names and all(isinstance(n, str) for n in names) else None


def _joined(paths: Sequence[Path], tables: list[pa.Table]) -> pa.Table:
    """Return one table of a split's files. Its classes are those of the first file and what others add: each may number
    its own."""
    label = next((c for c in _LABEL_COLUMNS if c in tables[0].column_names), "")
    owns = [_own_names(table, label, str(path)) for path, table in zip(paths, tables, strict=True)]
    if len(set(owns) - {None}) < 2:
        return pa.concat_tables(tables, promote_options="permissive")
    place: dict[str, int] = {}
    for at, (path, table, own) in enumerate(zip(paths, tables, owns, strict=True)):
        if own is not None:
            values = _values(table.column(label), str(path))
            check_labels(torch.tensor([v or 0 for v in values], dtype=torch.int64), len(own), str(path))
            for number in sorted({v for v in values if v is not None}) if place else range(len(own)):
                place.setdefault(own[number], len(place))
            field = table.schema.field(label)
            numbers = pa.array([None if v is None else place[own[v]] for v in values], field.type)
            tables[at] = table.set_column(table.column_names.index(label), field, numbers)
    about = json.dumps({"info": {"features": {label: {"names": list(place)}}}})
    return pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata({"huggingface": about})


def _table_split(
    table: pa.Table,
    columns: tuple[str, str],
    class_names: Sequence[str],
    known: _Known,
    source: str,
    which: str,
    content: Callable[[], str | None] | None,
    ours: bool,
) -> ImageSplit:
    """Return a split of a table. `known` says what train's table has: words as labels, names of numbers, or numbers."""
    where = f"{source} ({which})"
    for column in columns:
        if column not in table.column_names:
            raise DataError(f"{where}: no column {column!r} as in train; it has {table.column_names}")
    image, label = columns
    encoded, paths = _images(table, image, where)
    labels = _labels(table, label, class_names, known, where)

    def raw(row: int) -> bytes:
        encoded_image: bytes | None = encoded[row].as_py()
        if ours and encoded_image is None and paths is not None and (file := Path(paths[row].as_py() or "")).is_file():
            return file.read_bytes()
        if encoded_image is None:
            raise ValueError("the row holds no bytes")
        return encoded_image

    if ours and paths is not None and encoded.null_count:
        named = paths.filter(pc.and_(encoded.is_null(), paths.is_valid())).to_pylist()
        content = combined(content, functools.partial(content_digest, [Path(path) for path in named]))
    return ImageSplit(source, which, labels, lambda row: open_image(io.BytesIO(raw(row))), content, raw=raw)


def _values(column: pa.ChunkedArray, where: str) -> list[Any]:
    """Return the labels of a column. Raises DataError for a text that is not UTF-8 and a number that exceeds int64."""
    try:
        if pa.types.is_uint64(column.type):
            column = column.cast(pa.int64())
        return list(column.to_pylist())
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{where}: a label can't be read ({error}); the file is damaged, or it holds other data"
        ) from error


def _labels(table: pa.Table, label: str, class_names: Sequence[str], known: _Known, where: str) -> Tensor:
    """Return every row's number among `class_names`: by its word, by its table's own names, or as the table has it."""
    values = _values(table.column(label), where)
    are_words = _are_words(table.column(label), where)
    if empty := sum(value is None or (are_words and not value.strip()) for value in values):
        raise DataError(f"{where}: {empty} rows have no {label!r}; remove them")
    own = _own_names(table, label, where)
    words: list[str] | None = values if are_words else None
    hint = ""
    if own is not None and own != tuple(class_names) and (known != "none" or set(own) <= set(class_names)):
        check_labels(torch.tensor(values, dtype=torch.int64), len(own), where)
        words = [own[value] for value in values]
        if (twice := first_repeated(class_names)) is not None:
            raise DataError(f"{where}: two classes of train are called {twice!r}, so names do not distinguish them")
    elif own is None and known == "words" and not are_words:
        words = [str(value) for value in values]
        hint = ", whose labels are words: these are numbers"
    if words is not None:
        index = {name: number for number, name in enumerate(class_names)}
        if (unknown := next((word for word in words if word not in index), None)) is not None:
            raise DataError(f"{where}: class {unknown!r} is not in train{hint}; {nearest(unknown, class_names)}")
        values = [index[word] for word in words]
    return check_labels(torch.tensor(values, dtype=torch.int64), len(class_names), where)


def _check_one_validation(name: str, folder: Path, splits: Mapping[str, object]) -> None:
    """Raise DataError if a set has several validation splits."""
    if len(validations := [v for v in _VALIDATION if v in splits]) > 1:
        raise DataError(
            f"data set {name!r}: {folder} has the validation splits {' and '.join(validations)}; keep only one of them"
        )


def _must_have(name: str, folder: Path, splits: Mapping[str, object], what: str) -> None:
    """Raise DataError if a set lacks its train or test split."""
    for which in ("train", "test"):
        if which not in splits:
            existing = ", ".join(splits) or "none"
            raise DataError(f"data set {name!r}: {folder} has no {what} for split {which!r} (found: {existing})")
