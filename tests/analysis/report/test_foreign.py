"""Figures of `diagnostics/`, which may be anybody's files: cut ones are named, and only what draws enters the page."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from analysis.drawing.charts import STYLE, Chart, save
from analysis.drawing.svg import embedded
from analysis.report.foreign import ForeignError, drawing_of
from analysis.report.page import render
from analysis.store.store import Store, open_store

XMLNS = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
HOSTILE = f"""<?xml version="1.0"?><?go <meta http-equiv="refresh" content="0;url=http://evil.test">?>
<!--><script>evil()</script>--><svg {XMLNS} width="9" height="9" onload="evil()" viewBox="0 0 9 9">
<meta http-equiv="refresh" content="0;url=http://evil.test"/><script>evil()</script>
<h:meta xmlns:h="http://www.w3.org/1999/xhtml" http-equiv="refresh" content="0;url=http://evil.test"/>
<foreignObject><iframe src="http://evil.test"/></foreignObject><iframe src="http://evil.test"/>
<style>body {{ display: none }}</style><style>@import "http://evil.test";</style>
<title>words<meta http-equiv="refresh" content="evil"/></title><set attributeName="href" to="javascript:evil()"/>
<a xlink:href="http://evil.test" target="_top">
<path d="M 0 0 L 1 1" fill="url(http://evil.test#a)" onclick="evil()"/></a>
<image href="http://evil.test/a.png" width="1" height="1"/><use xlink:href="evil.svg#x"/>
<rect id="kept" width="2" height="3" clip-path="url(#c)" style="fill: #222222; mask: u\\72l(evil)"/>
<g style="position: fixed; top: 0"><!-- evil --><text>a &lt;evil/&gt; b</text></g></svg>"""


def with_diagnostics(store: Store, folder: Path, files: dict[str, bytes]) -> str:
    """The page of a copy of the folder that has these files among its diagnostics."""
    shutil.copytree(store.path, folder)
    (folder / "diagnostics").mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / "diagnostics" / name).write_bytes(data)
    return render(open_store(folder))


def test_a_file_that_is_no_drawing_is_named_and_the_page_stands(store: Store, tmp_path: Path) -> None:
    entities = f'<!DOCTYPE svg [<!ENTITY a "b">]><svg {XMLNS}><text>&a;</text></svg>'
    files = {
        "cut.svg": f"<svg {XMLNS}><g>".encode(),
        "empty.svg": b"",
        "html.svg": b"<html><svg/></html>",
        "bytes.svg": b"\xff\xfe\x00",
        "entities.svg": entities.encode(),
        "deep.svg": f"<svg {XMLNS}>{'<g>' * 50_000}{'</g>' * 50_000}</svg>".encode(),
        "fine.svg": f'<svg {XMLNS}><path d="M 7 7"/></svg>'.encode(),
        "fine.txt": b"\xff said",
    }
    page = with_diagnostics(store, tmp_path / "made", files)
    for name in files:
        assert (f"{name} is not shown: " in page) == (name not in ("fine.svg", "fine.txt")), name
    assert '<path d="M 7 7"' in page and "\N{REPLACEMENT CHARACTER} said" in page


def test_only_what_draws_enters_the_page(store: Store, tmp_path: Path) -> None:
    name = 'x" onload="evil()"><meta \\1.svg'
    page = with_diagnostics(store, tmp_path / "made", {"plane.svg": HOSTILE.encode(), name: HOSTILE.encode()})
    shown = [text.partition("</svg>")[0] for text in page.split("<svg")[1:] if "diagnostic-plane-kept" in text]
    assert len(shown) == 1 and page.count("<script") == 1 and page.count("-kept") == 2
    named = page.replace("onload=&#34;evil()", "").replace(
        "onload=&quot;evil()", ""
    )  # the second file's name, in words
    for forbidden in ("evil.test", "evil()", '<meta http-equiv="refresh"', "foreignObject", "iframe", "<?go", "<!--"):
        assert forbidden not in named, forbidden
    for left in ("onload", "onclick", "style", "target", "<a ", "<set"):
        assert left not in shown[0], left
    for kept in (
        'd="M 0 0 L 1 1"',
        'clip-path="url(#diagnostic-plane-c)"',
        "a &lt;evil/&gt; b",
        "<title>words</title>",
    ):
        assert kept in shown[0], kept


def test_our_own_figures_stay_what_they_are(tmp_path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Chart(3, 2)
        axes = figure.add_subplot()
        axes.plot([1, 2], [3, 4], gid="line", label="a & b")
        axes.imshow([[1.0, 2.0], [3.0, 4.0]])
        axes.legend()
        text = save(figure, tmp_path, "own", ("svg",))["own.svg"].read_text(encoding="utf-8")
    assert "<image" in text and "<style" in text and "<use" in text
    metadata = "{http://www.w3.org/2000/svg}metadata"
    before, after = ElementTree.fromstring(text), ElementTree.fromstring(drawing_of(text))
    before.remove(next(child for child in before if child.tag == metadata))
    was, now = list(before.iter()), list(after.iter())
    assert [(e.tag, e.attrib, (e.text or "").strip()) for e in now] == [
        (e.tag, e.attrib, (e.text or "").strip()) for e in was
    ]
    page = embedded(drawing_of(text), "d", "label")
    assert page.startswith('<svg role="img" aria-label="label"') and '<g id="d-line">' in page
    assert not [p for p in tmp_path.iterdir() if p.name != "own.svg"]  # nothing half written is left


@pytest.mark.parametrize(("text", "says"), [("<svg", "whole XML"), ("<svg/>", "no SVG"), ("<!ENTITY", "entities")])
def test_why_a_file_is_refused(text: str, says: str) -> None:
    with pytest.raises(ForeignError, match=says):
        drawing_of(text)


def test_a_figure_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.svg").write_text("old")

    def fails(path: Path, **_: object) -> None:
        path.write_text("<svg")
        raise OSError("no space")

    figure = Chart(3, 2)
    monkeypatch.setattr(figure, "savefig", fails)
    with pytest.raises(OSError, match="no space"):
        save(figure, tmp_path, "own", ("svg",))
    assert (tmp_path / "own.svg").read_text() == "old"
