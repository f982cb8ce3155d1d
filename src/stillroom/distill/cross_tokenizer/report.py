"""Alignment report of two tokenizers on given texts or records.

Shares are of bytes and of tokens; what is in no chunk is told by reason, and the share of bytes in
one-to-one chunks also by what the bytes are (letters, digits, white space, punctuation, other
scripts), since digits and other scripts are where tokenizers differ most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.distill.cross_tokenizer.alignment import (
    KINDS,
    ONE_TO_ONE,
    SPECIAL_PAIR,
    Alignment,
    align,
)
from stillroom.distill.cross_tokenizer.data import TokenizerView, encode_aligned
from stillroom.distill.cross_tokenizer.spans import TokenSpans, locate_tokens, map_tokens
from stillroom.errors import DataError
from stillroom.models.tokenization.token_bytes import TokenBytes, read_token_bytes

__all__ = [
    "AlignmentReport",
    "align_files",
]


_CLASS_NAMES = ("letters", "digits", "white space", "punctuation", "other scripts")


def _byte_classes() -> npt.NDArray[np.uint8]:
    table = np.full(256, _CLASS_NAMES.index("punctuation"), dtype=np.uint8)
    for byte in range(256):
        if byte >= 0x80:
            table[byte] = _CLASS_NAMES.index("other scripts")
        elif chr(byte).isalpha():
            table[byte] = _CLASS_NAMES.index("letters")
        elif chr(byte).isdigit():
            table[byte] = _CLASS_NAMES.index("digits")
        elif chr(byte).isspace():
            table[byte] = _CLASS_NAMES.index("white space")
    return table


_CLASS_OF_BYTE = _byte_classes()


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
        default_factory=lambda: np.zeros((2, len(_CLASS_NAMES)), dtype=np.int64)
    )

    def add(self, found: Alignment, teacher: TokenSpans, student: TokenSpans) -> None:
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
                for name, total, one in zip(
                    _CLASS_NAMES, self.classes[0], self.classes[1], strict=True
                )
                if total
            },
        }

    def __str__(self) -> str:
        """Return the report as lines of text."""
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        found = self.to_json()
        lines = [_describe_tokenizer(name, found[name]) for name in ("teacher", "student")]
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


def _describe_tokenizer(name: str, found: dict[str, Any]) -> str:
    lossy = f"; {', '.join(found['lossy'])}" if found["lossy"] else ""
    return (
        f"{name}: {found['scheme'].replace('_', '-')}, {found['tokens']} tokens, "
        f"{found['special']} special{lossy}"
    )


def _count_classes(found: Alignment, student: TokenSpans) -> npt.NDArray[np.int64]:
    """Return bytes by class: all of the text, and those in one-to-one chunks, (2, classes)."""
    classes = _CLASS_OF_BYTE[student.text]
    spans = found.spans[found.kinds == ONE_TO_ONE]
    change = np.bincount(spans[:, 0], minlength=len(classes) + 1) - np.bincount(
        spans[:, 1], minlength=len(classes) + 1
    )
    inside = change.cumsum()[:-1] > 0
    return np.stack(
        [
            np.bincount(part, minlength=len(_CLASS_NAMES)).astype(np.int64)
            for part in (classes, classes[inside])
        ]
    )


_RECORD_SUFFIXES = (".jsonl", ".jsonl.zst", ".parquet")


_NO_LIMIT = 1 << 62


def align_files(teacher: Any, student: Any, files: Sequence[Path]) -> tuple[AlignmentReport, int]:
    """Align all texts of some files and sum up.

    Args:
        teacher: A fast tokenizer.
        student: Another.
        files: Records (``.jsonl``, ``.jsonl.zst``, ``.parquet``, or a folder of them), or texts in
            UTF-8, one text a file.

    Returns:
        The report; and how many messages stand in one of the two renderings only.

    Raises:
        DataError: If a file cannot be read or holds no text.
    """
    from stillroom.records import read_records

    sides = [TokenizerView(one, read_token_bytes(one), _NO_LIMIT) for one in (teacher, student)]
    report, missed = AlignmentReport(sides[0].tokens, sides[1].tokens), 0
    for path in files:
        if path.is_dir() or path.name.endswith(_RECORD_SUFFIXES):
            records = list(read_records(path))
            _, counts = encode_aligned(
                sides[0], sides[1], records, include_prompt=True, on_aligned=report.add
            )
            missed += counts["messages_missed"]
            continue
        text = _read_text(path)
        placed = [locate_tokens(side.tokenizer, side.tokens, text) for side in sides]
        report.add(align(placed[0], placed[1]), placed[0], placed[1])
    if not report.bytes:
        raise DataError(
            "the files hold no text",
            code="distill.no-text",
            where=", ".join(map(str, files)),
            expected="at least one byte of text to align",
            next="give texts like those you will train on",
        )
    return report, missed


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as text: {error}",
            code="distill.text",
            where=str(path),
            expected="a file in UTF-8, or records in .jsonl or .parquet",
            next="convert the file to UTF-8",
        ) from error
