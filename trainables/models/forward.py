"""Forward passes that do less: one token alone in an image tower's last block, or few activations kept.

CLIP's image vector is the class token after the last block (arXiv 2103.00020, section 2.4). There the other tokens are
needed only as keys and values: their queries, output projection and MLP reach neither the vector nor any gradient.
Leaving them out changes results by the order of sums, and saves most of one block in every forward and backward pass.

Gradient checkpointing computes activations again in the backward pass. Adapters then repeat their dropout masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from randlora.model.attention import attend, meets_input
from trainables.errors import TrialError


@contextmanager
def first_token_only(tower: nn.Module) -> Iterator[bool]:
    """Inside the block, the last block of an open_clip image tower returns its first token alone: (B, L, D) to (B, 1,
    D).

    Yields:
        Whether it does. Any other tower is left as it is, and so is a block with a forward hook, which would miss the
            tokens.
    """
    block = _last_block(tower)
    if block is None:
        yield False
        return

    adapted = meets_input(block.attn)

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        tokens = block.ln_1(x)
        if adapted:
            attended = attend(block.attn, tokens, queries=1)
        else:
            attended = block.attn(tokens[:, :1], tokens, tokens, need_weights=False)[0]
        x = x[:, :1] + block.ls_1(attended)
        y: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
        return y

    block.forward = forward
    try:
        yield True
    finally:
        del block.forward


def _last_block(tower: nn.Module) -> Any | None:
    """Return the last block of a tower that is read at its first token after plain blocks; None for another tower."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if type(tower) is not VisionTransformer:
        return None
    transformer: Any = tower.transformer
    plain = tower.attn_pool is None and tower.pool_type == "tok" and not tower.output_tokens
    block = transformer.resblocks[-1]
    if not plain or type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return None
    watched = block._forward_hooks or block._forward_pre_hooks or "forward" in vars(block)
    return None if watched or not block.attn.batch_first else block


@contextmanager
def recomputing(module: nn.Module) -> Iterator[None]:
    """Inside the block, the forward of a transformers model in training mode keeps only the inputs of its layers.

    The backward pass may come after the block. Raises TrialError for a model that has no checkpointing.
    """
    # renamed in transformers 5, where the old names warn
    enable, disable = (
        getattr(module, f"activation_checkpointing_{verb}", None)
        or getattr(module, f"gradient_checkpointing_{verb}", None)
        for verb in ("enable", "disable")
    )
    if enable is None or disable is None or not getattr(module, "supports_gradient_checkpointing", False):
        raise TrialError(f"train.gradient_checkpointing: {type(module).__name__} does not support it; leave it out")
    enable({"use_reentrant": False})
    try:
        yield
    finally:
        disable()
