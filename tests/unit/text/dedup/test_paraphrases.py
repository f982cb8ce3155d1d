"""What is asked is told apart from the passage that it asks about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.text.dedup.paraphrases import QuestionParts, split_question

PASSAGE = (
    "The old mill of Elm was built by Ada Berg in 1831. It ground rye for nine villages. In the "
    "flood of 1874 its wheel was lost. Since then it has been a dairy that churns twice a week."
)
QUESTION = "Who built the old mill of Elm?"


@pytest.mark.parametrize(
    "text",
    [
        f"{PASSAGE}\n\n{QUESTION}",
        f"{QUESTION}\n\n{PASSAGE}",
        f"{PASSAGE}\n{QUESTION}\nA) Ada Berg\nB) Ole Holm",
        f"Passage: {PASSAGE}\nQuestion: {QUESTION}\nAnswer:",
        f"**Question:** {QUESTION}\nContext: {PASSAGE}",
        f"Kontext: {PASSAGE}\nFrage: {QUESTION}\nAntwort:",
        f"### Context\n{PASSAGE}\n\n### Question\n{QUESTION}\n\n### Answer",
        f"**Context**\n\n{PASSAGE}\n\n**Question**\n\n{QUESTION}\n\n**Answer:**",
        f"Question:\n{QUESTION}\nText:\n{PASSAGE}\nThe end.",
        f"<text>{PASSAGE}</text>\n<question>{QUESTION}</question>",
        f"<question>\n{QUESTION}\n</question>\n<text>{PASSAGE}</text>",
        f"{PASSAGE}\nQ: {QUESTION}\nA:",
        f"{PASSAGE} Its cheese is sold in all nine of the villages. {QUESTION}",
    ],
)
def test_a_question_is_told_from_its_passage(text):
    found = split_question(text)
    assert found.question.strip("*") == QUESTION
    assert "flood of 1874" in found.passage
    assert QUESTION not in found.passage


@pytest.mark.parametrize(
    "text",
    [
        "",
        QUESTION,
        PASSAGE,
        f"{PASSAGE}\n\n{PASSAGE}",
        "Sam had 48 clips and sold half of them in May. How many has he left?",
    ],
)
def test_where_there_is_no_passage_the_whole_is_the_question(text):
    assert split_question(text).question == text
    assert not split_question(text).passage


@given(st.text("aQ?.:\n ", max_size=300))
def test_any_text_is_told_apart_without_inventing_a_word(text):
    found = split_question(text)
    assert found.question in text
    assert set(found.passage.split()) <= set(text.split())


def test_a_question_of_several_lines_below_its_heading_is_read_to_its_mark():
    wrapped = QUESTION.replace("mill ", "mill\n")
    found = split_question(f"### Question\n{wrapped}\n### Text\n{PASSAGE}")
    assert (found.question, found.passage) == (wrapped, f"### Text\n{PASSAGE}")
    problem = f"Ada grinds rye.\n{PASSAGE}\n{PASSAGE}\nHow many villages have bread?"
    found = split_question(f"### Question\n{problem}")
    assert found.question == "How many villages have bread?"


def test_options_at_the_end_belong_to_no_part_and_lists_within_stay():
    listed = "\n".join(f"{at % 9 + 1}. Rye, lot {at}" for at in range(4000))  # in linear time
    text = f"{PASSAGE}\n{listed}\n\n{QUESTION}\nA) The sea\n (b) The rain\n"
    found = split_question(text)
    assert found.question == QUESTION
    assert found.passage == f"{PASSAGE}\n{listed}"
    assert split_question(f"{listed}\n{listed}") == QuestionParts(f"{listed}\n{listed}")
