"""Merge recipes from files: Stillroom recipes and mergekit configurations.

Source: the behavior of mergekit 0.1.5, from its users' guide and by running it. A recipe made here
says ``compat: mergekit`` and sets what mergekit takes for granted. Keys and parameters that
mergekit itself overlooks for a method are noted; what it would read and we could not, and what
nobody reads, is an error with its line and column, all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pathlib import Path as FilePath
from typing import Any, Literal

from stillroom.errors import Problem, RecipeError
from stillroom.merge.recipe import MergeRecipe
from stillroom.recipes import build_recipe, load_recipe, yaml_text
from stillroom.recipes.loader import apply_overrides
from stillroom.recipes.yaml_text import YamlTree, emit_yaml

__all__ = [
    "ImportedMerge",
    "format_recipe",
    "is_mergekit_config",
    "load_merge",
    "load_merges",
    "read_mergekit_config",
    "transplant_recipe",
]


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
    # Other bytes are refused, with their place, by whoever reads it in earnest.
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if is_mergekit_config(text):
        ours = [each for each in overrides if each.partition("=")[0] in _OPTIONS]
        imported = read_mergekit_config(path, [each for each in overrides if each not in ours])
        for each in imported:
            for note in each.notes:
                (say or _discard)(note)
        placed = [(each.name, _resolve_steps(each.recipe, parts or Path())) for each in imported]
        if arithmetic == "paper":
            placed = [(name, _use_paper_arithmetic(recipe)) for name, recipe in placed]
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


def _resolve_steps(recipe: Mapping[str, Any], parts: Path) -> dict[str, Any]:
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


def _use_paper_arithmetic(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mergekit file's recipe in the papers' arithmetic, its settings as they are.

    The type that mergekit would compute in is then only the one that is stored.
    """
    changed = {key: value for key, value in recipe.items() if key != "compute"}
    if "compute" in recipe:
        changed["out"] = {"dtype": recipe["compute"]} | dict(recipe.get("out", {}))
    return changed | {"compat": "paper"}


def _build(values: Mapping[str, Any], path: Path, overrides: Sequence[str]) -> MergeRecipe:
    tree = YamlTree(data={"version": 1, "kind": "merge"} | dict(values))
    apply_overrides(tree, overrides)
    if tree.problems:
        raise RecipeError(tree.problems)
    recipe = build_recipe(tree.data, str(path))
    if not isinstance(recipe, MergeRecipe):
        raise TypeError("a merge was built as another kind")
    return recipe


def _discard(note: str) -> None:
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


_MARK = re.compile(r"""(?m)^(\{\s*)?["']?merge_method["']?\s*:""")


_MIXTURE = re.compile(r"""(?m)^(\{\s*)?["']?experts["']?\s*:(?=[\s\S]*\bsource_model\b)""")


_PLACE = re.compile(r":(\d+):(\d+)$")


@dataclass(frozen=True)
class ImportedMerge:
    """One merge of a mergekit file.

    Attributes:
        name: Its name; other merges of the file call its result ``step:NAME``.
        recipe: Settings of our recipe of kind ``merge``.
        position: Where it stands in the file.
        notes: What mergekit overlooks, and so changes nothing.
    """

    name: str
    recipe: dict[str, Any]
    position: str
    notes: tuple[str, ...] = ()

    @property
    def needs(self) -> list[str]:
        """The names of the merges whose results it takes."""
        named = [self.recipe.get("base"), *(model["checkpoint"] for model in self.recipe["models"])]
        steps = [str(name) for name in named if str(name).startswith("step:")]
        return list(dict.fromkeys(step.removeprefix("step:") for step in steps))


def is_mergekit_config(text: str) -> bool:
    """Return whether a text looks like a configuration of mergekit's."""
    return _MARK.search(text) is not None or _MIXTURE.search(text) is not None


def read_mergekit_config(
    source: FilePath | str,
    overrides: Sequence[str] = (),
    *,
    folder: FilePath | None = None,
    where: str = "mergekit.yml",
) -> list[ImportedMerge]:
    """Read a file of mergekit's: one merge, or several that build on each other.

    Args:
        source: The file, or its text.
        overrides: ``KEY=VALUE`` each, in mergekit's words, for the last merge.
        folder: Where relative paths start that do not exist from here; default the file's.
        where: What places call a text.

    Returns:
        The merges, each after those whose results it takes; the last is what the file is for.

    Raises:
        RecipeError: With everything that is wrong.
    """
    if isinstance(source, FilePath):
        text, where, folder = _read_text(source), str(source), folder or source.parent
    else:
        text = source
    from stillroom.merge.mergekit.converter import (
        ConfigConverter,  # only for files that are mergekit's
    )
    from stillroom.merge.mergekit.documents import read_documents

    trees = read_documents(text, where)
    final = _find_final(trees)
    apply_overrides(final, overrides)
    named = _name_documents(trees, final, FilePath(where).stem)
    problems = [problem for tree in trees for problem in tree.problems]
    found: dict[str, ImportedMerge] = {}
    for name, tree in named.items():
        converter = ConfigConverter(tree, name, frozenset(named.keys() - {name}), folder)
        for made in converter.convert():
            found[made.name] = ImportedMerge(
                made.name, made.recipe, made.position, tuple(made.notes)
            )
        problems += converter.problems
    if problems:
        raise RecipeError(sorted(problems, key=_line_of))
    return _sort_by_dependency(found, next(name for name, tree in named.items() if tree is final))


def format_recipe(imported: ImportedMerge) -> str:
    """Return the recipe as YAML that ``stillroom run`` takes, notes as comments."""
    lines = [f"# {note}" for note in imported.notes]
    return "\n".join([*lines, *emit_yaml(imported.recipe)]) + "\n"


def _read_text(path: FilePath) -> str:
    try:
        with path.open("rb") as file:
            return file.read(yaml_text.MAX_TEXT_BYTES + 4).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read: {error!s:.80}",
            code="recipe.not-found" if isinstance(error, OSError) else "recipe.encoding",
            expected="a file of mergekit's, in UTF-8",
            next="check the path",
        ) from error


def _find_final(trees: Sequence[YamlTree]) -> YamlTree:
    """Return the document that the file is for: the one without a name, else the last."""
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
                expected="a name of its own for every merge, of letters and digits",
                next="rename one",
            )
        named[name] = tree
    return named


def _sort_by_dependency(found: Mapping[str, ImportedMerge], final: str) -> list[ImportedMerge]:
    """Return the merges so that each comes after those it takes, the final one last."""
    done: dict[str, ImportedMerge] = {}
    left = dict(found)
    while left:
        ready = [name for name, made in left.items() if not set(made.needs) - done.keys()]
        if not ready:
            first = next(iter(left.values()))
            raise RecipeError(
                f"merges wait for each other: {', '.join(left)}",
                code="merge.mergekit-steps",
                where=first.position,
                expected="merges that build on models, or on merges that do",
                next="take one reference out",
            )
        for name in ready:
            done[name] = left.pop(name)
    return sorted(done.values(), key=lambda made: made.name == final)


def _line_of(problem: Problem) -> tuple[int, int]:
    match = _PLACE.search(problem.where)
    return (int(match[1]), int(match[2])) if match else (2**31, 0)
