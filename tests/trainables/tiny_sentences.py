"""Text encoders of random weights with a tokenizer trained on the spot, and small GLUE-like files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

GOOD, BAD = ("splendid", "lovely", "brilliant", "warm"), ("dreadful", "dull", "clumsy", "cold")
THINGS = ("film", "plot", "cast", "score", "scene", "ending")
SPECIAL = ["<s>", "<pad>", "</s>"]


def sentence(rng: random.Random, label: int) -> str:
    """A sentence whose adjectives tell its label, with words around them."""
    words = [f"the {rng.choice(THINGS)} is {rng.choice((BAD, GOOD)[label])}" for _ in range(rng.randint(1, 3))]
    return " and ".join(words)


def write_sst2(folder: Path, train: int = 60, test: int = 24) -> Path:
    """`train.tsv`, `val.tsv` and `test.tsv` of a folder that is best called SST-2 or CoLA."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for which, n, seed in (("train", train, 0), ("val", test, 1), ("test", test, 2)):
        rng = random.Random(seed)
        rows: list[str] = []
        while len(rows) < n:
            row = f"{sentence(rng, len(rows) % 2)}\t{len(rows) % 2}"
            if which != "test" or row not in seen:  # which shares no row with the others
                rows.append(row)
        seen |= set(rows)
        (folder / f"{which}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


def write_stsb(folder: Path, train: int = 60, test: int = 24) -> Path:
    """Pairs with a number from 0 to 5: how much of the first sentence is good."""
    folder.mkdir(parents=True, exist_ok=True)
    for which, n, seed in (("train", train, 0), ("val", test, 1), ("test", test, 2)):
        rng = random.Random(seed)
        rows = []
        for _ in range(n):
            good = rng.randint(0, 2)
            pair = [sentence(rng, int(i < good)) for i in range(2)]
            rows.append(f"{pair[0]}\t{pair[1]}\t{2.5 * good}")
        (folder / f"{which}.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


def save_encoder(folder: Path, family: str = "roberta", *, pad: bool = True, dropout: float = 0.0) -> Path:
    """A RoBERTa or BERT of 2 layers, 32 wide, for 64 tokens, in the files that transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
    }  # fmt: skip
    if family == "roberta":  # positions start behind the pad token's number
        config: transformers.PreTrainedConfig = transformers.RobertaConfig(
            **settings, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2
        )
    else:
        config = transformers.BertConfig(**settings, max_position_embeddings=64, pad_token_id=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = transformers.AutoModel.from_config(config)
        with torch.no_grad():  # drawn with 0.02, words would hardly differ
            for name, parameter in model.named_parameters():
                if "word_embeddings" in name:
                    parameter.normal_(std=1.0)
                elif parameter.ndim > 1 and "embeddings" not in name:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    save_sentence_tokenizer(folder, family, pad)
    return folder


def save_sentence_tokenizer(folder: Path, family: str, pad: bool = True) -> None:
    """A byte-level BPE trained on such sentences, with the special tokens of the family."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    rng = random.Random(3)
    tokenizer.train_from_iterator([sentence(rng, i % 2) for i in range(50)], trainer)
    pair = "<s> $A </s> </s> $B </s>" if family == "roberta" else "<s> $A </s> $B:1 </s>:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }  # fmt: skip
    if pad:
        about["pad_token"] = "<pad>"
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
