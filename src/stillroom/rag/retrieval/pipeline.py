"""Retrieval pipeline (query engine): the steps between a question and the passages that answer it.

A retrieval step (component, node postprocessor) takes ``RetrievalCandidates`` and returns them
changed; it reads the index and knows no other step. ``list_search_steps``, ``list_selection_steps``
and ``list_context_steps`` are the pipeline: ``retrieve`` runs the first; an answer runs all three
(``rag.generation.session``), and at last ``rag.generation.prompt.fit_prompt`` keeps the hits whose
prompt fits the model.

A pipeline has a one-line syntax, ``[TRANSFORM>]RETRIEVER[+RERANKER]``: names of methods, each with
optional settings after a colon, as ``convex:alpha=0.3+mmr``. For answers,
``=>ANSWERING[!UNSUPPORTED]`` may follow, as ``convex=>corrective:max_rounds=1!drop``.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from pydantic import ValidationError

from stillroom.errors import DataError, Problem, RecipeError
from stillroom.rag.analysis.phrases import parse_query
from stillroom.rag.interfaces import (
    ANSWER_STRATEGIES,
    CHECKERS,
    DEFAULT_RETRIEVER,
    QUERY_TRANSFORMS,
    RERANKERS,
    RETRIEVERS,
    AnswerStrategy,
    PassageReranker,
    Query,
    QueryTransform,
    Retriever,
    make_query,
)
from stillroom.rag.observability import (
    add_warning,
    collect_warnings,
    describe_hits,
    record_retrieval,
    stage,
)
from stillroom.rag.retrieval.ranking import (
    drop_duplicates,
    expand_window,
    fuse_reciprocal_ranks,
    limit_per_document,
)
from stillroom.rag.settings import UnsupportedPolicy
from stillroom.records import Hit, Passage
from stillroom.registry import Method, Registry
from stillroom.registry.catalog import suggest
from stillroom.registry.method import MethodField

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.settings import AnswerSettings
    from stillroom.rag.types import RankedRows

__all__ = [
    "RetrievalCandidates",
    "RetrievalPipeline",
    "RetrievalStep",
    "expand_neighbors",
    "fuse_rankings",
    "get_rerank_depth",
    "limit_documents",
    "list_context_steps",
    "list_search_steps",
    "list_selection_steps",
    "match_clauses",
    "parse_answer_settings",
    "parse_method",
    "parse_pipeline",
    "parse_rag_pipeline",
    "rerank_hits",
    "retrieve",
    "run_steps",
    "search_index",
    "search_phrase",
    "skip_duplicates",
    "transform_query",
    "truncate_hits",
]


_RERANK_DEPTH = 50
_WORDS = re.compile(r"\w+")
_PHRASE_WORDS, _PHRASE_DEPTH = 12, 20
MethodT = TypeVar("MethodT", bound=Method)


@dataclass(frozen=True, slots=True)
class RetrievalCandidates:
    """What passes from step to step: queries, their ranked rows, then hits.

    ``index`` shows only the passages that match the query's clauses. ``queries`` has what is
    searched; rerankers read the first. ``repeated_ranks`` are those of dropped duplicates.
    ``counts`` has the number of rows or hits after each step.
    """

    index: Index
    queries: tuple[Query, ...]
    rankings: Sequence[RankedRows] = ()
    hits: Sequence[Hit] = ()
    repeated_ranks: tuple[int, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of hits; before they are fused, of rows."""
        return len(self.hits) or sum(map(len, self.rankings))


RetrievalStep = Callable[[RetrievalCandidates], RetrievalCandidates]


def list_search_steps(
    retriever: Retriever,
    reranker: PassageReranker | None,
    transform: QueryTransform | None,
    *,
    k: int,
    model: TextModel | None,
) -> list[RetrievalStep]:
    """Return the steps from a query to its ``k`` best hits."""
    depth = max(k, get_rerank_depth(reranker))
    return [
        match_clauses,
        *([partial(transform_query, transform=transform, model=model)] if transform else []),
        partial(search_index, retriever=retriever, depth=depth),
        partial(fuse_rankings, depth=depth),
        *([partial(rerank_hits, reranker=reranker, model=model)] if reranker else []),
        partial(truncate_hits, most=k),
    ]


def get_rerank_depth(reranker: PassageReranker | None) -> int:
    """Return the number of hits that a reranker is given at least; 0 without one."""
    return 0 if reranker is None else max(_RERANK_DEPTH, getattr(reranker, "depth", 0))


def list_selection_steps(settings: AnswerSettings) -> list[RetrievalStep]:
    """Return the steps from hits to the candidates of an answer, which a strategy may grade."""
    return [skip_duplicates, partial(limit_documents, most=settings.per_document)]


def list_context_steps(settings: AnswerSettings) -> list[RetrievalStep]:
    """Return the steps from the hits that a strategy chose to those of the prompt."""
    return [partial(expand_neighbors, window=settings.neighbours)]


def run_steps(
    steps: Sequence[RetrievalStep], candidates: RetrievalCandidates
) -> RetrievalCandidates:
    """Run steps in order, and count the candidates after each."""
    for step in steps:
        name = step.func.__name__ if isinstance(step, partial) else step.__name__
        candidates = step(candidates)
        candidates = replace(candidates, counts={**candidates.counts, name: len(candidates)})
    return candidates


def match_clauses(candidates: RetrievalCandidates) -> RetrievalCandidates:
    """Take quoted text and fields out of the query, and keep the passages that match them."""
    (query,) = candidates.queries
    text, clauses = parse_query(query.text)
    if not clauses:
        return candidates
    plain = (replace(query, text=text),)
    matching = candidates.index.restrict_to_clauses(clauses)
    if matching is None:
        add_warning(
            "no passage has the quoted words or the fields of the query: searched without them"
        )
        return replace(candidates, queries=plain)
    return replace(candidates, queries=plain, index=matching)


def transform_query(
    candidates: RetrievalCandidates, *, transform: QueryTransform, model: TextModel | None
) -> RetrievalCandidates:
    """Turn the query into the queries that are searched."""
    (query,) = candidates.queries
    with stage("transform"):
        queries = transform.rewrite(query, candidates.index, model)
    return replace(candidates, queries=tuple(queries))


def search_index(
    candidates: RetrievalCandidates, *, retriever: Retriever, depth: int
) -> RetrievalCandidates:
    """Rank ``depth`` rows of the index for each query."""
    index = candidates.index
    rankings = [
        index.keep_matching(retriever.retrieve(query, depth, index)) for query in candidates.queries
    ]
    return replace(candidates, rankings=rankings)


def fuse_rankings(candidates: RetrievalCandidates, *, depth: int) -> RetrievalCandidates:
    """Fuse the rankings of several queries by reciprocal ranks, and open the passages."""
    ranking, *others = candidates.rankings
    if others:
        ranking = fuse_reciprocal_ranks(candidates.rankings)[:depth]
    return replace(candidates, rankings=(), hits=candidates.index.hits(ranking))


def rerank_hits(
    candidates: RetrievalCandidates, *, reranker: PassageReranker, model: TextModel | None
) -> RetrievalCandidates:
    """Order the hits by reading them together with the first query."""
    query, hits = candidates.queries[0], candidates.hits
    with stage("rerank") as span:
        reranked = reranker.rerank(query, hits, candidates.index, model)
        if span.is_recording:
            name = reranker.method_name()
            span.set_attributes(reranker__model_name=name, reranker__top_k=len(reranked))
            for side, listed in (("input", hits), ("output", reranked)):
                prefix = f"reranker.{side}_documents"
                span.set_named_attributes(describe_hits(listed, prefix=prefix))
            if span.wants_content:
                span.set_attributes(reranker__query=query.text)
    return replace(candidates, hits=reranked)


def truncate_hits(candidates: RetrievalCandidates, *, most: int) -> RetrievalCandidates:
    """Keep the first hits."""
    return replace(candidates, hits=candidates.hits[:most])


def skip_duplicates(candidates: RetrievalCandidates) -> RetrievalCandidates:
    """Drop near duplicates of better hits; the others keep their ranks."""
    distinct = drop_duplicates(candidates.hits)
    kept = {hit.rank for hit in distinct}
    ranks = tuple(hit.rank for hit in candidates.hits if hit.rank not in kept)
    return replace(candidates, hits=distinct, repeated_ranks=ranks)


def limit_documents(candidates: RetrievalCandidates, *, most: int) -> RetrievalCandidates:
    """Keep the first hits of each document; 0 for no limit."""
    return replace(candidates, hits=limit_per_document(candidates.hits, most))


def expand_neighbors(candidates: RetrievalCandidates, *, window: int) -> RetrievalCandidates:
    """Add the passages before and after a hit, and merge hits that overlap or touch."""
    expanded = expand_window(candidates.hits, candidates.index, window)
    return replace(candidates, hits=expanded)


def retrieve(
    index: Index,
    query: str | Query,
    k: int = 10,
    *,
    retriever: str | Retriever | None = None,
    reranker: str | PassageReranker | None = None,
    transform: str | QueryTransform | None = None,
    model: TextModel | None = None,
) -> list[Hit]:
    """Return at most ``k`` hits, best first.

    Args:
        index: Index to search.
        query: Query, or its text. Text in quotation marks, or after ``headings:`` or ``body:``,
            must occur so in a hit (``rag.analysis.phrases``).
        k: Maximum number of hits, 1 or more.
        retriever: A method of ``stillroom.rag.retrievers``; by default ``convex``.
        reranker: A method of ``stillroom.rag.rerankers``; reads the first ``max(k, 50)`` hits,
            or its ``depth`` if that is more, and the first query of a transform.
        transform: A method of ``stillroom.rag.query_transforms``.
        model: Text model for the transform and the reranker.

    Raises:
        DataError: If k is below 1, or the query too long.
        RecipeError: If a method is unknown.
    """
    if k < 1:
        raise DataError(
            f"k is {k}",
            code="rag.bad-depth",
            expected="1 or more hits",
            next="leave k out for 10",
        )
    original = make_query(query)
    hits: list[Hit] = []
    for warning in index.mixed_comparisons:
        add_warning(warning)
    if index.is_filtered and not len(index):
        add_warning("no passage passes the filter of documents, so none was searched")
    if original.text.strip() and len(index):
        steps = list_search_steps(
            RETRIEVERS.build(retriever or DEFAULT_RETRIEVER),
            None if reranker is None else RERANKERS.build(reranker),
            None if transform is None else QUERY_TRANSFORMS.build(transform),
            k=k,
            model=model,
        )
        with stage("retrieve") as span, index.one_query():
            candidates = run_steps(steps, RetrievalCandidates(index, (original,)))
            hits = list(candidates.hits)
            record_retrieval(span, original.text, hits, index.digest, candidates.counts)
    index.log_query(original.text, hits)
    return hits


def search_phrase(index: Index, text: str) -> list[Passage]:
    """Return passages that hold a text's first words in their order, or else the words."""
    words = _WORDS.findall(text)[:_PHRASE_WORDS]
    if not words:
        return []
    with collect_warnings():  # that no passage has the phrase: the caller looks itself
        hits = retrieve(index, f'"{" ".join(words)}"', _PHRASE_DEPTH, retriever="keyword")
    return [hit.passage for hit in hits]


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

    @property
    def moment(self) -> str:
        """Further state that the hits depend on (``TimeDependent``)."""
        moments = (part.moment for part in (self.retriever, self.reranker) if part is not None)
        return " ".join(filter(None, moments))

    def on_day(self, day: datetime.date) -> RetrievalPipeline:
        """Return the pipeline, of the same name, as its methods are on a day."""
        return replace(
            self,
            retriever=self.retriever.on_day(day),
            reranker=self.reranker and self.reranker.on_day(day),
            answering=self.answering and self.answering.on_day(day),
        )

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
        RecipeError: If a method or setting is unknown, a value is out of bounds, or ``pipeline``
            has an answering method and another option sets what it decides.
    """
    settings = {name: value for name, value in texts.items() if value not in (None, "")}
    if pipeline_text := settings.pop("pipeline", None):
        decided = parse_rag_pipeline(pipeline_text).to_answer_settings()
        for name in sorted(decided.keys() & settings.keys()):
            raise RecipeError(
                f"pipeline and {name} both set {name}",
                code="recipe.value",
                where=f"pipeline {pipeline_text}, {name} {settings[name]}",
                expected="=>ANSWERING[!UNSUPPORTED] in pipeline, or the options answering and "
                "unsupported",
                next=f"leave {name} out, or remove => and what follows it from pipeline",
            )
        settings |= decided
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


def parse_method(registry: Registry[MethodT], text: str) -> MethodT:
    """Return the method that ``NAME[:KEY=VALUE,...]`` describes.

    A setting that is itself a method takes its own settings after another colon, separated by
    semicolons: ``corrective:grader=overlap:window=2;upper=0.7``.

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
        return registry.build(_build_nested(registry, values))
    except ValidationError as error:
        raise _translate_errors(registry.get(values["name"]), error, text) from error


def _build_nested(registry: Registry[MethodT], values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, with nested methods built from their texts."""
    built = dict(values)
    for key, setting in registry.get(values["name"]).model_fields.items():
        choice = next((item for item in setting.metadata if isinstance(item, MethodField)), None)
        if choice is not None and ":" in str(values.get(key, "")):
            built[key] = parse_method(choice.registry, values[key].replace(";", ","))
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
            setting = method.model_fields.get(key)
            expected = setting.description or "" if setting else ""
            step = f"write {name}:{key.replace('.', '=NAME:')}=VALUE"
        elif detail["type"] == "extra_forbidden":
            code, problem = "recipe.unknown-key", f"{key!r} is not a setting of {name}"
            expected, step = f"one of: {', '.join(known)}", suggest(key, known)
        problems.append(Problem(problem, code=code, where=text, expected=expected, next=step))
    return RecipeError(problems)
