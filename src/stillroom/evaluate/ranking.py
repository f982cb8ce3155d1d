"""What an index finds for each question, and whether it is the evidence.

The evidence of a record is a passage id and the span it was made from. An index that was cut
otherwise has other passages: there a hit counts as the evidence if it holds most of that span.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.evaluate.answerer import Answerer
from stillroom.evaluate.metrics import Metric, bootstrap
from stillroom.evaluate.questions import Question
from stillroom.evaluate.retrieval import retrieval_metrics
from stillroom.jobs import Job
from stillroom.records import Hit, Passage

__all__ = ["measure_retrieval", "retrieve_all", "shown_hits"]

_HELD = 0.5
"""Share of the evidence's span that a passage of another cut must hold."""


def retrieve_all(
    answerer: Answerer, questions: Sequence[Question], *, depth: int, k: int, job: Job
) -> dict[str, dict[str, Any]]:
    """Return for each question what was retrieved: ``ranking`` and ``shown``.

    ``ranking`` is pairs of id and score, the evidence under its own id wherever a hit holds it;
    ``shown`` is the first ``k`` passages whole.
    """
    journal = job.journal("retrieval")
    done = sum(question.id in journal for question in questions)
    with job.phase("retrieval", len(questions), "questions", done=done) as progress:
        for question in questions:
            if question.id in journal:
                continue
            job.check_cancelled()
            hits = answerer.retrieve(question.text, max(depth, k))
            shown = [[hit.passage.to_json(), hit.score] for hit in hits[:k]]
            journal.put(question.id, {"ranking": _label(question, hits), "shown": shown})
            progress.advance()
    return {question.id: journal[question.id] for question in questions}


def shown_hits(found: dict[str, Any]) -> list[Hit]:
    """Return the passages that are shown with a question, as hits."""
    return [
        Hit(Passage.from_json(passage), score, rank)
        for rank, (passage, score) in enumerate(found["shown"], 1)
    ]


def measure_retrieval(
    questions: Sequence[Question], found: dict[str, dict[str, Any]], *, seed: int
) -> tuple[list[Metric], int]:
    """Return the retrieval measures, and how many questions name no evidence and do not count."""
    judged = [question for question in questions if question.evidence.get("passage_id")]
    qrels = {question.id: {str(question.evidence["passage_id"]): 1} for question in judged}
    run = {
        name: [(str(hit), float(score)) for hit, score in found[name]["ranking"]] for name in qrels
    }
    metrics = [
        bootstrap(list(values.values()), seed=seed, name=f"retrieval/{name}")
        for name, values in retrieval_metrics(run, qrels).items()
    ]
    return metrics, len(questions) - len(judged)


def _label(question: Question, hits: Sequence[Hit]) -> list[list[Any]]:
    """Return ids with scores; the first hit that holds the evidence bears the evidence's id."""
    wanted = question.evidence.get("passage_id")
    is_known = any(hit.passage.id == wanted for hit in hits)
    ranking: list[list[Any]] = []
    is_found = False
    for hit in hits:
        name = hit.passage.id
        if not is_known and not is_found and _holds(hit.passage, question):
            name, is_found = str(wanted), True
        ranking.append([name, hit.score])
    return ranking


def _holds(passage: Passage, question: Question) -> bool:
    """Return whether a passage holds the evidence: most of its span, or its very words."""
    evidence = question.evidence
    start, end = evidence.get("start"), evidence.get("end")
    if evidence.get("document_id") == passage.document_id and (
        isinstance(start, int) and isinstance(end, int) and start < end
    ):
        return min(end, passage.end) - max(start, passage.start) >= _HELD * (end - start)
    quote = evidence.get("quote")
    return isinstance(quote, str) and bool(quote) and quote in passage.text
