"""Kept answers: served for the same question only, and only while their sources stand."""

import shutil
import sqlite3
from functools import partial

import numpy as np
import pytest
from tests.unit.rag.graphs import HOPS, make_graph, make_index

from stillroom.errors import CheckpointError, DataError
from stillroom.rag import model_calls
from stillroom.rag.generation import answer as answers
from stillroom.rag.generation.semantic_cache import SemanticCache
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import ANSWER_STRATEGIES, CHECKERS, RERANKERS
from stillroom.records import Sampling
from stillroom.testing import scripted_model, tiny_checkpoint

# These tests script what the model writes.
ask = partial(answers.ask, answering="generate")
ask_stream = partial(answers.ask_stream, answering="generate")

QUESTION = "How many inhabitants does Paris have?"
ANSWER = "Paris has 2.1 million inhabitants [1]."


class Alike:
    """An embedder for which all texts are the same: only the second gate is left."""

    truncated, dimensions, max_tokens = 0, 4, 512
    fingerprint = "alike"

    def embed(self, texts, *, kind):
        import numpy as np

        return np.tile(np.array([0.5, 0.5, 0.5, 0.5], dtype=np.float32), (len(texts), 1))

    def count_tokens(self, text):
        return len(text.split())


@pytest.fixture
def alike(build, tmp_path):
    build("alike", embedder=Alike())
    with Index.open(tmp_path / "alike", embedder=Alike()) as index:
        yield index


_OPENED = []


def open_cache(*args, **settings):
    """Return a cache that is closed when the test ends."""
    _OPENED.append(SemanticCache(*args, **settings))
    return _OPENED[-1]


@pytest.fixture(autouse=True)
def _closed():
    yield
    while _OPENED:
        _OPENED.pop().close()


def model_of(text=ANSWER):
    return scripted_model(lambda prompt: text, fingerprint="one")


def test_the_same_question_is_answered_once(index):
    cache, model = open_cache(), model_of()
    first = ask(index, model, QUESTION, cache=cache)
    again = ask(index, model, "  how many\ninhabitants does PARIS have? ", cache=cache)
    assert len(model.asked) == 1
    assert first.details["cached"] is None
    assert again.details["cached"] == {"kind": "exact", "cosine": 1.0, "question": QUESTION}
    assert again.completion == first.completion
    assert again.citations == first.citations
    assert again.hits == first.hits
    assert (cache.hits, cache.misses) == (1, 1)
    *pieces, last = ask_stream(index, model, QUESTION, cache=cache)
    assert "".join(pieces) == last.completion.text == first.completion.text


def test_nothing_is_kept_unless_a_cache_is_given(index):
    model = model_of()
    ask(index, model, QUESTION)
    ask(index, model, QUESTION)
    assert len(model.asked) == 2


@pytest.mark.parametrize(
    ("asked", "other", "is_hit"),
    [
        ("Does Paris have 2 million inhabitants?", "does Paris have 2 million inhabitant", True),
        ("Does Paris have 2 million inhabitants?", "Does Paris have 3 million inhabitants?", False),
        ("Does Python need a compiler?", "Does Python not need a compiler?", False),
        ("How is the flag enabled?", "How is the flag disabled?", False),
        ("What is plan A?", "What is plan B?", False),
        ("What does tar -x do?", "What does tar -X do?", False),
        ("Dogs guard the house", "Cats guard the house", False),
        ("Where do dogs guard?", "Where, then, do the dogs guard it?", True),
        ("Who guards the house?", "When is the house guarded?", False),
        ("Is 1 before 2?", "Is 2 before 1?", False),
        ("Do dogs bite men?", "Do men bite dogs?", False),
    ],
)  # fmt: skip
def test_a_vector_alone_never_serves(alike, asked, other, is_hit):
    cache, model = open_cache(), model_of()
    ask(alike, model, asked, cache=cache)
    found = ask(alike, model, other, cache=cache)
    assert (found.details["cached"] is not None) is is_hit
    if is_hit:
        assert found.details["cached"]["kind"] == "near"
        assert found.details["cached"]["question"] == asked


def test_words_alone_never_serve_where_vectors_are_far(index):
    cache = open_cache()
    model = model_of()
    ask(index, model, "dogs guard cats " * 1, cache=cache)
    cache._database.execute("UPDATE answers SET vector = zeroblob(length(vector))")
    assert ask(index, model, "cats guard dogs", cache=cache).details["cached"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"access": "tenant-b"}, {"k": 1}, {"retriever": "keyword"}, {"answering": "corrective"},
        {"answering": {"name": "corrective", "strip": 1}}, {"unsupported": "drop"},
        {"neighbours": 1}, {"sampling": Sampling(max_new_tokens=9)},
    ],
)  # fmt: skip
def test_what_an_answer_depends_on_is_part_of_its_key(index, change):
    cache, model = open_cache(), model_of()
    ask(index, model, QUESTION, cache=cache, access="tenant-a")
    assert (
        ask(index, model, QUESTION, cache=cache, **{"access": "tenant-a", **change}).details[
            "cached"
        ]
        is None
    )
    assert ask(index, model, QUESTION, cache=cache, access="tenant-a").details["cached"]


def test_another_model_is_another_key(index):
    cache = open_cache()
    ask(index, model_of(), QUESTION, cache=cache)
    other = scripted_model(lambda prompt: ANSWER, fingerprint="two")
    assert ask(index, other, QUESTION, cache=cache).details["cached"] is None


def test_an_answer_dies_with_its_source(build, folder, tmp_path):
    build("before")
    cache, model = open_cache(), model_of()
    with Index.open(tmp_path / "before") as before:
        ask(before, model, QUESTION, cache=cache, k=1)
        scope, _ = cache._database.execute("SELECT scope, text FROM answers").fetchone()
        assert cache.find(before, scope, QUESTION) is not None
    (folder / "places/paris.txt").unlink()
    build("after")
    with Index.open(tmp_path / "after") as after:
        # Even under the same scope, as if the digest had not changed, the source is looked for.
        assert cache.find(after, scope, QUESTION) is None
        assert len(cache) == 0


def test_refusals_without_any_passage_and_broken_answers_are_not_kept(index):
    cache = open_cache()
    ask(index, model_of(), "🙂", cache=cache, retriever="keyword")
    ask(index, model_of(), QUESTION, cache=cache, is_cancelled=lambda: True)
    assert len(cache) == 0


def test_the_longest_unused_go_first(index):
    cache, model = open_cache(capacity=2), model_of()
    for question in ("cats", "dogs", "cats", "Paris"):
        ask(index, model, question, cache=cache)
    assert len(cache) == 2
    assert ask(index, model, "cats", cache=cache).details["cached"]
    assert not ask(index, model, "dogs", cache=cache).details["cached"]


def test_a_file_outlives_its_process_and_others_are_refused(index, tmp_path):
    path = tmp_path / "answers.sqlite"
    first = open_cache(path)
    kept = ask(index, model_of(), QUESTION, cache=first)
    first.close()
    second = open_cache(path)
    assert ask(index, model_of(), QUESTION, cache=second).completion == kept.completion
    second.close()
    (tmp_path / "text").write_text("no database " * 100)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE mine(x)")
    other.commit()
    other.close()
    for name in ("text", "other.sqlite"):
        with pytest.raises(DataError) as caught:
            open_cache(tmp_path / name)
        assert caught.value.code == "rag.semantic-cache"
    with pytest.raises(DataError):
        open_cache(capacity=0)


def test_an_answer_that_cannot_be_kept_locks_nobody_out(index, tmp_path):
    path = tmp_path / "cache.sqlite"
    cache = open_cache(path)
    answer = ask(index, model_of(), QUESTION)
    with pytest.raises(UnicodeEncodeError):
        cache.keep(index, "scope", "half a pair \ud800", answer)
    for other in (cache, open_cache(path)):
        other._database.execute("PRAGMA busy_timeout=1")
        other.keep(index, "scope", QUESTION, answer)
    assert len(cache) == 1


def test_a_damaged_entry_is_a_miss(index):
    cache, model = open_cache(), model_of()
    ask(index, model, QUESTION, cache=cache)
    cache._database.execute("UPDATE answers SET answer = '{\"completion\": 3}'")
    assert ask(index, model, QUESTION, cache=cache).details["cached"] is None


def test_a_vector_of_another_length_is_a_miss(alike):
    cache, model = open_cache(), model_of()
    ask(alike, model, "Where do dogs guard?", cache=cache)
    for damage in (b"", b"abc", bytes(8), "text"):
        cache._database.execute("UPDATE answers SET vector = ?", (damage,))
        found = ask(alike, model, "Where, then, do the dogs guard it?", cache=cache)
        assert found.details["cached"] is None
        cache._database.execute("DELETE FROM answers WHERE id > 1")


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e38])
def test_a_vector_of_damaged_numbers_is_a_miss(alike, number):
    cache, model = open_cache(), model_of()
    ask(alike, model, "Where do dogs guard?", cache=cache)
    size = cache._database.execute("SELECT length(vector) FROM answers").fetchone()[0]
    damage = np.full(size // 4, number, "<f4").tobytes()
    cache._database.execute("UPDATE answers SET vector = ?", (damage,))
    found = ask(alike, model, "Where, then, do the dogs guard it?", cache=cache)
    assert found.details["cached"] is None


def test_a_file_damaged_behind_its_head_is_refused(index, tmp_path):
    path = tmp_path / "cache.sqlite"
    ask(index, model_of(), QUESTION, cache=open_cache(path))
    _OPENED.pop().close()
    page = 4096
    path.write_bytes(path.read_bytes()[:page] + bytes(path.stat().st_size - page))
    with pytest.raises(DataError) as caught:
        ask(index, model_of(), QUESTION, cache=open_cache(path))
    assert caught.value.code == "rag.semantic-cache"


def test_an_answer_by_a_graph_is_not_kept_beyond_the_graph(tmp_path):
    place = make_index(tmp_path, HOPS)
    make_graph(place, tmp_path / "graph")
    cache = open_cache()
    model = scripted_model(lambda _: "It was Fairhaven Yard [1].", fingerprint="one")
    settings = {"retriever": {"name": "graph_local", "graph": str(tmp_path / "graph")}}
    with Index.open(place) as opened:
        asked = [ask(opened, model, "Who built the Aurora?", cache=cache, **settings)]
        asked.append(ask(opened, model, "Who built the Aurora?", cache=cache, **settings))
        make_graph(place, tmp_path / "graph", max_cluster_size=2)
        asked.append(ask(opened, model, "Who built the Aurora?", cache=cache, **settings))
    assert [one.details["cached"] is None for one in asked] == [True, False, True]


class Agreeing:
    def entail(self, premises, hypotheses):
        return [0.9] * len(premises)

    def score(self, query, texts):
        return [0.9] * len(texts)


@pytest.mark.parametrize("role", ["checker", "reranker", "grader"])
def test_other_weights_at_the_same_path_answer_anew(index, tmp_path, monkeypatch, role):
    for name in ("_open_entailment", "_open_model"):
        monkeypatch.setattr(model_calls, name, lambda *_: Agreeing())
    place = {"checkpoint": str(tmp_path / "pair")}
    settings = {
        "checker": {"checker": CHECKERS.build({"name": "entailment", **place})},
        "reranker": {"reranker": RERANKERS.build({"name": "cross_encoder", **place})},
        "grader": {
            "answering": ANSWER_STRATEGIES.build(
                {"name": "corrective", "grader": {"name": "cross_encoder", **place}}
            )
        },
    }[role]
    cache, model = open_cache(), model_of()
    for seed, was_known in ((1, False), (1, True), (2, False)):
        shutil.rmtree(tmp_path / "pair", ignore_errors=True)
        tiny_checkpoint(tmp_path / "pair", seed=seed, layers=1, hidden=16)
        answer = ask(index, model, QUESTION, cache=cache, **settings)
        assert (answer.details["cached"] is not None) == was_known


@pytest.mark.parametrize("reference", ["hub:lab/pair", "memory://models/pair"])
def test_a_question_does_not_look_for_a_found_model_in_the_network(
    tmp_path, monkeypatch, reference
):
    asked = []

    def resolve(name):
        asked.append(name)
        if len(asked) == 1:
            raise CheckpointError("no network", code="checkpoint.not-found")
        return tmp_path / "pair"

    monkeypatch.setattr("stillroom.models.hub.resolve_checkpoint", resolve)
    model_calls._resolve_once.cache_clear()
    tiny_checkpoint(tmp_path / "pair", seed=1, layers=1, hidden=16)
    assert model_calls.read_fingerprint(reference) == ""
    first = [model_calls.read_fingerprint(reference) for _ in range(3)]
    shutil.rmtree(tmp_path / "pair")
    tiny_checkpoint(tmp_path / "pair", seed=2, layers=1, hidden=16)
    assert len({*first}) == 1
    assert model_calls.read_fingerprint(reference) not in {"", *first}
    assert len(asked) == 2
    model_calls._resolve_once.cache_clear()
