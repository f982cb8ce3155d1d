"""Graph executor: streams of records from the inputs through the steps of a recipe.

Steps are pulled: a step takes a record when one that follows needs it, so that nothing piles up,
and a reached target or a spent budget stops everything before it. The held-out side comes first, as
in a chain. Streams keep their order whatever the number of threads, accounts are settled at the end
of the graph in that order, and every finished unit lies on a shelf named by all that it depends on:
so bytes do not depend on concurrency or on a kill, and a changed step asks anew only what follows.

A unit's key is the id of what it is about, its shelf is named by the digest of everything else that
it depends on: the method's settings, the model, the seed. So a run of a changed recipe, or of more
seeds, takes from the run before it whatever has not changed, and asks for the rest alone.
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
    """The steps of one recipe over one side of the split."""

    def __init__(
        self,
        recipe: SynthRecipe,
        start: PipelineInputs,
        split: Split,
        context: FilterContext,
        shelves: RunCache,
        scratch: Path,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """Stand the streams of one side; nothing is asked before they are pulled."""
        self._recipe, self._start, self._split = recipe, start, split
        self._context, self._shelves, self._pause = context, shelves, pause
        self._scratch = scratch
        self._closing = ExitStack()
        self.panels: dict[str, FilterChain] = {}
        sources = resolve_sources(recipe.steps, recipe.first)
        takers = Counter(source for names in sources.values() for source in names)
        streams: dict[str, deque[Iterator[RecordBatch]]] = {}
        for name, step in recipe.steps.items():
            feeds = [self._open(source, streams) for source in sources[name]]
            made = self._run(name, step, sources[name], interleave(feeds))
            made = self._limit(name, step, made)
            copies = tee(made, max(takers[name], 1), scratch, self._closing)
            streams[name] = deque(copies)
        self.ends = find_end_steps(sources)
        self._streams = [streams[name].popleft() for name in self.ends]

    def preview(self, n: int) -> Iterator[RecordBatch]:
        """Yield the first bundles that arrive at the graph's end, and no more."""
        try:
            yield from islice(interleave(self._streams), n)
        finally:
            self.close()

    def harvest(
        self,
        wanted: int,
        closing: ExitStack,
        purse: CostTracker | None = None,
        share: float = 1.0,
        on_bundle: Callable[[GraphResult], None] = lambda crop: None,
    ) -> GraphResult:
        """Pull the graph until enough is kept, the budget's share is spent, or nothing comes.

        The files of what it returns are closed with ``closing``.
        """
        crop = GraphResult.open(self._split, self._recipe.steps, self._scratch, closing)
        kept = crop.harvest.kept
        if purse is not None:
            purse.begin(crop.harvest)
        try:
            for bundle in interleave(self._streams) if wanted else ():
                crop.take(bundle, wanted)
                on_bundle(crop)
                if len(kept) >= wanted or (purse is not None and purse.reached(share)):
                    break
        finally:
            self.close()
        for name, panel in self.panels.items():
            told = panel.summarize(crop.steps[name].measured)
            if told:
                crop.told[name] = told
        return crop

    def close(self) -> None:
        """End every stream, and with them the threads that work ahead."""
        for made in self._streams:
            _close_stream(made)
        self._closing.close()

    def _open(
        self, source: str, streams: Mapping[str, deque[Iterator[RecordBatch]]]
    ) -> _BatchStream:
        """Yield the items of a start or of a step, with their scores and accounts."""
        if source in GRAPH_SOURCES:
            for item in self._start.items.get((source, self._split), ()):
                yield [item], {}, ()
            return
        for bundle in streams[source].popleft():
            scores = {one.record.id: one.scores for one in bundle.records}
            yield [one.record for one in bundle.records], scores, bundle.accounts

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
        """Yield bundles until the step has given what it may; what is beyond it falls, counted."""
        if step.limit is None or self._split != "train":
            yield from stream
            return
        left = step.limit
        for bundle in stream:
            kept, beyond = bundle.records[:left], bundle.records[left:]
            yield self._cut(name, bundle, kept, beyond) if beyond else bundle
            left -= len(kept)
            if left <= 0:
                return

    def _cut(
        self,
        name: str,
        bundle: RecordBatch,
        kept: tuple[ScoredRecord, ...],
        beyond: tuple[ScoredRecord, ...],
    ) -> RecordBatch:
        """Return a bundle without the records beyond its step's limit, which its account tells."""
        verdict = FilterResult(False, "beyond the limit of the step")
        rows = tuple(
            reject_record(self._split, "limit", verdict, one.record.id, one.record, name)
            for one in beyond
        )
        *before, own = bundle.accounts  # a step's own account comes last
        own = replace(own, given=own.given - len(beyond), dropped=(*own.dropped, *rows))
        return RecordBatch(kept, (*before, own))

    def _write(
        self,
        name: str,
        step: GraphStep,
        generator: Generator,
        sources: Sequence[str],
        feed: _BatchStream,
    ) -> Iterator[RecordBatch]:
        model = self._context.models.text_model(step.model or self._recipe.model)
        corpus, feed = self._corpus(generator, sources, feed)
        shelf = self._shelves.open(
            "units",
            generator.model_dump(mode="json"),
            model.fingerprint,
            self._recipe.seed,
            self._split,
            [item.id for item in corpus.items],
        )
        waiting: deque[tuple[StepStats, ...]] = deque()
        carried: list[StepStats] = []
        seeds = self._seeds(step, generator, sources, feed, waiting, carried)
        drafts = generate_units(
            seeds,
            generator.begin(corpus),
            model,
            shelf,
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
            account = StepStats(
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
            yield RecordBatch(records, (*waiting.popleft(), account))
        if carried:
            yield RecordBatch((), tuple(carried))

    def _corpus(
        self, generator: Generator, sources: Sequence[str], feed: _BatchStream
    ) -> tuple[GeneratorContext, _BatchStream]:
        """Return what a generator that compares may know; it then waits for all that comes."""
        if type(generator).begin is Generator.begin:
            return GeneratorContext(self._split, (), self._recipe.seed), feed
        if all(source in GRAPH_SOURCES for source in sources):
            items = [
                item
                for source in sources
                for item in self._start.items.get((source, self._split), ())
            ]
            return GeneratorContext(self._split, items, self._recipe.seed), feed
        held = list(feed)
        items = [item for found, _, _ in held for item in found]
        return GeneratorContext(self._split, items, self._recipe.seed), iter(held)

    def _seeds(
        self,
        step: GraphStep,
        generator: Generator,
        sources: Sequence[str],
        feed: _BatchStream,
        waiting: deque[tuple[StepStats, ...]],
        carried: list[StepStats],
    ) -> Iterator[WorkItem]:
        """Yield a step's units; the accounts that come with each are put into ``waiting``."""
        seed, split = self._recipe.seed, self._split
        if generator.draws or sources[0] == "nothing":
            target = self._recipe.target
            wanted = target.train if split == "train" else target.held_out
            if step.limit is not None and split == "train":
                wanted = step.limit
            for drawn in iter_draws(split, seed=seed, count=wanted * self._recipe.attempts):
                waiting.append(())
                yield drawn
            return
        if all(source in GRAPH_SOURCES for source in sources):
            items = [found[0] for found, _, _ in feed]
            for attempt in range(step.attempts):
                for item in items:
                    waiting.append(())
                    yield WorkItem(item, split, attempt, seed)
            return
        for found, _, accounts in feed:
            carried += accounts
            for item in found:
                for attempt in range(step.attempts):
                    waiting.append(tuple(carried))
                    carried.clear()
                    yield WorkItem(item, split, attempt, seed)

    def _filter(self, name: str, step: GraphStep, feed: _BatchStream) -> Iterator[RecordBatch]:
        panel = FilterChain(step.filters, self._context, self._shelves.open("measures"))
        self.panels[name] = panel
        for number, bundle in enumerate(self._look_ahead(name, panel, feed)):
            kept: list[ScoredRecord] = []
            dropped: list[RejectedRecord] = []
            measured: list[tuple[str, Any]] = []
            changed = 0
            for scored in bundle.records:
                method, verdict = panel.judge(scored.record)
                measured += panel.measured
                if verdict.keep:
                    after = verdict.changed or scored.record
                    changed += verdict.changed is not None
                    panel.admit(after)
                    kept.append(ScoredRecord(after, {**scored.scores, **panel.scores}))
                else:
                    record = scored.record
                    dropped.append(
                        reject_record(self._split, method, verdict, record.id, record, name)
                    )
            account = StepStats(
                name,
                number,
                units=1,
                taken=len(bundle.records),
                given=len(kept),
                changed=changed,
                dropped=tuple(dropped),
                measured=tuple(measured),
            )
            yield RecordBatch(tuple(kept), (*bundle.accounts, account))

    def _look_ahead(
        self, name: str, panel: FilterChain, feed: _BatchStream
    ) -> Iterator[RecordBatch]:
        """Yield the bundles of a filter's feed when what can be known of them beforehand is.

        They go in larger blocks where nothing has to be asked for to have them.
        """
        engine = self._context.models.engine
        is_free = all(source in GRAPH_SOURCES for source in self._recipe.sources[name])
        is_large = engine.is_remote and is_free and not panel.is_costly
        size = engine.choose_block_size(_BLOCK) if is_large else 1

        def prefetch(block: Sequence[RecordBatch]) -> None:
            records = [one.record for bundle in block for one in bundle.records]
            panel.spread(records)
            if panel.is_costly:
                panel.prefetch(records)

        blocks = iter_batches(map(self._to_bundle, feed), size)
        for block, _ in map_prefetched(
            prefetch, blocks, workers=panel.concurrency, pause=self._pause
        ):
            yield from block

    def _select(self, name: str, step: GraphStep, feed: _BatchStream) -> Iterator[RecordBatch]:
        held = [self._to_bundle(one) for one in feed]
        accounts = [account for bundle in held for account in bundle.accounts]
        come = [scored for bundle in held for scored in bundle.records]
        if step.select is None or self._split != "train":
            account = StepStats(name, 0, units=1, taken=len(come), given=len(come))
            yield RecordBatch(tuple(come), (*accounts, account))
            return
        self._pause()
        pool = CandidateSet(
            [one.record for one in come], [one.scores for one in come], self._context
        )
        selection = step.select.select(pool)
        method = step.select.method_name()
        dropped = tuple(
            reject_record(self._split, method, verdict, come[at].record.id, come[at].record, name)
            for at, verdict in sorted(selection.dropped.items())
        )
        kept = tuple(come[at] for at in sorted(selection.kept))
        account = StepStats(name, 0, units=1, taken=len(come), given=len(kept), dropped=dropped)
        yield RecordBatch(kept, (*accounts, account))

    def _to_bundle(
        self, fed: tuple[list[SeedItem], dict[str, Mapping[str, float]], tuple[StepStats, ...]]
    ) -> RecordBatch:
        items, scores, accounts = fed
        records = [_to_record(item, self._split) for item in items]
        return RecordBatch(
            tuple(ScoredRecord(record, scores.get(record.id, {})) for record in records), accounts
        )


def _to_record(item: SeedItem, split: Split) -> Record:
    """Return an item as a record; a passage is one message of plain text.

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
        f"{get_seed_kind(item)} cannot be judged",
        code="synth.no-records",
        expected="records or passages",
        next="let a generator make records of them first",
    )


def _close_stream(stream: Iterator[RecordBatch]) -> None:
    """End a stream, and with it the threads that work ahead for it."""
    close = getattr(stream, "close", None)
    if close is not None:
        close()


CACHE_FOLDER = "units"
"""The folder of a run that holds its shelves; no part of the artifact."""

_CACHE_KEY_DIGITS = 16
_CACHE_VERSION = 1


class UnitCache:
    """One journal, with that of the run before behind it."""

    def __init__(self, journal: Journal, before: dict[str, Any]) -> None:
        """Look into ``before`` for what the journal lacks, and write down what is found."""
        self._journal, self._before = journal, before

    def get(self, key: str, default: object = None) -> object:
        """Return the value of a key, or ``default``."""
        """Return a value, from this run or the one before, or the default."""
        if key in self._journal:
            return self._journal[key]
        if key in self._before:
            self._journal.put(key, self._before.pop(key))
            return self._journal[key]
        return default

    def put(self, key: str, value: object) -> None:
        """Store the value of a key."""
        """Keep a value."""
        self._journal.put(key, value)


class RunCache:
    """The shelves of one run, each opened once."""

    def __init__(self, folder: Path, before: Path | None = None) -> None:
        """Open none yet; ``before`` is the folder of an earlier run's shelves."""
        self._folder, self._before = folder, before
        self._open: dict[str, tuple[UnitCache, Journal]] = {}

    @classmethod
    def of(cls, job: Job) -> RunCache:
        """Return the shelves of a job, with those of the run that it replaces behind them."""
        before = job.previous / CACHE_FOLDER if job.previous is not None else None
        return cls(job.work / CACHE_FOLDER, before)

    def open(self, what: str, *depends: object) -> UnitCache:
        """Return the shelf of some work.

        Args:
            what: ``units`` or ``measures``: the beginning of its file's name.
            depends: Everything that its values follow from beside their keys.
        """
        name = f"{what}-{digest_json([_CACHE_VERSION, *depends])[:_CACHE_KEY_DIGITS]}"
        if name not in self._open:
            journal = Journal(self._folder / f"{name}.jsonl")
            before = self._before / f"{name}.jsonl" if self._before is not None else None
            known = read_journal(before) if before is not None else {}
            self._open[name] = UnitCache(journal, known), journal
        return self._open[name][0]

    def close(self) -> None:
        """Sync and close; closing twice does no harm."""
        for _, journal in self._open.values():
            journal.close()


def preview_graph(
    recipe: SynthRecipe, models: ModelPool, n: int
) -> Iterator[tuple[list[tuple[Record, str, FilterResult]], list[tuple[str, str]]]]:
    """Yield what the first units that arrive at the graph's end gave, and what fell on the way."""
    start = read_inputs(recipe)
    with tempfile.TemporaryDirectory() as folder:
        shelves = RunCache(Path(folder) / "units")
        context = start.context(models, (), recipe.seed)
        graph = PipelineExecutor(recipe, start, "train", context, shelves, Path(folder))
        try:
            for bundle in graph.preview(n):
                judged = [(one.record, "", FilterResult(True)) for one in bundle.records]
                failures = []
                for drop in (drop for account in bundle.accounts for drop in account.dropped):
                    if drop.record is not None:
                        verdict = FilterResult(False, drop.reason, drop.score, drop.limit)
                        judged.append((drop.record, f"{drop.step}/{drop.filter}", verdict))
                    else:
                        failures.append((f"{drop.step}: {drop.reason}", drop.text))
                yield judged, failures
        finally:
            shelves.close()


def run_filters(
    split: Split,
    drafts: Iterable[GenerationResult],
    panel: FilterChain,
    wanted: int,
    on_unit: Callable[[SplitResult], None] = lambda harvest: None,
    purse: CostTracker | None = None,
    share: float = 1.0,
    harvest: SplitResult | None = None,
) -> SplitResult:
    """Judge drafts in order until ``wanted`` records are kept, or the purse's share is spent.

    What comes goes into ``harvest``, where one is given, else into memory.
    """
    harvest = SplitResult(split) if harvest is None else harvest
    if purse is not None:
        purse.begin(harvest)
    if not wanted or (purse is not None and purse.reached(share)):
        return harvest
    for draft in drafts:
        harvest.add(draft, panel, wanted)
        on_unit(harvest)
        if len(harvest.kept) >= wanted or (purse is not None and purse.reached(share)):
            break
    harvest.told = panel.summarize()
    return harvest


class MemoryCache:
    """A shelf in memory."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def get(self, key: str, default: object = None) -> object:
        """Return the value of a key, or ``default``."""
        return self._values.get(key, default)

    def put(self, key: str, value: object) -> None:
        """Store the value of a key."""
        self._values[key] = value
