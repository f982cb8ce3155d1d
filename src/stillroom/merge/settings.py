"""Merge recipe sections; gradients over layers are resolved by ``inputs.TensorRules.resolve``.

Models, slices (layer_range), tensor groups, search and checks.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from stillroom.merge.interfaces import METHODS
from stillroom.recipes import DISTINCT, Duration, Reference, Settings, Size

__all__ = [
    "HIGHER_IS_BETTER",
    "RANDOM_GATE_MODES",
    "AnswerObjective",
    "Arithmetic",
    "CmaSettings",
    "ExpertEntry",
    "GateMode",
    "LayerPathSettings",
    "LossObjective",
    "MergeOutputSettings",
    "MergekitArithmetic",
    "ModelEntry",
    "MoeArchitecture",
    "Objective",
    "PaperArithmetic",
    "ParameterOverride",
    "SearchParameter",
    "SearchSettings",
    "SelectionSettings",
    "Slice",
    "SliceSource",
    "SmokeTestSettings",
    "TeacherObjective",
    "TensorGroup",
    "TokenEmbeddingSettings",
    "TokenRowReference",
    "TokenizerSettings",
    "TpeSettings",
]

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
HIGHER_IS_BETTER = frozenset({"agreement", "f1", "em"})
GateMode: TypeAlias = Literal["hidden", "last", "cheap_embed", "random", "uniform"]
RANDOM_GATE_MODES = ("random", "uniform")
MoeArchitecture: TypeAlias = Literal["auto", "mixtral", "qwen2_moe", "qwen3_moe"]


def _with_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class _NameOrSettings:
    """Lets a union of settings be written as its bare name."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the union's schema, or a name."""
        return {"anyOf": [{"type": "string", "enum": list(self.names)}, handler(schema)]}


class PaperArithmetic(Settings):
    """Arithmetic of the papers, in float32, or float64 for wider weights."""

    name: Literal["paper"] = Field(description="as in the papers")


class MergekitArithmetic(Settings):
    """Arithmetic of mergekit 0.1.5, operation by operation."""

    name: Literal["mergekit"] = Field(description="the bits of mergekit")
    compute_dtype: DType | None = Field(
        None, description="compute type; defaults to that of the models"
    )


Arithmetic: TypeAlias = Annotated[
    PaperArithmetic | MergekitArithmetic,
    Field(discriminator="name"),
    BeforeValidator(_with_name),
    _NameOrSettings("paper", "mergekit"),
]


class ModelEntry(Settings):
    """One model of a merge; the method's settings per model are further keys."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[float | Any, Field(union_mode="left_to_right")]]

    model: Reference = Field(description="a checkpoint: folder, artifact, GGUF file or hub:")
    adapter: Reference | None = Field(
        None, description="folder of a LoRA adapter to apply to the model"
    )
    weight: float = Field(1.0, description="weight of the model; its meaning depends on the method")
    last_checkpoints: int = Field(
        1,
        ge=1,
        le=1000,
        description="use the latest n checkpoints of its training run as separate models; "
        "1: only the final one",
    )

    @property
    def settings(self) -> dict[str, Any]:
        """Method settings of this model."""
        return dict(self.__pydantic_extra__ or {})

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return a schema with the settings that any method has per model."""
        described = handler.resolve_ref_schema(handler(schema))
        methods: dict[str, list[str]] = {}
        for name in METHODS.names():
            for setting in METHODS.get(name).per_model_settings():
                methods.setdefault(setting, []).append(name)
        described["properties"] |= {
            setting: {"type": "number", "description": f"of this model, for {', '.join(names)}"}
            for setting, names in methods.items()
        }
        described["additionalProperties"] = False
        return described


class ExpertEntry(Settings):
    """One expert of a mixture."""

    model: Reference = Field(description="a checkpoint: folder, artifact, GGUF file or hub:")
    adapter: Reference | None = Field(
        None, description="folder of a LoRA adapter to apply to the model"
    )
    positive_prompts: tuple[str, ...] = Field((), description="prompts that it should answer")
    negative_prompts: tuple[str, ...] = Field((), description="prompts that it should not answer")
    residual_scale: float = Field(1.0, description="multiplier of its MLPs' outputs")


class _TensorSetting(Settings):
    """A setting of the method or of a model, for some tensors."""

    setting: str = Field(description="setting of the method, or of a model: weight, density, ...")
    model: int | None = Field(
        None,
        ge=0,
        description="index of the model in 'models', from 0; null: a setting of the method",
    )
    tensors: tuple[str, ...] = Field(
        ("*",), min_length=1, description="tensors, as name patterns with * and ?"
    )


class ParameterOverride(_TensorSetting):
    """A setting for some tensors (filter), or a gradient along the layers."""

    value: float | bool | Annotated[tuple[float, ...], Field(min_length=1)] = Field(
        description="value for these tensors, or a gradient: values from the first layer to the "
        "last, interpolated linearly"
    )

    def fits(self, name: str) -> bool:
        """Return whether the override applies to a tensor."""
        return any(fnmatchcase(name, pattern) for pattern in self.tensors)

    @property
    def values(self) -> tuple[float | bool, ...]:
        """The value, or those of the gradient."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def value_at(self, layer: float | None) -> float | bool:
        """Return the gradient's value at a relative depth, 0 to 1; None (no layer): the first."""
        if not isinstance(self.value, tuple):
            return self.value
        position = (layer or 0.0) * (len(self.value) - 1)
        lower = min(int(position), len(self.value) - 1)
        upper = min(lower + 1, len(self.value) - 1)
        fraction = position - lower
        return self.value[lower] * (1 - fraction) + self.value[upper] * fraction


class SliceSource(Settings):
    """A range of layers of one model."""

    model: int = Field(ge=-1, description="index in 'models', from 0; -1: the base")
    layer_range: tuple[Annotated[int, Field(ge=0)], int] = Field(
        description="first layer, from 0, and the one after the last"
    )

    @model_validator(mode="after")
    def _check_range(self) -> SliceSource:
        if self.layer_range[0] >= self.layer_range[1]:
            raise ValueError("the second number of layer_range is the larger")
        return self

    @property
    def count(self) -> int:
        """Number of layers."""
        return self.layer_range[1] - self.layer_range[0]


class Slice(Settings):
    """Layers of the result: one model's, or several models' merged."""

    sources: tuple[SliceSource, ...] = Field(min_length=1, description="layers of each model")
    parameters: tuple[ParameterOverride, ...] = Field(
        (), description="settings of this slice; 'model' is an index in the slice's sources"
    )

    @model_validator(mode="after")
    def _check_lengths(self) -> Slice:
        if len({source.count for source in self.sources}) > 1:
            raise ValueError("the sources of a slice must have the same number of layers")
        return self

    @property
    def count(self) -> int:
        """Number of layers."""
        return self.sources[0].count


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
    parameters: tuple[ParameterOverride, ...] = Field(
        (), description="settings of these tensors; 'model' is an index in 'models'"
    )

    def fits(self, name: str) -> bool:
        """Return whether a tensor belongs to the group."""
        return any(fnmatchcase(name, pattern) for pattern in self.tensors)


class MergeOutputSettings(Settings):
    """Storage of the merged checkpoint (mergekit's ``out_dtype`` and ``out_shard_size``)."""

    dtype: DType | None = Field(
        None,
        description="storage type; defaults to that of the models, or the wider if they differ",
    )
    shard_size: Size = Field(5_000_000_000, gt=0, description="maximum bytes of weights per file")


class SelectionSettings(Settings):
    """Score candidates and their parents on records, and keep the best."""

    records: Reference = Field(description="records artifact or file to score on")
    split: str = Field(
        "held_out", description="use only records with this fields.split; empty: all"
    )
    interpolations: Annotated[tuple[Fraction, ...], DISTINCT] | None = Field(
        None,
        description="candidates interpolated between the base (0) and the merge (1); default 0.5 "
        "and 0.75 if there is a base",
    )
    averages: Annotated[tuple[Annotated[int, Field(ge=2, le=1000)], ...], DISTINCT] = Field(
        (), description="candidates that average the latest n checkpoints of the first model's run"
    )
    max_records: int = Field(
        200, ge=2, description="maximum number of scored records, sampled by the seed"
    )
    max_tokens: int = Field(1024, ge=16, description="maximum tokens read per record")
    batch_tokens: int = Field(2048, ge=16, description="tokens scored per batch; bounds memory")
    test_share: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="share of the records used for neither choice nor confirmation, but to report "
        "the quality of the selected one; default a quarter if 16 or more have an answer; 0: none",
    )


class LossObjective(Settings):
    """Cross-entropy of the assistant's tokens."""

    name: Literal["loss"] = Field(default="loss", description="nats per assistant token")


class TeacherObjective(Settings):
    """Distance to a teacher's next-token distributions."""

    name: Literal["kl", "agreement"] = Field(
        description="divergence from the teacher, or share of equal most likely tokens"
    )
    teacher: Reference = Field(description="reference checkpoint, with the same tokenizer")


class AnswerObjective(Settings):
    """Quality of greedy answers."""

    name: Literal["f1", "em"] = Field(description="token F1, or exact match")
    max_new_tokens: int = Field(64, ge=1, le=8192, description="maximum tokens of an answer")


Objective: TypeAlias = Annotated[
    LossObjective | TeacherObjective | AnswerObjective,
    Field(discriminator="name"),
    BeforeValidator(_with_name),
    _NameOrSettings("loss", "f1", "em"),
]


class CmaSettings(Settings):
    """CMA-ES."""

    name: Literal["cma"] = Field(default="cma", description="CMA-ES")
    population: int | None = Field(
        default=None, ge=2, le=1024, description="trials per generation; default by dimension"
    )
    sigma: float = Field(
        default=0.2, gt=0, le=1, description="initial step, as a share of the range"
    )


class TpeSettings(Settings):
    """The tree-structured Parzen estimator."""

    name: Literal["tpe"] = Field(description="tree-structured Parzen estimator")
    batch: int = Field(1, ge=1, le=1024, description="trials proposed at once")


Optimizer: TypeAlias = Annotated[
    CmaSettings | TpeSettings,
    Field(discriminator="name"),
    BeforeValidator(_with_name),
    _NameOrSettings("cma", "tpe"),
]


class SearchParameter(_TensorSetting):
    """A searched setting, or a searched gradient along the layers."""

    low: float = Field(description="minimum")
    high: float = Field(description="maximum")
    gradient: int | None = Field(
        None,
        ge=2,
        le=64,
        description="search a gradient with this number of values from first layer to last",
    )

    @model_validator(mode="after")
    def _check_range(self) -> SearchParameter:
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        return self

    @property
    def label(self) -> str:
        """Name in reports."""
        owner = "method" if self.model is None else f"models.{self.model}"
        where = "" if self.tensors == ("*",) else f"[{','.join(self.tensors)}]"
        return f"{owner}.{self.setting}{where}"


class LayerPathSettings(Settings):
    """Settings of a search for paths through the layers of several models."""

    models: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="indices in 'models' whose layers are used; default all"
    )
    length: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="maximum number of layers; default twice those of the first model",
    )
    repeats: int = Field(
        1, ge=1, le=8, description="number of repetitions of the list of all layers"
    )
    order: Literal["models", "layers"] = Field(
        "models",
        description="order of the list: model by model, or layer by layer: all models' "
        "first layers, then their second, ...",
    )


class SearchSettings(Settings):
    """Search settings, or a layer path, with the best score on records."""

    records: Reference = Field(description="records artifact or file to score on")
    split: str = Field(
        "held_out", description="use only records with this fields.split; empty: all"
    )
    objective: Objective = Field(
        default_factory=LossObjective,
        description="loss; kl or agreement with a teacher; f1 or em of greedy answers",
    )
    space: tuple[SearchParameter, ...] = Field((), description="searched settings")
    layer_path: LayerPathSettings | None = Field(
        None, description="search a path through layers; 'slices' of the recipe are replaced"
    )
    optimizer: Optimizer = Field(
        default_factory=CmaSettings,
        description="cma: CMA-ES; tpe: tree-structured Parzen estimator",
    )
    evaluations: int = Field(100, ge=1, le=100_000, description="maximum number of trials")
    time_limit: Duration | None = Field(
        None,
        gt=0,
        description="time limit of the trials, such as 30min; the result then depends on the "
        "speed of the machine",
    )
    patience: int = Field(
        0, ge=0, description="stop after this number of trials without improvement; 0: never"
    )
    finalists: int = Field(
        5, ge=1, le=100, description="number of best candidates compared again on other records"
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="local processes that score candidates; with engine: ray, the "
        "cluster's workers do",
    )
    max_records: int = Field(
        200,
        ge=12,
        description="maximum number of records: half for trials, a quarter for choice, a quarter "
        "for the final score",
    )
    max_tokens: int = Field(1024, ge=16, description="maximum tokens read per record")
    batch_tokens: int = Field(2048, ge=16, description="tokens scored per batch; bounds memory")

    def count_scored(self) -> int:
        """Return the approximate number of candidates scored on all records, without parents."""
        return self.evaluations // 2 + self.finalists


class SmokeTestSettings(Settings):
    """Check the written result: finite, loads, generates a token, compared with its parents."""

    records: Reference | None = Field(
        None, description="records to measure perplexity on, of the result and its parents"
    )
    split: str = Field(
        "held_out", description="use only records with this fields.split; empty: all"
    )
    max_records: int = Field(32, ge=1, description="maximum number of records, sampled by the seed")
    max_tokens: int = Field(512, ge=16, description="maximum tokens read per record")
    batch_tokens: int = Field(2048, ge=16, description="tokens per batch; bounds memory")
    margin: float = Field(
        0.5, ge=0, description="warn if the loss exceeds every parent's by this many nats"
    )


class TokenRowReference(Settings):
    """An embedding row, by model and token, or by model and index."""

    model: int | Literal["base"] = Field(description="index in 'models', or base")
    token: str | None = Field(None, description="token of that model")
    row: int | None = Field(None, ge=0, description="index of the row, instead of a token")

    @model_validator(mode="after")
    def _check_one(self) -> TokenRowReference:
        if self.token is not None and self.row is not None:
            raise ValueError("give either token or row")
        return self


class TokenEmbeddingSettings(Settings):
    """Source of one token's embedding row."""

    source: int | Literal["base", "zero"] | TokenRowReference | None = Field(
        None,
        description="index in 'models', base, zero, or {model, token} or {model, row}; default: "
        "the general rule",
    )
    force: bool = Field(
        False, description="use it for every model, not only for those without the token"
    )
    add: bool = Field(False, description="add the token to the vocabulary if missing")


class TokenizerSettings(Settings):
    """Vocabulary of the merged model, and the sources of its embedding rows."""

    source: Literal["base", "union"] | Annotated[int, Field(ge=0)] = Field(
        "base", description="the vocabulary: base, union, or the index of a model"
    )
    tokens: dict[str, TokenEmbeddingSettings] = Field(
        default_factory=dict, description="tokens with an explicit row"
    )
    pad_to_multiple_of: int | None = Field(
        None,
        ge=1,
        description="round the embedding's rows up to a multiple; 1: no padding; default: "
        "the rows of the vocabulary's model",
    )
