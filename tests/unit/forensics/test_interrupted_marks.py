"""Ways to get an unmarked forgery by stopping the lab between picture, mark and ledger row."""

import errno
import fcntl
import os
import resource
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest
from tests.unit.forensics.test_red_team import forge, people  # noqa: F401

from stillroom.errors import IntegrityError, StillroomError
from stillroom.forensics.labeling.dataset_writer import find_unmarked_files
from stillroom.forensics.labeling.image import GeneratedImage, LabeledImageWriter
from stillroom.forensics.labeling.lab import Ledger, open_lab


@pytest.fixture
def own_lab(lab, tmp_path, monkeypatch):
    """A lab with two rows that a test may break."""
    shutil.copytree(lab.folder, tmp_path / "lab")
    for file in (tmp_path / "lab").rglob("ledger*"):
        file.unlink()
    monkeypatch.setenv("STILLROOM_LAB", str(tmp_path / "lab"))
    own = open_lab()
    (tmp_path / "out").mkdir()
    for name in ("first.png", "second.png"):
        write(own, tmp_path / "out" / name, 1)
    return own


def write(lab, path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    generated = GeneratedImage(
        content=pixels.repeat(12, 0).repeat(12, 1), generator="test", seed=seed, run="run",
        kind="forged", source_type="trainedAlgorithmicMedia",
    )  # fmt: skip
    return LabeledImageWriter(lab).write(generated, path)


def in_child(work):
    """Run work in a forked process; return its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            status = work() or 0
        except BaseException:  # noqa: BLE001  # the child may not go on with the tests
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check(lab, out):
    """Every media file there carries every mark, and the ledger goes on."""
    if any(out.iterdir()):
        assert not find_unmarked_files(out, lab)
    write(lab, out / "after.png", 9)
    lab.ledger.verify()
    assert not find_unmarked_files(out, lab)


@pytest.mark.parametrize("room", [0, 100, 900])
def test_a_disk_that_is_full_at_the_ledgers_row_leaves_no_picture(own_lab, tmp_path, room):
    size = own_lab.ledger.path.stat().st_size

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, size + room))
        try:
            write(own_lab, tmp_path / "out" / "third.png", 3)
        except StillroomError as error:
            return 10 if error.code != "internal" else 4
        except OSError:
            return 11
        return 0

    assert in_child(work) in {10, 11}
    assert not (tmp_path / "out" / "third.png").exists()
    check(own_lab, tmp_path / "out")


def test_a_ledger_that_cannot_be_written_leaves_no_picture(own_lab, tmp_path):
    own_lab.ledger.path.unlink()
    own_lab.ledger.path.mkdir()  # for root, no folder is read-only
    with pytest.raises((StillroomError, OSError)):
        write(own_lab, tmp_path / "out" / "third.png", 3)
    assert not (tmp_path / "out" / "third.png").exists()


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("moment", range(1, 12))
def test_a_kill_at_any_access_to_a_file_leaves_no_unmarked_picture(
    own_lab, tmp_path, moment, is_first
):
    if is_first:  # no row was ever written
        own_lab.ledger.path.unlink()
        own_lab.ledger.head.unlink()
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").mkdir()
    roots = (str(own_lab.folder), str(tmp_path / "out"))

    def work():
        seen = 0

        def hook(event, given):
            nonlocal seen
            if event in {"open", "os.rename", "fcntl.flock", "os.truncate"} and (
                event == "fcntl.flock" or str(given[0]).startswith(roots)
            ):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        write(own_lab, tmp_path / "out" / "third.png", 3)

    assert in_child(work) in {-signal.SIGKILL, 0}
    check(own_lab, tmp_path / "out")


def test_a_torn_row_is_left_out_only_where_no_head_confirms_it(own_lab, tmp_path):
    path, head = own_lab.ledger.path, own_lab.ledger.head.read_bytes()
    write(own_lab, tmp_path / "third.png", 3)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(IntegrityError):
        own_lab.ledger.verify()
    own_lab.ledger.head.write_bytes(head)  # as a power cut leaves them
    assert own_lab.ledger.verify() == 2
    check(own_lab, tmp_path / "out")
    assert own_lab.ledger.verify() == 3


def test_two_processes_at_one_path_leave_one_whole_marked_picture(own_lab, tmp_path):
    path = tmp_path / "out" / "same.png"

    def work(seeds):
        for seed in seeds:
            write(own_lab, path, seed)

    pids = []
    for seeds in ((21, 22, 23), (31, 32, 33)):
        if (pid := os.fork()) == 0:
            status = 3
            try:
                work(seeds)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    assert {file.name for file in path.parent.iterdir()} == {"first.png", "second.png", "same.png"}
    check(own_lab, path.parent)
    assert own_lab.ledger.verify() == 9


def test_a_run_without_consent_at_a_place_of_one_with_it_changes_nothing(people, tmp_path, lab):  # noqa: F811
    out = Path(tmp_path / "made")
    forge(people, out, faces={"generator": "a model of nobody"})
    before = {file: file.read_bytes() for file in out.rglob("*.jpg")}
    assert before
    with pytest.raises(StillroomError):
        forge(people, out)
    assert {file: file.read_bytes() for file in out.rglob("*.jpg")} == before
    assert not find_unmarked_files(out, lab)


def test_a_row_that_another_process_writes_meanwhile_breaks_nothing(own_lab, monkeypatch):
    """The other one holds the lock when this one opens the file."""
    lock = fcntl.flock

    def wait(file, kind):
        monkeypatch.setattr(fcntl, "flock", lock)
        Ledger(own_lab.folder, own_lab.key).append({"file": "theirs"})
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", wait)
    assert own_lab.ledger.append({"file": "mine"})["number"] == 3
    assert [row["file"] for row in own_lab.ledger.rows()][2:] == ["theirs", "mine"]


def test_a_row_that_is_written_while_others_are_read_breaks_nothing(own_lab):
    rows = own_lab.ledger.rows()
    files = [next(rows)["file"]]
    Ledger(own_lab.folder, own_lab.key).append({"file": "third.png"})
    files += [row["file"] for row in rows]
    assert files == ["first.png", "second.png"]  # as when it was opened
    assert own_lab.ledger.verify() == 3


def test_a_row_that_is_taken_back_is_never_read(own_lab, monkeypatch):
    found = []
    reader = threading.Thread(target=lambda: found.extend(own_lab.ledger.rows()))

    def fail(_):
        reader.start()
        reader.join(0.3)  # it waits for the row, or reads what is not there in a moment
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="input/output"):
            own_lab.ledger.append({"file": "third.png"})
    reader.join()
    assert [row["file"] for row in found] == ["first.png", "second.png"]


def test_a_confirmed_row_is_never_cut(own_lab):
    """Not one either whose line end was changed, so that it looks torn."""
    path = own_lab.ledger.path
    changed = path.read_bytes()[:-1] + b"x"
    path.write_bytes(changed)
    with pytest.raises(IntegrityError, match="its last row was modified"):
        own_lab.ledger.append({"file": "mine"})
    assert path.read_bytes() == changed


@pytest.mark.parametrize("is_first", [False, True])
def test_a_kill_between_a_row_and_its_head_breaks_nothing(own_lab, is_first):
    ledger, head = own_lab.ledger, own_lab.ledger.head.read_bytes()
    if is_first:  # no row was ever written
        ledger.path.unlink()
        ledger.head.unlink()
    else:  # behind a row whose head is lost, too
        ledger.append({"file": "one"})
        ledger.head.write_bytes(head)
    before = 0 if is_first else 3

    def work():
        write_head = Ledger._write_head

        def write_or_die(self, count, digest, size):
            if count == before + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            write_head(self, count, digest, size)

        Ledger._write_head = write_or_die
        ledger.append({"file": "two"})

    assert in_child(work) == -signal.SIGKILL
    if is_first:
        ledger.path.write_bytes(ledger.path.read_bytes()[:-9])
    else:
        assert ledger.verify() == 4
    number = 0 if is_first else 4
    assert ledger.append({"file": "three"})["number"] == number
    assert ledger.verify() == number + 1


@pytest.mark.parametrize("cut", [1, 20, 21, 22])
def test_a_row_torn_within_a_letter_is_left_out(own_lab, cut):
    head, size = own_lab.ledger.head.read_bytes(), own_lab.ledger.path.stat().st_size
    own_lab.ledger.append({"zzz": "ééééééééé"})
    own_lab.ledger.path.write_bytes(own_lab.ledger.path.read_bytes()[:-cut])
    own_lab.ledger.head.write_bytes(head)
    assert own_lab.ledger.append({"file": "next"})["number"] == 2
    assert own_lab.ledger.verify() == 3
    assert own_lab.ledger.path.stat().st_size > size


def test_a_row_that_could_not_be_made_safe_is_taken_back(own_lab, monkeypatch):
    before = own_lab.ledger.path.read_bytes()

    def fail(_):
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="input/output"):
            own_lab.ledger.append({"file": "third.png"})
    assert own_lab.ledger.path.read_bytes() == before
    assert own_lab.ledger.append({"file": "third.png"})["number"] == 2
