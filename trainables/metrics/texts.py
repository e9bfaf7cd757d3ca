"""Scores of generated texts against references: BLEU, NIST, METEOR, ROUGE-L, CIDEr, by existing libraries.

They are the five of the E2E challenge, whose scripts use other programs for some of them (a Perl-like mteval, a Java
METEOR and tokenizer), so values differ a little from published ones; all trials of a sweep are scored alike.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from trainables.errors import TrialError

EXTRA = "text-metrics"
"""The extra of the package that installs the libraries."""
LIBRARIES = ("sacrebleu", "nltk", "rouge_score", "pycocoevalcap")


def score_texts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus scores by name, higher is better.

    `bleu`: sacrebleu's, case ignored, as a share of 1. `nist`: NLTK's, up to 5-grams. `meteor`: NLTK's, matching words
    and stems but no WordNet synonyms (which would have to be downloaded). `rouge-l`: F1 of the longest common
    subsequence, the best reference of each text, averaged. `cider`: pycocoevalcap's CIDEr-D without its stemming.
    All but BLEU work on the lower-case tokens of BLEU's tokenizer.

    Raises TrialError: a library that is not installed, naming the extra; no texts, or a text without references.
    """
    if not texts or len(texts) != len(references) or not all(references):
        raise TrialError(f"{len(texts)} texts and {len(references)} lists of references: each text needs references")
    tokenize = _library("sacrebleu.tokenizers.tokenizer_13a").Tokenizer13a()

    def tokens(text: str) -> list[str]:
        return str(tokenize(text)).lower().split()

    hypotheses = [tokens(text) for text in texts]
    wanted = [[tokens(reference) for reference in each] for each in references]
    return {
        "bleu": _bleu(texts, references),
        "nist": _nist(hypotheses, wanted),
        "meteor": _meteor(hypotheses, wanted),
        "rouge-l": _rouge(hypotheses, wanted),
        "cider": _cider(hypotheses, wanted),
    }


def check_installed() -> None:
    """Raise TrialError where a library is missing; called before a trial trains."""
    for module in LIBRARIES:
        _library(module)


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
    found = _library("sacrebleu").metrics.BLEU(lowercase=True).corpus_score(list(texts), columns)
    return min(1.0, float(found.score) / 100.0)  # of equal texts it is a rounding error more


def _nist(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    longest = max((len(h) for h in hypotheses), default=0)
    if longest == 0:
        return 0.0
    try:
        return float(_library("nltk.translate.nist_score").corpus_nist(references, hypotheses, n=min(5, longest)))
    except ZeroDivisionError:  # NLTK divides by the number of matches it could have found
        return 0.0


_NO_SYNONYMS = SimpleNamespace(synsets=lambda word: [])
"""Stands in for WordNet, which NLTK would have to download."""


def _meteor(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    score = _library("nltk.translate.meteor_score").meteor_score
    values = [score(each, h, wordnet=_NO_SYNONYMS) for h, each in zip(hypotheses, references, strict=True)]
    return float(sum(values)) / len(values)


def _rouge(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    by_spaces = SimpleNamespace(tokenize=str.split)
    scorer = _library("rouge_score.rouge_scorer").RougeScorer(["rougeL"], tokenizer=by_spaces)
    best = [
        scorer.score_multi([" ".join(r) for r in each], " ".join(h))["rougeL"].fmeasure
        for h, each in zip(hypotheses, references, strict=True)
    ]
    return float(sum(best)) / len(best)


def _cider(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    found = {i: [" ".join(h)] for i, h in enumerate(hypotheses)}
    wanted = {i: [" ".join(r) for r in each] for i, each in enumerate(references)}
    value, _ = _library("pycocoevalcap.cider.cider").Cider().compute_score(wanted, found)
    return float(value)
