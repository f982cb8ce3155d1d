"""Diversity monitor: diversity of each data generation relative to human text, with alarms.

A figure warns where it has moved for the worse by more than ``tolerance`` of the reference's value
and the intervals are apart. Data that a model made of a model's data loses its rare words first,
long before anybody sees it in an average (Shumailov et al. 2024, doi:10.1038/s41586-024-07566-y).
Where the students of the generations are given too, and text that people wrote and none of them has
seen, its perplexity under each of them is one more figure.

One yardstick measures every generation alike: draws of as many words, the same rare words, the same
vectors to be covered, the same text to be foreseen. Knows texts and vectors, neither files nor
models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate import (
    MIN_UNITS,
    Metric,
    Plot,
    Report,
    Table,
    bootstrap,
    paired_difference,
    perplexity,
    warn_small_sample,
)
from stillroom.evaluate.metrics.diversity import (
    Vectors,
    find_rare_words,
    measure_diversity,
    nearest_neighbor_coverage,
    rare_word_share,
)
from stillroom.evaluate.metrics.ngrams import CharacterNGramModel
from stillroom.jobs import Job, Reporter
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Record, read_records
from stillroom.text.unicode import split_words

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = [
    "WORSE_DIRECTION",
    "DiversityAlarm",
    "DiversityMonitorSettings",
    "DiversityReference",
    "compute_word_budget",
    "find_small_samples",
    "find_warnings",
    "monitor_diversity",
]


_MIN_WORDS = 200


@dataclass(frozen=True, slots=True)
class DiversityMonitorSettings:
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


def monitor_diversity(
    plan: DiversityMonitorSettings,
    out: Path,
    *,
    embedder: Embedder | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, Report, list[DiversityAlarm]]:
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
    plan: DiversityMonitorSettings, job: Job, embedder: Embedder | None
) -> tuple[Artifact, Report, list[DiversityAlarm]]:
    if embedder is None and plan.embedder:
        from stillroom.models import open_embedder

        embedder = open_embedder(plan.embedder, say=job.say)
    names = _name_generations(plan.paths)
    texts = [[_text(record) for record in read_records(path)] for path in plan.paths]
    sizes = [sum(len(split_words(text)) for text in one) for one in texts]
    _check_sizes(names, sizes)
    budget = min(plan.budget or compute_word_budget(texts), min(sizes))
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
                stick = DiversityReference(one, budget=budget, vectors=vectors[0], seed=plan.seed)
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
    plan: DiversityMonitorSettings,
    names: Sequence[str],
    measured: list[dict[str, Metric]],
    job: Job,
) -> list[DiversityAlarm]:
    """Add the perplexity of the human text under each student; return the warnings of it.

    The same records are read by all students, so that a change is told by pairs of losses, whose
    interval is far narrower than those of the two perplexities.
    """
    if plan.human is None:
        return []
    from stillroom.evaluate import held_out_loss
    from stillroom.models import load_causal_lm, resolve_checkpoint

    records = list(read_records(plan.human))
    if few := warn_small_sample(len(records), "human records"):
        job.say(f"{few} No student is warned of by its perplexity.")
    warned: list[DiversityAlarm] = []
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
    plan: DiversityMonitorSettings,
) -> list[DiversityAlarm]:
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
    return [DiversityAlarm(name, "perplexity", change)] if is_clear else []


def _check_students(plan: DiversityMonitorSettings) -> None:
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


def _name_generations(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each generation, all of them different."""
    stems = [path.name for path in paths]
    return [f"{at} {stem}" if stems.count(stem) > 1 else stem for at, stem in enumerate(stems)]


def _check_sizes(names: Sequence[str], sizes: Sequence[int]) -> None:
    for name, size in zip(names, sizes, strict=True):
        if size < _MIN_WORDS:
            raise DataError(
                f"{name} has {size} words",
                code="synth.too-little-text",
                expected=f"{_MIN_WORDS} words or more in every generation",
                next="compare larger samples",
            )


def _report(
    names: Sequence[str],
    measured: Sequence[dict[str, Metric]],
    warned: Sequence[DiversityAlarm],
    budget: int,
    plan: DiversityMonitorSettings,
) -> Report:
    few = {
        name: found
        for name, one in zip(names[1:], measured[1:], strict=True)
        if (found := find_small_samples(one, measured[0]))
    }
    report = Report("Collapse monitor", _summarize(warned, plan.tolerance, few))
    figures = list(dict.fromkeys(figure for one in measured for figure in one))
    for figure in figures:
        held = [
            (name, replace(one[figure], name=f"{figure}/{name}"))
            for name, one in zip(names, measured, strict=True)
            if figure in one
        ]
        worse = "lower" if WORSE_DIRECTION[figure] < 0 else "higher"
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


def _summarize(
    warned: Sequence[DiversityAlarm], tolerance: float, few: Mapping[str, Sequence[str]]
) -> str:
    """Say of each figure in which generations it is worse, each value beside its own generation."""
    said = f"No figure is seen to be worse than the reference's by more than {tolerance:.0%}."
    if warned:
        figures = dict.fromkeys(one.figure for one in warned)
        told = (_describe_figure([one for one in warned if one.figure == name]) for name in figures)
        said = f"Warning: variety is lost: {'; '.join(told)}."
    if few:
        names = "; ".join(f"{', '.join(found)} of {name}" for name, found in few.items())
        said += f" Not judged, on fewer than {MIN_UNITS} records: {names}."
    return said


def _describe_figure(held: Sequence[DiversityAlarm]) -> str:
    first, last = (f"{one.change:+.0%} in {one.generation}" for one in (held[0], held[-1]))
    if len(held) == 1:
        return f"{held[0].figure} {first}"
    return f"{held[0].figure} {first}, {last} ({len(held)} generations)"


WORSE_DIRECTION = {
    "distinct_1": -1,
    "distinct_3": -1,
    "self_bleu": 1,
    "compression": 1,
    "repeated": 1,
    "tail": -1,
    "vendi": -1,
    "spread": -1,
    "coverage": -1,
    "surprise": 1,
    "perplexity": 1,
}
"""Which way each figure moves when variety is lost."""

_SHARE = 0.5
_MOST_LEARNED = 400_000
_MOST_READ = 100_000
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class DiversityAlarm:
    """A figure of a generation that has moved for the worse, and by which share."""

    generation: str
    figure: str
    change: float


class DiversityReference:
    """Measures texts beside a reference: its rare words, its vectors, and what it is to foresee.

    ``surprise`` is the bits a character that the reference costs who has learned nothing but the
    texts (``CharacterNGramModel``): text that departs from people's, whatever its variety, teaches
    less about it. Both sides learn from as much; ``learned`` says otherwise.
    """

    def __init__(
        self,
        reference: Sequence[str],
        *,
        budget: int,
        vectors: Vectors | None = None,
        seed: int = 0,
        draws: int = 20,
    ) -> None:
        """Learn the reference.

        Args:
            reference: Texts that people wrote.
            budget: Words of a draw.
            vectors: One for each text, (N, D), L2-normalized.
            seed: Of the draws.
            draws: How many.
        """
        self.budget, self.seed, self.draws = budget, seed, draws
        self.tail, self.mass = find_rare_words(reference)
        self._half = None if vectors is None else vectors[::2]
        self._reference = list(reference)
        self._learnable = sum(map(len, reference[::2]))

    def measure(
        self,
        texts: Sequence[str],
        vectors: Vectors | None = None,
        *,
        learned: Sequence[str] | None = None,
    ) -> dict[str, Metric]:
        """Return the figures of some texts that are not the reference itself.

        Args:
            texts: What is measured.
            vectors: One for each, (N, D), L2-normalized.
            learned: All that a student learns from, where that is known and none of it is of the
                reference: ``surprise`` is then that of the whole reference for who learned it all.
        """
        figures = self._figures(texts, vectors)
        if vectors is not None and self._half is not None:
            figures["coverage"] = _measure_coverage(vectors, self._half)
        if learned is None:
            drawn = self._draw(texts, self._learnable)
            figures["surprise"] = self._surprise(drawn, self._reference[1::2])
        else:
            drawn = self._draw(learned, _MOST_LEARNED)
            figures["surprise"] = self._surprise(drawn, self._reference)
        return figures

    def measure_reference(
        self, reference: Sequence[str], vectors: Vectors | None = None
    ) -> dict[str, Metric]:
        """Return the reference's own figures.

        Tail and coverage are those of its other half; so is surprise, after the first. The half is
        no larger than a draw, so that draws of it are all alike: the tail's interval is that of
        texts drawn anew.
        """
        figures = self._figures(reference, vectors)
        if "tail" in figures:
            figures["tail"] = self._tail_of(reference[1::2])
        if vectors is not None and self._half is not None:
            figures["coverage"] = _measure_coverage(vectors[1::2], self._half)
        figures["surprise"] = self._surprise(
            self._draw(reference[::2], _MOST_LEARNED), self._reference[1::2]
        )
        return figures

    def _tail_of(self, half: Sequence[str]) -> Metric:
        cut = [one for one in map(split_words, half) if one]
        return bootstrap(
            [rare_word_share([one], self.tail) / self.mass for one in cut],
            weights=[len(one) for one in cut],
            resamples=_RESAMPLES,
            seed=self.seed,
            name="tail",
        )

    def _draw(self, texts: Sequence[str], characters: int) -> list[str]:
        """Return texts in drawn order, until there are so many characters."""
        order = np.random.default_rng(self.seed).permutation(len(texts)).tolist()
        return _take_characters([texts[at] for at in order], min(characters, _MOST_LEARNED))

    def _surprise(self, learned: Sequence[str], read: Sequence[str]) -> Metric:
        model = CharacterNGramModel(learned)
        told = _take_characters(read, _MOST_READ)
        sizes = [len(text) + 1 for text in told]  # the end is to be foreseen, too
        metric = bootstrap(
            [model.bits(text) / size for text, size in zip(told, sizes, strict=True)],
            weights=sizes,
            resamples=_RESAMPLES,
            seed=self.seed,
            name="surprise",
            unit="bits/character",
        )
        return replace(metric, n=min(metric.n, len(learned)))

    def _figures(self, texts: Sequence[str], vectors: Vectors | None) -> dict[str, Metric]:
        return measure_diversity(
            texts,
            budget=self.budget,
            tail=self.tail,
            tail_mass=self.mass,
            vectors=vectors,
            seed=self.seed,
            draws=self.draws,
        )


def compute_word_budget(generations: Sequence[Sequence[str]]) -> int:
    """Return half the words that the smallest of several has."""
    return int(_SHARE * min(sum(len(split_words(text)) for text in one) for one in generations))


def find_warnings(
    name: str, figures: Mapping[str, Metric], base: Mapping[str, Metric], tolerance: float
) -> list[DiversityAlarm]:
    """Return what has moved for the worse, beyond the tolerance and both intervals.

    What stands on too few records on either side is not judged: ``find_small_samples`` names it.

    Args:
        name: Of the generation.
        figures: Its own.
        base: Those it is compared with.
        tolerance: Share of the base's value that may be lost.
    """
    warned = []
    for figure, metric in figures.items():
        first = base[figure]
        change = (metric.value - first.value) / first.value if first.value else 0.0
        is_worse = WORSE_DIRECTION[figure] * change > tolerance
        if is_worse and _are_disjoint(metric, first) and not metric.is_few and not first.is_few:
            warned.append(DiversityAlarm(name, figure, change))
    return warned


def find_small_samples(figures: Mapping[str, Metric], base: Mapping[str, Metric]) -> list[str]:
    """Return the figures that are not judged, since they stand on too few records."""
    return [name for name, one in figures.items() if one.is_few or base[name].is_few]


def _take_characters(texts: Sequence[str], characters: int) -> list[str]:
    """Return the first of some texts, until there are so many characters; at least one."""
    taken, held = [], 0
    for text in texts:
        if held >= characters:
            break
        taken.append(text)
        held += len(text)
    return taken


def _measure_coverage(rows: Vectors, half: Vectors) -> Metric:
    """Return how much of one half of the reference is covered by as many others."""
    covered = nearest_neighbor_coverage(rows[: len(half)], half)
    metric = bootstrap(covered.astype(np.float64), name="coverage")
    return replace(metric, n=min(metric.n, len(rows)))


def _are_disjoint(one: Metric, other: Metric) -> bool:
    """Say whether two intervals do not meet; what has none is taken as it is."""
    return not (one.low <= other.high and other.low <= one.high)
