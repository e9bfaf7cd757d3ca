"""What trains in a trial (adapters, base weights, or nothing), and how the base model is restored."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from randlora.adapted.adapted import Adapted
from randlora.adapted.attach import attach
from randlora.adapted.gradients import weight_gradients
from randlora.adapter import Adapter
from randlora.errors import AdapterError
from randlora.files.tensors import DIGEST, digest_of
from randlora.methods.prompts.kinds import WORDS
from randlora.methods.registry import get_method
from randlora.model.targets import stored_names
from trainables.config import FULL_METHODS, LINEAR_PROBE, NO_TRAINING, TrainSettings, TrialConfig
from trainables.errors import TrialError
from trainables.models.base_weights import refusal
from trainables.models.encoders import is_unused
from trainables.models.loading import Tokenizer, word_ids
from trainables.models.shapes import VISUAL
from trainables.models.sharded import gathered, is_split
from trainables.seeds import derive_seed
from trainables.tasks.task import Task

_ALIGNMENT = 64
"""The alignment, in bytes, of torch's own allocator."""
ROWS_AT_ONCE = 8
"""The largest number of rows in a forward pass for a start that needs gradients. Memory also holds a gradient of each
target."""
_TEMPERATURE, _LOGIT_BIAS = "logit_scale", "logit_bias"


@dataclass(frozen=True, eq=False)
class Trainables:
    """The tensors that a trial trains.

    Attributes:
        parameters: the tensors by name, in a fixed order.
        adapter_params: the number of adapter parameters, which a budget limits.
        stored_bytes: bytes of frozen bases and stored starts beside the base model.
        save: writes the tensors to a folder.
        added: the adapters; None if there are none.
    """

    parameters: dict[str, nn.Parameter]
    adapter_params: int
    stored_bytes: int
    save: Callable[[Path], object]
    added: Adapted | None = None


@contextlib.contextmanager
def adapted(
    model: nn.Module,
    trial: TrialConfig,
    tokenizer: Tokenizer | None = None,
    keeper: contextlib.AbstractContextManager[object] | None = None,
    task: Task | None = None,
) -> Iterator[Trainables]:
    """Make the model trainable as the trial asks. At the end, whatever happens, restore it bit for bit.

    "full" trains every weight of the adapted tower(s). "full-targets" trains the target weights alone, the whole weight
    if a target is a part of one. The temperature (logit_scale) stays frozen, because it is not a tower's weight. Only
    "full" on both towers trains it, if `train_temperature` is set.

    Args:
        model: the base model.
        trial: the trial.
        tokenizer: a CLIP's tokenizer, for the words from which prompts start.
        keeper: a block inside which adapters are attached. It may cache what that computes from the base weights.
        task: has the training rows for a method whose start needs gradients.
    """
    if (refused := refusal(trial.method, trial.train.base_weights)) is not None:
        raise TrialError(f"method {trial.method!r} {refused.rule}; use {refused.nearest}")
    required = {p: p.requires_grad for p in model.parameters()}
    try:
        model.requires_grad_(False)
        with contextlib.ExitStack() as stack:
            if trial.method in (NO_TRAINING, LINEAR_PROBE):
                yield Trainables({}, 0, 0, lambda _: None)  # the head of a linear probe belongs to its task
            elif trial.method in FULL_METHODS:
                yield _base_weights(model, trial, stack)
            else:
                with keeper or contextlib.nullcontext():
                    added = _adapters(model, trial, stack, tokenizer, task)
                yield added
    finally:
        for parameter, flag in required.items():
            parameter.grad = None
            parameter.requires_grad_(flag)


def _adapters(
    model: nn.Module,
    trial: TrialConfig,
    stack: contextlib.ExitStack,
    tokenizer: Tokenizer | None,
    task: Task | None,
) -> Trainables:
    capacities = dict(trial.capacities)
    if not capacities:
        raise TrialError(f"method {trial.method!r} needs the capacity of every target weight; capacities is empty")
    method = get_method(trial.method)
    config = method.config_for(capacities, dict(trial.options))
    words = word_ids(tokenizer, WORDS) if method.prompts and tokenizer is not None else ()
    gradients = _gradients(model, trial, config.options()["rows"], task) if method.needs_gradients and task else None
    added = attach(
        model,
        config,
        list(capacities),
        capacities=capacities,
        init_seed=trial.init_seed,
        basis_seed=trial.basis_seed,
        words=words,
        gradients=gradients,
    )
    stack.callback(added.detach)
    return Trainables(dict(added.named_parameters()), added.count(), added.stored_bytes(), added.save, added)


def _gradients(model: nn.Module, trial: TrialConfig, count: int, task: Task) -> dict[str, Tensor]:
    """Return the gradient of the mean loss on the first `count` rows of the first epoch, the same on every worker.

    Images are not augmented, and there is no dropout, because the model is in evaluation mode. The gradients that the
    backward passes leave in the task's head are removed, so that the first step does not add them to its own. Raises
    TrialError if no start can be made from a gradient.
    """
    rows = torch.cat(list(task.batches(1)))[:count]
    weight = task.weight(rows)
    at_once = trial.train.micro_batch_size or trial.train.global_batch_size

    def backward() -> None:
        for part in torch.split(rows, at_once if trial.contrastive else min(at_once, ROWS_AT_ONCE)):
            (task.loss_sum(part, None) / weight).backward()  # type: ignore[no-untyped-call]

    try:
        return weight_gradients(model, list(dict(trial.capacities)), backward)
    except AdapterError as error:
        raise TrialError(f"method {trial.method!r} on its first {len(rows)} training rows: {error}") from error
    finally:
        if task.head is not None:
            task.head.zero_grad(set_to_none=True)


def _base_weights(model: nn.Module, trial: TrialConfig, stack: contextlib.ExitStack) -> Trainables:
    chosen = set(base_weight_names(model, trial))
    parameters = {n: p for n, p in model.named_parameters() if n in chosen}
    if not is_split(list(parameters.values())):  # these belong to the trial alone, so they need not be restored
        stack.callback(_put_aside(model, parameters))
    for parameter in parameters.values():
        parameter.requires_grad_(True)

    def save(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: t.contiguous() for n, t in gathered({n: p.detach() for n, p in parameters.items()}).items()}
        save_file(tensors, str(folder / "weights.safetensors"), metadata={DIGEST: digest_of(tensors)})
        about = {"method": trial.method, "model": trial.model, "weights": "base weights after training"}
        (folder / "weights.json").write_text(json.dumps(about, indent=2), encoding="utf-8")

    return Trainables(parameters, sum(p.numel() for p in parameters.values()), 0, save)


def _put_aside(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Callable[[], None]:
    """Replace parameters by copies of their values. Calling the result restores the original memory.

    The original memory is not written to, because all workers of a machine may share it (`models.shared`). If a
    parameter's memory cannot be exchanged, its values are kept and written back.
    """
    tensors = [t for t in (*model.parameters(), *model.buffers()) if type(t.data) is Tensor]
    owners = Counter(t.untyped_storage().data_ptr() for t in tensors)
    apart = {
        name: _own_copy(p)
        for name, p in parameters.items()
        if type(p.data) is Tensor and p.is_contiguous() and owners[p.untyped_storage().data_ptr()] == 1
    }
    values = {name: p.detach().clone() for name, p in parameters.items() if name not in apart}
    originals = {name: parameters[name].data for name in apart}
    for name, copy in apart.items():
        parameters[name].data = copy

    def give_back() -> None:
        for name, data in originals.items():
            parameters[name].data = data
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)

    return give_back


def _own_copy(tensor: Tensor) -> Tensor:
    """Copy a tensor to memory that has the same offset from multiples of 64 bytes, so that products have the
    same bits."""
    data = tensor.detach()
    room = torch.empty(data.nbytes + _ALIGNMENT, dtype=torch.uint8, device=data.device)
    shift = (data.data_ptr() - room.data_ptr()) % _ALIGNMENT
    return room[shift : shift + data.nbytes].view(data.dtype).view(data.shape).copy_(data)


def base_weight_names(model: nn.Module, trial: TrialConfig) -> list[str]:
    """Return the names of the base weights that "full" or "full-targets" trains, in the model's order.

    Raises:
        TrialError: adapt = "vision" leaves none, for example in a model with one tower.
    """
    if trial.method == "full":
        frozen = {_LOGIT_BIAS} if trial.train.train_temperature else {_LOGIT_BIAS, _TEMPERATURE}
        names = [n for n, _ in model.named_parameters() if n not in frozen and not is_unused(model, n)]
    else:
        names = [n for n in stored_names(model, list(trial.targets)) if not is_unused(model, n)]
    if trial.adapt != "vision":
        return names
    visual = [n for n in names if n.startswith(VISUAL)]
    if not visual:
        raise TrialError(f"adapt = 'vision' leaves {trial.method!r} no weight of {trial.model!r} to train; use 'all'")
    return visual


def of_worker(rank: int) -> tuple[int, ...]:
    """Return the end of a worker's dropout seeds. If there are several workers, each has its own masks."""
    return (rank,) if rank else ()


def start_training(module: nn.Module, settings: TrainSettings) -> None:
    """Put a model into training mode, or only its adapters if `base_dropout` is false.

    The statistics of batch normalisation stay as pretrained. They are buffers of the base model, not trainables.
    """
    module.train(settings.base_dropout)
    for layer in (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        layer.eval()
    for adapter in (m for m in module.modules() if isinstance(m, Adapter)):
        adapter.train()


def reseed_dropout(model: nn.Module, init_seed: int, epoch: int, prefix: str = "", rank: int = 0) -> None:
    """Restart every adapter's dropout stream for this epoch, so that a resumed trial draws the same masks.

    `prefix` is the name of `model` in the base model.
    """
    for name, module in model.named_modules(prefix=prefix):
        if isinstance(module, Adapter):
            module.reseed_dropout(derive_seed(init_seed, "dropout", name, epoch, *of_worker(rank)))
