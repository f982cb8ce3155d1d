"""What is filled under a schema always parses and holds it, whatever the model says."""

import itertools
import json
import random

import numpy as np
import pytest
import torch

from stillroom.diffusion.constrained.automata import (
    match_integers,
    match_list,
    match_literals,
    match_numbers,
    match_quoted,
    match_strings,
    match_union,
)
from stillroom.diffusion.constrained.infilling import JsonInfiller, SlotConstraint, TokenTransitions
from stillroom.diffusion.constrained.json_template import Slot, build_template
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.errors import BackendError
from stillroom.models.tokenization.token_bytes import read_token_bytes

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 7, "maximum": 130},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "kind": {"enum": ["cask", "jar", 3, None]},
        "sold": {"type": "boolean"},
        "note": {"type": ["string", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "minItems": 2},
        "unit": {"const": "l"},
    },
    "required": ["name"],
    "$defs": {"part": {"type": "object", "properties": {"n": {"type": "integer"}}}},
}


# -- automata ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0), (7, 130), (-5, 3), (-130, -7), (10, 99), (99, 100), (0, 9), (-1, 1000), (5, None)],
)
def test_integers_within_bounds_and_no_others_are_read(low, high):
    values = match_integers(low, high)
    for number in range(-1200, 1200):
        wanted = low <= number and (high is None or number <= high)
        assert values.reads(str(number).encode()) == wanted, number
    for text in (b"", b"-", b"007", b"-0", b"1.0", b"+1", b"1e3"):
        assert not values.reads(text)


def test_strings_are_counted_in_characters_and_hold_whole_ones():
    values = match_strings(2, 3)
    for text in ("ab", "a b", "äß", "日本語", "a😀b"):
        assert values.reads(text.encode())
        json.loads(f'"{text}"')
    for text in ("", "a", "abcd", 'a"b', "a\\", "a\n", "日本語だ"):
        assert not values.reads(text.encode())
    for data in (b"a\xff", b"ab\xe6\x97", b"\xc0\x80a", b"\xed\xa0\x80a", b"\xf4\x90\x80\x80a"):
        assert not match_strings().reads(data)
    assert match_strings().reads(b"any length" * 30)


def test_numbers_literals_lists_and_choices():
    assert all(match_numbers().reads(t) for t in (b"0", b"-3.25", b"10", b"0.5"))
    assert not any(match_numbers().reads(t) for t in (b"", b"01", b".5", b"1.", b"-", b"--1"))
    words = match_literals([b"true", b"false", b"tru"])
    assert words.reads(b"tru")
    assert not words.reads(b"fals")
    several = match_list(match_quoted(match_strings()), 1, 2)
    assert several.reads(b'"a"')
    assert several.reads(b'"a, b", ""')
    assert not any(several.reads(t) for t in (b"", b'"a",', b'"a", "b", "c"', b'"a","b"'))
    assert match_list(match_integers(), 0, 2).reads(b"")
    assert match_list(match_integers(), 2, 3).reads(b"1, -20")
    assert not match_list(match_integers(), 2, 3).reads(b"1")
    either = match_union(
        [match_quoted(match_strings()), match_literals([b"null"]), match_integers(0)]
    )
    assert all(either.reads(t) for t in (b'"x"', b"null", b"12"))
    assert not either.reads(b"nul")
    assert match_union([match_numbers(), match_integers()]) is None


# -- skeletons --------------------------------------------------------------------------------


def test_a_schema_is_laid_out_as_text_and_holes():
    parts = build_template(SCHEMA)
    holes = [part.path for part in parts if isinstance(part, Slot)]
    assert holes[:3] == ["name", "age", "share"]
    assert holes[-2:] == ["parts[0].n", "parts[1].n"]
    assert parts[0] == '{"name": "'
    assert parts[-1] == '}], "unit": "l"}'
    assert build_template({"type": "object"}) == ("{}",)
    assert build_template({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}]}) == (
        "[1, 2]",
    )


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "pattern": "a+"}, "pattern"),
        ({"type": "object", "required": ["x"]}, "'x'"),
        ({"anyOf": [{"type": "object"}, {"type": "object"}]}, "structure"),
        ({"anyOf": [{"type": "string"}, {"enum": ["a"]}]}, "first byte"),
        ({"properties": {"a": {}}}, "no type"),
        ({"$ref": "#/$defs/none"}, "does not resolve"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}}}},
            "recursive",
        ),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "bounds"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 2}, "maxItems"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
        ({"enum": []}, "empty"),
    ],
)
def test_what_cannot_be_laid_out_is_refused_by_name(schema, named):
    with pytest.raises(BackendError) as caught:
        build_template(schema)
    assert caught.value.code == "backend.schema"
    assert named in str(caught.value)


# -- tokens -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(make_model):
    return read_token_bytes(make_model().tokenizer)


def test_the_likeliest_value_is_found_whatever_stands_already(table):
    moves = TokenTransitions.from_dfa(match_integers(7, 130), table, len(table))
    rng = random.Random(0)
    digits = {
        table.of(token).decode(): token
        for token in range(len(table))
        if len(table.of(token)) == 1 and table.of(token).isdigit() and table.kinds[token] == 0
    }
    assert len(digits) == 10
    for _ in range(10):
        logprobs = [torch.randn(len(table)) for _ in range(3)]
        found, total = moves.best(3, {}, dict(enumerate(logprobs)))
        text = b"".join(map(table.of, found)).decode()
        assert 100 <= int(text) <= 130
        best = max(
            (
                sum(float(logprobs[at][digits[letter]]) for at, letter in enumerate(str(number)))
                for number in range(100, 131)
            ),
        )
        assert total == pytest.approx(best, abs=1e-4)
        at = rng.randrange(3)
        again, _ = moves.best(3, {at: found[at]}, {n: logprobs[n] for n in range(3) if n != at})
        assert again == found
    with pytest.raises(ValueError, match="no value"):
        moves.best(3, {0: digits["2"]}, {})
    assert moves.lengths(5) == [1, 2, 3]


def test_places_written_in_any_order_leave_a_value_possible(table):
    moves = TokenTransitions.from_dfa(match_numbers(), table, len(table))
    ids, is_open = torch.zeros(9, dtype=torch.long), torch.ones(9, dtype=torch.bool)
    rng, rule = torch.Generator().manual_seed(3), SlotConstraint(moves, 2, 5)
    order = [4, 2, 6, 3, 5]
    for at in order:
        places = torch.tensor([p for p in range(2, 7) if is_open[p]])
        tokens = rule.choose(
            ids, is_open, places, torch.randn(len(places), len(table), generator=rng)
        )
        ids[at], is_open[at] = tokens[places.tolist().index(at)], False
    assert match_numbers().reads(b"".join(map(table.of, ids[2:7].tolist())))


# -- filling ----------------------------------------------------------------------------------

_MODELS = [{}, {"attention": "block_causal", "block_size": 8}, {"logit_shift": True}]


@pytest.mark.parametrize("metadata", _MODELS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_whatever_the_model_says_the_result_holds_the_schema(
    make_model, table, metadata, temperature
):
    jsonschema = pytest.importorskip("jsonschema")
    settings = DecodeSettings(temperature=temperature, commit={"name": "threshold", "least": 2})
    filler = JsonInfiller(make_model(**metadata), table, settings, longest=6)
    texts = []
    filled = filler.fill(
        [1, 40, 41], build_template(SCHEMA), room=300, seed=5, on_text=texts.append
    )
    value = json.loads(filled.text)
    jsonschema.validate(value, SCHEMA)
    assert list(value) == list(SCHEMA["properties"])
    assert isinstance(value["age"], int)
    assert texts[-1] == filled.text
    assert all(later.startswith(one) for one, later in itertools.pairwise(texts))
    assert filled.nfe > 9


def test_the_length_of_a_value_is_what_the_model_is_surest_of(make_model, table):
    """A model that would write 42 and a closing brace chooses two digits, or one token of both."""
    model = make_model()
    digits = [next(t for t in range(len(table)) if table.of(t) == d) for d in (b"4", b"2")]
    skeleton = build_template({"properties": {"n": {"type": "integer"}}})
    filler = JsonInfiller(model, table, DecodeSettings(), longest=5)
    behind = model.tokenizer("}", add_special_tokens=False)["input_ids"]
    wanted, start = (
        [*digits, *behind],
        len(model.tokenizer('{"n": ', add_special_tokens=False)["input_ids"]),
    )

    class Says:
        metadata, vocabulary, tokenizer = model.metadata, model.vocabulary, model.tokenizer
        context_length = model.context_length
        attention_mask = staticmethod(model.attention_mask)

        def read(self, readings):
            rows = []
            for reading in readings:
                logits = torch.zeros(len(reading.want), self.vocabulary)
                for row, at in enumerate(reading.positions[reading.want].tolist()):
                    place = at - start
                    if 0 <= place < len(wanted):
                        logits[row, wanted[place]] = 9.0
                rows.append(logits)
            return rows

        def logits(self, states):
            return states

    filler.model = Says()
    assert filler.fill([], skeleton, room=50).text == '{"n": 42}'


def test_too_little_room_and_cancelling(make_model, table):
    filler = JsonInfiller(make_model(), table, DecodeSettings(), longest=4)
    skeleton = build_template(SCHEMA)
    with pytest.raises(BackendError) as caught:
        filler.fill([1], skeleton, room=20)
    assert "raise max_new_tokens" in str(caught.value)
    calls = []

    def is_cancelled():
        calls.append(1)
        return len(calls) > 4

    left = filler.fill([1], skeleton, room=300, is_cancelled=is_cancelled)
    assert left.is_cancelled
    assert left.text.startswith('{"name": "')


def test_tokens_that_lead_nowhere_are_none(table):
    moves = TokenTransitions.from_dfa(match_strings(), table, len(table), longest=1)
    tokens = np.unique(torch.cat([t for row in moves.moves for t in row.values()]).numpy())
    assert (table.lengths[tokens] == 1).all()
    assert (table.kinds[tokens] == 0).all()
