"""Pipeline run: steps in order, commit and run report; ``step_cache`` decides what is skipped.

A run's folder contains ``steps/NAME-KEY`` (one job folder each; ``step_cache`` makes the keys and
finds the steps to skip), ``report.json``, ``report.html`` and ``artifact.json``, the single commit
point: readers open the steps that it names, and unnamed steps are removed after it is written.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillroom.errors import CheckpointError, DataError, ResourceError, count_noun
from stillroom.evaluate.metrics.bootstrap import Metric
from stillroom.evaluate.report import Report, Section, Table, merge_reports
from stillroom.flow.inputs import check_inputs, resolve_inputs
from stillroom.flow.recipe import FlowRecipe
from stillroom.flow.step_cache import PreparedStep, prepare_step, remove_other_steps
from stillroom.jobs import (
    Estimate,
    Job,
    QuietReporter,
    Reporter,
    atomic_write,
    check_fits,
    describe_machine,
    emit_event,
    sum_work_seconds,
)
from stillroom.jobs.engines import Engine, open_engine
from stillroom.jobs.files import lock_folder
from stillroom.jobs.job import iter_events, sign_if_configured, write_manifest
from stillroom.objects.disk import full_disk_as_error
from stillroom.provenance import (
    ARTIFACT_FILE,
    Artifact,
    FileEntry,
    Parent,
    digest_file,
    digest_text,
    read_artifact,
)
from stillroom.provenance.artifact import describe_host, list_installed_versions
from stillroom.provenance.signing import SIGNATURE_FILE
from stillroom.provenance.signing.artifacts import LOCK_FILE
from stillroom.recipes import dump_recipe

__all__ = [
    "FlowRun",
    "collect_decision",
    "list_steps",
    "write_run_report",
]

_INSUFFICIENT_DATA_CODES = {
    "data.no-questions",
    "distill.nothing-kept",
    "rag.no-evidence",
    "synth.no-passages",
    "synth.nothing-kept",
    "train.no-records",
}
"""Error codes of steps that found too few data in the documents of a valid recipe."""
_LEFTOVER_FILE = re.compile(r"\.lock|\..*\.tmp")  # left by a kill before the first step


class FlowRun:
    """Run of one flow in one folder."""

    def __init__(self, recipe: FlowRecipe, out: Path, reporter: Reporter | None) -> None:
        """Prepare a run in ``out``; nothing is written before ``run``."""
        self.recipe, self.out = recipe, out.absolute()
        self.reporter = reporter or QuietReporter()
        self._warnings: list[str] = []

    def run(self, *, resume: bool, overwrite: bool) -> Artifact:
        """Execute every step without a result, then commit.

        Raises:
            DataError: If ``out`` is not a run, or is an unfinished one without ``resume``.
            MissingExtraError: If a step needs a package that is not installed.
            StillroomError: From a step; finished steps are kept for ``--resume``.
        """
        from stillroom.flow.job import require_job_extras

        self._refuse_foreign(overwrite=overwrite)
        check_inputs(self.recipe)
        if overwrite or not (self.out / ARTIFACT_FILE).is_file():
            for step in self.recipe.steps.values():
                require_job_extras(step.recipe)
            check_fits(self.estimate(), describe_machine(self.out), "flow")
            resolve_inputs(self.recipe.inputs)
        with full_disk_as_error(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        busy = ResourceError(
            f"another process is writing to {self.out}",
            code="resource.busy",
            where=str(self.out),
            expected="one process for each folder",
            next="wait for it, or choose another --out",
        )
        with lock_folder(self.out, busy):
            before = self._read_previous(resume=resume, overwrite=overwrite)
            with full_disk_as_error(self.out):
                (self.out / "steps").mkdir(exist_ok=True)
            if before is None:  # else that of the finished run stays until it is replaced
                self._write_recipe()
            for name in self.recipe.list_unused_inputs():
                self._warn(f"inputs.{name} is used by no step, nor by answer")
            done: dict[str, Path] = {}
            skipped: dict[str, str] = {}
            with open_engine(self.recipe.engine, self.reporter.say) as engine:
                for number, (name, step) in enumerate(self.recipe.steps.items(), start=1):
                    head = f"step {number}/{len(self.recipe.steps)} {name}"
                    if any(source in skipped for source in step.sources):
                        step = step.leave_out(skipped)  # the same with less
                    lacking = [source for source in step.sources if source in skipped]
                    if lacking:
                        skipped[name] = f"it needs {lacking[0]}"
                        self._warn(f"{head}: skipped, {skipped[name]}")
                        continue
                    ready = prepare_step(self.recipe, name, done, self.out, step)
                    progress = {"number": number, "of": len(self.recipe.steps)}
                    begun = {"name": name, "kind": step.recipe.kind, **progress}
                    emit_event(self.reporter, "step", begun)
                    try:
                        done[name] = self._run_step(ready, head, before, engine)
                    except (DataError, CheckpointError) as error:
                        if not self._may_skip(name, error, done):
                            raise
                        skipped[name] = error.problems[0].what
                        self._warn(f"{head}: skipped, {skipped[name]}")
            return self._commit(done, skipped, before)

    def _write_recipe(self) -> None:
        with atomic_write(self.out / "recipe.yaml") as file:
            file.write(dump_recipe(self.recipe))

    def _warn(self, line: str) -> None:
        self.reporter.warn(line)
        self._warnings.append(line)

    def _may_skip(
        self, name: str, error: DataError | CheckpointError, done: Mapping[str, Path]
    ) -> bool:
        """Return whether the run can end without a step.

        That is one that found too few data, or a reader whose base is not here: sentences are
        then picked without it.
        """
        answer = self.recipe.answer
        if answer is None or answer.index not in done or not self.recipe.find_spare_model():
            return False
        if isinstance(error, CheckpointError):
            return name == answer.reader
        return error.code in _INSUFFICIENT_DATA_CODES

    def estimate(self) -> Estimate:
        """Return the sum of the steps' estimates; unresolved inputs are left as placeholders.

        Raises:
            DataError: If an input of the flow or of a step is a path that does not exist.
        """
        from stillroom.flow.job import estimate_job

        check_inputs(self.recipe)
        total = Estimate()
        for step in self.recipe.steps.values():
            inputs = {f"inputs.{key}": value for key, value in self.recipe.inputs.items()}
            paths = {name: inputs.get(name, f"step:{name}") for name in step.sources}
            total = total + estimate_job(step.build(paths, self.recipe.seed))
        return total

    def _refuse_foreign(self, *, overwrite: bool) -> None:
        """Refuse a folder that is neither new, nor a run, nor an artifact to be overwritten."""
        if not self.out.exists():
            return
        if self.out.is_dir():
            names = {
                path.name for path in self.out.iterdir() if not _LEFTOVER_FILE.fullmatch(path.name)
            }
            is_run = "steps" in names and bool(names & {ARTIFACT_FILE, "recipe.yaml"})
            if not names or names == {"steps"} or is_run:
                return
            if overwrite and ARTIFACT_FILE in names:
                return
        suffix = ", so it is not overwritten" if overwrite else ""
        raise DataError(
            f"{self.out} exists and is not a run{suffix}",
            code="data.exists",
            expected="a new folder, or that of an earlier run",
            next="choose another --out",
        )

    def _read_previous(self, *, resume: bool, overwrite: bool) -> Artifact | None:
        """Return the artifact of the last finished run here, if any; called under the lock."""
        if overwrite:
            self._clear()
            return None
        finished = (self.out / ARTIFACT_FILE).is_file()
        unfinished = sorted(path.name for path in self.out.glob("steps/.*.partial"))
        started = unfinished or (not finished and (self.out / "recipe.yaml").is_file())
        if started and not resume:
            raise DataError(
                f"an unfinished run lies in {self.out}",
                code="data.unfinished",
                expected="--resume or --overwrite",
                next="add --resume to continue it, or --overwrite to start over",
            )
        return read_artifact(self.out) if finished else None

    def _clear(self) -> None:
        """Remove the last run; its artifact.json first, so that no reader opens a partial run."""
        (self.out / ARTIFACT_FILE).unlink(missing_ok=True)
        for path in self.out.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()

    def _run_step(
        self, ready: PreparedStep, head: str, before: Artifact | None, engine: Engine
    ) -> Path:
        from stillroom.flow.job import run_job

        if ready.find_finished():
            self.reporter.say(f"{head}: unchanged, kept")
            return ready.folder
        self.reporter.say(f"{head}: {ready.recipe.kind}")
        text = dump_recipe(ready.recipe)
        job = Job.start(
            ready.folder, text, seed=ready.recipe.seed, resume=True, reporter=self.reporter
        )
        steps = before.details.get("steps", {}) if before else {}
        if ready.name in steps:
            job.previous = self.out / steps[ready.name]
        artifact = run_job(ready.recipe, job, engine)
        seconds = sum_work_seconds(ready.folder)
        self.reporter.say(f"{head}: {artifact.kind} {artifact.digest[:12]} in {seconds:.1f} s")
        return ready.folder

    def _commit(
        self, done: Mapping[str, Path], skipped: Mapping[str, str], before: Artifact | None
    ) -> Artifact:
        """Write the report and artifact.json, then remove steps that they do not name."""
        steps = {name: folder.relative_to(self.out).as_posix() for name, folder in done.items()}
        artifacts = {name: read_artifact(folder) for name, folder in done.items()}
        seconds = {name: sum_work_seconds(folder) for name, folder in done.items()}
        with atomic_write(self.out / "steps.json") as file:
            json.dump(list_steps(steps, artifacts), file, indent=1)
        self._write_recipe()
        earlier = before.details.get("steps", {}) if before else {}
        reused = [name for name, folder in steps.items() if earlier.get(name) == folder]
        answer = self._describe_answer(artifacts)
        decision = collect_decision(artifacts, answer)
        line = decision.get("decision", "")
        timed = write_run_report(self.out, done, seconds, skipped, reused, line)
        ends = self.recipe.answer
        trained = [ends.reader, ends.model] if ends is not None else []
        artifact = Artifact(
            kind="report",
            files=(self._entry("steps.json"),),
            timed_files=tuple(self._entry(name) for name in ("recipe.yaml", *timed)),
            parents=tuple(
                Parent(
                    name,
                    steps[name],
                    artifacts[name].digest,
                    artifacts[name].kind,
                    artifacts[name].claim,
                )
                for name in sorted(done, key=lambda step: step in trained)
            ),
            recipe_digest=digest_text(dump_recipe(self.recipe)),
            seed=self.recipe.seed,
            details={
                "steps": steps,
                "skipped": dict(skipped),
                "reused": reused,
                "answer": answer or None,
                **decision,
                **_collect_judgments(artifacts),
                "seconds": seconds,
                "warnings": [
                    *self._warnings,
                    *(f"{step}: {text}" for step, text in _list_warnings(artifacts)),
                ],
            },
            versions=list_installed_versions(),
            host=describe_host(),
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        write_manifest(self.out, artifact, sign=False)
        remove_other_steps(self.out, done.values())
        if not sign_if_configured(self.out) and (self.out / SIGNATURE_FILE).is_file():
            self.reporter.warn(
                f"{self.out} was made again after it was signed, so its signature no longer holds; "
                f"sign it again: stillroom sign {shlex.quote(str(self.out))} --key YOUR.key"
            )
        return artifact

    def _describe_answer(self, artifacts: Mapping[str, Artifact]) -> dict[str, str]:
        """Return the steps that answer, and the checkpoint that stands in for a skipped one.

        A report that compared readers decides which of them reads; ``trained_reader`` is then the
        step that trained another. For an export that was not shipped, its checkpoint answers.
        """
        if self.recipe.answer is None:
            return {}
        described = self.recipe.answer.model_dump(exclude={"fallback"}, exclude_defaults=True)
        spare = self.recipe.find_spare_model()
        exported = artifacts.get(described["model"])
        if exported is not None and _is_refused(exported):
            recipe = self.recipe.steps[described["model"]].recipe
            described["model"] = str(getattr(recipe, "model", "")).removeprefix("step:")
            spare = self.recipe.inputs.get(described["model"].removeprefix("inputs."), spare)
        if spare:
            here = Path(spare)  # relative to this process; who opens the run may be elsewhere
            described["fallback"] = str(here.absolute()) if here.exists() else spare
        for artifact in artifacts.values():
            decision = artifact.details.get("decision")
            if "reader" in described and isinstance(decision, Mapping) and decision["reader"]:
                described |= {
                    "reader": str(decision["reader"]),
                    "trained_reader": described["reader"],
                }
        return described

    def _entry(self, name: str) -> FileEntry:
        path = self.out / name
        return FileEntry(name, path.stat().st_size, digest_file(path))


def list_steps(
    steps: Mapping[str, str], artifacts: Mapping[str, Artifact]
) -> dict[str, dict[str, str]]:
    """Return folder, kind and digest of each step, as steps.json has them."""
    return {
        name: {"folder": folder, "kind": artifacts[name].kind, "digest": artifacts[name].digest}
        for name, folder in steps.items()
    }


def collect_decision(
    artifacts: Mapping[str, Artifact], answer: Mapping[str, str]
) -> dict[str, Any]:
    """Return the line of the step that decided whether the result is worth using, and its notes.

    An export that failed its gate comes before it. The line of a comparison of readers says what
    answers.
    """
    from stillroom.rag.evaluation.reader_decision import READER_HEAD

    decided = [
        one.details["decision"]
        for one in artifacts.values()
        if isinstance(one.details.get("decision"), Mapping)
    ]
    lines = [one["line"] for one in decided]
    refused = [one.details["decision"]["line"] for one in artifacts.values() if _is_refused(one)]
    if not lines:
        return {}
    if "reader" in answer and lines[-1].startswith(READER_HEAD):
        lines[-1] = f"Answers come from {lines[-1].removeprefix(READER_HEAD)}"
    sentences = [*refused, *([] if lines[-1] in refused else lines[-1:])]
    notes = {"notes": list(decided[-1]["notes"])} if decided[-1].get("notes") else {}
    return {"decision": " ".join(sentences), **notes}


def _is_refused(artifact: Artifact) -> bool:
    """Return whether an export failed its gate, so that its checkpoint answers."""
    return artifact.details.get("export", {}).get("is_equal") is False


def _collect_judgments(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """Return the sentence of a step that measured what people's judgments bought."""
    lines = [one.details["judgments"] for one in artifacts.values() if "judgments" in one.details]
    return {"judgments": str(lines[-1])} if lines else {}


_DIGEST_DIGITS = 12
_UNTRAINED_REPORT = (
    "The steps below found too little, so nothing was learned from these documents. The index can "
    "still answer: by quoting sentences that the program's own reader selects (or word search, if "
    "that cannot be opened), or, on request, in the words of the untuned model."
)
_EMPTY_REPORT = (
    "No document could be used, so the index is empty, nothing was learned, and every question is "
    "left unanswered. Add documents with text, and run the command again."
)
_PARTIAL_REPORT = "The steps below found too little. The others were done."


def write_run_report(
    out: Path,
    done: Mapping[str, Path],
    seconds: Mapping[str, float],
    skipped: Mapping[str, str],
    reused: Collection[str] = (),
    decision: str = "",
) -> list[str]:
    """Write report.json and report.html of a run; return their names.

    Folders, durations and the reasons of skipped steps are by the name of the step; ``reused`` are
    those of an earlier run. The decision, if there is one, is the summary.
    """
    artifacts = {name: read_artifact(folder) for name, folder in done.items()}
    parts: list[Path | Report] = []
    for name, folder in done.items():
        if artifacts[name].kind == "report" or "export" in artifacts[name].details:
            part = Report.read(folder / "output")
            if decision and "decision" in artifacts[name].details:
                part.summary = ""  # the decision says it
            parts.append(part)
            if (folder / "timings.json").is_file():
                parts.append(folder / "timings.json")
    steps = _describe_steps(done, artifacts, seconds, reused)
    if skipped:
        rows = tuple(skipped.items())
        table = Table("Steps that were not done", ("step", "why"), rows)
        is_trained = any(artifact.kind == "checkpoint" for artifact in artifacts.values())
        is_empty = any(
            artifact.kind == "index" and artifact.details.get("passages") == 0
            for artifact in artifacts.values()
        )
        title, text = (
            ("Not done", _PARTIAL_REPORT)
            if is_trained
            else ("Not trained", _EMPTY_REPORT if is_empty else _UNTRAINED_REPORT)
        )
        steps.sections.insert(0, Section(title, text, table=table))
    parts.append(steps)
    merged = merge_reports(f"Run {out.name}", parts)
    merged.summary = f"{decision} {merged.summary}".strip()
    merged.write(out)
    return ["report.json", "report.html"]


def _list_warnings(artifacts: Mapping[str, Artifact]) -> tuple[tuple[str, str], ...]:
    """Return name of the step and text of each warning of the steps."""
    return tuple(
        (name, str(text))
        for name, artifact in artifacts.items()
        for text in artifact.details.get("warnings", ())
    )


def _describe_steps(
    done: Mapping[str, Path],
    artifacts: Mapping[str, Artifact],
    seconds: Mapping[str, float],
    reused: Collection[str],
) -> Report:
    report = Report("Steps")
    for name, spent in seconds.items():
        report.add(Metric(f"seconds/{name}", spent, n=1, unit="s", note="measured once"))
    if warned := _list_warnings(artifacts):
        table = Table("What the steps warned of", ("step", "warning"), warned)
        report.sections.append(Section("Warnings", table=table))
    rows = tuple(
        (
            name,
            artifact.kind,
            _format_time(seconds[name], is_reused=name in reused),
            artifact.digest[:_DIGEST_DIGITS],
        )
        for name, artifact in artifacts.items()
    )
    report.sections.append(
        Section(
            "Steps",
            "What each step left, how long it took, and the digest of its bytes.",
            table=Table("Steps of the run", ("step", "artifact", "took", "digest"), rows),
        )
    )
    report.sections += _describe_events(done, reused)
    for name, artifact in artifacts.items():
        if artifact.kind == "records":
            report.sections += list(_describe_records(name, done[name]))
        if "candidates" in artifact.details:
            report.sections.append(_describe_candidates(name, artifact.details))
    return report


def _format_time(seconds: float, *, is_reused: bool) -> str:
    """Return how long a step or stage took; one of an earlier run took nothing in this one."""
    return f"reused (made in {seconds:.1f} s)" if is_reused else f"{seconds:.1f} s"


def _describe_events(done: Mapping[str, Path], reused: Collection[str]) -> Iterator[Section]:
    """Yield how long each stage of the steps took, and what they chose."""
    spent: dict[tuple[str, str], float] = {}
    choices: dict[tuple[str, str], None] = {}
    for step, folder in done.items():
        for event in iter_events(folder):
            match event:
                case {"event": "phase", "name": str(name), "seconds": int() | float() as seconds}:
                    spent[step, name] = spent.get((step, name), 0.0) + seconds
                case {"event": "choice", "text": str(text)}:
                    choices[step, text] = None
    if spent:
        rows = tuple(
            (*stage, _format_time(seconds, is_reused=stage[0] in reused))
            for stage, seconds in spent.items()
        )
        table = Table("Time of the stages", ("step", "stage", "took"), rows)
        yield Section("Stages", "By the clock; a stage that was repeated is summed.", table=table)
    if choices:
        table = Table("What the steps chose", ("step", "choice"), tuple(choices))
        yield Section("Choices", "Decided by the documents and by what is installed.", table=table)


def _describe_records(name: str, folder: Path) -> Iterator[Section]:
    path = folder / "output" / "report.json"
    if not path.is_file():
        return
    counts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    settings = counts.pop("generator", {})
    rows = tuple((label, str(number)) for label, number in _flatten(counts) if number)
    yield Section(
        f"Records ({name})",
        "Every record that was asked for is counted here: kept, or dropped with its reason.",
        table=Table("Records by what became of them", ("what", "count"), rows),
    )
    if settings:
        yield Section(
            f"Generator of records ({name})",
            "Its settings; no model was asked, so those of requests had no effect."
            if counts.get("spent", {}).get("asks") == 0
            else "Its settings.",
            table=Table(
                "Settings of the generator",
                ("setting", "value"),
                tuple((key, str(value)) for key, value in settings.items()),
            ),
        )


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix} / {key}" if prefix else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, value


def _describe_candidates(name: str, details: Mapping[str, Any]) -> Section:
    rows = tuple(
        (
            str(row["name"]),
            f"{row['loss']:.4f}",
            f"{row['low']:.4f} to {row['high']:.4f}",
            str(row["n"]),
        )
        for row in details["candidates"]
    )
    if "left_out" in details:
        text = f"No merge was judged: {details['left_out']}. Kept as it is: {details['kept']}."
        return Section(f"Merge candidates ({name})", text)
    text = f"Kept: {details.get('kept')}. " + (
        "Merging lowered the held-out loss." if details.get("helped") else "Merging did not help."
    )
    final = details.get("final")
    if final:
        text += (
            f" On {count_noun(final['records'], 'record')} that no choice saw its loss is "
            f"{final['kept']['loss']:.4f}, the best parent's {final['best_parent']['loss']:.4f}."
        )
    return Section(
        f"Merge candidates ({name})",
        text,
        table=Table("Held-out loss of each candidate", ("candidate", "loss", "95 %", "n"), rows),
    )
