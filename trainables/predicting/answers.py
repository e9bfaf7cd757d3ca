"""Answer new images and texts with a trained model, by the code that evaluated it in training.

One thing differs. If a text names its choices, they are compared by likelihood, whatever `evaluate.protocol` was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from randlora.methods.prompts.entry import replaced_words
from trainables.config import EvaluateSettings
from trainables.data.images.batches import Normalise
from trainables.data.images.dataset import UNREADABLE, as_rgb, open_image
from trainables.data.images.pixels import Recipe
from trainables.data.text import prompts
from trainables.data.text.dataset import Exchange, Labelled
from trainables.errors import DataError, TrialError, first_line
from trainables.models.encoders import TransferHead
from trainables.models.language import LanguageModel
from trainables.predicting.facts import ANSWER, PLACE, Facts
from trainables.predicting.trained import Trained
from trainables.tasks.images.clip import VisionTask, class_embeddings
from trainables.tasks.images.images import FeatureClassifier, HeadClassifier
from trainables.tasks.images.prompts import names_as_texts, prompt_classifier
from trainables.tasks.text.encoding import encoder_of
from trainables.tasks.text.generation import generate
from trainables.tasks.text.learned import asked_tokens
from trainables.tasks.text.scoring import Question, choice_scores
from trainables.tasks.text.sentences import SentenceEncoder, SentenceReader

AT_ONCE = 32
"""The number of inputs of one forward pass."""

_NO_AUTOCAST = contextlib.nullcontext
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Answer:
    """A model's answer to one input.

    Attributes:
        given: the input: an image's file, or a text.
        answer: a class, a label, a number, or a generated text.
        probability: that of a class or label among all. None for numbers, generated texts, and choices compared per
            byte.
    """

    given: str
    answer: str
    probability: float | None


@torch.no_grad()
def answers(trained: Trained, given: Sequence[str]) -> Iterator[Answer]:
    """Yield an answer for every image file or text, in order.

    Raises:
        DataError: a file is not an image.
        TrialError: the model cannot take a text.
    """
    facts = trained.facts
    if facts.kind == "causal-lm":
        yield from _responses(trained, given)
        return
    outputs = _image_logits(trained) if facts.look is not None else _sentence_outputs(trained)
    for at in range(0, len(given), AT_ONCE):
        part = given[at : at + AT_ONCE]
        yield from _named(facts.classes, part, outputs(part))


def _named(classes: Sequence[str], given: Sequence[str], outputs: Tensor) -> Iterator[Answer]:
    """Yield the best class of each row of logits (n, C), or the number (n, 1) itself."""
    if not classes:
        yield from (Answer(text, f"{float(value):.4g}", None) for text, value in zip(given, outputs, strict=True))
        return
    probabilities, places = outputs.softmax(dim=1).max(dim=1)
    for text, probability, place in zip(given, probabilities, places, strict=True):
        yield Answer(text, classes[int(place)], float(probability))


def _image_logits(trained: Trained) -> Callable[[Sequence[str]], Tensor]:
    """Return the function from image files to logits (n, C)."""
    loaded, facts, look, head = trained.loaded, trained.facts, trained.facts.look, trained.head
    assert look is not None
    classifier: FeatureClassifier
    if facts.kind == "hf-vision":
        if not isinstance(head, nn.Linear):
            raise TrialError(f"no head was kept for {facts.model!r}, so it has no classes to name")
        classifier = HeadClassifier(loaded.module, head, _NO_AUTOCAST)
    elif trained.adapted is not None and trained.adapted.method.prompts:
        texts = names_as_texts(loaded, facts.classes, _CPU, replaced_words(trained.adapted.config))
        transfer = head if isinstance(head, TransferHead) else None
        classifier = prompt_classifier(trained.adapted.method.name, loaded.module, texts, _NO_AUTOCAST, transfer)
    else:
        assert loaded.tokenizer is not None
        words = (facts.classes, facts.templates)
        classes = class_embeddings(loaded.module, loaded.tokenizer, *words, device=_CPU, autocast=_NO_AUTOCAST)
        # a probe's logits are those of zero-shot with its weights in place of the class embeddings
        classifier = VisionTask(loaded.module, head.weight if isinstance(head, nn.Linear) else classes, _NO_AUTOCAST)
    normalise = Normalise(look.mean, look.std, _CPU)
    classifier.before_evaluation()

    def logits(files: Sequence[str]) -> Tensor:
        images = torch.stack([pixels(file, look.recipe) for file in files])
        return classifier.classify(classifier.features(normalise(images)))

    return logits


def pixels(file: str, recipe: Recipe) -> Tensor:
    """Return an image file as the model's square, (3, S, S) uint8. Raises DataError if it is not an image."""
    try:
        with open_image(Path(file)) as image:
            square = recipe.apply(as_rgb(image))
    except UNREADABLE as error:
        raise DataError(f"{file}: not a readable image ({first_line(error)})") from error
    return torch.from_numpy(np.array(square, dtype=np.uint8)).permute(2, 0, 1)


def _sentence_outputs(trained: Trained) -> Callable[[Sequence[str]], Tensor]:
    """Return the function from texts to logits (n, C), or numbers (n, 1). A tab separates two sentences in one text."""
    loaded, facts, head = trained.loaded, trained.facts, trained.head
    if head is None:
        raise TrialError(f"no head was kept for {facts.model!r}, so it has no classes to name")
    encoder = SentenceEncoder(loaded.text_tokenizer, facts.max_tokens, loaded.module, facts.model)
    read = SentenceReader(loaded.module, _NO_AUTOCAST, encoder.pad)

    def outputs(texts: Sequence[str]) -> Tensor:
        rows = [Labelled(tuple(text.split("\t")), 0) for text in texts]
        expected = 2 if facts.pair else 1
        for row in rows:
            if len(row.sentences) != expected or not all(row.sentences):
                rule = "two sentences with a tab between them" if facts.pair else "one sentence without tabs"
                raise TrialError(f"{row.sentences!r}: {facts.dataset} has {rule} in a row")
        return head(read(encoder(rows)))  # type: ignore[no-any-return]

    return outputs


def _responses(trained: Trained, texts: Sequence[str]) -> Iterator[Answer]:
    """Yield for each text the most likely of the choices that it names. If it names none, yield a generated text."""
    facts = trained.facts
    encoder = encoder_of(trained.loaded, facts.max_tokens)
    model = LanguageModel(trained.loaded.module, _NO_AUTOCAST)
    for text in texts:
        prompt_text, labels, choices = _prompt_and_choices(facts, text)
        if facts.chat:
            prompt = torch.tensor(asked_tokens(encoder.tokenizer, prompt_text, facts.model), dtype=torch.int64)
        else:
            (prompt,) = encoder.prompts([Exchange(prompt_text, "", bos_between=facts.bos_between)])
        if not choices:
            settings = EvaluateSettings.model_validate(facts.generation)
            (generated,) = generate(model.module, [prompt], encoder, settings, batch_size=1, autocast=_NO_AUTOCAST)
            yield Answer(text, generated.strip(), None)
            continue
        tokens = tuple(encoder.continuations(choices))
        room = encoder.max_tokens - max(map(len, tokens)) - 1  # as in training, where an EOS follows
        (scores,) = choice_scores(
            model, [Question(encoder.shortened(prompt, max(1, room)), tokens)], batch_size=1, pad=encoder.pad
        )
        if facts.rows == "questions":  # texts of their own compare per byte, as the metric does; no probabilities
            scores = scores / torch.tensor([len(c.strip().encode()) for c in choices])
            yield Answer(text, labels[int(scores.argmax())], None)
            continue
        probability, place = scores.softmax(dim=0).max(dim=0)
        yield Answer(text, labels[int(place)], float(probability))


def _prompt_and_choices(facts: Facts, text: str) -> tuple[str, Sequence[str], Sequence[str]]:
    """Return the prompt of a text, the labels that it names, and the responses with them; () and () without choices."""
    assert facts.prompt is not None
    labels: tuple[str, ...] = ()
    if facts.rows == "questions":
        with contextlib.suppress(DataError):  # no options: a bare question
            text, labels = prompts.stem_and_options(text, "")
        return facts.prompt.replace(PLACE, text), labels, [f" {label}" for label in labels]
    if facts.rows == "instructions" and facts.response is not None:
        labels = prompts.labels_of(text)
    if facts.rows == "meanings":
        text = prompts.meaning(text) or text  # else in that form already
    if len(labels) < 2:
        return facts.prompt.replace(PLACE, text), (), ()
    return facts.prompt.replace(PLACE, text), labels, [str(facts.response).replace(ANSWER, label) for label in labels]
