"""Decision of a comparison of sentence readers: which of them to use, and the sentence about it.

A reader is better than another where the paired 95 % interval of right words lies on its side
twice: at equal coverage, and with each reader as it is served. Where they differ on fewer than 25
questions, McNemar's exact test must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import count_noun
from stillroom.evaluate import Metric, paired_difference
from stillroom.evaluate.metrics.bootstrap import MIN_UNITS
from stillroom.provenance import ARTIFACT_FILE, read_artifact
from stillroom.rag.answer_selection.judging import (
    READER_NAMES,
    describe_training,
    find_start_name,
)
from stillroom.rag.answer_selection.reader import OVERLAP_READER, PACKAGED_READERS

if TYPE_CHECKING:
    from stillroom.rag.evaluation.answer_job import GradedAnswer
    from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe

__all__ = [
    "BASE_ARM",
    "ArmComparison",
    "ComparedArm",
    "ReaderDecision",
    "ReaderSides",
    "SilenceProbe",
    "decide_reader",
    "format_difference",
]

BASE_ARM = "base"
_MIN_DIFFERING = 6  # questions; of fewer, McNemar's exact test is never below .05


@dataclass(frozen=True, slots=True)
class SilenceProbe:
    """Whether an arm was silent without the documents that answer, and its probability."""

    abstained: bool
    probability: float


@dataclass(frozen=True, slots=True)
class ReaderDecision:
    """Which arm answers best, and the sentence that says so.

    ``reader`` is the reference of the reader that answers instead of the first one; empty if the
    first one does. ``answers`` names the reader that answers, in words.
    """

    arm: str
    reader: str
    line: str
    answers: str

    def to_json(self) -> dict[str, str]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ComparedArm:
    """Answers of one arm, with where it is silent, and whether each answer holds the right words.

    ``threshold`` is the probability below which it is silent; 0 if it decides itself. ``served``
    tells of each answerable question whether the answer as the arm is served holds the words, and
    ``served_silent`` where it is silent then.
    """

    rows: Sequence[GradedAnswer]
    silent: frozenset[str]
    threshold: float
    holds: Mapping[str, float]
    served: Mapping[str, float]
    served_silent: frozenset[str]


@dataclass(frozen=True, slots=True)
class ReaderSides:
    """Arms that are better or worse than the first in both differences, and other objections.

    ``loud``: readers that are silent on significantly fewer questions without an answer.
    ``above``: readers that, as served, hold the right words on more questions. ``is_ahead``:
    whether the first is better than any arm at equal coverage.
    """

    better: list[str]
    beaten: list[str]
    loud: list[str]
    above: list[str]
    is_ahead: bool


@dataclass(frozen=True, slots=True)
class ArmComparison:
    """Arms by name, the first reader first, and the probes of their silence by arm and question.

    Figures are named ``HEAD/ARM/FIGURE``. ``twins`` are arms with the weights of the first one.
    """

    recipe: AnswerEvaluationRecipe
    arms: Mapping[str, ComparedArm]
    probes: Mapping[tuple[str, str], SilenceProbe]
    head: str = "reader"
    twins: Sequence[str] = ()

    @property
    def first(self) -> str:
        """Name of the first arm."""
        return next(iter(self.arms))

    @property
    def readers(self) -> Mapping[str, str]:
        """References of the readers by arm."""
        return self.recipe.compare.readers if self.recipe.compare is not None else {}

    @property
    def labels(self) -> dict[str, str]:
        """What each arm is called in sentences; without its article, in tables."""
        labels = {
            arm: READER_NAMES.get(self.readers.get(arm, ""), f"the {arm} reader")
            for arm in self.arms
        }
        return labels | {self.first: f"the {self.first} reader", BASE_ARM: "the generating model"}

    @property
    def shown(self) -> dict[str, ComparedArm]:
        """The arms that have a column: the first one's is that of its twins, too."""
        return {arm: side for arm, side in self.arms.items() if arm not in self.twins}

    @property
    def columns(self) -> list[str]:
        """What each arm that is shown is called at the head of its column."""
        names = [self.labels[arm].removeprefix("the ") for arm in self.shown]
        names[0] += "".join(f", which is {self.labels[arm]}" for arm in self.twins)
        return names

    def find_differences(self, *, served: bool = False) -> dict[str, Metric]:
        """Return the paired difference of the first arm from each other one.

        It is named ``HEAD/FIRST_minus_ARM``.
        """
        values = {arm: side.served if served else side.holds for arm, side in self.arms.items()}
        ours = values[self.first]
        return {
            arm: paired_difference(
                [ours[name] for name in theirs],
                list(theirs.values()),
                seed=self.recipe.seed,
                name=f"{self.head}/{self.first}_minus_{arm}{'_served' if served else ''}",
            )
            for arm, theirs in values.items()
            if arm != self.first
        }

    def list_silence(self, arm: str) -> dict[str, float]:
        """Return whether an arm as served is silent on each question without an answer."""
        side = self.arms[arm]
        found = {
            row.question.id: float(row.question.id in side.served_silent)
            for row in side.rows
            if not row.question.is_answerable
        }
        probes = self.probes.items()
        return found | {name: float(one.abstained) for (other, name), one in probes if other == arm}

    def find_sides(self, differences: Mapping[str, Metric]) -> ReaderSides:
        """Return how the arms stand to the first, at equal coverage and as they are served."""
        served = self.find_differences(served=True)
        quiet = {arm: self.list_silence(arm) for arm in self.arms}
        loud = []
        for arm in differences:
            both = [name for name in quiet[self.first] if name in quiet[arm]]
            ours, theirs = ([quiet[side][name] for name in both] for side in (self.first, arm))
            gap = paired_difference(ours, theirs, seed=self.recipe.seed, name=arm)
            if gap.low > 0 and not gap.is_few:  # suspicion is enough: no test has to agree
                loud.append(arm)
        return ReaderSides(
            [arm for arm, one in differences.items() if one.side() < 0 and served[arm].side() < 0],
            [arm for arm, one in differences.items() if one.side() > 0 and served[arm].side() > 0],
            loud,
            [arm for arm, one in served.items() if arm != BASE_ARM and one.value < 0],
            any(one.side() > 0 for one in differences.values()),
        )


def decide_reader(
    comparison: ArmComparison,
    differences: Mapping[str, Metric],
    *,
    is_synthetic: bool,
    trained: str = "",
    caveat: str = "",
) -> ReaderDecision:
    """Return the arm to use: another one only where both intervals lie above the first's.

    But a trained reader has to be better than the packaged one that answers without training.

    ``trained`` and ``caveat`` are as for ``add_comparison``.
    """
    compared, readers, first = comparison.arms, comparison.readers, comparison.first
    sides = comparison.find_sides(differences)
    own, training = _describe_training(trained or readers[first], readers[first])
    labels = comparison.labels | ({first: own} if own else {})
    better = [arm for arm in sides.better if arm in readers and arm not in sides.loud]
    if not better:  # the model reads for nobody, so it never replaces a reader
        better = [arm for arm in sides.better if arm == BASE_ARM and arm not in sides.loud]
    best = min(better, key=lambda arm: differences[arm].value, default="")
    best = best or _find_untrained(comparison, sides) or first
    count = len(compared[first].holds)
    line = training + _write_head(comparison, sides, best, labels)
    if own:
        line += (
            " Training may help with thousands of people's questions that name their evidence "
            "(--questions FILE)."
        )
    arms = ", ".join(
        f"{labels[arm]} {_share(compared[arm].holds.values())} ({format_difference(metric)}"
        + (f" on {metric.n}" if metric.n < count else "")
        + ")"
        for arm, metric in differences.items()
        if labels[arm] != labels[first]  # its twin
    )
    if count:
        line += f" Share of {_count(count)} with the right words: {labels[first]} "
        line += _share(compared[first].holds.values())
        line += f"; {arms}, with differences and their 95 % intervals." if arms else "."
    served = "; ".join(
        f"{labels[arm]} {_share(side.served.values())}, "
        f"{_share([float(name in side.served_silent) for name in side.served])}"
        for arm, side in compared.items()
        if arm == first or labels[arm] != labels[first]
    )
    line += f" As served (right words, silent): {served}." if count else ""
    line += f" {caveat}" if caveat else ""
    if is_synthetic:
        line += (
            " These questions were generated; only questions by people can decide (stillroom make "
            "FOLDER --questions FILE)."
        )
    reader = readers[best] if best in readers and best != first else ""
    return ReaderDecision(best, reader, line, labels[best if reader else first])


def _find_untrained(comparison: ArmComparison, sides: ReaderSides) -> str:
    """Return the packaged reader that answers where nothing is trained, or an empty string.

    That is the case if the first was trained from another packaged reader and is no better: a gain
    over its start says nothing of this one.
    """
    folder = Path(comparison.readers.get(comparison.first, ""))
    if not (folder / ARTIFACT_FILE).is_file():
        return ""
    artifact = read_artifact(folder)
    start = find_start_name(artifact.parents)
    if artifact.details.get("kept") != "trained" or start not in READER_NAMES.values():
        return ""
    others = {arm for arm, name in comparison.readers.items() if name in PACKAGED_READERS}
    others = {arm for arm in others if READER_NAMES[comparison.readers[arm]] != start}
    return min(others - {*sides.beaten, *sides.loud}, default="")


def _write_head(
    comparison: ArmComparison, sides: ReaderSides, best: str, labels: Mapping[str, str]
) -> str:
    """Return the first sentence of a decision."""
    compared, readers, first = comparison.arms, comparison.readers, comparison.first
    count, own = len(compared[first].holds), labels[first]
    control = next(
        (arm for arm, name in readers.items() if name == OVERLAP_READER and arm != first), ""
    )
    # These questions chose the trained reader over its start.
    is_selected = comparison.recipe.questions in readers.values()
    beaten = [
        labels[arm]
        for arm in sides.beaten
        if not (is_selected and readers.get(arm) in PACKAGED_READERS)
    ]
    if len(compared) == 1:
        return f"Nothing to compare: {own} is the only reader."
    if best not in {first, *sides.better}:
        return (
            f"Not decided: {own} is not shown to be better than {labels[best]}, without training."
        )
    if best != first:
        how = " (`--answering generate`)" if best == BASE_ARM else ""
        return f"Do not use {own}: {labels[best]} is better{how}."
    if count < MIN_UNITS:
        is_few = "is too few" if count == 1 else "are too few" if count else "has an answer"
        return f"Not decided: {_count(count)} {is_few} ({MIN_UNITS} are required)."
    if loud := [labels[arm] for arm in sides.better if arm in sides.loud]:
        return (
            f"Not decided: {' and '.join(loud)} gives the right words more often than {own}, "
            "but is less often silent where there is no answer."
        )
    if sides.above and sides.is_ahead:
        return (
            f"Not decided: as served, {labels[sides.above[0]]} gives the right words more often "
            f"than {own}, which is better only if all are silent equally often."
        )
    if beaten and (not control or labels[control] in beaten):
        return f"Use {own}: it is better than {' and than '.join(beaten)}."
    line = f"Not decided: no significant difference between {own} and "
    line += labels.get(control, "others")
    if control in compared:
        ours = compared[first].holds
        apart = sum(value != ours[name] for name, value in compared[control].holds.items())
        if 0 < apart < _MIN_DIFFERING:
            they = "which is" if apart == 1 else "which are"
            line += f": they differ on {apart} of {_count(count)}, {they} too few to tell"
            line += f" ({_MIN_DIFFERING} are required)"
    return f"{line}."


def _describe_training(reference: str, reader: str) -> tuple[str, str]:
    """Return what the reader is called that answers in place of a trained one, and why.

    The name is empty where the trained one answers, as are both where nothing was trained.
    ``reader`` is the reference of the reader that answers.
    """
    folder = Path(reference)
    if not (folder / ARTIFACT_FILE).is_file():
        return "", ""
    artifact = read_artifact(folder)
    line = describe_training(artifact.parents, artifact.details)
    if not line or artifact.details["kept"] != "start":
        return "", f"{line} " if line else ""
    name = start = find_start_name(artifact.parents)
    if reader in PACKAGED_READERS and READER_NAMES[reader] != start:
        name = READER_NAMES[reader]
        line += f" {name.capitalize()} answers in its place."
    return name, f"{line} "


def _count(number: int) -> str:
    return count_noun(number, "question") if number else "no question"


def _share(values: Iterable[float]) -> str:
    every = list(values)
    return f"{sum(every) / len(every):.2f}" if every else "none"


def format_difference(metric: Metric) -> str:
    """Return a difference with its interval, or why there is none."""
    if metric.value != metric.value:
        return metric.note
    interval = "" if metric.low != metric.low else f" [{metric.low:+.2f}, {metric.high:+.2f}]"
    return f"{metric.value:+.2f}{interval}"
