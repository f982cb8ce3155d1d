import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from stillroom.errors import ResourceError
from stillroom.jobs import Job, replace_folder, sync_folder
from stillroom.jobs.files import draft_folder, lock_folder
from stillroom.provenance.signing.artifacts import LOCK_FILE


def test_replaced_folder_is_the_new_one_and_the_old_is_gone(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.fixture
def synced(monkeypatch):
    """Return the files and folders that are forced to disk, by device and number."""
    found, force = set(), os.fsync

    def fsync(file):
        found.add(os.fstat(file)[1:3])
        force(file)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def place(path):
    return path.stat()[1:3]


def test_a_folder_is_forced_to_disk_with_all_in_it_but_what_is_named(tmp_path, synced):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    for path in (outside / "x", folder / "a" / "b" / "x", folder / "y", folder / "scratch" / "z"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (folder / "link").symlink_to(outside)
    sync_folder(folder, but={"scratch"})
    left = (outside / "x", folder / "scratch", folder / "scratch" / "z")
    assert not synced & {place(path) for path in left}
    wanted = (folder, folder / "a", folder / "a" / "b", folder / "a" / "b" / "x", folder / "y")
    assert synced >= {place(path) for path in wanted}
    sync_folder(folder)
    assert synced >= {place(path) for path in left[1:]}


def test_a_finished_job_has_forced_to_disk_what_stays_of_it(tmp_path, synced):
    job = Job.start(tmp_path / "out", "x: 1\n")
    job.journal("units").put("a", 1)
    (job.scratch / "z").write_text("helps the run")
    scratch = place(job.scratch / "z")
    journal = place(job.work / "journals" / "units.jsonl")
    (job.output / "rows").mkdir()
    (job.output / "rows" / "a").write_text("stays")
    job.finish("records")
    kept = [path for path in (tmp_path / "out").rglob("*") if path.name != ".lock"]
    assert synced >= {place(path) for path in kept}
    assert journal in synced  # as whoever put was promised
    assert scratch not in synced


def test_a_lock_is_refused_by_name_waited_for_and_free_after_a_kill(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "from stillroom.errors import ResourceError\n"
        "from stillroom.jobs.files import lock_folder\n"
        "busy = ResourceError('taken', code='resource.busy')\n"
        "held = lock_folder(pathlib.Path(sys.argv[1]), busy)\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    busy = ResourceError(f"another process writes {tmp_path}", code="resource.busy")
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ResourceError, match=str(tmp_path)) as caught:
                lock_folder(tmp_path, busy)
            assert caught.value.code == "resource.busy"
            waiting = threading.Timer(0.2, holder.send_signal, [signal.SIGKILL])
            waiting.start()
            with lock_folder(tmp_path, busy, wait=True):
                assert holder.wait() == -signal.SIGKILL
                with pytest.raises(ResourceError, match="another process"):
                    lock_folder(tmp_path, busy)
        finally:
            holder.kill()
    lock_folder(tmp_path, busy).lock.release()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ResourceError, match="has no file locks"):
        lock_folder(tmp_path, ResourceError("busy", code="resource.busy"))
    with pytest.raises(FileNotFoundError):
        lock_folder(tmp_path / "gone", ResourceError("busy", code="resource.busy"))
    assert not (tmp_path / "gone").exists()


def test_a_folder_is_written_on_a_disk_without_locks(tmp_path, monkeypatch):
    def refuse(*_args, **_settings):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with draft_folder(tmp_path / "model") as draft:
        (draft / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
