"""Preflight checks of a distillation, in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.checkpoints import Checkpoint, dequantize_gguf
from stillroom.distill.data.tokenized import tokenize_records
from stillroom.distill.evaluation.metrics import measure_fidelity
from stillroom.distill.logit_cache.capture import CacheCost, estimate_cache_cost
from stillroom.distill.preflight.audits import (
    PreflightFinding,
    PreflightReport,
    audit_duplicates,
    audit_ends,
    audit_labels,
    audit_template,
    audit_vocabulary,
    check_teacher_advantage,
    encode_sample,
)
from stillroom.distill.preflight.resources import count_parameters, estimate, forecast_usage
from stillroom.distill.pruning.shapes import check_parameter_budget
from stillroom.distill.pruning.student import count_student_parameters
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.settings import EndpointTeacherSettings, PruneSettings
from stillroom.distill.teachers.local import LocalTeacher, outline_checkpoint
from stillroom.jobs import check_fits, describe_machine
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.models.hub import find_config
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.objects import is_store_address, resolve_local
from stillroom.provenance import find_output
from stillroom.train.data import RecordSplit, split_records

__all__ = ["run_preflight"]

_BEST_RATIO, _WIDE_RATIO = 2.5, 10.0
_COMPARED_RECORDS = 8


def run_preflight(
    recipe: DistillRecipe,
    out: Path,
    *,
    fetch: bool = True,
    loads: bool = False,
    machine: bool = True,
    say: Callable[[str], None] | None = None,
) -> PreflightReport:
    """Run every check that the recipe allows; deliberate errors become findings.

    Args:
        recipe: What would be done.
        out: Where it would be written.
        fetch: Whether checkpoints on a hub are downloaded to be looked at.
        loads: Whether teacher and student are loaded and compared on held-out records.
        machine: Whether memory and disk are compared with what is free.
        say: Hears where checkpoints were found.
    """
    flight = PreflightReport()
    if machine:
        flight.add("machine", lambda: _check_machine(recipe, out))
    if not is_store_address(recipe.records) and not _checkpoint_exists(recipe.records):
        flight.findings.append(
            PreflightFinding("note", "records", f"{recipe.records} is not there yet")
        )
        return flight
    room = _JobInspection(recipe, fetch, say)
    flight.add("records", room.read)
    if room.split is not None:
        split = room.split
        flight.add("held-out records", lambda: audit_duplicates(split))
    flight.add("student's shape", room.check_shape)
    if any(one.error for one in flight.findings if one.check == "student's shape"):
        room.fetch = False  # what cannot be made of the teacher is no reason to fetch it
    flight.add("checkpoints", room.open)
    is_here = isinstance(recipe.teacher, str)
    if room.tokenizer is not None:
        if not recipe.teacher_only_writes:
            flight.add("vocabulary", room.check_vocabulary)
            flight.add("chat template", lambda: audit_template(room.tokenizer, room.others))
        flight.add("records", room.check_records)
        if is_here:
            flight.add("capacity gap", room.check_sizes)
        if loads and is_here:
            flight.add("teacher on this data", room.compare)
    probe = room.probe if loads and is_here and room.tokenizer is not None else lambda: None
    flight.add("teacher cache", lambda: forecast_usage(recipe, probe))
    return flight


@dataclass
class _JobInspection:
    """What the checks look at, opened as far as it can be."""

    recipe: DistillRecipe
    fetch: bool
    say: Callable[[str], None] | None
    split: RecordSplit | None = None
    folders: list[Path] = field(default_factory=list)
    tokenizer: Any = None
    others: Any = None

    def read(self) -> list[PreflightFinding]:
        self.split = split_records(resolve_local(self.recipe.records))
        passed_over = self.split.passed_over
        said = f"{len(self.split.train)} to learn from, {len(self.split.held_out)} held out"
        if not passed_over:
            return [PreflightFinding("ok", "records", said)]
        more = ", ".join(f"{reason}: {count}" for reason, count in passed_over.items())
        return [
            PreflightFinding("warning", "records", f"{said}; passed over: {more}", "check the file")
        ]

    def check_shape(self) -> list[PreflightFinding]:
        """Plan the student by the teacher's configuration, before its weights are fetched.

        A quantized file's own takes seconds to read, so that only those who fetch wait for it; a
        folder that is here was looked at for the estimate.
        """
        settings, teacher = self.recipe.student, self.recipe.teacher
        if not isinstance(settings, PruneSettings) or not isinstance(teacher, str):
            return []
        config = None if Path(teacher).is_dir() else find_config(teacher, fetch=self.fetch)
        if config is None or (config.suffix == ".gguf" and not self.fetch):
            return []
        with outline_checkpoint(config) as outline:
            made, whole = count_student_parameters(outline, settings), outline.parameters
        check_parameter_budget(made, whole, settings)
        said = f"{made:,} parameters, {made / whole:.1%} of the teacher's, by its configuration"
        return [PreflightFinding("ok", "student's shape", said)]

    def open(self) -> list[PreflightFinding]:
        """Find teacher and student and load their tokenizers, without their weights."""
        found = []
        for name, reference in self._references():
            if not self.fetch and not _checkpoint_exists(reference):
                is_here = find_config(reference, fetch=False) is not None
                said = "was not opened" if is_here else "is not on this disk"
                return [
                    PreflightFinding(
                        "note",
                        name,
                        f"{reference} {said}, so its tokenizer was not looked at",
                        "stillroom distill preflight RECIPE opens it, and fetches what is missing",
                    )
                ]
            path = resolve_checkpoint(reference, say=self.say)
            self.folders.append(dequantize_gguf(path) if path.suffix == ".gguf" else path)
            found.append(PreflightFinding("ok", name, str(reference)))
        self.tokenizer = load_tokenizer(self.folders[0])
        self.others = load_tokenizer(self.folders[1]) if len(self.folders) > 1 else None
        if not isinstance(self.recipe.teacher, str):
            asked = "a server, or others of several, are asked when the job starts"
            found.append(PreflightFinding("note", "teacher", asked))
        return found

    def _references(self) -> list[tuple[str, str]]:
        """Return what is opened: the teacher or its tokenizer, of several the first; the student.

        A teacher that only writes has no tokenizer that matters.
        """
        student, teacher = self.recipe.student, self.recipe.teacher
        first: object = teacher[0].teacher if isinstance(teacher, tuple) else teacher
        found = []
        if isinstance(first, EndpointTeacherSettings):
            found += [("teacher.tokenizer", str(first.tokenizer))] if first.tokenizer else []
        else:
            found.append(("teacher", str(first)))
        return found + ([("student", student)] if isinstance(student, str) else [])

    def check_vocabulary(self) -> list[PreflightFinding]:
        rows = [_count_head_rows(folder) for folder in self.folders]
        counted = [count for count in rows if count]
        return audit_vocabulary(
            self.tokenizer,
            self.others,
            counted or [len(self.tokenizer)],
            crosses=self.recipe.crossing is not None,
        )

    def check_records(self) -> list[PreflightFinding]:
        if self.split is None:
            return []
        limit = self.recipe.max_tokens
        crosses = self.recipe.crossing is not None and self.others is not None
        reader = self.others if crosses else self.tokenizer
        encoded = encode_sample(reader, self.split.train, max_tokens=limit)
        return [
            *audit_labels(encoded, max_tokens=limit),
            *audit_ends(reader, self.folders[-1], encoded),
        ]

    def check_sizes(self) -> list[PreflightFinding]:
        teacher, student = count_parameters(self.recipe)
        known = [Checkpoint.open(folder).parameters for folder in self.folders]
        if len(known) > 1:
            teacher, student = known
        elif known and isinstance(self.recipe.student, PruneSettings):  # its size is a share
            teacher, student = known[0], round(student / teacher * known[0])
        ratio = teacher / max(student, 1)
        said = f"the teacher has {ratio:.1f} times the student's parameters"
        if ratio <= _BEST_RATIO:
            return [PreflightFinding("ok", "capacity gap", said)]
        basis = (
            "one study finds about 2.5 times best (arXiv:2311.07052); it was not repeated on other "
            "families, so measure"
        )
        level = "warning" if ratio > _WIDE_RATIO else "note"
        return [
            PreflightFinding(
                "warning" if level == "warning" else "note",
                "capacity gap",
                f"{said}: {basis}",
                "try a teacher in between, or distill in two steps, and compare the reports",
            )
        ]

    def compare(self) -> list[PreflightFinding]:
        """Load both and compare their losses on some held-out records."""
        if self.others is None:
            return [
                PreflightFinding(
                    "ok", "teacher on this data", "measured in the job, once the student is made"
                )
            ]
        if self.recipe.crossing is not None or self.split is None:
            return []
        models = [load_causal_lm(folder, dtype="float32")[0] for folder in self.folders]
        chosen = self.split.held_out[:_COMPARED_RECORDS]
        sides = [
            measure_fidelity(
                model, model, self.tokenizer, chosen, max_tokens=self.recipe.max_tokens
            )
            for model in models
        ]
        return [check_teacher_advantage(sides[0], sides[1], seed=self.recipe.seed)]

    def probe(self) -> CacheCost | None:
        """Load the teacher and measure what a cache of this form would miss of it."""
        recipe = self.recipe
        if recipe.targets.mode not in ("top_k", "sampled") or self.split is None:
            return None
        teacher = LocalTeacher(Checkpoint.open(self.folders[0]), str(recipe.teacher))
        rows = [count for count in map(_count_head_rows, self.folders) if count]
        header = teacher.header(recipe, min([*rows, teacher.head_rows]), "float32")
        lessons, _ = tokenize_records(
            self.tokenizer,
            self.split.train[:_COMPARED_RECORDS],
            max_tokens=recipe.max_tokens,
            include_prompt=recipe.include_prompt,
        )
        return estimate_cache_cost(teacher.model, header, lessons) if lessons else None


def _check_machine(recipe: DistillRecipe, out: Path) -> list[PreflightFinding]:
    needed, machine = estimate(recipe), describe_machine(out)
    check_fits(needed, machine, "distill")
    found = [
        PreflightFinding(
            "ok", name, f"about {want / 1e9:.2f} GB of {have / 1e9:.1f} GB that are free"
        )
        for name, want, have in (
            ("memory", needed.memory_bytes, machine.memory_bytes),
            ("disk", needed.disk_bytes, machine.disk_bytes),
        )
    ]
    return [
        *found,
        PreflightFinding(
            "ok", "time", f"about {needed.seconds / 60:.1f} min on {machine.cores} cores"
        ),
    ]


def _checkpoint_exists(reference: str) -> bool:
    return Path(reference).exists()


def _count_head_rows(folder: Path) -> int:
    """Return the rows of a checkpoint's head, by its configuration; 0 where it does not say."""
    file = find_output(folder, "checkpoint") / "config.json"
    if not file.is_file():
        return 0
    config = json.loads(file.read_text(encoding="utf-8"))
    return int(config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or 0)
