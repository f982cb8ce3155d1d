"""Synth job: generate and filter the held-out split, then the training split, and write both.

The held-out side runs first, so that training records can be decontaminated against it. Every
finished unit is journaled; an interrupted run resumes with ``--resume`` and produces the same
bytes.
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
from stillroom.jobs.engines.interfaces import map_prefetched
from stillroom.objects import resolve_local
from stillroom.provenance import LEDGER, Artifact, Parent, digest_json, make_parent
from stillroom.records import Message, Origin, Passage, Record, RecordWriter, combine_origins
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, GeneratorState
from stillroom.synth.model_pool import ModelPool
from stillroom.synth.output.page import ReportInput, is_report_page, render_report
from stillroom.synth.output.summary import (
    describe_shortfall,
    make_graph_report,
    make_no_records_error,
    make_report,
    require_records,
)
from stillroom.synth.pipeline.executor import (
    MemoryCache,
    PipelineExecutor,
    RunCache,
    preview_graph,
    run_filters,
)
from stillroom.synth.pipeline.filter_chain import FilterChain
from stillroom.synth.pipeline.graph import PASS_RATE, estimate_steps, format_graph
from stillroom.synth.pipeline.inputs import (
    DocumentFrequency,
    PipelineInputs,
    SplitPlan,
    iter_draws,
    iter_work_items,
    list_seed_texts,
    order_items,
    read_inputs,
    split_items,
)
from stillroom.synth.pipeline.results import CostTracker, GraphResult, SplitResult, reject_record
from stillroom.synth.pipeline.scheduler import generate_units
from stillroom.synth.pipeline.statistics import DiversityComparison, RecordStats, TextSample
from stillroom.synth.recipe import UNLIMITED, SynthRecipe
from stillroom.synth.seeds import read_seeds
from stillroom.synth.selection import MixtureResult, mix_records
from stillroom.synth.types import (
    GenerationResult,
    GeneratorContext,
    RejectedRecord,
    Split,
    WorkItem,
    get_document_id,
    get_item_text,
    get_seed_kind,
)

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "UnitPreview",
    "estimate",
    "preview",
    "run",
    "run_graph",
]


_TOKENS_PER_SECOND = 60.0
_PROMPT_TOKENS_PER_SECOND = 250.0
_SPLITS: tuple[Split, ...] = ("held_out", "train")

_SEED_NOUNS = {
    "passages": ("passages", "documents"),
    "records": ("records", "records"),
    "topics": ("topics", "topics"),
}


@dataclass(frozen=True, slots=True)
class UnitPreview:
    """One unit of a preview: its seed, and every record with its verdict.

    ``seed`` is None for a unit of a graph.
    """

    seed: WorkItem | None
    records: tuple[tuple[Record, str, FilterResult], ...]
    failures: tuple[tuple[str, str], ...]


def run(recipe: SynthRecipe, job: Job) -> Artifact:
    """Write the records of a recipe to the job's output.

    Raises:
        DataError: If there is no passage, or no record is kept (``synth.nothing-kept``).
        BackendError: If the teacher fails; finished units are in the journal.
    """
    if recipe.steps:
        with _open_model_pool(recipe, job) as models:
            return run_graph(recipe, job, models)
    plan = _make_split_plan(recipe)
    _log_plan(plan, job)
    costs = CostTracker(recipe.budget)
    with _open_model_pool(recipe, job) as models, ExitStack() as closing:
        model = models.text_model(recipe.model)
        context = plan.context(models, seed=recipe.seed)
        held_out = _run_split(recipe, plan, "held_out", context, model, job, costs, closing)
        context = plan.context(models, list(held_out.kept), recipe.seed)
        comparison = DiversityComparison([get_item_text(item) for item in plan.items["train"]])
        train = _run_split(
            recipe, plan, "train", context, model, job, costs, closing, comparison.look_ahead
        )
        require_records(train, recipe)
        if train.stats.synthetic_texts:
            comparison.start(train.stats.synthetic_texts)
        texts, rejected = _make_passage_records(recipe, plan, context, job)
        results = (held_out, train)
        origin = _write_records(job.output / "records.jsonl", train, texts, held_out)
        report = make_report(
            recipe, plan.source, plan.sides, plan.items, results, len(texts), rejected
        )
        rows = (row.to_json() for row in chain(held_out.dropped, train.dropped, rejected))
        _write_rows(job.output / "dropped.jsonl", rows)
        report["spent"] = costs.to_json()
        report["described"] = recipe.generator.describe(train.kept)
        with atomic_write(job.output / "report.json") as file:
            json.dump(report, file, ensure_ascii=False, indent=1, sort_keys=True)
        dropped = chain(held_out.dropped, train.dropped, rejected)
        page_input = ReportInput(
            report,
            train.stats,
            held_out.stats,
            dropped,
            comparison,
            [recipe.model],
            recipe.filters,
        )
        with atomic_write(job.output / "report.html") as file:
            file.write(render_report(page_input))
    stopped_by = costs.reached()
    for shortfall in filter(
        None, (describe_shortfall(result, recipe, stopped_by) for result in results)
    ):
        job.say(shortfall)
    return job.finish(
        "records",
        parents=_list_parents(recipe, plan, model, job),
        origin=origin.to_json(),
        details={"counts": report["splits"], "teacher": model.fingerprint},
        is_timed=is_report_page,
    )


def estimate(recipe: SynthRecipe) -> Estimate:
    """Estimate memory, disk and time from the targets and the size of the teacher's file."""
    if recipe.steps:
        step_estimates = estimate_steps(recipe)
        num_records, num_requests = (
            sum(step_estimate.gives for step_estimate in step_estimates),
            sum(step_estimate.asks for step_estimate in step_estimates),
        )
        seconds = (
            sum(step_estimate.tokens for step_estimate in step_estimates) / _TOKENS_PER_SECOND / 4
        )
    else:
        num_records = recipe.target.train + (recipe.target.held_out if recipe.held_out else 0)
        generator = recipe.generator
        num_requests = (
            num_records / PASS_RATE * max(1.0, generator.max_requests / generator.max_records)
        )
        seconds = num_requests * (
            generator.max_tokens / 4 / _TOKENS_PER_SECOND + 100 / _PROMPT_TOKENS_PER_SECOND
        )
    model = Path(recipe.model)
    weights = model.stat().st_size if model.is_file() else 400_000_000
    start = resolve_local(recipe.start) if recipe.start else None
    names = ("passages.jsonl", "records.jsonl", LEDGER)
    files = [start] if start and start.is_file() else []
    if start and not files:
        files = [file for name in names for file in start.rglob(name)]
    passages = sum(file.stat().st_size for file in files)
    return Estimate(
        memory_bytes=int(weights * 1.5 + passages * 4 + 300_000_000),
        disk_bytes=int(num_records * 8_000 + recipe.include_passages * 3_000 + 1_000_000),
        seconds=seconds,
        memory_knob="use a smaller teacher, or an endpoint",
        disk_knob="lower target or include_passages",
        basis=f"about {num_requests:.0f} requests, of which half are kept, on two cores",
    )


def preview(recipe: SynthRecipe, n: int = 5) -> Iterator[UnitPreview]:
    """Yield the first ``n`` training units with every verdict, writing nothing.

    No held-out records are generated, so ``decontaminate`` has nothing to compare with.
    """
    if recipe.steps:
        with _open_model_pool(recipe) as models:
            for batch_records, batch_failures in preview_graph(recipe, models, n):
                yield UnitPreview(None, tuple(batch_records), tuple(batch_failures))
        return
    plan = _make_split_plan(recipe)
    seeds = list(islice(_iter_split_items(recipe, plan, "train"), n))
    generator = _start_generator(recipe, plan, "train")
    with _open_model_pool(recipe) as models:
        model = models.text_model(recipe.model)
        filter_chain = FilterChain(recipe.filters, plan.context(models, seed=recipe.seed))
        drafts = generate_units(
            seeds, generator, model, MemoryCache({}), batch_size=recipe.batch_size
        )
        for seed, draft in zip(seeds, drafts, strict=True):
            judged = []
            for record in draft.records:
                name, verdict = filter_chain.judge(record)
                if verdict.keep:
                    filter_chain.on_accept(verdict.changed or record)
                judged.append((verdict.changed or record, name, verdict))
            failures = tuple((failure.reason, failure.text) for failure in draft.failures)
            yield UnitPreview(seed, tuple(judged), failures)


def _make_split_plan(recipe: SynthRecipe) -> SplitPlan:
    if not recipe.start:
        return SplitPlan(None, {}, {side: [] for side in _SPLITS}, {})
    takes = recipe.generator.seed_kinds
    if recipe.index and "passages" in takes:  # the texts of records serve as passages here
        takes = tuple(kind for kind in takes if kind != "records")
    source = read_seeds(recipe.start, takes)
    sides = split_items(source.items, recipe.held_out, recipe.seed)
    items = {
        side: order_items(
            (item for item in source.items if sides[get_document_id(item)] == side), recipe.seed
        )
        for side in _SPLITS
    }
    return SplitPlan(source, sides, items, DocumentFrequency(source.items))


def _start_generator(recipe: SynthRecipe, plan: SplitPlan, split: Split) -> GeneratorState:
    return recipe.generator.start(GeneratorContext(split, plan.items[split], recipe.seed))


def _get_target(recipe: SynthRecipe, plan: SplitPlan, split: Split) -> int:
    """Return the target of a side; 0 if it has no seeds."""
    if split == "held_out" and not recipe.held_out:
        return 0
    if plan.source is not None and not plan.items[split]:
        return 0
    return recipe.target.train if split == "train" else recipe.target.held_out


def _iter_split_items(recipe: SynthRecipe, plan: SplitPlan, split: Split) -> Iterator[WorkItem]:
    if plan.source is None or recipe.generator.samples_seeds:
        count = _get_target(recipe, plan, split) * recipe.attempts
        return iter_draws(split, seed=recipe.seed, count=count)
    return iter_work_items(plan.items[split], split, seed=recipe.seed, attempts=recipe.attempts)


def _run_split(
    recipe: SynthRecipe,
    plan: SplitPlan,
    split: Split,
    context: FilterContext,
    model: TextModel,
    job: Job,
    costs: CostTracker,
    closing: ExitStack,
    on_kept: Callable[[TextSample], None] = lambda texts: None,
) -> SplitResult:
    target = _get_target(recipe, plan, split)
    # The journal is named by the model: a resume with another teacher must not mix the two.
    journal = job.journal(f"units-{digest_json(model.fingerprint)[:12]}")
    filter_chain = FilterChain(recipe.filters, context, job.journal("measures"))
    drafts: Iterator[GenerationResult] = generate_units(
        _iter_split_items(recipe, plan, split),
        _start_generator(recipe, plan, split),
        model,
        journal,
        batch_size=recipe.batch_size,
        pause=job.check_cancelled,
    )
    if job.engine.is_remote:
        drafts = _filter_ahead(drafts, filter_chain, job)
    with job.phase(f"asking for {split} records", target, "records") as progress:

        def show(current: SplitResult) -> None:
            news = len(current.kept) - progress.done
            on_kept(current.stats.synthetic_texts)
            progress.advance(
                news,
                lambda: f"{current.asked} asked, {len(current.dropped)} dropped, {costs.note()}",
            )

        share = 1.0
        if split == "held_out":  # runs first, and must leave budget for training
            share = recipe.target.held_out / (recipe.target.held_out + recipe.target.train)
        result = SplitResult.spilled(split, job.scratch, closing)
        return run_filters(split, drafts, filter_chain, target, show, costs, share, result)


def _filter_ahead(
    drafts: Iterator[GenerationResult], filter_chain: FilterChain, job: Job
) -> Iterator[GenerationResult]:
    """Yield drafts once workers have filtered them as far as possible; some are drafted ahead."""
    ahead = map_prefetched(
        lambda draft: filter_chain.apply_ahead(draft.records),
        drafts,
        workers=2 * job.engine.num_workers,
        pause=job.check_cancelled,
    )
    for draft, _ in ahead:
        yield draft


@contextmanager
def _open_model_pool(recipe: SynthRecipe, job: Job | None = None) -> Iterator[ModelPool]:
    """Yield the pool of the teacher and the filters' models; close it at the end."""
    engine = recipe.engine
    settings: dict[str, Any] = {
        "backend": engine.backend,
        "num_threads": engine.num_threads,
        "context_length": engine.context_length,
    }
    limits = {
        "concurrency": engine.concurrency,
        "requests_per_minute": engine.requests_per_minute,
        "tokens_per_minute": engine.tokens_per_minute,
        "others": engine.others or None,
        "weights": engine.weights or None,
        "hedge_after_s": engine.hedge_after_s,
        "read_timeout_s": engine.timeout_s,
        "answer_timeout_s": engine.timeout_s,
    }
    teacher = settings | {name: value for name, value in limits.items() if value is not None}
    shared = {"num_threads": engine.num_threads}
    cache = Path(recipe.cache) if recipe.cache else None
    say = None if job is None else job.say
    models = ModelPool(shared, cache, say, settings_of={recipe.model: teacher}, job=job)
    try:
        yield models
    finally:
        models.close()


def _make_passage_records(
    recipe: SynthRecipe, plan: SplitPlan, context: FilterContext, job: Job
) -> tuple[list[Record], list[RejectedRecord]]:
    """Return train passages as plain-text records, and those a filter rejected."""
    filters: list[Filter] = [check for check in recipe.filters if check.accepts_passages]
    filter_chain = FilterChain(filters, context, job.journal("measures"))
    records: list[Record] = []
    dropped: list[RejectedRecord] = []
    for passage in plan.items["train"]:
        if not isinstance(passage, Passage):
            break  # only documents are included as plain text
        if len(records) >= recipe.include_passages:
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
        name, verdict = filter_chain.judge(record)
        if verdict.keep:
            filter_chain.on_accept(verdict.changed or record)
            records.append(verdict.changed or record)
        else:
            dropped.append(reject_record("train", name, verdict, passage.id, record))
    return records, dropped


def _write_records(
    path: Path, train: SplitResult, texts: Sequence[Record], held_out: SplitResult
) -> Origin:
    """Write the records of both sides; return their common origin."""
    with RecordWriter(path) as writer:
        train.write_to(writer)
        for record in texts:
            train.stats.add(record)
            writer.write(record)
        held_out.write_to(writer)
    return combine_origins([*train.stats.origins, *held_out.stats.origins])


def _write_rows(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def _log_plan(plan: SplitPlan, job: Job) -> None:
    if plan.source is None:
        job.say("no seeds: the teacher generates from nothing")
        return
    held_out = sum(side == "held_out" for side in plan.sides.values())
    kind, group_noun = _SEED_NOUNS[get_seed_kind(plan.source.items[0])]
    message = f"{len(plan.sides)} {group_noun}, {held_out} held out"
    train, held_out_items = len(plan.items["train"]), len(plan.items["held_out"])
    if kind != group_noun or train + held_out_items != len(plan.sides):
        message += f"; {train} {kind} to train on, {held_out_items} held out"
    job.say(message)
    for reason, count in plan.source.dropped.items():
        job.say(f"{count} rows of {plan.source.path} left out: {reason}")


def _list_parents(recipe: SynthRecipe, plan: SplitPlan, model: TextModel, job: Job) -> list[Parent]:
    teacher = Parent("teacher", recipe.model, model.fingerprint, "checkpoint")
    if plan.source is None:
        return [teacher]
    role = get_seed_kind(plan.source.items[0])
    return [make_parent(role, resolve_local(recipe.start), job.out), teacher]


def run_graph(recipe: SynthRecipe, job: Job, models: ModelPool) -> Artifact:
    """Run the job of a recipe with steps.

    Raises:
        DataError: If there are no inputs, or no training record is kept.
        BackendError: If a teacher fails; finished units are in the caches.
    """
    with ExitStack() as closing:
        return _run_graph_job(recipe, job, models, closing)


def _run_graph_job(
    recipe: SynthRecipe, job: Job, models: ModelPool, closing: ExitStack
) -> Artifact:
    inputs = read_inputs(recipe)
    costs = CostTracker(recipe.budget)
    caches = RunCache.of(job)

    comparison = DiversityComparison(list_seed_texts(inputs))

    def run_side(split: Split, held_out_records: Sequence[Record]) -> GraphResult:
        return _run_graph_split(
            recipe, inputs, split, held_out_records, models, caches, job, costs, closing, comparison
        )

    try:
        held_out = run_side("held_out", ())
        train = run_side("train", list(held_out.split_result.kept))
    finally:
        caches.close()
    records = train.split_result.kept
    if not records:
        raise make_no_records_error(train)
    if train.split_result.stats.synthetic_texts and recipe.mix is None:
        comparison.start(train.split_result.stats.synthetic_texts)
    mixture = mix_records(records, recipe.mix, seed=recipe.seed) if recipe.mix else None
    left_out = mixture.dropped if mixture is not None else ()

    def dropped() -> Iterator[RejectedRecord]:
        return chain(held_out.split_result.dropped, train.split_result.dropped, left_out)

    train_stats = _write_graph_records(job.output / "records.jsonl", train, held_out, mixture)
    _write_rows(job.output / "dropped.jsonl", (row.to_json() for row in dropped()))
    _write_rows(job.output / "scores.jsonl", chain(train.scores, held_out.scores))
    report = make_graph_report(recipe, inputs, (held_out, train), mixture, train_stats, costs)
    with atomic_write(job.output / "report.json") as file:
        json.dump(report, file, ensure_ascii=False, indent=1, sort_keys=True)
    page_input = ReportInput(
        report,
        train_stats,
        held_out.split_result.stats,
        dropped(),
        comparison,
        [step.model or recipe.model for step in recipe.steps.values() if step.generator],
        [check for step in recipe.steps.values() for check in step.filters],
    )
    with atomic_write(job.output / "report.html") as file:
        file.write(render_report(page_input))
    stopped_by = costs.reached()
    if stopped_by:
        job.say(f"warning: {len(records)} training records kept; {stopped_by}")
    origin = combine_origins([*train_stats.origins, *held_out.split_result.stats.origins])
    return job.finish(
        "records",
        parents=_list_graph_parents(recipe, inputs, models, job),
        origin=origin.to_json(),
        details={"counts": report["splits"]},
        is_timed=is_report_page,
    )


def _run_graph_split(
    recipe: SynthRecipe,
    inputs: PipelineInputs,
    split: Split,
    held_out: Sequence[Record],
    models: ModelPool,
    caches: RunCache,
    job: Job,
    costs: CostTracker,
    closing: ExitStack,
    comparison: DiversityComparison,
) -> GraphResult:
    target = recipe.target
    target_size = target.train if split == "train" else target.held_out
    if split == "held_out" and not recipe.held_out:
        target_size = 0
    share = 1.0
    if split == "held_out":
        known = target.held_out < UNLIMITED or target.train < UNLIMITED
        share = target.held_out / (target.held_out + target.train) if known else recipe.held_out
    context = inputs.context(models, held_out, recipe.seed)
    scratch = job.scratch / split
    graph = PipelineExecutor(recipe, inputs, split, context, caches, scratch, job.check_cancelled)
    total = target_size if target_size < UNLIMITED else 0
    with job.phase(f"making {split} records", total, "records") as progress:

        def show(graph_result: GraphResult) -> None:
            result = graph_result.split_result
            if split == "train" and recipe.mix is None:
                comparison.look_ahead(result.stats.synthetic_texts)
            note = f"{result.asked} asked, {len(result.dropped)} dropped, {costs.note()}"
            progress.advance(len(result.kept) - progress.done, note)

        return graph.run(target_size, closing, costs, share, show)


def _write_graph_records(
    path: Path, train: GraphResult, held_out: GraphResult, mixture: MixtureResult | None
) -> RecordStats:
    """Write the records of both sides; return the statistics of the training records."""
    train_stats = train.split_result.stats
    with RecordWriter(path) as writer:
        if mixture is None:
            train.split_result.write_to(writer)
        else:
            train_stats = RecordStats()
            for record in train_stats.watch(mixture.records):
                writer.write(record)
        held_out.split_result.write_to(writer)
    return train_stats


def _list_graph_parents(
    recipe: SynthRecipe, inputs: PipelineInputs, models: ModelPool, job: Job
) -> list[Parent]:
    parents = []
    for name, reference in (("index", recipe.index), ("seeds", recipe.seeds)):
        if reference and name in inputs.sources:
            role = get_seed_kind(inputs.sources[name].items[0])
            parents.append(make_parent(role, resolve_local(reference), job.out))
    mixed_references = recipe.mix.records if recipe.mix else ()
    parents += [
        make_parent("mixed in", resolve_local(reference), job.out) for reference in mixed_references
    ]
    teachers = {
        step.model or recipe.model for step in recipe.steps.values() if step.generator is not None
    }
    for reference in sorted(teachers):
        model = models.text_model(reference)
        parents.append(Parent("teacher", reference, model.fingerprint, "checkpoint"))
    return parents


def outline(recipe: SynthRecipe) -> list[str]:
    """Return lines that draw the steps of a graph."""
    return format_graph(recipe)
