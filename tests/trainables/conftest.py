"""Models of random weights and sets of coloured noise or of instructions: small enough to train in a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import trainables
from tests.trainables.tiny_images import SIDE, write_colours
from tests.trainables.tiny_language import save_model, write_rows
from trainables.config import TrainSettings, TrialConfig

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
        "text_cfg": {
            "context_length": 24,
            "vocab_size": 512,
            "width": 32,
            "heads": 2,
            "layers": 1,
            "hf_tokenizer_name": "tiny",
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.5], "std": [0.25, 0.25, 0.3]},
}
VISUAL_TARGETS = ("attn.in_proj_weight", "mlp.c_fc", "mlp.c_proj")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run beside one another; more threads only make them wait."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """open_clip's local-dir layout with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    source = Path(trainables.__file__).parent / "embedded" / "tiny_clip"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    settings = {k: dict(v) if isinstance(v, dict) else v for k, v in CONFIG["model_cfg"].items()}
    settings["text_cfg"].pop("hf_tokenizer_name")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = open_clip.CLIP(**settings)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(folder / "open_clip_model.safetensors"))
    return folder


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour set as Parquet files: 64 training images, 32 test images, 4 classes."""
    return write_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights."""
    return save_model(tmp_path_factory.mktemp("tiny-llama"), "llama")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instructions with answers, as `json:` reads them."""
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def make_trial(model_dir: Path, colours: Path) -> Callable[..., TrialConfig]:
    """Makes a TrialConfig on the random CLIP and the colour set; `capacity` holds for every target weight."""

    def make(method: str = "lora", *, capacity: int = 4, train: dict[str, Any] | None = None, **given: Any) -> Any:
        adapt = given.get("adapt", "vision")
        towers = ["visual.transformer.resblocks.0", "visual.transformer.resblocks.1"]
        if adapt == "both":
            towers.append("transformer.resblocks.0")
        weights = ("attn.in_proj_weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
        budgetless = method in ("full", "full-targets", "zero-shot")
        values: dict[str, Any] = {
            "stage": "CONFIRM",
            "cell_id": "cell",
            "model": f"local:{model_dir}",
            "adapt": adapt,
            "targets": VISUAL_TARGETS,
            "dataset": f"parquet:{colours}",
            "train_size": 1.0,
            "method": method,
            "capacities": () if budgetless else tuple((f"{t}.{w}", capacity) for t in towers for w in weights),
            "lr": None if method == "zero-shot" else 5e-3,
            "data_seed": 1,
            "init_seed": 2,
            "basis_seed": 3,
            "train": TrainSettings(**({"epochs": 3, "global_batch_size": 16} | (train or {}))),
        }
        return TrialConfig(**(values | given))

    return make
