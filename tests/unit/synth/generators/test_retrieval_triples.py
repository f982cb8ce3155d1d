import json
from collections import Counter

import pytest
from tests.unit.synth.conftest import make_passages
from tests.unit.synth.generators.hostile import HOSTILE, fill, reasons, survives

from stillroom.rag.search_engines.keyword import KeywordEngine, Postings, write_postings
from stillroom.records import Passage
from stillroom.synth.generators.retrieval_triples import HardNegativeIndex, RetrievalTriples
from stillroom.synth.lexical_overlap import extract_content_stems
from stillroom.synth.prompting.conversation import refers_to_source
from stillroom.synth.types import GeneratorContext, WorkItem
from stillroom.testing import scripted_model

PASSAGES = make_passages()
QUERY = "At what temperature does a honey bee colony keep its brood nest?"


def script(answers="no", query=QUERY):
    return lambda prompt: fill(prompt.schema, query=query, answers=answers)


def triple(answer=None, **more):
    method = RetrievalTriples(**{"embedder": "builtin:static", "max_share": 1.0, **more})
    writer = method.start(GeneratorContext("train", PASSAGES))
    (made,) = writer.generate([WorkItem(PASSAGES[0], "train")], scripted_model(answer or script()))
    return made


@pytest.mark.parametrize("mine", ["dense", "words", "both"])
def test_a_query_comes_with_near_passages_that_are_not_its_own(mine):
    record = triple(negatives=3, mine=mine).records[0]
    assert record.fields["question"] == QUERY
    assert record.messages[1].content == PASSAGES[0].text
    found = record.fields["negatives"]
    assert 1 <= len(found) <= 3
    assert PASSAGES[0].id not in {one["passage_id"] for one in found}
    assert all(one["score"] <= record.fields["positive"]["score"] for one in found)
    assert record.origin.chain[-1].parents == (
        PASSAGES[0].id,
        *(one["passage_id"] for one in found),
    )


def test_what_may_be_an_answer_is_no_negative():
    strict = triple(max_share=0.01)
    assert reasons(strict) == ["no hard negative is left"]
    assert strict.counts["false negatives by score"] > 0
    asked = triple(script(answers="yes"), ask_teacher=True, negatives=2)
    assert reasons(asked) == ["no hard negative is left"]
    assert asked.counts["false negatives by the teacher"] == 2
    assert triple(script(), ask_teacher=True).records


def test_a_query_about_texts_does_not_lean_on_its_own():
    assert refers_to_source("What can be concluded from the text?")
    assert refers_to_source("The article is about teachers in Wales.")
    assert not refers_to_source("How does the text editor of a terminal work?")
    assert not refers_to_source("Who wrote the text of the anthem?")


def test_a_query_must_be_understood_and_find_its_passage():
    leaning = triple(script(query="What does the text above say of bees?"))
    assert reasons(leaning) == ["query that speaks of its text"]
    lost = triple(script(query="How does tempered glass break into pieces?"), max_rank=1)
    assert reasons(lost) == ["query that does not find its passage"]
    assert triple().records[0].fields["positive"]["rank"] == 1


@pytest.mark.parametrize(
    ("kind", "query", "why"),
    [
        ("question", "Honey bee colonies and their brood nest in winter", "no question"),
        ("question", "1620s?", "query too short"),
        ("claim", "Event types", "query too short"),
        ("claim", PASSAGES[0].text[:120], "query copied from its text"),
        ("keywords", PASSAGES[0].text[:60], "query copied from its text"),
        ("claim", "honey bees " * 19, "query cut at its length"),
        (
            "keywords",
            "honey bee brood nest warm winter colony cell wax comb queen drone egg",
            "text",
        ),
    ],
)
def test_what_is_no_query_of_its_kind_is_dropped(kind, query, why):
    made = triple(script(query=query[:200]), kinds=[kind])
    assert not made.records
    assert why in reasons(made)[0]


def test_a_question_ends_at_its_mark():
    made = triple(script(query=f"{QUERY} It keeps it warm all year."))
    assert made.records[0].fields["question"] == QUERY
    asked = "honey bee brood nest temperature"
    made = triple(script(query=asked), kinds=["keywords"])
    assert made.records[0].fields["question"] == asked


def test_candidates_come_of_a_file(tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_text("\n".join(json.dumps(one.to_json()) for one in PASSAGES[-2:]))
    record = triple(candidates=str(path)).records[0]
    known = {one.id for one in PASSAGES[-2:]}
    assert {one["passage_id"] for one in record.fields["negatives"]} <= known


def test_mining_by_words_ranks_as_the_keyword_engine_does(tmp_path):
    terms = [extract_content_stems(one.text) for one in PASSAGES]
    write_postings(tmp_path, [("", [], one, 0, len(one)) for one in terms])
    engine = KeywordEngine([Postings.open(tmp_path)])
    mine = HardNegativeIndex(PASSAGES, "builtin:static", "words")
    for query in ("yeast raises dough", "bees and the brood nest", "glass glass breaks", "zzz"):
        rows, _ = engine.search(Counter(extract_content_stems(query)), 5)
        absent = Passage("elsewhere", 0, 1, "a", PASSAGES[0].location)
        found = mine.nearest(query, absent, 5)[2]
        assert [one.passage.id for one in found] == [PASSAGES[row].id for row in rows]


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    method = RetrievalTriples(embedder="builtin:static")
    writer = method.start(GeneratorContext("train", PASSAGES))
    survives(lambda model: writer.generate([WorkItem(PASSAGES[0], "train")], model), said)
