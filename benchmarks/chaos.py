"""Harm sweeps with random faults until they end, and check that their tables equal those of an undisturbed sweep.

    python benchmarks/chaos.py --minutes 20            # prints its seed; --seed N repeats the same faults
    python benchmarks/chaos.py --minutes 180 --folder DIR
    python benchmarks/chaos.py --minutes 60 --round 60 --cells 60   # one sweep for an hour
    python benchmarks/chaos.py --case journals --times 300          # one kind of harm; --case without a name lists them

Each round is a new sweep whose trials train nothing (`tests.fakes`). Its driver is a separate process. Every few
seconds one of these faults is drawn:

- The driver gets a signal: SIGKILL, SIGINT, SIGTERM, SIGHUP, or SIGSTOP for some seconds.
- A worker, a lane's controller or the broker is killed or stopped.
- Ray's raylet, its control store or an agent is killed.
- The driver's clock steps, or its disk is full after some writes.

Between two drivers the journal's last line is torn, or tables or the journal are lost. A round is over when a driver
has nothing left to run. Then its tables must equal those of an undisturbed sweep. No trial may have run after its end,
and no process, session folder or file of /dev/shm may be left. If something differs, the script prints it, keeps the
folder, and exits with code 1. At the end one process runs six sweeps. After the last it may have no more threads than
after the second, and at most two more open files for each sweep, which Ray leaves open. Do not commit while this runs,
because `trials.git_commit` is compared too.

A case does one kind of harm many times and counts the outcomes. `chaos_cases.py` has the cases without Ray, and the end
of `chaos_rounds.py` those with it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import chaos_cases  # noqa: E402
import chaos_rounds  # noqa: E402
from chaos_rounds import PLAN, Round, in_shm, left_over  # noqa: E402

from tests.sweeps.support import trained  # noqa: E402

CASES = {name: (case, times) for room in (chaos_cases, chaos_rounds) for name, case, times in room.cases()}
AGAIN = f"""{PLAN}
import psutil
own, seen = psutil.Process(), []
for k in range(6):
    assert run(plan(f"{{sys.argv[1]}}/{{k}}", sys.argv[1] + "/log", 1), trial=TRIAL, progress=False).complete
    seen.append((own.num_fds(), own.num_threads(), own.memory_full_info().uss // 2**20))
print(seen)
(files, threads, _), (before, alike, _) = seen[-1], seen[1]
# a session of Ray's leaves two sockets by itself; gRPC's pool adds threads where these starve
assert files <= before + 2 * 4 and threads < alike + 4
"""


def run_case(name: str, times: int | None, seed: int, top: Path) -> None:
    """Do a case `times` times (None: its default) and print how often each outcome was seen."""
    case, default = CASES[name]
    begun = time.monotonic()
    outcomes = case(top, random.Random(f"{seed} {name}"), default if times is None else times)
    took = f"{(time.monotonic() - begun) / 60:.1f} minutes"
    print(f"{name}: {', '.join(f'{count} {what}' for what, count in sorted(outcomes.items()))} ({took})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--round", type=float, default=5.0, help="minutes after which a round is left alone (5)")
    parser.add_argument("--cells", type=int, default=4, help="of each sweep, of 8 trials each (4)")
    parser.add_argument("--folder", type=Path, default=None, help="for everything; a short path (default: in /tmp)")
    parser.add_argument(
        "--case", nargs="?", const="", default=None, metavar="NAME", help="one kind of harm, or all; no name: list them"
    )
    parser.add_argument("--times", type=int, default=None, help="how often the case is done (the soak: minutes)")
    asked = parser.parse_args()
    if asked.case is not None and asked.case not in (*CASES, "all"):
        only_listed = asked.case == ""
        listing = "".join(f"{name}: {case.__doc__}\n" for name, (case, _) in CASES.items())
        parser.exit(0 if only_listed else 2, listing)
    top = Path(tempfile.mkdtemp(prefix="c", dir=asked.folder))  # short, for Ray's sockets
    print(f"seed {asked.seed}, in {top}", flush=True)
    if asked.case is not None:
        for name in CASES if asked.case == "all" else [asked.case]:
            folder = top / name[:2]  # short, for Ray's sockets
            folder.mkdir()
            run_case(name, asked.times, asked.seed, folder)
        shutil.rmtree(top)
        return
    shm, undisturbed = in_shm(), top / "undisturbed"
    undisturbed.mkdir()
    Round(undisturbed, random.Random(0), asked.cells).run(0.0)
    ends, number, broken = time.monotonic() + 60 * asked.minutes, 0, 0
    while time.monotonic() < ends:
        folder = top / f"round{number}"
        folder.mkdir()
        one = Round(folder, random.Random(f"{asked.seed} {number}"), asked.cells)
        wrong = ""
        try:
            one.run(min(ends, time.monotonic() + 60 * asked.round))
            one.check(undisturbed / "r")
            assert not (files := left_over(shm, top)), f"left: {files}"
        except AssertionError as error:
            wrong, broken = str(error)[:2000], broken + 1
        epochs = sum(trained(one.log).values()) if one.log.exists() else 0
        print(json.dumps({"round": number, "epochs": epochs, "faults": one.done, "wrong": wrong}), flush=True)
        if not wrong:
            shutil.rmtree(folder)
        number += 1
    (top / "again").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(top)}
    command = [sys.executable, "-c", AGAIN, str(top / "again")]
    broken += subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0
    print(f"{number} rounds, {broken} wrong, seed {asked.seed}")
    if not broken:
        shutil.rmtree(top)
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
