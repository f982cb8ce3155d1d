"""Retrieval pipeline: its one-line syntax, and retrieval with parent expansion.

``[TRANSFORM>]RETRIEVER[+RERANKER]``, each a method's name, perhaps with settings after a colon:
``convex:alpha=0.3+proximity``. Where questions are answered, ``=>ANSWERING[!UNSUPPORTED]`` may
follow: ``convex=>corrective:max_rounds=1!drop``.

Source of ``share``: auto-merging, as Haystack and LlamaIndex have it (a parent replaces its
passages once more than a share of them was found). Here one level, and the best score is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from pydantic import ValidationError

from stillroom.errors import Problem, RecipeError
from stillroom.rag.interfaces import (
    ANSWER_STRATEGIES,
    QUERY_TRANSFORMS,
    RERANKERS,
    RETRIEVERS,
    AnswerStrategy,
    PassageReranker,
    QueryTransform,
    Retriever,
    UnsupportedPolicy,
)
from stillroom.rag.retrieval.ranking import merge_hit_spans
from stillroom.records import Hit, Passage
from stillroom.registry import Method, Registry
from stillroom.registry.catalog import suggest
from stillroom.registry.method import MethodField

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.interfaces import Query

__all__ = [
    "RetrievalPipeline",
    "merge_into_parents",
    "parse_method",
    "parse_pipeline",
    "parse_rag_pipeline",
    "retrieve_with_parents",
]


MethodT = TypeVar("MethodT", bound=Method)


@dataclass(frozen=True, slots=True)
class RetrievalPipeline:
    """A retriever, with the transform before it and the reranker after it, if any.

    ``answering`` and ``unsupported`` say how a question is answered from what is found.
    """

    name: str
    retriever: Retriever
    reranker: PassageReranker | None = None
    transform: QueryTransform | None = None
    answering: AnswerStrategy | None = None
    unsupported: UnsupportedPolicy = "mark"


def parse_rag_pipeline(text: str) -> RetrievalPipeline:
    """Return the way that a line describes, with how questions are answered if it says so.

    Raises:
        RecipeError: If a method or setting is unknown; the nearest is suggested.
    """
    found, arrow, answering = text.partition("=>")
    way = replace(parse_pipeline(found), name=text.strip())
    if not arrow:
        return way
    method, mark, unsupported = answering.partition("!")
    if mark and unsupported.strip() not in get_args(UnsupportedPolicy):
        raise RecipeError(
            f"{unsupported.strip()!r} is not what is done with unsupported sentences",
            code="recipe.value",
            where=text,
            expected=f"one of: {', '.join(get_args(UnsupportedPolicy))}",
            next=f"write {found}=>{method}!drop",
        )
    return replace(
        way,
        answering=parse_method(ANSWER_STRATEGIES, method),
        unsupported=cast("UnsupportedPolicy", unsupported.strip() or "mark"),
    )


def parse_pipeline(text: str) -> RetrievalPipeline:
    """Return the way that a line describes.

    Raises:
        RecipeError: If a method or setting is unknown; the nearest is suggested.
    """
    head, arrow, rest = text.rpartition(">")
    body, plus, last = (rest if arrow else text).partition("+")
    return RetrievalPipeline(
        text.strip(),
        parse_method(RETRIEVERS, body),
        parse_method(RERANKERS, last) if plus else None,
        parse_method(QUERY_TRANSFORMS, head) if arrow else None,
    )


def parse_method(seam: Registry[MethodT], text: str) -> MethodT:
    """Return the method of a seam that ``NAME[:KEY=VALUE,...]`` describes.

    A setting that is itself a method takes its settings after another colon, with semicolons
    between them: ``corrective:grader=yes_no:words=80;upper=0.7``.

    Raises:
        RecipeError: If the method or a setting is unknown, or a value is out of bounds.
    """
    name, _, settings = text.strip().partition(":")
    chosen: dict[str, Any] = {"name": name.strip()}
    for part in filter(None, (part.strip() for part in settings.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise RecipeError(
                f"{part!r} is no setting",
                code="recipe.override",
                where=text,
                expected="KEY=VALUE",
                next=f"write {name}:{key}=VALUE",
            )
        chosen[key.strip()] = value.strip()
    try:
        return seam.build(_build_nested(seam, chosen))
    except ValidationError as error:
        raise _translate_errors(seam.get(chosen["name"]), error, text) from error


def _build_nested(seam: Registry[MethodT], chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with those that are themselves methods built from their lines."""
    built = dict(chosen)
    for key, field in seam.get(chosen["name"]).model_fields.items():
        choice = next((one for one in field.metadata if isinstance(one, MethodField)), None)
        if choice is not None and ":" in str(chosen.get(key, "")):
            built[key] = parse_method(choice.seam, chosen[key].replace(";", ","))
    return built


def _translate_errors(method: type[Method], error: ValidationError, text: str) -> RecipeError:
    """Return what is wrong with a line's settings, as errors of a recipe are said."""
    name, known = method.method_name(), sorted(method.model_fields)
    problems = []
    for found in error.errors(include_url=False):
        key = ".".join(map(str, found["loc"]))
        told = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        code, what, expected = "recipe.value", f"{key}: {found['input']!r:.60} is refused", told
        step = f"stillroom show {name}"
        if found["type"] == "missing":
            code, what = "recipe.missing", f"{name} needs {key}"
            own = method.model_fields.get(key)
            expected = own.description or "" if own else ""
            step = f"write {name}:{key.replace('.', '=NAME:')}=VALUE"
        elif found["type"] == "extra_forbidden":
            code, what = "recipe.unknown-key", f"{key!r} is no setting of {name}"
            expected, step = f"one of: {', '.join(known)}", suggest(key, known)
        problems.append(Problem(what, code=code, where=text, expected=expected, next=step))
    return RecipeError(problems)


_PROBES = 8


_PASSAGES_IN_PARENT = 4  # how many times as deep is looked, so that enough parents are found


def retrieve_with_parents(
    index: Index,
    query: str | Query,
    k: int,
    *,
    share: float = 0.0,
    retriever: str | Retriever | None = None,
    reranker: str | PassageReranker | None = None,
    transform: str | QueryTransform | None = None,
    model: TextModel | None = None,
) -> list[Hit]:
    """Return at most ``k`` hits as they are read: where passages have parents, these.

    Args:
        index: What is searched.
        query: What to look for.
        k: How many hits.
        share: See ``merge_into_parents``.
        retriever: A method of ``stillroom.rag.retrievers``; by default the index's own.
        reranker: A method of ``stillroom.rag.rerankers``.
        transform: A method of ``stillroom.rag.query_transforms``.
        model: What a transform or a reranker may ask.

    Raises:
        DataError: If k is below 1, or the query too long.
    """

    def find(depth: int) -> list[Hit]:
        return index.retrieve(
            query, depth, retriever=retriever, reranker=reranker, transform=transform, model=model
        )

    deep = k * _PASSAGES_IN_PARENT if k > 0 and _has_parents(index) else k
    hits = find(deep)
    if not any(hit.passage.parent for hit in hits):
        return hits[:k]
    if deep == k:  # few passages have parents, and the probe met none
        hits = find(k * _PASSAGES_IN_PARENT)
    return merge_into_parents(hits, index, share)[:k]


def _has_parents(index: Index) -> bool:
    """Say whether any of a few passages has a parent, so that no search is made in vain."""
    step = max(len(index) // _PROBES, 1)
    return any(index.passage_at(row).parent for row in range(0, len(index), step))


def merge_into_parents(hits: Sequence[Hit], index: Index, share: float = 0.0) -> list[Hit]:
    """Return the hits, those that have a parent widened to it; hits of one parent are one.

    It stands where its best one stood. Parents that overlap, as windows around sentences do, are
    shown as one; those that touch are not.

    Args:
        hits: Best first, as the index gave them.
        index: Where they were found.
        share: A parent is shown where more than this share of its passages is among the hits; 0
            shows every parent, 1 none.
    """
    found: dict[tuple[str, tuple[int, int]], int] = {}
    for hit in hits:
        if hit.passage.parent:
            key = hit.passage.document_id, hit.passage.parent
            found[key] = found.get(key, 0) + 1
    totals: dict[tuple[str, tuple[int, int]], int] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for hit in hits:
        passage, parent = hit.passage, hit.passage.parent
        span = passage.start, passage.end
        if parent and parent != span:
            key = passage.document_id, parent
            if key not in totals:
                totals[key] = _count_children(passage, index) if share > 0 else 1
            span = parent if found[key] > share * totals[key] else span
        spans.setdefault(passage.document_id, []).append(span)
    return merge_hit_spans(hits, spans, index, touching=False)


def _count_children(passage: Passage, index: Index) -> int:
    """Return how many passages of the index have the same parent."""
    row, total = index.row_of(passage.id), 1
    for step in (1, -1):
        for at in count(row + step, step):
            other = index.passage_at(at) if 0 <= at < len(index) else None
            same = other is not None and other.document_id == passage.document_id
            if other is None or not same or other.parent != passage.parent:
                break
            total += 1
    return total
