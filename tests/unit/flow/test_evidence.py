"""Evidence of answers: written, verified, forged, asked again, and read without Stillroom."""

import ast
import base64
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial, reduce
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner
from tests.console_folder import build_folder

from stillroom.cli import stillroom
from stillroom.errors import DataError
from stillroom.provenance import digest_bytes, digest_text, read_answer
from stillroom.provenance.evidence import check_document, check_evidence, read_evidence
from stillroom.provenance.signing import (
    IN_TOTO_PAYLOAD,
    create_key_pair,
    load_signing_key,
    load_trust,
    sign_envelope,
)
from stillroom.records.origin import make_content_id

SCRIPT = Path(__file__).parents[3] / "scripts/verify_evidence.py"
QUESTION = "Where does the river rise?"
QUOTING = "quote:reader=builtin:overlap,min_probability=0,max_quotes=2"


def call(*words, fails=False):
    result = CliRunner().invoke(stillroom, [str(word) for word in words])
    assert bool(result.exit_code) == fails, result.output
    return f"{result.output}{result.exception or ''}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("evidence")
    for name in ("alice", "eve"):
        create_key_pair(place / name)
    folder = build_folder(place)
    ask = ["ask", folder / "run", QUESTION, "--key", place / "alice.key"]
    call(*ask, "--answering", QUOTING, "--evidence", place / "quoted.json")
    call(*ask, "--answering", "generate", "--evidence", place / "written.json")
    return place


@pytest.fixture
def script(monkeypatch, capsys):
    """Return a function that runs the stand-alone verifier and returns the layers it names."""
    spec = importlib.util.spec_from_file_location("verify_evidence", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["verify_evidence", *map(str, words)])
        code = module.main()
        run.told = told = capsys.readouterr().out
        layers = {line.split(":")[0] for line in told.splitlines()} if code else set()
        assert code == 1 or told.startswith("the evidence holds")
        return layers

    return run


def open_statement(path):
    return json.loads(base64.b64decode(json.loads(path.read_text())["payload"]))


def seal(path, statement, *, key=None, envelope=None):
    """Write a statement: signed anew, or in an older envelope without a new signature."""
    payload = json.dumps(statement).encode()
    if key is not None:
        made = sign_envelope(payload, IN_TOTO_PAYLOAD, load_signing_key(key))
    else:
        made = {**envelope, "payload": base64.b64encode(payload).decode()}
    path.write_text(json.dumps(made))
    return path


def edit_answer(stated):
    stated["answer"]["text"] = stated["answer"]["text"].replace("north", "south")


def edit_all(statement):
    """Change the answer with its digests, its quotes and its passages, ids included."""
    stated = statement["predicate"]
    edit_answer(stated)
    for quote in stated["answer"]["quotes"]:
        quote["text"] = quote["text"].replace("north", "south")
    for one in stated["passages"]:
        one["text"] = one["text"].replace("north", "south")
        name_again(one)
    name_answer(statement)


def name_again(one):
    one["sha256"] = digest_text(one["text"])
    one["document_id"] = make_content_id("doc", one["path"], one["document_sha256"])
    parts = one["text_start"], one["text_end"], one["text"]
    one["id"] = make_content_id("pas", one["document_id"], *parts)


def name_answer(statement):
    answer = statement["predicate"]["answer"]
    answer["sha256"] = digest_text(answer["text"])
    statement["subject"][0]["digest"]["sha256"] = answer["sha256"]


def first(statement, part="passages"):
    stated = statement["predicate"]
    return (stated if part == "passages" else stated["answer"])[part][0]


def swap_document(statement):
    for one in statement["predicate"]["passages"]:
        one["document_sha256"] = digest_bytes(b"another file")
        name_again(one)


FORGERIES = {
    "answer": (lambda s: edit_answer(s["predicate"]), {"digest", "quote"}),
    "answer with its digest": (
        lambda s: (edit_answer(s["predicate"]), name_answer(s)),
        {"quote"},
    ),
    "answer, quotes and passages with all digests": (edit_all, {"document"}),
    "subject": (lambda s: s["subject"][0].update(name="other"), {"digest"}),
    "passage": (
        lambda s: first(s).update(text="It rises in the south."),
        {"digest", "quote", "document"},
    ),
    "passage's place": (
        lambda s: first(s).update(document_start=5, document_end=9),
        {"document"},
    ),
    "document": (swap_document, {"document"}),
    "path": (lambda s: first(s).update(path="hostile.txt"), {"digest", "document"}),
    "quote's place": (lambda s: first(s, "quotes").update(passage_start=2), {"quote"}),
    "quote outside": (
        lambda s: first(s, "quotes").update(answer_start=-9, answer_end=9),
        {"quote"},
    ),
    "quote's bytes": (lambda s: first(s, "quotes").update(document_start=1), {"document"}),
    "empty quote": (
        lambda s: first(s, "quotes").update(text="", answer_end=0, passage_end=0),
        {"quote", "document"},
    ),
    "citation": (lambda s: first(s, "citations").update(number=9), {"quote"}),
    "number": (lambda s: s["predicate"]["passages"].append(first(s)), {"quote"}),
    "reader": (lambda s: s["predicate"].update(reader="0" * 64), set()),
    "sampling": (lambda s: s["predicate"]["sampling"].update(seed=7), set()),
    "nothing": (lambda s: None, set()),
}


def check(path, trust, documents):
    """Return the layers that our own check names, with the files of the documents at hand."""
    evidence = read_evidence(path)
    own = check_evidence(evidence, trust)
    findings, state = list(own.findings), own.signature
    for name in sorted({one["path"] for one in evidence.predicate["passages"]}):
        findings += check_document(evidence, name, (documents / name).read_bytes())
    return {finding.layer for finding in findings}, state


@pytest.mark.parametrize("name", FORGERIES)
def test_each_forgery_is_named_alike_by_both_verifiers(name, place, script, tmp_path):
    forge, layers = FORGERIES[name]
    statement, trusted = open_statement(place / "quoted.json"), place / "alice.pub"
    envelope = json.loads((place / "quoted.json").read_text())
    documents, trust = place / "served/documents", load_trust([place / "alice.pub"])
    forge(statement)
    is_honest = name == "nothing"
    edited = seal(tmp_path / "edited.json", statement, envelope=envelope)
    if not is_honest:
        found = script(edited, "--key", trusted, "--documents", documents)
        assert found == layers | {"signature"} == check(edited, trust, documents)[0]
    insider = seal(tmp_path / "insider.json", statement, key=place / "alice.key")
    found = script(insider, "--key", trusted, "--documents", documents)
    assert found == layers == check(insider, trust, documents)[0]


def test_signatures_of_others_and_none_are_told_apart(place, script, tmp_path):
    good, trusted = place / "quoted.json", load_trust([place / "alice.pub"])
    documents = place / "served/documents"
    assert check(good, trusted, documents) == (set(), "trusted")
    assert check(good, None, documents) == (set(), "unknown-signer")
    assert script(good) == script(good, "--key", place / "alice.pub") == set()
    assert check(good, load_trust([place / "eve.pub"]), documents)[1] == "other-signer"
    assert script(good, "--key", place / "eve.pub") == {"signature"}
    stripped = json.loads(good.read_text()) | {"signatures": []}
    (tmp_path / "stripped.json").write_text(json.dumps(stripped))
    assert check(tmp_path / "stripped.json", None, documents) == ({"signature"}, "invalid")
    assert script(tmp_path / "stripped.json") == {"signature"}
    statement = open_statement(good)
    statement["predicate"]["signer"]["public_key"] = (place / "eve.pub").read_text()
    resigned = seal(tmp_path / "resigned.json", statement, key=place / "eve.key")
    assert check(resigned, trusted, documents) == ({"signature"}, "other-signer")
    assert script(resigned, "--key", place / "alice.pub") == {"signature"}


def list_places(part, place=()):
    """Yield the path of each value, of lists that of their first one."""
    rows = part.items() if isinstance(part, dict) else list(enumerate(part))[:1]
    for key, value in rows:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from list_places(value, (*place, key))


def other_than(value):
    if isinstance(value, dict | list):
        return {**value, "more": 1} if isinstance(value, dict) else [*value[:-1], *value]
    return not value if isinstance(value, bool) else value + ("x" if value == f"{value}" else 1)


def test_no_edit_of_another_signer_is_plainly_valid(place, script, tmp_path):
    whole = open_statement(place / "quoted.json")
    whole["predicate"]["signer"]["public_key"] = (place / "eve.pub").read_text()
    trust, path = load_trust([place / "alice.pub"]), tmp_path / "x.json"
    places = [one for one in list_places(whole) if one[:2] != ("predicate", "signer")]
    assert len(places) > 80
    for number, (*way, last) in enumerate(places):
        statement = json.loads(json.dumps(whole))
        part = reduce(lambda value, key: value[key], way, statement)
        part[last] = other_than(part[last]) if part[last] is not None else 0.5
        seal(path, statement, key=place / "eve.key")
        assert number % 4 or script(path, "--key", place / "alice.pub")
        try:
            found = check_evidence(read_evidence(path), trust)
        except DataError:
            continue
        assert found.signature == "other-signer", (way, last)


def test_evidence_that_names_another_signer_than_signed_is_refused(place, script, tmp_path):
    statement = open_statement(place / "quoted.json")
    path = seal(tmp_path / "x.json", statement, key=place / "eve.key")
    keys = [place / "alice.pub", place / "eve.pub"]
    assert check_evidence(read_evidence(path), load_trust(keys)).signature == "invalid"
    assert script(path, "--key", keys[0], "--key", keys[1]) == {"signature"}


UNKNOWN = {
    "statement": (lambda s: s.update(note="x"), "note"),
    "predicate": (lambda s: s["predicate"].update(reviewed="x"), "reviewed"),
    "passage": (lambda s: first(s).update(trusted=True), "trusted"),
    "answer": (lambda s: s["predicate"]["answer"].update(html="<b>"), "html"),
    "signer": (lambda s: s["predicate"]["signer"].update(role="judge"), "role"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_signed_fields_that_are_not_known_are_named_by_both(name, place, script, tmp_path):
    statement = open_statement(place / "quoted.json")
    forge, named = UNKNOWN[name]
    forge(statement)
    path = seal(tmp_path / "x.json", statement, key=place / "alice.key")
    told = call("verify", path, "--key", place / "alice.pub")
    assert re.search(f"open: fields that are not known .*{named}", told)
    assert script(path) == set()
    kind = "evidence" if name == "predicate" else name
    assert f"open: {kind} holds '{named}'" in script.told.replace("\\", "")


def test_what_stands_beside_the_signature_is_named_by_both(place, script, tmp_path):
    good, path = json.loads((place / "quoted.json").read_text()), tmp_path / "x.json"
    eve = load_signing_key(place / "eve.key")
    payload = base64.b64decode(good["payload"])
    second = sign_envelope(payload, IN_TOTO_PAYLOAD, eve)["signatures"][0]
    wrong = {"keyid": "eve", "sig": "AAAA"}
    own = good["signatures"][0]
    for change, named in (
        ({"answer": "another"}, "'answer'"),
        ({"payload_sha256": "x"}, "'payload_sha256'"),
        ({"signatures": [own, second]}, eve.key_id),
        ({"signatures": [second, own]}, eve.key_id),
        ({"signatures": [own, wrong]}, "'eve'"),
        ({"signatures": [{**own, "note": "x"}]}, "'note'"),
        ({"signatures": [{**own, "keyid": "eve"}]}, "'eve'"),
    ):
        path.write_text(json.dumps({**good, **change}))
        assert script(path) == set()
        for told in (call("verify", path, "--key", place / "alice.pub"), script.told):
            assert any("open: " in line and named in line for line in told.splitlines()), told


@pytest.mark.parametrize("field", ["question", "made", "settings", "index"])
def test_unsigned_evidence_shows_an_edit_of_any_field(field, place, script, tmp_path):
    good, path = tmp_path / "good.json", tmp_path / "x.json"
    ask = ["ask", place / "served/run", QUESTION, "--answering", QUOTING]
    call(*ask, "--evidence", good)
    assert "the evidence holds" in call("verify", good)
    assert script(good) == set()
    statement, envelope = open_statement(good), json.loads(good.read_text())
    part = statement["predicate"]
    part[field] = other_than(part[field])
    seal(path, statement, envelope=envelope)
    assert "digest: it was changed, such as its question" in call("verify", path, fails=True)
    assert script(path) == {"digest"}
    seal(path, statement, envelope={**envelope, "payload_sha256": ""})
    assert "digest: it was changed" in call("verify", path, fails=True)
    assert script(path) == {"digest"}
    del envelope["payload_sha256"]  # as an earlier version wrote it
    seal(path, statement, envelope=envelope)
    assert "digest covers the question and the settings" in call("verify", path)
    assert script(path) == set()
    assert "no digest covers the question" in script.told


def test_names_that_stand_twice_are_refused_by_both(place, script, tmp_path):
    text = (place / "quoted.json").read_text()
    (tmp_path / "x.json").write_text('{"payload": "e30=",' + text[1:])
    assert "data.evidence" in call("verify", tmp_path / "x.json", fails=True)
    assert script(tmp_path / "x.json") == {"format"}


def test_the_stand_alone_verifier_is_short_and_needs_cryptography_alone():
    source = SCRIPT.read_text()
    assert len(source.splitlines()) < 200
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert names - set(sys.stdlib_module_names) == {"cryptography"}


@pytest.mark.parametrize(
    "content", ["{}", "[", '{"payload": "e30=", "payloadType": "x", "signatures": []}']
)
def test_what_is_no_evidence_is_refused_by_both(content, script, tmp_path):
    (tmp_path / "a.json").write_text(content)
    assert "data.evidence" in call("verify", tmp_path / "a.json", fails=True)
    assert script(tmp_path / "a.json") == {"format"}


def test_a_missing_field_is_refused_by_both(place, script, tmp_path):
    whole = open_statement(place / "quoted.json")
    for name in sorted(whole["predicate"].keys() - {"signer"}):
        statement = json.loads(json.dumps(whole))
        del statement["predicate"][name]
        path = seal(tmp_path / "less.json", statement, key=place / "alice.key")
        with pytest.raises(DataError, match=name):
            read_evidence(path)
        assert script(path) == {"format"}


SHAPES = {
    "support": [],
    "settings": "x",
    "model": None,
    "made": 5,
    "history": "x",
    "passages.0.is_exact": 0,
    "passages.0.number": True,
    "passages.0.score": "1",
    "answer.quotes.0.answer_start": 0.0,
    "answer.citations.0.number": "1",
    "answer.quotes.0": [],
    "signer": "alice",
    "signer.certificates": [1],
    "passages.0.title": 1,
    "passages.0.rank": float("nan"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_value_of_another_type_is_refused_by_both(name, place, script, tmp_path):
    statement = open_statement(place / "quoted.json")
    *path, last = (int(part) if part.isdigit() else part for part in name.split("."))
    part = reduce(lambda value, key: value[key], path, statement["predicate"])
    part[last] = SHAPES[name]
    bundle = seal(tmp_path / "x.json", statement, key=place / "alice.key")
    with pytest.raises(DataError, match="not the evidence of an answer"):
        read_evidence(bundle)
    assert script(bundle) == {"format"}


def test_a_file_that_is_no_text_is_told_in_plain_words(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\xff\xfe\x00")
    with pytest.raises(DataError, match="not the evidence of an answer: it is not text"):
        read_evidence(tmp_path / "model.gguf")


def test_envelopes_of_another_kind_are_refused_by_both(place, script, tmp_path):
    payload = json.dumps(open_statement(place / "quoted.json")).encode()
    key, path = load_signing_key(place / "alice.key"), tmp_path / "x.json"
    path.write_text(json.dumps(sign_envelope(payload, "text/plain", key)))
    assert "data.evidence" in call("verify", path, fails=True)
    assert script(path, "--key", place / "alice.pub") == {"format"}
    statement = open_statement(place / "quoted.json")
    statement["_type"] = "https://in-toto.io/Statement/v0.1"
    path = seal(path, statement, key=place / "alice.key")
    assert "data.evidence" in call("verify", path, fails=True)
    assert script(path, "--key", place / "alice.pub") == {"format"}


def test_the_stand_alone_verifier_says_what_it_did_not_compare(place, tmp_path):
    statement = open_statement(place / "quoted.json")
    first(statement)["is_exact"] = first(statement, "quotes")["is_exact"] = False
    path = seal(tmp_path / "x.json", statement, key=place / "alice.key")
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    told = run([sys.executable, SCRIPT, path]).stdout
    assert "open: the documents were not compared (--documents)" in told
    told = run([sys.executable, SCRIPT, path, "--documents", place / "served/documents"]).stdout
    assert "hold its text in another form, not compared" in told


def test_the_same_question_gives_the_same_bytes(place):
    for name in ("quoted.json", "written.json"):
        told = call(
            "verify", place / name, "--key", place / "alice.pub", "--within", place / "served/run"
        )
        assert "the evidence holds" in told
        assert "byte for byte" in told
    assert "was not asked again" in call("verify", place / "quoted.json")


def test_what_differs_when_asked_again_is_named(place, tmp_path):
    within = ["--within", place / "served/run"]

    def verify(forge, name="quoted.json", *more):
        statement = open_statement(place / name)
        forge(statement)
        path = seal(tmp_path / "forged.json", statement, key=place / "alice.key")
        told = CliRunner().invoke(
            stillroom, ["verify", *map(str, (path, *within, *more)), "--json"]
        )
        layers = {one["layer"] for one in json.loads(told.stdout)["findings"]}
        return layers, str(told.exception)

    assert verify(lambda s: None)[0] == set()
    layers, told = verify(lambda s: s["predicate"].update(reader="0" * 64))
    assert layers == {"model"}
    assert "integrity.answer" in told
    assert "model" in verify(lambda s: None, "written.json", "--model", place / "served/other")[0]
    layers, told = verify(edit_all)
    assert layers >= {"document", "passages", "answer"}
    assert "integrity.evidence" in told
    assert verify(lambda s: first(s).update(origin="synthetic"))[0] == {"passages"}
    assert verify(lambda s: s["predicate"]["read"].update(sha256="0" * 64))[0] == {"prompt"}
    assert verify(lambda s: s["predicate"]["support"].update(probability=0.99))[0] == {"support"}
    assert verify(lambda s: s["predicate"]["index"].update(claim="0" * 64))[0] == {"index"}
    assert "answer" in verify(lambda s: s["predicate"].update(question="When sails it?"))[0]
    assert "index" in verify(lambda s: s["predicate"]["index"].update(digest="0" * 64))[0]
    for lie in ({"calls": 1}, {"name": "Large"}):  # the answer was quoted: no model was asked
        assert verify(lambda s, lie=lie: s["predicate"]["model"].update(lie))[0] == {"model"}
    more = {"calls": 7}
    assert verify(lambda s: s["predicate"]["model"].update(more), "written.json")[0] == {"model"}


def test_what_only_the_signer_can_know_is_noted_beside_what_is_here(place, tmp_path):
    def lie(stated):
        stated["model"]["name"], stated["index"]["snapshot"] = "Large", 2

    statement = open_statement(place / "written.json")
    lie(statement["predicate"])
    path = seal(tmp_path / "forged.json", statement, key=place / "alice.key")
    told = call("verify", path, "--within", place / "served/run")
    assert "here, not 'Large'" in told
    assert "the state that answered is snapshot 1 here, not 2" in told


class Listener(BaseHTTPRequestHandler):
    heard: ClassVar[list[str]] = []

    def do_POST(self):
        self.heard.append(str(self.headers))
        self.send_error(500)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("reranker", {"name": "endpoint", "api_key_env": "SECRET", "tries": 1}),
        ("reranker", {"name": "cross_encoder", "checkpoint": "hub:reranker-of-eve"}),
        ("answering", {"name": "quote", "reader": "/srv/eve"}),
    ],
)
def test_a_strangers_evidence_calls_and_opens_nothing(
    method, settings, place, tmp_path, monkeypatch
):
    monkeypatch.setenv("SECRET", "not for eve")
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if settings["name"] == "endpoint":
            settings = {**settings, "address": f"http://127.0.0.1:{server.server_port}/v1#m"}
        statement = open_statement(place / "quoted.json")
        statement["predicate"]["settings"][method] = settings
        path = seal(tmp_path / "x.json", statement, key=place / "alice.key")
        told = call("verify", path, "--within", place / "served/run")
        assert f"open: not asked again: {method}." in told
        assert Listener.heard == []
        if settings["name"] == "endpoint":
            trusted = ["--key", place / "alice.pub"]
            call("verify", path, "--within", place / "served/run", *trusted, fails=True)
            assert "not for eve" in Listener.heard.pop()
        server.shutdown()


def test_a_cache_of_the_evidence_is_not_read(place, tmp_path):
    statement = open_statement(place / "quoted.json")
    statement["predicate"]["settings"]["cache"] = str(tmp_path / "cache.sqlite")
    path = seal(tmp_path / "x.json", statement, key=place / "alice.key")
    told = call("verify", path, "--within", place / "served/run", fails=True)
    assert "cache is nothing that evidence states" in told


def test_an_updated_index_is_asked_in_its_earlier_state(place, tmp_path):
    shutil.copytree(place / "served", tmp_path / "served")
    run, documents = tmp_path / "served/run", tmp_path / "served/documents"
    call("rag", "update", run / "steps/index", documents)
    (documents / "new.txt").write_text("The river rises where the ferry sails.\n")
    call("rag", "update", run / "steps/index", documents)
    told = call("verify", place / "quoted.json", "--within", run)
    assert "earlier state was asked" in told
    assert "byte for byte" in told


def test_a_cached_answer_is_evidence_of_the_question_it_was_made_for(place, tmp_path):
    ask = ["ask", place / "served/run", "--answering", QUOTING, "--cache", tmp_path / "cache"]
    call(*ask, QUESTION)
    call(*ask, QUESTION.upper(), "--evidence", tmp_path / "b.json")
    stated = open_statement(tmp_path / "b.json")["predicate"]
    assert stated["question"] == QUESTION.upper()
    assert stated["answer"]["cached_for"] == QUESTION
    told = call("verify", tmp_path / "b.json", "--within", place / "served/run")
    assert "not signed" in told
    assert "byte for byte" in told


def test_lineage_reads_evidence(place):
    answer = read_answer(place / "quoted.json")
    assert answer.text.startswith("The river rises in the north.")
    assert Path(answer.asked_of).resolve() == (place / "served/run").resolve()
    told = call("show", place / "quoted.json", "--lineage")
    assert "rivers.txt: bytes" in told
    told = call("show", place / "quoted.json", "--lineage", "--within", place / "served/run")
    assert "rivers.txt: bytes" in told


def test_options_that_cannot_be_meant_are_refused(place):
    ask = ["ask", place / "served/run", QUESTION]
    assert "data.exists" in call(*ask, "--evidence", place / "quoted.json", fails=True)
    assert "--evidence" in call(*ask, "--key", place / "alice.key", fails=True)
    index = place / "served/run/steps/index"
    told = call("verify", place / "written.json", "--within", index, fails=True)
    assert "data.evidence" in told
    assert "--model" in told
