"""LoRA adapters in PEFT's format, read as changes to the tensors of a base model.

Source: LoRA (arXiv:2106.09685), rsLoRA (arXiv:2312.03732), DoRA (arXiv:2402.09353), and the folder
layout of peft: adapter_config.json and adapter_model.safetensors. Pickles are never read.

An adapter changes a tensor of its base in one of three ways: it adds a low-rank product in the
stored orientation; with DoRA, it also normalizes the sum to learned magnitudes; or it replaces the
tensor. Unsupported settings are rejected by name. Differs from peft: products are computed in
float32 or wider, also for adapters stored in 16 bits.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.card import read_card
from stillroom.errors import CheckpointError, Problem, ShapeError
from stillroom.merge.interfaces import Array
from stillroom.merge.lora.peft_format import (
    LoraTensorChange,
    check_adapter_config,
    read_adapter_config,
    read_tensor_changes,
)
from stillroom.merge.tensors.storage import TensorFile, count_block_rows, iter_row_ranges, read_rows
from stillroom.merge.tensors.structure import HEAD
from stillroom.provenance import digest_bytes, digest_json

__all__ = ["AdaptedCheckpoint", "Adapter", "is_adapter"]

_CONFIG, _WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_CACHED_FACTORS = 4


def is_adapter(folder: Path) -> bool:
    """Return whether a folder contains an adapter rather than a whole model."""
    return (folder / _CONFIG).is_file()


class Adapter:
    """One LoRA adapter on disk. Use ``Adapter.open``."""

    def __init__(self, folder: Path, config: Mapping[str, Any], file: TensorFile) -> None:
        """Create an adapter from an opened file; use ``open``."""
        self.folder = folder
        self.config = config
        self._file = file
        self.changes = read_tensor_changes(config, file.entries, folder)
        self._factors: OrderedDict[tuple[str, int | None, str], tuple[Array, Array]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Open a folder written by peft.

        Raises:
            CheckpointError: If it is missing, broken, a pickle, or uses unsupported settings.
        """
        config = read_adapter_config(folder / _CONFIG)
        check_adapter_config(config, folder)
        path = folder / _WEIGHTS
        if not path.is_file():
            is_pickle = (folder / _PICKLE).is_file()
            raise CheckpointError(
                f"{folder} contains no {_WEIGHTS}" + (f", only {_PICKLE}" if is_pickle else ""),
                code="checkpoint.pickle" if is_pickle else "merge.adapter-broken",
                where=str(folder),
                expected=f"{_WEIGHTS} next to {_CONFIG}",
                next="convert it with peft: save_pretrained(..., safe_serialization=True)"
                if is_pickle
                else "check that the download is complete",
            )
        return cls(folder, config, TensorFile(path))

    def names(self) -> list[str]:
        """Return the sorted names of the base's tensors that the adapter changes."""
        return sorted(self.changes)

    def __contains__(self, name: str) -> bool:
        return name in self.changes

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the tensors and of the settings that determine their meaning."""
        tensors = [
            [name, entry.dtype, list(entry.shape), _digest(self._file.read(name, 0, entry.rows))]
            for name, entry in sorted(self._file.entries.items())
        ]
        keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
        return digest_json([tensors, {key: self.config.get(key) for key in keys}])

    @cached_property
    def license(self) -> str:
        """License named by the model card; empty if there is none."""
        named = read_card(self.folder).get("license") or ""
        return named if isinstance(named, str) else ""

    @property
    def base_name(self) -> str:
        """Name of the model it was trained on, from its config; may be empty."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def size_bytes(self) -> int:
        """Total bytes of the tensors."""
        return sum(entry.size_bytes for entry in self._file.entries.values())

    def is_replaced(self, name: str) -> bool:
        """Return whether the adapter replaces a whole tensor."""
        return not self.changes[name].left and bool(self.changes[name].replaced)

    def rank(self, name: str) -> int:
        """Return the rank of the product added to a tensor; 0 if there is none."""
        change = self.changes[name]
        return self._file.entry(change.right).shape[0] if change.left else 0

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether a base tensor of the shape can be changed by the adapter."""
        change = self.changes[name]
        shapes = [self._file.entry(key).shape for key in (change.bias, change.replaced) if key]
        if any(full_shape != shape for full_shape in shapes):
            return False
        if not change.left:
            return True
        if len(shape) != 2:
            return False
        left, right = self._file.entry(change.left), self._file.entry(change.right)
        if self._runs_down(change, shape[1]):
            return shape == (right.shape[1], left.shape[0])
        return shape == (left.shape[0], right.shape[1])

    def matrices(self, name: str) -> tuple[Array, Array]:
        """Return B, scaled, and A in float64 and peft's layout: (out, r), (r, in)."""
        change = self.changes[name]
        b, a = self._file.array(change.left), self._file.array(change.right)
        return b * change.scale, a

    def digest_replaced(self, name: str) -> str:
        """Return the digest of the replacement tensor; empty if there is none."""
        key = self.changes[name].replaced
        if not key:
            return ""
        return _digest(self._file.read(key, 0, self._file.entry(key).rows))

    def find_tied(self, name: str, base: Checkpoint) -> str:
        """Return the base's tied embedding if a tensor is the head, saved as a copy; or empty."""
        if name != HEAD or name in base or not self.is_replaced(name):
            return ""
        digest = self.digest_replaced(name)
        known = (tensor for tensor in self.names() if tensor in base)
        return next((held for held in known if self.digest_replaced(held) == digest), "")

    def factors(
        self, name: str, width: int | None = None, *, dtype: Any = np.float64
    ) -> tuple[Array, Array]:
        """Return the factors of the added product: (rows, rank), scaled, and (rank, columns).

        Args:
            name: A tensor to which a product is added.
            width: Columns of the base's tensor; determines the orientation in adapters that mix
                transposed layers (``fan_in_fan_out``) and others.
            dtype: float32 or float64.
        """
        key = (name, width, np.dtype(dtype).name)
        with self._lock:
            if key in self._factors:
                self._factors.move_to_end(key)
                return self._factors[key]
        change = self.changes[name]
        left = self._file.array(change.left, dtype)
        right = self._file.array(change.right, dtype)
        if self._runs_down(change, width):
            left, right = right.T, left.T
        factors = (np.ascontiguousarray(left) * left.dtype.type(change.scale), right)
        with self._lock:
            self._factors[key] = factors
            while len(self._factors) > _CACHED_FACTORS:
                self._factors.popitem(last=False)
        return factors

    def bias(self, name: str, *, dtype: Any = np.float64) -> Array:
        """Return the scaled addition to a bias."""
        change = self.changes[name]
        added = self._file.array(change.bias, dtype)
        added *= added.dtype.type(change.scale)
        return added

    def replacement(
        self, name: str, start: int = 0, stop: int | None = None, *, dtype: Any = np.float64
    ) -> Array:
        """Return rows of the tensor that replaces the base's."""
        return read_rows(self._file, self.changes[name].replaced, start, stop, dtype=dtype)

    def rows(
        self, name: str, start: int, stop: int, base_rows: Array, norms: Array | None = None
    ) -> Array:
        """Merge the LoRA or DoRA adapter into rows of the base's tensor, in the input type.

        The result does not depend on how the tensor is split into blocks.

        Args:
            name: Name of the tensor.
            start: First row.
            stop: Row after the last.
            base_rows: Rows of the base, (rows, ...), float32 or float64; not modified.
            norms: Norms of the columns, if ``needs_norms``; see ``column_norms``.

        Returns:
            The changed rows; ``base_rows`` itself if the adapter does not change the tensor.

        Raises:
            ShapeError: If shapes do not fit.
            CheckpointError: If norms are needed and missing.
        """
        if name not in self.changes:
            return base_rows
        change = self.changes[name]
        if change.replaced:
            base_rows = self.replacement(name, start, stop, dtype=base_rows.dtype)
        if change.bias:
            base_rows = base_rows + self.bias(name, dtype=base_rows.dtype)[start:stop]
            return base_rows
        if not change.left:
            return base_rows
        changed = base_rows + self._product(name, start, stop, base_rows)
        if not change.magnitude:
            return changed
        magnitude = self._file.array(change.magnitude, np.float64).reshape(-1)
        if self._runs_down(change, base_rows.shape[1]):
            if norms is None:
                raise CheckpointError(
                    f"DoRA normalizes the columns of '{name:.120}', which needs their norms",
                    code="merge.adapter-unsupported",
                    where=str(self.folder),
                    expected="the norms of whole columns, as AdaptedCheckpoint measures them",
                    next="merge the adapter into its base with peft (merge_and_unload) first",
                )
            factor = magnitude / norms
        else:
            lengths = np.sqrt(np.einsum("ij,ij->i", changed, changed, dtype=np.float64))
            factor = (magnitude[start:stop] / lengths)[:, None]
        changed *= factor.astype(base_rows.dtype)
        return changed

    def needs_norms(self, name: str, width: int) -> bool:
        """Return whether rows need norms of whole columns: DoRA on transposed layers."""
        change = self.changes[name]
        return bool(change.magnitude) and self._runs_down(change, width)

    def column_norms(self, name: str, blocks: Iterator[tuple[int, int, Array]]) -> Array:
        """Return column norms of base plus product, from (start, stop, rows) blocks."""
        total = np.zeros(())
        change = self.changes[name]
        for start, stop, rows in blocks:
            if change.replaced:
                rows = self.replacement(name, start, stop, dtype=rows.dtype)
            changed = rows + self._product(name, start, stop, rows)
            total = total + np.einsum("ij,ij->j", changed, changed, dtype=np.float64)
        lengths: Array = np.sqrt(total)
        return lengths

    def _product(self, name: str, start: int, stop: int, base_rows: Array) -> Array:
        """Multiply in tiles with fixed boundaries, so that the bits do not depend on the block."""
        if base_rows.ndim != 2:
            raise _mismatch_error(name, f"has {base_rows.ndim} axes", "a matrix")
        width = base_rows.shape[1]
        left, right = self.factors(name, width, dtype=base_rows.dtype)
        if right.shape[1] != width or stop > len(left):
            raise _mismatch_error(
                name,
                f"is {width} wide and has row {stop - 1}",
                f"the shape {len(left), right.shape[1]}, as in the base of the adapter",
            )
        step = count_block_rows((len(left), width))
        first = start // step * step
        tiles = [left[row : row + step] @ right for row in range(first, stop, step)]
        joined = tiles[0] if len(tiles) == 1 else np.concatenate(tiles)
        return joined[start - first : stop - first]

    def _runs_down(self, change: LoraTensorChange, width: int | None) -> bool:
        """Whether rows of the stored tensor are inputs and columns outputs, as of Conv1D."""
        if change.is_embedding or not self.config.get("fan_in_fan_out"):
            return change.is_embedding
        return width is None or width == self._file.entry(change.left).shape[0]


class AdaptedCheckpoint:
    """A base with an adapter applied: gives rows as if the two had been merged and written.

    Every tensor that the adapter changes must be in the base, with a matching shape.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        """Combine a base with an adapter.

        Raises:
            ShapeError: If the adapter changes a tensor that the base lacks or that does not fit;
                one problem per tensor.
        """
        self.base, self.adapter = base, adapter
        self._norms: dict[str, Array] = {}
        problems = []
        for name in adapter.names():
            if adapter.find_tied(name, base):
                continue
            shape = base.shape(name) if name in base else None
            if shape is None or not adapter.fits(name, shape):
                problem = "the base has none" if shape is None else f"the base's is {shape}"
                mend = "give that base"
                if shape is None and name == HEAD and base.is_tied:
                    problem = "the base ties its output head to the input embedding and stores none"
                    mend = "untie and save the base first, or train the adapter without its head"
                problems.append(
                    Problem(
                        f"the adapter changes tensor '{name:.120}', but {problem}",
                        "merge.adapter-fit",
                        str(adapter.folder),
                        f"the base that it was trained on: {adapter.base_name or 'not named'}",
                        mend,
                    )
                )
        if problems:
            raise ShapeError(problems)

    def names(self) -> list[str]:
        """Return the sorted names of all tensors."""
        return self.base.names()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of both fingerprints."""
        return digest_json([self.base.fingerprint, self.adapter.fingerprint])

    def rows(self, name: str, start: int, stop: int, *, dtype: Any = np.float32) -> Array:
        """Return rows of a tensor with the adapter's change, (rows, ...).

        Args:
            name: Name of the tensor.
            start: First row.
            stop: Row after the last.
            dtype: Compute type, float32 or float64.
        """
        base_rows = read_rows(self.base, name, start, stop, dtype=dtype)
        if name not in self.adapter:
            return base_rows
        norms = None
        shape = self.base.shape(name)
        if len(shape) == 2 and self.adapter.needs_norms(name, shape[1]):
            if name not in self._norms:
                blocks = (
                    (first, last, read_rows(self.base, name, first, last, dtype=dtype))
                    for first, last in iter_row_ranges(shape)
                )
                self._norms[name] = self.adapter.column_norms(name, blocks)
            norms = self._norms[name]
        return self.adapter.rows(name, start, stop, base_rows, norms)


def _digest(data: bytearray | memoryview) -> str:
    return digest_bytes(memoryview(data))


def _mismatch_error(name: str, problem: str, expected: str) -> ShapeError:
    return ShapeError(
        f"the adapter does not fit tensor '{name:.120}', which {problem}",
        code="merge.adapter-fit",
        where=name,
        expected=expected,
        next="give the base that the adapter was trained on",
    )
