"""DistillKit's compressed log-probabilities, read for a teacher cache.

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

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stillroom.distill.cache_import_rows import Sparse, odd_row

__all__ = ["Compression", "ResidualBin", "read_distillkit", "unpack_bits"]

CONFIG_FILE = "compression_config.yaml"

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
FloatType = Literal["float16", "bfloat16", "float32", "float64"]
_WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class ResidualBin(BaseModel):
    """How the residuals of some ranks are kept: one scale, then integers of few bits."""

    scale_dtype: FloatType
    element_bits: int = Field(ge=1, le=64)
    num_elements: int = Field(gt=0)


class Compression(BaseModel):
    """The fields of ``compression_config.yaml``."""

    model_config = ConfigDict(extra="forbid")

    d: int = Field(gt=0)
    k: int = Field(gt=0)
    exact_k: int = Field(ge=0)
    exact_dtype: FloatType = "float32"
    polynomial_terms: list[int | Literal["sqrt", "exp"]] | None = None
    term_dtype: FloatType = "float32"
    residual_bins: list[ResidualBin] = Field(default_factory=list)
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
        reader = _Reader(data)
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


class _Reader:
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
        raw = np.ascontiguousarray(self.take(count * _WIDTHS[kind]))
        if kind == "bfloat16":  # the upper half of a float32
            wide = raw.reshape(len(raw), -1).view("<u2").astype("<u4") << 16
            return wide.view("<f4").astype(np.float64)
        found: Floats = raw.view(f"<f{_WIDTHS[kind]}").astype(np.float64)
        return found

    def residuals(self, one: ResidualBin) -> Floats:
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


def read_distillkit(path: Path) -> tuple[Iterator[Sparse], int]:
    """Return the records of a parquet file, or of a folder of them, and their k.

    Raises:
        DataError: If there is no parquet or no configuration; later, if a row does not fit it.
    """
    folder = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise odd_row(str(path), "file", "no parquet", "what DistillKit's sampling writes")
    config = _read_config(folder / CONFIG_FILE)
    return _records(files, config), config.k


def _read_config(path: Path) -> Compression:
    if not path.is_file():
        raise odd_row(
            str(path), CONFIG_FILE, "missing", "the configuration beside the parquet files"
        )
    try:
        return Compression.model_validate(YAML(typ="safe", pure=True).load(path))
    except (ValidationError, YAMLError) as error:
        said = str(error).splitlines()
        detail = " ".join(said[1:3]) if isinstance(error, ValidationError) else said[0]
        raise odd_row(str(path), CONFIG_FILE, detail, "the fields of DistillKit 1") from error


def _records(files: list[Path], config: Compression) -> Iterator[Sparse]:
    import pyarrow.parquet as pq

    for file in files:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=16):
            for row in range(batch.num_rows):
                where = f"{file} row {number}"
                yield _record(batch, row, config, where)
                number += 1


def _record(batch: Any, row: int, config: Compression, where: str) -> Sparse:
    parts = {}
    for name in ("compressed_logprobs", "bytepacked_indices"):
        if name not in batch.schema.names:
            raise odd_row(
                where, name, "missing", "input_ids, compressed_logprobs, bytepacked_indices"
            )
        parts[name] = _table(batch.column(name)[row], where, name)
    ids = np.asarray(batch.column("input_ids")[row].values, dtype=np.int64)
    count = min(len(ids) - 1, *(len(part) for part in parts.values()))
    if count < 1:
        raise odd_row(
            where, "input_ids", f"{len(ids)} tokens", "at least two, and a row for the first"
        )
    try:
        logprobs = config.decode(parts["compressed_logprobs"][:count])
        tokens = unpack_bits(parts["bytepacked_indices"][:count], config.id_bits, config.k)
    except ValueError as error:
        raise odd_row(
            where, "compressed_logprobs", str(error), f"rows as {CONFIG_FILE} says"
        ) from error
    return Sparse(ids, np.arange(count, dtype=np.int64), tokens, logprobs)


def _table(rows: Any, where: str, name: str) -> Bytes:
    """Return a list of equally long lists of bytes as an array, without Python numbers."""
    lists = rows.values
    flat = np.asarray(lists.flatten(), dtype=np.uint8)
    count = len(lists)
    if not count or len(flat) % count or set(np.diff(lists.offsets)) != {len(flat) // count}:
        raise odd_row(where, name, "rows of several lengths", "as many bytes at every position")
    return flat.reshape(count, -1)
