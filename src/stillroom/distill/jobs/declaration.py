"""Declaration of the kinds that train a student: estimate and preflight from the workload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from stillroom.distill.preflight.workload import Workload
from stillroom.distill.recipes import TrainingRecipe
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.jobs.preflight import PreflightReport
from stillroom.provenance import Artifact

__all__ = ["declare_kind"]

R = TypeVar("R", bound=TrainingRecipe)


def declare_kind(
    recipe_class: type[R],
    run: Callable[[R, Job], Artifact],
    describe_workload: Callable[[R], Workload],
    *,
    is_distributed: bool = False,
) -> JobKind[R]:
    """Declare a kind of job whose estimate and preflight follow from its workload."""

    def estimate(recipe: R) -> Estimate:
        from stillroom.distill.preflight.resources import estimate_resources

        return estimate_resources(describe_workload(recipe))

    def preflight(
        recipe: R, job_folder: Path, *, loads: bool, fetch: bool, machine: bool
    ) -> PreflightReport:
        from stillroom.distill.preflight.checks import run_preflight

        workload = describe_workload(recipe)
        return run_preflight(workload, job_folder, loads=loads, fetch=fetch, machine=machine)

    return JobKind(recipe_class, run, estimate, preflight, is_distributed=is_distributed)
