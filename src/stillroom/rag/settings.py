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
    """How passages are found, judged and shown, and what becomes of what they do not support."""

    k: int = 3
    """How many passages are shown, repeats left out."""
    retriever: str | Retriever | None = None
    """None takes what ``rag tune`` wrote into the index, else ``convex``."""
    reranker: str | PassageReranker | None = None
    transform: str | QueryTransform | None = None
    """``last_turn`` makes the question stand alone before anything else is done with it."""
    answering: str | AnswerStrategy = "direct"
    """A method of ``stillroom.rag.answer_strategies``: what is searched and judged before reading.
    """
    checker: str | GroundednessChecker = "overlap"
    """A method of ``stillroom.rag.checkers``: when a passage supports a sentence."""
    unsupported: UnsupportedPolicy = "mark"
    """``mark`` says of each sentence whether it is supported; ``drop`` leaves out those that are
    not; ``refuse`` gives no answer if there is one."""
    budget: int = 0
    """Most tokens of the prompt; 0 takes what the model's context leaves."""
    cite: bool = True
    """Add citations that the model left out, where a passage supports the sentence."""
    neighbours: int = 0
    """How many passages before and after each hit are shown with it; what overlaps is one hit."""
    per_document: int = 0
    """Most hits of one document; 0 for no cap."""
    shorten: bool = False
    """Show of the last passage that does not fit the sentences that do."""
    best_at_ends: bool = False
    """Show the best passages first and last, the worst in the middle."""
    parent_share: float = 0.0
    """Show the parent of passages (cut by ``parent_child`` or ``sentence_window``) where
    more than this share of them was found; 0 shows it always."""
    cache: SemanticCache | None = None
    """Where answers are kept and looked for; none by default."""
    access: str = ""
    """What else an answer depends on, where a caller knows more than the index of who asks; part of
    a cache's key beside the index's own scope (tenant, principals and filters)."""


class AnswerOptions(TypedDict, total=False):
    """The fields of ``AnswerSettings``, each of which may be left out."""

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
    """Settings as a command line or a request gives them: methods as lines of text."""

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
    """Return settings whose methods are built; what is left out or empty keeps its default.

    Args:
        texts: ``way`` is ``[TRANSFORM>]RETRIEVER[+RERANKER]``, ``answering`` and ``checker`` are
            ``METHOD[:KEY=VALUE,...]``.

    Raises:
        RecipeError: If a method or setting is unknown, or a value is out of bounds.
    """
    from stillroom.rag.retrieval.pipeline import parse_method, parse_rag_pipeline

    given: dict[str, Any] = {name: value for name, value in texts.items() if value is not None}
    if way := given.pop("way", ""):
        chosen = parse_rag_pipeline(way)
        given["retriever"], given["reranker"] = chosen.retriever, chosen.reranker
        given["transform"] = chosen.transform
        if chosen.answering is not None:
            given["answering"], given["unsupported"] = chosen.answering, chosen.unsupported
            return cast("AnswerOptions", _with_checker(given))
    if text := given.pop("answering", ""):
        given["answering"] = parse_method(ANSWER_STRATEGIES, text)
    return cast("AnswerOptions", _with_checker(given))


def _with_checker(given: dict[str, Any]) -> dict[str, Any]:
    from stillroom.rag.retrieval.pipeline import parse_method

    if text := given.pop("checker", ""):
        given["checker"] = parse_method(CHECKERS, text)
    return given
