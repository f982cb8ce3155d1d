"""Caches made of log-probabilities that were captured elsewhere.

The formats are described where they are read, in ``cache_import_axolotl`` and
``cache_import_distillkit``.

The mass outside the k tokens becomes the tail, 1 minus their sum: log-probabilities that were
renormalized before they were written have none, and the report says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stillroom.checkpoints import Checkpoint
from stillroom.distill.cache import TeacherCache
from stillroom.distill.cache_header import UNKNOWN, CacheHeader
from stillroom.distill.cache_import_axolotl import read_axolotl
from stillroom.distill.cache_import_distillkit import read_distillkit
from stillroom.distill.cache_import_rows import Sparse, odd_row
from stillroom.distill.encode import Lesson
from stillroom.errors import RecipeError
from stillroom.models import resolve_checkpoint
from stillroom.models.causal import load_tokenizer

__all__ = ["ImportReport", "import_cache"]

ImportFormat = Literal["axolotl", "distillkit"]
_WHOLE = 1e-6  # a tail below this is taken for none


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What came in: records, positions, k, and how the mass lies.

    ``tail`` is the mean mass outside the k tokens; ``whole`` how many positions have none, which
    means that somebody renormalized them. ``over`` is the largest sum above 1 that was taken back.
    """

    records: int
    positions: int
    k: int
    tail: float
    whole: int
    over: float

    def to_json(self) -> dict[str, Any]:
        """Return it by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return it in one or two lines."""
        line = (
            f"{self.records} records, {self.positions} positions, k {self.k}, tail {self.tail:.4f}"
        )
        if self.whole:
            line += (
                f"\n{self.whole} positions have no mass outside their {self.k} tokens: whoever "
                "wrote them renormalized, and a student of them is biased towards those tokens"
            )
        return line


def import_cache(
    source: Path,
    out: Path,
    *,
    format: ImportFormat,
    teacher: str,
    tokenizer: str = "",
    temperature: float = 1.0,
    license: str = "",
    logprob_dtype: Literal["float16", "float32"] = "float16",
    say: Callable[[str], None] | None = None,
) -> ImportReport:
    """Make a cache of mode top_k from another tool's file or folder.

    Args:
        source: A JSON lines file, or a parquet file or folder of them.
        out: The cache; records that are there already stay.
        format: Whose.
        teacher: The checkpoint that spoke; its fingerprint goes into the header.
        tokenizer: A checkpoint with the tokenizer of the ids; empty is the teacher's.
        temperature: What the teacher's logits were divided by.
        license: Of the teacher; empty is what its card says.
        logprob_dtype: Type to keep them in.
        say: Told where the teacher was found.

    Raises:
        DataError: If a row is not as documented; file, row and field are named.
        RecipeError: If the format is not known.
        CheckpointError: If teacher or tokenizer is not found.
    """
    records, k = _open(format, source)
    checkpoint = Checkpoint.open(resolve_checkpoint(teacher, say=say))
    named = Checkpoint.open(resolve_checkpoint(tokenizer, say=say)) if tokenizer else checkpoint
    vocabulary = len(load_tokenizer(named.folder).get_vocab())
    header = CacheHeader(
        teacher=checkpoint.fingerprint,
        tokenizer=named.tokenizer_digest,
        template=UNKNOWN,
        vocabulary=_vocabulary_of(checkpoint, vocabulary),
        mode="top_k",
        width=k,
        temperature=temperature,
        precision=UNKNOWN,
        logprob_dtype=logprob_dtype,
        license=license or checkpoint.license,
        about={"reference": teacher, "name": teacher.rpartition("/")[2], "file": source.name},
        source=format,
    )
    with TeacherCache.open(out, header) as cache:
        return _fill(cache, records, source)


def _open(format: ImportFormat, source: Path) -> tuple[Iterator[Sparse], int]:
    if format == "axolotl":
        return read_axolotl(source)
    if format == "distillkit":
        return read_distillkit(source)
    raise RecipeError(
        f"{format!r} is no format of log-probabilities",
        code="distill.import-format",
        expected="axolotl or distillkit",
        next="use one of those",
    )


def _vocabulary_of(checkpoint: Checkpoint, tokens: int) -> int:
    """Return the rows of the teacher's head, which a run will ask for."""
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("vocab_size") or tokens)


def _fill(cache: TeacherCache, records: Iterator[Sparse], source: Path) -> ImportReport:
    count = positions = whole = 0
    mass = over = 0.0
    with cache.writing():
        for number, record in enumerate(records):
            where = f"{source} row {number}"
            tail = _tail_of(record, where)
            over = max(over, float((-tail).max(initial=0.0)))
            rows = np.zeros(len(record.positions), cache.dtype)
            rows["ids"], rows["logprobs"] = record.tokens, record.logprobs
            with np.errstate(divide="ignore"):
                rows["tail"] = np.log(tail.clip(0))
            _check_ids(record, cache.header.vocabulary, where)
            lesson = Lesson(f"{source.name}:{number}", record.ids, record.positions)
            if lesson not in cache:
                cache.add(lesson, rows)
            count, positions = count + 1, positions + len(rows)
            mass, whole = mass + float(tail.clip(0).sum()), whole + int((tail < _WHOLE).sum())
    k = cache.header.width
    return ImportReport(count, positions, k, mass / max(positions, 1), whole, over)


def _tail_of(record: Sparse, where: str) -> npt.NDArray[np.float64]:
    """Return 1 minus the mass of the k tokens, (N,); a little below 0 is rounding.

    Raises:
        DataError: If they are no log-probabilities.
    """
    if not np.isfinite(record.logprobs).all() and not _is_padded(record.logprobs):
        at = int(record.positions[int(np.argwhere(np.isnan(record.logprobs))[0, 0])])
        raise odd_row(
            where, "logprobs", f"not a number at position {at}", "finite numbers, or -inf"
        )
    tail: npt.NDArray[np.float64] = 1 - np.exp(record.logprobs).sum(-1)
    if len(tail) and float(tail.min()) < -0.05:
        at = int(record.positions[int(tail.argmin())])
        raise odd_row(
            where,
            "logprobs",
            f"probabilities that sum to {1 - float(tail.min()):.3f} at position {at}",
            "natural logarithms of probabilities, whose sum is at most 1",
        )
    return tail


def _is_padded(logprobs: npt.NDArray[np.float64]) -> bool:
    return not np.isnan(logprobs).any() and not np.isposinf(logprobs).any()


def _check_ids(record: Sparse, vocabulary: int, where: str) -> None:
    if (
        len(record.tokens)
        and not 0 <= int(record.tokens.min()) <= int(record.tokens.max()) < vocabulary
    ):
        raise odd_row(
            where,
            "target_token_ids",
            f"token {int(record.tokens.max())}",
            f"ids below the teacher's vocabulary of {vocabulary}",
        )
