"""Export of a checkpoint to a GGUF file of one type (f32, f16, bf16, q8_0 quantization).

Tensors are converted one at a time to the given type; vectors (norms, biases) stay float32, as
llama.cpp requires, and for ``q8_0`` a matrix whose row length is not a multiple of 32 is stored as
float16 and counted in the report. The origin of the checkpoint is stored under ``stillroom.*``.

The package ``gguf`` (of the ggml project) writes the format and quantizes. Independent of
llama.cpp: ``comparison`` checks the result.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import psutil

from stillroom import __version__
from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.card import read_card
from stillroom.checkpoints.config_file import read_end_tokens
from stillroom.checkpoints.quantization import drop_quantization
from stillroom.errors import CheckpointError, DataError, MissingExtraError
from stillroom.models.gguf.layout import (
    GgufLayout,
    GgufVocabulary,
    plan_gguf_layout,
    read_vocabulary,
)
from stillroom.models.local.causal_lm import load_tokenizer, resolve_config
from stillroom.objects.disk import full_disk_as_error, replace_file
from stillroom.provenance import Artifact
from stillroom.records import Origin

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from numpy.typing import NDArray

__all__ = [
    "GGUF_TYPES",
    "GgufExport",
    "GgufType",
    "export_gguf",
]


if TYPE_CHECKING:
    Array = NDArray[Any]


GgufType = Literal["f32", "bf16", "f16", "q8_0"]
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)
_GGUF_TYPES: Mapping[str, GgufType] = {"F32": "f32", "BF16": "bf16", "F16": "f16"}
_FILE_TYPES: Mapping[GgufType, int] = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_BLOCK = 32
_F16_MAX = 65504.0
_QUANTIZATION_VERSION = 2
_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class GgufExport:
    """Exported file: tensors by type, skipped tensors and notes."""

    path: Path
    architecture: str
    type: GgufType
    tensors: Mapping[str, int]
    size_bytes: int
    fingerprint: str
    splitting: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        values = asdict(self)
        return {"out": str(values.pop("path")), **values}


def export_gguf(
    folder: Path,
    out: Path,
    *,
    type: GgufType | None = None,
    name: str = "",
    artifact: Artifact | None = None,
    overwrite: bool = False,
    prove: Callable[[Path, GgufType], object] | None = None,
) -> GgufExport:
    """Export a Hugging Face folder to one GGUF file; deterministic, byte for byte.

    Args:
        folder: Folder with config.json, safetensors and a tokenizer.
        out: Output file, written atomically.
        type: Type of the matrices; default: that of most of them.
        name: Model name in the file; default: ``out`` without its suffix.
        artifact: Job of the folder: its origin and parents are stored, too.
        overwrite: Replace an existing file.
        prove: Called with the finished file and its type before it is moved to ``out``; an
            exception leaves ``out`` unchanged.

    Raises:
        CheckpointError: If the architecture, the tokenizer, a setting or a tensor is not supported,
            or a number exceeds the range of float16.
        DataError: If ``out`` exists.
        MissingExtraError: If the package gguf is not installed.
        ResourceError: If the disk is full.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError.of("gguf", "gguf", "writing a GGUF file") from error
    if out.exists() and not overwrite:
        raise DataError(
            f"{out} exists already",
            code="data.exists",
            expected="a new file name",
            next="give another --out, or --overwrite",
        )
    checkpoint = Checkpoint.open(folder)
    layout = plan_gguf_layout(checkpoint, drop_quantization(resolve_config(checkpoint.folder)))
    vocabulary = _read_vocabulary(checkpoint, layout)
    gguf_type = type or _find_common_type(checkpoint, layout)
    counts: Counter[str] = Counter()
    with _write_atomically(out) as temporary:
        writer = gguf.GGUFWriter(temporary, layout.architecture)
        try:
            _write_metadata(writer, checkpoint, artifact, name or out.stem, gguf_type)
            for setting in layout.settings:
                setting(writer)
            vocabulary.write_to(writer)
            _write_tensors(writer, checkpoint, layout, gguf_type, counts)
        finally:
            writer.close()
        if prove is not None:
            prove(temporary, gguf_type)
    source = checkpoint.dequantized_from
    source_notes = (f"the weights are dequantized from {source}",) if source else ()
    notes = (*source_notes, *layout.notes, *vocabulary.notes)
    if gguf_type == "q8_0" and counts["f16"]:
        rows = f"{counts['f16']} matrices have rows no multiple of {_BLOCK} long: kept as f16"
        notes = (*notes, rows)
    size = out.stat().st_size
    return GgufExport(
        out, layout.architecture, gguf_type, dict(counts), size, checkpoint.fingerprint,
        vocabulary.splitting, layout.left_out, notes,
    )  # fmt: skip


def _read_vocabulary(checkpoint: Checkpoint, layout: GgufLayout) -> GgufVocabulary:
    embedding = layout.names["token_embd.weight"]
    ends = read_end_tokens(checkpoint.folder, "generation_config.json")
    rows = checkpoint.shape(embedding)[0]
    return read_vocabulary(load_tokenizer(checkpoint.folder), rows, checkpoint.folder, ends)


def _find_common_type(checkpoint: Checkpoint, layout: GgufLayout) -> GgufType:
    """Return the type of most matrices of a checkpoint."""
    names = layout.names.values()
    dtypes = [checkpoint.entry(name).dtype for name in names if len(checkpoint.shape(name)) > 1]
    dtype = Counter(dtypes).most_common(1)[0][0]
    if dtype not in _GGUF_TYPES:
        raise CheckpointError(
            f"its matrices have dtype {dtype}",
            code="checkpoint.dtype",
            where=str(checkpoint.folder),
            expected="float32, bfloat16 or float16",
            next="dequantize the checkpoint with transformers first",
        )
    return _GGUF_TYPES[dtype]


@contextmanager
def _write_atomically(out: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder beside ``out``; move it there after success.

    A process that was killed leaves its folder, of the model's size; the next export removes it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for folder in out.parent.glob(f".{glob.escape(out.name)}.[0-9]*.tmp"):
        number = folder.suffixes[-2].removeprefix(".")
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(folder, ignore_errors=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp") / "model.gguf"
    with full_disk_as_error(out):
        try:
            temporary.parent.mkdir(exist_ok=True)
            yield temporary
            replace_file(temporary, out)
        finally:
            shutil.rmtree(temporary.parent, ignore_errors=True)


def _write_metadata(
    writer: GGUFWriter,
    checkpoint: Checkpoint,
    artifact: Artifact | None,
    name: str,
    gguf_type: GgufType,
) -> None:
    """Write name, license, origin and quantization."""
    card = read_card(checkpoint.folder)
    origin = Origin.from_json(artifact.origin) if artifact and artifact.origin else Origin()
    license = origin.license or checkpoint.license
    writer.add_type("model")
    writer.add_name(name)
    writer.add_quantized_by(f"Stillroom {__version__}")
    if license:
        writer.add_license(license)
    bases = [str(base) for base in _as_list(card.get("base_model"))]
    if bases:
        writer.add_base_model_count(len(bases))
        for number, base in enumerate(bases):
            writer.add_base_model_name(number, base)
    tags = [str(tag) for tag in _as_list(card.get("tags"))]
    if tags:
        writer.add_tags(tags)
    writer.add_file_type(_FILE_TYPES[gguf_type])
    if gguf_type == "q8_0":
        writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_string("stillroom.version", __version__)
    writer.add_string("stillroom.fingerprint", checkpoint.fingerprint)
    writer.add_string("stillroom.origin.kind", origin.kind)
    writer.add_string("stillroom.origin", json.dumps(origin.to_json(), sort_keys=True))
    if artifact:
        writer.add_string("stillroom.artifact", artifact.digest)
        writer.add_array(
            "stillroom.parents",
            [f"{parent.role} {parent.digest}" for parent in artifact.parents] or ["none"],
        )


def _as_list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [value] if value else []


def _write_tensors(
    writer: GGUFWriter,
    checkpoint: Checkpoint,
    layout: GgufLayout,
    gguf_type: GgufType,
    counts: Counter[str],
) -> None:
    import numpy as np

    factors = np.asarray(layout.frequencies, dtype=np.float32)
    if len(factors):
        _declare_tensor(writer, _FREQUENCIES, factors.shape, "f32", counts)
    for gguf_name, name in layout.names.items():
        shape = checkpoint.shape(name)
        _declare_tensor(writer, gguf_name, shape, _choose_stored_type(shape, gguf_type), counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if len(factors):
        writer.write_tensor_data(factors)
    for name in layout.names.values():
        values = checkpoint.tensor(name).float().numpy()
        if name in layout.heads:
            values = _interleave(values, layout.heads[name])
        writer.write_tensor_data(
            _convert(values, _choose_stored_type(values.shape, gguf_type), name, checkpoint)
        )


def _declare_tensor(
    writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GgufType, counts: Counter[str]
) -> None:
    import gguf
    import numpy as np

    stored = gguf.GGMLQuantizationType[kind.upper()]
    values, size = gguf.GGML_QUANT_SIZES[stored]
    count = int(np.prod(shape))
    writer.add_tensor_info(name, shape, np.dtype(np.float32), count // values * size, stored)
    counts[kind] += 1


def _choose_stored_type(shape: tuple[int, ...], gguf_type: GgufType) -> GgufType:
    if len(shape) < 2:
        return "f32"
    return "f16" if gguf_type == "q8_0" and shape[-1] % _BLOCK else gguf_type


def _interleave(values: Array, heads: int) -> Array:
    """Interleave the two halves of each head's rows, (heads * D, ...)."""
    rows = values.shape[0]
    halves = values.reshape(heads, 2, rows // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _convert(values: Array, kind: GgufType, name: str, checkpoint: Checkpoint) -> Array:
    import gguf
    import numpy as np

    if kind == "f16" or kind == "q8_0":
        largest = float(np.abs(values).max(initial=0.0))
        limit = _F16_MAX if kind == "f16" else _F16_MAX * 127  # scales of q8_0 are float16
        if not largest <= limit:
            raise CheckpointError(
                f"the tensor '{name:.120}' has the value {largest:g}",
                code="checkpoint.gguf-range",
                where=str(checkpoint.folder),
                expected=f"finite values up to {limit:g} for {kind}",
                next="export with --type bf16 or f32",
            )
    if kind == "f32":
        return np.ascontiguousarray(values)
    if kind == "f16":
        return values.astype(np.float16)
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind.upper()])
