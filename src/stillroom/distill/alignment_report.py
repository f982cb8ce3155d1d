"""What two tokenizers have in common on given texts: known before anything is trained.

Shares are of bytes and of tokens; what is in no chunk is told by reason, and the share of bytes in
one-to-one chunks also by what the bytes are (letters, digits, white space, punctuation, other
scripts), since digits and other scripts are where tokenizers differ most.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.distill.alignment import KINDS, ONE_TO_ONE, SPECIAL_PAIR, Alignment
from stillroom.distill.token_map import map_tokens
from stillroom.distill.token_spans import Placed
from stillroom.models.token_bytes import TokenBytes

__all__ = ["AlignmentReport"]

_CLASSES = ("letters", "digits", "white space", "punctuation", "other scripts")


def _classes() -> npt.NDArray[np.uint8]:
    table = np.full(256, _CLASSES.index("punctuation"), dtype=np.uint8)
    for byte in range(256):
        if byte >= 0x80:
            table[byte] = _CLASSES.index("other scripts")
        elif chr(byte).isalpha():
            table[byte] = _CLASSES.index("letters")
        elif chr(byte).isdigit():
            table[byte] = _CLASSES.index("digits")
        elif chr(byte).isspace():
            table[byte] = _CLASSES.index("white space")
    return table


_CLASS_OF_BYTE = _classes()


@dataclass
class AlignmentReport:
    """Sums over the texts that were added."""

    teacher: TokenBytes
    student: TokenBytes
    texts: int = 0
    texts_by_offsets: int = 0
    bytes: int = 0
    teacher_tokens: int = 0
    student_tokens: int = 0
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    teacher_out: Counter[str] = field(default_factory=Counter)
    student_out: Counter[str] = field(default_factory=Counter)
    classes: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((2, len(_CLASSES)), dtype=np.int64)
    )

    def add(self, found: Alignment, teacher: Placed, student: Placed) -> None:
        """Count one text; has the signature of ``encode_cross``'s ``on_aligned``."""
        self.texts += 1
        self.texts_by_offsets += not found.is_exact
        self.bytes += len(student.text)
        self.teacher_tokens += len(teacher)
        self.student_tokens += len(student)
        self.teacher_out.update(found.teacher_out)
        self.student_out.update(found.student_out)
        for kind, name in enumerate(KINDS):
            chosen = found.kinds == kind
            row = self.kinds.setdefault(name, dict.fromkeys(_COLUMNS, 0))
            for column, bounds in zip(
                _COLUMNS[1:], (found.spans, found.teacher, found.student), strict=True
            ):
                row[column] += int((bounds[chosen, 1] - bounds[chosen, 0]).sum())
            row["chunks"] += int(chosen.sum())
        self.classes += _count_classes(found, student)

    @property
    def chunks(self) -> int:
        """Number of chunks of text, pairs of special tokens aside."""
        return sum(row["chunks"] for name, row in self.kinds.items() if name != "special")

    def coverage(self, *, one_to_one: bool) -> dict[str, float]:
        """Return the share of bytes, teacher's and student's tokens in chunks of text.

        Args:
            one_to_one: Only in chunks of one token each, else in any.
        """
        names = [KINDS[ONE_TO_ONE]] if one_to_one else KINDS[:SPECIAL_PAIR]
        totals = {
            "bytes": self.bytes,
            "teacher_tokens": self.teacher_tokens,
            "student_tokens": self.student_tokens,
        }
        return {
            column: sum(self.kinds[name][column] for name in names if name in self.kinds)
            / max(total, 1)
            for column, total in totals.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return all figures by name."""
        chunks = max(self.chunks, 1)
        text = [row for name, row in self.kinds.items() if name != "special"]
        return {
            "teacher": self.teacher.to_json(),
            "student": self.student.to_json(),
            "vocabulary": map_tokens(self.teacher, self.student).to_json(),
            "texts": self.texts,
            "texts_by_offsets": self.texts_by_offsets,
            "bytes": self.bytes,
            "teacher_tokens": self.teacher_tokens,
            "student_tokens": self.student_tokens,
            "in_chunks": self.coverage(one_to_one=False),
            "in_one_to_one": self.coverage(one_to_one=True),
            "tokens_a_chunk": {
                "teacher": sum(row["teacher_tokens"] for row in text) / chunks,
                "student": sum(row["student_tokens"] for row in text) / chunks,
            },
            "bytes_a_chunk": sum(row["bytes"] for row in text) / chunks,
            "kinds": self.kinds,
            "out": {"teacher": dict(self.teacher_out), "student": dict(self.student_out)},
            "one_to_one_by_class": {
                name: {"bytes": int(total), "share": float(one / total)}
                for name, total, one in zip(_CLASSES, self.classes[0], self.classes[1], strict=True)
                if total
            },
        }

    def __str__(self) -> str:
        """Return the report as lines of text."""
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        found = self.to_json()
        lines = [_say_tokenizer(name, found[name]) for name in ("teacher", "student")]
        words = found["vocabulary"]
        lines.append(
            f"vocabulary: {words['groups']} tokens have the same bytes or role in both "
            f"({words['teacher_matched'] / max(found['teacher']['tokens'], 1):.1%} of the "
            f"teacher's, {words['student_matched'] / max(found['student']['tokens'], 1):.1%} of "
            "the student's)"
        )
        lines.append(
            f"texts: {self.texts}, {self.bytes} bytes, {self.teacher_tokens} teacher tokens, "
            f"{self.student_tokens} student tokens"
        )
        if self.texts_by_offsets:
            lines.append(
                f"  {self.texts_by_offsets} of them not exact: a normalizer changed the text, so "
                "that borders are those of characters"
            )
        for title, key in (("in common chunks", "in_chunks"), ("one to one", "in_one_to_one")):
            row = found[key]
            lines.append(
                f"{title}: {row['bytes']:.1%} of bytes, {row['teacher_tokens']:.1%} of teacher "
                f"tokens, {row['student_tokens']:.1%} of student tokens"
            )
        size = found["tokens_a_chunk"]
        lines.append(
            f"a chunk: {found['bytes_a_chunk']:.2f} bytes, {size['teacher']:.2f} teacher tokens, "
            f"{size['student']:.2f} student tokens"
        )
        lines += [
            f"  {name.replace('_', ' ')}: {row['chunks']} chunks, {row['bytes']} bytes, "
            f"{row['teacher_tokens']} to {row['student_tokens']} tokens"
            for name, row in self.kinds.items()
            if row["chunks"]
        ]
        for side, out in found["out"].items():
            said = ", ".join(f"{count} {reason}" for reason, count in sorted(out.items()))
            lines.append(f"in no chunk, {side}: {said or 'none'}")
        shares = found["one_to_one_by_class"].items()
        said = ", ".join(f"{name} {row['share']:.0%}" for name, row in shares)
        return [*lines, f"bytes one to one by class: {said}"]


_COLUMNS = ("chunks", "bytes", "teacher_tokens", "student_tokens")


def _say_tokenizer(name: str, found: dict[str, Any]) -> str:
    lossy = f"; {', '.join(found['lossy'])}" if found["lossy"] else ""
    return (
        f"{name}: {found['scheme'].replace('_', '-')}, {found['tokens']} tokens, "
        f"{found['special']} special{lossy}"
    )


def _count_classes(found: Alignment, student: Placed) -> npt.NDArray[np.int64]:
    """Return bytes by class: all of the text, and those in one-to-one chunks, (2, classes)."""
    classes = _CLASS_OF_BYTE[student.text]
    spans = found.spans[found.kinds == ONE_TO_ONE]
    change = np.bincount(spans[:, 0], minlength=len(classes) + 1) - np.bincount(
        spans[:, 1], minlength=len(classes) + 1
    )
    inside = change.cumsum()[:-1] > 0
    return np.stack(
        [
            np.bincount(part, minlength=len(_CLASSES)).astype(np.int64)
            for part in (classes, classes[inside])
        ]
    )
