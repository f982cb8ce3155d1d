"""Recipe of the evaluation of models and an index on held-out questions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stillroom.recipes import Recipe, Reference, Settings

__all__ = ["AnswerSamplingSettings", "EvaluateRecipe"]


class AnswerSamplingSettings(Settings):
    """Sampling settings of answers."""

    max_new_tokens: int = Field(96, ge=1, le=8192, description="maximum tokens of an answer")
    temperature: float = Field(0.0, ge=0, le=10, description="sampling temperature; 0 is greedy")
    top_k: int = Field(0, ge=0, description="sample from the k most likely tokens; 0 is all")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: cumulative probability")
    repetition_penalty: float = Field(1.0, gt=0, description="values above 1 penalize repetition")


class EvaluateRecipe(Recipe):
    """Evaluate models, and optionally an index, on held-out questions."""

    kind: Literal["evaluate"] = Field("evaluate", description="evaluate models and an index")
    records: Reference = Field(
        description="records artifact; its records with fields.split 'held_out' are asked"
    )
    models: dict[str, Reference] = Field(
        description="checkpoints or endpoints by name, as {teacher: ..., student: ...}; the others "
        "are compared with the first"
    )
    index: Reference | None = Field(
        None, description="index artifact, to evaluate retrieval and answers from passages"
    )
    answerer: str = Field("rag", description="plug-in that opens the index")
    distilled: Reference | None = Field(
        None, description="distilled checkpoint artifact whose initial fidelity is reported"
    )
    max_questions: int = Field(
        200, ge=1, description="maximum number of questions, sampled by the seed"
    )
    k: int = Field(5, ge=1, le=100, description="passages shown with a question")
    depth: int = Field(50, ge=10, le=1000, description="passages retrieved for retrieval measures")
    sampling: AnswerSamplingSettings = Field(
        default_factory=lambda: AnswerSamplingSettings.model_validate({}),
        description="sampling settings of the answers",
    )
    backend: str = Field("auto", description="engine that runs the models")
    fidelity: bool = Field(
        True, description="measure perplexity, and each model's divergence from the first"
    )
    max_tokens: int = Field(1024, ge=16, description="maximum tokens of a record for fidelity")
    when_too_few: Literal["refuse", "go_on"] = Field(
        "refuse",
        description="without held-out questions: refuse, or go_on and report the measures "
        "that need none",
    )

    @field_validator("models")
    @classmethod
    def _have_names(cls, models: dict[str, str]) -> dict[str, str]:
        if not models or any(not name or "/" in name or name == "retrieval" for name in models):
            raise ValueError("give at least one model, each with a name without '/'")
        return models
