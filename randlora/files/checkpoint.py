"""Save an adapter: safetensors with the trained tensors, and a JSON file that says how to draw the frozen bases.

A directory holds `adapter.safetensors` and `adapter.json`. It also holds `bases.safetensors` if that was asked for, or
if the bases were imported, so that no seed gives them. Loading draws the bases from the seed, or reads the imported
ones. It refuses another generator version or digest, because wrong bases would make a wrong model. For tensors that
PEFT draws, `adapter.json` has a fingerprint. What a method derives from the base weights (PiSSA's start, singular
vectors) is in `derived.safetensors` with its digest, because no seed gives it back bit for bit. The state of a schedule
(AdaLoRA's cuts) is in `schedule.safetensors`. Every file of tensors contains their digest (`files.tensors`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from randlora.adapter import Adapter, AdapterConfig, Shape
from randlora.arithmetic.bases import GENERATOR_VERSION, Bases
from randlora.errors import CheckpointError, ExportError
from randlora.files.tensors import check_file, digest_of, write_tensors, write_text
from randlora.methods.method import Method
from randlora.methods.scheduled.hooks import Hooks
from randlora.model.sharded import is_writer, reshard, whole
from randlora.model.sites import Site

FORMAT = 1
TENSORS, BASES, META, DELTAS = "adapter.safetensors", "bases.safetensors", "adapter.json", "deltas.safetensors"
DERIVED, SCHEDULE = "derived.safetensors", "schedule.safetensors"


class Adapted(Protocol):
    """The part of `randlora.adapted.adapted.Adapted` that this room needs. That class is in a room above."""

    model: nn.Module
    method: Method
    config: AdapterConfig
    capacities: dict[str, int]
    sites: dict[str, Site]
    adapters: dict[str, Adapter]
    shapes: dict[str, Shape]
    init_seed: int
    basis_seed: int

    @property
    def hooks(self) -> Hooks: ...
    def bases(self) -> Bases | None: ...
    def derived(self) -> dict[str, Tensor]: ...
    def redrawn(self) -> list[Tensor]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def check_whole(self, verb: str) -> None: ...
    def deltas(self) -> dict[str, Tensor]: ...
    def merging(self) -> AbstractContextManager[nn.Module]: ...


def save(adapted: Adapted, directory: str | Path, *, bases: bool = False) -> Path:
    """Write the adapter to a folder and return the folder.

    Under FSDP2 every process must call this, and the first one writes.

    Args:
        adapted: the model with its adapters.
        directory: the folder; made if missing.
        bases: also write the frozen matrices. Imported ones are always written, because no seed gives them.
    """
    folder = Path(directory)
    reshard(adapted.model)
    trained, schedule = adapted.state_dict(), adapted.hooks.state()
    writes_here = is_writer([*trained.values(), *schedule.values()])
    frozen = adapted.bases()
    meta: dict[str, Any] = {
        "format": FORMAT,
        "method": adapted.method.name,
        "capacity": adapted.config.capacity,
        "options": adapted.config.options(),
        "capacities": adapted.capacities,
        "shapes": {name: list(shape) for name, shape in adapted.shapes.items()},
        "init_seed": adapted.init_seed,
        "basis_seed": adapted.basis_seed,
        "basis": None
        if frozen is None
        else {
            "seed": adapted.basis_seed,
            "stored": frozen.given,
            "generator_version": GENERATOR_VERSION,
            "digest": frozen.digest(),
            "draws": frozen.spec(),
        },
        "derived": digest_of(derived) if (derived := adapted.derived()) else None,
    }
    if redrawn := adapted.redrawn():
        meta["redrawn"] = fingerprint(redrawn)
    if schedule:
        meta["schedule"] = digest_of(schedule)
    files = {SCHEDULE: schedule, TENSORS: trained, DERIVED: derived}
    if frozen is not None and (bases or frozen.given):
        files[BASES] = dict(frozen.named_buffers())
    ready = {file: {name: whole(tensor) for name, tensor in group.items()} for file, group in files.items()}
    if not writes_here:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(
        missing_ok=True
    )  # if the process ends from here on, the folder holds no adapter instead of a mixed one
    for file, tensors in ready.items():
        if tensors or file == TENSORS:
            write_tensors(folder / file, tensors)
    write_text(folder / META, json.dumps(meta, indent=1) + "\n")
    return folder


def fingerprint(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """Return what identifies frozen tensors of PEFT in any order and precision: a digest and a norm.

    A model in bf16 rounds its tensors, so the digest is over their signs (of integers: over the numbers).
    """
    squares: dict[str, float] = {}
    for tensor in tensors:
        values = whole(tensor).to("cpu")
        real = values.is_floating_point()
        key = digest_of({"": torch.signbit(values) if real else values.long()})
        squares[key] = max(squares.get(key, 0.0), float(values.double().square().sum()) if real else 0.0)
    digest = hashlib.sha256("".join(sorted(squares)).encode()).hexdigest()
    return {"digest": digest, "norm": math.sqrt(sum(squares.values()))}


def read_json(path: Path, missing: str) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file.
        missing: how the message for a missing file begins.

    Raises:
        CheckpointError: the file is missing, damaged, or not a regular file.
    """
    check_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{missing} in {path.parent}: {path.name} is missing") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


_FORM: dict[str, Any] = {
    "method": str,
    "capacity": int,
    "options": dict,
    "capacities": dict,
    "shapes": dict,
    "init_seed": int,
    "basis": dict | None,
}
_BASIS: dict[str, Any] = {"seed": int, "generator_version": int, "digest": str}


def read_meta(directory: str | Path) -> dict[str, Any]:
    """Return the content of `adapter.json` in a folder.

    Raises:
        CheckpointError: the file is missing, damaged, or has another format.
    """
    path = Path(directory) / META
    meta = read_json(path, "no saved adapter")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        version = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise CheckpointError(f"{path} has format {version!r}, this version reads {FORMAT}")
    wrong = [key for key, kind in _FORM.items() if not isinstance(meta.get(key, ...), kind)]
    if not wrong and meta["basis"] is not None:
        wrong = [f"basis.{key}" for key, kind in _BASIS.items() if not isinstance(meta["basis"].get(key), kind)]
    if not wrong and not isinstance(meta.get("basis_seed", 0), int):
        wrong = ["basis_seed"]
    if not wrong and not all(isinstance(s, list) and list(map(type, s)) == [int, int] for s in meta["shapes"].values()):
        wrong = ["a pair of numbers in shapes"]
    if wrong:
        raise CheckpointError(f"{path} is damaged: {wrong[0]} is missing, or its value cannot belong to an adapter")
    return meta


def export_deltas(adapted: Adapted, directory: str | Path) -> Path:
    """Write the dense delta (out x in) of every weight to `directory/deltas.safetensors`, and return the folder.

    Every method and weight has this form.

    Args:
        adapted: the model with its adapters.
        directory: the folder; made if missing.

    Raises:
        ExportError: the adapter also changes a layer's bias, which a delta of the weight cannot express.
    """
    adapted.check_whole("export deltas")
    for name, adapter in adapted.adapters.items():
        if adapter.moves_bias:
            raise ExportError(
                f"cannot export the delta of {name}: the adapter changes the layer's bias as well, which a delta "
                "would not; save() or export_peft() keeps the adapter itself"
            )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / DELTAS, adapted.deltas(), {"format": "pt", "method": adapted.method.name})
    return folder


def export_merged(adapted: Adapted, path: str | Path) -> Path:
    """Write the model's state dict, with the deltas merged, to one safetensors file, and return its path.

    Args:
        adapted: the model with its adapters. It stays as it was.
        path: the file; its folder is made if missing.

    Raises:
        AdapterError: the deltas cannot be merged (see `Adapted.merge`).
    """
    adapted.check_whole("export the merged model")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with adapted.merging() as model:
        write_tensors(target, model.state_dict(), {"format": "pt"})
    return target
