"""The distillation job where teacher and student have different tokenizers, top to bottom.

As ``run`` does it, with other parts: both sides read the records with their own tokenizer and chat
template, the alignment is reported before anything is trained, and the student starts from a
checkpoint of its own, since nothing of the teacher's fits it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from stillroom.checkpoints import Checkpoint
from stillroom.distill.alignment_report import AlignmentReport
from stillroom.distill.cache import TeacherCache
from stillroom.distill.control import CONTROL, control_once
from stillroom.distill.cross_fidelity import NOT_DEFINED, CrossFidelity, measure_crossing
from stillroom.distill.cross_lessons import (
    CrossBatch,
    CrossLesson,
    Reader,
    encode_cross,
    make_cross_batch,
)
from stillroom.distill.cross_loss import CrossObjective, rows_of
from stillroom.distill.crossing import ChunkCrossing, Crossing
from stillroom.distill.head import Head
from stillroom.distill.lessons import Split, split_records
from stillroom.distill.lineage import list_parents, student_card, student_origin, warn_of_teachers
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.teachers import AnyTeacher, as_local, open_teacher
from stillroom.distill.token_bytes import read_token_bytes
from stillroom.distill.token_map import map_tokens
from stillroom.distill.writing import candidate_steps, keep_candidates, write_student
from stillroom.errors import DataError
from stillroom.jobs import Job, atomic_write
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.provenance import Artifact
from stillroom.train.loop import TrainSummary, train
from stillroom.train.lora import add_lora
from stillroom.train.precision import choose_precision, fixed_threads
from stillroom.train.source import RecordSource

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run_crossing"]

_CLOSING = (
    "The teacher has another tokenizer: `alignment.json` says how much of the text both share, "
    "`fidelity.json` how near the student is on held-out records by what can be compared; "
    "`candidates/` holds earlier steps of the same run."
)


@dataclass(frozen=True)
class _Room:
    """What is known once both sides have read the records."""

    recipe: DistillRecipe
    crossing: Crossing
    job: Job
    teacher: AnyTeacher
    readers: tuple[Reader, Reader]
    split: Split
    lessons: list[CrossLesson]
    held_out: list[CrossLesson]
    counts: dict[str, Any]
    alignment: dict[str, Any]
    precision: str

    @property
    def listens(self) -> bool:
        """Whether the teacher's own log-probabilities suffice to train."""
        return isinstance(self.crossing, ChunkCrossing)


def run_crossing(recipe: DistillRecipe, crossing: Crossing, job: Job) -> Artifact:
    """Distill a teacher into a student with another tokenizer.

    Leaves what ``run`` leaves, and ``output/alignment.json``.

    Raises:
        DataError: If records, cache or a loss cannot be used, or too little of the text aligns.
        CheckpointError: If teacher or student is missing, or has a tokenizer nobody can align.
        Cancelled: If the user stopped it; ``--resume`` goes on.
    """
    if isinstance(recipe.teacher, tuple):
        raise TypeError("the recipe refuses several teachers with a crossing")
    with fixed_threads(recipe.train.threads), open_teacher(recipe.teacher, job) as teacher:
        warn_of_teachers([teacher], job)
        start = Checkpoint.open(resolve_checkpoint(str(recipe.student), say=job.say)).folder
        student, tokenizer = load_causal_lm(start, dtype="float32")
        precision = choose_precision(recipe.train.precision, next(student.parameters()).device)
        room = _read_records(recipe, crossing, job, teacher, tokenizer, precision)
        with _listen(room) as heard:
            initial = _measure("initial", room, student, heard)
            card = student_card(
                recipe, [teacher], room.counts, loss=crossing.method_name(), closing=_CLOSING
            )
            trained, fingerprint = _train(room, student, start, heard, card)
            rows = Head.of(student).rows
            del student
            teacher.unload()
            measured = {"initial": initial, "final": _measure("final", room, job.output, heard)}
            if recipe.fidelity.control and room.held_out:
                own = [lesson.learned for lesson in room.lessons]
                folder, _ = control_once(recipe, job, start, own, rows, trained, card)
                measured[CONTROL] = _measure(CONTROL, room, folder, heard)
        fidelity = _report_fidelity(room, measured)
        origin = student_origin(_method(crossing), [teacher], room.split.train)
        parents = list_parents(recipe, job, [teacher])
        details = {
            "fingerprint": fingerprint,
            "teacher": teacher.fingerprint,
            "parameters": Checkpoint.open(job.output).parameters,
            "records": room.counts,
            "train": asdict(trained),
            "crossing": crossing.model_dump(mode="json"),
            "alignment": room.alignment,
            "crossing_fidelity": fidelity,
        }
    return job.finish("checkpoint", parents=parents, origin=origin.to_json(), details=details)


def _read_records(
    recipe: DistillRecipe,
    crossing: Crossing,
    job: Job,
    teacher: AnyTeacher,
    tokenizer: Any,
    precision: str,
) -> _Room:
    """Encode the records for both sides, and refuse them where too little of the text aligns."""
    readers = (
        Reader(teacher.tokenizer, read_token_bytes(teacher.tokenizer), recipe.max_tokens),
        Reader(tokenizer, read_token_bytes(tokenizer), recipe.max_tokens),
    )
    split = split_records(Path(recipe.records))
    report = AlignmentReport(readers[0].tokens, readers[1].tokens)
    with job.phase("align", len(split.train), "records") as progress:
        lessons, counts = encode_cross(
            *readers, split.train, include_prompt=recipe.include_prompt, on_aligned=report.add
        )
        progress.advance(len(split.train))
    chosen = split.held_out[: recipe.fidelity.records]
    held_out, _ = encode_cross(*readers, chosen, include_prompt=False)
    compared = _count_compared(crossing, lessons)
    positions = sum(len(lesson.positions) for lesson in lessons)
    alignment = {
        "compared": {"tokens": compared, "of": positions, "share": compared / max(positions, 1)},
        "least_coverage": crossing.least_coverage,
        "counts": counts,
        **report.to_json(),
    }
    with atomic_write(job.output / "alignment.json") as file:
        file.write(json.dumps(alignment, indent=1, ensure_ascii=False) + "\n")
    job.say(
        f"{report}\ncompared with the teacher: {compared} of {positions} student tokens that bear "
        f"loss ({compared / max(positions, 1):.1%})"
    )
    _check_coverage(crossing, compared, positions)
    return _Room(
        recipe,
        crossing,
        job,
        teacher,
        readers,
        split,
        lessons,
        held_out,
        {**counts, "passed_over": split.passed_over},
        alignment,
        precision,
    )


def _count_compared(crossing: Crossing, lessons: Sequence[CrossLesson]) -> int:
    """Return how many of the student's tokens the crossing compares with the teacher."""
    rows = rows_of(crossing)
    if rows is None:
        return sum(int((lesson.chunk_of >= 0).sum()) for lesson in lessons)
    return sum(len(rows(lesson)[0]) for lesson in lessons)


def _check_coverage(crossing: Crossing, compared: int, positions: int) -> None:
    if compared and compared >= crossing.least_coverage * positions:
        return
    raise DataError(
        f"only {compared} of {positions} student tokens can be compared with the teacher",
        code="distill.coverage",
        where="crossing.least_coverage",
        expected=f"at least {crossing.least_coverage:.0%}: see output/alignment.json for what "
        "falls out and why",
        next="use crossing chunk_likelihood, which compares the most, raise max_tokens, or lower "
        "crossing.least_coverage",
    )


@contextmanager
def _listen(room: _Room) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Run the teacher once over what is needed of its own tokens; yield it by lesson key.

    A crossing of rows needs the teacher in every step; of its own tokens only what fidelity needs.
    """
    recipe = room.recipe
    folder = Path(recipe.targets.cache) if recipe.targets.cache else room.job.scratch / "cache"
    lessons = [*(room.lessons if room.listens else []), *room.held_out]
    taught = [lesson.taught for lesson in lessons]
    with TeacherCache.open(folder, room.teacher.own_header(room.precision)) as cache:
        room.teacher.capture_own(taught, cache, room.job)
        cache.verify(taught)
        heard = {one.key: np.array(cache.read(one)["logprob"]) for one in taught}
    if room.listens:
        room.teacher.unload()
    yield heard


def _train(
    room: _Room,
    student: Any,
    start: Path,
    heard: Mapping[str, npt.NDArray[np.float32]],
    card: dict[str, Any],
) -> tuple[TrainSummary, str]:
    """Train the student, write it, and return the summary and the fingerprint."""
    recipe, job = room.recipe, room.job
    steps = candidate_steps(recipe.train.count_steps(len(room.lessons)), recipe.candidates)
    on_step = keep_candidates(job.output, start, steps, recipe.out, card)
    model = add_lora(student, recipe.train.lora, recipe.seed) if recipe.train.lora else student
    objective = CrossObjective(
        room.crossing,
        tokens=map_tokens(room.readers[0].tokens, room.readers[1].tokens),
        precision=room.precision,
        teacher=None if room.listens else as_local(room.teacher).lowered(room.precision),
    )
    trained = train(
        model,
        _source(room, heard, next(student.parameters()).device),
        objective,
        recipe.train,
        job,
        seed=recipe.seed,
        on_step=on_step,
    )
    return trained, write_student(model, job.output, start, recipe.out, card, in_place=True)


def _source(
    room: _Room, heard: Mapping[str, npt.NDArray[np.float32]], device: torch.device
) -> RecordSource[CrossLesson, CrossBatch]:
    rows = rows_of(room.crossing)

    def load(chosen: Sequence[CrossLesson]) -> CrossBatch:
        known = [heard[lesson.key] for lesson in chosen] if room.listens else None
        return make_cross_batch(chosen, rows=rows, teacher_logprobs=known, device=device)

    lessons, settings = room.lessons, room.recipe.train
    return RecordSource(
        lessons,
        ids=[f"{lesson.key} {lesson.record_id}" for lesson in lessons],
        lengths=[len(lesson.student_ids) for lesson in lessons],
        valid=[len(lesson.positions) for lesson in lessons],
        load=load,
        batch_size=settings.batch_size,
        micro_tokens=settings.micro_tokens,
        seed=room.recipe.seed,
    )


def _measure(
    name: str, room: _Room, student: Any, heard: Mapping[str, npt.NDArray[np.float32]]
) -> CrossFidelity:
    """Return the distance of a student, or of the one in a folder, to the teacher; once a job."""
    journal = room.job.journal("fidelity")
    if name not in journal:
        if isinstance(student, Path):
            student, _ = load_causal_lm(student, dtype="float32")
        with room.job.phase(f"fidelity, {name}", len(room.held_out), "records") as progress:
            taught = [heard[lesson.key] for lesson in room.held_out]
            journal.put(name, measure_crossing(student, room.held_out, taught).to_json())
            progress.advance(len(room.held_out))
    return CrossFidelity.from_json(journal[name])


def _report_fidelity(room: _Room, measured: Mapping[str, CrossFidelity]) -> dict[str, Any]:
    """Write output/fidelity.json, tell the user, and return what artifact.json keeps.

    Args:
        room: Of the job.
        measured: Initial and final student, and the control if there is one.
    """
    final, seed = measured["final"], room.recipe.seed
    report: dict[str, Any] = {
        "kind": "crossing",
        "not_defined": list(NOT_DEFINED),
        **{name: found.to_json() for name, found in measured.items()},
        "held_out": len(room.split.held_out),
        "measured": len(final.rows),
    }
    if final.rows:
        report["summary"] = {name: found.summarize(seed) for name, found in measured.items()}
        named = {"initial": "before", "final": "after", CONTROL: "after cross-entropy alone"}
        bits, apart = (
            ", ".join(f"{found.mean(key):.4f} {named[name]}" for name, found in measured.items())
            for key in ("student_bits", "divergence")
        )
        room.job.say(
            f"on {len(final.rows)} held-out records, bits a byte of the same text: teacher "
            f"{final.mean('teacher_bits'):.4f}; student {bits}. Chunk divergence {apart} "
            "(nats a chunk)"
        )
        room.job.say(f"not defined across tokenizers: {'; '.join(NOT_DEFINED)}")
    else:
        room.job.say("no held-out record was measured: how near the student is remains unknown")
    with atomic_write(room.job.output / "fidelity.json") as file:
        file.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def _method(crossing: Crossing) -> str:
    return f"distill.crossings.{crossing.method_name()}"
