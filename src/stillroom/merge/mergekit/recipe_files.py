"""Merge recipes from files: Stillroom recipes and mergekit configurations.

Source: the behavior of mergekit 0.1.5, from its documentation and from running it. A converted
recipe sets ``arithmetic: mergekit`` and makes mergekit's defaults explicit. Keys and parameters
that mergekit ignores for a method are noted. Unsupported and unknown ones are errors with line and
column, reported all at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal, cast

from stillroom.errors import Problem, RecipeError
from stillroom.recipes import build_recipe, load_recipe, yaml_text
from stillroom.recipes.loader import apply_overrides
from stillroom.recipes.yaml_text import YamlTree

if TYPE_CHECKING:
    from stillroom.merge.jobs.recipe import MergeJobRecipe
    from stillroom.merge.mergekit.references import ImportedMerge

__all__ = [
    "is_mergekit_config",
    "load_merge",
    "load_merges",
    "read_mergekit_config",
]

_OPTIONS = ("seed", "threads", "device")
_MODEL_KEYS = ("base_model", "models", "experts", "shared_expert")
_REFERENCES = ("base_model", "model", "adapter")


def load_merges(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    arithmetic: Literal["paper", "mergekit"] | None = None,
    parts: Path | None = None,
    warn: Callable[[str], None] | None = None,
) -> list[tuple[str, MergeJobRecipe]]:
    """Return the merges of a file with their names, in order of dependency.

    Args:
        path: A recipe of a merge kind, or a mergekit file with one document or several.
        overrides: ``KEY=VALUE`` for the last merge; for a mergekit file in mergekit's keys, except
            ``seed``, ``threads`` and ``device``, which are options of its command.
        arithmetic: Overrides ``arithmetic`` of all merges; default that of the recipe, or
            mergekit's for a mergekit file.
        parts: Folder of the results of earlier merges, by name.
        warn: Called with keys of a mergekit file that have no effect.

    Raises:
        RecipeError: If it is neither, or contains something unsupported.
    """
    # Invalid UTF-8 is reported, with its position, when the file is parsed.
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if is_mergekit_config(text):
        own_overrides = [
            override for override in overrides if override.partition("=")[0] in _OPTIONS
        ]
        imported = read_mergekit_config(
            path, [override for override in overrides if override not in own_overrides]
        )
        for override in imported:
            for warning in override.warnings:
                if warn is not None:
                    warn(warning)
        placed = [
            (override.name, _resolve_steps(override.recipe, parts or Path()))
            for override in imported
        ]
        if arithmetic == "paper":
            placed = [(name, _use_paper_arithmetic(recipe)) for name, recipe in placed]
        built: list[tuple[str, MergeJobRecipe]] = []
        for name, recipe in placed:
            tree = YamlTree(data={"version": 1, **recipe})
            apply_overrides(tree, own_overrides)
            if tree.problems:
                raise RecipeError(tree.problems)
            built.append((name, cast("MergeJobRecipe", build_recipe(tree.data, str(path)))))
        return built
    loaded = load_recipe(path, [*overrides, *_choose_arithmetic(arithmetic, overrides)])
    if not loaded.kind.startswith("merge."):
        raise RecipeError(
            f"kind {loaded.kind} is not a merge",
            code="recipe.wrong-kind",
            where=str(path),
            expected="kind: merge.weights or another merge kind, or a mergekit file",
            next="stillroom run RECIPE runs every kind",
        )
    return [("", cast("MergeJobRecipe", loaded))]


def _choose_arithmetic(arithmetic: str | None, overrides: Sequence[str]) -> list[str]:
    """Return the override for the option; raise an error if both are given."""
    if arithmetic is None:
        return []
    for override in overrides:
        if override.partition("=")[0].strip() == "arithmetic":
            raise RecipeError(
                f"both --arithmetic {arithmetic} and {override:.40} set the arithmetic",
                code="merge.arithmetic",
                where=f"override '{override:.40}'",
                expected="one of them",
                next="remove one of them",
            )
    return [f"arithmetic={arithmetic}"]


def _resolve_steps(recipe: Mapping[str, Any], parts: Path) -> dict[str, Any]:
    """Replace ``step:NAME`` by the folders of other merges of the same file."""

    def place(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: place(part, name) for name, part in value.items()}
        if isinstance(value, list):
            return [place(part, key) for part in value]
        is_step = key in _REFERENCES and isinstance(value, str) and value.startswith("step:")
        return str(parts / value.removeprefix("step:")) if is_step else value

    return {key: place(recipe[key], key) if key in _MODEL_KEYS else recipe[key] for key in recipe}


def _use_paper_arithmetic(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mergekit file's recipe with the papers' arithmetic and unchanged settings.

    mergekit's compute type then only determines the storage type.
    """
    changed, arithmetic = dict(recipe), recipe["arithmetic"]
    compute = arithmetic.get("compute_dtype") if isinstance(arithmetic, Mapping) else None
    if compute:
        changed["out"] = {"dtype": compute} | dict(recipe.get("out", {}))
    return changed | {"arithmetic": "paper"}


def load_merge(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    arithmetic: Literal["paper", "mergekit"] | None = None,
    warn: Callable[[str], None] | None = None,
) -> MergeJobRecipe:
    """Return the single merge of a file; arguments as in ``load_merges``.

    Raises:
        RecipeError: If it is not a merge, or describes several.
    """
    merges = load_merges(path, overrides, arithmetic=arithmetic, warn=warn)
    if len(merges) > 1:
        raise RecipeError(
            f"the file describes {len(merges)} merges that depend on each other",
            code="merge.several",
            where=str(path),
            expected="one merge",
            next="stillroom merge run runs all of them",
        )
    return merges[0][1]


_MARK = re.compile(r"""(?m)^(\{\s*)?["']?merge_method["']?\s*:""")
_MIXTURE = re.compile(r"""(?m)^(\{\s*)?["']?experts["']?\s*:(?=[\s\S]*\bsource_model\b)""")
_PLACE = re.compile(r":(\d+):(\d+)$")


def is_mergekit_config(text: str) -> bool:
    """Return whether a text looks like a mergekit configuration."""
    return _MARK.search(text) is not None or _MIXTURE.search(text) is not None


def read_mergekit_config(
    source: FilePath | str,
    overrides: Sequence[str] = (),
    *,
    folder: FilePath | None = None,
    where: str = "mergekit.yml",
) -> list[ImportedMerge]:
    """Convert a mergekit file: one merge, or several that depend on each other.

    Args:
        source: The file, or its text.
        overrides: ``KEY=VALUE`` in mergekit's keys, for the last merge.
        folder: Base of relative paths that do not exist in the working directory; default the
            file's folder.
        where: Name of the text in positions.

    Returns:
        The merges in order of dependency, the final one last.

    Raises:
        RecipeError: With all problems of the file.
    """
    if isinstance(source, FilePath):
        text, where, folder = _read_text(source), str(source), folder or source.parent
    else:
        text = source
    from stillroom.merge.mergekit.converter import ConfigConverter
    from stillroom.merge.mergekit.yaml_reader import read_documents

    trees = read_documents(text, where)
    final = _find_final(trees)
    apply_overrides(final, overrides)
    named = _name_documents(trees, final, FilePath(where).stem)
    problems = [problem for tree in trees for problem in tree.problems]
    merges: dict[str, ImportedMerge] = {}
    for name, tree in named.items():
        converter = ConfigConverter(tree, name, frozenset(named.keys() - {name}), folder)
        merges |= {merge.name: merge for merge in converter.convert()}
        problems += converter.problems
    if problems:
        raise RecipeError(sorted(problems, key=_find_position))
    return _sort_by_dependency(merges, next(name for name, tree in named.items() if tree is final))


def _read_text(path: FilePath) -> str:
    try:
        with path.open("rb") as file:
            return file.read(yaml_text.MAX_TEXT_BYTES + 4).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read: {error!s:.80}",
            code="recipe.not-found" if isinstance(error, OSError) else "recipe.encoding",
            expected="a mergekit file, in UTF-8",
            next="check the path",
        ) from error


def _find_final(trees: Sequence[YamlTree]) -> YamlTree:
    """Return the final document: the one without a name, else the last."""
    unnamed = [tree for tree in trees if not (isinstance(tree.data, dict) and "name" in tree.data)]
    if len(unnamed) > 1:
        raise RecipeError(
            f"{len(unnamed)} merges of the file have no name",
            code="merge.mergekit-steps",
            where=unnamed[0].place_of_value(()),
            expected="a 'name' for every merge but the last",
            next="add 'name:' to the others",
        )
    return unnamed[0] if unnamed else trees[-1]


def _name_documents(trees: Sequence[YamlTree], final: YamlTree, stem: str) -> dict[str, YamlTree]:
    named: dict[str, YamlTree] = {}
    for tree in trees:
        name = tree.data.get("name") if isinstance(tree.data, dict) else None
        if name is None and tree is final:
            name = stem or "merge"
        is_word = isinstance(name, str) and re.fullmatch(r"[\w][\w .-]*", name) is not None
        if not isinstance(name, str) or not is_word or name in named:
            raise RecipeError(
                f"two merges are called {name!r}" if name in named else f"no name: {name!r:.60}",
                code="merge.mergekit-steps",
                where=tree.place_of_value(("name",)),
                expected="a unique name for every merge, of letters and digits",
                next="rename one",
            )
        named[name] = tree
    return named


def _sort_by_dependency(merges: Mapping[str, ImportedMerge], final: str) -> list[ImportedMerge]:
    """Sort the merges by dependency, the final one last."""
    done: dict[str, ImportedMerge] = {}
    remaining = dict(merges)
    while remaining:
        ready = [name for name, merge in remaining.items() if not set(merge.needs) - done.keys()]
        if not ready:
            first = next(iter(remaining.values()))
            raise RecipeError(
                f"merges depend on each other: {', '.join(remaining)}",
                code="merge.mergekit-steps",
                where=first.position,
                expected="merges without circular dependencies",
                next="remove one reference",
            )
        for name in ready:
            done[name] = remaining.pop(name)
    return sorted(done.values(), key=lambda merge: merge.name == final)


def _find_position(problem: Problem) -> tuple[int, int]:
    match = _PLACE.search(problem.where)
    return (int(match[1]), int(match[2])) if match else (2**31, 0)
