"""Judgments over HTTP: stored with their evidence, by who may, about what he may read."""

import shutil
from types import SimpleNamespace

import pytest
from tests.console_folder import build_folder, build_tenants
from tests.unit.serve.test_app import KEY, ask_documents, chat, check_error, request, served

from stillroom.errors import ResourceError
from stillroom.evaluate.qa.judgments import find_judgments
from stillroom.rag.answer_strategies.quote import Quote
from stillroom.rag.index.view import AccessContext
from stillroom.serve import create_app
from stillroom.serve.access import ApiKey
from stillroom.serve.mounts import open_run
from stillroom.serve.openai.service import ModelService
from stillroom.testing import scripted_model

ACME, BOLT, READER = (f"key-of-{name}-and-long-enough" for name in ("acme", "bolt", "reader"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def run(folder, monkeypatch):
    model = scripted_model({"*": "The river rises in the north. [1]"})
    monkeypatch.setattr("stillroom.serve.mounts.open_text_model", lambda *_, **__: model)
    yield folder / "run"
    shutil.rmtree(folder / "run.judgments", ignore_errors=True)


def judge(app, key="", **body):
    headers = {"Authorization": f"Bearer {key}"} if key else None
    fields = {"model": "run", "question": "Where does it rise?", "verdict": "right", "answer": ""}
    return request(app, "POST", "/v1/judgments", json_body={**fields, **body}, headers=headers)


def test_an_answer_is_judged_by_what_the_reply_gave(run):
    with open_run(run) as opened:
        app = create_app(opened)
        question = [{"role": "user", "content": "Where does the river rise?"}]
        reply = chat(app, messages=question, answering="generate")
        message = reply.json()["choices"][0]["message"]
        told = judge(
            app,
            answer=message["content"],
            citations=message["citations"],
            answered_by=message["answer"]["answered_by"],
        )
    assert told.status_code == 200, told.text
    body = told.json()
    assert body["verdict"] == "right"
    (stored,) = find_judgments(run).read()
    assert (stored.id, stored.side) == (body["id"], body["split"])
    assert stored.asked.reader == message["answer"]["answered_by"]
    assert [dict(part) for part in stored.evidence] == body["evidence"]
    assert body["answers"] == ["The river rises in the north."]


def test_a_quoted_answer_is_judged_by_its_own_quotes(run):
    method = Quote(reader="builtin:overlap", min_probability=0, max_quotes=2)
    with open_run(run, settings={"answering": method}) as opened:
        app = create_app(opened)
        question = [{"role": "user", "content": "Where does the river rise?"}]
        reply = chat(app, messages=question)
        message = reply.json()["choices"][0]["message"]
        answer = message["answer"]
        text, at = answer["quotes"][0]["text"], answer["quotes"][0]["start"]
        answer["quotes"][0] |= {"short": "in the north", "short_start": at + text.index("in the")}
        told = judge(
            app,
            answer=message["content"],
            citations=message["citations"],
            **{name: answer[name] for name in ("quotes", "index", "answered_by")},
        ).json()
        assert told["answers"] == ["The river rises in the north."]
        assert [part["quote"] for part in told["evidence"]] == ["The river rises in the north."]
        absent = dict.fromkeys(("quotes", "citations", "index", "answered_by"))
        assert judge(app, answer="Another.", verdict="wrong", **absent).status_code == 200
        assert judge(app, quotes=[{"text": "x"}] * 101).status_code == 400
        foreign = judge(app, answer="Another.", quotes=[{"text": "It ends in the sea."}])
        check_error(foreign, 400, "judge.other-answer")
    first, second = find_judgments(run).read()
    assert first.asked.index == first.state == answer["index"]
    assert second.asked.index == ""
    assert second.state == answer["index"]


def test_a_judgment_waits_for_its_turn(run, monkeypatch):
    turns = []
    compute = ModelService.compute

    async def count(self, *arguments):
        turns.append(arguments)
        return await compute(self, *arguments)

    monkeypatch.setattr(ModelService, "compute", count)
    with open_run(run) as opened:
        assert judge(create_app(opened), verdict="absent").status_code == 200
    assert len(turns) == 1


def test_a_text_of_the_documents_answers_and_another_does_not(run):
    with open_run(run) as opened:
        app = create_app(opened)
        told = judge(app, verdict="quote", quote="ends in the sea").json()
        assert told["evidence"][0]["quote"] == "It ends in the sea."
        assert told["evidence"][0]["file"] == "rivers.txt"
        check_error(judge(app, verdict="quote", quote="ends in a lake"), 400, "judge.no-such-quote")
        check_error(judge(app, verdict="quote"), 400, "judge.verdict")
        assert judge(app, verdict="absent").json()["answers"] == []
        assert judge(app, model="run-bare").status_code == 404
        assert judge(app, verdict="maybe").status_code == 400
        assert judge(app, question=" ").status_code == 400
    assert len(find_judgments(run).read()) == 1  # of one question and answer, the last


def test_a_key_without_the_scope_may_ask_and_not_judge(run):
    keys = [KEY, ApiKey(READER, scopes=frozenset({"models"}))]
    with open_run(run) as opened:
        app = create_app(opened, api_keys=keys)
        assert chat(app, {"Authorization": f"Bearer {READER}"}).status_code == 200
        check_error(judge(app, READER), 403, "missing_scope")
        assert judge(app, KEY).status_code == 200
        check_error(judge(app), 401, "invalid_api_key")


def test_a_tenant_judges_by_his_own_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "stillroom.serve.mounts.open_text_model", lambda *_, **__: scripted_model({"*": "x"})
    )
    index = build_tenants(tmp_path) / "index"
    keys = [ApiKey(ACME, AccessContext("a")), ApiKey(BOLT, AccessContext("b", ["ann"])), KEY]
    with open_run(index, model="scripted") as opened:
        app = create_app(opened, api_keys=keys)
        body = {"model": "index", "verdict": "quote", "quote": "The canary of a is aword"}
        assert judge(app, ACME, **body).json()["evidence"][0]["file"] == "a.txt"
        refused = check_error(judge(app, BOLT, **body), 400, "judge.no-such-quote")
        assert "bword" in refused["message"]
        assert "aword" not in refused["message"].replace(body["quote"], "")
        assert judge(app, BOLT, model="index", verdict="absent").status_code == 200
        check_error(judge(app, KEY, **body), 403, "no_tenant")
    scopes = {one.verdict: one.asked.scope for one in find_judgments(index).read()}
    assert scopes == {"quote": ("a",), "absent": ("b", "ann")}


def test_what_takes_no_judgments_says_so():
    check_error(judge(create_app(served(ask=ask_documents))), 404, "model_not_found")

    def judge_nothing(*_, **__):
        raise ResourceError(
            "no", code="judge.unwritable", where="/secret/place", expected="", next=""
        )

    app = create_app(served(ask=ask_documents, judgments=SimpleNamespace(judge=judge_nothing)))
    assert "secret" not in check_error(judge(app), 503, "judge.unwritable")["message"]


def manage(app, method, path="", key="", **query):
    headers = {"Authorization": f"Bearer {key}"} if key else None
    fields = {"model": "run", **query}
    asked = "&".join(f"{name}={value}" for name, value in fields.items())
    return request(app, method, f"/v1/judgments{path}?{asked}", headers=headers)


def test_judgments_are_listed_newest_first_and_deleted(run):
    with open_run(run) as opened:
        app = create_app(opened)
        assert manage(app, "GET").json() == {"object": "list", "data": [], "has_more": False}
        first = judge(app, verdict="quote", quote="ends in the sea").json()["id"]
        second = judge(app, question="Who?", answer="A.", verdict="absent").json()["id"]
        page = manage(app, "GET", limit=1).json()
        assert [one["id"] for one in page["data"]] == [second]
        assert page["has_more"]
        (row,) = manage(app, "GET", before=second).json()["data"]
        assert (row["id"], row["question"], row["stands"]) == (first, "Where does it rise?", True)
        assert row["evidence"][0]["quote"] == "It ends in the sea."
        assert manage(app, "DELETE", f"/{first}").json()["deleted"] == 1
        check_error(manage(app, "DELETE", f"/{first}"), 404, "judge.no-answer")
        check_error(manage(app, "GET", before=first), 404, "judge.no-answer")
        check_error(manage(app, "GET", model="run-bare"), 404, "model_not_found")
    assert [one.id for one in find_judgments(run).read()] == [second]


def test_a_key_that_may_judge_may_not_read_what_others_judged(run):
    keys = [KEY, ApiKey(READER, scopes=frozenset({"models", "judgments"}))]
    with open_run(run) as opened:
        app = create_app(opened, api_keys=keys)
        name = judge(app, READER).json()["id"]
        check_error(manage(app, "GET", key=READER), 403, "missing_scope")
        check_error(manage(app, "DELETE", f"/{name}", READER), 403, "missing_scope")
        assert len(manage(app, "GET", key=KEY).json()["data"]) == 1


def test_a_tenant_lists_and_deletes_his_own_judgments_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "stillroom.serve.mounts.open_text_model", lambda *_, **__: scripted_model({"*": "x"})
    )
    index = build_tenants(tmp_path) / "index"
    keys = [ApiKey(ACME, AccessContext("a")), ApiKey(BOLT, AccessContext("b", ["ann"])), KEY]
    with open_run(index, model="scripted") as opened:
        app = create_app(opened, api_keys=keys)
        name = judge(app, ACME, model="index", verdict="absent").json()["id"]
        assert manage(app, "GET", key=BOLT, model="index").json()["data"] == []
        gone = manage(app, "DELETE", f"/{name}", BOLT, model="index")
        check_error(gone, 404, "judge.no-answer")
        check_error(manage(app, "GET", key=KEY, model="index"), 403, "no_tenant")
        assert manage(app, "DELETE", f"/{name}", ACME, model="index").json()["deleted"] == 1
    assert find_judgments(index).read() == []


def test_the_next_who_asks_gets_the_sentence_that_was_chosen(run):
    method = Quote(reader="builtin:overlap", min_probability=0, max_quotes=1)
    with open_run(run, settings={"answering": method}) as opened:
        app = create_app(opened)
        question = [{"role": "user", "content": "Where does the river rise?"}]
        fields = {"question": question[0]["content"], "answer": "The river rises in the north. [1]"}
        told = judge(app, **fields, verdict="quote", quote="It ends in the sea.").json()
        message = chat(app, messages=question).json()["choices"][0]["message"]
        assert message["content"].startswith("It ends in the sea. [")
        judged = message["answer"]["judged"]
        assert (judged["id"], judged["verdict"], judged["origin"]) == (told["id"], "quote", "human")
        judge(app, **fields, verdict="absent")
        message = chat(app, messages=question).json()["choices"][0]["message"]
        assert message["answer"]["refusal"] == "judged-absent"


def test_a_tenant_is_answered_by_its_own_judgments_alone(run, tmp_path):
    index = build_tenants(tmp_path) / "index"
    keys = [ApiKey(ACME, AccessContext("a")), ApiKey(BOLT, AccessContext("b"))]
    method = Quote(reader="builtin:overlap", min_probability=0)
    with open_run(index, model="scripted", settings={"answering": method}) as opened:
        app = create_app(opened, api_keys=keys)
        fields = {"model": "index", "question": "What is the canary?", "answer": "?"}
        quote, told = "The canary of a is aword.", {}
        assert judge(app, ACME, **fields, verdict="quote", quote=quote).status_code == 200
        for key in (ACME, BOLT):
            body = {"model": "index", "messages": [{"role": "user", "content": fields["question"]}]}
            headers = {"Authorization": f"Bearer {key}"}
            reply = request(app, "POST", "/v1/chat/completions", json_body=body, headers=headers)
            told[key] = reply.json()["choices"][0]["message"]
    assert told[ACME]["content"].startswith(quote)
    assert told[ACME]["answer"]["judged"]["verdict"] == "quote"
    assert "judged" not in told[BOLT]["answer"]
    assert "aword" not in told[BOLT]["content"]
