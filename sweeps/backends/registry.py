"""Backends by name: our own, and those that other packages register as entry points."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.metadata import entry_points

from sweeps.backends.backend import OpenBackend
from sweeps.errors import Problem, SpecError, unknown

GROUP = "sweeps.backends"
"""Group of entry points. The name of each is the backend's, and its object an `OpenBackend`."""
_OURS = {"ray": "sweeps.backends.ray.process:open_ray", "inline": "sweeps.backends.inline:open_inline"}


_EARLY = {"ray": "sweeps.backends.ray.process:started_early"}
"""The functions that begin a backend of ours before it is opened. Each returns a context manager."""


def started_early(name: str, modules: Sequence[str] = ()) -> AbstractContextManager[None]:
    """Begin what this backend can do before the plan is made. It is undone if no backend is opened in the block.

    Args:
        name: the backend's name. Nothing is begun for a backend that has no such function.
        modules: names of modules that the backend's `Setup` will need.
    """
    if name not in _EARLY:
        return nullcontext()
    module, _, function = _EARLY[name].partition(":")
    early: AbstractContextManager[None] = getattr(import_module(module), function)(modules)
    return early


def backend_names() -> list[str]:
    """Return the names of all backends, ours first."""
    return [*_OURS, *sorted({point.name for point in entry_points(group=GROUP)} - _OURS.keys())]


def find_backend(name: str) -> OpenBackend:
    """Return the function that opens the backend `name`.

    Raises:
        SpecError: no backend has that name, or its package can't be imported.
    """
    if name in _OURS:
        module, _, function = _OURS[name].partition(":")
        ours: OpenBackend = getattr(import_module(module), function)
        return ours
    points = entry_points(group=GROUP, name=name)
    if not points:
        raise SpecError([unknown("--backend", name, "backend", backend_names())])
    try:
        opener: OpenBackend = next(iter(points)).load()
    except (ImportError, AttributeError) as error:
        rule = f"its package can't be imported ({error})"
        raise SpecError([Problem("--backend", name, rule, f"one of {', '.join(_OURS)}")]) from error
    return opener
