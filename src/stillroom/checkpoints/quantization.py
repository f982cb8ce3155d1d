"""Quantization schemes of checkpoints, and the tensors that quantized weights represent.

A layout that is known becomes plain tensors under the names that the architecture gives them; any
other is refused by its name, and so is a folder whose tensors are codes while nothing says of what:
codes that are read as weights, apart from their scales, are numbers without a meaning. Plain
weights stay what they are where something of quantization was left beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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

_KEYS = ("quantization_config", "compression_config")
_FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq"}
_EIGHT = frozenset({"F8_E4M3", "F8_E5M2", "I8", "U8"})
_PLAIN = frozenset({"F16", "BF16", "F32", "F64"})
_SUFFIXES = ("qweight", "weight_packed", "SCB", "absmax", "_scale_inv", "weight_scale_2")
_CODES = frozenset({"weight", "qweight", "weight_packed"})
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "output_scale", "input_global_scale")
_OF_CACHE = (".k_scale", ".v_scale", ".q_scale")
_ENDS = (
    *("_scale", "_scale_inv", "_scale_2", "_global_scale", "_zero_point", "_shape", "_g_idx"),
    *("_format", "_packed", "_blocks", "_scales"),
)
_MAX_NOTES = 1_000_000
_LARGEST_NOTE = 65_536
_LONGEST_LABEL = 80


@dataclass(frozen=True)
class Quantization:
    """How the weights of a folder are quantized.

    ``method`` is the name that the libraries give it, ``said`` all that is said of it; ``label``
    what a reader is told.
    """

    method: str
    said: Mapping[str, Any]
    folder: Path

    @property
    def label(self) -> str:
        """Its name with what tells it from others of that name."""
        bits = self.said.get("bits") or self.said.get("w_bit")
        if self.method == "bitsandbytes":
            four = self.said.get("load_in_4bit") or self.said.get("_load_in_4bit")
            kind = str(self.said.get("bnb_4bit_quant_type") or "fp4") if four else "int8"
            return f"bitsandbytes {kind}"[:_LONGEST_LABEL]
        detail = self.said.get("format") or self.said.get("quant_algo")
        detail = detail or (f"{bits} bits" if bits else "")
        return f"{self.method} {detail}".strip()[:_LONGEST_LABEL]

    def refuse(self, what: str) -> CheckpointError:
        """Return the error that says what of it is not known here."""
        return CheckpointError(
            f"the weights are quantized ({self.label}): {what:.200}",
            code="checkpoint.quantized",
            where=str(self.folder),
            expected=f"plain weights, or one of: {', '.join(sorted(_LAYOUTS))}",
            next="give the original model, or dequantize it with the library that made it",
        )


def find_quantization(folder: Path, config: Mapping[str, Any]) -> Quantization | None:
    """Return what config.json, or a file of quantization beside it, says; None for plain weights.

    Raises:
        CheckpointError: If what is said is no mapping.
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
    """Return a config without what it says of quantization."""
    plain = {key: value for key, value in config.items() if key not in _KEYS}
    inner = plain.get("text_config")
    if isinstance(inner, Mapping):
        plain["text_config"] = {key: value for key, value in inner.items() if key not in _KEYS}
    return plain


def map_quantized_tensors(
    found: Quantization | None, folder: Path, entries: Mapping[str, TensorEntry], parts: StoredParts
) -> tuple[dict[str, QuantizedTensor], frozenset[str]]:
    """Return the tensors that stored ones stand for, and the names of those that make them up.

    Args:
        found: What is said of them; None where nothing is.
        folder: Named in errors.
        entries: What is stored.
        parts: Reads what says shapes.

    Raises:
        CheckpointError: If the layout is not known, or the tensors are not as it says.
    """
    if found is None:
        _refuse_undeclared(folder, entries)
        return {}, frozenset()
    if found.method not in _LAYOUTS:
        _refuse_unknown(found, entries)
        return {}, frozenset()
    try:
        tensors = dict(_LAYOUTS[found.method](found, entries, parts))
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise found.refuse(f"its tensors are not as it says ({error!s:.120})") from error
    used = {name for name in entries if name.endswith(_OF_ACTIVATIONS)} if tensors else set()
    used |= {name for name in entries if name.endswith(_OF_CACHE)} if tensors else set()
    for name, each in tensors.items():
        used |= _belonging(name, each, entries)
    left = [name for name in entries if name not in used and _is_code(name, entries)]
    if left:
        raise found.refuse(f"'{left[0]}' ({entries[left[0]].dtype}) has no scales that are known")
    return tensors, frozenset(used)


def _read(folder: Path, said: Any, method: str) -> Quantization:
    if not isinstance(said, Mapping):
        raise CheckpointError(
            f"what it says of quantization is no mapping: {said!r:.60}",
            code="checkpoint.config",
            where=str(folder),
            expected="quantization_config as the library that quantized wrote it",
            next="download config.json again",
        )
    inner = said.get("quantization")
    if method == "modelopt" and isinstance(inner, Mapping):
        said = inner
    named = said.get("quant_method") or method
    if not named and (said.get("load_in_8bit") or said.get("load_in_4bit")):
        named = "bitsandbytes"
    return Quantization(str(named or "an unnamed method").lower(), said, folder)


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_NOTES:
            raise ValueError(f"it is larger than {_MAX_NOTES} bytes")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error!s:.120}",
            code="checkpoint.config",
            where=str(path),
            expected="JSON as the library that quantized wrote it",
            next="download the file again",
        ) from error


def _is_code(name: str, entries: Mapping[str, TensorEntry]) -> bool:
    """Return whether a tensor holds codes of weights, or scales that only codes need."""
    entry = entries[name]
    last = name.rpartition(".")[2]
    is_narrow = entry.dtype in _EIGHT or entry.dtype == "I32"
    return name.endswith(_SUFFIXES) or (last in _CODES and len(entry.shape) > 1 and is_narrow)


def _refuse_unknown(found: Quantization, entries: Mapping[str, TensorEntry]) -> None:
    """Refuse a layout that is not known, unless all that is stored is plain.

    How it names its codes is not known either, so anything but floats of 16 bits and more counts as
    codes, and so does whatever is called a scale.
    """
    for name, entry in entries.items():
        is_scale = "scale" in name.rpartition(".")[2]
        if entry.dtype not in _PLAIN or is_scale or _is_code(name, entries):
            raise found.refuse(f"this layout is not known here ('{name:.120}', {entry.dtype})")


def _refuse_undeclared(folder: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Refuse codes of which config.json does not say that they are; 8-bit floats may be weights."""
    for name, entry in entries.items():
        is_float = entry.dtype.startswith("F8") and not {f"{name}_scale", f"{name}_scale_inv"} & (
            entries.keys()
        )
        if _is_code(name, entries) and not is_float:
            raise CheckpointError(
                f"'{name:.120}' ({entry.dtype}) looks quantized, and config.json does not say how",
                code="checkpoint.quantized",
                where=str(folder),
                expected="plain weights, or a config.json with quantization_config",
                next="restore the config.json that the quantized model came with",
            )


def _belonging(name: str, each: QuantizedTensor, entries: Mapping[str, TensorEntry]) -> set[str]:
    """Return the stored tensors that make up a quantized one, and that nothing else needs."""
    whole = {f"{name}{end}" for end in _ENDS} | {name}
    if isinstance(each, AwqTensor | GptqTensor):
        whole |= {f"{each.stem}{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    if isinstance(each, Int8Tensor):
        whole.add(each.largest)
    if isinstance(each, BlockwiseTensor):
        whole |= {listed for listed in entries if listed.startswith(f"{name}.")}
    return whole & entries.keys()


def _fp8(
    found: Quantization, entries: Mapping[str, TensorEntry], parts: StoredParts
) -> Iterator[tuple[str, QuantizedTensor]]:
    """8-bit floats with one scale, one a row, or one a block, which is multiplied."""
    stated = found.said.get("weight_block_size")
    for name, entry in entries.items():
        if entry.dtype not in {"F8_E4M3", "F8_E5M2"}:
            continue
        scale = next((s for s in (f"{name}_scale_inv", f"{name}_scale") if s in entries), "")
        if scale:
            yield name, _scaled(found, name, entry, entries[scale], None, stated)


def _scaled(
    found: Quantization,
    name: str,
    codes: TensorEntry,
    scale: TensorEntry,
    zero: TensorEntry | None,
    stated: Any,
) -> ScaledTensor:
    """Return codes with their scales, the block that shares one found from shapes and settings."""
    shape, given = codes.shape, scale.shape
    tall, wide = shape[-2:] if len(shape) > 1 else (1, shape[0])
    count = math.prod(given)
    if count == 1 or given == (*shape[:-2], 1, 1):
        block = (tall, wide)
    elif given in {(tall,), (*shape[:-1], 1)} and len(shape) > 1:
        block = (1, wide)
    elif stated:
        block = (int(stated[0]), int(stated[1]))
    elif len(given) == len(shape) and given[-2] == tall and wide % given[-1] == 0:
        block = (1, wide // given[-1])
    else:
        raise found.refuse(f"'{scale.name}' {given} does not say which of {shape} share a scale")
    expected = (*shape[:-2], -(-tall // block[0]), -(-wide // block[1]))
    if count not in {1, math.prod(expected)} or len(shape) not in {2, 3}:
        raise found.refuse(f"'{scale.name}' has the shape {given}, not {expected}")
    if zero is not None and math.prod(zero.shape) != count:
        raise found.refuse(f"'{zero.name}' has the shape {zero.shape}, not {given}")
    return ScaledTensor(shape, name, scale.name, block, zero.name if zero else "")


def _gptq(
    found: Quantization, entries: Mapping[str, TensorEntry], parts: StoredParts
) -> Iterator[tuple[str, QuantizedTensor]]:
    form = str(found.said.get("checkpoint_format") or found.said.get("format") or "gptq")
    if form not in {"gptq", "gptq_v2"}:
        raise found.refuse(f"its format '{form:.40}' is not known here")
    for stem in _stems(entries, "qweight"):
        words, outputs = entries[f"{stem}qweight"].shape
        bits = 32 * entries[f"{stem}qzeros"].shape[1] // outputs
        if bits not in {2, 3, 4, 8} or bits * outputs != 32 * entries[f"{stem}qzeros"].shape[1]:
            raise found.refuse(
                f"'{stem}qzeros' does not fit {outputs} outputs of 2, 3, 4 or 8 bits"
            )
        inputs, order = 32 * words // bits, entries.get(f"{stem}g_idx")
        groups = entries[f"{stem}scales"].shape[0]
        size = int(found.said.get("group_size", -1))
        group = inputs if size <= 0 else size
        if entries[f"{stem}scales"].shape[1] != outputs or groups < 1:
            raise found.refuse(f"'{stem}scales' does not fit {outputs} outputs")
        if order is None and -(-inputs // group) != groups:
            raise found.refuse(f"'{stem}scales' has {groups} groups, not of {group} inputs")
        if order is not None:
            _check_order(found, f"{stem}g_idx", inputs, groups, parts)
        yield (
            f"{stem}weight",
            GptqTensor(
                (outputs, inputs), stem, bits, group, int(form == "gptq"), order is not None
            ),
        )


def _check_order(
    found: Quantization, name: str, inputs: int, groups: int, parts: StoredParts
) -> None:
    order = np.asarray(parts.whole(name))
    if order.shape != (inputs,) or not 0 <= int(order.min()) <= int(order.max()) < groups:
        raise found.refuse(f"'{name}' does not name a group that is there for each of {inputs}")


def _awq(
    found: Quantization, entries: Mapping[str, TensorEntry], parts: StoredParts
) -> Iterator[tuple[str, QuantizedTensor]]:
    version = str(found.said.get("version") or found.said.get("format") or "gemm").lower()
    bits = int(found.said.get("bits") or found.said.get("w_bit") or 4)
    if version != "gemm" or bits != 4:
        raise found.refuse(
            f"version '{version:.40}' of {bits} bits is not known here; gemm of 4 is"
        )
    for stem in _stems(entries, "qweight"):
        inputs, words = entries[f"{stem}qweight"].shape
        groups, outputs = entries[f"{stem}scales"].shape
        if outputs != 8 * words or entries[f"{stem}qzeros"].shape != (groups, words):
            raise found.refuse(f"'{stem}scales' and qzeros do not fit {8 * words} outputs")
        if inputs % groups:
            raise found.refuse(f"'{stem}scales' has {groups} groups of {inputs} inputs")
        yield f"{stem}weight", AwqTensor((outputs, inputs), stem, inputs // groups)


def _bitsandbytes(
    found: Quantization, entries: Mapping[str, TensorEntry], parts: StoredParts
) -> Iterator[tuple[str, QuantizedTensor]]:
    for stem in _stems(entries, "SCB"):
        codes = entries[f"{stem}weight"]
        if len(codes.shape) != 2 or entries[f"{stem}SCB"].shape != codes.shape[:1]:
            raise found.refuse(f"'{stem}SCB' does not hold one number a row of {codes.shape}")
        if any(_few(parts, f"{stem}weight_format", entries)):
            raise found.refuse(f"'{stem}weight' lies in the order of a GPU's tiles")
        yield f"{stem}weight", Int8Tensor(codes.shape, f"{stem}weight", f"{stem}SCB")
    marker = "weight.quant_state.bitsandbytes__"
    for name in entries:
        if marker not in name:
            continue
        stem = name.partition("quant_state.")[0]
        if entries[name].size_bytes > _LARGEST_NOTE:
            raise found.refuse(f"'{name}' is larger than a note of its state")
        said = json.loads(bytes(parts.whole(name).tobytes()))
        yield stem[:-1], _blockwise(found, stem, said, entries)


def _few(parts: StoredParts, name: str, entries: Mapping[str, TensorEntry]) -> list[int]:
    """Return the numbers of a tensor that may be there and holds a few."""
    entry = entries.get(name)
    if entry is None or entry.size_bytes > _LARGEST_NOTE:
        return []
    return [int(value) for value in parts.whole(name).reshape(-1)]


def _blockwise(
    found: Quantization, stem: str, said: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> BlockwiseTensor:
    shape, block = tuple(int(n) for n in said["shape"]), int(said["blocksize"])
    codes, nested = entries[stem[:-1]], None
    count = math.prod(shape)
    blocks = -(-count // block)
    sizes = {"absmax": blocks, "quant_map": 16}
    if f"{stem}nested_absmax" in entries:
        run = int(said["nested_blocksize"])
        sizes |= {"nested_absmax": -(-blocks // run), "nested_quant_map": 256}
        offset = float(said["nested_offset"])
        nested = NestedQuantization(run, offset, f"{stem}nested_absmax", f"{stem}nested_quant_map")
    if codes.dtype != "U8" or codes.size_bytes != -(-count // 2) or min(shape) < 1 or block < 1:
        raise found.refuse(f"'{stem[:-1]}' does not hold {count} codes of 4 bits")
    for part, size in sizes.items():
        if math.prod(entries[f"{stem}{part}"].shape) != size:
            raise found.refuse(f"'{stem}{part}' does not hold {size} numbers")
    return BlockwiseTensor(shape, stem[:-1], block, f"{stem}absmax", f"{stem}quant_map", nested)


def _compressed(
    found: Quantization, entries: Mapping[str, TensorEntry], parts: StoredParts
) -> Iterator[tuple[str, QuantizedTensor]]:
    sparse = found.said.get("sparsity_config")
    if isinstance(sparse, Mapping) and sparse.get("format", "dense") != "dense":
        raise found.refuse(f"its sparse format '{sparse['format']!s:.40}' is not known here")
    if found.said.get("transform_config"):
        raise found.refuse("its weights were rotated (transform_config)")
    schemes = [
        dict(group["weights"], format=group.get("format") or found.said.get("format"))
        for group in (found.said.get("config_groups") or {}).values()
        if isinstance(group, Mapping) and group.get("weights")
    ]
    for stem in _stems(entries, "weight_packed"):
        yield f"{stem}weight", _packed(found, stem, schemes, entries, parts)
    for stem in _stems(entries, "weight_scale"):
        codes = entries.get(f"{stem}weight")
        if codes is None or codes.dtype not in _EIGHT:
            continue
        stated = next((s["block_structure"] for s in schemes if s.get("block_structure")), None)
        scale = entries[f"{stem}weight_scale"]
        zero = entries.get(f"{stem}weight_zero_point")
        yield f"{stem}weight", _scaled(found, codes.name, codes, scale, zero, stated)


def _packed(
    found: Quantization,
    stem: str,
    schemes: list[dict[str, Any]],
    entries: Mapping[str, TensorEntry],
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
            raise found.refuse(f"'{codes.name}' is in a format that is not known here")
        return PackedTensor(
            wide, codes.name, scale.name, 4, _group(found, wide, scale), is_float=True,
            over=over if over in entries else "", is_divided=True,
        )  # fmt: skip
    shape = tuple(_few(parts, f"{stem}weight_shape", entries))
    if len(shape) != 2 or codes.dtype != "I32" or codes.shape[0] != shape[0]:
        raise found.refuse(f"'{codes.name}' {codes.shape} does not hold {shape}")
    bits = {
        int(scheme["num_bits"])
        for scheme in schemes
        if -(-shape[1] * int(scheme["num_bits"]) // 32) == codes.shape[1]
    }
    if len(bits) != 1:
        raise found.refuse(
            f"'{codes.name}' {codes.shape} is packed in a way that is not known here"
        )
    zero, order = f"{stem}weight_zero_point", f"{stem}weight_g_idx"
    ordered = order in entries and bool((np.asarray(parts.whole(order)) >= 0).all())
    groups = scale.shape[-1] if len(scale.shape) > 1 else 1
    if ordered:
        _check_order(found, order, shape[1], groups, parts)
    width = bits.pop()
    if ordered and math.prod(scale.shape) != shape[0] * groups:
        raise found.refuse(f"'{scale.name}' {scale.shape} does not fit {shape}")
    if zero in entries and entries[zero].shape not in {
        (-(-shape[0] * width // 32), groups),
        (shape[0], groups),
    }:
        raise found.refuse(f"'{zero}' {entries[zero].shape} does not fit {shape}")
    return PackedTensor(
        shape, codes.name, scale.name, width, 1 if ordered else _group(found, shape, scale),
        zero=zero if zero in entries else "", order=order if ordered else "",
    )  # fmt: skip


def _group(found: Quantization, shape: tuple[int, ...], scale: TensorEntry) -> int:
    """Return how many columns share a scale."""
    count = math.prod(scale.shape)
    groups = 1 if count == 1 else count // shape[0]
    if count not in {1, groups * shape[0]} or not groups or shape[1] % groups:
        raise found.refuse(f"'{scale.name}' {scale.shape} does not fit {shape}")
    return shape[1] // groups


def _modelopt(
    found: Quantization, entries: Mapping[str, TensorEntry], parts: StoredParts
) -> Iterator[tuple[str, QuantizedTensor]]:
    named = str(found.said.get("quant_algo") or found.said.get("quant_algorithm"))
    if named not in {"FP8", "NVFP4"}:
        raise found.refuse("FP8 and NVFP4 are known of this method")
    yield from _fp8(found, entries, parts)
    for stem in _stems(entries, "weight_scale_2"):
        codes, scale = entries[f"{stem}weight"], entries[f"{stem}weight_scale"]
        if codes.dtype == "U8" and scale.dtype == "F8_E4M3":
            shape = (codes.shape[0], 2 * codes.shape[1])
            yield codes.name, PackedTensor(
                shape, codes.name, scale.name, 4, _group(found, shape, scale), is_float=True,
                over=f"{stem}weight_scale_2",
            )  # fmt: skip


def _mxfp4(
    found: Quantization, entries: Mapping[str, TensorEntry], parts: StoredParts
) -> Iterator[tuple[str, QuantizedTensor]]:
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
            raise found.refuse(f"'{name}' {codes.shape} is not (experts, outputs, runs, 16)")
        experts, outputs, runs, half = codes.shape
        yield stem, Mxfp4Experts((experts, 2 * half * runs, outputs), name, f"{stem}_scales")


def _stems(entries: Mapping[str, TensorEntry], last: str) -> Iterator[str]:
    """Yield what stands before a last part in every name that ends with it."""
    for name in entries:
        head, _, tail = name.rpartition(".")
        if tail == last:
            yield f"{head}." if head else ""


_LAYOUTS: Mapping[
    str,
    Callable[
        [Quantization, Mapping[str, TensorEntry], StoredParts],
        Iterator[tuple[str, QuantizedTensor]],
    ],
] = {
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    "fbgemm_fp8": _fp8,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
}
