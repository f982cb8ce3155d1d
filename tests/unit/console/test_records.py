import json
import threading

import pytest
from starlette.testclient import TestClient
from tests.console_folder import HOSTILE, KEY, build_records, build_tenants

from stillroom.console import create_console
from stillroom.errors import DataError, IntegrityError, ResourceError
from stillroom.jobs import Job
from stillroom.provenance import make_parent, read_artifact, walk_record
from stillroom.rag.index.view import AccessContext
from stillroom.records import Link, Message, Origin, Record, read_records, write_records
from stillroom.serve.views.records import (
    RecordsQuery,
    compare_generators,
    list_records,
    open_record_set,
)
from stillroom.serve.views.reviews import ReviewLog, write_reviewed_records
from stillroom.serve.views.sources import Sources


@pytest.fixture
def made(tmp_path):
    return build_records(tmp_path / "set")


@pytest.fixture
def review(tmp_path):
    return ReviewLog(tmp_path / "reviews", "digest")


def look(tmp_path, review, **wanted):
    return list_records(Sources(tmp_path), "set", RecordsQuery(**wanted), review)


def test_records_come_in_pages(client):
    page = client.get("/records?at=records")
    assert page.text.count('class="entry ') == 20
    assert "45 records kept, 2 dropped" in page.text
    last = client.get("/records?at=records&page=3").text
    assert last.count('class="entry ') == 5
    for number in ("4", "99999999999"):  # behind the end is the end
        assert client.get(f"/records?at=records&page={number}").text == last
    for number in ("0", "-1", "x"):
        assert client.get(f"/records?at=records&page={number}").text.count('class="entry ') == 20
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
    again = ReviewLog(tmp_path / "reviews", "digest")
    assert again.latest(key)[0].note == "dull"
    again.decide(key, "undo", seen=1)
    assert again.latest(key) == (None, 2)
    assert [one.action for one in again.trail()] == ["reject", "undo"]


def test_a_torn_line_costs_itself_alone(tmp_path, made, review):
    for number in range(3):
        review.decide(made[number].id, "accept", seen=0)
    data = review.path.read_bytes()
    review.path.write_bytes(data[:-7])
    again = ReviewLog(tmp_path / "reviews", "digest")
    assert len(again.trail()) == 2
    again.decide(made[2].id, "accept", seen=0)
    assert review.path.read_bytes().count(b"\n") == 3


def test_a_changed_line_is_refused_before_the_decisions_behind_it_are_cut_off(
    tmp_path, made, review
):
    for number in range(3):
        review.decide(made[number].id, "accept", seen=0)
    data = review.path.read_bytes()
    changed = data.replace(b'"accept"', b'"reject"', 1)
    review.path.write_bytes(changed)
    for act in (
        lambda: ReviewLog(tmp_path / "reviews", "digest"),
        lambda: review.decide(made[3].id, "accept", seen=0),
        review.trail,
    ):
        with pytest.raises(IntegrityError, match="is broken at line 1") as caught:
            act()
        assert caught.value.code == "console.trail-damaged"
    assert review.path.read_bytes() == changed


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

    monkeypatch.setattr("stillroom.serve.views.reviews.Journal.put", full)
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
    artifact = write_reviewed_records(tmp_path / "set", review, tmp_path / "out", "set")
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
            write_reviewed_records(tmp_path / "few", review, tmp_path / "out", "few")
        assert told.value.code == "console.nothing-left"
    review.decide(made[0].id, "accept", seen=1)
    Job.start(tmp_path / "out", "killed: while it was written").close()
    assert (
        write_reviewed_records(tmp_path / "few", review, tmp_path / "out", "few").kind == "records"
    )
    with pytest.raises(DataError):
        write_reviewed_records(tmp_path / "few", review, tmp_path / "out", "few")


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
    told = {one.generator: one for one in compare_generators(Sources(tmp_path), "set", review)}
    grounded = told["synth.generators.grounded_qa"]
    assert (grounded.kept, grounded.dropped, grounded.rejected) == (36, 2, 1)
    assert grounded.words_asked == 4
    assert 0 < grounded.distinct <= 1
    assert told["no generator"].kept == 9
    assert "grounded_qa" in client.get("/records/generators?m=records").text


def test_what_is_no_set_of_records_is_not_shown(tmp_path, client):
    folder = build_tenants(tmp_path)
    with (
        pytest.raises(DataError, match="holds no records"),
        open_record_set(Sources(folder), "index"),
    ):
        pass
    assert client.get("/records?at=../secret").status_code == 404
    assert client.get("/records?at=run").status_code == 400


def passage_of(folder, tenant):
    with Sources(folder, AccessContext(tenant)).seen("index") as index:
        return index.passage_at(0).id


def record_of(words, *passages):
    messages = (Message("user", f"What is {words}?"), Message("assistant", f"It is {words}."))
    chain = (Link("synth.generators.grounded_qa", "teacher", passages),) if passages else ()
    return Record(messages, {}, Origin("synthetic" if chain else "human", chain))


@pytest.fixture(scope="module")
def tenants(tmp_path_factory):
    """A folder with records of both tenants, of both at once, and of no passage."""
    folder = build_tenants(tmp_path_factory.mktemp("shared"))
    own = {one: passage_of(folder, one) for one in "ab"}
    job = Job.start(folder / "set", "kind: synth.records")
    rows = [record_of(f"{one}word", own[one]) for one in "ab"]
    rows += [record_of("bothword", *own.values()), record_of("strayword")]
    write_records(job.output / "records.jsonl", rows)
    fallen = [
        {"filter": "judge", "reason": "dull", "record": record_of(f"{one}fell", own[one]).to_json(),
         "score": 0.1, "split": "train", "text": "", "unit": ""}
        for one in "ab"
    ] + [
        {"filter": "generator", "reason": "odd", "record": None, "score": 0.0, "split": "train",
         "text": f"{one}odd", "unit": f"{own[one]}#0"}
        for one in "ab"
    ]  # fmt: skip
    text = "".join(json.dumps(one) + "\n" for one in fallen)
    (job.output / "dropped.jsonl").write_text(text)
    job.finish("records", parents=[make_parent("index", folder / "index", folder / "set")])
    build_records(folder / "open", count=1)
    return folder


def console_of(folder, access=None):
    app = create_console(folder, key=KEY, access=access)
    client = TestClient(app, base_url="http://127.0.0.1")
    return app, client


def test_a_tenant_is_shown_the_records_of_its_own_passages_and_what_all_may_see(tenants):
    app, client = console_of(tenants, AccessContext("a"))
    with client:
        client.get(f"/?key={KEY}")
        page = client.get("/records?at=set").text
        assert "1 record kept, 2 dropped" in page
        assert '<option value="open"' in page
        dropped = client.get("/records?at=set&show=dropped").text
        sides = client.get("/records/generators?m=set").text
        assert "aword" in page
        assert "afell" in dropped
        assert "aodd" in dropped
        for text in (page, dropped, sides):
            for foreign in ("bword", "bothword", "strayword", "bfell", "bodd"):
                assert foreign not in text
        form = {"token": app.token, "at": "set", "seen": "0", "action": "reject"}
        hidden = record_of("bword", passage_of(tenants, "b")).id
        assert client.post("/records/decide", data={**form, "key": hidden}).status_code == 404
        shown = record_of("aword", passage_of(tenants, "a")).id
        assert client.post("/records/decide", data={**form, "key": shown}).status_code == 200
        rescued = {**form, "key": "dropped-0", "action": "accept"}
        assert client.post("/records/decide", data=rescued).status_code == 200
        assert shown in client.get("/records/trail?at=set").text
        client.post("/records/write", data={"token": app.token, "at": "set"})
    rows = list(read_records(tenants / "reviewed/set-1"))
    assert [one.messages[1].content for one in rows] == ["It is afell."]
    app, client = console_of(tenants, AccessContext("b"))
    with client:
        client.get(f"/?key={KEY}")
        assert shown not in client.get("/records/trail?at=set").text
        assert client.get("/records?at=reviewed/set-1").text.count('class="entry ') == 0


def test_whoever_asks_as_nobody_is_offered_what_all_may_see(tenants):
    _, client = console_of(tenants)
    with client:
        client.get(f"/?key={KEY}")
        page = client.get("/records")
        assert page.status_code == 200
        assert 'value="set"' not in page.text
        refused = client.get("/records?at=set")
        assert refused.status_code == 403
        assert "--tenant" in refused.text


def test_a_dropped_record_without_a_visible_text_says_so(tmp_path):
    job = Job.start(tmp_path / "set", "version: 1\nkind: synth.records\n")
    write_records(job.output / "records.jsonl", [])
    row = {"filter": "generator", "reason": "no sentence", "record": None, "split": "train"}
    rows = [{**row, "text": text, "score": 0.0, "unit": ""} for text in ("", " \n", "a word")]
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (job.output / "dropped.jsonl").write_text(text)
    job.finish("records", origin={"kind": "synthetic"})
    app = create_console(tmp_path, key=KEY)
    with TestClient(app, base_url="http://127.0.0.1:8152") as client:
        client.get(f"/?key={KEY}")
        page = client.get("/records", params={"at": "set", "show": "dropped"}).text
    assert page.count("No text was generated") == 2
    assert page.count('class="turn"') == 1
