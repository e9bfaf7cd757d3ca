"""The page on using what was trained: every command and every block of Python on it runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT, sweeps
from tests.sweeps.engine.kept_results import keep_trials
from tests.trainables.support import one_tower_trial
from tests.trainables.tiny_images import COLOURS, noisy, save_dinov2, write_colours
from tests.trainables.tiny_sentences import save_encoder, write_sst2

PAGE = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
TRAIN = {"epochs": 1, "global_batch_size": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page's reader is in: results of images and of texts, the base model, a photo."""
    folder = tmp_path_factory.mktemp("use")
    save_dinov2(folder / "base")
    write_colours(folder / "colours")
    colours = {"dataset": f"parquet:{folder / 'colours'}", "image_size": 16}
    keep_trials(folder / "results/mine", [one_tower_trial("randlora", model=folder / "base", train=TRAIN, **colours)])
    save_encoder(folder / "roberta")
    sentences = {"dataset": f"glue:{write_sst2(folder / 'SST-2')}"}
    keep_trials(folder / "results/words", [one_tower_trial("lora", model=folder / "roberta", train=TRAIN, **sentences)])
    noisy(np.random.default_rng(9), COLOURS["green"]).save(folder / "photo.png")
    return folder


@pytest.mark.filterwarnings("ignore:Found missing adapter keys", "ignore:`is_gradient_checkpointing`")
def test_the_commands_and_blocks_run_in_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    said = {}
    parts = re.findall(r"```(console|python)\n(.*?)```", PAGE, re.S)
    assert [kind for kind, _ in parts] == ["console", "console", "console", "python", "python"]
    for kind, text in parts:
        if kind == "python":
            exec(compile(text, "use.md", "exec"), {})
            continue
        for line in text.splitlines():
            command = line.removeprefix("$ sweeps ")
            answer = sweeps(*shlex.split(command))
            assert answer.exit_code == 0, answer.output
            said[command] = answer.stdout
    first, words, *_ = said.values()
    assert re.fullmatch(r"photo\.png  (red|green|blue|grey)  \d+\.\d %\n", first)
    assert re.fullmatch(r"the film is splendid +\w+  \d+\.\d %\nthe plot is dull +\w+  \d+\.\d %\n", words)
    assert "README.md has code that loads it" in list(said.values())[-1]
    for form in ("classifier", "for-peft", "adapter"):
        assert {"predict.json", "head.safetensors", "preprocessor_config.json", "README.md"} <= {
            path.name for path in (place / form).iterdir()
        }
