"""How a recipe names a teacher: a checkpoint, a server behind an endpoint, or several of both."""

from __future__ import annotations

from pydantic import Field

from stillroom.recipes import Duration, Reference, Secret, Settings

__all__ = [
    "REST",
    "ServerTeacher",
    "TeacherChoice",
    "TeacherShare",
    "check_shares",
    "teacher_reference",
]

REST = "*"


class ServerTeacher(Settings):
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


class TeacherShare(Settings):
    """One of several teachers."""

    teacher: Reference | ServerTeacher = Field(
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


TeacherChoice = Reference | ServerTeacher | tuple[TeacherShare, ...]


def check_shares(shares: tuple[TeacherShare, ...]) -> None:
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


def teacher_reference(choice: object) -> str:
    """Return how a teacher is called: the reference, or address and model; of several the first."""
    if isinstance(choice, ServerTeacher):
        return f"{choice.endpoint.rstrip('/')}#{choice.model}"
    if isinstance(choice, tuple):
        return teacher_reference(choice[0].teacher)
    return str(choice)
