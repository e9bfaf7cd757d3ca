"""Take a trained adapter out of a results folder: as it is, as a PEFT folder, or merged into the base weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from analysis import open_store
from sweeps.errors import Problem, SpecError, nearest, unknown
from sweeps.records.journal import write_atomically
from sweeps.spec.spec import SweepSpec

FORMS = ("adapter", "peft", "merged")


def export_trial(folder: Path, trial: str, to: Path, form: str = "adapter") -> Path:
    """Write one kept adapter of a results folder.

    Args:
        folder: the results folder.
        trial: trial id, or an unambiguous beginning of one.
        to: folder to write; must not exist yet.
        form: 'adapter' (randlora's own: trained tensors, seeds, digest), 'peft' (loadable by PEFT), or 'merged'
            (the whole base model with the delta added, as safetensors; of transformers' models a folder that loads).

    Raises:
        SpecError: unknown form or trial, an adapter that was not kept, a target that exists, or a method and form that
            do not go together.
    """
    if form not in FORMS:
        raise SpecError([unknown("--form", form, "form", FORMS)])
    if to.exists():
        raise SpecError([Problem("to", str(to), "exists; give a new folder")])
    kept = folder / "adapters"
    ids = sorted(p.name for p in kept.iterdir()) if kept.is_dir() else []
    row = _row(folder, trial, ids)
    source = kept / row["trial_id"]
    if form == "adapter":
        shutil.copytree(source, to)
        return to
    from safetensors.torch import save_file

    import randlora
    from trainables.models.loading import load_model

    module: Any = load_model(row["model"]).module
    adapted = randlora.load(module, source)
    to.mkdir(parents=True)
    if form == "peft":
        try:
            adapted.export_peft(to)
        except ValueError as error:
            to.rmdir()
            reason = f"PEFT can't hold this adapter ({str(error).partition(';')[0]})"
            raise SpecError([Problem("--form", form, reason, "--form merged")]) from error
        _name_base(to / "adapter_config.json", module, row["model"])
        return to
    adapted.merge()
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    _complete(to, module, row["model"])
    return to


def _base(model: str) -> str | None:
    """What transformers and PEFT call a base model: its folder or its name on the hub; None for other ids."""
    scheme, _, rest = model.partition(":")
    if scheme == "local" and Path(rest).expanduser().is_dir():
        return str(Path(rest).expanduser().absolute())
    return rest if scheme == "hf" and not rest.endswith(".gguf") else None


def _name_base(path: Path, module: Any, model: str) -> None:
    """Say in PEFT's file which model the adapter is for, so that its `Auto...` classes find it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = _base(model)
    if type(module).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        config["task_type"] = "CAUSAL_LM"
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _complete(to: Path, module: Any, model: str) -> None:
    """Make merged weights of a transformers model a folder that loads: its config, and a local model's tokenizer."""
    config, base = getattr(module, "config", None), _base(model)
    if config is None or not hasattr(config, "save_pretrained"):
        return
    config.save_pretrained(to)
    for pattern in ("token*", "special_tokens_map.json", "vocab*", "merges.txt", "preprocessor_config.json"):
        for path in Path(base).glob(pattern) if base and model.startswith("local:") else ():
            shutil.copy(path, to)


def write_spec(spec: SweepSpec) -> Path:
    """Keep the whole sweep file beside its results, as `sweep.json`: what `sweeps run` takes to do it again."""
    path = spec.folder / "sweep.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = spec.model_dump(mode="json", exclude_none=True)
    if spec.search.allowance is not None:
        del tree["search"]["trials"]  # a file has one of the two
    write_atomically(path, json.dumps(tree, indent=2))
    return path


def _row(folder: Path, trial: str, kept: list[str]) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {r["trial_id"]: r for r in open_store(folder).table("trials").to_pylist()}
    found = [i for i in rows if i.startswith(trial)]
    if not trial or len(found) != 1:
        rule = f"matches {len(found)} trials; one is needed" if trial and found else "no such trial"
        raise SpecError([Problem("trial", trial, rule, ", ".join((found or kept)[:5]) or nearest(trial, rows))])
    if found[0] not in kept:
        rule = 'its adapter was not kept; set [keep] adapters = "best", "confirm" or "all" before the sweep runs'
        raise SpecError([Problem("trial", trial, rule, kept[0] if kept else None)])
    return rows[found[0]]
