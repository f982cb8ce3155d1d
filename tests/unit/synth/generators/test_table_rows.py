import json
import random
from collections import Counter

import pytest
from pydantic import ValidationError
from tests.unit.synth.generators.hostile import HOSTILE, draft_of, fill, reasons, survives

from stillroom.errors import DataError
from stillroom.synth.generators.table_rows import TableColumn, TableRows, sample_row
from stillroom.synth.types import GeneratorContext, NoSeed, WorkItem

COLUMNS = [
    {"name": "size", "type": "integer", "min": 1, "max": 9},
    {"name": "price", "type": "number", "min": 0, "max": 100, "mean": 30},
    {"name": "kind", "type": "category", "values": {"tea": 3, "coffee": 1}},
    {
        "name": "milk",
        "type": "category",
        "given": "kind",
        "by": {"tea": {"no": 1}, "coffee": {"yes": 1}},
    },
    {"name": "day", "type": "date", "first": "2024-01-01", "last": "2024-01-31"},
    {"name": "sold", "type": "boolean"},
]
REVIEW = {"name": "review", "type": "text", "about": "a short review", "max_characters": 40}


def rows_of(count, columns=COLUMNS, **more):
    method = TableRows(columns=columns, **more)
    drafts = [
        draft_of(method, NoSeed("train", n), lambda p: fill(p.schema))[0] for n in range(count)
    ]
    return [record.fields["row"] for made in drafts for record in made.records], method, drafts


def test_values_are_drawn_by_their_types_ranges_and_conditions():
    rows, _, drafts = rows_of(400)
    assert all(1 <= row["size"] <= 9 and isinstance(row["size"], int) for row in rows)
    assert all(0 <= row["price"] <= 100 for row in rows)
    assert 20 < sum(row["price"] for row in rows) / 400 < 40
    kinds = Counter(row["kind"] for row in rows)
    assert 250 < kinds["tea"] < 350
    assert all((row["milk"] == "yes") == (row["kind"] == "coffee") for row in rows)
    assert all("2024-01-01" <= row["day"] <= "2024-01-31" for row in rows)
    assert all(made.asked == 0 for made in drafts)
    assert list(rows[0]) == [column["name"] for column in COLUMNS]


def test_texts_are_written_to_fit_the_row():
    method = TableRows(columns=[*COLUMNS[:1], REVIEW], about="a shop")
    made, model = draft_of(method, NoSeed("train", 1), lambda p: fill(p.schema, review="Fine."))
    row = json.loads(made.records[0].messages[0].content)
    assert row["review"] == "Fine."
    words = model.asked[0].messages[-1].content
    assert f'"size": {row["size"]}' in words
    assert "review (a short review)" in words


def write_rows(path, count=300):
    rng = random.Random(3)
    lines = ["age,income,town"]
    for _ in range(count):
        age = rng.randint(20, 70)
        town = rng.choice(["north", "north", "south"])
        lines.append(f"{age},{100 * age + rng.gauss(0, 700):.2f},{town}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


SEEDED = [
    {"name": "age", "type": "integer"},
    {"name": "income", "type": "number"},
    {"name": "town", "type": "category"},
]


def test_distributions_and_rank_correlations_of_seed_rows_are_kept_and_reported(tmp_path):
    path = write_rows(tmp_path / "rows.csv")
    rows, method, drafts = rows_of(500, SEEDED, rows=path)
    assert all(20 <= row["age"] <= 70 for row in rows)
    assert 0.55 < sum(row["town"] == "north" for row in rows) / 500 < 0.78
    told = method.describe([record for made in drafts for record in made.records])
    assert told["rank_correlation_of_seeds"]["age~income"] > 0.8
    assert told["largest_gap"] < 0.1
    assert told["seed_rows"] == 300
    assert TableRows(columns=COLUMNS).describe([]) == {"rows": 0}


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ([{"name": "a", "type": "integer"}], "needs min and max"),
        ([{"name": "a", "type": "category"}], "needs values"),
        ([{"name": "a", "type": "date"}], "needs first and last"),
        ([{"name": "a", "type": "integer", "min": 3, "max": 1}], "min is above max"),
        ([{"name": "a", "type": "integer", "min": 0.4, "max": 0.6}], "no integer"),
        ([COLUMNS[0], COLUMNS[0]], "is repeated"),
        ([{**COLUMNS[3], "given": "none"}], "depend on unknown columns"),
        ([{**COLUMNS[3], "given": ""}], "must be set together"),
        ([{**COLUMNS[2], "values": {"a": -1}}], "negative"),
        ([], "at least 1"),
    ],
)
def test_a_schema_that_cannot_be_drawn_is_refused(columns, what):
    with pytest.raises(ValidationError, match=what):
        TableRows(columns=columns)


@pytest.mark.parametrize(
    "text",
    ["", "age,income\n1,2\n", "age,income,town\nx,2,north\n", "age,income,town\n1,nan,north\n"],
)
def test_broken_seed_rows_are_said_before_anything_is_asked(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match="seed rows cannot be read") as caught:
        TableRows(columns=SEEDED, rows=str(path)).start(GeneratorContext("train"))
    assert caught.value.problems[0].code == "synth.rows"


def test_rows_do_not_depend_on_order():
    one, _, _ = rows_of(3)
    method = TableRows(columns=COLUMNS)
    again = draft_of(method, NoSeed("train", 2), lambda p: "")[0].records[0].fields["row"]
    assert again == one[2]


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    method = TableRows(columns=[*COLUMNS[:1], REVIEW])
    made = survives(
        lambda model: method.generate([WorkItem(NoSeed("train", 1), "train")], model), said
    )
    assert set(reasons(made[0])) <= {
        "texts of the row is not the JSON asked",
        "texts of the row cut at the token limit",
    }


def test_odds_of_a_boolean_are_weights_or_a_chance_and_may_be_given():
    even = {"name": "sold", "type": "boolean"}
    given = {**even, "given": "kind", "by": {"tea": {"true": 1, "false": 3}, "coffee": {"true": 1}}}
    rows, *_ = rows_of(300, [COLUMNS[2], given])
    sold = Counter((row["kind"], row["sold"]) for row in rows)
    assert 0.1 < sold["tea", True] / (sold["tea", True] + sold["tea", False]) < 0.4
    assert not sold["coffee", False]
    rows, *_ = rows_of(200, [{**even, "values": {"true": 3, "false": 1}}])
    assert 120 < sum(row["sold"] for row in rows) < 180
    told = {"name": "sort", "type": "category", "given": "sold", "by": {"true": {"a": 1}}}
    with pytest.raises(ValidationError, match="no weights where sold is false"):
        TableRows(columns=[even, told])
    with pytest.raises(ValidationError, match="values of a boolean"):
        TableRows(columns=[{**even, "values": {"yes": 1}}])


def test_every_integer_of_a_uniform_column_is_equally_likely_and_within_its_bounds():
    die = TableColumn(name="die", type="integer", min=0.5, max=6.5)
    draws = [sample_row([die], {"die": (n + 0.5) / 6000})["die"] for n in range(6000)]
    assert Counter(draws) == dict.fromkeys(range(1, 7), 1000)
    assert sample_row([die], {"die": 1.0})["die"] == 6
    narrow = TableColumn(name="share", type="number", min=0.005, max=0.006, decimals=2)
    assert sample_row([narrow], {"share": 0.5})["share"] == 0.006


def test_too_few_seed_rows_for_correlations_are_reported_without(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("age,income,town\n20,100,north\n30,200,south\n")
    rows, method, drafts = rows_of(5, SEEDED, rows=str(path))
    described = method.describe([record for made in drafts for record in made.records])
    assert described["rank_correlation_of_seeds"] == {}
    assert described["largest_gap"] is None
    assert len(rows) == described["rows"] == 5
