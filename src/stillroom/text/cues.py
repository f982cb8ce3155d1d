"""Lines of subtitles as text: markup taken off, each labelled with the time at which it begins."""

from __future__ import annotations

import re

from stillroom.text.assembly import Assembly

__all__ = ["add_cue", "say_time"]

_MARKUP = re.compile(r"</?[A-Za-z][^<>\n]{0,200}>|<\d[\d:.,]*>|\{\\[^{}\n]{0,200}\}")


def say_time(seconds: float) -> str:
    """Return a moment as hours, minutes and seconds: ``0:01:05``."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def add_cue(
    assembly: Assembly,
    line: str,
    begins: float,
    span: tuple[int, int],
    *,
    is_exact: bool = False,
) -> None:
    """Add one line of a cue to a document.

    Args:
        assembly: The document.
        line: The line, with its markup; nothing is added where nothing else is in it.
        begins: When it is shown, in seconds from the start.
        span: Its bytes in the file.
        is_exact: Whether these bytes are the line one to one; not said of one that has markup.
    """
    text = _MARKUP.sub("", line).strip()
    if not text:
        return
    assembly.gap("\n")
    is_same = text == line
    assembly.add(text, span, label=say_time(begins), is_exact=is_exact and is_same)
