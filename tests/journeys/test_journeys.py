"""The path of a new user, from data of one's own to a prediction, with the words that must be printed on the way."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.fresh import installed, run
from tests.support import ROOT
from tests.trainables.tiny_images import COLOURS, noisy, write_photos
from tests.trainables.tiny_language import instruction_rows, save_model, write_rows

SMALL = ["--set", "search.trials=1", "--set", "search.rerun_rates=0", "--set", "search.rerun_seeds=0"]
SMALL += ["--set", "confirm.seeds=1", "--set", "confirm.max_seeds=1", "--set", "budgets.lora_rank=[1]"]
SMALL += ["--set", "resources.concurrent=2"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("wheel"))


@dataclass(frozen=True)
class User:
    """Someone who has installed the wheel, in a folder of their own."""

    programs: Path
    place: Path

    def types(self, line: str, *words: str | Path, within: str = ".") -> str:
        """What a command prints, which must succeed."""
        done = self._runs(line, *words, within=within)
        assert done.returncode == 0, f"{line} {words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def is_refused(self, line: str) -> str:
        """What is wrong with a command, which must be bad input."""
        done = self._runs(line)
        assert done.returncode == 2, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stderr

    def _runs(self, line: str, *words: str | Path, within: str = ".") -> subprocess.CompletedProcess[str]:
        path = {"PATH": f"{self.programs}:/usr/bin:/bin", "COLUMNS": "160"}
        return run("/bin/sh", "-c", f'{line} "$@"', "sh", *words, place=self.place / within, **path)


@pytest.fixture
def user(programs: Path, tmp_path: Path) -> User:
    return User(programs, tmp_path)


def edited(path: Path, **changes: str) -> None:
    """A sweep file with other values of some keys, as an editor leaves it."""
    text = path.read_text(encoding="utf-8")
    for key, value in changes.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.M)
        assert count == 1, key
    path.write_text(text, encoding="utf-8")


def from_plan_to_export(user: User, form: str, method: str = "randlora", title: str = "RandLoRA") -> tuple[str, Path]:
    """Plan, run, best and export of `my.toml`; what the export's own code prints where an input lies beside it."""
    small = [*SMALL, "--set", f"methods={{lora={{}}, {method}={{}}}}"]
    planned = user.types("sweeps plan my.toml", *small)
    assert "mine: 2 cells, 4 trials" in planned and method in planned and "left out" not in planned
    user.types("sweeps run my.toml --quiet", *small)
    assert title in user.types("sweeps best results/mine")
    said = user.types("sweeps export results/mine best taken", "--method", method, "--form", form)
    assert said.startswith(f"wrote taken: {method} at lora-1 on ") and "README.md has code that loads it" in said
    taken = user.place / "taken"
    (code,) = re.findall(r"```python\n(.*?)```", (taken / "README.md").read_text(encoding="utf-8"), re.S)
    for image in user.place.glob("image.png"):
        (taken / "image.png").write_bytes(image.read_bytes())
    return user.types("python -c", code, within="taken"), taken


def images_in_a_folder(user: User) -> None:
    """Photos in folders by class, one more to ask about, and a sweep file for them."""
    write_photos(user.place / "photos", 20, 8)
    noisy(np.random.default_rng(1), COLOURS["blue"]).save(user.place / "image.png")
    assert "next: sweeps plan my.toml" in user.types("sweeps init my.toml")
    edited(user.place / "my.toml", name='"mine"', datasets='["folder:photos"]', epochs="2")


def says_the_same(user: User, method: str, printed: str) -> None:
    """`sweeps predict` names a class with its probability, and the exported model's code has printed the same."""
    seen = user.types("sweeps predict results/mine best image.png", "--method", method)
    found = re.fullmatch(r"image\.png  (\w+)  (\d+\.\d) %\n", seen)
    assert found is not None and found[1] in COLOURS, seen
    assert printed.splitlines()[-1] == f"{found[1]} {found[2]}%"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_images(user: User) -> None:
    images_in_a_folder(user)
    printed, _ = from_plan_to_export(user, "merged")
    says_the_same(user, "randlora", printed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_texts_in_a_json_file(user: User) -> None:
    write_rows(user.place / "questions")
    save_model(user.place / "llama", "llama")
    user.types("sweeps init my.toml")
    edited(
        user.place / "my.toml",
        name='"mine"',
        id='"local:llama"',
        adapt='"all"',
        datasets='["json:questions"]',
        epochs="1",
    )
    printed, taken = from_plan_to_export(user, "peft")
    assert printed.splitlines()[-1].startswith("the correct answer is ")
    assert (taken / "tokenizer.json").is_file() and (taken / "adapter_config.json").is_file()
    text = instruction_rows(1, seed=9)[0]["instruction"]
    seen = user.types("sweeps predict results/mine best", text)
    assert re.search(r"  answer[123]  \d+\.\d %\n$", seen), seen


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_method_of_ones_own(user: User) -> None:
    """The page's commands as they stand there, and then the way of any other method, to its files and its answers."""
    page = (ROOT / "docs" / "own-method.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"\]\(\.\./(\S+)/\w+\.py\)", page)
    shutil.copytree(ROOT / example, user.place / example)
    (block,) = re.findall(r"```sh\n(.*?)```", page, re.S)
    install, check, budget = block.splitlines()
    assert example in install and "Successfully installed lora-fa-0.1.0" in user.types(install)
    assert "check('lora-fa')" in check and user.types(check) == ""
    assert re.search(r"^lora-fa +uniform +\d+ +32,256 ", user.types(budget), re.M)
    images_in_a_folder(user)
    printed, taken = from_plan_to_export(user, "adapter", "lora-fa", "LoRA-FA")
    assert (taken / "adapter.json").is_file()
    says_the_same(user, "lora-fa", printed)
    export = "sweeps export results/mine best other --method lora-fa --form"
    assert "PEFT can't hold this adapter" in user.is_refused(f"{export} peft")
    assert user.types(f"{export} merged").startswith("wrote other: lora-fa at lora-1 on ")
