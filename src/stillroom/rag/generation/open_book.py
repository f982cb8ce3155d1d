"""Open-book records (RAFT): questions with retrieved passages in the prompt, and their answers.

Of a question that its passages answer, the answer is the sentence with its citation, as the
document has it: without the marks of a parser. The others refuse, for one of three reasons:
``removed``, the answering passages are left out, and any other that holds an accepted answer;
``near_miss``, the passages stay and another name or number is asked for, which stands in none of
them; ``foreign``, a question about another document is asked, of which no passage holds an
accepted answer. The distractors are what the index finds for the question, which is what a served
model will meet.

Source: Zhang et al. 2024, "RAFT", arXiv:2403.10131 (an answer with its passage among distractors,
and questions without it). Differs: distractors are retrieved, not drawn at random; questions
without their passage are refused; the answer is a quote.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import DataError, count_noun
from stillroom.evaluate.metrics.answers import contains_answer
from stillroom.evaluate.qa.questions import find_question_origin
from stillroom.provenance import make_parent
from stillroom.rag.answer_selection.examples import (
    ReaderPassage,
    label_passages,
    read_passage,
    read_split_questions,
)
from stillroom.rag.answer_selection.overlap import QuestionOverlap
from stillroom.rag.generation.prompt import ABSTENTION, PROMPT_DIGEST, PROMPT_VERSION, render_prompt
from stillroom.rag.generation.verbatim import find_verbatim_parts
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.records import Hit, Link, Message, Origin, Record, RecordWriter

if TYPE_CHECKING:
    from stillroom.evaluate.qa.questions import JudgedQuestion
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.jobs.open_book import OpenBookRecipe

__all__ = ["REFUSAL_KINDS", "make_near_miss", "write_open_book"]

REFUSAL_KINDS = ("removed", "near_miss", "foreign")
"""Reasons why the passages of a record do not answer; see above."""
_SPARE_HITS = 12
_NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?![\w.]*\d)")
_NAME = re.compile(r"(?<=\s)(?:[A-Z][\w’'-]+(?:\s+[A-Z][\w’'-]+)*|\"[^\"\s]+\"|`[^`\s]+`)")


@dataclass(frozen=True, slots=True)
class _OpenQuestion:
    """A question with its hits, and which of their sentences answer."""

    question: JudgedQuestion
    origin: Origin
    is_held_out: bool | None
    hits: tuple[Hit, ...]
    labeled: tuple[ReaderPassage, ...]
    quote: str = ""

    @property
    def answering(self) -> list[int]:
        """Numbers of the hits that answer, from 0."""
        return [number for number, part in enumerate(self.labeled) if any(part.answers)]

    def find_quote(self, index: Index) -> str:
        """Return the first sentence that answers, without the marks that a parser wrote."""
        number = self.answering[0]
        part, passage = self.labeled[number], self.hits[number].passage
        span = part.sentences[part.answers.index(True)]
        spans = find_verbatim_parts(passage, index.document(passage.document_id), *span)
        return " ".join(word for place in spans for word in part.text[slice(*place)].split())

    def may_answer(self, hit: Hit) -> bool:
        """Return whether a passage holds an accepted answer, though perhaps not the evidence."""
        text = f"{hit.passage.title}\n{hit.passage.text}"
        return bool(contains_answer(text, self.question.answers))


def write_open_book(recipe: OpenBookRecipe, job: Job) -> Artifact:
    """Write the records of ``rag.open_book``; see ``stillroom.rag.jobs.open_book``."""
    counts: Counter[str] = Counter()
    with recipe.open_index() as index:
        questions = list(_find_questions(recipe, index, counts, job))
    if not questions:
        raise DataError(
            f"none of {counts['asked']} questions can be rendered: {counts['lost']} have no "
            f"evidence in the passages that are found, {counts['copied']} copy their sentence",
            code="rag.no-evidence",
            where=recipe.index,
            expected="questions whose evidence quotes the indexed documents",
            next="check that the questions are about this index, or raise max_copied",
        )
    rng = np.random.default_rng(recipe.seed)
    with RecordWriter(job.output / "records.jsonl") as writer:
        for _ in range(recipe.renderings):
            for number in range(len(questions)):
                record = _render(recipe, questions, number, rng)
                counts[str(record.fields["kind"])] += 1
                writer.write(record)
    job.say(
        f"{count_noun(writer.count, 'record')} of {count_noun(len(questions), 'question')}: "
        f"{counts['answer']} with an answer, "
        + ", ".join(f"{counts[kind]} {kind}" for kind in REFUSAL_KINDS)
        + f"; left out: {counts['lost']} whose evidence was not found, {counts['copied']} that "
        "copy their sentence"
    )
    return job.finish(
        "records",
        parents=[
            make_parent("index", Path(recipe.index), job.out),
            *(make_parent("questions", Path(path), job.out) for path in recipe.questions),
        ],
        origin=Origin("synthetic").then(_make_link(())).to_json(),
        details={"records": writer.count, "prompt_version": PROMPT_VERSION, **counts},
    )


def _find_questions(
    recipe: OpenBookRecipe, index: Index, counts: Counter[str], job: Job
) -> Iterator[_OpenQuestion]:
    """Yield the questions whose evidence is found and not copied, counting the others."""
    paths = [Path(path) for path in recipe.questions]
    origins = [find_question_origin(path) for path in paths]
    rows = list(read_split_questions(paths, job.warn))
    with job.phase("retrieve", len(rows), "questions") as progress:
        for number, question, is_held_out in rows:
            job.check_cancelled()
            progress.advance()
            counts["asked"] += 1
            hits = tuple(retrieve(index, question.text, recipe.passages + _SPARE_HITS))
            labeled = tuple(label_passages(question, map(read_passage, hits)))
            found = _OpenQuestion(question, origins[number], is_held_out, hits, labeled)
            if not question.evidence or not found.answering:
                counts["lost"] += 1
                continue
            found = replace(found, quote=found.find_quote(index))
            if not found.quote:  # marks of a parser alone
                counts["lost"] += 1
                continue
            overlap = QuestionOverlap(index, question.text)
            if overlap(found.quote) > recipe.max_copied * overlap.total:
                counts["copied"] += 1
                continue
            yield found


def _render(
    recipe: OpenBookRecipe,
    questions: Sequence[_OpenQuestion],
    number: int,
    rng: np.random.Generator,
) -> Record:
    """Return a record of a question: an answer, or with the share of refusals one of these."""
    own, kinds = questions[number], list[str]()
    if rng.random() < recipe.refusals:  # the next kind where one cannot be made of this question
        first = int(rng.integers(len(REFUSAL_KINDS)))
        kinds = [*REFUSAL_KINDS[first:], *REFUSAL_KINDS[:first]]
    count = int(rng.integers(1, recipe.passages + 1))
    others = [at for at in range(len(own.hits)) if at not in own.answering]
    answering = own.answering[:1]
    for kind in [*kinds, "answer"]:
        chosen = [*answering, *others]
        if kind == "removed":
            chosen = [at for at in others if not own.may_answer(own.hits[at])]
        shown = [int(at) for at in rng.permutation(chosen[:count])]
        hits = [own.hits[at] for at in shown]
        text = own.question.text
        if kind == "near_miss":
            text = make_near_miss(text, [one.question.text for one in questions], hits, rng)
        elif kind == "foreign":
            text = _find_foreign(questions, own, hits, rng)
        if text and hits:
            break
    answer = ABSTENTION
    if kind == "answer":
        answer = f"{own.quote} [{shown.index(answering[0]) + 1}]"
    ranked = [replace(hit, rank=rank) for rank, hit in enumerate(hits, 1)]
    prompt = render_prompt(text, ranked)
    fields = {
        "question": text,
        "answer": answer,
        "kind": kind,
        "passages": [hit.passage.id for hit in hits],
        "document_id": own.hits[answering[0]].passage.document_id,
        "split": "held_out" if own.is_held_out else "train",
        "prompt_version": PROMPT_VERSION,
    }
    name = own.question.id.partition(":")[2]  # without the number of its file
    parents = (name, *(hit.passage.id for hit in hits))
    messages = (*prompt.messages, Message("assistant", answer))
    return Record(messages, fields, own.origin.then(_make_link(parents)))


def make_near_miss(
    question: str, questions: Sequence[str], hits: Sequence[Hit], rng: np.random.Generator
) -> str:
    """Return a question with another name or number, which no passage has; empty if there is none.

    Names and numbers of other ``questions`` may take the place; ``hits`` are the passages shown.
    """
    shown = "\n".join(" ".join([hit.passage.title, hit.passage.text]) for hit in hits).casefold()
    for pattern in (_NUMBER, _NAME) if rng.random() < 1 / 2 else (_NAME, _NUMBER):
        places = list(pattern.finditer(question))
        found = {match.group() for text in questions for match in pattern.finditer(text)}
        choices = sorted(
            one
            for one in found
            if one.strip('"`').casefold() not in shown and one.casefold() not in question.casefold()
        )
        if places and choices:
            place = places[int(rng.integers(len(places)))]
            choice = choices[int(rng.integers(len(choices)))]
            return question[: place.start()] + choice + question[place.end() :]
    return ""


def _find_foreign(
    questions: Sequence[_OpenQuestion],
    own: _OpenQuestion,
    hits: Sequence[Hit],
    rng: np.random.Generator,
) -> str:
    """Return a question that none of the shown passages answers, about another document."""
    documents = {hit.passage.document_id for hit in own.hits}
    ids = {hit.passage.id for hit in hits}
    others = [
        one
        for one in questions
        if one.hits[one.answering[0]].passage.document_id not in documents
        and not ids & {one.hits[at].passage.id for at in one.answering}
    ]
    drawn = (others[int(at)] for at in rng.permutation(len(others)))
    return next((one.question.text for one in drawn if not any(map(one.may_answer, hits))), "")


def _make_link(parents: tuple[str, ...]) -> Link:
    return Link("rag.open_book", parents=parents, prompt=PROMPT_DIGEST)
