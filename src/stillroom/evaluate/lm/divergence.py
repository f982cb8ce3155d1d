"""Divergence of a student's next-token distributions from its teacher's.

Both models are fed the same tokens (teacher forcing) and must share one tokenizer. Divergences,
agreement, loss, entropy and calibration are computed from the same logits, a chunk of rows at a
time. The teacher's hidden states at the counted positions can be kept, so that a second student
needs no second forward pass of the teacher.

Works on fixed groups of records, so that a resumed run computes the same batches. At most two
models are in memory: the first and the one compared with it. Torch is imported with the first
model, so that endpoints are evaluated without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.evaluate.interfaces import has_weights
from stillroom.evaluate.lm.loss import (
    EncodedConversation,
    LogitReader,
    batch_records,
    count_rows_per_chunk,
    encode_records,
)
from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap
from stillroom.evaluate.metrics.calibration import NUM_BINS, TemperatureScaler, bin_confidences
from stillroom.evaluate.qa.questions import Question
from stillroom.jobs import Job
from stillroom.models import resolve_checkpoint
from stillroom.models.hub import read_backend_name
from stillroom.objects import resolve_local
from stillroom.provenance import read_artifact
from stillroom.records import Record

if TYPE_CHECKING:
    from stillroom.evaluate.jobs.report import EvaluateRecipe, ModelFidelitySettings

__all__ = [
    "CachedStates",
    "DistributionAgreement",
    "DistributionMetrics",
    "compare_distributions",
    "measure_agreement",
    "measure_fidelity",
    "read_initial_fidelity",
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


@dataclass(frozen=True, slots=True)
class DistributionAgreement:
    """Means over one record's assistant tokens: both divergences in nats, top-1 agreement.

    ``kl`` is KL(teacher || student), ``reverse_kl`` KL(student || teacher), ``agreement`` the share
    of positions with the same most likely token. All are 0 where ``tokens`` is 0.
    """

    kl: float
    reverse_kl: float
    agreement: float
    tokens: int


def measure_agreement(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int = 1024,
    batch_tokens: int = 2048,
    on_truncated: Callable[[int, int], None] | None = None,
) -> list[DistributionAgreement]:
    """Measure KL in both directions and top-1 agreement of two models, per record.

    If one head is padded wider than the other, both are cut to the narrower before the softmax:
    the padding rows are no tokens. A chunk of rows is compared at a time, so that the logits of a
    whole batch are never in memory.

    Source: Hinton et al. 2015, arXiv:1503.02531 (teacher to student); Gu et al. 2023,
    arXiv:2306.08543 (the reverse).

    Args:
        student: A causal language model, whose mode is restored.
        teacher: Another one with the same tokenizer, likewise.
        tokenizer: The tokenizer of both, a fast one.
        records: Conversations; only assistant tokens count.
        max_tokens: Maximum tokens of a record, from its start.
        batch_tokens: Tokens of one forward pass, padding included.
        on_truncated: Called with the index of each truncated record and the tokens dropped.

    Returns:
        One DistributionAgreement per record, in order.

    Raises:
        DataError: If the assistant's part of a conversation cannot be found.
    """
    encoded = encode_records(tokenizer, records, max_tokens=max_tokens, on_truncated=on_truncated)
    agreements = [DistributionAgreement(0.0, 0.0, 0.0, 0)] * len(encoded)
    modes = [bool(student.training), bool(teacher.training)]
    try:
        readers = LogitReader(student), LogitReader(teacher)
        with torch.inference_mode():
            for batch in batch_records(encoded, batch_tokens):
                hidden = [reader.hidden([record for _, record in batch]) for reader in readers]
                for row, (index, record) in enumerate(batch):
                    agreements[index] = _measure_record(readers, hidden, row, record)
    finally:
        student.train(modes[0])
        teacher.train(modes[1])
    return agreements


def _measure_record(
    readers: tuple[LogitReader, LogitReader],
    hidden: Sequence[torch.Tensor],
    row: int,
    record: EncodedConversation,
) -> DistributionAgreement:
    """Compare student (first) and teacher (second) on one record."""
    positions = torch.tensor(record.targets) - 1
    width = min(reader.vocabulary for reader in readers)
    sums = torch.zeros(3, dtype=torch.float64)
    step = count_rows_per_chunk(2 * width)
    for begin in range(0, len(positions), step):
        student, teacher = (
            torch.log_softmax(
                reader.rows(state, row, positions[begin : begin + step])[:, :width], -1
            )
            for reader, state in zip(readers, hidden, strict=True)
        )  # (n, V)
        teacher = teacher.to(student.device)
        gap = teacher - student
        sums[0] += (teacher.exp() * gap).sum(-1).double().sum().cpu()
        sums[1] -= (student.exp() * gap).sum(-1).double().sum().cpu()
        sums[2] += (student.argmax(-1) == teacher.argmax(-1)).sum().cpu()
    kl, reverse_kl, agreement = (sums / len(positions)).tolist()
    return DistributionAgreement(max(kl, 0.0), max(reverse_kl, 0.0), agreement, len(positions))


_GROUP_SIZE = 8


def measure_fidelity(
    recipe: EvaluateRecipe, settings: ModelFidelitySettings, questions: Sequence[Question], job: Job
) -> tuple[list[Metric], dict[str, int]]:
    """Return perplexities and divergences, and the counts of omissions by reason."""
    causal, notes = _find_causal(recipe, job)
    groups = [
        questions[index : index + _GROUP_SIZE] for index in range(0, len(questions), _GROUP_SIZE)
    ]
    first = next(iter(recipe.models))
    loader = _ModelLoader(causal, job)
    journal = job.journal("beliefs")
    with job.phase("fidelity", len(groups) * len(causal), "groups") as progress:
        for name in causal:
            for index, group in enumerate(groups):
                job.check_cancelled()
                if f"{name}/{index}" not in journal:
                    journal.put(
                        f"{name}/{index}", _measure_group(settings, loader, name, first, group)
                    )
                progress.advance()
            loader.drop(name, keep=first)
    loader.drop(first)
    metrics = []
    for name in causal:
        values = [journal[f"{name}/{index}"] for index in range(len(groups))]
        metrics += _summarize_fidelity(name, first, values, recipe.seed)
        for value in values:
            notes.update(value["notes"])
    return metrics, dict(notes)


def _find_causal(recipe: EvaluateRecipe, job: Job) -> tuple[dict[str, str], Counter[str]]:
    """Return the models with next-token logits, and the reasons for leaving out the others."""
    causal: dict[str, str] = {}
    notes: Counter[str] = Counter()
    for name, reference in recipe.models.items():
        if not has_weights(reference):
            notes[f"{name}: an endpoint gives no logits"] = 1
            continue
        named = read_backend_name(resolve_checkpoint(reference, say=job.say))
        if named:
            notes[f"{name}: read by backend '{named}', it has no next-token perplexity"] = 1
        else:
            causal[name] = reference
    return causal, notes


def read_initial_fidelity(
    recipe: EvaluateRecipe, settings: ModelFidelitySettings
) -> tuple[list[Metric], dict[str, int]]:
    """Return the divergence before distillation as recorded by the distilled artifact.

    Without a record there is no metric, and the second value has a note.
    """
    names = list(recipe.models)
    if settings.distilled is None or len(names) < 2:
        return [], {}
    details = read_artifact(resolve_local(settings.distilled)).details
    rows = [row for row in (details.get("fidelity") or {}).get("initial") or () if row["tokens"]]
    if not rows:
        return [], {"distilled: no record was measured before distillation": 1}
    metric = bootstrap(
        [row["kl"] for row in rows],
        weights=[row["tokens"] for row in rows],
        seed=recipe.seed,
        name=f"{names[1]}/kl_to_{names[0]}/initial",
        unit="nats/token",
    )
    return [metric], {}


class _ModelLoader:
    """Loads models on first use and releases them."""

    def __init__(self, references: Mapping[str, str], job: Job) -> None:
        self._references, self._job = references, job
        self._loaded: dict[str, tuple[Any, Any]] = {}

    def load(self, name: str) -> tuple[Any, Any]:
        if name not in self._loaded:
            from stillroom.models import load_causal_lm

            path = resolve_checkpoint(self._references[name], say=self._job.say)
            self._loaded[name] = load_causal_lm(path)
        return self._loaded[name]

    def __contains__(self, name: str) -> bool:
        return name in self._references

    def drop(self, name: str, *, keep: str = "") -> None:
        if name != keep:
            self._loaded.pop(name, None)


def _measure_group(
    settings: ModelFidelitySettings,
    loader: _ModelLoader,
    name: str,
    first: str,
    group: Sequence[Question],
) -> dict[str, Any]:
    """Return losses, and agreement with the first model, of one group of records."""
    from stillroom.evaluate.lm.loss import held_out_loss

    records = [question.record for question in group]
    model, tokenizer = loader.load(name)
    notes: Counter[str] = Counter()

    def count_cut(_: int, __: int) -> None:
        notes[f"{name}: record cut at max_tokens"] += 1

    losses = held_out_loss(
        model, tokenizer, records, max_tokens=settings.max_tokens, on_truncated=count_cut
    )
    agreements = []
    if name != first and first in loader:
        reference_model, reference_tokenizer = loader.load(first)
        if reference_tokenizer.get_vocab() == tokenizer.get_vocab():
            results = measure_agreement(
                model, reference_model, tokenizer, records, max_tokens=settings.max_tokens
            )
            agreements = [
                [result.kl, result.reverse_kl, result.agreement, result.tokens]
                for result in results
            ]
        else:
            notes[f"{name}: another tokenizer than {first}'s, no divergence"] = len(records)
    return {"losses": [list(loss) for loss in losses], "agreements": agreements, "notes": notes}


def _summarize_fidelity(
    name: str, first: str, values: Sequence[Mapping[str, Any]], seed: int
) -> list[Metric]:
    from stillroom.evaluate.lm.loss import perplexity

    losses = [(loss[0], loss[1]) for value in values for loss in value["losses"]]
    metrics = [perplexity(losses, name=f"{name}/perplexity", seed=seed)]
    rows = [row for value in values for row in value["agreements"] if row[3]]
    if rows:
        weights = [row[3] for row in rows]
        for column, (metric, unit) in enumerate(
            (
                (f"{name}/kl_to_{first}/final", "nats/token"),
                (f"{name}/reverse_kl_to_{first}/final", "nats/token"),
                (f"{name}/agreement", ""),
            )
        ):
            metrics.append(
                bootstrap(
                    [row[column] for row in rows],
                    weights=weights,
                    seed=seed,
                    name=metric,
                    unit=unit,
                )
            )
    return metrics
