"""What files need of a model with adapters: `randlora.adapted.adapted.Adapted` has it, and lies above this room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from randlora.adapter import Adapter, AdapterConfig, Shape
from randlora.arithmetic.bases import Bases
from randlora.methods.method import Method
from randlora.model.sites import Site


class Adapted(Protocol):
    """A model with its adapters."""

    model: nn.Module
    method: Method
    config: AdapterConfig
    capacities: dict[str, int]
    sites: dict[str, Site]
    adapters: dict[str, Adapter]
    shapes: dict[str, Shape]
    init_seed: int
    basis_seed: int

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def bases(self) -> Bases | None: ...
    def derived(self) -> dict[str, Tensor]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
    def deltas(self) -> dict[str, Tensor]: ...
    def merging(self) -> AbstractContextManager[nn.Module]: ...
