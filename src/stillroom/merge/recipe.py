"""The recipe of a merge: checkpoints, method, weights, layer slices and tensor groups."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stillroom.errors import Problem, RecipeError
from stillroom.merge.interfaces import (
    METHODS,
    ArchitectureMerge,
    MergeMethod,
    mergekit_unsupported_error,
)
from stillroom.merge.settings import SearchSettings, SmokeSettings, TokenizerSettings
from stillroom.recipes import ENGINE, EngineChoice, Recipe, Reference, Settings, Size, engine_error

__all__ = [
    "MergeOutputSettings",
    "MergeRecipe",
    "ModelEntry",
    "ParameterOverride",
    "SelectionSettings",
    "Slice",
    "SliceModel",
    "TensorGroup",
    "override_settings",
]

PER_MODEL_SETTINGS = ("density", "epsilon", "gamma", "residual_scale")
_BLOCK_SETTINGS = (
    "vary",
    "slices",
    "parts",
    "select",
    "search",
    "tokenizer",
    "include",
    "exclude",
    "rest",
)
Fraction = Annotated[float, Field(gt=0, lt=1)]


class ModelEntry(Settings):
    """One model that is merged."""

    checkpoint: Reference = Field(description="a checkpoint: folder, artifact, GGUF file or hub:")
    weight: float = Field(1.0, description="its weight; what that means is the method's")
    adapter: Reference | None = Field(
        None, description="a LoRA adapter's folder, taken as part of the model"
    )
    density: float | None = Field(
        None, ge=0, le=1, description="its own density, where the method has one"
    )
    epsilon: float | None = Field(None, description="its own epsilon, where the method has one")
    gamma: float | None = Field(None, description="its own gamma, where the method has one")
    positive: tuple[str, ...] = Field(
        (), description="prompts that it should answer, where it is an expert"
    )
    negative: tuple[str, ...] = Field(
        (), description="prompts that it should not answer, where it is an expert"
    )
    residual_scale: float | None = Field(
        None, description="what its MLPs' outputs are multiplied by, where it is an expert"
    )
    along_run: int = Field(
        0,
        ge=0,
        le=1000,
        description="take the latest n checkpoints that its training left, as models of their "
        "own; 0 takes the final one only",
    )

    @property
    def own(self) -> dict[str, float]:
        """The settings of the method that this model has of its own."""
        listed = {name: getattr(self, name) for name in PER_MODEL_SETTINGS}
        return {name: value for name, value in listed.items() if value is not None}


class ParameterOverride(Settings):
    """One setting, other than elsewhere for some tensors or along the layers."""

    setting: str = Field(description="the method's setting, or a model's: weight, density, ...")
    model: int | None = Field(
        None, ge=0, description="whose it is, as a number in 'models' from 0; none: the method's"
    )
    tensors: tuple[str, ...] = Field(
        ("*",), min_length=1, description="which tensors, as name patterns with * and ?"
    )
    value: float | bool | None = Field(None, description="what it is there")
    layers: tuple[float, ...] = Field(
        (),
        description="or a gradient: what it is from the first layer to the last, in a line between",
    )

    @model_validator(mode="after")
    def _check_one(self) -> ParameterOverride:
        if (self.value is None) == (not self.layers):
            raise ValueError("give either 'value' or 'layers'")
        return self

    def fits(self, name: str) -> bool:
        """Return whether it holds for a tensor."""
        return any(fnmatchcase(name, pattern) for pattern in self.tensors)

    def at(self, layer: float | None) -> float | bool:
        """Return the value at a depth from 0 to 1; outside the layers (None) the first."""
        if self.value is not None:
            return self.value
        place = (layer or 0.0) * (len(self.layers) - 1)
        left = min(int(place), len(self.layers) - 1)
        right = min(left + 1, len(self.layers) - 1)
        part = place - left
        return self.layers[left] * (1 - part) + self.layers[right] * part


class SliceModel(Settings):
    """Some layers of one model."""

    model: int = Field(ge=-1, description="a number in 'models' from 0; -1 is the base")
    layers: tuple[int, int] = Field(description="the first layer, and the one after the last")

    @model_validator(mode="after")
    def _check_layers(self) -> SliceModel:
        if not 0 <= self.layers[0] < self.layers[1]:
            raise ValueError("layers are counted from 0, and the second number is the larger")
        return self


class Slice(Settings):
    """Layers of the result: one model's, or several models' merged."""

    models: tuple[SliceModel, ...] = Field(min_length=1, description="whose layers")
    vary: tuple[ParameterOverride, ...] = Field(
        (), description="settings of this slice; 'model' counts this slice's models"
    )

    @model_validator(mode="after")
    def _check_lengths(self) -> Slice:
        if len({entry.layers[1] - entry.layers[0] for entry in self.models}) > 1:
            raise ValueError("the models of a slice must give equally many layers")
        return self

    @property
    def count(self) -> int:
        """How many layers it gives."""
        start, stop = self.models[0].layers
        return stop - start


class TensorGroup(Settings):
    """Which models take part in some tensors, as those of a vision tower."""

    tensors: tuple[str, ...] = Field(
        min_length=1, description="which tensors, as name patterns with * and ?"
    )
    models: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        min_length=1,
        description="whose are merged there, as numbers in 'models' from 0, and the base's; "
        "default all",
    )
    vary: tuple[ParameterOverride, ...] = Field(
        (), description="settings there; 'model' is a number in 'models'"
    )

    def fits(self, name: str) -> bool:
        """Return whether a tensor belongs to it."""
        return any(fnmatchcase(name, pattern) for pattern in self.tensors)


class SelectionSettings(Settings):
    """Score candidates on records beside their parents, and keep the best."""

    records: Reference = Field(description="a records artifact or file that judges")
    split: str = Field("held_out", description="only records with this fields.split; empty is all")
    mixes: tuple[Fraction, ...] | None = Field(
        None,
        description="candidates on the line from the base (0) to the merge (1); default 0.5 and "
        "0.75 where there is a base",
    )
    averages: tuple[Annotated[int, Field(ge=2, le=1000)], ...] = Field(
        (), description="candidates that average the first model's latest n checkpoints of its run"
    )
    max_records: int = Field(200, ge=2, description="most records scored; drawn by the seed")
    max_tokens: int = Field(1024, ge=16, description="tokens of a record that are read")
    batch_tokens: int = Field(2048, ge=16, description="tokens scored at once; bounds memory")
    final: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="share of the records that neither chooses nor confirms, and only says how "
        "good the kept one is; default a quarter where 16 or more have an answer; 0 is none",
    )


class MergeOutputSettings(Settings):
    """How the merged checkpoint is stored."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="storage type; default that of the models, the wider where they differ"
    )
    shard_size: Size = Field(5_000_000_000, gt=0, description="most bytes of weights in one file")


class MergeRecipe(Recipe):
    """Make one checkpoint of several."""

    kind: Literal["merge"] = Field("merge", description="make one checkpoint of several")
    method: Annotated[MergeMethod, METHODS.choice()] = Field(description="how they are merged")
    base: Reference | None = Field(
        None,
        description="the checkpoint that the models were fine-tuned from; also gives config, "
        "tokenizer and what is not merged, else the first model does",
    )
    models: tuple[ModelEntry, ...] = Field(min_length=1, description="what is merged")
    engine: EngineChoice = ENGINE
    select: SelectionSettings | None = Field(
        None, description="score candidates on held-out records and keep the best"
    )
    search: SearchSettings | None = Field(
        None, description="search settings or a path through layers that score best on records"
    )
    when_too_few: Literal["refuse", "go_on"] = Field(
        "refuse",
        description="where a run left fewer checkpoints than along_run asks for, or fewer than 2 "
        "records can judge in select: refuse; or go_on with those that are there, or with the "
        "first model as it is, and say so",
    )
    smoke: SmokeSettings | None = Field(
        None, description="check the result: finite, loads, gives a token, beside its parents"
    )
    compat: Literal["paper", "mergekit"] = Field(
        "paper",
        description="compute as the papers say, in float32; or as mergekit 0.1.5 does, operation "
        "by operation",
    )
    compute: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="with compat mergekit: what is computed in; default the models' own"
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="where matrices are decomposed, and mergekit's arithmetic is done; the rest "
        "stays on the processor, and the plan says so",
    )
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="blocks that are worked on at once; 0 chooses by cores and disk. It changes "
        "no bit",
    )
    vary: tuple[ParameterOverride, ...] = Field(
        (), description="settings for some tensors or along the layers; the first that fits counts"
    )
    slices: tuple[Slice, ...] = Field(
        (), description="stack the result of layers; default every layer in its place"
    )
    parts: tuple[TensorGroup, ...] = Field(
        (),
        description="tensors that not all models take part in, or with settings of their own; the "
        "first part that a tensor fits counts",
    )
    chat_template: str | None = Field(
        None,
        description="auto (what most models have), alpaca, chatml, exaone, llama3, mistral, or a "
        "Jinja text; default that of the base or first model",
    )
    tokenizer: TokenizerSettings | None = Field(
        None, description="make one vocabulary of the models'; default they must share theirs"
    )
    include: tuple[str, ...] = Field(
        ("*",), description="tensors that are merged, as name patterns with * and ?"
    )
    exclude: tuple[str, ...] = Field(
        (), description="tensors that are copied instead, as name patterns with * and ?"
    )
    rest: Literal["refuse", "copy"] = Field(
        "refuse", description="what is done with a tensor that not all models have"
    )
    out: MergeOutputSettings = Field(
        default_factory=lambda: MergeOutputSettings.model_validate({}),
        description="how the result is stored",
    )

    @model_validator(mode="after")
    def _check_method(self) -> MergeRecipe:
        if self.engine.ray is not None and self.search is None:
            raise engine_error("a merge without a search streams through one machine")
        problems = [
            *self._find_unused(),
            *self._find_missing(),
            *self._find_bad_variations(),
            *self._find_bad_slices(),
            *self._find_bad_compat(),
            *self._find_bad_assembly(),
        ]
        if problems:
            raise RecipeError(problems)
        has_path = self.search is not None and self.search.path is not None
        has_parts = any(part.models for part in self.parts)
        if not (
            self.slices or has_parts or has_path or any(model.along_run for model in self.models)
        ):
            check = self.method.check_replica if self.compat == "mergekit" else self.method.check
            check([model.weight for model in self.models])
        return self

    def _find_unused(self) -> list[Problem]:
        found = []
        for number, model in enumerate(self.models):
            given = [*(["weight"] if model.weight != 1 else []), *model.own]
            given += [name for name in ("positive", "negative") if getattr(model, name)]
            found += [
                self._unused(setting, f"models.{number}.{setting}")
                for setting in given
                if setting not in self._per_model
            ]
        return found

    def _find_bad_assembly(self) -> list[Problem]:
        """Refuse what only a merge of blocks heeds."""
        if not isinstance(self.method, ArchitectureMerge):
            return []
        name = self.method.method_name()
        return [
            Problem(
                f"{name} places tensors whole, and '{key}' is about merging them",
                "merge.unused-setting",
                key,
                "a setting that changes something",
                f"leave {key} out; merge the models with another method first",
            )
            for key in _BLOCK_SETTINGS
            if getattr(self, key) != type(self).model_fields[key].get_default()
        ]

    @property
    def _per_model(self) -> tuple[str, ...]:
        weight = ("weight",) if self.method.uses_weights else ()
        return (*weight, *self.method.per_model)

    def _unused(self, setting: str, where: str) -> Problem:
        return Problem(
            f"{self.method.method_name()} does not use the {setting} of a model",
            "merge.unused-setting",
            where,
            "a setting that changes something"
            + (f": {', '.join(self._per_model)}" if self._per_model else ""),
            f"leave {setting} out, or choose another method",
        )

    def _find_bad_variations(self) -> list[Problem]:
        found = []
        lists = [("vary", self.vary, len(self.models))]
        lists += [
            (f"slices.{number}.vary", part.vary, len(part.models))
            for number, part in enumerate(self.slices)
        ]
        lists += [
            (f"parts.{number}.vary", part.vary, len(self.models))
            for number, part in enumerate(self.parts)
        ]
        for where, listed, count in lists:
            for number, variation in enumerate(listed):
                found += self._check_variation(variation, f"{where}.{number}", count)
        return found

    def _check_variation(
        self, variation: ParameterOverride, where: str, count: int
    ) -> list[Problem]:
        setting = variation.setting
        if variation.model is not None:
            if variation.model >= count:
                return [
                    Problem(
                        f"there is no model {variation.model}",
                        "merge.vary",
                        f"{where}.model",
                        f"a number from 0 to {count - 1}",
                        "count the models from 0",
                    )
                ]
            if setting not in self._per_model:
                return [self._unused(setting, f"{where}.setting")]
            return []
        known = sorted(set(type(self.method).model_fields) - {"name"})
        if setting not in known:
            return [
                Problem(
                    f"{setting} is not a setting of {self.method.method_name()}",
                    "merge.vary",
                    f"{where}.setting",
                    f"one of: {', '.join(known)}" if known else "(it has none)",
                    "a model's own setting needs 'model', its number in 'models'",
                )
            ]
        try:
            for value in variation.layers or (variation.value,):
                override_settings(self.method, {setting: value})
        except ValueError as error:
            text = str(error).splitlines()
            return [
                Problem(
                    f"{setting} cannot be that: {text[2].strip() if len(text) > 2 else text[0]}",
                    "merge.vary",
                    where,
                    "what the method's setting may be",
                    "change 'value' or 'layers'",
                )
            ]
        return []

    def _find_bad_slices(self) -> list[Problem]:
        found = [
            Problem(
                f"a part names model {max(part.models)}, and there is none",
                "merge.part",
                f"parts.{number}.models",
                f"numbers from 0 to {len(self.models) - 1}",
                "count the models from 0",
            )
            for number, part in enumerate(self.parts)
            if part.models and max(part.models) >= len(self.models)
        ]
        for number, part in enumerate(self.slices):
            for place, entry in enumerate(part.models):
                if entry.model >= len(self.models) or (entry.model < 0 and self.base is None):
                    found.append(
                        Problem(
                            f"a slice names model {entry.model}, and there is none",
                            "merge.slice",
                            f"slices.{number}.models.{place}.model",
                            f"a number from 0 to {len(self.models) - 1}, or -1 for the base",
                            "count the models from 0, or add a base",
                        )
                    )
        return found

    def _find_missing(self) -> list[Problem]:
        if self.base is None and self.method.needs_base:
            return [
                Problem(
                    f"{self.method.method_name()} merges differences from a base, "
                    "and there is none",
                    "merge.base",
                    "base",
                    "the checkpoint that the models were fine-tuned from",
                    "add it as 'base'",
                )
            ]
        if self.base is None and self.select and self.select.mixes:
            return [
                Problem(
                    "select.mixes lie between a base and the merge, and there is no base",
                    "merge.base",
                    "base",
                    "the checkpoint that the models were fine-tuned from",
                    "add it as 'base', or leave select.mixes out",
                )
            ]
        return []

    def _find_bad_compat(self) -> list[Problem]:
        if self.compat == "mergekit" and not self.method.replicates:
            return list(mergekit_unsupported_error(self.method.method_name()).problems)
        if self.compute is not None and self.compat != "mergekit":
            return [
                Problem(
                    "compute is set, and only compat mergekit heeds it",
                    "merge.compat",
                    "compute",
                    "arithmetic in float32, or float64 for wider weights",
                    "leave it out, or set compat to mergekit",
                )
            ]
        return []


def override_settings(method: MergeMethod, changes: Mapping[str, Any]) -> MergeMethod:
    """Return a method with some settings changed, checked as a recipe's are.

    Raises:
        ValueError: If the method does not allow a value.
    """
    if not changes:
        return method
    settings = {key: value for key, value in method.model_dump().items() if key != "name"}
    return type(method).model_validate(settings | dict(changes))
