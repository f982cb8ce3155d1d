"""Import of log-probabilities from axolotl and DistillKit into a logit cache.

The mass outside the k tokens becomes the tail, 1 minus their sum. Log-probabilities that were
renormalized before they were written have no tail, and the report says so.

axolotl: JSON lines of its knowledge distillation plugin with ``input_ids`` and, per position,
``target_token_ids``, ``target_logprobs`` and ``target_mask``; or ``logprobs`` as lists of
``{"token": "token_id:N", "logprob": X}``, the format of vLLM. Row t predicts token t, because
axolotl shifts in training, so a target of position t becomes position t - 1 here. If there are
fewer rows than tokens, they belong to the last tokens.

DistillKit: parquet rows with ``input_ids`` and, per position, two byte strings.
``bytepacked_indices`` contains the k token ids, most significant bit first, with as many bits each
as the vocabulary needs. ``compressed_logprobs`` contains the first ``exact_k`` log-probabilities in
``exact_dtype``; coefficients of ``polynomial_terms`` in ``term_dtype``, whose sum over the terms of
the rank gives the others; then a scale and small signed integers for each of ``residual_bins``,
which are added. With ``delta_encoding`` all of these encode differences to the preceding rank. The
layout is given by ``compression_config.yaml`` next to the file. Row t predicts token t + 1.

Everything is evaluated in float64: the terms of the usual configuration differ by nine orders of
magnitude and cancel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.logit_cache.storage import UNKNOWN, CacheHeader
from stillroom.errors import DataError, RecipeError
from stillroom.models import resolve_checkpoint
from stillroom.models.local.causal_lm import load_tokenizer

__all__ = [
    "CompressionConfig",
    "ImportReport",
    "QuantizedResiduals",
    "SparseLogprobs",
    "import_cache",
    "read_distillkit",
    "unpack_bits",
]

ImportFormat = Literal["axolotl", "distillkit"]
_MASS_TOLERANCE = 1e-6  # a smaller tail counts as none


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Numbers of imported records and positions, k, and statistics of the mass.

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

    def to_json(self) -> dict[str, Any]:
        """Return the report by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a summary of one or two lines."""
        line = (
            f"{self.records} records, {self.positions} positions, k {self.k}, tail {self.tail:.4f}"
        )
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
        say: Called with the location of the teacher.

    Raises:
        DataError: If a row does not follow the format; file, row and field are named.
        RecipeError: If the format is not known.
        CheckpointError: If teacher or tokenizer is not found.
    """
    records, k = _read_records(format, source)
    checkpoint = Checkpoint.open(resolve_checkpoint(teacher, say=say))
    tokenizer_checkpoint = (
        Checkpoint.open(resolve_checkpoint(tokenizer, say=say)) if tokenizer else checkpoint
    )
    vocabulary = len(load_tokenizer(tokenizer_checkpoint.folder).get_vocab())
    header = CacheHeader(
        teacher=checkpoint.fingerprint,
        tokenizer=tokenizer_checkpoint.tokenizer_digest,
        template=UNKNOWN,
        vocabulary=_count_vocabulary(checkpoint, vocabulary),
        mode="top_k",
        width=k,
        temperature=temperature,
        precision=UNKNOWN,
        logprob_dtype=logprob_dtype,
        license=license or checkpoint.license,
        about={"reference": teacher, "name": teacher.rpartition("/")[2], "file": source.name},
        source=format,
    )
    with LogitCache.open(out, header) as cache:
        return _write_records(cache, records, source)


def _read_records(format: ImportFormat, source: Path) -> tuple[Iterator[SparseLogprobs], int]:
    if format == "axolotl":
        return _read_axolotl(source)
    if format == "distillkit":
        return read_distillkit(source)
    raise RecipeError(
        f"unknown format of log-probabilities: {format!r}",
        code="distill.import-format",
        expected="axolotl or distillkit",
        next="use one of those",
    )


def _count_vocabulary(checkpoint: Checkpoint, tokens: int) -> int:
    """Return the number of rows of the teacher's head, which a run expects."""
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("vocab_size") or tokens)


def _write_records(
    cache: LogitCache, records: Iterator[SparseLogprobs], source: Path
) -> ImportReport:
    count = positions = renormalized = 0
    mass = excess = 0.0
    with cache.writing():
        for number, record in enumerate(records):
            where = f"{source} row {number}"
            tail = _compute_tail(record, where)
            excess = max(excess, float((-tail).max(initial=0.0)))
            rows = np.zeros(len(record.positions), cache.dtype)
            rows["ids"], rows["logprobs"] = record.tokens, record.logprobs
            with np.errstate(divide="ignore"):
                rows["tail"] = np.log(tail.clip(0))
            _check_ids(record, cache.header.vocabulary, where)
            tokenized = TokenizedRecord(f"{source.name}:{number}", record.ids, record.positions)
            if tokenized not in cache:
                cache.add(tokenized, rows)
            count, positions = count + 1, positions + len(rows)
            mass, renormalized = (
                mass + float(tail.clip(0).sum()),
                renormalized + int((tail < _MASS_TOLERANCE).sum()),
            )
    k = cache.header.width
    return ImportReport(count, positions, k, mass / max(positions, 1), renormalized, excess)


def _compute_tail(record: SparseLogprobs, where: str) -> npt.NDArray[np.float64]:
    """Return 1 minus the mass of the k tokens, (N,); slightly below 0 by rounding.

    Raises:
        DataError: If the values are not log-probabilities.
    """
    if not np.isfinite(record.logprobs).all() and not _is_padded(record.logprobs):
        position = int(record.positions[int(np.argwhere(np.isnan(record.logprobs))[0, 0])])
        raise _malformed_row_error(
            where, "logprobs", f"not a number at position {position}", "finite numbers, or -inf"
        )
    tail: npt.NDArray[np.float64] = 1 - np.exp(record.logprobs).sum(-1)
    if len(tail) and float(tail.min()) < -0.05:
        position = int(record.positions[int(tail.argmin())])
        raise _malformed_row_error(
            where,
            "logprobs",
            f"probabilities that sum to {1 - float(tail.min()):.3f} at position {position}",
            "natural logarithms of probabilities, whose sum is at most 1",
        )
    return tail


def _is_padded(logprobs: npt.NDArray[np.float64]) -> bool:
    return not np.isnan(logprobs).any() and not np.isposinf(logprobs).any()


def _check_ids(record: SparseLogprobs, vocabulary: int, where: str) -> None:
    if (
        len(record.tokens)
        and not 0 <= int(record.tokens.min()) <= int(record.tokens.max()) < vocabulary
    ):
        raise _malformed_row_error(
            where,
            "target_token_ids",
            f"token {int(record.tokens.max())}",
            f"ids below the teacher's vocabulary of {vocabulary}",
        )


@dataclass(frozen=True, slots=True)
class SparseLogprobs:
    """One record: token ids (T,), positions (N,), and top-k ids and log-probabilities, (N, k)."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64]


def _malformed_row_error(where: str, field: str, actual: str, expected: str) -> DataError:
    """Return the error of a row that does not follow its tool's format."""
    return DataError(
        f"{field}: {actual}",
        code="distill.import-row",
        where=f"{where} {field}",
        expected=expected,
        next="check the export, and that --format names its tool",
    )


_PADDING = -1e8  # axolotl fills missing entries with -1e9


def _read_axolotl(path: Path) -> tuple[Iterator[SparseLogprobs], int]:
    """Read the records of a JSON lines file; k is that of the first position."""
    first = next(_read_lines(path), None)
    if first is None:
        raise _malformed_row_error(
            str(path), "file", "no row", "JSON lines with input_ids and logprobs"
        )
    k = _parse_record(first, 0, f"{path} row 0").tokens.shape[1]
    rows = (
        _parse_record(row, k, f"{path} row {number}")
        for number, row in enumerate(_read_lines(path))
    )
    return rows, k


def _read_lines(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise DataError(
            f"{path} is not a file",
            code="data.missing",
            expected="a JSON lines file written by axolotl",
            next="check the path",
        )
    with path.open(encoding="utf-8", errors="replace") as file:  # invalid JSON is reported by row
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise _malformed_row_error(
                    f"{path} row {number}", "line", "invalid JSON", "one object"
                ) from error


def _parse_record(row: Any, k: int, where: str) -> SparseLogprobs:
    if not isinstance(row, dict) or not isinstance(row.get("input_ids"), list):
        raise _malformed_row_error(
            where, "input_ids", "not a list", "the token ids that the targets belong to"
        )
    ids = np.asarray(row["input_ids"], dtype=np.int64)
    tokens, logprobs, mask = _parse_targets(row, where)
    skipped = len(ids) - len(
        tokens
    )  # axolotl pads on the left: the last target is the last token's
    if skipped < 0:
        raise _malformed_row_error(
            where, "target_logprobs", f"{len(tokens)} rows", f"at most {len(ids)}"
        )
    indices = [
        index
        for index in range(len(tokens))
        if mask[index] and index + skipped > 0 and tokens[index]
    ]
    width = k or max((len(tokens[index]) for index in indices), default=0)
    if not indices or not width:
        raise _malformed_row_error(where, "target_mask", "no counted position", "at least one")
    filled = [
        _parse_position(tokens[index], logprobs[index], width, f"{where} position {index}")
        for index in indices
    ]
    return SparseLogprobs(
        ids,
        np.asarray(indices, dtype=np.int64) + skipped - 1,
        np.asarray([part for part, _ in filled], dtype=np.int64),
        np.asarray([part for _, part in filled], dtype=np.float64),
    )


def _parse_targets(row: dict[str, Any], where: str) -> tuple[list[Any], list[Any], list[bool]]:
    """Return tokens and log-probabilities per position, and which positions count."""
    if "target_token_ids" in row:
        tokens, logprobs = row["target_token_ids"], row.get("target_logprobs")
        if not isinstance(logprobs, list) or len(logprobs) != len(tokens):
            raise _malformed_row_error(
                where, "target_logprobs", "another length", f"{len(tokens)} rows"
            )
        mask = row.get("target_mask") or [[1]] * len(tokens)
        counts = [bool(any(entry) if isinstance(entry, list) else entry) for entry in mask]
        return tokens, logprobs, counts
    entries = row.get("logprobs")
    if not isinstance(entries, list):
        raise _malformed_row_error(
            where, "target_token_ids", "missing", "target_token_ids, or logprobs"
        )
    try:
        tokens = [[int(str(e["token"]).split(":")[1]) for e in entry or ()] for entry in entries]
        logprobs = [[float(e["logprob"]) for e in entry or ()] for entry in entries]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        expected = 'entries {"token": "token_id:N", "logprob": X}'
        raise _malformed_row_error(where, "logprobs", "other entries", expected) from error
    return tokens, logprobs, [bool(entry) for entry in tokens]


def _parse_position(
    tokens: Sequence[int], logprobs: Sequence[float], k: int, where: str
) -> tuple[list[int], list[float]]:
    """Return the k most likely, by descending probability; missing entries are -inf."""
    named = dict(zip(map(int, tokens), map(float, logprobs), strict=True))
    present = [
        (token, value) for token, value in named.items() if not value <= _PADDING
    ]  # NaN stays
    pairs = sorted(present, key=lambda pair: -pair[1])[:k]
    if not pairs:
        raise _malformed_row_error(
            where, "target_logprobs", "no number", "at least one log-probability"
        )
    used = {token for token, _ in pairs}
    spare = (token for token in range(2 * k + 1) if token not in used)
    pairs += [(next(spare), -math.inf) for _ in range(k - len(pairs))]
    return [token for token, _ in pairs], [value for _, value in pairs]


CONFIG_FILE = "compression_config.yaml"
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
FloatType = Literal["float16", "bfloat16", "float32", "float64"]
_FLOAT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class QuantizedResiduals(BaseModel):
    """Encoding of the residuals of some ranks: one scale, then integers of few bits."""

    scale_dtype: FloatType
    element_bits: int = Field(ge=1, le=64)
    num_elements: int = Field(gt=0)


class CompressionConfig(BaseModel):
    """The fields of ``compression_config.yaml``."""

    model_config = ConfigDict(extra="forbid")

    d: int = Field(gt=0)
    k: int = Field(gt=0)
    exact_k: int = Field(ge=0)
    exact_dtype: FloatType = "float32"
    polynomial_terms: list[int | Literal["sqrt", "exp"]] | None = None
    term_dtype: FloatType = "float32"
    residual_bins: list[QuantizedResiduals] = Field(default_factory=list)
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @property
    def id_bits(self) -> int:
        """Bits of one token id."""
        return max((self.d - 1).bit_length(), 0)

    def decode(self, data: Bytes) -> Floats:
        """Decode packed bytes, (N, L), to log-probabilities, (N, k).

        Raises:
            ValueError: If there are too few bytes.
        """
        reader = _BitReader(data)
        values = np.zeros((len(data), self.k))
        values[:, : self.exact_k] = reader.floats(self.exact_dtype, self.exact_k)
        others = values[:, self.exact_k :]
        if self.polynomial_terms:
            factors = reader.floats(self.term_dtype, len(self.polynomial_terms))
            others += factors @ self._terms(others.shape[1]).T
        start = 0
        for bins in self.residual_bins:
            others[:, start : start + bins.num_elements] += reader.residuals(bins)
            start += bins.num_elements
        return values.cumsum(-1) if self.delta_encoding else values

    def _terms(self, count: int) -> Floats:
        """Evaluate each term at ranks 0 to count - 1, or over [0, 1], (count, terms)."""
        ranks = np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=np.float64)
        special = {"sqrt": np.sqrt, "exp": np.exp}
        columns = [
            special[term](ranks) if isinstance(term, str) else ranks**term
            for term in self.polynomial_terms or ()
        ]
        return np.stack(columns, -1)


class _BitReader:
    """Sequential reader of fields of packed bytes, (N, L)."""

    def __init__(self, data: Bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> Bytes:
        if self.at + count > self.data.shape[1]:
            raise ValueError(f"{self.data.shape[1]} bytes, at least {self.at + count} needed")
        part = self.data[:, self.at : self.at + count]
        self.at += count
        return part

    def floats(self, kind: FloatType, count: int) -> Floats:
        raw = np.ascontiguousarray(self.take(count * _FLOAT_BYTES[kind]))
        if kind == "bfloat16":  # the upper half of a float32
            wide = raw.reshape(len(raw), -1).view("<u2").astype("<u4") << 16
            return wide.view("<f4").astype(np.float64)
        values: Floats = raw.view(f"<f{_FLOAT_BYTES[kind]}").astype(np.float64)
        return values

    def residuals(self, bins: QuantizedResiduals) -> Floats:
        scale = self.floats(bins.scale_dtype, 1)
        packed = self.take((bins.num_elements * bins.element_bits + 7) // 8)
        steps = unpack_bits(packed, bins.element_bits, bins.num_elements).astype(np.float64)
        if bins.element_bits == 1:
            return (2 * steps - 1) * scale
        return (steps - 2.0 ** (bins.element_bits - 1)) * scale


def unpack_bits(packed: Bytes, bits: int, count: int) -> npt.NDArray[np.int64]:
    """Unpack ``count`` integers of ``bits`` bits, most significant first, (N, count).

    Raises:
        ValueError: If there are too few bytes.
    """
    if count * bits > packed.shape[1] * 8:
        raise ValueError(f"{packed.shape[1]} bytes are too few for {count} numbers of {bits} bits")
    flat = np.unpackbits(np.ascontiguousarray(packed), axis=1)[:, : count * bits]
    powers = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    integers: npt.NDArray[np.int64] = (
        flat.reshape(len(packed), count, bits).astype(np.int64) @ powers
    )
    return integers


def read_distillkit(path: Path) -> tuple[Iterator[SparseLogprobs], int]:
    """Read the records of a parquet file, or of a folder of them, and their k.

    Raises:
        DataError: If there is no parquet file or no configuration, or, while iterating, if a row
            does not match it.
    """
    folder = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise _malformed_row_error(
            str(path), "file", "no parquet file", "the output of DistillKit's sampling"
        )
    config = _read_config(folder / CONFIG_FILE)
    return _read_tables(files, config), config.k


def _read_config(path: Path) -> CompressionConfig:
    if not path.is_file():
        raise _malformed_row_error(
            str(path), CONFIG_FILE, "missing", "the configuration next to the parquet files"
        )
    try:
        return CompressionConfig.model_validate(YAML(typ="safe", pure=True).load(path))
    except (ValidationError, YAMLError) as error:
        lines = str(error).splitlines()
        detail = " ".join(lines[1:3]) if isinstance(error, ValidationError) else lines[0]
        raise _malformed_row_error(
            str(path), CONFIG_FILE, detail, "the fields of DistillKit 1"
        ) from error


def _read_tables(files: list[Path], config: CompressionConfig) -> Iterator[SparseLogprobs]:
    import pyarrow.parquet as pq

    for file in files:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=16):
            for row in range(batch.num_rows):
                where = f"{file} row {number}"
                yield _decode_record(batch, row, config, where)
                number += 1


def _decode_record(batch: Any, row: int, config: CompressionConfig, where: str) -> SparseLogprobs:
    parts = {}
    for name in ("compressed_logprobs", "bytepacked_indices"):
        if name not in batch.schema.names:
            raise _malformed_row_error(
                where, name, "missing", "input_ids, compressed_logprobs, bytepacked_indices"
            )
        parts[name] = _stack_bytes(batch.column(name)[row], where, name)
    ids = np.asarray(batch.column("input_ids")[row].values, dtype=np.int64)
    count = min(len(ids) - 1, *(len(part) for part in parts.values()))
    if count < 1:
        raise _malformed_row_error(
            where, "input_ids", f"{len(ids)} tokens", "at least two, and a row for the first"
        )
    try:
        logprobs = config.decode(parts["compressed_logprobs"][:count])
        tokens = unpack_bits(parts["bytepacked_indices"][:count], config.id_bits, config.k)
    except ValueError as error:
        raise _malformed_row_error(
            where, "compressed_logprobs", str(error), f"rows that match {CONFIG_FILE}"
        ) from error
    return SparseLogprobs(ids, np.arange(count, dtype=np.int64), tokens, logprobs)


def _stack_bytes(rows: Any, where: str, name: str) -> Bytes:
    """Convert a list of equally long lists of bytes to an array, without Python numbers."""
    lists = rows.values
    flat = np.asarray(lists.flatten(), dtype=np.uint8)
    count = len(lists)
    if not count or len(flat) % count or set(np.diff(lists.offsets)) != {len(flat) // count}:
        raise _malformed_row_error(
            where, name, "rows of several lengths", "the same number of bytes at every position"
        )
    return flat.reshape(count, -1)
