"""Match a teacher whose tokenizer differs from the student's.

Both texts are aligned by bytes; the loss compares chunks of text or rows of distributions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.distill.interfaces import (
    CROSS_TOKENIZER_LOSSES,
    ROLLOUT_POLICIES,
    CrossTokenizerLoss,
    RolloutPolicy,
)
from stillroom.distill.preflight.workload import Workload
from stillroom.distill.recipes import (
    TrainingRecipe,
    check_context,
    check_sharding,
    check_teacher_apart,
)
from stillroom.distill.settings import (
    EndpointTeacherSettings,
    RationaleChoice,
    RationaleTaskSettings,
    TeacherContextSettings,
    check_scorers,
)
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.jobs.preflight import PreflightReport
from stillroom.provenance import Artifact
from stillroom.recipes import Recipe, Reference

__all__ = ["JOB_KIND", "CrossTokenizerRecipe", "describe_workload", "estimate", "preflight", "run"]


class _AnyTeacher(Recipe):  # a base class of its own, so that the recipe begins with the teacher
    teacher: Reference | EndpointTeacherSettings = Field(
        examples=["path/to/teacher"],
        description="checkpoint of the teacher; or an endpoint, {endpoint: ..., tokenizer: ...}",
    )


class CrossTokenizerRecipe(TrainingRecipe, _AnyTeacher):
    """Train a student whose tokenizer differs from the teacher's."""

    kind: Literal["distill.cross_tokenizer"] = Field(
        default="distill.cross_tokenizer", description="job kind"
    )
    student: Reference = Field(
        examples=["path/to/student"], description="a checkpoint with its own tokenizer"
    )
    cross_tokenizer_loss: Annotated[CrossTokenizerLoss, CROSS_TOKENIZER_LOSSES.choice()] = Field(
        default_factory=lambda: CROSS_TOKENIZER_LOSSES.build("chunk_likelihood"),
        description="loss between the two tokenizers, with its settings",
    )
    cache: str | None = Field(
        default=None,
        description="folder of a cache of the teacher's log-probabilities, shared by several jobs; "
        "null stores it in the job",
    )
    rationale: RationaleChoice | None = Field(
        default=None, description="train on rationales in addition to answers; null disables"
    )
    context: TeacherContextSettings | None = Field(
        default=None,
        description="context distillation: text that only the teacher reads, before the question",
    )
    rollout_policy: Annotated[RolloutPolicy, ROLLOUT_POLICIES.choice()] | None = Field(
        default=None,
        description="source of generated training text in addition to records; null uses records "
        "only",
    )

    @model_validator(mode="after")
    def _records_fit(self) -> CrossTokenizerRecipe:
        check_context(self.context, include_prompt=self.include_prompt)
        if isinstance(self.rationale, RationaleTaskSettings) and self.rationale.weight != 1:
            raise ValueError("across tokenizers all records have weight 1: remove rationale.weight")
        is_served = not isinstance(self.teacher, str)
        if is_served and self.sequence is not None and self.sequence.model is None:
            check_scorers(self.sequence)
        return self

    @model_validator(mode="after")
    def _student_generates(self) -> CrossTokenizerRecipe:
        if self.rollout_policy is None:
            return self
        check_teacher_apart(self.rollout_policy)
        check_sharding(self.train)
        for name in ("context", "rationale"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"'rollout_policy' and '{name}' cannot be combined: remove one of them"
                )
        return self


def describe_workload(recipe: CrossTokenizerRecipe) -> Workload:
    """Return what the job does, for estimates and checks."""
    return Workload(
        recipe,
        (recipe.teacher,),
        is_live=recipe.cross_tokenizer_loss.compares == "rows",
        cross_tokenizer_loss=recipe.cross_tokenizer_loss,
        rollout_policy=recipe.rollout_policy,
        rationale=recipe.rationale,
    )


def estimate(recipe: CrossTokenizerRecipe) -> Estimate:
    """Estimate memory, disk and time of the job."""
    from stillroom.distill.preflight.resources import estimate_resources

    return estimate_resources(describe_workload(recipe))


def preflight(
    recipe: CrossTokenizerRecipe, job_folder: Path, *, loads: bool, fetch: bool, machine: bool
) -> PreflightReport:
    """Check records, models and machine; see ``stillroom.jobs.kind.Preflight``."""
    from stillroom.distill.preflight.checks import run_preflight

    workload = describe_workload(recipe)
    return run_preflight(workload, job_folder, loads=loads, fetch=fetch, machine=machine)


def run(recipe: CrossTokenizerRecipe, job: Job) -> Artifact:
    """Train a student whose tokenizer differs from the teacher's."""
    from stillroom.distill.preflight.checks import require_preflight
    from stillroom.distill.trainers.cross_tokenizer import train_across_tokenizers

    return train_across_tokenizers(recipe, job, require_preflight(describe_workload(recipe), job))


JOB_KIND = JobKind(CrossTokenizerRecipe, run, estimate, preflight)
