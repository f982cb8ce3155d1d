"""Evidence over HTTP: of each answer, signed, for the key that asked, and verified as a file."""

import base64
import json

import pytest
from tests.console_folder import build_folder, build_tenants
from tests.unit.serve.test_app import chat, check_error, events, request

from stillroom.flow.evidence import verify_evidence
from stillroom.provenance.evidence import read_evidence, seal_evidence
from stillroom.provenance.signing import KEY_VARIABLE, create_key_pair, load_trust
from stillroom.rag.answer_strategies.quote import Quote
from stillroom.rag.generation.answer import ask
from stillroom.rag.generation.evidence import make_evidence
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext
from stillroom.serve import create_app
from stillroom.serve import evidence as store
from stillroom.serve.access import ApiKey
from stillroom.serve.mounts import open_run
from stillroom.testing import scripted_model

ACME, BOLT, JUDGE = (f"key-of-{name}-and-long-enough" for name in ("acme", "bolt", "judge"))
ASKED = [{"role": "user", "content": "Where does the river rise?"}]
QUOTING = {"answering": Quote(reader="builtin:overlap", min_probability=0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("evidence"))


@pytest.fixture(autouse=True)
def _model(monkeypatch):
    model = scripted_model({"*": "The river rises in the north. [1]"})
    monkeypatch.setattr("stillroom.serve.mounts.open_text_model", lambda *_, **__: model)


def fetch(app, reply, key="", choice=0):
    headers = {"Authorization": f"Bearer {key}"} if key else None
    return request(app, "GET", f"/v1/answers/{reply}/evidence?choice={choice}", headers=headers)


def test_each_kind_of_reply_has_evidence_that_verifies(folder, tmp_path, monkeypatch):
    _, public = create_key_pair(tmp_path / "server")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "server.key"))
    with open_run(folder / "run", settings=QUOTING) as opened:
        app = create_app(opened)
        whole = chat(app, messages=ASKED).json()
        streamed = events(chat(app, messages=ASKED, stream=True))
        body = {"model": "run", "input": ASKED[0]["content"]}
        items = request(app, "POST", "/v1/responses", json_body=body).json()
        for name in (whole["id"], streamed[0]["id"], items["id"]):
            reply = fetch(app, name)
            assert reply.status_code == 200, reply.text
            (tmp_path / "a.json").write_bytes(reply.content)
            evidence = read_evidence(tmp_path / "a.json")
            assert evidence.predicate["answer"]["text"] == whole["choices"][0]["message"]["content"]
            trust = load_trust([public])
            report = verify_evidence(evidence, trust, within=folder / "run")
            assert (report.findings, report.signature, report.is_reasked) == ((), "trusted", True)


def test_of_several_texts_each_has_its_own_and_unknown_ones_are_refused(folder):
    with open_run(folder / "run") as opened:
        app = create_app(opened)
        reply = chat(app, messages=ASKED, answering="generate", n=2).json()
        seeds = []
        for choice in range(2):
            envelope = fetch(app, reply["id"], choice=choice).json()
            assert envelope["signatures"] == []
            seeds.append(opening(envelope)["sampling"]["seed"])
        assert seeds[1] == seeds[0] + 1
        check_error(fetch(app, reply["id"], choice=2), 404, "no_evidence")
        check_error(fetch(app, "chatcmpl-none"), 404, "no_evidence")
        bare = chat(app, messages=ASKED, model="run-bare").json()
        check_error(fetch(app, bare["id"]), 404, "no_evidence")


def opening(envelope):
    return json.loads(base64.b64decode(envelope["payload"]))["predicate"]


def test_only_the_key_that_asked_may_read_it(tmp_path):
    folder = build_tenants(tmp_path)
    keys = [
        ApiKey(ACME, AccessContext("a", ["public"])),
        ApiKey(BOLT, AccessContext("b", ["public"])),
        ApiKey(JUDGE, AccessContext("a", ["public"]), scopes=frozenset({"judgments"})),
    ]
    with open_run(folder / "index", name="run", model="any", settings=QUOTING) as opened:
        app = create_app(opened, api_keys=keys)
        asked = [{"role": "user", "content": "What is the canary of a?"}]
        reply = chat(app, messages=asked, headers={"Authorization": f"Bearer {ACME}"}).json()
        stated = opening(fetch(app, reply["id"], ACME).json())
        assert "aword" in json.dumps(stated["passages"])
        assert (stated["index"]["tenant"], stated["index"]["principals"]) == ("a", ["public"])
        check_error(fetch(app, reply["id"], BOLT), 404, "no_evidence")
        check_error(fetch(app, reply["id"], JUDGE), 403, "missing_scope")
        check_error(fetch(app, reply["id"]), 401, "invalid_api_key")


def test_the_oldest_goes_first(folder, monkeypatch):
    monkeypatch.setattr(store, "MAX_KEPT_ANSWERS", 1)
    with open_run(folder / "run", settings=QUOTING) as opened:
        app = create_app(opened)
        first, second = (chat(app, messages=ASKED).json()["id"] for _ in range(2))
        check_error(fetch(app, first), 404, "no_evidence")
        assert fetch(app, second).status_code == 200


def test_many_answers_of_one_client_push_out_none_of_another(monkeypatch):
    monkeypatch.setattr(store, "MAX_KEPT_ANSWERS", 3)
    kept = store.EvidenceStore()
    for name, client in (("a", 1), ("b", 2), ("c", 2), ("d", 2), ("e", 2)):
        kept.keep(name, 0, client, store.AnswerEvidence({"answer": {"sha256": name}}))
    read = [name for name in "abcde" if kept.seal(name, 0, 1) or kept.seal(name, 0, 2)]
    assert read == ["a", "d", "e"]


def test_paths_of_the_server_are_withheld_and_named(folder, tmp_path):
    model, question = scripted_model({"*": "It rises."}), "Where does the river rise?"
    method = Quote(reader="/srv/secret/reader")
    with Index.open(folder / "run/steps/index") as index:
        answer = ask(index, model, question, **QUOTING)
        stated = make_evidence(answer, index, model, question, withholds=True, answering=method)
        nested = {"name": "corrective", "grader": {"name": "cross_encoder", "checkpoint": "/srv/g"}}
        inner = make_evidence(answer, index, model, question, withholds=True, answering=nested)
    assert (stated["withheld"], inner["withheld"]) == (
        ["answering.reader"],
        ["answering.grader.checkpoint"],
    )
    assert "/srv" not in json.dumps([stated, inner])
    (tmp_path / "a.json").write_text(json.dumps(seal_evidence(stated, None)))
    report = verify_evidence(read_evidence(tmp_path / "a.json"), within=folder / "run")
    assert (report.findings, report.is_reasked) == ((), False)
    assert "withholds answering.reader" in report.open_ends[0]
