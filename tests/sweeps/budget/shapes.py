"""Target shapes of the models the paper adapts, written out, for solver tests that need no model library."""

from __future__ import annotations

Shape = tuple[int, int]


def clip_tower(prefix: str, layers: int, width: int, names: str = "qkv fc proj") -> dict[str, Shape]:
    """One transformer of CLIP: packed q, k, v (3d x d) and the MLP (4d x d, d x 4d)."""
    kinds = {
        "qkv": (3 * width, width),
        "out": (width, width),
        "fc": (4 * width, width),
        "proj": (width, 4 * width),
    }
    return {f"{prefix}{i}.{kind}": kinds[kind] for i in range(layers) for kind in names.split()}


def clip_b32(names: str = "qkv fc proj") -> dict[str, Shape]:
    """Both towers of ViT-B/32."""
    return clip_tower("visual.", 12, 768, names) | clip_tower("text.", 12, 512, names)


def llama3_8b() -> dict[str, Shape]:
    """q, k, v, up and down of Llama-3-8B."""
    d, kv, hidden = 4096, 1024, 14336
    kinds = {"q": (d, d), "k": (kv, d), "v": (kv, d), "up": (hidden, d), "down": (d, hidden)}
    return {f"{i}.{kind}": shape for i in range(32) for kind, shape in kinds.items()}
