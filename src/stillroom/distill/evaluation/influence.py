"""Influence functions (training data attribution) of records on a student's answers, by EK-FAC.

The score of a record for an answer is the inner product of their gradients at the trained student,
with the inverse of an approximate Hessian between them: how much more likely the answer would
become with more of the record. The loss is the cross entropy of the assistant's tokens; for a
student that learned from a teacher's distribution this approximates its own loss.

Source: Grosse et al. 2023, arXiv:2308.03296. Differs: bergson's implementation; every linear layer,
no embeddings and norms.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.tokenized import TokenizedRecord, tokenize_records
from stillroom.errors import BackendError, DataError
from stillroom.evaluate.report import Report, Table
from stillroom.jobs import Estimate, Job, atomic_write
from stillroom.models import resolve_checkpoint
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact, Parent, make_parent
from stillroom.records import Record, count_records, find_record_file, read_records
from stillroom.train.data import split_records

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.distill.jobs.influence import InfluenceRecipe

__all__ = ["estimate_influence", "measure_influence", "read_scores", "run_ekfac"]

_MAX_BATCH_TOKENS = 2048
_MAX_EXCERPT = 60
_GRADIENTS_PER_RECORD = 3  # factors, eigenvalues, scores
_FLOPS_PER_SECOND = 5e9


def estimate_influence(recipe: InfluenceRecipe) -> Estimate:
    """Estimate memory, disk and time of the job, from the student's size and numbers of records."""
    student = Checkpoint.open(resolve_checkpoint(recipe.student, weights=False))
    answers = count_records(resolve_local(recipe.answers))
    texts = _GRADIENTS_PER_RECORD * count_records(resolve_local(recipe.records)) + answers
    gradients = 4 * student.parameters * answers
    return Estimate(
        memory_bytes=1_500_000_000 + 16 * student.parameters + 2 * gradients,
        disk_bytes=2 * gradients + 8 * student.parameters,
        seconds=30 + texts * 6 * student.parameters * recipe.max_tokens / _FLOPS_PER_SECOND,
        memory_knob="answers",
        disk_knob="answers",
        basis=f"{texts} gradients of {student.parameters / 1e6:.1f}M parameters",
    )


def measure_influence(recipe: InfluenceRecipe, job: Job) -> Artifact:
    """Score every training record for every answer, and report the most influential.

    Raises:
        DataError: If no record or answer has a token of an assistant.
        BackendError: If bergson fails.
    """
    folder = resolve_checkpoint(recipe.student, say=job.say)
    tokenizer = load_tokenizer(folder)
    records, answers = resolve_local(recipe.records), resolve_local(recipe.answers)
    learned = _tokenize(tokenizer, split_records(records).train, recipe, "records", job)
    asked = list(read_records(find_record_file(answers)))
    explained = _tokenize(tokenizer, asked, recipe, "answers", job)
    scratch = job.work / "influence"
    with job.phase("influence", len(learned), "records") as progress:
        some, others = ([item for _, item in items.values()] for items in (learned, explained))
        scores = run_ekfac(folder, tokenizer, some, others, scratch)
        progress.advance(len(learned))
    shutil.rmtree(scratch)
    return _finish(recipe, job, [learned, explained], scores)


def _tokenize(
    tokenizer: Any, records: Sequence[Record], recipe: InfluenceRecipe, name: str, job: Job
) -> dict[str, tuple[Record, TokenizedRecord]]:
    """Return the records with their tokens, each once."""
    tokenized, counts = tokenize_records(
        tokenizer, records, max_tokens=recipe.max_tokens, include_prompt=False
    )
    by_id = {record.id: record for record in records}
    if not tokenized:
        raise DataError(
            f"none of the {name} has a token of an assistant within {recipe.max_tokens} tokens",
            code="distill.no-positions",
            where=name,
            expected="assistant messages within max_tokens",
            next=f"raise max_tokens above {recipe.max_tokens}",
        )
    if counts["records_cut"] or counts["records_left_out"]:
        job.say(
            f"{name}: {counts['records_cut']} were truncated to {recipe.max_tokens} tokens, "
            f"{counts['records_left_out']} dropped"
        )
    return {item.record_id: (by_id[item.record_id], item) for item in tokenized}


def run_ekfac(
    folder: Path,
    tokenizer: Any,
    learned: Sequence[TokenizedRecord],
    explained: Sequence[TokenizedRecord],
    scratch: Path,
) -> NDArray[np.float32]:
    """Return EK-FAC scores of answers (rows) and records (columns), by bergson in a process.

    Raises:
        BackendError: If bergson fails.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name, items in (("records", learned), ("answers", explained)):
        with atomic_write(scratch / f"{name}.jsonl") as file:
            for item in items:
                labels = np.full(len(item.ids), -100)
                labels[item.positions + 1] = item.labels
                row = {"input_ids": item.ids.tolist(), "labels": labels.tolist()}
                file.write(json.dumps(row) + "\n")
    config = json.loads((folder / "config.json").read_bytes())
    most = min(
        _MAX_BATCH_TOKENS,
        config.get("max_position_embeddings", _MAX_BATCH_TOKENS),
        tokenizer.model_max_length,
    )
    log = scratch / "log.txt"
    command = [sys.executable, "-m", "bergson", "ekfac", str(scratch / "run"), "--method", "kfac"]
    command += ["--model", str(folder), "--token_batch_size", str(most)]
    command += ["--data.dataset", str(scratch / "records.jsonl")]
    command += ["--query.dataset", str(scratch / "answers.jsonl"), "--query.aggregation", "none"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(scratch / "datasets")}
    with log.open("wb") as output:
        done = subprocess.run(  # noqa: S603  # our own interpreter, on files that we wrote
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **offline},
            check=False,
        )
    try:
        return read_scores(scratch / "run/scores", len(explained), len(learned))
    except (OSError, ValueError, KeyError) as error:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise BackendError(
            f"bergson ended with status {done.returncode}: {lines[-1] if lines else error!r}",
            code="distill.influence-failed",
            where=str(log),
            expected="scores of every record",
            next="read the log; a student of an architecture that transformers loads as a causal "
            "language model is supported",
        ) from error


def read_scores(folder: Path, answers: int, records: int) -> NDArray[np.float32]:
    """Return the scores in a folder of bergson, of answers (rows) and records (columns).

    Raises:
        OSError, KeyError: If there are none.
        ValueError: If one is missing or not finite.
    """
    info = json.loads((folder / "info.json").read_bytes())
    layout: Any = {key: info["dtype"][key] for key in ("names", "formats", "offsets", "itemsize")}
    stored = np.fromfile(folder / "scores.bin", np.dtype(layout))
    scores = np.stack([stored[f"score_{i}"] for i in range(answers)]).astype(np.float32)
    written = np.stack([stored[f"written_{i}"] for i in range(answers)])
    if scores.shape != (answers, records) or not written.all() or not np.isfinite(scores).all():
        raise ValueError("a score is missing or not finite")
    return scores


def _finish(
    recipe: InfluenceRecipe,
    job: Job,
    read: Sequence[dict[str, tuple[Record, TokenizedRecord]]],
    scores: NDArray[np.float32],
) -> Artifact:
    learned, explained = read
    ids = list(learned)
    rows: list[tuple[str, ...]] = []
    with atomic_write(job.output / "influence.jsonl") as file:
        for answer, row in zip(explained, scores, strict=True):
            order = np.argsort(-row, kind="stable")
            scored = [{"record": ids[i], "score": float(row[i])} for i in order]
            file.write(json.dumps({"answer": answer, "records": scored}) + "\n")
            excerpt = _excerpt(explained[answer][0])
            rows += [
                (excerpt, f"{row[i]:.3g}", ids[i], _excerpt(learned[ids[i]][0]))
                for i in order[: recipe.top]
            ]
    report = Report(
        "Influence of records",
        f"{len(ids)} training records scored for {len(explained)} answers by EK-FAC",
    ).section(
        "Most influential records",
        "A higher score: the answer would become more likely with more of the record. Scores of "
        "different answers are not comparable.",
        table=Table(
            "Records of each answer", ("answer", "score", "record", "it says"), tuple(rows)
        ),
    )
    report.write(job.output)
    student = Checkpoint.open(resolve_checkpoint(recipe.student))
    return job.finish(
        "report",
        parents=[
            Parent("student", recipe.student, student.fingerprint, "checkpoint"),
            make_parent("records", resolve_local(recipe.records), job.out),
            make_parent("answers", resolve_local(recipe.answers), job.out),
        ],
        details={"records": len(ids), "answers": len(explained), **report.to_json()},
    )


def _excerpt(record: Record) -> str:
    answer = " ".join(turn.content for turn in record.messages if turn.role == "assistant")
    text = " ".join(answer.split())
    return text if len(text) <= _MAX_EXCERPT else f"{text[: _MAX_EXCERPT - 1]}…"
