"""Attach an adapter that was saved, in this package's format or in that of Hugging Face PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from randlora.adapted.adapted import Adapted
from randlora.adapted.attach import attach, sites_of
from randlora.adapted.gradients import zero_gradients
from randlora.adapter import AdapterConfig, check_capacity
from randlora.arithmetic.bases import GENERATOR_VERSION, Bases, Draw
from randlora.errors import AdapterError, CheckpointError, nearest
from randlora.files.checkpoint import (
    BASES,
    DERIVED,
    META,
    SCHEDULE,
    TENSORS,
    fingerprint,
    read_meta,
)
from randlora.files.peft_import import read_peft
from randlora.files.peft_types import fill
from randlora.files.tensors import digest_of, read_tensors
from randlora.methods.registry import get_method
from randlora.methods.scheduled.ranks import TermsConfig

SMALL_RANK = 1024
"""A rank of frozen factors up to which a file is always believed, because it takes little memory."""


def load(model: nn.Module, directory: str | Path) -> Adapted:
    """Attach a saved adapter to `model`, in place.

    Args:
        model: the base model on which the adapter was trained. If an error is raised, it stays as it was.
        directory: the folder that `save` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, a weight is missing in the model or has another shape, or the
            bases drawn from the seed are not those that the adapter was trained with.

    A file of an older version has no digest of its tensors. It is loaded with an `UncheckedWarning`.
    """
    folder = Path(directory)
    meta = read_meta(folder)
    basis = meta["basis"]
    if basis is not None and basis["generator_version"] != GENERATOR_VERSION:
        raise CheckpointError(
            f"the bases are of generator version {basis['generator_version']}, this package has {GENERATOR_VERSION}; "
            "load with the version that saved it"
        )
    seed = meta.get("basis_seed", 0) if basis is None else basis["seed"]  # older files have the seed in `basis` alone
    shapes = {name: (shape[0], shape[1]) for name, shape in meta["shapes"].items()}
    state = read_tensors(folder / TENSORS, expect_digest=True)
    try:
        method = get_method(meta["method"])
        config = method.config.from_options(meta["capacity"], meta["options"])
        settings: dict[str, Any] = {
            "init_seed": meta["init_seed"],
            "basis_seed": seed,
            "gradients": zero_gradients(method, shapes),  # a start made from gradients is in the file
        }
        _check_size(model, config, list(meta["shapes"]), meta["capacities"], state)
        adapted = attach(model, config, list(meta["shapes"]), capacities=meta["capacities"], **settings)
    except AdapterError as error:
        raise CheckpointError(f"the adapter in {folder} does not fit this model: {error}") from error
    try:
        _fill(adapted, meta, folder)
        adapted.load_state_dict(state)
    except BaseException:  # also after an interrupt
        adapted.detach()
        raise
    return adapted


def _fill(adapted: Adapted, meta: Mapping[str, Any], folder: Path) -> None:
    """Check shapes and bases against the file, and put the file's frozen tensors and schedule into the adapters."""
    for name, shape in meta["shapes"].items():
        if list(adapted.shapes[name]) != shape:
            raise CheckpointError(f"{name} is {tuple(shape)} in the adapter but {adapted.shapes[name]} in the model")
    frozen, basis = adapted.bases(), meta["basis"]
    if frozen is not None:
        if basis is None:
            raise CheckpointError(f"{folder / META} has no basis, but {meta['method']} has some: the file was changed")
        stored = basis.get("stored", False)
        digest = (use_stored_bases(adapted, read_tensors(folder / BASES)) if stored else frozen).digest()
        if digest != basis["digest"]:
            which = f"in {folder / BASES}" if stored else f"drawn from seed {basis['seed']}"
            raise CheckpointError(
                f"the digest differs: the bases {which} have digest {digest[:16]}..., the adapter was trained with "
                f"{basis['digest'][:16]}...; the file was changed or belongs to another generator"
            )
    _check_redrawn(adapted, meta.get("redrawn"))
    if derived := adapted.derived():
        _fill_derived(derived, _read_whole(folder / DERIVED, meta.get("derived")), folder / DERIVED)
    if schedule_digest := meta.get("schedule"):
        adapted.hooks.load_state(_read_whole(folder / SCHEDULE, schedule_digest))


def _check_redrawn(adapted: Adapted, wanted: object) -> None:
    """Raise CheckpointError if PEFT has drawn other frozen tensors than it drew for the saved adapter.

    Folders of older versions have no fingerprint. They are not checked.
    """
    if wanted is None:
        return
    redrawn = fingerprint(adapted.redrawn())
    digest, norm = (wanted.get("digest"), wanted.get("norm")) if isinstance(wanted, dict) else (wanted, None)
    close = isinstance(norm, int | float) and abs(norm - redrawn["norm"]) <= 0.01 * redrawn["norm"]
    if digest != redrawn["digest"] or not close:
        raise CheckpointError(
            f"the digest differs: what PEFT draws from seed {adapted.basis_seed} has digest "
            f"{redrawn['digest'][:16]}... and norm {redrawn['norm']:.4g}, "
            f"the adapter was trained with {str(digest)[:16]}... and {norm}; the file "
            "was changed, or this version of PEFT draws other numbers than the one that it was trained with"
        )


def _check_size(
    model: nn.Module,
    config: AdapterConfig,
    names: Sequence[str],
    capacities: Mapping[str, Any],
    state: Mapping[str, Tensor],
) -> None:
    """Raise AdapterError if the capacities need more numbers than the file's tensors have, before memory is taken for
    them."""
    method = get_method(config.method)
    stored = sum(tensor.numel() for tensor in state.values())
    needed = 0
    sites = sites_of(model, method, names)
    if unknown := [name for name in names if name not in sites]:  # `names` were read as targets
        raise AdapterError(f"it is for {unknown[0]!r}, which this model does not have; {nearest(unknown[0], sites)}")
    rank, most = config.options().get("r"), max([SMALL_RANK, *(max(s.shape) for s in sites.values())])
    if isinstance(rank, int) and rank > most:  # the rank of frozen factors, which no count includes (NoLA, UniLoRA)
        raise AdapterError(f"its r = {rank:,} is larger than its weights can use; the largest useful r is {most:,}")
    for name, site in sites.items():
        capacity = capacities.get(name, config.capacity)
        check_capacity(method.name, f"{method.capacity_field} of {name}", capacity, method.min_capacity)
        if isinstance(config, TermsConfig):  # the file has all terms that were built, also those that were cut
            capacity = config.initial_rank(capacity)
        needed += 0 if method.together else method.count(site.shape, capacity, **config.options())
    if method.together:
        shapes = {name: site.shape for name, site in sites.items()}
        needed = method.total(shapes, config.capacity, **config.options())
    if needed > stored:
        raise AdapterError(f"its capacities need {needed:,} numbers, and its file holds {stored:,}")


def _read_whole(path: Path, wanted: object) -> dict[str, Tensor]:
    """Read a file of tensors. Raises CheckpointError if their digest is not the one that was saved."""
    tensors = read_tensors(path)
    digest = digest_of(tensors)
    if digest != wanted:
        raise CheckpointError(f"{path} has digest {digest[:16]}..., the adapter was saved with {str(wanted)[:16]}...")
    return tensors


def _fill_derived(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> None:
    """Copy the saved tensors into the adapters' `derived` ones. Raises CheckpointError if names or shapes differ."""
    before = {n for n in own if ".frod_V." in n} - saved.keys()  # earlier versions did not save FRoD's V
    if saved.keys() != own.keys() - before or any(saved[n].shape != own[n].shape for n in saved):
        raise CheckpointError(f"{path} does not hold the tensors that this adapter derives from its weights")
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)


def use_stored_bases(adapted: Adapted, tensors: Mapping[str, Tensor]) -> Bases:
    """Replace the drawn bases of all adapters by the given ones, and return these.

    Args:
        adapted: the model with its adapters.
        tensors: the bases by name. Each must be at least as large as the drawn one, because the layers read its leading
            part.

    Raises:
        CheckpointError: the method has no bases, or a given one is too small.
    """
    drawn_bases = adapted.bases()
    if drawn_bases is None:
        raise CheckpointError(f"method {adapted.method.name} has no bases, but the file holds {sorted(tensors)}")
    for name in drawn_bases.draws:
        need = tuple(drawn_bases.get(name).shape)
        have = tuple(tensors[name].shape) if name in tensors else ()
        if len(have) != 2 or any(h < n for h, n in zip(have, need, strict=True)):
            raise CheckpointError(f"basis {name} has shape {have} in the file but the layers need at least {need}")
    first = drawn_bases.get(next(iter(drawn_bases.draws)))
    shapes = {name: Draw(*tensors[name].shape) for name in drawn_bases.draws}
    stored = Bases(0, shapes, first.device, first.dtype, given=tensors)
    for adapter in adapted.adapters.values():
        for module in adapter.modules():
            for key, child in list(module._modules.items()):
                if child is drawn_bases:
                    module._modules[key] = stored
    return stored


def load_peft(model: nn.Module, directory: str | Path) -> Adapted:
    """Attach the adapter that PEFT saved to `model`, in place, as one of this package.

    Args:
        model: the base model on which the adapter was trained. If an error is raised, it stays as it was.
        directory: the folder with PEFT's `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        CheckpointError: this package lacks the type of adapter or one of its options, or names or shapes do not fit.
    """
    peft_adapter = read_peft(model, Path(directory))
    try:
        _check_size(model, peft_adapter.config, peft_adapter.weights, peft_adapter.capacities, peft_adapter.state)
        seed = 0 if peft_adapter.settings is None else peft_adapter.settings.basis_seed
        adapted = attach(
            model, peft_adapter.config, list(peft_adapter.weights), capacities=peft_adapter.capacities, basis_seed=seed
        )
    except AdapterError as error:
        raise CheckpointError(f"the PEFT adapter in {directory} does not fit this model: {error}") from error
    try:
        if peft_adapter.settings is not None:
            fill(adapted, peft_adapter.state)
            return adapted
        if peft_adapter.bases is not None:
            use_stored_bases(adapted, peft_adapter.bases)
        adapted.load_state_dict(peft_adapter.state)
    except BaseException:
        adapted.detach()
        raise
    return adapted
