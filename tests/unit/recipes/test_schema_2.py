import json

import pytest

from stillroom.recipes import list_kinds, recipe_schema, write_schema


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
def test_methods_are_described_with_their_nested_settings(tmp_path):
    path = write_schema(tmp_path / "s.json")
    schema = check(json.loads(path.read_text(encoding="utf-8")))
    merge = schema["$defs"]["merge.weights"]["properties"]
    names, linear, ties = merge["method"]["anyOf"]
    assert names["enum"] == ["linear", "ties"]
    assert linear["properties"]["name"] == {"const": "linear"}
    assert ties["properties"]["density"]["maximum"] == 1
    assert ties["properties"]["votes"]["items"]["properties"]["by"]["enum"] == ["sign", "mass"]
    assert merge["then"]["items"] == merge["method"] | {} or "anyOf" in merge["then"]["items"]
    assert write_schema(tmp_path / "t.json").read_bytes() == path.read_bytes()
