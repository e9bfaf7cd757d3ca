"""Code that a model's folder brings along does not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.models.support import with_file
from trainables.models.families import ModelError
from trainables.models.loading import load_model
from trainables.models.shapes import meta_model


def bringing_code(folder: Path, whole: Path, text: dict[str, Any]) -> tuple[str, Path]:
    """A copy of an open_clip folder with code for every part of a model; its id, and the file that the code writes."""
    ran = folder / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n"
    autos = {f"Auto{part}": "evil.Evil" for part in ("Config", "Model")}
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    config = json.loads((whole / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= text
    model = with_file(folder, whole, "open_clip_config.json", json.dumps(config).encode())
    (folder / "evil.py").write_text(code)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": autos}))
    return model, ran


def test_a_tokenizer_that_a_config_trusts(tmp_path: Path, model_dir: Path) -> None:
    text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    model, ran = bringing_code(tmp_path, model_dir, text)
    with pytest.raises(ModelError, match="contains custom code"):
        load_model(model)
    assert not ran.exists()


@pytest.mark.parametrize("ask", [load_model, meta_model])
def test_a_text_tower_is_not_offered_on_a_terminal(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, ask: Any
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")
    model, ran = bringing_code(tmp_path, model_dir, {"hf_model_name": str(tmp_path)})
    with pytest.raises(ModelError, match="contains custom code"):
        ask(model)
    assert not ran.exists()
