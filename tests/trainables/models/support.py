"""Models in other files than their own, and what tests of shared base models look at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainables.models.shared import FILE, PREFIX, named_tensors

HEADS, KEY_HEADS, LAYERS = 4, 2, 2


def own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, of which nothing has been said yet."""
    monkeypatch.setenv("SWEEPS_CACHE", str(folder))
    monkeypatch.setattr("trainables.models.shared._said", set())
    return folder


def files(cache: Path) -> list[Path]:
    """The files of weights in a cache."""
    return sorted(cache.glob(f"{PREFIX}*/{FILE}"))


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same tensors under the same names in the same order."""
    a, b = named_tensors(one), named_tensors(other)
    return list(a) == list(b) and all(
        torch.equal(t, b[n]) and t.requires_grad == b[n].requires_grad for n, t in a.items()
    )


def size(module: nn.Module) -> int:
    """Bytes of a model's tensors."""
    return sum(t.nbytes for t in named_tensors(module).values())


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of the rows of q and k, whose rotary pairs are neighbours."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def write_gguf(source: Path, target: Path) -> None:
    import gguf

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    vocabulary = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    vocabulary += [f"[unused{i}]" for i in range(config["vocab_size"] - len(vocabulary))]
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if word in ("<s>", "</s>", "<pad>") else 1 for word in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, weight in load_file(source / "model.safetensors").items():
        heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(name.split(".")[-2])
        tensor = weight if heads is None else interleaved(weight, heads)
        found = names.get_name(name, try_suffixes=(".weight",))
        assert found is not None, name
        writer.add_tensor(found, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_bf16(folder: Path) -> Path:
    """The same weights in the type that most language models are kept in."""
    for path in folder.glob("*.safetensors"):
        halves = {k: v.bfloat16() for k, v in load_file(path).items()}
        path.unlink()
        save_file(halves, path, metadata={"format": "pt"})
    return folder


def with_file(folder: Path, whole: Path, name: str, content: bytes) -> str:
    """A copy of a model's folder with another file; its id."""
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(content)
    return f"local:{folder}"
