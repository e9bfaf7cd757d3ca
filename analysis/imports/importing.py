"""Write results from elsewhere into separate results folders, so that they can be queried and drawn like ours.

An imported cell has one trial without seeds or tuning. So its interval is null, and it cannot be tested. The folder's
spec.json has the protocol "imported" and the source of the numbers. The report repeats both.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from analysis.errors import StoreError
from analysis.findings.published.publications import Publication, publication, publication_names, published_reference
from analysis.format import Row
from analysis.store.tables import write_part

Imported = tuple[Row, Row]
"""The row of `cells` and the row of `trials` for one number."""

PLACEHOLDER_BYTES = 99_999_999  # PEFT's image-generation results give this for files of unknown size
_PEFT_METHODS = {"LORA": "lora", "RANDLORA": "randlora", "VERA": "vera"}


def import_published(folder: Path, wanted: Sequence[str] = ()) -> Path:
    """Write published results into a new folder.

    Args:
        folder: the folder to make.
        wanted: names of publications; all if empty. Each becomes a separate sweep in the folder.

    Raises:
        StoreError: a name is unknown, or the folder exists.
    """
    chosen = [publication(name) for name in (wanted or publication_names())]
    rows = [_published(source_table, point) for source_table in chosen for point in source_table.points]
    source = "; ".join(dict.fromkeys(source_table.source for source_table in chosen))
    note = " ".join(
        dict.fromkeys(
            f"{source_table.title}: {source_table.precision}. {source_table.note}".strip() for source_table in chosen
        )
    )
    return write_imported(
        folder, rows, {"source": source, "note": note, "names": [source_table.name for source_table in chosen]}
    )


def import_peft(folder: Path, paths: Iterable[Path]) -> tuple[Path, list[str]]:
    """Write results of PEFT's method_comparison (JSON files, or folders of them) into a new folder.

    Returns:
        The folder, and a line for each file that was left out, with the reason. If there are several files on one
        experiment, the newest counts: they are reruns on one seed, not different seeds.

    Raises:
        StoreError: there is no file, no file has a test accuracy, a file is no such result, or the folder exists.
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
        metrics = result["train_info"].get("metrics") or []
        if result["train_info"].get("status") == "success" and _last(metrics, "test accuracy") is None:
            others = ", ".join(metrics[-1]) if metrics else "none"
            left_out.append(f"{path}: has no test accuracy; its last metrics: {others}")
            continue
        if name in newest:
            older = path if at <= newest[name][0] else newest[name][1]
            left_out.append(f"{older}: another file has {name} too, run later or at the same time")
        if name not in newest or at > newest[name][0]:
            newest[name] = (at, path, result)
    if not newest:
        raise StoreError(f"nothing to import: {left_out[0]}")
    rows = [_peft(name, path, result) for name, (_, path, result) in sorted(newest.items())]
    source = "PEFT method_comparison (github.com/huggingface/peft)"
    note = "One seed per experiment, learning rates not tuned by an equal allowance, parameters not matched."
    return write_imported(folder, rows, {"source": source, "note": note, "names": ["peft"]}), left_out


def _published(one: Publication, point: Row) -> Imported:
    words = [point["model"], point["dataset"], point["train_size"], point["method"], point.get("setting") or ""]
    name = "_".join(w.replace("/", "-").replace(":", "-") for w in words if w)
    ref, count = published_reference(point), point["adapter_params"]
    cell = {
        **{k: point[k] for k in ("model", "adapt", "dataset", "train_size", "method")},
        "sweep": one.name,
        "cell_id": name,
        "reference": ref,
        "capacity": int(point["setting"]) if ref else None,
    }
    trial = {
        "test_score": point["score"],
        "seconds_train": point.get("seconds_train"),
        "peak_memory_bytes": point.get("peak_memory_bytes"),
        "stored_bytes": _beyond(point.get("file_bytes"), count),
        "versions": {"source": point["source"]},
    }
    return imported(cell, count, trial)


def _peft(name: str, path: Path, result: Row) -> Imported:
    info, train = result["run_info"], result["train_info"]
    config, settings = info.get("peft_config"), info.get("train_config") or {}
    kind = str(config["peft_type"]) if config else "full"
    method = "dora" if config and config.get("use_dora") else _PEFT_METHODS.get(kind, kind.lower())
    count = train.get("num_trainable_params")
    dataset = path.parent.parent.name.lower() if path.parent.name.endswith("results") else "method-comparison"
    cell = {
        "sweep": "peft",
        "cell_id": name.replace("/", "_"),
        "model": f"hf:{settings.get('model_id', 'unknown')}",
        "adapt": "all",
        "dataset": dataset,
        "train_size": "1.0",
        "method": method,
        "reference": name if config else None,  # whole: methods with a setting of one name are not at one budget
        "capacity": config.get("r") if config and isinstance(config.get("r"), int) else None,
    }
    metrics = train.get("metrics") or []
    finished = train.get("status") == "success"
    memory = next((train[k] for k in ("accelerator_memory_max", "cuda_memory_max") if train.get(k)), None)
    meta = result.get("meta_info") or {}
    system = meta.get("system_info") or {}
    versions = {k: v for k, v in (meta.get("package_info") or {}).items() if v is not None}
    trial = {
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
        "device": system.get("accelerator") or system.get("gpu"),
        "precision": {"bfloat16": "bf16", "float32": "fp32"}.get(str(settings.get("dtype")), settings.get("dtype")),
        "started_at": info.get("created_at"),
        "versions": {**versions, "source": path.name},
    }
    return imported(cell, count, trial)


def _read_json(path: Path) -> Row:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not a JSON file ({error})") from error
    has_sections = isinstance(document, dict) and all(
        isinstance(document.get(k), dict) for k in ("run_info", "train_info")
    )
    if not has_sections or "experiment_name" not in document["run_info"]:
        raise StoreError(
            f"{path}: not a result of PEFT's method_comparison; it needs run_info (with experiment_name) and train_info"
        )
    return dict(document)


def _last(metrics: Sequence[Row], key: str) -> Any:
    return next((m[key] for m in reversed(metrics) if m.get(key) is not None), None)


def _beyond(file_bytes: int | None, count: int | None) -> int | None:
    """Return the bytes of a saved file beyond the trained tensors in float32, or None if the size is not known."""
    if file_bytes is None or count is None or file_bytes == PLACEHOLDER_BYTES:
        return None
    return max(0, file_bytes - 4 * count)


def imported(cell: Row, count: int | None, trial: Row) -> Imported:
    """Return the two rows of one number: its cell, and one attempt without seeds.

    Args:
        cell: the columns that both rows have. `budget` becomes the count if there is a `reference`.
        count: the number of trained parameters, or None if it is not known.
        trial: the further columns of the attempt.
    """
    cell = {**cell, "budget": count if cell["reference"] else None}
    words = [cell["method"], cell["reference"] or "", cell["dataset"], cell["train_size"]]
    planned = {
        "label": " ".join(w for w in words if w),
        "feasible": True,
        "tune_trials": 0,
        "confirm_seeds": 1,
        "count": count,
        "residual": 0 if cell["budget"] is not None else None,
    }
    identity = json.dumps([cell["sweep"], cell["cell_id"]])
    attempt = {
        "trial_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "attempt": 1,
        "stage": "CONFIRM",
        "slot": 0,
        "status": "finished",
        "adapter_params": count,
    }
    return cell | planned, cell | attempt | trial


def write_imported(folder: Path, rows: Sequence[Imported], about: Row) -> Path:
    """Write the rows into a new folder. `about` has their source, a note, and the names of the sweeps.

    Raises:
        StoreError: the folder exists, or a value does not fit its column. Then no folder is left.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} exists; give a new folder: imported results are sweeps of their own")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)  # half a folder would be in the next try's way
        write_part(folder, "cells", [cell for cell, _ in rows])
        write_part(folder, "trials", [trial for _, trial in rows])
        spec = {"identity": {"name": folder.name, "protocol": "imported"}, "imported": about}
        (folder / "spec.json").write_text(json.dumps(spec, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        event = {"ev": "sweep", "name": ", ".join(about["names"]), "imported from": about["source"]}
        (folder / "journal.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
        undo.pop_all()
    return folder
