"""The job of a graph: both sides of the split through its steps, mixed, written, and reported."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.jobs import Job, atomic_write
from stillroom.objects import local
from stillroom.provenance import Artifact, Parent, make_parent
from stillroom.records import Record, RecordWriter, combine_origins
from stillroom.synth.budget import Purse
from stillroom.synth.comparing import Comparison
from stillroom.synth.crop import Crop
from stillroom.synth.graph_run import Graph
from stillroom.synth.graph_starts import Start, read_starts
from stillroom.synth.items import kind_of, text_of_item
from stillroom.synth.lending import Lending
from stillroom.synth.method import Split, Verdict
from stillroom.synth.mixing import Mixed, mix_records
from stillroom.synth.outline import forecast_steps
from stillroom.synth.page import Told, draw_run, is_page
from stillroom.synth.recipe import EVERYTHING
from stillroom.synth.shelves import Shelves
from stillroom.synth.tallying import Tally

if TYPE_CHECKING:
    from stillroom.synth.harvest import Dropped
    from stillroom.synth.recipe import SynthRecipe

__all__ = ["preview_graph", "run_graph"]


def run_graph(recipe: SynthRecipe, job: Job, models: Lending) -> Artifact:
    """Do the job of a recipe that has steps.

    Raises:
        DataError: If there is nothing to start from, or no training record is kept.
        BackendError: If a teacher fails; what was asked before is on the shelves.
    """
    with ExitStack() as closing:
        return _run(recipe, job, models, closing)


def _run(recipe: SynthRecipe, job: Job, models: Lending, closing: ExitStack) -> Artifact:
    start = read_starts(recipe)
    purse = Purse(recipe.budget)
    shelves = Shelves.of(job)

    comparison = Comparison(_texts_of(start))

    def harvest(split: Split, aside: Sequence[Record]) -> Crop:
        return _harvest(
            recipe, start, split, aside, models, shelves, job, purse, closing, comparison
        )

    try:
        held_out = harvest("held_out", ())
        train = harvest("train", list(held_out.harvest.kept))
    finally:
        shelves.close()
    new = train.harvest.kept
    if not new:
        raise _nothing_kept(train)
    if train.harvest.tally.made and recipe.mix is None:
        comparison.begin(train.harvest.tally.made)
    mixed = mix_records(new, recipe.mix, seed=recipe.seed) if recipe.mix else None
    left_out = mixed.dropped if mixed is not None else ()

    def dropped() -> Iterator[Dropped]:
        return chain(held_out.harvest.dropped, train.harvest.dropped, left_out)

    trained = _write_records(job.output / "records.jsonl", train, held_out, mixed)
    _write_rows(job.output / "dropped.jsonl", (drop.to_json() for drop in dropped()))
    _write_rows(job.output / "scores.jsonl", chain(train.scores, held_out.scores))
    report = _report(recipe, start, (held_out, train), mixed, trained, purse)
    with atomic_write(job.output / "report.json") as file:
        json.dump(report, file, ensure_ascii=False, indent=1, sort_keys=True)
    told = Told(
        report,
        trained,
        held_out.harvest.tally,
        dropped(),
        comparison,
        [step.model or recipe.model for step in recipe.steps.values() if step.generator],
        [one for step in recipe.steps.values() for one in step.filters],
    )
    with atomic_write(job.output / "report.html") as file:
        file.write(draw_run(told))
    ended = purse.reached()
    if ended:
        job.say(f"warning: {len(new)} training records kept; {ended}")
    origin = combine_origins([*trained.origins, *held_out.harvest.tally.origins])
    return job.finish(
        "records",
        parents=_parents(recipe, start, models, job),
        origin=origin.to_json(),
        details={"counts": report["splits"]},
        is_timed=is_page,
    )


def preview_graph(
    recipe: SynthRecipe, models: Lending, n: int
) -> Iterator[tuple[list[tuple[Record, str, Verdict]], list[tuple[str, str]]]]:
    """Yield what the first units that arrive at the graph's end gave, and what fell on the way."""
    start = read_starts(recipe)
    with tempfile.TemporaryDirectory() as folder:
        shelves = Shelves(Path(folder) / "units")
        context = start.context(models, (), recipe.seed)
        graph = Graph(recipe, start, "train", context, shelves, Path(folder))
        try:
            for bundle in graph.preview(n):
                judged = [(one.record, "", Verdict(True)) for one in bundle.records]
                failures = []
                for drop in (drop for account in bundle.accounts for drop in account.dropped):
                    if drop.record is not None:
                        verdict = Verdict(False, drop.reason, drop.score, drop.limit)
                        judged.append((drop.record, f"{drop.step}/{drop.filter}", verdict))
                    else:
                        failures.append((f"{drop.step}: {drop.reason}", drop.text))
                yield judged, failures
        finally:
            shelves.close()


def _harvest(
    recipe: SynthRecipe,
    start: Start,
    split: Split,
    held_out: Sequence[Record],
    models: Lending,
    shelves: Shelves,
    job: Job,
    purse: Purse,
    closing: ExitStack,
    comparison: Comparison,
) -> Crop:
    target = recipe.target
    wanted = target.train if split == "train" else target.held_out
    if split == "held_out" and not recipe.held_out:
        wanted = 0
    share = 1.0
    if split == "held_out":
        known = target.held_out < EVERYTHING or target.train < EVERYTHING
        share = target.held_out / (target.held_out + target.train) if known else recipe.held_out
    context = start.context(models, held_out, recipe.seed)
    scratch = job.scratch / split
    graph = Graph(recipe, start, split, context, shelves, scratch, job.check_cancelled)
    total = wanted if wanted < EVERYTHING else 0
    with job.phase(f"making {split} records", total, "records") as progress:

        def show(crop: Crop) -> None:
            one = crop.harvest
            if split == "train" and recipe.mix is None:
                comparison.look_ahead(one.tally.made)
            note = f"{one.asked} asked, {len(one.dropped)} dropped, {purse.note()}"
            progress.advance(len(one.kept) - progress.done, note)

        return graph.harvest(wanted, closing, purse, share, show)


def _texts_of(start: Start) -> list[str]:
    """Return the texts that training records start from."""
    return [
        text_of_item(item)
        for (_, side), items in start.items.items()
        if side == "train"
        for item in items
    ]


def _write_records(path: Path, train: Crop, held_out: Crop, mixed: Mixed | None) -> Tally:
    """Write the records of both sides; return the tally of those to train on."""
    trained = train.harvest.tally
    with RecordWriter(path) as writer:
        if mixed is None:
            train.harvest.write_to(writer)
        else:
            trained = Tally()
            for record in trained.watch(mixed.records):
                writer.write(record)
        held_out.harvest.write_to(writer)
    return trained


def _write_rows(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def _report(
    recipe: SynthRecipe,
    start: Start,
    crops: Sequence[Crop],
    mixed: Mixed | None,
    trained: Tally,
    purse: Purse,
) -> dict[str, Any]:
    splits = {}
    for crop in crops:
        one = crop.harvest
        wanted = getattr(recipe.target, one.split)
        splits[one.split] = {
            "documents": sum(side == one.split for side in start.sides.values()),
            "seeds": sum(
                len(items) for (_, side), items in start.items.items() if side == one.split
            ),
            **({"wanted": wanted} if wanted < EVERYTHING else {}),
            "units": one.units,
            "asked": one.asked,
            "parsed": one.parsed,
            "kept": len(one.kept),
            "changed": one.changed,
            "dropped": one.count_reasons(),
            "prompt_tokens": one.prompt_tokens,
            "completion_tokens": one.completion_tokens,
            "steps": {name: yielded.to_json() for name, yielded in crop.steps.items()},
            **({"measured": {k: dict(v) for k, v in crop.told.items()}} if crop.told else {}),
        }
    return {
        "splits": splits,
        "steps": {
            one.step: {"from": list(one.sources), "does": one.does}
            for one in forecast_steps(recipe)
        },
        "source": {
            name: {"seeds": len(source.items), "dropped": dict(source.dropped)}
            for name, source in start.sources.items()
        },
        "origins": {kind: trained.kinds[kind] for kind in ("human", "synthetic", "unknown")},
        "spent": purse.to_json(),
        **({"mix": _tell_mix(recipe, mixed)} if mixed is not None else {}),
    }


def _tell_mix(recipe: SynthRecipe, mixed: Mixed) -> dict[str, Any]:
    settings = recipe.mix.model_dump(mode="json") if recipe.mix is not None else {}
    reasons: dict[str, int] = {}
    for drop in mixed.dropped:
        reasons[drop.reason] = reasons.get(drop.reason, 0) + 1
    return {
        "rule": settings.get("rule"),
        "human_share": settings.get("human_share"),
        "unknown": settings.get("unknown"),
        "there before": mixed.before,
        "written": len(mixed.records),
        "dropped": dict(sorted(reasons.items())),
    }


def _parents(recipe: SynthRecipe, start: Start, models: Lending, job: Job) -> list[Parent]:
    found = []
    for name, place in (("index", recipe.index), ("seeds", recipe.seeds)):
        if place and name in start.sources:
            role = kind_of(start.sources[name].items[0])
            found.append(make_parent(role, local(place), job.out))
    mixed = recipe.mix.records if recipe.mix else ()
    found += [make_parent("mixed in", local(place), job.out) for place in mixed]
    teachers = {
        step.model or recipe.model for step in recipe.steps.values() if step.generator is not None
    }
    for place in sorted(teachers):
        model = models.text_model(place)
        found.append(Parent("teacher", place, model.fingerprint, "checkpoint"))
    return found


def _nothing_kept(train: Crop) -> DataError:
    reasons = "; ".join(
        f"{count} {reason}" for reason, count in train.harvest.count_reasons().items()
    )
    return DataError(
        f"of {train.harvest.asked} asks no training record is kept"
        + (f" ({reasons})" if reasons else ""),
        code="synth.nothing-kept",
        expected="at least one record that passes every step",
        next="look at some with: stillroom synth preview RECIPE",
    )
