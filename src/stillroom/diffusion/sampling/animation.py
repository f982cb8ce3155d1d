"""Animation of unmasking in the terminal and as an HTML page.

Renders step events; depends on a tokenizer only.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from stillroom.diffusion.sampling.sampler import StepEvent
from stillroom.diffusion.sampling.sequence import decode_tokens
from stillroom.jobs import atomic_write

__all__ = ["TerminalAnimation", "record_events", "write_animation"]

_PAGE = Path(__file__).with_suffix(".html")
_OPEN_MARK = "·"
_RESET, _DIM, _BOLD, _RED = "\x1b[0m", "\x1b[2m", "\x1b[1;32m", "\x1b[1;31m"


class TerminalAnimation:
    """Live view of one sequence during sampling; without a terminal, one line per step."""

    def __init__(self, tokenizer: Any, stream: TextIO | None = None, *, first: int = 0) -> None:
        self.tokenizer, self.stream, self.first = tokenizer, stream or sys.stderr, first
        self._lines = 0

    def show(self, event: StepEvent) -> None:
        """Render a step: masked positions as dots, new tokens bold, changed ones red."""
        is_terminal = self.stream.isatty()
        is_colored = is_terminal and not os.environ.get("NO_COLOR")
        text = self.draw(event, color=is_colored, is_flat=not is_terminal)
        head = f"step {event.step}, {event.nfe} passes, {sum(event.is_open)} masked"
        if is_terminal and self._lines:
            self.stream.write(f"\x1b[{self._lines}A\x1b[J")
        self.stream.write(f"{head}\n{text}\n" if is_terminal else f"{head}: {text}\n")
        columns = max(shutil.get_terminal_size().columns, 1)
        plain = f"{head}\n{self.draw(event, color=False, is_flat=False)}"
        self._lines = sum(max(-(-_display_width(row) // columns), 1) for row in plain.split("\n"))
        self.stream.flush()

    def draw(self, event: StepEvent, *, color: bool, is_flat: bool = True) -> str:
        """Return the current text with dots for masks; flat and uncolored text is a single line."""
        texts = decode_tokens(self.tokenizer, event.ids)
        written, changed, parts = set(event.written), set(event.changed), []
        for position in range(self.first, len(event.ids)):
            text = _OPEN_MARK if event.is_open[position] else _escape_controls(texts[position])
            mark = ""
            if color:
                mark = _RED if position in changed else _BOLD if position in written else ""
                mark = _DIM if event.is_open[position] and not mark else mark
            parts.append(f"{mark}{text}{_RESET}" if mark else text)
        joined = "".join(parts)
        return joined.replace("\n", "⏎") if is_flat and not color else joined


def _escape_controls(text: str) -> str:
    """Return a text with visible control characters, except for newlines."""
    shown = {code: 0x2400 + code for code in range(0x20)} | dict.fromkeys(range(0x7F, 0xA0), 0x2421)
    return text.translate(shown | {ord("\n"): "\n"})


def _display_width(line: str) -> int:
    """Return the columns of a line: wide characters count two, combining ones none."""
    return sum(
        2 if unicodedata.east_asian_width(letter) in "WF" else not unicodedata.combining(letter)
        for letter in line.expandtabs()
    )


def write_animation(
    path: Path,
    events: Sequence[StepEvent],
    tokenizer: Any,
    *,
    title: str,
    given_mask: Sequence[bool] = (),
) -> None:
    """Write an HTML page that replays the sampling of one text.

    The page has no dependencies, is usable by keyboard, and has the final text for readers without
    scripts. Each token shows its step and confidence.

    Args:
        path: Output file.
        events: Step events of one text, in order.
        tokenizer: Tokenizer of the model.
        title: Page title.
        given_mask: Which positions of the request are given, (T,); later ones are not.
    """
    frames: list[dict[str, Any]] = []
    for event in events:
        step = event.describe(tokenizer)
        frames.append(
            {
                "nfe": step.readings,
                "new": step.written,
                "changed": step.changed,
                "text": step.pieces,
                "sure": [round(value, 3) for value in event.confidence],
            }
        )
    last = "".join(text or _OPEN_MARK for text in frames[-1]["text"]) if frames else ""
    parts = {
        "@TITLE@": html.escape(title),
        "@LAST@": html.escape(last),
        "@GIVEN@": json.dumps(
            [position for position, is_given in enumerate(given_mask) if is_given]
        ),
        # escaped: a token must not close the script or open a comment
        "@DATA@": json.dumps(frames, ensure_ascii=False).replace("<", "\\u003c"),
    }
    # a single pass, so that inserted text is not substituted again
    page = re.sub("|".join(parts), lambda match: parts[match[0]], _PAGE.read_text("utf-8"))
    with atomic_write(path) as file:
        file.write(page)


def record_events(
    events: list[StepEvent], *listeners: Callable[[StepEvent], None]
) -> Callable[[StepEvent], None]:
    """Return a callback that appends events to a list and passes them on."""

    def on_step(event: StepEvent) -> None:
        events.append(event)
        for listener in listeners:
            listener(event)

    return on_step
