"""Attach an adapter that was saved: as `save` wrote it, or as Hugging Face PEFT did."""

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
"""A rank that takes little memory, also where the weights are smaller."""


def load(model: nn.Module, directory: str | Path) -> Adapted:
    """Attach a saved adapter to `model`, in place.

    Raises `CheckpointError` where a weight is missing or has another shape, where a file's tensors are not those that
    were saved, or where the bases drawn from the seed are not the bases the adapter was trained with. The model is then
    left as it was. A file of an older version has no digest of its tensors, and is loaded with an `UncheckedWarning`.
    """
    folder = Path(directory)
    meta = read_meta(folder)
    basis = meta["basis"]
    if basis is not None and basis["generator_version"] != GENERATOR_VERSION:
        raise CheckpointError(
            f"the bases are of generator version {basis['generator_version']}, this package has {GENERATOR_VERSION}; "
            "load with the version that saved it"
        )
    method = get_method(meta["method"])
    config = method.config.from_options(meta["capacity"], meta["options"])
    seed = meta.get("basis_seed", 0) if basis is None else basis["seed"]  # older files have it with the bases alone
    shapes = {name: (shape[0], shape[1]) for name, shape in meta["shapes"].items()}
    settings: dict[str, Any] = {
        "init_seed": meta["init_seed"],
        "basis_seed": seed,
        "gradients": zero_gradients(method, shapes),  # a start made from gradients is in the file
    }
    state = read_tensors(folder / TENSORS, expect_digest=True)
    try:
        _check_size(model, config, list(meta["shapes"]), meta["capacities"], state)
        adapted = attach(model, config, list(meta["shapes"]), capacities=meta["capacities"], **settings)
    except AdapterError as error:
        raise CheckpointError(f"the adapter in {folder} does not fit this model: {error}") from error
    try:
        _fill(adapted, meta, folder)
        adapted.load_state_dict(state)
    except BaseException:  # an interrupt too
        adapted.detach()
        raise
    return adapted


def _fill(adapted: Adapted, meta: Mapping[str, Any], folder: Path) -> None:
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
    if own := adapted.derived():
        _fill_derived(own, _read_whole(folder / DERIVED, meta.get("derived")), folder / DERIVED)
    if wanted := meta.get("schedule"):
        adapted.hooks.load_state(_read_whole(folder / SCHEDULE, wanted))


def _check_redrawn(adapted: Adapted, wanted: object) -> None:
    """Refuse what PEFT has drawn otherwise than for the saved adapter; folders of before do not say."""
    if wanted is None:
        return
    found = fingerprint(adapted.redrawn())
    digest, norm = (wanted.get("digest"), wanted.get("norm")) if isinstance(wanted, dict) else (wanted, None)
    close = isinstance(norm, int | float) and abs(norm - found["norm"]) <= 0.01 * found["norm"]
    if digest != found["digest"] or not close:
        raise CheckpointError(
            f"the digest differs: what PEFT draws from seed {adapted.basis_seed} has digest {found['digest'][:16]}... "
            f"and norm {found['norm']:.4g}, the adapter was trained with {str(digest)[:16]}... and {norm}; the file "
            "was changed, or this version of PEFT draws otherwise than the one that it was trained with"
        )


def _check_size(
    model: nn.Module,
    config: AdapterConfig,
    names: Sequence[str],
    capacities: Mapping[str, Any],
    state: Mapping[str, Tensor],
) -> None:
    """Refuse capacities that need more numbers than the file's tensors have, before memory for them is taken."""
    method, held, wanted = get_method(config.method), sum(tensor.numel() for tensor in state.values()), 0
    sites = sites_of(model, method, names)
    if unknown := [name for name in names if name not in sites]:  # `names` were read as targets
        raise AdapterError(f"it is for {unknown[0]!r}, which this model has not; {nearest(unknown[0], sites)}")
    rank, most = config.options().get("r"), max([SMALL_RANK, *(max(s.shape) for s in sites.values())])
    if isinstance(rank, int) and rank > most:  # of frozen factors, which no count has (NoLA, UniLoRA, TinyLoRA)
        raise AdapterError(f"its r = {rank:,} is more than its weights have a use for ({most:,})")
    for name, site in sites.items():
        capacity = capacities.get(name, config.capacity)
        check_capacity(method.name, f"{method.capacity_field} of {name}", capacity, method.min_capacity)
        if isinstance(config, TermsConfig):  # what is built is in the file, also after cuts
            capacity = config.initial_rank(capacity)
        wanted += 0 if method.together else method.count(site.shape, capacity, **config.options())
    if method.together:
        shapes = {name: site.shape for name, site in sites.items()}
        wanted = method.total(shapes, config.capacity, **config.options())
    if wanted > held:
        raise AdapterError(f"its capacities need {wanted:,} numbers, and its file holds {held:,}")


def _read_whole(path: Path, wanted: object) -> dict[str, Tensor]:
    saved = read_tensors(path)
    digest = digest_of(saved)
    if digest != wanted:
        raise CheckpointError(f"{path} has digest {digest[:16]}..., the adapter was saved with {str(wanted)[:16]}...")
    return saved


def _fill_derived(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> None:
    before = {n for n in own if ".frod_V." in n} - saved.keys()  # earlier versions left FRoD's V out
    if saved.keys() != own.keys() - before or any(saved[n].shape != own[n].shape for n in saved):
        raise CheckpointError(f"{path} does not hold the tensors that this adapter derives from its weights")
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)


def use_stored_bases(adapted: Adapted, tensors: Mapping[str, Tensor]) -> Bases:
    """Give all adapters of `adapted` the same given bases in place of the drawn ones.

    Every tensor must be at least as large as the drawn one, whose leading part the layers read.
    """
    drawn = adapted.bases()
    if drawn is None:
        raise CheckpointError(f"method {adapted.method.name} has no bases, but the file holds {sorted(tensors)}")
    for name in drawn.draws:
        need = tuple(drawn.get(name).shape)
        have = tuple(tensors[name].shape) if name in tensors else ()
        if len(have) != 2 or any(h < n for h, n in zip(have, need, strict=True)):
            raise CheckpointError(f"basis {name} has shape {have} in the file but the layers need at least {need}")
    first = drawn.get(next(iter(drawn.draws)))
    shapes = {name: Draw(*tensors[name].shape) for name in drawn.draws}
    stored = Bases(0, shapes, first.device, first.dtype, given=tensors)
    for adapter in adapted.adapters.values():
        for module in adapter.modules():
            for key, child in list(module._modules.items()):
                if child is drawn:
                    module._modules[key] = stored
    return stored


def load_peft(model: nn.Module, directory: str | Path) -> Adapted:
    """Attach the adapter in PEFT's `directory` to `model`, in place, as one of this package.

    `directory` holds `adapter_config.json` and `adapter_model.safetensors`. Raises `CheckpointError` for a type of
    adapter, or an option of it, that this package lacks, and where names or shapes do not fit; the model is then left
    as it was.
    """
    found = read_peft(model, Path(directory))
    try:
        _check_size(model, found.config, found.weights, found.capacities, found.state)
        seed = 0 if found.settings is None else found.settings.basis_seed
        adapted = attach(model, found.config, list(found.weights), capacities=found.capacities, basis_seed=seed)
    except AdapterError as error:
        raise CheckpointError(f"the PEFT adapter in {directory} does not fit this model: {error}") from error
    try:
        if found.settings is not None:
            fill(adapted, found.state)
            return adapted
        if found.bases is not None:
            use_stored_bases(adapted, found.bases)
        adapted.load_state_dict(found.state)
    except BaseException:
        adapted.detach()
        raise
    return adapted
