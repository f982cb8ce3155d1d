"""Decision of a comparison of sentence readers: which of them to use, and the sentence about it.

A reader is better than another where the paired 95 % interval of right words lies on its side
twice: at equal coverage, and with each reader as it is served. Where they differ on fewer than 25
questions, McNemar's exact test must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import count_noun
from stillroom.evaluate import Metric, paired_difference
from stillroom.evaluate.metrics.bootstrap import MIN_UNITS
from stillroom.provenance import ARTIFACT_FILE, read_artifact
from stillroom.rag.answer_selection.judging import (
    READER_NAMES,
    describe_training,
    find_start_name,
    format_difference,
    rate_training,
)
from stillroom.rag.answer_selection.reader import OVERLAP_READER, PACKAGED_READERS

if TYPE_CHECKING:
    from stillroom.rag.evaluation.answer_job import GradedAnswer
    from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe

__all__ = [
    "BASE_ARM",
    "READER_HEAD",
    "ArmComparison",
    "ComparedArm",
    "ReaderDecision",
    "ReaderSides",
    "SilenceProbe",
    "decide_reader",
]

BASE_ARM = "base"
READER_HEAD = "Reader: "
"""What the line of a decision begins with, before the name of the reader that answers."""
_MIN_DIFFERING = 6  # questions; of fewer, McNemar's exact test is never below .05
_KEEP = "Nothing to do."
_ASK = "Ask your own: stillroom make FOLDER --questions FILE."
_ADD = "Add more questions."  # to those of people
_VERDICTS = {
    "alone": ("No other reader was compared.", ""),
    "none": ("No question has an answer.", _ASK),
    "few": ("Nothing is proved: {questions} an answer, {least} are needed.", _ASK),
    "untested": ("Neither it nor training could be tested: {held} held out, {least} needed.", _ASK),
    "untrained": ("The {first} reader is not shown to be better{figure}.", _KEEP),
    "replaced": ("It is more often right than the {first} reader{figure}.", _KEEP),
    "model": ("The generating model is more often right{figure}: --answering generate.", ""),
    "loud": ("{Other} is more often right, but less often rightly silent.", _KEEP),
    "above": ("{Other} is more often right only because it answers more often.", _KEEP),
    "better": ("It is more often right than {other}{figure}.", _KEEP),
    "apart": ("Only {differing} tell it from {other}.", _ASK),
    "even": ("It is not shown better than {other}{figure}.", _ASK),
}
"""What decided which reader answers, and what is to be done."""
_TRAINING = {
    "": "",
    "helped": "Training on these documents helped.",
    "even": "Training on these documents showed no gain.",
    "hurt": "Training on these documents hurt.",
    "few": "Training is untested: {held} held out, {least} needed.",
    "unmeasured": "Training is untested: no held-out question has an answer.",
}
"""Whether training helped, by the outcomes of ``rate_training``."""


@dataclass(frozen=True, slots=True)
class SilenceProbe:
    """Whether an arm was silent without the documents that answer, and its probability."""

    abstained: bool
    probability: float


@dataclass(frozen=True, slots=True)
class ReaderDecision:
    """Which arm answers best, and the line of at most 35 words that says so.

    ``reader`` is the reference of the reader that answers instead of the first one; empty if the
    first one does. ``answers`` names the reader that answers, in words; ``notes`` are sentences
    that stand below the line.
    """

    arm: str
    reader: str
    line: str
    answers: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Training:
    """What training brought the first reader: a key of ``_TRAINING``, and the sentence of it.

    ``is_undone`` tells whether the weights of its ``start`` were kept; ``held`` is how many of how
    many questions tested it, in words.
    """

    outcome: str = ""
    held: str = ""
    line: str = ""
    start: str = ""
    is_undone: bool = False


@dataclass(frozen=True, slots=True)
class ComparedArm:
    """Answers of one arm, with where it is silent, and whether each answer holds the right words.

    ``threshold`` is the probability below which it is silent; 0 if it decides itself. ``served``
    tells of each answerable question whether the answer as the arm is served holds the words,
    ``served_silent`` where it is silent then, and ``served_first`` whether its first quote does
    (the model quotes nothing).
    """

    rows: Sequence[GradedAnswer]
    silent: frozenset[str]
    threshold: float
    holds: Mapping[str, float]
    served: Mapping[str, float]
    served_silent: frozenset[str]
    served_first: Mapping[str, float]


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
        kept = [labels[arm] for arm in self.twins if self.readers[arm] in READER_NAMES]
        own = kept[0] if kept else f"the {self.first} reader"
        return labels | {self.first: own, BASE_ARM: "the generating model"}

    @property
    def shown(self) -> dict[str, ComparedArm]:
        """The arms that have a column: the first one's is that of its twins, too."""
        return {arm: side for arm, side in self.arms.items() if arm not in self.twins}

    @property
    def columns(self) -> list[str]:
        """What each arm that is shown is called at the head of its column."""
        names = [self.labels[arm].removeprefix("the ") for arm in self.shown]
        others = {self.labels[arm] for arm in self.twins} - {self.labels[self.first]}
        names[0] += "".join(f", which is {name}" for name in sorted(others))
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
    readers, first = comparison.readers, comparison.first
    sides = comparison.find_sides(differences)
    training = _read_training(trained or readers[first])
    labels = comparison.labels
    if training.is_undone or readers[first] in PACKAGED_READERS:
        labels[first] = READER_NAMES.get(readers[first], training.start)
    better = [arm for arm in sides.better if arm in readers and arm not in sides.loud]
    if not better:  # the model reads for nobody, so it never replaces a reader
        better = [arm for arm in sides.better if arm == BASE_ARM and arm not in sides.loud]
    best = min(better, key=lambda arm: differences[arm].value, default="")
    best = best or _find_untrained(comparison, sides) or first
    reader = readers[best] if best in readers and best != first else ""
    used = labels[best if reader else first]
    verdict, other = _find_verdict(comparison, sides, best, labels)
    figure = _format_figure(comparison, differences, verdict, other)
    if verdict == "few" and training.outcome == "few" and is_synthetic:
        verdict = "untested"  # the few questions are those that were held out
    line = _write_line(
        comparison, verdict, (used, other, figure), labels, training, is_synthetic=is_synthetic
    )
    notes = [training.line] if training.line else []
    if training.is_undone:
        notes.append(
            "Training may help with thousands of people's questions that name their evidence "
            "(--questions FILE)."
        )
    notes += [caveat] if caveat else []
    if is_synthetic:
        notes.append(
            "These questions were generated; only questions by people can decide (stillroom make "
            "FOLDER --questions FILE)."
        )
    return ReaderDecision(best, reader, line, used, tuple(notes))


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


def _find_verdict(
    comparison: ArmComparison, sides: ReaderSides, best: str, labels: Mapping[str, str]
) -> tuple[str, str]:
    """Return what decided, a key of ``_VERDICTS``, and the arm that it is about, or none."""
    readers, first = comparison.readers, comparison.first
    count = len(comparison.arms[first].holds)
    others = [arm for arm in comparison.arms if labels[arm] != labels[first]]  # without its twins
    readable = sorted(others, key=lambda arm: (readers.get(arm) != OVERLAP_READER, arm == BASE_ARM))
    # These questions chose the trained reader over its start.
    is_selected = comparison.recipe.questions in readers.values()
    beaten = [
        arm for arm in sides.beaten if not (is_selected and readers.get(arm) in PACKAGED_READERS)
    ]
    loud = [arm for arm in sides.better if arm in sides.loud]
    if not others:
        return "alone", ""
    if best not in {first, *sides.better}:
        return "untrained", best
    if best != first:
        return ("model" if best == BASE_ARM else "replaced"), best
    if count < MIN_UNITS:
        return ("few" if count else "none"), ""
    if loud:
        return "loud", loud[0]
    if sides.above and sides.is_ahead:
        return "above", sides.above[0]
    if beaten and (readers.get(readable[0]) != OVERLAP_READER or readable[0] in beaten):
        return "better", readable[0] if readable[0] in beaten else beaten[0]
    apart = _count_apart(comparison, readable[0])
    return ("apart" if 0 < apart < _MIN_DIFFERING else "even"), readable[0]


def _count_apart(comparison: ArmComparison, arm: str) -> int:
    """Return the number of questions on which an arm and the first one differ."""
    ours = comparison.arms[comparison.first].holds
    return sum(value != ours[name] for name, value in comparison.arms[arm].holds.items())


def _format_figure(
    comparison: ArmComparison, differences: Mapping[str, Metric], verdict: str, other: str
) -> str:
    """Return the difference that decided, of the reader that answers from the other one.

    Two have to agree that one reader is better; where they do not, it is the one that objects.
    """
    served = comparison.find_differences(served=True)
    if verdict in {"better", "replaced", "model"}:
        metric = differences[other]
    elif verdict in {"even", "untrained"}:
        metric = min((differences[other], served[other]), key=Metric.side)
    else:
        return ""
    if verdict in {"replaced", "model"}:
        metric = replace(metric, value=-metric.value, low=-metric.high, high=-metric.low)
    return f" ({format_difference(metric)})"


def _write_line(
    comparison: ArmComparison,
    verdict: str,
    found: tuple[str, str, str],
    labels: Mapping[str, str],
    training: _Training,
    *,
    is_synthetic: bool,
) -> str:
    """Return the line: what answers, whether training helped, what decided, and what to do.

    ``found``: the reader that answers, the arm that it is compared with, the difference.
    """
    used, arm, figure = found
    text, advice = _VERDICTS[verdict]
    if advice == _ASK and not is_synthetic:
        advice = _ADD
    taught = "" if verdict == "untested" else _TRAINING[training.outcome]
    other, first = labels.get(arm, ""), comparison.first
    count = len(comparison.arms[first].holds)
    apart = _count_apart(comparison, arm) if arm else 0
    text = f"{taught} {text}".strip().format(
        first=first,
        other=other,
        Other=other[:1].upper() + other[1:],
        figure=figure,
        questions=count_noun(count, "question has", "questions have"),
        differing=f"{apart} of {count_noun(count, 'question')}",
        least=MIN_UNITS,
        held=training.held,
    )
    return " ".join(part for part in (f"{READER_HEAD}{used}.", text, advice) if part)


def _read_training(reference: str) -> _Training:
    """Return what training brought a reader; nothing where it was not trained from another."""
    folder = Path(reference)
    if not (folder / ARTIFACT_FILE).is_file():
        return _Training()
    artifact = read_artifact(folder)
    line = describe_training(artifact.parents, artifact.details)
    if not line:
        return _Training()
    tested = artifact.details.get("comparison", {}).get("n", 0)
    given = artifact.details.get("questions")  # an earlier version does not say it
    return _Training(
        rate_training(artifact.details)[0],
        f"{tested} of {count_noun(given, 'question')}" if given else count_noun(tested, "question"),
        line,
        find_start_name(artifact.parents),
        is_undone=artifact.details["kept"] == "start",
    )
