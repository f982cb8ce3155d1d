"""Child processes of the server: start, one request, termination and crash reports.

What a client sends is worked on in them and not in the server: a crash, memory that runs out or a
file that a decoder chokes on costs one request or job. See ``job_child`` for the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillroom.errors import Problem
from stillroom.serve.errors import ApiError

__all__ = ["describe_crash", "read_worker_result", "run_worker", "send_signal", "spawn"]

_MAX_LINE_BYTES = 1 << 24
_WITHHELD_VARIABLES = ("STILLROOM_API_KEY",)


async def spawn(
    order: Mapping[str, Any],
    folder: Path,
    scratch: Path,
    *,
    cache: Path | None = None,
    log: int | None = None,
) -> Process:
    """Start a child with an order.

    Args:
        order: See ``job_child``.
        folder: Where it works.
        scratch: Where it puts files that nobody needs after it; its alone.
        cache: Where it keeps what the next one may use; by default in its scratch.
        log: A descriptor that takes what it says; None drops it.
    """
    environment = {
        key: value for key, value in os.environ.items() if key not in _WITHHELD_VARIABLES
    }
    environment["TMPDIR"] = str(scratch)
    environment["STILLROOM_CACHE"] = str(cache or scratch / "cache")
    for name in ("STILLROOM_MODELS", "HF_HOME", "HF_HUB_CACHE"):
        if environment.get(name):  # the child starts in another folder
            environment[name] = str(Path(environment[name]).expanduser().absolute())
    if not order["hub"]:
        environment["HF_HUB_OFFLINE"] = "1"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # no module is taken from the folder it works in
        "-m",
        "stillroom.serve.jobs.worker",
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL if log is None else log,
        cwd=folder,
        env=environment,
        start_new_session=True,
        limit=_MAX_LINE_BYTES,
    )
    try:
        if process.stdin is not None:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
    except BaseException:  # whoever asked for it is gone
        await kill_worker(process)
        raise
    return process


async def run_worker(
    order: Mapping[str, Any],
    folder: Path,
    scratch: Path,
    *,
    timeout_s: float,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Start a child, wait for what it tells, and end it, also when the client leaves.

    Raises:
        Refusal: If it takes too long.
    """
    process = await spawn(order, folder, scratch, cache=cache)
    try:
        result = await asyncio.wait_for(read_worker_result(process), timeout_s)
        if result is None:
            code = await process.wait()
            return {"state": "failed", "problems": [asdict(describe_crash(code))]}
    except TimeoutError:
        raise ApiError(504, f"no answer within {timeout_s:g} s", code="timeout") from None
    finally:
        await kill_worker(process)
    return result


async def kill_worker(process: Process) -> None:
    """Kill a child with all that it started, unless it has ended."""
    send_signal(process, signal.SIGKILL)
    await process.wait()


async def read_worker_result(process: Process) -> dict[str, Any] | None:
    """Return what a child tells, or None where it ended without a word."""
    if process.stdout is None:
        return None
    try:
        result = json.loads(await process.stdout.readline())
    except ValueError:
        return None
    return result if isinstance(result, dict) else None


def send_signal(process: Process, number: int) -> None:
    """Send a signal to a child; killed, all that it started goes with it."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def describe_crash(code: int) -> Problem:
    """Return the problem of a child that ended without a word."""
    if code == -signal.SIGKILL:
        what = "the job's process was killed, most likely since memory ran out"
        return Problem(what, "job.killed", next="lower what the recipe takes, then resume")
    how = f"died of signal {-code}" if code < 0 else "ended without a word"
    return Problem(f"the job's process {how}", "job.killed", next="resume it")
