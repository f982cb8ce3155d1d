"""A question that was judged before: what a person chose is given, as long as it stands."""

import json
from dataclasses import replace

import pytest

from stillroom.evaluate.qa.judgments import JudgmentStore
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.rag import Index, ask
from stillroom.rag.evaluation.judging import describe_asked, record_judgment
from stillroom.rag.generation.judged import find_judged, is_borne_out
from stillroom.rag.generation.semantic_cache import SemanticCache
from stillroom.rag.interfaces import Query
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.records import Message
from stillroom.testing import scripted_model

PAGES = {
    "mill.txt": "The mill opens at nine. It was built by monks.\n\nThe mill grinds rye now.\n",
    "forge.txt": "The forge opens at ten. The smith mends ploughs.\n",
}
OVERLAP = {"name": "quote", "reader": "builtin:overlap", "min_probability": 0.0, "max_quotes": 1}
QUESTION = "When does the mill open?"
FIRST, OTHER = "The mill opens at nine.", "The forge opens at ten."


def build(place, **pages):
    """Return the index of the pages; ``mill`` and others replace or add a text."""
    texts = PAGES | {f"{name}.txt": text for name, text in pages.items()}
    (place / "documents").mkdir(exist_ok=True)
    for name, text in texts.items():
        (place / "documents" / name).write_text(text, encoding="utf-8")
    out = place / f"index-{len(list(place.iterdir()))}"
    recipe = IndexRecipe(
        documents=str(place / "documents"),
        embedder="static",
        chunker={"name": "recursive", "size": 16, "overlap": 0},
    )
    run(recipe, Job.start(out, "recipe\n"), embedder=open_embedder("static"))
    return Index.open(out)


@pytest.fixture
def index(tmp_path):
    with build(tmp_path) as opened:
        yield opened


@pytest.fixture
def store(tmp_path):
    return JudgmentStore(tmp_path / "index.judgments")


def put(index, store, question=QUESTION, **settings):
    """Ask as serving does, with what was judged."""
    judged = find_judged(store, index, str(getattr(question, "text", question)))
    return ask(
        index,
        scripted_model({"*": '["When does it open?"]'}),
        question,
        judged=judged,
        **{"answering": OVERLAP, **settings},
    )


def judge(index, store, verdict, quote="", question=QUESTION):
    answer = put(index, store, question)
    return record_judgment(store, index, describe_asked(question, answer, None), verdict, quote)


def first(answer):
    return next((quote["text"] for quote in answer.details.get("quotes", ())), "")


def test_the_sentence_that_a_person_chose_is_the_first_quote(index, store):
    assert first(put(index, store)) == FIRST
    judgment = judge(index, store, "quote", OTHER)
    answer = put(index, store, "when does the  MILL open")
    (quote,) = answer.details["quotes"]
    assert answer.completion.text == f"{OTHER} [{quote['number']}]"
    source = PAGES["forge.txt"].encode()
    assert source[quote["byte_start"] : quote["byte_end"]].decode() == OTHER
    assert quote["path"] == "forge.txt"
    told = answer.details["judged"]
    assert (told["id"], told["verdict"], told["time"]) == (judgment.id, "quote", judgment.time)
    assert told["origin"] == "human"
    assert not answer.details["abstained"]


@pytest.mark.parametrize(
    "question",
    ["When does the mill open on Sundays?", "Does the mill open when?", "When does the mill open!?",
     "When does the m.ill open?", "When does the mill++ open?"],
)  # fmt: skip
def test_another_question_is_not_answered_by_the_judgment(index, store, question):
    judge(index, store, "quote", OTHER)
    assert "judged" not in put(index, store, question).details


def test_a_question_that_other_turns_give_a_meaning_is_another_one(index, store):
    judge(index, store, "quote", OTHER)
    query = Query(QUESTION, history=(Message("user", "And the other?"),))
    assert "judged" in put(index, store, query).details
    told = put(index, store, query, transform="last_turn")
    assert "judged" not in told.details


def test_a_right_answer_is_given_again_whole_whatever_reads_now(index, store):
    two = {**OVERLAP, "max_quotes": 2, "margin": 100}
    before = put(index, store, answering=two)
    assert len(before.details["quotes"]) == 2
    record_judgment(store, index, describe_asked(QUESTION, before, None), "right")
    after = put(index, store, answering={**OVERLAP, "min_probability": 1.0})
    texts = [[quote["text"] for quote in one.details["quotes"]] for one in (before, after)]
    assert texts[0] == texts[1]


def test_an_answer_called_wrong_is_not_shown_first_again(index, store):
    judge(index, store, "wrong")
    answer = put(index, store)
    assert first(answer)
    assert first(answer) != FIRST
    assert answer.details["judged"]["verdict"] == "wrong"
    assert FIRST not in str(answer.details["judged"])  # nor told to whom may not see it any more


def test_a_sentence_called_wrong_with_the_line_below_its_heading_is_wrong_without(tmp_path, store):
    with build(tmp_path, mill="The mill\n========\n" + FIRST + "\n") as index:
        answer = put(index, store)
        assert first(answer) == FIRST
        asked = describe_asked(QUESTION, answer, None)
        lined = f"========\n{FIRST}"  # as earlier versions quoted it
        quotes = ({**asked.quotes[0], "text": lined},)
        earlier = replace(asked, text=asked.text.replace(FIRST, lined), quotes=quotes)
        record_judgment(store, index, earlier, "wrong")
        assert first(put(index, store)) not in {"", FIRST}


LIMITS = (
    "<h1>Limits</h1><ol><li><p>Tables in a join</p><p>A join contains 64 tables at most.</p></li>"
    "<li><p>Depth of a tree</p><p>A tree is 1000 deep at most.</p></li></ol><table>"
    "<tr><td>tables in a weir</td><td>3</td></tr><tr><td>weirs</td><td>3</td></tr></table>"
    "<p>The mill has these tables of rye:</p><ul><li>tall</li><li>small</li></ul>"
)


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        ("Which tables are in a join?", "Tables in a join"),
        ("Which tables are in a weir?", "tables in a weir; 3 [1]"),
        ("Which of these tables has the mill?", "of rye:\n- tall\n- small [1]"),
    ],
)
def test_a_label_a_row_or_a_list_called_wrong_is_not_shown_first_again(tmp_path, question, shown):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/limits.html").write_text(LIMITS)
    recipe = IndexRecipe(documents=str(tmp_path / "documents"), embedder="static")
    run(recipe, Job.start(tmp_path / "index", "recipe\n"), embedder=open_embedder("static"))
    store = JudgmentStore(tmp_path / "index.judgments")
    with Index.open(tmp_path / "index") as index:
        before = put(index, store, question)
        assert shown in before.completion.text
        record_judgment(store, index, describe_asked(question, before, None), "wrong")
        after = put(index, store, question)
        assert shown not in after.completion.text
        assert after.details["judged"]["verdict"] == "wrong"
        record_judgment(store, index, describe_asked(question, before, None), "right")
        again = put(index, store, question)
        assert again.completion.text == before.completion.text
        assert again.details["judged"]["verdict"] == "right"


def test_a_later_verdict_replaces_an_earlier_one(index, store):
    judge(index, store, "quote", OTHER)
    judge(index, store, "wrong")
    assert first(put(index, store)) not in {FIRST, OTHER, ""}
    judge(index, store, "quote", FIRST)
    assert first(put(index, store)) == FIRST
    judge(index, store, "absent")
    assert put(index, store).details["refusal"] == "judged-absent"
    judge(index, store, "wrong")
    assert put(index, store).details["refusal"] != "judged-absent"


def test_documents_without_an_answer_are_read_again_once_they_changed(tmp_path, index, store):
    judge(index, store, "absent")
    answer = put(index, store)
    assert answer.details["abstained"]
    assert answer.details["refusal"] == "judged-absent"
    assert answer.citations  # the nearest passages
    with build(tmp_path) as same:
        assert put(same, store).details["refusal"] == "judged-absent"
    with build(tmp_path, inn="In winter the mill opens at eleven.\n") as changed:
        answer = put(changed, store)
    assert first(answer) == "In winter the mill opens at eleven."
    assert any("they have changed since" in one for one in answer.details["notices"])


def test_a_judged_sentence_counts_while_its_passage_stands_unchanged(tmp_path, index, store):
    judge(index, store, "quote", "The mill grinds rye now.")
    moved = "A new first line, which moves all the others, stands here now.\n\n" + PAGES["mill.txt"]
    with build(tmp_path, mill=moved) as opened:
        answer = put(opened, store)
        assert first(answer) == "The mill grinds rye now."
        assert answer.details["quotes"][0]["byte_start"] == moved.index("The mill grinds")
    with build(tmp_path, mill=PAGES["mill.txt"].replace("rye", "rice")) as opened:
        answer = put(opened, store)
    assert "judged" not in answer.details or answer.details["judged"]["verdict"] == "wrong"
    assert any("its passage unchanged" in one for one in answer.details["notices"])


def test_who_has_another_scope_or_view_gets_no_judged_sentence(index, store):
    judge(index, store, "quote", OTHER)
    assert find_judged(store, index, QUESTION, ("acme",)) is None
    restricted = index.restrict("path = 'mill.txt'")
    answer = put(restricted, store)
    assert OTHER not in answer.completion.text
    (row,) = store.read()
    store.add(replace(row, asked=replace(row.asked, tenant="acme")))
    assert find_judged(store, index, QUESTION, ("acme",)).quotes


def test_the_case_of_an_option_is_part_of_the_question(index, store):
    judge(index, store, "quote", OTHER, "What does tar -v do?")
    assert "judged" in put(index, store, "what DOES tar -v do").details
    assert "judged" not in put(index, store, "What does tar -V do?").details


def test_part_of_a_sentence_is_given_as_the_whole(index, store):
    answer = put(index, store)
    asked = describe_asked(QUESTION, answer, None)
    part = {**asked.quotes[0], "text": "The mill opens"}
    record_judgment(store, index, replace(asked, text="The mill opens", quotes=(part,)), "right")
    assert first(put(index, store)) == FIRST


def test_that_a_part_or_an_older_state_holds_no_answer_says_nothing_of_the_whole(index, store):
    asked = describe_asked(QUESTION, put(index, store), None)
    record_judgment(store, index, replace(asked, index="of another"), "absent")
    answer = put(index, store)
    assert not answer.details["abstained"]
    assert any("other ones were asked" in one for one in answer.details["notices"])


def test_what_an_answer_follows_is_borne_out_by_judgments_of_its_question(index, store):
    judge(index, store, "quote", OTHER)
    stated = find_judged(store, index, QUESTION)
    assert is_borne_out(stated, store, index, QUESTION)
    assert not is_borne_out(stated, store, index, "Who owns the mill?")
    assert not is_borne_out(stated, store, index, QUESTION, ("acme",))
    (place,) = stated.quotes
    for forged in ({"verdict": "right"}, {"quotes": ((place[0], 0, 3),)}, {"quotes": ()}):
        assert not is_borne_out(replace(stated, **forged), store, index, QUESTION)
    judge(index, store, "wrong")  # what was said before stays said
    assert is_borne_out(stated, store, index, QUESTION)
    wrong = find_judged(store, index, QUESTION)
    assert is_borne_out(wrong, store, index, QUESTION)
    assert not is_borne_out(replace(wrong, wrong=("0" * 64,)), store, index, QUESTION)


def test_a_cached_answer_gives_way_to_a_judgment(index, store):
    cache = SemanticCache()
    assert first(put(index, store, cache=cache)) == FIRST
    judge(index, store, "quote", OTHER)
    assert first(put(index, store, cache=cache)) == OTHER
    assert put(index, store, cache=cache).details["cached"]["kind"] == "exact"


@pytest.mark.parametrize(
    "damage",
    [{"judged": {}}, {"evidence": [{}]}, {"evidence": ["x"]}, {"evidence": [{"start": "x"}]}, "["],
)
def test_damaged_judgments_cost_no_answer_and_are_named(index, store, damage):
    judgment = judge(index, store, "quote", OTHER)
    row = judgment.to_json()
    if damage == {"evidence": [{"start": "x"}]}:
        damage = {"evidence": [{**row["evidence"][0], "start": "x"}]}
    text = damage * 100_000 if isinstance(damage, str) else json.dumps({**row, **damage})
    with store.path_of(judgment.side).open("a") as file:
        file.write(f"{text}\n")
    answer = put(index, store)
    assert first(answer) == FIRST
    assert any("data.question-set" in one for one in answer.details["notices"])
