"""Import PEFT, and find the configuration class of a type."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.sparse import check_sparse_tensor_invariants

from randlora.errors import AdapterError

PREFIX = "peft:"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings in the block: PEFT warns of things that are done here on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft() -> Any:
    """Return the package `peft`. Raises AdapterError with the command that installs it if it is missing."""
    try:
        with quiet():
            import peft
    except ImportError as error:
        raise AdapterError(
            f"methods called {PREFIX}NAME need the package peft ({error}): pip install 'randlora-sweeps[peft]'"
        ) from error
    invariants: Any = check_sparse_tensor_invariants
    if not invariants.is_enabled():
        invariants.disable()  # they are off already; torch warns in SHiRA's forward until this is said
    return peft


def types_of_peft() -> dict[str, type[Any]]:
    """Return the configuration class of every type of the installed PEFT, by the type's name in small letters."""
    return {key.lower(): theirs for key, theirs in peft().mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def fields_of(theirs: type[Any]) -> dict[str, Any]:
    """Return the fields of a configuration class and their defaults, as far as these are plain values."""
    return {field.name: field.default for field in dataclasses.fields(theirs)}
