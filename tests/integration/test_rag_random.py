"""Random changes and queries against a model, with writers killed in the midst and two readers.

A writer says what the index will hold before each commit, in a file by the snapshot's number; a
reader holds what it sees of a snapshot against that file, as one of its tenants and by a random
filter. An operation is a change or a reader's question.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.postgres import serve

from stillroom.rag.interfaces import STORES
from stillroom.rag.maintenance.update import check_index
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import open_store, update_manifest
from stillroom.rag.types import DocumentMetadata
from stillroom.testing.store import WordDocument, describe_word_index

ROOT = Path(__file__).resolve().parents[2]

BOTH = """
import json, os, random, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from stillroom.rag.index.view import AccessContext
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import Query
from stillroom.rag.types import DocumentMetadata
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import open_store
from stillroom.testing.store import WordDocument, WordEmbedder

folder, models, stop, seed = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
rng = random.Random(seed)
WORDS = [f"word{number}" for number in range(30)]
TENANTS, LABELS = ["acme", "zeta", ""], ["public", "staff", "user:x"]

def read(number):
    return json.loads((models / f"{number}.json").read_text())

def draw():
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(2, 6))) for _ in range(rng.randint(1, 3))]
    labels = rng.sample(LABELS, rng.randint(0, 2))
    return ["\\n".join(lines), rng.randint(2000, 2009), rng.choice(TENANTS), labels]

def facts_of(one):
    return DocumentMetadata({"year": one[1]}, one[2], tuple(sorted(one[3])))
"""

WRITE = (
    BOTH
    + """
while not stop.exists():
    with open_store(folder).write() as writer:
        latest = writer.find_snapshot().number
        model, keys = read(latest), writer.list_keys()
        assert list(keys) == sorted(model), "the writer sees another index than its last commit"
        kind = rng.choice(["add", "add", "change", "delete", "rename", "tell", "compact"])
        name, change = rng.choice(sorted(model)), IndexUpdate()
        if kind == "delete" and len(model) > 30:
            del model[name]
            change = IndexUpdate(removes=[keys[name]])
        elif kind == "rename":
            new = f"r/{latest}.txt"
            model[new] = model.pop(name)
            moved = WordDocument(new, model[new][0]), facts_of(model[new]), keys[name]
            change = IndexUpdate(moves=[moved])
        elif kind == "tell":
            model[name] = [model[name][0], *draw()[1:]]
            change = IndexUpdate(facts={keys[name]: facts_of(model[name])})
        elif kind in {"add", "change"}:
            name = f"n/{latest}.txt" if kind == "add" and len(model) < 60 else name
            model[name] = draw()
            change = IndexUpdate(puts=[(WordDocument(name, model[name][0]), facts_of(model[name]))])
        draft = models / f".{os.getpid()}"
        draft.write_text(json.dumps(model))
        draft.replace(models / f"{latest + 1}.json")
        if kind == "compact" and rng.random() < 0.1:
            writer.compact()
        else:
            writer.commit(change, reason=kind, keep=3)
    print(kind, flush=True)
"""
)

READ = (
    BOTH
    + """
asked = 0
while not stop.exists():
    access = AccessContext(rng.choice(TENANTS[:2]), rng.sample(LABELS, rng.randint(0, 2)))
    with Index.open(
        folder, embedder=WordEmbedder(), access=access, verify=False, audit=False
    ) as index:
        for _ in range(25):
            index.refresh()
            model, names = read(index.snapshot), {*access.principals, "public"}
            year = rng.randint(1999, 2010)
            operator = rng.choice(["<", ">=", "=", "!="])
            own = {
                path: one
                for path, one in model.items()
                if one[2] == access.tenant and names & set(one[3])
            }
            told = {"<": int.__lt__, ">=": int.__ge__, "=": int.__eq__, "!=": int.__ne__}
            left = {path: one for path, one in own.items() if told[operator](one[1], year)}
            if not own:
                assert not len(index)
                asked += 1
                continue
            shown = index.restrict(f"year {operator} {year}")
            lines = [(p, line) for p in sorted(left) for line in left[p][0].split("\\n")]
            seen = [shown.passage_at(row) for row in range(len(shown))]
            assert [(one.location.path, one.text) for one in seen] == lines, "other passages"
            word = rng.choice(WORDS)
            found = sorted(row for row, _ in shown.search_keyword(Query(word), 999))
            wanted = [row for row, (_, line) in enumerate(lines) if word in line.split()]
            assert found == wanted, (word, found, wanted)
            every = [line for one in own.values() for line in one[0].split("\\n")]
            count = sum(word in line.split() for line in every)
            assert shown.lexicon.document_frequency(word) == count, "a foreign word is counted"
            for row, _ in shown.search_dense(Query(word), 3):
                assert 0 <= row < len(lines)
            asked += 1
print(asked)
"""
)


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


def draw_model(rng):
    words = [f"word{number}" for number in range(30)]
    return {
        f"d{number}.txt": [
            " ".join(rng.choices(words, k=5)),
            2000 + number % 10,
            rng.choice(["acme", "zeta"]),
            ["public"],
        ]
        for number in range(40)
    }


def walk(store, place, *, seconds, seed):
    """Let one writer after another and two readers work; return changes, questions and kills."""
    folder, models, stop = place / "output", place / "models", place / "stop"
    models.mkdir()
    rng = random.Random(seed)
    model = draw_model(rng)
    with STORES.build(store).create(folder, describe_word_index("tenants")) as writer:
        puts = [
            (WordDocument(path, one[0]), DocumentMetadata({"year": one[1]}, one[2], tuple(one[3])))
            for path, one in sorted(model.items())
        ]
        writer.commit(IndexUpdate(puts=puts), reason="built", keep=3)
        update_manifest(writer)
    (models / "1.json").write_text(json.dumps(model))
    readers = [start(READ, folder, models, stop, seed + at) for at in (1, 2)]
    until, changes, kills = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        writer = start(WRITE, folder, models, stop, seed + 100 + kills)
        line = writer.stdout.readline()
        if line:
            try:
                writer.wait(timeout=min(rng.random() * seconds / 4, until - time.monotonic()))
            except (subprocess.TimeoutExpired, ValueError):
                writer.kill()
                kills += 1
        rest, complaint = writer.communicate()
        is_busy = "rag.busy" in complaint  # a server notices the end of a session in a moment
        assert writer.returncode == -9 or is_busy, complaint
        changes += len([*rest.splitlines(), line]) if line else 0
    stop.touch()
    asked = []
    for reader in readers:
        told, complaint = reader.communicate(timeout=300)
        assert reader.returncode == 0, complaint
        asked.append(int(told))
    with open_store(folder).write() as writer:
        update_manifest(writer)
    assert check_index(folder) == []
    open_store(folder).discard()
    print(f"{store}: {changes} changes, {sum(asked)} questions, {kills} kills")
    return changes, asked, kills


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("store", ["folder", "postgres"])
def test_ten_thousand_operations(tmp_path, monkeypatch, store):
    with serve() as address:
        monkeypatch.setenv("STILLROOM_POSTGRES", address)
        changes, asked, _ = walk(
            store, tmp_path, seconds=float(os.environ.get("STILLROOM_WALK_S", "900")), seed=3
        )
    assert changes + sum(asked) >= 10_000
