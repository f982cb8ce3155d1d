import random

import numpy as np
import pytest
from click.testing import CliRunner
from tests.unit.rag.graphs import THEMES, TOPICS, bytes_of, make_index
from tests.unit.rag.jobs import run_with_model

from stillroom.cli import stillroom
from stillroom.errors import DataError, IntegrityError
from stillroom.provenance import read_artifact
from stillroom.rag.graph.summary_tree import SummaryTree, cluster_vectors, open_tree
from stillroom.rag.graph.types import read_graph_description
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.summary_tree import SummaryTreeRecipe, run
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.testing import scripted_model


def make_tree(index, out, *, model=None, **settings):
    recipe = SummaryTreeRecipe(index=str(index), **settings)
    artifact = run_with_model(run, recipe, out, model=model)
    return artifact, read_graph_description(out / "output", "tree")


@pytest.fixture(scope="module")
def themes(tmp_path_factory):
    place = tmp_path_factory.mktemp("themes")
    make_tree(make_index(place, THEMES), place / "tree", max_cluster_size=4, neighbors=3)
    return place


def found(place, query, k, **settings):
    with Index.open(place / "index") as index:
        way = {"name": "raptor", "tree": str(place / "tree"), **settings}
        return [hit.passage.location.path for hit in retrieve(index, query, k, retriever=way)]


def blobs(count, size, seed=0):
    """Return groups of unit vectors, each group around a direction of its own."""
    rng = np.random.default_rng(seed)
    noise = 0.1 * rng.normal(size=(count * size, 16))
    rows = np.repeat(np.eye(count, 16), size, axis=0) + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_what_is_near_each_other_is_one_cluster():
    clusters = cluster_vectors(blobs(4, 6), neighbors=4, max_size=8)
    assert clusters == [tuple(range(at, at + 6)) for at in range(0, 24, 6)]


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_every_vector_is_in_one_cluster_of_at_most_so_many(count):
    rng = np.random.default_rng(count)
    vectors = rng.normal(size=(count, 8)).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    clusters = cluster_vectors(vectors, neighbors=3, max_size=4)
    assert sorted(at for members in clusters for at in members) == list(range(count))
    assert all(len(members) <= 4 for members in clusters)
    assert cluster_vectors(vectors, neighbors=3, max_size=4) == clusters


def test_vectors_that_have_nothing_in_common_stay_alone():
    alone = cluster_vectors(np.eye(6, dtype=np.float32), neighbors=2, max_size=3)
    assert alone == [(at,) for at in range(6)]


def test_topics_are_summarized_together_in_the_documents_own_words(themes):
    tree = SummaryTree.open(themes / "tree")
    first = [one for one in tree.nodes if one.level == 1]
    with Index.open(themes / "index") as index:
        for node in first:
            paths = {index.passage_at(row).location.path for row in node.rows}
            assert len({path.rstrip("0123.md") for path in paths}) == 1
        for node in tree.nodes:
            assert node.origin == "source"
            said = [
                index.passage(tree.sources[row].passage_id).text[start:end]
                for row, start, end in node.spans
            ]
            assert node.text == " ".join(" ".join(said).split())
    assert max(one.level for one in tree.nodes) >= 2
    assert set(max(tree.nodes, key=lambda one: len(one.rows)).rows) == set(range(len(THEMES)))


def test_a_summary_leads_to_its_passages(themes):
    tree = SummaryTree.open(themes / "tree")
    node = next(one for one in tree.nodes if one.level == 1 and "Eels" in one.text)
    paths = found(themes, node.text, 4, leaves=4)
    assert all(path.startswith("eels") for path in paths)
    assert len(set(paths)) == 4


def test_the_same_twice_and_never_more_than_k(themes):
    for k in (1, 3, 50):
        first = found(themes, "the guild of Clocks", k)
        assert first == found(themes, "the guild of Clocks", k)
        assert len(first) == len(set(first)) <= k


def test_a_tree_brought_up_to_date_has_the_bytes_of_one_made_anew(tmp_path):
    rng = random.Random(3)
    pages = dict(THEMES)
    settings = {"max_cluster_size": 4, "neighbors": 3}

    def writer():
        return scripted_model(lambda p: f"About {len(p.messages[1].content)}.", fingerprint="w")

    make_tree(make_index(tmp_path, pages), tmp_path / "tree", model=writer(), **settings)
    for turn in range(3):
        del pages[rng.choice(sorted(pages))]
        pages[f"new{turn}.md"] = f"The guild of {rng.choice(TOPICS)} moved to hall {turn}.\n"
        index = make_index(tmp_path, pages)
        asked = writer()
        updated, _ = make_tree(index, tmp_path / "tree", model=asked, **settings)
        fresh, _ = make_tree(index, tmp_path / f"fresh{turn}", model=writer(), **settings)
        assert bytes_of(tmp_path / "tree") == bytes_of(tmp_path / f"fresh{turn}")
        assert updated.details["asked"] == len(asked.asked) < fresh.details["asked"]


def test_a_models_summaries_are_synthetic_and_an_empty_one_leaves_the_sentences(tmp_path):
    index = make_index(tmp_path, THEMES)
    answers = scripted_model(lambda p: "A guild." if "Eels" in p.messages[1].content else " ")
    artifact, description = make_tree(index, tmp_path / "tree", model=answers, max_cluster_size=4)
    tree = open_tree(tmp_path / "tree")
    origins = {one.text == "A guild.": one.origin for one in tree.nodes}
    assert origins == {True: "synthetic", False: "source"}
    assert 0 < description.counts["synthetic"] < description.counts["summaries"]
    assert artifact.origin == {"kind": "synthetic"}


def test_a_summary_over_what_is_gone_is_not_used(tmp_path):
    make_tree(make_index(tmp_path, THEMES), tmp_path / "tree", max_cluster_size=4, neighbors=3)
    pages = {name: text for name, text in THEMES.items() if name != "eels0.md"}
    make_index(tmp_path, pages)
    tree = open_tree(tmp_path / "tree")
    node = next(one for one in tree.nodes if one.level == 1 and "Eels" in one.text)
    with pytest.warns(UserWarning, match="changed since the tree was made"):
        paths = found(tmp_path, node.text, 40)
    assert "eels0.md" not in paths
    assert {path for path in paths if path.startswith("eels")} == {
        f"eels{at}.md" for at in (1, 2, 3)
    }


def test_by_the_command_line(themes, tmp_path):
    words = ["run", "rag.summary_tree", f"index={themes / 'index'}", "--out", str(tmp_path / "t")]
    done = CliRunner().invoke(stillroom, words, catch_exceptions=False)
    assert "summaries on" in done.output
    CliRunner().invoke(stillroom, [*words, "--overwrite", "--quiet"], catch_exceptions=False)
    assert read_artifact(tmp_path / "t").details["passages"] == len(THEMES)
    way = f"raptor:tree={tmp_path / 't'}"
    words = ["rag", "search", str(themes / "index"), "guild of Inks", "--pipeline", way]
    assert "inks" in CliRunner().invoke(stillroom, words, catch_exceptions=False).output


def test_one_passage_needs_no_tree_and_a_graph_is_none(tmp_path):
    index = make_index(tmp_path, {"a.md": "Only one.\n"})
    with pytest.raises(DataError) as caught:
        make_tree(index, tmp_path / "tree")
    assert caught.value.code == "rag.no-entities"
    with pytest.raises(IntegrityError) as refused:
        open_tree(index)
    assert refused.value.code == "rag.no-graph"
    assert "tree.json" in str(refused.value)
