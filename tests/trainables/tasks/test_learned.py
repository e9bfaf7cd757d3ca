"""Completions and conversations: their tokens and what is learned, against the tokenizer's own answers, and trials."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from tests.trainables.support import one_tower_trial, run
from tests.trainables.tiny_language import CHATML, add_chat_template, chat_rows, completion_rows, save_model
from trainables.config import EvaluateSettings
from trainables.data.registry import load_text_dataset
from trainables.data.text.dataset import Chat, Completion
from trainables.errors import TrialError
from trainables.models.loading import load_model, tokenizer_of
from trainables.tasks.text.encoding import Encoded, Encoder, TooLongError
from trainables.tasks.text.learned import asked_tokens, chat_tokens
from trainables.training.worker import run_trial

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template that says itself what the assistant wrote."""
DATED = "{{ strftime_now('%d %b %Y') }}"
"""Llama 3's template has such a line."""
FORGETFUL = CHATML.replace("+ m['content'] +", "+ ('<think>' if loop.last else '') + m['content'] +")
"""As Qwen3's: earlier answers are written without what the last one has."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama, its copies with chat templates, and sets of three kinds."""
    folder = tmp_path_factory.mktemp("learned")
    for name, template in (("plain", None), ("chatml", CHATML), ("marked", MARKED), ("forgetful", FORGETFUL)):
        save_model(folder / name, "llama")
        if template:
            add_chat_template(folder / name, template)
    for name, make in (("texts", completion_rows), ("chats", chat_rows)):
        (folder / name).mkdir()
        for seed, (which, n) in enumerate((("train", 24), ("test", 8))):
            lines = map(json.dumps, make(n, seed))
            (folder / name / f"{which}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def encoder(folder: Path, max_tokens: int = 256) -> Encoder:
    tokenizer, _ = tokenizer_of(f"local:{folder}")
    return Encoder(tokenizer, max_tokens, 256, "tiny")


def parts(found: Encoded) -> tuple[list[int], list[bool]]:
    assert found.learned is not None
    ids = torch.cat([found.prompt, found.response]).tolist()
    return ids, [False] * len(found.prompt) + found.learned.tolist()


def trl(tokenizer: Any, row: Completion | Chat) -> tuple[list[int], list[bool]]:
    """Ids and completion mask as TRL's SFT trainer makes them, from the text of its `tokenize_fn` and `add_eos`."""
    if isinstance(row, Completion):
        prompt = tokenizer(text=row.prompt)["input_ids"]
        whole = tokenizer(text=row.prompt + row.completion + tokenizer.eos_token)["input_ids"]
    else:
        messages = [{"role": role, "content": content} for role, content in row.messages]
        asked = messages[: row.learned_from]
        prompt = tokenizer.apply_chat_template(asked, tokenize=True, return_dict=True, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
        prompt, whole = prompt["input_ids"], whole["input_ids"]
    assert whole[: len(prompt)] == prompt  # else TRL warns
    return whole, [False] * len(prompt) + [True] * (len(whole) - len(prompt))


def messages_of(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((m["role"], m["content"]) for m in row["messages"])


@pytest.mark.parametrize("template", ["chatml", "marked"])
def test_prompt_and_completion_are_tokenised_as_trl_does(place: Path, template: str) -> None:
    one = encoder(place / template)
    plain = [Completion(row["prompt"], row["completion"]) for row in completion_rows(6)]
    chats = [Chat(messages_of(row), len(row["messages"]) - 1) for row in chat_rows(6)]
    for row in (*plain, *chats):
        assert parts(one.learned(row, "row")) == trl(one.tokenizer, row)


def test_a_text_ends_with_one_eos_and_begins_with_what_the_tokenizer_puts_there(place: Path, tmp_path: Path) -> None:
    ids, learned = parts(encoder(place / "plain").learned(Completion("a b", " c"), "row"))
    assert (ids[-1], ids.count(1), learned[-1]) == (1, 1, True)
    save_model(tmp_path, "llama")
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text())
    whole["post_processor"] = {  # as some tokenizers: BOS before, EOS behind every text
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": t, "type_id": 0}} for t in ("<s>",)]
        + [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {t: {"id": t, "ids": [n], "tokens": [t]} for n, t in enumerate(("<s>", "</s>"))},
    }
    file.write_text(json.dumps(whole))
    closing = encoder(tmp_path)
    assert closing.tokenizer("a b")["input_ids"][-1] == 1
    assert parts(closing.learned(Completion("a b", " c"), "row")) == ([0, *ids], [False, *learned])
    given = parts(closing.learned(Completion("a b", " c</s>"), "row"))
    assert given == ([0, *ids], [False, *learned])


def test_a_token_over_the_boundary_is_learned(place: Path) -> None:
    """TRL counts the prompt's tokens there, and leaves the first token of the completion out of the loss."""
    one = encoder(place / "plain")
    row = Completion("Which colour ", "has the sky?")  # the space joins the word behind it
    ids, learned = parts(one.learned(row, "row"))
    said = "".join(one.tokenizer.decode([i]) for i, kept in zip(ids, learned, strict=True) if kept)
    assert said == " has the sky?</s>"


def test_every_answer_of_a_conversation_is_learned_with_its_end(place: Path) -> None:
    for template, end in (("chatml", "<|im_end|>\n"), ("marked", "<|im_end|>")):
        one = encoder(place / template)
        for row in chat_rows(4):
            ids, learned = parts(one.learned(Chat(messages_of(row)), "row"))
            whole = one.tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
            assert ids == whole
            answers = [m["content"] + end for m in row["messages"] if m["role"] == "assistant"]
            assert one.tokenizer.decode([i for i, kept in zip(ids, learned, strict=True) if kept]) == "".join(answers)
            if template == "marked":
                own = one.tokenizer.apply_chat_template(
                    row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
                )
                assert learned == [bool(each) for each in own["assistant_masks"]]


def test_what_a_template_cannot_say_is_refused(place: Path) -> None:
    (row,) = chat_rows(1)
    with pytest.raises(TrialError, match=r"has no chat template, and row 3 is a conversation"):
        encoder(place / "plain").learned(Chat(messages_of(row)), "row 3")
    with pytest.raises(TrialError, match=r"row 3: .*writes the conversation before message 1 otherwise"):
        encoder(place / "forgetful").learned(Chat(messages_of(row)), "row 3")
    refusing = encoder(place / "chatml")
    refusing.tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    with pytest.raises(TrialError, match=r"row 3: the chat template of 'tiny' refuses it \(no system messages\)"):
        refusing.learned(Chat(messages_of(row)), "row 3")


def test_a_long_row_loses_its_end_and_one_without_a_completion_is_refused(place: Path) -> None:
    row = Completion("a b c", " d e f")
    whole, learned = parts(encoder(place / "plain").learned(row, "row"))
    first = learned.index(True)
    short = encoder(place / "plain", first + 2).learned(row, "row")
    assert (parts(short), short.cut) == ((whole[: first + 2], learned[: first + 2]), True)
    with pytest.raises(TooLongError, match=rf"row 3: what is learned begins at token {first + 1}") as error:
        encoder(place / "plain", first).learned(row, "row 3")
    assert error.value.needed == len(whole)


@pytest.mark.parametrize(("model", "data"), [("plain", "texts"), ("chatml", "chats"), ("marked", "chats")])
def test_a_trial_learns_and_its_score_is_the_likelihood(place: Path, tmp_path: Path, model: str, data: str) -> None:
    name = f"sft:{place / data}"
    settings = {"epochs": 3, "global_batch_size": 8, "micro_batch_size": 3}
    trial = one_tower_trial("lora", model=place / model, dataset=name, train=settings, lr=2e-2)
    reports = run(trial, tmp_path / "a")
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    measured = reports[-1]["result"].measured
    assert measured.metric == "likelihood"
    loss = measured.further["test"]["loss"]
    assert measured.test_score == pytest.approx(math.exp(-loss))
    whole = one_tower_trial(
        "lora", model=place / model, dataset=name, lr=2e-2, train={**settings, "micro_batch_size": None}
    )
    unsplit = run(whole, tmp_path / "b")
    assert [r["train_loss"] for r in unsplit] == pytest.approx([r["train_loss"] for r in reports], rel=1e-5)
    by_loss = trial.model_copy(update={"evaluate": EvaluateSettings(metric="loss")})
    again = run(by_loss, tmp_path / "c")[-1]["result"].measured
    assert (again.metric, again.test_score) == ("likelihood", measured.test_score)


@pytest.mark.parametrize(("model", "data"), [("plain", "texts"), ("marked", "chats")])
def test_the_loss_is_that_of_labels_as_trl_sets_them(place: Path, tmp_path: Path, model: str, data: str) -> None:
    """Labels of -100 where nothing is learned, shifted by one, by transformers' own loss."""
    trial = one_tower_trial(
        "zero-shot", model=place / model, dataset=f"sft:{place / data}", train={"epochs": 1, "global_batch_size": 8}
    )
    found = run(trial, tmp_path)[-1]["result"].measured.further["test"]["loss"]
    module, one = load_model(f"local:{place / model}").module, encoder(place / model)
    total, count = 0.0, 0
    for row in load_text_dataset(f"sft:{place / data}", stage="CONFIRM").test.rows:
        assert isinstance(row, Completion | Chat)
        ids, learned = parts(one.learned(row, "row"))
        labels = torch.tensor([i if kept else -100 for i, kept in zip(ids, learned, strict=True)])
        with torch.no_grad():
            logits = module(input_ids=torch.tensor([ids])).logits[0]
        total += float(cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
        count += sum(learned)
    assert found == pytest.approx(total / count, rel=1e-5)


def test_a_protocol_has_nothing_to_judge(place: Path, tmp_path: Path) -> None:
    trial = one_tower_trial(
        "lora",
        model=place / "plain",
        dataset=f"sft:{place / 'texts'}",
        train={"epochs": 1},
        evaluate=EvaluateSettings(protocol="generation"),
    )
    with pytest.raises(TrialError, match=r"evaluate\.protocol 'generation': .*neither choices nor answers"):
        list(run_trial(trial, warm={}, directory=tmp_path))


def test_a_real_models_template_is_written_as_it_writes_it() -> None:
    """SmolLM2 of the folder that the variable names; its instruct form has a chat template."""
    folder = Path(os.environ.get("SWEEPS_TEST_ASSETS", "")) / "models" / "smollm2-135m"
    if "SWEEPS_TEST_ASSETS" not in os.environ or not (folder / "tokenizer.json").is_file():
        pytest.skip("no models/smollm2-135m in SWEEPS_TEST_ASSETS")
    tokenizer, _ = tokenizer_of(f"local:{folder}")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
    one = Encoder(tokenizer, 512, 2048, "smollm2")
    for row in (Completion("The sky is", " blue."), Chat(messages_of(chat_rows(2)[1]), 4)):
        assert parts(one.learned(row, "row")) == trl(tokenizer, row)


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "chatml")
    row, plain = Chat((("user", "hi"), ("assistant", "hello"))), tokenizer.chat_template
    today = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], chat_template=DATED + plain)
    tokenizer.chat_template = DATED + plain
    ids, _ = chat_tokens(tokenizer, row, "a row", "m")
    asked = asked_tokens(tokenizer, "hi", "m")
    tokenizer.chat_template = "26 Jul 2024" + plain
    assert ids == chat_tokens(tokenizer, row, "a row", "m")[0] and asked == asked_tokens(tokenizer, "hi", "m")
    assert today["input_ids"] != asked[: len(today["input_ids"])]
