"""The rules by which a results folder's trials are made. They change between versions; a folder keeps its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Rules:
    """Rules of one results folder, as `spec.json` has them; a folder without them was made by those of `OLD`.

    Attributes:
        seed_rule: "per-data-set": a trial's seeds are derived from the declared one, its data set and its training
            size, alike for all methods and budgets, so that a seed's luck on one data set says nothing of another;
            "shared": the declared seeds themselves.
        grid_rule: "nested": the k-th point of a grid is the same for every allowance; "equal-steps": a grid has equal
            steps for the allowance it was begun with, lower rates first.
        path_rule: "as-written": ids have the paths of the sweep file, so a folder goes on wherever its data lie;
            "absolute": they have where the data lay.
        tie_rule: of points with equal validation scores "loss-then-centre" takes the one with the lower training loss,
            then the one whose rate is nearest to the centre of its range; "earlier" the one that was asked first.
    """

    seed_rule: str = "per-data-set"
    grid_rule: str = "nested"
    path_rule: str = "as-written"
    tie_rule: str = "loss-then-centre"

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """The rules that a folder's `spec.json` names, the old ones where it names none."""
        return cls(**{name: stored.get(name, old) for name, old in asdict(OLD).items()})


OLD = Rules(seed_rule="shared", grid_rule="equal-steps", path_rule="absolute", tie_rule="earlier")


def derived_seed(seed: int, dataset: str, train_size: str | float) -> int:
    """31 bits of BLAKE2b over a data set (as the sweep file names it), a training size and a declared seed."""
    digest = hashlib.blake2b(f"{dataset}|{train_size}|{seed}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
