import gzip
import json
import re

import pytest
from starlette.testclient import TestClient
from tests.console_folder import HOSTILE, KEY, SAID, build_tenants

from stillroom.console import create_console
from stillroom.flow import run_recipe
from stillroom.rag.index.view import AccessContext
from stillroom.recipes import parse_recipe
from stillroom.serve.views.sources import Sources


def ask(client, token, at="run", **body):
    body = {
        "model": "run", "messages": [{"role": "user", "content": "Where does the river rise?"}],
        "stream": True, **body,
    }  # fmt: skip
    headers = {"x-stillroom-token": token}
    reply = client.post(f"/v1/chat/completions?at={at}", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    lines = [line[6:] for line in reply.text.split("\n\n") if line.startswith("data: {")]
    deltas = [one["choices"][0]["delta"] for one in map(json.loads, lines)]
    return "".join(one.get("content", "") for one in deltas), deltas


def test_the_page_offers_the_runs_of_the_folder(client):
    page = client.get("/ask").text
    assert 'data-at="run"' in page
    assert 'value="run" selected' in page
    assert "run: run" in page  # seen while the settings are folded
    assert client.get("/ask?at=elsewhere").status_code == 404
    assert 'id="send"' in client.get("/ask?at=run&q=why").text


def test_an_index_that_belongs_to_no_run_is_asked(tmp_path):
    app = create_console(build_tenants(tmp_path), key=KEY, access=AccessContext("a"))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.get(f"/?key={KEY}")
        page = client.get("/ask").text
        assert 'data-at="index"' in page
        assert "index: index" in page
        messages = [{"role": "user", "content": "What is the canary of a?"}]
        text, deltas = ask(client, app.token, at="index", model="index", messages=messages)
    told = next(one for one in deltas if "citations" in one)
    assert text == "The canary of a is aword. [1]"
    assert [one["path"] for one in told["citations"]] == ["a.txt"]  # nothing of tenant b


def test_the_index_of_a_run_is_not_offered_beside_it(client):
    assert "steps/index" not in client.get("/ask").text


def test_an_answer_is_cited_with_scores_and_origins(client, token):
    text, deltas = ask(client, token, answering="generate")
    assert text.startswith("The river rises in the north.")
    told = next(one for one in deltas if "citations" in one)
    assert told["citations"][0]["path"] == "rivers.txt"
    sources = told["answer"]["sources"]
    assert {one["origin"] for one in sources} == {"human"}
    assert all(isinstance(one["score"], float) and one["rank"] >= 1 for one in sources)
    ids = [one["passage_id"] for one in sources]
    rows = client.get("/ask/passages", params={"at": "run", "id": [*ids, "pas-none"]}).json()[
        "data"
    ]
    assert "river rises" in rows[0]["text"]
    assert rows[-1] == {"id": "pas-none", "missing": True}


def test_the_default_quotes(client, token):
    text, deltas = ask(client, token)
    told = next(one for one in deltas if "citations" in one)["answer"]
    assert told["answering"] == "quote"
    quotes = [f"{one['text']} [{one['number']}]" for one in told["quotes"]]
    assert text == " ".join(quotes)
    assert "The river rises in the north." in text
    assert not told["abstained"]


def test_the_model_alone_answers_under_its_own_name(client, token):
    names = client.post("/ask/open?at=run", headers={"x-stillroom-token": token}).json()
    assert names == {"model": "run", "bare": "run-bare", "k": 3}
    text, deltas = ask(client, token, model="run-bare")
    assert text == SAID
    assert not any("citations" in one for one in deltas)


def test_a_citation_opens_its_document_with_the_span_marked(client, token, folder):
    told = next(one for one in ask(client, token, answering="generate")[1] if "citations" in one)[
        "citations"
    ][0]
    for more in ("", "&part=1"):
        page = client.get(f"/source?at=run&passage={told['passage_id']}{more}").text
        marked = page.split('<mark id="span" tabindex="-1">')[1].split("</mark>")[0]
        assert marked == told["text"]
        assert f"{told['byte_start']}–{told['byte_end']}" in page
        assert "its digest is the same" in page
        assert 'class="badge human"' in page
    data = (folder / "documents/rivers.txt").read_bytes()
    assert data[told["byte_start"] : told["byte_end"]].decode() == told["text"]


def test_a_quote_opens_its_document_with_the_quote_alone_marked(client, folder):
    with Sources(folder).seen("run") as index:
        passages = [index.passage_at(row) for row in range(len(index))]
    (passage,) = (one for one in passages if "river" in one.text)
    start = passage.text.index("It ends")
    end = start + len("It ends in the sea.")
    first = passage.location.byte_start + start  # ASCII, from the start of the file

    def open_source(place):
        page = client.get(f"/source?at=run&passage={passage.id}&quote={place}").text
        return page, page.split('<mark id="span" tabindex="-1">')[1].split("</mark>")[0]

    page, marked = open_source(f"{start}-{end}-{first}-{first + end - start}")
    assert marked == "It ends in the sea."
    assert f"{first}–{first + end - start}" in page
    assert "The quote is marked" in page
    place = f"{start}-{end}-{first}-{first + end - start}"
    page = open_source(f"0-9-{first - start}-{first - start + 9},{place}")[0]
    shown = page.split('<div class="source">')[1]
    marked = re.findall(r"<mark[^>]*>(.*?)</mark>", shown, re.DOTALL)
    assert marked == [passage.text[:9], "It ends in the sea."]
    assert f"{passage.text[9:start]}<mark>" in shown
    for wrong in (
        f"{place},0-9-0-8",
        f"{start}-{end}-0-9",
        f"{start}-9999-0-9",
        "x",
        "5-2-0-9",
        "9" * 5000 + "-1-1-1",
    ):
        assert open_source(wrong)[1] == passage.text


def test_a_hostile_document_is_shown_and_not_obeyed(client, folder):
    with Sources(folder).seen("run") as index:
        passages = [index.passage_at(row) for row in range(len(index))]
    hostile = [one.id for one in passages if "ferry" in one.text]
    page = client.get(f"/source?at=run&passage={hostile[0]}").text
    assert HOSTILE not in page
    assert "&lt;script&gt;alert" in page


def test_the_source_of_a_compressed_file_says_so(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/pump.txt.gz").write_bytes(gzip.compress(b"The pump was replaced.\n"))
    text = "kind: rag.index\ndocuments: documents\nembedder: builtin:static\n"
    run_recipe(parse_recipe(text, folder=tmp_path), tmp_path / "index")
    sources = Sources(tmp_path)
    with sources.seen("index") as index:
        passage = index.passage_at(0).id
    assert any("compressed (.gz)" in note for note in sources.source("index", passage).notes)
    sources.close()


def test_a_changed_file_is_said_to_be(client, folder, token):
    told = next(one for one in ask(client, token, answering="generate")[1] if "citations" in one)[
        "citations"
    ][0]
    path = folder / "documents/rivers.txt"
    before = path.read_text()
    try:
        path.write_text("Another river.\n")
        page = client.get(f"/source?at=run&passage={told['passage_id']}").text
        assert "the file has changed since it was read" in page
        assert told["text"] in page
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "run/../../secret",
        "/etc",
        "..%2fsecret",
        ".stillroom",
        "run\\..\\x",
        "a\0b",
        "",
    ],
)
def test_no_name_leads_outside_the_folder(client, token, name):
    headers = {"x-stillroom-token": token}
    assert client.get("/source", params={"at": name, "passage": "x"}).status_code in {400, 404}
    assert client.get("/ask/passages", params={"at": name, "id": "x"}).status_code in {400, 404}
    assert client.post("/ask/open", params={"at": name}, headers=headers).status_code in {400, 404}
    assert client.get("/v1/models", params={"at": name}).status_code in {400, 404, 500}


def test_a_link_that_leads_outside_is_no_name_inside(client, folder):
    link = folder / "link"
    link.symlink_to(folder.parent / "secret")
    try:
        reply = client.get("/source", params={"at": "link", "passage": "x"})
        assert reply.status_code == 404
        assert str(folder.parent) not in reply.text
    finally:
        link.unlink()


def test_models_are_opened_of_the_folder_alone(client, token):
    headers = {"x-stillroom-token": token}
    reply = client.post("/ask/open", params={"at": "hub:another/model"}, headers=headers)
    assert reply.status_code == 404


def test_a_tenant_is_shown_its_own_alone(tmp_path):
    folder = build_tenants(tmp_path)
    with Sources(folder, AccessContext("a")).seen("index") as index:
        own = index.passage_at(0)
    assert "aword" in own.text
    with Sources(folder, AccessContext("b")).seen("index") as index:
        other = index.passage_at(0).id
    app = create_console(folder, key=KEY, access=AccessContext("a"))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.get(f"/?key={KEY}")
        assert "aword" in client.get("/source", params={"at": "index", "passage": own.id}).text
        reply = client.get("/source", params={"at": "index", "passage": other})
        assert reply.status_code == 404
        assert "bword" not in reply.text
        rows = client.get("/ask/passages", params={"at": "index", "id": [other, own.id]}).json()
        assert [one.get("missing", False) for one in rows["data"]] == [True, False]
    app = create_console(folder, key=KEY)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.get(f"/?key={KEY}")
        assert client.get("/source", params={"at": "index", "passage": own.id}).status_code == 403


def judge(client, at="run", headers=None, **body):
    fields = {"model": "run", "question": "Where?", "answer": "There.", "verdict": "absent", **body}
    return client.post(f"/v1/judgments?at={at}", json=fields, headers=headers)


def test_an_answer_is_judged_by_a_sentence_of_its_passages(client, token, folder):
    told = next(one for one in ask(client, token)[1] if "citations" in one)
    ids = [one["passage_id"] for one in told["answer"]["sources"]]
    rows = client.get("/ask/passages", params={"at": "run", "id": ids}).json()["data"]
    row = next(one for one in rows if "ends in the sea" in one["text"])
    sentence = next(
        row["text"][start:end]
        for start, end in row["sentences"]
        if "ends" in row["text"][start:end]
    )
    reply = judge(client, verdict="quote", quote=sentence)
    assert reply.status_code == 403  # a page of the console has the token
    headers = {"x-stillroom-token": token}
    told = judge(client, headers=headers, verdict="quote", quote=sentence).json()
    assert told["evidence"][0]["quote"] == sentence == "It ends in the sea."
    assert (folder / f"run.judgments/{told['split']}.jsonl").is_file()
    assert "data-judged" in client.get("/ask?at=run").text
    assert judge(client, at="../secret", headers=headers).status_code in {400, 404}


def test_a_console_over_a_run_judges_nothing(folder, monkeypatch):
    app = create_console(folder / "run", key=KEY)
    with TestClient(app, base_url="http://127.0.0.1:8152") as client:
        assert client.get(f"/ask?key={KEY}&at=.").status_code == 200
        assert "data-judged" not in client.get("/ask?at=.").text
        reply = judge(client, at=".", headers={"x-stillroom-token": app.token})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "console.read-only"
