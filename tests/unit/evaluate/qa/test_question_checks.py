"""What makes a question set too easy is found, and what is not is left alone."""

from stillroom.evaluate.qa.question_checks import find_leakage, find_split_overlap, tabulate_leakage
from stillroom.evaluate.qa.questions import EvidenceSpan, JudgedQuestion

PASSAGE = "The otter sleeps on its back in the kelp so that the tide does not carry it away."


def asked(name, text, answers=("kelp",), **evidence):
    return JudgedQuestion(name, text, answers, (EvidenceSpan(**evidence),) if evidence else ())


def kinds(*questions, passages=()):
    held = {one.id: [PASSAGE] for one in questions}
    return {(leak.question, leak.kind) for leak in find_leakage(questions, held, set(passages))}


def test_a_copied_question_is_found_and_a_persons_is_not():
    copied = asked("a", "Why does it sleep on its back in the kelp so that the tide?", ())
    people = asked("b", "Where do sea otters rest, and what keeps them from drifting?", ())
    short = asked("c", "on its back in kelp?", ())
    assert kinds(copied, people, short) == {("a", "copied")}


def test_a_question_behind_its_passages_heading_is_found():
    headings = ("4.2. Sea_Otters", "Resting: where and how")
    headed = asked("a", "Sea Otters - Resting: What keeps it from drifting?", ())
    copied = asked(
        "b", "Sea Otters: Why does it sleep on its back in the kelp so that the tide?", ()
    )
    people = asked("c", "Otters again: what keeps them from drifting?", ())
    found = find_leakage(
        [headed, copied, people], {"b": [PASSAGE]}, set(), dict.fromkeys("abc", headings)
    )
    assert [(leak.question, leak.kind) for leak in found] == [
        ("a", "heading"),
        ("b", "heading"),
        ("b", "copied"),
    ]


def test_a_question_that_holds_its_answer_is_found():
    assert kinds(asked("a", "Is it kelp that otters sleep in?")) == {("a", "answer-in-question")}
    assert kinds(asked("a", "Is it a kelpie?")) == set()


def test_a_question_made_from_the_very_passage_is_found():
    made = asked("a", "Where does it rest?", quote="The otter sleeps", passage_id="pas-1")
    assert kinds(made, passages=["pas-1"]) == {("a", "boundary")}
    assert kinds(made, passages=["pas-2"]) == set()  # another index cuts elsewhere


def test_near_duplicates_within_a_set_and_across_a_split_are_found():
    text = "How many hours of a summer day does a young otter spend asleep in the kelp forest"
    texts = {"a": f"{text}?", "b": f"Tell me: {text}?", "c": "Who eats sea urchins all day long?"}
    questions = [asked(name, one, ()) for name, one in texts.items()]
    assert kinds(*questions) == {("b", "near-duplicate")}
    only = {name: texts[name] for name in ("b", "c")}
    crossing = find_split_overlap({"a": texts["a"]}, only)
    assert [(leak.question, leak.other) for leak in crossing] == [("b", "a")]
    assert find_split_overlap({}, texts) == []


def test_the_table_counts_by_kind_and_is_absent_where_nothing_was_found():
    leaks = find_leakage([asked("a", "kelp?"), asked("b", "the kelp?")], {}, set())
    table = tabulate_leakage(leaks, 7)
    assert table.rows[0][:2] == ("answer-in-question", "2 of 7")
    assert table.rows[0][3] == "a, b"
    assert tabulate_leakage([], 7) is None
