"""Draw captioned pictures of glyphs, words and shapes, on which the embedded CLIP is pretrained.

Every picture depends on (seed, index) alone. There are no photographs and no words for clothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.embedded.fonts import Font

Pixels = npt.NDArray[np.uint8]
SIZE = 28
CANVAS = 56  # drawn at twice the size, then scaled down: smooth edges

COLOURS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 70, 220),
    "yellow": (235, 215, 50),
    "purple": (140, 50, 160),
    "orange": (240, 140, 30),
    "cyan": (40, 200, 210),
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SYMBOLS = {
    "+": "plus sign", "?": "question mark", "!": "exclamation mark", "&": "ampersand", "@": "at sign", "#": "hash sign",
    "%": "percent sign", "$": "dollar sign", "*": "asterisk", "=": "equals sign", "/": "slash", "(": "bracket",
}  # fmt: skip
SHAPES = (
    "circle",
    "ring",
    "square",
    "frame",
    "triangle",
    "diamond",
    "cross",
    "star",
    "bar",
    "arrow",
    "half moon",
    "dots",
)
WORDS = tuple(
    """
    cat dog sun sea sky tree fish bird moon star rain snow wind fire ice rock sand hill lake road door wall roof
    book page pen ink map key box cup pot pan oil salt milk tea egg nut pie jam corn rice bean leaf root seed wood
    iron gold tin lamp bell drum horn song word name time day week year hour one two ten red blue pink green grey
    dark cold warm fast slow big tall long wide deep old new good kind calm wild open left right up down north south
    east west ship boat car bus train wheel farm city town bank shop park zoo bear wolf fox lion deer goat cow pig
    hen duck frog crab bee ant fly mouse horse apple pear plum lemon grape king queen child girl boy man nose ear
    eye arm leg toe back bone heart hand game ball chess card luck yes no
    """.split()  # noqa: SIM905
)
TEXTURES = ("plain", "noisy", "striped", "shaded", "dotted")
SIZES = (("small", 0.58), ("medium", 0.74), ("large", 0.92))


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        pixels: (28, 28, 3) uint8.
        kind: letter, digit, symbol, word or shape.
        name: what it shows.
    """

    pixels: Pixels
    caption: str
    kind: str
    name: str


@lru_cache(maxsize=4096)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def _text_mask(text: str, font: Font, extent: float) -> Image.Image:
    """Return a centred mask (CANVAS, CANVAS) of ``text``, whose longer side is ``extent`` of the canvas."""
    probe = _font(font.path, 48)
    left, top, right, bottom = probe.getbbox(text)
    size = max(8, int(48 * extent * CANVAS / max(right - left, bottom - top, 1)))
    chosen = _font(font.path, size)
    left, top, right, bottom = chosen.getbbox(text)
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    origin = ((CANVAS - (right - left)) / 2 - left, (CANVAS - (bottom - top)) / 2 - top)
    ImageDraw.Draw(mask).text(origin, text, fill=255, font=chosen)
    return mask


def _shape_mask(name: str, extent: float, rng: np.random.Generator) -> Image.Image:
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    draw = ImageDraw.Draw(mask)
    c, h = CANVAS / 2, extent * CANVAS / 2
    w = h * rng.uniform(0.75, 1.0)
    thick = int(rng.integers(4, 9))
    box = (c - w, c - h, c + w, c + h)
    if name == "circle":
        draw.ellipse(box, fill=255)
    elif name == "ring":
        draw.ellipse(box, outline=255, width=thick)
    elif name == "square":
        draw.rectangle(box, fill=255)
    elif name == "frame":
        draw.rectangle(box, outline=255, width=thick)
    elif name == "triangle":
        draw.polygon([(c, c - h), (c + w, c + h), (c - w, c + h)], fill=255)
    elif name == "diamond":
        draw.polygon([(c, c - h), (c + w, c), (c, c + h), (c - w, c)], fill=255)
    elif name == "cross":
        draw.rectangle((c - w, c - thick, c + w, c + thick), fill=255)
        draw.rectangle((c - thick, c - h, c + thick, c + h), fill=255)
    elif name == "star":
        turn = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2 == 0, h, 0.42 * h)
        draw.polygon([(c + r * np.cos(t), c + r * np.sin(t)) for r, t in zip(radius, turn, strict=True)], fill=255)
    elif name == "bar":
        draw.rectangle((c - w, c - thick, c + w, c + thick), fill=255)
    elif name == "arrow":
        draw.rectangle((c - w, c - thick / 2, c + w / 3, c + thick / 2), fill=255)
        draw.polygon([(c + w, c), (c + w / 4, c - h / 2), (c + w / 4, c + h / 2)], fill=255)
    elif name == "half moon":
        draw.ellipse(box, fill=255)
        draw.ellipse((c - w * 0.4, c - h, c + w * 1.6, c + h), fill=0)
    else:
        for _ in range(int(rng.integers(4, 9))):
            x, y = rng.uniform(c - h, c + h, 2)
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=255)
    return mask


def _background(colour: Sequence[int], texture: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    base = np.broadcast_to(np.asarray(colour, np.float32), (SIZE, SIZE, 3)).copy()
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    along = np.cos(turn) * x + np.sin(turn) * y
    swing = rng.uniform(25, 60)
    if texture == "striped":
        base += (swing * np.sign(np.sin(along * rng.uniform(0.8, 1.6))))[..., None]
    elif texture == "shaded":
        base += (swing * 2 * (along - along.mean()) / np.ptp(along))[..., None]
    elif texture == "dotted":
        base += (swing * ((np.sin(x * 1.6) > 0.6) & (np.sin(y * 1.6) > 0.6)))[..., None]
    elif texture == "noisy":
        base += rng.normal(0, swing / 2, (SIZE, SIZE, 1))
    return base


def _content(rng: np.random.Generator) -> tuple[str, str, str]:
    """Return (kind, name as in captions, text to draw or "")."""
    kind = str(rng.choice(["letter", "digit", "symbol", "word", "shape"], p=[0.45, 0.25, 0.08, 0.08, 0.14]))
    if kind == "letter":
        text = LETTERS[rng.integers(len(LETTERS))]
        return kind, f"{'capital' if text.isupper() else 'lowercase'} letter {text}", text
    if kind == "digit":
        text = DIGITS[rng.integers(10)]
        return kind, f"digit {text if rng.random() < 0.5 else DIGIT_NAMES[int(text)]}", text
    if kind == "symbol":
        text = list(SYMBOLS)[rng.integers(len(SYMBOLS))]
        return kind, SYMBOLS[text], text
    if kind == "word":
        text = WORDS[rng.integers(len(WORDS))]
        return kind, f"word {text}", text
    return kind, SHAPES[rng.integers(len(SHAPES))], ""


def _colours(rng: np.random.Generator) -> tuple[str, str]:
    """Return (foreground, background), grey half of the time and never the same."""
    pool = ("white", "black", "grey") if rng.random() < 0.7 else tuple(COLOURS)
    first, second = rng.choice(len(pool), 2, replace=False)
    return pool[first], pool[second]


def draw(
    text: str,
    shape: str,
    font: Font,
    rng: np.random.Generator,
    *,
    extent: float,
    foreground: str,
    background: str,
    texture: str,
    degrees: float,
    blur: float,
    noise: float,
) -> Pixels:
    """Draw one picture (28, 28, 3): ``text`` in ``font``, or ``shape`` if ``text`` is empty."""
    mask = _text_mask(text, font, extent) if text else _shape_mask(shape, extent, rng)
    shift = rng.uniform(-1, 1, 2) * CANVAS * (0.5 - extent / 2) * 0.5
    mask = mask.rotate(degrees, Image.Resampling.BILINEAR, translate=(int(shift[0]), int(shift[1])))
    if blur > 0:
        mask = mask.filter(ImageFilter.GaussianBlur(blur))
    alpha = np.asarray(mask.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32)[..., None] / 255
    ground = _background(COLOURS[background], texture, rng)
    ink = np.asarray(COLOURS[foreground], np.float32) + rng.normal(0, 10, 3).astype(np.float32)
    pixels = ground * (1 - alpha) + ink * alpha + rng.normal(0, noise, (SIZE, SIZE, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def picture(fonts: Sequence[Font], seed: int, index: int) -> Picture:
    """Return the picture number ``index`` of the stream ``seed``."""
    rng = np.random.default_rng((seed, index))
    kind, name, text = _content(rng)
    font = fonts[int(rng.integers(len(fonts)))]
    size_name, extent = SIZES[rng.integers(len(SIZES))]
    if kind == "word":
        size_name, extent = "", 0.95
    foreground, background = _colours(rng)
    texture = TEXTURES[0] if rng.random() < 0.7 else TEXTURES[rng.integers(1, len(TEXTURES))]
    turned = rng.random()
    if turned < 0.85:
        degrees, turn_name = float(rng.uniform(-12, 12)), ""
    elif turned < 0.9:
        degrees, turn_name = float(rng.uniform(20, 50)), "tilted left"
    elif turned < 0.95:
        degrees, turn_name = float(rng.uniform(-50, -20)), "tilted right"
    else:
        degrees, turn_name = float(rng.uniform(170, 190)), "upside down"
    pixels = draw(
        text, name, font, rng, extent=extent, foreground=foreground, background=background, texture=texture,
        degrees=degrees, blur=float(rng.choice([0, 0, 0, 1.2])), noise=float(rng.uniform(0, 18)),
    )  # fmt: skip
    look = f"{font.look} " if text and rng.random() < 0.25 else ""
    size = f"{size_name} " if size_name and rng.random() < 0.25 else ""
    colour = f"{foreground} " if rng.random() < 0.25 else ""
    named = f"{size}{colour}{look}{name}"
    one = "an" if named[0] in "aeio" else "a"
    caption = ("the ", f"{one} ", "an image of the ", f"an image of {one} ", "")[rng.integers(5)] + named
    if rng.random() < 0.25:
        caption += f" on {background}" if texture == "plain" or rng.random() < 0.5 else f" on {texture} {background}"
    if turn_name and rng.random() < 0.8:
        caption += f", {turn_name}"
    return Picture(pixels, caption, kind, name)


def glyph(text: str, font: Font, seed: int, index: int) -> Pixels:
    """Return a plain picture (28, 28, 3) of one glyph, for the held-out scores: upright, no texture, random colours."""
    rng = np.random.default_rng((seed, index))
    foreground, background = _colours(rng)
    return draw(
        text, "", font, rng, extent=float(rng.uniform(0.65, 0.92)), foreground=foreground, background=background,
        texture="plain", degrees=float(rng.uniform(-8, 8)), blur=0.0, noise=5.0,
    )  # fmt: skip
