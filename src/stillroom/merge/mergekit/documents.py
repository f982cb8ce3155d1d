"""mergekit configuration files: YAML with source positions, and import diagnostics.

Our own recipes allow none of these; files of others use them. An alias is the value it names, at
the place where that stands. Bounded in size, depth and number of values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from stillroom.errors import Problem, RecipeError
from stillroom.recipes.loader import is_override
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


_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")
)


DocumentPath = tuple[str | int, ...]


def read_documents(text: str, where: str) -> list[YamlTree]:
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
        self.left = _MAX_VALUES

    def read(self, node: Any) -> YamlTree:
        tree = YamlTree()
        tree.data = self.value(tree, node, ())
        return tree

    def value(self, tree: YamlTree, node: Any, path: DocumentPath) -> Any:
        place = f"{self.where}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        tree.values[path] = place
        self.left -= 1
        if self.left < 0 or len(path) > MAX_DEPTH:
            raise _refuse(
                "the file holds too much, or is nested too deeply",
                place,
                f"at most {_MAX_VALUES} values, {MAX_DEPTH} levels deep",
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

    def mapping(self, tree: YamlTree, node: Any, path: DocumentPath) -> dict[str, Any]:
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
                what = f"{format_path(here)} is set twice" if key else "a key is not a word"
                code = "recipe.duplicate-key" if key else "recipe.yaml"
                tree.problems.append(Problem(what, code, place, "each key once, as plain text"))
                continue
            tree.keys[here] = place
            found[key] = self.value(tree, value_node, here)
        for part in merged:
            inner = self.value(YamlTree(), part, path)
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


@dataclass(frozen=True)
class ImportDiagnostics:
    """Gathers the problems of one file and the notes of one of its merges."""

    tree: YamlTree
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)

    def check_keys(
        self,
        path: KeyPath,
        data: Mapping[str, Any],
        known: Sequence[str],
        refused: Mapping[str, str] | None = None,
        overlooked: Sequence[str] = (),
    ) -> None:
        """Weigh the keys that are not known; note those known to do nothing."""
        for key in data:
            here = (*path, key)
            if key in overlooked:
                self.note(here, "changes nothing in mergekit either")
            elif refused and key in refused:
                self.problems.append(
                    Problem(
                        f"{format_path(here)} is not supported",
                        "merge.mergekit-key",
                        self.tree.place_of_key(here),
                        refused[key],
                        "merge what it names with a file of its own",
                    )
                )
            elif key not in known:
                self.weigh_key(here, key, known)

    def check_entry(
        self, path: KeyPath, data: Mapping[str, Any], known: Sequence[str], parameters: Set[str]
    ) -> None:
        """Refuse keys of a model's entry that were meant to count; warn of the others."""
        kept = {}
        for key in data:
            if key in parameters:
                self.refuse_key((*path, key), key, known, "put it under 'parameters'")
            elif key == "revision":
                remedy = "for that revision write model: NAME@REVISION"
                self.overlook((*path, key), remedy)
            else:
                kept[key] = data[key]
        self.check_keys(path, kept, known, overlooked=("residual_weight",))

    def weigh_key(self, path: KeyPath, key: str, known: Sequence[str]) -> None:
        """Refuse a key that looks like a known one misspelled; overlook any other.

        mergekit overlooks both. The first was meant to count; without the second the merge is what
        mergekit makes of the same file.
        """
        if suggest(key, known):
            self.refuse_key(path, key, known)
        else:
            self.overlook(path)

    def refuse_key(self, path: KeyPath, key: str, known: Sequence[str], remedy: str = "") -> None:
        """Refuse a key that nobody reads."""
        self.problems.append(
            Problem(
                f"{format_path(path)} is unknown; mergekit would overlook it",
                "merge.mergekit-key",
                self.tree.place_of_key(path),
                f"one of: {', '.join(known)}" if known else "nothing here",
                remedy or suggest(key, known) or "remove it",
            )
        )

    def refuse(self, path: KeyPath, what: str, expected: str, remedy: str = "") -> None:
        """Refuse the value at a path."""
        name = format_path(path)
        self.problems.append(
            Problem(
                f"{name}: {what}" if name else what,
                "merge.mergekit-value",
                self.tree.place_of_value(path),
                expected,
                remedy or "correct it",
            )
        )

    def overlook(self, path: KeyPath, remedy: str = "") -> None:
        """Warn of a key that nobody reads; refuse one that is given on the command line.

        A file may have been written for mergekit as it is; an override is only ever written to
        change the merge at hand.
        """
        place = self.tree.place_of_key(path)
        what = "is overlooked, as mergekit does" + (f": {remedy}" if remedy else "")
        if not is_override(place):
            self.warn(path, what)
            return
        self.problems.append(
            Problem(
                f"{format_path(path)} {what}",
                "merge.mergekit-key",
                place,
                "a key that changes the merge, in mergekit's words, or seed, threads or device",
                "remove it; --arithmetic chooses how the merge is computed",
            )
        )

    def warn(self, path: KeyPath, what: str) -> None:
        """Warn of what somebody may have thought to count."""
        self.notes.append(f"warning: {format_path(path)} {what}")

    def note(self, path: KeyPath, what: str) -> None:
        """Note what is read and changes nothing."""
        self.notes.append(f"{format_path(path)} {what}")
