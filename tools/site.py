"""Add to the site what `mkdocs.yml` cannot: pages of the Python interface, and the files that pages link to.

On GitHub a page links to `../examples/quickstart.toml`. In the site the same link leads to a copy of that file. A link
to a folder leads to a list of its files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

API = {"randlora": "randlora", "sweeps": "sweeps", "analysis": "analysis", "trainables": "trainables.config"}
"""Pages of `api/`, and the module whose public names each lists."""
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)(?=\))")


def _copy_of(page: str, link: str, config: Any) -> tuple[str, Path] | None:
    """Return the path of a linked file's copy in the site, and the file. None if the file is in `docs/`."""
    docs = Path(config["docs_dir"])
    target = Path(os.path.normpath(docs / Path(page).parent / link))
    if target.is_relative_to(docs):
        return None
    return f"files/{target.relative_to(docs.parent).as_posix()}.txt", target


def _content(target: Path) -> bytes:
    """Return the bytes of a file. For a folder, return the names of its files, one a line."""
    if not target.is_dir():
        return target.read_bytes()
    names = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    return ("\n".join(names) + "\n").encode()


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the interface, and every linked file or folder of the repository as text."""
    pages = files.documentation_pages()
    for name, module in API.items():
        files.append(File.generated(config, f"api/{name}.md", content=f"# Python: {name}\n\n::: {module}\n"))
    for page in pages:
        for link in LINK.findall(page.content_string):
            copy = _copy_of(page.src_uri, link, config)
            if copy is not None and files.get_file_from_path(copy[0]) is None:
                files.append(File.generated(config, copy[0], content=_content(copy[1])))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Replace links out of `docs/` by links to the copies."""

    def inside(link: re.Match[str]) -> str:
        copy = _copy_of(page.file.src_uri, link[0], config)
        return link[0] if copy is None else os.path.relpath(copy[0], Path(page.file.src_uri).parent)

    return LINK.sub(inside, markdown)
