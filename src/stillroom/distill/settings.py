"""Settings of a recipe's sections: teachers, pruning, generated text, rationales, context."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.distill.interfaces import COMPLETION_SCORERS, CompletionScorer
from stillroom.errors import RecipeError
from stillroom.models.endpoints.transport import is_key_safe
from stillroom.recipes import Duration, Reference, Secret, Settings

__all__ = [
    "REMAINING_SOURCES",
    "CacheMode",
    "EndpointTeacherSettings",
    "GenerationSettings",
    "LayerCriterion",
    "PruneSettings",
    "RationaleGenerationSettings",
    "RationaleSettings",
    "SequenceSettings",
    "TargetMode",
    "TeacherChoice",
    "TeacherContextSettings",
    "WeightedTeacherSettings",
    "check_key_transport",
    "check_teacher_weights",
    "name_teacher",
]


REMAINING_SOURCES = "*"


class EndpointTeacherSettings(Settings):
    """A model behind an OpenAI-compatible server.

    With its tokenizer it is asked for log-probabilities of prompts; without one it only writes.
    """

    endpoint: str = Field(
        pattern=r"^https?://[^\s@#]+$", description="the server's address, as http://host:8000/v1"
    )
    model: str = Field(
        default="", description="the model's name there; empty takes the only one that is served"
    )
    tokenizer: Reference | None = Field(
        default=None,
        description="the model's tokenizer: its checkpoint, or a folder with its tokenizer files; "
        "null where the server only writes (sequence, rationale.write) and tells no "
        "log-probabilities",
    )
    top_logprobs: int = Field(
        default=20,
        ge=1,
        le=4096,
        description="tokens a position that are asked for; the server may grant fewer",
    )
    api_key: Secret | None = Field(default=None, description="the server's key, as ${env:NAME}")
    license: str = Field(
        default="", description="SPDX id of the license that the model's words come under"
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="requests at once")
    tries: int = Field(default=6, ge=1, le=20, description="of one request, the first included")
    timeout: Duration = Field(default=300.0, description="longest wait for an answer")
    max_wait: Duration = Field(default=120.0, description="longest wait of one request in retries")
    price_per_million: float = Field(
        default=0.0, ge=0, description="price of a million prompt tokens, for the cost that is told"
    )


class WeightedTeacherSettings(Settings):
    """One of several teachers."""

    teacher: Reference | EndpointTeacherSettings = Field(
        examples=["path/to/teacher"], description="a checkpoint, or a server"
    )
    weight: float = Field(
        default=1.0, gt=0, description="what the divergence to this teacher is multiplied by"
    )
    source: str | None = Field(
        default=None,
        description="teach only records whose source is this; * those of no other teacher; null "
        "teaches all",
    )


TeacherChoice = Reference | EndpointTeacherSettings | tuple[WeightedTeacherSettings, ...]


def check_teacher_weights(shares: tuple[WeightedTeacherSettings, ...]) -> None:
    """Refuse several teachers whose shares contradict each other.

    Raises:
        ValueError: Naming what does.
    """
    if not shares:
        raise ValueError("name at least one teacher")
    sources = [share.source for share in shares]
    if any(source is None for source in sources) and any(sources):
        raise ValueError("either every teacher has a 'source' or none: by source or by weight")
    named = [source for source in sources if source is not None]
    if len(set(named)) != len(named):
        raise ValueError("a 'source' is given to two teachers; mix by weight instead")


def name_teacher(choice: object) -> str:
    """Return how a teacher is called: the reference, or address and model; of several the first."""
    if isinstance(choice, EndpointTeacherSettings):
        return f"{choice.endpoint.rstrip('/')}#{choice.model}"
    if isinstance(choice, tuple):
        return name_teacher(choice[0].teacher)
    return str(choice)


LayerCriterion = Literal["influence", "even", "loss", "kl", "contiguous"]


class PruneSettings(Settings):
    """Make the student from the teacher's own layers, heads and channels."""

    max_parameters: float = Field(
        default=0.6, gt=0, le=1, description="most parameters, as a share of the teacher's"
    )
    prune: Literal["depth", "inner", "width", "both"] = Field(
        default="depth",
        description="what shrinks to fit max_parameters, of the sizes that are not given: depth: "
        "layers; inner: layers and intermediate_size; width: hidden_size and intermediate_size; "
        "both: all three",
    )
    layers: int | None = Field(
        default=None,
        ge=1,
        description="how many layers to keep; null as many as max_parameters allows",
    )
    hidden_size: int | None = Field(
        default=None, ge=1, description="channels between layers; null the teacher's, or what fits"
    )
    intermediate_size: int | None = Field(
        default=None, ge=1, description="feed-forward channels; null the teacher's, or what fits"
    )
    attention_heads: int | None = Field(
        default=None, ge=1, description="query heads of a layer; null the teacher's"
    )
    kv_heads: int | None = Field(
        default=None, ge=1, description="key-value heads of a layer; null the teacher's"
    )
    keep: tuple[int, ...] | None = Field(
        default=None, description="exactly these layers, counted from 0; null chooses"
    )
    choose: LayerCriterion = Field(
        default="influence",
        description="influence: the layers that turn their input most; loss, kl: those whose "
        "absence costs most, in loss or in KL to the teacher; contiguous: all but the run whose "
        "absence turns the state least; even: evenly spaced; all keep the first and the last",
    )
    iterative: bool = Field(
        default=False,
        description="with loss or kl: measure again after each layer dropped (slow, often better)",
    )
    rescale_norms: bool = Field(
        default=True,
        description="where hidden_size shrinks: scale each norm so that what is kept leaves it as "
        "large as before",
    )
    calibration_records: int = Field(
        default=16, ge=1, description="training records that layers and channels are measured on"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> PruneSettings:
        if self.keep is not None:
            if self.layers is not None:
                raise ValueError("give either 'layers' or 'keep'")
            if list(self.keep) != sorted(set(self.keep)) or not self.keep or self.keep[0] < 0:
                raise ValueError("'keep' wants layer numbers from 0, rising, each once")
        if self.iterative and self.choose not in {"loss", "kl"}:
            raise ValueError("'iterative' goes with choose 'loss' or 'kl'")
        return self

    @property
    def is_narrower(self) -> bool:
        """Whether the width may shrink, so that it has to be understood."""
        sizes = (self.hidden_size, self.intermediate_size, self.attention_heads, self.kv_heads)
        return self.prune != "depth" or any(size is not None for size in sizes)

    def count_passes(self, layers: int) -> int:
        """Return about how often the teacher reads the calibration records.

        Args:
            layers: The teacher's.
        """
        width = 0 if not self.is_narrower else 2 if self.rescale_norms else 1
        if self.keep is not None or self.choose == "even":
            return width
        if self.choose not in {"loss", "kl"}:
            return width + 1
        if not self.iterative:
            return width + layers
        kept = min(self.layers or round(layers * self.max_parameters), layers)
        return width + sum(range(kept + 1, layers + 1))


class TeacherContextSettings(Settings):
    """What the teacher reads that the student does not."""

    field: str | None = Field(
        default=None, description="the record's field that holds it; null where 'text' is enough"
    )
    text: str = Field(
        default="{context}\n\n",
        description="put before the last question; {context} is the record's field",
    )
    max_tokens: int = Field(
        default=2048, ge=2, description="most tokens that the teacher reads of a record"
    )

    @model_validator(mode="after")
    def _says_something(self) -> TeacherContextSettings:
        if ("{context}" in self.text) != (self.field is not None):
            raise ValueError("'field' and {context} within 'text' belong together")
        if not self.text.strip():
            raise ValueError("'text' is empty: the teacher would read what the student reads")
        return self


def check_key_transport(settings: EndpointTeacherSettings) -> None:
    """Refuse to send a key where others could read it.

    Raises:
        RecipeError: If there is a key, and the address is plain http on another machine.
    """
    if settings.api_key is not None and not is_key_safe(settings.endpoint):
        raise RecipeError(
            f"{settings.endpoint} is plain http to another machine: a key would be read on the way",
            code="distill.server-key",
            where="teacher.api_key",
            expected="https, or this machine",
            next="use https, or leave api_key out",
        )


class GenerationSettings(Settings):
    """The model that writes, and how its text is drawn."""

    model: Reference | None = Field(
        default=None,
        description="who writes: a checkpoint, a .gguf file or an endpoint; null is the teacher",
    )
    backend: str = Field(default="auto", description="engine that runs the writer")
    num_threads: int | None = Field(default=None, ge=1, description="threads; default all cores")
    temperature: float = Field(default=0.8, ge=0, description="of the draws; 0 is greedy")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="draw from the likeliest tokens of so much mass"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="most tokens of a completion")


class SequenceSettings(GenerationSettings):
    """Let the teacher write the answers that are learned from, and keep the best of several."""

    attempts: int = Field(default=4, ge=1, le=256, description="completions drawn for a prompt")
    keep: int = Field(default=1, ge=1, description="how many of them become records, at most")
    instruction: str = Field(
        default="",
        description="added to the last user message when the writer is asked, never learned",
    )
    verifiers: tuple[Annotated[CompletionScorer, COMPLETION_SCORERS.choice()], ...] = Field(
        default_factory=lambda: (COMPLETION_SCORERS.build("likelihood"),),
        description="what a completion must pass, in order; the last one's score ranks",
    )
    most_lost: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="the job fails where a larger share of the prompts keeps no completion",
    )

    @model_validator(mode="after")
    def _attempts_differ(self) -> SequenceSettings:
        if self.attempts > 1 and self.temperature == 0:
            raise ValueError("temperature 0 writes the same completion every time; set attempts: 1")
        return self


class RationaleGenerationSettings(GenerationSettings):
    """Ask a model for the rationales that are missing."""

    instruction: str = Field(
        default="The correct answer is:\n{answer}\n\nExplain step by step why. "
        "Do not add anything after the explanation.",
        description="added to the question; {answer} is the record's own answer",
    )

    @model_validator(mode="after")
    def _names_the_answer(self) -> RationaleGenerationSettings:
        if "{answer}" not in self.instruction:
            raise ValueError("'instruction' wants {answer} in it, where the answer is put")
        return self


class RationaleSettings(Settings):
    """Learn rationales beside the answers."""

    field: str = Field(default="rationale", description="the record's field that holds it")
    form: Literal["tasks", "before_answer"] = Field(
        default="tasks",
        description="tasks: two conversations a record, one to answer and one to explain; "
        "before_answer: one completion with the rationale and then the answer",
    )
    weight: float = Field(default=1.0, ge=0, description="of the rationales' loss; form tasks")
    answer_prefix: str = Field(
        default="", description="put before the question where it is answered; form tasks"
    )
    rationale_prefix: str = Field(
        default="Explain how to answer this, step by step.\n\n",
        description="put before the question where it is explained; form tasks",
    )
    between: str = Field(
        default="\n\nThe answer is: ",
        description="between rationale and answer; form before_answer",
    )
    write: RationaleGenerationSettings | None = Field(
        default=None, description="who writes rationales that are missing; null nobody"
    )

    @model_validator(mode="after")
    def _tasks_differ(self) -> RationaleSettings:
        if self.form == "tasks" and self.answer_prefix == self.rationale_prefix:
            raise ValueError("'answer_prefix' and 'rationale_prefix' must differ")
        if self.form == "before_answer" and self.weight != 1:
            raise ValueError("'weight' is for form tasks; before_answer has one completion")
        return self


CacheMode = Literal["top_k", "sampled", "dense", "own"]


TargetMode = Literal["top_k", "sampled", "dense", "live"]
