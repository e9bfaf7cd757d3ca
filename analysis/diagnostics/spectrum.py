"""The spectrum of trained updates, and how well each method could approximate full fine-tuning's update.

The table `spectrum` has for every target weight the singular values of the update, its stable and effective rank, and
the overlap of its leading singular subspace with that of full fine-tuning's update. The table `approximation` has the
least relative error of approximating full fine-tuning's update: by rank r (the truncated SVD, equation 8 of arXiv
2502.00987), by RandLoRA's form (equation 6, fitted, with the bound of its theorem, equation 7), and by VeRA's form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import randlora
from analysis.diagnostics.units import Unit, sweep_facts
from analysis.diagnostics.weights import Kept, deltas, full_fine_tuning_of, kept_trials, left_out_sentence, target_names
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store
from trainables.tasks.lane_cache import LaneCache

OVERLAP_RANK = 8
"""Number of leading singular directions that `overlap` compares."""
WEIGHTS = 4
"""Number of target weights that are approximated, evenly spaced through the model. A fit of a large one takes minutes.
"""
TINY = 1e-12
CHUNK = 2**24
"""Largest number of values in memory while solving for gamma."""


def stable_rank(singular: Tensor) -> float:
    """Return the stable rank sum s_i^2 / s_1^2, between 1 and the rank; 0 for a zero matrix."""
    top = float(singular.max())
    return 0.0 if top <= TINY else float((singular.double() ** 2).sum() / top**2)


def effective_rank(singular: Tensor) -> float:
    """Return exp of the entropy of s / sum s (Roy and Vetterli, EUSIPCO 2007); 0 for a zero matrix."""
    total = float(singular.sum())
    if total <= TINY:
        return 0.0
    p = singular.double() / total
    p = p[p > TINY]
    return float(torch.exp(-(p * p.log()).sum()))


def numerical_rank(singular: Tensor, shape: tuple[int, int]) -> int:
    """Return the number of singular values above max(shape) * float32's eps * s_1."""
    return int((singular > max(shape) * torch.finfo(torch.float32).eps * singular.max()).sum()) if len(singular) else 0


def subspace_overlap(a: Tensor, b: Tensor, k: int = OVERLAP_RANK) -> float | None:
    """Return ||U_a^T U_b||_F^2 / k for the k leading left singular vectors of two matrices.

    It is 1 for the same subspace, and about k / out by chance. It is None if a matrix has fewer than k singular values
    that are not zero.
    """
    bases = []
    for matrix in (a, b):
        u, s, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
        if numerical_rank(s.float(), (matrix.shape[0], matrix.shape[1])) < k:
            return None
        bases.append(u[:, :k])
    return float((bases[0].T @ bases[1]).square().sum() / k)


def lora_errors(singular: Tensor) -> list[float]:
    """Return the relative Frobenius error of the best approximation of rank r, for r = 0 .. m.

    No LoRA of rank r has a smaller error.
    """
    squares = singular.double() ** 2
    total = float(squares.sum())
    if total <= TINY:
        return [0.0] * (len(singular) + 1)
    remaining = torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.double)])
    return [float(v) for v in (remaining.clamp_min(0) / total).sqrt()]


def randlora_error(target: Tensor, r: int, *, sweeps: int = 40, settle: float = 1e-4) -> tuple[int, float]:
    """Return RandLoRA's number of parameters, and its relative Frobenius error if fitted to one matrix (out, in).

    RandLoRA's form (equation 6) is linear in lambda and in gamma. So each is found by least squares while the other is
    fixed, in alternation. The problem is not convex, so the result is an upper bound of the least error.

    Args:
        target: (out, in) the matrix.
        r: RandLoRA's rank.
        sweeps: largest number of alternations.
        settle: the fit ends if the error falls by less than this in an alternation.
    """
    norm = float(target.norm())
    if norm <= TINY:
        return 0, 0.0
    unit_target = target.double() / norm
    adapter, count = _adapter(unit_target, randlora.RandLoraConfig(r=r))
    b, a = adapter.part().b.double(), adapter.part().a.double()  # (D, r n), (r, m)
    if unit_target.shape[0] < unit_target.shape[1]:
        unit_target = unit_target.T
    return count, _fit_error(unit_target, b, a, sweeps, settle)


def randlora_bound(target: Tensor, r: int, *, sweeps: int = 40, settle: float = 1e-4) -> float:
    """Return the bound n eps of the paper's theorem (equation 7) on RandLoRA's error, relative to the target's norm.

    The SVD of the target (out, in) is cut into n parts of rank at most r. Part j is fitted by the single term
    B_j diag(lambda_j) A diag(gamma_j), and eps is the largest Frobenius error of a part. The fits are upper bounds
    (`randlora_error`), so the result is one too. Other arguments as there.
    """
    norm = float(target.norm())
    if norm <= TINY:
        return 0.0
    unit_target = target.double() / norm
    adapter, _ = _adapter(unit_target, randlora.RandLoraConfig(r=r))
    b, a = adapter.part().b.double(), adapter.part().a.double()
    u, s, v = torch.linalg.svd(
        unit_target.T if unit_target.shape[0] < unit_target.shape[1] else unit_target, full_matrices=False
    )
    n: int = b.shape[1] // r
    largest = 0.0
    for j in range(n):
        at = slice(j * r, (j + 1) * r)
        part = (u[:, at] * s[at]) @ v[at]
        if (size := float(part.norm())) > TINY:
            largest = max(largest, size * _fit_error(part / size, b[:, j::n], a, sweeps, settle))
    return n * largest


def _fit_error(unit_target: Tensor, b: Tensor, a: Tensor, sweeps: int, settle: float) -> float:
    """Return the error of sum_j B_j diag(lambda_j) A diag(gamma_j) fitted to a matrix (D, m) of norm 1.

    Args:
        unit_target: (D, m) the matrix.
        b: (D, r n); column k n + j is column k of B_j.
        a: (r, m).
        sweeps, settle: as in `randlora_error`.
    """
    r, n = len(a), b.shape[1] // len(a)
    gram, cross = b.T @ b, b.T @ unit_target  # (r n, r n), (r n, m)

    def turn(lam: Tensor) -> tuple[Tensor, Tensor]:
        gam = _gammas(gram, cross, a, lam)
        q = (a.unsqueeze(1) * gam).flatten(0, 1)  # (r n, m): row k n + j is A_k * gamma_j
        lam = _solve(gram * (q @ q.T), (cross * q).sum(dim=1)).reshape(r, n)
        return lam, b @ (lam.reshape(-1, 1) * q)

    return _alternating_error(unit_target, (r, n), turn, sweeps, settle)


def vera_error(target: Tensor, r: int, *, sweeps: int = 40, settle: float = 1e-4) -> tuple[int, float]:
    """Return VeRA's number of parameters, and its relative Frobenius error if fitted to one matrix (out, in).

    VeRA's form diag(b) B diag(d) A is linear in b and in d. It is fitted as in `randlora_error`, so the result is an
    upper bound as well.
    """
    norm = float(target.norm())
    if norm <= TINY:
        return 0, 0.0
    unit_target = target.double() / norm
    adapter, count = _adapter(unit_target, randlora.VeraConfig(r=r))
    b, a = adapter.bases.get("B").double(), adapter.bases.get("A").double()  # (out, r), (r, in)

    def turn(d: Tensor) -> tuple[Tensor, Tensor]:
        product = (b * d) @ a
        rows = (unit_target * product).sum(dim=1) / product.square().sum(dim=1).clamp_min(TINY)
        scaled = b * rows.unsqueeze(1)
        d = _solve((scaled.T @ scaled) * (a @ a.T), ((scaled.T @ unit_target) * a).sum(dim=1))
        return d, (scaled * d) @ a

    return count, _alternating_error(unit_target, (r,), turn, sweeps, settle)


def _adapter(matrix: Tensor, config: Any) -> tuple[Any, int]:
    """Return a new adapter for a matrix of this shape (out, in), and its number of parameters."""
    host = nn.Sequential(nn.Linear(matrix.shape[1], matrix.shape[0], bias=False))
    adapted = randlora.attach(host, config, ["0.weight"], basis_seed=0)
    adapter, count = adapted.adapters["0.weight"], adapted.count()
    adapted.detach()
    return adapter, count


def _alternating_error(
    unit_target: Tensor,
    shape: tuple[int, ...],
    turn: Callable[[Tensor], tuple[Tensor, Tensor]],
    sweeps: int,
    settle: float,
) -> float:
    """Return the error of a form whose two factors are fitted in alternation, from a random start of the first.

    Args:
        unit_target: the matrix to fit, of norm 1.
        shape: shape of the first factor.
        turn: function that takes the first factor, and returns a better one and the fitted matrix.
        sweeps, settle: as in `randlora_error`.
    """
    half = torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    error = last = 1.0
    for _ in range(sweeps):
        half, fitted = turn(half)
        error = float((unit_target - fitted).norm())
        if last - error < settle:
            break
        last = error
    return min(error, last)


def _gammas(gram: Tensor, cross: Tensor, a: Tensor, lam: Tensor) -> Tensor:
    """Return gamma (n, m), by least squares for each column of the target."""
    r, n = lam.shape
    scaled = (lam.unsqueeze(2) * a.unsqueeze(1)).flatten(0, 1).T  # (m, r n)
    at_once = max(1, CHUNK // gram.numel())
    columns = []
    for p, right in zip(torch.split(scaled, at_once), torch.split(cross.T, at_once), strict=True):
        left = (p.unsqueeze(2) * gram * p.unsqueeze(1)).reshape(-1, r, n, r, n).sum(dim=(1, 3))
        columns.append(_solve(left, (p * right).reshape(-1, r, n).sum(dim=1)))
    return torch.cat(columns).T


def _solve(left: Tensor, right: Tensor) -> Tensor:
    """Solve normal equations with a very small ridge, so that directions without effect stay small."""
    ridge = 1e-10 * left.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    eye = torch.eye(left.shape[-1], dtype=left.dtype)
    solution: Tensor = torch.linalg.solve(left + (ridge + TINY) * eye, right)
    return solution


def plan(store: Store) -> list[Unit]:
    """Return a unit for the spectrum of each kept trial, and one for each approximated weight of full fine-tuning.

    Trials whose update is not a matrix are left out (`weights.left_out_sentence`).

    Raises:
        StoreError: no kept trial has a spectrum, or the sweep's specification is missing.
    """
    trials = kept_trials(store)
    facts = sweep_facts(store)
    units = []
    for kept in (k for k in trials if k.matrix):
        full, targets = full_fine_tuning_of(trials, kept), target_names(trials, kept)
        same = full is None or full.row["trial_id"] == kept.row["trial_id"]
        pair = (kept.brief,) if same or full is None else (kept.brief, full.brief)
        units.append(Unit("spectrum", pair, {"weights": targets}, facts))
        if kept.full and targets:
            step = max(1, len(targets) // WEIGHTS)
            looked_at = targets[::step][:WEIGHTS]
            units += [Unit("approximation", (kept.brief,), {"weight": name}, facts) for name in looked_at]
    if not units:
        raise StoreError(f"no kept trial has a spectrum. {left_out_sentence(store)}")
    return units


def rows(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return the rows of one unit: `spectrum_rows` or `approximations`. Arguments as in `analyze.compute`."""
    base = unit.facts["train"].get("base_weights", "fp32")  # DoRA's update depends on what it was rounded to
    module = LaneCache(cache, torch.device("cpu")).model(unit.trials[0]["model"], base).module
    kept = Kept.of(unit.trials[0], folder)
    if unit.table == "approximation":
        name = unit.settings["weight"]
        about = unit.place | {"trial_id": kept.row["trial_id"]}
        update = deltas(module, kept, [name])[name]
        drawn = torch.randn(*update.shape, generator=torch.Generator().manual_seed(0))
        updates = {"trained": update, "random": drawn}
        return [
            about | {"target": which} | row for which, matrix in updates.items() for row in approximations(name, matrix)
        ]
    targets = unit.settings["weights"] or None
    full = deltas(module, Kept.of(unit.trials[1], folder), targets) if len(unit.trials) > 1 else None
    return [unit.place | kept.named | row for row in spectrum_rows(deltas(module, kept, targets), full)]


def spectrum_rows(updates: Mapping[str, Tensor], full: Mapping[str, Tensor] | None) -> list[Row]:
    """Return a row for each weight of one trial, with its norms, ranks, overlap and singular values.

    Args:
        updates: the trial's update of each weight.
        full: full fine-tuning's updates, with which the overlap is computed; None without it.
    """
    rows_of_weights = []
    for name, delta in updates.items():
        shape = (delta.shape[0], delta.shape[1])
        s = torch.linalg.svdvals(delta)
        full_delta = None if full is None else full.get(name)
        rows_of_weights.append(
            {
                "weight": name,
                "out_features": shape[0],
                "in_features": shape[1],
                "frobenius": float(delta.norm()),
                "spectral": float(s.max()),
                "stable_rank": stable_rank(s),
                "effective_rank": effective_rank(s),
                "rank": numerical_rank(s, shape),
                "overlap_k": OVERLAP_RANK,
                "overlap": None if full_delta is None else subspace_overlap(delta, full_delta),
                "singular_values": [float(v) for v in s],
            }
        )
    return rows_of_weights


def approximations(name: str, update: Tensor) -> list[Row]:
    """Return how well LoRA, RandLoRA and VeRA can approximate one weight's update (out, in) at equal parameters.

    Each row compares the methods at the parameter count of LoRA at one rank: 1, 2, 4, ... up to the largest count that
    RandLoRA can have, m (m + 1). RandLoRA gets the rank that brings its count nearest. VeRA has r + out parameters, so
    it is compared at LoRA's rank 1 alone, with r = in. LoRA's error is the smallest that is possible. The errors of the
    other two come from fits, so the smallest possible ones may be lower.
    """
    out, in_ = update.shape
    m = min(out, in_)
    errors = lora_errors(torch.linalg.svdvals(update))
    rows_of_forms: list[Row] = []
    for rank in (2**i for i in range(12) if 2**i * (out + in_) <= m * (m + 1)):
        lora_count = rank * (out + in_)
        # RandLoRA's count n (r + m), n = ceil(m / r), falls with r on the whole: take the nearest
        r = min(range(1, m + 1), key=lambda q: abs(-(-m // q) * (q + m) - lora_count))
        count, error = randlora_error(update, r)
        fixed: Row = {"weight": name, "out_features": out, "in_features": in_, "lora_rank": rank}
        rows_of_forms.append(
            fixed | {"form": "lora", "capacity": rank, "parameters": lora_count, "error": errors[rank]}
        )
        bound = randlora_bound(update, r)
        rows_of_forms.append(
            fixed | {"form": "randlora", "capacity": r, "parameters": count, "error": error, "bound": bound}
        )
        if rank == 1:
            count, error = vera_error(update, in_)
            rows_of_forms.append(fixed | {"form": "vera", "capacity": in_, "parameters": count, "error": error})
    return rows_of_forms
