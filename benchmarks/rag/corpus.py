"""50,000 passages of technical documentation, the queries put to them, and their LSA vectors.

The documents of Debian packages (Python, SQLite, PostgreSQL, the Linux kernel, manual pages),
fetched with ``apt-get download`` and unpacked without being installed. Everything is kept under
``build/bench/rag-corpus``; STILLROOM_BENCH_PACKAGES names a folder of .deb files to use instead.
"""

import gzip
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peers import peer_python

from stillroom.rag.analysis.analyzer import Analyzer

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("STILLROOM_BENCH_CORPUS", ROOT / "build" / "bench" / "rag-corpus"))
PACKAGES = (
    "python3.13-doc",
    "sqlite3-doc",
    "postgresql-doc-17",
    "manpages",
    "manpages-dev",
    "debian-reference-en",
    "linux-doc-6.12",
)
COUNT = 50_000
WORDS = 88
QUERIES = 400
_SKIPPED = {"script", "style", "nav", "head", "title"}
_BLOCKS = {"p", "li", "dd", "dt", "pre", "td", "th", "tr", "h1", "h2", "h3", "h4", "div", "section"}


class _Blocks(HTMLParser):
    """Collects the text of blocks, one string each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[str] = [""]
        self._deep = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._deep += tag in _SKIPPED
        if tag in _BLOCKS:
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        self._deep = max(0, self._deep - (tag in _SKIPPED))
        if tag in _BLOCKS:
            self.blocks.append("")

    def handle_data(self, data: str) -> None:
        if not self._deep:
            self.blocks[-1] += data


def passages() -> list[str]:
    """Return the passages, made on first use: whole blocks packed to about WORDS words."""
    path = FOLDER / f"passages-{COUNT}.json"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        found = list(_all_passages(_unpack()))
        random.Random(0).shuffle(found)
        if len(found) < COUNT:
            raise SystemExit(f"only {len(found)} passages of {COUNT}: more packages are needed")
        path.write_text(json.dumps(found[:COUNT]), encoding="utf-8")
    loaded: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def queries(texts: list[str]) -> list[tuple[int, str]]:
    """Return excerpts of 4 to 8 words and the passage that each was taken from."""
    rng = random.Random(1)
    drawn = []
    while len(drawn) < QUERIES:
        row = rng.randrange(len(texts))
        words = texts[row].split()
        size = rng.randint(4, 8)
        if len(words) > size:
            start = rng.randrange(len(words) - size)
            drawn.append((row, " ".join(words[start : start + size])))
    return drawn


def prepare() -> Path:
    """Return the folder with all that engines and peers are measured over, made on first use.

    ``passages-50000.json`` and ``queries.json`` are texts, ``words.txt`` and ``query-words.txt``
    their stemmed words without stop words, one a line; ``vectors.npy`` and ``query-vectors.npy``
    their LSA vectors, (N, 384) float32, normalized.
    """
    texts = passages()
    asked = [query for _, query in queries(texts)]
    if not (FOLDER / "queries.json").exists():
        (FOLDER / "queries.json").write_text(json.dumps(asked), encoding="utf-8")
    if not (FOLDER / "query-words.txt").exists():
        analyzer = Analyzer("english")
        for name, several in (("words.txt", texts), ("query-words.txt", asked)):
            lines = (" ".join(content_words(analyzer, text)) for text in several)
            (FOLDER / name).write_text("\n".join(lines), "utf-8", "surrogatepass")
    if not (FOLDER / "query-vectors.npy").exists():
        worker = Path(__file__).with_name("lsa_worker.py")
        python = peer_python("scikit-learn", "1.9.1")
        run_clean([str(python), str(worker), str(FOLDER)])
    return FOLDER


def content_words(analyzer: Analyzer, text: str) -> list[str]:
    """Return the words that count: all but stop words, even where there are no others."""
    return [term for term in analyzer.terms(text) if term not in analyzer.stop_words]


def clean_environment() -> dict[str, str]:
    """Return the environment without this project's own Python path, on one thread."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def run_clean(command: list[str]) -> None:
    """Run a peer's command in its own environment."""
    subprocess.run(command, check=True, env=clean_environment(), stdout=sys.stderr)


def _unpack() -> list[Path]:
    debs = Path(os.environ.get("STILLROOM_BENCH_PACKAGES", FOLDER / "debs"))
    tree = FOLDER / "tree"
    if not debs.exists():
        debs.mkdir(parents=True)
        print(f"fetching {', '.join(PACKAGES)} into {debs}", file=sys.stderr)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=debs, check=True, stdout=sys.stderr)
    if not tree.exists():
        for deb in sorted(debs.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(deb), str(tree)], check=True)
    found = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(path for path in found if "changelog" not in path.name)


def _all_passages(paths: list[Path]) -> Iterator[str]:
    seen: set[str] = set()
    for path in paths:
        for text in _pack(_blocks(path)):
            if text not in seen:
                seen.add(text)
                yield text


def _pack(blocks: list[str]) -> Iterator[str]:
    """Join blocks to passages of about WORDS words; a longer block is cut."""
    held: list[str] = []
    for block in blocks:
        held.extend(block.split())
        while len(held) >= WORDS * 3 // 2:
            yield " ".join(held[:WORDS])
            held = held[WORDS:]
        if len(held) >= WORDS * 2 // 3:
            yield " ".join(held)
            held = []
    if len(held) >= 12:
        yield " ".join(held)


def _blocks(path: Path) -> list[str]:
    name = path.name.removesuffix(".gz")
    is_manual = re.search(r"/man\d/", str(path)) is not None
    if not is_manual and not name.endswith((".html", ".txt", ".rst")):
        return []
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data.decode("utf-8", "replace")
    if name.endswith(".html"):
        parser = _Blocks()
        parser.feed(text)
        return parser.blocks
    if is_manual:
        text = re.sub(r'^\.\\".*$|^[.\'][A-Z]\w* ?', "", text, flags=re.M)
        text = re.sub(r"\\f(\(..|\[\w*\]|.)|\\[&/,|]", "", text).replace(r"\-", "-")
    return re.split(r"\n\s*\n", text)


if __name__ == "__main__":
    print(len(passages()), "passages in", FOLDER)
