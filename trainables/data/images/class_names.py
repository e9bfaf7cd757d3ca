"""Class names in the form for prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping


def clean(name: str, renames: Mapping[str, str] | None = None) -> str:
    """Return a class name in the form for prompts, from names such as '001.Black_footed_Albatross', '/b/bar/indoor',
    'SeaLake'."""
    if renames and name in renames:
        return renames[name]
    words = re.sub(r"^\d+\.", "", name)
    words = re.sub(r"^/[a-z]/", "", words)
    words = re.sub(r"-101$", "", words)
    words = re.sub(r"(?<=[a-z][a-z])(?=[A-Z][a-z])", " ", words) if "_" not in words and " " not in words else words
    words = re.sub(r"(?<=[a-z])/(?=[a-z])", " ", words)  # but not F-16A/B
    return re.sub(r"[\s_]+", " ", words).strip()
