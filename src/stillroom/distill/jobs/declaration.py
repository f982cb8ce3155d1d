"""Declaration of the kinds that train a student: estimate and preflight from the workload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from stillroom.distill.preflight.workload import describe_workload
from stillroom.distill.recipes import TrainingRecipe
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind, defer
from stillroom.jobs.preflight import PreflightReport
from stillroom.provenance import Artifact
from stillroom.train.replay import TRAINING, TrainingReplayer

__all__ = ["declare_kind"]

R = TypeVar("R", bound=TrainingRecipe)


def declare_kind(
    recipe_class: type[R],
    trainer: str,
    *,
    is_distributed: bool = False,
    journals: tuple[str, ...] = (TRAINING, "rollouts"),
) -> JobKind[R]:
    """Declare a kind of job whose estimate, preflight and replay follow from its workload.

    Args:
        recipe_class: Recipe of the kind.
        trainer: ``module:function`` in ``stillroom.distill.trainers``; it gets recipe, job and
            preflight report.
        is_distributed: Whether several processes can run it as one job.
        journals: Those whose lines are kept for a replay: steps, and rollouts if there are any.
    """
    train = defer(f"stillroom.distill.trainers.{trainer}")

    def run(recipe: R, job: Job) -> Artifact:
        from stillroom.distill.preflight.checks import require_preflight

        result: Artifact = train(recipe, job, require_preflight(describe_workload(recipe), job))
        return result

    def estimate(recipe: R) -> Estimate:
        from stillroom.distill.preflight.resources import estimate_resources

        return estimate_resources(describe_workload(recipe))

    def preflight(
        recipe: R, job_folder: Path, *, loads: bool, fetch: bool, machine: bool
    ) -> PreflightReport:
        from stillroom.distill.preflight.checks import run_preflight

        workload = describe_workload(recipe)
        return run_preflight(workload, job_folder, loads=loads, fetch=fetch, machine=machine)

    return JobKind(
        recipe_class,
        run,
        estimate,
        preflight,
        is_distributed=is_distributed,
        replayer=TrainingReplayer(journals=journals, lighten=_lighten, find_reason=_find_reason),
    )


def _lighten(recipe: TrainingRecipe, is_whole: bool) -> TrainingRecipe:
    """Return a recipe that captures its own targets; to replay some steps, one without evaluation.

    A cache that several jobs share may hold anything.
    """
    changes: dict[str, Any] = {}
    targets: Any = getattr(recipe, "targets", None)
    if getattr(targets, "cache", None) is not None:
        changes["targets"] = targets.model_copy(update={"cache": None})
    if getattr(recipe, "cache", None) is not None:
        changes["cache"] = None
    if not is_whole:
        changes["fidelity"] = recipe.fidelity.model_copy(update={"records": 0})
    return recipe.model_copy(update=changes)


def _find_reason(recipe: TrainingRecipe) -> str:
    """Return the endpoint that wrote or scored training text; or empty."""
    found = next(_iter_endpoints(recipe.model_dump(mode="json")), "")
    return f"{found} answered, and what it answers now proves nothing" if found else ""


def _iter_endpoints(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("endpoint"), str):
            yield value["endpoint"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _iter_endpoints(part)
