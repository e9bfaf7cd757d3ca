"""Remove everything but the drawing from the SVG files of a results folder, because anybody may have written them.

The page's policy forbids scripts and requests. It does not forbid everything else that markup can do, such as a
refresh, a link, or a style sheet for the whole page. A browser also reads inline SVG by the rules of HTML. So a file is
parsed as XML, and only its drawing elements are written again. Comments and instructions are left out, because XML and
HTML end them at different places.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "http://www.w3.org/1999/xlink"
_DRAWING = re.compile(
    "svg|g|defs|symbol|use|path|rect|circle|ellipse|line|polyline|polygon|text|tspan|textPath|title|desc|clipPath|mask|"
    "pattern|linearGradient|radialGradient|stop|marker|image"
)
_WORDS = frozenset({"title", "desc"})
"""Elements whose children a browser reads as HTML."""
_OWN_STYLE = re.compile(r"\s*+\*\s*+\{\s*+(stroke-line(join|cap)\s*+:\s*+[a-z]++\s*+;?\s*+)*+\}\s*+")
"""The style sheet that matplotlib writes. Any other would change the page around the figure."""
_PROPERTIES = re.compile(
    "(aria|fill|stroke|stop|font|text|marker|clip|mask|pattern|gradient|color)[A-Za-z-]*|"
    "id|class|style|role|type|version|d|r|[xy]|[cr][xy]|f[xyr]|d[xy]|[xy][12]|ref[XY]|orient|width|height|points|offset|"
    "viewBox|preserveAspectRatio|transform(-origin)?|opacity|display|visibility|overflow|rotate|lengthAdjust|"
    "startOffset|spreadMethod|(letter|word)-spacing|(dominant|alignment)-baseline|baseline-shift|writing-mode|"
    "direction|(image|shape)-rendering|vector-effect|paint-order"
)
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=\s]*")
_ELSEWHERE = re.compile(
    r"\\|//|url\((?!\s*#)|image-set|image\(|cross-fade|src\(|javascript:|position\s*:", re.IGNORECASE
)
"""Matches attribute values that refer to something outside the figure, or move it out of its place."""


class ForeignError(ValueError):
    """Raised if a file is no drawing. The message says why."""


def drawing_of(text: str) -> str:
    """Return the SVG of a file with only its drawing elements and attributes.

    Raises:
        ForeignError: the file does not parse, is not SVG, or declares entities.
    """
    if re.search(r"<!ENTITY|<!ATTLIST|<!DOCTYPE[^>]*\[", text, re.IGNORECASE):
        raise ForeignError("it declares entities")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  without entities
        if root.tag != f"{_SVG}svg":
            raise ForeignError("it is no SVG")
        _clean(root)
        root.set("xmlns", _SVG[1:-1])
        root.set("xmlns:xlink", _XLINK)
        return ElementTree.tostring(root, encoding="unicode")
    except ElementTree.ParseError as error:
        raise ForeignError(f"it is no whole XML ({error})") from error
    except RecursionError as error:
        raise ForeignError("its elements nest too deep") from error


def _clean(root: ElementTree.Element) -> None:
    """Keep only drawing elements and attributes, under the names that they have in a page."""
    left = [root]
    while left:
        element = left.pop()
        for child in list(element):
            if child.tag == f"{_SVG}a":
                child.tag = f"{_SVG}g"  # what a link holds is drawn
            if element.tag.removeprefix(_SVG) in _WORDS or not _draws(child):
                element.remove(child)
        element.tag = element.tag.removeprefix(_SVG)
        kept = {key.replace(f"{{{_XLINK}}}", "xlink:"): value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({k: v for k, v in kept.items() if _harmless(element.tag, k, v)})
        left += element


def _draws(element: ElementTree.Element) -> bool:
    if element.tag == f"{_SVG}style":
        return not len(element) and _OWN_STYLE.fullmatch(element.text or "") is not None
    return element.tag.startswith(_SVG) and _DRAWING.fullmatch(element.tag.removeprefix(_SVG)) is not None


def _harmless(tag: str, name: str, value: str) -> bool:
    if name in ("href", "xlink:href"):
        return value.startswith("#") or (tag == "image" and _PICTURE.fullmatch(value) is not None)
    spoken = name in ("id", "class", "aria-label")
    return _PROPERTIES.fullmatch(name) is not None and (spoken or _ELSEWHERE.search(value) is None)
