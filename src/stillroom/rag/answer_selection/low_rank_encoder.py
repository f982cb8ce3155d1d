"""A BERT or MPNet with low-rank updates (LoRA) and linear heads, as readers and checkers train it.

A vector is added to the embedding of each token that stands on both sides of a pair of texts.
Without it, and with dropout, an encoder that was made for single texts does not learn to compare
two of them from a few thousand pairs.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.errors import CheckpointError, MissingExtraError
from stillroom.models.encoders.numpy_bert import MPNET_PADDING
from stillroom.provenance.digests import load_json
from stillroom.rag.answer_selection.adapted_bert import load_tensors
from stillroom.train.settings import LoraSettings

__all__ = ["EncodedPair", "LowRankEncoder", "PairBatch", "pad_pairs", "to_tensors"]

_HEAD_STD = 0.02


class EncodedPair(Protocol):
    """Two texts as the encoder reads them."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""

    @property
    def segments(self) -> Sequence[int]:
        """Token types."""

    @property
    def shared(self) -> Sequence[int]:
        """1 where a token stands on both sides."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PairBatch:
    """Pairs of texts, padded to the longest.

    Args:
        ids: Token ids, (W, T).
        segments: Token types, (W, T).
        mask: Whether a position is no padding, (W, T).
        shared: 1 where a token stands on both sides, (W, T).
        record_ids: Ids of the records that the pairs belong to.
        tokens: Number of tokens without padding.
    """

    ids: Tensor
    segments: Tensor
    mask: Tensor
    shared: Tensor
    record_ids: tuple[str, ...]
    tokens: int

    @property
    def valid(self) -> int:
        """Number of records."""
        return len(self.record_ids)


def pad_pairs(pairs: Sequence[EncodedPair], device: torch.device) -> dict[str, Any]:
    """Return ``ids``, ``segments``, ``mask``, ``shared`` and ``tokens`` of a batch."""
    shape = len(pairs), max(len(pair.ids) for pair in pairs)
    ids, segments, mask, shared = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    for row, pair in enumerate(pairs):
        length = len(pair.ids)
        ids[row, :length], segments[row, :length] = pair.ids, pair.segments
        mask[row, :length], shared[row, :length] = 1, pair.shared
    arrays = {"ids": ids, "segments": segments, "mask": mask, "shared": shared}
    return to_tensors(arrays, device) | {"tokens": int(mask.sum())}


def to_tensors(arrays: Mapping[str, np.ndarray[Any, Any]], device: torch.device) -> dict[str, Any]:
    """Return arrays by their names as tensors on a device."""
    return {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}


class LowRankEncoder(nn.Module):
    """An encoder whose low-rank updates and heads are trained; subclasses name the heads."""

    heads: ClassVar[Mapping[str, int]]
    """Outputs of each linear head by its name."""

    def __init__(self, encoder: nn.Module, lora: LoraSettings, seed: int) -> None:
        """Add low-rank layers to the encoder's linear layers, and heads; disable dropout.

        Raises:
            MissingExtraError: If peft is not installed.
        """
        super().__init__()
        with MissingExtraError.guard("peft", "train", "training an encoder"):
            import peft
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=cast("int", lora.alpha),
            lora_dropout=lora.dropout,
            target_modules=["query", "key", "value", "dense", *"qkvo"],  # the last four: MPNet
        )
        cast("Any", encoder).pooler = None  # not used, and no low-rank layer is to be added to it
        for parameter in encoder.parameters():
            parameter.requires_grad_(False)
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = peft.inject_adapter_in_model(config, encoder)
            width = cast("Any", encoder).config.hidden_size
            heads = {name: nn.Linear(width, outputs) for name, outputs in self.heads.items()}
            for name, head in heads.items():
                nn.init.normal_(head.weight, std=_HEAD_STD)
                nn.init.zeros_(head.bias)
                setattr(self, name, head)
        self.shared = nn.Parameter(torch.zeros(width))

    def encode(self, ids: Tensor, segments: Tensor, mask: Tensor, shared: Tensor) -> Tensor:
        """Return the states of texts in float32, (W, T, D), of arrays (W, T).

        Args:
            ids: Token ids.
            segments: Token types.
            mask: Whether a position is no padding.
            shared: 1 where a token stands on both sides.
        """
        words = cast("Any", self.encoder).get_input_embeddings()(ids)
        if cast("Any", self.encoder).config.model_type == "mpnet":
            is_text = (ids != MPNET_PADDING).long()
            extra = {"position_ids": is_text.cumsum(1) * is_text + MPNET_PADDING}
        else:
            extra = {"token_type_ids": segments}
        states: Tensor = self.encoder(
            inputs_embeds=words + shared[..., None] * self.shared, attention_mask=mask, **extra
        ).last_hidden_state
        return states.float()

    def load(self, config_file: Path, weights_file: Path, *, base: str, alpha: float) -> None:
        """Load low-rank factors, and the heads that the file has of this network's.

        Raises:
            CheckpointError: If they are of another base or alpha, have other shapes, or cannot be
                read.
        """
        try:
            config = load_json(config_file.read_bytes())
            trained_from = config["base"], config["alpha"], config["rank"]
            tensors = load_tensors(weights_file)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{config_file.parent} cannot be read: {error!r}",
                code="checkpoint.broken",
                where="start",
                expected=f"{config_file.name} and {weights_file.name} as a job wrote them",
                next="fetch or train it again, or choose another start",
            ) from error
        state = self.state_dict()
        own = {name: full for full in state if (name := _exported_name(full, self.heads))}
        renamed = {
            name: full
            for name, full in own.items()
            if name in tensors or name.partition(".")[0] not in self.heads
        }
        if trained_from[:2] != (base, alpha) or any(
            name not in tensors or tensors[name].shape != state[full].shape
            for name, full in renamed.items()
        ):
            raise CheckpointError(
                f"{config_file.parent} was trained from {config['base']} with rank "
                f"{config['rank']} and alpha {config['alpha']}",
                code="checkpoint.other-base",
                where="start",
                expected=f"one of {base} with rank and alpha of train.lora",
                next=f"base={config['base']} train.lora.rank={config['rank']} "
                f"train.lora.alpha={config['alpha']}",
            )
        self.load_state_dict(
            {full: torch.from_numpy(tensors[name]).float() for name, full in renamed.items()},
            strict=False,
        )

    def export(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the heads and the low-rank factors as float16 arrays."""
        tensors = {
            _exported_name(name, self.heads): value for name, value in self.state_dict().items()
        }
        return {
            name: value.detach().cpu().to(torch.float16).contiguous().numpy()
            for name, value in sorted(tensors.items())
            if name
        }


def _exported_name(name: str, heads: Mapping[str, int]) -> str:
    """Return a tensor's name in the file; empty if it belongs to the base."""
    if name == "shared" or name.partition(".")[0] in heads:
        return name
    layer, mark, factor = name.removeprefix("encoder.").partition(".lora_")
    return f"{layer}.lora_{factor[0]}" if mark else ""
