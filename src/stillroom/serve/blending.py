"""Blending: how models would merge, measured before anything is written.

Conflict of their task vectors by layer, and the held-out loss along the line between two of them.
Blocks while it measures; asked to stop, it stops at the next tensor or point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from stillroom.errors import Cancelled, DataError
from stillroom.provenance import find_output
from stillroom.records import Record
from stillroom.serve.slots import IsStopped
from stillroom.serve.views.found import find_inside, read_found
from stillroom.serve.views.records import RecordSet, open_set
from stillroom.serve.views.sources import Sources

__all__ = ["MOST_PARENTS", "inspect_models", "measure_path"]

MOST_PARENTS = 4
_MOST_RECORDS = 64
_MOST_TOKENS = 512


def inspect_models(
    root: Path, base: str, parents: Sequence[str], density: float, is_stopped: IsStopped
) -> Iterator[dict[str, Any]]:
    """Yield one value: how the parents' task vectors over a base agree, by layer and by module.

    Args:
        root: The served folder.
        base: The name of what all were fine-tuned from.
        parents: Their names; 2 to ``MOST_PARENTS``.
        density: The share of each tensor that trimming would keep.
        is_stopped: Asked after every tensor.

    Raises:
        DataError: If a name is no checkpoint of the folder, or they are too few or too many.
        CheckpointError: If they do not belong together.
        ShapeError: If shapes differ.
    """
    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.inspect import inspect_parents, open_parent

    if not 2 <= len(parents) <= MOST_PARENTS:
        raise DataError(
            f"{len(parents)} parents are compared",
            code="console.parents",
            expected=f"2 to {MOST_PARENTS}",
            next="choose as many on the page Merge",
        )
    opened = Checkpoint.open(_checkpoint(root, base))
    found = inspect_parents(
        opened,
        [open_parent(str(_checkpoint(root, name)), opened) for name in parents],
        density=density,
        on_tensor=_stopper(is_stopped),
    ).to_json()
    del found["tensors"]  # hundreds; the layers say what the page shows
    yield {**found, "base": base, "parents": list(parents)}


def measure_path(
    sources: Sources,
    ends: tuple[str, str],
    records: str,
    *,
    count: int,
    points: int,
    is_stopped: IsStopped,
) -> Iterator[dict[str, Any]]:
    """Yield one value: the loss at even shares from the first model to the second.

    Args:
        sources: The served folder's, as the asker sees them.
        ends: The models' names.
        records: The name of an artifact of records; those held out of training, where it has any.
        count: How many records, at most 64.
        points: How many shares, both ends counted.
        is_stopped: Asked after every point.

    Raises:
        DataError: If a name is not of the folder or not shown, or no record has an answer.
        CheckpointError: If a model cannot be loaded.
    """
    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.path import trace_path

    first, second = (Checkpoint.open(_checkpoint(sources.root, name)) for name in ends)
    with open_set(sources, records) as opened:
        chosen, is_held_out = _choose(opened, min(count, _MOST_RECORDS))
    path = trace_path(
        ends,
        (first, second),
        chosen,
        max_tokens=_MOST_TOKENS,
        points=points,
        on_point=_stopper(is_stopped),
    )
    yield {**path.to_json(), "records": len(chosen), "held_out": is_held_out, "best": path.best}


def _choose(opened: RecordSet, count: int) -> tuple[list[Record], bool]:
    """Return the first records that were held out, or of all where none says so."""
    rows = list(islice(opened.records(), 20_000))
    held = [one for one in rows if one.fields.get("split") == "held_out"]
    return (held or rows)[:count], bool(held)


def _checkpoint(root: Path, name: str) -> Path:
    if read_found(root, name).kind != "checkpoint":
        raise DataError(
            f"{name!r:.200} is no checkpoint",
            code="data.wrong-kind",
            expected="a checkpoint of the folder",
            next="choose one on the page Merge",
        )
    return find_output(find_inside(root, name), "checkpoint")


def _stopper(is_stopped: IsStopped) -> Callable[[], None]:
    def look() -> None:
        if is_stopped():
            raise Cancelled("stopped", code="job.cancelled")

    return look
