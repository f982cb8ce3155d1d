"""Worker process of one client job or file: ``python -P -m stillroom.serve.jobs.worker``.

The server writes one line of JSON to standard input and keeps the pipe open: when it closes, the
server is gone and the process kills itself, so that the next server can restart the job. The worker
enters the sandbox, runs or checks the recipe or checks the files, and writes one line of JSON to
standard output.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import sysconfig
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillroom.errors import Cancelled, Problem, StillroomError
from stillroom.models.local.runtime import reserve_ports
from stillroom.serve.jobs.processes import enter_sandbox, list_system_folders
from stillroom.serve.jobs.store import EVENTS_FILE, append_event
from stillroom.serve.workspace import make_path_redactor, replace_names

__all__ = ["EventReporter", "main"]

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"  # first choice of the OOM killer: the server must survive
_EVENT_INTERVAL_S = 0.5
_MAX_ENGINES = 16


class EventReporter:
    """Reporter that writes progress to the job's event log."""

    every_s = _EVENT_INTERVAL_S

    def __init__(self, path: Path, hide: Callable[[Any], Any]) -> None:
        """Append to ``path``; ``hide`` removes the server's paths from each event."""
        self._path, self._hide = path, hide

    def show(self, line: str) -> None:
        """Draw nothing: progress is written as events."""

    def end(self, line: str) -> None:
        """Draw nothing."""

    def say(self, line: str) -> None:
        """Log a message."""
        self._append({"event": "said", "text": line})

    def warn(self, line: str) -> None:
        """Log a warning."""
        self._append({"event": "warning", "text": line})

    def hear(self, kind: str, fields: Mapping[str, object]) -> None:
        """Log progress, metrics, steps and a job's own events; messages are logged already."""
        if kind == "event":
            if fields["event"] not in ("said", "warning"):
                self._append(fields)
        else:
            self._append({"event": kind, **fields})

    def _append(self, event: Mapping[str, object]) -> None:
        append_event(self._path, self._hide(event))


def main() -> None:
    """Read the order, carry it out, and write the result."""
    answer = os.dup(1)
    os.dup2(2, 1)  # libraries may print to standard output; this goes to the log
    order = json.loads(sys.stdin.buffer.readline())
    _exit_with_server()
    try:
        _enter_sandbox_of_order(order)
        result = {"run": _run_job, "check": _check_recipe, "media": _check_media}[order["task"]](
            order
        )
    except Cancelled:
        result = {"state": "cancelled"}
    except StillroomError as error:
        result = {"state": "failed", "problems": [asdict(problem) for problem in error.problems]}
    except BaseException as error:  # noqa: BLE001  # every failure is reported to the server
        result = _report_unexpected_error(error)
    redacted = _make_redactor(order)(result)
    os.write(answer, json.dumps(redacted).encode() + b"\n")
    os.close(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # do not wait for threads of libraries


def _exit_with_server() -> None:
    def wait() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    threading.Thread(target=wait, daemon=True, name="stillroom-watch").start()


def _enter_sandbox_of_order(order: Mapping[str, Any]) -> None:
    if not order["sandbox"]:
        return
    root = Path(order["root"])
    cache = Path(os.environ["STILLROOM_CACHE"])
    cache.mkdir(parents=True, exist_ok=True)
    writable = [root, Path(tempfile.gettempdir()), cache]
    if order["job_folder"]:
        writable.append(Path(order["job_folder"]))
    readable = [*list_system_folders(), *map(Path, order["readable"])]
    if order["task"] != "media":
        readable += [*_list_model_folders(), *_list_hub_folders()]
    if order["hub"]:
        for folder in _list_hub_folders():
            folder.mkdir(parents=True, exist_ok=True)  # a missing path cannot be opened
            writable.append(folder)
        readable.append(_find_hub_token())
    ports = list(order["ports"])
    if order["task"] == "run":
        ports += reserve_ports(_MAX_ENGINES)  # llama.cpp listens on a local port
    if not enter_sandbox(readable=readable, writable=writable, ports=ports):
        raise RuntimeError("the sandbox could not be set up")


def _list_model_folders() -> list[Path]:
    folder = os.environ.get("STILLROOM_MODELS", "")
    return [Path(folder).expanduser()] if folder else []


def _list_hub_folders() -> list[Path]:
    """Return the cache folders of the hub library: snapshots and download chunks."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return []
    return [Path(constants.HF_HUB_CACHE), Path(constants.HF_XET_CACHE)]


def _find_hub_token() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH)


def _make_redactor(order: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return a function that removes this machine's paths from texts for the client."""
    names = {sysconfig.get_paths()[kind]: "(installed)" for kind in ("stdlib", "purelib")}
    names |= {path: "(installed)" for path in sys.path if path}
    names[os.environ["STILLROOM_CACHE"]] = "(cache)"
    names[tempfile.gettempdir()] = "(scratch)"
    names[str(Path.home())] = "~"
    if order["task"] != "media":
        names |= {str(folder): "(hub cache)" for folder in _list_hub_folders()}
        names |= {str(folder): "$STILLROOM_MODELS" for folder in _list_model_folders()}
    names |= {path: "shared" for path in order["readable"] if order["task"] != "media"}
    if order["job_folder"]:
        names[order["job_folder"]] = "(job)"
    names[order["root"]] = ""
    return make_path_redactor(names)


def _run_job(order: Mapping[str, Any]) -> dict[str, Any]:
    from stillroom.flow import run_recipe
    from stillroom.recipes import parse_recipe

    recipe = parse_recipe(order["recipe"], "recipe")
    reporter = EventReporter(Path(order["job_folder"]) / EVENTS_FILE, _make_redactor(order))
    artifact = run_recipe(recipe, Path(order["out"]), resume=True, reporter=reporter)
    return {"state": "finished", "artifact": {"kind": artifact.kind, "digest": artifact.digest}}


def _check_recipe(order: Mapping[str, Any]) -> dict[str, Any]:
    from stillroom.flow import (
        check_inputs,
        estimate_recipe,
        outline_recipe,
        preflight_recipe,
        require_recipe_extras,
    )
    from stillroom.jobs import check_fits, describe_machine
    from stillroom.recipes import parse_recipe

    recipe = parse_recipe(order["recipe"], "recipe")
    check_inputs(recipe)
    out = Path(order["out"])
    estimate, machine = estimate_recipe(recipe), describe_machine(out)
    check: dict[str, Any] = {
        "state": "checked",
        "estimate": asdict(estimate),
        "machine": asdict(machine),
        "graph": outline_recipe(recipe),
        "warnings": recipe.describe_unused(),
        "problems": [],
    }
    try:
        require_recipe_extras(recipe)
        flight = preflight_recipe(recipe, out, machine=False)
        if flight:
            check["preflight"] = flight.to_json()
            flight.raise_errors()
        check_fits(estimate, machine, recipe.kind)
    except StillroomError as error:
        check["problems"] = [asdict(problem) for problem in error.problems]
    return check


def _check_media(order: Mapping[str, Any]) -> dict[str, Any]:
    """Check files of a client with bounded memory, since decoders are not trusted with it."""
    resource.setrlimit(resource.RLIMIT_DATA, (order["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from stillroom.forensics.c2pa.signature import open_trust_lists
    from stillroom.forensics.check.check import check_file, list_limits

    lists = open_trust_lists(
        official=[Path(path_text) for path_text in order["official"]],
        user=[Path(path_text) for path_text in order["trust"]],
    )
    judges = None
    if order["detectors"]:
        from stillroom.forensics.inference.detector_set import open_detectors

        detectors = [Path(path_text) for path_text in order["detectors"]]
        judges = open_detectors(detectors, prevalence=order["prevalence"])
    findings = []
    for path, name in order["files"]:
        finding = check_file(Path(path), lists, detectors=judges).to_json()
        findings.append(replace_names({**finding, "path": name}, {Path(path).name: name}))
    return {"state": "checked", "files": findings, "limits": list(list_limits(judges))}


def _report_unexpected_error(error: BaseException) -> dict[str, Any]:
    from stillroom.jobs.extras import find_missing_extra

    if missing := find_missing_extra(error):
        return {"state": "failed", "problems": [asdict(problem) for problem in missing.problems]}
    number = uuid.uuid4().hex[:12]
    sys.stderr.write(f"error {number}\n")
    traceback.print_exc()
    problem = Problem(
        f"the job failed; its log on the server has the reason under {number}",
        "job.failed",
        next="resume the job, or report it with the number",
    )
    return {"state": "failed", "problems": [asdict(problem)]}


if __name__ == "__main__":
    main()
