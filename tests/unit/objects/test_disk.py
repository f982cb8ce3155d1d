import errno
import fcntl
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.processes import run_process

from stillroom.errors import ResourceError
from stillroom.objects import disk
from stillroom.objects.disk import atomic_path, atomic_write, full_disk_as_error, write_secret
from stillroom.records import Message, Record, RecordWriter


def test_failure_keeps_the_old_bytes_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_half(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def write_half(path):
    with atomic_write(path) as file:
        file.write("half")
        raise RuntimeError


def test_text_is_utf8_with_plain_newlines(tmp_path):
    with atomic_write(tmp_path / "x") as file:
        file.write("é\n")
    assert (tmp_path / "x").read_bytes() == "é\n".encode()


def test_full_disk_is_told_from_other_errors_of_libraries(tmp_path):
    with pytest.raises(ResourceError) as caught, full_disk_as_error(tmp_path):
        raise sqlite3.OperationalError("database or disk is full")
    assert caught.value.code == "resource.disk-full"
    with pytest.raises(sqlite3.OperationalError), full_disk_as_error(tmp_path):
        raise sqlite3.OperationalError("no such table: passages")


KILLED = """
import os, signal, sys
from pathlib import Path
from stillroom.objects.disk import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write("half")
    file.flush()
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    print(flush=True)
    sys.stdin.readline()
"""


def test_the_next_writer_removes_what_killed_ones_left_and_no_living_ones(tmp_path):
    killed = run_process([sys.executable, "-c", KILLED, str(tmp_path / "a.json"), "kill"])
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    number = left.suffixes[-3].removeprefix(".")
    again = tmp_path / left.name.replace(
        f".{number}.", f".{os.getpid()}.", 1
    )  # a number used twice
    shutil.copyfile(left, again)
    for path in (left, again):
        os.utime(path, (1, 1))
    (tmp_path / ".mine.1.tmp").write_text("the user's own")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "b.json"), "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        living.stdout.readline()  # it has removed what was left, and writes
        names = {path.name for path in tmp_path.iterdir()}
        assert not names & {left.name, again.name}
        assert len(names) == 2
        with atomic_write(tmp_path / "c.json") as file:
            file.write("whole")
        assert {path.name for path in tmp_path.iterdir()} == {*names, "c.json"}
        living.communicate(b"\n")
    assert {path.name for path in tmp_path.iterdir()} == {".mine.1.tmp", "b.json", "c.json"}


@pytest.mark.parametrize("has_locks", [True, False])
def test_what_another_machine_may_be_writing_stays(tmp_path, monkeypatch, has_locks):
    theirs = tmp_path / f".weights.bin.{2**22 + 1}.7.tmp"  # its process has no number here
    theirs.write_text("half")
    if not has_locks:

        def refuse(file, operation):
            raise OSError(errno.ENOLCK, "no locks")

        os.utime(theirs, (1, 1))
        monkeypatch.setattr(fcntl, "flock", refuse)
    with atomic_write(tmp_path / "a.json") as file:
        file.write("whole")
    assert {path.name for path in tmp_path.iterdir()} == {theirs.name, "a.json"}


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(pipe) as file:
        file.write("one line\n")
    assert os.read(reader, 100) == b"one line\n"
    os.close(reader)
    assert pipe.is_fifo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


def test_bytes_are_synced_before_the_name_and_the_folder_after(tmp_path, monkeypatch):
    seen, path = [], tmp_path / "x"
    force = os.fsync

    def fsync(file):
        seen.append((os.fstat(file).st_ino, path.exists()))
        force(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(path) as file:
        file.write("new")
    assert seen == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    seen.clear()
    with atomic_path(tmp_path / "again", is_synced=False) as temporary:
        temporary.write_text("can be made again")
    assert (tmp_path / "again").is_file()
    assert not seen


def test_records_are_written_into_a_pipe_as_well(tmp_path):
    pipe = tmp_path / "records.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with RecordWriter(pipe) as writer:
        writer.write(Record((Message("user", "Who?"),)))
    assert b"Who?" in os.read(reader, 1000)
    os.close(reader)
    assert pipe.is_fifo()


def test_a_secret_is_its_owners_alone_and_never_overwritten(tmp_path):
    key = tmp_path / "a.key"
    write_secret(key, b"first")
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_secret(key, b"second")
    assert key.read_bytes() == b"first"


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.txt").write_text("old")
    for name in ("a.txt", "new.txt"):  # one that exists, and one that does not yet
        link = tmp_path / f"link-{name}"
        link.symlink_to(tmp_path / "far" / name)
        with atomic_write(link) as file:
            file.write("new")
        assert link.is_symlink()
        assert (tmp_path / "far" / name).read_text() == "new"
    assert len(list((tmp_path / "far").iterdir())) == 2


def test_an_open_file_of_the_process_is_written_into_itself(tmp_path):
    with (tmp_path / "a.txt").open("w+") as shell:
        shell.write("before\n")
        shell.flush()
        link = tmp_path / "stdout"  # as /dev/stdout is
        link.symlink_to(f"/proc/self/fd/{shell.fileno()}")
        with atomic_write(link) as file:
            file.write("new")
        assert link.is_symlink()
        assert os.fstat(shell.fileno()).st_ino == (tmp_path / "a.txt").stat().st_ino
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_folder_that_may_not_be_listed_is_written_into(tmp_path, monkeypatch):
    force = disk.sync_path

    def refuse(path):
        if path == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        force(path)

    monkeypatch.setattr(disk, "sync_path", refuse)
    with atomic_write(tmp_path / "a.txt") as file:
        file.write("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_file_that_is_its_owners_alone_stays_so(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o600)
    with atomic_write(path) as file:
        assert all(one.stat().st_mode & 0o077 == 0 for one in tmp_path.iterdir())
        file.write("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o664)
    with atomic_write(path) as file:
        file.write("newer")
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_two_threads_that_write_one_file_do_not_mix_their_bytes(tmp_path):
    path, both = tmp_path / "a.txt", threading.Barrier(2)

    def write(letter):
        with atomic_write(path) as file:
            file.write(letter * 10)
            file.flush()
            both.wait(5)
            file.write(letter * 10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    assert path.read_text() in ("a" * 20, "b" * 20)


def test_a_secret_that_does_not_fit_leaves_no_file(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "sync_path", fail)
    with pytest.raises(ResourceError, match="disk is full"):
        write_secret(tmp_path / "key", b"secret")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    write_secret(tmp_path / "key", b"secret")
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "key", b"other")
    assert (tmp_path / "key").read_bytes() == b"secret"
