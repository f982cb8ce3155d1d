"""Loading of diffusion checkpoints: metadata, format conversion, and a check of the attention mask.

Checkpoints without diffusion metadata are refused: an autoregressive model fed with mask tokens
generates text without an error, and all of it is wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stillroom.checkpoints import Checkpoint
from stillroom.diffusion.interfaces import CHECKPOINT_FORMATS, ConvertedCheckpoint
from stillroom.diffusion.model.metadata import BACKEND_NAME, DiffusionMetadata
from stillroom.diffusion.model.network import DiffusionModel
from stillroom.errors import CheckpointError, RecipeError
from stillroom.models import load_model_only, resolve_checkpoint
from stillroom.models.local.causal_lm import build_causal_lm, load_tokenizer

__all__ = ["check_attention", "convert_format", "load_prepared", "load_trained", "open_diffusion"]

_PROBE_TOKENS = 8
_PROBE_SHIFTS = (1, 2, 3, 5)  # a trained model may give one token no weight that float32 holds
_MAX_PROBE_TOKENS = 256


def open_diffusion(
    reference: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    needs_tokenizer: bool = False,
) -> DiffusionModel:
    """Load a diffusion checkpoint, ours or of a published format.

    Args:
        reference: A folder, a job's folder or ``hub:NAME[@revision]``.
        overrides: Fields of ``DiffusionMetadata`` that replace those of the checkpoint, e.g.
            attention and block_size of an A2D checkpoint trained by block diffusion.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        needs_tokenizer: Refuse a checkpoint without a tokenizer.

    Raises:
        CheckpointError: If it is not a diffusion model, its attention differs from its metadata, or
            it has no tokenizer and needs one.
    """
    path = resolve_checkpoint(reference)
    stored = Checkpoint.open(path)
    declared = DiffusionMetadata.from_config(stored.config, str(stored.folder))
    translation = None if declared is not None else convert_format(stored)
    if translation is not None:
        declared = translation.metadata
    if declared is None:
        raise _not_diffusion_error(stored)
    metadata = _override_metadata(declared, overrides or {}, str(stored.folder))
    config: Mapping[str, Any] = translation.config if translation else stored.config
    metadata.check_vocabulary(config, str(stored.folder))
    if needs_tokenizer and not _has_tokenizer(stored.folder):
        raise CheckpointError(
            f"{reference} has no tokenizer",
            code="checkpoint.tokenizer",
            expected="tokenizer.json beside the weights",
            next="copy the tokenizer's files into the folder",
        )
    network = _load(stored, metadata, translation, dtype, device)
    tokenizer = load_tokenizer(stored.folder) if _has_tokenizer(stored.folder) else None
    model = DiffusionModel(
        network,
        metadata,
        tokenizer=tokenizer,
        name=path.absolute().name,
        fingerprint=stored.fingerprint,
    )
    check_attention(model, str(stored.folder))
    return model


def load_prepared(folder: Path) -> DiffusionModel:
    """Load a folder with diffusion metadata in float32, for training; causal models, too.

    Raises:
        CheckpointError: If it has no metadata.
    """
    stored = Checkpoint.open(folder)
    metadata = DiffusionMetadata.from_config(stored.config, str(folder))
    if metadata is None:
        raise _not_diffusion_error(stored)
    network = _load(stored, metadata, None, "float32", "auto")
    return DiffusionModel(network, metadata, tokenizer=load_tokenizer(folder), name=folder.name)


def load_trained(folder: Path, like: DiffusionModel) -> DiffusionModel:
    """Load a checkpoint that was just written, in float32, with the metadata of ``like``."""
    network = _load(Checkpoint.open(folder), like.metadata, None, "float32", "auto")
    return DiffusionModel(network, like.metadata, tokenizer=like.tokenizer, name=folder.name)


def convert_format(stored: Checkpoint) -> ConvertedCheckpoint | None:
    """Return a checkpoint of a published format in terms of a stock architecture, else None.

    Raises:
        CheckpointError: If its format is known but its config is not supported.
    """
    for name in CHECKPOINT_FORMATS.names():
        layout = CHECKPOINT_FORMATS.build(name)
        if layout.fits(stored.config):
            return layout.translate(stored)
    return None


def check_attention(model: DiffusionModel, where: str = "") -> None:
    """Check the attention mask against the metadata by changing one input token.

    Raises:
        CheckpointError: If a state changes that must not, or does not change where it must.
    """
    violation = _find_mask_violation(model)
    if violation is not None and violation[1] and model.dtype != torch.float32:
        # half precision may round away the small change in a small model
        violation = _find_mask_violation(
            DiffusionModel(copy.deepcopy(model.network).float(), model.metadata)
        )
    if violation is not None:
        position, is_seen, changed = violation
        raise CheckpointError(
            f"position {position} {'does not see' if is_seen else 'sees'} position {changed}",
            code="diffusion.attention",
            where=where,
            expected=f"attention {model.metadata.attention}, as in its metadata",
            next="use a Llama, Qwen2, Qwen3 or GPT-NeoX architecture with sdpa attention",
        )


@torch.inference_mode()
def _find_mask_violation(model: DiffusionModel) -> tuple[int, bool, int] | None:
    """Return a wrong attention edge: the query, whether it must attend, and the key; else None."""
    metadata = model.metadata
    size = metadata.block_size or _PROBE_TOKENS
    if size > _MAX_PROBE_TOKENS:
        return None  # longer blocks are covered by tests of shorter ones
    length = min(size * 2, model.context_length)
    ids = (torch.arange(length) * 7 + 3) % model.vocabulary
    positions = torch.arange(length)
    mask = model.attention_mask(positions, positions)
    for changed in {length - 1, min(size, length) - 1}:
        inputs = ids.repeat(1 + len(_PROBE_SHIFTS), 1)
        for row, shift in enumerate(_PROBE_SHIFTS, 1):
            inputs[row, changed] = (ids[changed] + shift) % model.vocabulary
        states = model.states(
            inputs, positions.expand(len(inputs), -1), mask[None].expand(len(inputs), -1, -1)
        )
        moved = (states[1:] != states[0]).any(-1).any(0).cpu()
        for position in range(changed):
            if bool(moved[position]) != bool(mask[position, changed]):
                return position, bool(mask[position, changed]), changed
    return None


def _load(
    stored: Checkpoint,
    metadata: DiffusionMetadata,
    translation: ConvertedCheckpoint | None,
    dtype: str,
    device: str,
) -> Any:
    is_stock = translation is None and not metadata.head_bias
    if is_stock and _has_tokenizer(stored.folder):
        return load_model_only(stored.folder, dtype=dtype, device=device, backend=BACKEND_NAME)
    config = stored.config if translation is None else translation.config
    return build_causal_lm(
        {key: value for key, value in config.items() if key not in {"dtype", "torch_dtype"}},
        stored.names() if translation is None else translation.names,
        stored.tensor if translation is None else translation.tensor,
        where=str(stored.folder),
        head_bias=metadata.head_bias,
        dtype=dtype,
        device=device,
    )


def _override_metadata(
    metadata: DiffusionMetadata, overrides: Mapping[str, Any], where: str
) -> DiffusionMetadata:
    unknown = sorted(set(overrides) - set(DiffusionMetadata.model_fields))
    if unknown:
        raise RecipeError(
            f"'{unknown[0]}' is not a field of the diffusion metadata",
            code="recipe.unknown-key",
            expected=f"one of: {', '.join(DiffusionMetadata.model_fields)}",
        )
    fields = {**metadata.model_dump(), **overrides}
    return DiffusionMetadata.from_config({"stillroom_diffusion": fields}, where) or metadata


def _has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    return any((folder / name).is_file() for name in names)


def _not_diffusion_error(stored: Checkpoint) -> CheckpointError:
    return CheckpointError(
        "this is an autoregressive checkpoint: its config.json has no diffusion metadata",
        code="diffusion.not-diffusion",
        where=str(stored.folder / "config.json"),
        expected="a checkpoint trained by kind: diffusion.train, or one of model type "
        + ", ".join(
            sorted(
                {
                    t
                    for n in CHECKPOINT_FORMATS.names()
                    for t in CHECKPOINT_FORMATS.get(n).model_types
                }
            )
        ),
        next="train it on: kind: diffusion.train, model: CHECKPOINT",
    )
