"""Loading a merge's recipe: ours, or a file that was written for mergekit, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import RecipeError
from stillroom.merge.recipe import MergeRecipe
from stillroom.recipes import build_recipe, load_recipe
from stillroom.recipes.overrides import apply_overrides
from stillroom.recipes.reading import Tree

__all__ = ["load_merge", "load_merges", "transplant_recipe"]

_OPTIONS = ("seed", "threads", "device")


def load_merges(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    arithmetic: Literal["paper", "mergekit"] | None = None,
    parts: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> list[tuple[str, MergeRecipe]]:
    """Return the merges of a file in the order in which they have to be made, each with its name.

    Args:
        path: A recipe of kind merge, or a mergekit file of one document or several.
        overrides: ``KEY=VALUE``, for the last; of a mergekit file in mergekit's words, but for
            ``seed``, ``threads`` and ``device``, which there are options of its command.
        arithmetic: What all merges of the file compute as, a recipe's ``compat``; default what
            the recipe says, and of a mergekit file mergekit's own.
        parts: Where the results of those before the last will lie, by name.
        say: Told what in a mergekit file changes nothing.

    Raises:
        RecipeError: If it is neither, or something in it cannot be honored.
    """
    from stillroom.merge.mergekit import is_mergekit, read_mergekit

    # Other bytes are refused, with their place, by whoever reads it in earnest.
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if is_mergekit(text):
        ours = [each for each in overrides if each.partition("=")[0] in _OPTIONS]
        imported = read_mergekit(path, [each for each in overrides if each not in ours])
        for each in imported:
            for note in each.notes:
                (say or _ignore)(note)
        placed = [(each.name, _place(each.recipe, parts or Path())) for each in imported]
        if arithmetic == "paper":
            placed = [(name, _as_papers(recipe)) for name, recipe in placed]
        return [(name, _build(recipe, path, ours)) for name, recipe in placed]
    loaded = load_recipe(path, [*overrides, *_choose_arithmetic(arithmetic, overrides)])
    if not isinstance(loaded, MergeRecipe):
        raise RecipeError(
            f"kind {loaded.kind} is not a merge",
            code="recipe.wrong-kind",
            where=str(path),
            expected="kind: merge, or a mergekit file",
            next="stillroom run RECIPE does every kind",
        )
    return [("", loaded)]


def _choose_arithmetic(arithmetic: str | None, overrides: Sequence[str]) -> list[str]:
    """Return the override that an option stands for; two that name one setting are refused."""
    if arithmetic is None:
        return []
    for override in overrides:
        if override.partition("=")[0].strip() == "compat":
            raise RecipeError(
                f"both --arithmetic {arithmetic} and {override:.40} say how to compute",
                code="merge.compat",
                where=f"override '{override:.40}'",
                expected="one of the two",
                next="remove one of them",
            )
    return [f"compat={arithmetic}"]


def _place(recipe: Mapping[str, Any], parts: Path) -> dict[str, Any]:
    """Return a recipe whose ``step:NAME`` are the folders of other merges of the same file."""

    def place(reference: str) -> str:
        return str(parts / reference[5:]) if reference.startswith("step:") else reference

    placed = dict(recipe)
    if placed.get("base"):
        placed["base"] = place(placed["base"])
    placed["models"] = [
        dict(model) | {"checkpoint": place(model["checkpoint"])} for model in recipe["models"]
    ]
    return placed


def _as_papers(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mergekit file's recipe in the papers' arithmetic, its settings as they are.

    The type that mergekit would compute in is then only the one that is stored.
    """
    changed = {key: value for key, value in recipe.items() if key != "compute"}
    if "compute" in recipe:
        changed["out"] = {"dtype": recipe["compute"]} | dict(recipe.get("out", {}))
    return changed | {"compat": "paper"}


def _build(values: Mapping[str, Any], path: Path, overrides: Sequence[str]) -> MergeRecipe:
    tree = Tree(data={"version": 1, "kind": "merge"} | dict(values))
    apply_overrides(tree, overrides)
    if tree.problems:
        raise RecipeError(tree.problems)
    recipe = build_recipe(tree.data, str(path))
    if not isinstance(recipe, MergeRecipe):
        raise TypeError("a merge was built as another kind")
    return recipe


def _ignore(note: str) -> None:
    """Say nothing."""


def load_merge(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    arithmetic: Literal["paper", "mergekit"] | None = None,
    say: Callable[[str], None] | None = None,
) -> MergeRecipe:
    """Return the one merge of a file; arguments as those of ``load_merges``.

    Raises:
        RecipeError: If it is none, or describes several that stand on each other.
    """
    merges = load_merges(path, overrides, arithmetic=arithmetic, say=say)
    if len(merges) > 1:
        raise RecipeError(
            f"the file describes {len(merges)} merges, each of which needs the one before",
            code="merge.several",
            where=str(path),
            expected="one merge",
            next="stillroom merge run makes all of them",
        )
    return merges[0][1]


def transplant_recipe(donor: str, target: str, k: int) -> MergeRecipe:
    """Return the recipe that gives ``target`` the tokenizer of ``donor``.

    Raises:
        RecipeError: If ``k`` is no count.
    """
    values = {
        "method": {"name": "transplant", "k": k},
        "base": target,
        "models": [{"checkpoint": donor}],
    }
    return _build(values, Path("transplant"), ())
