"""Write the pages of `docs/` that are made from code and results, such as the recipes, the data sets and the verbs.

Also write the JSON schema of sweep files, and `llms.txt`, a list of the site's pages for programs.

python -m tools.pages             # write them
python -m tools.pages --check     # exit 1 if one is out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any, get_args

import typer
import yaml

from analysis.sheets.markdown import markdown_table
from analysis.store.codec import Column, columns_of, doc_of
from analysis.store.schemas import SCHEMA_VERSION, TABLES
from analysis.store.sql.views import VIEWS
from sweeps.cli.main import app
from sweeps.cli.options import Json, Scale, Set, Source, Spec
from sweeps.spec import schema
from tools import league_page
from tools.spec_page import sections
from trainables.data.facts import IMAGE_SETS, TEXT_SETS

ROOT = Path(__file__).parents[1]
TEXTS = Path(__file__).parent / "page_texts"
"""Folder of the texts of the pages. In them, placeholders such as `@TABLE@` stand for what this module makes."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    header, *lines = ([str(cell).replace("|", "\\|") for cell in line] for line in (columns, *rows))
    return markdown_table(header, lines).rstrip("\n")


def listed(rows: Iterable[tuple[str, str]]) -> str:
    """Return a Markdown list of names and what they mean."""
    lines = (f"- {name}: {meaning}" for name, meaning in rows)
    return "\n".join(fill(line, 120, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


# -- recipes ----------------------------------------------------------------------------------------------------------


def header(path: Path) -> dict[str, str]:
    """Return the facts of a recipe's header by name. "title" is its first line. A fact may take several lines."""
    lines = [line[1:] for line in path.read_text(encoding="utf-8").split("\nname = ")[0].splitlines()]
    facts, last = {"title": lines[0].strip()}, ""
    for line in lines[1:]:
        match = re.fullmatch(r"   (\w+) {2,}(\S.*)", line)
        if match:
            last = match[1]
            facts[last] = match[2].strip()
        elif last and line.startswith("              "):
            facts[last] += " " + line.strip()
        else:
            last = ""
    return facts


def recipes_page() -> str:
    """Return docs/recipes.md."""
    rows = []
    for path in sorted((ROOT / "examples" / "paper").glob("*.toml")):
        facts = header(path)
        _, hours, *without = re.findall(r"\d[\d,.]*\b", facts["length"])
        large = "†" if facts["hardware"].startswith("1 GPU of 80 GB") else ""
        hours += f"{large} ({without[0]})" if without else large
        what = re.split(r": (?!Table|Figure|section)", facts["title"])[0]
        rows.append((f"[`{path.stem}`](../examples/paper/{path.name})", what, hours))
    text = (TEXTS / "recipes.md").read_text(encoding="utf-8")
    return text.replace("@TABLE@", table(("file", "what", "GPU-hours"), rows))


# -- data -------------------------------------------------------------------------------------------------------------


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


OWN = "validation: the authors' own"
USUAL = "validation: 10 % of train, 5,000 at most, seed 0"
"""Rules of splitting that the page says once, above its table."""


def images() -> str:
    """Return the registered image sets without CoOp's, which the page names in a sentence."""
    rows = []
    for name, info in IMAGE_SETS.items():
        if name.startswith("coop-"):
            continue
        own = " (own)" if info.split == OWN else ""
        rest = "" if info.split in (OWN, USUAL) else info.split.removesuffix(f"; {USUAL}")
        numbers = "/".join(_number(size) for _, size in info.sizes) + own
        names = ", ".join([f"`{name}`", *(f"`@{other}`" for other in info.others)])
        about = f"{info.about} ({rest})" if rest else info.about
        rows.append((names, about, numbers))
    return table(("name", "what", "train/val/test"), rows)


def texts() -> str:
    """Return the registered text sets, without the second form of those that have one."""
    rows = []
    for name, info in TEXT_SETS.items():
        if not name.endswith("-questions"):
            about = re.sub(r"; answered by a label$|^GLUE \w+: |; reported on its validation split$", "", info.about)
            numbers = f"{_number(info.train)}/{_number(info.test)}{'*' if info.verified else ''}"
            rows.append((f"`{name}`", about, numbers))
    return table(("name", "what", "train/test"), rows)


def data_page() -> str:
    """Return docs/data.md."""
    text = (TEXTS / "data.md").read_text(encoding="utf-8")
    return text.replace("@IMAGES@", images()).replace("@TEXTS@", texts())


# -- sweep files ------------------------------------------------------------------------------------------------------


def value(kind: str, default: str) -> str:
    """Return the values that a key takes, with the default in bold.

    If the values cannot be listed, return the default, or the type if there is no default.
    """
    parts = re.split(", | or ", kind)
    if default in parts:
        return ", ".join(f"**{part}**" if part == default else part for part in parts)
    more = [part for part in parts if part.startswith("`")]
    return ", ".join([f"**{default}**" if more else default, *more] if default else parts)


def sweep_file_page() -> str:
    """Return docs/sweep-file.md. A key that is a table says what is in it."""
    parts = []
    for name, rows in sections():
        title = f"`[{name}]`" if name else "Keys outside all sections"
        shown = (
            (f"{key} ({value(kind, default)})", re.sub(r"docs/([\w-]+)\.md", r"[\1](\1.md)", meaning))
            for key, kind, default, meaning in rows
            if "." not in key
        )
        parts.append(f"## {title}\n\n{listed(shown)}\n")
    text = (TEXTS / "sweep_file.md").read_text(encoding="utf-8")
    return text.replace("@SECTIONS@", "\n".join(parts))


# -- results tables ---------------------------------------------------------------------------------------------------


def _columns(columns: Iterable[Column]) -> str:
    """Return the list of columns: name, unit if there is one, sentence."""
    return listed((f"`{one.name}`" + (f" ({one.unit})" if one.unit else ""), one.doc) for one in columns)


def tables_page() -> str:
    """Return docs/tables.md. A column that several tables share is described once, above them."""
    times = Counter((one.name, one.kind, one.doc) for row in TABLES.values() for one in columns_of(row))
    shared = {
        (one.name, one.doc): one
        for row in TABLES.values()
        for one in columns_of(row)
        if times[one.name, one.kind, one.doc] > 1
    }
    parts = []
    for name, row in TABLES.items():
        own = _columns(one for one in columns_of(row) if (one.name, one.doc) not in shared)
        parts.append(f"## `{name}`\n\n{fill(doc_of(row), 120, break_on_hyphens=False)}\n\n{own}")
    views = listed((f"`{view.name}`", view.doc) for view in VIEWS.values())
    text = (TEXTS / "tables.md").read_text(encoding="utf-8").replace("@VERSION@", str(SCHEMA_VERSION))
    text = text.replace("@SHARED@", _columns(_with_tables(one) for one in shared.values())).replace("@VIEWS@", views)
    return text.replace("@TABLES@", "\n\n".join(parts))


def _with_tables(column: Column) -> Column:
    """Return the column. If other tables have a column of that name with another meaning, its sentence names its own
    tables.
    """
    meanings = {name: one.doc for name, row in TABLES.items() for one in columns_of(row) if one.name == column.name}
    if len(set(meanings.values())) == 1:
        return column
    names = ", ".join(f"`{name}`" for name, doc in meanings.items() if doc == column.doc)
    return replace(column, doc=f"In {names}: {column.doc}")


# -- verbs ------------------------------------------------------------------------------------------------------------

EVERYWHERE = {get_args(kind)[1].help for kind in (Json, Scale, Set, Source, Spec)}
"""Help texts of the arguments and options that the page describes once."""


def verbs_page() -> str:
    """Return docs/verbs.md: the help text, an example, the arguments and the options of every verb."""
    parts = []
    for name, verb in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        text = fill(" ".join(verb.help.split()), 120, break_on_hyphens=False)
        parts += [f"## `{name}`", text, f"```\n{verb.epilog.removeprefix('Example: ')}\n```"]
        if taken := [(_parameter(each), each.help) for each in verb.params if each.help not in EVERYWHERE]:
            parts.append(listed(taken))
    return (TEXTS / "verbs.md").read_text(encoding="utf-8").replace("@VERBS@", "\n\n".join(parts))


def _parameter(parameter: typer.core.TyperArgument | typer.core.TyperOption) -> str:
    """Return the name of an argument or option, and its default if it has one."""
    names = [*parameter.opts, *parameter.secondary_opts]
    shown = ", ".join(f"`{name}`" for name in names)
    if not names[0].startswith("-"):
        shown = f"`{parameter.metavar or parameter.name.upper()}`"
    usual = parameter.default
    if isinstance(usual, bool):
        return f"{shown} (default: `{names[0]}`)" if usual else shown
    return shown if usual is None or callable(usual) else f"{shown} (default: `{usual}`)"


# -- league -----------------------------------------------------------------------------------------------------------


def _filled(name: str, places: league_page.Places) -> str:
    """Return a page's text with its placeholders replaced by texts and tables."""
    text = (TEXTS / name).read_text(encoding="utf-8")
    for place, content in places.items():
        text = text.replace(place, content if isinstance(content, str) else table(*content))
    return text


def league() -> str:
    """Return docs/league.md."""
    return _filled("league.md", league_page.texts(ROOT / "docs" / "results"))


def peft_published() -> str:
    """Return docs/peft-published.md."""
    return _filled("peft_published.md", league_page.published_texts(ROOT / "docs" / "results"))


# -- for programs that read the site ----------------------------------------------------------------------------------


def llms_text() -> str:
    """Return docs/llms.txt: every page of the site's navigation with its first sentence (https://llmstxt.org)."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    lines = [f"# {site['site_name']}", "", f"> {site['site_description']}"]
    for title, pages in _chapters(site["nav"]):
        lines += ["", f"## {title}", ""]
        lines += [_linked(name, page) for name, page in pages]
    return "\n".join(lines) + "\n"


def _chapters(nav: Sequence[Any]) -> Iterator[tuple[str, list[tuple[str | None, str]]]]:
    """Yield the chapters of a navigation, each with (title, page) of its pages. Pages outside a chapter come first."""
    alone = [page for page in nav if not isinstance(next(iter(_entry(page).values())), list)]
    yield "Pages", [next(iter(_leaves(page))) for page in alone]
    for entry in nav:
        for title, pages in _entry(entry).items():
            if isinstance(pages, list):
                yield str(title), [leaf for page in pages for leaf in _leaves(page)]


def _entry(page: Any) -> dict[str | None, Any]:
    return page if isinstance(page, dict) else {None: page}


def _leaves(page: Any) -> Iterator[tuple[str | None, str]]:
    for title, target in _entry(page).items():
        if isinstance(target, list):
            for inner in target:
                yield from _leaves(inner)
        else:
            yield title, target


def _linked(title: str | None, page: str) -> str:
    """Return a page's line. Pages of the Python interface exist only in the built site, so they have no sentence."""
    path = ROOT / "docs" / page
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    _, _, from_heading = f"\n{text}".partition("\n# ")
    heading, _, rest = from_heading.partition("\n")
    address = page.removesuffix(".md").replace("README", "index") + ".html"
    sentence = _first_sentence(rest)
    return f"- [{title or heading}]({address})" + (f": {sentence}" if sentence else "")


def _first_sentence(text: str) -> str:
    """Return the first sentence of a page's first paragraph, without Markdown; "" if it has none."""
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    paragraphs = (each.strip() for each in prose.split("\n\n"))
    first = next((each for each in paragraphs if each and not re.match(r"#|\||<|!|[-*] ", each)), "")
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(first.split())).replace("**", "")
    return re.split(r"(?<=[.?!]) (?=[A-Z`])", plain)[0].rstrip(":")


PAGES = {
    "docs/league.md": league,
    "docs/peft-published.md": peft_published,
    "docs/recipes.md": recipes_page,
    "docs/data.md": data_page,
    "docs/sweep-file.md": sweep_file_page,
    "docs/tables.md": tables_page,
    "docs/verbs.md": verbs_page,
    f"docs/{schema.FILE}": schema.schema_text,
    "docs/llms.txt": llms_text,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = [name for name, make in PAGES.items() if make() != _read(ROOT / name)]
    for name in [] if check else stale:
        (ROOT / name).write_text(PAGES[name](), encoding="utf-8")
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run python -m tools.pages")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    main()
