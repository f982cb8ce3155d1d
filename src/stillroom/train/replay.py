"""Replay of a training run: some steps are taken again from kept states, and bytes are compared.

The job is repeated in a scratch folder up to its training: models, records and the teacher's
targets are made again from the recipe. In place of all steps it takes those of the drawn segments,
each from the nearest kept state before it, and compares losses, records, weights and moments with
the committed row; and the first step, whose loss is the measure of the others. Then it loads the
committed last state, and the weights that the job writes from it are compared with those in its
output. What follows the training (calibration, evaluation) is repeated only if every segment is
drawn, or if the output holds other weights.

Bytes are equal on machines of one kind. Where instructions, torch, threads or device differ, a
segment is compared within bounds: the losses of its steps, and the distance of the weights from the
committed ones as a share of the distance that training moved them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from stillroom.errors import IntegrityError, count_noun
from stillroom.jobs.journal import read_journal
from stillroom.jobs.replay import (
    JournalReplayer,
    ReplayJob,
    compare_output,
    read_phases,
    sum_phases,
    sum_work,
)
from stillroom.jobs.segments import (
    COMMITTED_FOLDER,
    CommittedSegment,
    ReplayRequest,
    SegmentOutcome,
    read_segments,
)
from stillroom.provenance import digest_json
from stillroom.provenance.artifact import list_files
from stillroom.train.settings import MAX_THREADS

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.jobs.progress import Progress
    from stillroom.provenance import Artifact
    from stillroom.train.commitment import StateCommitter

__all__ = [
    "INITIAL_ROW",
    "TRAINING",
    "TrainingReplayJob",
    "TrainingReplayer",
    "list_taken_steps",
    "name_segment",
    "name_state_file",
]

INITIAL_ROW = "start"
"""Key of the first row: what is trained, how often it is committed, and the initial state."""

TRAINING = "train"
"""Name of the training run that is committed, of its journal and of its segments."""

# Of a loss, as a share of the run's first one, and of the weights, as a share of the way that a
# segment moved them. Measured with AVX2 in place of AVX-512 kernels (torch 2.13): at most 3.4e-6
# and 2.3e-4 in float32, 0.015 and 0.05 in bfloat16, whose products differ by processor.
_BOUNDS = {"float32": (3e-5, 1e-3), "bfloat16": (0.03, 0.15)}
_UNCHAINED = "does not follow from the row before it, which was another when it was written"


def name_segment(plan: Mapping[str, Any], last: int) -> str:
    """Return the name of the segment that ends after ``last`` steps: ``FIRST-LAST``."""
    every = int(plan.get("every", 1))
    return f"{(last - 1) // every * every}-{last}"


def name_state_file(name: str, step: int) -> str:
    """Return the name of the file with the state of a run after ``step`` steps."""
    return f"{name}-{step:06d}.safetensors"


def list_taken_steps(job: Job, steps: int) -> Sequence[int]:
    """Return the steps that a job takes: all, or in a replay those of the drawn segments."""
    return sorted(job.taken) if isinstance(job, TrainingReplayJob) else range(steps)


class _Numerics(BaseModel):
    precision: Literal["float32", "bfloat16"]
    threads: int = Field(ge=1, le=MAX_THREADS, strict=True)


class _PlanRow(BaseModel, strict=True):
    """The first row of a training."""

    identity: str
    steps: int = Field(ge=1)
    every: int = Field(ge=1)
    kept: list[int]
    numerics: _Numerics
    weights: str
    moments: str

    @model_validator(mode="after")
    def _states_end_segments(self) -> _PlanRow:
        ends = {*range(self.every, self.steps, self.every), self.steps}
        if not ends.issuperset(self.kept):
            raise ValueError("kept states end segments")
        return self


class _StepsRow(BaseModel, strict=True):
    """A row of some steps."""

    before: str
    losses: list[float] = Field(min_length=1)
    records: str
    tokens: int
    positions: int
    weights: str
    moments: str


class _TrainingDoneError(Exception):
    """Raised where a repeated job has nothing left to compare."""


@dataclass
class _CommittedTraining:
    """The rows of a finished training run, and which of its steps are taken again.

    ``drawn`` are the keys of the drawn rows; ``passes`` the first and last steps of each stretch
    that is taken from a kept state, or from the initial one.
    """

    folder: Path
    rows: Mapping[str, Mapping[str, Any]]
    drawn: set[str] = field(default_factory=set)
    passes: list[tuple[int, int]] = field(default_factory=list)

    def plan_passes(self) -> None:
        """Find the steps to take for the drawn rows, each from the nearest kept state."""
        for last in self.ends:
            if name_segment(self.plan, last) not in self.drawn:
                continue
            first = self.find_first(last)
            begin = self.find_start(first)
            if self.passes and begin <= self.passes[-1][1]:
                self.passes[-1] = self.passes[-1][0], last
            else:
                self.passes.append((begin, last))
        if self.passes and self.passes[0][0]:
            self.passes.insert(0, (0, 1))  # the first loss is the measure of the others

    def find_segment(self, step: int) -> str:
        """Return the key of the row that covers a step."""
        return name_segment(self.plan, min(end for end in self.ends if step < end))

    @property
    def plan(self) -> Mapping[str, Any]:
        """The first row."""
        return self.rows.get(INITIAL_ROW, {})

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
        return int(self.plan["steps"])

    @property
    def kept(self) -> list[int]:
        """Steps after which the state was kept."""
        return list(self.plan["kept"])

    @property
    def ends(self) -> list[int]:
        """The last step of each segment."""
        every = int(self.plan["every"])
        return [*range(every, self.steps, every), self.steps]

    @property
    def is_whole(self) -> bool:
        """Whether every segment was drawn."""
        return all(name_segment(self.plan, last) in self.drawn for last in self.ends)

    def find_first(self, last: int) -> int:
        """Return the first step of the segment that ends after ``last`` steps."""
        return (last - 1) // int(self.plan["every"]) * int(self.plan["every"])

    def find_start(self, first: int) -> int:
        """Return the step of the nearest kept state from which a segment can be computed."""
        return max((step for step in self.kept if step <= first), default=0)

    def find_row(self, last: int) -> Mapping[str, Any]:
        """Return the row of the segment that ends after so many steps; the first one for 0."""
        return self.rows.get(name_segment(self.plan, last), {}) if last else self.plan

    def find_state(self, step: int) -> Path:
        """Return the file with a kept state."""
        return self.folder / COMMITTED_FOLDER / name_state_file(TRAINING, step)

    def list_breaks(self) -> Iterator[SegmentOutcome]:
        """Yield rows that are missing, and rows that do not follow the row before."""
        before = self.plan
        for last in self.ends:
            row, name = self.find_row(last), f"{TRAINING}/{name_segment(self.plan, last)}"
            if not row:
                yield SegmentOutcome(name, "", "", "has no row: its steps were not committed")
            elif row["before"] != digest_json(before):
                yield SegmentOutcome(name, row["before"], digest_json(before), _UNCHAINED)
            before = row


class TrainingReplayJob(ReplayJob):
    """A job that repeats a finished training without the steps that were not drawn."""

    request: ReplayRequest
    training: _CommittedTraining
    taken: frozenset[int]
    outcomes: list[SegmentOutcome]
    choices: Collection[str] = ()
    is_exact = True
    """Whether the machine is of the kind that trained."""
    _is_trained = False

    @classmethod
    def begin(
        cls, request: ReplayRequest, training: _CommittedTraining, journals: Sequence[str]
    ) -> TrainingReplayJob:
        """Start the repetition.

        Args:
            request: The finished job.
            training: Its rows, and the drawn ones.
            journals: Journals besides that of the training whose lines are keyed by the step.
        """
        taken = frozenset(s for begin, end in training.passes for s in range(begin, end))
        names = {f"{name}/{step}" for name in journals for step in taken}
        names &= {segment.name for segment in read_segments(request.folder)}
        job = cls.open(request, frozenset(names), journals)
        job.request, job.training, job.taken, job.outcomes = request, training, taken, []
        return job

    def take_steps(
        self, committer: StateCommitter, take_step: Callable[[int], None]
    ) -> Mapping[str, float]:
        """Take the drawn steps, and load the last state; return the totals of the whole run.

        Args:
            committer: The initial state, and what computes rows.
            take_step: Takes one step of this number.
        """
        training = self.training
        committer.mark_origin()
        self._compare_start(committer)
        sound = self._find_sound_states(committer)
        for begin, end in training.passes:
            is_same = True
            if end < training.ends[0]:
                take_step(0)
                self._compare_first_loss(committer.notes.pop().loss)
            for last in (last for last in training.ends if begin < last <= end):
                first = training.find_first(last)
                is_due = first == begin or not is_same or not self.is_exact
                if is_due and first in training.kept:
                    committer.load(training.find_state(first))
                    is_same = first in sound
                for step in range(first, last):
                    take_step(step)
                is_same = self._compare_row(committer, last, is_comparable=is_same)
        if training.steps in training.kept:
            committer.load(training.find_state(training.steps))
        elif not training.passes or training.passes[-1][1] < training.steps:
            self.say("the last state was not kept: the output is compared if all steps are drawn")
            raise _TrainingDoneError
        self._is_trained = True
        rows = [training.find_row(last) for last in training.ends]
        return {
            "tokens": sum(row["tokens"] for row in rows),
            "positions": sum(row["positions"] for row in rows),
            "first_loss": rows[0]["losses"][0],
            "last_loss": rows[-1]["losses"][-1],
        }

    def _compare_start(self, committer: StateCommitter) -> None:
        """Compare what is trained, for how many steps, and the initial state."""
        plan, name = self.training.plan, f"{TRAINING}/{INITIAL_ROW}"
        self.is_exact = committer.numerics == plan["numerics"]
        if not self.is_exact:
            recorded, found = plan["numerics"], committer.numerics
            changes = "; ".join(
                f"{key} {recorded.get(key)}, here {found.get(key)}"
                for key in sorted({*recorded, *found})
                if recorded.get(key) != found.get(key)
            )
            self.say(
                f"this machine differs in kind from the one that trained ({changes}): steps are "
                "compared within bounds"
            )
        here = {"identity": committer.identity, "steps": committer.steps}
        if self.is_exact:
            here |= committer.digest_state()
        differing = [key for key, value in here.items() if plan.get(key) != value]
        what = f"differs: {', '.join(map(_NAMES.__getitem__, differing))}" if differing else ""
        within = "" if self.is_exact else "settings, data and steps are equal"
        self._note(name, digest_json({**plan, **here}), what, within)

    def _find_sound_states(self, committer: StateCommitter) -> set[int]:
        """Return the steps whose kept states are those of their rows; note the others."""
        sound = set()
        for step in self.training.kept:
            path, row = self.training.find_state(step), self.training.find_row(step)
            digests = committer.digest_file(path)
            if all(row.get(key) == value for key, value in digests.items()):
                sound.add(step)
                continue
            what = "is not the state that was committed"
            name = f"{COMMITTED_FOLDER}/{path.name}"
            self.outcomes.append(SegmentOutcome(name, row["weights"], digests["weights"], what))
        return sound

    def _compare_row(self, committer: StateCommitter, last: int, *, is_comparable: bool) -> bool:
        """Compare the row of the steps just taken; return whether it is equal."""
        training = self.training
        key, row = name_segment(training.plan, last), training.find_row(last)
        found = committer.describe(training.find_row(training.find_first(last)))
        name = f"{TRAINING}/{key}"
        within, what = "", ""
        if not is_comparable:
            what = "cannot be judged: the steps before it, or the state they start from, differ"
        elif found != row:
            if self.is_exact:
                what = _describe_difference(row, found, training.find_first(last))
            else:
                what, within = self._compare_nearly(committer, row, found, last)
        if what or key in training.drawn:
            self._note(name, digest_json(found), what, within)
        return not what

    def _compare_first_loss(self, found: float) -> None:
        """Compare the loss of the first step, where its segment is not drawn."""
        training = self.training
        bound, _ = _BOUNDS[training.plan["numerics"]["precision"]]
        claimed = training.find_row(training.ends[0])["losses"][0]
        gap = 0.0 if repr(claimed) == repr(found) else abs(claimed - found) / max(abs(found), 1e-9)
        if not gap <= (0 if self.is_exact else bound):
            name = f"{TRAINING}/{name_segment(training.plan, training.ends[0])}"
            what = f"has the loss {claimed!r} in step 1, recomputed {found!r}"
            self._note(name, digest_json(found), what)

    def _compare_nearly(
        self, committer: StateCommitter, row: Mapping[str, Any], found: Mapping[str, Any], last: int
    ) -> tuple[str, str]:
        """Return what differs beyond the bounds, or the bounds that hold."""
        training = self.training
        bound, most = _BOUNDS[training.plan["numerics"]["precision"]]
        scale = max(abs(training.find_row(training.ends[0])["losses"][0]), 1e-9)
        pairs = zip(row["losses"], found["losses"], strict=False)
        gaps = [0.0 if repr(old) == repr(new) else abs(old - new) / scale for old, new in pairs]
        gap = max(gaps)
        is_near = all(one <= bound for one in gaps)  # NaN is near NaN alone
        is_whole = len(row["losses"]) == len(found["losses"])
        if not (is_near and is_whole and row["records"] == found["records"]):
            return _describe_difference(row, found, training.find_first(last)), ""
        within = f"losses by {gap:.1e} of the first one (bound {bound:g})"
        if last in training.kept:
            distance = committer.measure_distance(training.find_state(last))
            if not distance <= most:
                return (
                    f"has weights that differ by {distance:.1e} of the way that training moved "
                    f"them (bound {most:g})"
                ), ""
            within += f", weights by {distance:.1e} of their way (bound {most:g})"
        return "", within

    def _note(self, name: str, found: str, what: str, within: str = "") -> None:
        committed = self.session.committed.get(name)
        result = committed.result if committed is not None else ""
        self.outcomes.append(SegmentOutcome(name, result, found, what, "" if what else within))

    @contextmanager
    def phase(
        self, name: str, total: int = 0, unit: str = "steps", *, done: int = 0, weight: float = 0
    ) -> Iterator[Progress]:
        """Run one phase; the first one after the training ends the job if nothing is left.

        Trainers write the weights before they measure them, so that these are compared here.
        """
        self._compare_weights()
        with super().phase(name, total, unit, done=done, weight=weight) as progress:
            yield progress

    def finish(self, *arguments: Any, **details: Any) -> Artifact:
        """Publish the repetition in the scratch folder, if all of it was repeated."""
        self._compare_weights()
        return super().finish(*arguments, **details)

    def _compare_weights(self) -> None:
        """End the job with the weights it wrote, unless all of it is repeated."""
        if not self._is_trained or (self.training.is_whole and self.is_exact):
            return
        recorded = {entry.path: entry.digest for entry in self.request.artifact.files}
        written = [entry for entry in list_files(self.work) if entry.path.endswith(".safetensors")]
        self._is_trained = False  # to be compared once
        if not self.is_exact:
            self.say("weights were not compared: this machine may round their export otherwise")
            raise _TrainingDoneError
        for entry in written:
            found, what = recorded.get(entry.path, ""), ""
            if found in self.choices:
                self.say(
                    f"{entry.path} is not what was trained but its start: whether it is rightly "
                    "kept is recomputed if all segments are drawn"
                )
                found = entry.digest
            elif found != entry.digest:
                what = "are not the weights of the committed last state"
            self.outcomes.append(SegmentOutcome(entry.path, found, entry.digest, what))
        raise _TrainingDoneError


def _check_rows(folder: Path, rows: Mapping[str, Any]) -> None:
    try:
        _PlanRow.model_validate(rows.get(INITIAL_ROW))
        for key, row in rows.items():
            if key != INITIAL_ROW:
                _StepsRow.model_validate(row)
    except ValidationError as error:
        raise IntegrityError(
            f"the rows of the training cannot be read: {error.errors()[0]['msg']}",
            code="replay.segments",
            where=str(folder / COMMITTED_FOLDER / f"{TRAINING}.jsonl"),
            expected="a first row with the plan, and one for each segment of steps",
            next="restore the file, or make the artifact again",
        ) from error


_NAMES = {
    "identity": "settings, records or seed",
    "steps": "the number of steps",
    "weights": "the initial weights",
    "moments": "the initial state of the optimizer",
}


def _describe_difference(row: Mapping[str, Any], found: Mapping[str, Any], first: int) -> str:
    """Return what differs between a committed row and a recomputed one, the earliest first."""
    if row.get("before") != found["before"]:
        return _UNCHAINED
    if row.get("records") != found["records"]:
        return "read other records than those of the recipe"
    losses = row.get("losses", [])
    if len(losses) != len(found["losses"]):
        return f"has {count_noun(len(losses), 'step')}, not {len(found['losses'])}"
    for number, (old, new) in enumerate(zip(losses, found["losses"], strict=True)):
        if old != new:
            return f"has the loss {old!r} in step {first + number + 1}, recomputed {new!r}"
    names = [name for name in ("weights", "moments") if row.get(name) != found[name]]
    return f"ends in other {' and '.join(names) or 'totals'} than its steps give"


@dataclass(frozen=True)
class TrainingReplayer(JournalReplayer):
    """Replays jobs that train a network with ``stillroom.train.loop``.

    Args:
        lighten: Returns the recipe without stored targets, which are made anew; and, unless the
            second argument tells that every segment is drawn, without what a replay of some steps
            does not need, as measurements before the training.
        find_reason: Returns why a job of this recipe cannot be repeated; or empty.
        list_choices: Returns the digests of weights that the job may publish in place of the
            trained ones, as those of its start.
    """

    journals: tuple[str, ...] = (TRAINING,)
    lighten: Callable[[Any, bool], Any] = lambda recipe, is_whole: recipe
    find_reason: Callable[[Any], str] = lambda recipe: ""
    list_choices: Callable[[Any], Collection[str]] = lambda recipe: ()

    def find_open(self, request: ReplayRequest) -> str:
        """Return why the steps cannot be taken again; or empty."""
        if reason := super().find_open(request) or self.find_reason(request.recipe):
            return reason
        if not self._read(request, frozenset()).plan:
            return (
                "its steps were not committed: it was trained by several processes, or begun by an "
                "earlier version"
            )
        return ""

    def estimate_costs(
        self, request: ReplayRequest, segments: Sequence[CommittedSegment]
    ) -> dict[str, float]:
        """Return the seconds of the steps that each segment takes from its nearest kept state."""
        training = self._read(request, frozenset())
        seconds = sum_phases(request.folder, (TRAINING,)) / training.steps
        costs = {}
        for last in training.ends:
            first = training.find_first(last)
            cost = seconds * (last - training.find_start(first))
            costs[f"{TRAINING}/{name_segment(training.plan, last)}"] = cost
            others = (name for name in self.journals if name != TRAINING)
            costs |= {f"{name}/{step}": cost for name in others for step in range(first, last)}
        return {one.name: costs.get(one.name, 0.0) for one in segments}

    def estimate_rest(self, request: ReplayRequest, *, is_whole: bool) -> float:
        """Return the seconds of opening inputs and of the other phases: the later ones if whole."""
        phases = read_phases(request.folder)
        names = [name for name, _ in phases]
        counted = phases if is_whole or TRAINING not in names else phases[: names.index(TRAINING)]
        opening = sum_work(request.folder) - sum_phases(request.folder)
        return opening + sum(seconds for name, seconds in counted if name != TRAINING)

    def replay(self, request: ReplayRequest, names: frozenset[str]) -> Iterator[SegmentOutcome]:
        """Take the steps of the named segments again, and compare them and the written weights."""
        yield from self._compare_journals(request)
        training = self._read(request, names)
        breaks = list(training.list_breaks())
        yield from breaks
        if not all(map(training.find_row, training.ends)):
            return
        taken = sum(end - begin for begin, end in training.passes)
        request.reporter.say(
            f"{taken} of {training.steps} steps are taken again, from "
            f"{len([step for step in training.kept if step != training.steps])} kept states"
        )
        fit = request.recipe.train  # type: ignore[attr-defined]  # the recipes of these kinds
        fit = fit.model_copy(update={"threads": training.plan["numerics"]["threads"]})
        recipe = request.recipe.model_copy(update={"train": fit})
        recipe = self.lighten(recipe, training.is_whole)
        others = tuple(name for name in self.journals if name != TRAINING)
        job = TrainingReplayJob.begin(replace(request, recipe=recipe), training, others)
        job.choices = self.list_choices(recipe)
        artifact: Artifact | None = None
        try:
            artifact = request.run(recipe, job)
        except _TrainingDoneError:
            pass
        finally:
            job.close()
        yield from job.outcomes
        yield from job.session.list_outcomes()
        if artifact is not None:
            yield from compare_output(request, artifact, job.out, self.course)

    def _read(self, request: ReplayRequest, names: frozenset[str]) -> _CommittedTraining:
        rows = read_journal(request.folder / COMMITTED_FOLDER / f"{TRAINING}.jsonl")
        training = _CommittedTraining(request.folder, rows)
        if rows:
            _check_rows(request.folder, rows)
            for name in names:
                journal, _, key = name.partition("/")
                training.drawn.add(key if journal == TRAINING else training.find_segment(int(key)))
            training.plan_passes()
        return training
