"""Quantization schemes of checkpoints (GPTQ, AWQ, FP8, bitsandbytes, compressed-tensors, MXFP4).

A supported layout is exposed as plain tensors under the architecture's names; any other is rejected
by name. So is a folder of codes that declares no quantization: codes are no weights without their
scales. Plain weights are used unchanged even if quantization metadata was left in the folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from stillroom.checkpoints.config_file import read_config
from stillroom.checkpoints.dtypes import widen
from stillroom.checkpoints.quantized_tensors import (
    AwqTensor,
    BlockwiseTensor,
    GptqTensor,
    Int8Tensor,
    Mxfp4Experts,
    NestedQuantization,
    PackedTensor,
    QuantizedTensor,
    ScaledTensor,
    StoredParts,
)
from stillroom.errors import CheckpointError

if TYPE_CHECKING:
    from stillroom.checkpoints.safetensors_format import TensorEntry

__all__ = ["Quantization", "drop_quantization", "find_quantization", "map_quantized_tensors"]

_Entries: TypeAlias = "Mapping[str, TensorEntry]"
_Schemes: TypeAlias = "Sequence[Mapping[str, Any]]"
_Tensors: TypeAlias = Iterator[tuple[str, QuantizedTensor]]

_KEYS = ("quantization_config", "compression_config")
_FILES = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
_EIGHT = frozenset({"F8_E4M3", "F8_E5M2", "I8", "U8"})
_PLAIN = frozenset({"F16", "BF16", "F32", "F64"})
_INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})
_NO_CODES = re.compile(r"\bbias$|mask|position|_ids$|_index$")
_SUFFIXES = ("qweight", "weight_packed", "SCB", "absmax", "_scale_inv", "weight_scale_2")
_CODES = frozenset({"weight", "qweight", "weight_packed"})
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "output_scale", "input_global_scale", "_ub")
_OF_CACHE = (".k_scale", ".v_scale", ".q_scale")
_ENDS = (
    *("_scale", "_scale_inv", "_scale_2", "_global_scale", "_zero_point", "_shape", "_g_idx"),
    *("_format", "_packed", "_blocks", "_scales"),
)
_SCALES_OF_WEIGHTS = ("_scale", "_scales", "_scale_inv", ".scale", "._scale")
_MAX_SMALL_BYTES = 65_536  # of tensors that hold settings: they are read whole
_MAX_LABEL = 80


@dataclass(frozen=True)
class Quantization:
    """Quantization of a folder's weights.

    ``method`` is its name in the libraries, ``settings`` its declared settings.
    """

    method: str
    settings: Mapping[str, Any]
    folder: Path

    @property
    def label(self) -> str:
        """Display name: the method with its distinguishing setting."""
        bits = self.settings.get("bits") or self.settings.get("w_bit")
        if self.method == "bitsandbytes":
            four = self.settings.get("load_in_4bit") or self.settings.get("_load_in_4bit")
            kind = str(self.settings.get("bnb_4bit_quant_type") or "fp4") if four else "int8"
            return f"bitsandbytes {kind}"[:_MAX_LABEL]
        detail = self.settings.get("format") or self.settings.get("quant_algo")
        detail = detail or (f"{bits} bits" if bits else "")
        return f"{self.method} {detail}".strip()[:_MAX_LABEL]

    def refuse(self, problem: str) -> CheckpointError:
        """Return the error for an unsupported detail."""
        return CheckpointError(
            f"the weights are quantized ({self.label}): {problem:.200}",
            code="checkpoint.quantized",
            where=str(self.folder),
            expected=f"plain weights, or one of: {', '.join(sorted(_LAYOUTS))}",
            next="use the original model, or dequantize it with the library that created it",
        )


def find_quantization(folder: Path, config: Mapping[str, Any]) -> Quantization | None:
    """Return the quantization declared by config.json or a separate file; None for plain weights.

    Raises:
        CheckpointError: If the declaration is not a mapping.
    """
    inner = config.get("text_config")
    for holder in (config, inner) if isinstance(inner, Mapping) else (config,):
        for key in _KEYS:
            if holder.get(key):
                return _read(folder, holder[key], "")
    for file, method in _FILES.items():
        if (folder / file).is_file():
            return _read(folder, _read_json(folder / file), method)
    return None


def drop_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without its quantization settings."""
    plain = {key: value for key, value in config.items() if key not in _KEYS}
    inner = plain.get("text_config")
    if isinstance(inner, Mapping):
        plain["text_config"] = {key: value for key, value in inner.items() if key not in _KEYS}
    return plain


def map_quantized_tensors(
    quantization: Quantization | None,
    folder: Path,
    entries: _Entries,
    parts: StoredParts,
) -> tuple[dict[str, QuantizedTensor], frozenset[str]]:
    """Map stored tensors to the dequantized tensors that they represent.

    Returns:
        The quantized tensors by name, and the names of the stored tensors they consist of.

    Raises:
        CheckpointError: If the layout is not supported, or the tensors contradict it.
    """
    if quantization is None:
        _refuse_undeclared(folder, entries, parts)
        return {}, frozenset()
    if quantization.method not in _LAYOUTS:
        _refuse_unknown(quantization, entries)
        return {}, frozenset()
    try:
        tensors = dict(_LAYOUTS[quantization.method](quantization, entries, parts))
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise quantization.refuse(
            f"its tensors contradict its settings ({error!s:.120})"
        ) from error
    used = {n for n in entries if n.endswith(_OF_ACTIVATIONS + _OF_CACHE)} if tensors else set()
    for name, tensor in tensors.items():
        used |= _belonging(name, tensor, entries)
    unmapped = [name for name in entries if name not in used and _is_code(name, entries)]
    if unmapped:
        raise quantization.refuse(
            f"'{unmapped[0]}' ({entries[unmapped[0]].dtype}) has no known scales"
        )
    is_dense = quantization.method == "compressed-tensors" and (
        quantization.settings.get("format") == "dense"
        or quantization.settings.get("quantization_status") in {"calibration", "frozen"}
    )
    for name in [name for name in entries if name not in used]:
        scale, is_whole = _find_scale(name, entries, parts)
        if scale and (is_whole or not is_dense):
            raise quantization.refuse(
                f"'{name}' ({entries[name].dtype}) is not of its types, and has a scale, '{scale}'"
            )
        used |= {scale} - {""}  # of weights that are rounded only while the model runs
    return tensors, frozenset(used)


def _read(folder: Path, settings: Any, method: str) -> Quantization:
    if not isinstance(settings, Mapping):
        raise CheckpointError(
            f"its quantization settings are not a mapping: {settings!r:.60}",
            code="checkpoint.config",
            where=str(folder),
            expected="quantization_config as written by the quantization library",
            next="download config.json again",
        )
    inner = settings.get("quantization")
    if method == "modelopt" and isinstance(inner, Mapping):
        settings = inner
    named = settings.get("quant_method") or method
    if not named and (settings.get("load_in_8bit") or settings.get("load_in_4bit")):
        named = "bitsandbytes"
    return Quantization(str(named or "an unnamed method").lower(), settings, folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = read_config(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error!s:.120}",
            code="checkpoint.config",
            where=str(path),
            expected="JSON as written by the quantization library",
            next="download the file again",
        ) from error
    return config


def _is_code(name: str, entries: _Entries) -> bool:
    """Return whether a tensor holds codes of weights, or scales used for codes only."""
    entry = entries[name]
    last = name.rpartition(".")[2]
    is_narrow = entry.dtype in _EIGHT or entry.dtype == "I32"
    return name.endswith(_SUFFIXES) or (last in _CODES and len(entry.shape) > 1 and is_narrow)


def _refuse_unknown(quantization: Quantization, entries: _Entries) -> None:
    """Raise an error for an unknown layout, unless all stored tensors are plain.

    Since its names are unknown, any type but floats of at least 16 bits counts as codes, and so
    does any tensor named as a scale.
    """
    for name, entry in entries.items():
        is_scale = "scale" in name.rpartition(".")[2]
        if entry.dtype not in _PLAIN or is_scale or _is_code(name, entries):
            raise quantization.refuse(
                f"this layout is not supported ('{name:.120}', {entry.dtype})"
            )


def _find_scale(name: str, entries: _Entries, parts: StoredParts) -> tuple[str, bool]:
    """Return the scale stored beside a matrix of floats, or "", and whether these are whole.

    Whole numbers with a scale are codes, whatever their type. A tensor named ``scale`` may also be
    a learned one of the layer: beside other floats of 16 bits or more it counts for nothing.
    """
    entry = entries[name]
    is_small = entry.dtype.startswith("F8")
    stem = name.removesuffix("weight")
    if stem == name or len(entry.shape) < 2 or not (is_small or entry.dtype in _PLAIN):
        return "", False
    sure = [f"{name}{end}" for end in _SCALES_OF_WEIGHTS] + [f"{stem}scale_weight"]
    scale = next((n for n in (*sure, f"{stem}scales", f"{stem}scale") if n in entries), "")
    if not scale or is_small:
        return scale, False
    count = min(entry.shape[0], 4 if len(entry.shape) == 2 else 1)
    head = widen(parts.rows(name, 0, count), entry.dtype)
    is_whole = bool(head.any() and (head == np.rint(head)).all())
    return (scale if scale in sure or is_whole else ""), is_whole


def _refuse_undeclared(folder: Path, entries: _Entries, parts: StoredParts) -> None:
    """Raise an error for undeclared codes; 8-bit floats without scales may be plain weights.

    Matrices of integers of up to 32 bits count as codes whatever their name, except masks and
    positions: unknown layouts use other names (``W_q``, ``codes``), and a merge of their scales
    alone would be wrong. Under a weight's name integers of any shape count as codes.
    """
    for name, entry in entries.items():
        scale = _find_scale(name, entries, parts)[0]
        is_float = entry.dtype.startswith("F8") and not scale
        is_matrix = sum(size > 1 for size in entry.shape) > 1
        is_integer = entry.dtype in _INTEGERS and is_matrix and not _NO_CODES.search(name)
        is_integer |= name.rpartition(".")[2] in _CODES and entry.dtype in _INTEGERS
        if scale or is_integer or (_is_code(name, entries) and not is_float):
            looks = f"has a scale ('{scale:.120}'), so it is" if scale else "looks"
            raise CheckpointError(
                f"'{name:.120}' ({entry.dtype}) {looks} quantized; config.json does not say how",
                code="checkpoint.quantized",
                where=str(folder),
                expected="plain weights, or a config.json with quantization_config",
                next="restore the original config.json of the quantized model",
            )


def _belonging(name: str, tensor: QuantizedTensor, entries: _Entries) -> set[str]:
    """Return the stored tensors that a quantized tensor consists of."""
    names = {f"{name}{end}" for end in _ENDS} | {name}
    if isinstance(tensor, AwqTensor | GptqTensor):
        names |= {f"{tensor.stem}{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    if isinstance(tensor, Int8Tensor):
        names.add(tensor.largest)
    if isinstance(tensor, BlockwiseTensor):
        names |= {listed for listed in entries if listed.startswith(f"{name}.")}
    return names & entries.keys()


def _fp8(quantization: Quantization, entries: _Entries, parts: StoredParts) -> _Tensors:
    """Yield tensors of 8-bit floats with a multiplier per tensor, row, or block."""
    schemes = [{"block_structure": quantization.settings.get("weight_block_size")}]
    for name, entry in entries.items():
        if entry.dtype not in {"F8_E4M3", "F8_E5M2"}:
            continue
        scale = next((s for s in (f"{name}_scale_inv", f"{name}_scale") if s in entries), "")
        if scale:
            yield name, _scaled(quantization, entry, entries[scale], None, schemes)


def _scaled(
    quantization: Quantization,
    codes: TensorEntry,
    scale: TensorEntry,
    zero: TensorEntry | None,
    schemes: _Schemes,
) -> ScaledTensor:
    """Return scaled codes; the block size is inferred from shapes and settings."""
    shape, scale_shape = codes.shape, scale.shape
    tall, wide = shape[-2:] if len(shape) > 1 else (1, shape[0])
    count = math.prod(scale_shape)
    stated = next((s["block_structure"] for s in schemes if s.get("block_structure")), None)
    if count == 1 or scale_shape == (*shape[:-2], 1, 1):
        block = (tall, wide)
    elif scale_shape in {(tall,), (*shape[:-1], 1)} and len(shape) > 1:
        block = (1, wide)
    elif stated:
        block = (int(stated[0]), int(stated[1]))
    elif len(scale_shape) == len(shape) and scale_shape[-2] == tall and wide % scale_shape[-1] == 0:
        block = (1, wide // scale_shape[-1])
    else:
        raise quantization.refuse(
            f"'{scale.name}' {scale_shape} does not determine the scale of each element of {shape}"
        )
    expected = (*shape[:-2], -(-tall // block[0]), -(-wide // block[1]))
    if count not in {1, math.prod(expected)} or len(shape) not in {2, 3}:
        raise quantization.refuse(f"'{scale.name}' has the shape {scale_shape}, not {expected}")
    if zero is not None and math.prod(zero.shape) != count:
        raise quantization.refuse(f"'{zero.name}' has the shape {zero.shape}, not {scale_shape}")
    _check_scales(quantization, schemes, scale, shape)
    return ScaledTensor(shape, codes.name, scale.name, block, zero.name if zero else "")


def _gptq(quantization: Quantization, entries: _Entries, parts: StoredParts) -> _Tensors:
    settings = quantization.settings
    form = str(settings.get("checkpoint_format") or settings.get("format") or "gptq")
    size = int(settings.get("group_size", -1))
    schemes = [{"group_size": size if size > 0 else -1}]
    if form not in {"gptq", "gptq_v2"}:
        raise quantization.refuse(f"its format '{form:.40}' is not supported")
    for stem in _stems(entries, "qweight"):
        words, outputs = entries[f"{stem}qweight"].shape
        zero_groups, zero_words = entries[f"{stem}qzeros"].shape
        bits = 32 * zero_words // outputs
        if bits not in {2, 3, 4, 8} or bits * outputs != 32 * zero_words:
            raise quantization.refuse(
                f"'{stem}qzeros' does not fit {outputs} outputs of 2, 3, 4 or 8 bits"
            )
        inputs, order = 32 * words // bits, entries.get(f"{stem}g_idx")
        groups = entries[f"{stem}scales"].shape[0]
        group = inputs if size <= 0 else size
        if entries[f"{stem}scales"].shape != (zero_groups, outputs) or groups < 1:
            raise quantization.refuse(
                f"'{stem}scales' does not fit {outputs} outputs and {zero_groups} zero points each"
            )
        if order is None:
            _check_scales(quantization, schemes, entries[f"{stem}scales"], (outputs, inputs))
        else:
            _check_order(quantization, f"{stem}g_idx", inputs, groups, parts)
        shape, offset = (outputs, inputs), int(form == "gptq")
        yield f"{stem}weight", GptqTensor(shape, stem, bits, group, offset, order is not None)


def _check_order(
    quantization: Quantization, name: str, inputs: int, groups: int, parts: StoredParts
) -> None:
    order = np.asarray(parts.whole(name))
    if order.shape != (inputs,) or not 0 <= int(order.min()) <= int(order.max()) < groups:
        raise quantization.refuse(
            f"'{name}' does not assign an existing group to each of {inputs} inputs"
        )


def _awq(quantization: Quantization, entries: _Entries, parts: StoredParts) -> _Tensors:
    settings = quantization.settings
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    bits = int(settings.get("bits") or settings.get("w_bit") or 4)
    if version != "gemm" or bits != 4:
        raise quantization.refuse(f"version '{version:.40}', {bits} bits; gemm of 4 is supported")
    schemes = [{"group_size": settings.get("group_size") or settings.get("q_group_size")}]
    for stem in _stems(entries, "qweight"):
        inputs, words = entries[f"{stem}qweight"].shape
        groups, outputs = entries[f"{stem}scales"].shape
        if outputs != 8 * words or entries[f"{stem}qzeros"].shape != (groups, words):
            raise quantization.refuse(f"'{stem}scales' and qzeros do not fit {8 * words} outputs")
        if inputs % groups:
            raise quantization.refuse(f"'{stem}scales' has {groups} groups of {inputs} inputs")
        _check_scales(quantization, schemes, entries[f"{stem}scales"], (outputs, inputs))
        yield f"{stem}weight", AwqTensor((outputs, inputs), stem, inputs // groups)


def _bitsandbytes(quantization: Quantization, entries: _Entries, parts: StoredParts) -> _Tensors:
    for stem in _stems(entries, "SCB"):
        codes = entries[f"{stem}weight"]
        if len(codes.shape) != 2 or entries[f"{stem}SCB"].shape != codes.shape[:1]:
            raise quantization.refuse(
                f"'{stem}SCB' does not have one value per row of {codes.shape}"
            )
        if any(_read_integers(parts, f"{stem}weight_format", entries)):
            raise quantization.refuse(f"'{stem}weight' is stored in a GPU tile layout")
        yield f"{stem}weight", Int8Tensor(codes.shape, f"{stem}weight", f"{stem}SCB")
    marker = "weight.quant_state.bitsandbytes__"
    for name in entries:
        if marker not in name:
            continue
        stem = name.partition("quant_state.")[0]
        if entries[name].size_bytes > _MAX_SMALL_BYTES:
            raise quantization.refuse(f"'{name}' is too large for a quantization state")
        state = json.loads(bytes(parts.whole(name).tobytes()))
        yield stem[:-1], _blockwise(quantization, stem, state, entries)


def _read_integers(parts: StoredParts, name: str, entries: _Entries) -> list[int]:
    """Return the values of a small integer tensor; none if it is missing or large."""
    entry = entries.get(name)
    if entry is None or entry.size_bytes > _MAX_SMALL_BYTES:
        return []
    return [int(value) for value in parts.whole(name).reshape(-1)]


def _blockwise(
    quantization: Quantization,
    stem: str,
    state: Mapping[str, Any],
    entries: _Entries,
) -> BlockwiseTensor:
    shape, block = tuple(int(n) for n in state["shape"]), int(state["blocksize"])
    codes, nested = entries[stem[:-1]], None
    count = math.prod(shape)
    blocks = -(-count // block)
    sizes = {"absmax": blocks, "quant_map": 16}
    if f"{stem}nested_absmax" in entries:
        run = int(state["nested_blocksize"])
        sizes |= {"nested_absmax": -(-blocks // run), "nested_quant_map": 256}
        offset = float(state["nested_offset"])
        nested = NestedQuantization(run, offset, f"{stem}nested_absmax", f"{stem}nested_quant_map")
    if codes.dtype != "U8" or codes.size_bytes != -(-count // 2) or min(shape) < 1 or block < 1:
        raise quantization.refuse(f"'{stem[:-1]}' does not have {count} codes of 4 bits")
    for part, size in sizes.items():
        if math.prod(entries[f"{stem}{part}"].shape) != size:
            raise quantization.refuse(f"'{stem}{part}' does not have {size} elements")
    return BlockwiseTensor(shape, stem[:-1], block, f"{stem}absmax", f"{stem}quant_map", nested)


def _compressed(quantization: Quantization, entries: _Entries, parts: StoredParts) -> _Tensors:
    sparse = quantization.settings.get("sparsity_config")
    if isinstance(sparse, Mapping) and sparse.get("format", "dense") != "dense":
        raise quantization.refuse(f"its sparse format '{sparse['format']!s:.40}' is not supported")
    if quantization.settings.get("transform_config"):
        raise quantization.refuse("its weights were rotated (transform_config)")
    schemes = [
        dict(group["weights"], format=group.get("format") or quantization.settings.get("format"))
        for group in (quantization.settings.get("config_groups") or {}).values()
        if isinstance(group, Mapping) and group.get("weights")
    ]
    for stem in _stems(entries, "weight_packed"):
        yield f"{stem}weight", _packed(quantization, stem, schemes, entries, parts)
    for stem in _stems(entries, "weight_scale"):
        codes = entries.get(f"{stem}weight")
        if codes is None or codes.dtype not in _EIGHT:
            continue
        scale = entries[f"{stem}weight_scale"]
        zero = entries.get(f"{stem}weight_zero_point")
        yield codes.name, _scaled(quantization, codes, scale, zero, schemes)


def _count_scales(scheme: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    """Return how many scales a scheme gives tensors of this shape, or 0 if it does not say."""
    *matrices, rows, columns = shape
    group, strategy = int(scheme.get("group_size") or 0), scheme.get("strategy")
    if block := scheme.get("block_structure"):
        rows, columns = -(-rows // int(block[0])), -(-columns // int(block[1]))
    elif group or strategy == "channel":
        columns = -(-columns // group) if group > 0 else 1
    else:
        rows = columns = int(strategy == "tensor")
    return math.prod((*matrices, rows, columns))


def _check_scales(
    quantization: Quantization, schemes: _Schemes, scale: TensorEntry, shape: tuple[int, ...]
) -> None:
    """Raise an error if no scheme gives this number of scales: some may be cut off."""
    counts = {_count_scales(scheme, shape) for scheme in schemes} or {0}
    if 0 not in counts and math.prod(scale.shape) not in counts:
        stated = " or ".join(map(str, sorted(counts)))
        raise quantization.refuse(f"'{scale.name}' {scale.shape} does not hold {stated} scales")


def _packed(
    quantization: Quantization,
    stem: str,
    schemes: _Schemes,
    entries: _Entries,
    parts: StoredParts,
) -> PackedTensor:
    codes, scale = entries[f"{stem}weight_packed"], entries[f"{stem}weight_scale"]
    over = f"{stem}weight_global_scale"
    if codes.dtype == "U8":
        wide = (codes.shape[0], 2 * codes.shape[1])
        form = {str(scheme.get("format")) for scheme in schemes}
        known = {"nvfp4-pack-quantized", "mxfp4-pack-quantized", "mixed-precision"}
        is_whole = f"{stem}weight_zero_point" not in entries
        if not form <= known or (over in entries) == (scale.dtype == "U8") or not is_whole:
            raise quantization.refuse(f"'{codes.name}' is in a format that is not supported")
        _check_scales(quantization, schemes, scale, wide)
        return PackedTensor(
            wide, codes.name, scale.name, 4, _group(quantization, wide, scale), is_float=True,
            over=over if over in entries else "", is_divided=True,
        )  # fmt: skip
    shape = tuple(_read_integers(parts, f"{stem}weight_shape", entries))
    if len(shape) != 2 or codes.dtype != "I32" or codes.shape[0] != shape[0]:
        raise quantization.refuse(f"'{codes.name}' {codes.shape} does not fit the shape {shape}")
    bits = {
        int(scheme["num_bits"])
        for scheme in schemes
        if -(-shape[1] * int(scheme["num_bits"]) // 32) == codes.shape[1]
    }
    if len(bits) != 1:
        raise quantization.refuse(f"'{codes.name}' {codes.shape} has an unsupported packing")
    zero, order = f"{stem}weight_zero_point", f"{stem}weight_g_idx"
    ordered = order in entries and bool((np.asarray(parts.whole(order)) >= 0).all())
    groups = scale.shape[-1] if len(scale.shape) > 1 else 1
    if ordered:
        _check_order(quantization, order, shape[1], groups, parts)
    width = bits.pop()
    if ordered and math.prod(scale.shape) != shape[0] * groups:
        raise quantization.refuse(f"'{scale.name}' {scale.shape} does not fit {shape}")
    if zero in entries and entries[zero].shape not in {
        (-(-shape[0] * width // 32), groups),
        (shape[0], groups),
    }:
        raise quantization.refuse(f"'{zero}' {entries[zero].shape} does not fit {shape}")
    _check_scales(quantization, schemes, scale, shape)
    group = 1 if ordered else _group(quantization, shape, scale)
    return PackedTensor(
        shape, codes.name, scale.name, width, group,
        zero=zero if zero in entries else "", order=order if ordered else "",
    )  # fmt: skip


def _group(quantization: Quantization, shape: tuple[int, ...], scale: TensorEntry) -> int:
    """Return the number of columns that share a scale."""
    count = math.prod(scale.shape)
    groups = 1 if count == 1 else count // shape[0]
    if count not in {1, groups * shape[0]} or not groups or shape[1] % groups:
        raise quantization.refuse(f"'{scale.name}' {scale.shape} does not fit {shape}")
    return shape[1] // groups


def _modelopt(quantization: Quantization, entries: _Entries, parts: StoredParts) -> _Tensors:
    settings = quantization.settings
    if (settings.get("quant_algo") or settings.get("quant_algorithm")) not in ("FP8", "NVFP4"):
        raise quantization.refuse("only FP8 and NVFP4 of this method are supported")
    yield from _fp8(quantization, entries, parts)
    for stem in _stems(entries, "weight_scale_2"):
        codes, scale = entries[f"{stem}weight"], entries[f"{stem}weight_scale"]
        if codes.dtype == "U8" and scale.dtype == "F8_E4M3":
            shape = (codes.shape[0], 2 * codes.shape[1])
            _check_scales(quantization, [settings], scale, shape)
            yield codes.name, PackedTensor(
                shape, codes.name, scale.name, 4, _group(quantization, shape, scale), is_float=True,
                over=f"{stem}weight_scale_2",
            )  # fmt: skip


def _mxfp4(quantization: Quantization, entries: _Entries, parts: StoredParts) -> _Tensors:
    for name, codes in entries.items():
        stem = name.removesuffix("_blocks")
        if stem == name:
            continue
        scales = entries[f"{stem}_scales"]
        if (
            (len(codes.shape), codes.dtype, scales.dtype) != (4, "U8", "U8")
            or scales.shape != codes.shape[:3]
            or codes.shape[3] != 16
        ):
            raise quantization.refuse(f"'{name}' {codes.shape} is not (experts, outputs, runs, 16)")
        experts, outputs, runs, half = codes.shape
        yield stem, Mxfp4Experts((experts, 2 * half * runs, outputs), name, f"{stem}_scales")


def _stems(entries: _Entries, last: str) -> Iterator[str]:
    """Yield the prefix of every name with the given last part."""
    for name in entries:
        head, _, tail = name.rpartition(".")
        if tail == last:
            yield f"{head}." if head else ""


_LAYOUTS: Mapping[str, Callable[[Quantization, _Entries, StoredParts], _Tensors]] = {
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    "fbgemm_fp8": _fp8,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
}
