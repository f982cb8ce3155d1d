"""The job: split documents, ask and judge the held-out side, then the training side, write.

The held-out side comes first, so that training records can be kept clear of it. Every finished unit
is journaled; a killed run goes on with ``--resume`` and ends with the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.jobs import Estimate, Job, atomic_write
from stillroom.provenance import LEDGER, Artifact, Parent, digest_json, make_parent
from stillroom.records import Message, Passage, Record, RecordWriter, combine_origins
from stillroom.synth.budget import Purse
from stillroom.synth.harvest import Dropped, Harvest, Panel, draft_units, gather
from stillroom.synth.method import Context, Filter, Seed, Split, Verdict
from stillroom.synth.plan import order_passages, plan_seeds, split_documents
from stillroom.synth.recipe import SynthRecipe
from stillroom.synth.report import describe_shortfall, make_report, refuse_nothing
from stillroom.synth.source import Source, read_source
from stillroom.synth.wording import content_stems

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Preview", "estimate", "preview", "run"]

_TOKENS_A_SECOND = 60.0
_PROMPT_TOKENS_A_SECOND = 250.0
_KEPT_SHARE = 0.5
_SPLITS: tuple[Split, ...] = ("held_out", "train")


@dataclass(frozen=True, slots=True)
class Preview:
    """One unit of a preview: what was asked about, and every record with its verdict."""

    seed: Seed
    records: tuple[tuple[Record, str, Verdict], ...]
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    source: Source
    sides: Mapping[str, Split]
    passages: Mapping[Split, list[Passage]]
    frequency: Mapping[str, int]

    def context(self, held_out: Sequence[Record] = ()) -> Context:
        by_id = {passage.id: passage for passage in self.source.passages}
        return Context(by_id, self.frequency, held_out)


def run(recipe: SynthRecipe, job: Job) -> Artifact:
    """Write the records of a recipe into the job's output.

    Raises:
        DataError: If there is no passage, or no record is kept (``synth.nothing-kept``).
        BackendError: If the teacher fails; what was asked before is in the journal.
    """
    plan = _make_plan(recipe)
    _say_plan(plan, job)
    purse = Purse(recipe.budget)
    with _open_teacher(recipe, job.say) as model:
        held_out = _harvest(recipe, plan, "held_out", plan.context(), model, job, purse)
        context = plan.context(held_out.kept)
        train = _harvest(recipe, plan, "train", context, model, job, purse)
    harvests = (held_out, train)
    refuse_nothing(train, recipe)
    texts, refused = _passage_records(recipe, plan, context)
    dropped = [*held_out.dropped, *train.dropped, *refused]
    _write_records(job.output / "records.jsonl", [*train.kept, *texts, *held_out.kept])
    _write_rows(job.output / "dropped.jsonl", (drop.to_json() for drop in dropped))
    report = make_report(
        recipe, plan.source, plan.sides, plan.passages, harvests, len(texts), refused
    )
    report["spent"] = purse.to_json()
    with atomic_write(job.output / "report.json") as file:
        json.dump(report, file, ensure_ascii=False, indent=1, sort_keys=True)
    ended = purse.reached()
    for shortfall in filter(None, (describe_shortfall(one, recipe, ended) for one in harvests)):
        job.say(shortfall)
    origin = combine_origins(record.origin for record in (*train.kept, *texts, *held_out.kept))
    return job.finish(
        "records",
        parents=_parents(recipe, plan, model, job),
        origin=origin.to_json(),
        details={"counts": report["splits"], "teacher": model.fingerprint},
    )


def estimate(recipe: SynthRecipe) -> Estimate:
    """Return what the job will need, from its targets and the size of the teacher's file."""
    wanted = recipe.target.train + (recipe.target.held_out if recipe.held_out else 0)
    generator = recipe.generator
    asks = wanted / _KEPT_SHARE * max(1.0, generator.asks / getattr(generator, "questions", 1))
    seconds = asks * (generator.longest / 4 / _TOKENS_A_SECOND + 100 / _PROMPT_TOKENS_A_SECOND)
    model = Path(recipe.model)
    weights = model.stat().st_size if model.is_file() else 400_000_000
    index = Path(recipe.index)
    names = ("passages.jsonl", LEDGER)
    files = [index] if index.is_file() else [f for name in names for f in index.rglob(name)]
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
    plan = _make_plan(recipe)
    panel = Panel(recipe.filters, plan.context())
    seeds = list(_seeds(recipe, plan, "train"))[:n]
    with _open_teacher(recipe) as model:
        shelf: dict[str, Any] = {}
        drafts = draft_units(
            seeds, recipe.generator, model, _Forgetting(shelf), batch_size=recipe.batch_size
        )
        for seed, draft in zip(seeds, drafts, strict=True):
            judged = []
            for record in draft.records:
                name, verdict = panel.judge(record)
                if verdict.keep:
                    panel.admit(record)
                judged.append((record, name, verdict))
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
    source = read_source(recipe.index)
    documents = {passage.document_id for passage in source.passages}
    sides = split_documents(documents, recipe.held_out, recipe.seed)
    passages: dict[Split, list[Passage]] = {
        side: order_passages(
            (passage for passage in source.passages if sides[passage.document_id] == side),
            recipe.seed,
        )
        for side in _SPLITS
    }
    frequency: Counter[str] = Counter()
    for passage in source.passages:
        frequency.update(set(content_stems(passage.text)))
    return _Plan(source, sides, passages, frequency)


def _seeds(recipe: SynthRecipe, plan: _Plan, split: Split) -> Iterator[Seed]:
    return plan_seeds(plan.passages[split], split, seed=recipe.seed, attempts=recipe.attempts)


def _harvest(
    recipe: SynthRecipe,
    plan: _Plan,
    split: Split,
    context: Context,
    model: TextModel,
    job: Job,
    purse: Purse,
) -> Harvest:
    wanted = recipe.target.train if split == "train" else recipe.target.held_out
    if not plan.passages[split]:
        wanted = 0
    # The shelf is named by the model: a resume with another teacher must not mix the two.
    journal = job.journal(f"units-{digest_json(model.fingerprint)[:12]}")
    panel = Panel(recipe.filters, context)
    drafts = draft_units(
        _seeds(recipe, plan, split),
        recipe.generator,
        model,
        journal,
        batch_size=recipe.batch_size,
        pause=job.check_cancelled,
    )
    with job.phase(f"asking for {split} records", wanted, "records") as progress:

        def show(harvest: Harvest) -> None:
            news = len(harvest.kept) - progress.done
            progress.advance(
                news, f"{harvest.asked} asked, {len(harvest.dropped)} dropped, {purse.note()}"
            )

        share = 1.0
        if split == "held_out":  # which comes first, and must leave enough for training
            share = recipe.target.held_out / (recipe.target.held_out + recipe.target.train)
        return gather(split, drafts, panel, wanted, show, purse, share)


@contextmanager
def _open_teacher(
    recipe: SynthRecipe, say: Callable[[str], None] | None = None
) -> Iterator[TextModel]:
    from stillroom.models import open_text_model

    engine = recipe.engine
    told = {
        "concurrency": engine.concurrency,
        "requests_per_minute": engine.requests_per_minute,
    }
    model = open_text_model(
        recipe.model,
        backend=engine.backend,
        cache=Path(recipe.cache) if recipe.cache else None,
        num_threads=engine.num_threads,
        context_length=engine.context_length,
        say=say,
        **{name: value for name, value in told.items() if value is not None},
    )
    try:
        yield model
    finally:
        model.close()


def _passage_records(
    recipe: SynthRecipe, plan: _Plan, context: Context
) -> tuple[list[Record], list[Dropped]]:
    """Return train passages as plain-text records, and those a filter refused."""
    filters: list[Filter] = [chosen for chosen in recipe.filters if chosen.judges_passages]
    panel = Panel(filters, context)
    kept: list[Record] = []
    dropped: list[Dropped] = []
    for passage in plan.passages["train"]:
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
            panel.admit(record)
            kept.append(record)
        else:
            dropped.append(
                Dropped("train", name, verdict.reason, passage.id, verdict.score, record)
            )
    return kept, dropped


def _write_records(path: Path, records: Sequence[Record]) -> None:
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)


def _write_rows(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def _say_plan(plan: _Plan, job: Job) -> None:
    held_out = sum(side == "held_out" for side in plan.sides.values())
    job.say(
        f"{len(plan.sides)} documents, {held_out} held out; {len(plan.passages['train'])} passages "
        f"to train on, {len(plan.passages['held_out'])} held out"
    )
    for reason, count in plan.source.dropped.items():
        job.say(f"{count} rows of {plan.source.path} left out: {reason}")


def _parents(recipe: SynthRecipe, plan: _Plan, model: TextModel, job: Job) -> list[Parent]:
    parent = make_parent("passages", Path(recipe.index), job.out)
    return [parent, Parent("teacher", recipe.model, model.fingerprint, "checkpoint")]
