"""Term weights and token vectors of an index: built, searched, changed, deleted, checked."""

import json
import shutil
import struct
from contextlib import ExitStack

import numpy as np
import pytest
from click.testing import CliRunner
from tests.unit.models.tiny_encoders import make_colbert, make_masked_lm
from tests.unit.rag.conftest import write_pages

from stillroom.cli import stillroom
from stillroom.errors import DataError, IntegrityError, RecipeError
from stillroom.flow import estimate_recipe
from stillroom.flow.job import run_job
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.models.encoders.retrieval import ColbertEncoder, SparseEncoder
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import Query
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.rag.maintenance.migration import compare_stores
from stillroom.rag.maintenance.update import (
    compact_index,
    delete_documents,
    repair_index,
    update_index,
)
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.storage.folder.store import FolderStore, check_folder
from stillroom.recipes import dump_recipe, parse_recipe

WAYS = ("sparse", "multi_vector", "multi_vector:depth=0", "convex:words=sparse")
QUERY = "the cats purr at night"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("encoders")
    return make_masked_lm(place / "splade"), make_colbert(place / "colbert")


@pytest.fixture
def place(tmp_path):
    write_pages(tmp_path / "documents")
    return tmp_path


def build(place, models, name="index", previous=None, **told):
    splade, colbert = models
    settings = {"documents": str(place / "documents"), "embedder": "static"}
    kept = {
        "sparse": {"model": str(splade)},
        "late_interaction": {"model": str(colbert), "bits": 16},
    }
    kept |= {name: told.pop(name) for name in kept.keys() & told.keys()}
    settings |= {"store": {"name": "folder", **kept}, **told}
    text = json.dumps({"version": 1, "kind": "rag.index", **settings})
    job = Job.start(place / name, text, overwrite=True)
    job.previous = previous
    try:
        return run(IndexRecipe(**settings), job, embedder=open_embedder("static"))
    finally:
        job.close()


@pytest.fixture(scope="module")
def built(models, tmp_path_factory):
    """Build once, for tests that only read; give the folder above."""
    place = tmp_path_factory.mktemp("built")
    write_pages(place / "documents")
    build(place, models)
    return place


@pytest.fixture
def copied(built, tmp_path):
    """Give a copy of what was built, for tests that change it."""
    shutil.copytree(built / "documents", tmp_path / "documents")
    shutil.copytree(built / "index", tmp_path / "index")
    recipe = tmp_path / "index" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(built), str(tmp_path)))
    return tmp_path


def ranking(index, way, query=QUERY, k=6):
    from stillroom.rag.retrieval.pipeline import parse_pipeline

    hits = retrieve(index, query, k, retriever=parse_pipeline(way).retriever)
    return [(hit.passage.id, pytest.approx(hit.score, abs=1e-6)) for hit in hits]


def texts_of(index):
    from stillroom.rag.types import build_embedding_texts

    passages = [index.passage_at(row) for row in range(len(index))]
    return passages, build_embedding_texts(passages, open_embedder("static"), with_headings=True)


def test_scores_are_those_of_the_models(built, models):
    place = built
    splade, colbert = SparseEncoder(models[0], max_terms=256), ColbertEncoder(models[1])
    with Index.open(place / "index") as index:
        passages, texts = texts_of(index)
        (asked,) = splade.encode([QUERY])
        dots = [
            sum(weight * own.get(term, 0.0) for term, weight in asked.items())
            for own in splade.encode(texts)
        ]
        found = retrieve(index, QUERY, 10, retriever="sparse")
        assert [hit.score for hit in found] == pytest.approx(sorted(dots, reverse=True), rel=1e-5)
        (query,) = colbert.encode([QUERY], kind="query")
        states = colbert.encode(texts, kind="passage")
        close = {
            one.id: float((query @ own.T).max(axis=1).mean())
            for one, own in zip(passages, states, strict=True)
        }
        found = retrieve(index, QUERY, 10, retriever={"name": "multi_vector", "depth": 0})
        assert {hit.passage.id: hit.score for hit in found} == pytest.approx(close, abs=2e-3)


def test_a_filter_and_quotes_hold_for_both(built, models):
    place = built
    with Index.open(place / "index") as index:
        narrow = index.restrict("path ~ 'animals/*'")
        for way in WAYS:
            whole = dict(ranking(index, way, k=10))
            few = ranking(narrow, way, k=10)
            assert 0 < len(few) <= 2
            if not way.startswith("convex"):
                assert all(whole[name] == score for name, score in few)
            quoted = ranking(index, way, 'animal "guard the house"')
            assert len(quoted) <= 1


def test_an_index_that_followed_its_folder_is_one_that_was_built(copied, models):
    place = copied
    documents = place / "documents"
    (documents / "animals/cats.md").write_text("# Cats\n\nThe cats guard the mill at night.\n")
    (documents / "animals/dogs.md").rename(documents / "dogs.md")
    (documents / "places/paris.txt").unlink()
    (documents / "new.md").write_text("# Mill\n\nThe mill ground corn and sugar.\n")
    done = update_index(place / "index", embedder=open_embedder("static"))
    assert (done.added, done.changed, done.renamed, done.deleted) == (1, 1, 1, 1)
    build(place, models, "fresh")
    with Index.open(place / "index") as changed, Index.open(place / "fresh") as fresh:
        for way in WAYS:
            assert ranking(changed, way, k=10) == ranking(fresh, way, k=10)
    compact_index(place / "index")
    with Index.open(place / "index") as changed, Index.open(place / "fresh") as fresh:
        for way in WAYS:
            assert ranking(changed, way, k=10) == ranking(fresh, way, k=10)
    assert check_folder(place / "index" / "output") == []


def test_what_did_not_change_is_not_read_again(copied, models, monkeypatch):
    place = copied
    read = []
    for kind in (SparseEncoder, ColbertEncoder):
        own = kind.encode
        monkeypatch.setattr(
            kind,
            "encode",
            lambda self, texts, *a, _own=own, **k: read.extend(texts) or _own(self, texts, *a, **k),
        )
    build(place, models, "again", previous=place / "index")
    assert read == []
    path = place / "documents/animals/cats.md"
    path.write_text(path.read_text() + "\n# More\n\nThe dog barks at strangers.\n")
    update_index(place / "index", embedder=open_embedder("static"))
    assert len(read) == 2  # the new passage, once by each model
    text = (place / "documents/code/cpp.md").read_text()
    (place / "documents/copied.md").write_text(text + "\n")  # another file with the same passage
    update_index(place / "index", embedder=open_embedder("static"))
    assert len(read) == 2


def test_what_is_deleted_is_found_by_neither(copied):
    place = copied

    def found(index):
        hits = [
            hit
            for way in ("sparse", "multi_vector", {"name": "multi_vector", "depth": 0})
            for hit in retrieve(index, QUERY, 10, retriever=way)
        ]
        return {hit.passage.location.path.split("/")[0] for hit in hits}

    with Index.open(place / "index") as index:
        assert "animals" in found(index)
        delete_documents(place / "index", ["animals/"])
        index.refresh()
        assert found(index) == {"code", "places"}


@pytest.mark.parametrize("name", ["term_weights.safetensors", "token_vectors.safetensors"])
def test_damage_is_found_and_mended_by_the_models(copied, name):
    place = copied
    with Index.open(place / "index") as index:
        expected = {way: ranking(index, way) for way in WAYS}
    (path,) = (place / "index").rglob(name)
    path.write_bytes(path.read_bytes()[:-8] + b"damaged!")
    with pytest.raises(IntegrityError):
        Index.open(place / "index")
    assert repair_index(place / "index", embedder=open_embedder("static"))
    assert check_folder(place / "index" / "output") == []
    with Index.open(place / "index") as index:
        assert {way: ranking(index, way) for way in WAYS} == expected


def test_codes_of_few_bits_find_the_same(built, place, models):
    def scores(out):
        with Index.open(out) as index:
            found = retrieve(index, QUERY, 10, retriever={"name": "multi_vector", "depth": 0})
            return {hit.passage.id: hit.score for hit in found}

    build(place, models, sparse=None, late_interaction={"model": str(models[1]), "bits": 4})
    assert scores(place / "index") == pytest.approx(scores(built / "index"), abs=0.05)


def test_the_embedders_own_states_serve_and_a_reranker_reads_what_is_kept(
    place, models, monkeypatch
):
    folder = str(make_masked_lm(place / "encoder"))
    told = {
        "documents": str(place / "documents"),
        "embedder": folder,
        "store": {"name": "folder", "late_interaction": {"bits": 16}},
    }
    job = Job.start(place / "own", json.dumps(told))
    run(IndexRecipe(**told), job, embedder=(embedder := open_embedder(folder)))
    job.close()
    with Index.open(place / "own", embedder=embedder) as index:
        query = Query(QUERY)
        first = retrieve(index, query, 6, retriever="keyword", reranker="late_interaction")
        passages = []
        monkeypatch.setattr(
            type(embedder), "embed_tokens", lambda *a, **k: passages.append(a) or 1 / 0
        )
        again = retrieve(index, query, 6, retriever="keyword", reranker="late_interaction")
        assert [hit.passage.id for hit in again] == [hit.passage.id for hit in first]
        assert passages == []


def test_an_index_without_them_says_so(place, models):
    build(place, models, sparse=None, late_interaction=None)
    with Index.open(place / "index") as index:
        for retriever in ("sparse", "multi_vector", {"name": "hybrid", "words": "sparse"}):
            with pytest.raises(DataError) as caught:
                retrieve(index, QUERY, retriever=retriever)
            assert caught.value.code == "rag.no-extras"


def test_a_store_that_dropped_them_is_no_empty_answer(built):
    with Index.open(built / "index") as index:
        index._state.sparse = index._state.tokens = None  # as a store without them opens
        for retriever in ("sparse", "multi_vector"):
            with pytest.raises(DataError) as caught:
                retrieve(index, QUERY, retriever=retriever)
            assert caught.value.code == "rag.no-extras"


def test_models_that_changed_are_refused(place, models):
    moved = place / "splade"
    shutil.copytree(models[0], moved)
    build(place, models, sparse={"model": str(moved)})
    shutil.rmtree(moved)
    make_masked_lm(moved, seed=7)
    with Index.open(place / "index") as index, pytest.raises(IntegrityError) as caught:
        retrieve(index, QUERY, retriever="sparse")
    assert caught.value.code == "rag.embedder-mismatch"
    (place / "documents/new.txt").write_text("The mill.\n")
    with pytest.raises(IntegrityError) as caught:
        update_index(place / "index", embedder=open_embedder("static"))
    assert caught.value.code == "rag.other-preparation"


def test_check_counts_them_and_list_names_them(place, models):
    bare = {"documents": str(place / "documents"), "embedder": "static"}
    plain = estimate_recipe(IndexRecipe(**bare))
    more = estimate_recipe(
        IndexRecipe(
            **bare,
            store={
                "name": "folder",
                "sparse": {"model": str(models[0])},
                "late_interaction": {"bits": 4},
            },
        )
    )
    assert more.disk_bytes > plain.disk_bytes
    assert more.seconds > plain.seconds
    assert "term weights" in more.basis
    assert "token vectors" in more.basis
    said = CliRunner().invoke(stillroom, ["list", "methods", "rag.retrievers"]).output
    assert "sparse" in said
    assert "multi_vector" in said


def test_a_recipe_says_it_in_a_line(place):
    recipe = parse_recipe(
        f"version: 1\nkind: rag.index\ndocuments: {place}\n",
        "here",
        ["store.late_interaction.bits=4"],
        folder=place,
    )
    kept = recipe.late_interaction
    assert (kept.model, kept.bits, recipe.sparse) == ("builtin:embedder", 4, None)
    recipe = parse_recipe(
        f"kind: rag.index\ndocuments: {place}\nstore: {{name: folder, sparse: {{model: s}}}}\n",
        "here",
        folder=place,
    )
    assert recipe.sparse.model == str(place / "s")


def test_a_store_that_keeps_none_is_refused(place):
    for told in ({"late_interaction": {"bits": 4}}, {"sparse": {"model": str(place)}}):
        IndexRecipe(documents=str(place), store={"name": "folder", **told})
        with pytest.raises((RecipeError, ValueError), match="not permitted"):
            IndexRecipe(documents=str(place), store={"name": "postgres", **told})


def test_a_migration_that_would_lose_them_is_refused_before_it_begins(copied):
    place = copied
    before = sorted(one for one in place.rglob("*") if one.name != ".writer")
    told = CliRunner().invoke(
        stillroom, ["rag", "migrate", str(place / "index"), "--to", "postgres"]
    )
    assert isinstance(told.exception, DataError)
    assert told.exception.code == "rag.store-lacks"
    said = str(told.exception)
    assert "postgres cannot store term weights of learned sparse search (sparse) and token" in said
    assert sorted(one for one in place.rglob("*") if one.name != ".writer") == before


def spoil(file, name):
    """Change the first number of an array in a file of tensors, its size kept."""
    data = bytearray(file.read_bytes())
    (size,) = struct.unpack("<Q", data[:8])
    start, _ = json.loads(data[8 : 8 + size])[name]["data_offsets"]
    data[8 + size + start] ^= 0x40
    file.write_bytes(data)


def test_a_copy_with_other_weights_or_vectors_differs(built, copied):
    other = copied / "index/output"
    for name, array in (("term_weights", "weights"), ("token_vectors", "tokens")):
        (file,) = other.rglob(f"{name}.safetensors")
        kept = file.read_bytes()
        spoil(file, array)
        with ExitStack() as stack:
            old, new = (
                FolderStore(one).read(verify=False) for one in (built / "index/output", other)
            )
            stack.callback(old.close)
            stack.callback(new.close)
            with pytest.raises(IntegrityError, match=name.replace("_", " ")):
                compare_stores(old, new, copied, queries=64)
        file.write_bytes(kept)


def test_a_killed_build_goes_on_with_what_was_made(built, place, models, monkeypatch):
    seen = []

    def fail(self, texts, **more):
        seen.extend(texts)
        if len(seen) > 3:
            raise KeyboardInterrupt
        return own(self, texts, **more)

    own = ColbertEncoder.encode
    told = {"documents": str(place / "documents"), "embedder": "static"}
    kept = {
        "sparse": {"model": str(models[0])},
        "late_interaction": {"model": str(models[1]), "bits": 16},
    }
    told["store"] = {"name": "folder", **kept}
    text = json.dumps({"version": 1, "kind": "rag.index", **told})
    with monkeypatch.context() as patch:
        patch.setattr(ColbertEncoder, "encode", fail)
        job = Job.start(place / "killed", text)
        with pytest.raises(KeyboardInterrupt):
            run(IndexRecipe(**told), job, embedder=open_embedder("static"))
        job.close()
    job = Job.start(place / "killed", text, resume=True)
    done = run(IndexRecipe(**told), job, embedder=open_embedder("static"))
    job.close()
    assert done.details["parsed"] < 6
    for name in ("term_weights", "token_vectors", "postings"):
        (one,), (other,) = (
            list(out.rglob(f"{name}.safetensors")) for out in (built / "index", place / "killed")
        )
        assert np.array_equal(
            np.frombuffer(one.read_bytes(), np.uint8), np.frombuffer(other.read_bytes(), np.uint8)
        )


def test_index_with_term_weights_and_token_vectors_is_replayed(place, models):
    splade, colbert = models
    kept = {"sparse": {"model": str(splade)}, "late_interaction": {"model": str(colbert)}}
    recipe = IndexRecipe(
        documents=str(place / "documents"),
        embedder="builtin:static",
        store={"name": "folder", **kept},
    )
    run_job(recipe, Job.start(place / "index", dump_recipe(recipe)))
    for amount in ("1", "all"):
        result = plan_replay(place / "index", ReplayAmount.parse(amount), seed=1).run()
        assert [(one.name, str(one)) for _, one in result.differences] == []
        assert [job.open for job in result.open_jobs] == []
    assert result.drawn == result.total > 1


def test_index_that_was_updated_in_place_stays_open(place):
    recipe = IndexRecipe(documents=str(place / "documents"), embedder="builtin:static")
    run_job(recipe, Job.start(place / "index", dump_recipe(recipe)))
    (place / "documents" / "more.md").write_text("# More\n\nDogs bark at noon.\n")
    update_index(place / "index")
    result = plan_replay(place / "index", ReplayAmount.parse("all")).run()
    assert result.differences == []
    assert [job.open for job in result.open_jobs] == [
        "the index was updated in place (snapshot 2); build it again"
    ]
    assert result.power == "No segment was recomputed."
