"""Rules: what a recipe says beyond the method, in the form that the plan and the engine need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from stillroom.errors import RecipeError
from stillroom.merge.recipe import MergeRecipe, Slice, TensorPart, Variation, vary_method

if TYPE_CHECKING:
    from stillroom.merge.method import MergeMethod
    from stillroom.merge.tokenizer import TokenizerSettings

__all__ = ["Rules", "Tuned", "rules_of"]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What holds for one tensor: the method as set there, each model's weight and own settings."""

    method: MergeMethod
    weights: tuple[float, ...]
    own: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """Which tensors are merged, with what settings, and how the result is stored."""

    dtype: str | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    rest: Literal["refuse", "copy"] = "refuse"
    vary: tuple[Variation, ...] = ()
    slices: tuple[Slice, ...] = ()
    compat: Literal["paper", "mergekit"] = "paper"
    compute: str | None = None
    tokenizer: TokenizerSettings | None = None
    parts: tuple[TensorPart, ...] = ()

    def part_of(self, name: str) -> TensorPart | None:
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
        part: Slice | TensorPart | None = None,
    ) -> Tuned:
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
            return Tuned(method, weights, own)
        changes: dict[tuple[int | None, str], float | bool] = {}
        for variation in listed:
            key = (variation.model, variation.setting)
            if key not in changes and variation.fits(name):
                changes[key] = variation.at(layer)
        tuned = vary_method(
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
        return Tuned(tuned, tuple(weights_here), tuple(own_here))

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
        idle = [line for where, one in listed if (line := _tell_reach(where, one, groups))]
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


def _tell_reach(where: str, one: Variation, groups: Mapping[str, Sequence[str]]) -> str:
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


def rules_of(recipe: MergeRecipe) -> Rules:
    """Return the rules that a recipe sets."""
    return Rules(
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
