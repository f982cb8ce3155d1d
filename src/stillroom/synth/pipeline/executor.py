"""Pipeline executor: streams of records from the inputs through the steps of a recipe.

Steps are pulled: a step takes a record when a later step needs one, so that nothing accumulates,
and a reached target or a spent budget stops all earlier steps. The held-out side runs first, so
that training records can be decontaminated against it. Streams keep their order for any number of
threads, statistics are added up at the end in that order, and every finished unit is stored in a
cache keyed by all its dependencies: the output does not depend on concurrency or interruptions, and
a changed step repeats only the requests that follow from it.

A unit's key is the id of its item; its cache file is named by the digest of its other dependencies:
the method's settings, the model, the seed. A run of a changed recipe, or of more seeds, therefore
reuses the unchanged units of the previous run.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stillroom.errors import DataError
from stillroom.jobs import Job, Journal, read_journal
from stillroom.jobs.engines.interfaces import iter_batches, map_prefetched
from stillroom.jobs.segments import LISTED_JOURNAL, digest_value, withdraw_segments
from stillroom.provenance import digest_json
from stillroom.records import Message, Passage, Record
from stillroom.synth.interfaces import CandidateSet, FilterContext, FilterResult, Generator
from stillroom.synth.pipeline.filter_chain import FilterChain
from stillroom.synth.pipeline.inputs import PipelineInputs, iter_draws, iter_work_items
from stillroom.synth.pipeline.results import (
    BEYOND_TARGET,
    CostTracker,
    RecordBatch,
    ScoredRecord,
    SplitResult,
    StepStats,
    interleave,
    reject_record,
    tee,
)
from stillroom.synth.pipeline.scheduler import generate_units, is_unanswered
from stillroom.synth.pipeline.steps import (
    STEP_SOURCES,
    UNLIMITED,
    FilterStep,
    GenerateStep,
    GeneratorPipeline,
    PipelineStep,
    SelectStep,
    find_end_steps,
)
from stillroom.synth.types import (
    GeneratorContext,
    RejectedRecord,
    SeedItem,
    Split,
    WorkItem,
    get_seed_kind,
    read_split,
)

if TYPE_CHECKING:
    from stillroom.synth.jobs.records import RecordsRecipe

__all__ = ["CACHE_FOLDER", "PipelineExecutor", "RunCache", "UnitCache", "to_record"]


class _ItemBatch(NamedTuple):
    """The inputs of a step that arrive together."""

    items: list[SeedItem]
    scores: Mapping[str, Mapping[str, float]] = {}
    stats: tuple[StepStats, ...] = ()
    unit: str = ""


_BLOCK = 64


class PipelineExecutor:
    """Executor of the steps of one recipe over one side of the split.

    In the rejected rows of a pipeline of one generator, ``unit`` is the generator's unit and there
    is no step; in those of steps, ``unit`` is the record.
    """

    def __init__(
        self,
        recipe: RecordsRecipe,
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
        self._is_single = isinstance(recipe.pipeline, GeneratorPipeline)
        self._num_missing: Callable[[], int] = lambda: UNLIMITED
        self.chains: dict[str, FilterChain] = {}
        sources = recipe.sources
        num_consumers = Counter(source for names in sources.values() for source in names)
        streams: dict[str, deque[Iterator[RecordBatch]]] = {}
        for name, step in recipe.steps.items():
            batches = [self._open(source, streams) for source in sources[name]]
            stream = self._run(name, step, sources[name], interleave(batches))
            stream = self._limit(name, step, stream)
            copies = tee(stream, max(num_consumers[name], 1), scratch, self._closing)
            streams[name] = deque(copies)
        self._streams = [streams[name].popleft() for name in find_end_steps(sources)]

    def preview(self, n: int) -> Iterator[RecordBatch]:
        """Yield only the first batches that arrive at the end of the steps."""
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
        on_batch: Callable[[SplitResult], None] = lambda result: None,
    ) -> SplitResult:
        """Pull records until the target is reached, the budget's share is spent, or they end.

        The files of the result are closed with ``closing``.
        """
        result = SplitResult.open(self._split, self._recipe.steps, self._scratch, closing)
        self._num_missing = lambda: target - len(result.records)
        if costs is not None:
            costs.add_split(result)

        def is_done() -> bool:
            is_spent = costs is not None and bool(costs.reached(share))
            return is_spent or len(result.records) >= target

        try:
            for batch in () if is_done() else interleave(self._streams):
                result.add(batch, target)
                on_batch(result)
                if is_done():
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
    ) -> Iterator[_ItemBatch]:
        """Yield the items of a source or of a step, with their scores and statistics."""
        if source in STEP_SOURCES:
            for item in self._inputs.items.get((source, self._split), ()):
                yield _ItemBatch([item])
            return
        for batch in streams[source].popleft():
            scores = {scored.record.id: scored.scores for scored in batch.records}
            items: list[SeedItem] = [scored.record for scored in batch.records]
            yield _ItemBatch(items, scores, batch.stats, batch.unit)

    def _run(
        self, name: str, step: PipelineStep, sources: Sequence[str], feed: Iterator[_ItemBatch]
    ) -> Iterator[RecordBatch]:
        if isinstance(step, GenerateStep):
            return self._generate(name, step, sources, feed)
        if isinstance(step, SelectStep):
            return self._select(name, step, feed)
        return self._filter(name, step, feed)

    def _limit(
        self, name: str, step: PipelineStep, stream: Iterator[RecordBatch]
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
        *earlier_stats, own_stats = batch.stats  # a step's own statistics come last
        own_stats = replace(
            own_stats, given=own_stats.given - len(beyond), dropped=(*own_stats.dropped, *rows)
        )
        return RecordBatch(records, (*earlier_stats, own_stats))

    def _generate(
        self, name: str, step: GenerateStep, sources: Sequence[str], feed: Iterator[_ItemBatch]
    ) -> Iterator[RecordBatch]:
        generator = step.generator
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
        seeds = self._seeds(step, sources, feed, pending_stats, carried_stats)
        num_given = 0
        drafts = generate_units(
            seeds,
            generator.start(context),
            model,
            cache,
            batch_size=self._recipe.batch_size,
            pause=self._pause,
            wanted=lambda: self._count_wanted(step, num_given),
        )
        method, step_name = generator.method_name(), name
        if self._is_single:
            method, step_name = "generator", ""
        for number, draft in enumerate(drafts):
            dropped = tuple(
                RejectedRecord(
                    self._split, method, item.reason, draft.key, text=item.text, step=step_name
                )
                for item in draft.failures
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
                used=() if is_unanswered(draft) else (f"{cache.name}/{draft.key}",),
            )
            records = tuple(ScoredRecord(record) for record in draft.records)
            num_given += len(records)
            unit = draft.key if self._is_single else ""
            yield RecordBatch(records, (*pending_stats.popleft(), stats), unit)
        if carried_stats:
            yield RecordBatch((), tuple(carried_stats))

    def _count_wanted(self, step: GenerateStep, given: int) -> int:
        """Return how many records a generator that gave some may still have to give."""
        missing = self._num_missing() if self._is_single else UNLIMITED
        return missing if step.limit is None or self._split != "train" else step.limit - given

    def _corpus(
        self, generator: Generator, sources: Sequence[str], feed: Iterator[_ItemBatch]
    ) -> tuple[GeneratorContext, Iterator[_ItemBatch]]:
        """Return the context of a generator that compares; it waits for all its inputs."""
        if type(generator).start is Generator.start:
            return GeneratorContext(self._split, (), self._recipe.seed), feed
        if all(source in STEP_SOURCES for source in sources):
            items = [
                item
                for source in sources
                for item in self._inputs.items.get((source, self._split), ())
            ]
            return GeneratorContext(self._split, items, self._recipe.seed), feed
        batches = list(feed)
        items = [item for group, *_ in batches for item in group]
        return GeneratorContext(self._split, items, self._recipe.seed), iter(batches)

    def _seeds(
        self,
        step: GenerateStep,
        sources: Sequence[str],
        feed: Iterator[_ItemBatch],
        pending_stats: deque[tuple[StepStats, ...]],
        carried_stats: list[StepStats],
    ) -> Iterator[WorkItem]:
        """Yield a step's units; the statistics that come with each go to ``pending_stats``."""
        seed, split = self._recipe.seed, self._split
        if step.generator.samples_seeds or sources[0] == "nothing":
            count = self._recipe.get_target(split)
            if step.limit is not None and split == "train":
                count = step.limit
            has_items = any(self._inputs.items.get((source, split)) for source in sources)
            if sources[0] in ("index", "seeds") and not has_items:
                count = 0
            units = iter_draws(split, seed=seed, count=count * step.attempts)
        elif all(source in STEP_SOURCES for source in sources):
            items = [batch.items[0] for batch in feed]
            units = iter_work_items(items, split, seed=seed, attempts=step.attempts)
        else:
            for batch in feed:
                carried_stats += batch.stats
                for item in batch.items:
                    for attempt in range(step.attempts):
                        pending_stats.append(tuple(carried_stats))
                        carried_stats.clear()
                        yield WorkItem(item, split, attempt, seed)
            return
        for unit in units:
            pending_stats.append(())
            yield unit

    def _filter(
        self, name: str, step: FilterStep, feed: Iterator[_ItemBatch]
    ) -> Iterator[RecordBatch]:
        measures = self._caches.open("measures")
        chain = FilterChain(step.filters, self._context, measures)
        self.chains[name] = chain
        step_name = "" if self._is_single else name
        for number, batch in enumerate(self._look_ahead(name, chain, feed)):
            accepted: list[ScoredRecord] = []
            dropped: list[RejectedRecord] = []
            measured: list[tuple[str, Any]] = []
            used: list[str] = []
            changed = 0
            room = self._num_missing() if self._is_single else UNLIMITED
            for scored in batch.records:
                record, is_beyond = scored.record, len(accepted) >= room
                method, verdict = "target", BEYOND_TARGET
                if not (is_beyond and chain.needs_model):  # no more requests than are needed
                    method, verdict = chain.judge(record)
                    measured += chain.measured
                    used += chain.used
                    if verdict.keep and is_beyond:
                        method, verdict = "target", BEYOND_TARGET
                if verdict.keep:
                    accepted_record = verdict.changed or record
                    changed += verdict.changed is not None
                    chain.on_accept(accepted_record)
                    scores = {**scored.scores, **chain.scores}
                    accepted.append(ScoredRecord(accepted_record, scores))
                else:
                    unit = batch.unit or record.id
                    row = reject_record(self._split, method, verdict, unit, record, step_name)
                    dropped.append(row)
            stats = StepStats(
                name,
                number,
                units=1,
                taken=len(batch.records),
                given=len(accepted),
                changed=changed,
                dropped=tuple(dropped),
                measured=tuple(measured),
                used=tuple(f"{measures.name}/{key}" for key in used),
            )
            yield RecordBatch(tuple(accepted), (*batch.stats, stats), batch.unit)

    def _look_ahead(
        self, name: str, chain: FilterChain, feed: Iterator[_ItemBatch]
    ) -> Iterator[RecordBatch]:
        """Yield the batches of a filter's input once their scores are prefetched.

        The batches form larger blocks where the input needs no requests.
        """
        engine = self._context.models.engine
        is_free = all(source in STEP_SOURCES for source in self._recipe.sources[name])
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

    def _select(
        self, name: str, step: SelectStep, feed: Iterator[_ItemBatch]
    ) -> Iterator[RecordBatch]:
        batches = [self._to_batch(batch) for batch in feed]
        earlier_stats = [stats for batch in batches for stats in batch.stats]
        candidates = [scored for batch in batches for scored in batch.records]
        selected = candidates
        dropped: tuple[RejectedRecord, ...] = ()
        if self._split == "train":
            self._pause()
            records = [scored.record for scored in candidates]
            scores = [scored.scores for scored in candidates]
            selection = step.select.select(CandidateSet(records, scores, self._context))
            selected = [candidates[index] for index in sorted(selection.kept)]
            method = step.select.method_name()
            dropped = tuple(
                reject_record(self._split, method, verdict, records[index].id, records[index], name)
                for index, verdict in sorted(selection.dropped.items())
            )
        stats = StepStats(
            name, 0, units=1, taken=len(candidates), given=len(selected), dropped=dropped
        )
        yield RecordBatch(tuple(selected), (*earlier_stats, stats))

    def _to_batch(self, batch: _ItemBatch) -> RecordBatch:
        records = [to_record(item, self._split) for item in batch.items]
        scored = tuple(ScoredRecord(record, batch.scores.get(record.id, {})) for record in records)
        return RecordBatch(scored, batch.stats, batch.unit)


def to_record(item: SeedItem, split: Split) -> Record:
    """Convert an item to a record; a passage becomes one message of plain text.

    A record keeps its field ``split``, but for another name of its side, such as ``train_sft``.

    Raises:
        DataError: If it is neither a record nor a passage.
    """
    if isinstance(item, Record):
        if "split" in item.fields and read_split(item) != split:
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

    def __init__(self, name: str, journal: Journal, before: dict[str, Any]) -> None:
        """Wrap ``journal``; values found only in ``before`` are copied to it."""
        self.name, self._journal, self._previous = name, journal, before

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

    def __init__(
        self,
        folder: Path,
        before: Path | None = None,
        open_journal: Callable[[Path], Journal] = Journal,
        on_damage: Callable[[str], None] | None = None,
    ) -> None:
        """Open no cache yet; ``before`` is the cache folder of a previous run."""
        self._on_damage = on_damage
        self._folder, self._previous, self._open_journal = folder, before, open_journal
        self._open: dict[str, tuple[UnitCache, Journal]] = {}

    @classmethod
    def of(cls, job: Job) -> RunCache:
        """Return the caches of a job, backed by those of the run that it replaces."""
        before = job.previous / CACHE_FOLDER if job.previous is not None else None
        return cls(job.work / CACHE_FOLDER, before, job.open_journal, job.warn_of_damage)

    def open(self, kind: str, *depends: object) -> UnitCache:
        """Return the cache of one kind of work.

        Args:
            kind: ``units`` or ``measures``: the prefix of the file name.
            depends: All dependencies of the values besides their keys.
        """
        name = f"{kind}-{digest_json([_CACHE_VERSION, *depends])[:_CACHE_KEY_DIGITS]}"
        if name not in self._open:
            journal = self._open_journal(self._folder / f"{name}.jsonl")
            before = self._previous / f"{name}.jsonl" if self._previous is not None else None
            known = read_journal(before, self._on_damage) if before is not None else {}
            self._open[name] = UnitCache(name, journal, known), journal
        return self._open[name][0]

    def commit(self, job: Job, names: Iterable[str]) -> None:
        """Commit the values that a result depends on as segments of the job, each once.

        Args:
            job: The job.
            names: Cache and key, as in ``StepStats.used``. Values computed ahead that the result
                does not depend on are not among them: how many there are depends on the clock.
        """
        used = dict.fromkeys(names)
        withdraw_segments(job.journal(LISTED_JOURNAL), used)  # those of a run that a kill ended
        for name in used:
            cache, _, key = name.partition("/")
            if (value := self._open[cache][0].get(key)) is not None:
                job.commit(name, job.recipe_digest, digest_value(value))

    def close(self) -> None:
        """Sync and close; closing twice is allowed."""
        for _, journal in self._open.values():
            journal.close()
