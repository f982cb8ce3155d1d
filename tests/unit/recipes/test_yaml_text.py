import json
import math
import time

import pytest

from stillroom.errors import RecipeError
from stillroom.recipes.yaml_text import read_yaml


def read(text):
    tree = read_yaml(text, "r.yaml")
    assert not tree.problems
    return tree.data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("1e-4", 1e-4),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("~", None),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("hub:org/name@rev", "hub:org/name@rev"),
        ("=", "="),
    ],
)
def test_scalars_mean_what_the_core_schema_of_yaml_1_2_says(text, value):
    assert read(text) == value
    assert type(read(text)) is type(value)


def test_nan_is_nan():
    assert math.isnan(read(".nan"))


def test_keys_are_text_whatever_they_look_like():
    assert read("1: a\ntrue: b\nnull: c\n") == {"1": "a", "true": "b", "null": "c"}


def test_places_are_those_of_keys_and_values():
    tree = read_yaml("a:\n  - b:   {c: 1}\n", "r.yaml")
    assert tree.place_of_key(("a", 0, "b")) == "r.yaml:2:5"
    assert tree.place_of_value(("a", 0, "b")) == "r.yaml:2:10"
    assert tree.place_of_key(("a", 0, "b", "c")) == "r.yaml:2:11"
    assert tree.place_of_key(("a", 0, "b", "nope")) == "r.yaml:2:5"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: &x 1\nb: *x\n", "r.yaml:1:4"),
        ("a: !!python/object/apply:os.system [ls]\n", "r.yaml:1:4"),
        ("a: !include other.yaml\n", "r.yaml:1:4"),
        ("a: 1\n<<: *b\n", "r.yaml:2:5"),
        ("%TAG ! tag:example.com,2000:\n---\na: !x 1\n", "r.yaml:2:1"),
        ("&k a: 1\n", "r.yaml:1:1"),
        ("a: ! 3", "r.yaml:1:4"),
    ],
)
def test_tags_anchors_and_aliases_are_refused_where_they_stand(text, where):
    problems = read_yaml(text, "r.yaml").problems
    assert problems[0].code == "recipe.yaml-feature"
    assert where in {problem.where for problem in problems}


def test_a_bomb_of_aliases_costs_nothing():
    text = 'a: &a ["x","x"]\n' + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
    )
    start = time.process_time()
    assert read_yaml(text, "r.yaml").problems[0].code == "recipe.yaml-feature"
    assert time.process_time() - start < 2


def test_duplicate_keys_name_both_places():
    (problem,) = read_yaml("a:\n  b: 1\n  c: 2\n  b: {d: 1, d: 2}\n", "r.yaml").problems[:1]
    assert problem.code == "recipe.duplicate-key"
    assert problem.what == "a.b is set twice"
    assert problem.where == "r.yaml:4:3"
    assert "r.yaml:2:3" in problem.expected


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: [1", "recipe.yaml"),
        ("a: b: c", "recipe.yaml"),
        ("a: 1\n\tb: 2", "recipe.yaml"),
        ("a: 1\n---\nb: 2\n", "recipe.yaml"),
        ("? [a]\n: 1\n", "recipe.yaml"),
        ("a: \x00", "recipe.yaml"),
        ("a: \x1b[31m", "recipe.yaml"),
        ("%YAML 9.9\n---\na: 1", "recipe.yaml"),
        ("a: *nope", None),
        ("[" * 5000, "recipe.too-large"),
        ("- " * 5000, "recipe.too-large"),
        ("{a: " * 5000, "recipe.too-large"),
        ("a: " + "x" * 300_000, "recipe.too-large"),
        ("a: \ud800", "recipe.encoding"),
        ('a: "\\ud800"', "recipe.encoding"),
        ('"\\udc00": 1', "recipe.encoding"),
        ("'" * 100_001, "recipe.yaml"),
    ],
)
def test_what_is_no_yaml_is_said_and_never_breaks_the_reader(text, code):
    if code is None:
        assert read_yaml(text, "r.yaml").problems
        return
    with pytest.raises(RecipeError) as caught:
        read_yaml(text, "r.yaml")
    assert caught.value.code == code
    assert caught.value.problems[0].where.startswith("r.yaml")


def test_a_letter_beyond_the_basic_plane_is_read_from_json_as_from_yaml():
    value = {"\N{GRINNING FACE}": "a \N{GRINNING FACE}"}
    assert read(json.dumps(value)) == read(json.dumps(value, ensure_ascii=False)) == value


def test_a_number_of_a_million_digits_stays_text():
    assert isinstance(read("9" * 100_000), str)


def test_a_tree_that_is_changed_changes_no_other_of_the_same_text():
    first = read_yaml("a: [1, {b: 2}]\na: 3\n", "r.yaml")
    first.data["a"][1]["b"] = 9
    first.keys.clear()
    first.values[("a",)] = "elsewhere"
    first.problems.clear()
    second = read_yaml("a: [1, {b: 2}]\na: 3\n", "r.yaml")
    assert second.data == {"a": [1, {"b": 2}]}
    assert second.place_of_key(("a",)) == second.keys["a",] == "r.yaml:1:1"
    assert second.place_of_value(("a",)) == "r.yaml:1:4"
    assert len(second.problems) == 1
    assert read_yaml("a: [1, {b: 2}]\na: 3\n", "other").place_of_key(("a",)) == "other:1:1"
