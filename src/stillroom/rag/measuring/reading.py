"""One question read by one way: the answer, what it was shown, and the stage that went wrong.

The stages, in the order a question passes them: ``parse`` (no parsed document has the evidence's
words), ``chunk`` (a document has them, no passage holds them whole), ``retrieve`` (a passage does,
it is not within the depth), ``rank`` (within the depth, not among the first k), ``rerank`` (among
them until the reranker), ``show`` (among them, left out of the prompt), ``read`` (shown, and the
answer is wrong all the same), ``cite`` (the answer is right and cites no passage that holds the
evidence). Of several pieces of evidence the one that came furthest counts.

Knows no files; ``reading_job`` runs it over a question set.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stillroom.evaluate.generation import CitedStatement
from stillroom.rag.answer import ask
from stillroom.rag.measuring.evaluation import search_one
from stillroom.rag.measuring.locating import Place
from stillroom.rag.prefixes import readable_text
from stillroom.text.normalize import normalize_text

if TYPE_CHECKING:
    from stillroom.evaluate.question_sets import JudgedQuestion
    from stillroom.models import TextModel
    from stillroom.rag.index import Index
    from stillroom.rag.ways import Way
    from stillroom.records import Passage, Sampling

__all__ = ["STAGES", "Reading", "ShownPassage", "Stage", "blame", "holds", "read_question"]

Stage = Literal["", "parse", "chunk", "retrieve", "rank", "rerank", "show", "read", "cite"]
STAGES: tuple[Stage, ...] = (
    "parse",
    "chunk",
    "retrieve",
    "rank",
    "rerank",
    "show",
    "read",
    "cite",
)
_MARK = re.compile(r"\s*\[\d{1,3}\]")


@dataclass(frozen=True, slots=True)
class ShownPassage:
    """A passage as the model was shown it, which may be wider than the one that was found."""

    id: str
    document_id: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of one question by one way.

    ``first`` and ``ranked`` are the ids of the hits before and after the reranker; ``statements``
    are the answer's sentences as ``ask`` judged them; ``seconds`` is wall clock of search and
    reading, ``search_seconds`` of the search alone, done once more for the deeper ranking.
    """

    text: str
    abstained: bool
    finish_reason: str
    first: tuple[str, ...]
    ranked: tuple[str, ...]
    shown: tuple[ShownPassage, ...]
    statements: tuple[Mapping[str, Any], ...]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    search_seconds: float
    removed_citations: int = 0
    notices: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reading:
        """Read what ``to_json`` wrote."""
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        shown = tuple(ShownPassage(**one) for one in data["shown"])
        return cls(**{**data, **lists, "shown": shown})

    @property
    def plain(self) -> str:
        """The answer without citation marks."""
        return _MARK.sub("", self.text)

    def claims(self) -> list[CitedStatement]:
        """Return the sentences that claim something, with the texts of what they cite."""
        found = []
        for one in self.statements:
            if one["status"] == "no-claim":
                continue
            sentence = _MARK.sub("", self.text[one["start"] : one["end"]]).strip()
            cited = tuple(self.shown[number - 1].text for number in one["cited"])
            found.append(CitedStatement(sentence, cited))
        return found

    def cited(self) -> list[ShownPassage]:
        """Return the passages that the answer cites."""
        numbers = {number for one in self.statements for number in one["cited"]}
        return [self.shown[number - 1] for number in sorted(numbers)]


def read_question(
    index: Index,
    model: TextModel,
    way: Way,
    question: JudgedQuestion,
    *,
    k: int,
    depth: int,
    sampling: Sampling,
) -> Reading:
    """Search for a question as deep as is judged, then answer it from the first ``k``.

    Args:
        index: Open.
        model: What answers, and what transforms and rerankers ask.
        way: How passages are found.
        question: What is asked.
        k: How many passages are shown.
        depth: How many hits are judged.
        sampling: How the answer is drawn.
    """
    found = search_one(index, way, question.text, unit="passage", depth=depth, model=model)
    begun = time.perf_counter()
    answer = ask(
        index,
        model,
        question.text,
        k=k,
        retriever=way.retriever,
        reranker=way.reranker,
        transform=way.transform,
        answering=way.answering or "direct",
        unsupported=way.unsupported,
        sampling=sampling,
    )
    seconds = time.perf_counter() - begun
    details = answer.details
    return Reading(
        answer.completion.text,
        bool(details["abstained"]),
        answer.completion.finish_reason,
        found.first,
        found.ranked,
        tuple(_describe(hit.passage) for hit in answer.hits),
        tuple(details["statements"]),
        answer.completion.prompt_tokens or int(details["prompt_tokens"]),
        answer.completion.completion_tokens,
        seconds,
        found.seconds,
        int(details["removed_citations"]),
        tuple(dict.fromkeys([*found.notices, *details["notices"]])),
    )


def holds(shown: ShownPassage, place: Place) -> bool:
    """Return whether a shown passage holds a piece of evidence.

    It does if it is one of the passages that hold it, lies around one (a parent, neighbours joined
    on), or has the quotation in its text.
    """
    if shown.id in place.passages:
        return True
    if any(
        document == shown.document_id and shown.start <= start and end <= shown.end
        for document, start, end in place.spans
    ):
        return True
    if not place.quotes:
        return False
    text = f" {normalize_text(shown.text)} "
    return any(f" {quote} " in text for quote in place.quotes)


def blame(reading: Reading, places: Sequence[Place], *, is_right: bool, k: int) -> Stage:
    """Return the stage that went wrong; an empty one where nothing did.

    Args:
        reading: What came of the question.
        places: Where its evidence stands; none for a question without an answer.
        is_right: Whether the answer is.
        k: How many passages were to be shown.
    """
    if is_right:
        held = [place for place in places if place.passages]
        cited = [one for one in reading.cited() if any(holds(one, place) for place in held)]
        return "cite" if held and not cited else ""
    if not places:
        return "read"
    reached = [_reached(reading, place, k) for place in places]
    return max(reached, key=STAGES.index)


def _reached(reading: Reading, place: Place, k: int) -> Stage:
    """Return the stage at which one piece of evidence was lost; ``read`` where it was shown."""
    if any(holds(one, place) for one in reading.shown):
        return "read"
    if not place.passages:
        return "chunk" if place.in_documents else "parse"
    if place.passages & set(reading.ranked[:k]):
        return "show"
    if place.passages & set(reading.first[:k]):
        return "rerank"
    if place.passages & {*reading.first, *reading.ranked}:
        return "rank"
    return "retrieve"


def _describe(passage: Passage) -> ShownPassage:
    return ShownPassage(
        passage.id, passage.document_id, passage.start, passage.end, readable_text(passage)
    )
