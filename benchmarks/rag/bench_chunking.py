"""Cutting texts to the embedder's tokens beside LangChain and LlamaIndex with the same tokenizer.

All count with MiniLM's tokenizer, at most SIZE tokens a passage, no overlap. Ours starts with no
word known in every repeat. The bound is to tokenize every text once and do nothing else. Texts are
those of the public chunking_evaluation set: STILLROOM_CHUNKING_DATA names the folder.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import print_figure
from peers import peer_python

from stillroom.models.hub import DEFAULT_EMBEDDER, resolve_checkpoint
from stillroom.models.tokenization.token_counter import CachedWordTokenizer
from stillroom.records import Document
from stillroom.text import CHUNKERS

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(
    os.environ.get("STILLROOM_CHUNKING_DATA", ROOT.parent / "shared/data/retrieval/chunking")
)
REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "7"))
SIZE = 254  # MiniLM reads 256 tokens, two of them special
PEERS = {
    "langchain": ("langchain-text-splitters", "1.1.3"),
    "llama_index": ("llama-index-core", "0.14.25"),
}


def start_peer(name: str, folder: Path, paths: list[Path]) -> subprocess.Popen[str]:
    """Start a peer's worker; it works whenever it is sent a line."""
    python = peer_python(*PEERS[name], also=["transformers"])
    worker = Path(__file__).with_name("chunking_worker.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [str(python), str(worker), name, str(folder), str(SIZE), *map(str, paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


def ask(peer: subprocess.Popen[str]) -> dict[str, Any]:
    """Have a peer cut all texts once."""
    assert peer.stdin
    assert peer.stdout
    peer.stdin.write("\n")
    peer.stdin.flush()
    line = peer.stdout.readline()
    if not line:
        raise RuntimeError(f"a peer failed: {peer.args}")
    told: dict[str, Any] = json.loads(line)
    return told


def cut(texts: list[str], counter: CachedWordTokenizer, name: str) -> tuple[float, list[str]]:
    """Cut the texts our way; return processor seconds and passages."""
    chunker = CHUNKERS.build({"name": name, "size": SIZE})
    start = time.process_time()
    passages = [
        passage.text
        for text in texts
        for passage in chunker.chunk(
            Document("text.md", "0" * 64, "text/markdown", text), count=counter
        )
    ]
    return time.process_time() - start, passages


def tokenize(texts: list[str], backend: Any) -> float:
    """Tokenize every text once with offsets; return processor seconds."""
    start = time.process_time()
    for text in texts:
        backend.encode(text, add_special_tokens=False)
    return time.process_time() - start


def main() -> None:
    """Print one line a peer."""
    from transformers import AutoTokenizer

    paths = sorted(DATA.glob("*.md"))
    paths = [path for path in paths if path.name != "README.md"]
    if not paths:
        raise SystemExit(f"no texts in {DATA}; set STILLROOM_CHUNKING_DATA")
    texts = [path.read_text(encoding="utf-8") for path in paths]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    folder = resolve_checkpoint(DEFAULT_EMBEDDER)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend = CachedWordTokenizer(tokenizer, threading.Lock())._backend
    peers = {name: start_peer(name, folder, paths) for name in PEERS}
    ours: list[float] = []
    bounds: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in PEERS}
    told: dict[str, dict[str, Any]] = {}
    passages: list[str] = []
    for repeat in range(REPEATS + 1):
        counter = CachedWordTokenizer(tokenizer, threading.Lock())
        spent, passages = cut(texts, counter, "recursive")
        bare = tokenize(texts, backend)
        told = {name: ask(peer) for name, peer in peers.items()}
        if repeat:  # the first warms everybody up
            ours.append(spent)
            bounds.append(bare)
            for name in PEERS:
                theirs[name].append(told[name]["cpu"])
    largest = max(len(backend.encode(one, add_special_tokens=False).ids) for one in passages)
    for name, (package, version) in PEERS.items():
        print_figure(
            f"rag/chunking/vs_{name}_tokens",
            "CPU s",
            ours,
            (f"{package} {version}", theirs[name]),
            sorted(bounds)[len(bounds) // 2],
            megabytes=round(megabytes, 3),
            passages={"ours": len(passages), "peer": told[name]["passages"]},
            largest={"ours": largest, "peer": told[name]["largest"], "limit": SIZE},
        )
        peers[name].communicate()


if __name__ == "__main__":
    main()
