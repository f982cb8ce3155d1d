"""What the office formats share: words for their failures, and text of their XML.

Knows lxml elements by duck type only, so that it needs no optional package.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from stillroom.errors import DataError, StillroomError

__all__ = ["Element", "text_of", "unreadable"]

_SKIPPED = frozenset({"del", "moveFrom", "Fallback", "instrText", "delText", "pict"})
_TEXTS = frozenset({"t"})
_SPACES = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


class Element(Protocol):
    """The little of an lxml element that is needed here."""

    tag: object
    text: str | None

    def __iter__(self) -> Iterator[Element]:
        """Iterate over the children."""


@contextmanager
def unreadable(where: str) -> Iterator[None]:
    """Turn whatever a format's library raises over a broken file into a DataError.

    Raises:
        DataError: If the body raises anything but an error of Stillroom or the lack of memory.
    """
    try:
        yield
    except (StillroomError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"the file cannot be read: {type(error).__name__}: {str(error)[:300]}",
            code="document.unreadable",
            where=where,
            expected="a whole file of its format",
            next="open and save it in its program, or leave it out",
        ) from error


def text_of(element: Element) -> str:
    """Return the text within an OOXML element in order: runs, links, insertions and equations.

    Tracked deletions, field codes and fallbacks of newer content are left out. Without recursion,
    so that nesting cannot exhaust the stack.
    """
    parts: list[str] = []
    stack: list[Iterator[Element]] = [iter([element])]
    while stack:
        child = next(stack[-1], None)
        if child is None:
            stack.pop()
            continue
        name = str(child.tag).rpartition("}")[2]
        if name in _SKIPPED:
            continue
        if name in _TEXTS:
            parts.append(child.text or "")
        elif name in _SPACES:
            parts.append(_SPACES[name])
        else:
            if name == "p" and parts and not parts[-1].endswith("\n"):
                parts.append("\n")  # a paragraph within, as in a text box
            stack.append(iter(child))
    return "".join(parts)
