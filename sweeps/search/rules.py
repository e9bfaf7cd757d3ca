"""The rules by which the trials of a results folder are made, and the seeds that follow from them."""

from __future__ import annotations

import hashlib

RULES = {
    "seed_rule": "per-data-set",
    "grid_rule": "nested",
    "path_rule": "as-written",
    "tie_rule": "loss-then-centre",
}
"""The rules of this version. `spec.json` has them, so that versions with different rules do not share a folder.

- `seed_rule`: a trial's seeds are derived from the declared seed, its data set and its training size. They are the same
  for all methods and budgets. So a lucky seed on one data set is not lucky on another.
- `grid_rule`: the k-th point of a grid is the same for every allowance.
- `path_rule`: ids contain the paths as the sweep file has them, so a folder goes on if its data are moved.
- `tie_rule`: if points have equal validation scores, the one with the lower training loss is better, then the one whose
  rate is nearest to the centre of its range.
"""


def derived_seed(seed: int, dataset: str, train_size: str | float) -> int:
    """Return the seed that a trial trains with: 31 bits of BLAKE2b over data set, training size and declared seed.

    Args:
        seed: the declared seed.
        dataset: the data set, as the sweep file names it.
        train_size: the training size.
    """
    digest = hashlib.blake2b(f"{dataset}|{train_size}|{seed}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
