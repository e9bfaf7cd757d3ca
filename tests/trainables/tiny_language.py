"""Language models of random weights with a tokenizer trained on the spot, and small text sets."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

THINGS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "lemon": "yellow"}
WIDTH = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
"""Sizes of SmolLM2-135M, for what needs no weights."""


def instruction_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows in LLM-Adapters' form: which of three colours a thing has."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        thing = rng.choice(list(THINGS))
        others = [c for c in THINGS.values() if c != THINGS[thing]]
        options = [*rng.sample(others, 2), THINGS[thing]]
        rng.shuffle(options)
        listed = " ".join(f"Answer{i + 1}: {o}" for i, o in enumerate(options))
        answer = f"answer{options.index(THINGS[thing]) + 1}"
        rows.append(
            {
                "instruction": "Please choose the correct answer to the question: "
                f"Which colour has {thing}?\n\n{listed}"
                "\n\nAnswer format: answer1/answer2/answer3",
                "input": "",
                "output": f"the correct answer is {answer}",
                "answer": answer,
            }
        )
    return rows


def write_rows(folder: Path, train: int = 40, test: int = 12) -> Path:
    """A folder with train.json and test.json, which share no row."""
    folder.mkdir(parents=True, exist_ok=True)
    for which, n, seed, end in (("train", train, 0, ""), ("test", test, 1, " ")):
        rows = [row | {"instruction": row["instruction"] + end} for row in instruction_rows(n, seed)]
        (folder / f"{which}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def completion_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of TRL's plain form, no two alike: a question about a thing, and its colour."""
    rng = random.Random(seed)
    things = [rng.choice(list(THINGS)) for _ in range(n)]
    return [
        {"prompt": f"{seed}.{i} Which colour has {thing}?", "completion": f" It is {THINGS[thing]}."}
        for i, thing in enumerate(things)
    ]


def chat_rows(n: int, seed: int = 0) -> list[dict[str, list[dict[str, str]]]]:
    """Conversations of two answers, some of which begin with a system message."""
    rows = []
    for i, (first, second) in enumerate(zip(completion_rows(n, seed), completion_rows(n, seed + 100), strict=True)):
        texts = (first["prompt"], first["completion"], second["prompt"], second["completion"])
        turns = [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)]
        system = [{"role": "system", "content": "Answer with the colour."}] if i % 2 else []
        rows.append({"messages": system + turns})
    return rows


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat template of many models, SmolLM2's and Qwen2's among them."""


def add_chat_template(folder: Path, template: str = CHATML) -> None:
    """Give the tokenizer of a model's folder a chat template, and the special tokens of ChatML."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))


def e2e_rows(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """(meaning representation, text) pairs; every representation comes twice."""
    rng = random.Random(seed)
    rows = []
    for i in range(n // 2):
        name, kind = f"Place{i + 10 * seed}", rng.choice(["pub", "coffee shop"])
        representation = f"name[{name}], eatType[{kind}], familyFriendly[no]"
        rows += [(representation, f"{name} is a {kind}, not for families."), (representation, f"A {kind} is {name}.")]
    return rows


def write_e2e(folder: Path) -> Path:
    """The files of an E2E folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, n, seed in (("trainset", 20, 0), ("devset", 6, 1), ("testset_w_refs", 8, 2)):
        lines = [f'"{representation}","{text}"' for representation, text in e2e_rows(n, seed)]
        (folder / f"{file}.csv").write_text("\n".join(["mr,ref", *lines]) + "\n", encoding="utf-8")
    return folder


def save_tokenizer(folder: Path, *, pad: bool = False, eos: bool = True) -> None:
    """A byte-level BPE trained on the rows above, in the files that transformers reads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WIDTH["vocab_size"],
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([r["instruction"] + r["output"] for r in instruction_rows(50)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings |= ({"eos_token": "</s>"} if eos else {}) | ({"pad_token": "<pad>"} if pad else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def save_model(folder: Path, family: str, **more: Any) -> Path:
    """A model of that family with random weights, and its tokenizer."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    window = {"max_position_embeddings": 256}
    config: Any
    if family == "gpt2":
        config = transformers.GPT2Config(
            **{k: v for k, v in (WIDTH | ids).items() if k != "intermediate_size"},
            n_positions=256, **({"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} | more),
        )  # fmt: skip
    elif family == "qwen2":
        config = transformers.Qwen2Config(**WIDTH, **ids, **window, num_key_value_heads=2, **more)
    elif family == "phi3":
        config = transformers.Phi3Config(**WIDTH, **ids, **window, num_key_value_heads=2, **more)
    else:
        config = transformers.LlamaConfig(**(WIDTH | ids | window | {"num_key_value_heads": 2} | more))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(str(folder))
    save_tokenizer(folder)
    return folder


def uneven_rows(folder: Path, train: int, test: int) -> None:
    """Questions of very different lengths, so that hardly two batches are padded alike."""
    write_rows(folder, train=train, test=test)
    for path in folder.glob("*.json"):
        rows = json.loads(path.read_text())
        for i, row in enumerate(rows):
            row["instruction"] = "Look again. " * (i * 7 % 5) + row["instruction"]
        path.write_text(json.dumps(rows), encoding="utf-8")
