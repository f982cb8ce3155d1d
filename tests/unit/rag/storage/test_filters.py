"""Filters: what is read from text, what is refused, and that no text becomes a statement."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from stillroom.errors import DataError
from stillroom.flow import run_recipe
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.jobs.job import Job, write_manifest
from stillroom.provenance import digest_file, read_artifact, read_ledger
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.maintenance.update import check_index, delete_documents, update_index
from stillroom.rag.observability import collect_warnings
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.storage import filters
from stillroom.rag.storage.filters import (
    FilterExpression,
    compile_filter,
    derive_fields,
    list_values,
    parse_filter,
    read_metadata,
)

FRONT = "---\nyear: 2021\ntags: [pets, night]\ndraft: true\nwritten: 2021-05-30\n---\n"
METADATA = [
    {"path": "places/paris.txt", "fields": {"year": 2019, "tags": ["city"], "name": "O'Hara; --"}},
    {"path": "places/tokyo.txt", "fields": {"year": 2024.5, "tags": ["city", "night"]}},
]


def write_metadata(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def place(folder, tmp_path):
    cats = folder / "animals/cats.md"
    cats.write_text(FRONT + cats.read_text())
    told = write_metadata(tmp_path / "told.jsonl", METADATA)
    run_recipe(
        IndexRecipe(documents=str(folder), embedder="static", metadata=told), tmp_path / "index"
    )
    return tmp_path / "index"


def paths(index, text):
    shown = index.restrict(text)
    return {shown.passage_at(row).location.path.split("/")[1] for row in range(len(shown))}


def test_documents_are_found_by_their_fields(place):
    with Index.open(place) as index:
        everything = paths(index, "exists(path)")
        assert len(everything) == 6
        for text, expected in {
            "year >= 2020": {"cats.md", "tokyo.txt"},
            "year = 2019 or year > 2024": {"paris.txt", "tokyo.txt"},
            "year != 2019": everything - {"paris.txt"},
            "not exists(year)": {"dogs.md", "cpp.md", "python.md"},
            "tags = night": {"cats.md", "tokyo.txt"},
            "tags in (city, pets) and year < 2022": {"cats.md", "paris.txt"},
            "draft = true": {"cats.md"},
            "written > 2021-01-01 and written <= 2021-05-30": {"cats.md"},
            "path ~ 'places/*' and not tags = night": {"paris.txt"},
            "path ~ '*/c?ts.md'": {"cats.md"},
            "path ~ '[a-z]*'": set(),
            'name = "O\'Hara; --"': {"paris.txt"},
            "format = text/markdown and (path ~ 'code/*')": {"cpp.md", "python.md"},
            "title = Cats": {"cats.md"},
            "tags = missing": set(),
        }.items():
            assert paths(index, text) == expected, text


def test_a_view_can_be_narrowed_and_never_widened(place):
    with Index.open(place) as index:
        night = index.restrict("tags = night")
        assert {hit.passage.location.path for hit in retrieve(night, "cat capital 日本", 9)} == {
            "animals/cats.md",
            "places/tokyo.txt",
        }
        assert paths(night, "exists(path)") == {"cats.md", "tokyo.txt"}
        assert paths(night, "year = 2021 or year = 2019") == {"cats.md"}
        assert len(index) == 6
        assert index.fields["year"] == ["number"]
        assert index.fields["tags"] == ["text"]


def test_a_narrowed_view_follows_deletes_and_additions(place, folder):
    with Index.open(place) as index:
        night = index.restrict("tags = night")
        delete_documents(place, ["animals/cats.md", "code/cpp.md"])
        assert night.refresh()
        assert paths(night, "exists(path)") == {"tokyo.txt"}
        assert [hit.passage.location.path for hit in retrieve(night, "日本 cat", 5)] == [
            "places/tokyo.txt"
        ]
        assert len(index) == 6
        update_index(place)
        assert night.refresh()
        assert paths(night, "exists(path)") == {"tokyo.txt", "cats.md"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("yaer = 2020", "rag.unknown-field"),
        ("year = twenty", "rag.filter-kind"),
        ("year = '2021'", "rag.filter-kind"),
        ("year ~ '20*'", "rag.filter-kind"),
        ("path = 3", "rag.filter-kind"),
        ("", "rag.bad-filter"),
        ("year", "rag.bad-filter"),
        ("year >=", "rag.bad-filter"),
        ("year = 1 year = 2", "rag.bad-filter"),
        ("(year = 1", "rag.bad-filter"),
        ("year in ()", "rag.bad-filter"),
        ("'year' = 1", "rag.bad-filter"),
        ("year = 1; DROP TABLE documents", "rag.bad-filter"),
        ("year = 1 or 1=1 --", "rag.bad-filter"),
        ('path = "unclosed', "rag.bad-filter"),
        ("year = 9007199254740993", "rag.bad-filter"),
        ("year in (1, -9007199254740993)", "rag.bad-filter"),
        ("year < " + "9" * 5000, "rag.bad-filter"),
        ("not " * 100 + "year = 1", "rag.bad-filter"),
        ("(" * 100 + "year = 1" + ")" * 100, "rag.bad-filter"),
        (" or ".join(["year = 1"] * 300), "rag.bad-filter"),
        ("x" * 10_000, "rag.bad-filter"),
    ],
)
def test_what_is_no_filter_is_refused_and_told_apart(place, text, code):
    with Index.open(place) as index, pytest.raises(DataError) as caught:
        index.restrict(text)
    assert caught.value.problems[0].code == code
    if code == "rag.unknown-field":
        assert "year" in str(caught.value)


@pytest.mark.parametrize(
    "value", ["' OR 1=1 --", '"; DELETE FROM documents; --', ":snapshot", "%", "\x00", "f0_0"]
)
def test_hostile_values_are_values(place, value):
    with Index.open(place) as index:
        for operator in ("=", "~", "<"):
            shown = index.restrict(FilterExpression(operator, "name", (value,)))
            assert len(shown) <= 1
        assert len(index.restrict(FilterExpression("=", "name", (value,)))) == 0
        assert len(index) == 6


def test_values_are_bound_and_names_too():
    known = {"a": frozenset({"text"})}
    condition = compile_filter(parse_filter("a = \"x' OR 1=1\" and a ~ 'y*'"), known, "p")
    assert "OR 1" not in condition.sql
    assert [value for _, value in condition.values] == ["a", "x' OR 1=1", "a", "y*"]


def test_a_change_of_what_is_said_embeds_nothing(place, folder, tmp_path):
    rows = [{**METADATA[0], "fields": {"year": 1999}}, METADATA[1]]
    write_metadata(tmp_path / "told.jsonl", rows)
    done = update_index(place)
    assert (done.with_new_metadata, done.unchanged, done.parsed, done.embedded) == (1, 5, 0, 0)
    assert "1 with new metadata, 5 unchanged" in str(done)
    with Index.open(place) as index:
        assert paths(index, "year = 1999") == {"paris.txt"}
        digest = index.digest
    recipe = IndexRecipe(
        documents=str(folder), embedder="static", metadata=str(tmp_path / "told.jsonl")
    )
    run_recipe(recipe, tmp_path / "fresh")
    with Index.open(tmp_path / "fresh") as index:
        assert index.digest == digest
    assert update_index(place).with_new_metadata == 0


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"fields": {}}',
        '{"path": "a", "acl": ["x"]}',
        '{"path": "a", "fields": {"path": "b"}}',
        '{"path": "a", "fields": {"bad name": 1}}',
        '{"path": "a", "fields": {"x": {"y": 1}}}',
        '{"path": "a", "fields": {"x": NaN}}',
        '{"path": "a", "fields": {"x": 1' + "0" * 400 + "}}",
        '{"path": "a", "fields": {"x": 9007199254740993}}',
        '{"path": "a", "fields": {"x": ["b", -9007199254740993]}}',
        '{"path": "a", "fields": {"x": null}}',
        '{"path": "a", "labels": "staff"}',
        '{"path": "a", "tenant": 3}',
        '{"path": "b"}\n{"path": "b"}',
        '{"path": "a", "labels": ["staff"], "labels": ["public"]}',
    ],
)
def test_metadata_that_cannot_be_used_is_refused_by_its_line(tmp_path, line):
    path = tmp_path / "told.jsonl"
    path.write_text('{"path": "first"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read_metadata(path)
    assert caught.value.problems[0].code == "rag.metadata"
    assert f"{path}:" in caught.value.problems[0].where


def test_the_lineage_has_the_file_that_grants_access(place, tmp_path):
    def told():
        return [parent for parent in read_artifact(place).parents if parent.role == "metadata"]

    path = tmp_path / "told.jsonl"
    (built,) = told()
    assert (built.path, built.digest) == ("../told.jsonl", digest_file(path))
    write_metadata(path, [{**METADATA[0], "labels": ["staff"]}])
    update_index(place)
    (updated,) = told()
    assert updated.digest == digest_file(path) != built.digest
    stated = read_artifact(place)
    others = tuple(parent for parent in stated.parents if parent.role != "metadata")
    write_manifest(place, replace(stated, parents=others))  # as earlier versions did
    update_index(place)
    assert told() == [updated]


def test_an_index_is_replayed_that_an_earlier_version_built_with_metadata(
    folder, tmp_path, monkeypatch
):
    told, place = write_metadata(tmp_path / "told.jsonl", METADATA), tmp_path / "index"
    recipe = IndexRecipe(documents=str(folder), embedder="builtin:static", metadata=told)

    def build():
        run_recipe(recipe, place, overwrite=True)
        stated = read_artifact(place)
        others = tuple(parent for parent in stated.parents if parent.role != "metadata")
        write_manifest(place, replace(stated, parents=others))
        return stated, others

    def find_differences():
        result = plan_replay(place, ReplayAmount.parse("all")).run()
        return [f"{one.name} {one}" for _, one in result.differences]

    build()
    assert any("artifact.json parents" in line for line in find_differences())
    with monkeypatch.context() as patch:  # as earlier versions did
        event = Job.event
        patch.setattr(
            Job, "event", lambda job, kind, **own: kind == "metadata" or event(job, kind, **own)
        )
        stated, others = build()
    assert find_differences() == []
    write_manifest(place, replace(stated, parents=others[1:]))
    assert any("artifact.json parents" in line for line in find_differences())
    write_metadata(tmp_path / "told.jsonl", METADATA[1:])
    write_manifest(place, replace(stated, parents=others))
    assert any("places/paris.txt" in line for line in find_differences())


def test_a_line_of_metadata_ends_where_json_lines_do(tmp_path):
    told = tmp_path / "told.jsonl"
    titles = ["a\u2028b\u2029c\x85d", "e"]
    rows = [{"path": title, "fields": {"of": title}} for title in titles]
    told.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), newline="")
    assert [facts.fields["of"] for facts in read_metadata(told).values()] == titles


def test_metadata_is_read_before_anything_is_parsed(folder, tmp_path, monkeypatch):
    (tmp_path / "told.jsonl").write_text("not json\n")
    told = IndexRecipe(documents=str(folder), embedder="static", metadata=f"{tmp_path}/told.jsonl")
    monkeypatch.setattr("stillroom.rag.index.builder.IngestPipeline", None)
    with pytest.raises(DataError, match="metadata file"):
        run_recipe(told, tmp_path / "index")


def test_ids_that_no_float_tells_apart_are_found_as_texts(folder, tmp_path):
    rows = [
        {
            "path": f"animals/{name}.md",
            "fields": {"id": f"900719925474099{digit}", "size": 2**53 - 1},
        }
        for name, digit in (("cats", 2), ("dogs", 3))
    ]
    told = write_metadata(tmp_path / "told.jsonl", rows)
    recipe = IndexRecipe(documents=str(folder), embedder="static", metadata=told)
    run_recipe(recipe, tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        assert paths(index, 'id = "9007199254740993"') == {"dogs.md"}
        assert paths(index, "size = 9007199254740991") == {"cats.md", "dogs.md"}


def test_a_number_of_front_matter_that_no_column_holds_is_no_field():
    front = {"small": 3, "large": 10**5000, "infinite": float("inf"), "is_draft": True}
    document = {"path": "a.md", "title": "", "media_type": "", "language": ""}
    fields = derive_fields({**document, "metadata": {"front_matter": front}})
    assert [row[0] for row in list_values(fields) if row[0] in front] == ["is_draft", "small"]


def test_front_matter_never_says_who_may_read(folder, tmp_path):
    text = "---\ntenant: t\nlabels: [public]\naccess: open\n---\nA secret.\n"
    (folder / "secret.md").write_text(text)
    recipe = IndexRecipe(documents=str(folder), embedder="static", access="tenants")
    run_recipe(recipe, tmp_path / "index")
    from stillroom.rag.index.view import AccessContext

    with Index.open(tmp_path / "index", access=AccessContext("t", ["public"])) as index:
        assert len(index) == 0
    with pytest.raises(DataError) as caught:
        next(read_ledger(tmp_path / "index/output", "passages"))
    assert caught.value.problems[0].code == "data.restricted"


LARGE = ("cats", 9007199254740993), ("dogs", 9007199254740992), ("wolves", 7)


def index_large_numbers(folder, place):
    for name, number in LARGE:
        text = f"---\nid: {number}\nids: [{number}, 5]\n---\n# A {name}\n\nIt sleeps.\n"
        (folder / f"animals/{name}.md").write_text(text)
    run_recipe(IndexRecipe(documents=str(folder), embedder="builtin:static"), place)


def test_large_numbers_of_front_matter_are_texts(folder, tmp_path):
    index_large_numbers(folder, tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        assert paths(index, 'id = "9007199254740993"') == {"cats.md"}
        assert paths(index, 'ids in ("9007199254740992", 5) and not id = 7') == {
            "cats.md",
            "dogs.md",
        }
        assert index.fields["id"] == ["number", "text"]


def test_an_index_of_an_earlier_version_that_rounded_large_numbers_still_holds(
    folder, tmp_path, monkeypatch
):
    place = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(filters, "_is_inexact", lambda value: False)
        index_large_numbers(folder, place)
    with Index.open(place) as index:
        assert index.fields["id"] == ["number"]
    assert check_index(place) == []
    result = plan_replay(place, ReplayAmount.parse("all")).run()
    assert [f"{one.name} {one}" for _, one in result.differences] == []
    with closing(sqlite3.connect(place / "output/ledger.sqlite")) as catalog, catalog:
        catalog.execute("UPDATE fields SET value = 8 WHERE name = 'id' AND value = 7")
    assert any("fields" in str(issue) for issue in check_index(place))
    result = plan_replay(place, ReplayAmount.parse("all")).run()
    assert any("fields was changed" in str(one) for _, one in result.differences)


def test_a_search_warns_of_values_that_a_filter_leaves_out_by_their_type(folder, tmp_path):
    index_large_numbers(folder, tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        for text, other, compared in (
            ("id < 10", "text", "number"),
            ('not (title = x or id != "7")', "number", "text"),
        ):
            with collect_warnings() as warnings:
                retrieve(index.restrict(text), "sleeps", 3, retriever="keyword")
            assert warnings[0] == (
                f"id is {other} in some documents: the filter compares it where it is {compared}"
            )
        for text in ("exists(id)", 'id in ("7", 5)', 'not (id = 7 or (path ~ a and id = "7"))'):
            with collect_warnings() as warnings:
                retrieve(index.restrict(text), "sleeps", 3, retriever="keyword")
            assert warnings == [] or "no passage" in warnings[0]


@pytest.mark.parametrize("text", ["date >= 2026-02-30", "date in (2024-02-29, 2023-02-29)"])
def test_days_that_no_calendar_has_are_refused_where_a_field_has_dates(text):
    with pytest.raises(DataError, match="there is no such day") as caught:
        compile_filter(parse_filter(text), {"date": frozenset({"date", "text"})}, "")
    assert caught.value.code == "rag.bad-filter"
    compile_filter(parse_filter(text), {"date": frozenset({"text"})}, "")
    for allowed in ('date = "2026-02-30"', "date ~ 2026-02-30"):
        compile_filter(parse_filter(allowed), {"date": frozenset({"date"})}, "")


def test_a_large_float_beside_a_large_whole_number_replays(folder, tmp_path):
    place = tmp_path / "index"
    index_large_numbers(folder, place)
    (folder / "animals/cats.md").write_text("---\nid: 9007199254740993\nmass: 1.0e+20\n---\nA.\n")
    run_recipe(IndexRecipe(documents=str(folder), embedder="builtin:static"), place, overwrite=True)
    result = plan_replay(place, ReplayAmount.parse("all")).run()
    assert [f"{one.name} {one}" for _, one in result.differences] == []


def test_whole_numbers_beyond_any_float_are_found_as_text(folder, tmp_path):
    large = 10**400
    heads = {"cats": f"id: {large}", "dogs": f"id: [7, -{large}]", "wolves": "id: 0x" + "f" * 4000}
    for name, head in heads.items():
        (folder / f"animals/{name}.md").write_text(f"---\n{head}\n---\nAn animal.\n")
    run_recipe(IndexRecipe(documents=str(folder), embedder="builtin:static"), tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        assert paths(index, f'id = "{large}"') == {"cats.md"}
        assert paths(index, f'id = "-{large}"') == paths(index, "id = 7") == {"dogs.md"}
