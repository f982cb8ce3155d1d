import multiprocessing
import sqlite3

import pytest

from stillroom.jobs.files import open_shared_database

TABLE = "CREATE TABLE IF NOT EXISTS rows (value INTEGER)"


def open_all(folder, together, failures):
    for number in range(60):
        together.wait(30)
        try:
            shared = open_shared_database(folder / f"{number}.sqlite", TABLE)
        except sqlite3.Error as error:
            failures.put(str(error))
        else:
            shared.execute("INSERT INTO rows VALUES (1)")
            shared.close()
    failures.put(None)


def test_processes_that_open_a_new_file_at_once_all_may_write(tmp_path):
    context = multiprocessing.get_context("fork")
    together, failures = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=open_all, args=(tmp_path, together, failures)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert [failures.get(timeout=60) for _ in processes] == [None] * 4
    for process in processes:
        process.join(30)
    for path in tmp_path.glob("*.sqlite"):
        shared = open_shared_database(path, TABLE)
        assert shared.execute("SELECT sum(value) FROM rows").fetchone() == (4,)
        shared.close()


def test_a_file_that_stays_locked_is_told_of_when_the_wait_is_over(tmp_path):
    path = tmp_path / "a.sqlite"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        open_shared_database(path, TABLE, wait_s=0.1)
    holder.close()


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        open_shared_database(path, TABLE)
