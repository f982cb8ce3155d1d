"""What the office formats share: words for their failures, and text of their XML.

Knows lxml elements by duck type only, so that it needs no optional package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from stillroom.errors import DataError, StillroomError

__all__ = ["Element", "text_of", "unreadable"]

_DELETED = frozenset({"del", "moveFrom"})
_SKIPPED = frozenset({"Fallback", "instrText", "delText", "pict"})
_COUNTED = {"drawing": "pictures", "ins": "inserted"}
_MARKS = {"footnoteReference": "", "endnoteReference": "e"}
_TEXTS = frozenset({"t"})
_SPACES = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


class Element(Protocol):
    """The little of an lxml element that is needed here."""

    tag: object
    text: str | None

    @property
    def attrib(self) -> Mapping[str, str]:
        """The attributes by their names, namespaces in braces."""

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


def text_of(element: Element, counts: Counter[str] | None = None) -> str:
    """Return the text within an OOXML element in order: runs, links, insertions and equations.

    Tracked deletions, hidden runs, field codes and fallbacks of newer content are left out. The
    mark of a note is ``[^1]``. Without recursion, so that nesting cannot exhaust the stack.

    Args:
        element: What to read.
        counts: Gets how many characters were ``deleted`` and ``hidden``, how many ``pictures`` are
            there, and under ``inserted`` how many insertions were kept.
    """
    counts = Counter() if counts is None else counts
    parts: list[str] = []
    stack: list[Iterator[Element]] = [iter([element])]
    while stack:
        child = next(stack[-1], None)
        if child is None:
            stack.pop()
            continue
        name = str(child.tag).rpartition("}")[2]
        if name in _COUNTED:
            counts[_COUNTED[name]] += 1
        if name in _DELETED or (name == "r" and _is_hidden(child)):
            counts["deleted" if name in _DELETED else "hidden"] += _size(child)
        elif name in _SKIPPED:
            continue
        elif name in _TEXTS:
            parts.append(child.text or "")
        elif name in _SPACES:
            parts.append(_SPACES[name])
        elif name in _MARKS:
            parts.append(f"[^{_MARKS[name]}{_attribute(child, 'id')}]")
        else:
            if name == "p" and parts and not parts[-1].endswith("\n"):
                parts.append("\n")  # a paragraph within, as in a text box
            stack.append(iter(child))
    return "".join(parts)


def _is_hidden(run: Element) -> bool:
    """Say whether a run is formatted as hidden text."""
    properties = next((one for one in run if str(one.tag).endswith("}rPr")), None)
    if properties is None:
        return False
    marks = [one for one in properties if str(one.tag).endswith(("}vanish", "}webHidden"))]
    return any(_attribute(one, "val") not in {"0", "false", "off"} for one in marks)


def _size(element: Element) -> int:
    """Return how many characters an element holds, deleted ones too, without recursion."""
    size, rest = 0, [element]
    while rest:
        one = rest.pop()
        if str(one.tag).rpartition("}")[2] in {"t", "delText"}:
            size += len(one.text or "")
        rest += list(one)
    return size


def _attribute(element: Element, name: str) -> str:
    """Return an attribute whatever its namespace."""
    return next(
        (value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), ""
    )
