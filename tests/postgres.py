"""A real PostgreSQL server with pgvector for tests, in a folder of its own."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PROGRAMS = Path("/usr/lib/postgresql")
SHARED = Path("/usr/share/postgresql")


def find_programs():
    """Return the folder of the newest server that has pgvector, or None."""
    for place in sorted(PROGRAMS.glob("*/bin"), key=lambda path: int(path.parent.name)):
        if (place / "initdb").is_file():
            version = place.parent.name
            if (SHARED / version / "extension" / "vector.control").is_file():
                found = place
    return locals().get("found")


def need_programs():
    """Return the folder of the server's programs, or skip and say why."""
    pytest.importorskip(
        "psycopg", reason="psycopg is not installed: pip install stillroom[postgres]"
    )
    programs = find_programs()
    if programs is None:
        pytest.skip(
            f"no PostgreSQL server with pgvector below {PROGRAMS}: "
            "apt-get install postgresql postgresql-17-pgvector"
        )
    return programs


def unprivileged():
    """Return the name of a user that may run a server, or None for the one who runs this."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    pytest.skip("tests run as root, and there is neither postgres nor nobody to run a server")


@contextlib.contextmanager
def serve():
    """Yield the connection string of a server that lives as long as the body."""
    programs, user = need_programs(), unprivileged()
    place = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if user is not None:
            shutil.chown(place, user)
        run = {"check": True, "capture_output": True, "user": user, "cwd": place}
        data = place / "data"
        initialize = ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run([programs / "initdb", "-D", data, "-U", "postgres", *initialize], **run)
        options = (
            f"-c listen_addresses='' -c unix_socket_directories={place} -c fsync=off "
            "-c full_page_writes=off -c synchronous_commit=off"
        )
        control = [programs / "pg_ctl", "-D", data, "-w", "-t", "60"]
        log = ["-l", place / "log"]
        subprocess.run(
            [*control, *log, "-o", options, "start"],
            **{**run, "capture_output": False, "stdout": subprocess.DEVNULL},
        )
        try:
            yield f"postgresql://postgres@/postgres?host={place}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **run)
    finally:
        shutil.rmtree(place, ignore_errors=True)
