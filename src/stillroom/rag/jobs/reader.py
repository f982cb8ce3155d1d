"""Train a sentence reader on questions of people about indexed documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stillroom.errors import count_noun
from stillroom.jobs.kind import JobKind
from stillroom.jobs.preflight import Estimate
from stillroom.models.hub import DEFAULT_EMBEDDER, MULTILINGUAL_EMBEDDER
from stillroom.provenance import digest_file
from stillroom.provenance.digests import load_json
from stillroom.recipes import DISTINCT, Recipe, Reference
from stillroom.train.replay import TrainingReplayer
from stillroom.train.settings import LoraSettings, TrainSettings

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "ReaderRecipe", "ReaderTrainSettings", "estimate", "run"]

_SECONDS_PER_TOKEN = 6e-4
_TOKENS_PER_PASSAGE = 220
_BYTES_PER_TOKEN = 150_000


class ReaderTrainSettings(TrainSettings):
    """Training settings whose defaults are those of a reader; only low-rank updates are trained."""

    epochs: float = Field(
        default=4.0, gt=0, le=1e6, description="passes over the questions, if 'steps' is null"
    )
    batch_size: int = Field(default=8, ge=1, description="questions per optimizer step")
    micro_tokens: int = Field(
        default=4096,
        ge=1,
        description="maximum tokens (padding included) per micro-batch; lower saves memory",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    save_every_s: float = Field(
        default=10.0,  # a step takes seconds, the low-rank updates are saved in a fraction of one
        ge=0,
        description="seconds between saved states for --resume; 0 saves every step",
    )
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW beta2 (second moment)")
    lora: LoraSettings = Field(
        default_factory=lambda: LoraSettings(rank=32, alpha=32), description="low-rank updates"
    )


class ReaderRecipe(Recipe):
    """Train a reader that quotes the sentences of a passage that answer a question."""

    kind: Literal["rag.reader"] = Field(default="rag.reader", description="train a sentence reader")
    index: Reference = Field(description="index artifact of the documents")
    questions: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        min_length=1,
        examples=[["path/to/questions.json"]],
        description="questions that name their evidence, or have no answer: JSON lines, SQuAD's "
        "JSON, records",
    )
    without: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        default=(),
        description="questions that evaluate the reader: these, compared without case and "
        "punctuation, and judgments of the same sentences are not trained on",
    )
    base: Reference = Field(
        default=DEFAULT_EMBEDDER, description="encoder: a BERT or MPNet of sentence-transformers"
    )
    start: Reference | None = Field(
        default=None,
        description="reader to train further, of the same base and rank; builtin:reader gives way "
        "to builtin:reader-multilingual and its base where most documents are not in English; null "
        "starts from the base",
    )
    k: int = Field(default=3, ge=1, le=20, description="passages of a training example")
    unanswerable: float = Field(
        default=0.15,
        ge=0,
        lt=1,
        description="share of the answerable questions whose answering passages are removed",
    )
    validation: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="share of the documents whose questions calibrate the reader and are not "
        "trained on",
    )
    max_validation: int = Field(
        default=300, ge=10, description="maximum number of validation questions"
    )
    silent: float = Field(
        default=0.9,
        gt=0,
        lt=1,
        description="share of the validation questions without an answer, or without the documents "
        "that answer, that the default threshold leaves unanswered",
    )
    train: ReaderTrainSettings = Field(
        default_factory=ReaderTrainSettings,
        description="optimizer, schedule, batch size, low-rank updates",
    )


def run(recipe: ReaderRecipe, job: Job) -> Artifact:
    """Train a reader, calibrate it on the questions of held-out documents, and write it.

    One that continues a ``start`` has its calibration, shifted so that it is as often silent
    without an answer, and is kept only if it is better there; else the start is written.

    Raises:
        DataError: If no question has evidence in the index.
        CheckpointError: If the base is no BERT or MPNet, or ``start`` has another base or rank.
        Cancelled: If cancellation was requested; ``--resume`` continues to the same bytes.
    """
    from stillroom.rag.answer_selection.training_run import train_reader

    suited, warning = _suit_start(recipe)
    if warning:
        job.warn(warning)
    elif suited != recipe:
        line = f"most documents are not in English: {suited.start} of {suited.base} is the start"
        job.say(line, kind="choice")
    return train_reader(suited, job)


def _suit_start(recipe: ReaderRecipe) -> tuple[ReaderRecipe, str]:
    """Return the recipe with the packaged reader for its documents as the start, and its base.

    And a warning if that reader cannot be opened.
    """
    from stillroom.rag.answer_selection.reader import (
        BUILTIN_READER,
        CONFIG_FILE,
        choose_reader,
        find_reader,
        is_foreign,
    )
    from stillroom.rag.index.searcher import Index

    if recipe.start != BUILTIN_READER:
        return recipe, ""
    with Index.open(Path(recipe.index), verify=False) as index:
        languages = index.languages
    if not is_foreign(languages):  # the large encoder has eight times the weights to train
        return recipe, ""
    start, warning = choose_reader(recipe.start, languages)
    if start == recipe.start:
        return recipe, warning
    changes = {"start": start}
    if recipe.base == DEFAULT_EMBEDDER:
        changes["base"] = load_json((find_reader(start) / CONFIG_FILE).read_bytes())["base"]
    return recipe.model_copy(update=changes), ""


def estimate(recipe: ReaderRecipe) -> Estimate:
    """Estimate memory and time from the number of questions."""
    from stillroom.evaluate.qa.questions import read_question_set

    paths = [Path(path) for path in recipe.questions]
    questions = sum(len(read_question_set(path)) for path in paths if path.exists())
    steps = recipe.train.count_steps(max(1, round(questions * (1 - recipe.validation))))
    tokens = steps * recipe.train.batch_size * recipe.k * _TOKENS_PER_PASSAGE
    return Estimate(
        memory_bytes=1_200_000_000 + recipe.train.micro_tokens * _BYTES_PER_TOKEN,
        disk_bytes=40_000_000 + recipe.train.states_mb * 10**6,
        # The multilingual encoder has twice the layers.
        seconds=tokens * _SECONDS_PER_TOKEN * (1 + (recipe.base == MULTILINGUAL_EMBEDDER)),
        memory_knob="lower train.micro_tokens",
        disk_knob="lower train.states_mb or train.lora.rank",
        basis=f"{count_noun(steps, 'step')} of {count_noun(recipe.train.batch_size, 'question')} "
        f"with {count_noun(recipe.k, 'passage')}",
    )


def _list_start(recipe: ReaderRecipe) -> tuple[str, ...]:
    """Return the digest of the weights of the reader that is trained further."""
    from stillroom.rag.answer_selection.reader import WEIGHTS_FILE, find_reader

    start = _suit_start(recipe)[0].start
    return () if start is None else (digest_file(find_reader(start) / WEIGHTS_FILE),)


def _list_installed(recipe: ReaderRecipe) -> list[str]:
    """Return the packaged readers that are installed, if the start is to be one of them."""
    from stillroom.rag.answer_selection.reader import BUILTIN_READER, list_installed_readers

    return list_installed_readers() if recipe.start == BUILTIN_READER else []


JOB_KIND = JobKind(
    recipe=ReaderRecipe,
    run=run,
    estimate=estimate,
    surroundings=_list_installed,
    extras=("train",),
    replayer=TrainingReplayer(list_choices=_list_start),
)
