"""Commands started as several processes of one job, as a launcher does."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.processes import Process

__all__ = ["curve", "finish", "rank_environments", "start_ranks"]


def start_ranks(arguments: Sequence[object], ranks: int) -> list[Process]:
    """Start ``stillroom ARGUMENTS`` once for each rank; one alone knows of no launcher."""
    command = [sys.executable, "-m", "stillroom", *map(str, arguments)]
    return [Process(command, env=env) for env in rank_environments(ranks)]


def rank_environments(ranks: int) -> list[dict[str, str]]:
    """Return what a launcher puts into the environment of each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = []
    for rank in range(ranks):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if ranks > 1:
            env |= {
                "WORLD_SIZE": str(ranks),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        made.append(env)
    return made


def finish(running: list[Process]) -> list[tuple[int, str]]:
    """Return each process's exit code and all it wrote."""
    told = [process.communicate(timeout=120) for process in running]
    return [
        (process.returncode, out + err) for process, (out, err) in zip(running, told, strict=True)
    ]


def curve(out: Path, name: str = "loss") -> list[float]:
    """Return a metric's values, in the order they were noted."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["name"] == name]
