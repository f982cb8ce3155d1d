"""Replay of a run (spot check): a draw of the segments of all its jobs is recomputed and compared.

Each job commits its work in segments (``stillroom.jobs.segments``); its kind says how they are
recomputed (``JobKind.replayer``). Drawn here over all jobs, parents included. What is assembled
from the segments (files of records, report figures) is assembled again for every job.

59 drawn find forgery of 5 % of many segments with 95 %, since 1 - 0.95^59 = 0.952 (see
``stillroom.flow.draw``). Forging one segment of many is found only as often as it is drawn; ``all``
finds it always.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillroom import __version__
from stillroom.errors import RecipeError, StillroomError
from stillroom.flow.draw import (
    Stratum,
    draw_segments,
    find_detected_count,
    find_single_chance,
)
from stillroom.flow.job import find_job_kind, run_job
from stillroom.flow.pipeline import collect_decision, write_run_report
from stillroom.flow.recipe import FlowRecipe
from stillroom.flow.step_comparison import compare_steps
from stillroom.jobs import QuietReporter, Reporter
from stillroom.jobs.replay import describe_difference, has_processor_seconds, sum_work
from stillroom.jobs.segments import (
    CommittedSegment,
    Replayer,
    ReplayRequest,
    SegmentOutcome,
    compare_commitment,
)
from stillroom.provenance import (
    ARTIFACT_FILE,
    Artifact,
    digest_file,
    read_artifact,
    resolve_parent,
)
from stillroom.provenance.artifact import describe_machine_differences, locate_manifest
from stillroom.provenance.digests import load_json
from stillroom.provenance.signing import make_statement
from stillroom.provenance.sources import is_reference, list_ancestors
from stillroom.provenance.summaries import SUMMARY_TYPE
from stillroom.recipes import Recipe, list_references, load_recipe, parse_recipe

__all__ = [
    "JobReplay",
    "ReplayAmount",
    "ReplayPlan",
    "ReplayResult",
    "move_inputs",
    "plan_replay",
]

_POLICY = "urn:stillroom:replay"
_CONFIDENCE = 0.95
_MADE_BY_JOBS = {"records", "index", "media", "report"}
"""Kinds of parents that are artifacts; a checkpoint may also come from elsewhere."""


@dataclass(frozen=True, slots=True)
class ReplayAmount:
    """How many segments to draw: a number, a share from 0 to 1, or all."""

    count: int = 0
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> ReplayAmount:
        """Read ``all``, a whole number (59), or a share (0.1, 10%).

        Raises:
            RecipeError: If it is none of them.
        """
        with suppress(ValueError):
            if text == "all":
                return cls(share=1.0)
            share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
            if text.isdecimal() and share >= 1:
                return cls(count=int(text))
            if 0 < share <= 1:
                return cls(share=share)
        raise RecipeError(
            f"'{text}' is not a number of segments",
            code="replay.amount",
            where="--replay",
            expected="all, a number such as 59, or a share such as 0.1 or 10%",
            next="stillroom verify RUN --replay 59",
        )

    def of(self, total: int) -> int:
        """Return the number to draw of so many; of a share at least one."""
        wanted = self.count or max(1, math.ceil(self.share * total))
        return min(wanted, total)


@dataclass
class JobReplay:
    """One job of a run: its segments, the drawn ones, and what their replay found.

    ``open`` is why its segments cannot be recomputed; ``seconds`` is what the job took, ``costs``
    about what each segment took, ``spent`` what its replay took: processor seconds, of jobs of
    earlier versions the time.
    """

    folder: Path
    name: str
    kind: str
    artifact: Artifact
    segments: Sequence[CommittedSegment] = ()
    costs: Mapping[str, float] = field(default_factory=dict)
    open: str = ""
    seconds: float = 0.0
    machine: Sequence[str] = ()
    recipe: Recipe | None = None
    replayer: Replayer | None = None
    moved: tuple[tuple[str, str], ...] = ()
    drawn: frozenset[str] = frozenset()
    outcomes: list[SegmentOutcome] = field(default_factory=list)
    spent: float = 0.0
    is_measured: bool = True
    """Whether ``seconds`` are processor seconds."""

    @property
    def amount(self) -> str:
        """How many segments are drawn, in words."""
        if self.kind == "flow":
            return "what its steps give"
        return f"{len(self.drawn):,} of {len(self.segments):,} segments"

    @property
    def replayed(self) -> frozenset[str]:
        """The drawn segments that were recomputed: none of a job that could not be repeated."""
        return self.drawn & {outcome.name for outcome in self.outcomes}

    @property
    def differences(self) -> list[SegmentOutcome]:
        """The outcomes that differ."""
        return [outcome for outcome in self.outcomes if not outcome.is_same]

    @property
    def expected_seconds(self) -> float:
        """About what the replay takes: the drawn segments, opening inputs, assembling outputs."""
        if self.open or self.replayer is None:
            return 0.0
        is_whole = len(self.drawn) == len(self.segments)
        request = _make_request(self, self.folder, QuietReporter())
        rest = self.replayer.estimate_rest(request, is_whole=is_whole)
        return rest + sum(self.costs.get(name, 0.0) for name in self.drawn)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "job": self.name,
            "kind": self.kind,
            "segments": len(self.segments),
            "replayed": sorted(self.replayed),
            "open": self.open,
            "compared": len(self.outcomes),
            "within_bound": [
                {"name": one.name, "within": one.within} for one in self.outcomes if one.within
            ],
            "differences": [
                {
                    "name": one.name,
                    "committed": one.committed,
                    "replayed": one.replayed,
                    "what": str(one),
                }
                for one in self.differences
            ],
            "machine": list(self.machine),
            "cpu_seconds_of_making": round(self.seconds, 3),
            "cpu_seconds_of_replay": round(self.spent, 3),
        }


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay."""

    path: Path
    jobs: Sequence[JobReplay]
    seed: int
    strata: Sequence[Stratum]

    @property
    def total(self) -> int:
        """Number of segments that could be recomputed."""
        return sum(len(job.segments) for job in self.jobs if not job.open)

    @property
    def drawn(self) -> int:
        """Number of recomputed segments."""
        return sum(len(job.drawn) for job in self.jobs)

    @property
    def open_jobs(self) -> list[JobReplay]:
        """Jobs that were not replayed."""
        return [job for job in self.jobs if job.open]

    @property
    def differences(self) -> list[tuple[JobReplay, SegmentOutcome]]:
        """Every outcome that differs, with its job."""
        return [(job, outcome) for job in self.jobs for outcome in job.differences]

    @property
    def power(self) -> str:
        """Return in a sentence which forgeries such a draw finds."""
        count = find_detected_count(self.strata, _CONFIDENCE)
        if not count:
            return "No segment was recomputed."
        if missing := self.drawn - sum(len(job.replayed) for job in self.jobs):
            return f"{missing:,} of {self.drawn:,} drawn segments could not be recomputed."
        if count == 1 and self.drawn == self.total:
            return f"All {self.total:,} segments were recomputed: a single forged one is found."
        return (
            f"{self.drawn:,} of {self.total:,} segments were recomputed. Such a draw finds a "
            f"forgery of {count:,} of them ({count / self.total:.2%}) or more with "
            f"{_CONFIDENCE:.0%}, one of a single segment with "
            f"{find_single_chance(self.strata):.1%}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "seed": self.seed,
            "segments": self.total,
            "drawn": self.drawn,
            "finds_forged_segments": find_detected_count(self.strata, _CONFIDENCE),
            "confidence": _CONFIDENCE,
            "power": self.power,
            "jobs": [job.to_json() for job in self.jobs],
        }

    def to_statement(self) -> dict[str, Any]:
        """Return an in-toto Statement v1 with a SLSA verification summary (VSA) v1.

        Subjects are the manifests of all jobs. Jobs that stay open are in the extension field; they
        and segments that were not drawn keep ``STILLROOM_REPLAYED`` out of the verified levels. A
        replay that recomputed nothing has failed. Source:
        https://slsa.dev/verification_summary/v1.
        """
        complete = not self.open_jobs and self.drawn == self.total
        level = "STILLROOM_REPLAYED" if complete else "STILLROOM_REPLAYED_IN_PART"
        has_failed = bool(self.differences) or not self.drawn
        moment = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        subject = [
            {
                "name": f"{job.name}/{ARTIFACT_FILE}",
                "digest": {"sha256": digest_file(job.folder / ARTIFACT_FILE)},
            }
            for job in self.jobs
            if (job.folder / ARTIFACT_FILE).is_file()
        ]
        predicate = {
            "verifier": {"id": "urn:stillroom", "version": {"stillroom": __version__}},
            "timeVerified": moment,
            "resourceUri": f"urn:stillroom:artifact:{self.jobs[0].artifact.digest}",
            "policy": {"uri": _POLICY},
            "verificationResult": "FAILED" if has_failed else "PASSED",
            "verifiedLevels": ["FAILED" if has_failed else level],
            "stillroom_replay": self.to_json(),
        }
        return make_statement(subject, SUMMARY_TYPE, predicate)


@dataclass(frozen=True)
class ReplayPlan:
    """A draw that was not recomputed yet; ``plan_replay`` makes it."""

    path: Path
    jobs: Sequence[JobReplay]
    seed: int
    strata: Sequence[Stratum]
    reporter: Reporter

    @property
    def expected_seconds(self) -> float:
        """Processor seconds of the replay, by what was recorded when the work was done."""
        return sum(job.expected_seconds for job in self.jobs)

    def describe(self) -> str:
        """Return the cost in a sentence."""
        total = sum(len(job.segments) for job in self.jobs if not job.open)
        drawn = sum(len(job.drawn) for job in self.jobs)
        seconds = sum(job.seconds for job in self.jobs)
        return (
            f"{drawn:,} of {total:,} segments drawn by seed {self.seed}; to recompute them and "
            f"assemble all outputs again takes about {self.expected_seconds:.0f} s of processor "
            f"time, the making took {seconds:.0f} s"
        )

    def run(self) -> ReplayResult:
        """Recompute the drawn segments of every job and compare."""
        for number, job in enumerate(self.jobs, start=1):
            head = f"replay {number}/{len(self.jobs)} {job.name}"
            if job.open:
                self.reporter.say(f"{head}: open, {job.open}")
                continue
            self.reporter.say(f"{head}: {job.amount}")
            start = time.process_time()
            with tempfile.TemporaryDirectory(prefix="stillroom-replay-") as folder:
                try:
                    job.outcomes += _replay_job(job, Path(folder), self.reporter)
                except StillroomError as error:
                    what = f"cannot be repeated: {error.problems[0].what} [{error.code}]"
                    job.outcomes.append(SegmentOutcome("the job", "", "", what))
            job.spent = time.process_time() - start
        return ReplayResult(self.path, self.jobs, self.seed, self.strata)


def plan_replay(
    path: Path,
    amount: ReplayAmount,
    *,
    seed: int = 0,
    moved: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> ReplayPlan:
    """Draw segments of an artifact and its ancestors.

    ``seed`` is to be chosen by who verifies, after the run was published; ``moved`` gives the new
    paths of inputs by their old ones.

    Raises:
        DataError: If the folder holds no artifact.
        IntegrityError: If committed segments cannot be read.
    """
    read_artifact(path)
    jobs = [
        _examine_job(path, folder, artifact, moved or {})
        for folder, artifact in list_ancestors(path)
    ]
    reporter = reporter or QuietReporter()
    used = [before for job in jobs for _, before in job.moved]
    for old in moved or ():
        if not any(Path(before).is_relative_to(old) for before in used):
            reporter.warn(f"no input is moved from {old}; recipe.yaml of a job names its inputs")
    pool = [(job, one.name) for job in jobs if not job.open for one in job.segments]
    costs = [job.costs.get(name, 0.0) for job, name in pool]
    picked, strata = draw_segments(costs, amount.of(len(pool)), seed)
    for job in jobs:
        job.drawn = frozenset(pool[place][1] for place in picked if pool[place][0] is job)
    return ReplayPlan(path, [*jobs, *_list_absent(jobs)], seed, strata, reporter)


def _list_absent(jobs: Sequence[JobReplay]) -> list[JobReplay]:
    """Return an open entry for each parent that a job made and whose folder is not here."""
    absent: dict[str, JobReplay] = {}
    for job in jobs:
        for parent in job.artifact.parents:
            folder = resolve_parent(job.folder, parent)
            is_made = parent.kind in _MADE_BY_JOBS or bool(parent.claim)
            if is_made and not locate_manifest(folder).is_file():
                open_end = JobReplay(folder, parent.path, parent.kind, job.artifact)
                open_end.open = f"{job.name} was made from it ({parent.role}), but it is not here"
                absent.setdefault(parent.path, open_end)
    return list(absent.values())


def _examine_job(
    root: Path, folder: Path, artifact: Artifact, moved: Mapping[str, str]
) -> JobReplay:
    top = Path(root.absolute()).parent
    name = folder.relative_to(top).as_posix() if folder.is_relative_to(top) else str(folder)
    job = JobReplay(folder, name, "", artifact, seconds=sum_work(folder))
    if artifact.is_flat:
        job.open = "a command wrote it, and no recipe says how to repeat that"
        return job
    try:
        recipe = load_recipe(folder / "recipe.yaml")
        job.kind = recipe.kind
        job.outcomes += _compare_recipe(folder, artifact, recipe)
        if isinstance(recipe, FlowRecipe):
            job.recipe, job.seconds = recipe, 0.0
            if not _describes_run(artifact.details):
                job.open = "its artifact is not that of a flow"
            return job
        job.is_measured = has_processor_seconds(folder)
        job.recipe = move_inputs(recipe, artifact, folder, moved)
        job.moved = _list_moved(job.recipe, recipe, _read_as_written(folder))
        job.replayer = find_job_kind(recipe.kind).replayer
    except (StillroomError, OSError) as error:
        first = error.problems[0].what if isinstance(error, StillroomError) else str(error)
        job.open = f"its recipe cannot be read: {first}"
        return job
    if job.replayer is None:
        job.open = f"jobs of kind {recipe.kind} commit no segments"
        return job
    request = _make_request(job, folder, QuietReporter())
    job.open = (
        job.replayer.find_open(request) or _find_address(job.recipe) or _find_missing(job.recipe)
    )
    if not job.open:
        job.segments = job.replayer.list_segments(request)
        job.costs = job.replayer.estimate_costs(request, job.segments)
        job.outcomes += compare_commitment(folder, artifact)
    job.machine = describe_machine_differences(artifact)
    return job


def _read_as_written(folder: Path) -> Recipe:
    """Return the recipe of a job with the paths that it was started with, perhaps relative ones."""
    path = folder / "recipe.yaml"
    return parse_recipe(path.read_text(encoding="utf-8"), str(path))


def _list_moved(recipe: Recipe, *before: Recipe) -> tuple[tuple[str, str], ...]:
    """Return present and former places of a recipe's inputs, a relative former one first.

    Outputs name a place as it was written in the recipe.
    """
    pairs = {
        (_get_path(now), _get_path(then))
        for one in before
        for (_, now), (_, then) in zip(list_references(recipe), list_references(one), strict=True)
    }
    return tuple(
        sorted(
            (pair for pair in pairs if pair[0] != pair[1]),
            key=lambda pair: (pair[0], not Path(pair[1]).is_absolute(), pair[1]),
            reverse=True,
        )
    )


def _describes_run(details: Mapping[str, Any]) -> bool:
    """Return whether details are as a run writes them; a stranger's may hold anything."""
    steps, seconds, skipped = (details.get(key) for key in ("steps", "seconds", "skipped"))
    return (
        isinstance(steps, Mapping)
        and isinstance(seconds, Mapping)
        and isinstance(skipped or {}, Mapping)
        and isinstance(details.get("reused") or [], list)
        and steps.keys() <= seconds.keys()
        and all(isinstance(one, str) and ".." not in Path(one).parts for one in steps.values())
        and all(isinstance(one, int | float) for one in seconds.values())
    )


def _compare_recipe(folder: Path, artifact: Artifact, recipe: Recipe) -> Iterator[SegmentOutcome]:
    """Yield whether recipe and seed are not those that the artifact states."""
    digest = digest_file(folder / "recipe.yaml")
    if digest != artifact.recipe_digest:
        what = "is not the recipe whose digest artifact.json states"
        yield SegmentOutcome("recipe.yaml", artifact.recipe_digest, digest, what)
    if artifact.seed != recipe.seed:
        what = f"is {artifact.seed!r:.40}, and that of its recipe {recipe.seed}"
        yield SegmentOutcome("artifact.json seed", str(artifact.seed), str(recipe.seed), what)


def _find_address(recipe: Recipe) -> str:
    """Return the address of a server that the job would call; or empty.

    A recipe may be a stranger's: doing it again would send keys of this machine's environment, and
    passages, to where it says.
    """
    left: list[Any] = [recipe.model_dump(mode="json")]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            left += [part for key, part in value.items() if key not in {"license", "origin"}]
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and ("http://" in value or "https://" in value):
            return f"it would call a server: {value[:80]}"
    return ""


def _find_missing(recipe: Recipe) -> str:
    """Return the first input that is not here; or empty."""
    for path, value in list_references(recipe):
        if Path(value).is_absolute() and not Path(value).exists():
            key = ".".join(str(part) for part in path)
            return f"its input {key} is not at {value}; give its place by --input {value}=PATH"
    return ""


def move_inputs(
    recipe: Recipe, artifact: Artifact, folder: Path, moved: Mapping[str, str]
) -> Recipe:
    """Return a recipe with the present places of its inputs.

    Parents next to the job are taken from there, so that a run can be moved; others from the places
    in ``moved``.
    """
    data = recipe.model_dump(mode="json", by_alias=True)
    names = {Path(p.path).name for p in artifact.parents if str(p.path).startswith("../")}
    for path, value in list_references(recipe):
        place = _find_place(value, folder.parent, names, moved)
        if place == value:
            continue
        entry: Any = data
        for part in path[:-1]:
            entry = entry[part]
        entry[path[-1]] = place
    return type(recipe).model_validate(data)


def _find_place(value: str, near: Path, names: set[str], moved: Mapping[str, str]) -> str:
    scheme, mark, rest = value.partition(":")
    if is_reference(value) and rest.startswith("/") and not rest.startswith("//"):
        return f"{scheme}{mark}{_find_place(rest, near, names, moved)}"  # as scripted:/a/b.json
    if is_reference(value) or not Path(value).is_absolute():
        return value
    parts = Path(value).parts
    for number, part in enumerate(parts):
        if part in names and (near / part).exists():
            return str(near.joinpath(*parts[number:]))
    for old, new in moved.items():
        if Path(value).is_relative_to(old):
            return str(Path(new).absolute() / Path(value).relative_to(old))
    return value


def _get_path(reference: str) -> str:
    """Return the path in a reference with a scheme, as of ``scripted:/a/b.json``; or all of it."""
    return reference[reference.find(":/") + 1 :] if is_reference(reference) else reference


def _make_request(job: JobReplay, scratch: Path, reporter: Reporter) -> ReplayRequest:
    assert job.recipe is not None  # noqa: S101  # jobs without are open
    return ReplayRequest(
        job.folder, job.artifact, job.recipe, scratch, reporter, run_job, job.moved
    )


def _replay_job(job: JobReplay, scratch: Path, reporter: Reporter) -> Iterator[SegmentOutcome]:
    if job.kind == "flow":
        yield from _replay_flow(job, scratch)
    elif job.replayer is not None:
        yield from job.replayer.replay(_make_request(job, scratch, reporter), job.drawn)


def _replay_flow(job: JobReplay, scratch: Path) -> Iterator[SegmentOutcome]:
    """Compare a run with its recipe; assemble its report again from its steps, and compare that."""
    assert isinstance(job.recipe, FlowRecipe)  # noqa: S101  # jobs of this kind have one
    yield from compare_steps(job.folder, job.artifact, job.recipe)
    steps: Mapping[str, str] = job.artifact.details["steps"]
    done = {name: job.folder / folder for name, folder in steps.items()}
    out = scratch / _find_name(job.folder)
    out.mkdir()
    details = job.artifact.details
    skipped, reused = details.get("skipped", {}), details.get("reused") or ()
    answer = details.get("answer")
    decision = collect_decision(
        {name: read_artifact(folder) for name, folder in done.items()},
        answer if isinstance(answer, Mapping) else {},
    ).get("decision", "")
    written = write_run_report(out, done, details["seconds"], skipped, reused, decision)
    for name in written:
        stored = job.folder / name
        digests = digest_file(stored) if stored.is_file() else "", digest_file(out / name)
        same = digests[0] == digests[1]
        yield SegmentOutcome(
            name, *digests, "" if same else describe_difference(stored, out / name)
        )


def _find_name(folder: Path) -> str:
    """Return the name that a run's folder had when its report was written."""
    try:
        title = load_json((folder / "report.json").read_bytes())["title"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder.name
    return Path(str(title).removeprefix("Run ")).name or folder.name
