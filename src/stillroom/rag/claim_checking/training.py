"""Training loss of a claim checker (``compute_loss``): support, and the words that lack it.

The loss of a claim is the binary cross-entropy of its support. To it is added that of each of its
tokens being unsupported, averaged over the tokens, where the claim tells which ones are; without it
some thousands of claims teach an embedder little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.rag.answer_selection.encoding import PairTokenizer, Span
from stillroom.rag.answer_selection.low_rank_encoder import (
    LowRankEncoder,
    PairBatch,
    pad_pairs,
    to_tensors,
)
from stillroom.rag.claim_checking.encoding import EncodedClaim, encode_claim
from stillroom.train.data import RecordSource
from stillroom.train.loop import Loss

__all__ = ["ClaimBatch", "ClaimNetwork", "LabeledClaim", "build_source", "compute_loss"]

_UNSUPPORTED_WEIGHT = 4.0  # of a token that is marked; most are not


@dataclass(frozen=True, slots=True)
class LabeledClaim:
    """A claim about a passage, and whether that supports it.

    Args:
        id: Id of the claim.
        text: The claim.
        title: Title and headings of the passage.
        passage: Text of the passage.
        document: Name of the document; claims of one are never trained on and judged at once.
        is_supported: Whether the passage supports the claim.
        spans: Characters of the claim that are not supported; none if that is not known.
    """

    id: str
    text: str
    title: str
    passage: str
    document: str
    is_supported: bool
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class ClaimBatch(PairBatch):
    """Claims with their passages; the records are the claims.

    Args:
        claim: 1 where a token is the claim's, (W, T).
        unsupported: 1 where a token of the claim is not supported, (W, T).
        is_marked: 1 where it is known which tokens are supported, (W,).
        support: 1 where the claim is supported, (W,).
    """

    claim: Tensor
    unsupported: Tensor
    is_marked: Tensor
    support: Tensor


class ClaimNetwork(LowRankEncoder):
    """An encoder with low-rank updates, and heads for support and for unsupported tokens."""

    heads: ClassVar[Mapping[str, int]] = {"support": 1, "unsupported": 1}
    support: nn.Linear
    unsupported: nn.Linear

    def forward(self, batch: ClaimBatch) -> tuple[Tensor, Tensor]:
        """Return logits: support (W,), and of a token to be unsupported (W, T)."""
        states = self.encode(batch.ids, batch.segments, batch.mask, batch.shared)
        with torch.autocast(states.device.type, enabled=False):
            claim = batch.claim[..., None]
            mean = (states * claim).sum(1) / claim.sum(1).clamp(min=1)
            support = self.support(states[:, 0] + mean).squeeze(-1)
            return support, self.unsupported(states).squeeze(-1)


def compute_loss(model: nn.Module, batch: ClaimBatch) -> Loss:
    """Return the summed loss of a batch, and the number of claims that are judged rightly."""
    support, unsupported = model(batch)
    total = functional.binary_cross_entropy_with_logits(support, batch.support, reduction="sum")
    tokens = functional.binary_cross_entropy_with_logits(
        unsupported,
        batch.unsupported,
        weight=1 + (_UNSUPPORTED_WEIGHT - 1) * batch.unsupported,
        reduction="none",
    )
    means = (tokens * batch.claim).sum(1) / batch.claim.sum(1).clamp(min=1)
    right = float(((support > 0) == (batch.support > 0)).sum())
    return Loss(total + (means * batch.is_marked).sum(), {"right": right})


def build_source(
    claims: Sequence[LabeledClaim],
    tokenizer: PairTokenizer,
    *,
    special: tuple[int, int],
    batch_size: int,
    micro_tokens: int,
    seed: int,
    device: torch.device,
) -> RecordSource[LabeledClaim, ClaimBatch]:
    """Return the batches of claims, encoded when they are read."""

    def encode(claim: LabeledClaim) -> EncodedClaim:
        return encode_claim(tokenizer, claim.text, claim.title, claim.passage, special=special)

    return RecordSource(
        claims,
        ids=[claim.id for claim in claims],
        lengths=[len(encode(claim).ids) for claim in claims],
        valid=[1] * len(claims),
        load=lambda group: _collate([(claim, encode(claim)) for claim in group], device),
        batch_size=min(batch_size, len(claims)) or 1,
        micro_tokens=micro_tokens,
        seed=seed,
    )


def _collate(
    group: Sequence[tuple[LabeledClaim, EncodedClaim]], device: torch.device
) -> ClaimBatch:
    pairs = pad_pairs([encoded for _, encoded in group], device)
    claim, unsupported = (np.zeros(pairs["ids"].shape, dtype=np.float32) for _ in range(2))
    for row, (labeled, encoded) in enumerate(group):
        claim[row, 1 : 1 + len(encoded.offsets)] = 1
        unsupported[row, 1 : 1 + len(encoded.offsets)] = [
            any(start < last and end > first for first, last in labeled.spans)
            for start, end in encoded.offsets
        ]
    claims = [labeled for labeled, _ in group]
    marked = [one.is_supported or bool(one.spans) for one in claims]
    arrays = {
        "claim": claim,
        "unsupported": unsupported,
        "is_marked": np.array(marked, dtype=np.float32),
        "support": np.array([one.is_supported for one in claims], dtype=np.float32),
    }
    return ClaimBatch(
        **pairs,
        **to_tensors(arrays, device),
        record_ids=tuple(one.id for one in claims),
    )
