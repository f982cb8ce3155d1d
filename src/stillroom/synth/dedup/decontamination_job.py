"""Decontamination job: remove records that contain verbatim, near or rephrased test items.

Files and counts only: ``leakage.LeakChecker`` decides, and finds the words of an item by
``text.dedup.decontamination.BenchmarkIndex``. A record that could not be checked is never reported
as clean: where the embedder or the judge fails, it goes to ``unchecked.jsonl`` and not to
``records.jsonl``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.jobs import Job, atomic_write
from stillroom.provenance import Artifact, digest_json, make_parent
from stillroom.records import Record, RecordWriter, combine_origins, read_records
from stillroom.synth.dedup.leakage import (
    BenchmarkItem,
    LeakChecker,
    LeakResult,
    LeakThresholds,
    read_benchmark_items,
)
from stillroom.text.dedup.decontamination import is_short_item

if TYPE_CHECKING:
    from stillroom.models import Embedder, TextModel
    from stillroom.synth.jobs.decontaminate import DecontaminationRecipe

__all__ = ["CONTAMINATED", "UNCHECKED", "decontaminate"]

CONTAMINATED, UNCHECKED = "contaminated.jsonl", "unchecked.jsonl"
_BATCH = 64
_SHOWN = 200


def decontaminate(
    recipe: DecontaminationRecipe,
    job: Job,
    embedder: Embedder | None = None,
    judge: TextModel | None = None,
) -> Artifact:
    """Write the records that contain no benchmark item.

    Writes ``records.jsonl`` (checked and clean), ``contaminated.jsonl`` (each record with the item
    found in it, the kind of match and its share), ``unchecked.jsonl`` for failed checks, and
    ``items.json``: every item and the number of records that contain it.

    The artifact's details are the counts: ``read``, ``kept``, ``contaminated``, ``unchecked`` and
    by ``kind``.

    Args:
        recipe: Records, items and thresholds.
        job: Started job.
        embedder: Finds paraphrases; without one, they are not searched.
        judge: Decides on doubtful paraphrases.

    Raises:
        DataError: If a file is missing or damaged, or there is no item or no record.
    """
    items = list(read_benchmark_items(recipe.item_paths))
    if not items:
        raise _make_empty_error("item", recipe.item_paths)
    limits = LeakThresholds(recipe.near)
    if recipe.paraphrases is not None:
        limits = replace(limits, reworded=recipe.paraphrases.min_score)
        if recipe.paraphrases.judge is not None:
            limits = replace(limits, judged=recipe.paraphrases.judge.min_score)
    checker = LeakChecker(items, _read(recipe.paths), limits, job, embedder=embedder, judge=judge)
    return _check_records(recipe, items, checker, job)


def _check_records(
    recipe: DecontaminationRecipe, items: Sequence[BenchmarkItem], checker: LeakChecker, job: Job
) -> Artifact:
    journal, read = job.journal("checked"), 0
    kinds, held = Counter[str](), Counter[int]()
    origins: dict[str, Any] = {}
    with (
        job.phase("check", unit="records") as progress,
        RecordWriter(job.output / "records.jsonl") as writer,
        atomic_write(job.output / CONTAMINATED) as bad,
        RecordWriter(job.output / UNCHECKED) as unchecked,
    ):
        records = _read(recipe.paths)
        while batch := list(islice(records, _BATCH)):
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
        raise _make_empty_error("record", recipe.paths)
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
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    (job.say if details["kept"] else job.warn)(
        f"{details['kept']} of {read} records are clean; "
        f"{kinds.total()} contain a test item "
        f"({shown or 'none'}); {len(held)} of {len(items)} items were found"
    )
    if short := sum(is_short_item(item.text) for item in items):
        job.say(f"{short} items have so few words that only a whole message can be one of them")
    if not details["rewordings"]:
        job.say("paraphrases were not searched: give paraphrases.embedder")
    if unchecked.count:
        job.warn(f"{unchecked.count} records are not checked: {checker.why_unchecked}")
    parents = [make_parent("records", path, job.out) for path in recipe.paths]
    parents += [make_parent("held out", path, job.out) for path in recipe.item_paths]
    origin = combine_origins(origins.values())
    return job.finish("records", parents=parents, origin=origin.to_json(), details=details)


def _read(paths: Sequence[Path]) -> Iterator[Record]:
    for path in paths:
        yield from read_records(path)


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
