"""Adapters on disk: safetensors of the trained vectors, and a JSON file that says how the frozen bases are drawn.

A directory holds `adapter.safetensors` and `adapter.json`, plus `bases.safetensors` if asked for, or if the bases were
imported and no seed gives them. Loading draws the bases from the seed, or reads the imported ones, and refuses a
generator version or a digest that differs: wrong bases would be a wrong model. Of what PEFT draws it has a fingerprint.
What a method derives from the base weights (PiSSA's start, singular vectors) no seed gives back bit for bit: it is in
`derived.safetensors`, with its digest; where a schedule stands (AdaLoRA's cuts) is in `schedule.safetensors`. Every
file of tensors has their digest (`files.tensors`).
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
from randlora.model.sharded import reshard, whole, writes
from randlora.model.sites import Site

FORMAT = 1
TENSORS, BASES, META, DELTAS = "adapter.safetensors", "bases.safetensors", "adapter.json", "deltas.safetensors"
DERIVED, SCHEDULE = "derived.safetensors", "schedule.safetensors"


class Adapted(Protocol):
    """What this room needs of `randlora.adapted.adapted.Adapted`, which lies above it."""

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
    """Write the adapter to `directory` (made if missing) and return it. `bases=True` adds the frozen matrices.

    Imported bases are always written, since no seed gives them. Under FSDP2 all processes call it, and the first
    writes.
    """
    folder = Path(directory)
    reshard(adapted.model)
    trained, schedule = adapted.state_dict(), adapted.hooks.state()
    own = writes([*trained.values(), *schedule.values()])
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
    ready = {file: {name: whole(tensor) for name, tensor in held.items()} for file, held in files.items()}
    if not own:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)  # cut off from here on, the folder holds no adapter, not a mixed one
    for file, tensors in ready.items():
        if tensors or file == TENSORS:
            write_tensors(folder / file, tensors)
    write_text(folder / META, json.dumps(meta, indent=1) + "\n")
    return folder


def fingerprint(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """By what frozen tensors of PEFT's are known again, in any order and precision: models in bf16 round theirs.

    A digest of the signs, or of the whole numbers, and the norm.
    """
    squares: dict[str, float] = {}
    for tensor in tensors:
        values = whole(tensor).to("cpu")
        real = values.is_floating_point()
        own = digest_of({"": torch.signbit(values) if real else values.long()})
        squares[own] = max(squares.get(own, 0.0), float(values.double().square().sum()) if real else 0.0)
    digest = hashlib.sha256("".join(sorted(squares)).encode()).hexdigest()
    return {"digest": digest, "norm": math.sqrt(sum(squares.values()))}


def read_json(path: Path, missing: str) -> Any:
    """Parse a file. Raises `CheckpointError` if it is damaged or no file, or if it is missing, in these words."""
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
    """The parsed `adapter.json`. Raises `CheckpointError` where it is missing, damaged or of another format."""
    path = Path(directory) / META
    meta = read_json(path, "no saved adapter")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise CheckpointError(f"{path} has format {found!r}, this version reads {FORMAT}")
    wrong = [key for key, kind in _FORM.items() if not isinstance(meta.get(key, ...), kind)]
    if not wrong and meta["basis"] is not None:
        wrong = [f"basis.{key}" for key, kind in _BASIS.items() if not isinstance(meta["basis"].get(key), kind)]
    if not wrong and not isinstance(meta.get("basis_seed", 0), int):
        wrong = ["basis_seed"]
    if not wrong and not all(isinstance(s, list) and list(map(type, s)) == [int, int] for s in meta["shapes"].values()):
        wrong = ["a pair of numbers in shapes"]
    if wrong:
        raise CheckpointError(f"{path} is damaged: {wrong[0]} is missing, or not what an adapter has there")
    return meta


def export_deltas(adapted: Adapted, directory: str | Path) -> Path:
    """Write `deltas.safetensors`: weight name -> dense delta (out x in). Every method and weight has this form.

    Raises `ExportError` where a layer's bias changes too, as `merge` does: W0 + delta would lack that.
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
    """Write the model's state dict with the deltas merged, as one safetensors file; the model stays as it was."""
    adapted.check_whole("export the merged model")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with adapted.merging() as model:
        write_tensors(target, model.state_dict(), {"format": "pt"})
    return target
