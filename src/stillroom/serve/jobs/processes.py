"""Child processes of the server: start, one request, termination and crash reports.

Client input is processed in child processes, not in the server: a crash, an out-of-memory kill or a
file that hangs a decoder costs one request or job. See ``jobs.worker`` for the child's side.
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
    """Start a worker process and send it its order.

    Args:
        order: See ``jobs.worker``.
        folder: Working directory.
        scratch: Folder for temporary files, used by this process alone.
        cache: Folder for files that later processes may reuse; by default inside ``scratch``.
        log: File descriptor for the process's output; None discards it.
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
        "-P",  # import no module from the working directory
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
    except BaseException:  # the client that requested it is gone
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
    """Run a worker process to its result; it is ended as well when the client disconnects.

    Raises:
        ApiError: If it takes too long.
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
    """Kill a process group, unless it has already ended."""
    send_signal(process, signal.SIGKILL)
    await process.wait()


async def read_worker_result(process: Process) -> dict[str, Any] | None:
    """Return the result of a worker process, or None if it ended without one."""
    if process.stdout is None:
        return None
    try:
        result = json.loads(await process.stdout.readline())
    except ValueError:
        return None
    return result if isinstance(result, dict) else None


def send_signal(process: Process, number: int) -> None:
    """Send a signal to a worker; SIGKILL is sent to its whole process group."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def describe_crash(code: int) -> Problem:
    """Return the problem for a process that ended without a result."""
    if code == -signal.SIGKILL:
        message = "the job's process was killed, most likely because memory ran out"
        return Problem(
            message, "job.killed", next="reduce the memory that the recipe needs, then resume"
        )
    how = f"died of signal {-code}" if code < 0 else "ended without a result"
    return Problem(f"the job's process {how}", "job.killed", next="resume it")
