"""The cases without Ray that `chaos.py --case NAME` runs: each does one kind of harm.

A case harms runs, results or data at random, many times, and counts the outcomes. It raises AssertionError for a
traceback, a wrong row, or half of a file. Its docstring says which outcomes are allowed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.errors import StoreError
from analysis.store.store import open_store
from sweeps.errors import SpecError
from tests.fakes import fake_plan
from tests.sweeps.cluster.support import TINY
from tests.sweeps.inline import go_inline, lines
from tests.sweeps.support import assert_same_tables, rows
from tests.trainables.tiny_images import colour_tables
from tests.trainables.tiny_language import instruction_rows
from tests.trainables.tiny_sentences import write_sst2
from trainables.data.images.dataset import Dataset
from trainables.data.registry import load_dataset, load_text_dataset
from trainables.data.text.dataset import Exchange
from trainables.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "docs" / "results" / "quickstart"
PROGRAM = "from sweeps.cli.program import main; main()"
Outcomes = Counter[str]


def program(
    *words: object, cwd: Path, environment: Mapping[str, str] | None = None, seconds: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run `sweeps` with these words in a new process. If `seconds` is given, kill it (SIGKILL) after that time."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    around = {**os.environ, "PYTHONPATH": str(ROOT)} if environment is None else dict(environment)
    process = subprocess.Popen(command, cwd=cwd, env=around, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def tiny_sweep(folder: Path, **sections: Any) -> Path:
    """Write a sweep file of two cells of a small model. Its results go to the folder `r` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    keeps = {"methods": {"lora": {}, "randlora": {}}, "keep": {"adapters": "best"}, "output": str(folder / "r")}
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(TINY | keeps | sections), encoding="utf-8")  # JSON is YAML
    return path


def hurt_bytes(draw: random.Random, intact: bytes) -> tuple[str, bytes]:
    """Harm a file as a disk, a crash or an editor does. Return the kind of harm and the file's new bytes."""
    data, at = bytearray(intact), draw.randrange(len(intact))
    end = min(len(data), at + draw.randrange(1, 400))
    kind = draw.choice(["bit", "cut", "lost", "zeros", "noise", "doubled", "moved"])
    if kind == "bit":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "lost":
        del data[at:end]
    elif kind == "zeros":
        data[at:end] = bytes(end - at)
    elif kind == "noise":
        data[at:end] = draw.randbytes(end - at)
    elif kind == "doubled":
        data[at:at] = data[at:end]
    else:
        block = data[at:end]
        del data[at:end]
        place = draw.randrange(len(data) + 1)
        data[place:place] = block
    return f"{kind} of the bytes", bytes(data)


def hurt_lines(draw: random.Random, intact: Sequence[bytes]) -> tuple[str, bytes]:
    """Harm a journal by whole lines, whose checksums stay right. Return the kind of harm and the file's new bytes."""
    changed, at, other = list(intact), draw.randrange(len(intact)), draw.randrange(len(intact))
    kind = draw.choice(["lost", "doubled", "swapped", "torn"])
    if kind == "lost":
        del changed[at]
    elif kind == "doubled":
        changed.insert(other, changed[at])
    elif kind == "swapped":
        changed[at], changed[other] = changed[other], changed[at]
    else:
        changed[at] = changed[at][: draw.randrange(len(changed[at]))]
    return f"{kind} lines", b"".join(changed)


def journals(top: Path, draw: random.Random, times: int) -> Outcomes:
    """Continue runs from journals that were cut short and damaged. A run refuses, or makes the undisturbed tables."""
    intact, folder, outcomes = top / "whole", top / "hurt", Outcomes()
    go_inline(fake_plan(intact))
    every = lines(intact)
    for _ in range(times):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(intact, folder)
        if draw.random() < 0.5:
            shutil.rmtree(folder / "tables")
        kept = every[: draw.randrange(1, len(every) + 1)]
        kind, data = hurt_bytes(draw, b"".join(kept)) if draw.random() < 0.6 else hurt_lines(draw, kept)
        (folder / "journal.jsonl").write_bytes(data)
        try:
            go_inline(fake_plan(folder), retry_failed=True)
        except (StoreError, SpecError):
            outcomes[f"{kind}: refused"] += 1
        else:
            assert_same_tables(folder, intact)
            outcomes[f"{kind}: the same tables"] += 1
    return outcomes


ODD_VALUES: tuple[Any, ...] = (
    None, "", " ", 0, -1, 2**63, 1e308, float("nan"), True, [], {}, ["yes", "yes"], "\ud83d", "a" * 5000, "9" * 5000,
    "answer1", "Answer format: a/", "Answer format: a/a", "\0", "\u202e", {"a": {"b": [None]}},
)  # fmt: skip


def hurt_rows(draw: random.Random, intact: list[dict[str, Any]]) -> tuple[str, str]:
    """Make JSON of rows, one of them harmed as by a careless editor. Return the kind of harm and the file's text."""
    changed_rows: list[Any] = [dict(row) for row in intact]
    row, other = draw.choice(changed_rows), draw.choice(changed_rows)
    key = draw.choice(list(row))
    kind = draw.choice(["odd value", "key lost", "key renamed", "values swapped", "key twice", "row of another kind"])
    if kind == "odd value":
        row[key] = draw.choice(ODD_VALUES)
    elif kind == "key lost":
        del row[key]
    elif kind == "key renamed":
        row[f"{key} "] = row.pop(key)
    elif kind == "values swapped":
        row[key], other[key] = other.get(key), row[key]
    elif kind == "row of another kind":
        changed_rows[draw.randrange(len(changed_rows))] = draw.choice(ODD_VALUES)
    text = json.dumps(changed_rows)
    if kind == "key twice":
        text = text.replace(f'"{key}":', f'"{key}": "yes", "{key}":', 1)
    return kind, text


def hurt_table(draw: random.Random, intact: pa.Table) -> tuple[str, pa.Table]:
    """Harm a table of images: its labels, its columns or its rows. Return the kind of harm and the new table."""
    n, at = intact.num_rows, intact.schema.get_field_index("label")
    labels: dict[str, Callable[[], pa.Array]] = {
        "labels beyond 64 bits": lambda: pa.array([2**63 + k for k in range(n)], pa.uint64()),
        "labels of fractions": lambda: pa.array([0.5] * n),
        "labels of lists": lambda: pa.array([[0]] * n),
        "labels of long digits": lambda: pa.array(["9" * 5000] + ["1"] * (n - 1)),
        "labels that are no UTF-8": lambda: pa.array([b"\xff"] * n, pa.binary()).view(pa.string()),
        "a label missing": lambda: pa.array([None] + [0] * (n - 1), pa.int64()),
        "a label too large": lambda: pa.array([99] + [0] * (n - 1), pa.int64()),
        "labels of bits": lambda: pa.array([bool(k % 2) for k in range(n)]),
        "labels of times": lambda: pa.array([0] * n, pa.timestamp("us")),
    }
    kind = draw.choice([*labels, "a column twice", "a column lost", "no row"])
    if kind == "a column twice":
        return kind, intact.append_column(draw.choice(["label", "image"]), intact.column("label"))
    if kind == "a column lost":
        return kind, intact.drop_columns([draw.choice(["label", "image"])])
    return kind, intact.slice(0, 0) if kind == "no row" else intact.set_column(at, "label", labels[kind]())


def write_data(top: Path, draw: random.Random) -> tuple[str, str, Path]:
    """Write data of a random form with one harm in it. Return the harm, the data set's name, and its folder."""
    form = draw.choice(["parquet", "arrow", "json", "questions", "problems", "glue", "e2e"])
    folder = top / "sst2" if form == "glue" else top / form
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    bad = draw.choice(["train", "test"])
    if form in ("parquet", "arrow"):
        kind = "whole"
        for which, table in colour_tables(3, 2).items():
            if which == bad and draw.random() < 0.6:
                kind, table = hurt_table(draw, table)  # noqa: PLW2901
            path = folder / f"{which}.{form}"
            if form == "parquet":
                pq.write_table(table, path)
            else:
                with pa.ipc.new_file(path, table.schema) as writer:
                    writer.write_table(table)
        paths = [folder / f"{bad}.{form}"]
    elif form in ("json", "questions", "problems"):
        rows_of: list[dict[str, Any]] = list(instruction_rows(8))
        if form == "problems":
            rows_of = [
                {"query": r["instruction"], "response": f"So. The answer is: {k}"} for k, r in enumerate(rows_of)
            ]
        elif draw.random() < 0.5:
            rows_of = [{"instruction": f"Is it {k}?", "answer": "yes", "choices": ["yes", "no"]} for k in range(8)]
        kind = "whole"
        for which in ("train", "test"):
            kind, text = hurt_rows(draw, rows_of) if which == bad else (kind, json.dumps(rows_of))
            (folder / f"{which}.json").write_text(text, encoding="utf-8")
        paths = [folder / f"{bad}.json"]
    elif form == "glue":
        kind, _ = "whole", write_sst2(folder)
        paths = sorted(folder.glob("*.tsv"))[:1]
    else:
        kind, paths = "whole", []
        for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
            paths.append(folder / name)
            paths[-1].write_text('mr,ref\n"name[The Eagle], food[French]","The Eagle, a French place."\n', "utf-8")
    if kind == "whole" or draw.random() < 0.2:
        path = draw.choice(paths)
        kind, data = hurt_bytes(draw, path.read_bytes())
        path.write_bytes(data)
    return f"{form}, {kind}", f"{form}:{folder}", folder


def check_data(name: str) -> None:
    """Load a data set and check every row. Raises AssertionError if a row is not whole."""
    texts = name.partition(":")[0] not in ("parquet", "arrow")
    data = (load_text_dataset if texts else load_dataset)(name, stage="CONFIRM")
    for part in (data.train, data.test):
        assert len(part) > 0
        if isinstance(data, Dataset):
            assert 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(data.class_names)
            for row in range(len(part)):
                part.image(row)
            continue
        for row in part.rows:
            if isinstance(row, Exchange):
                assert row.prompt.strip() and row.response.strip()
                assert not row.choices or (row.response in row.choices and len(set(row.labels)) == len(row.choices) > 1)
            else:
                assert all(text.strip() for text in row.sentences) and 0 <= row.label < max(2, len(data.class_names))


def data(top: Path, draw: random.Random, times: int) -> Outcomes:
    """Load data sets of every form with odd values or damaged bytes. Each is refused (DataError) or loads whole."""
    outcomes = Outcomes()
    for _ in range(times):
        harm, name, folder = write_data(top, draw)
        try:
            check_data(name)
        except DataError:
            outcomes[f"{harm.partition(',')[0]}: refused"] += 1
        except Exception as error:
            raise AssertionError(f"{harm} in {folder}: {type(error).__name__}: {error}") from error
        else:
            outcomes[f"{harm.partition(',')[0]}: loaded"] += 1
    return outcomes


UNSET = None
ODD_VARIABLES: dict[str, tuple[str | None, ...]] = {
    "SWEEPS_CACHE": ("", "off", "no/such/folder", "/proc/version"),
    "SWEEPS_CACHE_GB": ("", "many", "-1", "nan", "0", "1e400"),
    "SWEEPS_DATA": ("", "no/such/folder", "/proc/version"),
    "SWEEPS_SQL_SECONDS": ("", "soon", "0", "inf"),
    "SWEEPS_SQL_GB": ("", "much", "-1", "0.0001"),
    "RANDLORA_KERNELS": ("", "off", "on", "\u00fc"),
    "XDG_CACHE_HOME": ("", "relative", "/proc"),
    "HOME": (UNSET, "", "/no/such/home"),
    "USER": (UNSET, ""),
    "TMPDIR": ("", "/no/such/folder", "/proc"),
    "LC_ALL": ("C", "POSIX", "tr_TR.UTF-8", "xx_YY.bogus"),
    "LANG": (UNSET, "tr_TR.ISO-8859-9"),
    "PYTHONUTF8": ("0",),
    "PYTHONIOENCODING": ("ascii", "latin-1", "utf-16"),
    "PYTHONOPTIMIZE": ("2",),
    "PYTHONHASHSEED": ("1",),
    "PYTHONWARNINGS": ("error",),
    "PATH": ("", "/no/such/folder"),
    "CC": ("/bin/false",),
    "TZ": ("Asia/Kathmandu", "no/such/zone", ""),
    "TERM": (UNSET, "", "dumb", "no-such-terminal"),
    "COLUMNS": ("0", "1", "wide", "-5"),
    "NO_COLOR": ("1",),
    "FORCE_COLOR": ("1",),
    "OMP_NUM_THREADS": ("0", "-1", "some"),
    "CUDA_VISIBLE_DEVICES": ("", "9", "none"),
    "MPLBACKEND": ("no-such-backend", "TkAgg"),
    "MPLCONFIGDIR": ("/proc",),
    "HF_HOME": ("/no/such/folder",),
    "RAY_ADDRESS": ("127.0.0.1:1",),
    "RAY_TMPDIR": ("/no/such/folder",),
}
"""Variables that the product or its libraries read, each with values that nobody would set on purpose."""
OTHER_TEXT = {"PYTHONIOENCODING", "COLUMNS", "FORCE_COLOR", "TERM"}
"""Variables that change how results are printed, not what is computed."""


def environments(top: Path, draw: random.Random, times: int) -> Outcomes:
    """Run verbs with odd environment variables. They print the same as without them, or refuse (code 2)."""
    outcomes, spec = Outcomes(), tiny_sweep(top / "tiny")
    shutil.copytree(QUICKSTART, top / "results")
    plain = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    plain |= {"PYTHONPATH": str(ROOT), "SWEEPS_CACHE": str(top / "cache")}
    verbs: dict[str, tuple[object, ...]] = {
        "status": ("status", top / "results", "--json"),
        "best": ("best", top / "results"),
        "query": ("query", top / "results", "select method, count(*) from trials group by all order by all"),
        "report": ("report", top / "results"),
        "plan": ("plan", spec),
        "run": ("run", spec, "--backend", "inline", "--quiet"),
    }
    asked = [(name, value) for name, values in ODD_VARIABLES.items() for value in values]
    draw.shuffle(asked)
    reference: dict[str, bytes] = {}
    for number, (variable, value) in enumerate([("", UNSET), *asked][: times + 1]):
        environment = {k: v for k, v in plain.items() if k != variable} | ({} if value is None else {variable: value})
        # the slow verbs take turns
        for verb in verbs if not variable else ("status", "query", ("best", "plan", "run", "report")[number % 4]):
            shutil.rmtree(top / "tiny" / "r", ignore_errors=True)
            done = program(*verbs[verb], cwd=top, environment=environment)
            message = f"{variable}={value!r} {verb}: {done.returncode}\n{done.stderr.decode(errors='replace')[-2000:]}"
            assert b"Traceback" not in done.stderr, message
            if done.returncode == 2:
                assert variable and b"error: " in done.stderr, message
                outcomes["refused with a message"] += 1
                continue
            assert done.returncode == 0, message
            if verb == "run":
                kept = top / "plain"
                if not variable:
                    shutil.copytree(top / "tiny" / "r", kept)
                assert_alike(top / "tiny" / "r", kept)
            elif verb != "status" and variable not in OTHER_TEXT:  # status says how long ago something happened
                assert done.stdout == reference.setdefault(verb, done.stdout), message
            outcomes["the same as without it"] += 1
    return outcomes


def assert_alike(one: Path, other: Path, scores: float = 0.0) -> None:
    """Assert that the last attempts of two folders are the same, with scores that differ by at most `scores`."""
    columns = ("trial_id", "stage", "method", "lr", "status", "val_score", "test_score", "adapter_params")
    tables = [[[row[c] for c in columns] for row in last_attempts(folder)] for folder in (one, other)]
    for ours, its in zip(*map(sorted_rows, tables), strict=True):
        for a, b in zip(ours, its, strict=True):
            near = isinstance(a, float) and isinstance(b, float) and abs(a - b) <= scores
            assert a == b or near, (ours, its)


def last_attempts(folder: Path) -> Iterable[dict[str, Any]]:
    """Return the row of each trial's last attempt."""
    attempts = open_store(folder).table("trials").to_pylist()
    return {row["trial_id"]: row for row in sorted(attempts, key=lambda row: row["attempt"] or 1)}.values()


def sorted_rows(unsorted: list[list[Any]]) -> list[list[Any]]:
    return sorted(unsorted, key=str)


UPLOADING = """
import sys
from pathlib import Path
import sweeps.engine.run as engine
from sweeps.records import upload
from tests.fakes import TRIAL, fake_plan
from tests.sweeps.support import logged
upload.EVERY_S = engine.EVERY_S = 0.2
folder, log, there = sys.argv[1:]
print(engine.run(fake_plan(Path(folder), logged(Path(log), delay=0.02)), trial=TRIAL, progress=False,
                 backend="inline", upload=there, retry_failed=True).complete)
"""


def killed(top: Path, draw: random.Random, times: int) -> Outcomes:
    """Kill a report, an export and an upload. No half file is left, and the same command finishes the work."""
    spec, outcomes = tiny_sweep(top / "tiny"), Outcomes()
    results = top / "tiny" / "r"
    assert program("run", spec, "--backend", "inline", "--quiet", cwd=top).returncode == 0
    before = {name: rows(results, name) for name in ("trials", "metrics", "choices")}
    for words, check in (
        (("report", results), lambda: _check_page(results / "report.html")),
        (("export", results, "best", top / "model"), lambda: _check_model(top / "model")),
        (("export", results, "best", top / "model", "--form", "merged"), lambda: _check_model(top / "model")),
    ):
        shutil.rmtree(top / "model", ignore_errors=True)  # of the export before
        begun = time.monotonic()
        assert program(*words, cwd=top).returncode == 0
        took, complete = time.monotonic() - begun, check()
        assert complete, words
        for _ in range(times):
            shutil.rmtree(top / "model", ignore_errors=True)
            done = program(*words, cwd=top, seconds=took * draw.uniform(0.4, 1.0))
            assert check() in (complete, None), words
            assert {name: rows(results, name) for name in before} == before
            outcomes[f"{words[0]}: {'killed' if done.returncode else 'ended before'}"] += 1
        shutil.rmtree(top / "model", ignore_errors=True)
        assert program(*words, cwd=top).returncode == 0 and check() == complete
    outcomes.update(_uploads(top, draw, times))
    return outcomes


def _check_page(page: Path) -> object:
    """Return whether a report is whole, or None if there is no report."""
    return page.read_text(encoding="utf-8").rstrip().endswith("</html>") if page.is_file() else None


def _check_model(folder: Path) -> object:
    """Return the sizes of the files of an exported model, or None if there is no model."""
    return {p.name: p.stat().st_size for p in folder.iterdir()} if folder.is_dir() else None


def _uploads(top: Path, draw: random.Random, times: int) -> Outcomes:
    """Kill three drivers that upload what they finish, then let one finish; half of the time it has only the copy."""
    outcomes, intact = Outcomes(), top / "whole"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def go(folder: Path, there: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", UPLOADING, str(folder), str(top / "log"), f"file://{there}"]
        return subprocess.Popen(command, cwd=top, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    begun = time.monotonic()
    assert go(intact, top / "there-whole").communicate()[0].strip() == b"True"
    took = time.monotonic() - begun
    for number in range(times):
        folder, there = top / f"driver{number}", top / f"there{number}"
        for _ in range(3):
            process = go(folder, there)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(took * draw.uniform(0.5, 1.0))
            process.kill()
            process.communicate()
            with contextlib.suppress(StoreError):  # nothing was copied yet
                ids = {row["trial_id"] for row in rows(intact, "trials")}
                assert {row["trial_id"] for row in open_store(f"file://{there}").table("trials").to_pylist()} <= ids
            outcomes["upload: killed"] += 1
        if draw.random() < 0.5:
            shutil.rmtree(folder)  # the machine is lost with it
        out, err = go(folder, there).communicate()
        assert out.strip() == b"True", err.decode()
        assert_same_tables(folder, intact)
        for name in ("trials", "metrics", "choices", "cells"):
            there_rows = open_store(f"file://{there}").table(name).num_rows
            assert there_rows == open_store(folder).table(name).num_rows, (name, there_rows)
    return outcomes


def packed(top: Path, draw: random.Random, times: int) -> Outcomes:
    """Run a sweep one trial at a time and in packs of four, on new seeds each time. The tables agree to rounding."""
    for _ in range(times):
        seeds = sorted(draw.sample(range(1000), 4))
        folders = []
        for pack in (1, 4):
            folder = top / f"pack{pack} {seeds[0]}"
            spec = tiny_sweep(folder, confirm={"seeds": seeds}, resources={"concurrent": 1, "pack": pack})
            done = program("run", spec, "--backend", "inline", "--quiet", cwd=top)
            assert done.returncode == 0, done.stderr.decode()
            folders.append(folder / "r")
        most = max(row["packed"] or 1 for row in open_store(folders[1]).table("trials").to_pylist())
        assert most > 1, "nothing was packed"
        # a score is a share of examples, of which rounding may move one
        examples = min(row["n_examples"] for row in open_store(folders[0]).table("predictions").to_pylist())
        assert_alike(*folders, scores=1.01 / examples)
    return Outcomes({"sweeps with the same tables": times})


FAST = """
import sys
from pathlib import Path
from sweeps.engine.run import run
from tests.fakes import TRIAL, FakeCell, fake_plan
cells = tuple(FakeCell(m, 1000 + k) for k in range(int(sys.argv[2])) for m in ("lora", "vera"))
print(run(fake_plan(Path(sys.argv[1]), cells), trial=TRIAL, progress=False, backend="inline").complete)
"""


def watched(top: Path, draw: random.Random, times: int) -> Outcomes:
    """Run twenty clients of `watch` beside a driver that ends dozens of trials a second. Every answer is complete."""
    outcomes, environment = Outcomes(), {**os.environ, "PYTHONPATH": str(ROOT)}
    for number in range(times):
        folder = top / f"watched{number}"
        command = [sys.executable, "-c", FAST, str(folder), "40"]
        driver = subprocess.Popen(command, cwd=top, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not (folder / "journal.jsonl").exists():
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.02)
        command = [sys.executable, "-c", PROGRAM, "watch", str(folder), "--no-browser", "--json"]
        page = subprocess.Popen(command, cwd=top, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert page.stdout is not None and page.stderr is not None
        address = json.loads(_json_of(page.stdout))["address"]
        wrong: list[str] = []
        clients = [
            threading.Thread(target=_client, args=(draw.random(), address, driver, outcomes, wrong)) for _ in range(20)
        ]
        for client in clients:
            client.start()
        out, err = driver.communicate()
        for client in clients:
            client.join()
        page.terminate()
        message = page.communicate()[1].decode()
        assert out.strip() == b"True", err.decode()
        assert {"page", "sql"} <= outcomes.keys(), "no client got an answer"
        assert not wrong and "Traceback" not in message, (wrong, message)
        assert len(open_store(folder).table("trials")) == 80 * 8
    return outcomes


def _json_of(stream: io.BufferedIOBase | Any) -> str:
    """Read lines of a stream until they are a whole JSON document, and return it."""
    text = ""
    while True:
        text += stream.readline().decode()
        with contextlib.suppress(ValueError):
            json.loads(text)
            return text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _client(seed: float, address: str, driver: subprocess.Popen[bytes], asked: Outcomes, wrong: list[str]) -> None:
    """Ask for the page, the report and SQL at random while a driver runs. Add answers that are not whole to `wrong`."""
    base, _, token = address.partition("?")
    asking = random.Random(seed)
    requests: dict[str, tuple[str, bytes | None]] = {
        "page": (address, None),
        "sql": (f"{base}sql?{token}", b"select count(*) as n from trials"),
        "report": (f"{base}report?{token}", None),
    }
    while driver.poll() is None:
        kind = asking.choices(list(requests), (6, 3, 1))[0]
        url, body = requests[kind]
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body), timeout=300) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code != 404:  # no report before there is something to report
                wrong.append(f"{kind}: {error.code} {error.read().decode()[:300]}")
        except (OSError, HTTPException) as error:  # the answer ended early, or there was none
            wrong.append(f"{kind}: {type(error).__name__}: {error}")
        else:
            if not (_is_json(text) if kind == "sql" else text.rstrip().endswith("</html>")):
                wrong.append(f"{kind}: half an answer: {text[-300:]}")
        asked[kind] += 1


LIMITED = """
import resource, sys
limit = int(float(sys.argv.pop(1)) * 2**20)
from sweeps.cli.program import main
import open_clip, scipy.special, torch, transformers
import sweeps.cli.run, sweeps.engine.run, trainables.training.worker
with open("/proc/self/statm") as file:
    has = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (has + limit, has + limit))
main()
"""


def starved(top: Path, draw: random.Random, times: int) -> Outcomes:
    """Run a driver with little memory (RLIMIT_AS). It ends with a message or failed rows, and a new one finishes."""
    outcomes, environment = Outcomes(), {**os.environ, "PYTHONPATH": str(ROOT)}
    whole = tiny_sweep(top / "whole")
    assert program("run", whole, "--backend", "inline", "--quiet", cwd=top).returncode == 0
    for number in range(times):
        spec, limit = tiny_sweep(top / f"limited{number}"), draw.uniform(1, 400)
        words = ("run", spec, "--backend", "inline", "--quiet")
        command = [sys.executable, "-c", LIMITED, f"{limit:.1f}", *map(str, words)]
        done = subprocess.run(command, cwd=top, env=environment, capture_output=True, check=False)
        message = f"{limit:.0f} MiB: {done.returncode}\n{done.stderr.decode(errors='replace')[-3000:]}"
        outcomes[{0: "enough", 1: "failed rows", 2: "a message"}.get(done.returncode, f"code {done.returncode}")] += 1
        # when the process ends, libraries print exceptions that they ignore
        printed = re.sub(
            rb"^Exception ignored in.*\n(?:Traceback.*\n(?:[ \t].*\n)*)?.*\n?", b"", done.stderr, flags=re.M
        )
        # without memory Python may lose the exception itself, and raises this in its place
        if b"SystemError: error return without exception set" in printed:
            outcomes["an exception that Python lost"] += 1
        else:
            assert done.returncode < 0 or b"Traceback" not in printed, message
        done = program(*words, "--retry-failed", cwd=top)
        assert done.returncode == 0, message + done.stderr.decode()
        assert_alike(spec.parent / "r", whole.parent / "r")
    return outcomes


def cases() -> Iterator[tuple[str, Callable[[Path, random.Random, int], Outcomes], int]]:
    """Yield the name of each case, the case, and how often it is done by default."""
    yield "journals", journals, 300
    yield "data", data, 600
    yield "environments", environments, sum(map(len, ODD_VARIABLES.values()))
    yield "killed", killed, 8
    yield "packed", packed, 3
    yield "watched", watched, 3
    yield "starved", starved, 12
