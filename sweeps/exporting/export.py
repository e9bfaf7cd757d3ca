"""Exports a trained model from a results folder: as it is, as a PEFT folder, or merged into the base weights.

Every form has everything needed to predict: head, names of classes, prompts, preprocessing and tokenizer, and a
README.md with code that loads it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from randlora.errors import ExportError
from randlora.files.checkpoint import META
from randlora.methods.registry import get_method
from sweeps.errors import Problem, SpecError, unknown
from sweeps.exporting.kept import KeptTrial
from sweeps.exporting.usage import hub_name, write_usage
from sweeps.records.journal import write_atomically
from sweeps.spec.batch_sizes import batch_sizes
from sweeps.spec.spec import SweepSpec
from trainables.models.encoders import HEAD_FILE
from trainables.models.families import FUSED, parse_id
from trainables.models.loading import Preprocess, no_progress_bar, quick_gelu
from trainables.predicting.trained import Trained, load_trained
from trainables.tasks.text.learned import chat_template

FORMS = ("adapter", "peft", "merged")

OPEN_CLIP_WEIGHTS, OPEN_CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def export_trial(kept: KeptTrial, to: Path, form: str = "adapter", licence: str | None = None) -> Path:
    """Write a kept trial into a folder, for use without its results folder. After an error there is no folder.

    Args:
        kept: the trial.
        to: the folder to write. It must not exist yet.
        form: 'adapter' (the trained weights in randlora's form), 'peft' (loadable by PEFT), or 'merged' (the whole base
            model with the delta added: a folder that transformers or open_clip loads, and `local:` here).
        licence: the Hub's identifier of the licence, for the card.

    Returns:
        The folder.

    Raises:
        SpecError: the form is unknown, `to` exists, or the method cannot be written in this form.
    """
    if form not in FORMS:
        raise SpecError([unknown("--form", form, "form", FORMS)])
    if to.exists():
        raise SpecError([Problem("to", str(to), "exists; give a new folder")])
    if form == "peft" and not (kept.folder / META).is_file():
        rule = f"{kept.row['method']} trains no adapter that PEFT could hold"
        raise SpecError([Problem("--form", form, rule, "--form merged")])
    if form == "merged" and (kept.folder / META).is_file() and not get_method(kept.config.method).mergeable:
        rule = f"the update of {kept.row['method']} depends on the input or is an input, so it can't be merged"
        raise SpecError([Problem("--form", form, rule, "--form adapter")])
    if parse_id(kept.config.model).fused:
        rule = f"its base model has q, k and v as one weight ({FUSED}), which no other library loads"
        raise SpecError([Problem("model", kept.config.model, rule, kept.config.model.removesuffix(FUSED))])
    trained = load_trained(kept.config, kept.folder)
    draft = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    draft.mkdir(parents=True)
    try:
        _WRITERS[form](kept, trained, draft)
        _write_further_files(kept, trained, draft)
        write_usage(kept, trained, draft, form, licence)
        draft.rename(to)
    except BaseException:
        shutil.rmtree(draft)
        raise
    return to


def check_shareable(kept: KeptTrial, form: str) -> None:
    """Check that the weights can be loaded on another machine.

    Raises:
        SpecError: the base model is a folder on this machine, and the form does not contain it.
    """
    model = kept.row["model"]
    if form != "merged" and parse_id(model).scheme == "local":
        rule = f"needs the base model, and {model} is a folder of this machine, which nobody else has"
        raise SpecError([Problem("--push", None, rule, "--form merged")])


def _adapter(kept: KeptTrial, trained: Trained, to: Path) -> None:
    shutil.copytree(kept.folder, to, dirs_exist_ok=True)


def _peft(kept: KeptTrial, trained: Trained, to: Path) -> None:
    assert trained.adapted is not None
    try:
        trained.adapted.export_peft(to)
    except ExportError as error:
        reason = f"PEFT can't hold this adapter ({str(error).partition(';')[0]})"
        nearest = "--form merged" if trained.adapted.method.mergeable else "--form adapter"
        raise SpecError([Problem("--form", "peft", reason, nearest)]) from error
    # PEFT's `Auto...` classes find the base model by this
    path = to / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = hub_name(trained.facts.model)
    if trained.facts.kind == "causal-lm":
        config["task_type"] = "CAUSAL_LM"
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _merged(kept: KeptTrial, trained: Trained, to: Path) -> None:
    if trained.adapted is not None:
        trained.adapted.detach(keep_merged=True)
    module: Any = trained.loaded.module
    if trained.facts.kind != "clip":
        with no_progress_bar():
            module.save_pretrained(to)
        return
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, to / OPEN_CLIP_WEIGHTS, metadata={"format": "pt"})
    (to / OPEN_CLIP_CONFIG).write_text(json.dumps(_open_clip_config(trained), indent=2) + "\n", encoding="utf-8")
    inner: Any = getattr(trained.loaded.tokenizer, "tokenizer", None)  # that of transformers; open_clip brings its own
    if hasattr(inner, "save_pretrained"):
        inner.save_pretrained(to)


_WRITERS = {"adapter": _adapter, "peft": _peft, "merged": _merged}


def _open_clip_config(trained: Trained) -> dict[str, Any]:
    """Return the configuration of model and images, as a folder of open_clip has it."""
    import open_clip

    parsed, module = parse_id(trained.facts.model), trained.loaded.module
    if parsed.folder is not None:
        stored: dict[str, Any] = json.loads((parsed.folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
        return stored
    model = dict(open_clip.get_model_config(parsed.name))
    if quick_gelu(parsed):
        model["quick_gelu"] = True
    settings: Any = module.visual.preprocess_cfg  # type: ignore[union-attr]
    keys = ("mean", "std", "interpolation", "resize_mode")
    return {"model_cfg": model, "preprocess_cfg": {key: settings[key] for key in keys if settings.get(key) is not None}}


def _write_further_files(kept: KeptTrial, trained: Trained, to: Path) -> None:
    """Write facts, head, tokenizer, image processor and sweep file, as transformers and `local:` read them."""
    trained.facts.write(to)
    if (kept.results / "sweep.json").is_file():
        shutil.copy(kept.results / "sweep.json", to)
    if (kept.folder / HEAD_FILE).is_file():
        shutil.copy(kept.folder / HEAD_FILE, to)
    if trained.loaded.text_tokenizer is not None:
        tokenizer: Any = trained.loaded.text_tokenizer
        if trained.facts.chat:  # with a fixed date, as in training
            tokenizer.chat_template = chat_template(tokenizer, "the export", trained.facts.model)
        tokenizer.save_pretrained(to)
    if trained.facts.kind == "hf-vision" and trained.facts.look is not None:
        settings = _image_processor(trained.facts.look)
        (to / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _image_processor(look: Preprocess) -> dict[str, Any]:
    """Return the settings of an image processor of transformers that prepares an image like `look`."""
    side, square = look.recipe.size, {"height": look.recipe.size, "width": look.recipe.size}
    shape: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": square}
    if look.recipe.resize_mode != "squash":
        shape = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side}}
        shape |= {"do_center_crop": True, "crop_size": square}
    return shape | {
        "do_resize": True,
        "resample": 2 if look.recipe.interpolation == "bilinear" else 3,  # PIL's numbers
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": look.mean,
        "image_std": look.std,
    }


def write_spec(spec: SweepSpec) -> Path:
    """Write the whole sweep file as `sweep.json` into the results folder, so that `sweeps run` can run it again."""
    path = spec.folder / "sweep.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = spec.model_dump(mode="json", exclude_none=True)
    if spec.search.allowance is not None:
        del tree["search"]["trials"]  # a file has either an allowance or a number of trials
    if (sizes := batch_sizes(spec)) and spec.train.global_batch_size not in sizes:
        del tree["train"]["global_batch_size"]  # the default, which a file with searched batch sizes may not name
    write_atomically(path, json.dumps(tree, indent=2))
    return path
