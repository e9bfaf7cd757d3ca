"""The methods of prompt learning: what each is called, counts, starts from and was trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from randlora.methods.prompts.learners import CoCoOp, CoOp, MaPLe, PromptSRC
from randlora.model.prompted import Place

PREFIX = "prompt:"
WORDS = "a photo of a"
"""The words from which the context starts in the released settings."""
DEPTH = 9
"""The number of blocks with prompts in the released settings of MaPLe and PromptSRC."""
TRANSFER = "dept"
BY_DEPTH = "-depth"


@dataclass(frozen=True)
class Kind:
    """A method of prompt learning.

    Attributes:
        tokens: the number of tokens in the released settings.
        count: returns the number of trainable parameters for a number of tokens and blocks.
        rate: the released learning rate, for SGD.
        deep: whether it has a depth.
        teacher: whether its loss compares with the model as it was, which therefore must not be adapted.
        transfers: whether DePT's head can be added here.
        keeps_words: whether the tokens of `WORDS` that its vectors do not replace stay between them and the name.
    """

    title: str
    learner: type[CoOp]
    tokens: int
    count: Callable[[Place, int, int], int]
    rate: float
    source: str
    deep: bool = False
    teacher: bool = False
    transfers: bool = False
    keeps_words: bool = False

    def depth(self, place: Place, asked: int | None = None) -> int:
        """Return the number of blocks with prompts. If none is asked for, it is the released number, or all blocks of a
        smaller model."""
        return (min(DEPTH, place.layers) if asked is None else asked) if self.deep else 1


def _text(place: Place, tokens: int, depth: int) -> int:
    return depth * tokens * place[1]


def _with_network(place: Place, tokens: int, depth: int) -> int:
    hidden = max(1, place.joint // 16)
    return _text(place, tokens, depth) + hidden * (place.joint + 1) + place[1] * (hidden + 1)


def _coupled(place: Place, tokens: int, depth: int) -> int:
    return _text(place, tokens, depth) + depth * place[0] * (place[1] + 1)


_SGD = "the released code's rate, of SGD; none was published for AdamW"

KINDS = {
    "coop": Kind("CoOp", CoOp, 16, _text, 2e-3, _SGD, transfers=True),
    "cocoop": Kind("CoCoOp", CoCoOp, 4, _with_network, 2e-3, _SGD),
    "maple": Kind("MaPLe", MaPLe, 2, _coupled, 3.5e-3, _SGD, deep=True, transfers=True, keeps_words=True),
    "promptsrc": Kind(
        "PromptSRC", PromptSRC, 4, lambda p, tokens, depth: depth * tokens * sum(p), 2.5e-3, _SGD, True, True
    ),
}
