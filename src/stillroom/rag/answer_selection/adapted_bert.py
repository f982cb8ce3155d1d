"""The encoder of a reader or checker in NumPy: its base, low-rank updates (LoRA), and digests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints.safetensors_format import read_header
from stillroom.errors import CheckpointError
from stillroom.models.encoders.int8_layers import can_quantize
from stillroom.models.encoders.numpy_bert import NumpyBert, PlainTokenizer, open_bert
from stillroom.models.encoders.text_encoder import SPECIAL_TOKENS
from stillroom.models.hub import resolve_checkpoint
from stillroom.provenance import Parent, digest_json, find_artifact
from stillroom.provenance.sources import is_reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "adapt_base",
    "describe_base",
    "digest_tensors",
    "find_base",
    "find_special_tokens",
    "load_tensors",
    "open_base",
    "read_numbers",
]

_MAX_FLOAT_WIDTH = 384


def find_special_tokens(tokenizer: PlainTokenizer) -> tuple[int, int]:
    """Return the ids that the tokenizer puts before and after a text, as ``[CLS]`` and ``[SEP]``.

    Raises:
        CheckpointError: If it does not add one on each side.
    """
    ids = tokenizer("")["input_ids"]
    if len(ids) != SPECIAL_TOKENS:
        raise _make_base_error("the encoder's tokenizer adds no [CLS] and [SEP]")
    return ids[0], ids[1]


def open_base(reference: str) -> NumpyBert:
    """Open the encoder of a reader.

    Raises:
        CheckpointError: If it is neither a plain BERT nor an MPNet.
    """
    base = open_bert(resolve_checkpoint(reference))
    if base is None:
        raise _make_base_error(f"{reference} is neither a plain BERT nor an MPNet")
    return base


def _make_base_error(what: str) -> CheckpointError:
    return CheckpointError(
        what,
        code="checkpoint.not-a-bert",
        where="base",
        expected="an encoder such as all-MiniLM-L6-v2",
        next="choose another base",
    )


def find_base(folder: Path, base: str) -> str:
    """Return the base that a file names; a path relative to the training is that of its parent."""
    if is_reference(base) or Path(base).is_absolute() or Path(base).exists():
        return base
    artifact = find_artifact(str(folder.parent))
    parents = artifact.parents if artifact else ()
    return next((parent.path for parent in parents if parent.role == "base"), base)


def load_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a file.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is damaged, or a number in it is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        read_header(path)  # bounds the number of tensors before the library makes objects of them
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except CheckpointError as error:
        raise ValueError(error.problems[0].what) from error
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not all(np.isfinite(value).all() for value in tensors.values()):
        raise ValueError(f"{path.name} has numbers that are not finite")
    return tensors


def read_numbers(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Return numbers of a configuration by name.

    Raises:
        LookupError: If one is missing.
        ValueError: If one is not finite; a TypeError if it is no number.
    """
    try:
        numbers = {name: float(values[name]) for name in names}
    except OverflowError as error:
        raise ValueError(f"a number is too large: {error}") from error
    if broken := [name for name, value in numbers.items() if not math.isfinite(value)]:
        raise ValueError(f"{broken[0]} is {numbers[broken[0]]}")
    return numbers


def adapt_base(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    heads: Mapping[str, int],
    *,
    may_round: bool = False,
) -> tuple[NumpyBert, NumpyBert, dict[str, NDArray[np.float32]]]:
    """Return a folder's base, the base with its low-rank updates, and its heads.

    Args:
        folder: The folder.
        config: Its ``base``, ``alpha`` and ``rank``.
        tensors: Low-rank factors ``NAME.lora_A`` (r, in) and ``NAME.lora_B`` (out, r), ``shared``
            (D,), and of each head ``NAME.weight`` (N, D) and ``NAME.bias`` (N,).
        heads: Number of outputs, N, of each head.
        may_round: Whether layers wider than 384 may multiply 8-bit integers where onnxruntime is.

    Raises:
        CheckpointError: If the base cannot be opened.
        LookupError: If a setting or tensor is missing.
        ValueError: If one does not fit the others, or the numbers overflow.
    """
    base = open_base(find_base(folder, str(config["base"])))
    alpha, rank = read_numbers(config, ("alpha", "rank")).values()
    factors = [name.rpartition(".lora_") for name in tensors if ".lora_" in name]
    if min(alpha, rank) <= 0 or any(
        tensors[f"{layer}.lora_{side}"].shape[side == "B"] != rank for layer, _, side in factors
    ):
        raise ValueError(f"low-rank factors of rank {rank:g} and alpha {alpha:g} are expected")
    shapes: dict[str, tuple[int, ...]] = {"shared": (base.width,)}
    for name, outputs in heads.items():
        shapes |= {f"{name}.weight": (outputs, base.width), f"{name}.bias": (outputs,)}
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} has the shape {tensors[name].shape}, not {shape}")
    to_int8 = may_round and base.width > _MAX_FLOAT_WIDTH and can_quantize()
    pairs = {
        f"{layer}.weight": (tensors[f"{layer}.lora_A"], tensors[f"{layer}.lora_B"])
        for layer in {layer for layer, _, _ in factors}
    }
    with np.errstate(all="ignore"):
        adapted = base.adapt(pairs, alpha / rank, to_int8=to_int8)
        base = base.quantize() if to_int8 else base
        if not np.isfinite(adapted.states([0, 0])).all():
            raise ValueError("its numbers are too large")
    return base, adapted, {name: tensors[name].astype(np.float32) for name in shapes}


def digest_tensors(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return the digest of the names and bytes of tensors."""
    return digest_json([[name, value.tobytes().hex()] for name, value in sorted(tensors.items())])


def describe_base(base: str) -> Parent:
    """Return an encoder as the parent of what was trained from it."""
    from stillroom.checkpoints import Checkpoint

    return Parent("base", base, Checkpoint.open(resolve_checkpoint(base)).fingerprint, "checkpoint")
