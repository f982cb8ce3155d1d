import sqlite3

import pytest

from stillroom.errors import ResourceError
from stillroom.jobs import atomic_write, replace_folder
from stillroom.jobs.files import full_disk_as_error


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


def test_replaced_folder_is_the_new_one_and_the_old_is_gone(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_full_disk_is_told_from_other_errors_of_libraries(tmp_path):
    with pytest.raises(ResourceError) as caught, full_disk_as_error(tmp_path):
        raise sqlite3.OperationalError("database or disk is full")
    assert caught.value.code == "resource.disk-full"
    with pytest.raises(sqlite3.OperationalError), full_disk_as_error(tmp_path):
        raise sqlite3.OperationalError("no such table: passages")
