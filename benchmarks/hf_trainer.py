"""Train with transformers' Trainer on prepared batches: the third side of `training.py`'s comparison."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

Batch = dict[str, torch.Tensor]


class _Clock(TrainerCallback):
    """Measures the process seconds from the start of an epoch to its end, without the Trainer's preparations."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.process_time()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.process_time() - self._start


class _OnBatches(Trainer):
    """Trains on batches that are already tokenised and padded."""

    def __init__(self, batches: list[Batch], **given: Any) -> None:
        self._batches = batches
        super().__init__(**given)

    def get_train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self._batches, batch_size=None, shuffle=False)


class HfTrainer:
    """Trains a model one epoch at a time. The model's forward pass returns the loss if the batch has `labels`.

    Args:
        model: a model with PEFT's LoRA, on the same weights as the other sides.
        batches: returns the batches of an epoch, given its number.
        rate: peak learning rate.
        folder: where the Trainer may write.
    """

    def __init__(self, model: Any, batches: Callable[[int], list[Batch]], rate: float, folder: Path) -> None:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        self._model, self._batches, self._rate, self._folder = model, batches, rate, folder
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def epoch(self, number: int) -> float:
        """Train one epoch, and return its seconds of process CPU time."""
        batches, clock = self._batches(number), _Clock()
        arguments = TrainingArguments(
            output_dir=str(self._folder),
            num_train_epochs=1,
            learning_rate=self._rate,
            lr_scheduler_type="cosine",
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            weight_decay=0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = _OnBatches(batches, model=self._model, args=arguments, callbacks=[clock])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return clock.seconds
