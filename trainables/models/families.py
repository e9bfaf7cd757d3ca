"""Names of base models: how an id is written, which family a model belongs to, and its default targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from randlora.errors import nearest
from trainables.errors import TrainablesError

Scheme = Literal["open_clip", "hf", "local", "embedded"]
Kind = Literal["clip", "hf-vision", "causal-lm", "text-encoder"]

FORMS = "open_clip:ARCH/TAG, hf:ORG/NAME[/FILE.gguf | +qkv], local:DIR[/FILE.gguf | +qkv], embedded:tiny-clip"
"""The accepted forms of a model id, for messages."""
GGUF = ".gguf"
FUSED = "+qkv"
"""The end of an id that makes q, k and v of every attention one weight (`models.fused`)."""

EMBEDDED = {"tiny-clip": Path(__file__).parents[1] / "embedded" / "tiny_clip"}
"""Name of a model that comes with the package -> its directory, in open_clip's `local-dir:` layout."""
_EMBEDDED_IDS = [f"embedded:{name}" for name in EMBEDDED]


class ModelError(TrainablesError):
    """A base model cannot be named, found, read or adapted as asked. The message says what to do instead."""


@dataclass(frozen=True)
class ModelId:
    """The parts of a model id.

    Attributes:
        scheme: where the model comes from.
        name: the architecture (open_clip), repository (hf), directory (local) or embedded name.
        tag: open_clip's pretrained tag. None if the id has none, which is enough to count parameters.
        folder: the directory of a local or embedded model; else None.
        gguf: the GGUF file in the directory or repository that holds the whole model; None for the usual files.
        fused: whether q, k and v become one weight (`models.fused`).
    """

    scheme: Scheme
    name: str
    tag: str | None = None
    folder: Path | None = None
    gguf: str | None = None
    fused: bool = False


KINDS: dict[str, Kind] = {
    "open_clip": "clip",
    "dinov2": "hf-vision",
    "dinov2_with_registers": "hf-vision",
    "vit": "hf-vision",
    "llama": "causal-lm",
    "qwen2": "causal-lm",
    "phi3": "causal-lm",
    "mistral": "causal-lm",
    "qwen3": "causal-lm",
    "gpt2": "causal-lm",
    "roberta": "text-encoder",
    "bert": "text-encoder",
}
"""Family -> what can train its models. The family is open_clip, or the `model_type` of a transformers config."""


def parse_id(model_id: str) -> ModelId:
    """Return the parts of a model id, without reading weights or the network. Raises ModelError if it is unknown or
    missing."""
    scheme, colon, name = model_id.partition(":")
    if scheme in ("hf", "local") and name.endswith(FUSED):
        return replace(parse_id(model_id.removesuffix(FUSED)), fused=True)
    if not colon or scheme not in ("open_clip", "hf", "local", "embedded") or not name:
        raise ModelError(f"unknown model id {model_id!r}: write one of {FORMS}; {_guess(model_id)}")
    if scheme == "embedded":
        if name not in EMBEDDED:
            raise ModelError(f"unknown embedded model {model_id!r}; {nearest(model_id, _EMBEDDED_IDS)}")
        return ModelId("embedded", name, folder=EMBEDDED[name])
    if scheme == "local":
        folder = Path(name).expanduser()
        if folder.suffix == GGUF:
            return _gguf_id(model_id, folder)
        if not folder.is_dir():
            beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else None
            hint = f"neither is {folder.parent}" if beside is None else nearest(folder.name, beside)
            raise ModelError(f"{model_id!r}: {folder} is not a directory; {hint}")
        return ModelId("local", name, folder=folder)
    if scheme == "hf":
        if name.endswith(GGUF) and name.count("/") == 2:
            repository, _, file = name.rpartition("/")
            return ModelId("hf", repository, gguf=file)
        if name.count("/") > 1 or name.startswith("/") or name.endswith("/"):
            raise ModelError(f"{model_id!r}: a hub id is ORG/NAME; for files on this machine write local:DIR")
        return ModelId("hf", name)
    return _open_clip_id(model_id, name)


def _gguf_id(model_id: str, path: Path) -> ModelId:
    if not path.is_file():
        beside = [p.name for p in path.parent.glob(f"*{GGUF}")] if path.parent.is_dir() else []
        raise ModelError(f"{model_id!r}: there is no file {path}; {nearest(path.name, beside)}")
    return ModelId("local", str(path.parent), folder=path.parent, gguf=path.name)


def _open_clip_id(model_id: str, name: str) -> ModelId:
    import open_clip

    arch, _, tag = name.partition("/")
    architectures = cast("list[str]", open_clip.list_models())
    if arch not in architectures:
        raise ModelError(f"{model_id!r}: open_clip has no architecture {arch!r}; {nearest(arch, architectures)}")
    tags = cast("list[str]", open_clip.list_pretrained_tags_by_model(arch))
    if tag and tag not in tags:
        raise ModelError(f"{model_id!r}: open_clip has no weights {tag!r} for {arch}; {nearest(tag, tags)}")
    return ModelId("open_clip", arch, tag=tag or None)


def _guess(model_id: str) -> str:
    """Return the ids that are nearest to a wrong one, for a message."""
    if Path(model_id).expanduser().is_dir():
        return f"nearest: 'local:{model_id}', a directory on this machine"
    import open_clip

    pairs = cast("list[tuple[str, str]]", open_clip.list_pretrained())
    ids = [*_EMBEDDED_IDS, *(f"open_clip:{arch}/{tag}" for arch, tag in pairs)]
    # a wrong or missing prefix must not hide a right name
    bare = {name.partition(":")[2]: name for name in ids}
    wrong_name = model_id.rpartition(":")[2]
    if wrong_name in bare:
        return f"nearest: {bare[wrong_name]!r}"
    phrase = nearest(model_id, ids)
    if phrase.startswith("nearest"):
        return phrase
    return f"nearest: 'hf:{model_id}'" if model_id.count("/") == 1 else f"nearest: {ids[0]!r}"
