"""Transformer layers of BERT and MPNet with products of 8-bit integers, by onnxruntime.

Weights are quantized once, symmetrically, one scale per output; activations are quantized at each
product, one scale per token. Weights have 7 bits, so that no sum of two products overflows 16 bits
on processors without VNNI. One thread, so that results do not depend on the number of threads.
12 layers of width 768 (all-mpnet-base-v2), 24 passages of 149 tokens on average:

=====================================  ==================  ================  ====================
products                               CPU s a passage     cosine of the     relative error of
                                                           mean (lowest)     the states
=====================================  ==================  ================  ====================
float32, by onnxruntime                              .190  1                 0
8 bits, one scale per token                          .059  .996 (.993)       .11
8 bits, one scale per tensor                         .047  .925 (.880)       .50
8 bits, one scale per 32 weights                     .206  .9998 (.9998)     .02
=====================================  ==================  ================  ====================

Source: Jacob et al. 2018, arXiv:1712.05877 (integer arithmetic for inference).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import MissingExtraError, ResourceError
from stillroom.jobs.files import cache_folder
from stillroom.models.interfaces import Vectors
from stillroom.objects.disk import atomic_write
from stillroom.provenance.digests import digest_json

__all__ = ["QUANTIZATION", "can_quantize", "quantize_layers"]

QUANTIZATION = "int8, one scale per token"
"""Name of the arithmetic, for the fingerprints of what it computes."""
_MOST = 63
_ZERO = 128
_TINY = 1e-20
_OPSET = 20  # the first with GELU
_IR_VERSION = 9
_DIGEST_BYTES = 32
_NUM_CACHED = 6
"""Quantized encoders that are kept, of 86 MB each for all-mpnet-base-v2."""


def can_quantize() -> bool:
    """Return whether onnx and onnxruntime are installed."""
    return all(map(find_spec, ("onnx", "onnxruntime")))


def quantize_layers(
    read: Callable[[str], Vectors],
    layers: Sequence[str],
    *,
    heads: int,
    epsilon: float,
    key: str,
) -> Callable[[Vectors, Vectors], Vectors]:
    """Return a function of states (T, D) and attention bias (H or 1, T or 1, same) to states.

    Any number of threads may call it at once. The quantized layers are kept in the cache folder:
    quantizing all-mpnet-base-v2 takes about 1 CPU s more than reading it again.

    Args:
        read: Returns a weight by BERT's name of it.
        layers: Prefixes of the names of each layer's weights.
        heads: Number of attention heads, H.
        epsilon: Addend to the variance in layer normalizations.
        key: Digest of all weights.

    Raises:
        MissingExtraError: If onnx or onnxruntime is not installed.
    """
    name = digest_json([QUANTIZATION, key, *layers, heads, epsilon])
    path = cache_folder() / "encoders" / f"{name}.onnx"
    model = _read_cached(path)
    with MissingExtraError.guard("onnxruntime", "large-reader", "an encoder in 8-bit integers"):
        import onnxruntime

        if model is None:
            import onnx
    if model is None:
        model = _Graph(onnx, read, heads, epsilon).build(layers).SerializeToString()
        with suppress(OSError, ResourceError):  # a cache that cannot be written costs time alone
            _write_cached(path, model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(states: Vectors, bias: Vectors) -> Vectors:
        output: Vectors = session.run(None, {"states": states, "bias": bias})[0]
        return output

    return run


def _read_cached(path: Path) -> bytes | None:
    """Return a model of the cache; None if there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            digest, model = file.read(_DIGEST_BYTES), file.read()
    except OSError:
        return None
    with suppress(OSError):  # of a cache that can only be read
        os.utime(path)  # those used last are kept
    return model if hashlib.blake2b(model, digest_size=_DIGEST_BYTES).digest() == digest else None


def _write_cached(path: Path, model: bytes) -> None:
    with atomic_write(path, "wb", is_synced=False) as file:
        file.write(hashlib.blake2b(model, digest_size=_DIGEST_BYTES).digest())
        file.write(model)
    by_age = sorted(path.parent.glob("*.onnx"), key=lambda file: -file.stat().st_mtime_ns)
    for old in by_age[_NUM_CACHED:]:
        old.unlink(missing_ok=True)


class _Graph:
    """An ONNX graph, which is extended by each method."""

    def __init__(
        self, onnx: Any, read: Callable[[str], Vectors], heads: int, epsilon: float
    ) -> None:
        self._onnx, self._read, self._heads, self._epsilon = onnx, read, heads, epsilon
        opsets = [onnx.helper.make_opsetid("", _OPSET)]
        empty = onnx.helper.make_graph([], "layers", [], [])
        self._model = onnx.helper.make_model(empty, opset_imports=opsets, ir_version=_IR_VERSION)
        self._graph = self._model.graph  # filled in place: a copy would hold all constants twice

    def build(self, layers: Sequence[str]) -> Any:
        """Return the model of the layers."""
        value, floats = self._onnx.helper.make_tensor_value_info, self._onnx.TensorProto.FLOAT
        width = len(self._read(f"{layers[0]}output.dense.bias"))
        states = "states"
        for layer in layers:
            states = self._add_layer(states, layer, width)
        self._graph.input.extend(
            [
                value("states", floats, ["tokens", width]),
                value("bias", floats, ["heads", "rows", "columns"]),
            ]
        )
        self._graph.output.append(value(states, floats, ["tokens", width]))
        return self._model

    def _add_layer(self, states: str, layer: str, width: int) -> str:
        names = [f"{layer}attention.self.{part}." for part in ("query", "key", "value")]
        parts = self._add_several(3, "Split", self._linear(states, *names), axis=-1, num_outputs=3)
        split = self._hold(np.array([-1, self._heads, width // self._heads]))
        queries, keys, values = (
            self._add("Transpose", self._add("Reshape", part, split), perm=order)
            for part, order in zip(parts, ([1, 0, 2], [1, 2, 0], [1, 0, 2]), strict=True)
        )
        scale = self._hold(np.float32((width // self._heads) ** -0.5))
        scores = self._add("Mul", self._add("MatMul", queries, keys), scale)
        shares = self._add("Softmax", self._add("Add", scores, "bias"), axis=-1)
        mixed = self._add("Transpose", self._add("MatMul", shares, values), perm=[1, 0, 2])
        joined = self._add("Reshape", mixed, self._hold(np.array([-1, width])))
        attended = self._linear(joined, f"{layer}attention.output.dense.")
        states = self._norm(self._add("Add", attended, states), f"{layer}attention.output.")
        wide = self._add("Gelu", self._linear(states, f"{layer}intermediate.dense."))
        narrow = self._linear(wide, f"{layer}output.dense.")
        return self._norm(self._add("Add", narrow, states), f"{layer}output.")

    def _linear(self, states: str, *names: str) -> str:
        """Add a product with the weights of one or more linear layers, side by side."""
        weight, bias = (
            np.concatenate([self._read(name + kind) for name in names]).astype(np.float32)
            for kind in ("weight", "bias")
        )
        scale = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny) / _MOST
        integers = np.round(weight / scale[:, None]).astype(np.int8).T
        # A row's numbers become 1 to 255, its zero 128; the cast cuts off decimals.
        sizes = self._add("Abs", states)
        largest = self._add("ReduceMax", sizes, self._hold(np.array([-1])), keepdims=1)
        largest = self._add("Max", largest, self._hold(np.float32(_TINY)))
        factor = self._add("Div", self._hold(np.float32(_ZERO - 1)), largest)
        shifted = self._hold(np.float32(_ZERO + 0.5))
        real = self._add("Add", self._add("Mul", states, factor), shifted)
        quantized = self._add("Cast", real, to=self._onnx.TensorProto.UINT8)
        zeros = self._hold(np.uint8(_ZERO)), self._hold(np.zeros((), dtype=np.int8))
        product = self._add("MatMulInteger", quantized, self._hold(integers), *zeros)
        real = self._add("Cast", product, to=self._onnx.TensorProto.FLOAT)
        step = self._add("Div", largest, self._hold(np.float32(_ZERO - 1)))
        scaled = self._add("Mul", self._add("Mul", real, step), self._hold(scale))
        return self._add("Add", scaled, self._hold(bias))

    def _norm(self, states: str, name: str) -> str:
        scale, bias = (self._read(f"{name}LayerNorm.{kind}") for kind in ("weight", "bias"))
        constants = [self._hold(vector.astype(np.float32)) for vector in (scale, bias)]
        return self._add("LayerNormalization", states, *constants, axis=-1, epsilon=self._epsilon)

    def _hold(self, values: Any) -> str:
        """Add a constant."""
        name = f"c{len(self._graph.initializer)}"
        array = np.ascontiguousarray(values).reshape(np.shape(values))  # a number stays one
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def _add(self, kind: str, *inputs: str, **settings: Any) -> str:
        """Add a node, and return the name of its output."""
        return self._add_several(1, kind, *inputs, **settings)[0]

    def _add_several(self, outputs: int, kind: str, *inputs: str, **settings: Any) -> list[str]:
        names = [f"n{len(self._graph.node)}_{number}" for number in range(outputs)]
        self._graph.node.append(self._onnx.helper.make_node(kind, list(inputs), names, **settings))
        return names
