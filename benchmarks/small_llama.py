"""A Llama of random weights with its tokenizer, and instruction rows of random words, for `training.py`."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import tokenizers
import torch
import transformers

WORDS = ("red", "green", "blue", "white", "black", "sky", "grass", "snow", "coal", "lemon", "river", "stone", "cloud")


def make_llama(folder: Path, hidden: int, layers: int, texts: int) -> tuple[str, str]:
    """Writes a Llama of random weights with a byte-level tokenizer, and instruction rows; their ids."""
    draw = random.Random(0)
    rows = []
    for _ in range(math.ceil(texts / 0.9) + 8):  # a tenth is kept for validation
        text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(20, 50)))
        answer = draw.choice(["answer1", "answer2"])
        format_line = "\n\nAnswer format: answer1/answer2"
        rows.append({"instruction": text + format_line, "input": "", "output": f"the correct answer is {answer}",
                     "answer": answer})  # fmt: skip
    (folder / "rows").mkdir()
    for which, part in (("train", rows), ("test", rows[:8])):
        (folder / "rows" / f"{which}.json").write_text(json.dumps(part), encoding="utf-8")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([row["instruction"] for row in rows], trainer)
    made = folder / "model"
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=3 * hidden, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(str(made))
    tokenizer.save(str(made / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (made / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return f"local:{made}", f"json:{folder / 'rows'}"
