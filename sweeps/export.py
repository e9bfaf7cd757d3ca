"""Take a trained adapter out of a results folder: as it is, as a PEFT folder, or merged into the base weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from analysis import open_store
from sweeps.errors import Problem, SpecError, nearest, unknown
from sweeps.spec import SweepSpec

FORMS = ("adapter", "peft", "merged")


def export_trial(folder: Path, trial: str, to: Path, form: str = "adapter") -> Path:
    """Write one kept adapter of a results folder.

    Args:
        folder: the results folder.
        trial: trial id, or an unambiguous beginning of one.
        to: folder to write; must not exist yet.
        form: 'adapter' (randlora's own: trained tensors, seeds, digest), 'peft' (loadable by PEFT), or 'merged'
            (the whole base model with the delta added, as safetensors).

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
    from trainables.models import load_model

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
        return to
    adapted.merge()
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    return to


def write_spec(spec: SweepSpec) -> Path:
    """Keep the whole sweep file beside its results, as `sweep.json`: what `sweeps run` takes to do it again."""
    path = spec.folder / "sweep.json"
    tree = spec.model_dump(mode="json", exclude_none=True)
    if spec.search.allowance is not None:
        del tree["search"]["trials"]  # a file has one of the two
    text = json.dumps(tree, indent=2)
    draft = path.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
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
