"""The result of a search: kept in a job's folder, read again, and said in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.evaluate import Metric, say_few
from stillroom.jobs import Job, atomic_write
from stillroom.merge.recipe import MergeRecipe
from stillroom.merge.stream import Merge
from stillroom.recipes import dump_recipe

__all__ = ["Found", "read_search", "say_found", "write_found"]

SEARCH_FILE, FOUND_FILE = "search.json", "found.yaml"


@dataclass(frozen=True)
class Found:
    """What a search found: the recipe as changed, its merge, what to tell, and every trial."""

    recipe: MergeRecipe
    merge: Merge
    details: dict[str, Any]
    trials: list[dict[str, Any]] = field(repr=False)


def write_found(found: Found, job: Job) -> None:
    """Write output/search.json with all trials, and found.yaml, the recipe without the search."""
    with atomic_write(job.output / SEARCH_FILE) as file:
        json.dump(found.details | {"trials": found.trials}, file, ensure_ascii=False, indent=1)
    with atomic_write(job.work / FOUND_FILE) as file:
        file.write(dump_recipe(found.recipe))


def read_search(folder: Path) -> dict[str, Any]:
    """Return what ``write_found`` wrote into a job's folder.

    Raises:
        DataError: If there is none, or it is not one of ours.
    """
    path = folder / "output" / SEARCH_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or "trials" not in found:
            raise ValueError("no trials")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no search that can be read",
            code="merge.no-search",
            where=str(path),
            expected="the folder of a merge whose recipe has 'search'",
            next=f"stillroom show {folder} says what it is",
        ) from error
    return found


def say_found(details: Mapping[str, Any]) -> str:
    """Return the outcome in one or two sentences, for people and for the card."""
    final, objective = details["final"], details["objective"]
    ours, parent = final["kept"], final["best_parent"]
    records = f"on {final['records']} records that the search never saw"
    if not details["helped"]:
        return (
            f"After {details['tried']} trials nothing beats the best parent, {parent['name']} "
            f"({objective} {parent['value']:.4f} {records}): it is kept as it is."
        )
    gap = final["difference"]
    few = say_few(final["records"], "records")
    tail = "." if Metric.from_json(gap).side() else ": less apart than chance may put them."
    return (
        f"Kept of {details['tried']} trials: {ours['name']}. {records.capitalize()}, its "
        f"{objective} is {ours['value']:.4f}, that of the best parent, {parent['name']}, "
        f"{parent['value']:.4f}" + (f". {few}" if few else tail)
    )
