"""Training of a claim checker: low-rank updates of an encoder, and two linear heads.

The loss of a claim is the binary cross-entropy of its support, and with half the weight the mean of
that of its tokens, whether an edit changed them: they show the encoder, which was made for single
texts, where to compare. Claims without known words have the former alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.errors import MissingExtraError
from stillroom.rag.answer_selection.encoding import PairTokenizer
from stillroom.rag.claim_checking.encoding import (
    MARKS,
    EncodedClaim,
    encode_claim,
    encode_source,
)
from stillroom.train.data import RecordSource
from stillroom.train.loop import Loss
from stillroom.train.settings import LoraSettings

__all__ = ["CheckerBatch", "CheckerNetwork", "LabeledClaim", "build_source", "compute_loss"]

_HEAD_STD, _MARK_STD = 0.02, 0.03
_WORD_WEIGHT, _WRONG_WEIGHT = 0.5, 3.0


@dataclass(frozen=True, slots=True)
class LabeledClaim:
    """A claim about a passage, whether the passage supports it, and the words that are wrong.

    ``wrong`` is None where it is not known which words are wrong.
    """

    id: str
    text: str
    passage: str
    title: str
    is_supported: bool
    wrong: tuple[tuple[int, int], ...] | None
    kind: str


@dataclass(frozen=True, eq=False)
class CheckerBatch:
    """Claims with windows of passages, padded to the longest.

    Args:
        ids: Token ids, (N, T).
        segments: Token types, (N, T).
        mask: Whether a position is no padding, (N, T).
        marks: Marks of the tokens, (N, T, MARKS).
        words: Whether a position is a token of the claim, (N, T).
        wrong: Whether an edit changed the token, (N, T).
        labeled: Whether the wrong words are known, (N,).
        supported: Whether the passage supports the claim, (N,).
        record_ids: Ids of the claims.
    """

    ids: Tensor
    segments: Tensor
    mask: Tensor
    marks: Tensor
    words: Tensor
    wrong: Tensor
    labeled: Tensor
    supported: Tensor
    record_ids: tuple[str, ...]

    @property
    def valid(self) -> int:
        """Number of claims."""
        return len(self.record_ids)

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return int(self.mask.sum())


class CheckerNetwork(nn.Module):
    """An encoder with low-rank updates, marks, and heads for support and wrong words."""

    def __init__(self, encoder: nn.Module, lora: LoraSettings, seed: int) -> None:
        """Add low-rank layers to the encoder's linear layers, and heads; disable dropout.

        Raises:
            MissingExtraError: If peft is not installed.
        """
        super().__init__()
        try:
            import peft
        except ImportError as error:
            raise MissingExtraError.of("peft", "train", "training a claim checker") from error
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=cast("int", lora.alpha),
            lora_dropout=lora.dropout,
            target_modules=["query", "key", "value", "dense"],
        )
        cast("Any", encoder).pooler = None  # not used, and no low-rank layer is to be added to it
        encoder.requires_grad_(False)
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = peft.inject_adapter_in_model(config, encoder)
            width = cast("Any", encoder).config.hidden_size
            self.support, self.wrong = nn.Linear(2 * width, 1), nn.Linear(width, 1)
            for head in (self.support, self.wrong):
                nn.init.normal_(head.weight, std=_HEAD_STD)
                nn.init.zeros_(head.bias)
            self.marks = nn.Parameter(_MARK_STD * torch.randn(MARKS, width))

    def forward(self, batch: CheckerBatch) -> tuple[Tensor, Tensor]:
        """Return logits of support (N,) and of wrong tokens (N, T)."""
        words = cast("Any", self.encoder).get_input_embeddings()(batch.ids)
        states = self.encoder(
            inputs_embeds=words + batch.marks @ self.marks,
            token_type_ids=batch.segments,
            attention_mask=batch.mask,
        ).last_hidden_state.float()
        with torch.autocast(states.device.type, enabled=False):
            claims = batch.words[..., None].float()
            pooled = (states * claims).sum(1) / claims.sum(1)
            support = self.support(torch.cat([states[:, 0], pooled], dim=-1)).squeeze(-1)
            return support, self.wrong(states).squeeze(-1)

    def export(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the heads and the low-rank factors as float16 arrays, as ``checker`` reads them."""
        tensors = {}
        for name, value in self.state_dict().items():
            layer, mark, factor = name.removeprefix("encoder.").partition(".lora_")
            if mark or not name.startswith("encoder."):
                kept = f"{layer}.lora_{factor[0]}" if mark else name
                tensors[kept] = value.detach().cpu().to(torch.float16).contiguous().numpy()
        return dict(sorted(tensors.items()))


def compute_loss(model: nn.Module, batch: CheckerBatch) -> Loss:
    """Return the summed loss of a batch, and the number of claims that are judged right."""
    support, wrong = model(batch)
    loss = nn.functional.binary_cross_entropy_with_logits
    total = loss(support, batch.supported, reduction="sum")
    known = batch.words * batch.labeled[:, None]
    each = loss(wrong, batch.wrong, reduction="none", pos_weight=wrong.new_tensor(_WRONG_WEIGHT))
    total = total + _WORD_WEIGHT * ((each * known).sum(1) / batch.words.sum(1)).sum()
    return Loss(total, {"right": float(((support > 0) == (batch.supported > 0)).sum())})


def build_source(
    claims: Sequence[LabeledClaim],
    tokenizer: PairTokenizer,
    *,
    special: tuple[int, int],
    batch_size: int,
    micro_tokens: int,
    seed: int,
    device: torch.device,
) -> RecordSource[LabeledClaim, CheckerBatch]:
    """Return the batches of claims, encoded when they are read."""

    def encode(claim: LabeledClaim) -> EncodedClaim:
        source = encode_source(tokenizer, claim.passage, claim.title)
        return encode_claim(tokenizer, claim.text, source, special=special)

    return RecordSource(
        claims,
        ids=[claim.id for claim in claims],
        lengths=[len(encode(claim).ids) for claim in claims],
        valid=[1] * len(claims),
        load=lambda group: _collate([(claim, encode(claim)) for claim in group], device),
        batch_size=min(batch_size, len(claims)),
        micro_tokens=micro_tokens,
        seed=seed,
    )


def _collate(
    group: Sequence[tuple[LabeledClaim, EncodedClaim]], device: torch.device
) -> CheckerBatch:
    shape = len(group), max(len(encoded.ids) for _, encoded in group)
    ids, segments, mask = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    words, wrong = (np.zeros(shape, dtype=np.float32) for _ in range(2))
    marks = np.zeros((*shape, MARKS), dtype=np.float32)
    for row, (claim, encoded) in enumerate(group):
        length = len(encoded.ids)
        ids[row, :length], segments[row, :length] = encoded.ids, encoded.segments
        mask[row, :length], marks[row, :length] = 1, encoded.marks
        words[row, 1 : 1 + len(encoded.offsets)] = 1
        for position, (start, end) in enumerate(encoded.offsets, start=1):
            wrong[row, position] = any(
                start < last and end > first for first, last in claim.wrong or ()
            )

    def to_device(array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return CheckerBatch(
        ids=to_device(ids),
        segments=to_device(segments),
        mask=to_device(mask),
        marks=to_device(marks),
        words=to_device(words),
        wrong=to_device(wrong),
        labeled=to_device(
            np.array([claim.wrong is not None for claim, _ in group], dtype=np.float32)
        ),
        supported=to_device(
            np.array([claim.is_supported for claim, _ in group], dtype=np.float32)
        ),
        record_ids=tuple(claim.id for claim, _ in group),
    )
