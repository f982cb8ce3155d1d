"""Alignment report of two tokenizers on given texts or records.

Shares are of bytes and of tokens; unaligned tokens are counted by reason. The share of bytes in
one-to-one chunks is also given by character class (letters, digits, white space, punctuation, other
scripts), because tokenizers differ most on digits and other scripts.
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
from stillroom.objects.disk import require_file

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
    """Totals over the added texts."""

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

    def add(self, alignment: Alignment, teacher: TokenSpans, student: TokenSpans) -> None:
        """Count one text; usable as ``on_aligned`` of ``encode_aligned``."""
        self.texts += 1
        self.texts_by_offsets += not alignment.is_exact
        self.bytes += len(student.text)
        self.teacher_tokens += len(teacher)
        self.student_tokens += len(student)
        self.teacher_out.update(alignment.teacher_out)
        self.student_out.update(alignment.student_out)
        for kind, name in enumerate(KINDS):
            is_kind = alignment.kinds == kind
            row = self.kinds.setdefault(name, dict.fromkeys(_COLUMNS, 0))
            for column, bounds in zip(
                _COLUMNS[1:], (alignment.spans, alignment.teacher, alignment.student), strict=True
            ):
                row[column] += int((bounds[is_kind, 1] - bounds[is_kind, 0]).sum())
            row["chunks"] += int(is_kind.sum())
        self.classes += _count_classes(alignment, student)

    @property
    def chunks(self) -> int:
        """Number of chunks of text, without pairs of special tokens."""
        return sum(row["chunks"] for name, row in self.kinds.items() if name != "special")

    def coverage(self, *, one_to_one: bool) -> dict[str, float]:
        """Return the share of bytes, teacher tokens and student tokens in chunks of text.

        Args:
            one_to_one: Count only chunks of one token each; else all chunks.
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
                name: {"bytes": int(total), "share": float(matched / total)}
                for name, total, matched in zip(
                    _CLASS_NAMES, self.classes[0], self.classes[1], strict=True
                )
                if total
            },
        }

    def __str__(self) -> str:
        """Return the report as text."""
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        figures = self.to_json()
        lines = [_describe_tokenizer(name, figures[name]) for name in ("teacher", "student")]
        vocabulary = figures["vocabulary"]
        lines.append(
            f"vocabulary: {vocabulary['groups']} tokens have the same bytes or role in both "
            f"({vocabulary['teacher_matched'] / max(figures['teacher']['tokens'], 1):.1%} of the "
            "teacher's, "
            f"{vocabulary['student_matched'] / max(figures['student']['tokens'], 1):.1%} of "
            "the student's)"
        )
        lines.append(
            f"texts: {self.texts}, {self.bytes} bytes, {self.teacher_tokens} teacher tokens, "
            f"{self.student_tokens} student tokens"
        )
        if self.texts_by_offsets:
            lines.append(
                f"  {self.texts_by_offsets} of them not exact: a normalizer changed the text, so "
                "boundaries are those of characters"
            )
        for title, key in (("in common chunks", "in_chunks"), ("one to one", "in_one_to_one")):
            row = figures[key]
            lines.append(
                f"{title}: {row['bytes']:.1%} of bytes, {row['teacher_tokens']:.1%} of teacher "
                f"tokens, {row['student_tokens']:.1%} of student tokens"
            )
        size = figures["tokens_a_chunk"]
        lines.append(
            f"a chunk: {figures['bytes_a_chunk']:.2f} bytes, {size['teacher']:.2f} teacher tokens, "
            f"{size['student']:.2f} student tokens"
        )
        lines += [
            f"  {name.replace('_', ' ')}: {row['chunks']} chunks, {row['bytes']} bytes, "
            f"{row['teacher_tokens']} to {row['student_tokens']} tokens"
            for name, row in self.kinds.items()
            if row["chunks"]
        ]
        for side, out in figures["out"].items():
            listed = ", ".join(f"{count} {reason}" for reason, count in sorted(out.items()))
            lines.append(f"in no chunk, {side}: {listed or 'none'}")
        shares = figures["one_to_one_by_class"].items()
        listed = ", ".join(f"{name} {row['share']:.0%}" for name, row in shares)
        return [*lines, f"bytes one to one by class: {listed}"]


_COLUMNS = ("chunks", "bytes", "teacher_tokens", "student_tokens")


def _describe_tokenizer(name: str, figures: dict[str, Any]) -> str:
    lossy = f"; {', '.join(figures['lossy'])}" if figures["lossy"] else ""
    return (
        f"{name}: {figures['scheme'].replace('_', '-')}, {figures['tokens']} tokens, "
        f"{figures['special']} special{lossy}"
    )


def _count_classes(alignment: Alignment, student: TokenSpans) -> npt.NDArray[np.int64]:
    """Return bytes by class: of the whole text, and in one-to-one chunks, (2, classes)."""
    classes = _CLASS_OF_BYTE[student.text]
    spans = alignment.spans[alignment.kinds == ONE_TO_ONE]
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


_RECORD_SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
_NO_LIMIT = 1 << 62


def align_files(teacher: Any, student: Any, files: Sequence[Path]) -> tuple[AlignmentReport, int]:
    """Align all texts of some files and total the results.

    Args:
        teacher: Fast tokenizer of the teacher.
        student: Fast tokenizer of the student.
        files: Record files (``.jsonl``, also with ``.zst`` or ``.gz``, ``.parquet``, or a folder of
            them), or UTF-8 text files, one text per file.

    Returns:
        The report, and the number of messages found in only one of the two renderings.

    Raises:
        DataError: If a file cannot be read or contains no text.
    """
    from stillroom.records import read_records

    sides = [
        TokenizerView(tokenizer, read_token_bytes(tokenizer), _NO_LIMIT)
        for tokenizer in (teacher, student)
    ]
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
        tokens = [locate_tokens(side.tokenizer, side.tokens, text) for side in sides]
        report.add(align(tokens[0], tokens[1]), tokens[0], tokens[1])
    if not report.bytes:
        raise DataError(
            "the files contain no text",
            code="distill.no-text",
            where=", ".join(map(str, files)),
            expected="at least one byte of text to align",
            next="pass texts like those of the training data",
        )
    return report, missed


def _read_text(path: Path) -> str:
    try:
        with require_file(path).open(encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as text: {error}",
            code="distill.text",
            where=str(path),
            expected="a UTF-8 file, or records in .jsonl or .parquet",
            next="convert the file to UTF-8",
        ) from error
