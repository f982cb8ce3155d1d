import json
from typing import ClassVar

import pytest
from pydantic import ValidationError
from tests.unit.synth.conftest import make_passages, make_seed

from stillroom.errors import BackendError
from stillroom.evaluate.json_output import parse_json_with_schema
from stillroom.records import Message
from stillroom.synth.pipeline.scheduler import is_unanswered
from stillroom.synth.prompting.requests import (
    INVALID_JSON,
    NO_ANSWER,
    REFUSED,
    PromptTemplate,
    find_truncated,
    get_max_length,
    make_array_schema,
    make_object_schema,
    make_string_schema,
)
from stillroom.synth.prompting.stepwise import StepwiseGenerator, run_concurrently
from stillroom.synth.types import GenerationFailure, WorkItem
from stillroom.testing import scripted_model

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "s": {"type": "string", "maxLength": 40}},
    "required": ["n"],
    "additionalProperties": False,
}


class Twice(StepwiseGenerator):
    """Asks for a number, then for a text, or both at once."""

    templates: ClassVar = {
        "ask": PromptTemplate("A number for {text}, as {n: 1}."),
        "tell": PromptTemplate("{n}?"),
    }

    @property
    def max_requests(self):
        return 3

    @property
    def max_tokens(self):
        return 60

    def write(self, unit):
        found = yield from unit.ask_json(
            unit.render("ask", text=unit.seed.passage.text[:5]), SCHEMA, label="the number"
        )
        if found is None:
            return
        words = unit.render("tell", n=str(found["n"]))
        said = yield from run_concurrently([unit.ask(words, tokens=9), unit.ask(words, tokens=9)])
        for text in said:
            if text:
                unit.add_record(
                    [Message("user", words), Message("assistant", text)], {"n": found["n"]}
                )


def script(prompt):
    if prompt.schema:
        return json.dumps({"n": len(prompt.messages[-1].content)})
    return "said"


def drafts(model, count=4, **settings):
    seeds = [WorkItem(passage, "train", seed=2) for passage in make_passages()[:count]]
    return list(Twice(**settings).generate(seeds, model))


def test_units_do_not_see_each_other():
    model = scripted_model(script)
    made = drafts(model)
    alone = [
        next(iter(Twice().generate([WorkItem(passage, "train", seed=2)], model)))
        for passage in make_passages()[:4]
    ]
    assert made == alone
    assert all(len(draft.records) == 2 for draft in made)
    assert made[0].asked == 3


def test_origin_names_method_model_prompts_and_seed():
    record = drafts(scripted_model(script, fingerprint="scripted:x"))[0].records[0]
    link = record.origin.chain[-1]
    assert link.method == "synth.generators.test_stepwise"
    assert link.model == "scripted:x"
    assert link.parents == (make_passages()[0].id,)
    assert len(link.prompt) == 64
    assert record.origin.kind == "synthetic"
    assert record.origin.license == "CC-BY-4.0"
    passage = make_passages()[0]
    assert record.fields["seed"] == {
        "kind": "passages",
        "id": passage.id,
        "start": passage.start,
        "end": passage.end,
    }
    own = drafts(scripted_model(script), prompts={"tell": "Why {n}?"})[0].records[0]
    assert own.origin.chain[-1].prompt != link.prompt
    assert own.messages[0].content.startswith("Why ")


@pytest.mark.parametrize("text", ["over the token limit", "the reply was cut"])
def test_the_words_of_a_server_do_not_become_the_reason(text):
    seeds = [WorkItem(make_passages()[0], "train", seed=2)]
    batch = Twice(retries=0).open(seeds, scripted_model(script))
    batch.answer([GenerationFailure(INVALID_JSON, text)])
    ((failure,),) = [draft.failures for draft in batch.run()]
    assert (failure.reason, failure.text) == ("the number is not the JSON asked", text)


@pytest.mark.parametrize(
    ("prompts", "what"),
    [
        ({"tell": "Why?"}, "lacks the field {n}"),
        ({"tell": "{n} {m}"}, "an unknown field {m}"),
        ({"tel": "{n}"}, "did you mean 'tell'"),
    ],
)
def test_a_template_that_cannot_be_filled_is_named_before_anything_is_sent(prompts, what):
    with pytest.raises(ValidationError, match="prompt") as caught:
        Twice(prompts=prompts)
    assert what in str(caught.value)


def test_what_a_document_holds_is_never_a_field():
    assert PromptTemplate("{a}{b}").fill(a="{b}", b="1") == "{b}1"
    assert PromptTemplate('Answer as {"n": 1} or {N}.').fields == ()


def test_json_is_repaired_or_asked_for_again_and_counted():
    said = iter(["{'n': 3,}", "", '{"n": "three"}', '{"n": 4}'] + ["said"] * 9)
    model = scripted_model(lambda prompt: next(said))
    first = drafts(model, 1)[0]
    assert first.counts == {"JSON asked": 1, "JSON repaired": 1}
    assert first.records[0].fields["n"] == 3
    model.asked.clear()
    second = drafts(scripted_model(script_of(["", '{"n": "x"}', '{"n": 4}'])), 1, retries=2)[0]
    assert second.counts == {"JSON asked": 1, "JSON asked again": 2}
    assert second.records[0].fields["n"] == 4


def script_of(answers):
    said = iter(answers)
    return lambda prompt: next(said, "said")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no JSON at all",
        '{"n": 1',
        '{"m": 1}',
        "[1, 2",
        "null",
        "{" * 3000,
        "x" * 10_000_000,
        '{"n": NaN}',
        '{"n": 1e999}',
        "Ich möchte lieber nicht.",
    ],
)
def test_hostile_json_is_a_counted_failure(answer):
    model = scripted_model(lambda prompt: answer)
    made = drafts(model, 1)[0]
    if answer == '{"n": 1':  # cut where nothing was missing but the brace
        assert made.counts["JSON repaired"] == 1
        return
    assert made.records == ()
    assert len(made.failures) == 1
    assert made.failures[0].reason in {
        "the number is not the JSON asked",
        "the number cut at the token limit",
    }
    assert len(made.failures[0].text) <= 4000
    assert made.counts["JSON unreadable"] == 1


def test_json_cut_at_the_limit_is_asked_again_with_more_room():
    said = iter(["{" + " " * 3 + "word " * 90, '{"n": 1}'])
    model = scripted_model(lambda prompt: next(said, "said"))
    made = drafts(model, 1)[0]
    assert made.counts == {"JSON asked": 1, "JSON asked again": 1}


def test_texts_cut_or_missing_are_failures():
    long = scripted_model(lambda prompt: script(prompt) if prompt.schema else "word " * 50)
    assert [one.reason for one in drafts(long, 1)[0].failures] == (
        ["answer cut at the token limit"] * 2
    )
    empty = scripted_model(lambda prompt: script(prompt) if prompt.schema else " ")
    assert drafts(empty, 1)[0].failures[0].reason == "no answer"


def test_a_schema_that_the_engine_refuses_is_told_and_not_the_end():
    def refuse(prompt):
        raise BackendError("it is no schema", code="backend.schema")

    made = drafts(scripted_model(refuse), 1)[0]
    assert made.failures[0].reason == "the number is not the JSON asked"
    assert made.counts["JSON unreadable"] == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("backend.refused", REFUSED),
        ("backend.timeout", NO_ANSWER),
        ("backend.context", "longer than the teacher's context"),
    ],
)
def test_what_the_server_did_to_json_is_said_and_not_asked_again(code, reason):
    def fail(prompt):
        raise BackendError("it is so", code=code)

    model = scripted_model(fail)
    made = drafts(model, 1, retries=3)[0]
    assert [one.reason for one in made.failures] == [reason]
    assert made.asked == 1
    assert is_unanswered(made) is (reason == NO_ANSWER)


def test_a_schema_has_a_bound_where_all_its_parts_have_one():
    assert get_max_length(SCHEMA) == 2 + (1 + 6 + 24) + (1 + 6 + 42)
    assert get_max_length({"type": "string"}) is None
    assert get_max_length({"type": "array", "items": {"enum": ["yes", "no"]}, "maxItems": 3}) == 23
    assert get_max_length({"type": "object"}) is None


def test_reading_takes_a_fence_and_refuses_another_schema():
    assert parse_json_with_schema('Sure:\n```json\n{"n": 1}\n```', SCHEMA).value == {"n": 1}
    assert (
        "additional properties"
        in parse_json_with_schema('{"n": 1, "x": 2}', SCHEMA).problem.lower()
    )
    assert parse_json_with_schema(json.dumps({"n": 1, "s": "x" * 41}), SCHEMA).problem.startswith(
        "s: "
    )


def test_attempts_draw_anew():
    one, two = (make_seed("Bees.", attempt=number) for number in (0, 1))
    model = scripted_model(script)
    list(Twice().generate([one, two], model))
    assert one.derive("ask", 1) != two.derive("ask", 1)


class Told(StepwiseGenerator):
    """Asks for a sentence of at most 120 characters."""

    templates: ClassVar = {"ask": PromptTemplate("Say something.")}

    @property
    def max_requests(self):
        return 1

    @property
    def max_tokens(self):
        return 120

    def write(self, unit):
        schema = make_object_schema(sentence=make_string_schema(120), label=make_string_schema(5))
        found = yield from unit.ask_json(unit.render("ask"), schema, label="sentence")
        if found is not None:
            unit.add_record([Message("assistant", found["sentence"])], {})


def test_prose_that_fills_its_room_is_asked_again_and_then_dropped():
    def answer(prompt):
        is_again = len(prompt.messages) > 1
        text = "It ends." if is_again and ends else "it goes on, " * 10
        return json.dumps({"sentence": text, "label": "12345"})

    for ends in (True, False):
        (made,) = Told().generate([make_seed("Bees.")], scripted_model(answer))
        assert [one.messages[0].content for one in made.records] == ["It ends."] * ends
        assert [one.reason for one in made.failures] == ["sentence cut at its length"] * (not ends)
        assert made.counts["JSON asked again"] == 1 + (not ends) * (Told().retries - 1)


def test_text_that_a_grammar_cut_within_a_list_is_named():
    schema = make_object_schema(
        people=make_array_schema(make_string_schema(200), 3),
        named=make_object_schema(name=make_string_schema(40)),
    )
    whole = {"people": ["A baker of rye bread.", "A miller."], "named": {"name": "x" * 40}}
    assert find_truncated(whole, schema) == ""
    assert find_truncated({**whole, "people": ["A miller.", "y" * 200]}, schema) == "people"
    assert find_truncated("z" * 200, make_string_schema(200)) == "text"
