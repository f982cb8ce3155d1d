"""Sources: the checkpoints that a merge reads, opened, named by content, and put in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError
from stillroom.merge.gates import Prompts
from stillroom.merge.reading import open_checkpoint, read_bits, read_rows, resolve_path
from stillroom.merge.recipe import MergeRecipe

if TYPE_CHECKING:
    from stillroom.merge.adapters import AdaptedCheckpoint
    from stillroom.merge.method import Array

__all__ = ["Source", "find_run", "name_sources", "open_sources", "shorten_runs"]

CANDIDATES = "candidates"
_GAP = 16


@dataclass(frozen=True)
class Source:
    """One model that takes part: a checkpoint, or one with an adapter over it.

    ``weight``, ``own`` (density, ...) and ``prompts`` are what the recipe says of it. ``key`` is
    the fingerprint, with a count where the same weights take part twice; empty until
    ``name_sources`` has read them.
    """

    name: str
    checkpoint: Checkpoint
    weight: float = 1.0
    own: Mapping[str, float] = field(default_factory=dict)
    adapted: AdaptedCheckpoint | None = None
    key: str = ""
    prompts: Prompts = field(default_factory=Prompts)

    @property
    def fingerprint(self) -> str:
        """The digest of its weights, the adapter's among them."""
        return self.checkpoint.fingerprint if self.adapted is None else self.adapted.fingerprint

    @property
    def license(self) -> str:
        """What its card says."""
        own = self.adapted.adapter.license if self.adapted else ""
        return own or self.checkpoint.license

    def read(self, name: str, start: int, stop: int, dtype: Any) -> Array:
        """Return rows of a tensor as floats, (rows, ...); a scalar is one row of shape ().

        Args:
            name: The tensor.
            start: The first row.
            stop: The row after the last.
            dtype: float32 or float64.
        """
        if self.adapted is not None:
            return self.adapted.rows(name, start, stop, dtype=dtype)
        return read_rows(self.checkpoint, name, start, stop, dtype=dtype)

    def take(self, name: str, rows: Array, dtype: Any) -> Array:
        """Return some rows of a tensor as floats, (rows, ...).

        Args:
            name: The tensor.
            rows: Which, int64; any order, also twice.
            dtype: float32 or float64.
        """
        import numpy as np

        wanted, places = np.unique(rows, return_inverse=True)
        entry = self.checkpoint.entry(name)
        if not len(wanted):
            return np.zeros((0, *entry.shape[1:]), dtype)
        # Rows that lie close are read at once, with the few between them.
        breaks = np.flatnonzero(np.diff(wanted) > _GAP) + 1
        parts = [
            self.read(name, int(run[0]), int(run[-1]) + 1, dtype)[run - run[0]]
            for run in np.split(wanted, breaks)
        ]
        taken: Array = np.concatenate(parts)[places]
        return taken

    def stored(self, name: str, start: int, stop: int) -> Array:
        """Return rows of the checkpoint's tensor as they are stored, without any adapter."""
        return read_bits(self.checkpoint, name, start, stop)


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
        if entry.adapter is not None:
            along = [_adapt(source, entry.adapter, say) for source in along]
        prompts = Prompts(entry.positive, entry.negative)
        parents += [
            replace(source, weight=entry.weight, own=entry.own, prompts=prompts) for source in along
        ]
    return base, parents


def _adapt(source: Source, reference: str, say: Callable[[str], None] | None) -> Source:
    from stillroom.merge.adapters import AdaptedCheckpoint, Adapter

    adapted = AdaptedCheckpoint(source.checkpoint, Adapter.open(resolve_path(reference, say)))
    return replace(source, name=f"{source.name}+{_shorten(reference)}", adapted=adapted)


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


def shorten_runs(recipe: MergeRecipe, say: Callable[[str], None] | None = None) -> MergeRecipe:
    """Return the recipe with no ``along_run`` above what its run left, where it may go on.

    Raises:
        CheckpointError: If a model is missing or broken.
    """
    if recipe.when_too_few == "refuse":
        return recipe
    models = []
    for entry in recipe.models:
        left = len(find_run(_open(entry.checkpoint, say))) if entry.along_run else 0
        if left < entry.along_run and say:
            say(
                f"warning: the run of '{_shorten(entry.checkpoint)}' left {left} of "
                f"{entry.along_run} checkpoints, and they are taken"
            )
        models.append(entry.model_copy(update={"along_run": min(left, entry.along_run)}))
    return recipe.model_copy(update={"models": tuple(models)})


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
            key=lambda source: (source.fingerprint, source.weight, sorted(source.own.items()))
        )
    named = []
    for source in listed:
        fingerprint = source.fingerprint
        named.append(replace(source, key=f"{fingerprint}#{seen[fingerprint]}"))
        seen[fingerprint] += 1
    return named


def _open(reference: str, say: Callable[[str], None] | None) -> Source:
    return Source(_shorten(reference), open_checkpoint(reference, say))


def _shorten(reference: str) -> str:
    if reference.startswith(("hub:", "step:")):
        return reference.split(":", 1)[1]
    return Path(reference).name or reference
