"""Predict the exact size of a saved adapter, before it is trained or even has values.

The size is that of the tensor files that `checkpoint.save` writes. `adapter.json` beside them is not counted. It
describes the base model's targets, does not grow with what is trained, and its digits depend on values.
"""

from __future__ import annotations

import json
import math
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
"""safetensors' names of types. A file has its tensors in the reverse of this order, and by name within a type."""
_LENGTH_BYTES = 8
"""The bytes at the start of a file that say how long the header is."""
_ALIGNED = 8
"""The header's length is rounded up to a multiple of this many bytes."""
_HEX_OF_SHA256 = 64


def saved_bytes(adapted: Adapted) -> int:
    """Return the bytes of the tensor files that `adapted.save(...)` writes. The tensors may be on the meta device.

    Args:
        adapted: the adapters, as they are built. A method that cuts its ranks while it trains writes less in the end.
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
    return _LENGTH_BYTES + math.ceil(text / _ALIGNED) * _ALIGNED + end
