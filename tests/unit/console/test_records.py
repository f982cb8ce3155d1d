import threading

import pytest
from tests.console_folder import HOSTILE, build_records, build_tenants

from stillroom.errors import DataError, ResourceError
from stillroom.jobs import Job
from stillroom.provenance import read_artifact, walk_record
from stillroom.records import read_records
from stillroom.serve.reviews import Review, write_reviewed
from stillroom.serve.views.generators import compare_generators
from stillroom.serve.views.records import Wanted, list_records_of, open_set


@pytest.fixture
def made(tmp_path):
    return build_records(tmp_path / "set")


@pytest.fixture
def review(tmp_path):
    return Review(tmp_path / "reviews", "digest")


def look(tmp_path, review, **wanted):
    return list_records_of(tmp_path, "set", Wanted(**wanted), review)


def test_records_come_in_pages(client):
    page = client.get("/records?at=records")
    assert page.text.count('class="entry ') == 20
    assert "45 records kept, 2 dropped" in page.text
    last = client.get("/records?at=records&page=3").text
    assert last.count('class="entry ') == 5
    assert client.get("/records?at=records&page=99999999999").text.count('class="entry ') == 20
    assert HOSTILE not in page.text
    assert "&lt;script&gt;" in page.text


def test_records_are_searched_and_filtered(tmp_path, made, review):
    assert look(tmp_path, review).total == 45
    assert look(tmp_path, review, words="NUMBER 44").total == 1
    assert look(tmp_path, review, origin="human").total == 9
    dropped = look(tmp_path, review, show="dropped")
    assert dict(dropped.reasons) == {"says nothing": 1, "no sentence": 1}
    assert [one.can_decide for one in dropped.entries] == [True, False]
    assert look(tmp_path, review, show="dropped", reason="no sentence").total == 1


def test_decisions_are_filtered_undone_and_survive(tmp_path, made, review):
    key = made[0].id
    review.decide(key, "reject", seen=0, note="dull")
    assert look(tmp_path, review, decision="reject").total == 1
    again = Review(tmp_path / "reviews", "digest")
    assert again.latest(key)[0].note == "dull"
    again.decide(key, "undo", seen=1)
    assert again.latest(key) == (None, 2)
    assert [one.action for one in again.trail()] == ["reject", "undo"]


def test_a_torn_line_costs_itself_alone(tmp_path, made, review):
    for number in range(3):
        review.decide(made[number].id, "accept", seen=0)
    data = review.path.read_bytes()
    review.path.write_bytes(data[:-7])
    again = Review(tmp_path / "reviews", "digest")
    assert len(again.trail()) == 2
    again.decide(made[2].id, "accept", seen=0)
    assert review.path.read_bytes().count(b"\n") == 3


def test_nobody_decides_over_another(made, review):
    results = []

    def decide():
        try:
            review.decide(made[0].id, "accept", seen=0)
            results.append("done")
        except DataError as error:
            results.append(error.code)

    threads = [threading.Thread(target=decide) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(results) == ["console.decided"] * 3 + ["done"]
    assert len(review.trail()) == 1


@pytest.mark.parametrize(
    ("action", "messages"),
    [("burn", ()), ("edit", ()), ("edit", [("user", " ")]), ("accept", [("user", "x")])],
)
def test_what_is_no_decision_is_refused(made, review, action, messages):
    with pytest.raises(DataError) as told:
        review.decide(made[0].id, action, seen=0, messages=messages)
    assert told.value.code == "console.decision"
    assert not review.path.exists()


def test_a_full_disk_is_said_and_decides_nothing(made, review, monkeypatch):
    def full(*_):
        raise ResourceError("the disk is full", code="resource.disk-full")

    monkeypatch.setattr("stillroom.serve.reviews.Journal.put", full)
    with pytest.raises(ResourceError):
        review.decide(made[0].id, "accept", seen=0)
    assert review.latest(made[0].id) == (None, 0)


def test_what_was_accepted_becomes_records_with_the_trail(tmp_path, made, review):
    rejected, edited = made[1], made[2]
    review.decide(rejected.id, "reject", seen=0)
    turns = [("user", "What is two?"), ("assistant", "A number.")]
    review.decide(edited.id, "edit", seen=0, messages=turns)
    review.decide(edited.id, "accept", seen=1)  # the edit stays
    review.decide("dropped-0", "accept", seen=0)
    artifact = write_reviewed(tmp_path / "set", review, tmp_path / "out", "set")
    assert artifact.details["review"] == {"kept": 44, "edited": 1, "rejected": 1, "rescued": 1}
    rows = {record.messages[0].content: record for record in read_records(tmp_path / "out")}
    assert len(rows) == 45
    assert rejected.messages[0].content not in rows
    two = rows["What is two?"]
    assert two.fields["question"] == "What is two?"
    assert two.fields["answer"] == "A number."
    assert two.origin.kind == "synthetic"
    assert two.origin.chain[-1].method == "console.edit"
    assert two.origin.chain[-1].parents == (edited.id,)
    assert "What is number 999?" in rows
    assert (tmp_path / "out/output/review.jsonl").read_bytes().count(b"\n") == 4
    assert walk_record(tmp_path / "out", two.id).children[0].title == "console.edit"
    assert artifact.origin["kind"] == "synthetic"


def test_of_nothing_no_artifact_is_made(tmp_path, review):
    made = build_records(tmp_path / "few", count=1)
    review.decide(made[0].id, "reject", seen=0)
    for _ in range(2):  # pressed again it says the same
        with pytest.raises(DataError) as told:
            write_reviewed(tmp_path / "few", review, tmp_path / "out", "few")
        assert told.value.code == "console.nothing-left"
    review.decide(made[0].id, "accept", seen=1)
    Job.start(tmp_path / "out", "killed: while it was written").close()
    assert write_reviewed(tmp_path / "few", review, tmp_path / "out", "few").kind == "records"
    with pytest.raises(DataError):
        write_reviewed(tmp_path / "few", review, tmp_path / "out", "few")


def test_deciding_works_by_forms_alone(client, token, folder):
    key = client.get("/records?at=records").text.split('name="key" value="')[1].split('"')[0]
    form = {
        "token": token,
        "at": "records",
        "key": key,
        "seen": "0",
        "action": "reject",
        "back": "page=1",
    }
    assert client.post("/records/decide", data={**form, "token": "x"}).status_code == 403
    reply = client.post("/records/decide", data=form)
    assert reply.headers["location"] == f"/records?at=records&page=1#{key}"
    stale = client.post("/records/decide", data=form)
    assert stale.status_code == 409
    assert "console.decided" in stale.text
    assert "reject" in client.get("/records/trail?at=records").text
    made = client.post("/records/write", data={"token": token, "at": "records"})
    assert made.headers["location"] == "/records?at=reviewed%2Frecords-1"
    assert read_artifact(folder / "reviewed/records-1").details["review"]["rejected"] == 1


def test_an_artifact_that_is_served_itself_stays_as_it_is(folder, token, app):
    from starlette.testclient import TestClient
    from tests.console_folder import KEY

    from stillroom.console import create_console

    app = create_console(folder / "records", key=KEY)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.get(f"/?key={KEY}")
        form = {"token": app.token, "at": ".", "key": "x", "seen": "0", "action": "accept"}
        reply = client.post("/records/decide", data=form)
        assert reply.status_code == 403
        assert "console.read-only" in reply.text
    assert not (folder / "records/.stillroom").exists()


def test_generators_are_compared(tmp_path, made, review, client):
    review.decide(made[1].id, "reject", seen=0)
    told = {one.generator: one for one in compare_generators(tmp_path, "set", review)}
    grounded = told["synth.generators.grounded_qa"]
    assert (grounded.kept, grounded.dropped, grounded.rejected) == (36, 2, 1)
    assert grounded.words_asked == 4
    assert 0 < grounded.distinct <= 1
    assert told["no generator"].kept == 9
    assert "grounded_qa" in client.get("/records/generators?m=records").text


def test_records_of_tenants_are_not_shown(tmp_path, client):
    folder = build_tenants(tmp_path)
    with pytest.raises(DataError, match="holds no records"):
        open_set(folder, "index")
    assert client.get("/records?at=../secret").status_code == 404
    assert client.get("/records?at=run").status_code == 400
