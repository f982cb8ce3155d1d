"""Graph executor: streams of records from the inputs through the steps of a recipe.

Steps are pulled: a step takes a record when a later step needs one, so that nothing accumulates,
and a reached target or a spent budget stops all earlier steps. The held-out side runs first, as in
a chain. Streams keep their order for any number of threads, statistics are added up at the end of
the graph in that order, and every finished unit is stored in a cache keyed by all its dependencies:
the output does not depend on concurrency or interruptions, and a changed step repeats only the
requests that follow from it.

A unit's key is the id of its item; its cache file is named by the digest of its other dependencies:
the method's settings, the model, the seed. A run of a changed recipe, or of more seeds, therefore
reuses the unchanged units of the previous run.
"""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.jobs import Job, Journal, read_journal
from stillroom.jobs.engines.interfaces import iter_batches, map_prefetched
from stillroom.provenance import digest_json
from stillroom.records import Message, Passage, Record
from stillroom.synth.interfaces import CandidateSet, FilterContext, FilterResult, Generator
from stillroom.synth.model_pool import ModelPool
from stillroom.synth.pipeline.filter_chain import FilterChain
from stillroom.synth.pipeline.graph import GRAPH_SOURCES, GraphStep, find_end_steps, resolve_sources
from stillroom.synth.pipeline.inputs import PipelineInputs, iter_draws, read_inputs
from stillroom.synth.pipeline.results import (
    CostTracker,
    GraphResult,
    RecordBatch,
    ScoredRecord,
    SplitResult,
    StepStats,
    interleave,
    reject_record,
    tee,
)
from stillroom.synth.pipeline.scheduler import generate_units
from stillroom.synth.types import (
    GenerationResult,
    GeneratorContext,
    RejectedRecord,
    SeedItem,
    Split,
    WorkItem,
    get_seed_kind,
)

if TYPE_CHECKING:
    from stillroom.synth.recipe import SynthRecipe

__all__ = [
    "CACHE_FOLDER",
    "MemoryCache",
    "PipelineExecutor",
    "RunCache",
    "UnitCache",
    "preview_graph",
    "run_filters",
]


_BatchStream = Iterator[
    tuple[list[SeedItem], dict[str, Mapping[str, float]], tuple[StepStats, ...]]
]

_BLOCK = 64


class PipelineExecutor:
    """Executor of the steps of one recipe over one side of the split."""

    def __init__(
        self,
        recipe: SynthRecipe,
        inputs: PipelineInputs,
        split: Split,
        context: FilterContext,
        caches: RunCache,
        scratch: Path,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """Build the streams of one side; no request is made before they are pulled."""
        self._recipe, self._inputs, self._split = recipe, inputs, split
        self._context, self._caches, self._pause = context, caches, pause
        self._scratch = scratch
        self._closing = ExitStack()
        self.chains: dict[str, FilterChain] = {}
        sources = resolve_sources(recipe.steps, recipe.first)
        num_consumers = Counter(source for names in sources.values() for source in names)
        streams: dict[str, deque[Iterator[RecordBatch]]] = {}
        for name, step in recipe.steps.items():
            batches = [self._open(source, streams) for source in sources[name]]
            stream = self._run(name, step, sources[name], interleave(batches))
            stream = self._limit(name, step, stream)
            copies = tee(stream, max(num_consumers[name], 1), scratch, self._closing)
            streams[name] = deque(copies)
        self.ends = find_end_steps(sources)
        self._streams = [streams[name].popleft() for name in self.ends]

    def preview(self, n: int) -> Iterator[RecordBatch]:
        """Yield only the first batches that arrive at the graph's end."""
        try:
            yield from islice(interleave(self._streams), n)
        finally:
            self.close()

    def run(
        self,
        target: int,
        closing: ExitStack,
        costs: CostTracker | None = None,
        share: float = 1.0,
        on_batch: Callable[[GraphResult], None] = lambda result: None,
    ) -> GraphResult:
        """Pull the graph until the target is reached, the budget's share is spent, or it ends.

        The files of the result are closed with ``closing``.
        """
        result = GraphResult.open(self._split, self._recipe.steps, self._scratch, closing)
        records = result.split_result.kept
        if costs is not None:
            costs.add_split(result.split_result)
        try:
            for batch in interleave(self._streams) if target else ():
                result.take(batch, target)
                on_batch(result)
                if len(records) >= target or (costs is not None and costs.reached(share)):
                    break
        finally:
            self.close()
        for name, chain in self.chains.items():
            summary = chain.summarize(result.steps[name].measured)
            if summary:
                result.filter_summaries[name] = summary
        return result

    def close(self) -> None:
        """Close every stream, and with them the threads that work ahead."""
        for stream in self._streams:
            _close_stream(stream)
        self._closing.close()

    def _open(
        self, source: str, streams: Mapping[str, deque[Iterator[RecordBatch]]]
    ) -> _BatchStream:
        """Yield the items of a source or of a step, with their scores and statistics."""
        if source in GRAPH_SOURCES:
            for item in self._inputs.items.get((source, self._split), ()):
                yield [item], {}, ()
            return
        for batch in streams[source].popleft():
            scores = {scored.record.id: scored.scores for scored in batch.records}
            yield [scored.record for scored in batch.records], scores, batch.accounts

    def _run(
        self, name: str, step: GraphStep, sources: Sequence[str], feed: _BatchStream
    ) -> Iterator[RecordBatch]:
        if step.generator is not None:
            return self._write(name, step, step.generator, sources, feed)
        if step.select is not None:
            return self._select(name, step, feed)
        return self._filter(name, step, feed)

    def _limit(
        self, name: str, step: GraphStep, stream: Iterator[RecordBatch]
    ) -> Iterator[RecordBatch]:
        """Yield batches up to the step's limit; records beyond it are rejected and counted."""
        if step.limit is None or self._split != "train":
            yield from stream
            return
        remaining = step.limit
        for batch in stream:
            records, beyond = batch.records[:remaining], batch.records[remaining:]
            yield self._cut(name, batch, records, beyond) if beyond else batch
            remaining -= len(records)
            if remaining <= 0:
                return

    def _cut(
        self,
        name: str,
        batch: RecordBatch,
        records: tuple[ScoredRecord, ...],
        beyond: tuple[ScoredRecord, ...],
    ) -> RecordBatch:
        """Return a batch without the records beyond its step's limit, counting them as rejected."""
        verdict = FilterResult(False, "beyond the limit of the step")
        rows = tuple(
            reject_record(self._split, "limit", verdict, scored.record.id, scored.record, name)
            for scored in beyond
        )
        *earlier_stats, own_stats = batch.accounts  # a step's own statistics come last
        own_stats = replace(
            own_stats, given=own_stats.given - len(beyond), dropped=(*own_stats.dropped, *rows)
        )
        return RecordBatch(records, (*earlier_stats, own_stats))

    def _write(
        self,
        name: str,
        step: GraphStep,
        generator: Generator,
        sources: Sequence[str],
        feed: _BatchStream,
    ) -> Iterator[RecordBatch]:
        model = self._context.models.text_model(step.model or self._recipe.model)
        context, feed = self._corpus(generator, sources, feed)
        cache = self._caches.open(
            "units",
            generator.model_dump(mode="json"),
            model.fingerprint,
            self._recipe.seed,
            self._split,
            [item.id for item in context.items],
        )
        pending_stats: deque[tuple[StepStats, ...]] = deque()
        carried_stats: list[StepStats] = []
        seeds = self._seeds(step, generator, sources, feed, pending_stats, carried_stats)
        drafts = generate_units(
            seeds,
            generator.start(context),
            model,
            cache,
            batch_size=self._recipe.batch_size,
            pause=self._pause,
        )
        for number, draft in enumerate(drafts):
            dropped = tuple(
                RejectedRecord(
                    self._split,
                    generator.method_name(),
                    failure.reason,
                    draft.key,
                    text=failure.text,
                    step=name,
                )
                for failure in draft.failures
            )
            stats = StepStats(
                name,
                number,
                units=1,
                taken=1,
                given=len(draft.records),
                asked=draft.asked,
                prompt_tokens=draft.prompt_tokens,
                completion_tokens=draft.completion_tokens,
                dropped=dropped,
                counts=draft.counts,
            )
            records = tuple(ScoredRecord(record) for record in draft.records)
            yield RecordBatch(records, (*pending_stats.popleft(), stats))
        if carried_stats:
            yield RecordBatch((), tuple(carried_stats))

    def _corpus(
        self, generator: Generator, sources: Sequence[str], feed: _BatchStream
    ) -> tuple[GeneratorContext, _BatchStream]:
        """Return the context of a generator that compares; it waits for all its inputs."""
        if type(generator).start is Generator.start:
            return GeneratorContext(self._split, (), self._recipe.seed), feed
        if all(source in GRAPH_SOURCES for source in sources):
            items = [
                item
                for source in sources
                for item in self._inputs.items.get((source, self._split), ())
            ]
            return GeneratorContext(self._split, items, self._recipe.seed), feed
        batches = list(feed)
        items = [item for group, _, _ in batches for item in group]
        return GeneratorContext(self._split, items, self._recipe.seed), iter(batches)

    def _seeds(
        self,
        step: GraphStep,
        generator: Generator,
        sources: Sequence[str],
        feed: _BatchStream,
        pending_stats: deque[tuple[StepStats, ...]],
        carried_stats: list[StepStats],
    ) -> Iterator[WorkItem]:
        """Yield a step's units; the statistics that come with each go to ``pending_stats``."""
        seed, split = self._recipe.seed, self._split
        if generator.samples_seeds or sources[0] == "nothing":
            target = self._recipe.target
            count = target.train if split == "train" else target.held_out
            if step.limit is not None and split == "train":
                count = step.limit
            for draw in iter_draws(split, seed=seed, count=count * self._recipe.attempts):
                pending_stats.append(())
                yield draw
            return
        if all(source in GRAPH_SOURCES for source in sources):
            items = [group[0] for group, _, _ in feed]
            for attempt in range(step.attempts):
                for item in items:
                    pending_stats.append(())
                    yield WorkItem(item, split, attempt, seed)
            return
        for group, _, accounts in feed:
            carried_stats += accounts
            for item in group:
                for attempt in range(step.attempts):
                    pending_stats.append(tuple(carried_stats))
                    carried_stats.clear()
                    yield WorkItem(item, split, attempt, seed)

    def _filter(self, name: str, step: GraphStep, feed: _BatchStream) -> Iterator[RecordBatch]:
        chain = FilterChain(step.filters, self._context, self._caches.open("measures"))
        self.chains[name] = chain
        for number, batch in enumerate(self._look_ahead(name, chain, feed)):
            accepted: list[ScoredRecord] = []
            dropped: list[RejectedRecord] = []
            measured: list[tuple[str, Any]] = []
            changed = 0
            for scored in batch.records:
                method, verdict = chain.judge(scored.record)
                measured += chain.measured
                if verdict.keep:
                    accepted_record = verdict.changed or scored.record
                    changed += verdict.changed is not None
                    chain.on_accept(accepted_record)
                    accepted.append(
                        ScoredRecord(accepted_record, {**scored.scores, **chain.scores})
                    )
                else:
                    record = scored.record
                    dropped.append(
                        reject_record(self._split, method, verdict, record.id, record, name)
                    )
            stats = StepStats(
                name,
                number,
                units=1,
                taken=len(batch.records),
                given=len(accepted),
                changed=changed,
                dropped=tuple(dropped),
                measured=tuple(measured),
            )
            yield RecordBatch(tuple(accepted), (*batch.accounts, stats))

    def _look_ahead(
        self, name: str, chain: FilterChain, feed: _BatchStream
    ) -> Iterator[RecordBatch]:
        """Yield the batches of a filter's input once their scores are prefetched.

        The batches form larger blocks where the input needs no requests.
        """
        engine = self._context.models.engine
        is_free = all(source in GRAPH_SOURCES for source in self._recipe.sources[name])
        is_large = engine.is_remote and is_free and not chain.needs_model
        size = engine.choose_block_size(_BLOCK) if is_large else 1

        def prefetch(block: Sequence[RecordBatch]) -> None:
            records = [scored.record for batch in block for scored in batch.records]
            chain.apply_ahead(records)
            if chain.needs_model:
                chain.prefetch(records)

        blocks = iter_batches(map(self._to_batch, feed), size)
        for block, _ in map_prefetched(
            prefetch, blocks, workers=chain.concurrency, pause=self._pause
        ):
            yield from block

    def _select(self, name: str, step: GraphStep, feed: _BatchStream) -> Iterator[RecordBatch]:
        batches = [self._to_batch(scored) for scored in feed]
        accounts = [stats for batch in batches for stats in batch.accounts]
        candidates = [scored for batch in batches for scored in batch.records]
        if step.select is None or self._split != "train":
            stats = StepStats(name, 0, units=1, taken=len(candidates), given=len(candidates))
            yield RecordBatch(tuple(candidates), (*accounts, stats))
            return
        self._pause()
        candidate_set = CandidateSet(
            [scored.record for scored in candidates],
            [scored.scores for scored in candidates],
            self._context,
        )
        selection = step.select.select(candidate_set)
        method = step.select.method_name()
        dropped = tuple(
            reject_record(
                self._split,
                method,
                verdict,
                candidates[index].record.id,
                candidates[index].record,
                name,
            )
            for index, verdict in sorted(selection.dropped.items())
        )
        selected = tuple(candidates[index] for index in sorted(selection.kept))
        stats = StepStats(
            name, 0, units=1, taken=len(candidates), given=len(selected), dropped=dropped
        )
        yield RecordBatch(selected, (*accounts, stats))

    def _to_batch(
        self, group: tuple[list[SeedItem], dict[str, Mapping[str, float]], tuple[StepStats, ...]]
    ) -> RecordBatch:
        items, scores, stats = group
        records = [_to_record(item, self._split) for item in items]
        return RecordBatch(
            tuple(ScoredRecord(record, scores.get(record.id, {})) for record in records), stats
        )


def _to_record(item: SeedItem, split: Split) -> Record:
    """Convert an item to a record; a passage becomes one message of plain text.

    Raises:
        DataError: If it is neither a record nor a passage.
    """
    if isinstance(item, Record):
        if "split" in item.fields:
            return item
        return replace(item, fields={**item.fields, "split": split})
    if isinstance(item, Passage):
        fields = {"split": split, "document_id": item.document_id, "passage_id": item.id}
        return Record((Message("assistant", item.text),), fields, item.origin)
    raise DataError(
        f"{get_seed_kind(item)} cannot be filtered",
        code="synth.no-records",
        expected="records or passages",
        next="let a generator make records of them first",
    )


def _close_stream(stream: Iterator[RecordBatch]) -> None:
    """Close a stream, and with it the threads that work ahead for it."""
    close = getattr(stream, "close", None)
    if close is not None:
        close()


CACHE_FOLDER = "units"
"""Folder of a run's caches; not part of the artifact."""

_CACHE_KEY_DIGITS = 16
_CACHE_VERSION = 1


class UnitCache:
    """A journal, backed by that of the previous run."""

    def __init__(self, journal: Journal, before: dict[str, Any]) -> None:
        """Wrap ``journal``; values found only in ``before`` are copied to it."""
        self._journal, self._previous = journal, before

    def get(self, key: str, default: object = None) -> object:
        """Return a value from this run or the previous one, or the default."""
        if key in self._journal:
            return self._journal[key]
        if key in self._previous:
            self._journal.put(key, self._previous.pop(key))
            return self._journal[key]
        return default

    def put(self, key: str, value: object) -> None:
        """Store a value."""
        self._journal.put(key, value)


class RunCache:
    """The caches of one run, each opened once."""

    def __init__(self, folder: Path, before: Path | None = None) -> None:
        """Open no cache yet; ``before`` is the cache folder of a previous run."""
        self._folder, self._previous = folder, before
        self._open: dict[str, tuple[UnitCache, Journal]] = {}

    @classmethod
    def of(cls, job: Job) -> RunCache:
        """Return the caches of a job, backed by those of the run that it replaces."""
        before = job.previous / CACHE_FOLDER if job.previous is not None else None
        return cls(job.work / CACHE_FOLDER, before)

    def open(self, kind: str, *depends: object) -> UnitCache:
        """Return the cache of one kind of work.

        Args:
            kind: ``units`` or ``measures``: the prefix of the file name.
            depends: All dependencies of the values besides their keys.
        """
        name = f"{kind}-{digest_json([_CACHE_VERSION, *depends])[:_CACHE_KEY_DIGITS]}"
        if name not in self._open:
            journal = Journal(self._folder / f"{name}.jsonl")
            before = self._previous / f"{name}.jsonl" if self._previous is not None else None
            known = read_journal(before) if before is not None else {}
            self._open[name] = UnitCache(journal, known), journal
        return self._open[name][0]

    def close(self) -> None:
        """Sync and close; closing twice is allowed."""
        for _, journal in self._open.values():
            journal.close()


def preview_graph(
    recipe: SynthRecipe, models: ModelPool, n: int
) -> Iterator[tuple[list[tuple[Record, str, FilterResult]], list[tuple[str, str]]]]:
    """Yield the records of the first units that reach the graph's end, and the rejected ones."""
    inputs = read_inputs(recipe)
    with tempfile.TemporaryDirectory() as folder:
        caches = RunCache(Path(folder) / "units")
        context = inputs.context(models, (), recipe.seed)
        graph = PipelineExecutor(recipe, inputs, "train", context, caches, Path(folder))
        try:
            for batch in graph.preview(n):
                judged = [(scored.record, "", FilterResult(True)) for scored in batch.records]
                failures = []
                for row in (row for stats in batch.accounts for row in stats.dropped):
                    if row.record is not None:
                        verdict = FilterResult(False, row.reason, row.score, row.limit)
                        judged.append((row.record, f"{row.step}/{row.filter}", verdict))
                    else:
                        failures.append((f"{row.step}: {row.reason}", row.text))
                yield judged, failures
        finally:
            caches.close()


def run_filters(
    split: Split,
    drafts: Iterable[GenerationResult],
    chain: FilterChain,
    target: int,
    on_unit: Callable[[SplitResult], None] = lambda result: None,
    costs: CostTracker | None = None,
    share: float = 1.0,
    result: SplitResult | None = None,
) -> SplitResult:
    """Yield the records of the first units that reach the graph's end, and the rejected rows."""
    result = SplitResult(split) if result is None else result
    if costs is not None:
        costs.add_split(result)
    if not target or (costs is not None and costs.reached(share)):
        return result
    for draft in drafts:
        result.add(draft, chain, target)
        on_unit(result)
        if len(result.kept) >= target or (costs is not None and costs.reached(share)):
            break
    result.filter_summaries = chain.summarize()
    return result


class MemoryCache:
    """In-memory cache."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def get(self, key: str, default: object = None) -> object:
        """Return the value of a key, or ``default``."""
        return self._values.get(key, default)

    def put(self, key: str, value: object) -> None:
        """Store the value of a key."""
        self._values[key] = value
