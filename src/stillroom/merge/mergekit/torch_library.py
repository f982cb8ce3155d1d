"""torch's own kernels without importing torch: its shared library through its stable C interface.

``import torch`` takes about a second of processor time, loading the library a sixth of that. The
bits are torch's on every machine, since the same code computes them.

Source: the C interface of AOTInductor, ``torch/csrc/inductor/aoti_torch/c/shim.h`` of torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from stillroom.merge.interfaces import Array

__all__ = ["TorchLibrary", "argsort_rows", "open_torch_library"]

_ALL_AXES = (1 << 64) - 1  # -1 as an unsigned word


class TorchLibrary:
    """Operators of ``libtorch_cpu`` on contiguous arrays of float32 or int16."""

    def __init__(self, path: Path) -> None:
        """Load the library.

        Raises:
            OSError: If it cannot be loaded.
            AttributeError: If it lacks the C interface, as older versions do.
            RuntimeError: If its operators refuse a small array or compute something else of it.
        """
        library = ctypes.CDLL(str(path))
        self._call = library.aoti_torch_call_dispatcher
        self._create = library.aoti_torch_create_tensor_from_blob
        self._delete = library.aoti_torch_delete_tensor_object
        self._data = library.aoti_torch_get_data_ptr
        self._kinds = {
            np.dtype(np.float32): ctypes.c_int32(library.aoti_torch_dtype_float32()),
            np.dtype(np.int16): ctypes.c_int32(library.aoti_torch_dtype_int16()),
        }
        self._cpu = ctypes.c_int32(library.aoti_torch_device_type_cpu())
        # C++ names of at::get_num_threads() and at::set_num_threads(int)
        self._get_threads = library._ZN2at15get_num_threadsEv
        self._set_threads = library._ZN2at15set_num_threadsEi
        sides = np.array([3, 4], np.float32)
        results = [self.norm(sides), self.sum(sides), self.sin(self.arccos(np.float32(0.5)))]
        order = self.argsort(np.array([[3, 1, 2]], np.int16))
        if not np.allclose(results, [5, 7, math.sqrt(0.75)]) or order.tolist() != [[1, 2, 0]]:
            raise RuntimeError(f"{path} computes otherwise")

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        """Compute on one thread within the body; more threads split sums, which round apart."""
        before = self._get_threads()
        self._set_threads(1)
        try:
            yield
        finally:
            self._set_threads(before)

    def norm(self, values: Array) -> np.float32:
        """Return ``torch.linalg.vector_norm`` of an array."""
        # norm_except_dim(values, pow=2, dim=-1) is vector_norm; its own power is no stable type
        return self._reduce(b"aten::norm_except_dim", values, 2, _ALL_AXES)

    def sum(self, values: Array) -> np.float32:
        """Return ``torch.sum`` of an array."""
        return self._reduce(b"aten::sum", values, 0)

    def arccos(self, value: np.float32) -> np.float32:
        """Return ``torch.arccos`` of a number."""
        return self._reduce(b"aten::acos", np.asarray(value))

    def sin(self, value: np.float32) -> np.float32:
        """Return ``torch.sin`` of a number."""
        return self._reduce(b"aten::sin", np.asarray(value))

    def argsort(self, rows: Array) -> Array:
        """Return ``torch.argsort`` of each row, (rows, width) int64; equal elements not stably."""
        return self._compute(b"aten::argsort", rows, (1, 0), rows.shape, np.int64)

    def _reduce(self, operator: bytes, values: Array, *options: int) -> np.float32:
        """Return the one number that an operator makes of an array."""
        return np.float32(self._compute(operator, values, options, (), np.float32))

    def _compute(
        self,
        operator: bytes,
        values: Array,
        options: tuple[int, ...],
        shape: tuple[int, ...],
        kind: type[np.generic],
    ) -> Array:
        """Return the array of a shape and kind that an operator makes of another."""
        if values.dtype not in self._kinds or not values.flags.c_contiguous:
            raise ValueError(f"{values.dtype} array with strides {values.strides}")
        dims = max(values.ndim, 1)
        handle = ctypes.c_void_p()
        created = self._create(
            ctypes.c_void_p(values.ctypes.data),
            ctypes.c_int64(values.ndim),
            (ctypes.c_int64 * dims)(*values.shape),
            (ctypes.c_int64 * dims)(*(step // values.itemsize for step in values.strides)),
            ctypes.c_int64(0),
            self._kinds[values.dtype],
            self._cpu,
            ctypes.c_int32(0),
            ctypes.byref(handle),
        )
        stack = (ctypes.c_uint64 * (1 + len(options)))(handle.value or 0, *options)
        if created or self._call(operator, b"", stack):  # takes the handle
            raise RuntimeError(f"torch refuses {operator.decode()}")
        tensor, address = ctypes.c_void_p(stack[0]), ctypes.c_void_p()
        failed = self._data(tensor, ctypes.byref(address))
        result = np.zeros(shape, kind)
        if not failed:
            ctypes.memmove(result.ctypes.data, address.value or 0, result.nbytes)
        self._delete(tensor)
        if failed:
            raise RuntimeError(f"torch returns nothing from {operator.decode()}")
        return result


@cache
def open_torch_library() -> TorchLibrary | None:
    """Return the library of the installed torch, or None where it cannot be called from C."""
    found = importlib.util.find_spec("torch")
    folders = (found.submodule_search_locations or []) if found else []
    for folder in folders:
        try:
            return TorchLibrary(Path(folder) / "lib" / "libtorch_cpu.so")
        except (OSError, AttributeError, RuntimeError):
            continue
    return None


def argsort_rows(rows: Array) -> Array:
    """Return ``torch.argsort`` of each row of int16, of the library or else of the module."""
    library = open_torch_library()
    if library is not None:
        return library.argsort(rows)
    import torch

    order: Array = torch.from_numpy(rows).argsort(dim=1).numpy()
    return order
