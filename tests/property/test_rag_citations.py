"""Citations and answers do not depend on how a stream is cut, nor on what text it holds."""

import codecs
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.rag.analysis.analyzer import Analyzer
from stillroom.rag.generation.citation_parser import CitationMark, CitationParser, format_citations
from stillroom.rag.generation.cited_sentences import CitationStream
from stillroom.rag.groundedness.score import SourceTexts

PARTS = [
    "Paris is big",
    ". ",
    ".",
    "\n",
    "\n\n",
    " ",
    "[1]",
    "[2]",
    "[9]",
    "[1, 2]",
    "[[1]]",
    "【2】",
    "［1］",
    "[",
    "]",
    "[1",
    "`",
    "```",
    "\n```\n",
    "x[1]",
    "e.g. ",
    "Dogs bark!",
    "€",
    "日本。",
    "2.1 ",
    "- ",
    "\t",
    "[^2]",
    "[1-2]",
    "😀",
    "](http://a.example/?q=1)",
    "![",
    "<img src=x>",
    "<div>",
    "<",
    "\\",
]
texts = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)
shown = st.integers(0, 2)


class FlatLexicon:
    """Every term weighs the same."""

    def idf(self, term):
        return 1.0


ANALYZER = Analyzer()


def parse(pieces, count):
    parser = CitationParser(count)
    out = [one for piece in pieces for one in parser.feed(piece)] + parser.finish()
    joined = "".join(
        one.space + format_citations(one.numbers) if isinstance(one, CitationMark) else one.text
        for one in out
    )
    return joined, parser.removed


def compose(pieces, count):
    passages = ["Paris is big. It is old.", "Dogs bark! They guard."][:count]
    composer = CitationStream(SourceTexts(passages, ANALYZER, FlatLexicon()), count)
    text = "".join(composer.feed(piece) for piece in pieces) + composer.finish()
    return text, composer.statements, composer.numbers, composer.removed


@given(texts, shown)
def test_citations_are_equal_for_every_cut(text, count):
    whole = parse([text], count)
    assert parse(list(text), count) == whole
    for cut in range(len(text)):
        assert parse([text[:cut], text[cut:]], count) == whole


@settings(deadline=None)  # composed once for every byte: long on a busy machine
@given(texts, shown)
def test_answers_are_equal_for_every_byte_cut(text, count):
    whole = compose([text], count)
    data = text.encode()
    decoder = codecs.getincrementaldecoder("utf-8")()
    assert compose([decoder.decode(data[at : at + 1]) for at in range(len(data))], count) == whole
    for cut in range(len(data)):
        decoder = codecs.getincrementaldecoder("utf-8")()
        pieces = [decoder.decode(data[:cut]), decoder.decode(data[cut:], True)]
        assert compose(pieces, count) == whole


@given(st.text(max_size=60), shown)
def test_any_text_survives_and_only_shown_numbers_are_cited(text, count):
    joined, _ = parse([text], count)
    if not re.search(r"[\[【［<]", text):
        assert joined == text
    composed, statements, numbers, _ = compose([text], count)
    assert set(numbers) <= set(range(1, count + 1))
    assert all(0 <= one.start <= one.end <= len(composed) for one in statements)


@given(texts)
def test_statements_stand_in_order_and_do_not_overlap(text):
    _, statements, _, _ = compose([text], 2)
    ends = [0, *(one.end for one in statements)]
    assert all(one.start >= end for one, end in zip(statements, ends, strict=False))
