"""Contract checks of index stores, with documents of hashed words.

A dictionary is the expected content of the store, and a folder built from it at once is the
reference: a store that was changed step by step must have its digest, return its passages in its
order and find them with its scores. With an access context, it must behave like an index of only
the accessible documents.

A line is a passage. Nothing is parsed or embedded, so that thousands of changes are tested in
seconds, and two indexes of the same documents must be equal to the last digit.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError, ResourceError
from stillroom.rag.analysis.analyzer import ANALYZER_VERSION, Analyzer
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext
from stillroom.rag.interfaces import STORES, IndexStore, Query
from stillroom.rag.observability import collect_warnings
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import open_store, update_manifest
from stillroom.rag.types import (
    AuxiliaryVectors,
    DocumentEntry,
    DocumentMetadata,
    EmbeddingDigest,
    encode_json_line,
)
from stillroom.records import Document, Location, Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models.interfaces import TextKind, Vectors
    from stillroom.rag.storage.protocol import IndexWriter
    from stillroom.rag.types import RankedRows

__all__ = ["WordDocument", "WordEmbedder", "check_store", "describe_word_index", "embed_words"]

_WORDS = [f"word{number}" for number in range(40)]
_TENANTS = ("", "acme", "zeta", "quux")
_LABELS = ("public", "staff", "group:a", "user:x")
_KEPT_SNAPSHOTS = 3
_ExpectedState = dict[str, tuple[str, DocumentMetadata]]


def check_store(
    store: IndexStore, place: Path, *, steps: int = 40, filters: int = 60, seed: int = 0
) -> None:
    """Check the contract of a store; see the module docstring.

    Args:
        store: The method with its settings.
        place: An empty folder; data of the store elsewhere is removed.
        steps: Number of random changes.
        filters: Number of random access contexts and filters.
        seed: Random seed.

    Raises:
        AssertionError: With the contract that is broken.
    """
    rng = random.Random(seed)
    with _open_built(store, place / "walk", "open", _draw_documents(rng, 12)) as trial:
        _check_steps(trial, place, rng, steps)
        _check_snapshots(trial)
        _check_one_commit_point(trial)
        _check_one_writer(trial)
    with _open_built(store, place / "tenants", "tenants", _draw_documents(rng, 60)) as trial:
        _check_access(trial, place / "alone", rng, filters)
    with _open_built(store, place / "filters", "open", _draw_documents(rng, 40)) as trial:
        _check_filters(trial, rng, filters)


@dataclass
class _StoreTrial:
    """A store under test, and its expected content."""

    folder: Path
    model: _ExpectedState
    access: str

    def open(self, **settings: Any) -> Index:
        return Index.open(self.folder, embedder=WordEmbedder(), audit=False, **settings)

    def write(self) -> IndexWriter:
        return open_store(self.folder).write()


@contextmanager
def _open_built(
    store: IndexStore, folder: Path, access: str, model: _ExpectedState
) -> Iterator[_StoreTrial]:
    _build(store, folder, access, model)
    trial = _StoreTrial(folder, dict(model), access)
    try:
        yield trial
        _require(open_store(folder).check() == [], "check finds something in a sound index")
    finally:
        open_store(folder).discard()


def _build(store: IndexStore, folder: Path, access: str, model: _ExpectedState) -> None:
    with store.create(folder, describe_word_index(access)) as writer:
        puts = [(WordDocument(path, text), facts) for path, (text, facts) in sorted(model.items())]
        writer.commit(IndexUpdate(puts=puts), reason="built", keep=_KEPT_SNAPSHOTS)
        update_manifest(writer)


def _draw_documents(rng: random.Random, count: int) -> _ExpectedState:
    return {f"{rng.choice('abc')}/d{number}.txt": _draw_one(rng, number) for number in range(count)}


def _draw_one(rng: random.Random, number: int) -> tuple[str, DocumentMetadata]:
    lines = [" ".join(rng.choices(_WORDS, k=rng.randint(2, 8))) for _ in range(rng.randint(1, 3))]
    lines[0] += f" canary{number}"
    fields = {
        "year": rng.randint(2000, 2010),
        "is_new": rng.random() < 0.3,
        **({"tag": rng.sample(["a", "b", "ä_%"], rng.randint(1, 2))} if rng.random() < 0.6 else {}),
        **({"day": f"20{rng.randint(10, 24)}-01-31"} if rng.random() < 0.5 else {}),
    }
    labels = tuple(rng.sample(_LABELS, rng.randint(0, 2)))
    return "\n".join(lines), DocumentMetadata(fields, rng.choice(_TENANTS), labels)


def _check_steps(trial: _StoreTrial, place: Path, rng: random.Random, steps: int) -> None:
    """Apply changes one after another, with a reader that follows."""
    with trial.open() as reader:
        for step in range(steps):
            with trial.write() as writer:
                _change_once(trial, writer, rng, step)
                update_manifest(writer)
            _require(reader.refresh(), "a commit makes no newer snapshot")
            _compare_with_model(reader, trial.model, rng)
        reference = place / f"fresh{rng.random()}"
        _build(STORES.build("folder"), reference, trial.access, trial.model)
        with Index.open(reference, embedder=WordEmbedder()) as fresh:
            _require(reader.digest == fresh.digest, "equal documents have another digest")
            _require(_search(reader) == _search(fresh), "equal documents have other scores")
            _require(reader.fields == fresh.fields, "equal documents have other fields")


def _change_once(trial: _StoreTrial, writer: IndexWriter, rng: random.Random, step: int) -> None:
    """Apply one random change to the store and to the expected state."""
    keys = writer.list_keys()
    _require(list(keys) == sorted(trial.model), "list_keys has other paths, or another order")
    listed = {path: name.key for path, name in writer.list_documents().items()}
    _require(listed == keys, "list_documents and list_keys differ")
    names = sorted(trial.model)
    kind = rng.choice(["add", "change", "delete", "rename", "tell", "many", "compact"])
    name = rng.choice(names) if names else ""
    fresh = _draw_one(rng, 1_000 + step)
    if kind == "compact" and rng.random() < 0.5:
        writer.compact()
        return
    if kind == "delete" and len(names) > 4:
        del trial.model[name]
        change = IndexUpdate(removes=[keys[name]])
    elif kind == "rename" and names:
        text, facts = trial.model.pop(name)
        trial.model[f"r/{step}.txt"] = text, facts
        change = IndexUpdate(moves=[(WordDocument(f"r/{step}.txt", text), facts, keys[name])])
    elif kind == "tell" and names:
        trial.model[name] = trial.model[name][0], fresh[1]
        change = IndexUpdate(facts={keys[name]: fresh[1]})
    elif kind == "change" and names:
        trial.model[name] = fresh
        change = IndexUpdate(puts=[(WordDocument(name, fresh[0]), fresh[1])])
    else:
        more = {
            f"n/{step}-{index}.txt": _draw_one(rng, 10_000 + 10 * step + index)
            for index in range(3)
        }
        gone = names[:1] if kind == "many" and len(names) > 4 else []
        for name in gone:
            del trial.model[name]
        trial.model.update(more)
        puts = [(WordDocument(path, text), facts) for path, (text, facts) in more.items()]
        change = IndexUpdate(puts=puts, removes=[keys[name] for name in gone])
    snapshot = writer.commit(change, reason="random", keep=_KEPT_SNAPSHOTS)
    _require(snapshot.documents == len(trial.model), "the snapshot counts other documents")


def _compare_with_model(index: Index, model: Mapping[str, Any], rng: random.Random) -> None:
    expected = [(path, line) for path in sorted(model) for line in model[path][0].split("\n")]
    seen = [index.passage_at(row) for row in range(len(index))]
    snapshot = [(row.location.path, row.text) for row in seen]
    _require(snapshot == expected, "a reader sees other passages, or in another order")
    word = rng.choice(_WORDS)
    holding = [row for row, (_, line) in enumerate(expected) if word in line.split()]
    rows = sorted(row for row, _ in index.search_keyword(Query(word), 10_000))
    _require(rows == holding, f"{word} is found in other passages than hold it")
    _require(
        index.lexicon.document_frequency(word) == len(holding), f"{word} has another frequency"
    )
    if seen:
        passage = rng.choice(seen)
        _require(index.passage(passage.id) == passage, "a passage is not found by its id")
        _require(
            index.document(passage.document_id).path == passage.location.path, "nor its document"
        )


def _search(index: Index) -> list[tuple[RankedRows, RankedRows, list[str]]]:
    queries = [*_WORDS[::9], "word1 word2 word3", "word5 word5 word9", "unknown"]
    lines = [index.passage_at(row).text.split() for row in range(0, len(index), 5)]
    phrases = [f'"{" ".join(line[:2])}"' for line in lines[:8]]
    with collect_warnings():
        return [
            (
                index.search_keyword(Query(text), 7),
                index.search_dense(Query(text), 7),
                [hit.passage.id for hit in retrieve(index, text, 5)],
            )
            for text in (*queries, *phrases)
        ]


def _check_snapshots(trial: _StoreTrial) -> None:
    """An old snapshot stays while in use, and is then removed with its own data."""
    path = sorted(trial.model)[0]
    with trial.open() as old:
        before, passage = old.digest, old.passage_at(0)
        with trial.write() as writer:
            key = writer.list_documents()[path].key
            writer.commit(IndexUpdate(removes=[key]), reason="gone", keep=1)
            update_manifest(writer)
        text, _ = trial.model.pop(path)
        _require(old.passage_at(0) == passage, "what an open reader sees was removed")
        with trial.open(snapshot=before) as again:
            _require(again.passage_at(0) == passage, "a snapshot that is read cannot be opened")
        with trial.open() as now:
            _require(now.digest != before, "a delete is no change")
            _require(
                all(now.passage_at(row).id != passage.id for row in range(len(now))),
                f"{text!r} is found after its delete",
            )
    with trial.write() as writer:
        writer.commit(IndexUpdate(), reason="nothing", keep=1)
        update_manifest(writer)
    _require(len(open_store(trial.folder).snapshots()) == 1, "a snapshot stays that nobody reads")
    try:
        trial.open(snapshot=before).close()
    except DataError as error:
        _require(error.problems[0].code == "rag.no-such-snapshot", "another error is raised")
    else:
        raise AssertionError("a snapshot that is gone can be opened")
    reading = open_store(trial.folder).read(verify=True)
    try:
        _require(reading.locate_passage(passage.id) is None, "a removed passage's row stays")
    finally:
        reading.close()


def _check_one_commit_point(trial: _StoreTrial) -> None:
    """An aborted change has no effect."""

    def give_up() -> None:
        raise KeyboardInterrupt

    with trial.open() as reader:
        before = reader.digest
        for change in (
            IndexUpdate(puts=[(WordDocument("z.txt", "word1 zzz"), DocumentMetadata())]),
            IndexUpdate(removes=[snapshot.key for snapshot in _documents(trial).values()]),
        ):
            writer = trial.write()
            try:
                writer.commit(change, reason="given up", keep=1, check=give_up)
            except KeyboardInterrupt:
                pass
            else:
                raise AssertionError("a commit does not call its check")
            finally:
                writer.close()
            _require(not reader.refresh(), "a change that was given up makes a snapshot")
        with trial.open() as again:
            _require(again.digest == before, "a change that was given up is seen")
            _require(not again.search_keyword(Query("zzz"), 3), "its text is found")


def _documents(trial: _StoreTrial) -> dict[str, Any]:
    with trial.write() as writer:
        return dict(writer.list_documents())


def _check_one_writer(trial: _StoreTrial) -> None:
    with trial.write():
        try:
            trial.write().close()
        except ResourceError as error:
            _require(error.problems[0].code == "rag.busy", "another error is raised")
            return
    raise AssertionError("two may write at once")


def _is_granted(facts: DocumentMetadata, access: AccessContext) -> bool:
    names = {*access.principals, "public"}
    return facts.tenant == access.tenant and bool(names & set(facts.labels))


def _check_access(trial: _StoreTrial, alone: Path, rng: random.Random, filters: int) -> None:
    """A user sees an index of only their documents, with any filter and any method."""
    for number in range(8):
        access = AccessContext(rng.choice(_TENANTS[1:]), rng.sample(_LABELS, rng.randint(0, 3)))
        granted = {path: row for path, row in trial.model.items() if _is_granted(row[1], access)}
        reference = alone / str(number)
        _build(STORES.build("folder"), reference, "open", granted)
        with (
            trial.open(access=access) as index,
            Index.open(reference, embedder=WordEmbedder()) as only,
        ):
            _compare_with_model(index, granted, rng)
            _require(_search(index) == _search(only), "what is not theirs shows in a score")
            _require(index.fields == only.fields, "what is not theirs shows in the fields")
            for _ in range(max(1, filters // 8) if granted else 0):
                _check_canaries(index, trial.model, granted, rng)
    try:
        trial.open().close()
    except DataError as error:
        _require(error.problems[0].code == "rag.access-needed", "another error is raised")
    else:
        raise AssertionError("an index with tenants opens for nobody")


def _check_canaries(
    index: Index, model: _ExpectedState, granted: Mapping[str, Any], rng: random.Random
) -> None:
    try:
        shown = index.restrict(_draw_filter(rng))
    except DataError:  # none of their documents has such a field
        return
    path = rng.choice(sorted(set(model) - set(granted)))
    text = model[path][0].split("\n", 1)[0]
    canary = text.rsplit(" ", 1)[1]
    texts = [row for row, _ in shown.search_keyword(Query(text), 50)]
    texts += [row for row, _ in shown.search_dense(Query(text), 50)]
    seen = {shown.passage_at(row).location.path for row in texts}
    _require(
        seen <= set(granted), f"{seen - set(granted)} was found by somebody who may not see it"
    )
    _require(shown.lexicon.document_frequency(canary) == 0, "a foreign word has a frequency")
    passage = next(WordDocument(path, model[path][0]).passages())
    for ask in (shown.passage, shown.row_of):
        try:
            ask(passage.id)
        except DataError:
            continue
        raise AssertionError(f"{path} was read by somebody who may not see it")


def _draw_filter(rng: random.Random, depth: int = 0) -> str:
    kind = rng.choice(["plain", "plain", "not", "and", "or"])
    if depth > 2 or kind == "plain":
        return rng.choice(
            [
                f"year {rng.choice(['<', '>=', '=', '!='])} {rng.randint(1999, 2011)}",
                f"path ~ '?/d{rng.randint(0, 9)}*'",
                f"day {rng.choice(['<=', '>'])} 20{rng.randint(9, 25):02d}-06-01",
                "exists(tag)",
                "tag in (a, b)",
                "tag = 'ä_%'",
                "tag ~ '*_%'",
                "is_new = true",
                "title = t",
                "path != 'nothing'",
            ]
        )
    if kind == "not":
        return f"not ({_draw_filter(rng, depth + 1)})"
    return f"({_draw_filter(rng, depth + 1)}) {kind} ({_draw_filter(rng, depth + 1)})"


def _check_filters(trial: _StoreTrial, rng: random.Random, filters: int) -> None:
    """A filter leaves the same passages as in a folder, and changes no score."""
    reference = trial.folder.parent / "reference"
    _build(STORES.build("folder"), reference, "open", trial.model)
    with trial.open() as index, Index.open(reference, embedder=WordEmbedder()) as only:
        for number in range(filters):
            text = "path = 'a/d1.txt'" if number == 0 else _draw_filter(rng)
            shown, expected = index.restrict(text), only.restrict(text)
            texts = [
                [view.passage_at(row).id for row in range(len(view))] for view in (shown, expected)
            ]
            _require(texts[0] == texts[1], f"{text} leaves other passages")
            _require(_search(shown) == _search(expected), f"{text} gives other scores")
        rows = rng.sample(range(len(index)), min(len(index), 20))
        for name in sorted({"year", "is_new", "tag", "day"} & index.fields.keys()):
            held = [sorted(map(str, values)) for values in index.values_of(rows, name)]
            fields = [trial.model[index.passage_at(row).location.path][1].fields for row in rows]
            _require(held == [_texts(row.get(name)) for row in fields], f"{name} has other values")


def _texts(value: Any) -> list[str]:
    """Return the values of a field as texts in order, as a store returns them."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return sorted(str(float(row) if isinstance(row, bool | int) else row) for row in values)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


_WIDTH = 16


class WordEmbedder:
    """Hashed words in a few dimensions."""

    fingerprint = "test"
    dimensions = _WIDTH
    max_tokens = 1000
    truncated = 0

    def count_tokens(self, text: str) -> int:
        """Return the number of words."""
        return len(text.split())

    def embed(self, texts: Sequence[str], *, kind: TextKind) -> Vectors:
        """Embed texts, (N, D) float32."""
        return np.array([embed_words(text) for text in texts])


@lru_cache(maxsize=4096)
def _word(word: str) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).normal(size=_WIDTH)


def embed_words(text: str) -> NDArray[np.float32]:
    """Return the normalized sum of a text's words' vectors, (D,)."""
    total = np.zeros(_WIDTH)
    for word in text.split():
        total += _word(word)
    return np.asarray(total / np.linalg.norm(total), dtype=np.float32)


@dataclass
class WordDocument:
    """A document whose lines are its passages; a ``Part`` of an index."""

    path: str
    text: str
    front: Mapping[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> Document:
        """The document as from a parser."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        text = {"front_matter": dict(self.front)} if self.front else {}
        return Document(self.path, digest, "text/plain", self.text, title="t", metadata=text)

    @property
    def entry(self) -> DocumentEntry:
        """The index entry of the document."""
        return DocumentEntry(self.path, self.document.digest, len(self.text.split("\n")), 0)

    def passages(self) -> Iterator[Passage]:
        """Yield the lines with their positions."""
        document, start = self.document, 0
        for line in self.text.split("\n"):
            place = Location(self.path, document.digest, start, start + len(line))
            yield Passage(document.id, start, start + len(line), line, place, title="t")
            start += len(line) + 1

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return encode_json_line(self.document.to_json())

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        return [encode_json_line(passage.to_json()) for passage in self.passages()]

    def marks(self) -> list[EmbeddingDigest]:
        """Return the embedding digest of each passage."""
        lines = self.text.split("\n")
        return [EmbeddingDigest(hashlib.sha256(line.encode()).digest(), False) for line in lines]

    def vectors(self) -> NDArray[np.float32]:
        """Return the passages' vectors, (N, D)."""
        return np.array([embed_words(line) for line in self.text.split("\n")])

    def extras(self) -> AuxiliaryVectors:
        """Return no auxiliary vectors."""
        return AuxiliaryVectors()


def describe_word_index(access: str = "open", **settings: Any) -> dict[str, Any]:
    """Return the description of an index of such documents.

    Args:
        access: ``open`` or ``tenants``.
        settings: Additional settings of the index.
    """
    return {
        "preparation": "test",
        "settings": {
            "vectors": "float32",
            "access": access,
            "keyword": {"k1": 1.2, "b": 0.75, "heading_weight": 1.0, "stemming": "none"},
            **settings,
        },
        "embedder": {"reference": "test", "fingerprint": "test", "dimensions": _WIDTH},
        "analyzer": {
            "version": ANALYZER_VERSION,
            "stemming": "none",
            "fingerprint": Analyzer("none").fingerprint,
        },
    }
