import json
from datetime import datetime

import pytest

from stillroom.serve.jobs.store import (
    JobRecord,
    JobStore,
    append_event,
    format_now,
    new_job_id,
    read_events,
)


def test_tickets_outlive_the_server_and_broken_ones_are_left_alone(tmp_path):
    tickets = JobStore(tmp_path)
    ticket = JobRecord(new_job_id("merge"), "acme", "merge", label="x", submitted=format_now())
    tickets.add(ticket, "kind: merge\n")
    tickets.change(ticket.id, state="running", takes=1)
    broken = tmp_path / new_job_id("rag")
    broken.mkdir()
    (broken / "ticket.json").write_text('{"id": "../../etc"')
    again = JobStore(tmp_path)
    assert [one.state for one in again] == ["running"]
    assert again.recipe(ticket.id) == "kind: merge\n"
    assert again.unread == [broken.name]
    again.remove(ticket.id)
    assert list(JobStore(tmp_path)) == []


@pytest.mark.parametrize("kind", ["flow", "merge.weights", "distill.cross_tokenizer"])
def test_a_ticket_of_every_kind_of_name_is_read_again(tmp_path, kind):
    ticket = JobRecord(new_job_id(kind), "", kind)
    JobStore(tmp_path).add(ticket, f"kind: {kind}\n")
    assert [record.kind for record in JobStore(tmp_path)] == [kind]


@pytest.mark.parametrize("change", [{"id": "../../etc"}, {"state": "odd"}, {"more": 1}])
def test_a_ticket_that_says_something_else_is_not_read(tmp_path, change):
    tickets = JobStore(tmp_path)
    ticket = JobRecord(new_job_id("merge"), "", "merge")
    tickets.add(ticket, "")
    path = tmp_path / ticket.id / "ticket.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert JobStore(tmp_path).unread == [ticket.id]


def test_events_are_read_on_from_where_a_reader_stopped(tmp_path):
    path = tmp_path / "events"
    for number in range(3):
        append_event(path, {"event": "said", "text": f"n{number} ä"})
    ends = [end for end, _ in read_events(path)]
    assert [event["text"] for _, event in read_events(path, ends[0])] == ["n1 ä", "n2 ä"]
    assert [event["text"] for _, event in read_events(path, ends[0] + 5)] == ["n2 ä"]
    assert list(read_events(path, ends[-1])) == list(read_events(path, 10**9)) == []


def test_a_torn_line_is_passed_over_and_ended_by_the_next_writer(tmp_path):
    path = tmp_path / "events"
    append_event(path, {"event": "a"})
    with path.open("a") as file:
        file.write('{"event": "to')
    assert [event["event"] for _, event in read_events(path)] == ["a"]
    append_event(path, {"event": "b"})
    assert [event["event"] for _, event in read_events(path)] == ["a", "b"]


def test_ids_sort_by_when_they_were_given_also_within_a_second_and_where_the_clock_stands(
    tmp_path, monkeypatch
):
    given = [new_job_id(kind) for kind in ("synth", "merge", "rag") * 50]
    assert given == sorted(given)

    class Back(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2020, 1, 1, tzinfo=tz)

    monkeypatch.setattr("stillroom.serve.jobs.store.datetime", Back)
    given += [new_job_id("merge"), new_job_id("merge")]
    assert given == sorted(given)
    old = JobRecord("20261126-205807-merge-5303196d", "", "merge")  # as they were before
    JobStore(tmp_path).add(old, "")
    assert [one.id for one in JobStore(tmp_path)] == [old.id]
