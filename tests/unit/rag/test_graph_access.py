"""Graphs over an index with tenants: nobody finds, through any, what they may not read."""

import json

import pytest
from click.testing import CliRunner
from tests.unit.rag.graphs import write_pages

from stillroom.cli import stillroom
from stillroom.errors import DataError
from stillroom.flow import run_recipe
from stillroom.provenance import read_artifact
from stillroom.rag.extractors.noun_phrases import NounPhrases
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext
from stillroom.rag.jobs.graph import GraphRecipe
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.observability import collect_warnings
from stillroom.rag.retrieval.pipeline import retrieve

TENANTS = ("acme", "bolt", "crux")
PROJECTS = ("Falcon", "Heron", "Kestrel", "Merlin")
PAGES = {
    f"{tenant}/{at}.md": f"Project {PROJECTS[at // 2]} of {tenant.title()} has canary{tenant}{at}. "
    f"The team of Project {PROJECTS[at // 2]} met Mister {PROJECTS[at // 2]}son.\n"
    for tenant in TENANTS
    for at in range(8)
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    place = tmp_path_factory.mktemp("tenants")
    write_pages(place / "documents", PAGES)
    told = [{"path": path, "tenant": path.split("/")[0], "labels": ["public"]} for path in PAGES]
    (place / "told.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    recipe = IndexRecipe(
        documents=str(place / "documents"),
        embedder="static",
        access="tenants",
        metadata=str(place / "told.jsonl"),
    )
    run_recipe(recipe, place / "index")
    for tenant in TENANTS:
        reader = {"tenant": tenant}
        extractor = NounPhrases(min_count=1, prune=0)
        graph = GraphRecipe(index=str(place / "index"), reader=reader, extractor=extractor)
        run_recipe(graph, place / f"graph-{tenant}")
    return place


@pytest.mark.parametrize("tenant", TENANTS)
def test_a_graph_holds_what_its_tenant_may_see_and_nothing_else(shared, tenant):
    files = sorted((shared / f"graph-{tenant}" / "output").rglob("*"))
    everything = b"".join(path.read_bytes() for path in files)
    assert f"canary{tenant}".encode() in everything
    for other in set(TENANTS) - {tenant}:
        assert f"canary{other}".encode() not in everything
        assert other.title().encode() not in everything


@pytest.mark.parametrize("asker", TENANTS)
@pytest.mark.parametrize("owner", TENANTS)
def test_no_way_finds_what_another_tenant_owns(shared, asker, owner):
    ways = [
        {"name": name, "graph": str(shared / f"graph-{owner}")}
        for name in ("graph_local", "graph_global")
    ]
    with Index.open(shared / "index", access=AccessContext(asker)) as index, collect_warnings():
        for way in ways:
            hits = retrieve(index, "Project Falcon", 50, retriever=way)
            assert all(hit.passage.location.path.startswith(asker) for hit in hits)
            if asker == owner:
                assert hits


def test_a_filter_holds_within_a_graph_too(shared):
    with Index.open(shared / "index", access=AccessContext("acme")) as index:
        some = index.restrict("path ~ 'acme/0*'")
        way = {"name": "graph_local", "graph": str(shared / "graph-acme")}
        hits = retrieve(some, "Project Falcon", 50, retriever=way)
    assert [hit.passage.location.path for hit in hits] == ["acme/0.md"]


def test_without_a_tenant_no_graph_is_made(shared, tmp_path):
    with pytest.raises(DataError) as caught:
        run_recipe(GraphRecipe(index=str(shared / "index")), tmp_path / "graph")
    assert caught.value.code == "rag.access-needed"


def test_by_the_command_line(shared, tmp_path):
    index = str(shared / "index")
    words = ["run", "rag.graph", f"index={index}", "reader={tenant: bolt}", "--quiet"]
    words += ["--out", str(tmp_path / "g")]
    CliRunner().invoke(stillroom, words, catch_exceptions=False)
    assert read_artifact(tmp_path / "g").details["passages"] == 8
    words = ["rag", "graph-show", str(tmp_path / "g"), "--check", "--index", index]
    done = CliRunner().invoke(stillroom, [*words, "--tenant", "bolt"], catch_exceptions=False)
    assert "every span matches its passage" in done.output
