"""Two readers go on while writers are killed: never half a change, never a text that is gone.

A writer replaces every document by one of the next turn, in one commit, and is killed in the midst
again and again. What a reader sees is always of one turn, whichever way it looks.
"""

import random
import signal
import subprocess
import sys
import time

import pytest
from tests.processes import Process
from tests.property.rag_words import build

from stillroom.rag.maintenance.update import check_index
from stillroom.rag.storage.folder.writer import FolderIndexWriter

DOCUMENTS = 12

WRITE = """
import sys
from pathlib import Path
from stillroom.rag.types import DocumentMetadata
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.folder.writer import FolderIndexWriter
from tests.property.rag_words import Words

folder, turn, log = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
while True:
    turn += 1
    with FolderIndexWriter.open(folder) as writer:
        puts = [
            (
                Words(f"d{n}.txt", f"turn{turn} word{n}\\nsecond turn{turn} word{n + 1}"),
                DocumentMetadata(),
            )
            for n in range(12)
        ]
        writer.commit(IndexUpdate(puts=puts), reason=f"turn {turn}", keep=2)
        if turn % 7 == 0:
            writer.compact()
    with log.open("a") as file:
        file.write(f"{turn}\\n")
"""

READ = """
import sys
from pathlib import Path
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import Query
from tests.property.rag_words import Embedder

folder, stop = Path(sys.argv[1]), Path(sys.argv[2])
looked, moved, last = 0, 0, 0
with Index.open(folder, embedder=Embedder(), verify=False) as index:
    while not stop.exists():
        moved += index.refresh()
        texts = [index.passage_at(row).text for row in range(len(index))]
        turns = {word for text in texts for word in text.split() if word.startswith("turn")}
        assert len(texts) == 24 and len(turns) == 1, (len(texts), turns)
        turn = int(turns.pop()[4:])
        assert turn >= last, (turn, last)
        found = index.search_keyword(Query(f"turn{turn} turn{turn - 1} turn{turn + 1}"), 50)
        assert sorted(row for row, _ in found) == list(range(24)), len(found)
        assert index.lexicon.document_frequency(f"turn{turn - 1}") == 0
        dense = index.search_dense(Query(f"turn{turn}"), 50)
        assert all(f"turn{turn}" in texts[row] for row, _ in dense)
        last, looked = turn, looked + 1
print(looked, moved)
"""


def start(program, *arguments):
    return Process([sys.executable, "-c", program, *map(str, arguments)])


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_readers_see_whole_turns_while_writers_are_killed(tmp_path, kills):
    folder, stop = tmp_path / "index", tmp_path / "stop"
    build(
        folder, {f"d{n}.txt": f"turn0 word{n}\nsecond turn0 word{n + 1}" for n in range(DOCUMENTS)}
    )
    readers = [start(READ, folder, stop) for _ in range(2)]
    rng, turn = random.Random(4), 0
    for number in range(kills):
        log = tmp_path / f"turns{number}"
        writer = start(WRITE, folder, turn, log)
        while not log.exists() and writer.poll() is None:
            time.sleep(0.01)
        try:
            writer.wait(timeout=rng.random() * 0.4)
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        _, complaint = writer.communicate()
        assert writer.returncode == -9, complaint
        turn = int(log.read_text().split()[-1])
    stop.touch()
    for reader in readers:
        told, complaint = reader.communicate(timeout=120)
        assert reader.returncode == 0, complaint
        looked, moved = map(int, told.split())
        assert looked >= kills
        assert moved >= 2
    with FolderIndexWriter.open(folder) as writer:
        assert writer.catalog.find_snapshot().documents == DOCUMENTS
    left = [one for one in check_index(folder) if one.path != "index.json"]
    assert left == []
