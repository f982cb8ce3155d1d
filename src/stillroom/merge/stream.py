"""The engine: row blocks in, row blocks out, in bounded memory, resumable tensor by tensor.

Arithmetic is one step wider than storage: float32 for 16-bit weights, float64 for wider ones. So a
weighted mean of equal values rounds back to that value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.store import DTYPES
from stillroom.errors import CheckpointError
from stillroom.jobs import Journal
from stillroom.merge.method import METHODS, Block, MergeMethod, Place
from stillroom.merge.plan import (
    BLOCK_ELEMENTS,
    MergePlan,
    PlannedTensor,
    Rules,
    plan_sources,
)
from stillroom.merge.sources import Source, name_sources

__all__ = ["Merge", "Merged", "TensorBlocks", "merge_checkpoints"]

_SURVEY = "survey"


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did: the result's fingerprint, and how many tensors were merged or copied."""

    fingerprint: str
    merged: int
    copied: tuple[str, ...]
    tied: tuple[str, ...]


@dataclass(frozen=True)
class Merge:
    """One merge, ready to run: method, sources in order, rules.

    ``share`` places the result on the line from the base (0) to what the method gives (1).
    """

    method: MergeMethod
    base: Source | None
    parents: Sequence[Source]
    rules: Rules = field(default_factory=Rules)
    seed: int = 0
    share: float = 1.0
    block_elements: int = BLOCK_ELEMENTS

    def plan(self) -> MergePlan:
        """Return what becomes of every tensor."""
        return plan_sources(self.method.method_name(), self.base, self.parents, self.rules)

    def write(
        self,
        folder: Path,
        *,
        shard_size: int = 5_000_000_000,
        journal: Journal | None = None,
        on_tensor: Callable[[], None] | None = None,
        finish: Callable[[CheckpointWriter], None] | None = None,
    ) -> Merged:
        """Merge into ``folder``.

        Args:
            folder: Where the checkpoint is written: atomically, or in place with a journal.
            shard_size: Most bytes of weights in one file.
            journal: Keeps finished tensors, so that a killed merge goes on.
            on_tensor: Called after each tensor; may raise to stop.
            finish: Called with the writer when all tensors stand, as for a card.

        Raises:
            CheckpointError: If sources do not belong together, or a number is not finite.
            ShapeError: If a tensor's shapes differ.
            RecipeError: If the method cannot merge these models.
            ResourceError: If the disk is full.
        """
        self.method.check([parent.weight for parent in self.parents])
        plan = self.plan()
        ready = replace(self, parents=name_sources(self.parents, in_order=self.method.is_ordered))
        # What is merged does not depend on the recipe's order of models; what is copied does.
        ordered = ready.plan()
        survey = ready._survey(ordered, journal)
        donor = self.base or self.parents[0]
        config = {**donor.checkpoint.config, "tie_word_embeddings": plan.is_tied}
        shapes = {tensor.name: (tensor.stored, tensor.shape) for tensor in plan.tensors}
        with CheckpointWriter(
            folder,
            config=config,
            shard_size=shard_size,
            plan=shapes,
            in_place=journal is not None,
        ) as writer:
            for copied, merged in zip(plan.tensors, ordered.tensors, strict=True):
                if not _kept(writer, journal, copied.name):
                    if merged.is_merged:
                        digest = ready._merge_tensor(writer, merged, survey)
                    else:
                        digest = self._copy_tensor(writer, copied)
                    if journal is not None:
                        journal.put(copied.name, digest)
                if on_tensor:
                    on_tensor()
            writer.copy_tokenizer(donor.checkpoint.folder)
            if finish:
                finish(writer)
        names = tuple(tensor.name for tensor in plan.tensors if not tensor.is_merged)
        return Merged(writer.fingerprint, len(plan.tensors) - len(names), names, plan.tied)

    def _survey(self, plan: MergePlan, journal: Journal | None) -> Any:
        if journal is not None and _SURVEY in journal:
            return journal[_SURVEY]
        survey = self.method.survey(
            TensorBlocks(self, tensor) for tensor in plan.tensors if tensor.is_merged
        )
        if journal is not None and survey is not None:
            journal.put(_SURVEY, survey)
        return survey

    def _copy_tensor(self, writer: CheckpointWriter, tensor: PlannedTensor) -> str:
        source = [*([self.base] if self.base else []), *self.parents][tensor.owner]
        writer.begin(tensor.name, (tensor.stored, tensor.shape))
        row = 0
        for block in source.checkpoint.blocks(tensor.homes[0]):
            writer.write_rows(tensor.name, row, block)
            row += block.shape[0] if block.dim() else 1
        return writer.end(tensor.name)

    def _merge_tensor(self, writer: CheckpointWriter, tensor: PlannedTensor, survey: Any) -> str:
        blocks = TensorBlocks(self, tensor, survey)
        measured = self.method.measure(blocks)
        stored = DTYPES[tensor.stored]
        width = max(math.prod(tensor.shape[1:]), 1)
        writer.begin(tensor.name, (tensor.stored, tensor.shape))
        for block in blocks:
            merged = self.method.combine(block.base, block.parents, measured, block.at)
            if self.share != 1 and block.base is not None:
                merged = block.base + self.share * (merged - block.base)
            merged = merged.to(stored)
            if not bool(torch.isfinite(merged).all()):
                raise self._not_finite(block, tensor)
            writer.write_rows(tensor.name, block.at.offset // width, merged)
        return writer.end(tensor.name)

    def _not_finite(self, block: Block, tensor: PlannedTensor) -> CheckpointError:
        inputs = [*([block.base] if block.base is not None else []), *block.parents]
        names = [source.name for source in ([self.base] if self.base else [])]
        names += [parent.name for parent in self.parents]
        guilty = [
            name
            for name, rows in zip(names, inputs, strict=True)
            if not bool(torch.isfinite(rows).all())
        ]
        return CheckpointError(
            f"tensor '{tensor.name}' would hold numbers that are not finite",
            code="merge.not-finite",
            where=tensor.name,
            expected=f"finite numbers; not so in: {', '.join(guilty) or 'the result only'}",
            next="leave that model out"
            if guilty
            else "lower the weights or the scale, or store as bfloat16 or float32",
        )


class TensorBlocks:
    """One tensor of all sources as row blocks, in the type that is computed in."""

    def __init__(self, merge: Merge, tensor: PlannedTensor, survey: Any = None) -> None:
        """Stand over a planned tensor."""
        self._sources = [*([merge.base] if merge.base else []), *merge.parents]
        self._has_base = merge.base is not None
        self._tensor = tensor
        self._step = max(1, merge.block_elements // max(math.prod(tensor.shape[1:]), 1))
        widths = [
            source.checkpoint.dtype(home).itemsize
            for source, home in zip(self._sources, tensor.homes, strict=True)
        ]
        is_narrow = max([*widths, DTYPES[tensor.stored].itemsize]) <= 2
        self._dtype = torch.float32 if is_narrow else torch.float64
        self.at = Place(
            tensor.name,
            tensor.shape,
            tuple(parent.key for parent in merge.parents),
            tuple(parent.weight for parent in merge.parents),
            tuple(parent.density for parent in merge.parents),
            merge.seed,
            0,
            survey,
        )

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks from first row to last."""
        rows = self._tensor.shape[0] if self._tensor.shape else 1
        width = math.prod(self._tensor.shape[1:])
        for start in range(0, rows, self._step):
            stop = min(start + self._step, rows)
            read = [
                source.checkpoint.rows(home, start, stop).to(self._dtype)
                for source, home in zip(self._sources, self._tensor.homes, strict=True)
            ]
            base = read.pop(0) if self._has_base else None
            yield Block(base, tuple(read), replace(self.at, offset=start * width))


def merge_checkpoints(
    method: MergeMethod | str | Mapping[str, Any],
    base: Path | None,
    parents: Sequence[Path],
    folder: Path,
    *,
    weights: Sequence[float] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    shard_size: int = 5_000_000_000,
    seed: int = 0,
    exclude: Sequence[str] = (),
) -> Merged:
    """Merge checkpoints on disk into a new one; the plain function behind the job.

    Args:
        method: A method, its name, or ``{"name": ..., setting: ...}``.
        base: The common base, where the method needs one; also gives config and tokenizer.
        parents: The models.
        folder: Where the result is written, atomically.
        weights: One a model; default 1 each.
        dtype: Storage type; default that of the models.
        shard_size: Most bytes of weights in one file.
        seed: For methods that draw.
        exclude: Patterns of tensors that are copied from the base, or the first model.

    Raises:
        CheckpointError: If sources do not belong together, or a number is not finite.
        ShapeError: If a tensor's shapes differ.
        RecipeError: If the method is unknown or cannot merge these models.
    """
    weights = list(weights) if weights is not None else [1.0] * len(parents)
    merge = Merge(
        METHODS.build(dict(method) if isinstance(method, Mapping) else method),
        Source(base.name, Checkpoint.open(base)) if base else None,
        [
            Source(path.name, Checkpoint.open(path), weight)
            for path, weight in zip(parents, weights, strict=True)
        ],
        Rules(dtype=dtype, exclude=tuple(exclude)),
        seed,
    )
    return merge.write(folder, shard_size=shard_size)


def _kept(writer: CheckpointWriter, journal: Journal | None, name: str) -> bool:
    """Return whether a killed run wrote the tensor, and its bytes still are what they were."""
    digest = journal.get(name) if journal is not None else None
    return digest is not None and writer.keep(name, digest)
