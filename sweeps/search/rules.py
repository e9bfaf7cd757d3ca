"""The rules by which a results folder's trials are made, and seeds by them."""

from __future__ import annotations

import hashlib

RULES = {
    "seed_rule": "per-data-set",
    "grid_rule": "nested",
    "path_rule": "as-written",
    "tie_rule": "loss-then-centre",
}
"""What `spec.json` names, so that a version whose rules differ doesn't mix its trials with a folder's.

- `seed_rule`: a trial's seeds are derived from the declared one, its data set and its training size, alike for all
  methods and budgets, so that a seed's luck on one data set says nothing of another.
- `grid_rule`: the k-th point of a grid is the same for every allowance.
- `path_rule`: ids have the paths of the sweep file, so a folder goes on wherever its data lie.
- `tie_rule`: of points with equal validation scores the one with the lower training loss leads, then the one whose rate
  is nearest to the centre of its range.
"""


def derived_seed(seed: int, dataset: str, train_size: str | float) -> int:
    """31 bits of BLAKE2b over a data set (as the sweep file names it), a training size and a declared seed."""
    digest = hashlib.blake2b(f"{dataset}|{train_size}|{seed}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
