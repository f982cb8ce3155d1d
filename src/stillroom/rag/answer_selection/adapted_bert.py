"""The encoder of a reader or checker in NumPy: its base, low-rank updates (LoRA), and digests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import CheckpointError
from stillroom.models.encoders.numpy_bert import NumpyBert, PlainTokenizer, open_bert
from stillroom.models.hub import resolve_checkpoint
from stillroom.provenance import Parent, digest_json, find_artifact
from stillroom.provenance.sources import is_reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "describe_base",
    "digest_tensors",
    "find_base",
    "find_special_tokens",
    "load_tensors",
    "merge_updates",
    "open_base",
]


def find_special_tokens(tokenizer: PlainTokenizer) -> tuple[int, int]:
    """Return the ids of ``[CLS]`` and ``[SEP]``.

    Raises:
        CheckpointError: If the tokenizer is not BERT's.
    """
    start, stop = map(tokenizer.backend_tokenizer.token_to_id, ("[CLS]", "[SEP]"))
    if start is None or stop is None:
        raise _make_base_error("the encoder's tokenizer has no [CLS] and [SEP]")
    return start, stop


def open_base(reference: str) -> NumpyBert:
    """Open the encoder of a reader.

    Raises:
        CheckpointError: If it is no plain BERT.
    """
    base = open_bert(resolve_checkpoint(reference))
    if base is None:
        raise _make_base_error(f"{reference} is not a plain BERT")
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
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not all(np.isfinite(value).all() for value in tensors.values()):
        raise ValueError(f"{path.name} has numbers that are not finite")
    return tensors


def merge_updates(
    tensors: Mapping[str, NDArray[Any]], scale: float
) -> dict[str, NDArray[np.float32]]:
    """Return the weight updates of low-rank factors ``NAME.lora_A`` (r, in), ``NAME.lora_B``."""
    updates = {}
    for name, down in tensors.items():
        if name.endswith(".lora_A"):
            layer = name.removesuffix(".lora_A")
            up = tensors[f"{layer}.lora_B"].astype(np.float32)
            updates[f"{layer}.weight"] = scale * (up @ down.astype(np.float32))
    return updates


def digest_tensors(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return the digest of the names and bytes of tensors."""
    return digest_json([[name, value.tobytes().hex()] for name, value in sorted(tensors.items())])


def describe_base(base: str) -> Parent:
    """Return an encoder as the parent of what was trained from it."""
    from stillroom.checkpoints import Checkpoint

    return Parent("base", base, Checkpoint.open(resolve_checkpoint(base)).fingerprint, "checkpoint")
