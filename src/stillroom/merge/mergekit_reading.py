"""mergekit's YAML as plain values with their places: several documents, anchors and merge keys.

Our own recipes allow none of these; files of others use them. An alias is the value it names, at
the place where that stands. Bounded in size, depth and number of values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stillroom.errors import Problem, RecipeError
from stillroom.recipes.reading import MAX_DEPTH, MAX_TEXT_BYTES, Tree, dotted, resolve_scalar

__all__ = ["read_documents"]

_MOST_VALUES = 50_000
_MERGE = "<<"
_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")
)

Path = tuple[str | int, ...]


def read_documents(text: str, where: str) -> list[Tree]:
    """Return every document that is not empty.

    Args:
        text: YAML.
        where: What places begin with, as a file name.

    Raises:
        RecipeError: If it is no YAML, too large, too deep, or nothing at all.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise _refuse("the file is too large", where, f"at most {MAX_TEXT_BYTES // 1024} KiB")
    reader = _Reader(where)
    trees = [tree for node in _compose(text, where) if (tree := reader.read(node)).data is not None]
    if not trees:
        raise _refuse("the file is empty", where, "a mergekit configuration")
    return trees


def _compose(text: str, where: str) -> Iterator[Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        yield from YAML(typ="rt", pure=True).compose_all(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise RecipeError(
            f"the file is not YAML: {error.problem or error.context}",
            code="recipe.yaml",
            where=place,
            expected="YAML",
            next="correct the line, or the one before it",
        ) from error
    except (YAMLError, RecursionError) as error:
        raise RecipeError(
            f"the file is not YAML: {str(error).splitlines()[0]:.80}",
            code="recipe.yaml",
            where=where,
            expected="YAML",
            next="correct the file",
        ) from error


class _Reader:
    def __init__(self, where: str) -> None:
        self.where = where
        self.left = _MOST_VALUES

    def read(self, node: Any) -> Tree:
        tree = Tree()
        tree.data = self.value(tree, node, ())
        return tree

    def value(self, tree: Tree, node: Any, path: Path) -> Any:
        place = f"{self.where}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        tree.values[path] = place
        self.left -= 1
        if self.left < 0 or len(path) > MAX_DEPTH:
            raise _refuse(
                "the file holds too much, or is nested too deeply",
                place,
                f"at most {_MOST_VALUES} values, {MAX_DEPTH} levels deep",
            )
        if node.tag is not None and str(node.tag) not in _TAGS:
            tree.problems.append(
                Problem(
                    f"the tag {node.tag} cannot be read",
                    "recipe.yaml-feature",
                    place,
                    "plain YAML",
                    "write the value itself",
                )
            )
        kind = type(node).__name__
        if kind == "MappingNode":
            return self.mapping(tree, node, path)
        if kind == "SequenceNode":
            return [
                self.value(tree, part, (*path, number)) for number, part in enumerate(node.value)
            ]
        return resolve_scalar(node.value) if node.style is None else node.value

    def mapping(self, tree: Tree, node: Any, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[Any] = []
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node.value, str) else ""
            here = (*path, key)
            place = f"{self.where}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
            if key == _MERGE and key_node.style is None:
                several = type(value_node).__name__ == "SequenceNode"
                merged += value_node.value if several else [value_node]
                continue
            if key in found or not key:
                what = f"{dotted(here)} is set twice" if key else "a key is not a word"
                code = "recipe.duplicate-key" if key else "recipe.yaml"
                tree.problems.append(Problem(what, code, place, "each key once, as plain text"))
                continue
            tree.keys[here] = place
            found[key] = self.value(tree, value_node, here)
        for part in merged:
            inner = self.value(Tree(), part, path)
            for key, value in inner.items() if isinstance(inner, dict) else ():
                found.setdefault(key, value)
        return found


def _refuse(what: str, where: str, expected: str) -> RecipeError:
    return RecipeError(
        what,
        code="recipe.too-large" if "too" in what else "recipe.kind",
        where=where,
        expected=expected,
        next="check that it is the file you mean",
    )
