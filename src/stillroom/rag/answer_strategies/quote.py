"""Quote the sentences of the retrieved passages that answer the question; no model writes.

Source: Garg et al. 2020, "TANDA", arXiv:1911.04118 (answer sentence selection); Kamath et al. 2020,
arXiv:2006.09462 (no answer below a calibrated probability). Differs from both: sentences are read
within their passage (``stillroom.rag.answer_selection.reader``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import CheckpointError
from stillroom.rag.answer_selection.examples import read_passage
from stillroom.rag.answer_selection.overlap import QuestionOverlap
from stillroom.rag.answer_selection.reader import (
    BUILTIN_READER,
    OVERLAP_READER,
    READ_PASSAGES,
    open_reader,
)
from stillroom.rag.interfaces import AnswerStrategy
from stillroom.rag.observability import add_warning, stage
from stillroom.records import Completion

if TYPE_CHECKING:
    from stillroom.rag.answer_selection.overlap import OverlapReader, Reading, ScoredSentence
    from stillroom.rag.answer_selection.reader import SentenceReader
    from stillroom.rag.generation.session import AnswerSession

__all__ = ["Quote"]

Quoted = tuple[int, tuple[int, int], tuple[int, int] | None]
# English words whose meaning stands in the sentence before.
_ANAPHOR = re.compile(
    r"(?:it|its|they|their|them|he|his|she|her|this|that|these|those|such|both"
    r"|the (?:latter|former))\b(?!['’]s\b)",
    re.IGNORECASE,
)


class Quote(AnswerStrategy):
    """Verbatim sentences with their byte ranges, chosen by a small encoder."""

    paper: ClassVar[str] = "arXiv:1911.04118"

    reader: str = Field(
        BUILTIN_READER,
        min_length=1,
        description="sentence reader: the folder of a job of kind rag.reader; builtin:reader, "
        "trained on people's questions about encyclopedic articles; builtin:overlap, shared words "
        "without a model",
    )
    passages: int = Field(
        READ_PASSAGES,
        ge=1,
        le=50,
        description="number of passages read; at least those shown (k)",
    )
    max_quotes: int = Field(2, ge=1, le=5, description="maximum number of quoted sentences")
    margin: float = Field(
        1.0, ge=0, description="a further sentence is quoted if its score is this near to the best"
    )
    min_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        description="abstain below this probability that the best sentence answers; null uses the "
        "reader's threshold",
    )

    @override
    def answer(self, inquiry: AnswerSession) -> Iterator[str]:
        depth = max(self.passages, inquiry.asking.k)
        hits = inquiry.retrieve(k=depth)[:depth]
        if not hits:
            inquiry.abstain("nothing-found")
            return
        with stage("select"):
            reader = self._open_reader()
            passages = [read_passage(hit) for hit in hits]
            reading = reader.read(
                inquiry.query.text,
                [(part.title, part.text, part.sentences) for part in passages],
                QuestionOverlap(inquiry.index, inquiry.query.text),
            )
        inquiry.completion = Completion("", model=reader.fingerprint)
        threshold = reader.threshold if self.min_probability is None else self.min_probability
        inquiry.note("select", probability=round(reading.probability, 4), threshold=threshold)
        if not reading.sentences or reading.probability < threshold:
            inquiry.abstain("no-answer", hits)
            return
        texts = [hit.passage.text for hit in hits]
        yield from inquiry.quote(
            hits,
            _join_runs(self._choose(reading, texts), reading.sentences, texts),
            probability=reading.probability,
            fingerprint=reader.fingerprint,
        )

    def _choose(self, reading: Reading, texts: Sequence[str]) -> list[ScoredSentence]:
        """Return the best sentences near the first; of equal texts the first."""
        chosen: dict[str, ScoredSentence] = {}
        for sentence in reading.sentences:
            if reading.sentences[0].score - sentence.score > self.margin:
                break
            chosen.setdefault(texts[sentence.passage][sentence.start : sentence.end], sentence)
            if len(chosen) == self.max_quotes:
                break
        return list(chosen.values())

    def _open_reader(self) -> SentenceReader | OverlapReader:
        try:
            return open_reader(self.reader)
        except CheckpointError as error:
            if self.reader != BUILTIN_READER:
                raise
            add_warning(f"sentences are picked by shared words alone: {error}")
            return open_reader(OVERLAP_READER)


def _join_runs(
    chosen: Sequence[ScoredSentence], every: Sequence[ScoredSentence], texts: Sequence[str]
) -> list[Quoted]:
    """Return the spans to quote in reading order; neighboring sentences become one.

    A sentence that begins with a word such as "It" is quoted with the one before.
    """
    spans = []
    for sentence in chosen:
        start, short = sentence.start, sentence.short
        if _ANAPHOR.match(texts[sentence.passage], start):
            before = [
                other.start
                for other in every
                if other.passage == sentence.passage and other.end <= start
            ]
            start = max(before, default=start)
        spans.append((sentence.passage, (start, sentence.end), short))
    runs: list[Quoted] = []
    for passage, (start, end), short in sorted(spans, key=lambda span: span[:2]):
        if runs and runs[-1][0] == passage:
            _, (first, last), earlier = runs[-1]
            if start <= last or not texts[passage][last:start].strip():
                runs[-1] = (passage, (first, max(last, end)), earlier or short)
                continue
        runs.append((passage, (start, end), short))
    return runs
