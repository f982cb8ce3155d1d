"""Ask a live server everything that its own description allows, and much that it does not.

Starts ``stillroom serve`` over a tiny model, a folder of jobs and the forensics room, and lets
schemathesis draw requests from ``/openapi.json``. Fails on any 5xx, and on any answer that the
description does not tell.

    python scripts/check_http.py PEER_FOLDER [MAX_EXAMPLES]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stillroom.testing import tiny_checkpoint

_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)


def main() -> int:
    """Return schemathesis' own exit code."""
    peers, examples = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "40"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("model", "jobs/a", "jobs/b"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            tiny_checkpoint(place / name, layers=1, hidden=16)
        rows = [{"messages": [{"role": "user", "content": "what"}]}] * 4
        (place / "jobs" / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
        told = place / "told"
        arguments = ["serve", f"model={place / 'model'}", "--jobs", str(place / "jobs")]
        with told.open("wb") as file:
            server = subprocess.Popen(
                [sys.executable, "-m", "stillroom", *arguments, "--forensics", "--port", "0"],
                stderr=file,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            )
        try:
            address = _wait_for(told, server)
            return _run(peers.absolute(), address, examples, place)
        finally:
            if (code := server.poll()) is not None:
                print(f"the server ended by itself, with exit code {code}")
            server.terminate()
            server.wait(60)
            print(told.read_text()[-2000:])


def _wait_for(told: Path, server: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + 300  # a busy machine imports for minutes
    while True:
        found = re.search(r"http://[\d.:]+(?=/v1)", told.read_text())
        if found:
            return found[0]
        if server.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"the server did not start: {told.read_text()}")
        time.sleep(0.1)


def _run(peers: Path, address: str, examples: str, place: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": str(peers)}  # its own packages come first
    command = [sys.executable, str(peers / "bin" / "schemathesis"), "run"]
    command += [f"{address}/openapi.json", "--checks", _CHECKS, "--max-examples", examples]
    # Longer than the server lets an answer take, so that its own 504 comes first.
    command += ["--suppress-health-check", "all", "--seed", "1", "--request-timeout", "330"]
    command += ["--wait-for-schema", "300"]  # its first request describes all routes
    return subprocess.run(command, env=environment, cwd=place, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
