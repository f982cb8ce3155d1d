import pytest
from tests.unit.synth.filters.test_filters import make_record

from stillroom.records import Message, Record
from stillroom.synth.filters.duplicate import Duplicate
from stillroom.synth.interfaces import FilterContext

LONG = (
    "Worker bees produce wax from eight glands below the abdomen and chew it until it is soft "
    "enough to build the comb of the colony in early summer"
)


def fold(records, **settings):
    judge = Duplicate(**settings).start(FilterContext())
    verdicts = []
    for record in records:
        verdict = judge.judge(record)
        verdicts.append(verdict.reason)
        if verdict.keep:
            judge.on_accept(record)
    return verdicts


def test_same_question_or_answer_is_a_repeat_whatever_its_case():
    assert fold(
        [
            make_record("What is wax?", "One of five words here."),
            make_record("what  is WAX?", "Two."),
            make_record("What is comb?", "one of FIVE words here."),
        ]
    ) == ["", "same question as one kept", "same answer as one kept"]


def say(*turns, **fields):
    roles = ("user", "assistant")
    messages = (Message(roles[index % 2], turn) for index, turn in enumerate(turns))
    return Record(tuple(messages), fields)


def test_the_question_of_a_row_of_messages_is_all_that_its_user_says():
    first = say("What is wax?", "A secretion of bees.")
    assert fold([first, say("what is  WAX?", "What candles are made of, among other things.")]) == [
        "",
        "same question as one kept",
    ]
    hello = ("Hello, I have a question.", "Ask me.")
    talks = [
        say(*hello, "How do bees make wax?", "With glands.", question=hello[0]),
        say(*hello, "Who built the bridge of Sydney?", "Dorman Long did.", question=hello[0]),
    ]
    assert fold(talks) == ["", ""]
    told = Message("system", "You are a poet.")
    poems = [Record((told, Message("assistant", text))) for text in (LONG, "Roses are red.")]
    assert fold(poems) == ["", ""]


def test_several_answers_may_be_asked_for():
    ways = [say("What is 3 + 4?", answer) for answer in ("Count on from three: 7.", LONG, LONG)]
    assert fold(ways, same_question=False) == ["", "", "nearly the same as one kept"]


def test_labels_and_numbers_may_be_the_answer_again():
    asked = ["Is this mail about money?", "Was the film worth seeing?", "Does the sky look blue?"]
    assert fold([make_record(one, "Yes.") for one in asked]) == [""] * 3
    assert (
        fold([make_record(one, "Yes.") for one in asked], answer_words=1)[1:]
        == ["same answer as one kept"] * 2
    )


def test_near_repeat_is_found_and_scored():
    near = make_record("What do worker bees produce?", LONG + " there.")
    assert (
        fold([make_record("What do worker bees produce now?", LONG + "."), near], threshold=0.7)[1]
        == "nearly the same as one kept"
    )


@pytest.mark.parametrize("threshold", [0.2, 0.3, 0.4, 0.5, 0.6, 0.8])
def test_near_repeats_are_found_whatever_the_threshold(threshold):
    missed = 0
    for number in range(60):
        words = [f"w{number}x{index}" for index in range(200)]
        shared = int(396 * (threshold + 0.02) / (1.02 + threshold)) + 1  # of 198 trigrams each
        other = words[: shared + 2] + [f"{word}y" for word in words[shared + 2 :]]
        pair = [Record((Message("assistant", " ".join(text)),)) for text in (words, other)]
        missed += fold(pair, threshold=threshold)[1] == ""
    assert missed <= 2


def test_what_was_not_admitted_drops_nothing():
    judge = Duplicate().start(FilterContext())
    record = make_record()
    assert judge.judge(record).keep
    assert judge.judge(record).keep


def test_texts_without_words_do_not_repeat_each_other():
    marks = [Record((Message("assistant", mark),)) for mark in ("?!", "--")]
    assert fold(marks) == ["", ""]
