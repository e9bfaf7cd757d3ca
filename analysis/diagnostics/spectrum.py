"""The spectrum of trained updates, and how well each method could approximate full fine-tuning's update.

For every target weight: stable and effective rank and the singular values of the update, the overlap of its leading
singular subspaces with those of full fine-tuning's update, and the least relative error of approximating the latter:
by rank r (the truncated SVD, equation 8 of arXiv 2502.00987) and by RandLoRA's form (equation 6), fitted, with the
bound of its theorem (equation 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import randlora
from analysis.diagnostics.units import Unit, sweep_facts
from analysis.diagnostics.weights import Kept, deltas, full_of, kept_trials, left_out, target_names
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store
from trainables.tasks.lane_cache import LaneCache

OVERLAP_RANK = 8
"""Leading singular directions that `overlap` compares."""
WEIGHTS = 4
"""Target weights whose approximation is looked at, evenly spaced through the model: a fit takes minutes where they are
large."""
TINY = 1e-12
CHUNK = 2**24
"""Numbers held at once while solving for gamma."""


def stable_rank(singular: Tensor) -> float:
    """sum s_i^2 / s_1^2, between 1 and the rank; 0 for a zero matrix."""
    top = float(singular.max())
    return 0.0 if top <= TINY else float((singular.double() ** 2).sum() / top**2)


def effective_rank(singular: Tensor) -> float:
    """exp of the entropy of s / sum s (Roy and Vetterli, EUSIPCO 2007); 0 for a zero matrix."""
    total = float(singular.sum())
    if total <= TINY:
        return 0.0
    p = singular.double() / total
    p = p[p > TINY]
    return float(torch.exp(-(p * p.log()).sum()))


def numerical_rank(singular: Tensor, shape: tuple[int, int]) -> int:
    """Singular values above max(shape) * float32's eps * s_1."""
    return int((singular > max(shape) * torch.finfo(torch.float32).eps * singular.max()).sum()) if len(singular) else 0


def subspace_overlap(a: Tensor, b: Tensor, k: int = OVERLAP_RANK) -> float | None:
    """||U_a^T U_b||_F^2 / k of the k leading left singular vectors: 1 the same subspace, about k / out by chance.

    None where a matrix has fewer than k singular values that are not zero.
    """
    bases = []
    for matrix in (a, b):
        u, s, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
        if numerical_rank(s.float(), (matrix.shape[0], matrix.shape[1])) < k:
            return None
        bases.append(u[:, :k])
    return float((bases[0].T @ bases[1]).square().sum() / k)


def lora_errors(singular: Tensor) -> list[float]:
    """Relative Frobenius error of the best approximation of rank r, r = 0 .. m: what no LoRA of rank r can beat."""
    squares = singular.double() ** 2
    total = float(squares.sum())
    if total <= TINY:
        return [0.0] * (len(singular) + 1)
    rest = torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.double)])
    return [float(v) for v in (rest.clamp_min(0) / total).sqrt()]


def randlora_error(target: Tensor, r: int, *, sweeps: int = 40, settle: float = 1e-4) -> tuple[int, float]:
    """(trainables, relative Frobenius error) of RandLoRA's form (equation 6) fitted to one matrix (out, in).

    The form is linear in lambda and in gamma, so each is found exactly by least squares while the other is held, in
    turn, until the error falls by less than `settle` in a sweep. The whole is not convex: an upper bound of the least
    error, never rising from sweep to sweep.

    Args:
        r: RandLoRA's rank.
        sweeps: most turns.
    """
    norm = float(target.norm())
    if norm <= TINY:
        return 0, 0.0
    wanted = target.double() / norm
    adapter, count = _adapter(wanted, randlora.RandLoraConfig(r=r))
    b, a = adapter.part().b.double(), adapter.part().a.double()  # (D, r n), (r, m)
    if wanted.shape[0] < wanted.shape[1]:
        wanted = wanted.T
    return count, _fitted(wanted, b, a, sweeps, settle)


def randlora_bound(target: Tensor, r: int, *, sweeps: int = 40, settle: float = 1e-4) -> float:
    """n eps, relative to the target's norm: what the paper's theorem (equation 7) promises of RandLoRA's error.

    The SVD of the target (out, in) is cut into n parts of rank r at most, part j is fitted by the one term
    B_j diag(lambda_j) A diag(gamma_j), and eps is the largest Frobenius error of a part. An upper bound of the bound,
    as the fits are (`randlora_error`).
    """
    norm = float(target.norm())
    if norm <= TINY:
        return 0.0
    wanted = target.double() / norm
    adapter, _ = _adapter(wanted, randlora.RandLoraConfig(r=r))
    b, a = adapter.part().b.double(), adapter.part().a.double()
    u, s, v = torch.linalg.svd(wanted.T if wanted.shape[0] < wanted.shape[1] else wanted, full_matrices=False)
    n: int = b.shape[1] // r
    largest = 0.0
    for j in range(n):
        at = slice(j * r, (j + 1) * r)
        part = (u[:, at] * s[at]) @ v[at]
        if (size := float(part.norm())) > TINY:
            largest = max(largest, size * _fitted(part / size, b[:, j::n], a, sweeps, settle))
    return n * largest


def _fitted(wanted: Tensor, b: Tensor, a: Tensor, sweeps: int, settle: float) -> float:
    """The error of sum_j B_j diag(lambda_j) A diag(gamma_j) fitted to `wanted` (D, m), of norm 1.

    Args:
        b: (D, r n), column k n + j of B_j.
        a: (r, m).
    """
    r, n = len(a), b.shape[1] // len(a)
    gram, cross = b.T @ b, b.T @ wanted  # (r n, r n), (r n, m)

    def turn(lam: Tensor) -> tuple[Tensor, Tensor]:
        gam = _gammas(gram, cross, a, lam)
        q = (a.unsqueeze(1) * gam).flatten(0, 1)  # (r n, m): row k n + j is A_k * gamma_j
        lam = _solve(gram * (q @ q.T), (cross * q).sum(dim=1)).reshape(r, n)
        return lam, b @ (lam.reshape(-1, 1) * q)

    return _by_turns(wanted, (r, n), turn, sweeps, settle)


def vera_error(target: Tensor, r: int, *, sweeps: int = 40, settle: float = 1e-4) -> tuple[int, float]:
    """(trainables, relative Frobenius error) of VeRA's form, diag(b) B diag(d) A, fitted to one matrix (out, in).

    Linear in b and in d: by turns, as `randlora_error`, and an upper bound as well.
    """
    norm = float(target.norm())
    if norm <= TINY:
        return 0, 0.0
    wanted = target.double() / norm
    adapter, count = _adapter(wanted, randlora.VeraConfig(r=r))
    b, a = adapter.bases.get("B").double(), adapter.bases.get("A").double()  # (out, r), (r, in)

    def turn(d: Tensor) -> tuple[Tensor, Tensor]:
        product = (b * d) @ a
        rows = (wanted * product).sum(dim=1) / product.square().sum(dim=1).clamp_min(TINY)
        scaled = b * rows.unsqueeze(1)
        d = _solve((scaled.T @ scaled) * (a @ a.T), ((scaled.T @ wanted) * a).sum(dim=1))
        return d, (scaled * d) @ a

    return count, _by_turns(wanted, (r,), turn, sweeps, settle)


def _adapter(wanted: Tensor, config: Any) -> tuple[Any, int]:
    """A fresh adapter of a matrix of this shape (out, in), and its trainables."""
    host = nn.Sequential(nn.Linear(wanted.shape[1], wanted.shape[0], bias=False))
    adapted = randlora.attach(host, config, ["0.weight"], basis_seed=0)
    adapter, count = adapted.adapters["0.weight"], adapted.count()
    adapted.detach()
    return adapter, count


def _by_turns(
    wanted: Tensor, shape: tuple[int, ...], turn: Callable[[Tensor], tuple[Tensor, Tensor]], sweeps: int, settle: float
) -> float:
    """The error of a form whose two halves are fitted by turns, from a random start of one of them.

    Args:
        wanted: what is fitted, of norm 1.
        shape: of the half that starts.
        turn: from that half to a better one, and the fitted matrix.
        sweeps, settle: as in `randlora_error`.
    """
    half = torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    error = last = 1.0
    for _ in range(sweeps):
        half, fitted = turn(half)
        error = float((wanted - fitted).norm())
        if last - error < settle:
            break
        last = error
    return min(error, last)


def _gammas(gram: Tensor, cross: Tensor, a: Tensor, lam: Tensor) -> Tensor:
    """(n, m): gamma by least squares, column by column of the target."""
    r, n = lam.shape
    scaled = (lam.unsqueeze(2) * a.unsqueeze(1)).flatten(0, 1).T  # (m, r n)
    at_once = max(1, CHUNK // gram.numel())
    found = []
    for p, right in zip(torch.split(scaled, at_once), torch.split(cross.T, at_once), strict=True):
        left = (p.unsqueeze(2) * gram * p.unsqueeze(1)).reshape(-1, r, n, r, n).sum(dim=(1, 3))
        found.append(_solve(left, (p * right).reshape(-1, r, n).sum(dim=1)))
    return torch.cat(found).T


def _solve(left: Tensor, right: Tensor) -> Tensor:
    """Normal equations with a trace of ridge: a direction that changes nothing stays small."""
    ridge = 1e-10 * left.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    eye = torch.eye(left.shape[-1], dtype=left.dtype)
    found: Tensor = torch.linalg.solve(left + (ridge + TINY) * eye, right)
    return found


def plan(store: Store) -> list[Unit]:
    """A unit per kept trial for its spectrum, and one per weight of `approximation` for each full fine-tuning.

    Trials whose update is no matrix are left out (`weights.left_out`).

    Raises:
        StoreError: nothing kept that has a spectrum, or no specification of the sweep.
    """
    trials = kept_trials(store)
    facts = sweep_facts(store)
    units = []
    for kept in (k for k in trials if k.matrix):
        full, targets = full_of(trials, kept), target_names(trials, kept)
        same = full is None or full.row["trial_id"] == kept.row["trial_id"]
        pair = (kept.brief,) if same or full is None else (kept.brief, full.brief)
        units.append(Unit("spectrum", pair, {"weights": targets}, facts))
        if kept.full and targets:
            step = max(1, len(targets) // WEIGHTS)
            looked_at = targets[::step][:WEIGHTS]
            units += [Unit("approximation", (kept.brief,), {"weight": name}, facts) for name in looked_at]
    if not units:
        raise StoreError(f"no kept trial has a spectrum. {left_out(store)}")
    return units


def rows(folder: Path, unit: Unit, warm: dict[str, Any]) -> list[Row]:
    """Rows of one unit of `plan` (arguments: `analyze.compute`); see `spectrum_rows` and `approximations`."""
    base = unit.facts["train"].get("base_weights", "fp32")  # DoRA's update depends on what it was rounded to
    module = LaneCache(warm, torch.device("cpu")).model(unit.trials[0]["model"], base).module
    kept = Kept.of(unit.trials[0], folder)
    if unit.table == "approximation":
        name = unit.settings["weight"]
        about = unit.place | {"trial_id": kept.row["trial_id"]}
        update = deltas(module, kept, [name])[name]
        drawn = torch.randn(*update.shape, generator=torch.Generator().manual_seed(0))
        both = {"trained": update, "random": drawn}
        return [about | {"target": which} | row for which, one in both.items() for row in approximations(name, one)]
    targets = unit.settings["weights"] or None
    full = deltas(module, Kept.of(unit.trials[1], folder), targets) if len(unit.trials) > 1 else None
    return [unit.place | kept.named | row for row in spectrum_rows(deltas(module, kept, targets), full)]


def spectrum_rows(mine: Mapping[str, Tensor], full: Mapping[str, Tensor] | None) -> list[Row]:
    """Per weight of one trial its size, norms, ranks, overlap with full fine-tuning's update, and singular values."""
    found = []
    for name, delta in mine.items():
        shape = (delta.shape[0], delta.shape[1])
        s = torch.linalg.svdvals(delta)
        other = None if full is None else full.get(name)
        found.append(
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
                "overlap": None if other is None else subspace_overlap(delta, other),
                "singular_values": [float(v) for v in s],
            }
        )
    return found


def approximations(name: str, update: Tensor) -> list[Row]:
    """How well LoRA's, RandLoRA's and VeRA's forms can hold one weight's update at equal parameters.

    LoRA's ranks are powers of two whose counts RandLoRA reaches too (m (m + 1)). Its error is the exact optimum, the
    others' are fits, so upper bounds. RandLoRA's rank is the one nearest to LoRA's count; VeRA's count r + out reaches
    that of LoRA rank 1 alone, at r = in. `update`: (out, in).
    """
    out, in_ = update.shape
    m = min(out, in_)
    errors = lora_errors(torch.linalg.svdvals(update))
    found: list[Row] = []
    for rank in (2**i for i in range(12) if 2**i * (out + in_) <= m * (m + 1)):
        lora_count = rank * (out + in_)
        # RandLoRA's count n (r + m), n = ceil(m / r), falls with r on the whole: take the nearest
        r = min(range(1, m + 1), key=lambda q: abs(-(-m // q) * (q + m) - lora_count))
        count, error = randlora_error(update, r)
        fixed: Row = {"weight": name, "out_features": out, "in_features": in_, "lora_rank": rank}
        found.append(fixed | {"form": "lora", "capacity": rank, "parameters": lora_count, "error": errors[rank]})
        bound = randlora_bound(update, r)
        found.append(fixed | {"form": "randlora", "capacity": r, "parameters": count, "error": error, "bound": bound})
        if rank == 1:
            count, error = vera_error(update, in_)
            found.append(fixed | {"form": "vera", "capacity": in_, "parameters": count, "error": error})
    return found
