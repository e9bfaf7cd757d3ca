"""Prompt templates of image sets: texts with one "{}" for the class name."""

from __future__ import annotations

import string

from trainables.errors import DataError

DEFAULT_TEMPLATES = ("a photo of a {}.", "an image of a {}.", "a picture of a {}.")
DEFAULT_PROMPT = "An image of {}"
"""The single prompt of the contrastive loss (arXiv 2502.00987's released code)."""


def check_templates(templates: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Return `templates` if there is at least one, and each has "{}" once. Raises DataError otherwise."""
    for template in templates:
        try:
            fields = [field for _, *field in string.Formatter().parse(template) if field[0] is not None]
        except ValueError:  # a single brace
            fields = []
        if fields != [["", "", None]]:
            rule = "must hold '{}' exactly once, for the class name, and no other braces; {{ and }} stand for braces"
            raise DataError(f"{where}: prompt template {template!r} {rule}")
    if not templates:
        raise DataError(f"{where}: no prompt template; give at least one such as 'a photo of a {{}}.'")
    return templates
