"""Results from elsewhere as results folders of their own, so that they can be queried and drawn like ours.

An imported cell has one trial without seeds or tuning: its interval is null and no test can be made of it. The folder's
spec.json says protocol "imported" and where the numbers are from, and the report repeats it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from analysis.errors import StoreError
from analysis.statistics.published import Publication, names, publication, reference
from analysis.store.tables import write_part

Row = dict[str, Any]

PLACEHOLDER_BYTES = 99_999_999  # PEFT's image-generation results give this for files of unknown size
_PEFT_METHODS = {"LORA": "lora", "RANDLORA": "randlora", "VERA": "vera"}


def import_published(folder: Path, wanted: Sequence[str] = ()) -> Path:
    """Write published results into a new folder.

    Args:
        folder: to make.
        wanted: publications; none means all. Each becomes a sweep of its own in the folder.

    Raises:
        StoreError: unknown name, or a folder that exists.
    """
    chosen = [publication(name) for name in (wanted or names())]
    cells: list[Row] = []
    trials: list[Row] = []
    for one in chosen:
        for point in one.points:
            cell, trial = _published(one, point)
            cells.append(cell)
            trials.append(trial)
    source = "; ".join(dict.fromkeys(one.source for one in chosen))
    note = " ".join(dict.fromkeys(f"{one.title}: {one.precision}. {one.note}".strip() for one in chosen))
    return write_imported(
        folder, cells, trials, {"source": source, "note": note, "names": [one.name for one in chosen]}
    )


def import_peft(folder: Path, paths: Iterable[Path]) -> tuple[Path, list[str]]:
    """Write results of PEFT's method_comparison (JSON files, or folders of them) into a new folder.

    Returns:
        The folder, and what was left out and why, one line each. Of several files on one experiment the newest counts:
        they are reruns on one seed, not seeds.

    Raises:
        StoreError: no file at all, a file that is not such a result, or a folder that exists.
    """
    files = [f for p in paths for f in (sorted(p.glob("*.json")) if p.is_dir() else [p])]
    if not files:
        raise StoreError("no JSON file to import; give files or folders of PEFT's method_comparison/*/results")
    newest: dict[str, tuple[str, Path, Row]] = {}
    left_out = []
    for path in files:
        result = _read_json(path)
        info = result["run_info"]
        name, at = str(info["experiment_name"]), str(info.get("created_at", ""))
        if name in newest:
            older = min(newest[name][:2], (at, path))
            left_out.append(f"{older[1]}: another file has a newer run of {name}")
        if name not in newest or at > newest[name][0]:
            newest[name] = (at, path, result)
    rows = [_peft(name, path, result) for name, (_, path, result) in sorted(newest.items())]
    source = "PEFT method_comparison (github.com/huggingface/peft)"
    note = "One seed per experiment, learning rates not tuned by an equal allowance, parameters not matched."
    about = {"source": source, "note": note, "names": ["peft"]}
    return write_imported(folder, [c for c, _ in rows], [t for _, t in rows], about), left_out


def _published(one: Publication, point: Row) -> tuple[Row, Row]:
    words = [point["model"], point["dataset"], point["train_size"], point["method"], point.get("setting") or ""]
    place = {k: point[k] for k in ("model", "adapt", "dataset", "train_size", "method")}
    named = {"sweep": one.name, "cell_id": "_".join(w.replace("/", "-").replace(":", "-") for w in words if w)}
    ref = reference(point)
    count = point["adapter_params"]
    capacity = int(point["setting"]) if ref else None
    budget = {"reference": ref, "budget": count if ref else None, "capacity": capacity}
    trial = {
        **named,
        **place,
        **budget,
        "adapter_params": count,
        "test_score": point["score"],
        "seconds_train": point.get("seconds_train"),
        "peak_memory_bytes": point.get("peak_memory_bytes"),
        "stored_bytes": _beyond(point.get("file_bytes"), count),
        "versions": {"source": point["source"]},
    }
    return cell_row(named | place | budget, count), trial_row(trial)


def _peft(name: str, path: Path, result: Row) -> tuple[Row, Row]:
    info, train = result["run_info"], result["train_info"]
    config, settings = info.get("peft_config"), info.get("train_config") or {}
    kind = str(config["peft_type"]) if config else "full"
    method = "dora" if config and config.get("use_dora") else _PEFT_METHODS.get(kind, kind.lower())
    count = train.get("num_trainable_params")
    dataset = path.parent.parent.name.lower() if path.parent.name.endswith("results") else "method-comparison"
    named = {"sweep": "peft", "cell_id": name.replace("/", "_")}
    place = {"model": f"hf:{settings.get('model_id', 'unknown')}", "adapt": "all", "dataset": dataset}
    place |= {"train_size": "1.0", "method": method}
    capacity = config.get("r") if config and isinstance(config.get("r"), int) else None
    budget = {"reference": name.rsplit("/", maxsplit=1)[-1] if config else None, "budget": count if config else None}
    metrics = train.get("metrics") or []
    finished = train.get("status") == "success"
    memory = next((train[k] for k in ("accelerator_memory_max", "cuda_memory_max") if train.get(k)), None)
    meta = result.get("meta_info") or {}
    versions = {k: v for k, v in (meta.get("package_info") or {}).items() if v is not None}
    trial = {
        **named,
        **place,
        **budget,
        "capacity": capacity,
        "adapter_params": count,
        "lr": (settings.get("optimizer_kwargs") or {}).get("lr"),
        "data_seed": settings.get("seed"),
        "status": "finished" if finished else "failed",
        "reason": None if finished else str(info.get("error_msg") or train.get("status") or "did not finish"),
        "val_score": _last(metrics, "valid accuracy"),
        "test_score": _last(metrics, "test accuracy"),
        "train_loss": _last(metrics, "train loss"),
        "samples": _last(metrics, "train samples"),
        "seconds_train": train.get("train_time"),
        "seconds_total": info.get("total_time"),
        "peak_memory_bytes": memory,
        "stored_bytes": _beyond(train.get("file_size"), count),
        "device": (meta.get("system_info") or {}).get("gpu"),
        "precision": {"bfloat16": "bf16", "float32": "fp32"}.get(str(settings.get("dtype")), settings.get("dtype")),
        "started_at": info.get("created_at"),
        "versions": {**versions, "source": path.name},
    }
    return cell_row(named | place | budget | {"capacity": capacity}, count), trial_row(trial)


def _read_json(path: Path) -> Row:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file") from error
    except ValueError as error:
        raise StoreError(f"{path}: not a JSON file ({error})") from error
    whole = isinstance(found, dict) and all(isinstance(found.get(k), dict) for k in ("run_info", "train_info"))
    if not whole or "experiment_name" not in found["run_info"]:
        raise StoreError(
            f"{path}: not a result of PEFT's method_comparison; it needs run_info (with experiment_name) and train_info"
        )
    return dict(found)


def _last(metrics: Sequence[Row], key: str) -> Any:
    return next((m[key] for m in reversed(metrics) if m.get(key) is not None), None)


def _beyond(file_bytes: int | None, count: int | None) -> int | None:
    """Bytes that a saved file holds beyond the trained tensors in float32: bases; None where the size is not known."""
    if file_bytes is None or count is None or file_bytes == PLACEHOLDER_BYTES:
        return None
    return max(0, file_bytes - 4 * count)


def cell_row(values: Row, count: int | None) -> Row:
    """A row of `cells` for one imported number."""
    words = [values["method"], values["reference"] or "", values["dataset"], values["train_size"]]
    fixed = {"label": " ".join(w for w in words if w), "feasible": True, "tune_trials": 0, "confirm_seeds": 1}
    return {**values, **fixed, "count": count, "residual": 0 if values["budget"] is not None else None}


def trial_row(values: Row) -> Row:
    """Its row of `trials`: one attempt without seeds."""
    identity = json.dumps([values["sweep"], values["cell_id"]])
    fixed = {
        "trial_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "attempt": 1,
        "stage": "CONFIRM",
        "slot": 0,
    }
    return {"status": "finished", **fixed, **values}


def write_imported(folder: Path, cells: list[Row], trials: list[Row], about: Row) -> Path:
    """Write the folder; `about` is its source, a note, and names. Raises StoreError for one that exists."""
    if folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} exists; give a new folder: imported results are sweeps of their own")
    folder.mkdir(parents=True, exist_ok=True)
    write_part(folder, "cells", cells)
    write_part(folder, "trials", trials)
    spec = {"identity": {"name": folder.name, "protocol": "imported"}, "imported": about}
    (folder / "spec.json").write_text(json.dumps(spec, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    event = {"ev": "sweep", "name": ", ".join(about["names"]), "imported from": about["source"]}
    (folder / "journal.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    return folder
