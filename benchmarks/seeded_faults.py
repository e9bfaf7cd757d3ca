"""Put some forty faults into the engine's code, one at a time, and count how many of them the tests find.

    python -m benchmarks.seeded_faults                       # all faults; one to two hours on two cores
    python -m benchmarks.seeded_faults --only ledger store   # the faults of two rooms
    python -m benchmarks.seeded_faults --numbers 4 27        # these two faults, by their number in the output
    python -m benchmarks.seeded_faults --check               # only that each fault still has its place in the code
    python -m benchmarks.seeded_faults --repository CLONE    # the same for a clone of an older commit, with its tests

Each fault changes one place of a copy of this repository. Then the tests of that place's room run there, without the
slow ones, and those that need no Ray first. A fault is found if a test fails that passes without the fault. A test that
fails without the fault too is left out from then on. A fault that no test finds shows what the tests do not hold. The
faults are of the kind that a tired programmer makes: an order turned round, a boundary off by one, a condition left
out.

All faults can also be tried on commit 8b4f3393, which is from before the engine had backends. If the code of a fault
reads otherwise there, the fault has a second text, `older`. Do not compare the time of the tests: each of the two
commits has tests that the other lacks.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support import ROOT, needs_ray

CODE = ("sweeps", "analysis/store")
_SEARCH = tuple(f"tests/sweeps/search/test_{name}.py" for name in ("stages", "rules", "refining", "order"))
_RECORDS = tuple(f"tests/sweeps/records/test_{name}.py" for name in ("journal", "sealing", "clocks_and_lists"))
TESTS = {
    "engine": ("tests/sweeps/engine/test_limits.py", "tests/sweeps/engine"),
    "ledger": (*_RECORDS, "tests/sweeps/records", "tests/sweeps/engine"),
    "replay": (*_RECORDS, "tests/sweeps/records", "tests/sweeps/engine"),
    "lanes": ("tests/sweeps/lanes/test_broker.py", "tests/sweeps/lanes", "tests/sweeps/cluster"),
    "search": (*_SEARCH, "tests/sweeps/search", *_RECORDS, "tests/sweeps/engine"),
    "store": (*_RECORDS, "tests/analysis/store", "tests/sweeps/records"),
}
"""Files and folders of a room's tests, those that find most of its faults first."""
LIBRARIES = ("torch", "ray.train", "ray.tune", "optuna", "pyarrow.parquet", "duckdb", "scipy.stats", "open_clip")
"""The imports that take most of the time of a start. They are made once, and every run of tests is a fork of this
process.
"""
LIMIT_S = 1800
"""Seconds that the tests may take with one fault. A fault that makes them hang is found too."""


@dataclass(frozen=True)
class Verdict:
    """The result of running a room's tests with one fault in the code.

    Attributes:
        found: whether a test fails that passes without the fault.
        test: pytest's line about that test; "" if there is none.
        left_out: tests that fail even without the fault.
    """

    found: bool
    test: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """One fault: in the file that has the text `old`, exactly once in `CODE`, it becomes `new`.

    Attributes:
        about: what goes wrong, for the reader.
        room: whose tests are run, a key of `TESTS`.
        older: `old` and `new` as they read at commit 8b4f3393; None if they are the same there.
    """

    about: str
    room: str
    old: str
    new: str
    older: tuple[str, str] | None = None

    def form(self, root: Path) -> Fault:
        """Return the fault as the code in `root` needs it: this one, or that of the older commit.

        Raises:
            LookupError: the code has a place for neither.
        """
        older = None if self.older is None else Fault(self.about, self.room, *self.older)
        try:
            self.place(root)
        except LookupError:
            if older is None:
                raise
            older.place(root)
            return older
        return self

    def place(self, root: Path) -> Path:
        """Return the file that has the fault's place.

        Raises:
            LookupError: none has it, or several, or one has it twice.
        """
        files = [path for code in CODE for path in sorted((root / code).rglob("*.py"))]
        counts = {path: path.read_text(encoding="utf-8").count(self.old) for path in files}
        hits = [path for path, count in counts.items() if count]
        if len(hits) != 1 or counts[hits[0]] != 1:
            names = ", ".join(str(path.relative_to(root)) for path in hits) or "no file"
            raise LookupError(f"{self.about}: {self.old!r} must stand once in {' and '.join(CODE)}; {names} has it")
        return hits[0]


FAULTS = (
    Fault(
        "the end of a trial is not written into the journal",
        "ledger",
        "        self.journal.write(event)\n        self.state.finish(finish.row)\n",
        "        self.state.finish(finish.row)\n",
        ("        self.journal.write(event)\n        self.state.finish(row)\n", "        self.state.finish(row)\n"),
    ),
    Fault(
        "a new slot is not written down before it runs",
        "ledger",
        "if slot.trial_id not in self.state.cells[slot.cell_id].asked:",
        "if slot.trial_id in self.state.cells[slot.cell_id].asked:",
    ),
    Fault(
        "attempts of earlier runs are forgotten",
        "ledger",
        'outcome.get("attempt", 1) + before',
        'outcome.get("attempt", 1)',
    ),
    Fault(
        "a choice is journaled again although it did not change",
        "search",
        "return choice if choice is not None and choice != self.choice else None",
        "return choice if choice is not None else None",
    ),
    Fault(
        "keep = best removes the best adapter and keeps another",
        "ledger",
        "if row.trial_id != best:",
        "if row.trial_id == best:",
        ('row["trial_id"] != best["trial_id"]:', 'row["trial_id"] == best["trial_id"]:'),
    ),
    Fault(
        "a finished trial's checkpoints stay in the work folder",
        "ledger",
        "        shutil.rmtree(self.trial_folder(slot), ignore_errors=True)\n",
        "",
    ),
    Fault(
        "weights of full fine-tuning are kept for every seed",
        "ledger",
        'self.state.spec.keep.full and (slot.stage, slot.slot) == ("CONFIRM", 0)',
        'self.state.spec.keep.full and slot.stage == "CONFIRM"',
    ),
    Fault(
        "a failed trial keeps its last validation score",
        "ledger",
        'None if outcome["status"] == "failed" else last.get("val_score")',
        'last.get("val_score")',
    ),
    Fault(
        "replay lets an earlier attempt replace a later one",
        "replay",
        "row.attempt >= last[row.trial_id].attempt",
        "row.attempt <= last[row.trial_id].attempt",
        ('_attempt(row) >= _attempt(last[row["trial_id"]])', '_attempt(row) <= _attempt(last[row["trial_id"]])'),
    ),
    Fault(
        "replay takes a trial whose id is not its configuration's",
        "replay",
        'if computed != (trial_id, event["cell_id"], event["stage"]):',
        "if computed == ():",
    ),
    Fault(
        "a retried trial still counts as finished",
        "replay",
        'if retry is not None and row.status == "failed":',
        'if retry is None and row.status == "failed":',
        ('if retry is not None and row["status"] == "failed":', 'if retry is None and row["status"] == "failed":'),
    ),
    Fault(
        "a stop that the pruner decided is forgotten by a resume",
        "replay",
        'if event.get("stop"):',
        'if event.get("stopped"):',
    ),
    Fault(
        "rows of a lost journal do not stand in for it",
        "replay",
        "        if trial_id not in asked:\n",
        "        if trial_id in asked:\n",
    ),
    Fault(
        "the cell's latest choice is not restored",
        "replay",
        "    for cell_id, choice in sealer.choices.items():\n        if cell_id in state.cells:",
        "    for cell_id, choice in sealer.choices.items():\n        if cell_id not in state.cells:",
        (
            "for cell_id, row in sealer.choices.items():\n        if cell_id in state.cells:",
            "for cell_id, row in sealer.choices.items():\n        if cell_id not in state.cells:",
        ),
    ),
    Fault(
        "the torn last line is not cut off before the next event",
        "replay",
        "            os.truncate(path, content.size)",
        "            path.stat()",
    ),
    Fault(
        "a half-written line stays when the disk is full",
        "ledger",
        "                self._file.truncate(start)\n",
        "",
    ),
    Fault(
        "two drivers may append to one journal",
        "ledger",
        "if start != self._end and self._lost is None:",
        "if start < self._end and self._lost is None:",
    ),
    Fault(
        "a journal line is not checked against its checksum",
        "store",
        "if checked is not None and zlib.crc32(line[:-_CRC_BYTES]) != int(checked[1], 16):",
        "if checked is None and zlib.crc32(line[:-_CRC_BYTES]) == 0:",
    ),
    Fault(
        "damage in the middle of a journal passes as a torn end",
        "store",
        r'if event is None and end and data[end:].strip(b"\n\0 "):',
        r'if event is None and not end and data[end:].strip(b"\n\0 "):',
    ),
    Fault(
        "metrics are not read from the journal",
        "store",
        'rows["metrics"] += event.get("metrics") or []',
        'rows["metrics"] += []',
    ),
    Fault(
        "of rows with one key the first wins",
        "store",
        "rows = {key: index for index, key in enumerate(keys)}",
        "rows: dict[object, int] = {}\n    for index, key in enumerate(keys):\n        rows.setdefault(key, index)",
    ),
    Fault(
        "a damaged part counts as an empty one",
        "store",
        "            damaged.append(DamagedPart(path, name, first_line(error)))\n",
        "",
        ("            damaged.append(DamagedPart(path, name, reason))\n", ""),
    ),
    Fault(
        "a part of a clock that was set back sorts before older parts",
        "store",
        "digits = now if now > newest else str(int(newest) + 1)",
        "digits = now",
    ),
    Fault(
        "sealed rows are sealed again by the next run",
        "store",
        "if _key(row) not in self._sealed[row.table]:",
        "if _key(row) not in ():",
        ("if _key(name, row) not in sealed]", "if _key(name, row) not in ()]"),
    ),
    Fault(
        "an older choice replaces a newer one",
        "store",
        "if before is None or (row.sequence or 0) >= (before.sequence or 0):",
        "if before is None or (row.sequence or 0) <= (before.sequence or 0):",
        (
            'if (row.get("sequence") or 0) >= (before.get("sequence") or 0):',
            'if not before or (row.get("sequence") or 0) <= (before.get("sequence") or 0):',
        ),
    ),
    Fault(
        "a half-written part is left behind when the disk is full",
        "store",
        "            temporary.unlink()\n        raise\n    sync_folder(place)\n",
        "            temporary.exists()\n        raise\n    sync_folder(place)\n",
    ),
    Fault(
        "the best point is the worst",
        "search",
        "return -score, loss,",
        "return score, loss,",
    ),
    Fault(
        "a rate that failed on a re-run may win",
        "search",
        "results.append(((len(trials) - len(done), *key), mean, rate))",
        "results.append(((0, *key), mean, rate))",
    ),
    Fault(
        "one more point than the allowance holds",
        "search",
        "return max(self._search.rates - refined, self.least)",
        "return max(self._search.rates - refined, self.least) + 1",
        ("return max(search.rates, self.least)", "return max(search.rates, self.least) + 1"),
    ),
    Fault(
        "CONFIRM begins while re-runs are open",
        "search",
        "return not self._tunes or (self._points_done and self._over(self._reruns()))",
        "return not self._tunes or self._points_done",
    ),
    Fault(
        "a neighbour's choice is used before it is final",
        "search",
        "            if not self.neighbour._tuned:\n                return None\n",
        "",
    ),
    Fault(
        "a point beyond an edge goes to the wrong side",
        "search",
        'max(rates) * step if edge == "high" else min(rates) / step',
        'max(rates) * step if edge == "low" else min(rates) / step',
    ),
    Fault(
        "all asks of a cell have one seed",
        "search",
        'f"{search_seed}|{cell_id}|{slot}|{retry}"',
        'f"{search_seed}|{cell_id}|{retry}"',
    ),
    Fault(
        "a cell with a failed trial waits for ever",
        "search",
        "        self._resting.discard(cell_id)\n        self._resting.discard(self._dependents",
        "        self._resting.discard(self._dependents",
    ),
    Fault(
        "a worker's death does not queue its trial again",
        "lanes",
        'return self.state == "queued"\n\n    def _gave_up',
        "return False\n\n    def _gave_up",
    ),
    Fault(
        "a lost machine counts as an attempt of the trial",
        "lanes",
        "self.spared = self.death is None and self.losses <= MAX_LOSSES",
        "self.spared = False",
    ),
    Fault(
        "a worker that starts again gets what it held before, twice",
        "lanes",
        "        self._requeue(lambda lease: lease.worker == worker)\n",
        "",
    ),
    Fault(
        "an outcome of a process that was replaced is taken",
        "lanes",
        "return lease if holds and self._token(worker) == token and not self._stopping else None",
        "return lease if holds and not self._stopping else None",
    ),
    Fault(
        "a step that Ray asks twice moves on",
        "lanes",
        "        if lease.step < number:\n            if (epoch := following()) is not None:",
        "        if lease.step <= number:\n            if (epoch := following()) is not None:",
    ),
    Fault(
        "a limit on wall time is never reached",
        "engine",
        "if limits.max_hours is not None and self.hours >= limits.max_hours:",
        "if limits.max_hours is not None and self.hours < 0:",
    ),
    Fault(
        "what earlier runs used does not count against a limit",
        "engine",
        "return worker_seconds + more, accelerator_seconds + more * each",
        "return 0.0, 0.0",
    ),
    Fault(
        "a trial without a learning rate failing leaves the sweep complete",
        "engine",
        "return not (self.interrupted or self.stopped_by or self.failed or self.failed_before or self.stuck)",
        "return not (self.interrupted or self.stopped_by)",
    ),
)


def test_files(root: Path, room: str) -> list[str]:
    """Return the files of the room's tests: those that need no Ray first, because they are quick."""
    places = [root / place for place in TESTS[room]]
    files = [path for place in places for path in ([place] if place.is_file() else sorted(place.glob("test_*.py")))]
    return [str(path.relative_to(root)) for path in sorted(dict.fromkeys(files), key=needs_ray)]


def run_tests(root: Path, tests: Sequence[str], left_out: Sequence[str] = ()) -> str | None:
    """Run tests in a copy of the repository until one fails. Return pytest's line about that one; None if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        words = [*tests, *(f"--deselect={test}" for test in left_out)]
        child = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(root, output, words))
        child.start()
        child.join(LIMIT_S)
        if child.exitcode is None:
            for process in [*psutil.Process(child.pid).children(recursive=True), child]:
                process.kill()
            return f"the tests did not end within {LIMIT_S} s"
        if child.exitcode == 0:
            return None
        lines = [line for line in output.read_text().splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
        return lines[0] if lines else f"pytest ended with {child.exitcode}"


def _run_pytest(root: Path, output: Path, words: Sequence[str]) -> None:
    """In a fork: run pytest on the code in `root`, not on that of this process, and exit with its code."""
    import pytest

    with output.open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.chdir(root)
    os.environ |= {"PYTHONPATH": str(root), "COLUMNS": "240"}
    sys.path[:0] = [str(root)]
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("analysis", "benchmarks", "randlora", "sweeps", "tests", "trainables"):
            del sys.modules[name]
    imported = "ignore::pytest.PytestAssertRewriteWarning"  # some of pytest's plugins came with the libraries
    sys.exit(pytest.main(["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-W", imported, *words]))


def try_fault(root: Path, fault: Fault, left_out: Sequence[str] = ()) -> Verdict:
    """Put a fault into the copy, run the tests, and take it out again.

    Args:
        left_out: tests that are known to fail without a fault.
    """
    path = fault.place(root)
    original = path.read_text(encoding="utf-8")
    changed = original.replace(fault.old, fault.new)
    failing = list(left_out)
    while True:
        path.write_text(changed, encoding="utf-8")
        try:
            line = run_tests(root, test_files(root, fault.room), failing)
        finally:
            path.write_text(original, encoding="utf-8")
        if line is None:
            return Verdict(False, "", tuple(failing))
        test = re.match(r"(?:FAILED|ERROR) (\S.*?)(?: - |$)", line)
        if test is None or run_tests(root, [test[1]]) is None:
            return Verdict(True, line, tuple(failing))
        if test[1] in failing:
            raise RuntimeError(f"{test[1]} fails without a fault, and pytest cannot leave it out: {line}")
        failing.append(test[1])


def check_places(faults: Sequence[Fault], root: Path = ROOT) -> list[Fault]:
    """Return every fault in the form that the code in `root` needs.

    Raises:
        LookupError: some faults have no place there, each on a line of the message.
    """
    placed, problems = [], []
    for fault in faults:
        try:
            placed.append(fault.form(root))
        except LookupError as error:
            problems.append(str(error))
    if problems:
        raise LookupError("\n".join(problems))
    return placed


def copy_repository(root: Path, to: Path) -> None:
    """Copy what git knows of a repository, as it is in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)


def main() -> int:
    """Run the faults that are asked for; the exit code is 1 if a test finds none of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(TESTS), help="the rooms whose faults are tried")
    parser.add_argument("--numbers", nargs="+", type=int, help="the faults that are tried, by their number")
    parser.add_argument("--repository", type=Path, default=ROOT, help="a clone, such as of an older commit")
    parser.add_argument("--check", action="store_true", help="only check that each fault has its place")
    arguments = parser.parse_args()
    repository = arguments.repository.resolve()
    chosen = {
        number: fault
        for number, fault in enumerate(check_places(FAULTS, repository), 1)
        if (arguments.only is None or fault.room in arguments.only)
        and (arguments.numbers is None or number in arguments.numbers)
    }
    if arguments.check:
        print(f"{len(chosen)} faults have their place")
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in LIBRARIES:
        importlib.import_module(name)
    found_by_room: dict[str, list[bool]] = {}
    left_out: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_repository(repository, root)
        for number, fault in chosen.items():
            begun = time.monotonic()
            verdict = try_fault(root, fault, left_out)
            for test in verdict.left_out[len(left_out) :]:
                print(f"left out, since it fails without a fault: {test}", flush=True)
            left_out = verdict.left_out
            found_by_room.setdefault(fault.room, []).append(verdict.found)
            word = "found" if verdict.found else "MISSED"
            seconds = time.monotonic() - begun
            print(f"{number:2} {word:6} {seconds:5.0f} s  {fault.about}  {verdict.test}", flush=True)
    for room, each in sorted(found_by_room.items()):
        print(f"{room}: {sum(each)} of {len(each)} faults found")
    every = [one for each in found_by_room.values() for one in each]
    print(f"{sum(every)} of {len(every)} faults found")
    return 0 if all(every) else 1


if __name__ == "__main__":
    sys.exit(main())
