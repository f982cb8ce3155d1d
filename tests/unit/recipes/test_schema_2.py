import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from stillroom.cli.recipes import new_command
from stillroom.recipes import list_kinds, recipe_schema

RECIPES = Path(__file__).parents[3] / "recipes"


def refs(value):
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from refs(part)
    elif isinstance(value, list):
        for part in value:
            yield from refs(part)


def look_up(schema, reference):
    assert reference.startswith("#/")
    for part in reference[2:].split("/"):
        schema = schema[part]
    return schema


def check(schema):
    for reference in refs(schema):
        look_up(schema, reference)
    return schema


def test_every_kind_is_a_branch_and_every_reference_leads_somewhere():
    schema = check(recipe_schema())
    assert list(schema["$defs"]) == list_kinds()
    for kind in list_kinds():
        branch = schema["$defs"][kind]
        assert branch["properties"]["kind"]["const"] == kind
        assert "kind" in branch["required"]
        assert branch["additionalProperties"] is False


@pytest.mark.usefixtures("rooms")
def test_methods_are_described_with_their_nested_settings():
    schema = check(recipe_schema())
    merge = schema["$defs"]["merge.weights"]["properties"]
    names, linear, ties = merge["method"]["anyOf"]
    assert names["enum"] == ["linear", "ties"]
    assert linear["properties"]["name"] == {"const": "linear"}
    assert ties["properties"]["density"]["maximum"] == 1
    assert ties["properties"]["votes"]["items"]["properties"]["by"]["enum"] == ["sign", "mass"]
    assert merge["then"]["items"] == merge["method"] | {} or "anyOf" in merge["then"]["items"]


def test_an_editor_accepts_the_shipped_recipes_by_the_printed_schema_and_marks_a_wrong_key():
    printed = CliRunner().invoke(new_command, ["--schema"], catch_exceptions=False)
    schema = json.loads(printed.output)
    Draft202012Validator.check_schema(schema)
    recipes = [YAML(typ="safe", pure=True).load(path) for path in sorted(RECIPES.glob("*.yaml"))]
    assert len(recipes) > 20
    for recipe in recipes:
        branch = Draft202012Validator({"$ref": f"#/$defs/{recipe['kind']}", **schema})
        assert not list(branch.iter_errors(recipe))
        assert not branch.is_valid({**recipe, "wrong": 1})


def test_new_prints_the_schema_of_one_kind_and_asks_for_a_kind():
    one = CliRunner().invoke(new_command, ["rag.index", "--schema"])
    assert list(json.loads(one.output)["$defs"]) == ["rag.index"]
    none = CliRunner().invoke(new_command, [])
    assert none.exit_code == 2
    assert "--schema" in none.output
