"""A verbatim trace of 200-word answers in ten million words: build, disk, memory, time of a trace.

The words are Python files of the installed packages, in an index and its folder of documents. An
answer is stretches of 12 to 60 words of them between words drawn at random. The peer is a plain
scan: the first five words of each start are searched in all words by bytes.find, in memory, and
extended; its spans of five words and more must be the same. Whole traces open the suffix array,
the catalog and the documents that they name, and compare their digests, each time anew.

Usage: bench_verbatim.py [WORDS] [FOLDER OF .py FILES]
"""

import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import sys
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from stillroom.jobs import Job
from stillroom.provenance import Parent
from stillroom.rag.storage.folder.catalog import create_catalog
from stillroom.records import Anchor, Document
from stillroom.text.unicode import locate_words
from stillroom.text.verbatim.suffix_index import SuffixIndex
from stillroom.text.verbatim.trace import MIN_WORDS, find_texts, open_texts, trace_text

WORK = Path(__file__).resolve().parents[2] / "build" / "bench" / "text" / "verbatim"
ANSWERS, ANSWER_WORDS, SCANNED = 200, 200, 20


def read_documents(root: Path, words: int) -> Iterator[Document]:
    """Yield files until they have so many words."""
    left = words
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        left -= len(locate_words(text))
        anchors = (Anchor(0, len(text), 0, len(content), is_exact=True),)
        digest = hashlib.sha256(content).hexdigest()
        yield Document(str(path.relative_to(root)), digest, "text/x-python", text, anchors)
        if left <= 0:
            return
    raise SystemExit(f"{root} has {words - left} words; name a larger folder")


def write_index(folder: Path, root: Path, words: int) -> None:
    """Leave an index artifact with a catalog of documents and nothing to search by."""
    job = Job.start(folder, "version: 1\nkind: rag.index\n")
    catalog = create_catalog(job.output / "ledger.sqlite")
    catalog.execute("BEGIN")
    catalog.execute("INSERT INTO settings VALUES ('description', '{\"settings\": {}}')")
    catalog.execute("INSERT INTO snapshots VALUES (1, '', 0, '', 0, 0, 0, '')")
    for key, document in enumerate(read_documents(root, words)):
        body = zlib.compress(json.dumps(document.to_json()).encode())
        catalog.execute(
            "INSERT INTO contents VALUES (?, ?, ?, ?, '', 0, 0, '{}', ?)",
            (key, document.id, document.path, document.digest, body),
        )
        catalog.execute(
            "INSERT INTO documents VALUES (?, ?, ?, 0, 0, 0, '', '', '[]', '{}', 1, ?)",
            (key, key, document.path, 2**62),
        )
    catalog.execute("COMMIT")
    catalog.close()
    job.finish("index", parents=[Parent("documents", str(root), "", "")])


def write_answers(index: SuffixIndex, words: list[str]) -> list[str]:
    """Return answers of quoted stretches between words drawn at random."""
    rng = random.Random(0)
    answers = []
    for _ in range(ANSWERS):
        said: list[str] = []
        while len(said) < ANSWER_WORDS:
            start = rng.randrange(len(words) - 60)
            said += words[start : start + rng.randint(12, 60)]
            said += [words[rng.randrange(len(words))] for _ in range(rng.randint(4, 20))]
        answers.append(" ".join(said[:ANSWER_WORDS]))
    return answers


def scan(tokens: bytes, query: list[int]) -> list[tuple[int, int]]:
    """Return the maximal spans of five words and more by plain search."""
    spans, reached = [], 0
    for start in range(len(query) - MIN_WORDS + 1):
        longest = 0
        wanted = np.array(query[start:], ">u4").tobytes()
        place = tokens.find(wanted[: MIN_WORDS * 4])
        while place >= 0:
            if place % 4 == 0:
                shared = MIN_WORDS
                while (
                    start + shared < len(query)
                    and tokens[place + shared * 4 : place + shared * 4 + 4]
                    == wanted[shared * 4 : shared * 4 + 4]
                ):
                    shared += 1
                longest = max(longest, shared)
            place = tokens.find(wanted[: max(MIN_WORDS, longest + 1) * 4], place + 1)
            if longest + start == len(query):
                break
        if longest and start + longest > reached:
            reached = start + longest
            spans.append((start, reached))
    return spans


def clock(work: Callable[[str], object], items: list[str]) -> list[float]:
    """Return the processor milliseconds of each call, all threads together."""
    times = []
    for item in items:
        start = time.process_time()
        work(item)
        times.append((time.process_time() - start) * 1000)
    return times


def say(what: str, value: float, unit: str, **more: object) -> None:
    print(json.dumps({"what": what, "value": round(value, 3), "unit": unit, **more}), flush=True)


def say_times(what: str, times: list[float], **more: object) -> None:
    p95 = statistics.quantiles(times, n=20)[18]
    say(what, statistics.median(times), "CPU ms", p95=round(p95, 3), max=round(max(times), 3),
        n=len(times), **more)  # fmt: skip


def main() -> None:
    """Print one JSON line a figure."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    root = Path(sys.argv[2] if len(sys.argv) > 2 else sysconfig.get_path("purelib")).resolve()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    os.environ["STILLROOM_CACHE"] = str(WORK / "cache")
    write_index(WORK / "index", root, wanted)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter(), time.process_time()
    texts = find_texts(WORK / "index")
    index = open_texts(texts)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = WORK / "cache" / "verbatim"
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    facts = {"words": index.words, "documents": index.texts}
    say("verbatim/build", cpu, "CPU s", wall_s=round(wall, 2), **facts)
    say("verbatim/build/memory", peak / 1000, "MB peak", before_mb=round(before / 1000, 1))
    say("verbatim/disk", disk / index.words, "bytes a word", mb=round(disk / 1e6, 1))
    tokens = bytes(index._tokens)
    vocabulary = [
        index._words[a:b].tobytes().decode()
        for a, b in zip(index._word_ends, index._word_ends[1:], strict=False)
    ]
    numbers = np.frombuffer(tokens, ">u4")
    sample = numbers[len(numbers) // 3 :][:2_000_000]
    words = [vocabulary[number - 1] for number in sample if number]
    answers = write_answers(index, words)
    nothing = np.zeros(0, np.int64)
    spans = clock(lambda text: index.find_spans(text.split(), without=nothing), answers)
    whole = clock(lambda text: trace_text(text, WORK / "index"), answers)
    scans = []
    for text in answers[:SCANNED]:
        query = [index._number(word) for word in text.split()]
        begun = time.process_time()
        expected = scan(tokens, query)
        scans.append((time.process_time() - begun) * 1000)
        found = index.find_spans(text.split(), without=nothing)
        found = [(span.start, span.end) for span in found if span.end - span.start >= MIN_WORDS]
        assert found == expected, (found, expected)
    say_times("verbatim/spans", spans, answer_words=ANSWER_WORDS)
    say_times("verbatim/trace", whole, answer_words=ANSWER_WORDS)
    say_times("verbatim/scan", scans, answer_words=ANSWER_WORDS,
              times_spans=round(statistics.median(scans) / statistics.median(spans)),
              times_trace=round(statistics.median(scans) / statistics.median(whole)))  # fmt: skip


if __name__ == "__main__":
    main()
