"""Execution of recipes by kind, and of pipelines that skip unchanged steps.

``run_recipe`` runs one job in one folder. A ``kind: flow`` recipe names steps that take each
other's artifacts (``{from: step}``); ``pipeline`` runs them, and ``step_cache`` skips
a step whose recipe and inputs are unchanged. ``make`` is the main job.
"""

from stillroom.flow.inputs import check_inputs
from stillroom.flow.make import run_make
from stillroom.flow.opening import OpenedRun, open_index, open_run
from stillroom.flow.recipe import FlowRecipe, FlowStep
from stillroom.flow.run import (
    estimate_recipe,
    outline_recipe,
    preflight_recipe,
    require_recipe_extras,
    run_recipe,
)

__all__ = [
    "FlowRecipe",
    "FlowStep",
    "OpenedRun",
    "check_inputs",
    "estimate_recipe",
    "open_index",
    "open_run",
    "outline_recipe",
    "preflight_recipe",
    "require_recipe_extras",
    "run_make",
    "run_recipe",
]
