"""mergekit configuration files: YAML with source positions, and import diagnostics.

Unlike Stillroom's recipes, these files may use aliases, merge keys and tags. An alias is replaced
by its value, with the position of the anchor. Size, depth and number of values are bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from stillroom.errors import Problem, RecipeError
from stillroom.recipes.problems import is_override
from stillroom.recipes.yaml_text import (
    MAX_DEPTH,
    MAX_TEXT_BYTES,
    KeyPath,
    YamlTree,
    format_path,
    resolve_scalar,
)
from stillroom.registry.catalog import suggest

__all__ = [
    "ImportDiagnostics",
    "read_documents",
]

_MAX_VALUES = 50_000
_MERGE = "<<"
_TYPO = 0.8
"""Likeness from which an unknown key is a typo: not of ``license`` and ``slices`` (0.62)."""

_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")
)


def read_documents(text: str, where: str) -> list[YamlTree]:
    """Return every non-empty document.

    Args:
        text: YAML.
        where: Prefix of positions, such as the file name.

    Raises:
        RecipeError: If it is not YAML, too large, too deep, or empty.
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
        position = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise RecipeError(
            f"the file is not YAML: {error.problem or error.context}",
            code="recipe.yaml",
            where=position,
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
        self.left = _MAX_VALUES

    def read(self, node: Any) -> YamlTree:
        tree = YamlTree()
        tree.data = self.value(tree, node, ())
        return tree

    def value(self, tree: YamlTree, node: Any, path: KeyPath) -> Any:
        position = f"{self.where}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        tree.values[path] = position
        self.left -= 1
        if self.left < 0 or len(path) > MAX_DEPTH:
            raise _refuse(
                "the file has too many values, or is nested too deeply",
                position,
                f"at most {_MAX_VALUES} values, {MAX_DEPTH} levels deep",
            )
        if node.tag is not None and str(node.tag) not in _TAGS:
            tree.problems.append(
                Problem(
                    f"the tag {node.tag} cannot be read",
                    "recipe.yaml-feature",
                    position,
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

    def mapping(self, tree: YamlTree, node: Any, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: list[Any] = []
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node.value, str) else ""
            here = (*path, key)
            position = (
                f"{self.where}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
            )
            if key == _MERGE and key_node.style is None:
                several = type(value_node).__name__ == "SequenceNode"
                merged += value_node.value if several else [value_node]
                continue
            if key in values or not key:
                problem = f"{format_path(here)} is set twice" if key else "a key is not a string"
                code = "recipe.duplicate-key" if key else "recipe.yaml"
                tree.problems.append(
                    Problem(problem, code, position, "each key once, as plain text")
                )
                continue
            tree.keys[here] = position
            values[key] = self.value(tree, value_node, here)
        for part in merged:
            inner = self.value(YamlTree(), part, path)
            for key, value in inner.items() if isinstance(inner, dict) else ():
                values.setdefault(key, value)
        return values


def _refuse(problem: str, where: str, expected: str) -> RecipeError:
    return RecipeError(
        problem,
        code="recipe.too-large" if "too" in problem else "recipe.kind",
        where=where,
        expected=expected,
        next="check that it is the intended file",
    )


@dataclass(frozen=True)
class ImportDiagnostics:
    """Collects the problems of a file and the warnings of one of its merges."""

    tree: YamlTree
    problems: list[Problem]
    warnings: list[str] = field(default_factory=list)

    def check_keys(
        self,
        path: KeyPath,
        data: Mapping[str, Any],
        known: Sequence[str],
        overlooked: Sequence[str] = (),
    ) -> None:
        """Report unknown keys; warn of keys without effect."""
        for key in data:
            here = (*path, key)
            if key in overlooked:
                self.warn(here, "has no effect in mergekit either")
            elif key not in known:
                self.weigh_key(here, key, known)

    def check_entry(
        self, path: KeyPath, data: Mapping[str, Any], known: Sequence[str], parameters: Set[str]
    ) -> None:
        """Report misplaced keys of a model's entry as errors, others as warnings."""
        remaining = {}
        for key in data:
            if key in parameters:
                self.refuse_key((*path, key), key, known, "put it under 'parameters'")
            elif key == "revision":
                remedy = "for that revision write model: NAME@REVISION"
                self.overlook((*path, key), remedy)
            else:
                remaining[key] = data[key]
        self.check_keys(path, remaining, known, overlooked=("residual_weight",))

    def weigh_key(self, path: KeyPath, key: str, known: Sequence[str]) -> None:
        """Report an unknown key as an error if it resembles a known one, else as a warning.

        mergekit ignores both. The first is probably a typo; ignoring the second gives mergekit's
        result for the same file.
        """
        if suggest(key, known, _TYPO):
            self.refuse_key(path, key, known)
        else:
            self.overlook(path)

    def refuse_key(self, path: KeyPath, key: str, known: Sequence[str], remedy: str = "") -> None:
        """Report a key that is not read."""
        self.problems.append(
            Problem(
                f"{format_path(path)} is unknown; mergekit would ignore it",
                "merge.mergekit-key",
                self.tree.place_of_key(path),
                f"one of: {', '.join(known)}" if known else "nothing here",
                remedy or suggest(key, known) or "remove it",
            )
        )

    def refuse(self, path: KeyPath, problem: str, expected: str, remedy: str = "") -> None:
        """Report an invalid value at a path."""
        name = format_path(path)
        self.problems.append(
            Problem(
                f"{name}: {problem}" if name else problem,
                "merge.mergekit-value",
                self.tree.place_of_value(path),
                expected,
                remedy or "correct it",
            )
        )

    def overlook(self, path: KeyPath, remedy: str = "") -> None:
        """Warn of a key that is not read; report an error if it comes from the command line.

        A file may have been written for mergekit; an override is only given to change this merge.
        """
        position = self.tree.place_of_key(path)
        problem = "is ignored, as in mergekit" + (f": {remedy}" if remedy else "")
        if not is_override(position):
            self.warn(path, problem)
            return
        self.problems.append(
            Problem(
                f"{format_path(path)} {problem}",
                "merge.mergekit-key",
                position,
                "a key of mergekit's configuration that changes the merge, or seed, threads or "
                "device",
                "remove it; --arithmetic chooses how the merge is computed",
            )
        )

    def warn(self, path: KeyPath, problem: str) -> None:
        """Add a warning about an entry that has no effect, or is not applied as written."""
        self.warnings.append(f"{format_path(path)} {problem}")
