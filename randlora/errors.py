"""Errors that a user can cause.

Each message names what was wrong, the value, the rule, and the nearest valid choice.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdapterError(ValueError):
    """Base class of this package's errors."""


class ConfigError(AdapterError):
    """A value in an adapter's configuration is not allowed."""


class UnknownMethodError(AdapterError):
    """A method name is not in the registry."""


class TargetError(AdapterError):
    """A target matches no weight that can be adapted."""


class IdleAdapterError(AdapterError):
    """An adapter takes no part in the forward of its model."""


class CheckpointError(AdapterError):
    """A saved adapter does not fit the model, or its bases cannot be reproduced."""


class ExportError(AdapterError):
    """A format cannot express this adapter without loss."""


def few(names: Iterable[str]) -> str:
    """Return the first three names for a message, or "none of them"."""
    some = list(names)
    return ", ".join(some[:3]) + (", ..." if len(some) > 3 else "") if some else "none of them"


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return the choices that are closest to `word`, for a message: "nearest: 'a', 'b'".

    If none is close, return "known: ..." with at most 40 of them, or "none is known".
    """
    options = sorted(set(choices))
    close = difflib.get_close_matches(word, options, n=3, cutoff=0.5)
    close = close or [option for option in options if word and word in option][:3]
    if close or not options:
        return "nearest: " + ", ".join(map(repr, close)) if close else "none is known"
    return "known: " + ", ".join(map(repr, options[:40])) + (", ..." if len(options) > 40 else "")
