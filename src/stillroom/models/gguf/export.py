"""Export of a checkpoint to one GGUF file.

Tensors are converted one at a time to the given type; vectors (norms, biases) stay float32, as
llama.cpp requires, and for ``q8_0`` a matrix whose row length is not a multiple of 32 is stored as
float16 and counted in the report. The origin of the checkpoint is stored under ``stillroom.*``.

The package ``gguf`` (of the ggml project) writes the format and quantizes. Independent of
llama.cpp: ``compare_gguf`` checks the result.

Three checks: equal token ids of the same texts; equal output of the chat template; and, along
llama.cpp's greedy continuation, the difference of its log-probabilities from transformers' in
float32, and whether both select the same token. Token ids are compared exactly; log-probabilities
differ by rounding and quantization, and are reported.
"""

from __future__ import annotations

import glob
import json
import math
import os
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import psutil

from stillroom import __version__
from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.card import read_card
from stillroom.checkpoints.quantization import drop_quantization
from stillroom.errors import BackendError, CheckpointError, DataError, MissingExtraError
from stillroom.models.gguf.layout import (
    GgufLayout,
    GgufVocabulary,
    plan_gguf_layout,
    read_vocabulary,
)
from stillroom.models.interfaces import BACKENDS
from stillroom.models.local.causal_lm import load_causal_lm, load_tokenizer, resolve_config
from stillroom.objects.disk import full_disk_as_error, replace_file
from stillroom.provenance import Artifact
from stillroom.records import Message, Origin

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from numpy.typing import NDArray

    from stillroom.models.backends.llamacpp import LlamacppModel

    Array = NDArray[Any]

__all__ = [
    "GGUF_TYPES",
    "PROBES",
    "GgufComparison",
    "GgufExport",
    "GgufType",
    "compare_gguf",
    "export_gguf",
    "open_engine",
]


GgufType = Literal["f32", "bf16", "f16", "q8_0"]
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)
_STORED: Mapping[str, GgufType] = {"F32": "f32", "BF16": "bf16", "F16": "f16"}
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
    vocabulary = _vocabulary_of(checkpoint, layout)
    gguf_type = type or _type_of(checkpoint, layout)
    counts: Counter[str] = Counter()
    with _writing(out) as work:
        writer = gguf.GGUFWriter(work, layout.architecture)
        try:
            _describe(writer, checkpoint, artifact, name or out.stem, gguf_type)
            for setting in layout.settings:
                setting(writer)
            vocabulary.write_to(writer)
            _write_tensors(writer, checkpoint, layout, gguf_type, counts)
        finally:
            writer.close()
        if prove is not None:
            prove(work, gguf_type)
    source = checkpoint.dequantized_from
    source_notes = (f"the weights are dequantized from {source}",) if source else ()
    notes = (
        *source_notes,
        *layout.notes,
        *vocabulary.notes,
        *_report_unquantized(counts, gguf_type),
    )
    size = out.stat().st_size
    return GgufExport(
        out, layout.architecture, gguf_type, dict(counts), size, checkpoint.fingerprint,
        vocabulary.splitting, layout.left_out, notes,
    )  # fmt: skip


def _vocabulary_of(checkpoint: Checkpoint, layout: GgufLayout) -> GgufVocabulary:
    embedding = layout.names["token_embd.weight"]
    ends: list[int] = []
    generation = checkpoint.folder / "generation_config.json"
    if generation.is_file():
        end_ids = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
        ends = [end_ids] if isinstance(end_ids, int) else list(end_ids or ())
    rows = checkpoint.shape(embedding)[0]
    return read_vocabulary(load_tokenizer(checkpoint.folder), rows, checkpoint.folder, ends)


def _type_of(checkpoint: Checkpoint, layout: GgufLayout) -> GgufType:
    counted = Counter(
        checkpoint.entry(name).dtype
        for name in layout.names.values()
        if len(checkpoint.shape(name)) > 1
    )
    stored = counted.most_common(1)[0][0]
    if stored not in _STORED:
        raise CheckpointError(
            f"its matrices have dtype {stored}",
            code="checkpoint.dtype",
            where=str(checkpoint.folder),
            expected="float32, bfloat16 or float16",
            next="dequantize the checkpoint with transformers first",
        )
    return _STORED[stored]


@contextmanager
def _writing(out: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder beside ``out``; move it there after success.

    A process that was killed leaves its folder, of the model's size; the next export removes it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for folder in out.parent.glob(f".{glob.escape(out.name)}.[0-9]*.tmp"):
        number = folder.suffixes[-2].removeprefix(".")
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(folder, ignore_errors=True)
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp") / "model.gguf"
    with full_disk_as_error(out):
        try:
            work.parent.mkdir(exist_ok=True)
            yield work
            replace_file(work, out)
        finally:
            shutil.rmtree(work.parent, ignore_errors=True)


def _describe(
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
    bases = [str(base) for base in _join_names(card.get("base_model"))]
    if bases:
        writer.add_base_model_count(len(bases))
        for number, base in enumerate(bases):
            writer.add_base_model_name(number, base)
    tags = [str(tag) for tag in _join_names(card.get("tags"))]
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


def _join_names(value: object) -> Sequence[object]:
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
        _declare_tensors(writer, _FREQUENCIES, factors.shape, "f32", counts)
    for gguf_name, name in layout.names.items():
        shape = checkpoint.shape(name)
        _declare_tensors(writer, gguf_name, shape, _choose_stored_type(shape, gguf_type), counts)
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
            _encode(values, _choose_stored_type(values.shape, gguf_type), name, checkpoint)
        )


def _declare_tensors(
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


def _encode(values: Array, kind: GgufType, name: str, checkpoint: Checkpoint) -> Array:
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


def _report_unquantized(counts: Counter[str], gguf_type: GgufType) -> tuple[str, ...]:
    if gguf_type == "q8_0" and counts["f16"]:
        return (f"{counts['f16']} matrices have rows no multiple of {_BLOCK} long: kept as f16",)
    return ()


PROBES: tuple[str, ...] = (
    "The capital of France is",
    "In 1847 the mill ground 320 sacks; by 1851, 1234567.89 had been paid.",
    "  def still(wine):\n\t\treturn [w for w in wine if w >= 0.5]  # it's warm\n\n\n",
    "Größe, naïveté, Ærø, l’été; Ελληνικά, Русский, 日本語, 한국어, العربية",
    "emoji 🍷🧪, CAPITALS don'T matter; a\r\nb    c\u00a0d",
    "What is distilled twice is",
)
"""Texts on which pre-tokenizers differ: digits, spaces, contractions, scripts, punctuation."""

_PROBE_MESSAGES = (
    Message("user", "What is a still?"),
    Message("assistant", "A vessel."),
    Message("user", "Why?"),
)

_TOKENS, _TOP, _CONTEXT = 24, 10, 512

_MAX_DIFFERENCE_NATS: Mapping[GgufType, float] = {
    "f32": 0.02,
    "f16": 0.02,
    "bf16": 0.1,
    "q8_0": 0.4,
}
"""At least four times the mean difference by rounding: 0.0018, 0.0038, 0.021 and 0.10 for
SmolLM2-135M, over 130 positions. The KV cache is float16 for all types.
"""


@contextmanager
def open_engine(path: Path, context: int) -> Iterator[LlamacppModel]:
    """Open a GGUF file in llama.cpp for a context of so many tokens."""
    # One thread: llama.cpp's threads spin at barriers, and stall on a busy machine.
    settings = {"name": "llamacpp", "context_length": context, "instances": 1, "num_threads": 1}
    engine = cast("LlamacppModel", BACKENDS.build(settings).open(str(path)))
    try:
        yield engine
    finally:
        engine.close()


@dataclass(frozen=True, slots=True)
class GgufComparison:
    """Agreement of a GGUF file with its checkpoint.

    ``template`` is ``alike``, ``unlike`` or ``none``; differences are of log-probabilities, in
    nats, over the most probable tokens at ``positions`` positions.
    """

    texts: int
    texts_alike: int
    template: str
    positions: int
    same_token: int
    mean_difference: float
    largest_difference: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a one-line summary."""
        if not self.positions:
            return (
                f"{self.texts_alike} of {self.texts} texts tokenized alike; llama.cpp wrote nothing"
            )
        return (
            f"{self.texts_alike} of {self.texts} texts tokenized alike; chat template "
            f"{self.template}; "
            f"{self.same_token} of {self.positions} greedy tokens the same; log-probabilities "
            f"differ by {self.mean_difference:.2g} nats on average, {self.largest_difference:.2g} "
            "at most"
        )


def compare_gguf(
    folder: Path,
    path: Path,
    type: GgufType,
    *,
    probes: Sequence[str] = PROBES,
    name: Path | None = None,
) -> GgufComparison:
    """Compare a GGUF file in llama.cpp with the folder it was exported from.

    Raises:
        CheckpointError: If a text is tokenized differently, or log-probabilities differ too much,
            are NaN or missing.
        MissingExtraError: If xllamacpp is not installed.
    """
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    with open_engine(path, _CONTEXT) as engine:
        cut = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in probes]
        unlike = [
            text for text, ids in zip(probes, cut, strict=True) if engine.tokenize(text) != ids
        ]
        template = _compare_template(tokenizer, engine)
        same, differences = _compare_logprobs(model, tokenizer, engine, cut)
    comparison = GgufComparison(
        len(probes),
        len(probes) - len(unlike),
        template,
        len(same),
        sum(same),
        statistics.fmean(differences) if differences else math.nan,
        math.nan if any(map(math.isnan, differences)) else max(differences, default=math.nan),
    )
    if (
        unlike or not comparison.mean_difference <= _MAX_DIFFERENCE_NATS[type]
    ):  # no number is near no number
        raise CheckpointError(
            f"llama.cpp disagrees with transformers: {comparison}",
            code="checkpoint.gguf-unlike",
            where=str(name or path),
            expected="equal tokens of every text, and log-probabilities that differ by rounding "
            "only",
            next=f"use llama.cpp's converter; first text tokenized differently: {unlike[0]!r:.80}"
            if unlike
            else "use llama.cpp's converter; report the architecture and config.json",
        )
    return comparison


def _compare_template(tokenizer: Any, engine: LlamacppModel) -> str:
    if not tokenizer.chat_template:
        return "none"
    turns = [message.to_json() for message in _PROBE_MESSAGES]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    try:
        rendered = engine.render(_PROBE_MESSAGES)
    except BackendError:
        return "unlike"
    mark = tokenizer.bos_token or ""
    return "alike" if rendered.removeprefix(mark) == expected.removeprefix(mark) else "unlike"


def _compare_logprobs(
    model: Any, tokenizer: Any, engine: LlamacppModel, cut: Sequence[list[int]]
) -> tuple[list[bool], list[float]]:
    """Return, per greedy token, whether transformers agrees, and all differences in nats."""
    import torch

    ends = {tokenizer.eos_token_id}
    same: list[bool] = []
    differences: list[float] = []
    for ids in cut:
        steps = engine.continue_tokens(ids, _TOKENS, _TOP)
        sequence = torch.tensor([[*ids, *(token for token, _ in steps)]])
        with torch.no_grad():
            logits = model(sequence).logits[0].float()
        chances = torch.log_softmax(logits, dim=-1)  # (T, V)
        for position, (token, likely) in enumerate(steps, len(ids) - 1):
            if token in ends:
                break
            same.append(int(chances[position].argmax()) == token)
            differences += [
                abs(float(chances[position, key]) - logprob) for key, logprob in likely.items()
            ]
    return same, differences
