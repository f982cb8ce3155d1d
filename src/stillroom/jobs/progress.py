"""Progress bars and event reporting, on a terminal or as plain lines.

A Reporter displays; a Progress counts one phase. Messages go to standard error, since standard
output is for results.
"""

from __future__ import annotations

import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Protocol, TextIO, TypeVar, runtime_checkable

__all__ = [
    "EventListener",
    "LineReporter",
    "MessageLog",
    "Progress",
    "QuietReporter",
    "Reporter",
    "TerminalReporter",
    "choose_reporter",
    "emit_event",
    "escape_line",
    "tell_warnings",
]

T = TypeVar("T")
_TERMINAL_EVERY_S = 0.2
_LINE_EVERY_S = 10.0
_MIN_WARM_SHARE = 0.05
# controls, line ends, changes of direction, invisible characters, halves of pairs
_ESCAPED = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    r"\ufff9-\ufffb\U000e0000-\U000e007f]"
)


class MessageLog(Protocol):
    """Receiver of messages."""

    def say(self, line: str) -> None:
        """Print a permanent message."""

    def warn(self, line: str) -> None:
        """Print a warning, without which a result is not to be taken; ``--quiet`` prints it too."""


class Reporter(MessageLog, Protocol):
    """Display of progress and messages."""

    every_s: float

    def show(self, line: str) -> None:
        """Show the state of the current phase, replacing the previous one where possible."""

    def end(self, line: str) -> None:
        """Show the final state of a phase."""


@runtime_checkable
class EventListener(Protocol):
    """A reporter that also receives events as values."""

    def hear(self, kind: str, fields: Mapping[str, object]) -> None:
        """Receive an event: ``progress``, ``metric``, ``step``, or an event of a job."""


def emit_event(reporter: Reporter, kind: str, fields: Mapping[str, object]) -> None:
    """Send an event to a reporter, if it is an EventListener."""
    if isinstance(reporter, EventListener):
        reporter.hear(kind, fields)


def escape_line(text: str) -> str:
    """Return a text as one line with control and direction characters escaped.

    Messages contain file names, which may hold line ends and terminal escapes. Spaces of other
    scripts, joiners and marks of direction, which their names need, remain.
    """
    return _ESCAPED.sub(lambda match: repr(match[0])[1:-1], text)


class QuietReporter:
    """Shows nothing."""

    every_s = 3600.0

    def show(self, line: str) -> None:
        """Show nothing."""

    def end(self, line: str) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Print nothing."""

    def warn(self, line: str) -> None:
        """Print nothing."""


class LineReporter:
    """Prints plain lines, for logs and pipes."""

    every_s = _LINE_EVERY_S

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to ``stream``, by default standard error."""
        self.stream = stream or sys.stderr

    def show(self, line: str) -> None:
        """Print the state as a line."""
        print(escape_line(line), file=self.stream, flush=True)

    def end(self, line: str) -> None:
        """Print the final state as a line."""
        print(escape_line(line), file=self.stream, flush=True)

    def say(self, line: str) -> None:
        """Print the message."""
        print(escape_line(line), file=self.stream, flush=True)

    def warn(self, line: str) -> None:
        """Print the warning."""
        self.say(f"warning: {line}")


class TerminalReporter(LineReporter):
    """Redraws one line on a terminal."""

    every_s = _TERMINAL_EVERY_S

    def show(self, line: str) -> None:
        """Redraw the line in place."""
        print(f"\r\x1b[2K{escape_line(line)}", end="", file=self.stream, flush=True)

    def end(self, line: str) -> None:
        """Redraw the line and leave it."""
        print(f"\r\x1b[2K{escape_line(line)}", file=self.stream, flush=True)

    def say(self, line: str) -> None:
        """Print the message on a separate line."""
        print(f"\r\x1b[2K{escape_line(line)}", file=self.stream, flush=True)


class _WarningReporter(QuietReporter):
    """Prints warnings only."""

    def warn(self, line: str) -> None:
        """Print the warning."""
        LineReporter().warn(line)


def tell_warnings(lines: Iterable[str], log: MessageLog | None) -> None:
    """Give warnings to a display, or to Python's own warnings if the caller named none."""
    for line in lines:
        if log is None:
            warnings.warn(line, UserWarning, stacklevel=3)
        else:
            log.warn(line)


def choose_reporter(*, quiet: bool = False) -> Reporter:
    """Return the reporter for standard error: a terminal, a pipe, or warnings only."""
    if quiet:
        return _WarningReporter()
    return TerminalReporter() if sys.stderr.isatty() else LineReporter()


class Progress:
    """Progress of one phase of ``total`` units; ``done`` units may be finished already.

    A first line appears at once, then every ``reporter.every_s`` seconds with the rate and the
    expected end, which leaves out the first unit's time: it often loads a model. ``weight`` is that
    of all units that are left, such as their bytes, if they do not take equally long; the line then
    has the share of it that is done.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str,
        reporter: Reporter,
        *,
        done: int = 0,
        weight: float = 0,
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self._first = done
        self._weight, self._weight_done, self._weight_within = weight, 0.0, 0.0
        self._reporter = reporter
        self._start = time.monotonic()
        self._warm: tuple[float, float] | None = None  # when the first unit was done, and the work
        self._shown = 0.0

    def __enter__(self) -> Progress:
        self._reporter.show(self._line())
        self._tell()
        self._shown = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reporter.end(self._line(final=kind is None))
        self._tell()

    def advance(
        self, count: int = 1, note: str | Callable[[], str] = "", *, weight: float = 0
    ) -> None:
        """Count finished units, and show the state when due; only then is a note built.

        ``weight`` is that of these units, if the phase has one.
        """
        self.done += count
        self._weight_done += weight
        self._weight_within = 0.0
        self._show_if_due(note)

    def advance_within(self, weight: float, note: str = "") -> None:
        """Tell how much of the weight of the unit in progress is done, and show the state if due.

        ``advance`` then counts the whole unit.
        """
        self._weight_within = weight
        self._show_if_due(note)

    def _show_if_due(self, note: str | Callable[[], str]) -> None:
        now = time.monotonic()
        if self._warm is None and (work := self._measure_work()[0]):
            self._warm = now, work
        if now - self._shown >= self._reporter.every_s:
            text = note if isinstance(note, str) else note()
            self._reporter.show(self._line(note=text))
            self._tell(text)
            self._shown = now

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, counting each when it is finished."""
        for item in items:
            yield item
            self.advance()

    def _find_share(self) -> float | None:
        """Return how much of the phase is done, from 0 to 1; None where nothing tells."""
        if self._weight:
            return min(self._measure_work()[0] / self._weight, 1.0)
        return self.done / self.total if self.total else None

    def _tell(self, note: str = "") -> None:
        fields = {"name": self.name, "done": self.done, "total": self.total, "unit": self.unit}
        spent, worked = time.monotonic() - self._start, self.done - self._first
        rate = round(worked / spent, 6) if worked and spent > 0 else None
        left = self._find_remaining_s()
        timing = {"rate": rate, "seconds_left": None if left is None else round(left, 3)}
        share = {"share": self._find_share()}
        emit_event(self._reporter, "progress", {**fields, **share, **timing, "note": note})

    def _find_remaining_s(self) -> float | None:
        """Return the seconds until the expected end; None where nothing tells."""
        now = time.monotonic()
        spent, (worked, left) = now - self._start, self._measure_work()
        if not worked or self.total <= self.done:
            return None
        if self._warm is not None:
            since, before = self._warm
            # The units of a first batch end together, which tells nothing of their time.
            if worked > before and now - since > _MIN_WARM_SHARE * spent:
                spent, worked = now - since, worked - before
        return left * spent / worked

    def _measure_work(self) -> tuple[float, float]:
        """Return the work that was done here and what is left: weights, or else units."""
        if self._weight:
            done = self._weight_done + self._weight_within
            return done, max(self._weight - done, 0)
        return self.done - self._first, self.total - self.done

    def _line(self, *, final: bool = False, note: str = "") -> str:
        spent = time.monotonic() - self._start
        worked = self.done - self._first
        count = f"{self.done}/{self.total}" if self.total else f"{self.done}"
        line = f"{self.name}: {count} {self.unit}"
        if self._weight and not final:
            line += f", {self._find_share():.0%}".replace("%", " %")
        elif worked and spent > 0:
            rate = worked / spent
            line += f", {rate:,.0f}/s" if rate >= 1000 else f", {rate:.3g}/s"
        if final:
            line += f", {spent:.1f} s"
        elif (remaining := self._find_remaining_s()) is not None:
            line += f", ends {time.strftime('%H:%M:%S', time.localtime(time.time() + remaining))}"
        return f"{line}  {note}".rstrip()
