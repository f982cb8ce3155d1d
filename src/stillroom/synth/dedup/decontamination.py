"""Decontamination job: remove records that contain verbatim, near or rephrased test items.

A record that could not be checked is never reported as clean: where the embedder or the judge
fails, the record goes to ``unchecked.jsonl`` and not to ``records.jsonl``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.jobs import Job, Reporter, atomic_write
from stillroom.provenance import Artifact, digest_json, make_parent
from stillroom.records import Record, RecordWriter, combine_origins, read_records
from stillroom.synth.dedup.leakage import (
    BenchmarkItem,
    LeakChecker,
    LeakResult,
    LeakThresholds,
    read_benchmark_items,
)

if TYPE_CHECKING:
    from stillroom.models import Embedder, TextModel

__all__ = ["CONTAMINATED", "UNCHECKED", "DecontaminationSettings", "decontaminate"]

CONTAMINATED, UNCHECKED = "contaminated.jsonl", "unchecked.jsonl"
_BATCH = 64
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class DecontaminationSettings:
    """Records to check, benchmark items to look for, and detection thresholds.

    ``against`` are files of records or artifacts; an item is a record's ``question``, else its
    first user message, else its first message. ``embedder`` finds rewordings; ``judge`` decides the
    uncertain ones.
    """

    paths: tuple[Path, ...]
    against: tuple[Path, ...]
    embedder: str = ""
    judge: str = ""
    limits: LeakThresholds = field(default_factory=LeakThresholds)

    def to_text(self) -> str:
        """Return the settings as YAML text for the job."""
        settings = {
            name: [str(path) for path in value] if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        return "# stillroom synth decontaminate\n" + "".join(
            f"{name}: {json.dumps(value)}\n" for name, value in settings.items()
        )


def decontaminate(
    plan: DecontaminationSettings,
    out: Path,
    *,
    embedder: Embedder | None = None,
    judge: TextModel | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, dict[str, Any]]:
    """Write the records that contain no benchmark item.

    Writes ``records.jsonl`` (checked and clean), ``contaminated.jsonl`` (each record with the item
    found in it, the kind of match and its share), ``unchecked.jsonl`` for failed checks, and
    ``items.json``: every item and the number of records that contain it.

    Args:
        plan: Records, items and thresholds.
        out: Output folder of the records.
        embedder: Default: the one the plan names; without one, rewordings are not checked.
        judge: Default: the one the plan names.
        resume: Resume a killed run.
        overwrite: Replace the output of an earlier job at ``out``.
        reporter: Progress display; default none.

    Returns:
        The artifact and the counts: ``read``, ``kept``, ``contaminated``, ``unchecked`` and by
        ``kind``.

    Raises:
        DataError: If a file is missing or damaged, or there is no item or no record.
    """
    _check(plan)
    job = Job.start(out, plan.to_text(), resume=resume, overwrite=overwrite, reporter=reporter)
    try:
        with job.interruptible():
            items = list(read_benchmark_items(plan.against))
            if not items:
                raise _make_empty_error("item", plan.against)
            checker = _open_checker(plan, items, job, embedder, judge)
            return _run(plan, items, checker, job)
    finally:
        job.close()


def _run(
    plan: DecontaminationSettings, items: Sequence[BenchmarkItem], checker: LeakChecker, job: Job
) -> tuple[Artifact, dict[str, Any]]:
    journal = job.journal("checked")
    kinds: Counter[str] = Counter()
    held: Counter[int] = Counter()
    read = 0
    origins: dict[str, Any] = {}
    with (
        job.phase("check", unit="records") as progress,
        RecordWriter(job.output / "records.jsonl") as writer,
        atomic_write(job.output / CONTAMINATED) as bad,
        RecordWriter(job.output / UNCHECKED) as unchecked,
    ):
        for batch in _batches(_read(plan.paths)):
            job.check_cancelled()
            key = digest_json([record.id for record in batch])
            rows = journal.get(key) or [_to_row(result) for result in checker.check(batch)]
            if not any(isinstance(row, str) for row in rows):
                journal.put(key, rows)
            for record, row in zip(batch, rows, strict=True):
                read += 1
                if row is None:
                    writer.write(record)
                    origins.setdefault(json.dumps(record.origin.to_json()), record.origin)
                elif isinstance(row, str):
                    unchecked.write(record)
                else:
                    number, kind, share = row
                    kinds[kind] += 1
                    held[number] += 1
                    contaminated = _make_contaminated_row(record, items[number], kind, share)
                    bad.write(json.dumps(contaminated, ensure_ascii=False) + "\n")
            progress.advance(len(batch))
    if not read:
        raise _make_empty_error("record", plan.paths)
    _write_items(job.output / "items.json", items, held)
    details = {
        "read": read,
        "kept": read - unchecked.count - kinds.total(),
        "contaminated": kinds.total(),
        "unchecked": unchecked.count,
        "why_unchecked": checker.why_unchecked,
        "kinds": dict(sorted(kinds.items())),
        "items": len(items),
        "items_found": len(held),
        "rewordings": checker.embedder is not None,
    }
    parents = [make_parent("records", path, job.out) for path in plan.paths]
    parents += [make_parent("held out", path, job.out) for path in plan.against]
    origin = combine_origins(origins.values()).to_json()
    return job.finish("records", parents=parents, origin=origin, details=details), details


def _open_checker(
    plan: DecontaminationSettings,
    items: Sequence[BenchmarkItem],
    job: Job,
    embedder: Embedder | None,
    judge: TextModel | None,
) -> LeakChecker:
    from stillroom.models import open_embedder, open_text_model

    if embedder is None and plan.embedder:
        embedder = open_embedder(plan.embedder, say=job.say)
    if judge is None and plan.judge:
        judge = open_text_model(plan.judge, say=job.say)
    return LeakChecker(items, _read(plan.paths), plan.limits, job, embedder=embedder, judge=judge)


def _read(paths: Sequence[Path]) -> Iterator[Record]:
    for path in paths:
        yield from read_records(path)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _to_row(checked: LeakResult) -> Any:
    if checked.unchecked:
        return checked.unchecked
    match = checked.match
    return None if match is None else [match.item, match.kind, round(match.share, 6)]


def _make_contaminated_row(
    record: Record, item: BenchmarkItem, kind: str, share: float
) -> dict[str, Any]:
    return {
        "id": record.id,
        "kind": kind,
        "share": share,
        "item": {"file": item.file, "row": item.row, "text": item.text[:_SHOWN]},
        "record": record.to_json(),
    }


def _write_items(path: Path, items: Sequence[BenchmarkItem], held: Counter[int]) -> None:
    rows = [
        {"file": item.file, "row": item.row, "text": item.text[:_SHOWN], "records": held[number]}
        for number, item in enumerate(items)
    ]
    rows.sort(key=lambda row: -int(str(row["records"])))
    with atomic_write(path) as file:
        json.dump(rows, file, ensure_ascii=False, indent=1)


def _make_empty_error(noun: str, paths: Sequence[Path]) -> DataError:
    return DataError(
        f"no {noun} found",
        code="synth.no-records",
        where=", ".join(map(str, paths)),
        expected="at least one readable record",
        next="name files of records",
    )


def _check(plan: DecontaminationSettings) -> None:
    if not 0 < plan.limits.near <= 1:
        raise DataError(
            f"the threshold for a near match is {plan.limits.near}",
            code="synth.threshold",
            expected="above 0 and at most 1",
            next="leave it out for the default, 0.65",
        )
    if plan.judge and not plan.embedder:
        raise DataError(
            "a judge is given without an embedder",
            code="synth.judge-alone",
            expected="an embedder, which selects the pairs that the judge decides",
            next="add --embedder hub:sentence-transformers/all-MiniLM-L6-v2",
        )
