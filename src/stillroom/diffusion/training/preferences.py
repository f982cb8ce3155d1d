"""VRPO: variance-reduced preference optimization (DPO) on likelihood bounds.

Source: Zhu et al. 2025 (LLaDA 1.5), arXiv:2505.19223: DPO (Rafailov et al. 2023, arXiv:2305.18290;
DPOTrainer of TRL) with each log-likelihood replaced by its bound, estimated from several times with
one mask each, under the same masks for policy and reference. Differs: the number of masked tokens
is fixed by the time (``fixed_mask_count``), which has the same mean and a lower variance; times are
stratified.

A pair is in ``fields.chosen`` and ``fields.rejected``, as written by synth; the messages before the
last assistant message are the common prompt. With ``fields.prefix`` (the start of an unfinished
answer, up to a pivotal token) the common part of both answers is given and not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from stillroom.diffusion.training.data import (
    CorruptedBatch,
    CorruptedExample,
    MaskableExample,
    TokenizedDataset,
    TrainingContext,
    TrainingObjective,
    WeightedDataSource,
    distribute,
    tokenize_records,
)
from stillroom.diffusion.training.loss import ReferenceModel, compute_logprobs
from stillroom.errors import DataError
from stillroom.records import Message, Record
from stillroom.train.data import BatchSource

if TYPE_CHECKING:
    from stillroom.diffusion.jobs.preference import DiffusionPreferenceRecipe
    from stillroom.diffusion.model.metadata import DiffusionMetadata
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.train.distributed import ProcessGroup

__all__ = [
    "PreferenceDataSource",
    "PreferenceOptimization",
    "PreferencePair",
    "average_bounds",
    "compute_margins",
    "draw_masks",
    "tokenize_pairs",
]

_POLICY_SEED, _REFERENCE_SEED, _HELD_OUT_SEED = 11, 12, 13  # distinct random streams


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two tokenized answers to one prompt."""

    record_id: str
    chosen: MaskableExample
    rejected: MaskableExample

    @property
    def sides(self) -> tuple[MaskableExample, MaskableExample]:
        """The chosen answer, then the rejected one."""
        return self.chosen, self.rejected


def tokenize_pairs(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int,
    first: int,
    on_done: Callable[[], None] | None = None,
) -> TokenizedDataset:
    """Tokenize preference pairs, and count records without one.

    Args:
        tokenizer: Fast tokenizer.
        records: Records with ``fields.chosen`` and ``fields.rejected``.
        max_tokens: Maximum tokens of prompt and answer; the end is truncated.
        first: First position that may be masked: 1 with shifted logits.
        on_done: Called after each record.
    """
    pairs: list[PreferencePair] = []
    totals = {"records_without_pair": 0, "records_cut": 0, "records_left_out": 0, "tokens": 0}
    for record in records:
        if on_done:
            on_done()
        sides = _split_pair(record)
        if sides is None:
            totals["records_without_pair"] += 1
            continue
        tokenized, counts = tokenize_records(
            tokenizer, sides, max_tokens=max_tokens, include_prompt=False, first=first
        )
        totals["records_cut"] += bool(counts["records_cut"])
        examples = [replace(example, turns=example.turns[-1:]) for example in tokenized]
        if len(examples) == 2 and record.fields.get("prefix"):
            examples = _strip_common(examples[0], examples[1])
        if len(examples) < 2 or np.array_equal(examples[0].ids, examples[1].ids):
            totals["records_left_out"] += 1
            continue
        pairs.append(PreferencePair(record.id, examples[0], examples[1]))
        totals["tokens"] += sum(len(example.ids) for example in examples)
    return TokenizedDataset(pairs, {"records": len(pairs), **totals})


def _split_pair(record: Record) -> list[Record] | None:
    """Return one record per answer, or None without a pair."""
    texts = [record.fields.get(name) for name in ("chosen", "rejected")]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    before = list(record.messages)
    if before and before[-1].role == "assistant":
        before = before[:-1]
    fields = {"tools": record.tools} if record.tools else {}
    return [Record((*before, Message("assistant", str(text))), fields) for text in texts]


def _strip_common(chosen: MaskableExample, rejected: MaskableExample) -> list[MaskableExample]:
    """Return two unfinished answers with the differing part as the only scored run."""
    shortest = min(len(chosen.ids), len(rejected.ids))
    same = chosen.ids[:shortest] == rejected.ids[:shortest]
    start = int(np.argmin(same)) if not same.all() else shortest
    back = chosen.ids[::-1][: shortest - start] == rejected.ids[::-1][: shortest - start]
    end = int(np.argmin(back)) if not back.all() else len(back)
    stripped = []
    for example in (chosen, rejected):
        stop = len(example.ids) - end
        first = max(start, example.turns[0][0])
        if first < stop:
            stripped.append(
                MaskableExample(example.record_id, example.ids[:stop], ((first, stop),))
            )
    return stripped


def compute_margins(beta: float, policy: Tensor, reference: Tensor) -> Tensor:
    """Return beta times the difference of the bounds' rises, chosen less rejected, (P,).

    Args:
        beta: Strength of the reference.
        policy: Bounds of the chosen and the rejected answer, (P, 2), nats.
        reference: Bounds by the reference, (P, 2).
    """
    rise = policy - reference
    return beta * (rise[:, 0] - rise[:, 1])


def draw_masks(
    example: MaskableExample,
    recipe: DiffusionPreferenceRecipe,
    metadata: DiffusionMetadata,
    rng: np.random.Generator,
) -> list[CorruptedExample]:
    """Return an answer under each drawn mask; the mean weighted loss is minus the bound.

    Each block has its own time. Scales are those of the bound, not of the preference loss.
    """
    positions = np.arange(len(example.ids))
    size = metadata.block_size
    block = positions * 0 if size is None else positions // size
    noised = example.noised
    groups = [np.flatnonzero(noised & (block == b)) for b in np.unique(block[noised])]
    u = rng.random((recipe.num_times, len(groups)))
    if recipe.stratified:
        strata = np.stack([rng.permutation(recipe.num_times) for _ in groups], 1)
        u = (strata + u) / recipe.num_times
    examples = []
    for row in u:
        for _ in range(recipe.masks_per_time):
            is_masked = np.zeros(len(positions), dtype=np.bool_)
            weight = np.zeros(len(positions))
            for group, share in zip(groups, row, strict=True):
                masked, token_weight = _draw_mask(
                    group, float(share), rng, counted=recipe.fixed_mask_count
                )
                is_masked[masked] = True
                weight[masked] = token_weight
            examples.append(
                CorruptedExample(
                    example.record_id, example.ids, is_masked, is_masked, weight, weight, 0
                )
            )
    return examples


def _draw_mask(
    group: npt.NDArray[np.int64], share: float, rng: np.random.Generator, *, counted: bool
) -> tuple[npt.NDArray[np.int64], float]:
    """Return the masked positions, and the weight of each."""
    size = len(group)
    if counted:
        count = min(int(share * size) + 1, size)
        return rng.choice(group, count, replace=False), size / count
    return group[rng.random(size) < share], 1 / max(share, 2.0**-53)


def average_bounds(
    texts: Sequence[CorruptedExample], logprobs: Sequence[Tensor], samples: int
) -> Tensor:
    """Return the mean of each run of ``samples`` texts: bounds, float64, nats."""
    values = [
        float(text_logprobs @ torch.from_numpy(text.scale[text.is_learned]))
        for text, text_logprobs in zip(texts, logprobs, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64).view(-1, samples).mean(1)


class PreferenceDataSource(WeightedDataSource):
    """Source of preference pairs, weighted by the gradient of the loss (loss_type sigmoid)."""

    def __init__(self, recipe: DiffusionPreferenceRecipe, context: TrainingContext) -> None:
        """Prepare a training run; the reference is the current model."""
        super().__init__(recipe, context, [pair.record_id for pair in context.examples])
        self.recipe = recipe
        self.samples = recipe.num_times * recipe.masks_per_time
        self.reference = ReferenceModel(context.model)

    def describe(self) -> object:
        """Return the record and the tokens of every pair."""
        return [
            [pair.record_id, [[side.ids.tolist(), side.turns] for side in pair.sides]]
            for pair in self.context.examples
        ]

    def weigh(
        self, step: int, ranks: ProcessGroup
    ) -> tuple[list[CorruptedExample], dict[str, float]]:
        """Return both answers of each pair under every mask, weighted.

        The loss is a function of two bounds. Its derivative by each, times a token's share of the
        bound, is the weight of the token's cross-entropy, which gives the exact gradient of the
        loss.
        """
        pairs = [self.context.examples[number] for number in self._records.chosen(step)]
        texts = self._draw(pairs, step, _POLICY_SEED)
        reference_texts = (
            texts if self.recipe.antithetic else self._draw(pairs, step, _REFERENCE_SEED)
        )
        policy = self._bounds(texts, ranks).requires_grad_(True)
        reference = self._bounds(reference_texts, ranks, by_reference=True)
        margins = compute_margins(self.recipe.beta, policy, reference)
        losses = -torch.nn.functional.logsigmoid(margins)
        (slope,) = torch.autograd.grad(losses.sum(), policy)  # (P, 2)
        losses, margins, policy = losses.detach(), margins.detach(), policy.detach()
        per = 2 * self.samples
        weighed = [
            replace(
                text,
                scale=-float(slope.flatten()[index // self.samples]) * text.scale / self.samples,
                units=int(index % per == 0),
                logged_loss=float(losses[index // per]) if index % per == 0 else 0.0,
            )
            for index, text in enumerate(texts)
        ]
        rise = (policy - reference).mean(0)
        notes = {
            "preference/accuracy": float((margins > 0).double().mean()),
            "preference/margin": float(margins.mean()),
            "preference/chosen_rise": float(rise[0]),
            "preference/rejected_rise": float(rise[1]),
        }
        return weighed, notes

    def _draw(
        self, pairs: Sequence[PreferencePair], step: int, purpose: int
    ) -> list[CorruptedExample]:
        texts: list[CorruptedExample] = []
        for index, pair in enumerate(pairs):
            for side, example in enumerate(pair.sides):
                rng = np.random.default_rng([self.recipe.seed, step, purpose, index, side])
                texts += draw_masks(example, self.recipe, self.metadata, rng)
        return texts

    def _bounds(
        self, texts: Sequence[CorruptedExample], ranks: ProcessGroup, *, by_reference: bool = False
    ) -> Tensor:
        """Return the bounds of both answers of each pair, (P, 2)."""

        def read(part: Sequence[CorruptedExample]) -> list[Tensor]:
            if by_reference:
                return self.reference.read(part, micro_tokens=self.micro_tokens)
            return compute_logprobs(self.context.model, part, micro_tokens=self.micro_tokens)

        return average_bounds(texts, distribute(ranks, texts, read), self.samples).view(-1, 2)


def _evaluate_pairs(
    recipe: DiffusionPreferenceRecipe, model: DiffusionModel, pairs: Sequence[PreferencePair]
) -> dict[str, float]:
    """Return how often, and by how many nats, the chosen bound exceeds the rejected one.

    Masks are the same at every call, so that only the model changes.
    """
    if not pairs:
        return {}
    texts: list[CorruptedExample] = []
    for number, pair in enumerate(pairs):
        for side, example in enumerate(pair.sides):
            rng = np.random.default_rng([recipe.seed, number, _HELD_OUT_SEED, side])
            texts += draw_masks(example, recipe, model.metadata, rng)
    logprobs = compute_logprobs(model, texts, micro_tokens=recipe.train.micro_tokens)
    bounds = average_bounds(texts, logprobs, recipe.num_times * recipe.masks_per_time).view(-1, 2)
    lead = bounds[:, 0] - bounds[:, 1]
    return {
        "preference/chosen_likelier": float((lead > 0).double().mean()),
        "preference/lead_nats": float(lead.mean()),
        "preference/pairs": float(len(pairs)),
    }


class PreferenceOptimization(TrainingObjective["DiffusionPreferenceRecipe"]):
    """DPO on bounds: -log sigmoid(beta (rise of the chosen bound - rise of the rejected))."""

    @override
    def tokenize(
        self,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> TokenizedDataset:
        return tokenize_pairs(
            model.tokenizer,
            records,
            max_tokens=self.recipe.max_tokens,
            first=int(model.metadata.logit_shift),
            on_done=on_done,
        )

    @override
    def open_source(self, context: TrainingContext) -> BatchSource[CorruptedBatch]:
        return PreferenceDataSource(self.recipe, context)

    @override
    def no_examples_error(self, records: int) -> DataError:
        return DataError(
            f"none of {records} records has a pair that differs within {self.recipe.max_tokens} "
            "tokens",
            code="diffusion.no-pairs",
            where="records",
            expected="text in fields.chosen and fields.rejected, as written by synth's preference "
            "generators",
            next="stillroom new synth.records/preference_judge, or raise max_tokens",
        )

    @override
    def evaluate(self, model: DiffusionModel, records: Sequence[Record]) -> dict[str, float]:
        return _evaluate_pairs(self.recipe, model, self.tokenize(model, records).items)
