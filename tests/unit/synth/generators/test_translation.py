import pytest
from tests.unit.synth.conftest import make_passage
from tests.unit.synth.generators.hostile import HOSTILE, TASK, draft_of, reasons, survives

from stillroom.synth.generators.translation import Translation
from stillroom.synth.lexical_overlap import chrf
from stillroom.synth.types import WorkItem

TEXT = make_passage("bees", "Honey bees live in large colonies and make wax and honey.")
GERMAN = "Honigbienen leben in großen Völkern und machen Wachs und Honig."


def script(there=GERMAN, back=TEXT.text):
    return lambda prompt: there if "into German" in prompt.messages[-1].content else back


def test_a_translation_is_kept_where_it_comes_back_close():
    made, model = draft_of(Translation(), TEXT, script())
    record = made.records[0]
    assert [one.content for one in record.messages] == [GERMAN]
    assert record.fields["chrf"] == 1.0
    assert record.fields["language"] == "de"
    assert record.fields["translation_of"]["quote"] == TEXT.text
    assert "into English" in model.asked[1].messages[-1].content


def test_what_comes_back_as_another_text_is_dropped():
    made, _ = draft_of(Translation(), TEXT, script(back="Ships cross the sea by night."))
    assert reasons(made) == ["comes back as another text"]
    made, model = draft_of(Translation(min_chrf=0), TEXT, script())
    assert len(model.asked) == 1
    assert made.records[0].fields["chrf"] is None


def test_another_language_is_dropped_before_it_is_translated_back():
    made, model = draft_of(Translation(), TEXT, script(there=TEXT.text))
    assert reasons(made) == ["a translation in another language"]
    assert len(model.asked) == 1


def test_question_and_answer_of_a_record_are_both_translated():
    made, _ = draft_of(Translation(min_chrf=0), TASK, script())
    assert [one.role for one in made.records[0].messages] == ["user", "assistant"]


def test_chrf_is_that_of_its_paper():
    assert chrf("the cat", "the cat") == pytest.approx(1.0)
    assert chrf("abc", "xyz") == 0.0
    assert chrf("", "") == 1.0
    # orders 1 to 3 of "abcd" against "abce": 3/4, 2/3, 1/2, and 0 of order 4, both ways
    assert chrf("abcd", "abce") == pytest.approx((3 / 4 + 2 / 3 + 1 / 2 + 0) / 4)


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: Translation().generate([WorkItem(TEXT, "train")], model), said)
