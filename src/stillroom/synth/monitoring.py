"""The collapse monitor: how varied each generation of data is, beside the one people wrote.

A figure warns where it has moved for the worse by more than ``tolerance`` of the reference's value
and the intervals are apart. Data that a model made of a model's data loses its rare words first,
long before anybody sees it in an average (Shumailov et al. 2024, doi:10.1038/s41586-024-07566-y).
Where the students of the generations are given too, and text that people wrote and none of them has
seen, its perplexity under each of them is one more figure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import DataError
from stillroom.evaluate import (
    LEAST_UNITS,
    Metric,
    Plot,
    Report,
    Table,
    paired_difference,
    perplexity,
    say_few,
)
from stillroom.evaluate.diversity import Vectors
from stillroom.jobs import Job, Reporter
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Record, read_records
from stillroom.synth.variety import (
    WORSE,
    Warned,
    Yardstick,
    find_few,
    find_warnings,
    text_budget,
)
from stillroom.text.normalize import words

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["Monitoring", "Warned", "monitor"]

_LEAST_WORDS = 200


@dataclass(frozen=True, slots=True)
class Monitoring:
    """The generations in order, the first of them the reference, and how they are compared.

    ``budget`` is the words of a draw; 0 takes half of what the smallest generation has.
    ``students`` are checkpoints, one for each generation, and ``human`` records that people wrote
    and that no student was trained on; both or none.
    """

    paths: tuple[Path, ...]
    embedder: str = ""
    tolerance: float = 0.05
    budget: int = 0
    seed: int = 0
    students: tuple[str, ...] = ()
    human: Path | None = None

    def to_text(self) -> str:
        """Return the settings as YAML, for the job."""
        told = asdict(self) | {"paths": [str(path) for path in self.paths]}
        told["human"] = str(self.human) if self.human else None
        return "# stillroom synth monitor\n" + "".join(
            f"{name}: {json.dumps(value)}\n" for name, value in told.items()
        )


def monitor(
    plan: Monitoring,
    out: Path,
    *,
    embedder: Embedder | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, Report, list[Warned]]:
    """Measure every generation and say which have lost variety.

    Args:
        plan: What is compared, and how.
        out: The folder of the report.
        embedder: By default what the plan names; without one there is no ``vendi`` and no
            ``coverage``.
        resume: Go on where a killed run stopped.
        overwrite: Replace what an earlier job left at ``out``.
        reporter: What draws progress; default nothing.

    Raises:
        DataError: If there are fewer than two generations, one has too little text, or students
            and human text do not fit them.
    """
    if len(plan.paths) < 2:
        raise DataError(
            "there is one generation",
            code="synth.one-generation",
            expected="the reference first, then one or more generations",
            next="name what people wrote first: stillroom synth monitor seeds.jsonl made.jsonl",
        )
    _check_students(plan)
    job = Job.start(
        out, plan.to_text(), seed=plan.seed, resume=resume, overwrite=overwrite, reporter=reporter
    )
    try:
        with job.interruptible():
            return _run(plan, job, embedder)
    finally:
        job.close()


def _run(
    plan: Monitoring, job: Job, embedder: Embedder | None
) -> tuple[Artifact, Report, list[Warned]]:
    if embedder is None and plan.embedder:
        from stillroom.models import open_embedder

        embedder = open_embedder(plan.embedder, say=job.say)
    names = _name(plan.paths)
    texts = [[_text(record) for record in read_records(path)] for path in plan.paths]
    sizes = [sum(len(words(text)) for text in one) for one in texts]
    _check_sizes(names, sizes)
    budget = min(plan.budget or text_budget(texts), min(sizes))
    vectors: list[Vectors | None] = [None] * len(texts)
    measured: list[dict[str, Metric]] = []
    with job.phase("measure", len(texts), "generations") as progress:
        for at, one in enumerate(progress.over(texts)):
            job.check_cancelled()
            if embedder is not None:
                vectors[at] = embedder.embed(
                    [text if text.strip() else "-" for text in one], kind="passage"
                )
            if at == 0:
                stick = Yardstick(one, budget=budget, vectors=vectors[0], seed=plan.seed)
                measured.append(stick.measure_reference(one, vectors[0]))
            else:
                measured.append(stick.measure(one, vectors[at]))
    warned = [
        one
        for name, figures in zip(names[1:], measured[1:], strict=True)
        for one in find_warnings(name, figures, measured[0], plan.tolerance)
    ]
    warned += _measure_students(plan, names, measured, job)
    report = _report(names, measured, warned, budget, plan)
    report.write(job.output)
    details = {
        "warnings": [asdict(one) for one in warned],
        "budget_words": budget,
        **report.to_json(),
    }
    parents = [make_parent("records", path, job.out) for path in plan.paths]
    return job.finish("report", parents=parents, details=details), report, warned


def _measure_students(
    plan: Monitoring, names: Sequence[str], measured: list[dict[str, Metric]], job: Job
) -> list[Warned]:
    """Add the perplexity of the human text under each student; return the warnings of it.

    The same records are read by all students, so that a change is told by pairs of losses, whose
    interval is far narrower than those of the two perplexities.
    """
    if plan.human is None:
        return []
    from stillroom.evaluate import held_out_loss
    from stillroom.models import load_causal_lm, resolve_checkpoint

    records = list(read_records(plan.human))
    if few := say_few(len(records), "human records"):
        job.say(f"{few} No student is warned of by its perplexity.")
    warned: list[Warned] = []
    first: list[tuple[float, int]] = []
    with job.phase("read human text", len(names), "students") as progress:
        for name, student, figures in zip(names, plan.students, measured, strict=True):
            job.check_cancelled()
            model, tokenizer = load_causal_lm(resolve_checkpoint(student, say=job.say))
            losses = held_out_loss(model, tokenizer, records)
            first = first or losses
            figures["perplexity"] = perplexity(losses, seed=plan.seed)
            warned += _compare_losses(name, first, losses, plan)
            progress.advance()
    return warned


def _compare_losses(
    name: str,
    first: Sequence[tuple[float, int]],
    losses: Sequence[tuple[float, int]],
    plan: Monitoring,
) -> list[Warned]:
    pairs = [
        (ours / count, theirs / base, count)
        for (ours, count), (theirs, base) in zip(losses, first, strict=True)
        if count and base
    ]
    if not pairs:
        return []
    ours, theirs, weights = zip(*pairs, strict=True)
    rise = paired_difference(ours, theirs, weights=weights, seed=plan.seed)
    change = math.exp(rise.value) - 1
    is_clear = change > plan.tolerance and rise.side() > 0
    return [Warned(name, "perplexity", change)] if is_clear else []


def _check_students(plan: Monitoring) -> None:
    if (plan.human is None) == (not plan.students) and len(plan.students) in {0, len(plan.paths)}:
        return
    raise DataError(
        f"{len(plan.students)} students for {len(plan.paths)} generations"
        + ("" if plan.human else ", and no human text"),
        code="synth.students",
        expected="one checkpoint a generation, and a file of human records, or neither",
        next="give --student once for each generation in order, and --human FILE",
    )


def _text(record: Record) -> str:
    return "\n".join(one.content for one in record.messages)


def _name(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each generation, all of them different."""
    stems = [path.name for path in paths]
    return [f"{at} {stem}" if stems.count(stem) > 1 else stem for at, stem in enumerate(stems)]


def _check_sizes(names: Sequence[str], sizes: Sequence[int]) -> None:
    for name, size in zip(names, sizes, strict=True):
        if size < _LEAST_WORDS:
            raise DataError(
                f"{name} has {size} words",
                code="synth.too-little-text",
                expected=f"{_LEAST_WORDS} words or more in every generation",
                next="compare larger samples",
            )


def _report(
    names: Sequence[str],
    measured: Sequence[dict[str, Metric]],
    warned: Sequence[Warned],
    budget: int,
    plan: Monitoring,
) -> Report:
    few = {
        name: found
        for name, one in zip(names[1:], measured[1:], strict=True)
        if (found := find_few(one, measured[0]))
    }
    report = Report("Collapse monitor", _summarize(warned, plan.tolerance, few))
    figures = list(dict.fromkeys(figure for one in measured for figure in one))
    for figure in figures:
        held = [
            (name, replace(one[figure], name=f"{figure}/{name}"))
            for name, one in zip(names, measured, strict=True)
            if figure in one
        ]
        worse = "lower" if WORSE[figure] < 0 else "higher"
        report.section(
            figure,
            f"{worse.capitalize()} is worse.",
            metrics=[metric for _, metric in held],
            plot=Plot.of(
                f"{figure} by generation",
                [metric for _, metric in held],
                labels=[name for name, _ in held],
            ),
        )
    rows = tuple(
        (name, *(f"{one[figure].value:.3f}" if figure in one else "" for figure in figures))
        for name, one in zip(names, measured, strict=True)
    )
    report.section(
        "All figures",
        f"Means of draws of {budget} words.",
        table=Table("a row a generation", ("generation", *figures), rows),
    )
    return report


def _summarize(warned: Sequence[Warned], tolerance: float, few: Mapping[str, Sequence[str]]) -> str:
    """Say of each figure in which generations it is worse, each value beside its own generation."""
    said = f"No figure is seen to be worse than the reference's by more than {tolerance:.0%}."
    if warned:
        figures = dict.fromkeys(one.figure for one in warned)
        told = (_say_figure([one for one in warned if one.figure == name]) for name in figures)
        said = f"Warning: variety is lost: {'; '.join(told)}."
    if few:
        names = "; ".join(f"{', '.join(found)} of {name}" for name, found in few.items())
        said += f" Not judged, on fewer than {LEAST_UNITS} records: {names}."
    return said


def _say_figure(held: Sequence[Warned]) -> str:
    first, last = (f"{one.change:+.0%} in {one.generation}" for one in (held[0], held[-1]))
    if len(held) == 1:
        return f"{held[0].figure} {first}"
    return f"{held[0].figure} {first}, {last} ({len(held)} generations)"
