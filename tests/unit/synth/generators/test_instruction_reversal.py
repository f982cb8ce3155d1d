from collections import Counter

import pytest
from tests.unit.synth.conftest import make_passage
from tests.unit.synth.generators.hostile import HOSTILE, draft_of, fill, reasons, survives

from stillroom.synth.generators.instruction_reversal import InstructionReversal
from stillroom.synth.types import WorkItem

TEXT = make_passage("bees", "Honey bees live in colonies. They make wax.")


def script(again="Honey bees live in colonies and make wax."):
    def say(prompt):
        return fill(prompt.schema, instruction="Tell me of bees.") if prompt.schema else again

    return say


def test_voices_and_hints_of_length_are_drawn():
    made = [
        draft_of(InstructionReversal(length_share=0.5), TEXT, script(), attempt)[0].records[0]
        for attempt in range(60)
    ]
    voices = Counter(record.fields["voice"] for record in made)
    assert set(voices) == {"instruction", "chat", "search"}
    hinted = [one for one in made if "in 2 sentences" in one.messages[0].content]
    assert 15 < len(hinted) < 45
    assert all(one.messages[1].content == TEXT.text for one in made)


def test_what_is_written_anew_must_be_close():
    made, _ = draft_of(InstructionReversal(min_closeness=0.5), TEXT, script())
    assert float(made.records[0].fields["closeness"]) > 0.5
    made, _ = draft_of(InstructionReversal(min_closeness=0.5), TEXT, script("Trains run on rails."))
    assert reasons(made) == ["what is written anew is another text"]


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: InstructionReversal().generate([WorkItem(TEXT, "train")], model), said)
