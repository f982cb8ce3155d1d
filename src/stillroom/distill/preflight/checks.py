"""Preflight checks of a distillation, in order."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.checkpoints import Checkpoint, dequantize_gguf
from stillroom.distill.data.tokenized import tokenize_records
from stillroom.distill.evaluation.metrics import measure_fidelity
from stillroom.distill.logit_cache.capture import CacheCost, estimate_cache_cost
from stillroom.distill.preflight.audits import (
    audit_duplicates,
    audit_ends,
    audit_labels,
    audit_template,
    audit_vocabulary,
    audit_weights,
    check_teacher_advantage,
    encode_sample,
)
from stillroom.distill.preflight.resources import (
    count_parameters,
    estimate_resources,
    forecast_usage,
)
from stillroom.distill.preflight.workload import Workload
from stillroom.distill.pruning.shapes import check_parameter_budget
from stillroom.distill.pruning.student import count_student_parameters
from stillroom.distill.settings import PruneSettings, SampledTargetSettings, TopKTargetSettings
from stillroom.distill.teachers.local import LocalTeacher, outline_checkpoint
from stillroom.jobs import Job, check_fits, describe_machine
from stillroom.jobs.preflight import PreflightFinding, PreflightReport
from stillroom.models import load_model_only, resolve_checkpoint
from stillroom.models.hub import find_config
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.models.tokenization.chat_template import find_tool_problems
from stillroom.objects import is_store_address, resolve_local
from stillroom.provenance import find_output
from stillroom.train.data import RecordSplit, split_records
from stillroom.train.lora import check_lora_config

__all__ = ["require_preflight", "run_preflight"]

_BEST_RATIO, _WIDE_RATIO = 2.5, 10.0
_COMPARED_RECORDS = 8


def run_preflight(
    workload: Workload,
    out: Path,
    *,
    fetch: bool = True,
    loads: bool = False,
    machine: bool = True,
) -> PreflightReport:
    """Run every check that the recipe allows; a ``StillroomError`` becomes a finding.

    Args:
        workload: What the job does.
        out: Folder of the job.
        fetch: Whether to download checkpoints from a hub.
        loads: Whether to load teacher and student and compare them on held-out records.
        machine: Whether to compare memory and disk with free resources.
    """
    report, recipe = PreflightReport(), workload.recipe
    if machine:
        report.add("machine", lambda: _check_machine(workload, out))
    if not is_store_address(recipe.records) and not _checkpoint_exists(recipe.records):
        report.findings.append(
            PreflightFinding("note", "records", f"{recipe.records} does not exist yet")
        )
        return report
    inspection = _JobInspection(workload, fetch)
    report.add("records", inspection.read)
    if inspection.split is not None:
        split = inspection.split
        report.add("held-out records", lambda: [*audit_duplicates(split)])
    report.add("student's shape", inspection.check_shape)
    report.add("adapted layers", inspection.check_adapted)
    if any(finding.error for finding in report.findings if finding.check == "student's shape"):
        inspection.fetch = False  # do not download a teacher that cannot be pruned as requested
    report.add("checkpoints", inspection.open)
    is_here = workload.local_teacher is not None
    if inspection.tokenizer is not None:
        if workload.teacher_tokenizer:
            report.add("vocabulary", inspection.check_vocabulary)
            report.add(
                "chat template",
                lambda: [*audit_template(inspection.tokenizer, inspection.student_tokenizer)],
            )
        report.add("records", inspection.check_records)
        # the student of labels alone may well start as its teacher
        if is_here and (workload.asks_teacher or recipe.sequence is not None):
            report.add("capacity gap", inspection.check_sizes)
        if loads and is_here:
            report.add("teacher on this data", inspection.compare)
    probe = (
        inspection.probe if loads and is_here and inspection.tokenizer is not None else lambda: None
    )
    report.add("logit cache", lambda: forecast_usage(workload, probe))
    return report


def require_preflight(workload: Workload, job: Job) -> PreflightReport:
    """Run the preflight of a started job, log notes and warnings, and raise its errors.

    Raises:
        StillroomError: The first error found.
    """
    report = run_preflight(workload, job.out)
    report.write(job.work)
    report.log(job)
    report.raise_errors()
    return report


@dataclass
class _JobInspection:
    """Inputs of the checks, opened as far as possible."""

    workload: Workload
    fetch: bool
    split: RecordSplit | None = None
    folders: list[Path] = field(default_factory=list)
    tokenizer: Any = None
    student_tokenizer: Any = None

    def read(self) -> list[PreflightFinding]:
        self.split = split_records(resolve_local(self.workload.recipe.records))
        skipped = self.split.skipped
        summary = f"{len(self.split.train)} for training, {len(self.split.held_out)} held out"
        if not skipped:
            return [PreflightFinding("ok", "records", summary)]
        finding = f"{summary}; skipped: {skipped}"
        return [PreflightFinding("warning", "records", finding, "check the file")]

    def check_shape(self) -> list[PreflightFinding]:
        """Plan the student from the teacher's configuration, before its weights are fetched.

        Reading the configuration of a quantized file takes seconds, so it is skipped without
        ``fetch``; a local folder has been read for the estimate.
        """
        settings, teacher = self.workload.recipe.student, self.workload.local_teacher
        if not isinstance(settings, PruneSettings) or teacher is None:
            return []
        config = None if Path(teacher).is_dir() else find_config(teacher, fetch=self.fetch)
        if config is None or (config.suffix == ".gguf" and not self.fetch):
            return []
        with outline_checkpoint(config) as outline:
            student_count = count_student_parameters(outline, settings)
            teacher_count = outline.parameters
        check_parameter_budget(student_count, teacher_count, settings)
        summary = (
            f"{student_count:,} parameters, {student_count / teacher_count:.1%} of the teacher's, "
            "by its configuration"
        )
        return [PreflightFinding("ok", "student's shape", summary)]

    def check_adapted(self) -> list[PreflightFinding]:
        """Look for the layers to adapt in the student's configuration, or in its teacher's."""
        recipe, lora = self.workload.recipe, self.workload.recipe.train.lora
        is_own = isinstance(recipe.student, str)
        source = recipe.student if is_own else self.workload.local_teacher
        if lora is not None and isinstance(source, str):
            warning = check_lora_config(lora, find_config(source, fetch=self.fetch))
            return [PreflightFinding("warning", "adapted layers", warning)] if warning else []
        return []

    def open(self) -> list[PreflightFinding]:
        """Locate teacher and student and load their tokenizers, without their weights."""
        findings = []
        for name, reference in self._references():
            if not self.fetch and not _checkpoint_exists(reference):
                is_here = find_config(reference, fetch=False) is not None
                reason = "was not opened" if is_here else "is not on this disk"
                return [
                    PreflightFinding(
                        "note",
                        name,
                        f"{reference} {reason}, so its tokenizer was not checked",
                        "stillroom check RECIPE --load opens it, and fetches what is missing",
                    )
                ]
            path = resolve_checkpoint(reference)
            self.folders.append(dequantize_gguf(path) if path.suffix == ".gguf" else path)
            findings.append(PreflightFinding("ok", name, str(reference)))
        self.tokenizer = load_tokenizer(self.folders[0])
        self.student_tokenizer = load_tokenizer(self.folders[1]) if len(self.folders) > 1 else None
        if self.workload.local_teacher is None:
            message = "endpoints, and further teachers, are opened when the job starts"
            findings.append(PreflightFinding("note", "teacher", message))
        return findings

    def _references(self) -> list[tuple[str, str]]:
        """Return the checkpoints to open: the first teacher or its tokenizer, and the student.

        The tokenizer of a teacher that only generates text is irrelevant.
        """
        student, tokenizer = self.workload.recipe.student, self.workload.teacher_tokenizer
        name = "teacher" if isinstance(self.workload.teachers[0], str) else "teacher.tokenizer"
        references = [(name, tokenizer)] if tokenizer else []
        return references + ([("student", student)] if isinstance(student, str) else [])

    def check_vocabulary(self) -> list[PreflightFinding]:
        counted = [rows for rows in map(_count_head_rows, self.folders) if rows]
        crosses = self.workload.cross_tokenizer_loss is not None
        rows = counted or [len(self.tokenizer)]
        return [*audit_vocabulary(self.tokenizer, self.student_tokenizer, rows, crosses=crosses)]

    def check_records(self) -> list[PreflightFinding]:
        if self.split is None:
            return []
        limit = self.workload.recipe.max_tokens
        is_crossed = self.workload.cross_tokenizer_loss is not None
        crosses = is_crossed and self.student_tokenizer is not None
        reader = self.student_tokenizer if crosses else self.tokenizer
        encoded = encode_sample(reader, self.split.train, max_tokens=limit)
        return [
            *audit_labels(encoded, max_tokens=limit),
            *(
                PreflightFinding("warning", "tools", what, hint)
                for what, hint in find_tool_problems(reader, self.split.train)
            ),
            *audit_weights(self.split.train),
            *audit_ends(reader, self.folders[-1], encoded),
        ]

    def check_sizes(self) -> list[PreflightFinding]:
        teacher, student = count_parameters(self.workload)
        models = [Checkpoint.open(folder) for folder in self.folders]
        counts = [model.parameters for model in models]
        if len(set(counts)) < len(counts) and len({model.fingerprint for model in models}) == 1:
            return [
                PreflightFinding(
                    "warning",
                    "capacity gap",
                    "teacher and student are the same model: there is nothing to learn from it",
                    "choose another teacher or student",
                )
            ]
        if len(counts) > 1:
            teacher, student = counts
        elif counts and isinstance(
            self.workload.recipe.student, PruneSettings
        ):  # its size is a share
            teacher, student = counts[0], round(student / teacher * counts[0])
        ratio = teacher / max(student, 1)
        summary = f"the teacher has {ratio:.1f} times the student's parameters"
        if ratio <= _BEST_RATIO:
            return [PreflightFinding("ok", "capacity gap", summary)]
        basis = (
            "one study finds about 2.5 times best (arXiv:2311.07052); not repeated on other "
            "families, so measure"
        )
        return [
            PreflightFinding(
                "warning" if ratio > _WIDE_RATIO else "note",
                "capacity gap",
                f"{summary}: {basis}",
                "try a teacher in between, or distill in two steps, and compare the reports",
            )
        ]

    def compare(self) -> list[PreflightFinding]:
        """Load both models and compare their losses on some held-out records."""
        if self.student_tokenizer is None:
            return [
                PreflightFinding(
                    "ok", "teacher on this data", "measured in the job, after initialization"
                )
            ]
        if self.workload.cross_tokenizer_loss is not None or self.split is None:
            return []
        models = [load_model_only(folder, dtype="float32") for folder in self.folders]
        records = self.split.held_out[:_COMPARED_RECORDS]
        recipe = self.workload.recipe
        fidelities = [
            measure_fidelity(model, model, self.tokenizer, records, max_tokens=recipe.max_tokens)
            for model in models
        ]
        return [check_teacher_advantage(fidelities[0], fidelities[1], seed=recipe.seed)]

    def probe(self) -> CacheCost | None:
        """Load the teacher and measure the accuracy of a cache of this form."""
        recipe, targets, method = self.workload.recipe, self.workload.targets, self.workload.method
        is_partial = isinstance(targets, TopKTargetSettings | SampledTargetSettings)
        if targets is None or method is None or not is_partial or self.split is None:
            return None
        teacher = LocalTeacher(Checkpoint.open(self.folders[0]), str(self.workload.local_teacher))
        rows = [count for count in map(_count_head_rows, self.folders) if count]
        header = teacher.header(
            targets,
            min([*rows, teacher.head_rows]),
            "float32",
            temperature=method.temperature,
            seed=recipe.seed,
        )
        tokenized, _ = tokenize_records(
            self.tokenizer,
            self.split.train[:_COMPARED_RECORDS],
            max_tokens=recipe.max_tokens,
            include_prompt=recipe.include_prompt,
        )
        return estimate_cache_cost(teacher.model, header, tokenized) if tokenized else None


def _check_machine(workload: Workload, out: Path) -> list[PreflightFinding]:
    needed, machine = estimate_resources(workload), describe_machine(out)
    check_fits(needed, machine, "distill")
    findings = [
        PreflightFinding("ok", name, f"about {want / 1e9:.2f} GB of {have / 1e9:.1f} GB free")
        for name, want, have in (
            ("memory", needed.memory_bytes, machine.memory_bytes),
            ("disk", needed.disk_bytes, machine.disk_bytes),
        )
    ]
    return [
        *findings,
        PreflightFinding(
            "ok", "time", f"about {needed.seconds / 60:.1f} min on {machine.cores} cores"
        ),
    ]


def _checkpoint_exists(reference: str) -> bool:
    return Path(reference).exists()


def _count_head_rows(folder: Path) -> int:
    """Return the rows of a checkpoint's head, by its configuration; 0 if not specified."""
    file = find_output(folder, "checkpoint") / "config.json"
    if not file.is_file():
        return 0
    config = json.loads(file.read_text(encoding="utf-8"))
    return int(config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or 0)
