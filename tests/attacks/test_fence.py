"""The fence around processes that work on what clients sent: what they reach, and what not."""

import contextlib
import json
import socket
import subprocess
import sys

import pytest

from stillroom.serve.jobs import processes

TRIES = """
import json, os, pathlib, socket, stat, subprocess, sys
from stillroom.serve.jobs.processes import enter_sandbox, list_system_folders
told = json.load(sys.stdin)
inside, outside = pathlib.Path(told["inside"]), pathlib.Path(told["outside"])
assert enter_sandbox(readable=list_system_folders(), writable=[inside], ports=[told["open"]])
def connect(*place):
    with socket.create_connection(place, timeout=5) as one:
        return one.recv(1)
def speak(kind, place):
    with socket.socket(kind, socket.SOCK_DGRAM) as one:
        one.connect(place)
tries = {
    "read inside": lambda: (inside / "own.txt").read_text(),
    "write inside": lambda: (inside / "new.txt").write_text("x"),
    "read outside": lambda: (outside / "secret.txt").read_text(),
    "read by a link": lambda: (inside / "link" / "secret.txt").read_text(),
    "list outside": lambda: os.listdir(outside),
    "write outside": lambda: (outside / "new.txt").write_text("x"),
    "remove outside": lambda: (outside / "secret.txt").unlink(),
    "move outside": lambda: (inside / "own.txt").rename(outside / "own.txt"),
    "read by a child": lambda: subprocess.run(
        ["cat", outside / "secret.txt"], check=True, stderr=subprocess.DEVNULL
    ),
    "the server's environment": lambda: pathlib.Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "the server's memory": lambda: pathlib.Path(f"/proc/{os.getppid()}/maps").read_bytes(),
    "a disk": lambda: os.mknod(inside / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 0)),
    "a device": lambda: os.open("/dev/tty0", os.O_RDONLY),
    "noise": lambda: pathlib.Path("/dev/null").write_bytes(os.urandom(1)),
    "a named port": lambda: connect("127.0.0.1", told["open"]),
    "another port": lambda: connect("127.0.0.1", told["closed"]),
    "an abstract socket": lambda: speak(socket.AF_UNIX, "\\0" + told["abstract"]),
    "a signal": lambda: os.kill(os.getppid(), 0),
    "a size outside": lambda: (outside / "secret.txt").stat().st_size,
    "UDP": lambda: speak(socket.AF_INET, ("127.0.0.1", 9)),
}
found = {}
for name, act in tries.items():
    try:
        act()
        found[name] = True
    except (OSError, subprocess.CalledProcessError):
        found[name] = False
print(json.dumps(found))
"""
FREE = {"read inside", "write inside", "a named port", "noise", "a size outside", "UDP"}
"""What works; the last two are told in the documents as what no fence refuses."""


@pytest.mark.skipif(not processes.is_sandbox_available(), reason="this kernel has no Landlock")
def test_a_fenced_process_reaches_what_is_named_and_nothing_else(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "own.txt").write_text("own")
    (outside / "secret.txt").write_text("secret")
    (inside / "link").symlink_to(outside)
    with contextlib.ExitStack() as opened:
        ports = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        heard = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        heard.bind(f"\0{tmp_path}")
        order = {
            "inside": str(inside),
            "outside": str(outside),
            "open": ports[0].getsockname()[1],
            "closed": ports[1].getsockname()[1],
            "abstract": str(tmp_path),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", TRIES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        process.stdin.write(json.dumps(order))
        process.stdin.close()
        answered, _ = ports[0].accept()
        answered.sendall(b"x")
        found = json.loads(process.stdout.read())
        answered.close()
        assert process.wait(20) == 0
        process.stdout.close()
    version = processes._read_landlock_version()
    left = FREE | ({"another port"} if version < 4 else set())
    left |= {"an abstract socket", "a signal"} if version < 6 else set()
    assert {name for name, is_free in found.items() if is_free} == left
    assert [one.name for one in outside.iterdir()] == ["secret.txt"]


@pytest.mark.parametrize(
    ("version", "said"),
    [(-1, "no Landlock"), (0, "no Landlock"), (3, "older than Linux 6.7"), (4, ""), (7, "")],
)
def test_what_a_kernel_cannot_fence_is_said_where_media_are_looked_at(monkeypatch, version, said):
    from stillroom.serve.server import MediaCheckSettings, ServerSettings, run_server

    monkeypatch.setattr(processes, "_read_landlock_version", lambda: version)
    monkeypatch.setattr("stillroom.serve.server.run_app", lambda *_, **__: None)
    lines = []
    run_server((), ServerSettings(port=0, media_check=MediaCheckSettings()), say=lines.append)
    told = [line for line in lines if "this kernel" in line]
    assert len(told) == bool(said)
    assert said in "".join(told)
