"""The engine: row blocks in, row blocks out, in bounded memory, resumable tensor by tensor.

Arithmetic is one step wider than storage: float32 for 16-bit weights, float64 for wider ones. So a
weighted mean of equal values rounds back to that value. Blocks are small enough for a core's own
cache, and several threads work on blocks of one tensor; neither changes a bit of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.header import DTYPE_SIZES
from stillroom.checkpoints.numbers import has_not_finite, narrow, widen
from stillroom.errors import CheckpointError
from stillroom.jobs import Journal
from stillroom.merge.chat_template import write_chat_template
from stillroom.merge.device import use_device
from stillroom.merge.method import METHODS, Array, Block, MergeMethod, Place
from stillroom.merge.plan import BLOCK_ELEMENTS, Input, MergePlan, PlannedTensor, plan_sources
from stillroom.merge.precision import Squares, is_sampled, measure_error, summarize
from stillroom.merge.rules import Rules
from stillroom.merge.sources import Source, name_sources
from stillroom.merge.workers import Workers
from stillroom.provenance import digest_json

__all__ = [
    "Engine",
    "Merge",
    "Merged",
    "TensorBlocks",
    "as_bytes",
    "merge_checkpoints",
    "not_finite",
]

if TYPE_CHECKING:
    from stillroom.merge.tokenizer import TokenPlan

T = TypeVar("T")
_SURVEY, _ERROR, _NOTE = "survey", "#error", "#note"
_FLOATS: Mapping[Any, str] = {np.float32: "F32", np.float64: "F64"}


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did: the result's fingerprint, and how many tensors were merged or copied.

    ``error`` is the relative error against float64 of some blocks, see ``precision.summarize``.
    ``notes`` are what an assembly noted of tensors that it made, as JSON values by name.
    """

    fingerprint: str
    merged: int
    copied: tuple[str, ...]
    tied: tuple[str, ...]
    error: Mapping[str, Any] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Merge:
    """One merge, ready to run: method, sources in the recipe's order, rules.

    ``share`` places the result on the line from the base (0) to what the method gives (1).
    ``threads`` is how many blocks are worked on at once, 0 what ``Workers`` chooses; ``device``
    where heavy arithmetic is done.
    """

    method: MergeMethod
    base: Source | None
    parents: Sequence[Source]
    rules: Rules = field(default_factory=Rules)
    seed: int = 0
    share: float = 1.0
    block_elements: int = BLOCK_ELEMENTS
    threads: int = 1
    device: str = "cpu"
    chat_template: str | None = None
    notes: dict[str, Any] = field(default_factory=dict, compare=False)
    surveys: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """All that is read, the base first."""
        return (*([self.base] if self.base else []), *self.parents)

    @cached_property
    def _ranks(self) -> dict[int, tuple[int, str]]:
        """Every parent's place in the order of merging, and its key, by its number as a source.

        What is merged does not depend on the recipe's order, unless the method's meaning does.
        """
        named = name_sources(self.parents, in_order=self.method.is_ordered)
        shift = len(self.sources) - len(self.parents)
        left = {number + shift: source for number, source in enumerate(self.parents)}
        ranks: dict[int, tuple[int, str]] = {}
        for rank, source in enumerate(named):
            plain = replace(source, key="")
            number = next(n for n, each in left.items() if replace(each, key="") == plain)
            del left[number]
            ranks[number] = (rank, source.key)
        return ranks

    def plan(self) -> MergePlan:
        """Return what becomes of every tensor; made once."""
        return self._plan

    @cached_property
    def _plan(self) -> MergePlan:
        return plan_sources(self.method, self.base, self.parents, self.rules)

    def write(
        self,
        folder: Path,
        *,
        shard_size: int = 5_000_000_000,
        journal: Journal | None = None,
        on_tensor: Callable[[], None] | None = None,
        finish: Callable[[CheckpointWriter], None] | None = None,
    ) -> Merged:
        """Merge into ``folder``.

        Args:
            folder: Where the checkpoint is written: atomically, or in place with a journal.
            shard_size: Most bytes of weights in one file.
            journal: Keeps finished tensors, so that a killed merge goes on.
            on_tensor: Called after each tensor; may raise to stop.
            finish: Called with the writer when all tensors stand, as for a card.

        Raises:
            CheckpointError: If sources do not belong together, or a number is not finite.
            ShapeError: If a tensor's shapes differ.
            RecipeError: If the method cannot merge these models.
            ResourceError: If the disk is full.
        """
        plan = self.plan()
        donor = self.sources[0].checkpoint
        shapes = {tensor.name: (tensor.stored, tensor.shape) for tensor in plan.tensors}
        with (
            use_device(self.device),
            Workers(self.threads) as workers,
            CheckpointWriter(
                folder,
                config=plan.config,
                shard_size=shard_size,
                plan=shapes,
                in_place=journal is not None,
            ) as writer,
        ):
            engine = self.engine(plan, workers, journal)
            for tensor in plan.tensors:
                if not _is_kept(writer, journal, tensor.name):
                    digest = engine.write(writer, tensor)
                    if journal is not None:
                        engine.note_state(journal, tensor.name)
                        journal.put(tensor.name, digest)
                else:
                    engine.recall_state(journal, tensor.name)
                if on_tensor:
                    on_tensor()
            writer.copy_tokenizer(donor.folder)
            if plan.tokens is not None:
                plan.tokens.write(writer.work)
            if self.chat_template is not None:
                folders = [source.checkpoint.folder for source in self.sources]
                write_chat_template(self.chat_template, folders, writer.work)
            if finish:
                finish(writer)
        names = tuple(tensor.name for tensor in plan.tensors if tensor.is_copied)
        return Merged(
            writer.fingerprint,
            len(plan.tensors) - len(names),
            names,
            plan.tied,
            summarize(engine.errors[name] for name in sorted(engine.errors)),
            {name: self.notes[name] for name in sorted(self.notes)},
        )

    def tensors(self) -> Iterator[tuple[str, str, Array]]:
        """Yield every tensor of the result in memory: name, storage type, stored numbers.

        The numbers are as ``checkpoints.numbers.BIT_TYPES`` says; ``widen`` makes floats of them.
        """
        plan = self.plan()
        with use_device(self.device), Workers(self.threads) as workers:
            engine = self.engine(plan, workers, None)
            for tensor in plan.tensors:
                blocks = list(engine.make(tensor))
                whole = np.concatenate(blocks) if tensor.shape else blocks[0]
                yield tensor.name, tensor.stored, whole.reshape(tensor.shape)

    def engine(self, plan: MergePlan, workers: Workers, journal: Journal | None) -> Engine:
        """Return what makes the tensors of a plan, one by one, as ``compat`` says."""
        if self.rules.compat == "mergekit":
            from stillroom.merge.replicate import Replicator

            return Replicator(self, plan, workers)
        engine = Engine(self, plan, workers)
        engine.survey(journal)
        return engine


class Engine:
    """Makes the tensors of a plan, one after the other."""

    def __init__(self, merge: Merge, plan: MergePlan, workers: Workers) -> None:
        """Stand over a merge whose plan is made."""
        self.merge, self.plan, self.workers = merge, plan, workers
        self.overall: Any = None
        self.errors: dict[str, Squares] = {}

    def survey(self, journal: Journal | None) -> None:
        """Let the method look at the whole model first, or recall what it found before a kill."""
        if type(self.merge.method).survey is MergeMethod.survey:
            return
        if journal is not None and _SURVEY in journal:
            self.overall = journal[_SURVEY]
            return
        tensors = [self.blocks(tensor) for tensor in self.plan.tensors if tensor.is_merged]
        key = self._name_survey(tensors)
        known = self.merge.surveys  # of this merge, and of those that differ in settings only
        self.overall = known[key] if key in known else self.merge.method.survey(tensors)
        if key:
            known[key] = self.overall
        if journal is not None and self.overall is not None:
            journal.put(_SURVEY, self.overall)

    def _name_survey(self, tensors: Sequence[TensorBlocks]) -> str:
        """Return a digest of all that a survey depends on; nothing where none may be shared."""
        method, base, tokens = self.merge.method, self.merge.base, self.plan.tokens
        if method.survey_ignores is None:
            return ""
        settings = method.model_dump(mode="json")
        return digest_json(
            [
                {key: settings[key] for key in settings if key not in method.survey_ignores},
                base.fingerprint if base else "",
                tokens.digest if tokens else "",
                [
                    [each.at.name, each.at.keys, [dict(own) for own in each.at.own], each.homes]
                    for each in tensors
                ],
            ]
        )

    def blocks(self, tensor: PlannedTensor) -> TensorBlocks:
        """Return a merged tensor's inputs as blocks."""
        return TensorBlocks(self, tensor, self.overall)

    def read(
        self,
        tensor: PlannedTensor,
        home: Input,
        start: int,
        stop: int,
        dtype: Any,
        *,
        check: bool = True,
    ) -> Array:
        """Return a source's rows of a tensor of the result, as floats.

        Raises:
            CheckpointError: If ``check`` is set and one of them is not finite.
        """
        source, tokens = self.merge.sources[home.source], self.plan.tokens
        if tensor.is_table and tokens is not None and not tokens.is_identity(home.source):
            bits, kind = self._find(tokens, tensor, home, start, stop, dtype), _FLOATS[dtype]
        elif source.adapted is not None:
            bits, kind = source.read(home.name, start, stop, dtype), _FLOATS[dtype]
        else:
            bits = source.stored(home.name, start, stop)
            kind = source.checkpoint.entry(home.name).dtype
        # Looked at as stored: 16 bits take half the time of 32.
        if check and has_not_finite(bits, kind):
            raise not_finite(tensor.name, source.name)
        return widen(bits, kind, dtype)

    def _find(
        self,
        tokens: TokenPlan,
        tensor: PlannedTensor,
        home: Input,
        start: int,
        stop: int,
        dtype: Any,
    ) -> Array:
        sources = self.merge.sources
        names = {each.source: each.name for each in tensor.inputs}

        def take(source: int, rows: Array) -> Array:
            return sources[source].take(names.get(source, home.name), rows, dtype)

        return tokens.rows(home.source, start, stop, take)

    def write(self, writer: CheckpointWriter, tensor: PlannedTensor) -> str:
        """Make one tensor and write it; return the digest of its bytes."""
        writer.begin(tensor.name, (tensor.stored, tensor.shape))
        for bits in self.make(tensor, writer.place_rows):
            writer.note_rows(as_bytes(bits))
        return writer.end(tensor.name)

    def make(
        self,
        tensor: PlannedTensor,
        place: Callable[[str, int, memoryview], None] | None = None,
    ) -> Iterator[Array]:
        """Yield a tensor's rows as they are stored, from the first to the last.

        Args:
            tensor: What is made.
            place: Called with name, first row and bytes of each block, from any thread.
        """
        if tensor.made is not None:
            yield from self._place(tensor, tensor.made(self.merge), place)
            return
        if tensor.tuned is None:
            yield from self._copy(tensor, place)
            return
        blocks = self.blocks(tensor)
        method = tensor.tuned.method
        measured = method.measure(blocks)

        def work(number: int) -> Array:
            block = blocks[number]
            merged = self._combine(method, block, measured)
            bits = narrow(merged, tensor.stored)
            if number == 0 and self._is_checked(tensor, block):
                wide = blocks.read(number, np.float64)
                exact = self._combine(method, wide, measured)
                self.errors[tensor.name] = measure_error(bits, tensor.stored, exact, wide)
            if has_not_finite(bits, tensor.stored):
                raise not_finite(tensor.name)
            if place is not None:
                place(tensor.name, blocks.first_row(number), as_bytes(bits))
            return bits

        yield from self.workers.map(work, len(blocks))

    def state(self) -> bytes:
        """Return what making a tensor changed for the next ones; nothing here."""
        return b""

    def note_state(self, journal: Journal, name: str) -> None:
        """Keep what the next tensors and the report depend on."""
        if name in self.errors:
            journal.put(f"{name}{_ERROR}", list(self.errors[name]))
        if name in self.merge.notes:
            journal.put(f"{name}{_NOTE}", self.merge.notes[name])

    def recall_state(self, journal: Journal | None, name: str) -> None:
        """Recall what ``note_state`` kept."""
        kept = journal.get(f"{name}{_ERROR}") if journal is not None else None
        if kept is not None:
            stored, least, size = kept
            self.errors[name] = (stored, least, size)
        noted = journal.get(f"{name}{_NOTE}") if journal is not None else None
        if noted is not None:
            self.merge.notes[name] = noted

    def _combine(self, method: MergeMethod, block: Block, measured: Any) -> Array:
        merged = method.combine(block.base, block.parents, measured, block.at)
        if self.merge.share != 1 and block.base is not None:
            merged = block.base + self.merge.share * (merged - block.base)
        return merged

    def _is_checked(self, tensor: PlannedTensor, block: Block) -> bool:
        """Return whether a first block is made again in float64; not so where that is costly."""
        is_whole = tensor.tuned is not None and tensor.tuned.method.needs_whole(
            tensor.name, tensor.shape
        )
        is_narrow = block.parents[0].dtype != np.float64
        return is_narrow and not is_whole and is_sampled(tensor.name)

    def _place(
        self,
        tensor: PlannedTensor,
        made: Iterator[Array],
        place: Callable[[str, int, memoryview], None] | None,
    ) -> Iterator[Array]:
        row = 0
        for bits in made:
            if has_not_finite(bits, tensor.stored):
                raise not_finite(tensor.name)
            if place is not None:
                place(tensor.name, row, as_bytes(bits))
            row += len(bits)
            yield bits

    def _copy(
        self, tensor: PlannedTensor, place: Callable[[str, int, memoryview], None] | None
    ) -> Iterator[Array]:
        home = tensor.parents[0]
        source = self.merge.sources[home.source]
        entry = source.checkpoint.entry(home.name)
        is_same = tensor.stored == entry.dtype and source.adapted is None and not tensor.is_table
        rows = tensor.shape[0] if tensor.shape else 1
        step = max(1, 4 * self.merge.block_elements // max(math.prod(entry.shape[1:]), 1))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            if is_same:
                bits = source.stored(home.name, start, stop)
            else:
                bits = narrow(self.read(tensor, home, start, stop, np.float64), tensor.stored)
            if place is not None:
                place(tensor.name, start, as_bytes(bits))
            yield bits


class TensorBlocks:
    """One tensor of all its sources as row blocks, in the type that is computed in."""

    def __init__(
        self,
        engine: Engine,
        tensor: PlannedTensor,
        overall: Any = None,
        *,
        in_order: bool = False,
    ) -> None:
        """Stand over a planned tensor that is merged; ``in_order`` keeps the recipe's order."""
        if tensor.tuned is None:
            raise ValueError(f"{tensor.name} is copied, not merged")
        merge = engine.merge
        self._engine, self._tensor = engine, tensor
        self._rows = tensor.shape[0] if tensor.shape else 1
        self._width = math.prod(tensor.shape[1:])
        self._step = max(1, merge.block_elements // max(self._width, 1))
        if tensor.tuned.method.needs_whole(tensor.name, tensor.shape):
            self._step = max(1, self._rows)
        kinds = [merge.sources[home.source].checkpoint.entry(home.name) for home in tensor.inputs]
        widest = max([DTYPE_SIZES[kind.dtype] for kind in kinds] + [DTYPE_SIZES[tensor.stored]])
        self._dtype = np.float32 if widest <= 2 else np.float64
        order = list(range(len(tensor.parents)))
        if not in_order:
            order.sort(key=lambda at: merge._ranks[tensor.parents[at].source][0])
        self._parents = [tensor.parents[at] for at in order]
        self.size = math.prod(tensor.shape)
        self.at = Place(
            tensor.name,
            tensor.shape,
            tuple(
                merge.sources[home.source].name if in_order else merge._ranks[home.source][1]
                for home in self._parents
            ),
            tuple(tensor.tuned.weights[at] for at in order),
            tuple(tensor.tuned.own[at] for at in order),
            merge.seed,
            0,
            tensor.layer,
            overall,
        )

    @property
    def homes(self) -> list[str]:
        """The names under which the sources hold the tensor, the base's first."""
        return [home.name for home in self._tensor.inputs]

    def __len__(self) -> int:
        """Return how many blocks there are."""
        return -(-self._rows // self._step)

    def first_row(self, number: int) -> int:
        """Return the first row of a block."""
        return number * self._step

    def __getitem__(self, number: int) -> Block:
        """Read one block; refuse numbers that are not finite."""
        return self.read(number, self._dtype)

    def read(self, number: int, dtype: Any, *, check: bool = True) -> Block:
        """Read one block as float32 or float64, with or without a look at whether all is finite."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * self._step
        stop = min(start + self._step, self._rows)
        base = None
        if self._tensor.base:
            base = self._read(self._tensor.base, start, stop, dtype, check)
        parents = tuple(self._read(home, start, stop, dtype, check) for home in self._parents)
        return Block(base, parents, replace(self.at, offset=start * self._width))

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks from first row to last."""
        for number in range(len(self)):
            yield self[number]

    def each(self, reduce: Callable[[Block], T]) -> list[T]:
        """Return ``reduce`` of every block, in order; the workers take several at once.

        Numbers that are not finite are met again when blocks are combined, and refused there.
        """

        def work(number: int) -> T:
            return reduce(self.read(number, self._dtype, check=False))

        return list(self._engine.workers.map(work, len(self)))

    def _read(self, home: Input, start: int, stop: int, dtype: Any, check: bool) -> Array:
        return self._engine.read(self._tensor, home, start, stop, dtype, check=check)


def merge_checkpoints(
    method: MergeMethod | str | Mapping[str, Any],
    base: Path | None,
    parents: Sequence[Path],
    folder: Path,
    *,
    weights: Sequence[float] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    shard_size: int = 5_000_000_000,
    seed: int = 0,
    exclude: Sequence[str] = (),
    threads: int = 1,
) -> Merged:
    """Merge checkpoints on disk into a new one; the plain function behind the job.

    Args:
        method: A method, its name, or ``{"name": ..., setting: ...}``.
        base: The common base, where the method needs one; also gives config and tokenizer.
        parents: The models.
        folder: Where the result is written, atomically.
        weights: One a model; default 1 each.
        dtype: Storage type; default that of the models.
        shard_size: Most bytes of weights in one file.
        seed: For methods that draw.
        exclude: Patterns of tensors that are copied from the base, or the first model.
        threads: How many blocks are worked on at once, 0 as many as pay; changes no bit.

    Raises:
        CheckpointError: If sources do not belong together, or a number is not finite.
        ShapeError: If a tensor's shapes differ.
        RecipeError: If the method is unknown or cannot merge these models.
    """
    weights = list(weights) if weights is not None else [1.0] * len(parents)
    merge = Merge(
        METHODS.build(dict(method) if isinstance(method, Mapping) else method),
        Source(base.name, Checkpoint.open(base)) if base else None,
        [
            Source(path.name, Checkpoint.open(path), weight)
            for path, weight in zip(parents, weights, strict=True)
        ],
        Rules(dtype=dtype, exclude=tuple(exclude)),
        seed,
        threads=threads,
    )
    return merge.write(folder, shard_size=shard_size)


def as_bytes(bits: Array) -> memoryview:
    """Return an array's bytes."""
    return memoryview(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data)


def _is_kept(writer: CheckpointWriter, journal: Journal | None, name: str) -> bool:
    """Return whether a killed run wrote the tensor, and its bytes still are what they were."""
    digest = journal.get(name) if journal is not None else None
    return digest is not None and writer.keep(name, digest)


def not_finite(name: str, guilty: str = "") -> CheckpointError:
    """Return the error for a tensor that is not finite, in some models or in the result only."""
    return CheckpointError(
        f"tensor '{name}' would hold numbers that are not finite",
        code="merge.not-finite",
        where=name,
        expected=f"finite numbers; not so in: {guilty or 'the result only'}",
        next=f"leave {guilty} out, or exclude the tensor"
        if guilty
        else "lower the weights or the scale, or store as bfloat16 or float32",
    )
