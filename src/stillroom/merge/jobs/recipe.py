"""Recipe fields that the merge kinds share, their checks, and the replay of their jobs.

A replay computes drawn tensors again from the merged models. If all are drawn, or scores chose what
was merged, the job is repeated with every file it writes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import Field, ValidationError, model_validator
from typing_extensions import override

from stillroom.errors import Problem, RecipeError
from stillroom.jobs import MessageLog
from stillroom.jobs.replay import JournalReplayer
from stillroom.jobs.segments import ReplayRequest, SegmentOutcome
from stillroom.merge.interfaces import METHODS, MergeMethod
from stillroom.merge.mergekit.parameters import (
    MERGEKIT_METHODS,
    check_weights,
    mergekit_unsupported_error,
)
from stillroom.merge.settings import (
    Arithmetic,
    MergekitArithmetic,
    MergeOutputSettings,
    ModelEntry,
    PaperArithmetic,
    ParameterOverride,
    Slice,
    SmokeTestSettings,
    TensorGroup,
    TokenizerSettings,
)
from stillroom.recipes import Recipe, Reference
from stillroom.registry import suggest

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.engine.merge import Merge

__all__ = [
    "MERGE_REPLAYER",
    "SELECTION_REPLAYER",
    "MergeInput",
    "MergeJobRecipe",
    "MergeRecipe",
    "MergeReplayer",
]


@dataclass(frozen=True, slots=True)
class MergeInput:
    """A model that a recipe names: its role, its key, and how many sources it stands for."""

    role: Literal["base", "model"]
    key: tuple[str | int, ...]
    reference: str
    sources: int = 1


class MergeJobRecipe(Recipe):
    """Settings of every merge kind: the written checkpoint, and its check."""

    chat_template: str | None = Field(
        None,
        description="auto (the most common of the models), alpaca, chatml, exaone, llama3, "
        "mistral, or a Jinja text; defaults to that of the base or first model",
    )
    smoke_test: SmokeTestSettings | None = Field(
        None, description="check the result: finite, loads, generates; compared with its parents"
    )
    out: MergeOutputSettings = Field(
        default_factory=lambda: MergeOutputSettings.model_validate({}),
        description="storage of the result",
    )

    @abstractmethod
    def open(self, say: Callable[[str], None] | None = None) -> Merge:
        """Open the sources; return the merge, without its chat template.

        Raises:
            CheckpointError: If a source is missing or broken, or has too few run checkpoints.
        """

    def limit(self, log: MessageLog | None = None) -> Self:
        """Limit every ``last_checkpoints`` to the available ones, if the recipe allows it."""
        return self

    @abstractmethod
    def list_inputs(self) -> list[MergeInput]:
        """Return the models in the order of the merge's sources, the base first."""

    @abstractmethod
    def describe_method(self) -> tuple[dict[str, Any], str]:
        """Return name and settings of what makes the result, as JSON values, and its paper."""

    def review(self, written: Checkpoint) -> list[str]:
        """Return warnings about the written checkpoint."""
        return []

    @property
    def origin_step(self) -> str:
        """Name of this step in the origin of the result."""
        return self.kind


class _MergeInputs(Recipe):  # a base class of its own, so that recipes begin with the models
    method: Annotated[MergeMethod, METHODS.choice()] = Field(description="merge method")
    base_model: Reference | None = Field(
        None,
        description="the checkpoint that the models were fine-tuned from; also gives config, "
        "tokenizer and unmerged tensors; without it, the first model does",
    )
    models: tuple[ModelEntry, ...] = Field(
        min_length=1,
        description="models to merge; each may also have the settings that the method has per "
        "model, such as density",
    )
    parameters: tuple[ParameterOverride, ...] = Field(
        (), description="settings for some tensors or along the layers; the first match counts"
    )
    slices: tuple[Slice, ...] = Field(
        (), description="build the result from ranges of layers; default: all layers in order"
    )
    groups: tuple[TensorGroup, ...] = Field(
        (),
        description="tensors merged from some of the models, or with different settings; the "
        "first matching group counts",
    )
    include: tuple[str, ...] = Field(
        ("*",), description="tensors to merge, as name patterns with * and ?"
    )
    exclude: tuple[str, ...] = Field(
        (), description="tensors to copy instead, as name patterns with * and ?"
    )
    missing_tensors: Literal["refuse", "copy"] = Field(
        "refuse", description="handling of tensors missing in some models"
    )
    tokenizer: TokenizerSettings | None = Field(
        None, description="merge the vocabularies; by default, the models must share one"
    )
    on_too_few: Literal["refuse", "continue"] = Field(
        "refuse",
        description="if a run has fewer checkpoints than last_checkpoints: refuse; or continue "
        "with the available ones, with a warning",
    )
    arithmetic: Arithmetic = Field(
        default_factory=lambda: PaperArithmetic(name="paper"),
        description="paper: compute as in the papers, in float32; mergekit: as mergekit 0.1.5, "
        "operation by operation",
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


class MergeRecipe(MergeJobRecipe, _MergeInputs):
    """Settings of a merge by a method: models, method, and which tensors are merged how."""

    @override
    def limit(self, log: MessageLog | None = None) -> Self:
        from stillroom.merge.planning.inputs import limit_run_checkpoints

        return limit_run_checkpoints(self, log)

    @override
    def open(self, say: Callable[[str], None] | None = None) -> Merge:
        from stillroom.merge.engine.merge import Merge
        from stillroom.merge.planning.inputs import open_sources, read_rules

        base, parents = open_sources(self, say)
        return Merge(
            self.method,
            base,
            parents,
            read_rules(self),
            self.seed,
            threads=self.threads,
            device=self.device,
        )

    def list_inputs(self) -> list[MergeInput]:
        """Return the models in the order of the merge's sources, the base first."""
        base = self.base_model
        return [
            *([MergeInput("base", ("base_model",), base)] if base is not None else []),
            *(
                MergeInput(
                    "model", ("models", number, "model"), entry.model, entry.last_checkpoints
                )
                for number, entry in enumerate(self.models)
            ),
        ]

    def describe_method(self) -> tuple[dict[str, Any], str]:
        """Return the method's name and settings, as JSON values, and its paper."""
        return self.method.model_dump(mode="json"), self.method.paper

    @property
    def origin_step(self) -> str:
        """The method's name within its registry."""
        return f"merge.methods.{self.method.method_name()}"

    @property
    def changes_models(self) -> bool:
        """Whether tensors may be merged from other models than those listed."""
        has_groups = any(group.models for group in self.groups)
        return bool(
            self.slices or has_groups or any(entry.last_checkpoints > 1 for entry in self.models)
        )

    @model_validator(mode="after")
    def _check_method(self) -> MergeRecipe:
        problems = [
            *self._check_models(),
            *self._check_base(),
            *self._check_overrides(),
            *self._check_indices(),
            *self._check_arithmetic(),
        ]
        if problems:
            raise RecipeError(problems)
        if not self.changes_models:
            weights = [model.weight for model in self.models]
            if isinstance(self.arithmetic, MergekitArithmetic):
                check_weights(self.method, weights)
            else:
                self.method.check(weights)
        return self

    @property
    def _per_model(self) -> list[str]:
        weight = ["weight"] if self.method.uses_weights else []
        return [*weight, *self.method.per_model_settings()]

    def _check_models(self) -> Iterator[Problem]:
        """Yield a problem for every setting of a model that the method does not have."""
        for number, model in enumerate(self.models):
            values = {**({"weight": model.weight} if model.weight != 1 else {}), **model.settings}
            for setting, value in values.items():
                where = f"models.{number}.{setting}"
                yield from self._check_setting_of_model(setting, (value,), where, where)

    def _check_setting_of_model(
        self, setting: str, values: Sequence[Any], where: str, where_value: str
    ) -> Iterator[Problem]:
        if setting not in self._per_model:
            known = ", ".join(self._per_model)
            yield Problem(
                f"{self.method.method_name()} has no setting {setting} of a model",
                "merge.unused-setting",
                where,
                "a setting with an effect" + (f": {known}" if known else ""),
                suggest(setting, [*self._per_model, *ModelEntry.model_fields])
                or f"omit {setting}, or choose another method",
            )
        elif setting != "weight":
            yield from self._check_values(setting, values, where_value)

    def _check_values(self, setting: str, values: Sequence[Any], where: str) -> Iterator[Problem]:
        """Yield a problem if a value is invalid for the method's setting."""
        settings = {key: value for key, value in self.method.model_dump().items() if key != "name"}
        value = None
        try:
            for value in values:
                type(self.method).model_validate(settings | {setting: value})
        except ValidationError as error:
            yield Problem(
                f"invalid {setting} {value!r}: {error.errors()[0]['msg']}",
                "merge.parameters",
                where,
                "a valid value of the method's setting",
                "change the value",
            )

    def _check_base(self) -> Iterator[Problem]:
        if self.base_model is None and self.method.needs_base:
            yield Problem(
                f"{self.method.method_name()} merges differences from a base, "
                "but the recipe has no base",
                "merge.base",
                "base_model",
                "the checkpoint that the models were fine-tuned from",
                "add it as 'base_model'",
            )

    def _check_overrides(self) -> Iterator[Problem]:
        lists = [("parameters", self.parameters, len(self.models))]
        lists += [
            (f"slices.{number}.parameters", part.parameters, len(part.sources))
            for number, part in enumerate(self.slices)
        ]
        lists += [
            (f"groups.{number}.parameters", group.parameters, len(self.models))
            for number, group in enumerate(self.groups)
        ]
        for where, listed, count in lists:
            for number, parameter in enumerate(listed):
                yield from self._check_override(parameter, f"{where}.{number}", count)

    def _check_override(
        self, parameter: ParameterOverride, where: str, count: int
    ) -> Iterator[Problem]:
        setting = parameter.setting
        known = sorted(set(type(self.method).model_fields) - {"name"})
        if parameter.model is not None and parameter.model >= count:
            yield _missing_model(
                f"model {parameter.model}", "merge.parameters", f"{where}.model", count
            )
        elif parameter.model is not None:
            yield from self._check_setting_of_model(
                setting, parameter.values, f"{where}.setting", where
            )
        elif setting not in known:
            yield Problem(
                f"{setting} is not a setting of {self.method.method_name()}",
                "merge.parameters",
                f"{where}.setting",
                f"one of: {', '.join(known)}" if known else "no setting",
                "a setting of a model needs 'model', its index in 'models'",
            )
        else:
            yield from self._check_values(setting, parameter.values, where)

    def _check_indices(self) -> Iterator[Problem]:
        """Yield a problem for every index of a model that does not exist."""
        count = len(self.models)
        for number, group in enumerate(self.groups):
            if group.models and max(group.models) >= count:
                yield _missing_model(
                    f"model {max(group.models)} of a group",
                    "merge.group",
                    f"groups.{number}.models",
                    count,
                )
        for number, part in enumerate(self.slices):
            for position, source in enumerate(part.sources):
                if source.model >= count or (source.model < 0 and self.base_model is None):
                    yield _missing_model(
                        f"model {source.model} of a slice",
                        "merge.slice",
                        f"slices.{number}.sources.{position}.model",
                        count,
                        ", or -1 for the base",
                    )

    def _check_arithmetic(self) -> list[Problem]:
        name = self.method.method_name()
        if isinstance(self.arithmetic, MergekitArithmetic) and name not in MERGEKIT_METHODS:
            return list(mergekit_unsupported_error(name).problems)
        return []


def _missing_model(what: str, code: str, where: str, count: int, more: str = "") -> Problem:
    return Problem(
        f"{what} does not exist",
        code,
        where,
        f"a number from 0 to {count - 1}{more}",
        "count the models from 0",
    )


class MergeReplayer(JournalReplayer):
    """Replays tensors by themselves where not all are drawn."""

    def replay(self, request: ReplayRequest, names: frozenset[str]) -> Iterator[SegmentOutcome]:
        """Recompute the named tensors, and compare the fingerprints of the merged models.

        Files beside the tensors (configuration, tokenizer, card) are compared if all are named.
        """
        committed = {segment.name: segment.result for segment in self.list_segments(request)}
        if len(names) == len(committed):
            yield from super().replay(request, names)
            return
        from stillroom.checkpoints import Checkpoint
        from stillroom.merge.jobs.publication import TENSORS
        from stillroom.merge.verification import verify_merge

        tensors = frozenset(name.removeprefix(TENSORS) for name in names)
        recipe = cast("MergeJobRecipe", request.recipe)
        verification = verify_merge(
            request.folder, tensors=tensors, recipe=recipe, log=request.reporter
        )
        differing = {mismatch.name: str(mismatch) for mismatch in verification.differences}
        digests = Checkpoint.open(request.folder).digests
        for name in sorted(tensors | differing.keys()):
            segment = f"{TENSORS}{name}"
            digest = "" if name in differing else digests.get(name, "")
            what = differing.get(name, "")
            yield SegmentOutcome(segment, committed.get(segment, ""), digest, what)


MERGE_REPLAYER = MergeReplayer()
SELECTION_REPLAYER = JournalReplayer(("scores", "trials"), timed=frozenset({"spent"}))
