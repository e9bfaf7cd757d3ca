"""Every method on every family in every precision, on a CUDA device that nothing has to have.

Tensors are torch's fake ones: shapes, types and devices as on CUDA, with CUDA's rules of autocast, and no numbers. What
mixes devices raises by itself; a product of two types does not there, so `Products` looks. `test_matrix.py` runs
`python -m tests.gpu.matrix FAMILY [METHOD ...]` with `pretended.cpp` loaded; what fails is printed as JSON.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from randlora.adapted.attach import attach
from randlora.arithmetic import bases
from randlora.dropout import Masks
from randlora.methods.bridge.kinds import KINDS
from randlora.methods.factored import Factored
from randlora.methods.method import METHODS, get_method
from randlora.model.prompted import PLACE
from tests.randlora.methods.support import CAPACITY, OPTIONS
from tests.trainables.tiny_language import WIDTH
from trainables.models.encoders import image_encoder
from trainables.models.language import LanguageModel
from trainables.tasks.images.clip import encode_images, encode_texts
from trainables.tasks.text.sentences import Sentence, SentenceReader

CUDA = torch.device("cuda", 0)
PRECISIONS = {"float32": (torch.float32, False), "autocast": (torch.float32, True), "bf16": (torch.bfloat16, True)}
"""Of the base weights, and whether a trial's forward is under autocast; as `train.precision` and `base_weights` say."""
PROMPTS = ("prompt:coop", "prompt:cocoop", "prompt:maple", "prompt:promptsrc")
NUMBERS = frozenset({"adamss", "boft", "frod", "loha", "lokr", "shira", "unilora", "vblora", "waveft"})
"""Of PEFT's, those that look at numbers while they are built or called."""
Forward = Callable[[nn.Module, Any], Tensor]


class Products(TorchDispatchMode):
    """Refuses a product of floating-point numbers of two types, as CUDA's kernels do and fake ones do not."""

    NAMES = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "addmm_", "baddbmm_", "convolution", "linear"})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.NAMES or name.startswith("_scaled_dot_product"):
            kinds = {t.dtype for t in args if isinstance(t, Tensor) and t.is_floating_point()}
            if len(kinds) > 1:
                raise TypeError(f"{name} of {sorted(map(str, kinds))}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def autocast() -> Iterator[None]:
    """torch.autocast("cuda", dtype=torch.bfloat16), which switches itself off where no device is found."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


@dataclass(frozen=True)
class Family:
    """`make` builds a model; `forward` makes vectors or logits of it by the product's code; `targets` are adapted."""

    make: Callable[[], nn.Module]
    forward: Forward
    targets: tuple[str, ...]


def _clip(model: nn.Module, cast: Any) -> Tensor:
    images, texts = torch.empty(2, 3, 16, 16, device=CUDA), torch.zeros(2, 24, dtype=torch.long, device=CUDA)
    return encode_images(model, images, cast) @ encode_texts(model, texts, cast).T


def _vit(model: nn.Module, cast: Any) -> Tensor:
    with cast():
        return image_encoder(model)(torch.empty(2, 3, 16, 16, device=CUDA))


def _bert(model: nn.Module, cast: Any) -> Tensor:
    rows = [Sentence(torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long), False) for n in (5, 7)]
    return SentenceReader(model, cast, pad=1)(rows)


def _llama(model: nn.Module, cast: Any) -> Tensor:
    rows, columns = torch.tensor([0, 1]), torch.tensor([3, 4])
    return LanguageModel(model, cast).logits(torch.zeros(2, 6, dtype=torch.long), rows, columns)[0]


def _hf(config: Any) -> nn.Module:
    auto: Any = transformers.AutoModelForCausalLM if config.model_type == "llama" else transformers.AutoModel
    return auto.from_config(config)


_SMALL = {k: WIDTH[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 24, "vocab_size": 512, "width": 32, "heads": 2, "layers": 2},
}
FAMILIES = {
    "clip": Family(lambda: open_clip.CLIP(**_CLIP), _clip, ("attn.in_proj_weight", "mlp.c_fc", "mlp.c_proj")),
    "vit": Family(
        lambda: _hf(transformers.ViTConfig(**_SMALL, image_size=16, patch_size=8)), _vit, ("q_proj", "v_proj", "fc1")
    ),
    "bert": Family(
        lambda: _hf(transformers.BertConfig(**_SMALL, vocab_size=300)), _bert, ("query", "intermediate.dense")
    ),
    "llama": Family(
        lambda: _hf(transformers.LlamaConfig(**WIDTH, num_key_value_heads=2)), _llama, ("q_proj", "v_proj", "down_proj")
    ),
}


def placed(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model in eval mode, on the device; of a type other than float32 the parameters alone, as a lane keeps it."""
    for module in model.eval().modules():
        for key, tensor in list(module._buffers.items()):
            module._buffers[key] = (
                None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
            )
        for key, weight in list(module._parameters.items()):
            if weight is not None:
                module._parameters[key] = nn.Parameter(torch.empty(weight.shape, dtype=dtype, device=CUDA))
    return model


@contextlib.contextmanager
def types_of(model: nn.Module) -> Iterator[dict[str, torch.dtype]]:
    """Inside, the type of what every module of the model gives; adapters are not modules of the model's own."""
    found: dict[str, torch.dtype] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                found[name] = first.dtype

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def check(family: Family, model: nn.Module, name: str, cast: Any, dtype: torch.dtype) -> None:
    """Attach, forward, backward, merge and detach: raises what goes wrong."""
    method = get_method(name)
    model = placed(model, dtype)
    with types_of(model) as plain:
        before = family.forward(model, cast)
    short = name.removeprefix("peft:")
    capacity = CAPACITY.get(short, 4) if name.startswith("peft:") else max(method.min_capacity, 4)
    options = OPTIONS.get(short, {}) if name.startswith("peft:") else {}
    targets = [PLACE] if method.prompts else list(family.targets)
    if not (method.mergeable or method.prompts):  # no weight that is read as a matrix
        targets = [t for t in targets if "in_proj" not in t]
    adapted = attach(model, method.config.from_options(capacity, options), targets)
    model.train()
    with types_of(model) as own:
        output = family.forward(model, cast)
    assert (output.dtype, output.device) == (before.dtype, before.device), f"{output.dtype} on {output.device}"
    other = {n: f"{own[n]} for {plain[n]}" for n in own.keys() & plain.keys() if own[n] != plain[n]}
    if name.startswith("peft:"):  # some of PEFT's layers leave autocast's type
        other = {n: text for n, text in other.items() if own[n] != torch.float32}
    assert not other, f"modules give another type: {dict(list(other.items())[:2])}"
    loss = output.sum()
    if (penalty := adapted.hooks.regulariser()) is not None:
        loss = loss + penalty
    loss.backward()
    for key, parameter in adapted.named_parameters():
        assert parameter.dtype == torch.float32, f"{key} is {parameter.dtype}"
        assert parameter.device == CUDA, f"{key} is on {parameter.device}"
        assert parameter.grad is None or parameter.grad.device == CUDA, f"{key}'s gradient is on another device"
    assert any(p.grad is not None for p in adapted.parameters()), "no gradient"
    away = [k for a in adapted.adapters.values() for k, b in a.named_buffers() if b.device != CUDA]
    assert not away, f"buffers {away[:3]} are not on the device"
    for adapter in adapted.adapters.values():
        if isinstance(adapter, Factored) and dtype == torch.bfloat16:
            out, width = adapter.shape
            x, base = (torch.empty(*size, dtype=dtype, device=CUDA) for size in ((4096, width), (out, width)))
            with cast():
                thick = adapter.factors()[0].repeat(1, 64)  # of so high a rank that one matrix is cheaper
                merged = adapter.merges(x, base, thick)
            assert not merged, "a small delta is rounded away: a bf16 weight is merged"
    if name == "nola":  # of up to 4,096 terms, which CUDA's autocast would sum in bf16 and the CPU's does not
        with cast():
            assert {f.dtype for a in adapted.adapters.values() for f in a.factors()} == {torch.float32}
    if method.mergeable and not any(a.moves_bias for a in adapted.adapters.values()):
        assert {d.dtype for d in adapted.deltas().values()} == {torch.float32}, "deltas in another type"
        adapted.merge()
        family.forward(model, cast)
        assert {site.parameter.dtype for site in adapted.sites.values()} == {dtype}, "merging changed a weight's type"
    adapted.detach()


def said(error: Exception) -> str:
    """An error with the line outside torch that it came from."""
    all_frames = traceback.extract_tb(error.__traceback__)
    frames = [f for f in all_frames if "/torch/" not in f.filename and f.name != "__torch_dispatch__"]
    where = f"{'/'.join(frames[-1].filename.split('/')[-3:])}:{frames[-1].lineno}"
    return f"{type(error).__name__} at {where}: {(str(error).splitlines() or [''])[0]}"


def methods(name: str) -> list[str]:
    """Return the methods that run on a family.

    PEFT's types see a tree of layers and never a model, so they run on one family. LoRA-GA is left out: its start looks
    at the numbers of a gradient, which fake tensors lack. After its start it is an adapter of PiSSA's kind.
    """
    own = [method for method, entry in METHODS.items() if not entry.needs_gradients]
    peft = [f"peft:{kind}" for kind in sorted(KINDS) if kind not in NUMBERS] if name == "vit" else []
    return [*own, *peft, *(PROMPTS if name == "clip" else ())]


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot put one fake parameter in the place of another."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for key, weight in module._parameters.items():
        if weight is not None and (moved := function(weight.detach())).device != weight.device:
            module._parameters[key] = nn.Parameter(moved, weight.requires_grad)
        elif weight is not None and moved.dtype != weight.dtype:
            weight.data = moved
    for key, tensor in module._buffers.items():
        module._buffers[key] = None if tensor is None else function(tensor)
    return module


def main(family: str, *only: str) -> None:
    """All precisions of one family, and all methods or those named."""
    bases._PLAIN["normal"] = lambda bits: bits.to(torch.float32)  # its branches look at numbers
    Masks.seed = lambda _: 0  # type: ignore[method-assign]
    nn.Module._apply = _apply  # type: ignore[assignment,method-assign]
    torch.cuda.get_rng_state = lambda *_: torch.empty(0)  # type: ignore[assignment]
    torch.cuda.set_rng_state = lambda *_: None  # type: ignore[assignment]
    model = FAMILIES[family].make()
    broken: dict[str, dict[str, str]] = {}
    for precision, (dtype, cast) in PRECISIONS.items():
        broken[precision] = {}
        for name in only or methods(family):
            context, own = autocast if cast else contextlib.nullcontext, copy.deepcopy(model)
            with FakeTensorMode(), Products(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    check(FAMILIES[family], own, name, context, dtype)
                except Exception as error:  # noqa: BLE001  # whatever it is, it is what is looked for
                    broken[precision][name] = said(error)
    print(json.dumps(broken))


if __name__ == "__main__":
    main(*sys.argv[1:])
