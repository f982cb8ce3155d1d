"""Step cache: the fingerprint (signature) of recipe, inputs and version decides skip or re-run.

Each step of a run has the folder ``steps/NAME-KEY``. Its key is a digest of the version, the step's
settings, the bytes of its inputs, wherever they lie, the folders of the steps that it takes from,
and what of this machine decides its result (``JobKind.surroundings``). So a step whose key has a
finished folder is unchanged and skipped (memoization, incremental build), and any change of a step
re-runs it and those that take from it.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom import __version__
from stillroom.flow.inputs import digest_input
from stillroom.flow.job import find_job_kind
from stillroom.flow.recipe import FlowRecipe, FlowStep
from stillroom.jobs import Job
from stillroom.jobs.files import hold_folder
from stillroom.provenance import digest_json
from stillroom.recipes import Recipe, list_references

__all__ = ["PreparedStep", "prepare_step", "remove_other_steps"]

_KEY_DIGITS = 12


@dataclass(frozen=True)
class PreparedStep:
    """Step with known inputs: its recipe with real paths, and its folder."""

    name: str
    recipe: Recipe
    folder: Path

    def find_finished(self) -> bool:
        """Return whether the step was finished, so that it is skipped; heal a killed commit."""
        return Job.recover(self.folder)


def prepare_step(
    flow: FlowRecipe, name: str, done: Mapping[str, Path], out: Path, step: FlowStep
) -> PreparedStep:
    """Return a step with its folder, named by the digests of its recipe and inputs.

    ``done`` are the folders of the steps before it; ``step`` may lack what was skipped.
    """
    inputs = {f"inputs.{key}": value for key, value in flow.inputs.items()}
    paths = {
        source: str(done[source]) if source in done else inputs[source] for source in step.sources
    }
    digests = {source: digest_input(path) for source, path in paths.items()}
    recipe = step.build(paths, flow.seed)
    find_surroundings = find_job_kind(recipe.kind).surroundings
    surroundings = find_surroundings(recipe) if find_surroundings else []
    parts: list[Any] = [__version__, _describe_settings(step, flow.seed), digests]
    parts += [surroundings] if surroundings else []
    # A step names the folders that it took from, which may be made again to the same bytes.
    folders = [done[source].name for source in sorted(paths.keys() & done.keys())]
    parts += [folders] if folders else []
    return PreparedStep(name, recipe, out / "steps" / f"{name}-{digest_json(parts)[:_KEY_DIGITS]}")


def _describe_settings(step: FlowStep, seed: int) -> list[Any]:
    """Return a step's settings for its key: sources by name, other references with digests."""
    settings = step.build({source: f"step:{source}" for source in step.sources}, seed)
    digests = [
        [[str(part) for part in path], digest_input(value)]
        for path, value in list_references(settings)
    ]
    return [settings.model_dump(mode="json"), digests]


def remove_other_steps(out: Path, kept: Collection[Path]) -> None:
    """Remove every step's folder that the run does not name.

    While someone reads the run, who may have opened it as it was before, the finished ones are left
    to the next run.
    """
    with hold_folder(out / "steps", is_exclusive=True) as is_unread:
        for folder in (out / "steps").iterdir():
            if folder not in kept and (is_unread or folder.name.startswith(".")):
                shutil.rmtree(folder)
