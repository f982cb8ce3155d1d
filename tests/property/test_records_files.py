"""Records survive every format and file; any bytes are read, dropped with a reason, or refused."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stillroom.errors import DataError
from stillroom.records import (
    Link,
    Message,
    Origin,
    Record,
    from_row,
    read_records,
    to_row,
    write_records,
)

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), words)
links = st.builds(Link, words, words, st.lists(words, max_size=2).map(tuple))
origins = st.builds(
    Origin,
    st.sampled_from(["human", "synthetic", "unknown"]),
    st.lists(links, max_size=2).map(tuple),
    words,
)
reserved = {
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "response",
    "text",
    "origin",
    "fields",
    "system",
    "history",
    "message_extras",
    "id",
    "license",
}
names = words.filter(lambda word: word not in reserved)
records = st.builds(
    Record,
    st.lists(messages, max_size=4).map(tuple),
    st.dictionaries(names, plain, max_size=4),
    origins,
)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet"])
@settings(max_examples=60, deadline=None)
@given(kept=st.lists(records, max_size=6))
def test_a_file_gives_back_what_was_written(suffix, kept):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"r{suffix}"
        assert write_records(path, kept) == len(kept)
        found = list(read_records(path))
    assert found == kept
    assert [record.id for record in found] == [record.id for record in kept]


@settings(max_examples=150, deadline=None)
@given(record=records, format=st.sampled_from(["messages", "sharegpt", "stillroom"]))
def test_conversations_survive_their_format(record, format):
    assume(record.messages or format == "stillroom")  # a conversation has a turn
    assert from_row(to_row(record, format), format) == record


@settings(max_examples=100, deadline=None)
@given(record=records, asked=words, given_=words.filter(bool))
def test_pairs_survive_their_format(record, asked, given_):
    pair = Record(
        (Message("user", asked), Message("assistant", given_)), record.fields, record.origin
    )
    for format in ["alpaca", "prompt_completion"]:
        assert from_row(to_row(pair, format)) == pair
    alone = Record((Message("assistant", given_),), record.fields, record.origin)
    assert from_row(to_row(alone, "text")) == alone


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=300),
    suffix=st.sampled_from([".jsonl", ".jsonl.zst", ".parquet", ".json", ".csv", ".txt"]),
)
def test_any_bytes_are_read_or_refused(data, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"r{suffix}"
        path.write_bytes(data)
        try:
            found = list(read_records(path, on_drop=lambda number, reason: None))
        except DataError:
            return
    assert all(isinstance(record, Record) for record in found)


@settings(max_examples=150, deadline=None)
@given(row=plain)
def test_any_value_is_a_record_or_refused(row):
    try:
        record = from_row(row)
    except DataError:
        return
    assert Record.from_json(record.to_json()) == record
