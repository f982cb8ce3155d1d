"""Groups of settings that several kinds of distillation share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from typing_extensions import override

from stillroom.distill.interfaces import COMPLETION_SCORERS, CompletionScorer
from stillroom.errors import RecipeError
from stillroom.models.endpoints.transport import is_key_safe
from stillroom.recipes import Duration, Reference, Secret, Settings, Size

__all__ = [
    "REMAINING_SOURCES",
    "CacheMode",
    "CachedTargetChoice",
    "CachedTargetSettings",
    "DenseTargetSettings",
    "EndpointTeacherSettings",
    "FidelitySettings",
    "GenerationSettings",
    "LiveTargetSettings",
    "PruneSettings",
    "RationaleChoice",
    "RationaleFirstSettings",
    "RationaleGenerationSettings",
    "RationaleSettings",
    "RationaleTaskSettings",
    "SampledTargetSettings",
    "SequenceSettings",
    "StudentOutputSettings",
    "TargetChoice",
    "Teacher",
    "TeacherContextSettings",
    "TextEndpointSettings",
    "TopKTargetSettings",
    "WeightedTeacherSettings",
    "check_key_transport",
    "check_scorers",
    "check_teacher_weights",
    "name_teacher",
]

REMAINING_SOURCES = "*"


class TextEndpointSettings(Settings):
    """A model behind an OpenAI-compatible server, which generates text."""

    endpoint: str = Field(
        pattern=r"^https?://[^\s@#]+$",
        examples=["http://host:8000/v1"],
        description="base URL of the server",
    )
    model: str = Field(
        default="", description="name of the model; empty uses the only one that is served"
    )
    api_key: Secret | None = Field(default=None, description="API key, as ${env:NAME}")
    license: str = Field(default="", description="SPDX id of the license of the model's outputs")
    concurrency: int = Field(default=8, ge=1, le=256, description="concurrent requests")
    tries: int = Field(default=6, ge=1, le=20, description="attempts per request, with the first")
    timeout: Duration = Field(default=300.0, description="read timeout of a request")
    max_wait: Duration = Field(default=120.0, description="maximum total wait between retries")


class EndpointTeacherSettings(TextEndpointSettings):
    """A model behind an OpenAI-compatible server, which returns log-probabilities of prompts."""

    tokenizer: Reference = Field(
        examples=["path/to/teacher"],
        description="tokenizer of the model: its checkpoint, or a folder with its tokenizer files",
    )
    top_logprobs: int = Field(
        default=20,
        ge=1,
        le=4096,
        description="top tokens requested per position; the server may return fewer",
    )
    price_per_million: float = Field(
        default=0.0, ge=0, description="price of a million prompt tokens, for logged costs"
    )


class WeightedTeacherSettings(Settings):
    """One of several teachers."""

    teacher: Reference | EndpointTeacherSettings = Field(
        examples=["path/to/teacher"], description="a checkpoint, or an endpoint"
    )
    weight: float = Field(default=1.0, gt=0, description="weight of the divergence to this teacher")
    source: str | None = Field(
        default=None,
        description="use this teacher only for records with this source; * for all others; null "
        "for every record",
    )


Teacher = str | TextEndpointSettings


def check_teacher_weights(shares: tuple[WeightedTeacherSettings, ...]) -> None:
    """Reject contradictory shares of several teachers.

    Raises:
        ValueError: Naming the contradiction.
    """
    if not shares:
        raise ValueError("set at least one teacher")
    sources = [share.source for share in shares]
    if any(source is None for source in sources) and any(sources):
        raise ValueError("either all teachers have a 'source' or none: by source or by weight")
    sources_set = [source for source in sources if source is not None]
    if len(set(sources_set)) != len(sources_set):
        raise ValueError("two teachers have the same 'source'; mix by weight instead")


def name_teacher(teacher: Teacher) -> str:
    """Return a teacher's reference, or address and model."""
    if isinstance(teacher, TextEndpointSettings):
        return f"{teacher.endpoint.rstrip('/')}#{teacher.model}"
    return teacher


class PruneSettings(Settings):
    """Derive the student from the teacher's layers, heads and channels."""

    max_parameters: float = Field(
        default=0.6, gt=0, le=1, description="maximum parameters, as a share of the teacher's"
    )
    prune: Literal["depth", "inner", "width", "both"] = Field(
        default="depth",
        description="sizes that shrink to fit max_parameters, unless set: depth: layers; inner: "
        "layers and intermediate_size; width: hidden_size and intermediate_size; both: all three",
    )
    layers: int | None = Field(
        default=None,
        ge=1,
        description="number of layers to keep; null as many as max_parameters allows",
    )
    hidden_size: int | None = Field(
        default=None, ge=1, description="hidden channels; null the teacher's, or what fits"
    )
    intermediate_size: int | None = Field(
        default=None, ge=1, description="feed-forward channels; null the teacher's, or what fits"
    )
    attention_heads: int | None = Field(
        default=None, ge=1, description="query heads per layer; null the teacher's"
    )
    kv_heads: int | None = Field(
        default=None, ge=1, description="key-value heads per layer; null the teacher's"
    )
    keep: tuple[int, ...] | None = Field(
        default=None, description="layers to keep, counted from 0; null selects them"
    )
    choose: Literal["influence", "kl"] = Field(
        default="influence",
        description="influence: layers with the largest change from input to output; kl: layers "
        "whose ablation costs most, in KL to the teacher (slow); both keep the first and the last",
    )
    rescale_norms: bool = Field(
        default=True,
        description="if hidden_size shrinks: scale each norm so that its output keeps its "
        "magnitude",
    )
    calibration_records: int = Field(
        default=16, ge=1, description="number of training records for importance scores, a sample"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> PruneSettings:
        if self.keep is not None:
            if self.layers is not None:
                raise ValueError("set either 'layers' or 'keep'")
            if list(self.keep) != sorted(set(self.keep)) or not self.keep or self.keep[0] < 0:
                raise ValueError("'keep' must be layer numbers from 0, ascending and distinct")
        return self

    @override
    def list_unused(self) -> dict[str, str]:
        unused = super().list_unused()
        if self.keep is not None:
            unused["choose"] = "keep names the layers"
        if not self.is_narrower:
            unused["rescale_norms"] = "set prune: width or both, or hidden_size"
        return unused

    @property
    def is_narrower(self) -> bool:
        """Whether the width may shrink, which requires a supported architecture."""
        sizes = (self.hidden_size, self.intermediate_size, self.attention_heads, self.kv_heads)
        return self.prune != "depth" or any(size is not None for size in sizes)

    def count_passes(self, layers: int) -> int:
        """Return the approximate number of passes over the calibration records.

        Args:
            layers: Number of the teacher's layers.
        """
        width = 0 if not self.is_narrower else 2 if self.rescale_norms else 1
        if self.keep is not None:
            return width
        return width + (layers if self.choose == "kl" else 1)


class TeacherContextSettings(Settings):
    """Context that only the teacher reads."""

    field: str | None = Field(
        default=None, description="field of a record with the context; null if 'text' is fixed"
    )
    text: str = Field(
        default="{context}\n\n",
        description="text before the last question; {context} is the record's field",
    )
    max_tokens: int = Field(
        default=2048, ge=2, description="maximum tokens of a record with context"
    )

    @model_validator(mode="after")
    def _says_something(self) -> TeacherContextSettings:
        if ("{context}" in self.text) != (self.field is not None):
            raise ValueError("'field' and {context} in 'text' require each other")
        if not self.text.strip():
            raise ValueError("'text' is empty: the teacher would have no context")
        return self


def check_key_transport(settings: TextEndpointSettings) -> None:
    """Reject sending an API key over an insecure connection.

    Raises:
        RecipeError: If there is a key, and the address is plain http on another machine.
    """
    if settings.api_key is not None and not is_key_safe(settings.endpoint):
        raise RecipeError(
            f"{settings.endpoint} is plain http to another machine, which would expose the key",
            code="distill.server-key",
            where="teacher.api_key",
            expected="https, or this machine",
            next="use https, or remove api_key",
        )


class GenerationSettings(Settings):
    """Generating model, and its sampling."""

    model: Reference | None = Field(
        default=None,
        description="a checkpoint, a .gguf file or an endpoint; null is the teacher",
    )
    backend: str = Field(default="auto", description="engine of the generating model")
    num_threads: int | None = Field(default=None, ge=1, description="threads; default all cores")
    temperature: float = Field(default=0.8, ge=0, description="sampling temperature; 0 is greedy")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="nucleus sampling: cumulative probability"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="maximum tokens of a completion")


class SequenceSettings(GenerationSettings):
    """Generate the answers with a model, and train on the best of several completions."""

    attempts: int = Field(
        default=4,
        ge=1,
        le=256,
        description="completions sampled per prompt; at temperature 0 one, as all would be equal",
    )
    keep: int = Field(default=1, ge=1, description="maximum number of completions kept")
    instruction: str = Field(
        default="",
        description="added to the last user message for generation, not for training",
    )
    scorers: tuple[Annotated[CompletionScorer, COMPLETION_SCORERS.choice()], ...] = Field(
        default_factory=lambda: (COMPLETION_SCORERS.build("likelihood"),),
        description="scorers applied in order; the last one's score ranks",
    )
    max_lost_share: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="maximum share of prompts without a completion; above it the job fails",
    )

    @property
    def num_completions(self) -> int:
        """Completions per prompt."""
        return self.attempts if self.temperature else 1

    @override
    def list_unused(self) -> dict[str, str]:
        names = () if self.temperature else ("attempts",)
        return {**super().list_unused(), **dict.fromkeys(names, "set temperature above 0")}

    @model_validator(mode="after")
    def _check_endpoint(self) -> SequenceSettings:
        if str(self.model).startswith(("http://", "https://")):
            check_scorers(self)
        return self


def check_scorers(settings: SequenceSettings) -> None:
    """Reject scorers that an endpoint, which generates the completions, cannot serve.

    Raises:
        ValueError: Naming the scorer.
    """
    names = [scorer.method_name() for scorer in settings.scorers if scorer.needs_scores]
    if names:
        raise ValueError(
            f"sequence.scorers '{names[0]}' requires log-probabilities of given text, which "
            "endpoints do not return: set scorers: [agreement], or attempts: 1 and scorers: []"
        )


class RationaleGenerationSettings(GenerationSettings):
    """Generate missing rationales with a model."""

    instruction: str = Field(
        default="The correct answer is:\n{answer}\n\nExplain step by step why. "
        "Do not add anything after the explanation.",
        description="added to the question; {answer} is the reference answer",
    )

    @model_validator(mode="after")
    def _names_the_answer(self) -> RationaleGenerationSettings:
        if "{answer}" not in self.instruction:
            raise ValueError("'instruction' must contain {answer}, the place of the answer")
        return self


def _select_by(key: str, names: Mapping[str, str]) -> Discriminator:
    """Return the choice among groups of settings by one of them.

    Args:
        key: Setting that selects the group; if left out, the first is selected.
        names: Class name of the group by value. Messages find a group's settings by it.
    """
    default = next(iter(names))

    def read_tag(value: Any) -> Any:
        selected = (
            value.get(key, default) if isinstance(value, Mapping) else getattr(value, key, None)
        )
        return names.get(selected) if isinstance(selected, str) else None

    return Discriminator(
        read_tag,
        custom_error_type="group",
        custom_error_message=f"settings whose '{key}' is one of: {', '.join(names)}",
    )


class _RationaleSource(Settings):
    field: str = Field(default="rationale", description="field of a record with its rationale")
    generate: RationaleGenerationSettings | None = Field(
        default=None, description="generate missing rationales; null does not"
    )


class RationaleTaskSettings(_RationaleSource):
    """Two conversations per record: one to answer and one to explain."""

    form: Literal["tasks"] = Field(
        default="tasks", description="tasks: answer and rationale are learned apart"
    )
    weight: float = Field(default=1.0, gt=0, description="weight of rationales")
    answer_prefix: str = Field(default="", description="prefix of the question in the answer task")
    rationale_prefix: str = Field(
        default="Explain how to answer this, step by step.\n\n",
        description="prefix of the question in the rationale task",
    )

    @model_validator(mode="after")
    def _tasks_differ(self) -> RationaleTaskSettings:
        if self.answer_prefix == self.rationale_prefix:
            raise ValueError("'answer_prefix' and 'rationale_prefix' must differ")
        return self


class RationaleFirstSettings(_RationaleSource):
    """One completion per record: the rationale, then the answer."""

    form: Literal["before_answer"] = Field(
        description="before_answer: the rationale is generated before the answer"
    )
    between: str = Field(
        default="\n\nThe answer is: ", description="text between rationale and answer"
    )


RationaleSettings = RationaleTaskSettings | RationaleFirstSettings
RationaleChoice = Annotated[
    Annotated[RationaleTaskSettings, Tag("RationaleTaskSettings")]
    | Annotated[RationaleFirstSettings, Tag("RationaleFirstSettings")],
    _select_by(
        "form", {"tasks": "RationaleTaskSettings", "before_answer": "RationaleFirstSettings"}
    ),
]

CacheMode = Literal["top_k", "sampled", "dense", "own"]


class _CachedTargetSettings(Settings):
    logprob_dtype: Literal["float16", "float32"] = Field(
        default="float16", description="storage type of cached log-probabilities"
    )
    cache: str | None = Field(
        default=None,
        description="folder of a logit cache shared by several jobs; null stores it in the job",
    )


class TopKTargetSettings(_CachedTargetSettings):
    """The teacher's most likely tokens, and the mass of the rest."""

    mode: Literal["top_k"] = Field(
        default="top_k", description="top_k: the most likely tokens and the mass of the rest"
    )
    k: int = Field(default=64, ge=1, le=4096, description="tokens per position")


class SampledTargetSettings(_CachedTargetSettings):
    """Tokens sampled from the teacher: an unbiased estimate of its distribution."""

    mode: Literal["sampled"] = Field(
        description="sampled: tokens sampled from the teacher, unbiased"
    )
    samples: int = Field(
        default=12, ge=1, le=4096, description="distinct tokens sampled per position"
    )
    sampling_temperature: float = Field(
        default=1.0,
        gt=0,
        description="samples from the teacher's probabilities to the power of 1 over this; "
        "weights correct for it",
    )


class DenseTargetSettings(_CachedTargetSettings):
    """The teacher's whole distribution, on disk."""

    mode: Literal["dense"] = Field(description="dense: the full vocabulary, on disk")


class LiveTargetSettings(Settings):
    """The teacher runs in every step, and nothing is stored."""

    mode: Literal["live"] = Field(
        description="live: nothing is stored, the teacher runs in every step"
    )


CachedTargetSettings = TopKTargetSettings | SampledTargetSettings | DenseTargetSettings
_CACHED_TARGET_NAMES = {
    "top_k": "TopKTargetSettings",
    "sampled": "SampledTargetSettings",
    "dense": "DenseTargetSettings",
}
CachedTargetChoice = Annotated[
    Annotated[TopKTargetSettings, Tag("TopKTargetSettings")]
    | Annotated[SampledTargetSettings, Tag("SampledTargetSettings")]
    | Annotated[DenseTargetSettings, Tag("DenseTargetSettings")],
    _select_by("mode", _CACHED_TARGET_NAMES),
]
TargetChoice = Annotated[
    Annotated[TopKTargetSettings, Tag("TopKTargetSettings")]
    | Annotated[SampledTargetSettings, Tag("SampledTargetSettings")]
    | Annotated[DenseTargetSettings, Tag("DenseTargetSettings")]
    | Annotated[LiveTargetSettings, Tag("LiveTargetSettings")],
    _select_by("mode", {**_CACHED_TARGET_NAMES, "live": "LiveTargetSettings"}),
]


class FidelitySettings(Settings):
    """Evaluation of the distance to the teacher, with a baseline."""

    records: int = Field(
        default=32,
        ge=0,
        description="number of held-out records measured, a sample; 0 measures nothing",
    )
    baseline: bool = Field(
        default=True,
        description="train a baseline on the records' labels only, with the same initial weights, "
        "records, steps and seed, and measure it next to the student",
    )
    keep_baseline: bool = Field(
        default=False, description="keep the baseline's checkpoint in output/baseline"
    )
    answers: int = Field(
        default=16,
        ge=0,
        description="number of those records answered by teacher, student and baseline; 0 skips "
        "measurements on generated text",
    )
    max_new_tokens: int = Field(
        default=48, ge=1, le=4096, description="maximum tokens of a generated answer"
    )
    speed: bool = Field(
        default=True, description="measure latency and peak memory of teacher and student"
    )

    @override
    def list_unused(self) -> dict[str, str]:
        unused = super().list_unused()
        if not (self.records and self.baseline):
            unused["keep_baseline"] = "set baseline, and records above 0"
        if self.answers and not self.records:
            unused["answers"] = "set records above 0"
        if not (self.answers and self.records):
            unused["max_new_tokens"] = "set records and answers above 0"
        return unused


class StudentOutputSettings(Settings):
    """Storage format of checkpoints."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="storage type of the weights; auto: float16 of a student trained with "
        "train.lora, whose updates bfloat16 would round off, else bfloat16",
    )
    shard_size: Size = Field(
        default=5_000_000_000, gt=0, description="maximum size of one weights file in bytes"
    )
