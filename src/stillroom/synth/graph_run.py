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
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.jobs.ahead import in_blocks, map_ahead
from stillroom.records import Message, Passage, Record
from stillroom.synth.budget import Purse
from stillroom.synth.bundles import Account, Bundle, Scored, take_turns, tee
from stillroom.synth.crop import Crop
from stillroom.synth.graph import STARTS, Step, ends_of, sources_of
from stillroom.synth.graph_starts import Start
from stillroom.synth.harvest import Dropped, draft_units, drop_record
from stillroom.synth.items import Item, kind_of
from stillroom.synth.method import (
    Context,
    Corpus,
    Generator,
    Pool,
    Seed,
    Split,
    Verdict,
)
from stillroom.synth.panel import Panel
from stillroom.synth.plan import plan_draws
from stillroom.synth.shelves import Shelves

if TYPE_CHECKING:
    from stillroom.synth.recipe import SynthRecipe

__all__ = ["Graph"]

_Feed = Iterator[tuple[list[Item], dict[str, Mapping[str, float]], tuple[Account, ...]]]
_BLOCK = 64


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
        crop = Crop.open(self._split, self._recipe.steps, self._scratch, closing)
        kept = crop.harvest.kept
        if purse is not None:
            purse.begin(crop.harvest)
        try:
            for bundle in take_turns(self._streams) if wanted else ():
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
            _close(made)
        self._closing.close()

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
