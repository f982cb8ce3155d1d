"""Import of log-probabilities from axolotl and DistillKit into a logit cache.

The mass outside the k tokens becomes the tail, 1 minus their sum. Log-probabilities that were
renormalized before they were written have no tail, and the report says so. The formats are read by
``axolotl`` and ``distillkit``.
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
from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.logit_cache.axolotl import read_axolotl
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.logit_cache.distillkit import read_distillkit
from stillroom.distill.logit_cache.sparse_logprobs import SparseLogprobs
from stillroom.distill.logit_cache.storage import UNKNOWN, CacheHeader
from stillroom.errors import RecipeError, count_noun
from stillroom.models import resolve_checkpoint
from stillroom.models.local.causal_lm import load_tokenizer

__all__ = ["ImportReport", "import_cache"]

ImportFormat = Literal["axolotl", "distillkit"]
_MASS_TOLERANCE = 1e-6  # a smaller tail counts as none


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Numbers of added records and positions, k, and statistics of the mass.

    ``widest`` is the largest number of tokens of a position, of which the likeliest k were kept;
    ``known`` the number of the file's positions that the cache, or an earlier row, had already.
    ``tail`` is the mean mass outside the k tokens; ``whole`` the number of positions without any,
    which indicates renormalization. ``over`` is the largest excess of a sum over 1, which was
    removed.
    """

    records: int
    positions: int
    k: int
    tail: float
    whole: int
    over: float
    widest: int
    known: int

    def to_json(self) -> dict[str, Any]:
        """Return the report by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a summary of one to four lines."""
        line = (
            f"{self.records} records, {self.positions} positions, k {self.k}, tail {self.tail:.4f}"
        )
        if self.widest > self.k:
            line += (
                f"\npositions have up to {self.widest} tokens: the likeliest {self.k} of each were "
                "kept, as many as the shortest has"
            )
        if self.known:
            line += f"\n{count_noun(self.known, 'position')} of the file already in the cache"
        if self.whole:
            line += (
                f"\n{self.whole} positions have no mass outside their {self.k} tokens: they were "
                "renormalized, which biases a student towards those tokens"
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
    """Create a cache of mode top_k from another tool's file or folder.

    Args:
        source: A JSON lines file, or a parquet file or folder of them.
        out: Folder of the cache; existing records are kept.
        format: Format of ``source``.
        teacher: Checkpoint of the teacher; its fingerprint is written to the header.
        tokenizer: Checkpoint with the tokenizer of the ids; empty is the teacher's.
        temperature: Temperature by which the teacher's logits were divided.
        license: License of the teacher; empty reads its model card.
        logprob_dtype: Storage type.
        say: Called with the location of the teacher, and with damage of a cache that is there.

    Raises:
        DataError: If a row does not follow the format; file, row and field are named.
        RecipeError: If the format is not known.
        CheckpointError: If teacher or tokenizer is not found.
    """
    records, k, widest = _read_records(format, source)
    checkpoint = Checkpoint.open(resolve_checkpoint(teacher, say=say))
    tokenizer_checkpoint = (
        Checkpoint.open(resolve_checkpoint(tokenizer, say=say)) if tokenizer else checkpoint
    )
    vocabulary = len(load_tokenizer(tokenizer_checkpoint.folder).get_vocab())
    # The number of rows of the teacher's head, which a run expects.
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    header = CacheHeader(
        teacher=checkpoint.fingerprint,
        tokenizer=tokenizer_checkpoint.tokenizer_digest,
        template=UNKNOWN,
        vocabulary=int(config.get("vocab_size") or vocabulary),
        mode="top_k",
        width=k,
        temperature=temperature,
        precision=UNKNOWN,
        logprob_dtype=logprob_dtype,
        license=license or checkpoint.license,
        about={"reference": teacher, "name": teacher.rpartition("/")[2], "file": source.name},
        source=format,
    )
    with LogitCache.open(out, header, on_damage=say) as cache:
        return _write_records(cache, records, source, widest)


def _read_records(format: ImportFormat, source: Path) -> tuple[Iterator[SparseLogprobs], int, int]:
    """Return the records, the number of tokens to keep of a position, and the largest there is."""
    if format == "axolotl":
        return read_axolotl(source)
    if format == "distillkit":
        records, k = read_distillkit(source)
        return records, k, k
    raise RecipeError(
        f"unknown format of log-probabilities: {format!r}",
        code="distill.import-format",
        expected="axolotl or distillkit",
        next="use one of those",
    )


def _write_records(
    cache: LogitCache, records: Iterator[SparseLogprobs], source: Path, widest: int
) -> ImportReport:
    positions = renormalized = 0
    mass = excess = 0.0
    with cache.writing():
        known_records, known_positions = len(cache), cache.rows
        for number, record in enumerate(records):
            where = f"{source} row {number}"
            tail = record.compute_tail(where)
            excess = max(excess, float((-tail).max(initial=0.0)))
            rows = np.zeros(len(record.positions), cache.dtype)
            rows["ids"], rows["logprobs"] = record.tokens, record.logprobs
            with np.errstate(divide="ignore"):
                rows["tail"] = np.log(tail.clip(0))
            record.check_tokens(cache.header.vocabulary, where)
            tokenized = TokenizedRecord(f"{source.name}:{number}", record.ids, record.positions)
            _add(cache, tokenized, rows)
            positions += len(rows)
            mass += float(tail.clip(0).sum())
            renormalized += int((tail < _MASS_TOLERANCE).sum())
        count, added = len(cache) - known_records, cache.rows - known_positions
    k = cache.header.width
    tail_mass = mass / max(positions, 1)
    return ImportReport(count, added, k, tail_mass, renormalized, excess, widest, positions - added)


def _add(cache: LogitCache, record: TokenizedRecord, rows: npt.NDArray[np.void]) -> None:
    """Add a record that is not cached, next to the other positions cached for its tokens."""
    for joined in cache.lacking([record]):
        stored = np.setdiff1d(joined.positions, record.positions)
        merged = np.empty(len(joined.positions), cache.dtype)
        is_new = np.isin(joined.positions, record.positions)
        merged[is_new] = rows
        if len(stored):
            merged[~is_new] = cache.read(TokenizedRecord(record.record_id, record.ids, stored))
        cache.add(joined, merged)
