"""Recipe of the evaluation of models and an index on held-out questions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stillroom.recipes import Recipe, Reference, Settings

__all__ = ["AnswerSamplingSettings", "EvaluateRecipe"]


class AnswerSamplingSettings(Settings):
    """How answers are drawn."""

    max_new_tokens: int = Field(96, ge=1, le=8192, description="longest answer, in tokens")
    temperature: float = Field(0.0, ge=0, le=10, description="0 takes the likeliest token")
    top_k: int = Field(0, ge=0, description="tokens that are drawn from; 0 is all")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability drawn from")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1 discourages repeating")


class EvaluateRecipe(Recipe):
    """Measure models, and the index they answer from, on held-out questions."""

    kind: Literal["evaluate"] = Field("evaluate", description="measure models and an index")
    records: Reference = Field(
        description="a records artifact; its records with fields.split 'held_out' are asked"
    )
    models: dict[str, Reference] = Field(
        description="checkpoints or endpoints by name; the first is what the others are "
        "compared with, as {teacher: ..., student: ...}"
    )
    index: Reference | None = Field(
        None, description="an index artifact, to measure retrieval and answers from passages"
    )
    answerer: str = Field("rag", description="plug-in that opens the index")
    distilled: Reference | None = Field(
        None, description="the distilled checkpoint artifact whose first fidelity is reported"
    )
    max_questions: int = Field(
        200, ge=1, description="questions asked; more are drawn from by the seed"
    )
    k: int = Field(5, ge=1, le=100, description="passages shown with a question")
    depth: int = Field(50, ge=10, le=1000, description="passages retrieved to measure retrieval on")
    sampling: AnswerSamplingSettings = Field(
        default_factory=lambda: AnswerSamplingSettings.model_validate({}),
        description="how answers are drawn",
    )
    backend: str = Field("auto", description="engine that runs the models")
    fidelity: bool = Field(
        True, description="measure perplexity, and each model's divergence from the first"
    )
    max_tokens: int = Field(
        1024, ge=16, description="tokens of a record that fidelity is measured on"
    )
    when_too_few: Literal["refuse", "go_on"] = Field(
        "refuse",
        description="where no record can be asked: refuse; or go_on, and report what is known "
        "without a question",
    )

    @field_validator("models")
    @classmethod
    def _have_names(cls, models: dict[str, str]) -> dict[str, str]:
        if not models or any(not name or "/" in name or name == "retrieval" for name in models):
            raise ValueError("give at least one model, each with a name without '/'")
        return models
