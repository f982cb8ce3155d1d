"""Recipes that are the name of a kind, with settings of the command line alone."""

from pathlib import Path

import pytest

from stillroom.errors import RecipeError
from stillroom.recipes import load_recipe, parse_recipe


def test_a_kind_takes_its_settings_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind = Path("synth.dedup")
    assert load_recipe(kind, ["records=[a.jsonl]"]).records == (str(tmp_path / "a.jsonl"),)
    with pytest.raises(RecipeError) as caught:
        load_recipe(kind)
    told = caught.value.problems[0]
    assert told.where == "command line"
    assert told.next == "add records=VALUE; 'stillroom new synth.dedup' shows the others"
    with pytest.raises(RecipeError, match=r"did you mean 'synth\.dedup'"):
        load_recipe(Path("synth.dedp"))


@pytest.mark.parametrize(
    ("kind", "setting", "expected"),
    [
        ("synth.dedup", "records=a.jsonl", "a list, as [A, B]"),
        ("synth.diversity", "generations=[a.jsonl]", "at least 2 items, not 1"),
    ],
)
def test_a_list_that_does_not_fit_is_told_without_python_words(kind, setting, expected):
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path(kind), [setting])
    assert caught.value.problems[0].expected == expected


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("measurement.no_score=0", "measurement.no_score cannot be 0"),
        ("measurement.no_scor=drop", "did you mean 'no_score'"),
    ],
)
def test_an_option_is_told_apart_from_a_setting_of_the_same_name(setting, said):
    given = ["manifest=m.csv", "measurement.type=scores", "measurement.scores=s.csv", setting]
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(Path("forensics.benchmark"), given)
    assert caught.value.problems[0].where == f"override '{setting}'"
    assert len(caught.value.problems) == 1
    with pytest.raises(RecipeError, match=r"add measurement.scores=VALUE"):
        load_recipe(Path("forensics.benchmark"), given[:2])


def test_a_setting_of_another_group_is_named_with_its_group():
    with pytest.raises(RecipeError, match=r"did you mean 'pipeline\.generator'"):
        parse_recipe("kind: synth.records\ngenerator: grounded_qa\n")
