"""A recipe that is a graph, at work: streams of records from its starts through its steps.

Steps are pulled: a step takes a record when one that follows needs it, so that nothing piles up,
and a reached target or a spent budget stops everything before it. The held-out side comes first, as
in a chain. Streams keep their order whatever the number of threads, accounts are settled at the end
of the graph in that order, and every finished unit lies on a shelf named by all that it depends on:
so bytes do not depend on concurrency or on a kill, and a changed step asks anew only what follows.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.jobs import Spilled
from stillroom.jobs.ahead import in_blocks, map_ahead
from stillroom.records import Message, Passage, Record
from stillroom.synth.budget import Purse
from stillroom.synth.bundles import Account, Bundle, Scored, Yield, take_turns, tee
from stillroom.synth.graph import STARTS, Step, ends_of, sources_of
from stillroom.synth.harvest import Dropped, Harvest, draft_units, drop_record
from stillroom.synth.items import Item, document_of, kind_of
from stillroom.synth.lending import Lending
from stillroom.synth.method import (
    Context,
    Corpus,
    Generator,
    Pool,
    Seed,
    SeedKind,
    Split,
    Verdict,
)
from stillroom.synth.panel import Panel
from stillroom.synth.plan import Occurrences, order_items, plan_draws, split_items
from stillroom.synth.shelves import Shelves
from stillroom.synth.source import Source, read_items

if TYPE_CHECKING:
    from stillroom.synth.recipe import SynthRecipe

__all__ = ["Crop", "Graph", "Start", "read_starts"]

_Feed = Iterator[tuple[list[Item], dict[str, Mapping[str, float]], tuple[Account, ...]]]
_SPLITS: tuple[Split, ...] = ("held_out", "train")
_BLOCK = 64
_KINDS: tuple[SeedKind, ...] = ("records", "topics")


@dataclass(frozen=True, slots=True)
class Start:
    """What a graph starts from, split into sides, and how many passages each word occurs in."""

    sources: Mapping[str, Source]
    sides: Mapping[str, Split]
    items: Mapping[tuple[str, Split], list[Item]]
    frequency: Mapping[str, int]

    def context(self, models: Lending, held_out: Sequence[Record], seed: int) -> Context:
        """Return what filters may know."""
        by_id = {one.id: one for source in self.sources.values() for one in source.passages}
        return Context(by_id, self.frequency, held_out, models, seed)


@dataclass(slots=True)
class Crop:
    """What one side of the split has given: records, rows of what fell, and each step's yield.

    Records, rows and scores (one for each record that has some) lie in files.
    """

    harvest: Harvest
    scores: Spilled[dict[str, Any]]
    steps: dict[str, Yield] = field(default_factory=dict)
    told: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def read_starts(recipe: SynthRecipe) -> Start:
    """Read what a graph starts from; documents stand on one side of the split in all of it.

    Raises:
        DataError: If a file is missing or broken, or holds nothing of the kind that is taken.
    """
    sources: dict[str, Source] = {}
    for name, place in (("index", recipe.index), ("seeds", recipe.seeds)):
        takers = [step for key, step in recipe.steps.items() if name in recipe.sources[key]]
        if place and takers:
            sources[name] = read_items(place, _wanted_kinds(name, takers))
    read = [item for source in sources.values() for item in source.items]
    sides = split_items(read, recipe.held_out, recipe.seed)
    items: dict[tuple[str, Split], list[Item]] = {}
    for name, source in sources.items():
        for split in _SPLITS:
            mine = (item for item in source.items if sides[document_of(item)] == split)
            items[name, split] = order_items(mine, recipe.seed)
    return Start(sources, sides, items, Occurrences(read))


def _wanted_kinds(name: str, takers: Sequence[Step]) -> tuple[SeedKind, ...]:
    """Return the kinds of items that a start is to be read as."""
    if name == "index":
        return ("passages",)
    kinds: dict[SeedKind, None] = {}
    for step in takers:
        taken = step.generator.takes if step.generator is not None else ("records",)
        kinds |= dict.fromkeys(kind for kind in taken if kind in _KINDS)
        if step.generator is not None and "passages" in taken:
            kinds["records"] = None  # whose texts are passages
    return tuple(kinds)


class Graph:
    """The steps of one recipe over one side of the split."""

    def __init__(
        self,
        recipe: SynthRecipe,
        start: Start,
        split: Split,
        context: Context,
        shelves: Shelves,
        scratch: Path,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """Stand the streams of one side; nothing is asked before they are pulled."""
        self._recipe, self._start, self._split = recipe, start, split
        self._context, self._shelves, self._pause = context, shelves, pause
        self._scratch = scratch
        self._closing = ExitStack()
        self.panels: dict[str, Panel] = {}
        sources = sources_of(recipe.steps, recipe.first)
        takers = Counter(source for names in sources.values() for source in names)
        streams: dict[str, deque[Iterator[Bundle]]] = {}
        for name, step in recipe.steps.items():
            feeds = [self._open(source, streams) for source in sources[name]]
            made = self._run(name, step, sources[name], take_turns(feeds))
            made = self._limit(name, step, made)
            copies = tee(made, max(takers[name], 1), scratch, self._closing)
            streams[name] = deque(copies)
        self.ends = ends_of(sources)
        self._streams = [streams[name].popleft() for name in self.ends]

    def preview(self, n: int) -> Iterator[Bundle]:
        """Yield the first bundles that arrive at the graph's end, and no more."""
        try:
            yield from islice(take_turns(self._streams), n)
        finally:
            self.close()

    def harvest(
        self,
        wanted: int,
        closing: ExitStack,
        purse: Purse | None = None,
        share: float = 1.0,
        on_bundle: Callable[[Crop], None] = lambda crop: None,
    ) -> Crop:
        """Pull the graph until enough is kept, the budget's share is spent, or nothing comes.

        The files of what it returns are closed with ``closing``.
        """
        harvest = Harvest.spilled(self._split, self._scratch, closing)
        rows: Spilled[dict[str, Any]] = Spilled(self._scratch / "scores.jsonl", dict, dict)
        crop = Crop(harvest, closing.enter_context(rows))
        crop.steps = {name: Yield(name) for name in self._recipe.steps}
        if purse is not None:
            purse.begin(crop.harvest)
        settled = {name: _Settled() for name in self._recipe.steps}
        try:
            for bundle in take_turns(self._streams) if wanted else ():
                self._settle(crop, bundle, settled, wanted)
                on_bundle(crop)
                if len(harvest.kept) >= wanted or (purse is not None and purse.reached(share)):
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
            _close(made)
        self._closing.close()

    def _settle(
        self, crop: Crop, bundle: Bundle, settled: Mapping[str, _Settled], wanted: int
    ) -> None:
        harvest = crop.harvest
        for account in bundle.accounts:
            if not settled[account.step].add(account.number):
                continue
            crop.steps[account.step].add(account)
            harvest.units += account.units if account.asked else 0
            harvest.asked += account.asked
            harvest.prompt_tokens += account.prompt_tokens
            harvest.completion_tokens += account.completion_tokens
            harvest.parsed += account.given if account.asked else 0
            harvest.changed += account.changed
            for row in account.dropped:
                harvest.drop(row)
        for scored in bundle.records:
            if len(harvest.kept) < wanted:
                harvest.keep(scored.record)
                if scored.scores:
                    rounded = {name: round(value, 6) for name, value in scored.scores.items()}
                    crop.scores.append({"id": scored.record.id, "scores": rounded})
            else:
                verdict = Verdict(False, "beyond the number wanted")
                harvest.drop(
                    drop_record(self._split, "target", verdict, scored.record.id, scored.record)
                )

    def _open(self, source: str, streams: Mapping[str, deque[Iterator[Bundle]]]) -> _Feed:
        """Yield the items of a start or of a step, with their scores and accounts."""
        if source in STARTS:
            for item in self._start.items.get((source, self._split), ()):
                yield [item], {}, ()
            return
        for bundle in streams[source].popleft():
            scores = {one.record.id: one.scores for one in bundle.records}
            yield [one.record for one in bundle.records], scores, bundle.accounts

    def _run(self, name: str, step: Step, sources: Sequence[str], feed: _Feed) -> Iterator[Bundle]:
        if step.generator is not None:
            return self._write(name, step, step.generator, sources, feed)
        if step.select is not None:
            return self._select(name, step, feed)
        return self._filter(name, step, feed)

    def _limit(self, name: str, step: Step, stream: Iterator[Bundle]) -> Iterator[Bundle]:
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
        self, name: str, bundle: Bundle, kept: tuple[Scored, ...], beyond: tuple[Scored, ...]
    ) -> Bundle:
        """Return a bundle without the records beyond its step's limit, which its account tells."""
        verdict = Verdict(False, "beyond the limit of the step")
        rows = tuple(
            drop_record(self._split, "limit", verdict, one.record.id, one.record, name)
            for one in beyond
        )
        *before, own = bundle.accounts  # a step's own account comes last
        own = replace(own, given=own.given - len(beyond), dropped=(*own.dropped, *rows))
        return Bundle(kept, (*before, own))

    def _write(
        self, name: str, step: Step, generator: Generator, sources: Sequence[str], feed: _Feed
    ) -> Iterator[Bundle]:
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
        waiting: deque[tuple[Account, ...]] = deque()
        carried: list[Account] = []
        seeds = self._seeds(step, generator, sources, feed, waiting, carried)
        drafts = draft_units(
            seeds,
            generator.begin(corpus),
            model,
            shelf,
            batch_size=self._recipe.batch_size,
            pause=self._pause,
        )
        for number, draft in enumerate(drafts):
            dropped = tuple(
                Dropped(
                    self._split,
                    generator.method_name(),
                    failure.reason,
                    draft.key,
                    text=failure.text,
                    step=name,
                )
                for failure in draft.failures
            )
            account = Account(
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
            records = tuple(Scored(record) for record in draft.records)
            yield Bundle(records, (*waiting.popleft(), account))
        if carried:
            yield Bundle((), tuple(carried))

    def _corpus(
        self, generator: Generator, sources: Sequence[str], feed: _Feed
    ) -> tuple[Corpus, _Feed]:
        """Return what a generator that compares may know; it then waits for all that comes."""
        if type(generator).begin is Generator.begin:
            return Corpus(self._split, (), self._recipe.seed), feed
        if all(source in STARTS for source in sources):
            items = [
                item
                for source in sources
                for item in self._start.items.get((source, self._split), ())
            ]
            return Corpus(self._split, items, self._recipe.seed), feed
        held = list(feed)
        items = [item for found, _, _ in held for item in found]
        return Corpus(self._split, items, self._recipe.seed), iter(held)

    def _seeds(
        self,
        step: Step,
        generator: Generator,
        sources: Sequence[str],
        feed: _Feed,
        waiting: deque[tuple[Account, ...]],
        carried: list[Account],
    ) -> Iterator[Seed]:
        """Yield a step's units; the accounts that come with each are put into ``waiting``."""
        seed, split = self._recipe.seed, self._split
        if generator.draws or sources[0] == "nothing":
            target = self._recipe.target
            wanted = target.train if split == "train" else target.held_out
            if step.limit is not None and split == "train":
                wanted = step.limit
            for drawn in plan_draws(split, seed=seed, count=wanted * self._recipe.attempts):
                waiting.append(())
                yield drawn
            return
        if all(source in STARTS for source in sources):
            items = [found[0] for found, _, _ in feed]
            for attempt in range(step.attempts):
                for item in items:
                    waiting.append(())
                    yield Seed(item, split, attempt, seed)
            return
        for found, _, accounts in feed:
            carried += accounts
            for item in found:
                for attempt in range(step.attempts):
                    waiting.append(tuple(carried))
                    carried.clear()
                    yield Seed(item, split, attempt, seed)

    def _filter(self, name: str, step: Step, feed: _Feed) -> Iterator[Bundle]:
        panel = Panel(step.filters, self._context, self._shelves.open("measures"))
        self.panels[name] = panel
        for number, bundle in enumerate(self._look_ahead(name, panel, feed)):
            kept: list[Scored] = []
            dropped: list[Dropped] = []
            measured: list[tuple[str, Any]] = []
            changed = 0
            for scored in bundle.records:
                method, verdict = panel.judge(scored.record)
                measured += panel.measured
                if verdict.keep:
                    after = verdict.changed or scored.record
                    changed += verdict.changed is not None
                    panel.admit(after)
                    kept.append(Scored(after, {**scored.scores, **panel.scores}))
                else:
                    record = scored.record
                    dropped.append(
                        drop_record(self._split, method, verdict, record.id, record, name)
                    )
            account = Account(
                name,
                number,
                units=1,
                taken=len(bundle.records),
                given=len(kept),
                changed=changed,
                dropped=tuple(dropped),
                measured=tuple(measured),
            )
            yield Bundle(tuple(kept), (*bundle.accounts, account))

    def _look_ahead(self, name: str, panel: Panel, feed: _Feed) -> Iterator[Bundle]:
        """Yield the bundles of a filter's feed when what can be known of them beforehand is.

        They go in larger blocks where nothing has to be asked for to have them.
        """
        engine = self._context.models.engine
        is_free = all(source in STARTS for source in self._recipe.sources[name])
        is_large = engine.is_remote and is_free and not panel.is_costly
        size = engine.choose_block_size(_BLOCK) if is_large else 1

        def prefetch(block: Sequence[Bundle]) -> None:
            records = [one.record for bundle in block for one in bundle.records]
            panel.spread(records)
            if panel.is_costly:
                panel.prefetch(records)

        blocks = in_blocks(map(self._to_bundle, feed), size)
        for block, _ in map_ahead(prefetch, blocks, workers=panel.concurrency, pause=self._pause):
            yield from block

    def _select(self, name: str, step: Step, feed: _Feed) -> Iterator[Bundle]:
        held = [self._to_bundle(one) for one in feed]
        accounts = [account for bundle in held for account in bundle.accounts]
        come = [scored for bundle in held for scored in bundle.records]
        if step.select is None or self._split != "train":
            account = Account(name, 0, units=1, taken=len(come), given=len(come))
            yield Bundle(tuple(come), (*accounts, account))
            return
        self._pause()
        pool = Pool([one.record for one in come], [one.scores for one in come], self._context)
        selection = step.select.select(pool)
        method = step.select.method_name()
        dropped = tuple(
            drop_record(self._split, method, verdict, come[at].record.id, come[at].record, name)
            for at, verdict in sorted(selection.dropped.items())
        )
        kept = tuple(come[at] for at in sorted(selection.kept))
        account = Account(name, 0, units=1, taken=len(come), given=len(kept), dropped=dropped)
        yield Bundle(kept, (*accounts, account))

    def _to_bundle(
        self, fed: tuple[list[Item], dict[str, Mapping[str, float]], tuple[Account, ...]]
    ) -> Bundle:
        items, scores, accounts = fed
        records = [_to_record(item, self._split) for item in items]
        return Bundle(
            tuple(Scored(record, scores.get(record.id, {})) for record in records), accounts
        )


class _Settled:
    """The numbers of a step's accounts that are settled: all below one, and a few beyond it."""

    def __init__(self) -> None:
        self._below = 0
        self._beyond: set[int] = set()

    def add(self, number: int) -> bool:
        """Settle an account; return whether it was not."""
        if number < self._below or number in self._beyond:
            return False
        self._beyond.add(number)
        while self._below in self._beyond:
            self._beyond.remove(self._below)
            self._below += 1
        return True


def _to_record(item: Item, split: Split) -> Record:
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
        f"{kind_of(item)} cannot be judged",
        code="synth.no-records",
        expected="records or passages",
        next="let a generator make records of them first",
    )


def _close(stream: Iterator[Bundle]) -> None:
    """End a stream, and with it the threads that work ahead for it."""
    close = getattr(stream, "close", None)
    if close is not None:
        close()
