"""Retrieval pipeline: its one-line syntax, and retrieval with parent expansion.

``[TRANSFORM>]RETRIEVER[+RERANKER]``: names of methods, each with optional settings after a colon,
as ``convex:alpha=0.3+proximity``. For answers, ``=>ANSWERING[!UNSUPPORTED]`` may follow, as
``convex=>corrective:max_rounds=1!drop``.

Source of ``share``: auto-merging, as in Haystack and LlamaIndex (a parent replaces its passages
once more than a share of them was found). Here one level, with the best score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from pydantic import ValidationError

from stillroom.errors import Problem, RecipeError
from stillroom.rag.interfaces import (
    ANSWER_STRATEGIES,
    CHECKERS,
    QUERY_TRANSFORMS,
    RERANKERS,
    RETRIEVERS,
    AnswerStrategy,
    PassageReranker,
    QueryTransform,
    Retriever,
)
from stillroom.rag.retrieval.ranking import merge_hit_spans
from stillroom.rag.settings import UnsupportedPolicy
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
    "parse_answer_settings",
    "parse_method",
    "parse_pipeline",
    "parse_rag_pipeline",
    "retrieve_with_parents",
]


MethodT = TypeVar("MethodT", bound=Method)


@dataclass(frozen=True, slots=True)
class RetrievalPipeline:
    """A retriever, with an optional query transform and reranker.

    ``answering`` and ``unsupported`` define how a question is answered from the hits.
    """

    name: str
    retriever: Retriever
    reranker: PassageReranker | None = None
    transform: QueryTransform | None = None
    answering: AnswerStrategy | None = None
    unsupported: UnsupportedPolicy = "mark"

    def to_answer_settings(self) -> dict[str, Any]:
        """Return the fields of ``AnswerSettings`` that the pipeline decides."""
        settings: dict[str, Any] = {
            "retriever": self.retriever,
            "reranker": self.reranker,
            "transform": self.transform,
        }
        if self.answering is not None:
            settings |= {"answering": self.answering, "unsupported": self.unsupported}
        return settings


def parse_answer_settings(texts: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of ``AnswerSettings`` from the options of a client.

    Args:
        texts: Values by the names of ``AnswerSettings.client_options``; what is None or empty text
            keeps its default. ``pipeline`` is ``[TRANSFORM>]RETRIEVER[+RERANKER]``, ``answering``
            and ``checker`` are ``METHOD[:KEY=VALUE,...]``.

    Raises:
        RecipeError: If a method or setting is unknown, or a value is out of bounds.
    """
    settings = {name: value for name, value in texts.items() if value not in (None, "")}
    if pipeline_text := settings.pop("pipeline", None):
        settings |= parse_rag_pipeline(pipeline_text).to_answer_settings()
    registries: dict[str, Registry[Any]] = {"answering": ANSWER_STRATEGIES, "checker": CHECKERS}
    for name, registry in registries.items():
        if isinstance(settings.get(name), str):
            settings[name] = parse_method(registry, settings[name])
    return settings


def parse_rag_pipeline(text: str) -> RetrievalPipeline:
    """Return the pipeline that a text describes, optionally with its answer strategy.

    Raises:
        RecipeError: If a method or setting is unknown; the nearest name is suggested.
    """
    retrieval_text, arrow, answering = text.partition("=>")
    pipeline = replace(parse_pipeline(retrieval_text), name=text.strip())
    if not arrow:
        return pipeline
    method, mark, unsupported = answering.partition("!")
    if mark and unsupported.strip() not in get_args(UnsupportedPolicy):
        raise RecipeError(
            f"{unsupported.strip()!r} is not a policy for unsupported sentences",
            code="recipe.value",
            where=text,
            expected=f"one of: {', '.join(get_args(UnsupportedPolicy))}",
            next=f"write {retrieval_text}=>{method}!drop",
        )
    return replace(
        pipeline,
        answering=parse_method(ANSWER_STRATEGIES, method),
        unsupported=cast("UnsupportedPolicy", unsupported.strip() or "mark"),
    )


def parse_pipeline(text: str) -> RetrievalPipeline:
    """Return the retrieval pipeline that a text describes.

    Raises:
        RecipeError: If a method or setting is unknown; the nearest name is suggested.
    """
    head, arrow, tail = text.rpartition(">")
    body, plus, last = (tail if arrow else text).partition("+")
    return RetrievalPipeline(
        text.strip(),
        parse_method(RETRIEVERS, body),
        parse_method(RERANKERS, last) if plus else None,
        parse_method(QUERY_TRANSFORMS, head) if arrow else None,
    )


def parse_method(seam: Registry[MethodT], text: str) -> MethodT:
    """Return the method that ``NAME[:KEY=VALUE,...]`` describes.

    A setting that is itself a method takes its own settings after another colon, separated by
    semicolons: ``corrective:grader=yes_no:words=80;upper=0.7``.

    Raises:
        RecipeError: If the method or a setting is unknown, or a value is out of bounds.
    """
    name, _, settings = text.strip().partition(":")
    values: dict[str, Any] = {"name": name.strip()}
    for part in filter(None, (part.strip() for part in settings.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise RecipeError(
                f"{part!r} is not a setting",
                code="recipe.override",
                where=text,
                expected="KEY=VALUE",
                next=f"write {name}:{key}=VALUE",
            )
        values[key.strip()] = value.strip()
    try:
        return seam.build(_build_nested(seam, values))
    except ValidationError as error:
        raise _translate_errors(seam.get(values["name"]), error, text) from error


def _build_nested(seam: Registry[MethodT], values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, with nested methods built from their texts."""
    built = dict(values)
    for key, field in seam.get(values["name"]).model_fields.items():
        choice = next((item for item in field.metadata if isinstance(item, MethodField)), None)
        if choice is not None and ":" in str(values.get(key, "")):
            built[key] = parse_method(choice.seam, values[key].replace(";", ","))
    return built


def _translate_errors(method: type[Method], error: ValidationError, text: str) -> RecipeError:
    """Return validation errors of a method's settings as errors of a recipe."""
    name, known = method.method_name(), sorted(method.model_fields)
    problems = []
    for detail in error.errors(include_url=False):
        key = ".".join(map(str, detail["loc"]))
        message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        code, problem, expected = (
            "recipe.value",
            f"{key}: {detail['input']!r:.60} is refused",
            message,
        )
        step = f"stillroom show {name}"
        if detail["type"] == "missing":
            code, problem = "recipe.missing", f"{name} needs {key}"
            field = method.model_fields.get(key)
            expected = field.description or "" if field else ""
            step = f"write {name}:{key.replace('.', '=NAME:')}=VALUE"
        elif detail["type"] == "extra_forbidden":
            code, problem = "recipe.unknown-key", f"{key!r} is not a setting of {name}"
            expected, step = f"one of: {', '.join(known)}", suggest(key, known)
        problems.append(Problem(problem, code=code, where=text, expected=expected, next=step))
    return RecipeError(problems)


_PROBES = 8
_PASSAGES_IN_PARENT = 4  # factor of the search depth, so that enough parents are found


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
    """Return at most ``k`` hits, with passages replaced by their parents.

    Args:
        index: Index to search.
        query: Query, or its text.
        k: Maximum number of hits.
        share: See ``merge_into_parents``.
        retriever: A method of ``stillroom.rag.retrievers``; by default the index's own.
        reranker: A method of ``stillroom.rag.rerankers``.
        transform: A method of ``stillroom.rag.query_transforms``.
        model: Text model for the transform and the reranker.

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
    if deep == k:  # few passages have parents, and none of the probed ones
        hits = find(k * _PASSAGES_IN_PARENT)
    return merge_into_parents(hits, index, share)[:k]


def _has_parents(index: Index) -> bool:
    """Return whether any of a few probed passages has a parent, to avoid a second search."""
    step = max(len(index) // _PROBES, 1)
    return any(index.passage_at(row).parent for row in range(0, len(index), step))


def merge_into_parents(hits: Sequence[Hit], index: Index, share: float = 0.0) -> list[Hit]:
    """Return the hits, with those that have a parent expanded to it and merged.

    A parent takes the rank of its best hit. Parents that overlap, such as windows around sentences,
    are merged; those that only touch are not.

    Args:
        hits: Hits, best first.
        index: Index of the hits.
        share: A parent is used where more than this share of its passages is among the hits; 0
            uses every parent, 1 none.
    """
    counts: dict[tuple[str, tuple[int, int]], int] = {}
    for hit in hits:
        if hit.passage.parent:
            key = hit.passage.document_id, hit.passage.parent
            counts[key] = counts.get(key, 0) + 1
    totals: dict[tuple[str, tuple[int, int]], int] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for hit in hits:
        passage, parent = hit.passage, hit.passage.parent
        span = passage.start, passage.end
        if parent and parent != span:
            key = passage.document_id, parent
            if key not in totals:
                totals[key] = _count_children(passage, index) if share > 0 else 1
            span = parent if counts[key] > share * totals[key] else span
        spans.setdefault(passage.document_id, []).append(span)
    return merge_hit_spans(hits, spans, index, touching=False)


def _count_children(passage: Passage, index: Index) -> int:
    """Return the number of passages with the same parent."""
    row, total = index.row_of(passage.id), 1
    for step in (1, -1):
        for neighbor_row in count(row + step, step):
            neighbor = index.passage_at(neighbor_row) if 0 <= neighbor_row < len(index) else None
            same = neighbor is not None and neighbor.document_id == passage.document_id
            if neighbor is None or not same or neighbor.parent != passage.parent:
                break
            total += 1
    return total
