"""Evaluate models, and optionally an index, on held-out questions, into one report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.jobs.replay import JournalReplayer
from stillroom.provenance import Artifact
from stillroom.recipes import Recipe, Reference, Settings

__all__ = [
    "JOB_KIND",
    "AnswerSamplingSettings",
    "EvaluateRecipe",
    "ModelFidelitySettings",
    "RetrievalSettings",
    "estimate",
    "run",
]

_BYTES_PER_SECOND = 5e9
_OVERHEAD_BYTES = 600_000_000


class AnswerSamplingSettings(Settings):
    """Sampling settings of answers."""

    max_new_tokens: int = Field(96, ge=1, le=8192, description="maximum tokens of an answer")
    temperature: float = Field(0.0, ge=0, le=10, description="sampling temperature; 0 is greedy")
    top_k: int = Field(0, ge=0, description="sample from the k most likely tokens; 0 is all")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: cumulative probability")
    repetition_penalty: float = Field(1.0, gt=0, description="values above 1 penalize repetition")


class RetrievalSettings(Settings):
    """Index whose retrieval is measured, and whose passages are shown with the questions."""

    index: Reference = Field(description="index artifact")
    system: str = Field("rag", description="plug-in that opens the index")
    top_k: int = Field(5, ge=1, le=100, description="passages shown with a question")
    depth: int = Field(50, ge=10, le=1000, description="passages retrieved for retrieval measures")


class ModelFidelitySettings(Settings):
    """Perplexity of each model, and its divergence from the first."""

    max_tokens: int = Field(1024, ge=16, description="maximum tokens of a record")
    distilled: Reference | None = Field(
        None, description="distilled checkpoint artifact whose initial fidelity is reported"
    )


class EvaluateRecipe(Recipe):
    """Evaluate models, and optionally an index, on held-out questions."""

    kind: Literal["evaluate.report"] = Field(
        "evaluate.report", description="evaluate models and an index"
    )
    records: Reference = Field(
        description="records artifact; its records with fields.split 'held_out' are asked"
    )
    models: dict[str, Reference] = Field(
        description="checkpoints or endpoints by name, as {teacher: ..., student: ...}; the others "
        "are compared with the first"
    )
    backend: str = Field("auto", description="backend that runs the models")
    max_questions: int = Field(
        200, ge=1, description="maximum number of questions, sampled by the seed"
    )
    sampling: AnswerSamplingSettings = Field(
        default_factory=lambda: AnswerSamplingSettings.model_validate({}),
        description="sampling settings of the answers",
    )
    retrieval: RetrievalSettings | None = Field(
        None,
        description="evaluate an index and answers from its passages, as {index: path/to/index, "
        "top_k: 5, depth: 50}; null: closed book only",
    )
    fidelity: ModelFidelitySettings | None = Field(
        default_factory=lambda: ModelFidelitySettings.model_validate({}),
        description="measure perplexity, and each model's divergence from the first; null: do not",
    )
    on_too_few: Literal["refuse", "continue"] = Field(
        "refuse",
        description="without held-out questions: refuse; or continue, and report the measures that "
        "need none",
    )

    @field_validator("models")
    @classmethod
    def _have_names(cls, models: dict[str, str]) -> dict[str, str]:
        if not models or any(not name or "/" in name or name == "retrieval" for name in models):
            raise ValueError("give at least one model, each with a name without '/'")
        return models


def run(recipe: EvaluateRecipe, job: Job) -> Artifact:
    """Evaluate an index and models on held-out questions, and write the report.

    Raises:
        DataError: If there is nothing to ask and the recipe does not allow that, or an input is
            invalid.
        RecipeError: If the index's plug-in is not installed.
        Cancelled: If the user stopped it; ``--resume`` continues.
    """
    from stillroom.evaluate.evaluator import evaluate_models

    return evaluate_models(recipe, job)


def estimate(recipe: EvaluateRecipe) -> Estimate:
    """Estimate the job's resources; references that do not exist yet are not counted."""
    from stillroom.evaluate.evaluator import read_local_size

    sizes = {name: read_local_size(reference) for name, reference in recipe.models.items()}
    biggest = sorted(sizes.values(), reverse=True)[: 2 if recipe.fidelity else 1]
    modes, passages = (2, recipe.retrieval.top_k) if recipe.retrieval else (1, 0)
    tokens = recipe.max_questions * modes * recipe.sampling.max_new_tokens
    unknown = [name for name, size in sizes.items() if not size]
    return Estimate(
        memory_bytes=2 * sum(biggest) + _OVERHEAD_BYTES,
        disk_bytes=recipe.max_questions * modes * len(recipe.models) * (2000 + 2000 * passages),
        seconds=sum(tokens * size / _BYTES_PER_SECOND for size in sizes.values()),
        memory_knob="set fidelity: null, or evaluate smaller models",
        disk_knob="lower max_questions or retrieval.top_k",
        basis=f"evaluate: {tokens} tokens a model at the speed weights are read"
        + (f"; size not known of {', '.join(unknown)}" if unknown else ""),
    )


JOB_KIND = JobKind(
    EvaluateRecipe,
    run,
    estimate,
    replayer=JournalReplayer(
        ("retrieval", "answers", "beliefs", "speed"), timed=frozenset({"speed/"})
    ),
)
