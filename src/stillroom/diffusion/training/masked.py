"""Masked texts, or next tokens: times t of the forward process (noising) from t_min (eps).

``_excerpt_and_pad`` takes the stage's excerpt of a text (random lengths in ``stages.pretraining``)
and appends EOS padding; ``recipe.corruption`` masks it (``corruptions``).

All random draws follow from (seed, step, index within the step): a resumed run, another split into
micro-batches or another number of processes draws the same masks. The times of a step are spread
evenly over their range, one point of a shifted grid per text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from stillroom.diffusion.interfaces import MaskedCopy
from stillroom.diffusion.model.metadata import TargetMetadata
from stillroom.diffusion.settings import TextTrainingRecipe
from stillroom.diffusion.training.data import (
    TIME_BUCKETS,
    CorruptedBatch,
    CorruptedExample,
    MaskableExample,
    StepDataSource,
    TokenizedDataset,
    TrainingContext,
    TrainingObjective,
    collate,
    find_buckets,
    tokenize_records,
)
from stillroom.errors import DataError
from stillroom.train.data import BatchSource

if TYPE_CHECKING:
    from torch import nn

    from stillroom.diffusion.jobs.train import DiffusionTrainRecipe
    from stillroom.diffusion.model.metadata import DiffusionMetadata
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.records import Record
    from stillroom.train.distributed import ProcessGroup

__all__ = ["CorruptedDataSource", "MaskedDenoising", "NextTokenPrediction", "TextDataSource"]

_ORDER, _TIMES, _TEXT = 0, 1, 2  # distinct random streams


class TextDataSource(StepDataSource):
    """Source of micro-batches of clean, shuffled texts for a model with causal attention."""

    def __init__(
        self,
        examples: Sequence[MaskableExample],
        recipe: TextTrainingRecipe,
        metadata: DiffusionMetadata,
        steps: int,
    ) -> None:
        """Prepare a training run; arguments as in ``StepDataSource``."""
        super().__init__(recipe, metadata, examples, steps)
        self.examples, self.recipe = examples, recipe
        self._orders: dict[int, list[int]] = {}

    @override
    def describe(self) -> object:
        return [
            [example.record_id, example.ids.tolist(), example.turns] for example in self.examples
        ]

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Draw the texts of a step."""
        self._prepare(step)
        return {}

    @override
    def plan(self, step: int) -> Sequence[Sequence[int]]:
        self._prepare(step)
        return super().plan(step)

    @override
    def load(self, group: Sequence[int]) -> CorruptedBatch:
        """Return one micro-batch of the step planned last."""
        texts = [self._texts[number] for number in group]
        return collate(
            texts,
            self.metadata,
            block_size=self.block_size(self._step),
            extra=self._extra(max(len(text.ids) for text in texts)),
            bucket_scale=self._bucket_scale,
        )

    def _extra(self, length: int) -> Tensor | None:
        """Return which later positions are visible in causal attention, (T, T) bool; None: none."""
        return None

    def _copies(
        self, step: int, index: int, is_maskable: npt.NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.float64], list[MaskedCopy]]:
        """Return the time of each token, (T,), and the copies of a text."""
        ones = np.ones(len(is_maskable))
        return ones, [MaskedCopy(is_maskable & False, is_maskable, ones)]

    def _prepare(self, step: int) -> None:
        if step == self._step:
            return
        size = self.recipe.train.batch_size
        self._texts = []
        for index in range(size):
            example = self.examples[self._at(step * size + index)]
            rng = np.random.default_rng([self.seed, step, _TEXT, index])
            self._texts += self._draw(example, step, index, rng)
        units = max(sum(text.units for text in self._texts), 1)
        times = np.concatenate([text.t[text.is_learned] for text in self._texts])
        counts = np.bincount(find_buckets(times), minlength=len(TIME_BUCKETS)).tolist()
        self._bucket_scale = tuple(units / count if count else 0.0 for count in counts)
        self._step = step

    def _draw(
        self, example: MaskableExample, step: int, index: int, rng: np.random.Generator
    ) -> list[CorruptedExample]:
        ids, is_maskable = self._excerpt_and_pad(example, rng)
        t, copies = self._copies(step, index, is_maskable, rng)
        count = int(is_maskable.sum())
        by_sequence = self.recipe.loss_normalization == "sequence"
        per, units = (count, 1) if by_sequence else (1, count)
        return [
            CorruptedExample(
                example.record_id,
                ids,
                copy.is_masked,
                copy.is_learned,
                copy.weight / per,
                t if copy.t is None else copy.t,
                0 if number else units,
            )
            for number, copy in enumerate(copies)
        ]

    def _excerpt_and_pad(
        self, example: MaskableExample, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return a text as trained in this step: the stage's excerpt and its EOS padding (SFT)."""
        padding = self.recipe.padding
        ids, is_maskable = self.recipe.stage.excerpt(
            example.ids, example.noised, example.turns, rng
        )
        if padding is None:
            return ids, is_maskable
        # not beyond max_tokens: past the context length, or after a text that was truncated
        more = min(-len(ids) % padding.multiple, self.recipe.max_tokens - len(ids))
        if more and padding.random_length:
            more = int(rng.integers(more + 1))
        if more and self.metadata.end_token_ids:
            ids = np.concatenate([ids, np.full(more, self.metadata.end_token_ids[0])])
            is_maskable = np.concatenate([is_maskable, np.ones(more, dtype=np.bool_)])
        return ids, is_maskable

    def _at(self, index: int) -> int:
        epoch, offset = divmod(index, len(self.examples))
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, epoch, _ORDER, 1])
            orders = {old: order for old, order in self._orders.items() if old == epoch - 1}
            self._orders = {**orders, epoch: rng.permutation(len(self.examples)).tolist()}
        return self._orders[epoch][offset]


class CorruptedDataSource(TextDataSource):
    """Source of micro-batches of noisy copies of shuffled texts."""

    recipe: DiffusionTrainRecipe

    @override
    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Draw the noise of a step."""
        self._prepare(step)
        size = self.block_size(step)
        return {"block_size": float(size)} if size and self.recipe.attention.grows else {}

    @override
    def block_size(self, step: int) -> int | None:
        return self.recipe.attention.block_size_at(step, self.steps)

    @override
    def _extra(self, length: int) -> Tensor | None:
        return None if self._visible is None else self._visible[:length, :length]

    @override
    def _copies(
        self, step: int, index: int, is_maskable: npt.NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.float64], list[MaskedCopy]]:
        noise, positions = self.recipe.noise, np.arange(len(is_maskable))
        block_size = self.block_size(step)
        block = positions // block_size if block_size is not None else positions * 0
        if noise.low_discrepancy:
            share = index / self.recipe.train.batch_size
            u = (self._offsets[block % len(self._offsets)] + share) % 1.0
        else:
            u = rng.random(int(block[-1]) + 1)[block]
        t = noise.t_min + (noise.t_max - noise.t_min) * u
        return t, self.recipe.corruption.copies(is_maskable, t, self.recipe.noise_schedule, rng)

    @override
    def _prepare(self, step: int) -> None:
        if step != self._step:
            # the shift of the grid of times of each block; longer texts wrap around
            self._offsets = np.random.default_rng([self.seed, step, _TIMES]).random(4096)
            super()._prepare(step)
            share = self.recipe.attention.visible_share(step)
            self._visible: Tensor | None = None
            if share < 1:
                rng = np.random.default_rng([self.seed, step, _TEXT + 1])
                longest = max(len(text.ids) for text in self._texts)
                self._visible = torch.from_numpy(rng.random((longest, longest)) < share)


T = TypeVar("T", bound=TextTrainingRecipe)


class _TextObjective(TrainingObjective[T]):
    """Objective whose examples are texts."""

    @property
    @override
    def learns_prompts(self) -> bool:
        return self.recipe.stage.learns_prompts

    @override
    def tokenize(
        self,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> TokenizedDataset:
        examples, counts = tokenize_records(
            model.tokenizer,
            records,
            max_tokens=self.recipe.max_tokens,
            include_prompt=self.learns_prompts,
            first=int(model.metadata.logit_shift),
            on_done=on_done,
        )
        return TokenizedDataset(examples, counts)

    @override
    def no_examples_error(self, records: int) -> DataError:
        return DataError(
            f"none of {records} records has a token to learn",
            code="diffusion.no-places",
            where="records",
            expected="assistant messages within max_tokens",
            next=f"raise max_tokens above {self.recipe.max_tokens}, or set stage: pretraining",
        )


class MaskedDenoising(_TextObjective["DiffusionTrainRecipe"]):
    """Weighted cross-entropy of masked tokens, whose mean is the bound of the log-likelihood."""

    has_times: ClassVar[bool] = True

    @property
    @override
    def target(self) -> TargetMetadata:
        attention = self.recipe.attention
        return TargetMetadata(
            attention.kind,
            attention.final_block_size,
            self.recipe.logit_shift,
            self.recipe.noise_schedule.method_name(),
        )

    @property
    @override
    def method(self) -> str:
        return f"diffusion.training.corruptions.{self.recipe.corruption.method_name()}"

    @override
    def open_source(self, context: TrainingContext) -> BatchSource[CorruptedBatch]:
        share = self.recipe.attention.visible_share(context.steps - 1)
        if share < 1:
            context.job.warn(
                f"attention is annealed beyond the {context.steps} steps of the run: the "
                f"last one shows {share:.1%} of the later tokens, the checkpoint attends to all"
            )
        return CorruptedDataSource(
            context.examples, self.recipe, context.model.metadata, context.steps
        )


class NextTokenPrediction(_TextObjective[TextTrainingRecipe]):
    """Cross-entropy of the next token."""

    is_causal: ClassVar[bool] = True

    @property
    @override
    def target(self) -> TargetMetadata:
        return TargetMetadata("causal", logit_shift=True)

    @override
    def open_source(self, context: TrainingContext) -> BatchSource[CorruptedBatch]:
        return TextDataSource(context.examples, self.recipe, context.model.metadata, context.steps)
