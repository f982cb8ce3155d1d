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

_OPEN_MARK = "·"
_RESET, _DIM, _BOLD, _RED = "\x1b[0m", "\x1b[2m", "\x1b[1;32m", "\x1b[1;31m"


class TerminalAnimation:
    """Live view of one sequence during sampling; without a terminal, one line per step."""

    def __init__(self, tokenizer: Any, stream: TextIO | None = None, *, first: int = 0) -> None:
        """Set the output stream, standard error by default.

        Args:
            tokenizer: Tokenizer of the model.
            stream: Output stream.
            first: First position to show.
        """
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
        self._lines = self._height(f"{head}\n{self.draw(event, color=False, is_flat=False)}")
        self.stream.flush()

    @staticmethod
    def _height(text: str) -> int:
        """Return the number of terminal rows of a text."""
        columns = max(shutil.get_terminal_size().columns, 1)
        return sum(max(-(-_display_width(line) // columns), 1) for line in text.split("\n"))

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
    return "".join(
        letter if letter == "\n" or unicodedata.category(letter) != "Cc" else _render_text(letter)
        for letter in text
    )


def _render_text(letter: str) -> str:
    return chr(0x2400 + ord(letter)) if ord(letter) < 0x20 else "\u2421"


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
        texts = decode_tokens(tokenizer, event.ids)
        frames.append(
            {
                "nfe": event.nfe,
                "new": [*event.written],
                "changed": [*event.changed],
                "text": [
                    None if event.is_open[position] else texts[position]
                    for position in range(len(event.ids))
                ],
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
    page = re.sub("|".join(parts), lambda match: parts[match[0]], _PAGE)
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


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>@TITLE@</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fdfcf8; --line: #d6d2c4; --new: #1f7a4d;
  --changed: #b3261e; --given: #6d6a60; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceae3; --paper: #17181b; --line: #3a3c42;
  --new: #6fd6a0; --changed: #ff8a80; --given: #a09c90; } }
body { font: 16px/1.6 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
#text { font: 17px/1.9 ui-monospace, monospace; white-space: pre-wrap;
  border: 1px solid var(--line); border-radius: 8px; padding: 1rem; min-height: 6rem;
  overflow-wrap: anywhere; }
#text .open { display: inline-block; width: .9ch; margin: 0 .15ch; color: var(--given);
  background: var(--line); border-radius: 3px; line-height: 1.15; text-align: center; }
#text .given { color: var(--given); }
#text .new, #text .changed { font-weight: 700; border-radius: 3px; }
#text .new { color: var(--new); background: rgba(31, 122, 77, .18); }
#text .changed { color: var(--changed); background: rgba(179, 38, 30, .18); }
#bar { display: flex; gap: .75rem; align-items: center; margin: 1rem 0; }
#bar input { flex: 1; } button { font: inherit; padding: .2rem .9rem; }
small { color: var(--given); }
</style></head><body>
<h1>@TITLE@</h1>
<div id="bar"><button id="play" type="button">Play</button>
<input id="step" type="range" min="0" value="0" aria-label="step">
<output id="caption"></output></div>
<div id="text" aria-live="off">@LAST@</div>
<p><small>Green: unmasked in this step. Red: remasked or replaced. Gray: given. A gray box is a
masked position. Point at a token to see its step and confidence.
</small></p>
<script>
const frames = @DATA@, given = new Set(@GIVEN@);
const box = document.getElementById("text"), slider = document.getElementById("step");
const caption = document.getElementById("caption"), play = document.getElementById("play");
slider.max = Math.max(frames.length - 1, 0);
function draw(n) {
  const f = frames[n]; if (!f) return;
  box.textContent = "";
  f.text.forEach((t, at) => {
    const s = document.createElement("span"), bare = t === null ? "\\u00b7" : t.trimStart();
        // style the word, not the space before it
    if (t !== null && bare && bare !== t) box.append(t.slice(0, t.length - bare.length));
    s.textContent = bare || t;
    s.className = f.changed.includes(at) ? "changed" : t === null ? "open"
      : f.new.includes(at) ? "new" : given.has(at) ? "given" : "";
    if (t !== null && !given.has(at)) {
      let when = n; while (when > 0 && !frames[when].new.includes(at)) when--;
      s.title = "step " + when + ", confidence " + f.sure[at];
    }
    box.appendChild(s);
  });
  caption.textContent = "step " + n + " of " + (frames.length - 1) + ", " + f.nfe
        + (f.nfe === 1 ? " forward pass" : " forward passes");
}
let timer = null;
function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
play.onclick = () => {
  if (timer) return stop();
  if (+slider.value >= frames.length - 1) slider.value = 0;
  play.textContent = "Stop";
  timer = setInterval(() => {
    if (+slider.value >= frames.length - 1) return stop();
    slider.value = +slider.value + 1; draw(+slider.value);
  }, 250);
};
slider.oninput = () => { stop(); draw(+slider.value); };
draw(0);
</script></body></html>
"""
