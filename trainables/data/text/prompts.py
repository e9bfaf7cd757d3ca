"""Prompts of language-model tasks, the choices written in them, and the answer read from generated text.

The instruction prompt is Alpaca's as LLM-Adapters' evaluation writes it, indentation included. Its training script
writes a slightly different one (a stray comment in the first line, spaces on blank lines); here training and evaluation
see the same prompt. The question prompt is the one that log-likelihood evaluations of multiple choice commonly use.
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
"""What borders on a word inside a longer one; Thai, Lao, Burmese, Khmer, Chinese, Japanese and Korean put no space
there."""
_LABELS = re.compile(r"Answer format:\s*(\S.*)$")
_OPTION = re.compile(r"\b(?:Answer|Option|Ending|Solution)(\d):\s*")
_LEAD = re.compile(r"Please [^:]*:\s*")
_FAMILIES = tuple(map(re.compile, ("true|false", "solution[12]", "answer[1-5]", "ending[1-4]", "option[12]")))
"""What LLM-Adapters looks for in the output of its sets, whose labels are such words."""
_NUMBER = re.compile(r"(?:(?<!\w)-)?\d+(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MISS = Decimal("0.001")
"""How far from the right number LLM-Adapters takes one for it."""


def alpaca(instruction: str, further: str = "") -> str:
    """The prompt of an instruction, with an input where there is one; the response follows directly."""
    context, gap = (", paired with an input that provides further context", "") if further else ("", " ")
    asked = f"{_OPENING}{context}. Write a response that appropriately completes the request.{gap}"
    given = f"{_BLANK}### Input:{_INDENT}{further}" if further else ""
    return f"{asked}{_BLANK}### Instruction:{_INDENT}{instruction}{given}{_BLANK}{RESPONSE_HEADER}{_INDENT}"


def question(text: str, context: str = "") -> str:
    """The prompt of a bare question, after its context where there is one; an answer follows after a space."""
    return f"{context}\nQuestion: {text}\nAnswer:".removeprefix("\n")


def meaning(representation: str) -> str:
    """An E2E meaning representation, `name[X], eatType[Y]`, as "name : X | Type : Y" (the form of LoRA's E2E data)."""
    slots = re.findall(r"(?:^|(?<=[\[\],]))\s*([^\[\],\s][^\[\],]*)\[([^\]]*)\]", representation)
    names = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
    return " | ".join(f"{names.get(slot, slot)} : {value}" for slot, value in slots)


def labels_of(instruction: str) -> tuple[str, ...]:
    """The answer labels that an LLM-Adapters instruction ends with ("Answer format: a/b/c"); () where it names none."""
    found = _LABELS.search(instruction.rstrip())
    return tuple(part.strip() for part in found.group(1).split("/")) if found else ()


def relabelled(output: str, answer: str, labels: Sequence[str], where: str) -> tuple[str, ...]:
    """`output` with its last `answer` replaced by every label. Raises DataError where that can't be done."""
    if len(labels) < 2:
        raise DataError(
            f"{where}: the instruction names no choices (it should end with 'Answer format: a/b/...'); add a list "
            "'choices' to the row, or set evaluate.protocol = 'generation'"
        )
    if answer not in labels:
        raise DataError(f"{where}: answer {answer!r} is not among the choices {', '.join(labels)}")
    beside = around(output, answer, where)
    return tuple(label.join(beside) for label in labels)


def around(output: str, answer: str, where: str) -> tuple[str, str]:
    """What stands before and behind the last answer in an output. Raises DataError where it has no such word."""
    found = list(_whole([answer]).finditer(output))
    if not found:
        raise DataError(
            f"{where}: output {output!r} does not hold the answer {answer!r} as a word of its own, and the choices are "
            "made by replacing it; write it there, or give a list 'choices' and leave 'output' out"
        )
    return output[: found[-1].start()], output[found[-1].end() :]


def _whole(words: Sequence[str]) -> re.Pattern[str]:
    """Finds one of these as a whole word or number, the longest first: "5" not in "15" or "-5", "no" not in "know"."""
    return re.compile("|".join(map(_bordered, sorted(words, key=len, reverse=True))))


def _bordered(word: str) -> str:
    """A word's pattern; it needs a border where it ends in a letter or digit: "C++" may stand before "17"."""
    left = rf"(?<!{_LETTER})" if re.match(_LETTER, word) else ""
    right = rf"(?!{_LETTER})" if re.match(_LETTER, word[-1]) else ""
    left += r"(?<!\d[.,])(?<!(?<!\w)-)" if word[0].isdigit() else ""
    right += r"(?!(?!\.0+(?!\d))[.,]\d)" if word[-1].isdigit() else ""  # 5.0 is 5
    return left + re.escape(word) + right


def stem_and_options(instruction: str, where: str) -> tuple[str, tuple[str, ...]]:
    """Question and option texts of an LLM-Adapters instruction ("... Answer1: X Answer2: Y Answer format: ...").

    A true/false question has its labels as options.

    Raises DataError: options that are missing, empty, or not as many as the labels.
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
    """The answer in generated text: the first label word in it, None where there is none.

    The words looked for are those of LLM-Adapters' evaluation of the set that the labels belong to, so a set with three
    labels answer1 to answer3 also finds answer4, which is then wrong; other labels are looked for as whole words. A
    label alone says nothing of wrong answers, so what is found is the last number where it is one, as LLM-Adapters
    does, or else what the text, or its part after the last "answer is", begins with; the label itself where they agree.
    """
    text = generated.partition(RESPONSE_HEADER)[0]
    for pattern in _FAMILIES:
        if labels and all(map(pattern.fullmatch, labels)):
            found = pattern.search(text)
            return found.group() if found else None
    if len(labels) == 1:
        return _lone_answer(text, labels[0])
    found = _whole(labels).search(text) if labels else None
    return found.group() if found else None


def _lone_answer(text: str, answer: str) -> str | None:
    right = _THOUSANDS.sub("", answer.strip())
    if _NUMBER.fullmatch(right):
        last = next(reversed(_NUMBER.findall(_THOUSANDS.sub("", text))), None)
        return answer if last is not None and abs(Decimal(last) - Decimal(right)) <= _MISS else last
    said = re.split(r"answer is:?", text)[-1].strip()
    # up to a stop or the end of a line: "New York City" is not "New York"
    if re.match(rf"[\s\"'(*]*?{re.escape(answer.strip())}[\"')*]*\s*?(?:[.,;:!?](?!\w)|\n|$)", said):
        return answer
    return said.partition("\n")[0] or None
