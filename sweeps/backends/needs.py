"""Checks whether a node has what trials need besides this package: files, methods, modules."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from sweeps.packing.sizes import smallest_gpu
from trainables.errors import first_line


@dataclass(frozen=True)
class Needs:
    """What a node must have so that it can run trials.

    Attributes:
        paths: absolute paths of models and data.
        methods: names of methods, some of which other packages may have to register.
        modules: names of modules that must be importable.
        gpu_bytes: bytes of memory that every GPU of a node must have; 0 if trials do not share GPUs by memory.
    """

    paths: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    gpu_bytes: int = 0

    def lacking(self) -> Iterator[str]:
        """Yield, in words, each thing that this machine lacks."""
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
