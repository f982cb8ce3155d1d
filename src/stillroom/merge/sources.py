"""Sources: the checkpoints that a merge reads, opened, named by content, and put in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError
from stillroom.merge.recipe import MergeRecipe

__all__ = ["Source", "find_run", "name_sources", "open_sources"]

CANDIDATES = "candidates"


@dataclass(frozen=True)
class Source:
    """One checkpoint that takes part: how it is called, what it weighs, and its key.

    ``key`` is the fingerprint, with a count where the same weights take part twice; empty until
    ``name_sources`` has read them.
    """

    name: str
    checkpoint: Checkpoint
    weight: float = 1.0
    density: float | None = None
    key: str = ""


def open_sources(
    recipe: MergeRecipe, say: Callable[[str], None] | None = None
) -> tuple[Source | None, list[Source]]:
    """Open the base and every model of a recipe, in its order.

    Raises:
        CheckpointError: If one is missing or broken, or has no checkpoints along its run.
    """
    base = _open(recipe.base, say) if recipe.base is not None else None
    parents: list[Source] = []
    for entry in recipe.models:
        opened = _open(entry.checkpoint, say)
        along = _take_run(opened, entry.along_run) if entry.along_run else [opened]
        parents += [replace(source, weight=entry.weight, density=entry.density) for source in along]
    return base, parents


def find_run(final: Source) -> list[Source]:
    """Return the checkpoints that the training of ``final`` left, oldest first, itself the last.

    They lie in its folder, under candidates/STEP.
    """
    folder = final.checkpoint.folder / CANDIDATES
    steps = sorted(
        (path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name)
    )
    opened = [Source(f"{final.name}@{path.name}", Checkpoint.open(path)) for path in steps]
    if opened and opened[-1].checkpoint.fingerprint == final.checkpoint.fingerprint:
        opened.pop()
    return [*opened, final]


def _take_run(final: Source, count: int) -> list[Source]:
    found = find_run(final)
    if len(found) < count:
        raise CheckpointError(
            f"the run of '{final.name}' left {len(found)} checkpoints, and {count} are wanted",
            code="merge.run-too-short",
            where=str(final.checkpoint.folder / CANDIDATES),
            expected=f"at least {count}, the final one counted",
            next=f"ask for {len(found)}, or train with more candidates kept",
        )
    return found[-count:]


def name_sources(sources: Iterable[Source], *, in_order: bool) -> list[Source]:
    """Give every source its key, and put them in an order that does not depend on the recipe's.

    Args:
        sources: The models of a merge.
        in_order: Keep the recipe's order, because the method's meaning depends on it.
    """
    seen: Counter[str] = Counter()
    listed = list(sources)
    if not in_order:
        listed.sort(
            key=lambda source: (
                source.checkpoint.fingerprint,
                source.weight,
                -1.0 if source.density is None else source.density,
            )
        )
    named = []
    for source in listed:
        fingerprint = source.checkpoint.fingerprint
        named.append(replace(source, key=f"{fingerprint}#{seen[fingerprint]}"))
        seen[fingerprint] += 1
    return named


def _open(reference: str, say: Callable[[str], None] | None) -> Source:
    return Source(_shorten(reference), Checkpoint.open(_resolve(reference, say)))


def _resolve(reference: str, say: Callable[[str], None] | None) -> Path:
    path = Path(reference)
    if path.exists():
        return path
    from stillroom.models import resolve_checkpoint

    return resolve_checkpoint(reference, say=say)


def _shorten(reference: str) -> str:
    if reference.startswith(("hub:", "step:")):
        return reference.split(":", 1)[1]
    return Path(reference).name or reference
