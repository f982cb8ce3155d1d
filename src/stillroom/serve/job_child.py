"""The process of one job or file of a client: ``python -P -m stillroom.serve.job_child``.

The server writes one line of JSON to its standard input and keeps that open: when it ends, the
server is gone and the process kills itself, so that the next server may take the job up. It puts up
the fence, runs or checks the recipe or looks at the files, and writes one line of JSON to its
standard output.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.errors import Cancelled, Problem, StillroomError
from stillroom.models.ports import name_ports
from stillroom.serve.fence import put_up_fence, system_folders
from stillroom.serve.tickets import EVENTS_FILE, append_event

__all__ = ["EventReporter", "main"]

_DIE_WITH_PARENT = 1
_KILL_ME_FIRST = "500"  # of all processes, where memory runs out: the server must stay
_EVERY_S = 0.5
_ENGINES = 16


class EventReporter:
    """Writes what happens to the job's file of events, as values."""

    every_s = _EVERY_S

    def __init__(self, path: Path) -> None:
        """Append to ``path``."""
        self._path = path

    def show(self, line: str) -> None:
        """Draw nothing: progress comes as values."""

    def end(self, line: str) -> None:
        """Draw nothing."""

    def say(self, line: str) -> None:
        """Note what is said."""
        append_event(self._path, {"event": "said", "text": line})

    def hear(self, kind: str, fields: Mapping[str, object]) -> None:
        """Note progress, metrics, steps and a job's own events; what is said came already."""
        if kind == "event":
            if fields["event"] != "said":
                append_event(self._path, fields)
        else:
            append_event(self._path, {"event": kind, **fields})


def main() -> None:
    """Read the order, do it, tell the result."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print is talk
    order = json.loads(sys.stdin.buffer.readline())
    _die_with_server()
    try:
        _close_off(order)
        result = {"run": _run, "check": _check, "look": _look}[order["do"]](order)
    except Cancelled:
        result = {"state": "cancelled"}
    except StillroomError as error:
        result = {"state": "failed", "problems": [_tell(one) for one in error.problems]}
    except BaseException:  # noqa: BLE001  # whatever it is, the server is told that it was
        result = _unforeseen()
    os.write(answer, json.dumps(result).encode() + b"\n")
    os.close(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and threads of libraries may not hold us up


def _die_with_server() -> None:
    def wait() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        Path("/proc/self/oom_score_adj").write_text(_KILL_ME_FIRST, encoding="ascii")
    threading.Thread(target=wait, daemon=True, name="stillroom-watch").start()


def _close_off(order: Mapping[str, Any]) -> None:
    if not order["fence"]:
        return
    root = Path(order["root"])
    writable = [root, Path(tempfile.gettempdir())]
    if order["place"]:
        writable.append(Path(order["place"]))
    readable = [*system_folders(), *map(Path, order["readable"])]
    if order["hub"]:
        writable.append(Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")))
    ports = list(order["ports"])
    if order["do"] == "run":
        ports += name_ports(_ENGINES)  # llama.cpp answers on a port of this machine
    if not put_up_fence(readable=readable, writable=writable, ports=ports):
        raise RuntimeError("the fence could not be put up")


def _run(order: Mapping[str, Any]) -> dict[str, Any]:
    from stillroom.flow import run_recipe
    from stillroom.recipes import parse_recipe

    recipe = parse_recipe(order["recipe"], "recipe")
    reporter = EventReporter(Path(order["place"]) / EVENTS_FILE)
    artifact = run_recipe(recipe, Path(order["out"]), resume=True, reporter=reporter)
    return {"state": "finished", "artifact": {"kind": artifact.kind, "digest": artifact.digest}}


def _check(order: Mapping[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from stillroom.flow import estimate_recipe, outline_recipe, preflight_recipe
    from stillroom.jobs import check_fits, describe_machine
    from stillroom.recipes import parse_recipe

    recipe = parse_recipe(order["recipe"], "recipe")
    out = Path(order["out"])
    estimate, machine = estimate_recipe(recipe), describe_machine(out)
    found: dict[str, Any] = {
        "state": "checked",
        "estimate": asdict(estimate),
        "machine": asdict(machine),
        "graph": outline_recipe(recipe),
        "problems": [],
    }
    try:
        flight = preflight_recipe(recipe, out, machine=False)
        if flight:
            found["preflight"] = flight.to_json()
            flight.raise_errors()
        check_fits(estimate, machine, recipe.kind)
    except StillroomError as error:
        found["problems"] = [_tell(one) for one in error.problems]
    return found


def _look(order: Mapping[str, Any]) -> dict[str, Any]:
    """Look at files that a client sent, whose decoders are not to be trusted with memory."""
    resource.setrlimit(resource.RLIMIT_DATA, (order["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from stillroom.forensics.checking import check_file, list_limits
    from stillroom.forensics.signing import open_lists

    lists = open_lists(
        official=[Path(one) for one in order["official"]],
        user=[Path(one) for one in order["trust"]],
    )
    judges = None
    if order["detectors"]:
        from stillroom.forensics.judging import open_judges

        places = [Path(one) for one in order["detectors"]]
        judges = open_judges(places, prevalence=order["prevalence"])
    found = []
    for path, name in order["files"]:
        told = check_file(Path(path), lists, judges=judges, with_pulse=order["pulse"]).to_json()
        found.append({**told, "path": name})
    return {"state": "looked", "files": found, "limits": list(list_limits(judges))}


def _unforeseen() -> dict[str, Any]:
    number = uuid.uuid4().hex[:12]
    sys.stderr.write(f"error {number}\n")
    traceback.print_exc()
    problem = Problem(
        f"the job failed; the server's log of it says why under {number}",
        "job.failed",
        next="resume the job, or report it with the number",
    )
    return {"state": "failed", "problems": [_tell(problem)]}


def _tell(problem: Problem) -> dict[str, str]:
    return {
        "what": problem.what,
        "code": problem.code,
        "where": problem.where,
        "expected": problem.expected,
        "next": problem.next,
    }


if __name__ == "__main__":
    main()
