"""Prompts of language-model tasks, the choices written in them, and the answer that is read from generated text.

The instruction prompt is Alpaca's as LLM-Adapters' evaluation writes it, indentation included. Its training script
writes a slightly different one (a stray comment in the first line, spaces on blank lines). Here training and evaluation
use the same prompt. The question prompt is the one that log-likelihood evaluations of multiple choice commonly use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from trainables.errors import DataError

_INDENT = "\n" + " " * 16
_BLANK = "\n" + _INDENT
_OPENING = "Below is an instruction that describes a task"
RESPONSE_HEADER = "### Response:"

_LETTER = r"[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A character that continues a word.

Thai, Lao, Burmese, Khmer, Chinese, Japanese and Korean characters do not count, because these languages put no space
between words.
"""
_LABELS = re.compile(r"Answer format:\s*(\S.*)$")
_OPTION = re.compile(r"\b(?:Answer|Option|Ending|Solution)(\d):\s*")
_LEAD = re.compile(r"Please [^:]*:\s*")
_FAMILIES = tuple(map(re.compile, ("true|false", "solution[12]", "answer[1-5]", "ending[1-4]", "option[12]")))
"""What LLM-Adapters searches in the output of its sets, whose labels are such words."""
_NUMBER = re.compile(r"(?:(?<!\w)-)?\d+(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MISS = Decimal("0.001")
"""LLM-Adapters accepts a number that differs by less than this from the right one."""


def alpaca(instruction: str, further: str = "") -> str:
    """Return the prompt of an instruction, with an input if there is one. The response follows directly."""
    context, gap = (", paired with an input that provides further context", "") if further else ("", " ")
    asked = f"{_OPENING}{context}. Write a response that appropriately completes the request.{gap}"
    input_part = f"{_BLANK}### Input:{_INDENT}{further}" if further else ""
    return f"{asked}{_BLANK}### Instruction:{_INDENT}{instruction}{input_part}{_BLANK}{RESPONSE_HEADER}{_INDENT}"


def question(text: str, context: str = "") -> str:
    """Return the prompt of a bare question, after its context if there is one. An answer follows after a space."""
    return f"{context}\nQuestion: {text}\nAnswer:".removeprefix("\n")


def meaning(representation: str) -> str:
    """Return an E2E meaning representation, `name[X], eatType[Y]`, as "name : X | Type : Y" (the form of LoRA's E2E
    data)."""
    slots = re.findall(r"(?:^|(?<=[\[\],]))\s*([^\[\],\s][^\[\],]*)\[([^\]]*)\]", representation)
    names = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
    return " | ".join(f"{names.get(slot, slot)} : {value}" for slot, value in slots)


def labels_of(instruction: str) -> tuple[str, ...]:
    """Return the answer labels with which an LLM-Adapters instruction ends ("Answer format: a/b/c"); () if it names
    none."""
    match = _LABELS.search(instruction.rstrip())
    return tuple(part.strip() for part in match.group(1).split("/")) if match else ()


def relabelled(output: str, answer: str, labels: Sequence[str], where: str) -> tuple[str, ...]:
    """Return `output` once for every label, which replaces its last `answer`. Raises DataError if `answer` is not in
    it."""
    if len(labels) < 2:
        raise DataError(
            f"{where}: the instruction names no choices (it should end with 'Answer format: a/b/...'); add a list "
            "'choices' to the row, or set evaluate.protocol = 'generation'"
        )
    if answer not in labels:
        raise DataError(f"{where}: answer {answer!r} is not among the choices {', '.join(labels)}")
    beside = split_around(output, answer, where)
    return tuple(label.join(beside) for label in labels)


def split_around(output: str, answer: str, where: str) -> tuple[str, str]:
    """Return what stands before and after the last answer in an output. Raises DataError if it has no such word."""
    matches = list(_whole([answer]).finditer(output))
    if not matches:
        raise DataError(
            f"{where}: output {output!r} does not hold the answer {answer!r} as a word of its own, and the choices are "
            "made by replacing it; write it there, or give a list 'choices' and leave 'output' out"
        )
    return output[: matches[-1].start()], output[matches[-1].end() :]


def _whole(words: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that finds one of these as a whole word or number, the longest first.

    "5" is not found in "15" or "-5", nor "no" in "know".
    """
    return re.compile("|".join(map(_bordered, sorted(words, key=len, reverse=True))))


def _bordered(word: str) -> str:
    """Return a word's pattern. It needs a border where the word ends in a letter or digit: "C++" may stand
    before "17"."""
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, word) else ""
    after = rf"(?!{_LETTER})" if re.match(_LETTER, word[-1]) else ""
    before += r"(?<!\d[.,])(?<!(?<!\w)-)" if word[0].isdigit() else ""
    after += r"(?!(?!\.0+(?!\d))[.,]\d)" if word[-1].isdigit() else ""  # 5.0 is 5
    return before + re.escape(word) + after


def stem_and_options(instruction: str, where: str) -> tuple[str, tuple[str, ...]]:
    """Return question and option texts of an LLM-Adapters instruction ("... Answer1: X Answer2: Y Answer format: ...").

    A true/false question has its labels as options.

    Raises:
        DataError: options are missing, empty, or not as many as the labels.
    """
    labels = labels_of(instruction)
    body = _LABELS.sub("", instruction.rstrip()).rstrip() if labels else instruction
    marks = list(_OPTION.finditer(body))
    start = next((i for i in reversed(range(len(marks))) if marks[i].group(1) == "1"), None)
    if start is None:
        if set(labels) == {"true", "false"}:
            return _LEAD.sub("", body, count=1).strip(), labels
        raise DataError(f"{where}: no options such as 'Answer1: ...' in the instruction {instruction[:60]!r}...")
    marks = marks[start:]
    ends = [*(m.start() for m in marks[1:]), len(body)]
    options = tuple(body[m.end() : end].strip() for m, end in zip(marks, ends, strict=True))
    if [m.group(1) for m in marks] != [str(i + 1) for i in range(len(marks))] or not all(options):
        raise DataError(f"{where}: options must be numbered from 1 and not empty; found {list(options)}")
    if labels and len(labels) != len(options):
        raise DataError(f"{where}: {len(options)} options but {len(labels)} labels ({'/'.join(labels)})")
    return _LEAD.sub("", body[: marks[0].start()], count=1).strip(), options


def extract_answer(generated: str, labels: Sequence[str]) -> str | None:
    """Return the answer in generated text: the first label word in it; None if there is none.

    The words that are searched are those of LLM-Adapters' evaluation of the set to which the labels belong. So a set
    with labels answer1 to answer3 also finds answer4, which is then wrong. Other labels are searched as whole words.

    A single label says nothing about wrong answers. If it is a number, the answer is the last number in the text, as in
    LLM-Adapters. Otherwise it is what the text, or its part after the last "answer is", begins with. If that agrees
    with the label, the label is returned.
    """
    text = generated.partition(RESPONSE_HEADER)[0]
    for pattern in _FAMILIES:
        if labels and all(map(pattern.fullmatch, labels)):
            match = pattern.search(text)
            return match.group() if match else None
    if len(labels) == 1:
        return _lone_answer(text, labels[0])
    match = _whole(labels).search(text) if labels else None
    return match.group() if match else None


def _lone_answer(text: str, answer: str) -> str | None:
    """Return the answer in a text if the set names a single label."""
    right = _THOUSANDS.sub("", answer.strip())
    if _NUMBER.fullmatch(right):
        last = next(reversed(_NUMBER.findall(_THOUSANDS.sub("", text))), None)
        return answer if last is not None and abs(Decimal(last) - Decimal(right)) <= _MISS else last
    reply = re.split(r"answer is:?", text)[-1].strip()
    # up to a full stop or the end of a line, because "New York City" is not "New York"
    if re.match(rf"[\s\"'(*]*?{re.escape(answer.strip())}[\"')*]*\s*?(?:[.,;:!?](?!\w)|\n|$)", reply):
        return answer
    return reply.partition("\n")[0] or None
