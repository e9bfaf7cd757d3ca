"""The verb `init`: writes a commented sweep file to start from, with your own data and model, or an example."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from sweeps.cli.options import Json
from sweeps.cli.printing import emit, out, print_named
from sweeps.errors import Problem, SpecError, unknown


def init(
    path: Annotated[Path | None, typer.Argument(help="File to write; default: sweep.toml, or NAME.toml.")] = None,
    example: Annotated[
        str | None, typer.Option(help="Write an example instead: quickstart, paper/fig1-clip, ...")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the examples; write nothing.")] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Data set for the file: folder:DIR, cifar100, json:DIR, or a folder of text files."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model for the file: open_clip:ARCH/TAG, hf:ORG/NAME, local:DIR.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep, and so of its results folder.")] = None,
    schema: Annotated[
        bool,
        typer.Option("--schema", help="Write the JSON schema of sweep files instead; editors complete keys with it."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented sweep file to start from, or an example.

    --data and --model put your own data set and model into the file. If the data are text files, the command finds out
    which columns they have and writes the names into the data set's id.
    """
    from sweeps.spec.reading import READERS
    from sweeps.spec.schema import FILE, schema_text

    if schema:
        others = {"--data": data, "--model": model, "--name": name, "--example": example, "--list": listed}
        if given := [option for option, value in others.items() if value]:
            raise SpecError([Problem(option, None, "has no effect with --schema; leave one out") for option in given])
        to = path or Path(FILE)
        _refuse_existing(to, force)
        to.write_text(schema_text(), encoding="utf-8")
        emit(
            as_json,
            lambda: {"path": str(to)},
            lambda: out.print(f"wrote {to}; name it in a file: #:schema ./{to.name}"),
        )
        return
    files = examples()
    if listed:
        titles = {each: _title(file) for each, file in files.items()}
        emit(as_json, lambda: titles, lambda: print_named(titles.items()))
        return
    if example is not None and example not in files:
        raise SpecError([unknown("--example", example, "example", files)])
    if example is not None and (data or model or name):
        rule = "is written as it is; change it with --set KEY=VALUE when you run it"
        raise SpecError([Problem("--example", example, rule)])
    to = path or Path("sweep.toml" if not (example or name) else f"{(example or name or '').rpartition('/')[2]}.toml")
    if to.suffix in READERS:
        rule = "the file is TOML, but this suffix names another format"
        raise SpecError([Problem("path", str(to), rule, str(to.with_suffix(".toml")))])
    _refuse_existing(to, force)
    text = starter(data, model, name) if example is None else files[example].read_text(encoding="utf-8")
    to.write_text(text, encoding="utf-8")
    emit(as_json, lambda: {"path": str(to)}, lambda: out.print(f"wrote {to}; next: sweeps plan {to}"))


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise SpecError([Problem("path", str(path), "exists; give another name, or --force to overwrite it")])


def examples() -> dict[str, Path]:
    """Return the sweep files of `examples/` by name, from the wheel or the repository."""
    within = Path(str(resources.files("sweeps"))) / "examples"
    folder = within if within.is_dir() else Path(__file__).resolve().parents[2] / "examples"
    files = [p for p in folder.rglob("*.toml") if p.name != "pyproject.toml"]
    named = {p.relative_to(folder).with_suffix("").as_posix(): p for p in files}
    return dict(sorted(named.items(), key=lambda item: (item[0].count("/"), item[0])))


def _title(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def starter(data: str | None, model: str | None, name: str | None) -> str:
    """Return the text of the starter file with a data set, a model and a name in it. None keeps the file's own.

    Raises:
        SpecError: no sweep can have this name.
        DataError: there is no such data set.
        ModelError: the kind of the model is not known.
    """
    from sweeps.spec.spec import SweepSpec
    from trainables.data.registry import check_dataset
    from trainables.data.text.registry import text_loader
    from trainables.models.shapes import model_kind

    text = resources.files("sweeps.cli").joinpath("starter.toml").read_text(encoding="utf-8")
    if data is not None:
        data = _full_id(data)
        check_dataset(data)
        text = _with_value(text, "datasets", [data])
        place = data.partition("?")[0].rstrip("/")
        name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", re.split(r"[/:]", place)[-1]).strip("-._") or None
        if model is None and text_loader(data) is not None:
            rule = "is missing: the data are texts, and the starter's model reads images"
            raise SpecError([Problem("--model", None, rule, "--model hf:HuggingFaceTB/SmolLM2-135M-Instruct")])
    if name is not None:
        text = _with_value(text, "name", name).replace("results/my-sweep", f"results/{name}")
    if model is not None:
        text = _with_value(text, "id", model)
        text = text.replace("lr = 3e-4\n", "# lr = 1e-5                            # centre of the range\n")
        kind = model_kind(model)
        if kind != "clip":  # the model has only one tower
            text = re.sub(r"^adapt = .*\n", "", text, flags=re.M)
        if kind in ("hf-vision", "text-encoder"):  # the head is new, so it knows nothing without training
            text = text.replace("[methods.zero-shot]\n", "")
    SweepSpec.parse(tomllib.loads(text))
    return text


def _full_id(data: str) -> str:
    """Return the id of a data set that is given as a bare path, or as a text form without the names of its columns.

    Any other id is returned as it is.
    """
    from trainables.data.registry import known_datasets
    from trainables.data.text.fine_tuning import FORM, HUB_FORM
    from trainables.data.text.looking import id_of_files, id_of_hub

    if data in known_datasets():
        return data
    form, colon, rest = data.partition(":")
    if not colon:
        path = data
    elif "?" in rest or form not in (FORM, HUB_FORM):
        return data
    elif form == HUB_FORM:
        return id_of_hub(data)
    else:
        path = rest
    place = Path(path).expanduser()
    if place == Path() or not place.exists():
        return data
    if any((place / "train").glob("*/*")):
        return f"folder:{place}"
    return id_of_files(place)


def _with_value(text: str, key: str, value: str | list[str]) -> str:
    """Return the file's text with another value for a key. The comment after the value is removed."""
    line = f"{key} = {json.dumps(value, ensure_ascii=False)}"  # TOML forbids half of a surrogate pair
    return re.sub(rf"^{key} = .*$", lambda _: line, text, count=1, flags=re.M)
