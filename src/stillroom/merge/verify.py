"""Verify: make some of a merge's tensors again from its recipe and inputs, and compare the bytes.

What ``stillroom verify`` cannot know: it finds changed files, this finds a result that its recipe
does not give. Inputs are read whole and their fingerprints taken anew, not from a cache. Tensors
are drawn by a seed; where a method of ``compat: mergekit`` draws random numbers, all are made
again, since there each depends on those before it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints import Checkpoint
from stillroom.errors import DataError, IntegrityError, Problem
from stillroom.merge.opening import open_merge, retune_merge
from stillroom.merge.recipe import MergeRecipe
from stillroom.merge.search_space import change_recipe
from stillroom.merge.select import Candidate, list_candidates, list_parents
from stillroom.merge.sources import shorten_runs
from stillroom.merge.stream import Engine, Merge, as_bytes
from stillroom.merge.workers import Workers
from stillroom.provenance import Artifact, digest_file, digest_json, read_artifact, resolve_parent
from stillroom.provenance.sources import is_reference

if TYPE_CHECKING:
    from stillroom.merge.plan import MergePlan, PlannedTensor
    from stillroom.merge.sources import Source

__all__ = ["Difference", "Verification", "verify_merge"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor that is not what the recipe gives: how many numbers differ, and the first's index.

    ``elements`` is 0 where it is another tensor altogether, and ``what`` says how.
    """

    name: str
    elements: int = 0
    first: int = 0
    what: str = ""

    def __str__(self) -> str:
        """Return what continues a sentence that begins with the tensor's name."""
        if self.what:
            return self.what
        return f"differs in {self.elements} numbers, the first at {self.first}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared: inputs by name, how many tensors of how many, and what differs."""

    inputs: Mapping[str, str]
    tensors: int
    replayed: tuple[str, ...]
    is_whole: bool
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "inputs": dict(self.inputs),
            "tensors": self.tensors,
            "replayed": list(self.replayed),
            "whole": self.is_whole,
            "differences": [
                {"name": each.name, "elements": each.elements, "what": str(each)}
                for each in self.differences
            ],
        }

    def check(self, folder: Path) -> None:
        """Refuse a result that its recipe does not give.

        Raises:
            IntegrityError: If a tensor differs; every one is named.
        """
        if self.differences:
            raise IntegrityError(
                [
                    Problem(
                        f"tensor '{each.name}' {each}",
                        "merge.not-replayed",
                        str(folder),
                        "the bytes that the recipe gives with these inputs",
                        "merge again, or find who changed the weights",
                    )
                    for each in self.differences
                ]
            )


def verify_merge(
    folder: Path,
    *,
    share: float = 0.1,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
    threads: int = 0,
) -> Verification:
    """Replay a share of a merge's tensors and compare them with what lies there.

    Args:
        folder: What a job of kind merge left.
        share: How many of the tensors, from 0 to 1; at least one.
        seed: Which tensors.
        say: Hears that all tensors are replayed, where that is needed.
        threads: How many blocks are worked on at once, 0 as many as pay; changes no bit.

    Raises:
        DataError: If the folder is not a merge's.
        IntegrityError: If the recipe or an input is not what it was.
        CheckpointError: If an input or the result cannot be opened.
    """
    artifact = read_artifact(folder)
    recipe = _read_recipe(folder, artifact)
    placed = shorten_runs(_find_inputs(recipe, artifact, folder), say)
    merge = open_merge(placed, say)
    recipe = recipe.model_copy(update={"models": placed.models})
    inputs = _check_inputs(merge, artifact, folder)
    kept = _find_kept(recipe, merge, artifact)
    output = Checkpoint.open(folder)
    plan = kept.plan()
    wrong = list(_compare_layout(plan, output))
    spoiled = {each.name for each in wrong}
    listed = [tensor for tensor in plan.tensors if tensor.name not in spoiled]
    count = min(len(listed), max(1, round(share * len(listed))))
    picked = set(random.Random(seed).sample([tensor.name for tensor in listed], count))
    with Workers(threads) as workers:
        replay = _Replay(kept, plan, output, workers)
        chosen = [tensor for tensor in listed if tensor.name in picked]
        found = replay.compare(chosen)
        if replay.is_random and len(chosen) < len(plan.tensors):
            if say:
                say("random numbers of one tensor depend on those before: all are replayed")
            replay = _Replay(kept, plan, output, workers)
            found = replay.compare(plan.tensors, skip=spoiled)
            chosen = listed
    names = tuple(tensor.name for tensor in chosen)
    whole = len(names) == len(plan.tensors)
    return Verification(inputs, len(plan.tensors), names, whole, (*wrong, *found))


class _Replay:
    """Makes tensors again, in the plan's order."""

    def __init__(self, merge: Merge, plan: MergePlan, output: Checkpoint, workers: Workers) -> None:
        self.engine: Engine = merge.engine(plan, workers, None)
        self.output = output
        self.is_random = False

    def compare(
        self, tensors: Sequence[PlannedTensor], skip: set[str] | None = None
    ) -> list[Difference]:
        before = self.engine.state()
        found = []
        for tensor in tensors:
            difference = self._compare(tensor)
            if difference is not None and tensor.name not in (skip or ()):
                found.append(difference)
        self.is_random = before != self.engine.state()
        return found

    def _compare(self, tensor: PlannedTensor) -> Difference | None:
        width = int(np.prod(tensor.shape[1:], dtype=np.int64))
        start = different = 0
        first = -1
        for bits in self.engine.make(tensor):
            stop = start + (len(bits) if tensor.shape else 1)
            kept = np.frombuffer(self.output.read(tensor.name, start, stop), np.uint8)
            ours = np.frombuffer(as_bytes(bits), np.uint8)
            if not np.array_equal(ours, kept):
                size = max(bits.dtype.itemsize, 1)
                at = (ours.reshape(-1, size) != kept.reshape(-1, size)).any(axis=1)
                different += int(at.sum())
                first = start * width + int(at.argmax()) if first < 0 else first
            start = stop
        return Difference(tensor.name, different, first) if different else None


def _read_recipe(folder: Path, artifact: Artifact) -> MergeRecipe:
    from stillroom.recipes import load_recipe

    path = folder / "recipe.yaml"
    if artifact.kind != "checkpoint" or "merged" not in artifact.details or not path.is_file():
        raise DataError(
            f"{folder} was not made by a merge",
            code="merge.not-a-merge",
            where=str(folder),
            expected="the folder of a job of kind merge",
            next=f"stillroom show {folder} says what it is",
        )
    if digest_file(path) != artifact.recipe_digest:
        raise _changed(path, "is not the recipe that artifact.json names", "integrity.changed")
    recipe = load_recipe(path)
    if not isinstance(recipe, MergeRecipe):
        raise _changed(path, f"is of kind {recipe.kind}", "integrity.changed")
    return recipe


def _find_inputs(recipe: MergeRecipe, artifact: Artifact, folder: Path) -> MergeRecipe:
    """Return the recipe with references to where the inputs lie now, if a run was moved."""
    data = recipe.model_dump(mode="json")
    models = iter(data["models"])
    for parent in artifact.parents:
        if parent.role not in ("base", "model"):
            continue
        entry = data if parent.role == "base" else next(models, {})
        key = "base" if parent.role == "base" else "checkpoint"
        if isinstance(parent.path, str) and not is_reference(parent.path):
            path = resolve_parent(folder, parent)
            if path.exists():
                entry[key] = str(path)
    data["search"] = data["select"] = None
    return MergeRecipe.model_validate(data)


def _check_inputs(merge: Merge, artifact: Artifact, folder: Path) -> dict[str, str]:
    """Return every input's fingerprint, taken anew, by its name.

    Raises:
        IntegrityError: If one is not what the artifact says.
    """
    recorded = _recorded(artifact)
    if len(recorded) != len(merge.sources):
        raise _changed(
            folder / "artifact.json",
            f"names {len(recorded)} inputs and the recipe {len(merge.sources)}",
            "integrity.changed",
        )
    taken: dict[str, str] = {}
    problems = []
    for source, expected in zip(merge.sources, recorded, strict=True):
        found = _fingerprint(source)
        name = source.name if source.name not in taken else f"{source.name} ({len(taken)})"
        taken[name] = found
        if found != expected:
            problems.append(
                Problem(
                    f"the weights of {source.name} are not what was merged",
                    "merge.input-changed",
                    str(source.checkpoint.folder),
                    f"fingerprint {expected}, not {found}",
                    "restore that checkpoint, or merge again",
                )
            )
    if problems:
        raise IntegrityError(problems)
    return taken


def _recorded(artifact: Artifact) -> list[Any]:
    """Return the fingerprints that the artifact names, in the recipe's order; it may hold any."""
    chain = artifact.origin.get("chain")
    last = chain[-1] if isinstance(chain, list) and chain else None
    named = last.get("parents") if isinstance(last, Mapping) else None
    return list(named) if isinstance(named, list) else []


def _fingerprint(source: Source) -> str:
    """Return a source's fingerprint with every byte read, none taken from a cache."""
    plain = source.checkpoint.rehash()
    if source.adapted is None:
        return plain
    return digest_json([plain, source.adapted.adapter.fingerprint])


def _find_kept(recipe: MergeRecipe, merge: Merge, artifact: Artifact) -> Merge:
    """Return the merge that was written: the recipe's, or the one that was selected or found."""
    details = artifact.details
    if recipe.search is not None:
        found = details.get("search")
        found = found if isinstance(found, Mapping) else {}
        if found.get("changes") is None:
            return _by_name(list_parents(recipe, merge), found)
        try:
            return retune_merge(merge, change_recipe(recipe, found["changes"]))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise IntegrityError(
                "the changes that the artifact names are not of this recipe",
                code="merge.not-replayed",
                expected="settings that the recipe's search could have found",
                next="merge again",
            ) from error
    if recipe.select is not None:
        return _by_name(list_candidates(recipe, merge), details)
    return merge


def _by_name(candidates: Sequence[Candidate], details: Mapping[str, Any]) -> Merge:
    for candidate in candidates:
        if candidate.name == details.get("kept"):
            return candidate.merge
    raise IntegrityError(
        f"the artifact keeps '{details.get('kept')}', and the recipe has no such candidate",
        code="merge.not-replayed",
        expected=f"one of: {', '.join(each.name for each in candidates)}",
        next="merge again",
    )


def _compare_layout(plan: MergePlan, output: Checkpoint) -> Iterator[Difference]:
    """Yield tensors that only one side has, or that have another shape or type."""
    planned = {tensor.name: tensor for tensor in plan.tensors}
    for name in sorted({*planned, *output.names()}):
        if name not in planned:
            yield Difference(name, what="is not in the plan of the merge")
        elif name not in output:
            yield Difference(name, what="is missing")
        else:
            entry, wanted = output.entry(name), planned[name]
            if (entry.dtype, entry.shape) != (wanted.stored, wanted.shape):
                yield Difference(
                    name,
                    what=f"is {entry.dtype} {entry.shape}, not {wanted.stored} {wanted.shape}",
                )


def _changed(path: Path, what: str, code: str) -> IntegrityError:
    return IntegrityError(
        f"{path.name} {what}",
        code=code,
        where=str(path),
        expected="what the job wrote",
        next="restore the file, or merge again",
    )
