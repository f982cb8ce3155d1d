"""Recipes of every kind of distillation, from settings that imply the kind."""

from stillroom.distill.preflight.checks import run_preflight
from stillroom.distill.preflight.workload import describe_workload
from stillroom.flow.job import find_job_kind


def build(fields):
    """Return the recipe of ``fields['kind']``, or else of the kind that the settings imply."""
    fields = {name: value for name, value in fields.items() if value is not None}
    kind = fields.pop("kind", None) or f"distill.{_imply_kind(fields)}"
    return find_job_kind(kind).recipe.model_validate(fields)


def _imply_kind(fields):
    if "cross_tokenizer_loss" in fields:
        return "cross_tokenizer"
    if "teachers" in fields:
        return "multi_teacher"
    served = "" if isinstance(fields["teacher"], str) else "endpoint_"
    if "rollout_policy" in fields:
        return f"{served}on_policy"
    return "features" if "feature_losses" in fields else f"{served}logits"


def run(recipe, job):
    """Run a started job."""
    return find_job_kind(recipe.kind).run(recipe, job)


def estimate(recipe):
    """Return the estimate of a recipe."""
    return find_job_kind(recipe.kind).estimate(recipe)


def preflight(recipe, folder, **options):
    """Return the preflight report of a recipe."""
    return run_preflight(describe_workload(recipe), folder, **options)
