"""Decontamination job: remove records that contain verbatim, near or rephrased test items.

Files and counts only: ``contamination.ContaminationChecker`` decides. A record that could not be
checked is never reported as clean: where the embedder or the judge fails, it goes to
``unchecked.jsonl`` and not to ``records.jsonl``.
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
from stillroom.synth.dedup.benchmark_items import BenchmarkItem, read_benchmark_items
from stillroom.synth.dedup.contamination import ContaminationChecker, MatchResult, MatchThresholds
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
    thresholds = MatchThresholds(recipe.near)
    if recipe.paraphrases is not None:
        thresholds = replace(thresholds, reworded=recipe.paraphrases.min_score)
        if recipe.paraphrases.judge is not None:
            thresholds = replace(thresholds, judged=recipe.paraphrases.judge.min_score)
    checker = ContaminationChecker(
        items, _read(recipe.paths), thresholds, job, embedder=embedder, judge=judge
    )
    return _check_records(recipe, items, checker, job)


def _check_records(
    recipe: DecontaminationRecipe,
    items: Sequence[BenchmarkItem],
    checker: ContaminationChecker,
    job: Job,
) -> Artifact:
    journal, num_read = job.journal("checked"), 0
    counts_by_kind, counts_by_item = Counter[str](), Counter[int]()
    origins: dict[str, Any] = {}
    with (
        job.phase("check", unit="records") as progress,
        RecordWriter(job.output / "records.jsonl") as writer,
        atomic_write(job.output / CONTAMINATED) as contaminated,
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
                num_read += 1
                if row is None:
                    writer.write(record)
                    origins.setdefault(json.dumps(record.origin.to_json()), record.origin)
                elif isinstance(row, str):
                    unchecked.write(record)
                else:
                    number, kind, share = row
                    counts_by_kind[kind] += 1
                    counts_by_item[number] += 1
                    found = _make_contaminated_row(record, items[number], kind, share)
                    contaminated.write(json.dumps(found, ensure_ascii=False) + "\n")
            progress.advance(len(batch))
    if not num_read:
        raise _make_empty_error("record", recipe.paths)
    _write_items(job.output / "items.json", items, counts_by_item)
    details = {
        "read": num_read,
        "kept": num_read - unchecked.count - counts_by_kind.total(),
        "contaminated": counts_by_kind.total(),
        "unchecked": unchecked.count,
        "why_unchecked": checker.why_unchecked,
        "kinds": dict(sorted(counts_by_kind.items())),
        "items": len(items),
        "items_found": len(counts_by_item),
        "rewordings": checker.embedder is not None,
    }
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts_by_kind.items()))
    (job.say if details["kept"] else job.warn)(
        f"{details['kept']} of {num_read} records are clean; {counts_by_kind.total()} contain a "
        f"test item ({shown or 'none'}); {len(counts_by_item)} of {len(items)} items were found"
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


def _to_row(result: MatchResult) -> Any:
    if result.unchecked:
        return result.unchecked
    match = result.match
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


def _write_items(path: Path, items: Sequence[BenchmarkItem], counts: Counter[int]) -> None:
    rows = [
        {"file": item.file, "row": item.row, "text": item.text[:_SHOWN], "records": counts[number]}
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
