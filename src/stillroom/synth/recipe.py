"""SynthRecipe: which passages, which teacher, how it is asked and what is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillroom.recipes import Recipe, Reference, Settings
from stillroom.synth.method import FILTERS, GENERATORS, Filter, Generator

__all__ = ["DEFAULT_FILTERS", "DEFAULT_TEACHER", "EngineSettings", "SynthRecipe", "Target"]

DEFAULT_TEACHER = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_FILTERS = (
    "shape",
    "language",
    "refusal",
    "injection",
    "repetition",
    "question_form",
    "standalone",
    "grounded",
    "answerable",
    "duplicate",
    "decontaminate",
)


class Target(Settings):
    """How many records are wanted; asking stops when they are kept."""

    train: int = Field(default=100, ge=1, description="records wanted for training")
    held_out: int = Field(default=25, ge=0, description="records wanted for evaluation")


class EngineSettings(Settings):
    """How the teacher is run."""

    backend: str = Field(default="auto", description="engine that runs the teacher")
    num_threads: int | None = Field(default=None, ge=1, description="threads; default all cores")
    context_length: int | None = Field(
        default=None,
        ge=256,
        description="tokens of prompt and completion together; default the model's",
    )


class SynthRecipe(Recipe):
    """Ask a teacher for questions and answers about passages, and keep what holds."""

    kind: Literal["synth"] = Field("synth", description="write records about passages")
    index: Reference = Field(
        description="an index artifact, or a file of passages (JSONL) or of records"
    )
    model: Reference = Field(
        DEFAULT_TEACHER, description="the teacher: a checkpoint, a .gguf file or an endpoint"
    )
    engine: EngineSettings = Field(
        default_factory=EngineSettings, description="how the teacher is run"
    )
    generator: Annotated[Generator, GENERATORS.choice()] = Field(
        "grounded_qa", validate_default=True, description="how the teacher is asked"
    )
    filters: tuple[Annotated[Filter, FILTERS.choice()], ...] = Field(
        DEFAULT_FILTERS, validate_default=True, description="what a record must pass, in order"
    )
    target: Target = Field(default_factory=Target, description="how many records are wanted")
    held_out: float = Field(
        0.2, ge=0, lt=1, description="share of documents kept for evaluation, by hash of their id"
    )
    attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="how often a passage may be asked about",
    )
    include_passages: int = Field(
        200, ge=0, description="most train passages that become records of plain text; 0 is none"
    )
    batch_size: int = Field(
        16, ge=1, le=1024, description="passages asked about at once; never changes what is kept"
    )
    cache: Reference | None = Field(
        None, description="file that keeps completions, so that edited recipes ask only what is new"
    )
