"""KL divergence, top-1 agreement and calibration of a student against its teacher, by token.

Both models are fed the same tokens (teacher forcing) and must share one tokenizer. Divergences,
agreement, loss, entropy and calibration are computed from the same logits, a chunk of rows at a
time. The teacher's hidden states at the counted positions can be kept, so that a second student
needs no second forward pass of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.evaluate.lm.loss import LogitReader, batch_records, count_rows_per_chunk
from stillroom.evaluate.metrics.calibration import NUM_BINS, TemperatureScaler, bin_confidences
from stillroom.models.tokenization.assistant_mask import EncodedConversation, encode_conversations
from stillroom.records import Record

__all__ = [
    "CachedStates",
    "DistributionMetrics",
    "compare_distributions",
    "measure_agreement",
]


_TOP_K = 5
CachedStates = dict[int, Tensor]


"""Hidden states at the counted positions of each record, by the record's index: (n, D)."""


@dataclass(frozen=True, slots=True)
class DistributionMetrics:
    """Means over one record's counted tokens, in nats per token unless they are shares.

    Args:
        tokens: Number of counted tokens; all else is 0 if there are none.
        loss: Cross-entropy of the true tokens.
        entropy: Entropy of the student's distributions.
        brier: Squared distance to the true token's one-hot vector, 0 to 2.
        bins: ``bin_confidences``, (3, BINS), sums.
        kl: KL(teacher || student); 0 without a teacher, as are the other comparisons.
        reverse_kl: KL(student || teacher).
        agreement: Share of positions with the same most likely token.
        top5_overlap: Share of the student's top five tokens among the teacher's.
        teacher_entropy: Entropy of the teacher's distributions.
        kl_by_position: KL(teacher || student) of each counted token, (n,).
        scaled_loss: ``loss`` after temperature scaling; None for records used to fit it.
        scaled_brier: ``brier`` after temperature scaling, likewise.
        scaled_bins: ``bins`` after temperature scaling, likewise.
    """

    tokens: int = 0
    loss: float = 0.0
    entropy: float = 0.0
    brier: float = 0.0
    bins: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, NUM_BINS)))
    kl: float = 0.0
    reverse_kl: float = 0.0
    agreement: float = 0.0
    top5_overlap: float = 0.0
    teacher_entropy: float = 0.0
    kl_by_position: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    scaled_loss: float | None = None
    scaled_brier: float | None = None
    scaled_bins: npt.NDArray[np.float64] | None = None


def compare_distributions(
    student: Any,
    teacher: Any | None,
    records: Sequence[EncodedConversation],
    *,
    calibrate: bool = False,
    kept: CachedStates | None = None,
    batch_tokens: int = 2048,
) -> tuple[list[DistributionMetrics], float | None]:
    """Measure a student's distributions on token sequences, and their distance to a teacher's.

    If one head is padded wider than the other, both are cut to the narrower before the softmax.

    Args:
        student: A causal language model, whose mode is restored; may be the teacher itself.
        teacher: Another model over the same tokens; None measures the student only.
        records: Token sequences; the assistant's tokens count.
        calibrate: Fit a temperature on every second record and also score the others with it.
        kept: Cache of the teacher's states, filled if empty; the caller ensures that teacher and
            records do not change.
        batch_tokens: Tokens of one forward pass, padding included.

    Returns:
        One DistributionMetrics per record, in order, and the fitted temperature or None.
    """
    metrics = [DistributionMetrics()] * len(records)
    models = [student] if teacher is None else [student, teacher]
    modes = [bool(model.training) for model in models]
    fit = TemperatureScaler() if calibrate else None
    try:
        student_states = _ModelStates(LogitReader(student), {})
        teacher_states = None
        if teacher is not None:
            teacher_states = _ModelStates(LogitReader(teacher), kept if kept is not None else {})
        sides = [student_states] if teacher_states is None else [student_states, teacher_states]
        width = min(side.reader.vocabulary for side in sides)
        parts = _calibration_halves(records) if calibrate else [range(len(records))]
        with torch.inference_mode():
            for number, part in enumerate(parts):
                is_fitting = calibrate and number == 0
                scale = fit.temperature if fit and not is_fitting else None
                for batch in batch_records([records[index] for index in part], batch_tokens):
                    indexed = [(part[position], record) for position, record in batch]
                    for side in sides:
                        side.read(indexed)
                    for index, record in indexed:
                        metrics[index] = _compare_positions(
                            student_states,
                            teacher_states,
                            index,
                            record,
                            width,
                            fit if is_fitting else None,
                            scale,
                        )
                    student_states.states.clear()
                    if teacher_states is not None and (
                        kept is None or not teacher_states.reader.is_chunked
                    ):
                        teacher_states.states.clear()
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
    return metrics, fit.temperature if fit and fit.positions else None


class _ModelStates:
    """One model's hidden states at the counted positions of records."""

    def __init__(self, reader: LogitReader, states: CachedStates) -> None:
        self.reader, self.states = reader, states

    def read(self, batch: Sequence[tuple[int, EncodedConversation]]) -> None:
        """Run the body over the records whose states are not cached."""
        if all(index in self.states for index, _ in batch):
            return
        hidden = self.reader.hidden([record for _, record in batch])
        for row, (index, record) in enumerate(batch):
            positions = torch.tensor(record.targets) - 1
            self.states[index] = self.reader.pick(hidden, row, positions)

    def logits(self, index: int, start: int, stop: int, width: int) -> Tensor:
        return self.reader.logits(self.states[index][start:stop])[:, :width]


def _calibration_halves(records: Sequence[EncodedConversation]) -> list[list[int]]:
    """Return the records with counted tokens in two halves, alternating."""
    counted = [index for index, record in enumerate(records) if record.targets]
    return [counted[::2], counted[1::2]]


def _compare_positions(
    student_states: _ModelStates,
    teacher_states: _ModelStates | None,
    index: int,
    record: EncodedConversation,
    width: int,
    fit: TemperatureScaler | None,
    scale: float | None,
) -> DistributionMetrics:
    targets = torch.tensor(record.targets)
    labels = torch.tensor(record.ids)[targets].to(student_states.reader.device)
    parts: dict[str, list[Tensor]] = {}
    step = count_rows_per_chunk(4 * width)
    for start in range(0, len(targets), step):
        stop = min(start + step, len(targets))
        logits = student_states.logits(index, start, stop, width)
        values = _single_model_terms(logits, labels[start:stop])
        if teacher_states is not None:
            values |= _divergence_terms(
                logits, teacher_states.logits(index, start, stop, width).to(logits.device)
            )
        if fit is not None:
            fit.add(logits, labels[start:stop])
        if scale is not None:
            scaled = _single_model_terms(logits / scale, labels[start:stop])
            values |= {f"scaled_{name}": value for name, value in scaled.items()}
        for name, value in values.items():
            parts.setdefault(name, []).append(value.double().cpu())
    terms = {name: torch.cat(values) for name, values in parts.items()}
    return _summarize(terms)


def _summarize(terms: dict[str, Tensor]) -> DistributionMetrics:
    bins = {
        prefix: bin_confidences(terms.pop(f"{prefix}confidence"), terms.pop(f"{prefix}is_right"))
        for prefix in ("", "scaled_")
        if f"{prefix}confidence" in terms
    }
    terms.pop("scaled_entropy", None)
    means = {name: float(value.mean()) for name, value in terms.items()}
    means |= {name: max(means[name], 0.0) for name in ("kl", "reverse_kl") if name in means}
    return DistributionMetrics(
        tokens=len(terms["loss"]),
        bins=bins[""],
        scaled_bins=bins.get("scaled_"),
        kl_by_position=terms.get("kl", torch.zeros(0)).clamp(min=0).double().numpy(),
        **means,
    )


def _single_model_terms(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return statistics of one model's distributions and the true tokens, (n,) each."""
    logprobs = torch.log_softmax(logits, -1)  # (n, V)
    chances = logprobs.exp()
    came = logprobs.gather(1, labels[:, None])[:, 0]
    top, token = logprobs.max(-1)
    return {
        "loss": -came,
        "entropy": torch.special.entr(chances).sum(-1),
        "brier": chances.square().sum(-1) - 2 * came.exp() + 1,
        "confidence": top.exp(),
        "is_right": token == labels,
    }


def _divergence_terms(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Return the distances of two models' distributions, (n,) each, from logits (n, V)."""
    log_q, log_p = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    gap = log_p - log_q
    p = log_p.exp()
    first, second = (side.topk(min(_TOP_K, side.shape[-1]), -1).indices for side in (log_q, log_p))
    shared = (first[:, :, None] == second[:, None, :]).any(-1)
    return {
        "kl": (p * gap).sum(-1),
        "reverse_kl": -(log_q.exp() * gap).sum(-1),
        "agreement": first[:, 0] == second[:, 0],
        "top5_overlap": shared.float().mean(-1),
        "teacher_entropy": torch.special.entr(p).sum(-1),
    }


def measure_agreement(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int = 1024,
    batch_tokens: int = 2048,
    on_truncated: Callable[[int, int], None] | None = None,
) -> list[DistributionMetrics]:
    """Tokenize records with the tokenizer of both models, and compare their distributions.

    Source: Hinton et al. 2015, arXiv:1503.02531 (teacher to student); Gu et al. 2023,
    arXiv:2306.08543 (the reverse).

    Raises:
        DataError: If the assistant's part of a conversation cannot be found.
    """
    encoded = encode_conversations(
        tokenizer, records, max_tokens=max_tokens, on_truncated=on_truncated
    )
    return compare_distributions(student, teacher, encoded, batch_tokens=batch_tokens)[0]
