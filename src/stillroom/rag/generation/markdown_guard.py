"""Markdown and HTML sanitized while streamed: links, pictures and active tags are defused.

A document may have injected a picture whose address leaks the question. A space is inserted where
Markdown would render a picture or a link (``](``, ``][``, a line's ``[x]:``) and where an HTML tag
with attributes or active content begins (``<img src``, ``<script>``), so that addresses remain
readable text; ``<div>`` is not changed.
"""

from __future__ import annotations

__all__ = ["MarkdownGuard"]

_MAX_TAG_NAME_LENGTH = 32
_ACTIVE_TAGS = frozenset(
    "script style iframe object embed svg math template base form meta link noscript frame"  # noqa: SIM905
    " frameset plaintext textarea title xmp video audio".split()
)


class MarkdownGuard:
    """Defuses text character by character; ``broken`` counts the pictures, links and tags."""

    def __init__(self) -> None:
        self.broken = 0
        self.last = ""
        """Last character that was returned."""
        self.is_definition = False
        """Whether the bracket opened last begins a line, as in ``[x]: address``."""
        self._tag = ""

    def defuse(self, text: str) -> str:
        """Return text with links and tags broken; what may begin a tag is held back."""
        out = []
        for character in text:
            if self._tag and len(self._tag) < _MAX_TAG_NAME_LENGTH and _is_tag_name(character):
                self._tag += character
                continue
            out.append(self.end_tag(character))
            if character == "<":
                self._tag = character
                continue
            if self._is_link(character):
                self.broken += 1
                out.append(" ")
            out.append(character)
            self.last = character
        return "".join(out)

    def keep(self, text: str) -> str:
        """Return code or white space unchanged, after what was held back."""
        if not text:
            return ""
        held = self.end_tag(text[0])
        self.last = text[-1]
        return held + text

    def end_tag(self, following: str) -> str:
        """Return what was held back, broken if it begins an active tag before ``following``."""
        tag, self._tag = self._tag, ""
        if not tag:
            return ""
        if _is_active_tag(tag, following):
            self.broken += 1
            tag = f"< {tag[1:]}"
        self.last = tag[-1]
        return tag

    def _is_link(self, character: str) -> bool:
        if self.last != "]":
            return False
        return character in "([" or (character == ":" and self.is_definition)


def _is_tag_name(character: str) -> bool:
    return character.isalnum() or character in "-/!?"


def _is_active_tag(tag: str, following: str) -> bool:
    """Return whether a tag, given its name, loads or runs something or hides what follows."""
    if tag[1:2] in {"!", "?"}:
        return True
    name = tag[1:].strip("/").casefold()
    if not name[:1].isalpha():
        return False
    return (
        name in _ACTIVE_TAGS
        or "/" in name
        or following.isspace()
        or len(tag) >= _MAX_TAG_NAME_LENGTH
    )
