"""Training data: tokenized records, corrupted examples, micro-batches, and their sources.

Every text has a place in its step, and all its draws follow from (seed, step, place): a resumed
run, another split into micro-batches or another number of processes sees the same masks. Times of a
step are spread evenly over their range, one point of a shifted grid a text.

Each step begins with a reading of all its texts without a gradient; what the objective makes of it
stands in the texts' scales, and the loss that is logged is the objective's own.
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


_GROWTH_DIVISOR = 2  # blocks grow over the first half of the steps


_ORDER, _TIMES, _TEXT = 0, 1, 2


@dataclass(frozen=True, slots=True)
class CorruptedExample:
    """One noisy copy of a text.

    Args:
        record_id: The record's.
        ids: The clean text, (T,), int64.
        is_masked: What the model does not see, (T,), bool.
        is_learned: What it is asked for, (T,), bool.
        scale: Of each token's loss, (T,), float64.
        t: The time at each token, (T,), float64.
        units: What the text counts for in the step's mean; 0 for a second copy.
        told: The loss that the text stands for, where that is not the sum of its scaled ones.
    """

    record_id: str
    ids: npt.NDArray[np.int64]
    is_masked: npt.NDArray[np.bool_]
    is_learned: npt.NDArray[np.bool_]
    scale: npt.NDArray[np.float64]
    t: npt.NDArray[np.float64]
    units: int
    told: float | None = None


@dataclass(frozen=True, slots=True)
class CorruptedBatch:
    """Several noisy texts, padded on the right.

    Args:
        ids: What the model reads, (B, T); where attention is by blocks, noisy then clean.
        positions: (B, T).
        seen: (B, T, T), bool.
        flat: Indices into (B * T) of the states behind the N asked tokens.
        labels: Those tokens, (N,).
        scale: Weight of each one's loss, (N,), float32.
        bucket: Which of ``TIME_BUCKETS`` each one's time is in, (N,).
        bucket_scale: What a bucket's summed loss is multiplied by to give, divided by the step's
            units, the step's mean; (4,).
        record_ids: The records inside.
        tokens: Tokens, without padding.
        valid: Units.
        told: The loss that the texts stand for, where that is not the sum of the scaled ones.
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
    told: float | None = None


class CorruptedDataSource:
    """Shuffles lessons, makes noisy copies of each step's, and joins them to micro-batches."""

    def __init__(
        self,
        lessons: Sequence[MaskableExample],
        recipe: DiffusionRecipe,
        metadata: DiffusionMetadata,
        steps: int,
    ) -> None:
        """Stand over ``lessons``.

        Args:
            lessons: What is learned from.
            recipe: Noise, batch and seed.
            metadata: Attention, mask token and shift of the model.
            steps: Optimizer steps of the run.
        """
        self.lessons, self.recipe, self.metadata, self.steps = lessons, recipe, metadata, steps
        self._step = -1
        self._texts: list[CorruptedExample] = []
        self._orders: dict[int, list[int]] = {}

    @cached_property
    def identity(self) -> str:
        """A digest of all that the masks follow from."""
        recipe = self.recipe
        kept = recipe.model_dump(mode="json", exclude={"train", "out", "validation"})
        texts = [[lesson.record_id, lesson.ids.tolist(), lesson.turns] for lesson in self.lessons]
        return digest_json([kept, self.metadata.model_dump(mode="json"), texts, self.steps])

    def __len__(self) -> int:
        """Return how many lessons one epoch has."""
        return len(self.lessons)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Draw the step's noise."""
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
        """Return what some copies count for."""
        return sum(self._texts[number].units for number in group)

    def load(self, group: Sequence[int]) -> CorruptedBatch:
        """Return one micro-batch of the step that was planned last."""
        texts = [self._texts[number] for number in group]
        units = max(sum(text.units for text in self._texts), 1)
        counts = [
            sum(int((text.is_learned & _in_bucket(text.t, at)).sum()) for text in self._texts)
            for at in range(len(TIME_BUCKETS))
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
        """Return the block size of a step's attention; None where it is not by blocks."""
        size, growth = self.metadata.block_size, self.recipe.block_growth
        if size is None or not growth:
            return size
        at = step * _GROWTH_DIVISOR * len(growth) // max(self.steps, 1)
        return growth[at] if at < len(growth) else size

    def _extra(self, step: int, length: int) -> Tensor | None:
        """Return which later places are already seen while attention is annealed, (T, T) bool."""
        steps = self.recipe.anneal_steps
        if not steps or step + 1 >= steps or self.metadata.attention != "full":
            return None
        rng = np.random.default_rng([self.recipe.seed, step, _TEXT + 1])
        longest = max(len(text.ids) for text in self._texts)
        drawn = rng.random((longest, longest))[:length, :length]
        return torch.from_numpy(drawn < (step + 1) / steps)

    def _prepare(self, step: int) -> None:
        if step == self._step:
            return
        size = self.recipe.train.batch_size
        rng = np.random.default_rng([self.recipe.seed, step, _TIMES])
        offsets = rng.random(4096)  # one a block: texts with more blocks begin again
        self._texts = []
        for place in range(size):
            lesson = self.lessons[self._at(step * size + place)]
            own = np.random.default_rng([self.recipe.seed, step, _TEXT, place])
            self._texts += self._noise(lesson, (offsets, place / size), own, self.block_size(step))
        self._step = step

    def _noise(
        self,
        lesson: MaskableExample,
        grid: tuple[npt.NDArray[np.float64], float],
        rng: np.random.Generator,
        block_size: int | None,
    ) -> list[CorruptedExample]:
        ids, noised = self._cut(lesson, rng)
        noise, places = self.recipe.noise, np.arange(len(ids))
        block = places // block_size if block_size is not None else places * 0
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
        """Return a text as this step takes it: one turn, perhaps shortened, with its end padded."""
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

    def _at(self, place: int) -> int:
        epoch, offset = divmod(place, len(self.lessons))
        if epoch not in self._orders:
            rng = np.random.default_rng([self.recipe.seed, epoch, _ORDER, 1])
            kept = {old: order for old, order in self._orders.items() if old == epoch - 1}
            self._orders = {**kept, epoch: rng.permutation(len(self.lessons)).tolist()}
        return self._orders[epoch][offset]


def collate(
    texts: Sequence[CorruptedExample],
    metadata: DiffusionMetadata,
    *,
    block_size: int | None,
    extra: Tensor | None = None,
    bucket_scale: tuple[float, ...] = (1.0,) * len(TIME_BUCKETS),
) -> CorruptedBatch:
    """Join noisy texts to one batch.

    Args:
        texts: What is joined.
        metadata: Mask token, shift and attention.
        block_size: Of attention by blocks: then each text is read noisy and clean in one pass.
        extra: Under annealing, which later places are seen, (T, T); the rest is causal.
        bucket_scale: Kept in the batch.
    """
    lengths = np.array([len(text.ids) for text in texts])
    width = int(lengths.max())
    clean = _pad([text.ids for text in texts], width, np.int64)
    is_masked = _pad([text.is_masked for text in texts], width, np.bool_)
    is_learned = _pad([text.is_learned for text in texts], width, np.bool_)
    noisy = np.where(is_masked, metadata.mask_token_id, clean)
    is_text = torch.from_numpy(np.arange(width) < lengths[:, None])  # (B, W)
    times = 2 if block_size is not None else 1
    at = torch.arange(width)
    pattern = _mask(metadata, at, block_size, extra)  # (times W, times W)
    is_key = is_text.repeat(1, times)
    seen = pattern[None] & is_key[:, None, :]
    seen[:, :, 0] |= ~is_key  # padding sees one key, so that no softmax is over nothing
    rows, places = np.nonzero(is_learned)
    source = places - int(metadata.logit_shift)
    if block_size is not None and metadata.logit_shift:
        # the state before a block's first place is a clean one, as it is in sampling
        source = np.where(places % block_size == 0, source + width, source)
    scale = _pad([text.scale for text in texts], width, np.float64)[rows, places]
    t = _pad([text.t for text in texts], width, np.float64)[rows, places]
    bucket = np.minimum((t * len(TIME_BUCKETS)).astype(np.int64), len(TIME_BUCKETS) - 1)
    read = np.concatenate([noisy, clean], 1) if times == 2 else noisy
    return CorruptedBatch(
        torch.from_numpy(read),
        at.repeat(times).expand(len(texts), -1),
        seen,
        torch.from_numpy(source + rows * width * times),
        torch.from_numpy(clean[rows, places]),
        torch.from_numpy(scale).float(),
        torch.from_numpy(bucket),
        bucket_scale,
        tuple(text.record_id for text in texts),
        int(lengths.sum()),
        sum(text.units for text in texts),
        sum(told) if (told := [t.told for t in texts if t.told is not None]) else None,
    )


def _pad(parts: Sequence[npt.NDArray[Any]], width: int, dtype: type) -> npt.NDArray[Any]:
    """Return arrays as the rows of one, (B, width), zeros behind."""
    found: npt.NDArray[Any] = np.zeros((len(parts), width), dtype=dtype)
    for row, part in enumerate(parts):
        found[row, : len(part)] = part
    return found


def _mask(
    metadata: DiffusionMetadata, at: Tensor, block_size: int | None, extra: Tensor | None
) -> Tensor:
    if block_size is not None:
        return build_training_mask(len(at), block_size)
    if extra is not None:
        return build_attention_mask("causal", None, at, at) | extra[: len(at), : len(at)]
    return build_attention_mask(metadata.attention, None, at, at)


def _in_bucket(t: npt.NDArray[np.float64], at: int) -> npt.NDArray[np.bool_]:
    return np.asarray(np.minimum((t * len(TIME_BUCKETS)).astype(int), len(TIME_BUCKETS) - 1) == at)


@dataclass(frozen=True, slots=True)
class MaskableExample:
    """One record as tokens.

    Args:
        record_id: The record's.
        ids: (T,), int64.
        turns: First and last + 1 token of each run that may be noised: an answer each, or one.
    """

    record_id: str
    ids: npt.NDArray[np.int64]
    turns: tuple[tuple[int, int], ...]

    @property
    def noised(self) -> npt.NDArray[np.bool_]:
        """Which tokens may be noised, all turns together, (T,)."""
        found = np.zeros(len(self.ids), dtype=np.bool_)
        for start, stop in self.turns:
            found[start:stop] = True
        return found


@dataclass(slots=True)
class CorpusStats:
    """What encoding did."""

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
    """Return the records as lessons, and what was cut or left out.

    Args:
        tokenizer: A fast tokenizer.
        records: Conversations, or plain text as a lone assistant message.
        max_tokens: Tokens that are kept of a record, from its start.
        include_prompt: Noise all that is said, not the answers alone.
        first: The first place that may be noised: 1 where logits are shifted.
        on_done: Called after each record.

    Raises:
        DataError: If a chat template hides the assistant's part.
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
    """Return ``work(items)``, each process doing its part of it."""
    every = ranks.gather(list(work(items[ranks.rank :: ranks.count])))
    return [every[at % ranks.count][at // ranks.count] for at in range(len(items))]


class WeightedDataSource(ABC):
    """A ``Source`` whose texts are drawn and weighed when a step begins."""

    def __init__(self, course: ObjectiveContext, ids: Sequence[str]) -> None:
        """Stand over lessons.

        Args:
            course: What training begins with.
            ids: The record of each lesson.
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
        """Return a step's texts, their scales set, and what is logged of it."""

    @abstractmethod
    def describe(self) -> object:
        """Return what the lessons are, as JSON, for the digest."""

    @cached_property
    def identity(self) -> str:
        """A digest of all that the texts follow from, but the weights."""
        kept = self.recipe.model_dump(mode="json", exclude={"train", "out", "validation"})
        said = self.metadata.model_dump(mode="json")
        return digest_json([kept, said, self.ids, self.describe(), self.course.steps])

    def __len__(self) -> int:
        """Return how many lessons one epoch has."""
        return len(self.ids)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Draw and weigh the step's texts."""
        self._texts, self._notes = self.weigh(step, ranks)
        self._step = step
        return self._notes

    def plan(self, step: int) -> Sequence[Sequence[int]]:
        """Return the texts of each micro-batch of the step that was begun, longest first."""
        times = 1 if self.metadata.block_size is None else 2
        lengths = [len(text.ids) * times for text in self._texts]
        return group_by_length(range(len(lengths)), lengths, self.micro_tokens)

    def valid(self, group: Sequence[int]) -> int:
        """Return what some texts count for."""
        return sum(self._texts[number].units for number in group)

    def load(self, group: Sequence[int]) -> CorruptedBatch:
        """Return one micro-batch of the plan."""
        texts = [self._texts[number] for number in group]
        return collate(texts, self.metadata, block_size=self.metadata.block_size)
