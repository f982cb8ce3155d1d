"""The job: split what is started from, ask and judge the held-out side, then the training side.

The held-out side comes first, so that training records can be kept clear of it. Every finished unit
is journaled; a killed run goes on with ``--resume`` and ends with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.jobs import Estimate, Job, atomic_write
from stillroom.jobs.ahead import map_ahead
from stillroom.objects import local
from stillroom.provenance import LEDGER, Artifact, Parent, digest_json, make_parent
from stillroom.records import (
    Message,
    Origin,
    Passage,
    Record,
    RecordWriter,
    combine_origins,
)
from stillroom.synth.budget import Purse
from stillroom.synth.comparing import Comparison
from stillroom.synth.graph_job import preview_graph, run_graph
from stillroom.synth.harvest import Dropped, Harvest, Panel, draft_units, drop_record, gather
from stillroom.synth.items import Item, document_of, kind_of, text_of_item
from stillroom.synth.lending import Lending
from stillroom.synth.method import Context, Corpus, Draft, Filter, Seed, Split, Verdict, Writer
from stillroom.synth.outline import forecast_steps
from stillroom.synth.page import Told, draw_run, is_page
from stillroom.synth.plan import Occurrences, order_items, plan_draws, plan_seeds, split_items
from stillroom.synth.recipe import SynthRecipe
from stillroom.synth.report import describe_shortfall, make_report, refuse_nothing
from stillroom.synth.source import Source, read_items
from stillroom.synth.tallying import Sample

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Preview", "estimate", "preview", "run"]

_TOKENS_A_SECOND = 60.0
_PROMPT_TOKENS_A_SECOND = 250.0
_KEPT_SHARE = 0.5
_SPLITS: tuple[Split, ...] = ("held_out", "train")
_NAMES = {
    "passages": ("passages", "documents"),
    "records": ("records", "records"),
    "topics": ("topics", "topics"),
}


@dataclass(frozen=True, slots=True)
class Preview:
    """One unit of a preview: what was asked about, and every record with its verdict.

    ``seed`` is None for a unit that has come through a graph.
    """

    seed: Seed | None
    records: tuple[tuple[Record, str, Verdict], ...]
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    source: Source | None
    sides: Mapping[str, Split]
    items: Mapping[Split, list[Item]]
    frequency: Mapping[str, int]

    def context(self, models: Lending, held_out: Sequence[Record] = (), seed: int = 0) -> Context:
        by_id = {passage.id: passage for passage in self.source.passages} if self.source else {}
        return Context(by_id, self.frequency, held_out, models, seed)


def run(recipe: SynthRecipe, job: Job) -> Artifact:
    """Write the records of a recipe into the job's output.

    Raises:
        DataError: If there is no passage, or no record is kept (``synth.nothing-kept``).
        BackendError: If the teacher fails; what was asked before is in the journal.
    """
    if recipe.steps:
        with _lend(recipe, job) as models:
            return run_graph(recipe, job, models)
    plan = _make_plan(recipe)
    _say_plan(plan, job)
    purse = Purse(recipe.budget)
    with _lend(recipe, job) as models, ExitStack() as closing:
        model = models.text_model(recipe.model)
        context = plan.context(models, seed=recipe.seed)
        held_out = _harvest(recipe, plan, "held_out", context, model, job, purse, closing)
        context = plan.context(models, list(held_out.kept), recipe.seed)
        comparison = Comparison([text_of_item(item) for item in plan.items["train"]])
        train = _harvest(
            recipe, plan, "train", context, model, job, purse, closing, comparison.look_ahead
        )
        refuse_nothing(train, recipe)
        if train.tally.made:
            comparison.begin(train.tally.made)
        texts, refused = _passage_records(recipe, plan, context, job)
        harvests = (held_out, train)
        origin = _write_records(job.output / "records.jsonl", train, texts, held_out)
        report = make_report(
            recipe, plan.source, plan.sides, plan.items, harvests, len(texts), refused
        )
        rows = (drop.to_json() for drop in chain(held_out.dropped, train.dropped, refused))
        _write_rows(job.output / "dropped.jsonl", rows)
        report["spent"] = purse.to_json()
        report["described"] = recipe.generator.describe(train.kept)
        with atomic_write(job.output / "report.json") as file:
            json.dump(report, file, ensure_ascii=False, indent=1, sort_keys=True)
        dropped = chain(held_out.dropped, train.dropped, refused)
        told = Told(
            report,
            train.tally,
            held_out.tally,
            dropped,
            comparison,
            [recipe.model],
            recipe.filters,
        )
        with atomic_write(job.output / "report.html") as file:
            file.write(draw_run(told))
    ended = purse.reached()
    for shortfall in filter(None, (describe_shortfall(one, recipe, ended) for one in harvests)):
        job.say(shortfall)
    return job.finish(
        "records",
        parents=_parents(recipe, plan, model, job),
        origin=origin.to_json(),
        details={"counts": report["splits"], "teacher": model.fingerprint},
        is_timed=is_page,
    )


def estimate(recipe: SynthRecipe) -> Estimate:
    """Return what the job will need, from its targets and the size of the teacher's file."""
    if recipe.steps:
        forecasts = forecast_steps(recipe)
        wanted, asks = sum(one.gives for one in forecasts), sum(one.asks for one in forecasts)
        seconds = sum(one.tokens for one in forecasts) / _TOKENS_A_SECOND / 4
    else:
        wanted = recipe.target.train + (recipe.target.held_out if recipe.held_out else 0)
        generator = recipe.generator
        asks = wanted / _KEPT_SHARE * max(1.0, generator.asks / generator.gives)
        seconds = asks * (generator.longest / 4 / _TOKENS_A_SECOND + 100 / _PROMPT_TOKENS_A_SECOND)
    model = Path(recipe.model)
    weights = model.stat().st_size if model.is_file() else 400_000_000
    start = local(recipe.start) if recipe.start else None
    names = ("passages.jsonl", "records.jsonl", LEDGER)
    files = [start] if start and start.is_file() else []
    if start and not files:
        files = [file for name in names for file in start.rglob(name)]
    passages = sum(file.stat().st_size for file in files)
    return Estimate(
        memory_bytes=int(weights * 1.5 + passages * 4 + 300_000_000),
        disk_bytes=int(wanted * 8_000 + recipe.include_passages * 3_000 + 1_000_000),
        seconds=seconds,
        memory_knob="use a smaller teacher, or an endpoint",
        disk_knob="lower target or include_passages",
        basis=f"about {asks:.0f} asks, of which half are kept, on two cores",
    )


def preview(recipe: SynthRecipe, n: int = 5) -> Iterator[Preview]:
    """Yield the first ``n`` training units with every verdict, writing nothing.

    Held-out records are not asked for, so ``decontaminate`` has nothing to compare with.
    """
    if recipe.steps:
        with _lend(recipe) as models:
            for found, fell in preview_graph(recipe, models, n):
                yield Preview(None, tuple(found), tuple(fell))
        return
    plan = _make_plan(recipe)
    seeds = list(islice(_seeds(recipe, plan, "train"), n))
    writer = _begin(recipe, plan, "train")
    with _lend(recipe) as models:
        model = models.text_model(recipe.model)
        panel = Panel(recipe.filters, plan.context(models, seed=recipe.seed))
        shelf: dict[str, Any] = {}
        drafts = draft_units(seeds, writer, model, _Forgetting(shelf), batch_size=recipe.batch_size)
        for seed, draft in zip(seeds, drafts, strict=True):
            judged = []
            for record in draft.records:
                name, verdict = panel.judge(record)
                if verdict.keep:
                    panel.admit(verdict.changed or record)
                judged.append((verdict.changed or record, name, verdict))
            failures = tuple((failure.reason, failure.text) for failure in draft.failures)
            yield Preview(seed, tuple(judged), failures)


class _Forgetting:
    """A shelf in memory."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def get(self, key: str, default: object = None) -> object:
        return self._values.get(key, default)

    def put(self, key: str, value: object) -> None:
        self._values[key] = value


def _make_plan(recipe: SynthRecipe) -> _Plan:
    if not recipe.start:
        return _Plan(None, {}, {side: [] for side in _SPLITS}, {})
    takes = recipe.generator.takes
    if recipe.index and "passages" in takes:  # the texts of records are passages there
        takes = tuple(kind for kind in takes if kind != "records")
    source = read_items(recipe.start, takes)
    sides = split_items(source.items, recipe.held_out, recipe.seed)
    items = {
        side: order_items(
            (item for item in source.items if sides[document_of(item)] == side), recipe.seed
        )
        for side in _SPLITS
    }
    return _Plan(source, sides, items, Occurrences(source.items))


def _begin(recipe: SynthRecipe, plan: _Plan, split: Split) -> Writer:
    return recipe.generator.begin(Corpus(split, plan.items[split], recipe.seed))


def _wanted(recipe: SynthRecipe, plan: _Plan, split: Split) -> int:
    """Return how many records a side is to give; none where it has nothing to start from."""
    if split == "held_out" and not recipe.held_out:
        return 0
    if plan.source is not None and not plan.items[split]:
        return 0
    return recipe.target.train if split == "train" else recipe.target.held_out


def _seeds(recipe: SynthRecipe, plan: _Plan, split: Split) -> Iterator[Seed]:
    if plan.source is None or recipe.generator.draws:
        count = _wanted(recipe, plan, split) * recipe.attempts
        return plan_draws(split, seed=recipe.seed, count=count)
    return plan_seeds(plan.items[split], split, seed=recipe.seed, attempts=recipe.attempts)


def _harvest(
    recipe: SynthRecipe,
    plan: _Plan,
    split: Split,
    context: Context,
    model: TextModel,
    job: Job,
    purse: Purse,
    closing: ExitStack,
    on_kept: Callable[[Sample], None] = lambda made: None,
) -> Harvest:
    wanted = _wanted(recipe, plan, split)
    # The shelf is named by the model: a resume with another teacher must not mix the two.
    journal = job.journal(f"units-{digest_json(model.fingerprint)[:12]}")
    panel = Panel(recipe.filters, context, job.journal("measures"))
    drafts: Iterator[Draft] = draft_units(
        _seeds(recipe, plan, split),
        _begin(recipe, plan, split),
        model,
        journal,
        batch_size=recipe.batch_size,
        pause=job.check_cancelled,
    )
    if job.engine.is_remote:
        drafts = _judge_ahead(drafts, panel, job)
    with job.phase(f"asking for {split} records", wanted, "records") as progress:

        def show(harvest: Harvest) -> None:
            news = len(harvest.kept) - progress.done
            on_kept(harvest.tally.made)
            progress.advance(
                news,
                lambda: f"{harvest.asked} asked, {len(harvest.dropped)} dropped, {purse.note()}",
            )

        share = 1.0
        if split == "held_out":  # which comes first, and must leave enough for training
            share = recipe.target.held_out / (recipe.target.held_out + recipe.target.train)
        harvest = Harvest.spilled(split, job.scratch, closing)
        return gather(split, drafts, panel, wanted, show, purse, share, harvest)


def _judge_ahead(drafts: Iterator[Draft], panel: Panel, job: Job) -> Iterator[Draft]:
    """Yield drafts when workers have judged what they can of them; some are drafted ahead."""
    ahead = map_ahead(
        lambda draft: panel.spread(draft.records),
        drafts,
        workers=2 * job.engine.num_workers,
        pause=job.check_cancelled,
    )
    for draft, _ in ahead:
        yield draft


@contextmanager
def _lend(recipe: SynthRecipe, job: Job | None = None) -> Iterator[Lending]:
    """Yield what opens the teacher and the models of filters; closed at the end of the body."""
    engine = recipe.engine
    settings: dict[str, Any] = {
        "backend": engine.backend,
        "num_threads": engine.num_threads,
        "context_length": engine.context_length,
    }
    told = {
        "concurrency": engine.concurrency,
        "requests_per_minute": engine.requests_per_minute,
        "tokens_per_minute": engine.tokens_per_minute,
        "others": engine.others or None,
        "weights": engine.weights or None,
        "hedge_after_s": engine.hedge_after_s,
        "read_timeout_s": engine.timeout_s,
        "answer_timeout_s": engine.timeout_s,
    }
    teacher = settings | {name: value for name, value in told.items() if value is not None}
    shared = {"num_threads": engine.num_threads}
    cache = Path(recipe.cache) if recipe.cache else None
    say = None if job is None else job.say
    models = Lending(shared, cache, say, settings_of={recipe.model: teacher}, job=job)
    try:
        yield models
    finally:
        models.close()


def _passage_records(
    recipe: SynthRecipe, plan: _Plan, context: Context, job: Job
) -> tuple[list[Record], list[Dropped]]:
    """Return train passages as plain-text records, and those a filter refused."""
    filters: list[Filter] = [chosen for chosen in recipe.filters if chosen.judges_passages]
    panel = Panel(filters, context, job.journal("measures"))
    kept: list[Record] = []
    dropped: list[Dropped] = []
    for passage in plan.items["train"]:
        if not isinstance(passage, Passage):
            break  # what is no document is not trained on as it stands
        if len(kept) >= recipe.include_passages:
            break
        record = Record(
            (Message("assistant", passage.text),),
            {
                "split": "train",
                "document_id": passage.document_id,
                "passage_id": passage.id,
            },
            passage.origin,
        )
        name, verdict = panel.judge(record)
        if verdict.keep:
            panel.admit(verdict.changed or record)
            kept.append(verdict.changed or record)
        else:
            dropped.append(drop_record("train", name, verdict, passage.id, record))
    return kept, dropped


def _write_records(
    path: Path, train: Harvest, texts: Sequence[Record], held_out: Harvest
) -> Origin:
    """Write the records of both sides; return their common origin."""
    with RecordWriter(path) as writer:
        train.write_to(writer)
        for record in texts:
            train.tally.add(record)
            writer.write(record)
        held_out.write_to(writer)
    return combine_origins([*train.tally.origins, *held_out.tally.origins])


def _write_rows(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def _say_plan(plan: _Plan, job: Job) -> None:
    if plan.source is None:
        job.say("nothing to start from but the teacher")
        return
    held_out = sum(side == "held_out" for side in plan.sides.values())
    kind, whole = _NAMES[kind_of(plan.source.items[0])]
    first = f"{len(plan.sides)} {whole}, {held_out} held out"
    train, kept = len(plan.items["train"]), len(plan.items["held_out"])
    if kind != whole or train + kept != len(plan.sides):
        first += f"; {train} {kind} to train on, {kept} held out"
    job.say(first)
    for reason, count in plan.source.dropped.items():
        job.say(f"{count} rows of {plan.source.path} left out: {reason}")


def _parents(recipe: SynthRecipe, plan: _Plan, model: TextModel, job: Job) -> list[Parent]:
    teacher = Parent("teacher", recipe.model, model.fingerprint, "checkpoint")
    if plan.source is None:
        return [teacher]
    role = kind_of(plan.source.items[0])
    return [make_parent(role, local(recipe.start), job.out), teacher]
