import os
import pickle
from pathlib import Path

import pytest

from stillroom.errors import RecipeError
from stillroom.recipes import build_recipe, dump_recipe, load_recipe, parse_recipe

GOOD = """\
version: 1
kind: merge.weights
seed: 7
method: {name: ties, density: 0.5}
base: hub:org/base@main
models:
  - {checkpoint: runs/student, weight: 0.6}
  - checkpoint: ./other
out: {shard_size: 500MB}
patience: 2min
"""

pytestmark = pytest.mark.usefixtures("rooms")


def refuse(text, *overrides):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml", overrides)
    return caught.value


def lines(error):
    return {(problem.where, problem.code, problem.what) for problem in error.problems}


def test_a_good_recipe_is_read_with_units_and_defaults():
    recipe = parse_recipe(GOOD)
    assert recipe.seed == 7
    assert recipe.method.density == 0.5
    assert recipe.out.shard_size == 500_000_000
    assert recipe.out.dtype == "bfloat16"
    assert recipe.patience == 120.0
    assert recipe.models[1].weight == 1.0


def test_defaults_with_units_are_numbers_too():
    recipe = parse_recipe(GOOD.replace("out: {shard_size: 500MB}\n", ""))
    assert recipe.out.shard_size == 2_000_000_000


def test_an_unknown_setting_of_a_method_names_the_method_and_the_nearest_word():
    error = refuse(GOOD.replace("density", "densty"))
    assert str(error) == (
        "r.yaml:4:22: method.densty is not a setting of 'ties'  [recipe.unknown-key]\n"
        "  expected one of: density, weights, votes, prior\n"
        "  next: did you mean 'density'?"
    )


def test_everything_that_is_wrong_is_said_at_once_in_order_of_place():
    error = refuse(
        """\
version: 1
kind: merge.weights
seed: -1
seed: 2
method:
  name: ties
  density: 3
  votes:
    - by: sign
    - {by: mas, when: now}
models:
  - checkpoint: a
    weigth: 1
out: {dtype: float23}
bogus: x
""",
        "patience=soon",
        "note",
    )
    found = lines(error)
    assert ("r.yaml:3:7", "recipe.value", "seed cannot be -1") in found
    assert ("r.yaml:4:1", "recipe.duplicate-key", "seed is set twice") in found
    assert ("r.yaml:7:12", "recipe.value", "method.density cannot be 3") in found
    assert ("r.yaml:10:12", "recipe.value", "method.votes.1.by cannot be 'mas'") in found
    assert (
        "r.yaml:10:17",
        "recipe.unknown-key",
        "method.votes.1.when is not a setting of 'method.votes.1'",
    ) in found
    assert ("r.yaml:1:1", "recipe.missing", "base is missing") in found
    assert (
        "r.yaml:13:5",
        "recipe.unknown-key",
        "models.0.weigth is not a setting of 'models.0'",
    ) in found
    assert ("r.yaml:14:14", "recipe.value", "out.dtype cannot be 'float23'") in found
    unknown = "bogus is not a setting of 'merge.weights'"
    assert ("r.yaml:15:1", "recipe.unknown-key", unknown) in found
    assert (
        "override 'patience=soon'",
        "recipe.value",
        "patience: 'soon' has no known unit",
    ) in found
    assert ("override 'note'", "recipe.override", "'note' is not an override") in found
    numbers = [int(p.where.split(":")[1]) for p in error.problems if p.where.startswith("r.yaml")]
    assert numbers == sorted(numbers)


def test_the_nearest_value_and_the_remedy_are_suggested():
    problems = refuse(GOOD + "out2: 1\n", "out.dtype=bflot16").problems
    assert any(p.next == "did you mean 'bfloat16'?" for p in problems)
    missing = refuse(GOOD.replace("base: hub:org/base@main\n", "")).problems[0]
    assert missing.expected == "the reference checkpoint"
    assert missing.next == "add 'base:' to 'merge.weights'"


def test_a_missing_setting_of_a_list_item_is_placed_at_the_item():
    error = refuse(GOOD.replace("  - checkpoint: ./other", "  - weight: 1"))
    assert lines(error) == {("r.yaml:8:5", "recipe.missing", "models.1.checkpoint is missing")}


def test_alternatives_of_one_value_are_one_problem():
    error = refuse(GOOD, "method.weights=heavy")
    assert len(error.problems) == 1
    assert error.problems[0].what == "method.weights cannot be 'heavy'"
    assert error.problems[0].expected == "a valid number, or a list, as [A, B]"


def test_an_unknown_method_is_suggested_where_it_stands():
    error = refuse(GOOD.replace("name: ties", "name: tiez"))
    problem = error.problems[0]
    assert (problem.where, problem.code) == ("r.yaml:4:9", "recipe.unknown-method")
    assert "did you mean 'ties'?" in str(error)
    assert problem.what.startswith("method: ")


@pytest.mark.parametrize("chosen", ["[ties]", "3", "{density: 1}", "null", "{name: 3}"])
def test_a_choice_that_is_no_name_is_refused(chosen):
    error = refuse(GOOD, f"method={chosen}")
    assert error.problems[0].code == "recipe.unknown-method"


def test_methods_in_a_list_are_placed_item_by_item():
    error = refuse(GOOD + "then:\n  - linear\n  - {name: linear, x: 1}\n  - nope\n")
    assert lines(error) == {
        ("r.yaml:13:20", "recipe.unknown-key", "then.1.x is not a setting of 'linear'"),
        (
            "r.yaml:14:5",
            "recipe.unknown-method",
            "then.2: 'nope' is not a method of roomset.merge.methods",
        ),
    }
    assert "no settings: 'linear' has none" in str(error)


def test_errors_that_methods_raise_keep_their_code_and_get_a_place():
    error = refuse(GOOD, "method.density=0.33")
    assert lines(error) == {
        ("override 'method.density=0.33'", "data.third", "method.density: a third is refused")
    }
    error = refuse(GOOD, "models.0.weight=0", "models.1.weight=0")
    assert error.problems[0].what == "the recipe: the weights sum to zero"


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        ("", "recipe.kind", "the recipe is empty"),
        ("- a\n- b", "recipe.kind", "the recipe is not a mapping"),
        ("version: 1", "recipe.kind", "kind is missing"),
        ("kind: 3", "recipe.kind", "kind cannot be 3"),
        ("kind: [merge]", "recipe.kind", "kind cannot be ['merge']"),
        ("kind: merg", "recipe.unknown-kind", "'merg' is not a kind of recipe"),
        ("kind: ../merge", "recipe.unknown-kind", "'../merge' is not a kind of recipe"),
        (GOOD.replace("version: 1", "version: 2"), "recipe.value", "version cannot be 2"),
        (GOOD.replace("seed: 7", "seed: .nan"), "recipe.value", "seed cannot be nan"),
        (GOOD.replace("seed: 7", f"seed: {2**64}"), "recipe.value", f"seed cannot be {2**64}"),
    ],
)
def test_what_is_no_recipe_is_said(text, code, what):
    problem = refuse(text).problems[0]
    assert (problem.code, problem.what) == (code, what)


def test_an_infinite_number_is_refused():
    assert refuse(GOOD, "models.0.weight=.inf").problems[0].code == "recipe.value"


def test_errors_are_picklable_and_exit_with_two():
    error = refuse("kind: merg")
    assert pickle.loads(pickle.dumps(error)).problems == error.problems  # noqa: S301
    assert error.exit_code == 2


def test_relative_paths_start_at_the_folder_of_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "r.yaml"
    file.write_text(GOOD.replace("name: ties", "name: ties, prior: ../p"))
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path("in/r.yaml"))
    assert recipe.models[0].checkpoint == str(tmp_path / "in" / "runs" / "student")
    assert recipe.models[1].checkpoint == str(tmp_path / "in" / "other")
    assert recipe.method.prior == str(tmp_path / "p")
    assert recipe.base == "hub:org/base@main"
    assert parse_recipe(GOOD).models[0].checkpoint == "runs/student"
    again = parse_recipe(dump_recipe(recipe))
    assert again == recipe


def test_references_with_a_scheme_stay_and_malformed_ones_are_refused(tmp_path):
    for kept in ["https://host/v1", "step:base", "hub:a/b@v1.0", "/abs/x"]:
        assert parse_recipe(GOOD, overrides=[f"base='{kept}'"], folder=tmp_path).base == kept
    for bad in [
        "'hub:'",
        "hub:../../etc",
        "hub:a/b/c",
        "'job:'",
        "job:../x",
        "job:abc-1",
        '""',
        '"a\\0b"',
    ]:
        assert refuse(GOOD, f"base={bad}").problems[0].code == "recipe.reference", bad
    home = parse_recipe(GOOD, overrides=["base=~/x"], folder=tmp_path).base
    assert home == os.path.expanduser("~/x")  # noqa: PTH111


def test_a_secret_is_named_never_held(monkeypatch):
    recipe = parse_recipe(GOOD + "key: ${env:STILLROOM_TEST_KEY}\n")
    with pytest.raises(RecipeError, match="STILLROOM_TEST_KEY is not set"):
        recipe.key.reveal()
    monkeypatch.setenv("STILLROOM_TEST_KEY", "hunter2")
    assert recipe.key.reveal() == "hunter2"
    assert "hunter2" not in dump_recipe(recipe) + repr(recipe)
    assert 'key: "${env:STILLROOM_TEST_KEY}"' in dump_recipe(recipe)
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_a_literal_secret_is_refused_without_being_shown():
    error = refuse(GOOD + "key: sk-12345\n")
    assert error.code == "recipe.secret"
    assert "sk-12345" not in str(error)


def test_interpolation_outside_secrets_is_refused_not_ignored():
    error = refuse(GOOD, "note=${env:HOME}", "labels.a=x ${env:HOME}")
    assert {p.what for p in error.problems} == {
        "note cannot take ${env:NAME}",
        "labels.a cannot take ${env:NAME}",
    }


def test_files_that_cannot_be_read_are_said(tmp_path):
    def code_of(path):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        return caught.value.code

    assert code_of(tmp_path / "none.yaml") == "recipe.not-found"
    assert code_of(tmp_path) == "recipe.not-found"
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"kind: merge.weights\nnote: \xff\xfe\n")
    assert code_of(bad) == "recipe.encoding"
    bad.write_bytes("kind: merge.weights".encode("utf-16"))
    assert code_of(bad) == "recipe.encoding"
    bad.write_bytes(b"# " + "é".encode() * 400_000)
    assert code_of(bad) == "recipe.too-large"
    bad.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_recipe(bad).seed == 7


def test_a_dump_is_stable_and_complete():
    recipe = parse_recipe(GOOD)
    text = dump_recipe(recipe)
    assert text == dump_recipe(parse_recipe(text))
    assert text.startswith(
        "version: 1\nkind: merge.weights\nseed: 7\nmethod:\n  name: ties\n  density: 0.5"
    )
    assert "shard_size: 500000000" in text


def test_plain_values_build_the_same_recipe():
    recipe = build_recipe(
        {
            "kind": "merge.weights",
            "seed": 7,
            "method": {"name": "ties", "density": 0.5},
            "base": "hub:org/base@main",
            "models": [{"checkpoint": "runs/student", "weight": 0.6}, {"checkpoint": "other"}],
            "out": {"shard_size": "500MB"},
            "patience": "2min",
        }
    )
    assert recipe == parse_recipe(GOOD)
    with pytest.raises(RecipeError) as caught:
        build_recipe({"kind": "merge.weights", "bas": 1}, "steps.merged")
    assert {problem.where for problem in caught.value.problems} == {"steps.merged"}
