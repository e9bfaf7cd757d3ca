"""Writes the cards (README.md) of a trained model and of a data set of results.

A card begins with the metadata that the Hub reads. Below it stands what a reader needs to judge the scores: budget,
intervals over seeds, the verdict against the baseline, and the sweep file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from analysis import Store, open_store
from analysis.findings.all import sheets
from analysis.findings.answer.answer import conclusion_of
from analysis.findings.results.numbers import results_table
from analysis.format import Row, change_text, percent, plural, score_text
from analysis.sheets.markdown import code, escaped, markdown, markdown_table
from analysis.store.columns import limited
from analysis.styles import budget_text, style
from analysis.verdict.runs import score_name
from analysis.verdict.verdicts import verdict_text
from randlora.methods.bridge.installed import PREFIX as PEFTS_OWN
from sweeps.exporting.kept import KeptTrial
from trainables.config import FULL_METHODS
from trainables.data.facts import facts_of
from trainables.models.families import Kind, parse_id

TAG = "randlora-sweeps"
_TASKS: dict[Kind, str] = {
    "clip": "image-classification",
    "hf-vision": "image-classification",
    "text-encoder": "text-classification",
    "causal-lm": "text-generation",
}
_LIBRARIES = {"peft": "peft", "merged": "transformers"}
"""The library that loads the weights of a form. The form `adapter` is missing: this package alone loads it."""
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def _licence_of(dataset: str) -> str | None:
    """Return the licence of a registered data set; None for another one."""
    info = facts_of(dataset)
    return None if info is None else info.licence


def _hub_names(dataset: str) -> list[str]:
    """Return the names that a data set has on the Hub; empty if it does not come from the Hub."""
    form, _, name = dataset.partition(":")
    if form == "hf":
        return [name]
    info = None if "@" in dataset else facts_of(dataset)
    return _ON_HUB.findall(info.source.place) if info is not None and info.source.place.startswith("hub ") else []


def model_metadata(kept: KeptTrial, cell: Row | None, kind: Kind, form: str, licence: str | None) -> str:
    """Return the metadata block of a model's card. `cell`: from `scored_cell`."""
    row, base = kept.row, parse_id(kept.row["model"])
    library = "open_clip" if form == "merged" and kind == "clip" else _LIBRARIES.get(form)
    data = ModelCardData(
        base_model=base.name if base.scheme == "hf" else None,
        datasets=_hub_names(row["dataset"]) or None,
        library_name=library,
        license=licence,
        model_name=kept.name if cell is not None else None,
        pipeline_tag=_TASKS[kind],
        tags=[TAG, row["method"].removeprefix(PEFTS_OWN)],
        eval_results=None if cell is None else [_result(cell, kept, _TASKS[kind])],
    )
    if data.base_model is not None:
        data["base_model_relation"] = "finetune" if row["method"] in FULL_METHODS or form == "merged" else "adapter"
    return f"---\n{data.to_yaml()}\n---\n"


def _result(cell: Row, kept: KeptTrial, task: str) -> EvalResult:
    """Return the cell's mean test score. Its interval is in the name, since the Hub's form has no field for it."""
    measure = score_name(open_store(kept.results), cell["dataset"])
    interval = "" if cell["low"] is None else f", 95 % interval {percent(cell['low'])} to {percent(cell['high'])}"
    return EvalResult(
        task_type=task,
        dataset_type=(_hub_names(cell["dataset"]) or [cell["dataset"]])[0],
        dataset_name=cell["dataset"],
        dataset_split="test",
        metric_type=measure.removeprefix("test "),
        metric_value=round(100 * cell["mean"], 4),
        metric_name=f"{measure} in percent, mean of {plural(cell['n'], 'seed')}{interval}",
    )


def scored_cell(kept: KeptTrial) -> Row | None:
    """Return the row of `results_table` with the scores of the trial's cell; None if the cell has no score."""
    same = ("sweep", "model", "dataset", "train_size", "method", "reference")
    rows: list[Row] = results_table(open_store(kept.results)).to_pylist()
    return next((r for r in rows if r["n"] and all(r[name] == kept.row[name] for name in same)), None)


def results_section(kept: KeptTrial, cell: Row | None) -> str:
    """Return the scores of a card, as Markdown; empty without a scored cell. `cell`: from `scored_cell`."""
    if cell is None:
        return ""
    store = open_store(kept.results)
    table = markdown_table(("", ""), _table_rows(store, kept, cell))
    answer = escaped(conclusion_of(store).answer)
    return (
        f"## Results\n\n{table}\nThe answer of the whole sweep: {answer}\n\n"
        "Intervals of scores are 95 % intervals over seeds. The interval of a difference accounts for the choice of "
        f"learning rates and for multiple comparisons. {_selection_text(store)}\n{_sweep_file(kept.results)}"
    )


def _selection_text(store: Store) -> str:
    """Return a sentence on how the learning rates were chosen."""
    if store.protocol == "paper":
        return "Learning rates are published ones, and training used the validation examples too."
    return "Validation scores chose the learning rates; test scores chose nothing."


def _table_rows(store: Store, kept: KeptTrial, cell: Row) -> Iterator[tuple[str, str]]:
    """Yield the rows of a card's table, each as (name, text)."""
    row, licence = kept.row, _licence_of(cell["dataset"])
    yield "base model", code(row["model"])
    terms = "" if licence is None else f" (licence: {licence})"
    yield "data", f"{code(row['dataset'])}, training size {code(row['train_size'])}{terms}"
    if cell["reference"] is not None:
        aimed = f"{budget_text(cell['reference'])}: {cell['budget']:,} {limited([cell['reference']])}"
        yield "budget", f"{aimed}; this adapter trains {cell['adapter_params']:,} parameters"
    elif cell["adapter_params"]:
        yield "trained parameters", f"{cell['adapter_params']:,}"
    if cell["lr"] is not None:
        tried = store.table("tuned").to_pylist()
        points = next((r["points_tried"] for r in tried if r["cell_id"] == row["cell_id"]), None)
        yield "learning rate", f"{cell['lr']:.4g}" + (f", chosen among {points}" if points else "")
    measure = score_name(store, cell["dataset"])
    yield f"{measure}, %", f"{score_text(cell)}, mean of {plural(cell['n'], 'seed')}"
    if row["test_score"] is not None:
        yield f"{measure} of this trial, %", percent(row["test_score"])
    if cell["difference"] is not None:
        against = style(cell["baseline"]).name
        yield f"minus {against} at this budget", f"{change_text(cell)} points, {verdict_text(cell['verdict'])}"
    if cell["weak"]:
        yield "weak evidence", escaped(cell["weak"])


def _sweep_file(results: Path) -> str:
    """Return the sweep file as a section of Markdown; "" if the folder has none."""
    path = results / "sweep.json"
    if not path.is_file():
        return ""
    text = json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=1)
    summary = "The sweep file, `sweep.json`; `sweeps run sweep.json` runs it again"
    return f"\n<details><summary>{summary}</summary>\n\n```json\n{text}\n```\n\n</details>\n"


def dataset_card(store: Store, tables: list[str], licence: str | None, repo: str | None) -> str:
    """Return the card of a results folder as a data set, in which each table is a configuration."""
    name = str((store.spec() or {}).get("name", store.path.name))
    data = DatasetCardData(
        license=licence,
        pretty_name=f"Results of the sweep {name}",
        tags=[TAG],
        configs=[{"config_name": t, "data_files": f"tables/{t}/*.parquet"} for t in tables],
    )
    place = "FOLDER" if repo is None else f"hf://datasets/{repo}"
    results = sheets(store).get("results")
    table = "" if results is None else f"\n{markdown(results)}"
    return (
        f"---\n{data.to_yaml()}\n---\n\n# Results of the sweep {code(name)}\n\n"
        f"{escaped(conclusion_of(store).answer)}\n{table}\n"
        f"## Read them\n\n```\nsweeps best {place}\nsweeps query {place} scaling\n```\n\n"
        "The tables are Parquet files; `datasets` reads each as a configuration, such as `trials`. "
        f"They are described in the documentation of randlora-sweeps.\n{_sweep_file(store.path)}"
    )
