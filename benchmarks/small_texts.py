"""Write models of text with random weights, their tokenizers, and rows of random words to train them on."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

WORDS = ("red", "green", "blue", "white", "black", "sky", "grass", "snow", "coal", "lemon", "river", "stone", "cloud")
VOCABULARY, WINDOW = 1000, 256


def make_llama(folder: Path, hidden: int, layers: int, texts: int) -> tuple[str, str]:
    """Write a Llama and `texts` instruction rows for training, with further rows for validation. Return both ids."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=3 * hidden, max_position_embeddings=WINDOW, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return _with_questions(folder, config, texts)


def make_gpt2(folder: Path, hidden: int, layers: int, texts: int) -> tuple[str, str]:
    """Write a GPT-2 with its default dropout, and rows as `make_llama` does. Return both ids."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=hidden, n_layer=layers, n_head=4, n_positions=WINDOW, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return _with_questions(folder, config, texts)


def make_bert(folder: Path, hidden: int, layers: int, texts: int) -> tuple[str, str]:
    """Write a BERT with its default dropout, and SST-2 files with made-up sentences. Return both ids."""
    draw = random.Random(0)
    sentences = [_words(draw) for _ in range(_rows(texts))]
    data = folder / "SST-2"
    data.mkdir()
    for which, part in (("train", sentences), ("val", sentences[:8]), ("test", sentences[:8])):
        lines = [f"{text}\t{int('red' in text.split()[:10])}" for text in part]
        (data / f"{which}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=4 * hidden, max_position_embeddings=WINDOW, pad_token_id=1,
    )  # fmt: skip
    made = _save(folder, transformers.AutoModel.from_config, config, sentences, {"pad_token": "</s>"})
    return f"local:{made}", f"glue:{data}"


def _rows(texts: int) -> int:
    return math.ceil(texts / 0.9) + 8  # the trainer takes a tenth of them for validation


def _words(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(20, 50)))


def _with_questions(folder: Path, config: Any, texts: int) -> tuple[str, str]:
    draw = random.Random(0)
    rows = []
    for _ in range(_rows(texts)):
        text = _words(draw)
        answer = draw.choice(["answer1", "answer2"])
        format_line = "\n\nAnswer format: answer1/answer2"
        rows.append({"instruction": text + format_line, "input": "", "output": f"the correct answer is {answer}",
                     "answer": answer})  # fmt: skip
    (folder / "rows").mkdir()
    for which, part in (("train", rows), ("test", rows[:8])):
        (folder / "rows" / f"{which}.json").write_text(json.dumps(part), encoding="utf-8")
    build = transformers.AutoModelForCausalLM.from_config
    made = _save(folder, build, config, [row["instruction"] for row in rows], {})
    return f"local:{made}", f"json:{folder / 'rows'}"


def _save(folder: Path, build: Any, config: Any, corpus: Sequence[str], more: dict[str, str]) -> Path:
    """Write the model's directory, with a byte-level tokenizer trained on `corpus`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    made = folder / "model"
    torch.manual_seed(3)
    build(config).save_pretrained(str(made))
    tokenizer.save(str(made / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"} | more
    (made / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return made
