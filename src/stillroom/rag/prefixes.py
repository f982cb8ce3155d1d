"""What a passage is found by beside its own words: title, headings, a table's header, its context.

All of it goes before the text that is embedded, as far as the embedder has room, and is matched by
keywords. None of it is ever cited as the passage's words; of the four a model that answers is shown
title and headings, as a heading, and the table's header, which the document does say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.models.vectors import text_room
from stillroom.records import Passage

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["keyword_prefixes", "located_text", "passage_texts", "place_of", "readable_text"]


def readable_text(passage: Passage, end: int | None = None) -> str:
    """Return what is read of a passage: its text, after the header row of a table it goes on with.

    Args:
        passage: What is shown.
        end: Where its text is cut; by default nowhere.
    """
    text = passage.text[:end]
    return f"{passage.table_header}\n{text}" if passage.table_header else text


def place_of(passage: Passage) -> str:
    """Return title and headings of a passage as lines: what it stands under, as the document says.

    What a model wrote of its place is not among them.
    """
    return "\n".join(dict.fromkeys(one for one in (passage.title, *passage.headings) if one))


def located_text(passage: Passage) -> str:
    """Return what is judged of a passage: title and headings on a line, then what is read of it."""
    path = " > ".join(" ".join(name.split()) for name in place_of(passage).split("\n"))
    return f"{path}\n{readable_text(passage)}" if path else readable_text(passage)


def keyword_prefixes(passage: Mapping[str, Any]) -> list[str]:
    """Return the texts beside its own that a passage's keywords are taken from, each once.

    Args:
        passage: As ``Passage.to_json`` gives it.
    """
    names = [passage["title"], *passage["headings"]]
    names += [passage.get("table_header", ""), passage.get("context", "")]
    return list(dict.fromkeys(names))


def passage_texts(
    passages: Sequence[Passage], embedder: Embedder, *, with_headings: bool
) -> list[str]:
    """Return what is embedded of each passage: its prefixes as far as there is room, and its text.

    The text is always whole. Of what goes before it the outermost headings are left out first, the
    header of its table last.

    Args:
        passages: What is embedded.
        embedder: Whose tokens are counted.
        with_headings: Put the title and the headings before the text.
    """
    room = text_room(embedder)
    return [_add_prefixes(passage, embedder, room, with_headings) for passage in passages]


def _add_prefixes(passage: Passage, embedder: Embedder, room: int, with_headings: bool) -> str:
    path: list[str] = []
    if with_headings:
        names = [name for name in (passage.title, *passage.headings) if name.strip()]
        path = list(dict.fromkeys(" ".join(name.split()) for name in names))
    rest = [part for part in (passage.context, passage.table_header) if part]
    for first in range(len(path) + 1):
        heading = [" > ".join(path[first:])] if path[first:] else []
        if not heading and not rest:
            break
        text = "\n".join([*heading, *rest, passage.text])
        if embedder.count_tokens(text) <= room:
            return text
    if len(rest) > 1:
        text = f"{passage.table_header}\n{passage.text}"
        if embedder.count_tokens(text) <= room:
            return text
    return passage.text
