"""Code that a model's folder brings along does not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.models.support import with_file
from tests.trainables.tiny_language import save_model
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


@pytest.mark.parametrize(
    ("kwargs", "said"), [({}, "contains custom code"), ({"trust_remote_code": True}, "asks for custom code")]
)
def test_a_tokenizer_that_a_config_trusts(tmp_path: Path, model_dir: Path, kwargs: dict[str, Any], said: str) -> None:
    model, ran = bringing_code(tmp_path, model_dir, {"hf_tokenizer_name": "x", "tokenizer_kwargs": kwargs})
    with pytest.raises(ModelError, match=said):
        load_model(model)
    assert not ran.exists()


@pytest.mark.parametrize("ask", [load_model, meta_model])
@pytest.mark.parametrize("known", [False, True])
def test_a_text_tower_is_not_offered_on_a_terminal(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, ask: Any, known: bool
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")
    model, ran = bringing_code(tmp_path, model_dir, {"hf_model_name": str(tmp_path)})
    if known:  # transformers has its config, and no model class for it
        config = {"model_type": "align_text_model", "auto_map": {"AutoModel": "evil.Evil"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="custom code"):
        ask(model)
    assert not ran.exists()


@pytest.mark.parametrize("ask", [load_model, meta_model])
def test_an_adapter_beside_a_model_is_not_put_on_it(tmp_path: Path, ask: Any) -> None:
    folder = save_model(tmp_path / "llama", "llama")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x/y"}))
    with pytest.raises(ModelError, match=r"an adapter beside its weights \(adapter_config.json\); merge it"):
        ask(f"local:{folder}")
