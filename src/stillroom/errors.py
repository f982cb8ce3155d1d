"""Every deliberate error of Stillroom.

The tree (each class also derives from the standard class that callers already catch)::

    StillroomError
      x RecipeError(ValueError)         a recipe, an override or a command line that cannot be run
      x DataError(ValueError)           a document, record or file that cannot be used
      x ShapeError(ValueError)          tensors that do not fit each other
      x CheckpointError(ValueError)     a checkpoint that is missing, broken or refused
      x BackendError(RuntimeError)      an engine or endpoint that failed or is down
      x ResourceError(RuntimeError)     memory, disk or time that does not suffice
      x MissingExtraError(ImportError)  an optional dependency that is not installed
      x IntegrityError(RuntimeError)    bytes that are not what was recorded
      x Cancelled                       stopped by the user at a safe point

An error is one or more problems; a problem has a description, a location, the expected value, the
next step, and a code that is a heading of docs/reference/errors.md. To add an error: raise one of
these classes with a new ``code``, document the code, and write a test that triggers it. All are
picklable, so that they can be passed between processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "BackendError",
    "Cancelled",
    "CheckpointError",
    "DataError",
    "IntegrityError",
    "MissingExtraError",
    "Problem",
    "RecipeError",
    "ResourceError",
    "ShapeError",
    "StillroomError",
    "count_noun",
]


_ERROR_NUMBER = re.compile(r"\[Errno -?\d+\] ")


def count_noun(count: int | str, noun: str, plural: str = "") -> str:
    """Return a count, perhaps formatted, with its noun: ``1 step``, ``2 steps``, ``1,000 steps``.

    ``plural`` is that of a noun which takes more than an s, or of a noun with its verb.
    """
    return f"{count} {noun if str(count) == '1' else plural or noun + 's'}"


@dataclass(frozen=True)
class Problem:
    """One problem: what, where, expected, next, and a code."""

    what: str
    code: str
    where: str = ""
    expected: str = ""
    next: str = ""

    def __post_init__(self) -> None:
        """Leave out the number that Python puts before the words of the system's error."""
        object.__setattr__(self, "what", _ERROR_NUMBER.sub("", self.what))

    def __str__(self) -> str:
        """Return the problem as lines for the user."""
        # A path is not printed twice; but a folder "model" is not named by "model.bin ...".
        end = self.what[len(self.where) : len(self.where) + 1]
        is_named = self.what.startswith(self.where) and len(self.where) > 1 and end in (" ", "/")
        head = self.what if is_named or not self.where else f"{self.where}: {self.what}"
        lines = [f"{head}  [{self.code}]"]
        if self.expected:
            lines.append(f"  expected {self.expected}")
        if self.next:
            lines.append(f"  next: {self.next}")
        return "\n".join(lines)


class StillroomError(Exception):
    """Base class of every deliberate error of Stillroom."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str | Sequence[Problem],
        *,
        code: str = "",
        where: str = "",
        expected: str = "",
        next: str = "",
    ) -> None:
        """Create an error of one problem, given by its parts, or of several.

        Args:
            what: One sentence with the value, or the finished problems.
            code: ``area.problem``, a heading of docs/reference/errors.md.
            where: ``file:line:column``, a row, or a tensor's name.
            expected: The expected value.
            next: One command or edit that helps.
        """
        if isinstance(what, str):
            self.problems: tuple[Problem, ...] = (Problem(what, code, where, expected, next),)
        else:
            self.problems = tuple(what)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[StillroomError], tuple[tuple[Problem, ...]]]:
        """Pickle as the problems, so that every part is kept."""
        return type(self), (self.problems,)

    @property
    def code(self) -> str:
        """The first problem's code."""
        return self.problems[0].code


class RecipeError(StillroomError, ValueError):
    """A recipe, an override or a command line that cannot be run."""

    exit_code = 2


class DataError(StillroomError, ValueError):
    """A document, record or file that cannot be used."""


class ShapeError(StillroomError, ValueError):
    """Tensors that do not fit each other."""


class CheckpointError(StillroomError, ValueError):
    """A checkpoint that is missing, broken or refused."""


class BackendError(StillroomError, RuntimeError):
    """An engine or endpoint that failed or is down."""


class ResourceError(StillroomError, RuntimeError):
    """Memory, disk or time that does not suffice."""

    exit_code = 3


class MissingExtraError(StillroomError, ImportError):
    """An optional dependency that is not installed."""

    exit_code = 3

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtraError:
        """Build the error of a missing package with the extra that provides it."""
        return cls(
            f"{purpose} needs the package '{package}', which is not installed",
            code="extra.missing",
            expected=f"the extra '{extra}'",
            next=f"pip install 'stillroom[{extra}]'",
        )

    @classmethod
    @contextmanager
    def guard(cls, package: str, extra: str, purpose: str) -> Iterator[None]:
        """Raise this error where an import of the body fails; see ``of``."""
        try:
            yield
        except ImportError as error:
            raise cls.of(package, extra, purpose) from error


class IntegrityError(StillroomError, RuntimeError):
    """Bytes differ from those recorded."""


class Cancelled(StillroomError):  # noqa: N818  # a requested stop is not an error
    """Stopped by the user at a safe point."""

    exit_code = 130
