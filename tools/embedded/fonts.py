"""Find the fonts of ordinary packages, with the words by which captions call their looks.

matplotlib ships DejaVu and STIX; the Debian packages named in ``PACKAGES`` add variety. All may be used to make images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

#: Debian package -> licence of its fonts
PACKAGES = {
    "fonts-dejavu": "Bitstream Vera licence",
    "fonts-liberation": "SIL OFL 1.1",
    "fonts-liberation-sans-narrow": "GPL-2 with font exception",
    "fonts-lato": "SIL OFL 1.1",
    "fonts-comic-neue": "SIL OFL 1.1",
    "fonts-courier-prime": "SIL OFL 1.1",
    "fonts-dancingscript": "SIL OFL 1.1",
    "fonts-roboto-slab": "Apache-2.0",
}

#: start of a file's name -> what the family looks like
FAMILIES = {
    "DejaVuSansMono": "mono",
    "DejaVuSansCondensed": "sans",
    "DejaVuSans": "sans",
    "DejaVuSerif": "serif",
    "LiberationSans": "sans",
    "LiberationSerif": "serif",
    "LiberationMono": "mono",
    "Lato": "sans",
    "ComicNeue": "handwritten",
    "Courier Prime Code": "mono",
    "Courier Prime Sans": "mono",
    "Courier Prime": "mono",
    "DancingScript": "script",
    "RobotoSlab": "slab",
}

#: never seen in pretraining, and in every matplotlib: the fonts of the held-out scores
HELD_OUT = ("STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf")

_WEIGHTS = (
    ("thin", ("thin", "hairline", "extralight")),
    ("bold", ("bold", "black", "heavy")),
    ("light", ("light",)),
)


@dataclass(frozen=True)
class Font:
    """One font file. ``look`` is the caption's words for it, such as "bold italic serif"."""

    path: Path
    look: str

    @property
    def sha256(self) -> str:
        """The first 16 hexadecimal digits of the file's SHA-256."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


def matplotlib_fonts() -> Path:
    """Return the folder of the fonts that come with matplotlib."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def describe(path: Path) -> str | None:
    """Return the caption words for a font file, or None if its family is not in ``FAMILIES``."""
    family = next((f for f in FAMILIES if path.stem.startswith(f)), None)
    if family is None:
        return None
    rest = path.stem.lower()
    words = [w for w, marks in _WEIGHTS if any(m in rest for m in marks)][:1]
    if "italic" in rest or "oblique" in rest:
        words.append("italic")
    return " ".join([*words, FAMILIES[family]])


def find(roots: Sequence[Path]) -> list[Font]:
    """Return the known fonts under ``roots``, one per file name, sorted by name so that seeds draw the same."""
    font_by_name: dict[str, Font] = {}
    for root in roots:
        for path in sorted(root.rglob("*.[to]tf")):
            look = describe(path)
            if look is not None:
                font_by_name.setdefault(path.name, Font(path, look))
    return [font_by_name[name] for name in sorted(font_by_name)]


def held_out() -> list[Font]:
    """Return the fonts that are kept out of pretraining."""
    return [Font(matplotlib_fonts() / name, "serif") for name in HELD_OUT]
