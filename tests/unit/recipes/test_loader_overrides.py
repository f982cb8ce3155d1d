import pytest

from stillroom.recipes.loader import apply_overrides
from stillroom.recipes.yaml_text import read_yaml

TEXT = "a: 1\nmethod: ties\nmodels:\n  - {x: 1}\n  - {x: 2}\n"


def put(*overrides):
    tree = read_yaml(TEXT, "r.yaml")
    apply_overrides(tree, overrides)
    return tree


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("a=2", ("a",), 2),
        ("a=", ("a",), None),
        ("a='2'", ("a",), "2"),
        ("a=x=y", ("a",), "x=y"),
        (" a =2", ("a",), 2),
        ("a={b: [1, 2]}", ("a",), {"b": [1, 2]}),
        ("new.deep.er=true", ("new", "deep", "er"), True),
        ("models.0.x=9", ("models", 0, "x"), 9),
        ("models.2.x=3", ("models", 2, "x"), 3),
        ("method.density=0.3", ("method", "density"), 0.3),
    ],
)
def test_an_override_sets_its_value(override, path, value):
    tree = put(override)
    assert not tree.problems
    found = tree.data
    for part in path:
        found = found[part]
    assert found == value
    assert tree.place_of_value(path) == f"override '{override}'"


def test_a_bare_method_name_becomes_a_group():
    assert put("method.density=0.3").data["method"] == {"name": "ties", "density": 0.3}


def test_the_last_override_wins_and_places_below_are_forgotten():
    tree = put("models.0={x: 5, y: 6}", "models.0=7")
    assert tree.data["models"][0] == 7
    assert ("models", 0, "y") not in tree.values
    assert tree.place_of_value(("models", 1, "x")) == "r.yaml:5:9"


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("", "recipe.override"),
        ("a", "recipe.override"),
        ("=1", "recipe.override"),
        ("a..b=1", "recipe.override"),
        ("models.5.x=1", "recipe.override"),
        ("models.x=1", "recipe.override"),
        ("models." + "9" * 5000 + ".x=1", "recipe.override"),
        ("a.b=1", "recipe.override"),
        ("a=[1", "recipe.yaml"),
        ("a={x: 1, x: 2}", "recipe.duplicate-key"),
        ("a=!!python/object:os.system x", "recipe.yaml-feature"),
        ("a=&x 1", "recipe.yaml-feature"),
        ("a=" + "[" * 100 + "]" * 100, "recipe.too-large"),
        ("a=\udc80", "recipe.encoding"),
    ],
)
def test_what_is_no_override_is_said_with_its_text(override, code):
    problems = put(override).problems
    assert problems[0].code == code
    assert problems[0].where.startswith(f"override '{override}'")


def test_a_long_path_does_not_break_the_reader():
    for path in ("a", "new"):
        assert put(".".join([path] * 5000) + "=1").problems[0].code == "recipe.too-large"
