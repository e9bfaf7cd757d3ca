"""Does a real sweep call a method different from itself? Tables of LoRA against LoRA, both arms tuned by the engine.

    python benchmarks/aa_real.py --tables 100     # goes on where it stopped; results/aa-real
    python benchmarks/aa_real.py --quick          # 2 tiny tables: does it run?

A table is a sweep of its own on the embedded model: two names of one method at one budget, each with its own search of
learning rates (4 rates on one seed, the best 2 again on 2 more) and 5 confirming seeds, compared as `sweeps best` does.
The arms see the same images in the same order at one seed, as two methods do, and draw their starts apart. All seeds of
a table, the tuning ones too, are its own, so tables are independent given the task: its test images, its validation
images and the pool that training images are drawn from are the same in all, so what is measured is the error over
training runs, not over tasks.

Printed: the share of tables in which the two arms are called different, by the verdict, which has the choice of rates
in it, and by the one that takes the chosen rates for given, each with its exact binomial interval.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # lanes import this file by name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis import open_store
from analysis.statistics.inference import proportion_interval
from analysis.statistics.scaling import comparisons
from sweeps.engine.run import run
from sweeps.lanes.pool import Pool
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from trainables.config import TrialConfig
from trainables.training.worker import run_trial

Row = dict[str, Any]

ARMS = ("first", "second")
TABLE = 10_000_000
"""Seeds of one table: more than any that the engine uses."""
ARM = 5_000_000
_NAME = re.compile(rf"({'|'.join(ARMS)})-(\d+)_")
DIFFERENT = ("higher", "lower")


def shifted(trial: TrialConfig, **more: Any) -> Generator[Row, None, None]:
    """`run_trial` on seeds of the table's own; the second arm's start is drawn apart, its data are the first's."""
    found = _NAME.match(trial.cell_id)
    if found is None:
        raise ValueError(f"cell {trial.cell_id!r} is not of an A/A table")
    arm, table = ARMS.index(found[1]), int(found[2])
    shift = TABLE * (table + 1)
    seeds = {
        "data_seed": trial.data_seed + shift,
        "init_seed": trial.init_seed + shift + arm * ARM,
        "basis_seed": trial.basis_seed + shift + arm * ARM,
    }
    yield from run_trial(trial.model_copy(update=seeds), **more)


def table_spec(number: int, folder: Path, quick: bool) -> SweepSpec:
    """The sweep of one table: the quickstart's task with a fifth of its images and half of its epochs."""
    names = [f"{arm}-{number:04d}" for arm in ARMS]
    return SweepSpec.parse(
        {
            "name": f"aa-{number:04d}",
            "output": str(folder / f"aa-{number:04d}"),
            "model": {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["attn.in_proj_weight"]},
            "data": {"datasets": ["embedded:fashion-mnist-turned"], "train_size": ["2-shot" if quick else 0.1]},
            "budgets": {"lora_rank": [4]},
            "methods": {name: {"method": "lora", "lr": 1e-2} for name in names},
            "search": {"sampler": "grid", "trials": 8, "rerun_rates": 2, "rerun_seeds": 2, "lr": {"decades": 1.2}},
            "confirm": {"seeds": 5},
            "train": {"epochs": 1 if quick else 2, "global_batch_size": 20 if quick else 32},
        }
    )


def table_row(number: int, spec: SweepSpec) -> Row:
    """What a finished table's comparison says, and which rates its arms chose."""
    store = open_store(spec.folder)
    (row,) = comparisons(store, baseline=f"{ARMS[0]}-{number:04d}").to_pylist()
    rates = {r["cell_id"]: r["lr"] for r in store.table("chosen").to_pylist()}
    keys = ("n", "difference", "low", "high", "sd", "p", "verdict", "choice_sd", "p_given_rates", "verdict_given_rates")
    means = store.sql("select method, mean from scaling order by method").to_pylist()
    return {
        "table": number,
        **{k: row[k] for k in keys},
        "rates": [rates[cell] for cell in sorted(rates)],
        "means": [m["mean"] for m in means],
    }


def summary(rows: Sequence[Row]) -> Row:
    """Shares of tables with a false difference, with exact 95 % intervals."""
    found: Row = {"tables": len(rows)}
    for key in ("verdict_given_rates", "verdict"):
        false = sum(r[key] in DIFFERENT for r in rows)
        found[key] = {"false": false, "share": false / len(rows), "interval": proportion_interval(false, len(rows))}
        for name, same in (("same_rate", True), ("other_rate", False)):
            part = [r for r in rows if (len(set(r["rates"])) == 1) is same]
            found[key][name] = [sum(r[key] in DIFFERENT for r in part), len(part)]
    found["not_testable"] = sum(r["verdict"].startswith("not testable") for r in rows)
    found["sd_of_difference"] = (sum(r["difference"] ** 2 for r in rows) / len(rows)) ** 0.5
    found["mean_score"] = sum(sum(r["means"]) / 2 for r in rows) / len(rows)
    return found


def report(found: Row) -> str:
    """The summary in words."""
    lines = [f"{found['tables']} tables of LoRA against LoRA, mean test score {100 * found['mean_score']:.1f} %"]
    for key, name in (("verdict_given_rates", "given the chosen rates"), ("verdict", "with the choice of rates")):
        one = found[key]
        low, high = one["interval"]
        same, other = one["same_rate"], one["other_rate"]
        lines.append(
            f"{name:26s} {one['false']:3d} false = {100 * one['share']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]; "
            f"arms at one rate {same[0]} of {same[1]}, at two {other[0]} of {other[1]}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing of the tables, then print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=100)
    parser.add_argument("--results", type=Path, default=Path("results/aa-real"))
    parser.add_argument("--minutes", type=float, default=None, help="begin no further table after so many")
    parser.add_argument("--quick", action="store_true", help="2 tiny tables in a temporary folder")
    parser.add_argument("--json", type=Path, default=None, help="write the summary there too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if given.quick else given.results.absolute()
        rows = tables(folder, 2 if given.quick else given.tables, given.quick, given.minutes)
    if not rows:
        sys.exit("no table was finished; the same command goes on")
    found = summary(rows)
    print(report(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def tables(folder: Path, count: int, quick: bool, minutes: float | None) -> list[Row]:
    """Rows of the first `count` tables, those in `tables.jsonl` as they are, the others run."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "tables.jsonl"
    rows = [json.loads(line) for line in kept.read_text("utf-8").splitlines()] if kept.is_file() else []
    done = {r["table"] for r in rows}
    missing = [n for n in range(count) if n not in done]
    if not missing:
        return rows
    begun = time.monotonic()
    with Pool(table_spec(0, folder, quick).resources, folder / "ray") as pool, kept.open("a", encoding="utf-8") as out:
        for number in missing:
            spec = table_spec(number, folder, quick)
            done_now = run(Plan.from_spec(spec), trial="aa_real:shifted", progress=False, pool=pool)
            if not done_now.complete:
                print(f"table {number}: stopped ({done_now.failed} failed trials)", file=sys.stderr)
                break
            rows.append(table_row(number, spec))
            out.write(json.dumps(rows[-1]) + "\n")
            out.flush()
            if minutes is not None and time.monotonic() - begun > 60 * minutes:
                break
    return rows


if __name__ == "__main__":
    main()
