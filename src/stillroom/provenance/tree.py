"""The tree that a lineage is: nodes, their JSON, and how a terminal draws them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Node", "render_tree"]

SHOWN_DIGITS = 16
"""How much of a digest is drawn."""


@dataclass(frozen=True, slots=True)
class Node:
    """One thing in a lineage, and what it was made from.

    ``kind`` is an artifact's kind, or one of ``record``, ``step``, ``passage``, ``document``,
    ``file``, ``folder``, ``reference``, ``missing`` and ``broken``; ``notes`` are facts that a
    reader must see, one line each.
    """

    title: str
    kind: str
    digest: str = ""
    path: str = ""
    origin: str = ""
    children: tuple[Node, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, children within."""
        return {
            "title": self.title,
            "kind": self.kind,
            "digest": self.digest,
            "path": self.path,
            "origin": self.origin,
            "notes": list(self.notes),
            "children": [child.to_json() for child in self.children],
        }


def render_tree(node: Node, *, ascii: bool = False) -> str:
    """Return the tree as lines for a terminal; control characters are shown, never sent.

    Args:
        node: The root.
        ascii: Draw with ASCII alone.
    """
    marks = ("|- ", "`- ", "|  ", "   ") if ascii else ("├─ ", "└─ ", "│  ", "   ")
    return "\n".join(_render(node, "", "", marks)) + "\n"


def _render(node: Node, head: str, tail: str, marks: tuple[str, ...]) -> Iterator[str]:
    parts = [node.title, node.kind, node.digest[:SHOWN_DIGITS], node.origin, node.path]
    yield head + _printable("  ".join(part for part in parts if part))
    for note in node.notes:
        yield f"{tail}{marks[2] if node.children else marks[3]}{_printable(note)}"
    for index, child in enumerate(node.children):
        is_last = index == len(node.children) - 1
        yield from _render(
            child,
            tail + (marks[1] if is_last else marks[0]),
            tail + (marks[3] if is_last else marks[2]),
            marks,
        )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
