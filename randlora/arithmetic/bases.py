"""Draw frozen bases from a seed with integer arithmetic, so that every machine gets the same bits.

`torch.randn` gives different numbers on different CPUs (the width of their vectors matters), and device generators
differ by design. Here entry (i, j) of a named stream is a 64-bit integer hash of (seed, stream, i, j) (SplitMix64:
Steele et al. 2014). Operations that IEEE 754 rounds correctly turn it into a number. So a checkpoint can hold a seed
instead of the bases, a larger basis contains the smaller one, and digests in the tests fix every bit.

The distributions have mean 0 and variance 1 (section 6.3 of the RandLoRA paper compares them):
`uniform` on +-sqrt(3); `normal`; `binary`: +-1; `ternary`: -c and +c with probability 1/s each, else 0, c = sqrt(s /
2).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from randlora.errors import AdapterError, ConfigError, nearest

GENERATOR_VERSION = 1
"""The version of the generator. It changes if a seed would give other bits; checkpoints of another version are
refused."""

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_CHUNK = 1 << 20


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed made from named parts: the first bytes of their SHA-256. It is the same on every machine.

    Because each draw has its own name, no draw depends on the order in which things are made.
    """
    digest = hashlib.sha256("\x1f".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _signed(value: int) -> int:
    """Return the int64 that has the bits of this unsigned 64-bit integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _mix(z: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser in place. int64 multiplication wraps, and the mask makes the shift a logical one."""
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        z.bitwise_xor_((z >> shift) & ((1 << (64 - shift)) - 1)).mul_(_signed(factor))
    return z.bitwise_xor_((z >> 31) & ((1 << 33) - 1))


def random_bits(seed: int, stream: str, rows: range, cols: int) -> Tensor:
    """Return uniform 64-bit integers, int64 (len(rows), cols). Entry (i, j) depends on seed, stream, i and j alone."""
    key = hashlib.sha256(f"{GENERATOR_VERSION}\x1f{seed}\x1f{stream}".encode()).digest()
    row = torch.arange(rows.start + 1, rows.stop + 1, dtype=torch.int64).mul_(_signed(_GOLDEN))
    row = _mix(row.add_(int.from_bytes(key[:8], "little", signed=True)))
    col = torch.arange(1, cols + 1, dtype=torch.int64).mul_(_signed(_GOLDEN))
    return _mix(row[:, None] + col)


def _uniform(bits: Tensor) -> Tensor:
    """Return odd multiples of 2^-24 in (-1, 1), which float32 holds exactly, times sqrt(3)."""
    odd = ((bits >> 40) & 0xFFFFFF).mul_(2).sub_((1 << 24) - 1)
    return odd.to(torch.float32).mul_(math.sqrt(3.0) / (1 << 24))


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Return the polynomial with these coefficients (highest power first) at x."""
    total = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total.mul_(x).add_(c)
    return total


def _log(x: Tensor) -> Tensor:
    """Return the natural logarithm in float64, from correctly rounded operations alone: a library's log may differ by
    CPU."""
    mantissa, exponent = torch.frexp(x)  # x = mantissa * 2^exponent, mantissa in [1/2, 1)
    low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(low, mantissa * 2.0, mantissa)
    exponent = exponent.to(torch.float64) - low.to(torch.float64)
    t = (mantissa - 1.0) / (mantissa + 1.0)  # |t| < 0.172: 12 terms of artanh reach 1e-19
    series = _horner(tuple(1.0 / (2 * k + 1) for k in range(11, -1, -1)), t * t)
    return series.mul_(t).mul_(2.0).add_(exponent.mul_(0.6931471805599453))


# Wichura's AS241 (PPND16), Applied Statistics 37 (1988): the inverse normal CDF to about 1e-16, highest power first.
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def _normal(bits: Tensor) -> Tensor:
    """Return normal numbers: the inverse CDF at (k + 1/2) / 2^32 in float64, rounded to float32 at the end. |z|
    <= 6.4."""
    p = ((bits >> 32) & 0xFFFFFFFF).to(torch.float64).add_(0.5).mul_(2.0**-32)
    q = p - 0.5
    r = 0.180625 - q * q
    z = q * (_horner(_CENTRE[0], r) / _horner(_CENTRE[1], r))
    outer = q.abs() > 0.425
    p_out, q_out = p[outer], q[outer]
    r = torch.sqrt(-_log(torch.minimum(p_out, 1.0 - p_out)))
    middle = _horner(_MIDDLE[0], r - 1.6) / _horner(_MIDDLE[1], r - 1.6)
    tail = _horner(_TAIL[0], r - 5.0) / _horner(_TAIL[1], r - 5.0)
    z[outer] = torch.where(r <= 5.0, middle, tail) * torch.sign(q_out)
    return z.to(torch.float32)


def _binary(bits: Tensor) -> Tensor:
    """Return +1 or -1 by the top bit."""
    return ((bits >> 63) & 1).mul_(2).sub_(1).to(torch.float32)


def _ternary(bits: Tensor, sparsity: float) -> Tensor:
    """Return -c, 0 or +c. The probability 1/s of each sign is rounded down to a multiple of 2^-32."""
    k = (bits >> 32) & 0xFFFFFFFF
    edge = int((1 << 32) / sparsity)
    signs = (k >= (1 << 32) - edge).to(torch.float32) - (k < edge).to(torch.float32)
    return signs.mul_(math.sqrt(sparsity / 2.0))


_PLAIN = {"uniform": _uniform, "normal": _normal, "binary": _binary}
DISTRIBUTIONS = (*_PLAIN, "ternary")


def check_distribution(name: str, sparsity: float) -> None:
    """Raise ConfigError for an unknown distribution, or a sparsity below 2. A sparsity of 2 is the dense binary
    basis."""
    if name not in DISTRIBUTIONS:
        raise ConfigError(f"unknown basis distribution {name!r}; {nearest(name, DISTRIBUTIONS)}")
    if not 2.0 <= sparsity <= 2.0**31:
        raise ConfigError(f"sparsity must be at least 2 (each sign has probability 1 / sparsity) but got {sparsity!r}")


@dataclass(frozen=True)
class Draw:
    """A frozen matrix (rows x cols): `std` times a draw of variance 1."""

    rows: int
    cols: int
    distribution: str = "uniform"
    std: float = 1.0
    sparsity: float = 6.0


def draw(seed: int, stream: str, spec: Draw) -> Tensor:
    """Return the matrix of a `Draw`, float32 on the CPU. It is made in chunks of rows, so that the integers take little
    memory."""
    check_distribution(spec.distribution, spec.sparsity)
    out = torch.empty(spec.rows, spec.cols, dtype=torch.float32)
    step = max(1, _CHUNK // max(1, spec.cols))
    for start in range(0, spec.rows, step):
        stop = min(start + step, spec.rows)
        bits = random_bits(seed, stream, range(start, stop), spec.cols)
        plain = _PLAIN.get(spec.distribution)
        out[start:stop] = _ternary(bits, spec.sparsity) if plain is None else plain(bits)
    return out if spec.std == 1.0 else out.mul_(spec.std)


_ROUNDED = (torch.bfloat16, torch.float16)


def _same(matrix: Tensor, drawn: Tensor) -> bool:
    """Return whether a matrix equals a drawn one, on its device and after a cast to its type."""
    return torch.equal(matrix.detach().to(drawn), drawn)


def _is_moved(old: Tensor, new: Tensor) -> bool:
    """Return whether a matrix has the values of an old one, cast to its type. Matrices without values, as of
    FakeTensorMode, count as moved."""
    if type(new) is not Tensor or type(old) is not Tensor:
        return True
    return old.device.type != "meta" and _same(old, new)


class Bases(nn.Module):
    """The frozen matrices that all adapters of one model share.

    They are non-persistent buffers, so no state dict has them. Adapters hold this module itself, so that `.to(device)`
    moves one copy. On the meta device nothing is drawn.

    Args:
        seed: the seed from which they are drawn.
        draws: name -> shape and distribution of each matrix.
        device: where they are kept.
        dtype: their type.
        given: name -> matrix, from a file (of an imported adapter). No seed gives these, so a checkpoint has to hold
            them.
    """

    def __init__(
        self,
        seed: int,
        draws: Mapping[str, Draw],
        device: torch.device,
        dtype: torch.dtype,
        given: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.seed, self.given = seed, given is not None
        self.draws = dict(draws)
        self._casts: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor]] = {}
        for name, spec in self.draws.items():
            if given is not None:
                values = given[name]
            elif device.type == "meta":
                values = torch.empty(spec.rows, spec.cols, device=device)
            else:
                values = draw(seed, name, spec)
            self.register_buffer(name, values.to(device=device, dtype=dtype), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bases:
        """Draw the matrices that `to_empty` leaves uninitialised.

        Every adapter holds this module, so `to_empty` comes here once for each of them. It takes the matrices off the
        meta device the first time. Each further time it replaces the drawn ones.
        """
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            matrix = self.get_buffer(name)
            if matrix is old or matrix.device.type == "meta" or _is_moved(old, matrix):
                continue
            if self.given:
                raise AdapterError("frozen matrices that came in a file cannot be drawn: load it afterwards")
            matrix.copy_(draw(self.seed, name, self.draws[name]))
        return self

    def get(self, name: str, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """Return the matrix `name`, in another dtype if asked. A cast is made once and cached for all layers.

        Args:
            name: the matrix.
            dtype: its type; None for the stored one.
            scale: a factor that the cast to `dtype` is multiplied by.
        """
        matrix = self._buffers[name]
        assert matrix is not None
        if dtype is None or (matrix.dtype == dtype and scale == 1.0):
            return matrix
        source, cast = self._casts.get((name, dtype), (None, None))
        if source is not matrix or cast is None:
            with torch.inference_mode(False):  # training must be able to use a cast that an evaluation made
                cast = matrix.to(dtype, copy=True).mul_(scale)
            self._casts[name, dtype] = (matrix, cast)
        return cast

    def digest(self) -> str:
        """Return the SHA-256 of names, shapes and float32 bits of the matrices in use.

        If a cast to 16 bits has lost bits, even if another cast followed, the matrices are drawn again for the digest.
        """
        total = hashlib.sha256()
        for name, spec in sorted(self.draws.items()):
            matrix = self.get(name)
            if not self.given and self._lost_bits(name, matrix):
                matrix = draw(self.seed, name, spec)
            flat = matrix.detach().to(device="cpu", dtype=torch.float32).contiguous()
            total.update(f"{name}:{spec.rows}x{spec.cols}:".encode())
            total.update(flat.numpy().astype("<f4", copy=False).tobytes())  # little-endian
        return total.hexdigest()

    def _lost_bits(self, name: str, matrix: Tensor) -> bool:
        """Return whether a matrix is its draw after rounding to 16 bits. False if it was changed in another way."""
        if matrix.device.type == "meta" or matrix.dtype in _ROUNDED:
            return True
        first_rows = dataclasses.replace(self.draws[name], rows=min(self.draws[name].rows, 64))
        if _same(matrix[: first_rows.rows], draw(self.seed, name, first_rows)):
            return False
        drawn = draw(self.seed, name, self.draws[name])
        return any(_same(matrix, drawn.to(dtype).float()) for dtype in _ROUNDED)

    def spec(self) -> dict[str, dict[str, int | float | str]]:
        """Return the draws by name, as plain values for a checkpoint."""
        return {name: dataclasses.asdict(spec) for name, spec in self.draws.items()}
