"""How many bytes a saved adapter will take, to the byte, before it is trained or even has values.

Counted are the files of tensors that `checkpoint.save` writes. `adapter.json` beside them is left out: it describes
the base model's targets, does not grow with what is trained, and holds numbers whose digits depend on their values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from randlora.files.checkpoint import Adapted
from randlora.files.tensors import DIGEST

_TYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""safetensors' names of types, in the order in which its files have them from back to front."""
_ALIGNED = 8
_HEX_OF_SHA256 = 64


def saved_bytes(adapted: Adapted) -> int:
    """Return the bytes of the tensor files that `adapted.save(...)` writes. The tensors may be on the meta device.

    Args:
        adapted: the adapters, as they are built. A method that cuts its ranks while it trains ends with less.
    """
    frozen = adapted.bases()
    files: list[Mapping[str, Tensor]] = [adapted.derived(), adapted.hooks.state()]
    if frozen is not None and frozen.given:
        files.append(dict(frozen.named_buffers()))
    return file_bytes(adapted.state_dict()) + sum(file_bytes(tensors) for tensors in files if tensors)


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of the file that `files.tensors.write_tensors` makes of these tensors."""
    ranks = {dtype: rank for rank, dtype in enumerate(_TYPES)}
    header: dict[str, Any] = {"__metadata__": {DIGEST: "0" * _HEX_OF_SHA256}}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-ranks[item[1].dtype], item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // _ALIGNED) * _ALIGNED + end
