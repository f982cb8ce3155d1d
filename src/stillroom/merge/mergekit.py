"""mergekit's configurations as our recipes: read whole, honored key by key, or refused.

Source: the behavior of mergekit 0.1.5, from its users' guide and by running it. A recipe made here
says ``compat: mergekit`` and sets what mergekit takes for granted. Keys and parameters that
mergekit itself overlooks for a method are noted; what it would read and we could not, and what
nobody reads, is an error with its line and column, all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from stillroom.errors import Problem, RecipeError
from stillroom.recipes import reading
from stillroom.recipes.emitting import emit
from stillroom.recipes.overrides import apply_overrides
from stillroom.recipes.reading import Tree

__all__ = ["Imported", "is_mergekit", "read_mergekit", "to_recipe_text"]

_MARK = re.compile(r"""(?m)^(\{\s*)?["']?merge_method["']?\s*:""")
_MIXTURE = re.compile(r"""(?m)^(\{\s*)?["']?experts["']?\s*:(?=[\s\S]*\bsource_model\b)""")
_PLACE = re.compile(r":(\d+):(\d+)$")


@dataclass(frozen=True)
class Imported:
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


def is_mergekit(text: str) -> bool:
    """Return whether a text looks like a configuration of mergekit's."""
    return _MARK.search(text) is not None or _MIXTURE.search(text) is not None


def read_mergekit(
    source: FilePath | str,
    overrides: Sequence[str] = (),
    *,
    folder: FilePath | None = None,
    where: str = "mergekit.yml",
) -> list[Imported]:
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
    from stillroom.merge.mergekit_convert import Converter  # only for files that are mergekit's
    from stillroom.merge.mergekit_reading import read_documents

    trees = read_documents(text, where)
    final = _find_final(trees)
    apply_overrides(final, overrides)
    named = _name_documents(trees, final, FilePath(where).stem)
    problems = [problem for tree in trees for problem in tree.problems]
    found: dict[str, Imported] = {}
    for name, tree in named.items():
        converter = Converter(tree, name, frozenset(named.keys() - {name}), folder)
        for made in converter.convert():
            found[made.name] = Imported(made.name, made.recipe, made.position, tuple(made.notes))
        problems += converter.problems
    if problems:
        raise RecipeError(sorted(problems, key=_line_of))
    return _sort(found, next(name for name, tree in named.items() if tree is final))


def to_recipe_text(imported: Imported) -> str:
    """Return the recipe as YAML that ``stillroom run`` takes, notes as comments."""
    lines = [f"# {note}" for note in imported.notes]
    return "\n".join([*lines, *emit(imported.recipe)]) + "\n"


def _read_text(path: FilePath) -> str:
    try:
        with path.open("rb") as file:
            return file.read(reading.MAX_TEXT_BYTES + 4).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read: {error!s:.80}",
            code="recipe.not-found" if isinstance(error, OSError) else "recipe.encoding",
            expected="a file of mergekit's, in UTF-8",
            next="check the path",
        ) from error


def _find_final(trees: Sequence[Tree]) -> Tree:
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


def _name_documents(trees: Sequence[Tree], final: Tree, stem: str) -> dict[str, Tree]:
    named: dict[str, Tree] = {}
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


def _sort(found: Mapping[str, Imported], final: str) -> list[Imported]:
    """Return the merges so that each comes after those it takes, the final one last."""
    done: dict[str, Imported] = {}
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
