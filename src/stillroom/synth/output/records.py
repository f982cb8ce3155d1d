"""Records of a run: writes both sides of the split; ``pipeline.executor`` generates and filters."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, count_noun
from stillroom.jobs import Job, MessageLog, atomic_write, tell_warnings
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact, Parent, make_parent
from stillroom.records import Passage, Record, RecordWriter, combine_origins
from stillroom.synth.filters.decontaminate import Decontaminate
from stillroom.synth.filters.reworded import Reworded
from stillroom.synth.interfaces import FilterResult
from stillroom.synth.model_pool import ModelPool
from stillroom.synth.output.page import ReportInput, is_report_page, render_report
from stillroom.synth.pipeline.executor import PipelineExecutor, RunCache, to_record
from stillroom.synth.pipeline.filter_chain import FilterChain
from stillroom.synth.pipeline.inputs import PipelineInputs, list_train_items, read_inputs
from stillroom.synth.pipeline.results import CostTracker, SplitResult, reject_record
from stillroom.synth.pipeline.statistics import RecordStats
from stillroom.synth.pipeline.steps import UNLIMITED, GenerateStep, GeneratorPipeline
from stillroom.synth.prompting.requests import UNANSWERED
from stillroom.synth.seeds import SeedSet
from stillroom.synth.selection import (
    MixtureResult,
    judge_existing,
    mix_records,
    read_existing,
    refuse_unknown,
)
from stillroom.synth.types import RejectedRecord, Split, get_item_text, get_seed_kind

if TYPE_CHECKING:
    from stillroom.synth.jobs.records import RecordsRecipe

__all__ = [
    "UnitPreview",
    "describe_shortfall",
    "make_report",
    "preview_records",
    "require_records",
    "write_records",
]

_TEST_ITEM_FILTERS = (Decontaminate, Reworded)


@dataclass(frozen=True, slots=True)
class UnitPreview:
    """One unit of a preview: its key, and every record with its verdict.

    ``unit`` is empty for a unit of steps.
    """

    unit: str
    records: tuple[tuple[Record, str, FilterResult], ...]
    failures: tuple[tuple[str, str], ...]


def write_records(recipe: RecordsRecipe, job: Job) -> Artifact:
    """Write the records of a recipe to the job's output.

    Writes ``records.jsonl``, ``dropped.jsonl`` with the reason of each rejection, ``report.json``,
    ``report.html``, and for a pipeline of steps ``scores.jsonl``.

    Raises:
        DataError: If there are no inputs, or no training record is kept (``synth.nothing-kept``).
        BackendError: If a teacher fails; finished units are in the caches.
    """
    inputs = read_inputs(recipe)
    _log_inputs(inputs, job)
    with (
        ExitStack() as files,
        _open_model_pool(recipe, job) as models,
        closing(RunCache.of(job)) as caches,
    ):
        costs = CostTracker(recipe.budget)
        run = _RecordsRun(recipe, inputs, job, models, caches, files, costs)
        compares = any(isinstance(check, _TEST_ITEM_FILTERS) for check in recipe.filters)
        if not (compares and recipe.held_out):
            run.check_origins(None)
        held_out = run.run_split("held_out", ())
        if compares and recipe.held_out:
            run.check_origins(held_out.records)
        train = run.run_split("train", list(held_out.records))
        require_records(train, recipe, run.costs.reached())
        return run.write(train, held_out)


@dataclass(frozen=True, slots=True)
class _RecordsRun:
    """What both sides of the split share."""

    recipe: RecordsRecipe
    inputs: PipelineInputs
    job: Job
    models: ModelPool
    caches: RunCache
    files: ExitStack
    costs: CostTracker

    def run_split(self, split: Split, held_out: Sequence[Record]) -> SplitResult:
        """Generate the records of one side."""
        recipe, job = self.recipe, self.job
        target, share = recipe.get_target(split), 1.0
        if split == "held_out":  # runs first, and must leave budget for training
            both = target + recipe.get_target("train")
            share = target / both if both < UNLIMITED else recipe.held_out
            target = target if recipe.held_out else 0
        context = self.inputs.context(self.models, held_out, recipe.seed)
        executor = PipelineExecutor(
            recipe,
            self.inputs,
            split,
            context,
            self.caches,
            job.scratch / split,
            job.check_cancelled,
        )
        if not target:
            return executor.run(target, self.files, self.costs, share, lambda _: None)
        total = target if target < UNLIMITED else 0
        check = self._make_origin_check(split)
        with job.phase(f"generating {split} records", total, "records") as progress:

            def show(result: SplitResult) -> None:
                check(result)
                progress.advance(
                    len(result.records) - progress.done,
                    lambda: ", ".join(_describe_effort(result, self.costs)),
                )

            return executor.run(target, self.files, self.costs, share, show)

    def check_origins(self, held_out: Sequence[Record] | None) -> None:
        """Refuse a mixture that is certain to have records of unknown origin, before it is made.

        Args:
            held_out: Held-out records, for filters that compare with them; None before there are
                any: then a row that the seeds contain may yet be left out, as held out here.

        Raises:
            DataError: If such a record will come in (``synth.unknown-origin``).
        """
        settings = self.recipe.mix
        if settings is None or settings.unknown != "refuse":
            return
        existing = read_existing(settings)
        passed = {row.messages for row in existing if row.origin.kind != "unknown"}
        if held_out is None and self.recipe.held_out:
            items = (item for source in self.inputs.sources.values() for item in source.items)
            passed |= {item.messages for item in items if isinstance(item, Record)}
        rows = [row for row in existing if row.origin.kind == "unknown"]
        rows = [row for row in rows if row.messages not in passed]
        judge = partial(self._judge_existing, held_out=held_out or (), used=[])
        verdicts = judge_existing(rows, judge)
        refuse_unknown((row for row, verdict in verdicts if verdict.keep), settings)
        train_items = list_train_items(self.inputs)
        if any(isinstance(item, Passage) and item.origin.kind == "unknown" for item in train_items):
            refuse_unknown(self._make_passage_records(held_out or ())[0], settings)
        if not any(isinstance(step, GenerateStep) for step in self.recipe.steps.values()):
            known = _list_ids(existing)
            seeds = [to_record(item, "train") for item in train_items]
            if all(row.origin.kind == "unknown" and row.id not in known for row in seeds):
                refuse_unknown(seeds, settings)  # whatever the filters keep

    def _make_origin_check(self, split: Split) -> Callable[[SplitResult], None]:
        """Return a check that refuses a kept record as soon as the mixture is certain to."""
        settings = self.recipe.mix
        if split != "train" or settings is None or settings.unknown != "refuse":
            return lambda _: None

        @cache
        def list_known() -> set[str]:
            return _list_ids(read_existing(settings))

        def check(result: SplitResult) -> None:
            count = result.stats.kinds["unknown"]
            if count and count > len(list_known()):
                rows = (row for row in result.records if row.id not in list_known())
                refuse_unknown(rows, settings)

        return check

    def write(self, train: SplitResult, held_out: SplitResult) -> Artifact:
        """Mix the training records if asked, write all files and publish them."""
        recipe, job = self.recipe, self.job
        texts, rejected_texts, used = self._make_passage_records(held_out.records)
        mixture = None
        if recipe.mix is not None:
            judge = partial(self._judge_existing, held_out=list(held_out.records), used=used)
            new_records = [*train.records, *texts]
            mixture = mix_records(new_records, recipe.mix, judge=judge, seed=recipe.seed)
            _report_mixture(mixture, train.records, job)
        self.caches.commit(job, [*held_out.used, *train.used, *used])
        stats = _write_records(job.output / "records.jsonl", train, texts, mixture, held_out)

        def rejected() -> Iterator[RejectedRecord]:
            left_out = mixture.dropped if mixture is not None else ()
            return chain(held_out.rejected, train.rejected, rejected_texts, left_out)

        _write_rows(job.output / "dropped.jsonl", (row.to_json() for row in rejected()))
        report = make_report(recipe, self.inputs, (held_out, train), mixture, stats, self.costs)
        if isinstance(recipe.pipeline, GeneratorPipeline):
            reasons = Counter(f"{row.filter}: {row.reason}" for row in rejected_texts)
            dropped = dict(sorted(reasons.items()))
            report["passage_records"] = {"kept": len(texts), "dropped": dropped}
        else:
            _write_rows(job.output / "scores.jsonl", chain(train.scores, held_out.scores))
        with atomic_write(job.output / "report.json") as file:
            json.dump(report, file, ensure_ascii=False, indent=1, sort_keys=True)
        teachers = recipe.list_teachers(
            name for side in (train, held_out) for name, step in side.steps.items() if step.asked
        )
        seeds = [get_item_text(item) for item in list_train_items(self.inputs)]
        page_input = ReportInput(
            report, stats, held_out.stats, rejected(), seeds, teachers, recipe.filters
        )
        with atomic_write(job.output / "report.html") as file:
            file.write(render_report(page_input))
        for result in (held_out, train):
            if warning := describe_shortfall(result, recipe, self.costs.reached()):
                job.warn(warning)
        if warning := _describe_unanswered(held_out, train):
            job.warn(warning)
        return job.finish(
            "records",
            parents=_list_parents(recipe, self.inputs, teachers, self.models, job),
            origin=combine_origins([*stats.origins, *held_out.stats.origins]).to_json(),
            details={"counts": report["splits"]},
            is_timed=is_report_page,
        )

    def _make_passage_records(
        self, held_out: Sequence[Record]
    ) -> tuple[list[Record], list[RejectedRecord], list[str]]:
        """Return train passages as plain-text records, those a filter rejected, and the scores.

        Scores are named as in ``StepStats.used``.
        """
        records: list[Record] = []
        rejected: list[RejectedRecord] = []
        used: list[str] = []
        pipeline = self.recipe.pipeline
        if not isinstance(pipeline, GeneratorPipeline) or not pipeline.include_passages:
            return records, rejected, used
        context = self.inputs.context(self.models, list(held_out), self.recipe.seed)
        filters = [check for check in pipeline.filters if check.accepts_passages]
        measures = self.caches.open("measures")
        filter_chain = FilterChain(filters, context, measures)
        for passage in list_train_items(self.inputs):
            if not isinstance(passage, Passage) or len(records) >= pipeline.include_passages:
                break  # only documents are included as plain text
            record = to_record(passage, "train")
            name, verdict = filter_chain.judge(record)
            used += [f"{measures.name}/{key}" for key in filter_chain.used]
            if verdict.keep:
                filter_chain.on_accept(verdict.changed or record)
                records.append(verdict.changed or record)
            else:
                rejected.append(reject_record("train", name, verdict, passage.id, record))
        return records, rejected, used

    def _judge_existing(
        self, records: Sequence[Record], *, held_out: Sequence[Record], used: list[str]
    ) -> Iterator[FilterResult]:
        """Yield verdicts on existing training records by the recipe's filters of test items.

        A conversation that is held out here is always rejected. Adds the scores to ``used``.
        """
        checks = [check for check in self.recipe.filters if isinstance(check, _TEST_ITEM_FILTERS)]
        measures = self.caches.open("measures")
        context = self.inputs.context(self.models, held_out, self.recipe.seed)
        filter_chain = FilterChain(checks, context, measures)
        held_out_messages = {record.messages for record in held_out}
        for first in range(0, len(records), self.recipe.batch_size):
            self.job.check_cancelled()
            batch = records[first : first + self.recipe.batch_size]
            if filter_chain.needs_model:
                filter_chain.prefetch(batch)
            for record in batch:
                _, verdict = filter_chain.judge(record)
                used += [f"{measures.name}/{key}" for key in filter_chain.used]
                is_held_out = record.messages in held_out_messages
                yield FilterResult(False, "held out here", 0.0) if is_held_out else verdict


def preview_records(
    recipe: RecordsRecipe, n: int = 5, *, log: MessageLog | None = None
) -> Iterator[UnitPreview]:
    """Yield the first ``n`` training units with every verdict, writing nothing.

    No held-out records are generated, so ``decontaminate`` has nothing to compare with. Settings
    without effect are reported to ``log``, or as Python warnings.
    """
    tell_warnings(recipe.describe_unused(), log)
    recipe = recipe.model_copy(update={"batch_size": min(n, recipe.batch_size)})
    inputs = read_inputs(recipe)
    with (
        _open_model_pool(recipe) as models,
        tempfile.TemporaryDirectory() as folder,
        closing(RunCache(Path(folder) / "units")) as caches,
    ):
        context = inputs.context(models, (), recipe.seed)
        executor = PipelineExecutor(recipe, inputs, "train", context, caches, Path(folder))
        for batch in executor.preview(n):
            judged = [(scored.record, "", FilterResult(True)) for scored in batch.records]
            failures = []
            for row in (row for stats in batch.stats for row in stats.dropped):
                step = f"{row.step}/" if row.step else ""
                if row.record is not None:
                    verdict = FilterResult(False, row.reason, row.score, row.limit)
                    judged.append((row.record, f"{step}{row.filter}", verdict))
                else:
                    failures.append((f"{step}{row.reason}", row.text))
            yield UnitPreview(batch.unit, tuple(judged), tuple(failures))


@contextmanager
def _open_model_pool(recipe: RecordsRecipe, job: Job | None = None) -> Iterator[ModelPool]:
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
        "others": engine.fallbacks or None,
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


def _write_records(
    path: Path,
    train: SplitResult,
    texts: Sequence[Record],
    mixture: MixtureResult | None,
    held_out: SplitResult,
) -> RecordStats:
    """Write the records of both sides; return the statistics of the training records."""
    stats = train.stats
    with RecordWriter(path) as writer:
        if mixture is None:
            train.records.copy_to(writer)
            for record in stats.watch(texts):
                writer.write(record)
        else:
            stats = RecordStats()
            for record in stats.watch(mixture.records):
                writer.write(record)
        held_out.records.copy_to(writer)
    return stats


def _write_rows(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def _log_inputs(inputs: PipelineInputs, job: Job) -> None:
    if not inputs.sources:
        job.say("no seeds: the teacher generates from nothing")
    for name, source in inputs.sources.items():
        train, held_out = len(inputs.items[name, "train"]), len(inputs.items[name, "held_out"])
        kind = get_seed_kind(source.items[0])
        job.say(f"{name}: {train} {kind} to train on, {held_out} held out")
        for reason, count in source.dropped.items():
            job.warn(f"{count_noun(count, 'row')} of {source.path} left out: {reason}")
        if source.unclear:
            job.warn(_describe_unclear(source))


def _list_ids(existing: Sequence[Record]) -> set[str]:
    """Return the ids of existing records as a mixture has them."""
    return {row.id for row, _ in judge_existing(existing, None)}


def _describe_unclear(source: SeedSet) -> str:
    """Return a warning with the number of rows that may be test rows but are not read as such."""
    names = sorted(source.unclear)
    shown = ", ".join(f"{name:.60}" for name in names[:3]) + (", …" if len(names) > 3 else "")
    count = sum(source.unclear.values())
    return (
        f"{count_noun(count, 'row')} of {source.path} may be test rows (split: {shown}), but are "
        "used as others; set split to test to leave them out of training"
    )


def _list_parents(
    recipe: RecordsRecipe,
    inputs: PipelineInputs,
    teachers: Iterable[str],
    models: ModelPool,
    job: Job,
) -> list[Parent]:
    parents = []
    for reference, source in zip(
        filter(None, (recipe.index, recipe.seeds)), inputs.sources.values(), strict=True
    ):
        role = get_seed_kind(source.items[0])
        parents.append(make_parent(role, resolve_local(reference), job.out))
    mixed_references = recipe.mix.records if recipe.mix else ()
    parents += [
        make_parent("mixed in", resolve_local(reference), job.out) for reference in mixed_references
    ]
    for reference in sorted(set(teachers)):
        fingerprint = models.text_model(reference).fingerprint
        parents.append(Parent("teacher", reference, fingerprint, "checkpoint"))
    return parents


def require_records(result: SplitResult, recipe: RecordsRecipe, stopped_by: str = "") -> None:
    """Raise an error if there is no training record.

    ``stopped_by`` names the bound that stopped the generation.

    Raises:
        DataError: With the count of every reason.
    """
    if result.records:
        return
    reasons = "; ".join(f"{count} {reason}" for reason, count in result.count_reasons().items())
    raise DataError(
        "no training record is kept"
        + (f" of {count_noun(result.requests, 'request')}" if result.requests else "")
        + (f" ({reasons})" if reasons else "")
        + (f"; {stopped_by}" if stopped_by else ""),
        code="synth.nothing-kept",
        where=recipe.index or recipe.seeds or "",
        expected="at least one record that passes every filter",
        next=f"raise {stopped_by.partition(':')[0]}"
        if stopped_by
        else "inspect some with: stillroom synth preview RECIPE; then loosen the filter or "
        "change the teacher",
    )


def describe_shortfall(result: SplitResult, recipe: RecordsRecipe, stopped_by: str = "") -> str:
    """Return a warning if fewer records were kept than targeted, or an empty string.

    ``stopped_by`` names the bound that stopped the generation.
    """
    target = recipe.get_target(result.split)
    num_records = len(result.records)
    is_empty = result.split == "held_out" and not recipe.held_out
    if is_empty or num_records >= target or (target >= UNLIMITED and not stopped_by):
        return ""
    reasons = list(result.count_reasons().items())[:3]
    main_reasons = "; ".join(f"{count} {reason}" for reason, count in reasons)
    main_reasons = main_reasons or ("none dropped" if result.requests else "no seeds")
    wanted = f" of {target}" if target < UNLIMITED else ""
    asked = f" after {count_noun(result.requests, 'request')}" if result.requests else ""
    cause = stopped_by or "all seeds and attempts are used"
    return f"{num_records}{wanted} {result.split} records kept{asked} ({main_reasons}); {cause}"


def _describe_unanswered(*results: SplitResult) -> str:
    """Return a warning with the number of requests without an answer, or an empty string."""
    reasons = [pair for result in results for pair in result.reasons.items()]
    count = sum(num for name, num in reasons if name.partition(": ")[2] in UNANSWERED)
    requests = count_noun(sum(result.requests for result in results), "request")
    again = "the same command with --overwrite asks for their units again"
    return f"{count} of {requests} had no answer from the server; {again}" if count else ""


def _describe_effort(result: SplitResult, costs: CostTracker) -> Iterator[str]:
    """Yield the parts of a progress note; of a generator that asks no model, no requests."""
    if result.requests:
        yield count_noun(result.requests, "request")
    yield f"{len(result.rejected)} rejected"
    if result.requests:
        yield costs.note()


def make_report(
    recipe: RecordsRecipe,
    inputs: PipelineInputs,
    results: Sequence[SplitResult],
    mixture: MixtureResult | None,
    train_stats: RecordStats,
    costs: CostTracker,
) -> dict[str, Any]:
    """Return the contents of report.json; of steps, with the totals of each."""
    pipeline = recipe.pipeline
    sources = {
        name: {"seeds": len(source.items), "dropped": dict(source.dropped)}
        for name, source in inputs.sources.items()
    }
    report: dict[str, Any] = {
        "splits": {result.split: _describe_split(recipe, inputs, result) for result in results},
        "spent": costs.to_json(),
        **({"mix": _describe_mixture(recipe, mixture)} if mixture is not None else {}),
    }
    if isinstance(pipeline, GeneratorPipeline):
        return report | {
            "source": next(iter(sources.values()), {"seeds": 0, "dropped": {}}),
            "generator": pipeline.generator.model_dump(mode="json"),
            "filters": [check.model_dump(mode="json") for check in pipeline.filters],
            "described": pipeline.generator.describe(results[-1].records),
        }
    return report | {
        "steps": {
            name: {"from": list(recipe.sources[name]), "does": step.method_names}
            for name, step in recipe.steps.items()
        },
        "source": sources,
        "origins": {kind: train_stats.kinds[kind] for kind in ("human", "synthetic", "unknown")},
    }


def _describe_split(
    recipe: RecordsRecipe, inputs: PipelineInputs, result: SplitResult
) -> dict[str, Any]:
    target = recipe.get_target(result.split)
    split = {
        "documents": sum(side == result.split for side in inputs.sides.values()),
        "seeds": sum(
            len(items) for (_, side), items in inputs.items.items() if side == result.split
        ),
        **({"wanted": target} if target < UNLIMITED else {}),
        "asked": result.requests,
        "kept": len(result.records),
        "dropped": result.count_reasons(),
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
    }
    summaries = {step: dict(summary) for step, summary in result.filter_summaries.items()}
    if isinstance(recipe.pipeline, GeneratorPipeline):
        generate = result.steps["generate"]
        return split | {
            "units": generate.units,
            "parsed": generate.given,
            "trimmed": result.trimmed,
            **({"changed": result.changed} if result.changed else {}),
            **({"measured": summaries["filter"]} if summaries else {}),
            "counts": dict(sorted(generate.counts.items())),
        }
    return split | {
        "units": result.units,
        "parsed": result.parsed,
        "changed": result.changed,
        "steps": {name: totals.to_json() for name, totals in result.steps.items()},
        **({"measured": summaries} if summaries else {}),
    }


def _report_mixture(mixture: MixtureResult, new_records: Sequence[Record], job: Job) -> None:
    """Log what the mixture holds; a warning if no generated record is in it."""
    reasons = Counter(row.reason for row in mixture.dropped)
    dropped = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    new_ids = {record.id for record in new_records}
    new = sum(record.id in new_ids for record in mixture.records)
    (job.say if new else job.warn)(
        f"mix: {count_noun(len(mixture.records), 'training record')}, {new} of them generated "
        "here; left out: "
        f"{dropped or 'none'}"
    )


def _describe_mixture(recipe: RecordsRecipe, mixture: MixtureResult) -> dict[str, Any]:
    settings = recipe.mix.model_dump(mode="json") if recipe.mix is not None else {}
    reasons = Counter(row.reason for row in mixture.dropped)
    return {
        "rule": settings.get("rule"),
        "human_share": settings.get("human_share"),
        "unknown": settings.get("unknown"),
        "there before": mixture.before,
        "written": len(mixture.records),
        "dropped": dict(sorted(reasons.items())),
    }
