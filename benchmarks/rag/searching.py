"""Peers that answer queries in processes of their own, ours and theirs in turn."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from corpus import clean_environment
from peers import peer_python

Rows = list[list[int]]


class Peer:
    """A worker of search_worker.py; its index stands once it is made."""

    def __init__(
        self, name: str, package: tuple[str, str], also: Sequence[str], *told: str
    ) -> None:
        """Start the worker and wait until it has built its index."""
        python = peer_python(*package, also=also) if package[0] else Path(sys.executable)
        worker = Path(__file__).with_name("search_worker.py")
        self.name = f"{package[0] or 'sqlite'} {package[1]}"
        self._process = subprocess.Popen(
            [str(python), str(worker), name, *told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        self.built = float(self._read()["built"])

    def ask(self, first: int, last: int) -> tuple[float, Rows]:
        """Have it answer a run of queries; return milliseconds a query and the rows."""
        assert self._process.stdin
        self._process.stdin.write(f"{first} {last}\n")
        self._process.stdin.flush()
        told = self._read()
        return told["ms"], told["rows"]

    def close(self) -> None:
        """End the worker."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a peer failed: {self.name}")
        told: dict[str, Any] = json.loads(line)
        return told


def time_queries(search: Callable[[int], list[int]], first: int, last: int) -> tuple[float, Rows]:
    """Answer a run of queries our way; return milliseconds a query and the rows."""
    start = time.process_time()
    rows = [search(at) for at in range(first, last)]
    return (time.process_time() - start) / (last - first) * 1000, rows


def compare(
    peer: Peer, ours: Callable[[int], list[int]], count: int, repeats: int
) -> dict[str, Any]:
    """Answer the first ``count`` queries in turn, ours and the peer's, ``repeats`` times.

    Returns:
        Milliseconds of each repeat under ``ours`` and ``theirs``, and the rows of both; a first
        round warms both up and is not counted.
    """
    told: dict[str, Any] = {"ours": [], "theirs": []}
    for repeat in range(repeats + 1):
        spent, told["our_rows"] = time_queries(ours, 0, count)
        theirs, told["their_rows"] = peer.ask(0, count)
        if repeat:
            told["ours"].append(spent)
            told["theirs"].append(theirs)
    return told


def overlap(one: Rows, other: Rows) -> float:
    """Return the mean share of rows that both found, over queries."""
    pairs = zip(one, other, strict=True)
    return statistics.mean(len(set(a) & set(b)) / max(1, len(b)) for a, b in pairs)


def hit_rate(rows: Rows, wanted: Sequence[int]) -> float:
    """Return the share of queries whose own passage was found."""
    return statistics.mean(row in found for found, row in zip(rows, wanted, strict=False))
