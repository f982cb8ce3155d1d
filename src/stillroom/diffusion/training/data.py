"""Training data: tokenized records, and micro-batches with shifted logits (``collate``).

A ``WeightedDataSource`` starts each step with a forward pass over all its texts without gradients;
the result is the scale of each token, and the logged loss is that of the objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.diffusion.model.metadata import DiffusionMetadata
from stillroom.diffusion.model.network import build_attention_mask, build_block_diff_mask
from stillroom.diffusion.settings import DiffusionRecipe
from stillroom.errors import DataError
from stillroom.models.tokenization.assistant_mask import encode_conversation
from stillroom.provenance import digest_json
from stillroom.records import Record
from stillroom.train.data import RecordSource, group_by_length

if TYPE_CHECKING:
    from torch import nn

    from stillroom.diffusion.model.metadata import TargetMetadata
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.jobs import Job
    from stillroom.train.data import BatchSource
    from stillroom.train.distributed import ProcessGroup

__all__ = [
    "TIME_BUCKETS",
    "CorruptedBatch",
    "CorruptedExample",
    "MaskableExample",
    "StepDataSource",
    "TokenizedDataset",
    "TrainingContext",
    "TrainingObjective",
    "WeightedDataSource",
    "collate",
    "distribute",
    "find_buckets",
    "tokenize_records",
]

TIME_BUCKETS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


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


def collate(
    texts: Sequence[CorruptedExample],
    metadata: DiffusionMetadata,
    *,
    block_size: int | None,
    extra: Tensor | None = None,
    bucket_scale: tuple[float, ...] = (1.0,) * len(TIME_BUCKETS),
) -> CorruptedBatch:
    """Collate noisy texts into one batch; states for the loss are shifted by ``logit_shift``.

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
    bucket = find_buckets(t)
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


def find_buckets(t: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the index into ``TIME_BUCKETS`` of each time, (N,)."""
    return np.minimum((t * len(TIME_BUCKETS)).astype(np.int64), len(TIME_BUCKETS) - 1)


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
        return build_block_diff_mask(len(positions), block_size)
    if extra is not None:
        return (
            build_attention_mask("causal", None, positions, positions)
            | extra[: len(positions), : len(positions)]
        )
    return build_attention_mask(metadata.attention, None, positions, positions)


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


@dataclass(frozen=True, slots=True)
class TokenizedDataset:
    """Records as examples of a training job.

    Args:
        items: Texts, pairs or prompts.
        counts: Records and tokens kept, truncated or skipped, by name, for the report.
    """

    items: Sequence[Any]
    counts: dict[str, int]


def tokenize_records(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int,
    include_prompt: bool,
    first: int,
    on_done: Callable[[], None] | None = None,
) -> tuple[list[MaskableExample], dict[str, int]]:
    """Tokenize records, and count what was truncated or skipped.

    Args:
        tokenizer: Fast tokenizer.
        records: Conversations, or plain text as a single assistant message.
        max_tokens: Maximum tokens per record; the end is truncated.
        include_prompt: Mask all tokens but those of turns without loss, not answers alone.
        first: First position that may be masked: 1 with shifted logits.
        on_done: Called after each record.

    Raises:
        DataError: If the chat template hides the assistant's messages.
    """
    names = ("records", "records_cut", "records_left_out", "tokens", "tokens_cut", "tokens_noised")
    examples, counts = [], dict.fromkeys(names, 0)
    for record in records:
        encoded = encode_conversation(tokenizer, record, max_tokens=max_tokens)
        counts["records_cut"] += bool(encoded.truncated)
        counts["tokens_cut"] += encoded.truncated
        marks = np.asarray(encoded.is_assistant, dtype=np.bool_)
        if include_prompt:
            special = set(getattr(tokenizer, "all_special_ids", ()))
            begins = len(encoded.ids) > 0 and encoded.ids[0] in special
            marks = np.ones(len(encoded.ids), dtype=np.bool_)
            marks[list(encoded.excluded)] = False
            marks[: int(begins)] = False
        marks[:first] = False
        # First and last + 1 of each run of True.
        edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
        turns = tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))
        if turns:
            example = MaskableExample(record.id, np.asarray(encoded.ids, dtype=np.int64), turns)
            examples.append(example)
            counts["records"] += 1
            counts["tokens"] += len(example.ids)
            counts["tokens_noised"] += int(marks.sum())
        else:
            counts["records_left_out"] += 1
        if on_done:
            on_done()
    return examples, counts


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """State of a job when training starts.

    Args:
        model: Model before the first step, LoRA adapters included.
        examples: Examples from ``tokenize``.
        steps: Number of optimizer steps.
        job: Job, with journals for rollouts.
    """

    model: DiffusionModel
    examples: Sequence[Any]
    steps: int
    job: Job


R = TypeVar("R", bound=DiffusionRecipe)


class TrainingObjective(ABC, Generic[R]):
    """Examples, their source and metrics of one kind of training job."""

    is_causal: ClassVar[bool] = False
    """Whether the model is autoregressive, and its loss exact."""

    has_times: ClassVar[bool] = False
    """Whether losses are logged by the time of the masked tokens."""

    def __init__(self, recipe: R) -> None:
        """Set the recipe; its ``max_tokens`` is limited once the context length is known."""
        self.recipe = recipe

    @property
    def target(self) -> TargetMetadata | None:
        """Attention of the trained model; None keeps that of a diffusion checkpoint."""
        return None

    @property
    def learns_prompts(self) -> bool:
        """Whether all tokens are learned, instead of the assistant's answers."""
        return False

    @property
    def steps_per_batch(self) -> int:
        """Number of optimizer steps per batch of records."""
        return 1

    @property
    def method(self) -> str:
        """Method named in the origin of the checkpoint."""
        return self.recipe.kind

    @abstractmethod
    def tokenize(
        self,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> TokenizedDataset:
        """Return records as examples; ``on_done`` is called after each record.

        Raises:
            DataError: If the chat template hides the assistant's messages.
        """

    @abstractmethod
    def open_source(self, context: TrainingContext) -> BatchSource[CorruptedBatch]:
        """Return the source of the micro-batches of every step."""

    @abstractmethod
    def no_examples_error(self, records: int) -> DataError:
        """Return the error for ``records`` records without a single example."""

    def evaluate(self, model: DiffusionModel, records: Sequence[Record]) -> dict[str, float]:
        """Return metrics of the objective on held-out records, beside the bound."""
        return {}


T = TypeVar("T")
Result = TypeVar("Result")


def distribute(
    ranks: ProcessGroup, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[Result]]
) -> list[Result]:
    """Return ``work(items)``, computed in parts by all processes."""
    every = ranks.gather(list(work(items[ranks.rank :: ranks.count])))
    return [every[index % ranks.count][index // ranks.count] for index in range(len(items))]


class StepDataSource(ABC):
    """Source of the micro-batches of texts that are drawn at the start of each step."""

    def __init__(
        self,
        recipe: DiffusionRecipe,
        metadata: DiffusionMetadata,
        examples: Sequence[object],
        steps: int,
    ) -> None:
        self.metadata, self.steps, self.seed = metadata, steps, recipe.seed
        self.micro_tokens, self._settings = recipe.train.micro_tokens, recipe
        self._length = len(examples)
        self._step = -1
        self._texts: list[CorruptedExample] = []

    @abstractmethod
    def describe(self) -> object:
        """Return the examples as JSON, for the digest."""

    @cached_property
    def identity(self) -> str:
        """Digest of everything that determines the texts, except for the weights."""
        settings = self._settings.model_dump(mode="json", exclude={"train", "out", "validation"})
        metadata = self.metadata.model_dump(mode="json")
        return digest_json([settings, metadata, self.describe(), self.steps])

    def __len__(self) -> int:
        return self._length

    def block_size(self, step: int) -> int | None:
        """Return the block size of a step's attention; None without blocks."""
        return self.metadata.block_size

    def plan(self, step: int) -> Sequence[Sequence[int]]:
        """Return the texts of each micro-batch of the current step, longest first."""
        times = 1 if self.block_size(step) is None else 2
        lengths = [len(text.ids) * times for text in self._texts]
        return group_by_length(range(len(lengths)), lengths, self.micro_tokens)

    def valid(self, group: Sequence[int]) -> int:
        """Return the summed units of some texts."""
        return sum(self._texts[number].units for number in group)

    def load(self, group: Sequence[int]) -> CorruptedBatch:
        """Return one micro-batch of the plan."""
        texts = [self._texts[number] for number in group]
        return collate(texts, self.metadata, block_size=self.block_size(self._step))


class WeightedDataSource(StepDataSource):
    """Source of texts that are drawn and weighted at the start of each step."""

    def __init__(
        self, recipe: DiffusionRecipe, context: TrainingContext, ids: Sequence[str]
    ) -> None:
        super().__init__(recipe, context.model.metadata, context.examples, context.steps)
        self.context, self.ids = context, list(ids)
        self._records: RecordSource[object, CorruptedBatch] = RecordSource(
            context.examples,
            ids=self.ids,
            lengths=[1] * len(self.ids),
            valid=[1] * len(self.ids),
            load=lambda _: self.load([]),
            batch_size=recipe.train.batch_size,
            micro_tokens=self.micro_tokens,
            seed=self.seed,
        )

    @abstractmethod
    def weigh(
        self, step: int, ranks: ProcessGroup
    ) -> tuple[list[CorruptedExample], dict[str, float]]:
        """Return the texts of a step, with their scales, and metrics to log."""

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Draw and weight the texts of a step."""
        self._texts, notes = self.weigh(step, ranks)
        self._step = step
        return notes
