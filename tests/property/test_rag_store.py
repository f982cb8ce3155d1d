"""Random changes of an index against a dict, and against an index built at once.

Documents are a few words each; vectors follow from the words, so that nothing is embedded. After
any sequence of changes an index holds what the dict holds, has the digest and gives the rows and
scores of one that was built from the dict at once, and no search finds a text that is gone.
"""

import random

import pytest
from tests.property.rag_words import WORDS, Words, build, open_index

from stillroom.rag.interfaces import Query
from stillroom.rag.storage.folder.writer import FolderIndexWriter
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import FOREVER
from stillroom.rag.types import DocumentMetadata


def keys_of(writer):
    rows = writer.catalog.query("SELECT path, key FROM documents WHERE died = ?", (FOREVER,))
    return {path: int(key) for path, key in rows}


def make_text(rng):
    count = rng.randint(1, 4)
    return "\n".join(" ".join(rng.choices(WORDS, k=rng.randint(2, 8))) for _ in range(count))


def change_once(rng, writer, model, marker):
    """Do one random change to the index and to the dict."""
    kind = rng.choice(["add", "add", "change", "delete", "rename", "many", "compact"])
    keys = keys_of(writer)
    names = sorted(model)
    if kind == "compact" and rng.random() < 0.2:
        writer.compact()
        return
    if kind in {"change", "delete", "rename"} and names:
        name = rng.choice(names)
        if kind == "delete":
            del model[name]
            change = IndexUpdate(removes=[keys[name]])
        elif kind == "rename":
            new = f"r/{marker}.txt"
            model[new] = model.pop(name)
            change = IndexUpdate(moves=[(Words(new, model[new]), DocumentMetadata(), keys[name])])
        else:
            model[name] = make_text(rng)
            change = IndexUpdate(puts=[(Words(name, model[name]), DocumentMetadata())])
    else:
        fresh = {f"{rng.choice('abc')}/{marker}-{n}.txt": make_text(rng) for n in range(3)}
        fresh = fresh if kind == "many" else dict(list(fresh.items())[:1])
        model.update(fresh)
        gone = [keys[name] for name in rng.sample(names, min(len(names), 1))]
        gone = gone if kind == "many" else []
        for name, key in keys.items():
            if key in gone:
                del model[name]
        change = IndexUpdate(
            puts=[(Words(*one), DocumentMetadata()) for one in fresh.items()], removes=gone
        )
    writer.commit(change, reason="random", keep=3)


def check_against(index, model, rng):
    """Hold what a reader sees against the dict."""
    seen = [index.passage_at(row) for row in range(len(index))]
    expected = [(path, line) for path in sorted(model) for line in model[path].split("\n")]
    assert [(passage.location.path, passage.text) for passage in seen] == expected
    word = rng.choice(WORDS)
    holding = {row for row, (_, line) in enumerate(expected) if word in line.split()}
    found = index.search_keyword(Query(word), 10_000)
    assert {row for row, _ in found} == holding
    assert index.lexicon.document_frequency(word) == len(holding)


def search_all(index):
    queries = [*WORDS[::7], "word1 word2 word3", "word5 word5 word9"]
    return [
        (index.search_keyword(Query(text), 7), index.search_dense(Query(text), 7))
        for text in queries
    ]


def walk(folder, seed, steps, every):
    rng, model = random.Random(seed), {}
    build(folder / "live", model)
    with open_index(folder / "live") as reader:
        for step in range(steps):
            with FolderIndexWriter.open(folder / "live") as writer:
                change_once(rng, writer, model, step)
            reader.refresh()
            if step % 10 == 0 or steps < 300:
                check_against(reader, model, rng)
            if step % every == every - 1:
                with open_index(build(folder / f"fresh{step}", model)) as fresh:
                    assert reader.digest == fresh.digest
                    assert search_all(reader) == search_all(fresh)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_changes_leave_what_a_dict_has_and_a_fresh_build_gives(tmp_path, seed):
    walk(tmp_path, seed, steps=75, every=25)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_ten_thousand_random_changes(tmp_path):
    walk(tmp_path, 7, steps=10_000, every=1_000)
