"""The collapse monitor: how varied each generation of data is, beside the one people wrote.

A figure warns where it has moved for the worse by more than ``tolerance`` of the reference's value
and the intervals are apart. Data that a model made of a model's data loses its rare words first,
long before anybody sees it in an average (Shumailov et al. 2024, doi:10.1038/s41586-024-07566-y).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate import Metric, Plot, Report, Table, bootstrap
from stillroom.evaluate.diversity import (
    Vectors,
    coverage,
    find_tail,
    measure_diversity,
)
from stillroom.jobs import Job, Reporter
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Record, read_records
from stillroom.text.normalize import words

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["Monitoring", "Warned", "monitor"]

_WORSE = {
    "distinct_1": -1,
    "distinct_3": -1,
    "self_bleu": 1,
    "compression": 1,
    "repeated": 1,
    "tail": -1,
    "vendi": -1,
    "coverage": -1,
}
_SHARE = 0.5
_LEAST_WORDS = 200


@dataclass(frozen=True, slots=True)
class Monitoring:
    """The generations in order, the first of them the reference, and how they are compared.

    ``budget`` is the words of a draw; 0 takes half of what the smallest generation has.
    """

    paths: tuple[Path, ...]
    embedder: str = ""
    tolerance: float = 0.05
    budget: int = 0
    seed: int = 0

    def to_text(self) -> str:
        """Return the settings as YAML, for the job."""
        told = asdict(self) | {"paths": [str(path) for path in self.paths]}
        return "# stillroom synth monitor\n" + "".join(
            f"{name}: {json.dumps(value)}\n" for name, value in told.items()
        )


@dataclass(frozen=True, slots=True)
class Warned:
    """A figure of a generation that has moved for the worse, and by which share."""

    generation: str
    figure: str
    change: float


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
        DataError: If there are fewer than two generations, or one has too little text.
    """
    if len(plan.paths) < 2:
        raise DataError(
            "there is one generation",
            code="synth.one-generation",
            expected="the reference first, then one or more generations",
            next="name what people wrote first: stillroom synth monitor seeds.jsonl made.jsonl",
        )
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
    budget = min(plan.budget or int(_SHARE * min(sizes)), min(sizes))
    tail, mass = find_tail(texts[0])
    vectors: list[Vectors | None] = [None] * len(texts)
    measured: list[dict[str, Metric]] = []
    with job.phase("measure", len(texts), "generations") as progress:
        for at, one in enumerate(progress.over(texts)):
            job.check_cancelled()
            if embedder is not None:
                vectors[at] = embedder.embed([text or "-" for text in one], kind="passage")
            figures = measure_diversity(
                one,
                budget=budget,
                tail=tail,
                tail_mass=mass,
                vectors=vectors[at],
                seed=plan.seed,
            )
            if at == 0:  # its own tail is that of the half which did not choose the words
                half = measure_diversity(
                    one[1::2], budget=budget, tail=tail, tail_mass=mass, seed=plan.seed
                )
                figures |= {"tail": half["tail"]} if "tail" in half else {}
            rows, reference = vectors[at], vectors[0]
            if rows is not None and reference is not None:
                others = rows[1::2] if at == 0 else rows
                figures["coverage"] = _cover(others, reference)
            measured.append(figures)
    warned = _compare(names, measured, plan.tolerance)
    report = _report(names, measured, warned, budget, plan)
    report.write(job.output)
    details = {
        "warnings": [asdict(one) for one in warned],
        "budget_words": budget,
        **report.to_json(),
    }
    parents = [make_parent("records", path, job.out) for path in plan.paths]
    return job.finish("report", parents=parents, details=details), report, warned


def _cover(rows: Vectors, reference: Vectors) -> Metric:
    """Return how much of one half of the reference is covered by as many others."""
    half = reference[::2]
    covered = coverage(rows[: len(half)], half)
    return bootstrap(covered.astype(np.float64), name="coverage")


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


def _compare(
    names: Sequence[str], measured: Sequence[dict[str, Metric]], tolerance: float
) -> list[Warned]:
    """Return what has moved for the worse, beyond tolerance and intervals."""
    warned = []
    for name, figures in zip(names[1:], measured[1:], strict=True):
        for figure, metric in figures.items():
            base = measured[0][figure]
            change = (metric.value - base.value) / base.value if base.value else 0.0
            if _WORSE[figure] * change > tolerance and _are_apart(metric, base):
                warned.append(Warned(name, figure, change))
    return warned


def _are_apart(one: Metric, other: Metric) -> bool:
    """Say whether two intervals do not meet; what has none is taken as it is."""
    return not (one.low <= other.high and other.low <= one.high)


def _report(
    names: Sequence[str],
    measured: Sequence[dict[str, Metric]],
    warned: Sequence[Warned],
    budget: int,
    plan: Monitoring,
) -> Report:
    report = Report("Collapse monitor", _summarize(warned, plan.tolerance))
    figures = list(dict.fromkeys(figure for one in measured for figure in one))
    for figure in figures:
        held = [
            (name, replace(one[figure], name=f"{figure}/{name}"))
            for name, one in zip(names, measured, strict=True)
            if figure in one
        ]
        worse = "lower" if _WORSE[figure] < 0 else "higher"
        report.section(
            figure,
            f"{worse.capitalize()} is less varied.",
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


def _summarize(warned: Sequence[Warned], tolerance: float) -> str:
    """Say from which generation on each figure is worse, and by how much in the last one."""
    if not warned:
        return f"No figure is worse than the reference's by more than {tolerance:.0%}."
    said = []
    for figure in dict.fromkeys(one.figure for one in warned):
        held = [one for one in warned if one.figure == figure]
        said.append(f"{figure} {held[-1].change:+.0%}, from {held[0].generation} on")
    return f"Warning: variety is lost: {'; '.join(said)}."
