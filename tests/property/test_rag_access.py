"""Tenants and labels: nobody reaches, counts or infers what is not theirs, by any filter or method.

Every document holds a word of its own, a canary. Of an asker the test knows the documents that the
rule grants; the index must behave as one that holds these alone.
"""

import json
import random

import pytest
from tests.property.rag_words import WORDS, Embedder, Words, build, describe

from stillroom.errors import DataError, ResourceError
from stillroom.rag.generation.answer import ask
from stillroom.rag.generation.semantic_cache import SemanticCache
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext
from stillroom.rag.interfaces import Query
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.storage.folder.writer import FolderIndexWriter
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.types import DocumentMetadata
from stillroom.testing import scripted_model

TENANTS = [f"tenant{number}" for number in range(8)]
LABELS = ["public", "staff", "group:a", "user:x"]
OVERLAP = {"name": "quote", "reader": "builtin:overlap", "min_probability": 0.0}


def grants(facts, access):
    names = {*access.principals, "public"}
    return facts.tenant == access.tenant and bool(names & set(facts.labels))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """An index of 160 documents of eight tenants, and what it was made of."""
    rng = random.Random(3)
    model = {}
    for number in range(160):
        words = " ".join(rng.choices(WORDS, k=6))
        labels = tuple(rng.sample(LABELS, rng.randint(0, 2)))
        tenant = rng.choice([*TENANTS, ""])
        facts = DocumentMetadata(
            {"year": rng.randint(2000, 2010), "tag": ["a", "b"][: number % 3]}, tenant, labels
        )
        model[f"d{number}.txt"] = (f"{words} canary{number}\nsecond line {words}", facts)
    folder = tmp_path_factory.mktemp("access") / "output"
    with FolderIndexWriter.create(folder, describe("tenants")) as writer:
        puts = [(Words(path, text), facts) for path, (text, facts) in sorted(model.items())]
        writer.commit(IndexUpdate(puts=puts), reason="built", keep=4)
    return folder, model


def open_as(folder, access):
    return Index.open(folder, embedder=Embedder(), access=access)


def random_access(rng):
    return AccessContext(rng.choice(TENANTS), rng.sample(LABELS, rng.randint(0, 3)))


def texts_of(index):
    return [
        (index.passage_at(row).location.path, index.passage_at(row).text)
        for row in range(len(index))
    ]


def test_an_asker_sees_what_an_index_of_their_documents_alone_would_show(shared, tmp_path):
    folder, model = shared
    rng = random.Random(5)
    for number in range(12):
        access = random_access(rng)
        own = {path: text for path, (text, facts) in model.items() if grants(facts, access)}
        with open_as(folder, access) as index:
            assert texts_of(index) == [
                (path, line) for path in sorted(own) for line in own[path].split("\n")
            ]
            with Index.open(build(tmp_path / str(number), own), embedder=Embedder()) as alone:
                for word in [*rng.sample(WORDS, 5), "second", "canary3"]:
                    query = Query(f"{word} {rng.choice(WORDS)}")
                    assert index.search_keyword(query, 9) == alone.search_keyword(query, 9)
                    assert index.search_dense(query, 9) == alone.search_dense(query, 9)
                    assert index.lexicon.idf(word) == alone.lexicon.idf(word)


def random_filter(rng, depth=0):
    kind = rng.choice(["year", "year", "path", "tag", "title", "not", "and", "or"])
    if depth > 2 or kind not in {"not", "and", "or"}:
        return rng.choice(
            [
                f"year {rng.choice(['<', '>=', '=', '!='])} {rng.randint(1999, 2011)}",
                f"path ~ 'd{rng.randint(0, 9)}*'",
                "exists(tag)",
                "tag in (a, b)",
                "tag = 'a'",
                "title = t",
                "path != 'nothing'",
            ]
        )
    if kind == "not":
        return f"not ({random_filter(rng, depth + 1)})"
    return f"({random_filter(rng, depth + 1)}) {kind} ({random_filter(rng, depth + 1)})"


def test_no_filter_shows_another_tenants_canary(shared):
    folder, model = shared
    rng = random.Random(11)
    for _ in range(6):
        access = random_access(rng)
        own = {path for path, (_, facts) in model.items() if grants(facts, access)}
        foreign = sorted(model.keys() - own)
        with open_as(folder, access) as index:
            for _ in range(40):
                if not own:  # then there are no fields to filter by either
                    with pytest.raises(DataError, match="no document has a field"):
                        index.restrict(random_filter(rng))
                    continue
                shown = index.restrict(random_filter(rng))
                path = rng.choice(foreign)
                canary = f"canary{path[1:-4]}"
                found = [row for row, _ in shown.search_keyword(Query(f"second {canary}"), 50)]
                found += [row for row, _ in shown.search_dense(Query(canary), 50)]
                assert {shown.passage_at(row).location.path for row in found} <= own
                assert shown.lexicon.document_frequency(canary) == 0
                assert len(shown) <= len(index) == 2 * len(own)
                passage = next(Words(path, model[path][0]).passages())
                for ask in (shown.passage, shown.row_of):
                    with pytest.raises(DataError):
                        ask(passage.id)
                with pytest.raises(DataError):
                    shown.document(passage.document_id)


@pytest.mark.parametrize("share", ["year = 2003", "path = 'd7.txt'", "year > 1900", "year > 2050"])
def test_a_filter_is_exact_at_every_selectivity(shared, tmp_path, share):
    _, model = shared
    plain = {path: text for path, (text, _) in model.items()}
    build(tmp_path / "open", {})
    with FolderIndexWriter.open(tmp_path / "open") as writer:
        puts = [
            (Words(path, text), DocumentMetadata(model[path][1].fields))
            for path, text in sorted(plain.items())
        ]
        writer.commit(IndexUpdate(puts=puts), reason="filled", keep=4)
    with Index.open(tmp_path / "open", embedder=Embedder()) as index:
        shown = index.restrict(share)
        rows = [index.row_of(shown.passage_at(row).id) for row in range(len(shown))]
        for word in WORDS[:6]:
            query = Query(f"{word} second")
            for search in ("search_keyword", "search_dense"):
                every = getattr(index, search)(query, len(index))
                wanted = [(rows.index(row), score) for row, score in every if row in rows][:5]
                assert getattr(shown, search)(query, 5) == wanted


def test_revoking_a_label_takes_effect_at_the_next_refresh(tmp_path):
    access = AccessContext("t", ["staff"])
    with FolderIndexWriter.create(tmp_path / "output", describe("tenants")) as writer:
        puts = [(Words("a.txt", "word1 secret"), DocumentMetadata({}, "t", ("staff",)))]
        writer.commit(IndexUpdate(puts=puts), reason="built", keep=4)
    with open_as(tmp_path / "output", access) as index:
        assert len(index) == 1
        with FolderIndexWriter.open(tmp_path / "output") as writer:
            writer.commit(
                IndexUpdate(facts={1: DocumentMetadata({}, "t", ())}), reason="revoked", keep=4
            )
        assert index.refresh()
        assert len(index) == 0
        assert index.search_keyword(Query("secret"), 5) == []


@pytest.mark.parametrize(
    ("rule", "access", "code"),
    [("tenants", None, "rag.access-needed"), ("open", AccessContext("t"), "rag.no-tenants")],
)
def test_an_index_opens_only_as_it_was_made(tmp_path, rule, access, code):
    FolderIndexWriter.create(tmp_path / "output", describe(rule)).close()
    with FolderIndexWriter.open(tmp_path / "output") as writer:
        writer.commit(IndexUpdate(), reason="built", keep=4)
    with pytest.raises(DataError) as caught:
        Index.open(tmp_path / "output", access=access)
    assert caught.value.problems[0].code == code


def test_an_asker_without_a_tenant_is_refused():
    with pytest.raises(DataError) as caught:
        AccessContext("")
    assert caught.value.problems[0].code == "rag.bad-access"


def test_every_query_leaves_a_line_without_its_text(shared):
    folder, _ = shared
    audit = folder.parent / "audit.jsonl"
    audit.unlink(missing_ok=True)
    with open_as(folder, AccessContext("tenant1", ["staff"])) as index:
        hits = retrieve(index, "word1 word2 confidential", 3, retriever="hybrid")
        index.search_keyword(Query("word3"), 2)
        retrieve(index.restrict("year > 2001"), "word4", 2)
        if hits:
            index.passage(hits[0].passage.id)
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        assert len(lines) == 3 + bool(hits)
    with open_as(folder, AccessContext("nobody")) as index:
        assert retrieve(index, "word1 confidential", 3) == []
        last = json.loads(audit.read_text().splitlines()[-1])
        assert (last["tenant"], last["given"]) == ("nobody", [])
        assert lines[0]["given"] == [hit.passage.id for hit in hits]
        assert (lines[0]["tenant"], lines[0]["principals"]) == ("tenant1", ["staff"])
        assert (lines[0]["snapshot"], lines[0]["index"]) == (1, index.digest)
    assert "confidential" not in audit.read_text()


def test_no_kept_answer_crosses_tenants_or_filters(shared):
    folder, _ = shared
    cache, model = SemanticCache(), scripted_model(lambda prompt: "It is so [1].", fingerprint="m")
    askers = [
        AccessContext("tenant1", ["staff"]),
        AccessContext("tenant1", ["user:x"]),
        AccessContext("tenant2"),
    ]
    scopes = set()
    for access in askers:
        with open_as(folder, access) as index:
            for view in (index, index.restrict("year > 2003"), index.restrict("year > 2004")):
                scopes.add(view.scope)
                assert (
                    ask(view, model, "What is word1?", cache=cache, answering=OVERLAP).details[
                        "cached"
                    ]
                    is None
                )
    assert len(scopes) == 9
    assert "" not in scopes
    with open_as(folder, askers[0]) as index:
        assert ask(index, model, "What is word1?", cache=cache, answering=OVERLAP).details[
            "cached"
        ] or not len(index)


def test_what_cannot_be_noted_is_not_answered(shared):
    folder, _ = shared
    audit = folder.parent / "audit.jsonl"
    audit.unlink(missing_ok=True)
    audit.mkdir()
    try:
        with (
            open_as(folder, AccessContext("tenant1")) as index,
            pytest.raises(ResourceError) as caught,
        ):
            retrieve(index, "word1", 1)
    finally:
        audit.rmdir()
    assert caught.value.problems[0].code == "rag.audit"


def test_kept_answers_are_kept_apart_as_the_documents_are(shared):
    folder, model = shared
    cache = SemanticCache()
    asked = scripted_model(lambda prompt: prompt.messages[-1].content[:400], fingerprint="one")
    rng = random.Random(11)
    question = "Which canary is here?"
    for _ in range(24):
        access = random_access(rng)
        own = {path for path, (_, facts) in model.items() if grants(facts, access)}
        with open_as(folder, access) as index:
            found = ask(index, asked, question, cache=cache, answering=OVERLAP, retriever="dense")
            again = ask(index, asked, question, cache=cache, answering=OVERLAP, retriever="dense")
            assert {hit.passage.location.path for hit in (*found.hits, *again.hits)} <= own
            if found.hits:
                assert again.details["cached"]["kind"] == "exact"
    assert cache.hits >= 8


def test_a_filter_is_part_of_what_a_kept_answer_depends_on(shared):
    folder, _ = shared
    cache = SemanticCache()
    asked = scripted_model(lambda prompt: "x", fingerprint="one")
    with open_as(folder, AccessContext(TENANTS[0])) as index:
        scopes = {
            index.scope,
            index.restrict("year >= 2005").scope,
            index.restrict("year < 2005").scope,
        }
        assert len(scopes) == 3
        ask(index, asked, "Which canary?", cache=cache, answering=OVERLAP, retriever="dense")
        narrow = index.restrict("year >= 2005")
        assert (
            ask(narrow, asked, "Which canary?", cache=cache, answering=OVERLAP).details["cached"]
            is None
        )
