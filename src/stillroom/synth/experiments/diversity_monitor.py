"""Diversity monitor: diversity of each data generation relative to human text, with alarms.

An alarm is raised where a metric is worse by more than ``tolerance`` of the reference's value and
the intervals do not overlap. Text that a model generated from a model's output loses its rare words
first, long before averages show it (Shumailov et al. 2024, doi:10.1038/s41586-024-07566-y). Given
the students of the generations and human text that none of them was trained on, the perplexity of
that text under each student is one more metric.

All generations are measured alike: samples of equally many words, the same rare words, the same
vectors to cover, the same text to predict.
"""

from __future__ import annotations

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
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Record, read_records
from stillroom.text.unicode import split_words

if TYPE_CHECKING:
    from stillroom.synth.jobs.diversity import DiversityRecipe

__all__ = [
    "WORSE_DIRECTION",
    "DiversityAlarm",
    "DiversityReference",
    "compute_word_budget",
    "find_small_samples",
    "find_warnings",
    "monitor_diversity",
]

_MIN_WORDS = 200


def monitor_diversity(recipe: DiversityRecipe, job: Job) -> Artifact:
    """Measure every generation and report which have lost diversity.

    Without an embedder there is no ``vendi`` and no ``coverage``.

    Raises:
        DataError: If a generation has too little text.
    """
    embedder = open_embedder(recipe.embedder, say=job.say) if recipe.embedder else None
    if len(set(recipe.paths)) < len(recipe.paths):
        job.warn("a generation is listed twice: it is compared with itself")
    names = _name_generations(recipe.paths)
    texts = [[_text(record) for record in read_records(path)] for path in recipe.paths]
    sizes = [sum(len(split_words(text)) for text in generation) for generation in texts]
    _check_sizes(names, sizes, recipe.sample_words or _MIN_WORDS)
    budget = recipe.sample_words or compute_word_budget(texts)
    vectors: list[Vectors | None] = [None] * len(texts)
    measured: list[dict[str, Metric]] = []
    with job.phase("measure", len(texts), "generations") as progress:
        for index, generation in enumerate(progress.over(texts)):
            job.check_cancelled()
            if embedder is not None:
                vectors[index] = embedder.embed(
                    [text if text.strip() else "-" for text in generation], kind="passage"
                )
            if index == 0:
                reference = DiversityReference(
                    generation, budget=budget, vectors=vectors[0], seed=recipe.seed
                )
                measured.append(reference.measure_reference(generation, vectors[0]))
            else:
                measured.append(reference.measure(generation, vectors[index]))
    alarms = [
        generation
        for name, figures in zip(names[1:], measured[1:], strict=True)
        for generation in find_warnings(name, figures, measured[0], recipe.tolerance)
    ]
    alarms += _measure_students(recipe, names, measured, job)
    report = _report(names, measured, alarms, budget, recipe)
    report.write(job.output)
    details = {
        "alarms": [asdict(generation) for generation in alarms],
        "budget_words": budget,
        **report.to_json(),
    }
    parents = [make_parent("records", path, job.out) for path in recipe.paths]
    return job.finish("report", parents=parents, details=details)


def _measure_students(
    recipe: DiversityRecipe, names: Sequence[str], measured: list[dict[str, Metric]], job: Job
) -> list[DiversityAlarm]:
    """Add the perplexity of the human text under each student; return its alarms.

    All students read the same records, so that a change is tested on paired losses, whose interval
    is far narrower than those of the two perplexities.
    """
    if recipe.perplexity is None:
        return []
    from stillroom.evaluate import held_out_loss
    from stillroom.models import load_causal_lm, resolve_checkpoint

    records = list(read_records(resolve_local(recipe.perplexity.human)))
    if few := warn_small_sample(len(records), "human record"):
        job.warn(f"{few} No alarm is raised for perplexity.")
    alarms: list[DiversityAlarm] = []
    reference_losses: list[tuple[float, int]] = []
    with job.phase("read human text", len(names), "students") as progress:
        for name, student, figures in zip(names, recipe.perplexity.students, measured, strict=True):
            job.check_cancelled()
            model, tokenizer = load_causal_lm(resolve_checkpoint(student, say=job.say))
            losses = held_out_loss(model, tokenizer, records)
            reference_losses = reference_losses or losses
            figures["perplexity"] = perplexity(losses, seed=recipe.seed)
            alarms += _compare_losses(name, reference_losses, losses, recipe)
            progress.advance()
    return alarms


def _compare_losses(
    name: str,
    first: Sequence[tuple[float, int]],
    losses: Sequence[tuple[float, int]],
    recipe: DiversityRecipe,
) -> list[DiversityAlarm]:
    pairs = [
        (losses_here / count, losses_first / base, count)
        for (losses_here, count), (losses_first, base) in zip(losses, first, strict=True)
        if count and base
    ]
    if not pairs:
        return []
    losses_here, losses_first, weights = zip(*pairs, strict=True)
    rise = paired_difference(losses_here, losses_first, weights=weights, seed=recipe.seed)
    change = math.exp(rise.value) - 1
    is_clear = change > recipe.tolerance and rise.side() > 0
    return [DiversityAlarm(name, "perplexity", change)] if is_clear else []


def _text(record: Record) -> str:
    return "\n".join(message.content for message in record.messages)


def _name_generations(paths: Sequence[Path]) -> list[str]:
    """Return a short, unique name for each generation."""
    stems = [path.name for path in paths]
    return [
        f"{index} {stem}" if stems.count(stem) > 1 else stem for index, stem in enumerate(stems)
    ]


def _check_sizes(names: Sequence[str], sizes: Sequence[int], sample_words: int) -> None:
    least = max(_MIN_WORDS, sample_words)
    for name, size in zip(names, sizes, strict=True):
        if size < least:
            raise DataError(
                f"{name} has {size} words",
                code="synth.too-little-text",
                expected=f"at least {least} words in every generation",
                next="compare larger samples" + " or lower sample_words" * (least > _MIN_WORDS),
            )


def _report(
    names: Sequence[str],
    measured: Sequence[dict[str, Metric]],
    warned: Sequence[DiversityAlarm],
    budget: int,
    recipe: DiversityRecipe,
) -> Report:
    few = {
        name: small
        for name, values in zip(names[1:], measured[1:], strict=True)
        if (small := find_small_samples(values, measured[0]))
    }
    report = Report("Collapse monitor", _summarize(warned, recipe.tolerance, few))
    figures = list(dict.fromkeys(figure for values in measured for figure in values))
    for figure in figures:
        series = [
            (name, replace(values[figure], name=f"{figure}/{name}"))
            for name, values in zip(names, measured, strict=True)
            if figure in values
        ]
        worse = "lower" if WORSE_DIRECTION[figure] < 0 else "higher"
        report.section(
            figure,
            f"{worse.capitalize()} is worse.",
            metrics=[metric for _, metric in series],
            plot=Plot.of(
                f"{figure} by generation",
                [metric for _, metric in series],
                labels=[name for name, _ in series],
            ),
        )
    rows = tuple(
        (name, *(f"{values[figure].value:.3f}" if figure in values else "" for figure in figures))
        for name, values in zip(names, measured, strict=True)
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
    """Summarize each metric: the generations in which it is worse, with its change in each."""
    summary = f"No figure is seen to be worse than the reference's by more than {tolerance:.0%}."
    if warned:
        figures = dict.fromkeys(alarm.figure for alarm in warned)
        figure_texts = (
            _describe_figure([alarm for alarm in warned if alarm.figure == name])
            for name in figures
        )
        summary = f"Warning: variety is lost: {'; '.join(figure_texts)}."
    if few:
        names = "; ".join(f"{', '.join(small)} of {name}" for name, small in few.items())
        summary += f" Not judged, on fewer than {MIN_UNITS} records: {names}."
    return summary


def _describe_figure(alarms: Sequence[DiversityAlarm]) -> str:
    if len(alarms) == 1:
        return f"{alarms[0].figure} {alarms[0]}"
    return f"{alarms[0].figure} {alarms[0]}, {alarms[-1]} ({len(alarms)} generations)"


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
"""Direction in which each metric moves when diversity is lost."""

_SHARE = 0.5
_MOST_LEARNED = 400_000
_MOST_READ = 100_000
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class DiversityAlarm:
    """A metric of a generation that has become worse, and its change.

    The change is relative to the reference's value, or the value itself where that is 0.
    """

    generation: str
    figure: str
    change: float
    is_from_zero: bool = False

    def __str__(self) -> str:
        """Format the change and its generation."""
        shown = f"0 to {self.change:.2g}" if self.is_from_zero else f"{self.change:+.0%}"
        return f"{shown} in {self.generation}"


class DiversityReference:
    """Reference that texts are measured against: its rare words, vectors and predictability.

    ``surprise`` is the cost of the reference in bits per character under a model fitted to the
    texts only (``CharacterNGramModel``): text that departs from human text predicts it less well,
    whatever its diversity. Both sides are fitted to equally much text, unless ``learned`` is given.
    """

    def __init__(
        self,
        reference: Sequence[str],
        *,
        budget: int,
        vectors: Vectors | None = None,
        seed: int = 0,
    ) -> None:
        """Fit the reference.

        Args:
            reference: Human-written texts.
            budget: Words of a sample.
            vectors: One for each text, (N, D), L2-normalized.
            seed: Seed of the sampling.
        """
        self.budget, self.seed = budget, seed
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
        """Return the metrics of texts other than the reference.

        Args:
            texts: Texts to measure.
            vectors: One for each, (N, D), L2-normalized.
            learned: The complete training set of a student, if known and disjoint from the
                reference: ``surprise`` is then that of the whole reference under a model of that
                set.
        """
        figures = self._figures(texts, vectors)
        if vectors is not None and self._half is not None:
            figures["coverage"] = _measure_coverage(vectors, self._half)
        if learned is None:
            sample = self._draw(texts, self._learnable)
            figures["surprise"] = self._surprise(sample, self._reference[1::2])
        else:
            sample = self._draw(learned, _MOST_LEARNED)
            figures["surprise"] = self._surprise(sample, self._reference)
        return figures

    def measure_reference(
        self, reference: Sequence[str], vectors: Vectors | None = None
    ) -> dict[str, Metric]:
        """Return the reference's own metrics.

        Tail and coverage are those of its second half; so is surprise, under a model of the first.
        The half is no larger than a sample, so all samples of it are equal: the interval of the
        tail is that of texts resampled.
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
        texts = [words for words in map(split_words, half) if words]
        return bootstrap(
            [rare_word_share([words], self.tail) / self.mass for words in texts],
            weights=[len(words) for words in texts],
            resamples=_RESAMPLES,
            seed=self.seed,
            name="tail",
        )

    def _draw(self, texts: Sequence[str], characters: int) -> list[str]:
        """Return texts in random order, up to a number of characters."""
        order = np.random.default_rng(self.seed).permutation(len(texts)).tolist()
        return _take_characters([texts[index] for index in order], min(characters, _MOST_LEARNED))

    def _surprise(self, learned: Sequence[str], read: Sequence[str]) -> Metric:
        model = CharacterNGramModel(learned)
        sample = _take_characters(read, _MOST_READ)
        sizes = [len(text) + 1 for text in sample]  # the end of a text is predicted, too
        metric = bootstrap(
            [model.bits(text) / size for text, size in zip(sample, sizes, strict=True)],
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
        )


def compute_word_budget(generations: Sequence[Sequence[str]]) -> int:
    """Return half the number of words of the smallest generation."""
    return int(_SHARE * min(sum(len(split_words(text)) for text in texts) for texts in generations))


def find_warnings(
    name: str, figures: Mapping[str, Metric], base: Mapping[str, Metric], tolerance: float
) -> list[DiversityAlarm]:
    """Return the metrics that are worse, beyond the tolerance and both intervals.

    Metrics based on too few records on either side are not judged: see ``find_small_samples``.
    """
    alarms = []
    for figure, metric in figures.items():
        first = base[figure]
        change = (metric.value - first.value) / (first.value or 1.0)
        is_worse = WORSE_DIRECTION[figure] * change > tolerance
        if is_worse and _are_disjoint(metric, first) and not metric.is_few and not first.is_few:
            alarms.append(DiversityAlarm(name, figure, change, is_from_zero=not first.value))
    return alarms


def find_small_samples(figures: Mapping[str, Metric], base: Mapping[str, Metric]) -> list[str]:
    """Return the metrics that are not judged because they are based on too few records."""
    return [name for name, metric in figures.items() if metric.is_few or base[name].is_few]


def _take_characters(texts: Sequence[str], characters: int) -> list[str]:
    """Return the first texts up to a number of characters; at least one."""
    selected, total = [], 0
    for text in texts:
        if total >= characters:
            break
        selected.append(text)
        total += len(text)
    return selected


def _measure_coverage(rows: Vectors, half: Vectors) -> Metric:
    """Return the share of one half of the reference that is covered by equally many vectors."""
    covered = nearest_neighbor_coverage(rows[: len(half)], half)
    metric = bootstrap(covered.astype(np.float64), name="coverage")
    return replace(metric, n=min(metric.n, len(rows)))


def _are_disjoint(first: Metric, second: Metric) -> bool:
    """Return whether two intervals do not overlap; a metric without one is a point."""
    return not (first.low <= second.high and second.low <= first.high)
