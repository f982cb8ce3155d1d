"""What a job of kind ``merge`` may be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.errors import Problem, RecipeError
from stillroom.merge.method import METHODS, MergeMethod
from stillroom.recipes import Recipe, Reference, Settings, Size

__all__ = ["MergeRecipe", "ModelEntry", "OutSettings", "SelectSettings"]

Share = Annotated[float, Field(gt=0, lt=1)]


class ModelEntry(Settings):
    """One model that is merged."""

    checkpoint: Reference = Field(description="a checkpoint: folder, artifact, GGUF file or hub:")
    weight: float = Field(1.0, description="its weight; what that means is the method's")
    density: float | None = Field(
        None, ge=0, le=1, description="its own density, where the method has one"
    )
    along_run: int = Field(
        0,
        ge=0,
        le=1000,
        description="take the latest n checkpoints that its training left, as models of their "
        "own; 0 takes the final one only",
    )


class SelectSettings(Settings):
    """Score candidates on records beside their parents, and keep the best."""

    records: Reference = Field(description="a records artifact or file that judges")
    split: str = Field("held_out", description="only records with this fields.split; empty is all")
    mixes: tuple[Share, ...] | None = Field(
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


class OutSettings(Settings):
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
    select: SelectSettings | None = Field(
        None, description="score candidates on held-out records and keep the best"
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
    out: OutSettings = Field(
        default_factory=lambda: OutSettings.model_validate({}),
        description="how the result is stored",
    )

    @model_validator(mode="after")
    def _check_method(self) -> MergeRecipe:
        problems = [*self._find_unused(), *self._find_missing()]
        if problems:
            raise RecipeError(problems)
        if not any(model.along_run for model in self.models):
            self.method.check([model.weight for model in self.models])
        return self

    def _find_unused(self) -> list[Problem]:
        name, found = self.method.method_name(), []
        for number, model in enumerate(self.models):
            for setting, is_set, is_used in (
                ("weight", model.weight != 1, self.method.uses_weights),
                ("density", model.density is not None, self.method.uses_densities),
            ):
                if is_set and not is_used:
                    found.append(
                        Problem(
                            f"{name} does not use the {setting} of a model",
                            "merge.unused-setting",
                            f"models.{number}.{setting}",
                            "a setting that changes something",
                            f"leave {setting} out, or choose another method",
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
