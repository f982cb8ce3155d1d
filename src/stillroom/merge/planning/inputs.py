"""Inputs of a merge plan: opened sources, their compatibility, and the recipe's tensor rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError, Problem, RecipeError
from stillroom.merge.recipe import (
    MergeRecipe,
    ParameterOverride,
    Slice,
    TensorGroup,
    override_settings,
)
from stillroom.merge.tensors.storage import (
    open_checkpoint,
    read_rows,
    read_stored_rows,
    resolve_path,
)

if TYPE_CHECKING:
    from stillroom.merge.interfaces import Array, MergeMethod
    from stillroom.merge.lora.adapter import AdaptedCheckpoint
    from stillroom.merge.settings import TokenizerSettings

__all__ = [
    "EMBEDDING",
    "HEAD",
    "GatePrompts",
    "MergeSource",
    "ResolvedSettings",
    "TensorRules",
    "check_configs",
    "limit_problems",
    "limit_run_checkpoints",
    "list_run_checkpoints",
    "open_sources",
    "order_sources",
    "read_rules",
]


@dataclass(frozen=True, slots=True)
class GatePrompts:
    """What an expert should answer, and what it should not."""

    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()


CANDIDATES = "candidates"


_MAX_GAP_ROWS = 16


@dataclass(frozen=True)
class MergeSource:
    """One model that takes part: a checkpoint, or one with an adapter over it.

    ``weight``, ``own`` (density, ...) and ``prompts`` are what the recipe says of it. ``key`` is
    the fingerprint, with a count where the same weights take part twice; empty until
    ``order_sources`` has read them.
    """

    name: str
    checkpoint: Checkpoint
    weight: float = 1.0
    own: Mapping[str, float] = field(default_factory=dict)
    adapted: AdaptedCheckpoint | None = None
    key: str = ""
    prompts: GatePrompts = field(default_factory=GatePrompts)

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
        breaks = np.flatnonzero(np.diff(wanted) > _MAX_GAP_ROWS) + 1
        parts = [
            self.read(name, int(run[0]), int(run[-1]) + 1, dtype)[run - run[0]]
            for run in np.split(wanted, breaks)
        ]
        taken: Array = np.concatenate(parts)[places]
        return taken

    def stored(self, name: str, start: int, stop: int) -> Array:
        """Return rows of the checkpoint's tensor as they are stored, without any adapter."""
        return read_stored_rows(self.checkpoint, name, start, stop)


def open_sources(
    recipe: MergeRecipe, say: Callable[[str], None] | None = None
) -> tuple[MergeSource | None, list[MergeSource]]:
    """Open the base and every model of a recipe, in its order.

    Raises:
        CheckpointError: If one is missing or broken, or has no checkpoints along its run.
    """
    base = _open(recipe.base, say) if recipe.base is not None else None
    parents: list[MergeSource] = []
    for entry in recipe.models:
        opened = _open(entry.checkpoint, say)
        along = _take_run_checkpoints(opened, entry.along_run) if entry.along_run else [opened]
        if entry.adapter is not None:
            along = [_apply_adapter(source, entry.adapter, say) for source in along]
        prompts = GatePrompts(entry.positive, entry.negative)
        parents += [
            replace(source, weight=entry.weight, own=entry.own, prompts=prompts) for source in along
        ]
    return base, parents


def _apply_adapter(
    source: MergeSource, reference: str, say: Callable[[str], None] | None
) -> MergeSource:
    from stillroom.merge.lora.adapter import AdaptedCheckpoint, Adapter

    adapted = AdaptedCheckpoint(source.checkpoint, Adapter.open(resolve_path(reference, say)))
    return replace(source, name=f"{source.name}+{_shorten_reference(reference)}", adapted=adapted)


def list_run_checkpoints(final: MergeSource) -> list[MergeSource]:
    """Return the checkpoints that the training of ``final`` left, oldest first, itself the last.

    They lie in its folder, under candidates/STEP.
    """
    folder = final.checkpoint.folder / CANDIDATES
    steps = sorted(
        (path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name)
    )
    opened = [MergeSource(f"{final.name}@{path.name}", Checkpoint.open(path)) for path in steps]
    if opened and opened[-1].checkpoint.fingerprint == final.checkpoint.fingerprint:
        opened.pop()
    return [*opened, final]


def limit_run_checkpoints(
    recipe: MergeRecipe, say: Callable[[str], None] | None = None
) -> MergeRecipe:
    """Return the recipe with no ``along_run`` above what its run left, where it may go on.

    Raises:
        CheckpointError: If a model is missing or broken.
    """
    if recipe.when_too_few == "refuse":
        return recipe
    models = []
    for entry in recipe.models:
        left = len(list_run_checkpoints(_open(entry.checkpoint, say))) if entry.along_run else 0
        if left < entry.along_run and say:
            say(
                f"warning: the run of '{_shorten_reference(entry.checkpoint)}' left {left} of "
                f"{entry.along_run} checkpoints, and they are taken"
            )
        models.append(entry.model_copy(update={"along_run": min(left, entry.along_run)}))
    return recipe.model_copy(update={"models": tuple(models)})


def _take_run_checkpoints(final: MergeSource, count: int) -> list[MergeSource]:
    found = list_run_checkpoints(final)
    if len(found) < count:
        raise CheckpointError(
            f"the run of '{final.name}' left {len(found)} checkpoints, and {count} are wanted",
            code="merge.run-too-short",
            where=str(final.checkpoint.folder / CANDIDATES),
            expected=f"at least {count}, the final one counted",
            next=f"ask for {len(found)}, or train with more candidates kept",
        )
    return found[-count:]


def order_sources(sources: Iterable[MergeSource], *, in_order: bool) -> list[MergeSource]:
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


def _open(reference: str, say: Callable[[str], None] | None) -> MergeSource:
    return MergeSource(_shorten_reference(reference), open_checkpoint(reference, say))


def _shorten_reference(reference: str) -> str:
    if reference.startswith(("hub:", "step:")):
        return reference.split(":", 1)[1]
    return Path(reference).name or reference


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """What holds for one tensor: the method as set there, each model's weight and own settings."""

    method: MergeMethod
    weights: tuple[float, ...]
    own: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class TensorRules:
    """Which tensors are merged, with what settings, and how the result is stored."""

    dtype: str | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    rest: Literal["refuse", "copy"] = "refuse"
    vary: tuple[ParameterOverride, ...] = ()
    slices: tuple[Slice, ...] = ()
    compat: Literal["paper", "mergekit"] = "paper"
    compute: str | None = None
    tokenizer: TokenizerSettings | None = None
    parts: tuple[TensorGroup, ...] = ()

    def part_of(self, name: str) -> TensorGroup | None:
        """Return the first part that a tensor belongs to."""
        return next((part for part in self.parts if part.fits(name)), None)

    def merges(self, name: str) -> bool:
        """Return whether the patterns say that a tensor is merged."""
        return any(fnmatchcase(name, pattern) for pattern in self.include) and not any(
            fnmatchcase(name, pattern) for pattern in self.exclude
        )

    def tune(
        self,
        method: MergeMethod,
        weights: tuple[float, ...],
        own: tuple[Mapping[str, float], ...],
        numbers: tuple[int, ...],
        name: str,
        layer: float | None,
        part: Slice | TensorGroup | None = None,
    ) -> ResolvedSettings:
        """Return what holds for a tensor.

        Args:
            method: The method as the recipe sets it.
            weights: Of the models that take part.
            own: Their own settings.
            numbers: Theirs in the recipe's list of models, or in the slice's.
            name: The tensor, by its name in the result.
            layer: Its depth from 0 to 1, within its slice; None outside the layers.
            part: The slice or part it lies in.
        """
        listed = (*(part.vary if part else ()), *self.vary)
        if not listed:
            return ResolvedSettings(method, weights, own)
        changes: dict[tuple[int | None, str], float | bool] = {}
        for variation in listed:
            key = (variation.model, variation.setting)
            if key not in changes and variation.fits(name):
                changes[key] = variation.at(layer)
        tuned = override_settings(
            method, {setting: value for (model, setting), value in changes.items() if model is None}
        )
        weights_here, own_here = list(weights), [dict(each) for each in own]
        for (model, setting), value in changes.items():
            if model is None or model not in numbers:
                continue
            at = numbers.index(model)
            if setting == "weight":
                weights_here[at] = float(value)
            else:
                own_here[at][setting] = float(value)
        return ResolvedSettings(tuned, tuple(weights_here), tuple(own_here))

    def find_idle(
        self, names: Sequence[str], called: Callable[[str], str] = lambda name: name
    ) -> list[str]:
        """Return a line for each variation and pattern that holds for no tensor of the result.

        Args:
            names: Of the result's tensors; parts, ``include`` and ``exclude`` hold by these.
            called: Returns the name by which a tensor is tuned, one for all that are merged as one;
                variations hold by that.

        Raises:
            RecipeError: If a part holds for none: its models would take no part in the merge. Or
                if patterns pick out some of the tensors that are merged as one.
        """
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(called(name), []).append(name)
        for whole, members in groups.items():
            self._check_undivided(whole, members)
        for number, part in enumerate(self.parts):
            if not any(part.fits(name) for name in names):
                raise RecipeError(
                    f"parts.{number} holds for no tensor",
                    code="merge.idle-part",
                    where=f"parts.{number}.tensors: {', '.join(part.tensors)}",
                    expected=f"patterns of names such as {names[0] if names else 'none'}",
                    next="stillroom merge plan lists the tensors",
                )
        listed = [(f"vary.{at}", one) for at, one in enumerate(self.vary)]
        for number, part in enumerate(self.parts):
            listed += [(f"parts.{number}.vary.{at}", one) for at, one in enumerate(part.vary)]
        idle = [line for where, one in listed if (line := _describe_reach(where, one, groups))]
        return idle + [
            f"note: the pattern '{pattern}' of {where} fits no tensor"
            for where, patterns in (("include", self.include), ("exclude", self.exclude))
            for pattern in patterns
            if not any(fnmatchcase(name, pattern) for name in names)
        ]

    def _check_undivided(self, whole: str, members: Sequence[str]) -> None:
        """Refuse patterns that say one thing of some members of a tensor, another of the rest."""
        for where, answers in (
            ("include, exclude", [self.merges(name) for name in members]),
            ("parts", [self.part_of(name) for name in members]),
        ):
            other = next((at for at, each in enumerate(answers) if each != answers[0]), 0)
            if other:
                raise RecipeError(
                    f"'{members[0]}' and '{members[other]}' cannot be treated apart",
                    code="merge.compat",
                    where=where,
                    expected=f"patterns that fit all of '{whole}', which mergekit merges as one "
                    "tensor, or none of it",
                    next="widen the patterns, or set 'compat: paper'",
                )


def _describe_reach(where: str, one: ParameterOverride, groups: Mapping[str, Sequence[str]]) -> str:
    """Return in what a variation holds for other tensors than its patterns say; else nothing."""
    said = f"{where} ({one.setting} of {', '.join(one.tensors)})"
    is_idle = True
    for whole, members in groups.items():
        is_held = one.fits(whole)
        is_idle = is_idle and not is_held
        named = [name for name in members if one.fits(name)]
        if named and not is_held:
            return (
                f"warning: {said} does not hold for '{named[0]}', which is merged as (a part of) "
                f"'{whole}'"
            )
        if is_held and 0 < len(named) < len(members):
            return f"warning: {said} holds for all of '{whole}', of which it names a part"
    return f"note: {said} holds for no tensor" if is_idle else ""


def read_rules(recipe: MergeRecipe) -> TensorRules:
    """Return the rules that a recipe sets."""
    return TensorRules(
        recipe.out.dtype,
        recipe.include,
        recipe.exclude,
        recipe.rest,
        recipe.vary,
        recipe.slices,
        recipe.compat,
        recipe.compute,
        recipe.tokenizer,
        recipe.parts,
    )


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


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
    """Refuse sources whose numbers mean different things.

    Args:
        sources: All that takes part.
        stacked: Layers are taken from here and there, so their count may differ.
        shared_vocabulary: Row n of every embedding must be the same token.

    Raises:
        CheckpointError: Naming each key that differs, and every source's value.
    """
    problems = []
    for key in (*_MUST_AGREE, "rope"):
        if stacked and key == "num_hidden_layers":
            continue
        values = {source.name: _read_setting(source.checkpoint.config, key) for source in sources}
        if len({repr(value) for value in values.values() if value is not None}) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
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
        raise CheckpointError(limit_problems(problems))


def limit_problems(problems: list[Problem]) -> list[Problem]:
    """Return the first problems, and one that counts the others."""
    left = len(problems) - _MAX_PROBLEMS
    if left <= 0:
        return problems
    return [*problems[:_MAX_PROBLEMS], Problem(f"and {left} tensors more", problems[0].code)]


def _read_setting(config: Mapping[str, Any], key: str) -> Any:
    if key != "rope":
        value = config.get(key)
        return float(value) if isinstance(value, int | float) else value
    rope = config.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    theta = config.get("rope_theta") if theta is None else theta
    return float(theta) if isinstance(theta, int | float) else None
