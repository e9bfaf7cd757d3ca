"""The learnt prompts themselves.

m is the number of tokens, J the number of layers, D_t and D_v the towers' widths, E the width of joint features.

CoOp (Zhou et al. 2022, arXiv 2109.01134): m vectors replace a prompt's words. They are the same for all classes. CoCoOp
(Zhou et al. 2022, arXiv 2203.05557): CoOp's vectors, each plus h(x), where h is a two-layer network on the image's unit
feature: E -> E // 16, ReLU, -> D_t. MaPLe (Khattak et al. 2023, arXiv 2210.03117): m vectors for each of the first J
text blocks. For each block a linear map D_t -> D_v with bias makes the image prompts from them. PromptSRC (Khattak et
al. 2023, arXiv 2307.06948): m vectors for each of the first J blocks of both towers. Training returns their average
over the training, weighted by a Gaussian.

Starts are as in the released code. The first block's text vectors are the embeddings of the first m tokens of "a photo
of a", if it has that many. All others are drawn with deviation 0.02. Linear maps start as `nn.Linear`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from randlora.adapter import Request, trainable
from randlora.arithmetic.bases import Draw, derive_seed, draw
from randlora.errors import AdapterError
from randlora.methods.scheduled.hooks import Schedule
from randlora.model.prompted import PLACE, Place, Prompts

STD = 0.02
"""Standard deviation of vectors that do not start from a word (in all released codes)."""


def _start(stream: str, spec: Draw, request: Request) -> Tensor:
    """Return a start (rows x cols), drawn from `init_seed` and the stream. On the meta device it is empty."""
    if request.device.type == "meta":
        return torch.empty(spec.rows, spec.cols, device="meta")
    return draw(derive_seed(PLACE, request.init_seed), stream, spec)


def _layer(stream: str, out: int, width: int, request: Request) -> tuple[Tensor, Tensor]:
    """Return weight (out x width) and bias (out,) as `nn.Linear` draws them: uniform on +-1 / sqrt(width)."""
    std = 1.0 / math.sqrt(3.0 * width)
    weight = _start(f"{stream}.weight", Draw(out, width, std=std), request)
    return weight, _start(f"{stream}.bias", Draw(out, 1, std=std), request).flatten()


class CoOp(Prompts):
    """CoOp's prompts: `text` (J, m, D_t), J = 1."""

    def __init__(self, request: Request, tokens: int, depth: int) -> None:
        assert isinstance(request.place, Place)
        super().__init__(request.place)
        self.place, self.tokens, self.depth = request.place, tokens, depth
        text = self.vectors("text", self.place[1], request)
        if tokens <= len(request.words) and request.device.type != "meta":
            text[0] = request.weights[PLACE][list(request.words[:tokens])].to(text)
        self.text = trainable(text, request, request.device)
        self.build_further(request)

    def build_further(self, request: Request) -> None:
        """Build the parts that a method has beside the text's vectors."""

    def vectors(self, stream: str, width: int, request: Request) -> Tensor:
        """Return random vectors (J, m, width)."""
        drawn_vectors = _start(stream, Draw(self.depth * self.tokens, width, "normal", STD), request)
        return drawn_vectors.view(self.depth, self.tokens, width)

    def of_text(self, layer: int) -> Tensor | None:
        return self.text[layer] if layer < self.depth else None

    def of_image(self, layer: int) -> Tensor | None:
        return None


class CoCoOp(CoOp):
    """CoOp's prompts, and a network: inner (E // 16 x E) and outer (D_t x E // 16), with biases."""

    def build_further(self, request: Request) -> None:
        hidden = max(1, self.place.joint // 16)
        self._images: Tensor | None = None
        inner = _layer("inner", hidden, self.place.joint, request)
        outer = _layer("outer", self.place[1], hidden, request)
        self.inner, self.inner_bias = (trainable(t, request, request.device) for t in inner)
        self.outer, self.outer_bias = (trainable(t, request, request.device) for t in outer)

    @contextmanager
    def conditioned(self, images: Tensor, texts: int) -> Iterator[None]:
        """Inside the block, a text tower's batch has `texts` texts for each image in turn. Images are unit features (B,
        E)."""
        hidden = torch.relu(linear(images, self.inner, self.inner_bias))
        self._images = linear(hidden, self.outer, self.outer_bias).repeat_interleave(texts, dim=0)
        try:
            yield
        finally:
            self._images = None

    def of_text(self, layer: int) -> Tensor | None:
        if layer or self._images is None:
            return super().of_text(layer)
        return self.text[0] + self._images.unsqueeze(1)


class MaPLe(CoOp):
    """CoOp's prompts in J blocks, and the couplings (J, D_v, D_t) with biases (J, D_v). Those of deeper blocks start
    alike."""

    def build_further(self, request: Request) -> None:
        image, text = self.place
        first, deep = (_layer(f"coupling.{name}", image, text, request) for name in ("first", "deep"))
        parts = [first, *[deep] * (self.depth - 1)]
        self.coupling = trainable(torch.stack([weight for weight, _ in parts]), request, request.device)
        self.coupling_bias = trainable(torch.stack([bias for _, bias in parts]), request, request.device)

    def of_image(self, layer: int) -> Tensor | None:
        if layer >= self.depth:
            return None
        return linear(self.text[layer], self.coupling[layer], self.coupling_bias[layer])


class PromptSRC(CoOp):
    """CoOp's prompts in J blocks, and image prompts (J, m, D_v)."""

    def build_further(self, request: Request) -> None:
        self.image = trainable(self.vectors("image", self.place[0], request), request, request.device)
        self.schedule = GaussianAverage([self.text, self.image])

    def of_image(self, layer: int) -> Tensor | None:
        return self.image[layer] if layer < self.depth else None

    @contextmanager
    def without_prompts(self) -> Iterator[None]:
        """Inside the block, both towers run without prompts."""
        self.resting = True
        try:
            yield
        finally:
            self.resting = False


class GaussianAverage(Schedule):
    """A schedule that replaces the prompts by their average after the last step.

    A Gaussian of the share of the training weights the steps. The released few-shot settings have mean and deviation of
    30 of 50 epochs, and average once per epoch.
    """

    mean = std = 0.6

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters, self._weight = parameters, 0.0
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def on_step(self, step: int, total: int) -> None:
        weight = math.exp(-0.5 * ((step / total - self.mean) / self.std) ** 2)
        self._sums = self._sums or [torch.zeros_like(p) for p in self._parameters]
        self._weight += weight
        for total_sum, parameter in zip(self._sums, self._parameters, strict=True):
            total_sum.add_(parameter, alpha=weight)
            if step == total:
                parameter.copy_(total_sum / self._weight)

    def state(self) -> dict[str, Tensor]:
        if not self._sums:
            return {}
        weight = torch.tensor(self._weight, dtype=torch.float64)
        return {"weight": weight, **{f"sum.{i}": s.clone() for i, s in enumerate(self._sums)}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if not state:
            self._weight, self._sums = 0.0, []
            return
        self._weight = float(state["weight"])
        self._sums = [state[f"sum.{i}"].to(p.device).clone() for i, p in enumerate(self._parameters)]


def prompts_in(model: nn.Module) -> CoOp:
    """Return the prompts that are installed in a model. Raises AdapterError if there are none."""
    prompts = model._modules.get(PLACE)
    if not isinstance(prompts, CoOp):
        raise AdapterError(f"no prompts are installed in this {type(model).__name__}: attach() them first")
    return prompts
