"""The alignment report of whole files: texts as they are, records through both chat templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stillroom.distill.alignment import align
from stillroom.distill.alignment_report import AlignmentReport
from stillroom.distill.cross_lessons import Reader, encode_cross
from stillroom.distill.token_spans import place_tokens
from stillroom.errors import CheckpointError, DataError
from stillroom.models.token_bytes import read_token_bytes

__all__ = ["align_files", "open_tokenizer"]

_RECORDS = (".jsonl", ".jsonl.zst", ".parquet")
_NO_LIMIT = 1 << 62


def open_tokenizer(reference: str, *, say: Callable[[str], None] | None = None) -> Any:
    """Return the tokenizer of a checkpoint, or the one in a tokenizer.json file.

    Args:
        reference: A folder, a ``.gguf`` file, ``hub:NAME``, or the path of a tokenizer.json.
        say: Told what was taken, where that is not what the reference literally names.

    Raises:
        CheckpointError: If there is no such tokenizer, or it cannot be read.
    """
    path = Path(reference)
    if path.suffix == ".json" and path.is_file():
        return _read_file(path)
    from stillroom.checkpoints import dequantize_gguf
    from stillroom.models.causal import load_tokenizer
    from stillroom.models.hub import resolve_checkpoint

    found = resolve_checkpoint(reference, say=say)
    return load_tokenizer(dequantize_gguf(found) if found.suffix == ".gguf" else found)


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

    sides = [Reader(one, read_token_bytes(one), _NO_LIMIT) for one in (teacher, student)]
    report, missed = AlignmentReport(sides[0].tokens, sides[1].tokens), 0
    for path in files:
        if path.is_dir() or path.name.endswith(_RECORDS):
            records = list(read_records(path))
            _, counts = encode_cross(
                sides[0], sides[1], records, include_prompt=True, on_aligned=report.add
            )
            missed += counts["messages_missed"]
            continue
        text = _read_text(path)
        placed = [place_tokens(side.tokenizer, side.tokens, text) for side in sides]
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


def _read_file(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise CheckpointError(
            f"{path} cannot be read: {error!s:.80}",
            code="checkpoint.tokenizer",
            where=str(path),
            expected="a tokenizer as the tokenizers library writes it",
            next="give the folder of its checkpoint",
        ) from error
