"""Errors a user can cause. Each message names what was wrong, the value, the rule, and the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdapterError(ValueError):
    """Base class of this package's errors."""


class ConfigError(AdapterError):
    """A value of an adapter's configuration is not allowed."""


class UnknownMethodError(AdapterError):
    """A method name is not in the registry."""


class TargetError(AdapterError):
    """A target names no weight that can be adapted."""


class CheckpointError(AdapterError):
    """A saved adapter does not fit the model, or its bases cannot be reproduced."""


class ExportError(AdapterError):
    """A format cannot express this adapter without loss."""


def nearest(word: str, choices: Iterable[str], n: int = 3) -> str:
    """`"; nearest: 'a', 'b'"`, or the empty string when nothing is close."""
    options = list(choices)
    close = difflib.get_close_matches(word, options, n=n, cutoff=0.4)
    close = close or [option for option in options if word in option][:n]
    return "; nearest: " + ", ".join(repr(c) for c in close) if close else ""
