"""Comparison of a finished run with its recipe: its steps, their recipes, and what it lists.

A run's recipe says what each step does. Without this comparison a replay proves that every step is
what its own recipe makes, but not that this is the recipe of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillroom.errors import StillroomError
from stillroom.flow.inputs import digest_input
from stillroom.flow.pipeline import list_steps
from stillroom.flow.recipe import FlowRecipe, FlowStep
from stillroom.jobs.replay import join_differences, list_differences
from stillroom.jobs.segments import SegmentOutcome
from stillroom.provenance import Artifact, digest_json, read_artifact
from stillroom.recipes import load_recipe

__all__ = ["compare_steps"]

_WRITTEN = {"steps.json", "recipe.yaml", "report.json", "report.html"}


def compare_steps(folder: Path, artifact: Artifact, recipe: FlowRecipe) -> Iterator[SegmentOutcome]:
    """Yield an outcome for what a run lists, and one for each step's recipe."""
    steps, skipped = artifact.details["steps"], artifact.details.get("skipped") or {}
    listed = {entry.path for entry in (*artifact.files, *artifact.timed_files)}
    yield _compare("artifact.json files", sorted(listed), sorted(_WRITTEN))
    named = sorted([parent.role, parent.path] for parent in artifact.parents)
    yield _compare("artifact.json parents", named, sorted(map(list, steps.items())))
    wanted = {name: step for name, step in recipe.steps.items() if name not in skipped}
    yield _compare("artifact.json details.steps", sorted(steps), sorted(wanted))
    artifacts = {name: read_artifact(folder / place) for name, place in steps.items()}
    stated = _read_json(folder / "steps.json")
    yield _compare("steps.json", stated, list_steps(steps, artifacts))
    for name in sorted(wanted.keys() & steps.keys()):
        yield _compare_recipe(folder, steps, skipped, name, recipe)


def _compare_recipe(
    folder: Path,
    steps: Mapping[str, str],
    skipped: Mapping[str, str],
    name: str,
    recipe: FlowRecipe,
) -> SegmentOutcome:
    """Compare a step's own recipe with that which the run's recipe gives it."""
    shown = f"{steps[name]}/recipe.yaml"
    step = recipe.steps[name]
    if any(source in skipped for source in step.sources):
        step = step.leave_out(skipped)
    try:
        written = load_recipe(folder / steps[name] / "recipe.yaml").model_dump(mode="json")
    except (StillroomError, OSError) as error:
        return SegmentOutcome(shown, "", "", f"cannot be read: {error}".split("\n", 1)[0])
    places = {f"inputs.{key}": value for key, value in recipe.inputs.items()} | dict(steps)
    return _compare(shown, written, _build(step, places, written, recipe.seed))


def _build(step: FlowStep, places: Mapping[str, str], written: Any, seed: int) -> Any:
    """Return the step's recipe as JSON values; sources are as in ``written`` where those are right.

    A step may have been kept from an earlier run, when its inputs lay elsewhere.
    """
    marks = {f"step:{source}": source for source in step.sources}
    built = step.build({source: mark for mark, source in marks.items()}, seed)

    def fill(value: Any, other: Any) -> Any:
        if isinstance(value, dict):
            own = other if isinstance(other, dict) else {}
            return {key: fill(part, own.get(key)) for key, part in value.items()}
        if isinstance(value, list):
            parts = other if isinstance(other, list) else []
            padded = [*parts, *[None] * (len(value) - len(parts))]
            return [fill(part, padded[number]) for number, part in enumerate(value)]
        if not isinstance(value, str) or value not in marks:
            return value
        source = marks[value]
        return other if _is_place(source, other, places[source]) else places[source]

    return fill(built.model_dump(mode="json"), written)


def _is_place(source: str, written: Any, place: str) -> bool:
    """Return whether a reference in a step's recipe is that of a source of the run."""
    if not isinstance(written, str):
        return False
    if not source.startswith("inputs."):
        return Path(written).parts[-2:] == Path(place).parts[-2:]
    return written == place or (digest_input(written) or "1") == (digest_input(place) or "2")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _compare(name: str, stated: Any, wanted: Any) -> SegmentOutcome:
    what = join_differences(list(list_differences(stated, wanted)))
    digests = digest_json(stated), digest_json(wanted)
    return SegmentOutcome(name, *digests, f"differs: {what}" if what else "")
