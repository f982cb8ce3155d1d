import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import IntegrityError
from stillroom.jobs import Journal, journal, read_journal

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.text(max_size=8), values), max_size=6), st.data())
def test_any_cut_of_the_file_leaves_a_prefix_of_the_units(tmp_path_factory, units, data):
    path = tmp_path_factory.mktemp("journal") / "units.jsonl"
    with Journal(path) as journal:
        for key, value in units:
            journal.put(key, value)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(data.draw(st.integers(0, size)))
    states = [dict(units[:count]) for count in range(len(units) + 1)]
    with Journal(path) as again:
        found = {key: again[key] for key in again.keys()}  # noqa: SIM118  # a Journal is no dict
        assert found in states
        again.put("after", "the cut")
    with Journal(path) as last:
        assert last["after"] == "the cut"


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_damaged_line_and_all_after_it_are_done_again(tmp_path_factory, position, flip):
    path = tmp_path_factory.mktemp("journal") / "units.jsonl"
    with Journal(path) as journal:
        for key in "abcdef":
            journal.put(key, {"value": key * 5})
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] ^= flip
    path.write_bytes(raw)
    with Journal(path) as again:
        assert all(again[key] == {"value": key * 5} for key in again.keys())  # noqa: SIM118
        assert len(again) < 6


def test_memory_does_not_hold_the_values(tmp_path):
    with Journal(tmp_path / "units.jsonl") as shelf:
        shelf.put("large", "x" * 200_000)
        shelf.put("small", [1])
        assert shelf["large"] == "x" * 200_000
        assert shelf["small"] == [1]
        shelf["small"].append(2)
        assert shelf["small"] == [1]
        assert max(map(len, map(str, vars(shelf).values()))) < 1000


def test_others_may_read_while_one_puts(tmp_path):
    seen = []
    with Journal(tmp_path / "units.jsonl") as shelf:

        def read():
            while len(shelf) < 300:
                seen.extend(shelf[key] == {"at": key} for key in shelf.keys())  # noqa: SIM118

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(300):
            shelf.put(str(number), {"at": str(number)})
        for thread in threads:
            thread.join()
    assert all(seen)


def test_what_a_sync_on_another_thread_meets_is_raised_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_SYNC_EVERY_S", -1.0)
    with Journal(tmp_path / "units.jsonl") as shelf:
        shelf.put("a", 1)
        shelf.sync()

        def fail(number):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            shelf.put("b", 2)
            while not shelf._syncing.done():
                pass
            with pytest.raises(OSError, match="Input/output"):
                shelf.put("c", 3)
    with Journal(tmp_path / "units.jsonl") as again:
        assert again["c"] == 3


def test_a_journal_that_another_empties_is_told_of(tmp_path):
    path = tmp_path / "units.jsonl"
    with Journal(path) as shelf:
        shelf.put("a", 1)
        path.write_bytes(b"")
        with pytest.raises(IntegrityError) as caught:
            shelf["a"]
        assert caught.value.problems[0].code == "job.journal-cut"


def test_lines_behind_a_changed_one_are_told_of_and_a_torn_tail_is_not(tmp_path):
    path, found = tmp_path / "units.jsonl", []
    with Journal(path) as shelf:
        for number in range(5):
            shelf.put(f"unit-{number}", number)
    whole = path.read_bytes()
    path.write_bytes(whole + b"half of a li")
    assert len(read_journal(path, found.append)) == 5
    Journal(path, found.append).close()
    assert (path.read_bytes(), found) == (whole, [])
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"2]", b"3]"), *lines[3:]]))
    assert len(read_journal(path, found.append)) == 2
    Journal(path, found.append).close()
    assert len(found) == 2
    for line in found:
        assert "units.jsonl is broken at line 3 ('unit-2')" in line
        assert line.endswith("; 3 lines from there on are lost")


def test_a_line_that_is_written_meanwhile_is_no_damage(tmp_path, monkeypatch):
    path, found, compute = tmp_path / "units.jsonl", [], journal._compute_mark
    with Journal(path) as shelf:
        shelf.put("a", 1)
        shelf.put("b", 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])

    def finish_line(previous, body):
        if len(body) < len(b'["b",2]'):
            path.write_bytes(whole)
        return compute(previous, body)

    monkeypatch.setattr(journal, "_compute_mark", finish_line)
    assert read_journal(path, found.append) == {"a": 1}
    assert (path.read_bytes(), found) == (whole, [])
