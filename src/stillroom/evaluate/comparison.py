"""One pass over records that reads all a student's and its teacher's beliefs have to say.

Both are fed the same tokens. Divergences, agreement, surprise, entropy and calibration come from
the same logits, a chunk of rows at a time. What the teacher's body gives at the counted positions
can be kept, so that a second student costs no second pass of the teacher. Knows token sequences,
not where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.evaluate.calibration import BINS, TemperatureFit, bin_positions
from stillroom.evaluate.logits import LogitReader, batch_records, rows_per_chunk
from stillroom.evaluate.spans import Encoded

__all__ = ["Compared", "KeptStates", "compare_beliefs"]

_TOP = 5

KeptStates = dict[int, Tensor]
"""What a body gave at the counted positions of each record, by the record's index: (n, D)."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Means over one record's counted tokens, in nats a token where not a share.

    Args:
        tokens: How many count; all else is 0 where there are none.
        loss: Surprise at the tokens that stand there.
        entropy: Of the student's distributions.
        brier: Squared distance to what stands there, 0 to 2.
        bins: ``bin_positions``, (3, BINS), sums.
        kl: KL(teacher || student); this and what else a teacher is needed for is 0 without one.
        reverse_kl: KL(student || teacher).
        agreement: Share where both think the same token likeliest.
        top5_overlap: Share of the student's five likeliest among the teacher's five.
        teacher_entropy: Of the teacher's distributions.
        kl_by_position: KL(teacher || student) of each counted token, (n,).
        scaled_loss: As ``loss``, after temperature scaling; None for records it was fitted on.
        scaled_brier: As ``brier``, likewise.
        scaled_bins: As ``bins``, likewise.
    """

    tokens: int = 0
    loss: float = 0.0
    entropy: float = 0.0
    brier: float = 0.0
    bins: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, BINS)))
    kl: float = 0.0
    reverse_kl: float = 0.0
    agreement: float = 0.0
    top5_overlap: float = 0.0
    teacher_entropy: float = 0.0
    kl_by_position: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    scaled_loss: float | None = None
    scaled_brier: float | None = None
    scaled_bins: npt.NDArray[np.float64] | None = None


def compare_beliefs(
    student: Any,
    teacher: Any | None,
    records: Sequence[Encoded],
    *,
    calibrate: bool = False,
    kept: KeptStates | None = None,
    batch_tokens: int = 2048,
) -> tuple[list[Compared], float | None]:
    """Read a student's beliefs on some token sequences, beside its teacher's.

    Where one head is padded wider than the other, both are cut to the narrower before the softmax.

    Args:
        student: A causal language model, left in the mode it came in; may be the teacher itself.
        teacher: Another over the same tokens, likewise; None reads the student's beliefs alone.
        records: What both read; the assistant's tokens count.
        calibrate: Fit a temperature on every second record, and score the others with it, too.
        kept: The teacher's states, filled where empty and read where not; the caller's word that
            teacher and records are the same each time.
        batch_tokens: Tokens of one forward pass, padding included.

    Returns:
        One Compared per record, in order, and the fitted temperature (None where not asked for).
    """
    found = [Compared()] * len(records)
    models = [student] if teacher is None else [student, teacher]
    modes = [bool(model.training) for model in models]
    fit = TemperatureFit() if calibrate else None
    try:
        ours = _Side(LogitReader(student), {})
        theirs = None
        if teacher is not None:
            theirs = _Side(LogitReader(teacher), kept if kept is not None else {})
        sides = [ours] if theirs is None else [ours, theirs]
        width = min(side.reader.vocabulary for side in sides)
        parts = _halves(records) if calibrate else [range(len(records))]
        with torch.inference_mode():
            for number, part in enumerate(parts):
                is_fitting = calibrate and number == 0
                scale = fit.temperature if fit and not is_fitting else None
                for batch in batch_records([records[at] for at in part], batch_tokens):
                    chosen = [(part[place], record) for place, record in batch]
                    for side in sides:
                        side.read(chosen)
                    for at, record in chosen:
                        found[at] = _compare(
                            ours, theirs, at, record, width, fit if is_fitting else None, scale
                        )
                    ours.states.clear()
                    if theirs is not None and (kept is None or not theirs.reader.is_chunked):
                        theirs.states.clear()
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
    return found, fit.temperature if fit and fit.positions else None


class _Side:
    """One model's states at the counted positions of records."""

    def __init__(self, reader: LogitReader, states: KeptStates) -> None:
        self.reader, self.states = reader, states

    def read(self, batch: Sequence[tuple[int, Encoded]]) -> None:
        """Run the body over those records whose states are not there."""
        if all(at in self.states for at, _ in batch):
            return
        hidden = self.reader.hidden([record for _, record in batch])
        for row, (at, record) in enumerate(batch):
            positions = torch.tensor(record.targets) - 1
            self.states[at] = self.reader.pick(hidden, row, positions)

    def logits(self, at: int, start: int, stop: int, width: int) -> Tensor:
        return self.reader.logits(self.states[at][start:stop])[:, :width]


def _halves(records: Sequence[Encoded]) -> list[list[int]]:
    """Return every second record that has a token to count, from the first; then the others."""
    counted = [at for at, record in enumerate(records) if record.targets]
    return [counted[::2], counted[1::2]]


def _compare(
    ours: _Side,
    theirs: _Side | None,
    at: int,
    record: Encoded,
    width: int,
    fit: TemperatureFit | None,
    scale: float | None,
) -> Compared:
    targets = torch.tensor(record.targets)
    labels = torch.tensor(record.ids)[targets].to(ours.reader.device)
    parts: dict[str, list[Tensor]] = {}
    step = rows_per_chunk(4 * width)
    for start in range(0, len(targets), step):
        stop = min(start + step, len(targets))
        logits = ours.logits(at, start, stop, width)
        values = _own(logits, labels[start:stop])
        if theirs is not None:
            values |= _both(logits, theirs.logits(at, start, stop, width).to(logits.device))
        if fit is not None:
            fit.add(logits, labels[start:stop])
        if scale is not None:
            scaled = _own(logits / scale, labels[start:stop])
            values |= {f"scaled_{name}": value for name, value in scaled.items()}
        for name, value in values.items():
            parts.setdefault(name, []).append(value.double().cpu())
    whole = {name: torch.cat(values) for name, values in parts.items()}
    return _summarize(whole)


def _summarize(whole: dict[str, Tensor]) -> Compared:
    bins = {
        prefix: bin_positions(whole.pop(f"{prefix}confidence"), whole.pop(f"{prefix}is_right"))
        for prefix in ("", "scaled_")
        if f"{prefix}confidence" in whole
    }
    whole.pop("scaled_entropy", None)
    means = {name: float(value.mean()) for name, value in whole.items()}
    means |= {name: max(means[name], 0.0) for name in ("kl", "reverse_kl") if name in means}
    return Compared(
        tokens=len(whole["loss"]),
        bins=bins[""],
        scaled_bins=bins.get("scaled_"),
        kl_by_position=whole.get("kl", torch.zeros(0)).clamp(min=0).double().numpy(),
        **means,
    )


def _own(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return what one model's distributions say beside the tokens that came, (n,) each."""
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


def _both(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Return how far two models' distributions are apart, (n,) each, of logits (n, V)."""
    log_q, log_p = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    gap = log_p - log_q
    p = log_p.exp()
    first, second = (side.topk(min(_TOP, side.shape[-1]), -1).indices for side in (log_q, log_p))
    shared = (first[:, :, None] == second[:, None, :]).any(-1)
    return {
        "kl": (p * gap).sum(-1),
        "reverse_kl": -(log_q.exp() * gap).sum(-1),
        "agreement": first[:, 0] == second[:, 0],
        "top5_overlap": shared.float().mean(-1),
        "teacher_entropy": torch.special.entr(p).sum(-1),
    }
