"""Running of recipes by kind, and of pipelines whose unchanged steps are skipped.

``run_recipe`` does one job in one folder. A ``kind: flow`` recipe names steps that take each
other's artifacts (``{from: step}``); every step lies in a folder named by the digest of its recipe
and its inputs, so that a step whose inputs are unchanged is found, not done. ``run_make`` is the
main job.
"""

from stillroom.flow.inputs import check_inputs
from stillroom.flow.opening import OpenedRun, open_index, open_run
from stillroom.flow.recipe import FlowRecipe, FlowStep
from stillroom.flow.run import (
    estimate_recipe,
    outline_recipe,
    preflight_recipe,
    run_make,
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
    "run_make",
    "run_recipe",
]
