"""What is needed, besides the weights, to predict with a trial's weights. It is written beside them as
`predict.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from randlora.methods.prompts.kinds import PREFIX
from trainables.config import TrialConfig
from trainables.data.facts import TextKind
from trainables.data.images.dataset import Dataset
from trainables.data.templates import check_templates
from trainables.data.text import prompts
from trainables.data.text.dataset import Chat, Exchange, Labelled, TextDataset
from trainables.data.text.problems import PROMPT
from trainables.errors import TrialError, first_line
from trainables.models.families import Kind
from trainables.models.loading import LoadedModel, Preprocess
from trainables.tasks.images.images import image_preprocess
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.text.encoding import encoder_of
from trainables.tasks.text.sentences import SentenceEncoder

FACTS_FILE = "predict.json"

PLACE = "{instruction}"
"""In `Facts.prompt` it stands for the question."""
ANSWER = "{answer}"
"""In `Facts.response` it stands for the label."""

_GENERATION = {"num_beams", "max_new_tokens", "length_penalty", "no_repeat_ngram"}
_PROMPTS = {
    "instructions": prompts.alpaca(PLACE),
    "questions": prompts.question(PLACE),
    "problems": PROMPT.format(PLACE),
    "meanings": PLACE,
    "completions": PLACE,
}


class Facts(BaseModel):
    """Everything but the weights, as JSON on disk."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    model: str
    """Id of the base model."""
    dataset: str
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the logits. () for numbers and generated texts."""
    look: Preprocess | None = None
    """How an image becomes the model's input."""
    templates: tuple[str, ...] = ()
    """For CLIP: prompts with one "{}" for the class. An image is compared with the mean of their text features."""
    rows: TextKind | None = None
    """For texts: the kind of the data set's rows."""
    pair: bool = False
    """For sentences: whether an input has two of them."""
    prompt: str | None = None
    """For language models: the prompt, with `PLACE` in it."""
    response: str | None = None
    """The response to a prompt that names its choices, with `ANSWER` in it."""
    bos_between: bool = False
    """Whether the tokenizer's BOS stands between prompt and response."""
    chat: bool = False
    """Whether the prompt is a user's message, which goes through the tokenizer's chat template."""
    max_tokens: int | None = None
    """Longest text in tokens."""
    generation: dict[str, int | float] = {}
    """Settings of generated texts, as `EvaluateSettings` names them."""

    @field_validator("templates")
    @classmethod
    def _fill_in_names_alone(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_templates(value, FACTS_FILE) if value else value

    def write(self, folder: Path) -> None:
        """Write `predict.json` into a folder."""
        text = self.model_dump_json(indent=1, exclude_defaults=True)
        (folder / FACTS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Return the facts in a folder. Raises TrialError if the file is damaged."""
        path = folder / FACTS_FILE
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise TrialError(f"{path} can't be read ({first_line(error)}); remove it, and the data are read") from error


def facts_of(trial: TrialConfig, loaded: LoadedModel, lane: LaneCache) -> Facts:
    """Return the facts of a trial. Its test split stays closed. Raises DataError if its data cannot be read."""
    common: dict[str, Any] = {"kind": loaded.kind, "model": trial.model, "dataset": trial.dataset}
    if loaded.preprocess is not None:
        common["look"] = image_preprocess(loaded, trial.image_size)
        images = lane.dataset(trial.dataset, "TUNE")
        templates = _templates(images, trial) if loaded.kind == "clip" else ()
        return Facts(**common, classes=images.class_names, templates=templates)
    texts = lane.text_dataset(trial.dataset, "TUNE")
    common |= {"rows": texts.kind}
    if loaded.kind == "text-encoder":
        encoder = SentenceEncoder(loaded.text_tokenizer, trial.train.max_tokens, loaded.module, trial.model)
        first = texts.train.rows[0]
        pair = isinstance(first, Labelled) and len(first.sentences) > 1
        return Facts(**common, classes=texts.class_names, pair=pair, max_tokens=encoder.max_tokens)
    return Facts(
        **common,
        prompt=_PROMPTS[texts.kind],
        response=_response_form(texts),
        bos_between=any(isinstance(row, Exchange) and row.bos_between for row in texts.train.rows[:1]),
        chat=isinstance(texts.train.rows[0], Chat),
        max_tokens=encoder_of(loaded, trial.train.max_tokens).max_tokens,
        generation=trial.evaluate.model_dump(include=_GENERATION),
    )


def _templates(images: Dataset, trial: TrialConfig) -> tuple[str, ...]:
    """Return the prompts that a CLIP model was evaluated with.

    If its text tower trains, it is the prompt of the loss. Learnt prompts are not words, so they are not among them.
    """
    if trial.method.startswith(PREFIX):
        return ()
    return (images.prompt,) if trial.adapt == "both" else images.templates


def _response_form(texts: TextDataset) -> str | None:
    """Return how the data set writes a response with a label in it, from the first row that has choices; None if none
    has."""
    for row in texts.train.rows:
        if isinstance(row, Exchange) and row.choices and row.answer is not None:
            return ANSWER.join(prompts.split_around(row.response, row.answer, texts.name))
    return None
