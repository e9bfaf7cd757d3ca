"""Pretrain the embedded CLIP from scratch on rendered captioned pictures, and write it as an open_clip local directory.

Usage (about ten minutes on two cores)::

    apt-get install fonts-dejavu fonts-liberation fonts-liberation-sans-narrow fonts-lato fonts-comic-neue \\
        fonts-courier-prime fonts-dancingscript fonts-roboto-slab
    python -m tools.embedded.pretrain --fonts /usr/share/fonts

The result depends only on the seed, the list of fonts, the build of torch and the number of threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from tools.embedded import card, fonts, render, scores
from tools.embedded.settings import CLIP_FOLDER, MODEL, PREPROCESS, VOCABULARY


def train_tokenizer(captions: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with ``VOCABULARY`` tokens, so that every text has an encoding.

    The end token has the highest id, as CLIP needs it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1, special_tokens=["<pad>", "<start>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.add_special_tokens(["<end>"])
    end = tokenizer.token_to_id("<end>")
    assert end == VOCABULARY - 1, end
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>",
        model_max_length=MODEL["text_cfg"]["context_length"],
    )  # fmt: skip


class Pictures(Dataset[tuple[Tensor, str]]):
    """The first ``length`` pictures of the stream ``seed``. An item is (pixels (3, 28, 28) uint8, caption)."""

    def __init__(self, font_list: Sequence[fonts.Font], seed: int, length: int) -> None:
        self.font_list, self.seed, self.length = font_list, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        picture = render.picture(self.font_list, self.seed, index)
        return torch.from_numpy(picture.pixels).permute(2, 0, 1), picture.caption


def train(
    model: CLIP, tokenizer: Any, data: Dataset[tuple[Tensor, str]], *, batch: int, lr: float, weight_decay: float
) -> None:
    """Train one pass of contrastive learning: AdamW, 5 % warm-up, cosine decay to zero, logit scale at most 100."""
    loader = DataLoader(data, batch_size=batch, num_workers=1, prefetch_factor=4, drop_last=True)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    other = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, lr, total_steps=len(loader), pct_start=0.05, cycle_momentum=False
    )
    objective = ClipLoss()
    began = time.monotonic()
    for step, (pixels, captions) in enumerate(loader):
        image, text, scale = model(scores.normalise(pixels), tokenizer(list(captions)))[:3]
        loss = objective(image, text, scale)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        if step % 200 == 0 or step == len(loader) - 1:
            seconds = time.monotonic() - began
            print(
                f"step {step}/{len(loader)} loss {loss.item():.3f} scale {scale.item():.1f} {seconds:.0f} s", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fonts", type=Path, action="append", default=None, help="folder of fonts; may be repeated")
    parser.add_argument("--out", type=Path, default=CLIP_FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=300_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    font_list = fonts.find([*(arguments.fonts or [Path("/usr/share/fonts")]), fonts.matplotlib_fonts()])
    print(f"{len(font_list)} fonts", flush=True)

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    captions = [render.picture(font_list, arguments.seed, i).caption for i in range(20_000)]
    train_tokenizer(captions).save_pretrained(out)
    (out / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}, indent=2) + "\n"
    )
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")

    torch.manual_seed(arguments.seed)  # open_clip's classes draw their weights from the global generator
    model = CLIP(MODEL["embed_dim"], MODEL["vision_cfg"], MODEL["text_cfg"])
    data = Pictures(font_list, arguments.seed, arguments.pairs)
    began = time.monotonic()
    train(model, tokenizer, data, batch=arguments.batch, lr=arguments.lr, weight_decay=arguments.weight_decay)
    seconds = time.monotonic() - began

    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    (out / "open_clip_model.safetensors").chmod(0o644)  # safetensors makes files private
    model.eval()
    card.write(out, model=model, tokenizer=tokenizer, font_list=font_list, arguments=arguments, seconds=seconds)
    print((out / "MODEL_CARD.md").read_text())


if __name__ == "__main__":
    main()
