"""A real PostgreSQL server with pgvector for tests, in a folder of its own."""

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
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


def end_with_parent():
    """Have the kernel stop this process when the one that started it ends, however it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def wait_for(server, address, log):
    """Return once the server answers."""
    import psycopg

    until = time.monotonic() + 180
    while True:
        try:
            return psycopg.connect(address).close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(log.read_text()) from None
            time.sleep(0.05)


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
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": place,
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (place / "log").open("w") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *options],
                stdout=log,
                stderr=log,
                user=user,
                cwd=place,
                preexec_fn=end_with_parent,
            )
        try:
            address = f"postgresql://postgres@/postgres?host={place}"
            wait_for(server, address, place / "log")
            yield address
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(timeout=60)
    finally:
        shutil.rmtree(place, ignore_errors=True)
