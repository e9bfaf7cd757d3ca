"""The path of a new user, from data of one's own to a prediction, with the words that must be printed on the way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT
from tests.trainables.tiny_images import COLOURS, noisy, write_photos
from tests.trainables.tiny_language import instruction_rows, save_model, write_rows

SMALL = ["--set", "search.trials=1", "--set", "search.rerun_rates=0", "--set", "search.rerun_seeds=0"]
SMALL += ["--set", "confirm.seeds=1", "--set", "confirm.max_seeds=1", "--set", "budgets.lora_rank=[1]"]
SMALL += ["--set", "methods={lora={}, randlora={}}", "--set", "resources.concurrent=2"]


def program(place: Path, *words: str) -> str:
    """What `sweeps` prints in a process of its own, run where the user is."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    command = [sys.executable, "-m", "sweeps.cli.main", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"sweeps {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def edited(path: Path, **changes: str) -> None:
    """A sweep file with other values of some keys, as an editor leaves it."""
    text = path.read_text(encoding="utf-8")
    for key, value in changes.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.M)
        assert count == 1, key
    path.write_text(text, encoding="utf-8")


def from_plan_to_export(place: Path, form: str) -> tuple[str, Path]:
    """Plan, run, best and export of `my.toml`; what the export's own code prints where an input lies beside it."""
    planned = program(place, "plan", "my.toml", *SMALL)
    assert "mine: 2 cells, 4 trials" in planned and "randlora" in planned and "left out" not in planned
    program(place, "run", "my.toml", *SMALL, "--quiet")
    assert "RandLoRA" in program(place, "best", "results/mine")
    said = program(place, "export", "results/mine", "best", "taken", "--method", "randlora", "--form", form)
    assert said.startswith("wrote taken: randlora at lora-1 on ") and "README.md has code that loads it" in said
    (code,) = re.findall(r"```python\n(.*?)```", (place / "taken" / "README.md").read_text(encoding="utf-8"), re.S)
    for image in place.glob("image.png"):
        (place / "taken" / "image.png").write_bytes(image.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place / "taken", capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, place / "taken"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_images_in_a_folder(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 20, 8)
    noisy(np.random.default_rng(1), COLOURS["blue"]).save(tmp_path / "image.png")
    assert "next: sweeps plan my.toml" in program(tmp_path, "init", "my.toml")
    edited(tmp_path / "my.toml", name='"mine"', datasets='["folder:photos"]', epochs="2")
    printed, _ = from_plan_to_export(tmp_path, "merged")
    seen = program(tmp_path, "predict", "results/mine", "best", "image.png", "--method", "randlora")
    found = re.fullmatch(r"image\.png  (\w+)  (\d+\.\d) %\n", seen)
    assert found is not None and found[1] in COLOURS, seen
    assert printed.splitlines()[-1] == f"{found[1]} {found[2]}%"  # the exported model says the same


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_texts_in_a_json_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "questions")
    save_model(tmp_path / "llama", "llama")
    program(tmp_path, "init", "my.toml")
    edited(
        tmp_path / "my.toml",
        name='"mine"',
        id='"local:llama"',
        adapt='"all"',
        datasets='["json:questions"]',
        epochs="1",
    )
    printed, taken = from_plan_to_export(tmp_path, "peft")
    assert printed.splitlines()[-1].startswith("the correct answer is ")
    assert (taken / "tokenizer.json").is_file() and (taken / "adapter_config.json").is_file()
    text = instruction_rows(1, seed=9)[0]["instruction"]
    seen = program(tmp_path, "predict", "results/mine", "best", text)
    assert re.search(r"  answer[123]  \d+\.\d %\n$", seen), seen
