"""Inputs of a merge plan: opened sources, config mismatches, and the parameters of each tensor.

``TensorRules`` finds the overrides (filters, gradients) that apply to a tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError, Problem, RecipeError, count_noun
from stillroom.jobs import MessageLog, QuietReporter
from stillroom.merge.planning.rotary import read_rotary_settings
from stillroom.merge.settings import MergekitArithmetic, ParameterOverride, Slice, TensorGroup
from stillroom.merge.tensors.storage import (
    open_checkpoint,
    read_rows,
    read_stored_rows,
    resolve_path,
)

if TYPE_CHECKING:
    from stillroom.merge.interfaces import Array, MergeMethod
    from stillroom.merge.jobs.moe import MoeRecipe
    from stillroom.merge.jobs.recipe import MergeRecipe
    from stillroom.merge.lora.adapter import AdaptedCheckpoint
    from stillroom.merge.settings import TokenizerSettings

__all__ = [
    "GatePrompts",
    "MergeSource",
    "ResolvedSettings",
    "TensorRules",
    "check_configs",
    "limit_problems",
    "limit_run_checkpoints",
    "list_run_checkpoints",
    "open_experts",
    "open_source",
    "open_sources",
    "order_sources",
    "read_rules",
]


@dataclass(frozen=True, slots=True)
class GatePrompts:
    """Prompts that an expert should answer, and prompts that it should not."""

    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()


R = TypeVar("R", bound="MergeRecipe")
CANDIDATES = "candidates"
_MAX_GAP_ROWS = 16


@dataclass(frozen=True)
class MergeSource:
    """An input model: a checkpoint, or a checkpoint with an adapter.

    Attributes:
        name: Display name.
        checkpoint: The opened checkpoint.
        weight: Weight in the recipe.
        settings: Other settings of the model in the recipe (``density``, ...).
        adapted: The checkpoint with its adapter, if any.
        key: Fingerprint with a count for repeated weights; empty until ``order_sources``.
        prompts: Prompts of an expert.
    """

    name: str
    checkpoint: Checkpoint
    weight: float = 1.0
    settings: Mapping[str, float] = field(default_factory=dict)
    adapted: AdaptedCheckpoint | None = None
    key: str = ""
    prompts: GatePrompts = field(default_factory=GatePrompts)

    @property
    def fingerprint(self) -> str:
        """Digest of the weights, including the adapter's."""
        return self.checkpoint.fingerprint if self.adapted is None else self.adapted.fingerprint

    @property
    def license(self) -> str:
        """License named by the model card."""
        adapter_license = self.adapted.adapter.license if self.adapted else ""
        return adapter_license or self.checkpoint.license

    def read(self, name: str, start: int, stop: int, dtype: Any) -> Array:
        """Return rows of a tensor as floats, (rows, ...); a scalar is one row of shape ().

        Args:
            name: Name of the tensor.
            start: First row.
            stop: Row after the last.
            dtype: float32 or float64.
        """
        if self.adapted is not None:
            return self.adapted.rows(name, start, stop, dtype=dtype)
        return read_rows(self.checkpoint, name, start, stop, dtype=dtype)

    def take(self, name: str, rows: Array, dtype: Any) -> Array:
        """Return selected rows of a tensor as floats, (rows, ...).

        Args:
            name: Name of the tensor.
            rows: Row indices, int64, in any order and possibly repeated.
            dtype: float32 or float64.
        """
        import numpy as np

        unique_rows, inverse = np.unique(rows, return_inverse=True)
        entry = self.checkpoint.entry(name)
        if not len(unique_rows):
            return np.zeros((0, *entry.shape[1:]), dtype)
        # Nearby rows are read in one range, including the few between them.
        breaks = np.flatnonzero(np.diff(unique_rows) > _MAX_GAP_ROWS) + 1
        parts = [
            self.read(name, int(run[0]), int(run[-1]) + 1, dtype)[run - run[0]]
            for run in np.split(unique_rows, breaks)
        ]
        values: Array = np.concatenate(parts)[inverse]
        return values

    def stored(self, name: str, start: int, stop: int) -> Array:
        """Return rows of the checkpoint's tensor in the storage type, without the adapter."""
        return read_stored_rows(self.checkpoint, name, start, stop)


def open_sources(
    recipe: MergeRecipe, say: Callable[[str], None] | None = None
) -> tuple[MergeSource | None, list[MergeSource]]:
    """Open the base and every model of a recipe, in its order.

    Raises:
        CheckpointError: If one is missing or broken, or has too few run checkpoints.
    """
    base = open_source(recipe.base_model, say) if recipe.base_model is not None else None
    parents: list[MergeSource] = []
    for entry in recipe.models:
        opened = open_source(entry.model, say)
        run_checkpoints = [opened]
        if entry.last_checkpoints > 1:
            run_checkpoints = _take_run_checkpoints(opened, entry.last_checkpoints)
        if entry.adapter is not None:
            run_checkpoints = [
                _apply_adapter(source, entry.adapter, say) for source in run_checkpoints
            ]
        parents += [
            replace(source, weight=entry.weight, settings=entry.settings)
            for source in run_checkpoints
        ]
    return base, parents


def open_experts(
    recipe: MoeRecipe, say: Callable[[str], None] | None = None
) -> tuple[MergeSource, list[MergeSource]]:
    """Open the base and every expert of a mixture, the shared one last.

    Raises:
        CheckpointError: If one is missing or broken.
    """
    parents = []
    for entry in recipe.list_experts():
        source = open_source(entry.model, say)
        if entry.adapter is not None:
            source = _apply_adapter(source, entry.adapter, say)
        prompts = GatePrompts(entry.positive_prompts, entry.negative_prompts)
        settings = {"residual_scale": entry.residual_scale}
        parents.append(replace(source, settings=settings, prompts=prompts))
    return open_source(recipe.base_model, say), parents


def _apply_adapter(
    source: MergeSource, reference: str, say: Callable[[str], None] | None
) -> MergeSource:
    from stillroom.merge.lora.adapter import AdaptedCheckpoint, Adapter

    adapted = AdaptedCheckpoint(source.checkpoint, Adapter.open(resolve_path(reference, say)))
    return replace(source, name=f"{source.name}+{_shorten_reference(reference)}", adapted=adapted)


def list_run_checkpoints(final: MergeSource) -> list[MergeSource]:
    """Return the checkpoints of the training run of ``final``, oldest first, ``final`` last.

    They are stored in its folder, under candidates/STEP.
    """
    folder = final.checkpoint.folder / CANDIDATES
    steps = sorted(
        (path for path in folder.glob("*") if path.name.isdecimal()),
        key=lambda path: int(path.name),
    )
    opened = [MergeSource(f"{final.name}@{path.name}", Checkpoint.open(path)) for path in steps]
    if opened and opened[-1].checkpoint.fingerprint == final.checkpoint.fingerprint:
        opened.pop()
    return [*opened, final]


def limit_run_checkpoints(recipe: R, log: MessageLog | None = None) -> R:
    """Limit every ``last_checkpoints`` to the available ones, if the recipe allows it.

    Raises:
        CheckpointError: If a model is missing or broken.
    """
    if recipe.on_too_few == "refuse":
        return recipe
    log = log or QuietReporter()
    models = []
    for entry in recipe.models:
        wanted = available = entry.last_checkpoints
        if wanted > 1:
            available = len(list_run_checkpoints(open_source(entry.model, log.say)))
        if available < wanted:
            log.warn(
                f"the run of '{_shorten_reference(entry.model)}' left {available} of "
                f"{wanted} checkpoints, which are used"
            )
        models.append(entry.model_copy(update={"last_checkpoints": min(available, wanted)}))
    return recipe.model_copy(update={"models": tuple(models)})


def _take_run_checkpoints(final: MergeSource, count: int) -> list[MergeSource]:
    checkpoints = list_run_checkpoints(final)
    if len(checkpoints) < count:
        raise CheckpointError(
            f"the run of '{final.name}' left {len(checkpoints)} checkpoints, but {count} are "
            f"requested",
            code="merge.run-too-short",
            where=str(final.checkpoint.folder / CANDIDATES),
            expected=f"at least {count}, including the final one",
            next=f"request {len(checkpoints)}, or raise keep_checkpoints in training",
        )
    return checkpoints[-count:]


def order_sources(sources: Iterable[MergeSource], *, in_order: bool) -> list[MergeSource]:
    """Assign every source its key, and sort sources independently of the recipe's order.

    Args:
        sources: Models of a merge.
        in_order: Keep the recipe's order, because it has a meaning for the method.
    """
    counts: Counter[str] = Counter()
    listed = list(sources)
    if not in_order:
        listed.sort(
            key=lambda source: (source.fingerprint, source.weight, sorted(source.settings.items()))
        )
    named = []
    for source in listed:
        fingerprint = source.fingerprint
        named.append(replace(source, key=f"{fingerprint}#{counts[fingerprint]}"))
        counts[fingerprint] += 1
    return named


def open_source(reference: str, say: Callable[[str], None] | None = None) -> MergeSource:
    """Open a checkpoint as a source.

    Raises:
        CheckpointError: If it is missing or broken.
    """
    return MergeSource(_shorten_reference(reference), open_checkpoint(reference, say))


def _shorten_reference(reference: str) -> str:
    if reference.startswith(("hub:", "step:")):
        return reference.split(":", 1)[1]
    return Path(reference).name or reference


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """Settings of one tensor: the method, and each model's weight and settings."""

    method: MergeMethod
    weights: tuple[float, ...]
    per_model: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class TensorRules:
    """Rules for which tensors are merged, with what settings, and how they are stored."""

    dtype: str | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    missing_tensors: Literal["refuse", "copy"] = "refuse"
    parameters: tuple[ParameterOverride, ...] = ()
    slices: tuple[Slice, ...] = ()
    arithmetic: Literal["paper", "mergekit"] = "paper"
    compute_dtype: str | None = None
    tokenizer: TokenizerSettings | None = None
    groups: tuple[TensorGroup, ...] = ()

    def group_of(self, name: str) -> TensorGroup | None:
        """Return the first entry of ``groups`` that matches a tensor."""
        return next((group for group in self.groups if group.fits(name)), None)

    def merges(self, name: str) -> bool:
        """Return whether a tensor is merged according to the patterns."""
        return any(fnmatchcase(name, pattern) for pattern in self.include) and not any(
            fnmatchcase(name, pattern) for pattern in self.exclude
        )

    def resolve(
        self,
        method: MergeMethod,
        weights: tuple[float, ...],
        own_settings: tuple[Mapping[str, float], ...],
        numbers: tuple[int, ...],
        name: str,
        layer: float | None,
        part: Slice | TensorGroup | None = None,
    ) -> ResolvedSettings:
        """Resolve a tensor's settings: gradients at its layer, by the first filter that fits.

        Args:
            method: The method as configured in the recipe.
            weights: Weights of the models that take part.
            own_settings: Other settings of these models.
            numbers: Indices of these models in the recipe's list, or in the slice's.
            name: Name of the tensor in the result.
            layer: Relative depth, 0 to 1, within its slice; None outside the layers.
            part: The slice or group that contains it.
        """
        listed = (*(part.parameters if part else ()), *self.parameters)
        if not listed:
            return ResolvedSettings(method, weights, own_settings)
        changes: dict[tuple[int | None, str], float | bool] = {}
        for override in listed:
            key = (override.model, override.setting)
            if key not in changes and override.fits(name):
                changes[key] = override.value_at(layer)
        changed_method = _override_settings(
            method, {setting: value for (model, setting), value in changes.items() if model is None}
        )
        weights_here, own_here = list(weights), [dict(settings) for settings in own_settings]
        for (model, setting), value in changes.items():
            if model is None or model not in numbers:
                continue
            index = numbers.index(model)
            if setting == "weight":
                weights_here[index] = float(value)
            else:
                own_here[index][setting] = float(value)
        return ResolvedSettings(changed_method, tuple(weights_here), tuple(own_here))

    def find_unused(
        self, names: Sequence[str], called: Callable[[str], str] = lambda name: name
    ) -> list[str]:
        """Return a note for each override and pattern that matches no tensor of the result.

        Args:
            names: Names of the result's tensors, which groups, ``include`` and ``exclude`` match.
            called: Returns the name matched by overrides; common to all tensors merged as one.

        Raises:
            RecipeError: If a group matches no tensor, so that its models would not be merged, or if
                patterns split the tensors that are merged as one.
        """
        fused: dict[str, list[str]] = {}
        for name in names:
            fused.setdefault(called(name), []).append(name)
        for fused_name, members in fused.items():
            self._check_undivided(fused_name, members)
        for number, group in enumerate(self.groups):
            if not any(group.fits(name) for name in names):
                raise RecipeError(
                    f"groups.{number} matches no tensor",
                    code="merge.unused-group",
                    where=f"groups.{number}.tensors: {', '.join(group.tensors)}",
                    expected=f"patterns of names such as {names[0] if names else 'none'}",
                    next="stillroom merge plan lists the tensors",
                )
        listed = [
            (f"parameters.{index}", override) for index, override in enumerate(self.parameters)
        ]
        for number, group in enumerate(self.groups):
            listed += [
                (f"groups.{number}.parameters.{index}", override)
                for index, override in enumerate(group.parameters)
            ]
        idle = [
            line for where, override in listed if (line := _describe_reach(where, override, fused))
        ]
        return idle + [
            f"the pattern '{pattern}' of {where} fits no tensor"
            for where, patterns in (("include", self.include), ("exclude", self.exclude))
            for pattern in patterns
            if not any(fnmatchcase(name, pattern) for name in names)
        ]

    def _check_undivided(self, fused_name: str, members: Sequence[str]) -> None:
        """Raise an error if patterns treat members of a fused tensor differently."""
        for where, answers in (
            ("include, exclude", [self.merges(name) for name in members]),
            ("groups", [self.group_of(name) for name in members]),
        ):
            differing = next(
                (index for index, answer in enumerate(answers) if answer != answers[0]), 0
            )
            if differing:
                raise RecipeError(
                    f"'{members[0]}' and '{members[differing]}' cannot be treated differently",
                    code="merge.arithmetic",
                    where=where,
                    expected=f"patterns that match all of '{fused_name}', which mergekit merges as "
                    f"one tensor, or nothing of it",
                    next="widen the patterns, or set 'arithmetic: paper'",
                )


def _describe_reach(
    where: str, override: ParameterOverride, groups: Mapping[str, Sequence[str]]
) -> str:
    """Return a warning if an override applies differently than its patterns suggest, else ""."""
    description = f"{where} ({override.setting} of {', '.join(override.tensors)})"
    is_idle = True
    for fused_name, members in groups.items():
        is_held = override.fits(fused_name)
        is_idle = is_idle and not is_held
        named = [name for name in members if override.fits(name)]
        if named and not is_held:
            return (
                f"{description} does not hold for '{named[0]}', which is merged as (a "
                f"part of) '{fused_name}'"
            )
        if is_held and 0 < len(named) < len(members):
            return f"{description} holds for all of '{fused_name}', of which it names a part"
    return f"{description} holds for no tensor" if is_idle else ""


def read_rules(recipe: MergeRecipe) -> TensorRules:
    """Return the tensor rules of a recipe."""
    arithmetic = recipe.arithmetic
    return TensorRules(
        recipe.out.dtype,
        recipe.include,
        recipe.exclude,
        recipe.missing_tensors,
        recipe.parameters,
        recipe.slices,
        arithmetic.name,
        arithmetic.compute_dtype if isinstance(arithmetic, MergekitArithmetic) else None,
        recipe.tokenizer,
        recipe.groups,
    )


def _override_settings(method: MergeMethod, changes: Mapping[str, Any]) -> MergeMethod:
    """Return a validated copy of a method with some settings changed.

    Raises:
        ValueError: If a value is invalid for the method.
    """
    if not changes:
        return method
    settings = {key: value for key, value in method.model_dump().items() if key != "name"}
    return type(method).model_validate(settings | dict(changes))


_MAX_PROBLEMS = 8

_MUST_AGREE = (
    "model_type",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
)


def check_configs(
    sources: Sequence[MergeSource], *, stacked: bool = False, shared_vocabulary: bool = True
) -> None:
    """Raise an error for sources with incompatible configs or vocabularies.

    Args:
        sources: All input models.
        stacked: Layers are selected by slices, so their number may differ.
        shared_vocabulary: Row n of every embedding must be the same token.

    Raises:
        CheckpointError: One problem per key that differs, with every source's value.
    """
    problems = []
    settings = {source.name: _read_settings(source.checkpoint.config) for source in sources}
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    for key in keys:
        if stacked and key == "num_hidden_layers":
            continue
        found = {name: values[key] for name, values in settings.items() if key in values}
        if len({repr(value) for value in found.values()}) > 1:
            listed = ", ".join(f"{name} {values.get(key)}" for name, values in settings.items())
            problems.append(
                Problem(
                    f"the models disagree about {key}: {listed}",
                    "merge.config",
                    "config.json",
                    "models of one family, fine-tuned from one base",
                    "merge models that share their architecture",
                )
            )
    digests = {source.name: source.checkpoint.vocabulary_digest for source in sources}
    if shared_vocabulary and len({digest for digest in digests.values() if digest}) > 1:
        problems.append(
            Problem(
                f"the models number their tokens differently: {', '.join(digests)}",
                "merge.tokenizer",
                "tokenizer.json",
                "one vocabulary, so that row n of every embedding is the same token",
                "merge models that share their tokenizer",
            )
        )
    if problems:
        raise CheckpointError(limit_problems(problems, "key"))


def limit_problems(problems: list[Problem], noun: str = "tensor") -> list[Problem]:
    """Return the first problems, and one with the number of the others, of what they concern."""
    remaining = len(problems) - _MAX_PROBLEMS
    if remaining <= 0:
        return problems
    others = count_noun(remaining, f"more {noun}")
    return [*problems[:_MAX_PROBLEMS], Problem(f"and {others}", problems[0].code)]


def _read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config that must agree, without those that it does not have."""
    found = {key: config[key] for key in _MUST_AGREE if config.get(key) is not None}
    return {
        key: float(value) if isinstance(value, int | float) else value
        for key, value in found.items()
    } | read_rotary_settings(config)
