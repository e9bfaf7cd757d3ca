"""What trials need of a node beside this package: files, methods, modules."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from sweeps.backends.packs import smallest_gpu
from trainables.errors import first_line


@dataclass(frozen=True)
class Needs:
    """What a machine must have for trials.

    Attributes:
        paths: of models and data, absolute.
        methods: names in the registry, which other packages may have to fill.
        modules: to be imported.
        gpu_bytes: memory that every GPU of a node must have, if trials got their part of a GPU by its memory; else 0.
    """

    paths: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    gpu_bytes: int = 0

    def lacking(self) -> Iterator[str]:
        """What this machine has not, in words."""
        yield from (path for path in self.paths if not os.access(path, os.R_OK))
        for module in self.modules:
            try:
                importlib.import_module(module)
            except ImportError as error:
                yield f"module {module} ({first_line(error)})"
        if self.gpu_bytes:
            with contextlib.suppress(ValueError):  # a node without GPUs gets no lanes that need one
                if smallest_gpu() < self.gpu_bytes:
                    yield f"GPUs with the {self.gpu_bytes / 2**30:.1f} GiB that trials share (gpus_per_worker)"
        if self.methods:
            from randlora.errors import AdapterError, UnknownMethodError
            from randlora.methods.registry import get_method
        for method in self.methods:
            try:
                get_method(method)
            except UnknownMethodError:  # its message lists all others
                yield f"method {method}"
            except AdapterError as error:
                yield f"method {method} ({first_line(error)})"
