import json

from tests.unit.synth.filters.test_filters import make_record

from stillroom.records import Message, Record
from stillroom.synth.filters.decontaminate import Decontaminate
from stillroom.synth.interfaces import FilterContext

HELD_OUT = make_record(
    "What do worker bees produce from their glands?",
    "Worker bees produce wax from glands below the abdomen.",
)


def judge(record):
    return Decontaminate().start(FilterContext(held_out=[HELD_OUT])).judge(record)


def passage(text):
    return Record((Message("assistant", text),))


def test_held_out_question_in_a_training_record_is_found():
    record = make_record("What do worker bees produce from their glands?", "Something else.")
    assert judge(record).reason == "held-out text in training"


def test_a_held_out_dialogue_needs_no_fields_to_be_found():
    asked = ["What do worker bees produce from their glands?", "Continue"]
    turns = [
        Message(role, text)
        for text in asked
        for role, text in (("user", text), ("assistant", "Wax."))
    ]
    state = Decontaminate().start(FilterContext(held_out=[Record(tuple(turns))]))
    assert state.judge(make_record(asked[0], "Honey.")).reason == "held-out text in training"
    for question, answer in (("Continue", "The queen lays eggs."), ("What is it made of?", "Wax.")):
        assert state.judge(make_record(question, answer)).keep


def test_a_held_out_passage_is_no_question():
    state = Decontaminate().start(FilterContext(held_out=[passage("Bees live in a hive of wax.")]))
    assert state.judge(passage("Bees live in a hive of wax.")).keep


def test_held_out_answer_within_a_passage_is_found_in_any_writing():
    text = "Long ago. WORKER BEES produce wax, from glands below the abdomen! And so on, for years."
    assert not judge(passage(text)).keep


def test_shared_words_alone_are_no_contamination():
    assert judge(passage("The abdomen of a bee has glands that produce the wax of the comb.")).keep


def test_held_out_side_is_not_compared_with_itself():
    assert Decontaminate().start(FilterContext()).judge(HELD_OUT).keep


def test_named_test_items_are_found_on_both_sides_and_in_rejected_answers(tmp_path):
    path = tmp_path / "bench.jsonl"
    item = "Which gland of a worker bee produces the wax of the comb in summer?"
    path.write_text(json.dumps({"question": item, "answer": "That below the abdomen."}) + "\n")
    chosen = Decontaminate(against=(str(path),)).start(FilterContext())
    verdict = chosen.judge(make_record(item, "Something else."))
    assert verdict.reason == "holds a named test item"
    assert verdict.against == f"bench.jsonl:1 {item}"
    pair = make_record("What is told here of bees and wax?", "Nothing.", rejected=f"I ask: {item}")
    assert not chosen.judge(pair).keep
    assert chosen.judge(make_record("What do bees eat?", "They eat nectar.")).keep
