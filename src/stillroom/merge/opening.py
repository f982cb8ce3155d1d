"""From a recipe to a merge that is ready to run: its sources opened, its rules read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from stillroom.merge.chat_template import choose_chat_template
from stillroom.merge.recipe import MergeRecipe
from stillroom.merge.rules import rules_of
from stillroom.merge.sources import open_sources
from stillroom.merge.stream import Merge

__all__ = ["open_merge", "retune_merge"]


def open_merge(recipe: MergeRecipe, say: Callable[[str], None] | None = None) -> Merge:
    """Return the merge that a recipe describes.

    Raises:
        CheckpointError: If a source is missing or broken, or has no checkpoints along its run.
        RecipeError: If there is no such chat template.
    """
    base, parents = open_sources(recipe, say)
    if recipe.chat_template is not None:
        folders = [each.checkpoint.folder for each in (*([base] if base else []), *parents)]
        if not choose_chat_template(recipe.chat_template, folders) and say:
            say("warning: no model has a chat template, and so the result has none")
    return Merge(
        recipe.method,
        base,
        parents,
        rules_of(recipe),
        recipe.seed,
        threads=recipe.threads,
        device=recipe.device,
        chat_template=recipe.chat_template,
    )


def retune_merge(merge: Merge, recipe: MergeRecipe) -> Merge:
    """Return a merge of the same opened sources with the settings of a changed recipe."""
    left = iter(merge.parents)
    parents = [
        replace(next(left), weight=entry.weight, own=entry.own)
        for entry in recipe.models
        for _ in range(max(entry.along_run, 1))
    ]
    return replace(merge, method=recipe.method, parents=parents, rules=rules_of(recipe))
