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
    """One model of a merge."""

    checkpoint: Reference = Field(description="a checkpoint: folder, artifact, GGUF file or hub:")
    weight: float = Field(1.0, description="weight of the model; its meaning depends on the method")
    adapter: Reference | None = Field(
        None, description="folder of a LoRA adapter to apply to the model"
    )
    density: float | None = Field(
        None, ge=0, le=1, description="density of this model, if the method has one"
    )
    epsilon: float | None = Field(None, description="epsilon of this model, if the method has one")
    gamma: float | None = Field(None, description="gamma of this model, if the method has one")
    positive: tuple[str, ...] = Field(
        (), description="for an expert: prompts that it should answer"
    )
    negative: tuple[str, ...] = Field(
        (), description="for an expert: prompts that it should not answer"
    )
    residual_scale: float | None = Field(
        None, description="for an expert: multiplier of its MLPs' outputs"
    )
    along_run: int = Field(
        0,
        ge=0,
        le=1000,
        description="use the latest n checkpoints of its training run as separate models; "
        "0: only the final one",
    )

    @property
    def settings(self) -> dict[str, float]:
        """Method settings of this model."""
        listed = {name: getattr(self, name) for name in PER_MODEL_SETTINGS}
        return {name: value for name, value in listed.items() if value is not None}


class ParameterOverride(Settings):
    """A setting for some tensors, or a gradient along the layers."""

    setting: str = Field(description="setting of the method, or of a model: weight, density, ...")
    model: int | None = Field(
        None,
        ge=0,
        description="index of the model in 'models', from 0; null: a setting of the method",
    )
    tensors: tuple[str, ...] = Field(
        ("*",), min_length=1, description="tensors, as name patterns with * and ?"
    )
    value: float | bool | None = Field(None, description="value for these tensors")
    layers: tuple[float, ...] = Field(
        (),
        description="or a gradient: values from the first layer to the last, interpolated linearly",
    )

    @model_validator(mode="after")
    def _check_one(self) -> ParameterOverride:
        if (self.value is None) == (not self.layers):
            raise ValueError("give either 'value' or 'layers'")
        return self

    def fits(self, name: str) -> bool:
        """Return whether the override applies to a tensor."""
        return any(fnmatchcase(name, pattern) for pattern in self.tensors)

    def value_at(self, layer: float | None) -> float | bool:
        """Return the value at a relative depth, 0 to 1; outside the layers (None) the first."""
        if self.value is not None:
            return self.value
        position = (layer or 0.0) * (len(self.layers) - 1)
        lower = min(int(position), len(self.layers) - 1)
        upper = min(lower + 1, len(self.layers) - 1)
        fraction = position - lower
        return self.layers[lower] * (1 - fraction) + self.layers[upper] * fraction


class SliceModel(Settings):
    """A range of layers of one model."""

    model: int = Field(ge=-1, description="index in 'models', from 0; -1: the base")
    layers: tuple[int, int] = Field(description="first layer, and the one after the last")

    @model_validator(mode="after")
    def _check_layers(self) -> SliceModel:
        if not 0 <= self.layers[0] < self.layers[1]:
            raise ValueError("layers are counted from 0, and the second number is the larger")
        return self


class Slice(Settings):
    """Layers of the result: one model's, or several models' merged."""

    models: tuple[SliceModel, ...] = Field(min_length=1, description="layers of each model")
    vary: tuple[ParameterOverride, ...] = Field(
        (), description="settings of this slice; 'model' is an index in the slice's models"
    )

    @model_validator(mode="after")
    def _check_lengths(self) -> Slice:
        if len({entry.layers[1] - entry.layers[0] for entry in self.models}) > 1:
            raise ValueError("the models of a slice must have the same number of layers")
        return self

    @property
    def count(self) -> int:
        """Number of layers."""
        start, stop = self.models[0].layers
        return stop - start


class TensorGroup(Settings):
    """Models and settings of some tensors, such as those of a vision tower."""

    tensors: tuple[str, ...] = Field(
        min_length=1, description="tensors, as name patterns with * and ?"
    )
    models: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        min_length=1,
        description="models merged there, as indices in 'models', from 0, besides the base; "
        "default all",
    )
    vary: tuple[ParameterOverride, ...] = Field(
        (), description="settings of these tensors; 'model' is an index in 'models'"
    )

    def fits(self, name: str) -> bool:
        """Return whether a tensor belongs to the group."""
        return any(fnmatchcase(name, pattern) for pattern in self.tensors)


class SelectionSettings(Settings):
    """Score candidates and their parents on records, and keep the best."""

    records: Reference = Field(description="records artifact or file to score on")
    split: str = Field(
        "held_out", description="use only records with this fields.split; empty: all"
    )
    mixes: tuple[Fraction, ...] | None = Field(
        None,
        description="candidates interpolated between the base (0) and the merge (1); default 0.5 "
        "and 0.75 if there is a base",
    )
    averages: tuple[Annotated[int, Field(ge=2, le=1000)], ...] = Field(
        (), description="candidates that average the latest n checkpoints of the first model's run"
    )
    max_records: int = Field(
        200, ge=2, description="maximum number of scored records, sampled by the seed"
    )
    max_tokens: int = Field(1024, ge=16, description="maximum tokens read per record")
    batch_tokens: int = Field(2048, ge=16, description="tokens scored per batch; bounds memory")
    final: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="share of the records used for neither choice nor confirmation, but to report "
        "the quality of the selected one; default a quarter if 16 or more have an answer; 0: none",
    )


class MergeOutputSettings(Settings):
    """Storage of the merged checkpoint."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None,
        description="storage type; defaults to that of the models, or the wider if they differ",
    )
    shard_size: Size = Field(5_000_000_000, gt=0, description="maximum bytes of weights per file")


class MergeRecipe(Recipe):
    """Merge several checkpoints into one."""

    kind: Literal["merge"] = Field("merge", description="merge several checkpoints into one")
    method: Annotated[MergeMethod, METHODS.choice()] = Field(description="merge method")
    base: Reference | None = Field(
        None,
        description="the checkpoint that the models were fine-tuned from; also gives config, "
        "tokenizer and unmerged tensors; without it, the first model does",
    )
    models: tuple[ModelEntry, ...] = Field(min_length=1, description="models to merge")
    engine: EngineChoice = ENGINE
    select: SelectionSettings | None = Field(
        None, description="score candidates on held-out records and keep the best"
    )
    search: SearchSettings | None = Field(
        None, description="search settings or a layer path with the best score on records"
    )
    when_too_few: Literal["refuse", "go_on"] = Field(
        "refuse",
        description="if a run has fewer checkpoints than along_run, or fewer than 2 records can be "
        "scored in select: refuse; or go_on with the available checkpoints, or with the "
        "first model unchanged, with a warning",
    )
    smoke: SmokeSettings | None = Field(
        None, description="check the result: finite, loads, generates; compared with its parents"
    )
    compat: Literal["paper", "mergekit"] = Field(
        "paper",
        description="compute as in the papers, in float32; or as mergekit 0.1.5, operation "
        "by operation",
    )
    compute: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="with compat mergekit: compute type; defaults to that of the models"
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="device of matrix decompositions and of mergekit's arithmetic; everything else "
        "runs on the CPU, as noted in the plan",
    )
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="blocks computed in parallel; 0 chooses by cores and disk; does not change "
        "the result",
    )
    vary: tuple[ParameterOverride, ...] = Field(
        (), description="settings for some tensors or along the layers; the first match counts"
    )
    slices: tuple[Slice, ...] = Field(
        (), description="build the result from ranges of layers; default: all layers in order"
    )
    parts: tuple[TensorGroup, ...] = Field(
        (),
        description="tensors merged from some of the models, or with different settings; the "
        "first matching part counts",
    )
    chat_template: str | None = Field(
        None,
        description="auto (the most common of the models), alpaca, chatml, exaone, llama3, "
        "mistral, or a Jinja text; defaults to that of the base or first model",
    )
    tokenizer: TokenizerSettings | None = Field(
        None, description="merge the vocabularies; by default, the models must share one"
    )
    include: tuple[str, ...] = Field(
        ("*",), description="tensors to merge, as name patterns with * and ?"
    )
    exclude: tuple[str, ...] = Field(
        (), description="tensors to copy instead, as name patterns with * and ?"
    )
    rest: Literal["refuse", "copy"] = Field(
        "refuse", description="handling of tensors missing in some models"
    )
    out: MergeOutputSettings = Field(
        default_factory=lambda: MergeOutputSettings.model_validate({}),
        description="storage of the result",
    )

    @model_validator(mode="after")
    def _check_method(self) -> MergeRecipe:
        if self.engine.ray is not None and self.search is None:
            raise engine_error("a merge without a search runs on one machine")
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
            check = self.method.check_mergekit if self.compat == "mergekit" else self.method.check
            check([model.weight for model in self.models])
        return self

    def _find_unused(self) -> list[Problem]:
        problems = []
        for number, model in enumerate(self.models):
            settings = [*(["weight"] if model.weight != 1 else []), *model.settings]
            settings += [name for name in ("positive", "negative") if getattr(model, name)]
            problems += [
                self._unused(setting, f"models.{number}.{setting}")
                for setting in settings
                if setting not in self._per_model
            ]
        return problems

    def _find_bad_assembly(self) -> list[Problem]:
        """Report settings that only apply to merges of blocks."""
        if not isinstance(self.method, ArchitectureMerge):
            return []
        name = self.method.method_name()
        return [
            Problem(
                f"{name} does not merge tensors, so '{key}' has no effect",
                "merge.unused-setting",
                key,
                "a setting with an effect",
                f"omit {key}; merge the models with another method first",
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
            "a setting with an effect"
            + (f": {', '.join(self._per_model)}" if self._per_model else ""),
            f"omit {setting}, or choose another method",
        )

    def _find_bad_variations(self) -> list[Problem]:
        problems = []
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
                problems += self._check_variation(variation, f"{where}.{number}", count)
        return problems

    def _check_variation(
        self, variation: ParameterOverride, where: str, count: int
    ) -> list[Problem]:
        setting = variation.setting
        if variation.model is not None:
            if variation.model >= count:
                return [
                    Problem(
                        f"model {variation.model} does not exist",
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
                    f"one of: {', '.join(known)}" if known else "no setting",
                    "a setting of a model needs 'model', its index in 'models'",
                )
            ]
        try:
            for value in variation.layers or (variation.value,):
                override_settings(self.method, {setting: value})
        except ValueError as error:
            text = str(error).splitlines()
            return [
                Problem(
                    f"invalid {setting}: {text[2].strip() if len(text) > 2 else text[0]}",
                    "merge.vary",
                    where,
                    "a valid value of the method's setting",
                    "change 'value' or 'layers'",
                )
            ]
        return []

    def _find_bad_slices(self) -> list[Problem]:
        problems = [
            Problem(
                f"a part names model {max(part.models)}, which does not exist",
                "merge.part",
                f"parts.{number}.models",
                f"numbers from 0 to {len(self.models) - 1}",
                "count the models from 0",
            )
            for number, part in enumerate(self.parts)
            if part.models and max(part.models) >= len(self.models)
        ]
        for number, part in enumerate(self.slices):
            for position, entry in enumerate(part.models):
                if entry.model >= len(self.models) or (entry.model < 0 and self.base is None):
                    problems.append(
                        Problem(
                            f"a slice names model {entry.model}, which does not exist",
                            "merge.slice",
                            f"slices.{number}.models.{position}.model",
                            f"a number from 0 to {len(self.models) - 1}, or -1 for the base",
                            "count the models from 0, or add a base",
                        )
                    )
        return problems

    def _find_missing(self) -> list[Problem]:
        if self.base is None and self.method.needs_base:
            return [
                Problem(
                    f"{self.method.method_name()} merges differences from a base, "
                    "but the recipe has no base",
                    "merge.base",
                    "base",
                    "the checkpoint that the models were fine-tuned from",
                    "add it as 'base'",
                )
            ]
        if self.base is None and self.select and self.select.mixes:
            return [
                Problem(
                    "select.mixes interpolate between a base and the merge, but the recipe has no "
                    "base",
                    "merge.base",
                    "base",
                    "the checkpoint that the models were fine-tuned from",
                    "add it as 'base', or omit select.mixes",
                )
            ]
        return []

    def _find_bad_compat(self) -> list[Problem]:
        if self.compat == "mergekit" and not self.method.replicates:
            return list(mergekit_unsupported_error(self.method.method_name()).problems)
        if self.compute is not None and self.compat != "mergekit":
            return [
                Problem(
                    "compute is set, but only used with compat mergekit",
                    "merge.compat",
                    "compute",
                    "arithmetic in float32, or float64 for wider weights",
                    "omit it, or set compat to mergekit",
                )
            ]
        return []


def override_settings(method: MergeMethod, changes: Mapping[str, Any]) -> MergeMethod:
    """Return a validated copy of a method with some settings changed.

    Raises:
        ValueError: If a value is invalid for the method.
    """
    if not changes:
        return method
    settings = {key: value for key, value in method.model_dump().items() if key != "name"}
    return type(method).model_validate(settings | dict(changes))
