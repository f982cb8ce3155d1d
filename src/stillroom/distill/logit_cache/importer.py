"""Import of log-probabilities from axolotl and DistillKit into a logit cache.

The formats are described where they are read, in ``cache_import_axolotl`` and
``cache_import_distillkit``.

The mass outside the k tokens becomes the tail, 1 minus their sum: log-probabilities that were
renormalized before they were written have none, and the report says so.

JSON lines of its knowledge distillation plugin: ``input_ids`` and, a position each,
``target_token_ids``, ``target_logprobs`` and ``target_mask``; or ``logprobs`` as lists of
``{"token": "token_id:N", "logprob": X}``, as vLLM gave them. Row t predicts token t: axolotl
shifts when it trains, so that a target of position t belongs to our position t - 1. Fewer rows than
tokens belong to the last tokens.

A parquet row holds ``input_ids`` and, a position each, two byte strings. ``bytepacked_indices``:
the k token ids, most significant bit first, as many bits each as the vocabulary needs.
``compressed_logprobs``: the first ``exact_k`` log-probabilities in ``exact_dtype``; coefficients of
``polynomial_terms`` in ``term_dtype``, whose sum over the terms of the rank gives the others; then
a scale and small signed integers for every one of ``residual_bins``, added on top. With
``delta_encoding`` all of that codes differences to the rank before. ``compression_config.yaml``
beside the file says which. Row t predicts token t + 1.

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
    "malformed_row_error",
    "read_axolotl",
    "read_distillkit",
    "unpack_bits",
]


ImportFormat = Literal["axolotl", "distillkit"]


_MASS_TOLERANCE = 1e-6  # a tail below this is taken for none


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
    records, k = _read_records(format, source)
    checkpoint = Checkpoint.open(resolve_checkpoint(teacher, say=say))
    named = Checkpoint.open(resolve_checkpoint(tokenizer, say=say)) if tokenizer else checkpoint
    vocabulary = len(load_tokenizer(named.folder).get_vocab())
    header = CacheHeader(
        teacher=checkpoint.fingerprint,
        tokenizer=named.tokenizer_digest,
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
        return read_axolotl(source)
    if format == "distillkit":
        return read_distillkit(source)
    raise RecipeError(
        f"{format!r} is no format of log-probabilities",
        code="distill.import-format",
        expected="axolotl or distillkit",
        next="use one of those",
    )


def _count_vocabulary(checkpoint: Checkpoint, tokens: int) -> int:
    """Return the rows of the teacher's head, which a run will ask for."""
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("vocab_size") or tokens)


def _write_records(
    cache: LogitCache, records: Iterator[SparseLogprobs], source: Path
) -> ImportReport:
    count = positions = whole = 0
    mass = over = 0.0
    with cache.writing():
        for number, record in enumerate(records):
            where = f"{source} row {number}"
            tail = _compute_tail(record, where)
            over = max(over, float((-tail).max(initial=0.0)))
            rows = np.zeros(len(record.positions), cache.dtype)
            rows["ids"], rows["logprobs"] = record.tokens, record.logprobs
            with np.errstate(divide="ignore"):
                rows["tail"] = np.log(tail.clip(0))
            _check_ids(record, cache.header.vocabulary, where)
            lesson = TokenizedRecord(f"{source.name}:{number}", record.ids, record.positions)
            if lesson not in cache:
                cache.add(lesson, rows)
            count, positions = count + 1, positions + len(rows)
            mass, whole = (
                mass + float(tail.clip(0).sum()),
                whole + int((tail < _MASS_TOLERANCE).sum()),
            )
    k = cache.header.width
    return ImportReport(count, positions, k, mass / max(positions, 1), whole, over)


def _compute_tail(record: SparseLogprobs, where: str) -> npt.NDArray[np.float64]:
    """Return 1 minus the mass of the k tokens, (N,); a little below 0 is rounding.

    Raises:
        DataError: If they are no log-probabilities.
    """
    if not np.isfinite(record.logprobs).all() and not _is_padded(record.logprobs):
        at = int(record.positions[int(np.argwhere(np.isnan(record.logprobs))[0, 0])])
        raise malformed_row_error(
            where, "logprobs", f"not a number at position {at}", "finite numbers, or -inf"
        )
    tail: npt.NDArray[np.float64] = 1 - np.exp(record.logprobs).sum(-1)
    if len(tail) and float(tail.min()) < -0.05:
        at = int(record.positions[int(tail.argmin())])
        raise malformed_row_error(
            where,
            "logprobs",
            f"probabilities that sum to {1 - float(tail.min()):.3f} at position {at}",
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
        raise malformed_row_error(
            where,
            "target_token_ids",
            f"token {int(record.tokens.max())}",
            f"ids below the teacher's vocabulary of {vocabulary}",
        )


@dataclass(frozen=True, slots=True)
class SparseLogprobs:
    """One record: token ids (T,), positions (N,), and ids and log-probabilities there, (N, k)."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64]


def malformed_row_error(where: str, field: str, found: str, expected: str) -> DataError:
    """Return the error of a row that is not as its tool documents."""
    return DataError(
        f"{field}: {found}",
        code="distill.import-row",
        where=f"{where} {field}",
        expected=expected,
        next="check how the file was made, and that --format names its tool",
    )


_PADDING = -1e8  # axolotl fills places without a token with -1e9


def read_axolotl(path: Path) -> tuple[Iterator[SparseLogprobs], int]:
    """Return the records of a JSON lines file, and their k: that of the first position.

    Raises:
        DataError: If the file holds no row; later, if a row is not as documented.
    """
    first = next(_read_lines(path), None)
    if first is None:
        raise malformed_row_error(
            str(path), "file", "no row", "JSON lines with input_ids and logprobs"
        )
    k = _parse_record(first, 0, f"{path} row 0").tokens.shape[1]
    rows = (_parse_record(row, k, f"{path} row {at}") for at, row in enumerate(_read_lines(path)))
    return rows, k


def _read_lines(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise DataError(
            f"{path} is not a file",
            code="data.missing",
            expected="the JSON lines that axolotl wrote",
            next="check the path",
        )
    with path.open(encoding="utf-8", errors="replace") as file:  # no JSON is told by its row
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise malformed_row_error(
                    f"{path} row {number}", "line", "no JSON", "one object"
                ) from error


def _parse_record(row: Any, k: int, where: str) -> SparseLogprobs:
    if not isinstance(row, dict) or not isinstance(row.get("input_ids"), list):
        raise malformed_row_error(
            where, "input_ids", "no list", "the token ids that the targets belong to"
        )
    ids = np.asarray(row["input_ids"], dtype=np.int64)
    tokens, logprobs, mask = _parse_targets(row, where)
    skipped = len(ids) - len(
        tokens
    )  # axolotl pads on the left: the last target is the last token's
    if skipped < 0:
        raise malformed_row_error(
            where, "target_logprobs", f"{len(tokens)} rows", f"at most {len(ids)}"
        )
    kept = [at for at in range(len(tokens)) if mask[at] and at + skipped > 0 and tokens[at]]
    width = k or max((len(tokens[at]) for at in kept), default=0)
    if not kept or not width:
        raise malformed_row_error(where, "target_mask", "no position that counts", "at least one")
    filled = [
        _parse_position(tokens[at], logprobs[at], width, f"{where} position {at}") for at in kept
    ]
    return SparseLogprobs(
        ids,
        np.asarray(kept, dtype=np.int64) + skipped - 1,
        np.asarray([one for one, _ in filled], dtype=np.int64),
        np.asarray([one for _, one in filled], dtype=np.float64),
    )


def _parse_targets(row: dict[str, Any], where: str) -> tuple[list[Any], list[Any], list[bool]]:
    """Return tokens and log-probabilities a position, and which positions count."""
    if "target_token_ids" in row:
        tokens, logprobs = row["target_token_ids"], row.get("target_logprobs")
        if not isinstance(logprobs, list) or len(logprobs) != len(tokens):
            raise malformed_row_error(
                where, "target_logprobs", "another length", f"{len(tokens)} rows"
            )
        mask = row.get("target_mask") or [[1]] * len(tokens)
        counts = [bool(any(one) if isinstance(one, list) else one) for one in mask]
        return tokens, logprobs, counts
    entries = row.get("logprobs")
    if not isinstance(entries, list):
        raise malformed_row_error(
            where, "target_token_ids", "missing", "target_token_ids, or logprobs"
        )
    try:
        tokens = [[int(str(e["token"]).split(":")[1]) for e in one or ()] for one in entries]
        logprobs = [[float(e["logprob"]) for e in one or ()] for one in entries]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        expected = 'entries {"token": "token_id:N", "logprob": X}'
        raise malformed_row_error(where, "logprobs", "other entries", expected) from error
    return tokens, logprobs, [bool(one) for one in tokens]


def _parse_position(
    tokens: Sequence[int], logprobs: Sequence[float], k: int, where: str
) -> tuple[list[int], list[float]]:
    """Return the k likeliest by falling probability; places without a token hold -inf."""
    named = dict(zip(map(int, tokens), map(float, logprobs), strict=True))
    held = [(token, value) for token, value in named.items() if not value <= _PADDING]  # NaN stays
    pairs = sorted(held, key=lambda pair: -pair[1])[:k]
    if not pairs:
        raise malformed_row_error(
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
    """How the residuals of some ranks are kept: one scale, then integers of few bits."""

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
        """Return log-probabilities, (N, k), of packed bytes, (N, L).

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
        for one in self.residual_bins:
            others[:, start : start + one.num_elements] += reader.residuals(one)
            start += one.num_elements
        return values.cumsum(-1) if self.delta_encoding else values

    def _terms(self, count: int) -> Floats:
        """Return each term at ranks 0 to count - 1, or over [0, 1], (count, terms)."""
        at = np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=np.float64)
        special = {"sqrt": np.sqrt, "exp": np.exp}
        columns = [
            special[term](at) if isinstance(term, str) else at**term
            for term in self.polynomial_terms or ()
        ]
        return np.stack(columns, -1)


class _BitReader:
    """Takes fields off the front of packed bytes, (N, L)."""

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
        found: Floats = raw.view(f"<f{_FLOAT_BYTES[kind]}").astype(np.float64)
        return found

    def residuals(self, one: QuantizedResiduals) -> Floats:
        scale = self.floats(one.scale_dtype, 1)
        packed = self.take((one.num_elements * one.element_bits + 7) // 8)
        steps = unpack_bits(packed, one.element_bits, one.num_elements).astype(np.float64)
        if one.element_bits == 1:
            return (2 * steps - 1) * scale
        return (steps - 2.0 ** (one.element_bits - 1)) * scale


def unpack_bits(packed: Bytes, bits: int, count: int) -> npt.NDArray[np.int64]:
    """Return ``count`` integers of ``bits`` bits, most significant first, (N, count).

    Raises:
        ValueError: If there are too few bytes.
    """
    if count * bits > packed.shape[1] * 8:
        raise ValueError(f"{packed.shape[1]} bytes hold no {count} numbers of {bits} bits")
    flat = np.unpackbits(np.ascontiguousarray(packed), axis=1)[:, : count * bits]
    powers = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    found: npt.NDArray[np.int64] = flat.reshape(len(packed), count, bits).astype(np.int64) @ powers
    return found


def read_distillkit(path: Path) -> tuple[Iterator[SparseLogprobs], int]:
    """Return the records of a parquet file, or of a folder of them, and their k.

    Raises:
        DataError: If there is no parquet or no configuration; later, if a row does not fit it.
    """
    folder = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise malformed_row_error(
            str(path), "file", "no parquet", "what DistillKit's sampling writes"
        )
    config = _read_config(folder / CONFIG_FILE)
    return _read_tables(files, config), config.k


def _read_config(path: Path) -> CompressionConfig:
    if not path.is_file():
        raise malformed_row_error(
            str(path), CONFIG_FILE, "missing", "the configuration beside the parquet files"
        )
    try:
        return CompressionConfig.model_validate(YAML(typ="safe", pure=True).load(path))
    except (ValidationError, YAMLError) as error:
        said = str(error).splitlines()
        detail = " ".join(said[1:3]) if isinstance(error, ValidationError) else said[0]
        raise malformed_row_error(
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
            raise malformed_row_error(
                where, name, "missing", "input_ids, compressed_logprobs, bytepacked_indices"
            )
        parts[name] = _stack_bytes(batch.column(name)[row], where, name)
    ids = np.asarray(batch.column("input_ids")[row].values, dtype=np.int64)
    count = min(len(ids) - 1, *(len(part) for part in parts.values()))
    if count < 1:
        raise malformed_row_error(
            where, "input_ids", f"{len(ids)} tokens", "at least two, and a row for the first"
        )
    try:
        logprobs = config.decode(parts["compressed_logprobs"][:count])
        tokens = unpack_bits(parts["bytepacked_indices"][:count], config.id_bits, config.k)
    except ValueError as error:
        raise malformed_row_error(
            where, "compressed_logprobs", str(error), f"rows as {CONFIG_FILE} says"
        ) from error
    return SparseLogprobs(ids, np.arange(count, dtype=np.int64), tokens, logprobs)


def _stack_bytes(rows: Any, where: str, name: str) -> Bytes:
    """Return a list of equally long lists of bytes as an array, without Python numbers."""
    lists = rows.values
    flat = np.asarray(lists.flatten(), dtype=np.uint8)
    count = len(lists)
    if not count or len(flat) % count or set(np.diff(lists.offsets)) != {len(flat) // count}:
        raise malformed_row_error(
            where, name, "rows of several lengths", "as many bytes at every position"
        )
    return flat.reshape(count, -1)
