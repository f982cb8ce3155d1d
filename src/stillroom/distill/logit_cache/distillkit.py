"""Log-probabilities of DistillKit: parquet rows with ``input_ids`` and two byte strings a position.

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

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stillroom.distill.logit_cache.sparse_logprobs import SparseLogprobs, malformed_row_error
from stillroom.errors import DataError
from stillroom.records.streams import iter_parquet_batches

__all__ = ["CompressionConfig", "QuantizedResiduals", "read_distillkit", "unpack_bits"]

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
        return (self.d - 1).bit_length()

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
        raise malformed_row_error(
            str(path), "file", "no parquet file", "the output of DistillKit's sampling"
        )
    config = _read_config(folder / CONFIG_FILE)
    return _read_tables(files, config), config.k


def _read_config(path: Path) -> CompressionConfig:
    if not path.is_file():
        raise malformed_row_error(
            str(path), CONFIG_FILE, "missing", "the configuration next to the parquet files"
        )
    try:
        return CompressionConfig.model_validate(YAML(typ="safe", pure=True).load(path))
    except (ValidationError, YAMLError) as error:
        lines = str(error).splitlines()
        detail = " ".join(lines[1:3]) if isinstance(error, ValidationError) else lines[0]
        raise malformed_row_error(
            str(path), CONFIG_FILE, detail, "the fields of DistillKit 1"
        ) from error


_TABLE = "a parquet file with lists of integers and of byte strings"


def _read_tables(files: list[Path], config: CompressionConfig) -> Iterator[SparseLogprobs]:
    for file in files:
        number = 0
        try:
            for batch in iter_parquet_batches(file):
                if isinstance(batch, DataError):
                    raise batch
                for row in range(batch.num_rows):
                    yield _decode_record(batch, row, config, f"{file} row {number}")
                    number += 1
        except DataError as error:
            if error.code == "distill.import-row":
                raise
            raise malformed_row_error(
                f"{file} row {number}", "columns", error.problems[0].what, _TABLE
            ) from error
        except (AttributeError, TypeError, ValueError) as error:  # other types, or nulls
            raise malformed_row_error(
                f"{file} row {number}", "columns", f"{error!s:.120}", _TABLE
            ) from error


def _decode_record(batch: Any, row: int, config: CompressionConfig, where: str) -> SparseLogprobs:
    names = ("input_ids", "compressed_logprobs", "bytepacked_indices")
    for name in names:
        if name not in batch.schema.names:
            raise malformed_row_error(where, name, "missing", ", ".join(names))
    parts = {name: _stack_bytes(batch.column(name)[row], where, name) for name in names[1:]}
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
            where, "compressed_logprobs", str(error), f"rows that match {CONFIG_FILE}"
        ) from error
    return SparseLogprobs(ids, np.arange(count, dtype=np.int64), tokens, logprobs)


def _stack_bytes(rows: Any, where: str, name: str) -> Bytes:
    """Convert a list of equally long lists of bytes to an array, without Python numbers."""
    lists = rows.values
    flat = np.asarray(lists.flatten(), dtype=np.uint8)
    count = len(lists)
    if not count or len(flat) % count or set(np.diff(lists.offsets)) != {len(flat) // count}:
        raise malformed_row_error(
            where, name, "rows of several lengths", "the same number of bytes at every position"
        )
    return flat.reshape(count, -1)
