"""Filters judge any record, always the same, and duplicates form no chains."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.synth.conftest import make_passage

from stillroom.records import Message, Record
from stillroom.synth.filters.duplicate import Duplicate
from stillroom.synth.interfaces import FILTERS, PASSAGE_FILTERS, FilterContext
from stillroom.synth.prompting.conversation import find_statements
from stillroom.synth.prompting.english_clauses import write_clause_questions
from stillroom.synth.prompting.requests import clean_answer, clean_question, parse_qa_pair

WORDS = st.sampled_from(
    str.split('the bee bees wax is in of what does do ? . , " ( ) make made 35 hive')
)
TEXTS = st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=40).map(" ".join))
JSON = st.recursive(
    st.none() | st.integers() | TEXTS, lambda inner: st.dictionaries(TEXTS, inner, max_size=3)
)
FIELDS = st.dictionaries(
    st.sampled_from(["question", "answer", "evidence", "document_id", "split"]), JSON
)
TURNS = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXTS)
RECORDS = st.builds(Record, st.lists(TURNS, max_size=3).map(tuple), FIELDS)


@pytest.mark.parametrize("name", PASSAGE_FILTERS)
@given(record=RECORDS, held_out=RECORDS)
@settings(max_examples=40, deadline=None)
def test_filters_are_total_and_deterministic(name, record, held_out):
    context = FilterContext(held_out=[held_out])
    first = FILTERS.build(name).start(context).judge(record)
    assert first == FILTERS.build(name).start(context).judge(record)
    assert first.keep or first.reason


PAIRS = st.lists(
    st.tuples(
        st.sampled_from(["What is wax?", "What is WAX?", "What is comb?", "Where is wax?"]),
        st.lists(st.sampled_from(str.split("soft warm old new bright")), min_size=1, max_size=12),
    ),
    max_size=12,
)


def fold(pairs):
    judge = Duplicate().start(FilterContext())
    kept = []
    for question, answer in pairs:
        text = " ".join(answer)
        record = Record(
            (Message("user", question), Message("assistant", text)),
            {"question": question, "answer": text},
        )
        if judge.judge(record).keep:
            judge.on_accept(record)
            kept.append(record)
    return kept


@given(PAIRS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_in_any_order_every_dropped_record_repeats_one_that_is_kept(pairs, rng):
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    kept = fold(shuffled)
    questions = {record.fields["question"].casefold() for record in kept}
    assert len(questions) == len(kept)
    sentences = [one for one in (r.fields["answer"] for r in kept) if len(one.split()) >= 5]
    assert len(set(sentences)) == len(sentences)
    again = fold([(r.fields["question"], r.fields["answer"].split()) for r in kept])
    assert again == kept
    if pairs:
        assert kept


@given(TEXTS)
@settings(deadline=None)
def test_reading_any_text_never_fails(text):
    assert "\n" not in clean_question(text)
    assert "\n" not in clean_answer(text)
    parse_qa_pair(text)
    passage = make_passage("bees", text, start=7)
    for quote in find_statements(passage):
        assert passage.text[quote.start - 7 : quote.end - 7] == quote.text


@given(TEXTS)
@example("0 ? is")
@settings(deadline=None)
def test_a_written_question_is_one_line(statement):
    statement = f"The {statement} is kept by bees in a hive."
    for question in write_clause_questions(statement, statement):
        assert question.endswith("?")
        assert "\n" not in question
