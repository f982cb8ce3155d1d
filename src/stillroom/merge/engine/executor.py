"""Streaming executor of a merge plan: row blocks, threads and sampled precision checks.

Arithmetic is one step wider than storage: float32 for 16-bit weights, float64 for wider ones, so a
weighted mean of equal values rounds back to that value. Blocks fit into a core's cache, and several
threads work on blocks of one tensor; neither changes a bit of the result.

Precision check: the first block of a sample of tensors (by a hash of the name) is recomputed in
float64 and compared with the stored result. The rounding error of the storage type is reported with
it, so that the part due to arithmetic is visible.

Threads suffice because numpy releases the interpreter lock. Their number is chosen from the timing
of the first blocks: at most the cores, and no more than keep the disk busy. BLAS is limited to one
thread, because its summation order would depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import threadpoolctl

from stillroom.checkpoints import CheckpointWriter
from stillroom.checkpoints.dtypes import has_not_finite, narrow, widen
from stillroom.checkpoints.safetensors_format import DTYPE_SIZES
from stillroom.errors import CheckpointError
from stillroom.jobs import Journal
from stillroom.merge.engine.computation import TensorComputer
from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, RowBlock, TensorBlocks
from stillroom.merge.planning.plan import MergePlan, PlannedTensor, SourceTensor
from stillroom.merge.tensors.storage import array_to_bytes
from stillroom.provenance import digest_json

if TYPE_CHECKING:
    from stillroom.merge.engine.merge import Merge
    from stillroom.merge.planning.token_plan import TokenPlan

__all__ = [
    "MergeExecutor",
    "OrderedThreadPool",
    "SquaredErrors",
    "StreamedBlocks",
    "choose_threads",
    "is_sampled",
    "non_finite_error",
    "summarize_errors",
]

T = TypeVar("T")
_SURVEY, _ERROR, _NOTE = "survey", "#error", "#note"
_FLOATS: Mapping[Any, str] = {np.float32: "F32", np.float64: "F64"}


class MergeExecutor:
    """Computes the tensors of a plan one after another."""

    def __init__(self, merge: Merge, plan: MergePlan, workers: OrderedThreadPool) -> None:
        """Create an executor for a planned merge."""
        self.merge, self.plan, self.workers = merge, plan, workers
        self.computer = TensorComputer(plan, merge.sources, merge.seed)
        self.global_statistics: Any = None
        self.errors: dict[str, SquaredErrors] = {}

    def survey(self, journal: Journal | None) -> None:
        """Compute the method's whole-model statistics, or restore them from the journal."""
        method = self.merge.method
        if not isinstance(method, MergeMethod) or type(method).survey is MergeMethod.survey:
            return
        if journal is not None and _SURVEY in journal:
            self.global_statistics = journal[_SURVEY]
            return
        tensors = [self.blocks(tensor) for tensor in self.plan.tensors if tensor.is_merged]
        key = self._name_survey(method, tensors)
        known = self.merge.surveys  # shared with merges that differ in settings only
        self.global_statistics = known[key] if key in known else method.survey(tensors)
        if key:
            known[key] = self.global_statistics
        if journal is not None and self.global_statistics is not None:
            journal.put(_SURVEY, self.global_statistics)

    def _name_survey(self, method: MergeMethod, tensors: Sequence[StreamedBlocks]) -> str:
        """Return a digest of all inputs of a survey; empty if it must not be shared."""
        base, tokens = self.merge.base, self.plan.tokens
        if method.survey_ignores is None:
            return ""
        settings = method.model_dump(mode="json")
        return digest_json(
            [
                {key: settings[key] for key in settings if key not in method.survey_ignores},
                base.fingerprint if base else "",
                tokens.digest if tokens else "",
                [
                    [
                        blocks.context.name,
                        blocks.context.keys,
                        [dict(settings_of_model) for settings_of_model in blocks.context.per_model],
                        blocks.homes,
                    ]
                    for blocks in tensors
                ],
            ]
        )

    def blocks(self, tensor: PlannedTensor) -> StreamedBlocks:
        """Return the inputs of a merged tensor as blocks."""
        return StreamedBlocks(self, tensor, self.global_statistics)

    def read(
        self,
        tensor: PlannedTensor,
        home: SourceTensor,
        start: int,
        stop: int,
        dtype: Any,
        *,
        check: bool = True,
    ) -> Array:
        """Return rows of a result tensor from one source, as floats.

        Raises:
            CheckpointError: If ``check`` is set and a value is not finite.
        """
        source, tokens = self.merge.sources[home.source], self.plan.tokens
        if tensor.is_token_table and tokens is not None and not tokens.is_identity(home.source):
            bits, kind = self._find(tokens, tensor, home, start, stop, dtype), _FLOATS[dtype]
        elif source.adapted is not None:
            bits, kind = source.read(home.name, start, stop, dtype), _FLOATS[dtype]
        else:
            bits = source.stored(home.name, start, stop)
            kind = source.checkpoint.entry(home.name).dtype
        # Check the stored bits: 16 bits take half the time of 32.
        if check and has_not_finite(bits, kind):
            raise non_finite_error(tensor.name, source.name)
        return widen(bits, kind, dtype)

    def _find(
        self,
        tokens: TokenPlan,
        tensor: PlannedTensor,
        home: SourceTensor,
        start: int,
        stop: int,
        dtype: Any,
    ) -> Array:
        sources = self.merge.sources
        names = {input_tensor.source: input_tensor.name for input_tensor in tensor.inputs}

        def take(source: int, rows: Array) -> Array:
            return sources[source].take(names.get(source, home.name), rows, dtype)

        return tokens.rows(home.source, start, stop, take)

    def write(self, writer: CheckpointWriter, tensor: PlannedTensor) -> str:
        """Compute and write one tensor; return the digest of its bytes."""
        writer.begin(tensor.name, (tensor.dtype, tensor.shape))
        for bits in self.make(tensor, writer.place_rows):
            writer.note_rows(array_to_bytes(bits))
        return writer.end(tensor.name)

    def make(
        self,
        tensor: PlannedTensor,
        write_rows: Callable[[str, int, memoryview], None] | None = None,
    ) -> Iterator[Array]:
        """Yield a tensor's rows in the storage type, in order.

        Args:
            tensor: The planned tensor.
            write_rows: Called with name, first row and bytes of each block, from any thread.
        """
        if tensor.settings is None:
            is_copied, row = tensor.computed is None, 0
            for bits in self._copy(tensor) if is_copied else self.computer.blocks(tensor):
                if not is_copied and has_not_finite(bits, tensor.dtype):
                    raise non_finite_error(tensor.name)
                if write_rows is not None:
                    write_rows(tensor.name, row, array_to_bytes(bits))
                row += len(bits) if bits.ndim else 1
                yield bits
            return
        blocks = self.blocks(tensor)
        method = tensor.settings.method
        measured = method.measure(blocks)

        def work(number: int) -> Array:
            block = blocks[number]
            merged = self._combine(method, block, measured)
            bits = narrow(merged, tensor.dtype)
            if number == 0 and self._is_checked(tensor, block):
                wide = blocks.read(number, np.float64)
                exact = self._combine(method, wide, measured)
                # The reference size of the errors is the change from the base, if there is one.
                least = widen(narrow(exact, tensor.dtype), tensor.dtype, np.float64)
                size = exact if wide.base is None else exact - wide.base
                stored = widen(bits, tensor.dtype, np.float64)
                self.errors[tensor.name] = (
                    _square(stored - exact),
                    _square(least - exact),
                    _square(size),
                )
            if has_not_finite(bits, tensor.dtype):
                raise non_finite_error(tensor.name)
            if write_rows is not None:
                write_rows(tensor.name, blocks.first_row(number), array_to_bytes(bits))
            return bits

        yield from self.workers.map(work, len(blocks))

    def state(self) -> bytes:
        """Return executor state that later tensors depend on; empty here."""
        return b""

    def note_state(self, journal: Journal, name: str) -> None:
        """Write a tensor's error, note and state to the journal."""
        if name in self.errors:
            journal.put(f"{name}{_ERROR}", list(self.errors[name]))
        if name in self.computer.notes:
            journal.put(f"{name}{_NOTE}", self.computer.notes[name])

    def recall_state(self, journal: Journal | None, name: str) -> None:
        """Restore the state written by ``note_state``."""
        errors = journal.get(f"{name}{_ERROR}") if journal is not None else None
        if errors is not None:
            stored, least, size = errors
            self.errors[name] = (stored, least, size)
        note = journal.get(f"{name}{_NOTE}") if journal is not None else None
        if note is not None:
            self.computer.notes[name] = note

    def _combine(self, method: MergeMethod, block: RowBlock, measured: Any) -> Array:
        merged = method.combine(block.base, block.parents, measured, block.context)
        if self.merge.share != 1 and block.base is not None:
            merged = block.base + self.merge.share * (merged - block.base)
        return merged

    def _is_checked(self, tensor: PlannedTensor, block: RowBlock) -> bool:
        """Return whether a first block is recomputed in float64; False if that is costly."""
        is_whole = tensor.settings is not None and tensor.settings.method.needs_whole(
            tensor.name, tensor.shape
        )
        is_narrow = block.parents[0].dtype != np.float64
        return is_narrow and not is_whole and is_sampled(tensor.name)

    def _copy(self, tensor: PlannedTensor) -> Iterator[Array]:
        home = tensor.parents[0]
        source = self.merge.sources[home.source]
        entry = source.checkpoint.entry(home.name)
        is_unchanged = (
            tensor.dtype == entry.dtype and source.adapted is None and not tensor.is_token_table
        )
        rows = tensor.shape[0] if tensor.shape else 1
        step = max(1, 4 * self.merge.block_elements // max(math.prod(entry.shape[1:]), 1))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            if is_unchanged:
                yield source.stored(home.name, start, stop)
            else:
                bits = narrow(self.read(tensor, home, start, stop, np.float64), tensor.dtype)
                # A constant of one number, such as a mask's, is no weight.
                if tensor.shape and has_not_finite(bits, tensor.dtype):  # too large for the type
                    raise non_finite_error(tensor.name)
                yield bits


class StreamedBlocks(TensorBlocks):
    """Row blocks of one tensor from all its sources, in the compute type."""

    def __init__(
        self,
        executor: MergeExecutor,
        tensor: PlannedTensor,
        global_statistics: Any = None,
        *,
        in_order: bool = False,
    ) -> None:
        """Create the blocks of a merged tensor; ``in_order`` keeps the recipe's order of models."""
        if tensor.settings is None:
            raise ValueError(f"{tensor.name} is copied, not merged")
        merge = executor.merge
        self._engine, self._tensor = executor, tensor
        self._rows = tensor.shape[0] if tensor.shape else 1
        self._width = math.prod(tensor.shape[1:])
        self._step = max(1, merge.block_elements // max(self._width, 1))
        if tensor.settings.method.needs_whole(tensor.name, tensor.shape):
            self._step = max(1, self._rows)
        kinds = [merge.sources[home.source].checkpoint.entry(home.name) for home in tensor.inputs]
        widest = max([DTYPE_SIZES[kind.dtype] for kind in kinds] + [DTYPE_SIZES[tensor.dtype]])
        self._dtype = np.float32 if widest <= 2 else np.float64
        order = list(range(len(tensor.parents)))
        if not in_order:
            order.sort(key=lambda parent: merge._ranks[tensor.parents[parent].source][0])
        self._parents = [tensor.parents[parent] for parent in order]
        self.size = math.prod(tensor.shape)
        self.context = BlockContext(
            tensor.name,
            tensor.shape,
            tuple(
                merge.sources[home.source].name if in_order else merge._ranks[home.source][1]
                for home in self._parents
            ),
            tuple(tensor.settings.weights[parent] for parent in order),
            tuple(tensor.settings.per_model[parent] for parent in order),
            merge.seed,
            0,
            tensor.layer,
            global_statistics,
        )

    @property
    def homes(self) -> list[str]:
        """Names of the tensor in the sources, the base first."""
        return [home.name for home in self._tensor.inputs]

    def __len__(self) -> int:
        """Return the number of blocks."""
        return -(-self._rows // self._step)

    def first_row(self, number: int) -> int:
        """Return the first row of a block."""
        return number * self._step

    def __getitem__(self, number: int) -> RowBlock:
        """Read one block; raise if a value is not finite."""
        return self.read(number, self._dtype)

    def read(self, number: int, dtype: Any, *, check: bool = True) -> RowBlock:
        """Read one block as float32 or float64, optionally without the check for finite values."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * self._step
        stop = min(start + self._step, self._rows)
        base = None
        if self._tensor.base:
            base = self._read(self._tensor.base, start, stop, dtype, check)
        parents = tuple(self._read(home, start, stop, dtype, check) for home in self._parents)
        return RowBlock(base, parents, replace(self.context, offset=start * self._width))

    def each(self, reduce: Callable[[RowBlock], T]) -> list[T]:
        """Apply ``reduce`` to every block in parallel; return the results in order.

        Values that are not finite are detected later, when blocks are combined.
        """

        def work(number: int) -> T:
            return reduce(self.read(number, self._dtype, check=False))

        return list(self._engine.workers.map(work, len(self)))

    def _read(self, home: SourceTensor, start: int, stop: int, dtype: Any, check: bool) -> Array:
        return self._engine.read(self._tensor, home, start, stop, dtype, check=check)


def non_finite_error(name: str, guilty: str = "") -> CheckpointError:
    """Return the error for values that are not finite, in some models or only in the result."""
    return CheckpointError(
        f"tensor '{name}' would have values that are not finite",
        code="merge.not-finite",
        where=name,
        expected=f"finite values; not finite in: {guilty or 'the result only'}",
        next=f"leave {guilty} out, or exclude the tensor"
        if guilty
        else "lower the weights or the scale, or store as bfloat16 or float32",
    )


SquaredErrors = tuple[float, float, float]
"""Sums of squares over a block: stored error, rounding error of the storage type, reference."""

_ONE_IN = 16


def is_sampled(name: str) -> bool:
    """Return whether a tensor's first block is checked."""
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) % _ONE_IN == 0


def summarize_errors(parts: Iterable[SquaredErrors]) -> dict[str, Any] | None:
    """Return the relative errors over all checked blocks; None if there are none."""
    errors = list(parts)
    sums = [math.fsum(column) for column in zip(*errors, strict=True)]
    if not errors or sums[2] == 0:
        return None
    stored, least = math.sqrt(sums[0] / sums[2]), math.sqrt(sums[1] / sums[2])
    return {"stored": stored, "least": least, "blocks": len(errors)}


def _square(values: Array) -> float:
    return float(np.square(values).sum())


_AHEAD = 2
_MOST = 16  # beyond that the single thread of the digests is the bottleneck
_SAMPLE_SECONDS = 0.02
_LEAST_WAIT = 1e-9
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt parameters of glibc's malloc.h
_CACHED_BYTES = 64 << 20


class OrderedThreadPool:
    """A thread pool with ordered results, as a context manager; one thread runs inline."""

    def __init__(self, count: int = 1) -> None:
        """Prepare ``count`` threads; 0 chooses by cores and the timing of the first blocks."""
        self.count = count
        self._cores = _count_cores() if count == 0 else count
        self._wall = self._busy = 0.0
        self._pool: ThreadPoolExecutor | None = None
        self._limits: threadpoolctl.threadpool_limits | None = None

    def __enter__(self) -> OrderedThreadPool:
        """Start the threads."""
        self._limits = threadpoolctl.threadpool_limits(1)
        _keep_freed_memory()
        self._start(self.count)
        return self

    def __exit__(self, *error: object) -> None:
        """Shut down the threads and cancel pending work."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        if self._limits is not None:
            self._limits.restore_original_limits()

    def map(self, work: Callable[[int], T], count: int) -> Iterator[T]:
        """Yield ``work(0)`` to ``work(count - 1)`` in order, computing a few ahead."""
        submitted = 0
        while submitted < count and (self._pool is None or count < 2):
            yield self._try(work, submitted) if self.count == 0 else work(submitted)
            submitted += 1
        if self._pool is None:
            return
        window: deque[Future[T]] = deque()
        while submitted < count or window:
            while submitted < count and len(window) < self.count + _AHEAD:
                window.append(self._pool.submit(work, submitted))
                submitted += 1
            yield window.popleft().result()

    def _try(self, work: Callable[[int], T], number: int) -> T:
        """Compute a block inline, and choose the thread count once the timing suffices."""
        wall, busy = time.perf_counter(), time.thread_time()
        result = work(number)
        self._wall += time.perf_counter() - wall
        self._busy += time.thread_time() - busy
        if self._wall >= _SAMPLE_SECONDS:
            self._start(choose_threads(self._cores, self._wall, self._busy))
        return result

    def _start(self, count: int) -> None:
        self.count = count
        if count > 1:
            self._pool = ThreadPoolExecutor(count, "stillroom-merge")


def choose_threads(cores: int, wall: float, busy: float) -> int:
    """Return the number of threads that keep the disk busy.

    Args:
        cores: Cores available to this process.
        wall: Wall-clock seconds of some blocks on one thread.
        busy: Their processor seconds; the difference is time spent waiting.
    """
    waited = max(wall - busy, _LEAST_WAIT)
    return max(1, min(cores, _MOST, round(wall / waited)))


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _keep_freed_memory() -> None:
    """Make glibc reuse freed blocks instead of returning them to the kernel.

    Block sizes lie just above glibc's threshold for mapping memory; without this, zeroing new pages
    took up to half of the processor time.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _CACHED_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _CACHED_BYTES)
