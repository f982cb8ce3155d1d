"""A set of forged media on its way to the disk: journaled item by item, proved whole at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any

from stillroom.forensics.finishing import refuse_unmarked
from stillroom.forensics.lab import Lab
from stillroom.forensics.marking import unmarked_files
from stillroom.jobs import Job, atomic_write

__all__ = ["MANIFEST", "Rows", "write_set"]

MANIFEST = "manifest.jsonl"
Rows = list[dict[str, Any]]


def write_set(
    job: Job,
    lab: Lab,
    make: Callable[[Collection[int]], Iterator[tuple[int, Rows]]],
    *,
    count: int,
    unit: str,
    rows_before: int,
) -> Rows:
    """Have every item made, write the manifest, and refuse a set with an unmarked file.

    Args:
        job: What was made before it stopped is not made again.
        lab: Whose marks every file has to have.
        make: Given the numbers that are done, yields those of the others and their rows, each once
            its files are written.
        count: How many items there are.
        unit: What they are, in words.
        rows_before: Of the ledger, before the job.

    Returns:
        The manifest's rows, by item.

    Raises:
        IntegrityError: If a file lacks a mark.
        Cancelled: If the user stopped it.
    """
    journal = job.journal("items")
    done: dict[int, Rows] = {
        int(key): journal.get(key)
        for key in journal.keys()  # noqa: SIM118  # no mapping
    }
    with job.phase("forge", count, unit, done=len(done)) as progress:
        for number, rows in make(done):
            journal.put(str(number), rows)
            done[number] = rows
            progress.advance()
            job.check_cancelled()
    found = [row for number in sorted(done) for row in done[number]]
    with atomic_write(job.output / MANIFEST) as file:
        file.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in found)
    refuse_unmarked(unmarked_files(job.output, lab))
    job.say(
        f"{len(found)} {unit}, each with label, watermark, credentials and a row in the ledger "
        f"({rows_before} rows before, {lab.ledger.verify()} now)"
    )
    return found
