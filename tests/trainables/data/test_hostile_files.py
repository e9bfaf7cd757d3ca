"""Files of data that were made to harm: programs for another reader, bombs, and links out of the data."""

from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image

from analysis.sheets.terminal import safe_console
from analysis.store.tables import to_table
from tests.trainables.tiny_images import COLOURS, colour_tables
from trainables.data.images import sources
from trainables.data.registry import load_dataset, load_text_dataset
from trainables.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for which in ("train", "test"):
        for name, colour in COLOURS.items():
            (tmp_path / "images" / which / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), colour).save(tmp_path / "images" / which / name / "0.png")
    return tmp_path / "images"


def test_postscript_under_an_images_name_starts_no_program(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: started.append(given))
    bad = images / "train" / "red" / "0.png"
    Image.new("RGB", (4, 4)).save(bad, format="EPS")
    with pytest.raises(DataError, match=r"0\.png.*not a readable image"):
        load_dataset(f"folder:{images}").train.image(3)
    with pytest.raises(DataError, match="not a readable image"):
        in_a_table(images.parent, bad.read_bytes()).train.image(0)
    assert started == []


def in_a_table(place: Path, image: bytes) -> sources.Dataset:
    """A data set of tables whose first training image has these bytes."""
    folder = place / "tables"
    folder.mkdir()
    for which, table in colour_tables().items():
        cells = [{"bytes": image}, *table["image"].to_pylist()[1:]]
        pq.write_table(table.set_column(0, "image", pa.array(cells)), folder / f"{which}.parquet")
    return load_dataset(f"parquet:{folder}")


class Runs(pa.ExtensionType):
    """A type whose values run code, as Ray's of pickled objects, which any process with Ray knows."""

    def __init__(self) -> None:
        super().__init__(pa.large_binary(), "tests.runs")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Runs:
        return cls()

    def __arrow_ext_scalar_class__(self) -> type:
        return Ran


class Ran(pa.ExtensionScalar):
    def as_py(self, **_: object) -> object:
        raise AssertionError("its code ran")


@pytest.mark.parametrize("field", ["bytes", "path", "image"])
@pytest.mark.parametrize("which", ["train", "test"])
def test_values_of_a_type_that_runs_code_are_refused(tmp_path: Path, which: str, field: str) -> None:
    pa.register_extension_type(Runs())
    try:
        for name, table in colour_tables().items():
            cells = pa.array([cell["bytes"] for cell in table["image"].to_pylist()], pa.large_binary())
            if name == which:
                runs = pa.ExtensionArray.from_storage(Runs(), cells)
                parts = {"bytes": cells} | ({} if field == "image" else {field: runs})
                cells = runs if field == "image" else pa.StructArray.from_arrays([*parts.values()], [*parts])
            elif field != "image":
                cells = pa.StructArray.from_arrays([cells], ["bytes"])
            pq.write_table(table.set_column(0, "image", cells), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=r"column 'image' is .*it must be binary, or a struct with binary 'bytes'"):
            getattr(load_dataset(f"parquet:{tmp_path}").at("CONFIRM"), which).image(0)
    finally:
        pa.unregister_extension_type("tests.runs")


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])  # Pillow warns of the first, and refuses the second
def test_an_image_bomb_is_no_image(images: Path, side: int) -> None:
    (images / "train" / "red" / "0.png").write_bytes(huge_png(side, side))
    with pytest.raises(DataError, match=r"0\.png.*not a readable image.*decompression bomb"):
        load_dataset(f"folder:{images}").train.image(3)


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_tables_that_unpack_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, dictionary: bool
) -> None:
    monkeypatch.setattr(sources, "UNPACKED_BYTES", 2**20)
    table = pa.table({"image": pa.array([b"\0" * 2000] * 4000), "label": ["a", "b"] * 2000})
    for which in ("train", "test"):
        if form == "parquet":
            pq.write_table(table, tmp_path / f"{which}.parquet", compression="zstd", use_dictionary=dictionary)
        else:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            opened = pa.ipc.new_file if dictionary else pa.ipc.new_stream
            with opened(tmp_path / f"{which}.arrow", table.schema, options=options) as writer:
                writer.write_table(table, 500)
    with pytest.raises(DataError, match=rf"train\.{form}: unpacks to .* bytes or more, from .*are allowed"):
        load_dataset(f"{form}:{tmp_path}")


@pytest.mark.parametrize("target", ["/dev/zero", "nothing", "."])
def test_a_link_to_no_file_is_refused(images: Path, target: str) -> None:
    bad = images / "train" / "red" / "1.png"
    bad.symlink_to(target)
    with pytest.raises(DataError, match=r"red/1\.png: (is no file|can't be read)"):
        load_dataset(f"folder:{images}")


def test_a_pipe_is_refused(images: Path) -> None:
    os.mkfifo(images / "train" / "red" / "1.png")
    with pytest.raises(DataError, match=r"red/1\.png: is no file"):
        load_dataset(f"folder:{images}")


def test_names_that_are_not_utf8(images: Path) -> None:
    """Of an image it is as good as any; of a class it would be in prompts and tables."""
    bad = os.fsdecode(b"\xff")
    red = images / "train" / "red"
    (red / "0.png").rename(red / f"{bad}.png")
    train = load_dataset(f"folder:{images}").train
    assert train.image(3).size == (4, 4)
    (red / f"{bad}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="not a readable image") as caught:
        train.image(3)
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    safe_console(file=said).print(str(caught.value))
    reason = to_table("trials", [{"trial_id": "a", "reason": str(caught.value)}])["reason"][0].as_py()
    assert "\\udcff.png" in reason
    for which in ("train", "test"):
        (images / which / "red").rename(images / which / bad)
    with pytest.raises(DataError, match=r"class folder '\\udcff' is not UTF-8; rename it"):
        load_dataset(f"folder:{images}")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_an_image_with_two_encodings_is_refused(tmp_path: Path, form: str) -> None:
    fields = [pa.field("bytes", pa.binary()), pa.field("bytes", pa.binary())]
    images = pa.StructArray.from_arrays([pa.array([b"a", b"b"])] * 2, fields=fields)
    table = pa.table({"image": images, "label": ["a", "b"]})
    for which in ("train", "test"):
        if form == "parquet":
            pq.write_table(table, tmp_path / f"{which}.parquet")
        else:
            with pa.ipc.new_file(tmp_path / f"{which}.arrow", table.schema) as file:
                file.write_table(table)
    with pytest.raises(DataError, match=r"column 'image' .* has 'bytes' more than once"):
        load_dataset(f"{form}:{tmp_path}")


def test_an_archive_stays_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_url: str, root: str, file: str, _md5: str) -> None:
        with tarfile.open(Path(root) / file, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("../../outside.txt"), io.BytesIO())

    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path / "a" / "b"))
    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    with pytest.raises(DataError, match=r"CUB_200_2011\.tgz could not be had.*outside the destination"):
        load_dataset("cub200")
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "parquet", "arrow"])
def test_a_flipped_bit_anywhere_is_an_error_of_ours_or_harmless(images: Path, tmp_path: Path, form: str) -> None:
    if form in ("parquet", "arrow"):
        source, bad = f"{form}:{tmp_path}", tmp_path / f"train.{form}"
        for which, table in colour_tables().items():
            if form == "parquet":
                pq.write_table(table, tmp_path / f"{which}.parquet")
            else:
                with pa.ipc.new_stream(tmp_path / f"{which}.arrow", table.schema) as writer:
                    writer.write_table(table)
    else:
        source, bad = f"folder:{images}", images / "train" / "red" / f"0.{form}"
        (images / "train" / "red" / "0.png").unlink()
        Image.effect_noise((16, 16), 50).convert("RGB").save(bad)
    whole, draw, named = bad.read_bytes(), random.Random(0), 0
    for _ in range(60):
        hurt = bytearray(whole)
        place = draw.randrange(len(hurt))
        hurt[place : place + 4] = bytes([hurt[place] ^ 1 << draw.randrange(8), 255, 255, 255][: len(hurt) - place])
        bad.write_bytes(hurt)
        try:
            found = load_dataset(source).train
            for row in range(4):
                found.image(row)
        except DataError:
            named += 1
    assert named > 0


NESTED = "[" * 900 + "]" * 900


@pytest.mark.parametrize("form", ["json", "questions", "problems"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[" + "1" * 10_000 + "]", '[{"instruction": ' + NESTED + "}]", '["a"]', "\0"],
)
def test_json_that_no_person_wrote_is_one_error(tmp_path: Path, form: str, suffix: str, text: str) -> None:
    for which in ("train", "test"):
        (tmp_path / f"{which}.{suffix}").write_text(text)
    with pytest.raises(DataError, match=rf"train\.{suffix}"):
        load_text_dataset(f"{form}:{tmp_path}")


def test_an_error_shows_both_ends_of_a_long_value(tmp_path: Path) -> None:
    for which in ("train", "test"):
        (tmp_path / f"{which}.json").write_text(json.dumps([{f"key{i}": 1 for i in range(100_000)}]))
    with pytest.raises(
        DataError, match=r"train\.json, row 0: no instruction.*'key0'.* \.\.\. .*'key99999'\]"
    ) as caught:
        load_text_dataset(f"json:{tmp_path}")
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize("where", ["instruction", "output"])
def test_half_a_character_is_named_with_its_row(tmp_path: Path, where: str) -> None:
    """As programs write that cut texts after so many UTF-16 units; every trial would fail for it."""
    rows = [{"instruction": "a \U0001f600", "output": "b"}] * 3
    for which, last in (("train", {where: "cut \ud83d"}), ("test", {})):
        (tmp_path / f"{which}.json").write_text(json.dumps([*rows, rows[0] | last]))  # escapes all but ASCII
    with pytest.raises(DataError, match=r"train\.json, row 3: holds half of a character \('\\ud83d'\)"):
        load_text_dataset(f"json:{tmp_path}")


ASKED = {"instruction": "Is it?", "answer": "yes", "choices": ["yes", "no"]}
NAMED = {"instruction": "Is it? Answer format: yes/no", "output": "yes", "answer": "yes"}


@pytest.mark.parametrize("form", ["json", "questions"])
@pytest.mark.parametrize(
    ("row", "told"),
    [
        (ASKED | {"choices": ["yes", "yes"]}, "row 0: the choices"),
        (NAMED | {"instruction": "Is it? Answer format: yes/yes"}, "Answer format: yes/yes"),
        (NAMED | {"instruction": "Is it? Answer format: yes/", "answer": ""}, "Answer format: yes/"),
    ],
)
def test_choices_that_can_not_be_told_apart_are_refused(
    tmp_path: Path, form: str, row: dict[str, object], told: str
) -> None:
    row = row | {"instruction": f"Answer1: a Answer2: b {row['instruction']}"}
    for which in ("train", "test"):
        (tmp_path / f"{which}.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=re.escape(told)):
        load_text_dataset(f"{form}:{tmp_path}")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_key_that_stands_twice_in_a_row_is_refused(tmp_path: Path, suffix: str) -> None:
    """JSON readers take the last value, so that the other would be lost without a word."""
    row = json.dumps(ASKED).replace('"answer"', '"instruction": "Is that?", "answer"')
    for which in ("train", "test"):
        (tmp_path / f"{which}.{suffix}").write_text(f"[{row}]" if suffix == "json" else row + "\n")
    with pytest.raises(DataError, match="the key 'instruction' twice"):
        load_text_dataset(f"json:{tmp_path}")


@pytest.mark.parametrize(("one", "other"), [("train.json", "train.jsonl"), ("val.json", "dev.json")])
def test_two_files_for_one_split_are_refused(tmp_path: Path, one: str, other: str) -> None:
    for name in ("train.json", "test.json", one, other):
        (tmp_path / name).write_text(json.dumps([ASKED]))
    with pytest.raises(DataError, match=f"has {one} and {other}"):
        load_text_dataset(f"json:{tmp_path}")


@pytest.mark.parametrize(
    ("form", "files", "text"),
    [
        ("glue", ("train.tsv", "dev.tsv"), "sentence\tlabel\tlabel\na\t0\t1\nb\t1\t0\n"),
        ("e2e", ("trainset.csv", "devset.csv", "testset_w_refs.csv"), 'mr,ref,ref\n"name[a], eatType[b]",one,two\n'),
    ],
)
def test_a_column_that_stands_twice_is_refused(tmp_path: Path, form: str, files: tuple[str, ...], text: str) -> None:
    for name in files:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"two columns are called '(label|ref)'"):
        load_text_dataset(f"{form}:{tmp_path}")


def test_a_label_of_thousands_of_digits_is_no_number(tmp_path: Path) -> None:
    folder = tmp_path / "sst2"
    folder.mkdir()
    for which in ("train", "dev"):
        (folder / f"{which}.tsv").write_text(f"sentence\tlabel\na\t0\nb\t{'9' * 5000}\n")
    with pytest.raises(DataError, match="is not one of"):
        load_text_dataset(f"glue:{folder}")


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(np.arange(3, dtype=np.int32).tobytes()), pa.py_buffer(b"a\xff")]
)


def write_labels(folder: Path, columns: list[pa.Array], names: list[str]) -> str:
    """A set of empty images in Parquet files with these further columns."""
    table = pa.Table.from_arrays([pa.array([b""] * len(columns[0]), pa.binary()), *columns], ["image", *names])
    for which in ("train", "test"):
        pq.write_table(table, folder / f"{which}.parquet")
    (folder / "dataset.json").write_text('{"class_names": ["cat", "dog"]}')
    return f"parquet:{folder}"


@pytest.mark.parametrize("labels", [pa.array([0, 2**63], pa.uint64()), NOT_UTF8])
def test_labels_that_can_not_be_read_are_one_error(tmp_path: Path, labels: pa.Array) -> None:
    with pytest.raises(DataError, match="a label can't be read"):
        load_dataset(write_labels(tmp_path, [labels], ["label"]))


def test_a_table_with_two_columns_of_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two columns are called 'label'"):
        load_dataset(write_labels(tmp_path, [pa.array([0, 1]), pa.array([1, 0])], ["label", "label"]))


def test_a_class_of_thousands_of_digits_is_a_word(tmp_path: Path) -> None:
    source = write_labels(tmp_path, [pa.array(["10", "9" * 5000, "2"])], ["label"])
    (tmp_path / "dataset.json").unlink()
    assert load_dataset(source).class_names == ("10", "2", "9" * 5000)


def test_half_a_character_in_a_classs_name_is_refused(tmp_path: Path) -> None:
    source = write_labels(tmp_path, [pa.array([0, 1])], ["label"])
    (tmp_path / "dataset.json").write_text('{"class_names": ["\\ud83d", "dog"]}')
    with pytest.raises(DataError, match="half of a character"):
        load_dataset(source)


@pytest.mark.parametrize("key", ["input ", "Input"])
def test_a_key_that_is_misspelt_is_not_passed_over(tmp_path: Path, key: str) -> None:
    """The row would lose its context without a word."""
    for which in ("train", "test"):
        (tmp_path / f"{which}.json").write_text(json.dumps([ASKED | {key: "The sky is blue."}]))
    with pytest.raises(DataError, match=f"the key '{key}' is not read; it is called 'input'"):
        load_text_dataset(f"json:{tmp_path}")
