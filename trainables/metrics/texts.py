"""Scores of generated texts against references, by the definitions of the E2E challenge's script (e2e-metrics).

BLEU and NIST compare the lower-case tokens of mteval-13a, which sacrebleu has. pycocoevalcap computes METEOR 1.5,
ROUGE-L and CIDEr from the tokens of Stanford's PTB tokenizer, without punctuation. METEOR and that tokenizer are Java
programs inside pycocoevalcap. If `java` is missing, these three are left out, with a warning before a trial trains.
"""

from __future__ import annotations

import importlib
import math
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainables.errors import TrialError

EXTRA = "text-metrics"
"""The extra of the package that installs the libraries."""
LIBRARIES = ("sacrebleu", "pycocoevalcap")
CAPTIONS = "pycocoevalcap"
LONGEST = 5
"""Number of tokens in NIST's longest n-grams."""
_STEEP = -math.log(0.5) / math.log(1.5) ** 2
"""Makes NIST's penalty 1/2 for texts that have 2/3 of the references' length."""

Tokens = Sequence[str]


def score_texts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the corpus scores `bleu`, between 0 and 1, and `nist`. Higher is better.

    Raises TrialError: a library that is not installed, naming the extra; no texts, or a text without references.
    """
    if not texts or len(texts) != len(references) or not all(references):
        raise TrialError(f"{len(texts)} texts and {len(references)} lists of references: each text needs references")
    tokenize = _library("sacrebleu.tokenizers.tokenizer_13a").Tokenizer13a()

    def tokens(text: str) -> list[str]:
        return str(tokenize(text)).lower().split()

    reference_tokens = [[tokens(reference) for reference in texts_of_row] for texts_of_row in references]
    return {"bleu": _bleu(texts, references), "nist": nist([tokens(text) for text in texts], reference_tokens)}


def caption_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the corpus scores `meteor`, `rouge-l` and `cider`; {} on a machine without Java.

    Raises TrialError: a library that is not installed, naming the extra, or a Java program that failed.
    """
    if shutil.which("java") is None:
        return {}
    words = _words([*texts, *(reference for each in references for reference in each)])
    written = {i: [words[i]] for i in range(len(texts))}
    remaining = iter(words[len(texts) :])
    references_of = {i: [next(remaining) for _ in each] for i, each in enumerate(references)}
    meteor = _library(f"{CAPTIONS}.meteor.meteor").Meteor()
    with meteor.meteor_p as program:  # pycocoevalcap leaves this Java program running
        try:
            of_meteor = meteor.compute_score(references_of, written)[0]
        finally:
            program.kill()
    of_rouge = _library(f"{CAPTIONS}.rouge.rouge").Rouge().compute_score(references_of, written)[0]
    of_cider = _library(f"{CAPTIONS}.cider.cider").Cider().compute_score(references_of, written)[0]
    return {"meteor": float(of_meteor), "rouge-l": float(of_rouge), "cider": float(of_cider)}


def check_installed() -> None:
    """Raise TrialError if a library is missing, and warn if Java is. Called before a trial trains."""
    for module in LIBRARIES:
        _library(module)
    if shutil.which("java") is None:
        warnings.warn(
            "java is not on this machine's PATH, so METEOR, ROUGE-L and CIDEr are left out; install a Java runtime",
            stacklevel=2,
        )


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TrialError(
            f"text metrics need the package {name.partition('.')[0]}, which is not installed: "
            f"pip install 'randlora-sweeps[{EXTRA}]'"
        ) from error


def _bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    most = max(map(len, references))
    # sacrebleu wants one list per reference number; a missing one is None
    columns = [[each[i] if i < len(each) else None for each in references] for i in range(most)]
    score = _library("sacrebleu").metrics.BLEU(lowercase=True).corpus_score(list(texts), columns)
    return min(1.0, float(score.score) / 100.0)  # for equal texts a rounding error makes it more than 1


def _counts(tokens: Tokens, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def nist(texts: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Return NIST as mteval-13a defines it (Doddington 2002), up to 5-grams.

    The information of an n-gram is log2(a / b). All references together have the n-gram b times, and the n-gram without
    its last token a times. For each n, the information of the n-grams that texts share with their references is summed,
    and divided by the number of n-grams of the texts. The score is the sum over n, times a penalty if the texts are
    shorter than their references are on average.
    """
    counts_of_references: Counter[tuple[str, ...]] = Counter()
    for each in references:
        for tokens in each:
            counts_of_references[()] += len(tokens)
            for n in range(1, LONGEST + 1):
                counts_of_references.update(_counts(tokens, n))
    total = 0.0
    for n in range(1, LONGEST + 1):
        information, length = 0.0, 0
        for text, each in zip(texts, references, strict=True):
            text_counts, of_references = _counts(text, n), Counter[tuple[str, ...]]()
            for tokens in each:
                of_references |= _counts(tokens, n)
            shared = text_counts & of_references
            information += sum(
                times * math.log2(counts_of_references[gram[:-1]] / counts_of_references[gram])
                for gram, times in shared.items()
            )
            length += text_counts.total()
        total += information / length if length else 0.0
    mean = sum(sum(map(len, each)) / len(each) for each in references)
    ratio = sum(map(len, texts)) / mean if mean else 0.0
    if ratio == 0.0:
        return 0.0
    return total * math.exp(-_STEEP * math.log(min(1.0, ratio)) ** 2)


def _words(texts: Sequence[str]) -> list[str]:
    """Return each text's words by Stanford's PTB tokenizer: lower case, no punctuation, joined by spaces."""
    module = _library(f"{CAPTIONS}.tokenizer.ptbtokenizer")
    jar = Path(module.__file__).with_name(module.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = "\n".join(" ".join(text.split()) for text in texts) + "\n"
    done = subprocess.run([*command, "-encoding", "utf-8"], input=lines.encode(), capture_output=True, check=False)
    tokenized = done.stdout.decode().split("\n")[: len(texts)]
    if done.returncode or len(tokenized) < len(texts):
        raise TrialError(f"the PTB tokenizer of pycocoevalcap failed: {done.stderr.decode(errors='replace')[-300:]}")
    return [" ".join(word for word in line.split() if word not in module.PUNCTUATIONS) for line in tokenized]
