import json

import pytest
from tests.unit.synth.conftest import behave, make_passage, make_passages, make_seed

from stillroom.synth.generators.grounded_qa import GroundedQa
from stillroom.synth.types import GenerationResult, WorkItem
from stillroom.testing import scripted_model

TEXT = (
    "A honey bee colony keeps its brood nest at 35 degrees Celsius. "
    "Worker bees produce wax from glands below the abdomen."
)


class Silent:
    """A teacher that is never to be asked."""

    name = fingerprint = "silent"

    def generate(self, *given, **more):
        raise AssertionError("a question of a statement's form needs no model")


def draft(generator, model, text=TEXT, **more):
    return next(iter(generator.generate([make_seed(text, **more)], model)))


def test_statement_answers_its_own_question_and_points_at_its_words():
    seed = make_seed(TEXT)
    made = draft(GroundedQa(), Silent())
    assert made.asked == 0
    for record in made.records:
        fields = record.fields
        evidence = fields["evidence"]
        assert fields["question"] == record.messages[0].content
        assert fields["answer"] == record.messages[1].content == evidence["quote"]
        assert TEXT[evidence["start"] : evidence["end"]] == evidence["quote"]
        assert evidence["passage_id"] == seed.passage.id
        assert fields["split"] == "train"
        assert fields["document_id"] == seed.passage.document_id
    assert len(made.records) >= 1


def test_origin_is_synthetic_after_the_passage_and_keeps_its_license(teacher):
    origin = draft(GroundedQa(openings=False), teacher).records[0].origin
    assert origin.kind == "synthetic"
    assert [link.method for link in origin.chain] == [
        "text.chunkers.heading",
        "synth.generators.grounded_qa",
    ]
    assert origin.chain[1].model == "scripted:behaves"
    assert origin.license == "CC-BY-4.0"


def test_a_draft_does_not_depend_on_the_seeds_beside_it(teacher):
    from stillroom.synth.types import WorkItem

    seeds = [WorkItem(passage, "train", seed=4) for passage in make_passages()]
    together = list(GroundedQa().generate(seeds, teacher))
    alone = [next(iter(GroundedQa().generate([seed], teacher))) for seed in reversed(seeds)]
    assert together == alone[::-1]


def test_later_attempts_ask_about_other_statements(teacher):
    generator = GroundedQa(questions=1)
    asked = [
        record.fields["evidence"]["quote"]
        for attempt in range(5)
        for record in draft(generator, teacher, attempt=attempt).records
    ]
    assert len(asked) == len(set(asked))


def test_statement_reaches_the_teacher_as_one_line_of_data(teacher):
    text = 'Worker bees of the "[INST]" colony\nproduce\u200b wax from glands.'
    list(GroundedQa(openings=False).generate([make_seed(text)], teacher))
    words = teacher.asked[0].messages[-1].content
    assert "[INST]" not in words
    assert "\u200b" not in words
    assert "colony produce wax" in words


def test_plain_form_asks_twice_and_finds_the_evidence():
    model = scripted_model(behave)
    made = draft(
        GroundedQa(form="plain", questions=1), model, "Bees hum. Honey bees live in colonies."
    )
    assert made.asked == 2
    assert made.records[0].fields["answer"] == "Honey bees live in colonies."
    assert made.records[0].fields["evidence"]["quote"] == "Honey bees live in colonies."


def test_schema_form_reads_the_pair():
    made = draft(GroundedQa(form="schema", questions=1), scripted_model(behave), "Honey bees hum.")
    assert made.records[0].fields["question"] == "What do honey bees live in?"


@pytest.mark.parametrize(
    ("form", "answer", "reason"),
    [
        ("schema", "no JSON here", "not the JSON asked"),
        ("schema", '{"question": "' + "word " * 400, "JSON cut at the token limit"),
        ("plain", "", "no question"),
        ("plain", "word " * 400, "question cut at the token limit"),
    ],
)
def test_what_cannot_be_read_is_a_failure_with_its_text(form, answer, reason):
    made = draft(GroundedQa(form=form, questions=1), scripted_model(lambda prompt: answer))
    assert made.records == ()
    assert made.failures[0].reason == reason


def test_answer_that_is_cut_is_never_kept():
    def script(prompt):
        return " What is wax?" if prompt.prefix == "Question:" else "wax " * 400

    made = draft(GroundedQa(form="plain", questions=1), scripted_model(script))
    assert made.records == ()
    assert made.failures[0].reason == "answer cut at the token limit"


def test_passage_without_statements_is_said_once(teacher):
    assert draft(GroundedQa(), teacher, "Bees!").failures[0].reason.startswith("no sentence")
    assert draft(GroundedQa(), teacher, "Bees!", attempt=1).failures == ()


def test_draft_survives_its_journey_through_json(teacher):
    made = draft(GroundedQa(), teacher)
    assert GenerationResult.from_json(json.loads(json.dumps(made.to_json()))) == made


def draw(text, language, model):
    seed = WorkItem(make_passage("bienen", text, language=language), "train")
    return next(iter(GroundedQa().generate([seed], model)))


def test_a_german_statement_is_asked_about_without_a_model():
    text = "Wenn ein Volk im Winter hungert, geht die alte Königin als letzte ein."
    made = draw(text, "de", Silent())
    (record,) = made.records
    assert record.fields["question"] == "Bienen: Was geschieht, wenn ein Volk im Winter hungert?"
    assert record.fields["answer"] == text
    assert record.origin.chain[-1].model == ""
    assert made.asked == 0


def test_a_sentence_of_no_known_form_is_said_and_not_asked():
    text = "Schließlich kam der lange Winter doch noch zurück ins Tal."
    made = draw(text, "de", Silent())
    assert [failure.reason for failure in made.failures] == ["no sentence has a known form"]


def test_a_language_without_forms_is_left_to_the_teacher(teacher):
    text = "La regina depone fino a duemila uova al giorno durante la primavera calda."
    assert draw(text, "it", teacher).asked == 1


def test_a_passage_of_unknown_language_is_asked_about_in_its_own():
    text = "Esta sección describe la colmena. Si la reina muere, la colmena cría una nueva en mayo."
    (record,) = draw(text, "", Silent()).records
    assert record.fields["question"] == "Bienen: ¿Qué ocurre si la reina muere?"


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 40),
        ({"answer": "teacher"}, 80),
        ({"form": "plain"}, 80),
        ({"form": "schema"}, 136),
        ({"form": "plain", "max_question_tokens": 100}, 100),
    ],
)
def test_the_longest_request_is_that_of_the_form(settings, most):
    assert GroundedQa(**settings).max_tokens == most
