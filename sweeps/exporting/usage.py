"""Writes the README.md of an exported model: what it is, and code that loads it and predicts with it."""

from __future__ import annotations

import inspect
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard
from jinja2 import Environment, StrictUndefined
from torch import nn

from analysis.format import percent
from analysis.sheets.markdown import code
from randlora.adapted.adapted import Adapted
from randlora.methods.bridge.installed import PREFIX as PEFTS_OWN
from randlora.methods.prompts.entry import replaced_words
from randlora.methods.prompts.kinds import WORDS
from randlora.methods.prompts.learners import CoCoOp
from randlora.model.families import family_name
from randlora.model.prompted import PLACE
from sweeps.exporting.card import model_metadata, results_section, scored_cell
from sweeps.exporting.kept import KeptTrial
from trainables.config import FULL_METHODS
from trainables.data.text import prompts
from trainables.models.encoders import FIRST_TOKEN, ClassifierHead, TransferHead
from trainables.models.families import parse_id
from trainables.models.loading import quick_gelu
from trainables.models.shapes import is_open_clip
from trainables.predicting.facts import ANSWER, Facts
from trainables.predicting.trained import Trained
from trainables.tasks.images.prompts import TRANSFER_WEIGHT

QUANTISATION: dict[str, dict[str, object]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "int8": {"load_in_8bit": True},
}
"""For each packed kind of `train.base_weights`: the arguments of transformers' `BitsAndBytesConfig` that load it."""
_HEADS = {nn.Linear: "linear", ClassifierHead: "deep", TransferHead: "transfer"}


def hub_name(model: str) -> str | None:
    """Return the name of a base model for transformers and PEFT: its folder or its name on the Hub; None for others."""
    parsed = parse_id(model)
    if parsed.gguf is not None or parsed.fused:
        return None
    if parsed.folder is not None:
        return str(parsed.folder.absolute())
    return parsed.name if parsed.scheme == "hf" else None


def write_usage(kept: KeptTrial, trained: Trained, to: Path, form: str, licence: str | None = None) -> None:
    """Write README.md: metadata, results and code. The text of a PEFT adapter's own card comes before the results."""
    card, path = "", to / "README.md"
    if form == "peft" and not kept.config.method.startswith(PEFTS_OWN):  # PEFT's own card is only an empty form
        card = RepoCard(path.read_text(encoding="utf-8")).text.strip()  # without its metadata
    environment = Environment(  # for Markdown, in which names are Python literals or in backticks
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701
    )
    template = resources.files("sweeps.exporting").joinpath("usage.md.jinja").read_text(encoding="utf-8")
    cell = scored_cell(kept)
    results = results_section(kept, cell)
    text = environment.from_string(template).render(card=card, results=results, **_template_values(kept, trained, form))
    path.write_text(f"{model_metadata(kept, cell, trained.facts.kind, form, licence)}\n{text}", "utf-8")


def _template_values(kept: KeptTrial, trained: Trained, form: str) -> dict[str, Any]:
    """Return the values for the template."""
    facts = trained.facts
    module = trained.loaded.module
    head = trained.head
    parameters = inspect.signature(module.forward).parameters
    values = {
        "about": _about(kept, form),
        "title": code(kept.name),
        "form": form,
        "method": kept.config.method,
        "kind": facts.kind,
        "auto": "AutoModelForCausalLM" if facts.kind == "causal-lm" else "AutoModel",
        "adapted": trained.adapted is not None,
        "whole": kept.config.method in FULL_METHODS,
        "held": "fp32" if form == "merged" else kept.config.train.base_weights,  # merged weights are rounded
        "quantisation": ", ".join(
            f"{name}={value!r}" for name, value in QUANTISATION.get(kept.config.train.base_weights, {}).items()
        ),
        "gguf": parse_id(facts.model).gguf is not None,
        "head": None if head is None else _HEADS[type(head)],
        "prompts": _prompts(trained.adapted),
        "replaced": _count_replaced_words(trained.adapted),
        "words": WORDS,
        "transfer": TRANSFER_WEIGHT,
        "classes": facts.classes,
        "pair": facts.pair,
        "vector": _vector(module),
        "interpolate": "interpolate_pos_encoding" in parameters,
        "typed": "token_type_ids" in parameters,
        "bos_between": facts.bos_between,
        "chat": facts.chat,
        "generation": facts.generation,
        "rule": facts.generation.get("no_repeat_ngram"),
        **_example(facts),
        **_bases(facts.model, form),
    }
    if (look := facts.look) is not None:
        values |= {"side": look.recipe.size, "squash": look.recipe.resize_mode == "squash"}
        values |= {"interpolation": look.recipe.interpolation.upper(), "mean": look.mean, "std": look.std}
    return values


def _prompts(adapted: Adapted | None) -> str | None:
    """Return "fixed" if a method's prompts are the same for all images, or "conditional"; None if it has no prompts."""
    if adapted is None or not adapted.method.prompts:
        return None
    return "conditional" if isinstance(adapted.adapters[PLACE], CoCoOp) else "fixed"


def _count_replaced_words(adapted: Adapted | None) -> int | None:
    """Return how many words of `WORDS` are replaced by learnt vectors; None if no words are replaced."""
    if adapted is None or not adapted.method.prompts:
        return None
    replaced = replaced_words(adapted.config)
    return replaced if replaced is not None and replaced <= len(WORDS.split()) else None


def _about(kept: KeptTrial, form: str) -> str:
    row = kept.row
    budget = f" at {code(row['reference'])}" if row["reference"] else ""
    score = "" if row["val_score"] is None else f" Its validation score was {percent(row['val_score'])}."
    held = kept.config.train.base_weights
    base = ""
    if held in QUANTISATION:
        base = (
            f" Its base weights were in {held} in training (bitsandbytes: the linear layers except the output layer)."
        )
        if form == "merged":
            base += " They are float32 here: read back from that precision, with the trained change added."
    trial = (
        f"{code(row['method'])}{budget}, trained on {code(row['dataset'])} ({code(row['train_size'])}) from the "
        f"base model {code(row['model'])}: trial {code(row['trial_id'])} of the sweep {code(row['sweep'])}."
    )
    return trial + score + base


def _vector(module: nn.Module) -> str:
    """Return Python code for the vector that `encoders.pooled` reads from `outputs`."""
    return (
        "outputs.last_hidden_state[:, 0]" if family_name(module) in FIRST_TOKEN else "outputs.pooler_output.flatten(1)"
    )


def _example(facts: Facts) -> dict[str, Any]:
    """Return a prompt, and the responses to choose from, as Python code."""
    responses = [str(facts.response).replace(ANSWER, label) for label in ("true", "false")]
    chosen = facts.rows == "instructions" and facts.response is not None
    prompt_text = "Is water wet?\n\nAnswer format: true/false"
    if facts.rows == "meanings":
        prompt_text = prompts.meaning("name[Alimentum], eatType[pub]")  # the form that the model was trained on
    return {"example": repr(prompt_text), "choices": repr(responses) if chosen else ""}


def _bases(model: str, form: str) -> dict[str, str]:
    """Return Python code for the names from which the base model and open_clip's tokenizer are loaded."""
    parsed = parse_id(model)
    if form == "merged":
        return {"base": 'f"local-dir:{folder}"', "tokenizer": 'f"local-dir:{folder}"'} | (
            {} if is_open_clip(parsed, model) else {"base": "folder"}
        )
    if not is_open_clip(parsed, model):
        place = str(parsed.folder.absolute()) if parsed.folder is not None else parsed.name
        return {"base": repr(place) + (f", gguf_file={parsed.gguf!r}" if parsed.gguf else ""), "tokenizer": ""}
    if parsed.folder is not None:
        place = repr(f"local-dir:{parsed.folder.absolute()}")
        return {"base": place, "tokenizer": place}
    quick = ", force_quick_gelu=True" if quick_gelu(parsed) else ""
    return {"base": f"{parsed.name!r}, pretrained={parsed.tag!r}{quick}", "tokenizer": repr(parsed.name)}
