"""A whole index of about 50,000 passages: opening, hybrid questions, building again, deleting.

The passages of corpus.py as 2,500 text files, cut and indexed as `stillroom rag index` does, with
hashed words of 384 dimensions for vectors: what is measured is everything but a neural embedder.

Opening is of a folder whose pages are in memory, without recomputing digests (and with, beside
it). A hybrid question is `Index.retrieve` of 10 hits with their texts, its vector known already.
Building again is `stillroom rag update` over a folder that did not change, or where a hundredth of
the files were written anew. A delete is visible once another process, which has the index open and
looks every millisecond for a newer snapshot, searches and does not find it any more: from the call
on. All structures change at the same commit; the call returns later, once artifact.json is renewed.
STILLROOM_BENCH_FILES makes fewer files; ``bench_index.py deletes INDEX`` measures deleting from an
index that is there, and takes documents out of it.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import print_figure
from corpus import passages, queries

from stillroom.jobs import Job
from stillroom.models.embedders.static import Static
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import make_query
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.rag.maintenance import update
from stillroom.rag.maintenance.update import delete_documents, update_index
from stillroom.rag.retrieval.pipeline import retrieve

REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "7"))
FILES = int(os.environ.get("STILLROOM_BENCH_FILES", "2500"))
EACH = 20


def main() -> None:
    """Print one line a figure."""
    texts = passages()[: FILES * EACH]
    place = Path(tempfile.mkdtemp())
    try:
        folder = place / "documents"
        folder.mkdir()
        for at in range(FILES):
            block = "\n\n".join(texts[at * EACH : (at + 1) * EACH])
            (folder / f"{at:05d}.txt").write_text(block, encoding="utf-8")
        building = build(place)
        out = place / "index"
        more = {"files": FILES, "passages": building[2], "build_cpu_s": round(building[1], 1)}
        measure_updates(out, folder, more)
        measure_opening(out, more)
        with Index.open(out, embedder=make_embedder(), verify=False) as index:
            measure_questions(index, [query for _, query in queries(texts)], more)
            measure_deletes(out, index, more)
    finally:
        shutil.rmtree(place)


def make_embedder() -> object:
    """Return hashed words of as many dimensions as MiniLM's vectors have."""
    return Static(dimensions=384).open("static")


def build(place: Path) -> tuple[float, float, int, int]:
    """Build the index; return wall and CPU seconds, passages, embedded."""
    told = {"documents": str(place / "documents"), "embedder": "static"}
    told["chunker"] = {"name": "recursive", "size": 90}
    text = json.dumps({"version": 1, "kind": "rag.index", **told})
    start, spent = time.perf_counter(), time.process_time()
    job = Job.start(place / "index", text)
    recipe = IndexRecipe(**told)
    try:
        artifact = run(recipe, job, embedder=make_embedder())
    finally:
        job.close()
    details = artifact.details
    return (
        time.perf_counter() - start,
        time.process_time() - spent,
        details["passages"],
        details["embedded"],
    )


def measure_updates(out: Path, folder: Path, more: dict[str, object]) -> None:
    """Print how long updates take: nothing changed, a hundredth of the files changed."""
    times: list[tuple[float, float]] = []
    for _ in range(3):
        start, spent = time.perf_counter(), time.process_time()
        done = update_index(out, embedder=make_embedder())
        times.append((time.perf_counter() - start, time.process_time() - spent))
        assert done.embedded == 0, "unchanged texts were embedded again"
    print_figure(
        "rag/reingest_unchanged_s",
        "wall s",
        [wall for wall, _ in times],
        None,
        None,
        cpu_s=round(statistics.median(cpu for _, cpu in times), 3),
        embedded=0,
        **more,
    )
    files = sorted(folder.iterdir())[::100]
    for path in files:
        path.write_text(path.read_text(encoding="utf-8").replace("the ", "that "), "utf-8")
    start, spent = time.perf_counter(), time.process_time()
    done = update_index(out, embedder=make_embedder())
    print_figure(
        "rag/reingest_1pct_changed/embedded",
        "share of all passages",
        [done.embedded / int(str(more["passages"]))],
        None,
        None,
        wall_s=round(time.perf_counter() - start, 3),
        cpu_s=round(time.process_time() - spent, 3),
        changed=len(files),
        **more,
    )


def measure_opening(out: Path, more: dict[str, object]) -> None:
    """Print how long opening and a first search take, and opening alone with digests."""
    times: dict[bool, list[float]] = {False: [], True: []}
    first = []
    for _ in range(REPEATS):
        for verify, kept in times.items():
            start = time.perf_counter()
            with Index.open(out, embedder=make_embedder(), verify=verify) as index:
                kept.append((time.perf_counter() - start) * 1000)
                retrieve(index, "memory of a process")
                first.append((time.perf_counter() - start) * 1000)
    verified = round(statistics.median(times[True]), 1)
    print_figure(
        "rag/open_ms",
        "wall ms",
        times[False],
        None,
        None,
        verified=verified,
        with_first_question=round(statistics.median(first[::2]), 1),
        **more,
    )


def measure_questions(index: Index, asked: list[str], more: dict[str, object]) -> None:
    """Print the 95th percentile of a hybrid question's CPU time, and the median."""
    for query in asked:
        index.embed_query(make_query(query))
    rounds: list[float] = []
    middles: list[float] = []
    for _ in range(3):
        each = []
        for query in asked:
            start = time.process_time()
            retrieve(index, query, 10, retriever="hybrid")
            each.append((time.process_time() - start) * 1000)
        rounds.append(statistics.quantiles(each, n=20)[-1])
        middles.append(statistics.median(each))
    print_figure(
        "rag/hybrid/p95_ms",
        "CPU ms",
        rounds,
        None,
        None,
        median=round(statistics.median(middles), 3),
        first_round=round(rounds[0], 3),
        queries=len(asked),
        **more,
    )


def measure_deletes(out: Path, index: Index, more: dict[str, object]) -> None:
    """Print how long it takes until another process does not find a deleted document any more."""
    seen, returned, spent, before_commit = [], [], [], []
    committed: list[float] = []
    renew = update.update_manifest

    def note(writer: object) -> None:
        committed.append(time.process_time())
        renew(writer)

    command = [sys.executable, __file__, "watch", str(out)]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert watcher.stdin
    assert watcher.stdout
    update.update_manifest = note
    for at in range(REPEATS):
        index.refresh()
        passage = index.passage_at(at * 50)
        gone = passage.document_id
        watcher.stdin.write(json.dumps({"text": passage.text, "gone": gone}) + "\n")
        watcher.stdin.flush()
        assert watcher.stdout.readline() == "found\n", "what is to be deleted was not found"
        start, cpu = time.monotonic(), time.process_time()
        delete_documents(out, [index.document(gone).path])
        returned.append((time.monotonic() - start) * 1000)
        spent.append((time.process_time() - cpu) * 1000)
        before_commit.append((committed[-1] - cpu) * 1000)
        seen.append((float(watcher.stdout.readline()) - start) * 1000)
    update.update_manifest = renew
    watcher.communicate()
    print_figure(
        "rag/delete_visible_ms",
        "wall ms",
        seen,
        None,
        None,
        cpu_ms_to_commit=round(statistics.median(before_commit), 3),
        returned_ms=round(statistics.median(returned), 3),
        cpu_ms=round(statistics.median(spent), 3),
        **more,
    )


def watch(out: Path) -> None:
    """Say for each line when a search does not find a document any more, by the shared clock."""
    with Index.open(out, verify=False) as index:
        for line in sys.stdin:
            told = json.loads(line)
            index.refresh()
            while True:
                found = retrieve(index, told["text"], 10, retriever="keyword")
                if all(hit.passage.document_id != told["gone"] for hit in found):
                    break
                print("found", flush=True)
                while not index.refresh():
                    time.sleep(0.001)
            print(time.monotonic(), flush=True)


def measure_there(out: Path) -> None:
    """Print how long a delete takes in an index that is there."""
    with Index.open(out, verify=False) as index:
        measure_deletes(out, index, {"passages": len(index)})


if __name__ == "__main__":
    if sys.argv[1:2] == ["watch"]:
        watch(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["deletes"]:
        measure_there(Path(sys.argv[2]))
    else:
        main()
