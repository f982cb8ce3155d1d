import json
import random
import re

import numpy as np
import pytest
from click.testing import CliRunner
from tests.unit.rag.graphs import HOPS, THEMES, TOPICS, bytes_of, make_graph, make_index

from stillroom.cli import stillroom
from stillroom.cli.rag.graph import _check_graph
from stillroom.errors import DataError, IntegrityError
from stillroom.models import open_embedder
from stillroom.provenance import read_artifact, render_tree, verify_artifact, walk_lineage
from stillroom.rag.extractors.noun_phrases import NounPhrases
from stillroom.rag.graph.communities import find_communities
from stillroom.rag.graph.knowledge_graph import (
    GraphVisibility,
    KnowledgeGraph,
    check_graph,
    open_graph,
)
from stillroom.rag.graph.types import Entity, GraphEdge
from stillroom.rag.index.searcher import Index
from stillroom.rag.observability import collect_warnings
from stillroom.rag.retrieval.pipeline import retrieve

SMALL = {
    "warsaw.md": "Marie Curie was born in Warsaw. Warsaw is the capital of Poland.\n",
    "physics.md": "Marie Curie discovered polonium. Polonium was named after Poland.\n",
    "prizes.md": "The Nobel Prize Committee (NPC) honoured Marie Curie. The NPC is in Stockholm.\n",
    "city.md": "Stockholm is the capital of Sweden. The Nobel Prize Committee meets there.\n",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    place = tmp_path_factory.mktemp("small")
    index = make_index(place, SMALL)
    make_graph(index, place / "graph")
    return place


@pytest.fixture(scope="module")
def hops(tmp_path_factory):
    place = tmp_path_factory.mktemp("hops")
    index = make_index(place, HOPS)
    make_graph(index, place / "graph")
    return place


@pytest.fixture(scope="module")
def themes(tmp_path_factory):
    place = tmp_path_factory.mktemp("themes")
    index = make_index(place, THEMES)
    make_graph(index, place / "graph")
    return place


def paths(place, query, k, **way):
    with Index.open(place / "index") as index:
        hits = retrieve(index, query, k, retriever={"graph": str(place / "graph"), **way})
    return [hit.passage.location.path for hit in hits]


def plain(place, query, k, retriever):
    with Index.open(place / "index") as index:
        return [h.passage.location.path for h in retrieve(index, query, k, retriever=retriever)]


def test_a_question_over_two_documents_is_found_by_the_graph_and_not_by_words_or_vectors(hops):
    query = "Who runs the place where the Aurora was built?"
    found = paths(hops, query, 5, name="graph_local")
    assert {"aurora.md", "yard.md"} <= set(found)
    for retriever in ("keyword", "dense", "hybrid"):
        assert "yard.md" not in plain(hops, query, 5, retriever)


def test_without_hops_only_what_the_query_names_is_found(hops):
    query = "Aurora"
    near = paths(hops, query, 3, name="graph_local", hops=0, entities=1, passages=0)
    assert near == ["aurora.md"]
    assert "yard.md" in paths(hops, query, 3, name="graph_local", hops=1, entities=1, passages=0)


def test_a_question_about_everything_is_covered_by_reports_and_not_by_the_nearest(themes):
    """Keyword coverage: how many of the eight topics are among as many passages."""
    query = "What are the main themes of the collection?"

    def coverage(found):
        return len({path.rstrip("0123.md") for path in found})

    ours = coverage(paths(themes, query, 8, name="graph_global"))
    theirs = max(coverage(plain(themes, query, 8, way)) for way in ("keyword", "dense", "hybrid"))
    assert ours == len(TOPICS)
    assert theirs <= 5


def test_every_way_gives_the_same_twice_and_at_most_k(hops):
    for name in ("graph_local", "graph_global"):
        first, second = (paths(hops, "Matilda Brook", 2, name=name) for _ in range(2))
        assert first == second
        assert len(first) == 2


def test_every_mention_is_what_its_passage_says(small):
    graph = KnowledgeGraph.open(small / "graph")
    assert len(graph.entities) > 5
    with Index.open(small / "index") as index:
        assert not check_graph(graph, index)
        committee = graph.entities[graph.find("npc")]
        assert committee.name == "Nobel Prize Committee"
        for row, start, end in committee.mentions:
            text = index.passage(graph.sources[row].passage_id).text[start:end]
            assert text in {"NPC", "Nobel Prize Committee"}


def test_lineage_leads_from_the_graph_to_the_documents(small):
    assert not verify_artifact(small / "graph", parents=False)
    tree = render_tree(walk_lineage(small / "graph"))
    assert re.search(r"\w+\.md: bytes 0-\d+", tree)


def test_a_graph_brought_up_to_date_has_the_bytes_of_one_made_anew(tmp_path):
    rng = random.Random(5)
    names = ["Marie Curie", "Fairhaven Yard", "Lund", "Matilda Brook", "Nobel Prize", "Aurora"]
    pages = dict(SMALL)
    make_graph(make_index(tmp_path, pages), tmp_path / "graph")
    for turn in range(6):
        for _ in range(rng.randint(1, 3)):
            kind = rng.choice(["add", "change", "delete"])
            if kind == "delete" and len(pages) > 2:
                del pages[rng.choice(sorted(pages))]
            else:
                one, two = rng.sample(names, 2)
                name = f"page{rng.randint(0, 5)}.md" if kind == "add" else rng.choice(sorted(pages))
                pages[name] = f"{one} knows {two}. {two} is near Stockholm. Page {turn}.\n"
        index = make_index(tmp_path, pages)
        updated, _ = make_graph(index, tmp_path / "graph")
        fresh, _ = make_graph(index, tmp_path / f"fresh{turn}")
        assert bytes_of(tmp_path / "graph") == bytes_of(tmp_path / f"fresh{turn}")
        assert updated.digest == fresh.digest
        assert updated.details["extracted"] < fresh.details["extracted"] == len(pages)


def test_only_what_is_new_is_read_and_what_is_gone_leaves_nothing(tmp_path):
    make_graph(make_index(tmp_path, SMALL), tmp_path / "graph")
    pages = {name: text for name, text in SMALL.items() if name != "prizes.md"}
    pages["lund.md"] = "Lund is near Stockholm.\n"
    artifact, _ = make_graph(make_index(tmp_path, pages), tmp_path / "graph")
    assert artifact.details["extracted"] == 1
    everything = b"".join(bytes_of(tmp_path / "graph").values())
    assert b"NPC" not in everything
    assert b"Lund" in everything


def test_what_the_index_does_not_hold_any_more_is_not_found(tmp_path):
    make_graph(make_index(tmp_path, HOPS), tmp_path / "graph")
    make_index(tmp_path, {name: text for name, text in HOPS.items() if name != "yard.md"})
    for name in ("graph_local", "graph_global"):
        with collect_warnings() as told:
            assert "yard.md" not in paths(tmp_path, "Fairhaven Yard", 9, name=name)
        assert "changed since" in told[0]


def test_a_report_is_used_only_where_all_that_it_stands_on_may_be_seen(tmp_path):
    make_graph(make_index(tmp_path, SMALL), tmp_path / "graph")
    graph = KnowledgeGraph.open(tmp_path / "graph")
    with Index.open(tmp_path / "index") as index:
        whole = [
            one for one in graph.communities if GraphVisibility(graph, index).sees_all(one.rows)
        ]
    assert len(whole) == len(graph.communities)
    index = make_index(tmp_path, {name: SMALL[name] for name in SMALL if name != "prizes.md"})
    with Index.open(index) as opened:
        sight = GraphVisibility(graph, opened)
        gone = {at for at in range(len(graph.sources)) if sight.row(at) is None}
        assert len(gone) == 1
        for one in graph.communities:
            assert sight.sees_all(one.rows) == (not gone & set(one.rows))


def test_nothing_found_is_a_failure_that_says_what_to_do(tmp_path):
    index = make_index(tmp_path, {"a.md": "it was and so they did\n"})
    with pytest.raises(DataError) as caught:
        make_graph(index, tmp_path / "graph")
    assert caught.value.code == "rag.no-entities"
    assert not (tmp_path / "graph").exists()


def test_a_folder_without_a_graph_is_named(small):
    with pytest.raises(IntegrityError) as caught:
        open_graph(small / "index")
    assert caught.value.code == "rag.no-graph"
    with pytest.raises(DataError) as caught:
        open_graph(small / "nowhere")
    (problem,) = caught.value.problems
    assert problem.code == "data.missing"
    assert "'stillroom run rag.graph index=INDEX --out GRAPH'" in problem.expected


def test_a_damaged_graph_is_refused_and_not_taken_over(tmp_path):
    index = make_index(tmp_path, SMALL)
    make_graph(index, tmp_path / "graph")
    before = bytes_of(tmp_path / "graph")
    path = tmp_path / "graph" / "output" / "entities.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Marie", b"Maria"))
    with pytest.raises(IntegrityError) as caught:
        KnowledgeGraph.open(tmp_path / "graph")
    assert caught.value.code == "rag.graph-damaged"
    artifact, _ = make_graph(index, tmp_path / "graph")
    assert artifact.details["extracted"] == len(SMALL)
    assert bytes_of(tmp_path / "graph") == before


def test_a_graph_of_another_version_is_not_called_damaged(tmp_path):
    index = make_index(tmp_path, SMALL)
    make_graph(index, tmp_path / "graph")
    before = bytes_of(tmp_path / "graph")
    path = tmp_path / "graph" / "output" / "graph.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(
        IntegrityError, match=r"graph.json has format 1, and this version"
    ) as caught:
        KnowledgeGraph.open(tmp_path / "graph")
    assert caught.value.code == "rag.other-format"
    make_graph(index, tmp_path / "graph")
    assert bytes_of(tmp_path / "graph") == before


def test_a_graph_of_another_embedder_is_refused(small):
    with Index.open(small / "index", embedder=open_embedder("static")) as index:
        graph = KnowledgeGraph.open(small / "graph")
        object.__setattr__(graph.description, "embedder", "other")
        with pytest.raises(IntegrityError) as caught:
            graph.meet(index)
    assert caught.value.code == "rag.graph-embedder"


def cliques(count, size, *, near=0.3):
    """Return a graph of cliques, every second one tied to the one before it."""
    number = count * size
    entities = [Entity(f"e{at:02}", f"E{at}", "", (), "", ((0, 0, 1),)) for at in range(number)]
    edges = [
        GraphEdge(one, two, 1.0 if one // size == two // size else near, (), "", ())
        for one in range(number)
        for two in range(one + 1, number)
        if one // size == two // size or (one // size % 2 == 0 and two // size == one // size + 1)
    ]
    return entities, edges


def test_communities_follow_from_the_graph_and_keep_their_ids():
    entities, edges = cliques(6, 5, near=0.01)
    groups = find_communities(entities, edges, max_size=10)
    level = [one for one in groups if one.level == 0]
    assert [one.entities for one in level] == [tuple(range(at, at + 5)) for at in range(0, 30, 5)]
    assert find_communities(entities, edges, max_size=10) == groups
    # An entity more, at the end: the communities that it does not touch keep their ids.
    more = [*entities, Entity("z", "Z", "", (), "", ((0, 0, 1),))]
    longer = find_communities(more, [*edges, GraphEdge(29, 30, 1.0, (), "", ())], max_size=10)
    assert len({one.id for one in groups} & {one.id for one in longer}) >= 4


def test_large_communities_are_divided_and_name_the_larger_one():
    entities, edges = cliques(6, 5)
    groups = find_communities(entities, edges, max_size=8)
    assert {one.level for one in groups} == {0, 1}
    ids = {one.id: one for one in groups}
    for one in groups:
        if one.level:
            assert set(one.entities) <= set(ids[one.parent].entities)


def test_by_the_command_line(small, tmp_path):
    def call(*words):
        done = CliRunner().invoke(stillroom, list(map(str, words)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    index = small / "index"
    settings = [f"index={index}", "extractor={name: noun_phrases, min_count: 1, prune: 0}"]
    assert "about 0 calls of a model" in call("check", "rag.graph", *settings)
    call("run", "rag.graph", *settings, "--out", tmp_path / "g", "--quiet")
    assert read_artifact(tmp_path / "g").details["extracted"] == 4
    call("run", "rag.graph", *settings, "--out", tmp_path / "g", "--overwrite", "--quiet")
    assert read_artifact(tmp_path / "g").details["extracted"] == 0
    shown = call("rag", "graph-show", tmp_path / "g", "--index", index, "--check")
    assert "Marie Curie" in shown
    assert "every span matches its passage" in shown
    shown = call("rag", "graph-show", tmp_path / "g", "--entity", "npc", "--index", index)
    assert "Nobel Prize Committee (also NPC)" in shown
    assert "prizes.md: bytes" in shown
    assert "Stockholm" in call(
        "rag", "search", index, "NPC", "--pipeline", f"graph_local:graph={tmp_path / 'g'}"
    )


def test_an_unknown_entity_and_a_flaw_are_named(small, tmp_path):
    words = ["rag", "graph-show", str(small / "graph"), "--entity", "nobody"]
    done = CliRunner().invoke(stillroom, words)
    assert done.exception.code == "rag.no-such-entity"
    place = make_index(tmp_path, HOPS)
    make_graph(place, tmp_path / "graph")
    graph = KnowledgeGraph.open(tmp_path / "graph")
    graph.entities[0] = Entity("x", "nothing of that kind", "", (), "", ((0, 0, 4),))
    with Index.open(place) as index, pytest.raises(IntegrityError) as caught:
        _check_graph(graph, index)
    assert caught.value.code == "rag.graph-flaw"
    words = ["rag", "graph-show", str(small / "graph"), "--check", "--index", str(place)]
    assert CliRunner().invoke(stillroom, words).exit_code == 0  # other passages: none is seen


def test_graphml_is_read_by_another_tool(small, tmp_path):
    networkx = pytest.importorskip("networkx")
    words = ["rag", "graph-show", str(small / "graph"), "--graphml", str(tmp_path / "g.graphml")]
    assert CliRunner().invoke(stillroom, words).exit_code == 0
    again = CliRunner().invoke(stillroom, words)
    assert again.exception.code == "data.exists"
    assert CliRunner().invoke(stillroom, [*words, "--overwrite"]).exit_code == 0
    read = networkx.read_graphml(tmp_path / "g.graphml")
    graph = KnowledgeGraph.open(small / "graph")
    assert read.number_of_nodes() == len(graph.entities)
    assert read.number_of_edges() == len(graph.edges)
    assert {data["name"] for _, data in read.nodes(data=True)} == {e.name for e in graph.entities}


def test_vectors_are_the_embedders_of_the_texts(small):
    graph = KnowledgeGraph.open(small / "graph")
    own = open_embedder("static").embed([one.text for one in graph.entities], kind="passage")
    assert np.array_equal(own, graph.entity_vectors)


def test_a_graph_follows_from_the_documents_and_not_from_how_the_index_came_about(tmp_path):
    """An index that grew and one that was built at once give the same parts."""
    (tmp_path / "grown").mkdir()
    (tmp_path / "whole").mkdir()
    first = dict(list(SMALL.items())[:2])
    make_index(tmp_path / "grown", {**first, "gone.md": "Nothing stays here.\n"})
    make_graph(make_index(tmp_path / "grown", SMALL), tmp_path / "grown" / "graph")
    make_graph(make_index(tmp_path / "whole", SMALL), tmp_path / "whole" / "graph")
    parts = [bytes_of(tmp_path / name / "graph") for name in ("grown", "whole")]
    for name in parts[0]:
        if name != "graph.json":
            assert parts[0][name] == parts[1][name], name


def test_passages_that_are_found_lend_what_they_mention_to_the_search(tmp_path):
    """A rare name is pruned from the graph; its passage is found by words and leads on."""
    pages = {
        **{f"ship{at}.md": f"The ship Name{at}x was built at Yard {at}0.\n" for at in range(8)},
        **{f"yard{at}.md": f"Work at Yard {at}0 begins at six.\n" for at in range(8)},
    }
    make_graph(make_index(tmp_path, pages), tmp_path / "graph", extractor=NounPhrases(prune=0))
    assert KnowledgeGraph.open(tmp_path / "graph").find("Name3x") is None
    query = "the ship Name3x"
    assert "yard3.md" in paths(tmp_path, query, 6, name="graph_local")
    assert "yard3.md" not in paths(tmp_path, query, 6, name="graph_local", passages=0)
