"""Human reference records: read, split into sides, sampled and described.

Reads files of records, artifacts and indexes, text files, and recipes of kind synth.records (their
passages). Records that share a document are never on both sides of a split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import DataError, RecipeError
from stillroom.objects import resolve_local
from stillroom.provenance import digest_json
from stillroom.recipes import load_recipe
from stillroom.records import Message, Record, read_records
from stillroom.synth.pipeline.inputs import find_duplicate_documents, split_documents
from stillroom.synth.seeds import read_seed_passages

__all__ = [
    "HumanSplit",
    "describe_origins",
    "is_plain",
    "read_human_records",
    "sample_records",
    "split_human_records",
]

_RECIPES = (".yaml", ".yml")
_MIN_RECORDS = 8


@dataclass(frozen=True, slots=True)
class HumanSplit:
    """Training records and held-out records."""

    train: list[Record]
    held_out: list[Record]


def read_human_records(path: Path) -> list[Record]:
    """Read human records from a path.

    Args:
        path: A file of records or of text (one record per line), an artifact of records, an index,
            a file of passages, or a recipe of kind synth.records, whose passages are read.

    Raises:
        DataError: If it is empty or cannot be read.
        RecipeError: If it is a recipe of another kind.
    """
    if path.suffix in _RECIPES:
        return _read_recipe(path)
    try:
        records = list(read_records(path))
    except DataError as error:
        if path.is_file() and error.problems[0].code == "data.missing":
            raise
        return _passages(str(path))
    useful = [record for record in records if record.messages[-1].content.strip()]
    return [record for record in useful if record.messages[-1].role == "assistant"]


def split_human_records(records: Sequence[Record], share: float, seed: int) -> HumanSplit:
    """Split records by document; a document and its copies stay on one side.

    Where records name their split, ``held_out`` and ``test`` are held out and the others are for
    training; otherwise a share of the documents is held out, by hash.

    Raises:
        DataError: If a side has too few records for an experiment.
    """
    if any(record.fields.get("split") in {"held_out", "test"} for record in records):
        held = [record for record in records if record.fields.get("split") in {"held_out", "test"}]
        train = [
            record for record in records if record.fields.get("split") not in {"held_out", "test"}
        ]
    else:
        names = [str(record.fields.get("document_id") or record.id) for record in records]
        pairs = list(zip(records, names, strict=True))
        parts: dict[str, list[Record]] = {}
        for record, name in pairs:
            parts.setdefault(name, []).append(record)
        sides = split_documents(parts, share, seed, find_duplicate_documents(parts))
        train = [record for record, name in pairs if sides[name] == "train"]
        held = [record for record, name in pairs if sides[name] == "held_out"]
    if min(len(train), len(held)) < _MIN_RECORDS:
        raise DataError(
            f"{len(train)} training records, {len(held)} held out, of a share of {share:.2g}",
            code="synth.too-few",
            expected=f"at least {_MIN_RECORDS} on each side",
            next="give more records, or more documents, or bring num_records and num_held_out "
            "nearer to each other",
        )
    return HumanSplit(train, held)


def is_plain(record: Record) -> bool:
    """Return whether a record is plain text, not a conversation."""
    return len(record.messages) == 1 and record.messages[0].role == "assistant"


def sample_records(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Return ``count`` records, or all, selected and ordered by hash."""
    order = sorted(
        range(len(records)),
        key=lambda index: (digest_json([seed, records[index].id, index]), index),
    )
    return [records[index] for index in order[:count]]


def describe_origins(records: Sequence[Record]) -> str:
    """Return a sentence if some records are not known to be human-written, else an empty string."""
    kinds = Counter(record.origin.kind for record in records)
    odd = ", ".join(f"{kinds[kind]} {kind}" for kind in ("unknown", "synthetic") if kinds[kind])
    if not odd:
        return ""
    return f"Of {len(records)} records taken as human, by their origin {odd}."


def _passages(reference: str) -> list[Record]:
    return [
        Record(
            (Message("assistant", passage.text),),
            {"document_id": passage.document_id, "passage_id": passage.id},
            passage.origin,
        )
        for passage in read_seed_passages(reference).passages
    ]


def _read_recipe(path: Path) -> list[Record]:
    """Read the data a recipe starts from: its passages, or its seed records."""
    recipe = load_recipe(path)
    is_records = recipe.kind == "synth.records"
    if is_records and (index := getattr(recipe, "index", None)):
        return _passages(index)
    if is_records and (seeds := getattr(recipe, "seeds", None)):
        return read_human_records(resolve_local(seeds))
    raise RecipeError(
        f"this recipe of kind {recipe.kind} has neither passages nor records",
        code="recipe.wrong-kind",
        where=str(path),
        expected="kind: synth.records, with index or seeds",
        next="name a file of records, or such a recipe",
    )
