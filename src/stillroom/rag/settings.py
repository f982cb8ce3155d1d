"""Settings of an answer (k, reranker, checker): declared once for Python, command line and HTTP.

The options of the command line, the fields of a request and the form of the console are derived
from ``AnswerSettings``: a new setting is a field here, and the step that reads it. A field with
``ClientOption`` among its metadata may be set by a client; the others only in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from stillroom.errors import DataError, Problem, RecipeError

if TYPE_CHECKING:
    from stillroom.rag.generation.semantic_cache import SemanticCache
    from stillroom.rag.interfaces import (
        AnswerStrategy,
        GroundednessChecker,
        PassageReranker,
        QueryTransform,
        Retriever,
    )
else:  # the registries and the semantic cache check these, when they are used
    AnswerStrategy = GroundednessChecker = PassageReranker = QueryTransform = Retriever = Any
    SemanticCache = Any

__all__ = ["AnswerSettings", "ClientOption", "UnsupportedPolicy", "read_answer_settings"]


UnsupportedPolicy = Literal["mark", "drop", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOption:
    """What the command line and HTTP add to a setting.

    Args:
        name: Name for clients; by default the setting's.
        description: Help text; by default the setting's.
        request_description: Description of a request's field; by default the help text.
        is_method: Whether clients give a method, or a pipeline, as text.
        maximum: Largest value that a request may give.
        pattern: Regular expression of a request's text.
        max_length: Maximum number of characters of a request's text.
        in_requests: Whether requests have the field, or only the command line.
    """

    name: str = ""
    description: str = ""
    request_description: str = ""
    is_method: bool = False
    maximum: int | None = None
    pattern: str | None = None
    max_length: int | None = None
    in_requests: bool = True


class AnswerSettings(BaseModel):
    """Settings of retrieval, prompt and support checks for one answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    k: Annotated[int, ClientOption(maximum=50)] = Field(
        3,
        ge=1,
        title="Passages shown to the model",
        description="Number of passages shown to the model; quotes are chosen from at least five.",
    )
    retriever: Annotated[
        str | Retriever | None,
        ClientOption(
            name="pipeline",
            description="Retrieval pipeline: [TRANSFORM>]RETRIEVER[+RERANKER]; default convex.",
            request_description="Retrieval pipeline [TRANSFORM>]RETRIEVER[+RERANKER] of methods "
            "without settings.",
            is_method=True,
            pattern=r"^(?:[a-z_]+>)?[a-z_]+(?:\+[a-z_]+)?$",
            max_length=80,
        ),
    ] = Field(
        None,
        description="Retriever; None uses convex.",
    )
    reranker: str | PassageReranker | None = Field(None, description="Reranker of the hits.")
    transform: str | QueryTransform | None = Field(
        None,
        description="Query transform; last_turn rewrites the question to be independent of the "
        "conversation first.",
    )
    answering: Annotated[
        str | AnswerStrategy,
        ClientOption(
            request_description="Answering method, without settings.",
            is_method=True,
            pattern=r"^[a-z_]+$",
            max_length=40,
        ),
    ] = Field(
        "quote",
        description="Answering method: METHOD[:KEY=VALUE,...]; see 'stillroom list methods "
        "rag.answer_strategies'.",
    )
    checker: Annotated[
        str | GroundednessChecker, ClientOption(is_method=True, in_requests=False)
    ] = Field("overlap", description="Support checker of sentences: METHOD[:KEY=VALUE,...].")
    unsupported: Annotated[UnsupportedPolicy, ClientOption()] = Field(
        "mark",
        title="Unsupported sentences",
        description="Treatment of sentences that no passage supports.",
    )
    budget: int = Field(
        0,
        ge=0,
        description="Maximum tokens of the prompt; 0 uses what the model's context leaves.",
    )
    cite: bool = Field(
        True,
        description="Add citations that the model left out, where a passage supports the sentence.",
    )
    neighbours: Annotated[int, ClientOption(maximum=10)] = Field(
        0, ge=0, description="Number of passages shown before and after each hit."
    )
    per_document: Annotated[int, ClientOption(maximum=50)] = Field(
        0, ge=0, description="Maximum number of hits from one document; 0 for no limit."
    )
    shorten: Annotated[bool, ClientOption()] = Field(
        False, description="Truncate the last passage at the end of a sentence if it does not fit."
    )
    best_at_ends: Annotated[bool, ClientOption()] = Field(
        False, description="Place the best passages first and last in the prompt."
    )
    cache: SemanticCache | None = Field(None, description="Semantic cache of answers.")
    access: str = Field(
        "",
        description="Scope of access that only the caller knows; part of a cache's key, with the "
        "index's scope (tenant, principals and filters).",
    )

    @classmethod
    def client_options(cls) -> dict[str, tuple[FieldInfo, ClientOption]]:
        """Return the settings that clients may give, by the name that they use."""
        return {
            option.name or name: (field, option)
            for name, field in cls.model_fields.items()
            for option in field.metadata
            if isinstance(option, ClientOption)
        }


def read_answer_settings(settings: dict[str, Any]) -> AnswerSettings:
    """Return validated settings.

    Raises:
        TypeError: If a name is unknown, as for any keyword argument.
        DataError: If k is below 1.
        RecipeError: If another value is of the wrong type or out of bounds.
    """
    if unknown := settings.keys() - AnswerSettings.model_fields.keys():
        raise TypeError(f"{min(unknown)!r} is not a setting of an answer")
    try:
        return AnswerSettings(**settings)
    except ValidationError as error:
        raise _translate_error(error) from error


def _translate_error(error: ValidationError) -> DataError | RecipeError:
    problems = []
    for detail in error.errors(include_url=False):
        name, value = str(detail["loc"][0]), detail["input"]
        if name == "k" and detail["type"] == "greater_than_equal":
            return DataError(
                f"k is {value}",
                code="rag.bad-depth",
                expected="1 or more hits",
                next="leave k out for 3",
            )
        problems.append(
            Problem(
                f"{name}: {value!r:.60} is refused",
                code="recipe.value",
                where="settings of the answer",
                expected=detail["msg"].removeprefix("Input should be "),
                next=f"leave {name} out for {AnswerSettings.model_fields[name].default!r}",
            )
        )
    return RecipeError(problems)
