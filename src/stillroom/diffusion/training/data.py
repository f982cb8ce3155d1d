"""Training data: tokenized records, corrupted examples, micro-batches, and their sources.

All random draws follow from (seed, step, index within the step): a resumed run, another split into
micro-batches or another number of processes draws the same masks. The times of a step are spread
evenly over their range, one point of a shifted grid per text.

``WeightedDataSource`` starts each step with a forward pass over all its texts without gradients;
the objective's result is the scale of each token, and the logged loss is the objective's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.diffusion.interfaces import ObjectiveContext
from stillroom.diffusion.model.metadata import DiffusionMetadata
from stillroom.diffusion.model.network import build_attention_mask, build_training_mask
from stillroom.diffusion.recipe import DiffusionRecipe
from stillroom.evaluate.lm.encoding import encode_record
from stillroom.provenance import digest_json
from stillroom.records import Record
from stillroom.train.data import RecordSource, group_by_length

if TYPE_CHECKING:
    from torch import nn

    from stillroom.train.distributed import ProcessGroup

__all__ = [
    "TIME_BUCKETS",
    "CorpusStats",
    "CorruptedBatch",
    "CorruptedDataSource",
    "CorruptedExample",
    "MaskableExample",
    "WeightedDataSource",
    "collate",
    "distribute",
    "tokenize_records",
]


TIME_BUCKETS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


_GROWTH_DIVISOR = 2  # block_growth covers the first half of the steps


_ORDER, _TIMES, _TEXT = 0, 1, 2


@dataclass(frozen=True, slots=True)
class CorruptedExample:
    """One noisy copy of a text.

    Args:
        record_id: Record of the text.
        ids: Clean token ids, (T,), int64.
        is_masked: Masked tokens, (T,), bool.
        is_learned: Tokens with a loss, (T,), bool.
        scale: Weight of each token's loss, (T,), float64.
        t: Time of each token, (T,), float64.
        units: Weight of the text in the step's mean; 0 for a second copy.
        logged_loss: Loss to log, where it is not the sum of the scaled ones.
    """

    record_id: str
    ids: npt.NDArray[np.int64]
    is_masked: npt.NDArray[np.bool_]
    is_learned: npt.NDArray[np.bool_]
    scale: npt.NDArray[np.float64]
    t: npt.NDArray[np.float64]
    units: int
    logged_loss: float | None = None


@dataclass(frozen=True, slots=True)
class CorruptedBatch:
    """Several noisy texts, padded on the right.

    Args:
        ids: Input tokens, (B, T); with block-causal attention, noisy then clean.
        positions: Position of each token, (B, T).
        seen: Attention mask, (B, T, T), bool.
        flat: Indices into (B * T) of the states that predict the N learned tokens.
        labels: Learned tokens, (N,).
        scale: Weight of each loss, (N,), float32.
        bucket: Index into ``TIME_BUCKETS`` of each token's time, (N,).
        bucket_scale: Factor of each bucket's summed loss that, divided by the step's units, gives
            the step's mean; (4,).
        record_ids: Records of the texts.
        tokens: Number of tokens without padding.
        valid: Sum of units.
        logged_loss: Loss to log, where it is not the sum of the scaled ones.
    """

    ids: Tensor
    positions: Tensor
    seen: Tensor
    flat: Tensor
    labels: Tensor
    scale: Tensor
    bucket: Tensor
    bucket_scale: tuple[float, ...]
    record_ids: tuple[str, ...]
    tokens: int
    valid: int
    logged_loss: float | None = None


class CorruptedDataSource:
    """Source of micro-batches of noisy copies of shuffled examples."""

    def __init__(
        self,
        lessons: Sequence[MaskableExample],
        recipe: DiffusionRecipe,
        metadata: DiffusionMetadata,
        steps: int,
    ) -> None:
        """Prepare a training run.

        Args:
            lessons: Examples.
            recipe: Noise, batch and seed.
            metadata: Attention, mask token and logit shift.
            steps: Number of optimizer steps.
        """
        self.lessons, self.recipe, self.metadata, self.steps = lessons, recipe, metadata, steps
        self._step = -1
        self._texts: list[CorruptedExample] = []
        self._orders: dict[int, list[int]] = {}

    @cached_property
    def identity(self) -> str:
        """Digest of everything that determines the masks."""
        recipe = self.recipe
        settings = recipe.model_dump(mode="json", exclude={"train", "out", "validation"})
        texts = [[lesson.record_id, lesson.ids.tolist(), lesson.turns] for lesson in self.lessons]
        return digest_json([settings, self.metadata.model_dump(mode="json"), texts, self.steps])

    def __len__(self) -> int:
        """Return the number of examples per epoch."""
        return len(self.lessons)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Draw the noise of a step."""
        self._prepare(step)
        size = self.block_size(step)
        return {} if size is None or not self.recipe.block_growth else {"block_size": float(size)}

    def plan(self, step: int) -> Sequence[Sequence[int]]:
        """Return the copies of each micro-batch of a step, longest first."""
        self._prepare(step)
        times = 2 if self.block_size(step) is not None else 1
        lengths = [len(text.ids) * times for text in self._texts]
        return group_by_length(range(len(lengths)), lengths, self.recipe.train.micro_tokens)

    def valid(self, group: Sequence[int]) -> int:
        """Return the summed units of some copies."""
        return sum(self._texts[number].units for number in group)

    def load(self, group: Sequence[int]) -> CorruptedBatch:
        """Return one micro-batch of the step planned last."""
        texts = [self._texts[number] for number in group]
        units = max(sum(text.units for text in self._texts), 1)
        counts = [
            sum(int((text.is_learned & _in_bucket(text.t, bucket)).sum()) for text in self._texts)
            for bucket in range(len(TIME_BUCKETS))
        ]
        share = tuple(units / count if count else 0.0 for count in counts)
        return collate(
            texts,
            self.metadata,
            block_size=self.block_size(self._step),
            extra=self._extra(self._step, max(len(text.ids) for text in texts)),
            bucket_scale=share,
        )

    def block_size(self, step: int) -> int | None:
        """Return the block size of a step's attention; None without blocks."""
        size, growth = self.metadata.block_size, self.recipe.block_growth
        if size is None or not growth:
            return size
        stage = step * _GROWTH_DIVISOR * len(growth) // max(self.steps, 1)
        return growth[stage] if stage < len(growth) else size

    def _extra(self, step: int, length: int) -> Tensor | None:
        """Return which later positions are visible while attention is annealed, (T, T) bool."""
        steps = self.recipe.anneal_steps
        if not steps or step + 1 >= steps or self.metadata.attention != "full":
            return None
        rng = np.random.default_rng([self.recipe.seed, step, _TEXT + 1])
        longest = max(len(text.ids) for text in self._texts)
        noise = rng.random((longest, longest))[:length, :length]
        return torch.from_numpy(noise < (step + 1) / steps)

    def _prepare(self, step: int) -> None:
        if step == self._step:
            return
        size = self.recipe.train.batch_size
        rng = np.random.default_rng([self.recipe.seed, step, _TIMES])
        offsets = rng.random(4096)  # one per block; longer texts wrap around
        self._texts = []
        for index in range(size):
            lesson = self.lessons[self._at(step * size + index)]
            text_rng = np.random.default_rng([self.recipe.seed, step, _TEXT, index])
            self._texts += self._noise(
                lesson, (offsets, index / size), text_rng, self.block_size(step)
            )
        self._step = step

    def _noise(
        self,
        lesson: MaskableExample,
        grid: tuple[npt.NDArray[np.float64], float],
        rng: np.random.Generator,
        block_size: int | None,
    ) -> list[CorruptedExample]:
        ids, noised = self._cut(lesson, rng)
        noise, positions = self.recipe.noise, np.arange(len(ids))
        block = positions // block_size if block_size is not None else positions * 0
        if noise.low_discrepancy:
            u = (grid[0][block % len(grid[0])] + grid[1]) % 1.0
        else:
            u = rng.random(int(block[-1]) + 1)[block]
        t = noise.t_min + (noise.t_max - noise.t_min) * u
        copies = self.recipe.noising.copies(noised, t, self.recipe.schedule, rng)
        count = int(noised.sum())
        per = count if self.recipe.answers.per_answer else 1
        units = 1 if self.recipe.answers.per_answer else count
        return [
            CorruptedExample(
                lesson.record_id,
                ids,
                copy.is_masked,
                copy.is_learned,
                copy.weight / per,
                t if copy.t is None else copy.t,
                0 if number else units,
            )
            for number, copy in enumerate(copies)
        ]

    def _cut(
        self, lesson: MaskableExample, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return a text as trained in this step: one turn, possibly truncated, its end padded."""
        answers, ids, noised = self.recipe.answers, lesson.ids, lesson.noised
        if answers.one_turn and not self.recipe.include_prompt and len(lesson.turns) > 1:
            start, stop = lesson.turns[int(rng.integers(len(lesson.turns)))]
            ids = ids[:stop]
            noised = np.zeros(stop, dtype=np.bool_)
            noised[start:stop] = True
        elif self.recipe.include_prompt and rng.random() < self.recipe.noise.short_share:
            first = int(np.flatnonzero(noised)[0])
            length = int(rng.integers(first + 1, len(ids) + 1))
            ids, noised = ids[:length], noised[:length]
        more = -len(ids) % answers.pad_multiple
        if more and answers.pad_cut:
            more = int(rng.integers(more + 1))
        if more and self.metadata.end_token_ids:
            ids = np.concatenate([ids, np.full(more, self.metadata.end_token_ids[0])])
            noised = np.concatenate([noised, np.ones(more, dtype=np.bool_)])
        return ids, noised

    def _at(self, index: int) -> int:
        epoch, offset = divmod(index, len(self.lessons))
        if epoch not in self._orders:
            rng = np.random.default_rng([self.recipe.seed, epoch, _ORDER, 1])
            orders = {old: order for old, order in self._orders.items() if old == epoch - 1}
            self._orders = {**orders, epoch: rng.permutation(len(self.lessons)).tolist()}
        return self._orders[epoch][offset]


def collate(
    texts: Sequence[CorruptedExample],
    metadata: DiffusionMetadata,
    *,
    block_size: int | None,
    extra: Tensor | None = None,
    bucket_scale: tuple[float, ...] = (1.0,) * len(TIME_BUCKETS),
) -> CorruptedBatch:
    """Collate noisy texts into one batch.

    Args:
        texts: Noisy texts.
        metadata: Mask token, logit shift and attention.
        block_size: Block size of block-causal attention: noisy and clean copy in one pass.
        extra: During annealing, visible later positions, (T, T); earlier ones are always visible.
        bucket_scale: Copied to the batch.
    """
    lengths = np.array([len(text.ids) for text in texts])
    width = int(lengths.max())
    clean = _pad([text.ids for text in texts], width, np.int64)
    is_masked = _pad([text.is_masked for text in texts], width, np.bool_)
    is_learned = _pad([text.is_learned for text in texts], width, np.bool_)
    noisy = np.where(is_masked, metadata.mask_token_id, clean)
    is_text = torch.from_numpy(np.arange(width) < lengths[:, None])  # (B, W)
    times = 2 if block_size is not None else 1
    positions = torch.arange(width)
    pattern = _mask(metadata, positions, block_size, extra)  # (times W, times W)
    is_key = is_text.repeat(1, times)
    mask = pattern[None] & is_key[:, None, :]
    mask[:, :, 0] |= ~is_key  # padding attends to one key, so that no softmax is empty
    rows, columns = np.nonzero(is_learned)
    source = columns - int(metadata.logit_shift)
    if block_size is not None and metadata.logit_shift:
        # the state before a block's first token is that of the clean copy, as in sampling
        source = np.where(columns % block_size == 0, source + width, source)
    scale = _pad([text.scale for text in texts], width, np.float64)[rows, columns]
    t = _pad([text.t for text in texts], width, np.float64)[rows, columns]
    bucket = np.minimum((t * len(TIME_BUCKETS)).astype(np.int64), len(TIME_BUCKETS) - 1)
    read = np.concatenate([noisy, clean], 1) if times == 2 else noisy
    logged = [text.logged_loss for text in texts if text.logged_loss is not None]
    return CorruptedBatch(
        torch.from_numpy(read),
        positions.repeat(times).expand(len(texts), -1),
        mask,
        torch.from_numpy(source + rows * width * times),
        torch.from_numpy(clean[rows, columns]),
        torch.from_numpy(scale).float(),
        torch.from_numpy(bucket),
        bucket_scale,
        tuple(text.record_id for text in texts),
        int(lengths.sum()),
        sum(text.units for text in texts),
        sum(logged) if logged else None,
    )


def _pad(parts: Sequence[npt.NDArray[Any]], width: int, dtype: type) -> npt.NDArray[Any]:
    """Stack arrays of different lengths, zero-padded on the right, (B, width)."""
    padded: npt.NDArray[Any] = np.zeros((len(parts), width), dtype=dtype)
    for row, part in enumerate(parts):
        padded[row, : len(part)] = part
    return padded


def _mask(
    metadata: DiffusionMetadata, positions: Tensor, block_size: int | None, extra: Tensor | None
) -> Tensor:
    if block_size is not None:
        return build_training_mask(len(positions), block_size)
    if extra is not None:
        return (
            build_attention_mask("causal", None, positions, positions)
            | extra[: len(positions), : len(positions)]
        )
    return build_attention_mask(metadata.attention, None, positions, positions)


def _in_bucket(t: npt.NDArray[np.float64], bucket: int) -> npt.NDArray[np.bool_]:
    return np.asarray(
        np.minimum((t * len(TIME_BUCKETS)).astype(int), len(TIME_BUCKETS) - 1) == bucket
    )


@dataclass(frozen=True, slots=True)
class MaskableExample:
    """One tokenized record.

    Args:
        record_id: Record of the text.
        ids: Token ids, (T,), int64.
        turns: First and last + 1 token of each maskable run: one per answer, or one in all.
    """

    record_id: str
    ids: npt.NDArray[np.int64]
    turns: tuple[tuple[int, int], ...]

    @property
    def noised(self) -> npt.NDArray[np.bool_]:
        """Tokens that may be masked, in any turn, (T,)."""
        mask = np.zeros(len(self.ids), dtype=np.bool_)
        for start, stop in self.turns:
            mask[start:stop] = True
        return mask


@dataclass(slots=True)
class CorpusStats:
    """Counts of tokenization."""

    records: int = 0
    cut: int = 0
    left_out: int = 0
    tokens: int = 0
    tokens_cut: int = 0
    noised: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return {
            "records": self.records,
            "records_cut": self.cut,
            "records_left_out": self.left_out,
            "tokens": self.tokens,
            "tokens_cut": self.tokens_cut,
            "tokens_noised": self.noised,
        }


def tokenize_records(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int,
    include_prompt: bool,
    first: int,
    on_done: Callable[[], None] | None = None,
) -> tuple[list[MaskableExample], CorpusStats]:
    """Tokenize records, and count what was truncated or skipped.

    Args:
        tokenizer: Fast tokenizer.
        records: Conversations, or plain text as a single assistant message.
        max_tokens: Maximum tokens per record; the end is truncated.
        include_prompt: Mask all tokens, not answers alone.
        first: First position that may be masked: 1 with shifted logits.
        on_done: Called after each record.

    Raises:
        DataError: If the chat template hides the assistant's messages.
    """
    lessons, counts = [], CorpusStats()
    for record in records:
        encoded = encode_record(tokenizer, record, max_tokens=max_tokens)
        counts.cut += bool(encoded.truncated)
        counts.tokens_cut += encoded.truncated
        marks = np.asarray(encoded.is_assistant, dtype=np.bool_)
        if include_prompt:
            special = set(getattr(tokenizer, "all_special_ids", ()))
            begins = len(encoded.ids) > 0 and encoded.ids[0] in special
            marks = np.ones(len(encoded.ids), dtype=np.bool_)
            marks[: int(begins)] = False
        marks[:first] = False
        turns = _find_runs(marks)
        if turns:
            lesson = MaskableExample(record.id, np.asarray(encoded.ids, dtype=np.int64), turns)
            lessons.append(lesson)
            counts.records += 1
            counts.tokens += len(lesson.ids)
            counts.noised += int(marks.sum())
        else:
            counts.left_out += 1
        if on_done:
            on_done()
    return lessons, counts


def _find_runs(marks: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Return first and last + 1 of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
    return tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))


T = TypeVar("T")


R = TypeVar("R")


def distribute(
    ranks: ProcessGroup, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]
) -> list[R]:
    """Return ``work(items)``, computed in parts by all processes."""
    every = ranks.gather(list(work(items[ranks.rank :: ranks.count])))
    return [every[index % ranks.count][index // ranks.count] for index in range(len(items))]


class WeightedDataSource(ABC):
    """Source of texts that are drawn and weighted at the start of each step."""

    def __init__(self, course: ObjectiveContext, ids: Sequence[str]) -> None:
        """Prepare a training run.

        Args:
            course: Arguments of the objective.
            ids: Record of each example.
        """
        self.course, self.recipe, self.metadata = course, course.recipe, course.metadata
        settings = self.recipe.train
        self.micro_tokens = settings.micro_tokens
        self.ids = list(ids)
        self._records: RecordSource[object, CorruptedBatch] = RecordSource(
            course.lessons,
            ids=self.ids,
            lengths=[1] * len(self.ids),
            valid=[1] * len(self.ids),
            load=lambda _: self.load([]),
            batch_size=settings.batch_size,
            micro_tokens=self.micro_tokens,
            seed=self.recipe.seed,
        )
        self._step = -1
        self._texts: list[CorruptedExample] = []
        self._notes: dict[str, float] = {}

    @abstractmethod
    def weigh(
        self, step: int, ranks: ProcessGroup
    ) -> tuple[list[CorruptedExample], dict[str, float]]:
        """Return the texts of a step, with their scales, and metrics to log."""

    @abstractmethod
    def describe(self) -> object:
        """Return the examples as JSON, for the digest."""

    @cached_property
    def identity(self) -> str:
        """Digest of everything that determines the texts, except for the weights."""
        settings = self.recipe.model_dump(mode="json", exclude={"train", "out", "validation"})
        metadata = self.metadata.model_dump(mode="json")
        return digest_json([settings, metadata, self.ids, self.describe(), self.course.steps])

    def __len__(self) -> int:
        """Return the number of examples per epoch."""
        return len(self.ids)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Draw and weight the texts of a step."""
        self._texts, self._notes = self.weigh(step, ranks)
        self._step = step
        return self._notes

    def plan(self, step: int) -> Sequence[Sequence[int]]:
        """Return the texts of each micro-batch of the current step, longest first."""
        times = 1 if self.metadata.block_size is None else 2
        lengths = [len(text.ids) * times for text in self._texts]
        return group_by_length(range(len(lengths)), lengths, self.micro_tokens)

    def valid(self, group: Sequence[int]) -> int:
        """Return the summed units of some texts."""
        return sum(self._texts[number].units for number in group)

    def load(self, group: Sequence[int]) -> CorruptedBatch:
        """Return one micro-batch of the plan."""
        texts = [self._texts[number] for number in group]
        return collate(texts, self.metadata, block_size=self.metadata.block_size)
