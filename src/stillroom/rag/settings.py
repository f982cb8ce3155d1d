"""Settings of an answer, shared by Python, the command line and HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, cast

from stillroom.rag.interfaces import ANSWER_STRATEGIES, CHECKERS, UnsupportedPolicy

if TYPE_CHECKING:
    from stillroom.rag.generation.semantic_cache import SemanticCache
    from stillroom.rag.interfaces import (
        AnswerStrategy,
        GroundednessChecker,
        PassageReranker,
        QueryTransform,
        Retriever,
    )

__all__ = ["AnswerOptionTexts", "AnswerOptions", "AnswerSettings", "parse_answer_settings"]


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """Settings of retrieval, prompt and support checks for one answer."""

    k: int = 3
    """Number of passages in the prompt, without repeats."""
    retriever: str | Retriever | None = None
    """None uses the retriever that ``rag tune`` stored in the index, or ``convex``."""
    reranker: str | PassageReranker | None = None
    transform: str | QueryTransform | None = None
    """``last_turn`` rewrites the question to be independent of the conversation first."""
    answering: str | AnswerStrategy = "direct"
    """A method of ``stillroom.rag.answer_strategies``."""
    checker: str | GroundednessChecker = "overlap"
    """A method of ``stillroom.rag.checkers``: decides when a passage supports a sentence."""
    unsupported: UnsupportedPolicy = "mark"
    """``mark`` marks sentences without support, ``drop`` leaves them out, ``refuse`` gives no
    answer if there is one."""
    budget: int = 0
    """Maximum tokens of the prompt; 0 uses what the model's context leaves."""
    cite: bool = True
    """Add citations that the model left out, where a passage supports the sentence."""
    neighbours: int = 0
    """Number of passages before and after each hit; overlapping ones are merged into one hit."""
    per_document: int = 0
    """Maximum hits of one document; 0 for no limit."""
    shorten: bool = False
    """Shorten the last passage that does not fit to the sentences that do."""
    best_at_ends: bool = False
    """Put the best passages first and last, the worst in the middle."""
    parent_share: float = 0.0
    """Show the parent of passages (cut by ``parent_child`` or ``sentence_window``) where more than
    this share of them was found; 0 always shows it."""
    cache: SemanticCache | None = None
    """Semantic cache of answers, none by default."""
    access: str = ""
    """Scope of access that only the caller knows; part of a cache's key, with the index's scope
    (tenant, principals and filters)."""


class AnswerOptions(TypedDict, total=False):
    """The fields of ``AnswerSettings``, all optional."""

    k: int
    retriever: str | Retriever | None
    reranker: str | PassageReranker | None
    transform: str | QueryTransform | None
    answering: str | AnswerStrategy
    checker: str | GroundednessChecker
    unsupported: UnsupportedPolicy
    budget: int
    cite: bool
    neighbours: int
    per_document: int
    shorten: bool
    best_at_ends: bool
    parent_share: float
    cache: SemanticCache | None
    access: str


class AnswerOptionTexts(TypedDict, total=False):
    """Settings of a command line or a request, with methods as text."""

    k: int
    way: str
    answering: str
    checker: str
    unsupported: UnsupportedPolicy
    budget: int
    neighbours: int
    per_document: int
    shorten: bool
    best_at_ends: bool
    parent_share: float
    cache: SemanticCache | None


def parse_answer_settings(texts: AnswerOptionTexts) -> AnswerOptions:
    """Return settings with methods built from their texts; what is empty keeps its default.

    Args:
        texts: ``way`` is ``[TRANSFORM>]RETRIEVER[+RERANKER]``, ``answering`` and ``checker`` are
            ``METHOD[:KEY=VALUE,...]``.

    Raises:
        RecipeError: If a method or setting is unknown, or a value is out of bounds.
    """
    from stillroom.rag.retrieval.pipeline import parse_method, parse_rag_pipeline

    settings: dict[str, Any] = {name: value for name, value in texts.items() if value is not None}
    if pipeline_text := settings.pop("way", ""):
        pipeline = parse_rag_pipeline(pipeline_text)
        settings["retriever"], settings["reranker"] = pipeline.retriever, pipeline.reranker
        settings["transform"] = pipeline.transform
        if pipeline.answering is not None:
            settings["answering"], settings["unsupported"] = (
                pipeline.answering,
                pipeline.unsupported,
            )
            return cast("AnswerOptions", _with_checker(settings))
    if text := settings.pop("answering", ""):
        settings["answering"] = parse_method(ANSWER_STRATEGIES, text)
    return cast("AnswerOptions", _with_checker(settings))


def _with_checker(settings: dict[str, Any]) -> dict[str, Any]:
    from stillroom.rag.retrieval.pipeline import parse_method

    if text := settings.pop("checker", ""):
        settings["checker"] = parse_method(CHECKERS, text)
    return settings
