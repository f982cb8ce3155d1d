"""Answering from an index: retrieve, show, generate, and hold every sentence against the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stillroom.rag.composing import Composer
from stillroom.rag.method import DEFAULT_RETRIEVER
from stillroom.rag.notices import collect_notices
from stillroom.rag.ordering import cap_documents, join_neighbours
from stillroom.rag.parents import retrieve_to_read
from stillroom.rag.prefixes import readable_text
from stillroom.rag.prompting import ABSTENTION, Shown, drop_repeats, fit_prompt
from stillroom.rag.support import Evidence
from stillroom.records import Answer, Citation, Completion, Sampling

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index import Index
    from stillroom.rag.method import Reranker, Retriever, Transform

__all__ = ["Asking", "ask", "ask_stream"]

_SAMPLING = Sampling(max_new_tokens=128, stop=("\n\n",))
_SPARE = 3


@dataclass(frozen=True, slots=True)
class Asking:
    """How passages are found and shown.

    ``budget`` bounds the prompt's tokens, 0 is the context; ``neighbours`` widens each hit by that
    many passages on both sides; ``per_document`` caps the hits of a document, 0 does not;
    ``shorten`` shows what fits of the last hit, whole sentences; ``best_at_ends`` puts the best
    first and last; a parent is shown where more than ``parent_share`` of its passages was found.
    """

    k: int = 3
    retriever: str | Retriever = DEFAULT_RETRIEVER
    reranker: str | Reranker | None = None
    transform: str | Transform | None = None
    budget: int = 0
    cite: bool = True
    neighbours: int = 0
    per_document: int = 0
    shorten: bool = False
    best_at_ends: bool = False
    parent_share: float = 0.0


def ask(
    index: Index,
    model: TextModel,
    question: str,
    *,
    k: int = 3,
    retriever: str | Retriever = DEFAULT_RETRIEVER,
    reranker: str | Reranker | None = None,
    transform: str | Transform | None = None,
    sampling: Sampling = _SAMPLING,
    budget: int = 0,
    cite: bool = True,
    neighbours: int = 0,
    per_document: int = 0,
    shorten: bool = False,
    best_at_ends: bool = False,
    parent_share: float = 0.0,
    is_cancelled: Callable[[], bool] | None = None,
) -> Answer:
    """Answer a question from the passages of an index.

    Args:
        index: What is searched.
        model: What writes.
        question: What is asked; any text.
        k: How many passages are shown, repeats left out.
        retriever: A method of ``stillroom.rag.retrievers``.
        reranker: A method of ``stillroom.rag.rerankers``.
        transform: A method of ``stillroom.rag.transforms``.
        sampling: How the answer is drawn.
        budget: Most tokens of the prompt; 0 takes what the model's context leaves.
        cite: Add citations that the model left out, where a passage supports the sentence.
        neighbours: How many passages before and after each hit are shown with it; what overlaps is
            one hit, cited as one.
        per_document: Most hits of one document; 0 for no cap.
        shorten: Show of the last passage that does not fit the sentences that do.
        best_at_ends: Show the best passages first and last, the worst in the middle.
        parent_share: Show the parent of passages (of an index cut by ``parent_child`` or
            ``sentence_window``) where more than this share of them was found; 0 shows it always.
        is_cancelled: Once true, the answer ends where it is.

    Returns:
        The answer. ``details`` hold ``statements`` (each sentence with its support), ``abstained``,
        ``dropped`` (passages that did not fit), ``left_out`` (every span that was found and is not
        shown), ``repeats``, ``removed_citations``, ``notices`` (what a method had to do otherwise
        than asked), ``prompt_tokens`` and ``index`` (the digest of its state).

    Raises:
        DataError: If k is below 1, the question too long, or the best passage does not fit.
        BackendError: If the model fails.
    """
    asking = Asking(
        k,
        retriever,
        reranker,
        transform,
        budget,
        cite,
        neighbours,
        per_document,
        shorten,
        best_at_ends,
        parent_share,
    )
    with collect_notices() as told:
        shown, repeats = _show(index, model, question, asking, sampling)
    if shown is None:
        return _abstain(index, model, told)
    completion = model.generate([shown.prompt], sampling, is_cancelled=is_cancelled)[0]
    composer = _compose_with(index, shown, asking)
    text = composer.feed(completion.text) + composer.finish()
    return _finish(index, replace(completion, text=text), shown, composer, repeats, told)


def ask_stream(
    index: Index,
    model: TextModel,
    question: str,
    *,
    k: int = 3,
    retriever: str | Retriever = DEFAULT_RETRIEVER,
    reranker: str | Reranker | None = None,
    transform: str | Transform | None = None,
    sampling: Sampling = _SAMPLING,
    budget: int = 0,
    cite: bool = True,
) -> Iterator[str | Answer]:
    """Yield pieces of the answer as they are certain, then the Answer; see ``ask``.

    The pieces joined are the answer's text. Closing the iterator stops the model.

    Yields:
        Text, and last the Answer.
    """
    asking = Asking(k, retriever, reranker, transform, budget, cite)
    with collect_notices() as told:
        shown, repeats = _show(index, model, question, asking, sampling)
    if shown is None:
        yield ABSTENTION
        yield _abstain(index, model, told)
        return
    composer = _compose_with(index, shown, asking)
    raw, text = [], []
    for token in model.stream(shown.prompt, sampling):
        raw.append(token)
        if piece := composer.feed(token):
            text.append(piece)
            yield piece
    if piece := composer.finish():
        text.append(piece)
        yield piece
    size = model.count_tokens("".join(raw))
    completion = Completion(
        "".join(text),
        "length" if size >= sampling.max_new_tokens else "stop",
        shown.prompt_tokens,
        size,
        model.fingerprint,
    )
    yield _finish(index, completion, shown, composer, repeats, told)


def _show(
    index: Index, model: TextModel, question: str, asking: Asking, sampling: Sampling
) -> tuple[Shown | None, int]:
    """Return the prompt (None where nothing was found) and how many repeats were left out."""
    hits = retrieve_to_read(
        index,
        question,
        asking.k * _SPARE if asking.k > 0 else asking.k,
        share=asking.parent_share,
        retriever=asking.retriever,
        reranker=asking.reranker,
        transform=asking.transform,
        model=model,
    )
    distinct = drop_repeats(hits)
    if not distinct:
        return None, 0
    chosen = cap_documents(distinct, asking.per_document)[: asking.k]
    last = chosen[-1].rank
    repeats = last - sum(hit.rank <= last for hit in distinct)
    room = model.context_length - sampling.max_new_tokens
    budget = min(asking.budget, room) if asking.budget else room
    shown = fit_prompt(
        question,
        join_neighbours(chosen, index, asking.neighbours),
        model,
        budget=budget,
        shorten=asking.shorten,
        best_at_ends=asking.best_at_ends,
    )
    return shown, repeats


def _compose_with(index: Index, shown: Shown, asking: Asking) -> Composer:
    texts = [readable_text(hit.passage) for hit in shown.hits]
    evidence = Evidence(texts, index.analyzer, index.lexicon)
    return Composer(evidence, len(shown.hits), cite=asking.cite)


def _finish(
    index: Index,
    completion: Completion,
    shown: Shown,
    composer: Composer,
    repeats: int,
    told: list[str],
) -> Answer:
    citations = []
    for number in sorted(composer.numbers):
        passage = shown.hits[number - 1].passage
        citations.append(Citation(number, passage.id, passage.location, passage.text))
    statements = composer.statements
    counts = Counter(statement.status for statement in statements)
    said = " ".join(completion.text.split())
    details: dict[str, Any] = {
        "index": index.digest,
        "prompt_tokens": shown.prompt_tokens,
        "dropped": shown.dropped,
        "left_out": [[one.passage_id, one.start, one.end] for one in shown.left_out],
        "notices": told,
        "repeats": repeats,
        "removed_citations": composer.removed,
        "abstained": said.startswith(ABSTENTION.rstrip(".")),
        "support": dict(sorted(counts.items())),
        "statements": [statement.to_json() for statement in statements],
    }
    return Answer(completion, tuple(citations), shown.hits, details)


def _abstain(index: Index, model: TextModel, told: list[str]) -> Answer:
    """Answer that nothing was found, without asking the model."""
    details: dict[str, Any] = {
        "index": index.digest,
        "prompt_tokens": 0,
        "dropped": 0,
        "left_out": [],
        "notices": told,
        "repeats": 0,
        "removed_citations": 0,
        "abstained": True,
        "support": {},
        "statements": [],
    }
    return Answer(Completion(ABSTENTION, model=model.fingerprint), (), (), details)
