"""A group of settings that is one of several: how it is printed, refused and offered."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from stillroom.errors import RecipeError
from stillroom.recipes import Recipe, Settings, loader, parse_recipe, schema, template


class Cosine(Settings):
    """Cosine decay to zero."""

    type: Literal["cosine"] = "cosine"
    warmup: int = Field(0, ge=0, description="steps of warm-up")


class Steps(Settings):
    """Drops at fixed points."""

    type: Literal["steps"] = "steps"
    every: int = Field(ge=1, description="steps between drops")


class Toy(Recipe):
    """Recipe with discriminated unions."""

    kind: Literal["toy"] = Field("toy", description="job kind")
    needed: Annotated[Cosine | Steps, Field(discriminator="type")] = Field(description="required")
    given: Annotated[Cosine | Steps, Field(discriminator="type")] = Cosine(warmup=3)
    maybe: Annotated[Cosine | Steps, Field(discriminator="type")] | None = Field(
        None, description="schedule, or none"
    )


@pytest.fixture
def toy(monkeypatch):
    for module in (schema, template, loader):
        if hasattr(module, "find_recipe_class"):
            monkeypatch.setattr(module, "find_recipe_class", lambda kind: Toy)
        if hasattr(module, "list_kinds"):
            monkeypatch.setattr(module, "list_kinds", lambda: ["toy"])
    monkeypatch.setattr(template, "find_kind_module", lambda kind: Path("/none/toy.py"))
    return template.render_template("toy")


def test_the_commented_recipe_names_the_choices(toy):
    assert toy.count("type is one of: cosine, steps") == 3
    assert "default cosine" not in toy
    assert parse_recipe(toy, "toy") == Toy(needed=Cosine())


@pytest.mark.parametrize(
    ("override", "what", "expected"),
    [
        ("given.type=step", "given.type cannot be 'step'", "'cosine', 'steps'"),
        ("given={warmup: 3}", "given.type is missing", "a group of settings with 'type'"),
        ("given={type: steps}", "given.every is missing", "steps between drops"),
        ("maybe={type: steps, every: 1, warmup: 1}", "not a setting", "one of: type, every"),
    ],
)
def test_a_wrong_choice_is_explained_at_its_setting(toy, override, what, expected):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(toy, "toy", [override])
    (problem,) = caught.value.problems
    assert what in problem.what
    assert problem.expected == expected


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("{name: judge, judges: [a], rubric: useful}", "as {NAME: VALUE}: criteria by name"),
        ("{name: judge, judges: {a: 1}}", "a list, as [A, B]"),
    ],
)
def test_a_value_of_another_shape_is_told_in_words(recipe, expected):
    text = f"version: 1\nkind: synth.records\nindex: i\npipeline: {{filters: [{recipe}]}}\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "a.yaml")
    assert expected in str(caught.value)
    assert "valid dictionary" not in str(caught.value)


def test_a_list_whose_items_are_wrong_is_not_called_empty():
    text = """version: 1
kind: synth.records
pipeline: {generator: {name: table_rows, columns: [product, stars]}}
"""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "a.yaml")
    assert [problem.what for problem in caught.value.problems] == [
        "pipeline.generator.columns.0 cannot be 'product'",
        "pipeline.generator.columns.1 cannot be 'stars'",
    ]
    assert "settings: name, type" in caught.value.problems[0].expected
    assert "TableColumn" not in str(caught.value)


def test_a_form_offers_each_choice_with_its_settings(toy, monkeypatch):
    forms = pytest.importorskip("stillroom.serve.views.forms")
    monkeypatch.setattr(forms, "find_recipe_class", lambda kind: Toy)
    fields = {field.path: field for field in forms.describe_form("toy")[0]}
    for path in ("needed", "given", "maybe"):
        field = fields[path]
        assert (field.control, field.key) == ("method", "type")
        assert {
            option.name: [part.path for part in option.settings] for option in field.options
        } == {
            "cosine": [f"{path}.warmup"],
            "steps": [f"{path}.every"],
        }
    assert (fields["given"].default, fields["needed"].is_required) == ("cosine", True)
    assert fields["maybe"].options[0].summary == "Cosine decay to zero."
