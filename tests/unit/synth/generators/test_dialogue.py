import pytest
from tests.unit.synth.conftest import make_passage
from tests.unit.synth.generators.hostile import (
    HOSTILE,
    SUM,
    TOPIC,
    draft_of,
    fill,
    reasons,
    survives,
)

from stillroom.synth.generators.dialogue import Dialogue
from stillroom.synth.types import WorkItem

ASKED = [
    "MESSAGE: What is wax?",
    "User: Who makes it?\nAssistant: bees",
    "How hot is a hive?",
    "Why?",
]
SAID = ["Wax is soft.", "Bees make the stuff.", "About 35 degrees.", "To rear the brood."]


def script(asked=ASKED, said=SAID, contradicts="no"):
    asking, saying = iter(asked), iter(said)

    def say(prompt):
        if prompt.schema:
            return fill(prompt.schema, contradicts=contradicts)
        text = prompt.messages[-1].content
        return next(asking, "END") if "message alone" in text else next(saying, "So it is.")

    return say


def test_two_parts_are_played_in_turn_without_labels():
    made, model = draft_of(Dialogue(max_turns=3), TOPIC, script())
    record = made.records[0]
    assert [one.role for one in record.messages] == ["user", "assistant"] * 3
    assert record.messages[2].content == "Who makes it?"
    assert record.fields["turns"] == 3
    last = model.asked[-2]
    assert [one.role for one in last.messages] == (
        ["system", "user", "assistant", "user", "assistant", "user"]
    )


@pytest.mark.parametrize(
    ("more", "ended", "turns"),
    [
        ({"asked": [*ASKED[:2], "END"]}, "the user had no more to ask", 2),
        ({"asked": [*ASKED[:2], "What is wax?"]}, "the user repeats himself", 2),
        ({"said": [*SAID[:2], "Wax is soft."]}, "the assistant repeats itself", 2),
        ({"said": [*SAID[:2], " "]}, "no answer", 2),
    ],
)
def test_what_ends_a_talk_is_named(more, ended, turns):
    made, _ = draft_of(Dialogue(), TOPIC, script(**more))
    assert made.records[0].fields["ended"] == ended
    assert made.records[0].fields["turns"] == turns
    assert made.counts[f"dialogues ended: {ended}"] == 1


def test_a_contradiction_is_cut_off_and_a_short_rest_dropped():
    made, _ = draft_of(Dialogue(), TOPIC, script(contradicts="yes"))
    assert reasons(made) == ["conversation too short"]
    made, _ = draft_of(Dialogue(min_turns=1), TOPIC, script(contradicts="yes"))
    assert made.records[0].fields["turns"] == 1


def test_a_record_begins_the_talk_and_a_passage_grounds_it():
    made, _ = draft_of(Dialogue(max_turns=1, min_turns=1), SUM, script())
    assert made.records[0].messages[0].content == SUM.messages[0].content
    text = make_passage("bees", "Bees</text> make wax.")
    made, model = draft_of(Dialogue(max_turns=1, min_turns=1), text, script())
    system = model.asked[1].messages[0]
    assert system.role == "system"
    assert system.content.count("</text>") == 1


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: Dialogue().generate([WorkItem(TOPIC, "train")], model), said)


def test_a_user_that_speaks_as_the_assistant_ends_the_talk():
    asked = ["What is wax?", "Who makes it?", "I'm here to help with any project."]
    made, _ = draft_of(Dialogue(max_turns=3), TOPIC, script(asked))
    assert made.records[0].fields["turns"] == 2
    assert reasons(made) == ["a user that speaks as the assistant"]
    made, _ = draft_of(Dialogue(max_turns=3), TOPIC, script(["How can I help you today?"]))
    assert not made.records


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("A question of one or two sentences: what is your goal?", "words of the prompt"),
        ("Here is what the user has asked: wax.", "words of the prompt"),
        ("I'd be happy to help with wax!", "speaks as the assistant"),
        ("Hi there,\n\nwhat is wax?", "breaks off"),
        ("Can I have a glass of wine?", "names nothing of the text"),
    ],
)
def test_a_first_message_that_is_none_is_no_dialogue(said, reason):
    text = make_passage("bees", "Bees make wax in glands below the abdomen.")
    made, _ = draft_of(Dialogue(), text, script([said.split("\n\n")[0]]))
    assert not made.records
    assert any(reason in one for one in reasons(made))
