"""Export a student as one GGUF file for llama.cpp, if all its forms give the same answers.

The merged checkpoint is the reference: its adapter (where a training kept it) and its GGUF file of
full precision must give the same greedy answers and distributions (``models.gguf.agreement``). If
they do not, no file is kept, and the run says so first; the cost of quantization is reported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stillroom.errors import CheckpointError
from stillroom.jobs import Estimate, Job, atomic_write
from stillroom.jobs.kind import JobKind
from stillroom.jobs.replay import JournalReplayer
from stillroom.provenance import Artifact
from stillroom.recipes import Recipe, Reference
from stillroom.records import Link, Origin

if TYPE_CHECKING:
    from stillroom.models.gguf.agreement import FormComparison
    from stillroom.models.gguf.export import GgufType

__all__ = ["JOB_KIND", "ExportRecipe", "estimate", "run"]

_BYTES_PER_SECOND, _POSITION_S = 5e9, 0.5
_OVERHEAD_BYTES = 600_000_000
_FILE = "model.gguf"


class ExportRecipe(Recipe):
    """Export a checkpoint as one GGUF file that answers as the checkpoint does."""

    kind: Literal["distill.export"] = Field(
        default="distill.export", description="export a checkpoint to llama.cpp"
    )
    model: Reference = Field(
        examples=["path/to/student"],
        description="checkpoint to export; an adapter that its training kept is compared, too",
    )
    questions: Reference = Field(
        examples=["path/to/records"],
        description="what the forms are asked: held-out records, or questions of people",
    )
    type: Literal["f32", "bf16", "f16", "q8_0"] = Field(
        default="q8_0", description="type of the matrices"
    )
    base: Reference | None = Field(
        default=None,
        description="model that the checkpoint was made from: its size is reported beside, and an "
        "adapter is applied to it; null: the one that the adapter names",
    )
    max_questions: int = Field(
        default=200, ge=1, description="maximum number of questions, the first ones"
    )
    max_new_tokens: int = Field(
        default=24, ge=1, le=8192, description="maximum tokens of an answer"
    )
    positions: int = Field(
        default=2,
        ge=1,
        le=8192,
        description="positions of an answer at which the KL is measured, in 50 answers at most",
    )


def run(recipe: ExportRecipe, job: Job) -> Artifact:
    """Write ``model.gguf`` if the forms agree, and in any case the report on them.

    The artifact is a checkpoint if the file was kept, else a report.

    Raises:
        CheckpointError: If the checkpoint cannot be exported or loaded.
        DataError: If the questions cannot be read, or there is none.
        MissingExtraError: If gguf, xllamacpp or, with an adapter, peft is not installed.
    """
    from stillroom.checkpoints import Checkpoint
    from stillroom.evaluate.evaluator import read_local_size
    from stillroom.evaluate.qa.questions import read_question_set
    from stillroom.models import resolve_checkpoint
    from stillroom.models.gguf.agreement import compare_export
    from stillroom.models.gguf.export import export_gguf
    from stillroom.provenance import Parent, make_parent, read_artifact

    source = Path(recipe.model)
    made_by = read_artifact(source) if (source / "artifact.json").is_file() else None
    asked = read_question_set(Path(recipe.questions), warn=job.warn)[: recipe.max_questions]
    folder = resolve_checkpoint(recipe.model, say=job.say)
    base = resolve_checkpoint(recipe.base, say=job.say) if recipe.base else None
    compared: list[FormComparison] = []

    def prove(path: Path, stored: GgufType) -> None:
        compared.append(
            compare_export(
                folder,
                path,
                stored,
                [question.text for question in asked],
                base=str(base or ""),
                start_bytes=read_local_size(str(base)) if base else 0,
                max_new_tokens=recipe.max_new_tokens,
                positions=recipe.positions,
                check_cancelled=job.check_cancelled,
            )
        )
        compared[0].require_equal(job.output / _FILE)

    export = None
    try:
        export = export_gguf(
            folder, job.output / _FILE, type=recipe.type, artifact=made_by, overwrite=True,
            prove=prove,
        )  # fmt: skip
    except CheckpointError as error:
        if error.code != "checkpoint.export-unequal":
            raise
    comparison = compared[0]
    line = comparison.describe(_FILE)
    (job.say if export else job.warn)(line)
    _write_report(job.output, comparison, line)
    parents = [
        Parent("model", str(folder), Checkpoint.open(folder).fingerprint, "checkpoint")
        if made_by is None
        else make_parent("model", source, job.out)
    ]
    parents.append(make_parent("questions", Path(recipe.questions), job.out))
    details: dict[str, Any] = {"export": comparison.to_json()}
    details["decision"] = {"line": line, "reader": ""}
    if export is not None:
        details |= {"fingerprint": export.fingerprint, "notes": list(export.notes)}
    origin = Origin.from_json(made_by.origin) if made_by and made_by.origin else Origin()
    origin = origin.then(Link("distill.export", export.fingerprint if export else ""))
    kind: Literal["checkpoint", "report"] = "report" if export is None else "checkpoint"
    return job.finish(kind, parents=parents, origin=origin.to_json(), details=details)


def _write_report(folder: Path, comparison: FormComparison, line: str) -> None:
    """Write the figures of every form as report.json, report.html and forms.json."""
    from stillroom.evaluate.metrics.bootstrap import Metric
    from stillroom.evaluate.report import Report

    report = Report("Export", "" if comparison.is_equal else line)
    metrics = []
    for form in comparison.forms:
        head = f"export/{form.form}"
        share = form.equal_answers / form.questions
        note = "shares and means of the questions asked, without an interval"
        metrics += [
            Metric(f"{head}/greedy_equal", share, n=form.questions, note=note),
            Metric(f"{head}/kl", form.kl, n=form.positions, unit="nats", note=note),
            Metric(f"{head}/size_bytes", form.size_bytes, unit="bytes", note="measured once"),
        ]
    report.section("Export: do its forms answer alike?", line, metrics=metrics)
    report.write(folder)
    with atomic_write(folder / "forms.json") as file:
        file.write(json.dumps(comparison.to_json(), indent=1, sort_keys=True) + "\n")


def estimate(recipe: ExportRecipe) -> Estimate:
    """Estimate the job's resources; references that do not exist yet are not counted."""
    from stillroom.evaluate.evaluator import read_local_size
    from stillroom.models.gguf.agreement import KL_QUESTIONS

    size = read_local_size(recipe.model)
    forms = 4
    reading = size * (recipe.max_new_tokens + forms) / _BYTES_PER_SECOND
    positions = min(recipe.max_questions, KL_QUESTIONS) * recipe.positions * 2 * _POSITION_S
    return Estimate(
        memory_bytes=3 * size + _OVERHEAD_BYTES,
        disk_bytes=2 * size,
        seconds=recipe.max_questions * reading + positions,
        memory_knob="export a smaller model",
        disk_knob="export a smaller model",
        basis=f"export: {recipe.max_questions} questions at most, "
        f"{recipe.max_new_tokens} tokens each, of {forms} forms"
        + ("" if size else f"; size not known of {recipe.model}"),
    )


JOB_KIND = JobKind(
    ExportRecipe, run, estimate, extras=("gguf", "llamacpp"), replayer=JournalReplayer()
)
