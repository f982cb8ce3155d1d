import pickle
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from stillroom.errors import RecipeError
from stillroom.recipes import DISTINCT, Duration, Recipe, Reference, Secret, Settings, Size
from stillroom.recipes.loader import parse_group


class Holder(BaseModel):
    size: Size = 0
    wait: Duration = 0.0
    path: Reference = "x"
    key: Secret | None = None


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2GB", 2 * 10**9),
        ("2GiB", 2 * 2**30),
        ("1.5kb", 1500),
        ("7", 7),
        ("7 B", 7),
        (" 1 TB ", 10**12),
    ],
)
def test_sizes_are_bytes(text, size_bytes):
    assert Holder(size=text).size == size_bytes


@pytest.mark.parametrize("number", [2**63, -(2**63) - 7, 10**30])
def test_a_whole_number_that_nothing_can_count_is_refused_where_it_stands(number):
    class Group(Settings):
        sizes: tuple[int, ...] = ()
        steps: int | None = None
        pairs: tuple[tuple[int, int], ...] = ()
        more: dict[str, Any] = Field(default_factory=dict)

    for group in (
        f"steps: {number}",
        f"sizes: [1, {number}]",
        f"pairs: [[1, {number}]]",
    ):
        with pytest.raises(RecipeError) as caught:
            parse_group(Group, group, "r.yaml")
        assert caught.value.code == "recipe.value"
        assert str(number) in caught.value.problems[0].what
        assert caught.value.problems[0].where.startswith("r.yaml:1:")
        assert caught.value.problems[0].expected == f"a number from {-(2**63)} to {2**63 - 1}"
    with pytest.raises(RecipeError, match="nan is not a finite number"):
        parse_group(Group, "more: {a: [.nan]}")
    assert parse_group(Group, "more: {maximum: 18446744073709551615}").more["maximum"] == 2**64 - 1
    assert parse_group(Group, f"sizes: [{-(2**63)}]").sizes == (-(2**63),)
    assert parse_group(Group, f"steps: {2**63 - 1}").steps == 2**63 - 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("250ms", 0.25), ("5min", 300.0), ("2h", 7200.0), ("9", 9.0)],
)
def test_durations_are_seconds(text, seconds):
    assert Holder(wait=text).wait == pytest.approx(seconds)


@pytest.mark.parametrize(
    "given",
    [
        {"size": "2 gigs"},
        {"size": "-1GB"},
        {"size": -1},
        {"size": "GB"},
        {"wait": "1e9s"},
        {"wait": "soon"},
        {"size": "٣GB"},
        {"size": "1" * 400 + ".5GB"},
    ],
)
def test_what_is_no_quantity_is_refused(given):
    with pytest.raises(ValidationError):
        Holder(**given)


def test_recipes_are_frozen_and_closed():
    recipe = Recipe(kind="x")
    with pytest.raises(ValidationError):
        recipe.seed = 3
    with pytest.raises(ValidationError):
        Recipe(kind="x", extra=1)


def test_secrets_are_references_everywhere(monkeypatch):
    secret = Secret("${env:STILLROOM_TEST}")
    monkeypatch.setenv("STILLROOM_TEST", "s3cret")
    assert secret == Secret("${env:STILLROOM_TEST}")
    assert len({secret, Secret("${env:STILLROOM_TEST}")}) == 1
    assert "s3cret" not in repr(secret)
    assert Holder(key="${env:STILLROOM_TEST}").model_dump()["key"] == "${env:STILLROOM_TEST}"
    assert pickle.loads(pickle.dumps(secret)).reveal() == "s3cret"  # noqa: S301
    for bad in ["", "plain", "${env:}", "${env:A}x", "${env:A-B}", 3]:
        with pytest.raises(RecipeError):
            Secret(bad)


def test_an_item_that_is_listed_twice_is_refused():
    class Listed(Settings):
        names: Annotated[tuple[str, ...], DISTINCT] = ()

    assert Listed(names=["a", "b"]).names == ("a", "b")
    with pytest.raises(ValidationError, match="listed twice: a"):
        Listed(names=["a", "b", "a"])
