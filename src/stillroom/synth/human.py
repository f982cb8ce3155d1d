"""Human records for an experiment: read from whatever the user has, split, and said what they are.

Reads files of records, artifacts and indexes, text files, and recipes of kind synth (their
passages). Records that share a document never stand on both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import DataError
from stillroom.objects import local
from stillroom.provenance import digest_json
from stillroom.records import Message, Record, read_records
from stillroom.synth.plan import find_copies, split_documents
from stillroom.synth.source import read_source

__all__ = ["Side", "describe_origins", "draw_records", "read_human", "split_human"]

_RECIPES = (".yaml", ".yml")
_LEAST = 8


@dataclass(frozen=True, slots=True)
class Side:
    """Records to learn from, and those kept aside."""

    train: list[Record]
    held_out: list[Record]


def read_human(path: Path) -> list[Record]:
    """Return the records that a path names.

    Args:
        path: A file of records or of text (a line a record), an artifact of records, an index, a
            file of passages, or a recipe of kind synth, whose passages are taken.

    Raises:
        DataError: If there is nothing in it, or it cannot be read.
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


def split_human(records: Sequence[Record], share: float, seed: int) -> Side:
    """Return the records in two, a document whole on one side, with its copies.

    Where records name their split, ``held_out`` and ``test`` are kept aside and the rest learned
    from; else a share of the documents is kept aside, by hash.

    Raises:
        DataError: If a side has too few records for an experiment.
    """
    if any(record.fields.get("split") in {"held_out", "test"} for record in records):
        held = [one for one in records if one.fields.get("split") in {"held_out", "test"}]
        train = [one for one in records if one.fields.get("split") not in {"held_out", "test"}]
    else:
        names = [str(one.fields.get("document_id") or one.id) for one in records]
        pairs = list(zip(records, names, strict=True))
        parts: dict[str, list[Record]] = {}
        for one, name in pairs:
            parts.setdefault(name, []).append(one)
        sides = split_documents(parts, share, seed, find_copies(parts))
        train = [one for one, name in pairs if sides[name] == "train"]
        held = [one for one, name in pairs if sides[name] == "held_out"]
    if min(len(train), len(held)) < _LEAST:
        raise DataError(
            f"{len(train)} records to learn from, {len(held)} kept aside",
            code="synth.too-few",
            expected=f"{_LEAST} or more on each side",
            next="give more records, or more documents",
        )
    return Side(train, held)


def draw_records(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Return so many records, or all, chosen and ordered by hash."""
    order = sorted(
        range(len(records)), key=lambda at: (digest_json([seed, records[at].id, at]), at)
    )
    return [records[at] for at in order[:count]]


def describe_origins(records: Sequence[Record]) -> str:
    """Return a sentence where not all records are known to be written by people, else nothing."""
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
        for passage in read_source(reference).passages
    ]


def _read_recipe(path: Path) -> list[Record]:
    """Return what a recipe starts from: its passages, or its records of seeds."""
    from stillroom.errors import RecipeError
    from stillroom.recipes import load_recipe
    from stillroom.synth.recipe import SynthRecipe

    recipe = load_recipe(path)
    if isinstance(recipe, SynthRecipe) and recipe.index:
        return _passages(recipe.index)
    if isinstance(recipe, SynthRecipe) and recipe.seeds:
        return read_human(local(recipe.seeds))
    raise RecipeError(
        f"this recipe of kind {recipe.kind} starts from no passages and no records",
        code="recipe.wrong-kind",
        where=str(path),
        expected="kind: synth, with index or seeds",
        next="name a file of records, or such a recipe",
    )
