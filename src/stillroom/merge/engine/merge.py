"""A merge run: planned by ``merge.planning.planner``, written by ``merge.engine.executor``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.jobs import Journal, MessageLog, QuietReporter
from stillroom.merge.engine.executor import MergeExecutor, OrderedThreadPool, summarize_errors
from stillroom.merge.interfaces import METHODS, Array, MergeMethod
from stillroom.merge.planning.chat_templates import choose_chat_template, write_chat_template
from stillroom.merge.planning.inputs import MergeSource, TensorRules, order_sources, read_rules
from stillroom.merge.planning.plan import BLOCK_ELEMENTS, MergePlan
from stillroom.merge.planning.planner import plan_sources
from stillroom.merge.planning.vocabulary import write_tokenizer
from stillroom.merge.tensors.linear_algebra import device_context

if TYPE_CHECKING:
    from stillroom.merge.jobs.recipe import MergeJobRecipe, MergeRecipe

__all__ = [
    "Merge",
    "MergeResult",
    "merge_checkpoints",
    "open_merge",
    "reconfigure_merge",
]

Assembly: TypeAlias = Callable[[MergeSource, Sequence[MergeSource]], MergePlan]
"""Plans what is made of whole tensors of a base and others, rather than merged by a method."""


def open_merge(recipe: MergeJobRecipe, log: MessageLog | None = None) -> Merge:
    """Return the merge that a recipe describes.

    Raises:
        CheckpointError: If a source is missing or broken, or has no run checkpoints.
        RecipeError: If the chat template is unknown.
    """
    log = log or QuietReporter()
    merge = recipe.open(log.say)
    if recipe.chat_template is None:
        return merge
    folders = [source.checkpoint.folder for source in merge.sources]
    if not choose_chat_template(recipe.chat_template, folders):
        log.warn("no model has a chat template, and so the result has none")
    return replace(merge, chat_template=recipe.chat_template)


def reconfigure_merge(merge: Merge, recipe: MergeRecipe) -> Merge:
    """Return a merge of the same opened sources with the settings of another recipe."""
    sources = iter(merge.parents)
    parents = [
        replace(next(sources), weight=entry.weight, settings=entry.settings)
        for entry in recipe.models
        for _ in range(entry.last_checkpoints)
    ]
    return replace(merge, method=recipe.method, parents=parents, rules=read_rules(recipe))


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Result of a merge.

    Attributes:
        fingerprint: Fingerprint of the written checkpoint.
        merged: Number of merged tensors.
        copied: Names of copied tensors.
        tied: Names of tied tensors, which are not written.
        error: Relative error against float64 of sampled blocks, see ``summarize_errors``.
        notes: Notes of computed tensors, JSON values by name.
        digests: BLAKE3 of each written tensor's bytes by name.
    """

    fingerprint: str
    merged: int
    copied: tuple[str, ...]
    tied: tuple[str, ...]
    error: Mapping[str, Any] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Merge:
    """A configured merge: method or assembly, sources in the recipe's order, rules.

    Attributes:
        share: Interpolates the result between the base (0) and the method's result (1).
        threads: Blocks computed in parallel; 0 lets ``OrderedThreadPool`` choose.
        device: Device of heavy arithmetic.
    """

    method: MergeMethod | Assembly
    base: MergeSource | None
    parents: Sequence[MergeSource]
    rules: TensorRules = field(default_factory=TensorRules)
    seed: int = 0
    share: float = 1.0
    block_elements: int = BLOCK_ELEMENTS
    threads: int = 1
    device: str = "cpu"
    chat_template: str | None = None
    surveys: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def sources(self) -> tuple[MergeSource, ...]:
        """All sources, the base first."""
        return (*([self.base] if self.base else []), *self.parents)

    @cached_property
    def _ranks(self) -> dict[int, tuple[int, str]]:
        """Rank in the canonical order and key of every parent, by its source index.

        The result does not depend on the recipe's order, except for methods where it has a meaning.
        """
        in_order = not isinstance(self.method, MergeMethod) or self.method.is_ordered
        ordered = order_sources(self.parents, in_order=in_order)
        shift = len(self.sources) - len(self.parents)
        remaining = {number + shift: source for number, source in enumerate(self.parents)}
        ranks: dict[int, tuple[int, str]] = {}
        for rank, source in enumerate(ordered):
            unkeyed = replace(source, key="")
            number = next(
                n for n, candidate in remaining.items() if replace(candidate, key="") == unkeyed
            )
            del remaining[number]
            ranks[number] = (rank, source.key)
        return ranks

    def plan(self) -> MergePlan:
        """Return the cached merge plan."""
        return self._plan

    @cached_property
    def _plan(self) -> MergePlan:
        if isinstance(self.method, MergeMethod):
            return plan_sources(self.method, self.base, self.parents, self.rules)
        if self.base is None:
            raise ValueError("a mixture or a transplant has a base")
        return self.method(self.base, self.parents)

    def write(
        self,
        folder: Path,
        *,
        shard_size: int = 5_000_000_000,
        journal: Journal | None = None,
        on_tensor: Callable[[], None] | None = None,
        finish: Callable[[CheckpointWriter], None] | None = None,
    ) -> MergeResult:
        """Merge into ``folder``.

        Args:
            folder: Output folder, written atomically, or in place with a journal.
            shard_size: Maximum bytes of weights per file.
            journal: Records finished tensors, so that an interrupted merge resumes.
            on_tensor: Called after each tensor; may raise to stop.
            finish: Called with the writer after the last tensor, as for a card.

        Raises:
            CheckpointError: If sources do not match, or a value is not finite.
            ShapeError: If a tensor's shapes differ.
            RecipeError: If the method cannot merge these models.
            ResourceError: If the disk is full.
        """
        plan = self.plan()
        donor = self.sources[0].checkpoint
        shapes = {tensor.name: (tensor.dtype, tensor.shape) for tensor in plan.tensors}
        with (
            device_context(self.device),
            OrderedThreadPool(self.threads) as workers,
            CheckpointWriter(
                folder,
                config=plan.config,
                shard_size=shard_size,
                plan=shapes,
                in_place=journal is not None,
            ) as writer,
        ):
            writer.copy_tokenizer(donor.folder)  # first: it may be refused
            engine = self.engine(plan, workers, journal)
            for tensor in plan.tensors:
                if not _is_written(writer, journal, tensor.name):
                    digest = engine.write(writer, tensor)
                    if journal is not None:
                        engine.note_state(journal, tensor.name)
                        journal.put(tensor.name, digest)
                else:
                    engine.recall_state(journal, tensor.name)
                if on_tensor:
                    on_tensor()
            if plan.tokens is not None:
                write_tokenizer(plan.tokens, writer.work)
            if self.chat_template is not None:
                folders = [source.checkpoint.folder for source in self.sources]
                write_chat_template(self.chat_template, folders, writer.work)
            if finish:
                finish(writer)
        names = tuple(tensor.name for tensor in plan.tensors if tensor.is_copied)
        return MergeResult(
            writer.fingerprint,
            len(plan.tensors) - len(names),
            names,
            plan.tied,
            summarize_errors(engine.errors[name] for name in sorted(engine.errors)),
            dict(sorted(engine.computer.notes.items())),
            dict(sorted(writer.digests.items())),
        )

    def tensors(self) -> Iterator[tuple[str, str, Array]]:
        """Yield every tensor of the result: name, storage type, stored values in memory.

        Values are in the types of ``checkpoints.dtypes.BIT_TYPES``; ``widen`` converts them to
        floats.
        """
        plan = self.plan()
        with device_context(self.device), OrderedThreadPool(self.threads) as workers:
            engine = self.engine(plan, workers, None)
            for tensor in plan.tensors:
                blocks = list(engine.make(tensor))
                array = np.concatenate(blocks) if tensor.shape else blocks[0]
                yield tensor.name, tensor.dtype, array.reshape(tensor.shape)

    def engine(
        self, plan: MergePlan, workers: OrderedThreadPool, journal: Journal | None
    ) -> MergeExecutor:
        """Return the executor of a plan, as chosen by ``arithmetic``."""
        if self.rules.arithmetic == "mergekit":
            from stillroom.merge.engine.mergekit_executor import MergekitExecutor

            return MergekitExecutor(self, plan, workers)
        engine = MergeExecutor(self, plan, workers)
        engine.survey(journal)
        return engine


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
    threads: int = 1,
) -> MergeResult:
    """Merge checkpoints on disk into a new one; the function behind the job.

    Args:
        method: A method, its name, or ``{"name": ..., setting: ...}``.
        base: Common base, if the method needs one; also gives config and tokenizer.
        parents: Folders of the models.
        folder: Output folder, written atomically.
        weights: One per model; default 1 each.
        dtype: Storage type; defaults to that of the models.
        shard_size: Maximum bytes of weights per file.
        seed: Random seed of methods that sample.
        exclude: Patterns of tensors that are copied from the base, or the first model.
        threads: Blocks computed in parallel, 0 chooses; does not change the result.

    Raises:
        CheckpointError: If sources do not match, or a value is not finite.
        ShapeError: If a tensor's shapes differ.
        RecipeError: If the method is unknown or cannot merge these models.
    """
    weights = list(weights) if weights is not None else [1.0] * len(parents)
    merge = Merge(
        METHODS.build(dict(method) if isinstance(method, Mapping) else method),
        MergeSource(base.name, Checkpoint.open(base)) if base else None,
        [
            MergeSource(path.name, Checkpoint.open(path), weight)
            for path, weight in zip(parents, weights, strict=True)
        ],
        TensorRules(dtype=dtype, exclude=tuple(exclude)),
        seed,
        threads=threads,
    )
    return merge.write(folder, shard_size=shard_size)


def _is_written(writer: CheckpointWriter, journal: Journal | None, name: str) -> bool:
    """Return whether an interrupted run wrote the tensor, and its bytes are unchanged."""
    digest = journal.get(name) if journal is not None else None
    return digest is not None and writer.keep(name, digest)
