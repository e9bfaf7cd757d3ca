"""Time trials that train nothing on this engine, with a TorchTrainer per Tune trial, and with plain Tune functions.

`engine.py` runs each side in a separate process: `python benchmarks/engine_overhead.py SIDE TRIALS`. All sides have two
trials at a time, one report a trial, and Ray Train's health check every half second. By default Ray checks every two
seconds, which makes a trainer even slower. The clock starts when the first `SKIP` trials have ended, because then all
processes run.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SKIP = {"lanes": 50, "trainers": 2, "functions": 20}
TRIALS = {"lanes": 1000, "trainers": 10, "functions": 400}
QUICK = {"lanes": 300, "trainers": 6, "functions": 150}
CONCURRENT = 2


def lanes(trials: int, folder: Path) -> list[float]:
    """Run trials on the engine with its journal, tables and search. Return the times at which they ended."""
    from engine_many import Watch, noop_plan

    from sweeps.engine.run import run
    from tests.fakes import TRIAL

    watch = Watch(every=1)
    run(noop_plan(folder / "results", max(1, trials // 25), 25), trial=TRIAL, progress=watch)
    return [seconds for _, seconds, _ in watch.points]


def start_ray() -> None:
    import ray

    ray.init(address="local", num_cpus=CONCURRENT, resources={"trial": CONCURRENT}, include_dashboard=False,
             object_store_memory=80 * 2**20, log_to_driver=False, logging_level="ERROR")  # fmt: skip


def timed(
    trainable: Any, folder: Path, resources: dict[str, float], space: dict[str, Any], *, samples: int, reuse: bool
) -> tuple[list[float], Any]:
    """Run Tune over a space, two trials at a time. Return the times at which trials ended, and their results."""
    from ray import tune

    ends: list[float] = []

    class Ends(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            ends.append(time.perf_counter())

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            raise RuntimeError(f"a trial of the peer failed: {trial}")

    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=samples, reuse_actors=reuse, max_concurrent_trials=CONCURRENT
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0, callbacks=[Ends()]),
    )
    return ends, tuner.fit()


def tuned(trainable: Any, trials: int, folder: Path, resources: dict[str, float], reuse: bool) -> list[float]:
    """Run Tune over this number of trials, and return the times at which they ended."""
    from ray import tune

    start_ray()
    space = {"lr": tune.loguniform(1e-5, 1e-1), "folder": str(folder)}
    return timed(trainable, folder, resources, space, samples=trials, reuse=reuse)[0]


def a_function(config: dict[str, Any]) -> None:
    from ray import tune

    tune.report({"score": config["lr"]})


def on_a_worker(config: dict[str, Any]) -> None:
    import ray.train

    ray.train.report({"score": config["lr"]})


def a_trainer(config: dict[str, Any]) -> None:
    """Fit a TorchTrainer in a Tune function, as Ray documents for tuning what Ray Train trains."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        on_a_worker,
        train_loop_config={"lr": config["lr"]},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=tune.get_context().get_trial_id(),
            storage_path=config["folder"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def side(name: str, trials: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if name == "lanes":
            ends = lanes(trials, Path(folder))
        elif name == "trainers":
            ends = tuned(a_trainer, trials, Path(folder), {"trial": 1}, reuse=False)
        else:
            ends = tuned(a_function, trials, Path(folder), {"cpu": 1}, reuse=True)
    skip = SKIP[name]
    if len(ends) <= skip + 1:
        raise SystemExit(f"{name}: {len(ends)} trials ended, more than {skip + 1} are needed")
    print(json.dumps({"side": name, "trials": len(ends), "seconds": (ends[-1] - ends[skip - 1]) / (len(ends) - skip)}))


def report(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians of the ratios within rounds."""
    trainers = [one["trainers"] / one["lanes"] for one in rounds]
    functions = [one["functions"] / one["lanes"] for one in rounds]
    results = {
        "rounds": rounds,
        "times faster than a TorchTrainer a trial": statistics.median(trainers),
        "rate against Tune functions": statistics.median(functions),
    }
    for one in rounds:
        print("  seconds a trial: " + ", ".join(f"{name} {value:.4f}" for name, value in sorted(one.items())))
    print(
        f"  a TorchTrainer per Tune trial takes {results['times faster than a TorchTrainer a trial']:.0f} times as long"
    )
    print(f"  rate / that of plain Tune functions with reuse_actors: {results['rate against Tune functions']:.2f}")
    return results


if __name__ == "__main__":
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_AIR_NEW_OUTPUT": "0",
                   "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}  # fmt: skip
    side(sys.argv[1], int(sys.argv[2]))
