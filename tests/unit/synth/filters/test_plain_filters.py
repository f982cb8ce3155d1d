"""Filters that need no model: schema, length, loops, prose, licenses, masks, words of insult."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.unit.synth.filters.test_filters import CONTEXT, PASSAGES, make_record, reason

from stillroom.errors import DataError
from stillroom.evaluate.json_output import check_schema
from stillroom.records import Message, Origin, Record
from stillroom.synth.filters.license import allowed_terms, requires_attribution
from stillroom.synth.filters.repetition import GOPHER_LIMITS, measure_repetition
from stillroom.synth.interfaces import FILTERS, FilterContext
from stillroom.synth.output.model_terms import find_model_terms
from stillroom.text.safety import Pseudonymizer, find_pii, find_toxic_spans

SHAPE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "year": {"type": "integer", "minimum": 1}},
    "required": ["name", "year"],
    "additionalProperties": False,
}


def say(answer, asked="Give me one.", **fields):
    return Record((Message("user", asked), Message("assistant", answer)), fields)


def judge(name, record, context=CONTEXT, **settings):
    return FILTERS.build({"name": name, **settings}).start(context).judge(record)


@pytest.mark.parametrize(
    ("answer", "expected", "at"),
    [
        ('{"name": "a", "year": 3}', "", ""),
        ('```json\n{"name": "a", "year": 3}\n```', "", ""),
        ('{"name": "a", "year": 0}', "does not fit the schema", "/year"),
        ('{"name": "a"}', "does not fit the schema", "/"),
        ('{"name": "a", "year": 3, "x": 1}', "does not fit the schema", "/"),
        ('{"name": "a", "year": 3', "not JSON", None),
        ("[" * 100_000, "not JSON", None),
    ],
)
def test_answers_fit_their_schema_or_say_where_not(answer, expected, at):
    verdict = judge("schema", say(answer), fits=SHAPE)
    assert verdict.reason == expected
    assert verdict.details.get("at") == (at or None)


def test_a_field_may_be_the_json_and_a_broken_schema_is_refused():
    assert judge("schema", say("x", row={"name": "a", "year": 1}), fits=SHAPE, field="row").keep
    assert judge("schema", say("x"), fits=SHAPE, field="row").reason == "not JSON"
    for number in ("1e999", "-Infinity", "NaN"):  # no JSON, or none once it is read
        verdict = judge("schema", say(f'{{"a": {number}}}'), fits={"type": "object"})
        assert verdict.reason == "not JSON"
    fenced = judge("schema", say("```\n{}\n```"), fence=False)
    assert fenced.reason == "JSON within a fence"
    with pytest.raises(ValidationError, match="not a JSON Schema"):
        FILTERS.build({"name": "schema", "fits": {"type": "nothing"}})
    with pytest.raises(DataError) as caught:
        check_schema({"type": "nothing"})
    assert caught.value.code == "data.schema"


def test_length_counts_what_it_says():
    record = say("one two three four five", "one two")
    for unit, count in (("words", 5), ("characters", 23)):
        kept = {"unit": unit, "max_answer": count, "min_answer": count}
        assert reason("length", record, **kept) == ""
        assert reason("length", record, **{**kept, "max_answer": count - 1, "min_answer": 0})
        verdict = judge("length", record, unit=unit, min_answer=count + 1)
        assert (verdict.reason, verdict.score, verdict.limit) == (
            "answer too short",
            count,
            count + 1,
        )
    assert reason("length", record, unit="words", min_asked=3) == "question too short"
    assert reason("length", record, unit="words", max_total=6) == "whole too long"


def test_length_counts_the_tokens_of_a_checkpoint(tmp_path):
    from transformers import AutoTokenizer

    from stillroom.testing import tiny_checkpoint

    folder = tiny_checkpoint(tmp_path / "model")
    text = "Worker bees produce wax."
    count = len(AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"])
    settings = {"tokenizer": str(folder), "max_answer": count - 1}
    verdict = judge("length", say(text), FilterContext(), **settings)
    assert (verdict.reason, verdict.score) == ("answer too long", count)


PROSE = (
    "Bees gather nectar from flowers that open in the morning, and carry it home. In the hive "
    "other workers take it over; they fan their wings until most of the water is gone. What is "
    "left is honey, closed with a lid of wax. A strong colony fills a comb within a week when "
    "lime trees bloom. Rain stops the flight, cold wind does so as well, and a late frost may "
    "cost the whole harvest of a valley. Keepers therefore watch the sky more closely than "
    "their boxes, and move them at night when the blossom ends. Some drive for hours. Others stay "
    "where their parents stood, and take what the year gives to them without complaint."
)


def test_prose_passes_gophers_rules_and_loops_do_not():
    assert reason("repetition", say(PROSE)) == ""
    lines = "\n".join(["The bee is small and brown."] * 9 + PROSE.split(". "))
    verdict = judge("repetition", say(lines))
    assert verdict.reason == "repeats itself"
    assert verdict.details["rule"] in GOPHER_LIMITS
    assert verdict.score > verdict.limit
    assert reason("repetition", say("honey " * 200)) == "repeats itself"
    for loop in ("2016-", "🍽️", "Bun", "7", "江月"):
        assert reason("repetition", say(f"It is {loop * 40} so.")) == "repeats itself"
    for rule in (
        "-" * 80,
        "|---|---|---|---|---|---|---|---|---|---|---|",
        "https://a.b/" + "c" * 30,
    ):
        assert reason("repetition", say(f"{PROSE}\n{rule}\n")) == ""
    assert reason("repetition", say("\n\n".join([PROSE] * 2))) == "repeats itself"


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a b", "c", "d e f", "", "g h i j k"]), max_size=30))
def test_shares_of_loops_are_shares(parts):
    assert all(0 <= value <= 1 for value in measure_repetition("\n".join(parts)).values())


def test_loops_are_measured_as_the_paper_says():
    # Five words, ten times: all but the first five of fifty words are repeats.
    measured = measure_repetition(" ".join(["ab cd ef gh ij"] * 10))
    assert measured["characters in duplicate 5-grams"] == pytest.approx(0.9)
    assert measured["characters in the commonest 2-gram"] == pytest.approx(10 * 4 / 100)
    assert measure_repetition("x\ny\nx\nx")["duplicate lines"] == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROSE, ""),
        ("Yes.", "too few or too many words"),
        ("a b c d e f g", "words too short on average"),
        ("incomprehensibilities counterrevolutionaries antidisestablishment", "words too long"),
        ("one # two # three # four", "too many symbols"),
        ("- one thing\n- other thing\n- third thing", "nothing but bullets"),
        ("waxes 120 / 1300 = 1400 + 1500 * 1600", "too few words with letters"),
        ("first line of it all\nsecond line of it ends here…\nthird line\nfourth line", ""),
        (
            "only the first line of many\nit goes on and on and on...\nand never ends it all...",
            "lines end in ellipses",
        ),
        ("蜂蜜は甘い。とても甘い。", ""),
    ],
)
def test_gopher_quality_names_what_is_no_prose(text, expected):
    given = reason("gopher_quality", say(text), max_symbols=0.2)
    assert given.startswith(expected) if expected else given == ""


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("MIT", ("MIT",)),
        ("MIT AND CC-BY-4.0", ("MIT", "CC-BY-4.0")),
        ("GPL-3.0-only OR MIT", ("MIT",)),
        ("(GPL-3.0-only OR MIT) AND CC-BY-4.0", ("MIT", "CC-BY-4.0")),
        ("MIT AND GPL-3.0-only", None),
        ("Apache-2.0 WITH LLVM-exception", ("Apache-2.0 WITH LLVM-exception",)),
        ("all rights reserved", None),
        ("(MIT", None),
        ("MIT OR", None),
        ("MIT WITH x AND (GPL-3.0-only", None),  # cut off, though it starts as what is allowed
        ("Apache-2.0, GPL-3.0-only", None),
        ("mit license", ("mit license",)),
        ("(" * 100_000 + "MIT" + ")" * 100_000, None),
        ("MIT AND CC-BY-4.0 AND", None),  # cut off: what else must be allowed is not told
    ],
)
def test_licenses_are_read_as_expressions(expression, terms):
    assert allowed_terms(expression, ("MIT", "CC-BY-4.0", "Apache-*", "MIT License")) == terms


def test_an_asterisk_allows_every_license():
    assert allowed_terms("Public Domain, see LICENSE", ("*",)) == ("Public Domain, see LICENSE",)


def test_a_license_that_nobody_tells_is_not_allowed_in_silence():
    free = make_record()
    assert judge("license", free).keep
    assert "Bees" in judge("license", free).changed.fields["attribution"]
    bare = Record(free.messages, {}, Origin("human"))
    assert judge("license", bare).reason == "nobody tells its license"
    assert judge("license", bare, unknown="keep").keep
    closed = Record(free.messages, {}, Origin("human", (), "CC-BY-NC-4.0"))
    assert judge("license", closed).reason == f"license {closed.origin.license} not allowed"
    assert requires_attribution("CC-BY-4.0")
    assert not requires_attribution("CC0-1.0")
    zero = Record(free.messages, {}, Origin("human", (), "CC0-1.0"))
    assert judge("license", zero).changed is None


@pytest.mark.parametrize(
    ("teacher", "bound"),
    [
        ("hub:HuggingFaceTB/SmolLM2-135M-Instruct", "free"),
        ("endpoint:https://api.openai.com/v1#gpt-5", "restricted"),
        ("endpoint:http://h/v1#meta-llama/Llama-3.3-70B-Instruct", "named"),
        ("endpoint:http://h/v1#meta-llama/Meta-Llama-3-8B-Instruct", "restricted"),
        ("endpoint:http://h/v1#meta-llama/Meta-Llama-3-70B", "restricted"),
        ("endpoint:http://h/v1#llama-3-1-8b", "named"),
        ("endpoint:http://h/v1#llama3.2:1b", "named"),
        ("endpoint:http://h/v1#meta-llama/Llama-2-7b-chat-hf", "restricted"),
        ("endpoint:http://h/v1#Qwen/Qwen2.5-72B-Instruct", "named"),
        ("endpoint:http://h/v1#qwen2.5:3b", "named"),
        ("endpoint:http://h/v1#qwen3b", "named"),
        ("endpoint:http://h/v1#Qwen/Qwen3-30B-A3B", "free"),
        ("endpoint:http://h/v1#Qwen/Qwen3-8B", "free"),
        ("endpoint:http://h/v1#nobody-knows", "unknown"),
    ],
)
def test_terms_of_teachers(teacher, bound):
    assert find_model_terms(teacher).bound == bound


PRIVATE = "Write to Anna.Berg@posteo.de or call +49 30 1234 5678 from 81.169.145.66."


@pytest.mark.parametrize("style", ["tag", "surrogate"])
def test_masks_are_stable_and_belong_to_nobody(style):
    record = say(
        f"{PRIVATE} Again: anna.berg@posteo.de.",
        note={"deep": ["mail anna.berg@posteo.de"]},
        document_id="doc",
    )
    verdict = judge("personal", record, action="mask", style=style)
    masked = verdict.changed
    assert verdict.keep
    assert verdict.details["masked"] == {"email": 3, "ip": 1, "phone": 1}
    text = masked.messages[1].content
    assert "posteo" not in json.dumps(masked.to_json())
    assert find_pii(text) == []
    names = Pseudonymizer("seed 0", style)
    mail = names.name("email", "anna.berg@posteo.de")
    assert text.count(mail) == 2
    assert mail in masked.fields["note"]["deep"][0]
    assert judge("personal", masked, action="mask", style=style).changed is None
    assert judge("personal", masked).keep
    assert masked.origin.chain[-1].parents == (record.id,)


def test_fields_of_ids_are_masked_where_they_hold_no_id():
    mail = "jane.doe@acme-corp.com"
    ids = {
        "passage_id": "pas-48b9ec1585896079984c",  # its digits pass for a card's
        "id": "2338955320777356",
        "rejected_by": "endpoint:http://10.1.2.3:8000/v1#qwen",
        "split": "train",
    }
    assert judge("personal", say("It is.", **ids)).keep
    for fields in ({"source": f"mail of {mail}"}, {"note": {"id": mail}}, {"document_id": mail}):
        record = say("It is.", **{**ids, **fields})
        assert judge("personal", record).reason == "personal data: email"
        masked = judge("personal", record, action="mask").changed
        assert mail not in json.dumps(masked.to_json())
        assert {name: masked.fields[name] for name in ids} == ids


@settings(deadline=None)
@given(st.sampled_from(["email", "phone", "card", "iban", "ssn", "ip", "secret"]), st.text())
def test_pseudonyms_follow_from_key_and_value(kind, value):
    one, other = Pseudonymizer("a", "tag"), Pseudonymizer("b", "tag")
    assert one.name(kind, value) == one.name(kind, value)
    assert one.name(kind, value) != other.name(kind, value)


def test_one_number_however_written_is_one_pseudonym():
    names = Pseudonymizer("k")
    assert names.name("phone", "+49 30 1234-5678") == names.name("phone", "+493012345678")
    assert names.name("email", "A.B@x.de") == names.name("email", "a.b@X.de")


def test_a_secret_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("PSEUDONYMS", "k1")
    settings = {"action": "mask", "key": "${env:PSEUDONYMS}"}
    one = judge("personal", say(PRIVATE), **settings).changed
    monkeypatch.setenv("PSEUDONYMS", "k2")
    other = judge("personal", say(PRIVATE), **settings).changed
    assert one.messages != other.messages


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("You are a worthless idiot and everybody knows it.", "insult"),
        ("I will find out where you live and I'll kill you.", "threat"),
        ("Go and die.", "threat"),
        ("What a load of bullshit this is.", "profanity"),
        ("You are such an a.s.s.h.o.l.e today.", "profanity"),
        ("You sh1t, get out.", "profanity"),
        ("fuuuuck off", "profanity"),
    ],
)
def test_words_of_insult_are_found_however_written(text, kind):
    assert find_toxic_spans(text)[0].kind == kind
    assert judge("toxicity", say(text)).reason == f"toxic: {kind}"


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "The disease kills about half of the colonies it reaches.",
        "Pigs and cockroaches carry the parasite.",
        "In Scunthorpe the assessment of the classic cocktail passed.",
        "The court heard how he killed his neighbor in 1932.",
        "Retarded potential solves the wave equation.",
    ],
)
def test_sober_texts_are_no_insults(text):
    assert find_toxic_spans(text) == []


def test_passages_are_there():
    assert PASSAGES


def test_personal_data_of_a_rejected_answer_or_a_field_is_found_and_ids_are_not_numbers():
    pair = say("Here is a clean answer.", rejected="Call (415) 736-2291 after six.")
    assert reason("personal", pair) == "personal data: phone"
    names = {"persona_id": "per-4157362291", "rejected_by": "endpoint:http://81.20.33.17/v1#m"}
    assert reason("personal", say("Here is a clean answer.", **names)) == ""
    masked = judge("personal", pair, action="mask").changed
    assert "736-2291" not in masked.fields["rejected"]
