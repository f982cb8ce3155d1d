"""Planted forgeries of a signed run: each is found, and the place is named.

Three forgers: one without a key, who edits a signed copy; one who signs with a key of their own;
and the signer, who lies and signs everything again with digests that fit, whom only a replay finds.
"""

import base64
import json
import os
import re
import shutil
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("cryptography")
from safetensors.numpy import load_file, save_file
from tests.forged_run import read_flow, reseal, seal, step, write_inputs
from tests.unit.train import test_replay as tiny
from tests.unit.train.forgery import reseal as reseal_training

from stillroom.cli.app import stillroom
from stillroom.flow.job import run_job
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.flow.run import run_recipe
from stillroom.jobs import Job
from stillroom.jobs.journal import Journal, read_journal
from stillroom.jobs.segments import read_segments
from stillroom.provenance import (
    digest_file,
    digest_json,
    verify_signed,
)
from stillroom.provenance.artifact import Artifact
from stillroom.provenance.signing import (
    Trust,
    create_key_pair,
    load_public_key,
    load_signing_key,
    load_trust,
    read_claims,
    sign_artifact,
    sign_envelope,
    sign_statement,
)
from stillroom.provenance.summaries import find_replay, read_replays
from stillroom.recipes import dump_recipe, load_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Inputs, keys, and ``run``, signed by Alice while it was made."""
    folder = tmp_path_factory.mktemp("forgeries")
    script = write_inputs(folder)
    other = {question: f"{answer} perhaps" for question, answer in script.items()}
    (folder / "other.json").write_text(json.dumps(other))
    for name in ("alice", "eve", "carol"):
        create_key_pair(folder / name)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("STILLROOM_SIGNING_KEY", str(folder / "alice.key"))
        run_recipe(read_flow(folder, "steps.records.num_records.train=4"), folder / "run")
    return folder


@pytest.fixture
def run(place, tmp_path):
    return shutil.copytree(place / "run", tmp_path / "run")


def key_of(place, name):
    return load_signing_key(place / f"{name}.key")


def verify(run, place, *names):
    """Return what ``stillroom verify`` says to who trusts these, a line a finding."""
    keys = [word for name in names for word in ("--key", str(place / f"{name}.pub"))]
    told = CliRunner().invoke(stillroom, ["verify", str(run), *keys])
    return str(told.exception or "") + told.output


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def edit(folder, alter):
    """Edit artifact.json, with digests that fit."""
    data = json.loads((folder / "artifact.json").read_text())
    alter(data)
    (folder / "artifact.json").write_text(json.dumps(Artifact.from_json(data).to_json(), indent=1))


def edit_rows(path, alter):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in alter(rows)))


# --- Who has no key, and edits a signed copy: found without and with the digests made to fit.


def swap_record(run):
    change(step(run, "records") / "output/records.jsonl", "15 wheels", "16 wheels")


def drop_record(run):
    edit_rows(step(run, "records") / "output/records.jsonl", lambda rows: rows[1:])


def relabel_record(run):
    change(step(run, "records") / "output/records.jsonl", '"synthetic"', '"human"')


def edit_license(run):
    edit(step(run, "records"), lambda data: data["origin"].update(license="MIT"))


def swap_weights(run):
    path = step(run, "merged") / "output/model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, metadata={"format": "pt"})


def edit_report(run):
    path = step(run, "report") / "output/report.json"
    report = json.loads(path.read_text())
    report["metrics"][0]["value"] = 0.99
    path.write_text(json.dumps(report))


def edit_run_report(run):
    report = json.loads((run / "report.json").read_text())
    report["metrics"][0]["value"] = 0.99
    (run / "report.json").write_text(json.dumps(report))


def edit_catalog(run):
    with closing(sqlite3.connect(step(run, "index") / "output/ledger.sqlite")) as ledger, ledger:
        key, body = ledger.execute("SELECT key, body FROM passages").fetchone()
        forged = re.sub(rb'("text": ?"# )\w+', rb"\1Poison", body)
        assert forged != body
        ledger.execute("UPDATE passages SET body = ? WHERE key = ?", (forged, key))


def edit_vectors(run):
    path = step(run, "index") / "output/segments/000001/vectors.npy"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def edit_seed(run):
    edit(step(run, "records"), lambda data: data.update(seed=7))


def edit_versions(run):
    edit(step(run, "merged"), lambda data: data["versions"].update(torch="1.0"))


def edit_recipe(run):
    change(step(run, "records") / "recipe.yaml", "max_answer_tokens: 80", "max_answer_tokens: 81")


def drop_parent(run):
    edit(step(run, "merged"), lambda data: data["parents"].pop())


def cut_parent_digest(run):
    def cut(data):
        data["parents"][0].update(digest="", claim="")

    edit(step(run, "records"), cut)


def add_file(run):
    (step(run, "index") / "output/more.bin").write_bytes(b"x")


def link_file(run):
    path = step(run, "merged") / "output/config.json"
    aside = run.parent / "config.json"
    path.rename(aside)
    path.symlink_to(aside)


def cut_segment(run):
    path = step(run, "records") / "segments.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def cut_journal(run):
    path = step(run, "report") / "committed/readings.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def cut_claims(run):
    (step(run, "records") / "claims.jsonl").write_text("")


def drop_signature(run):
    (step(run, "records") / "model.sig").unlink()


def edit_events(run):
    change(step(run, "records") / "events.jsonl", "started", "begun")


def take_signature_of_another(run):
    for name in ("model.sig", "claims.jsonl", "signer.pub"):
        shutil.copy(step(run, "index") / name, step(run, "records") / name)


def drop_recipe_digest(run):
    edit(step(run, "records"), lambda data: data.update(recipe_digest=""))


def drop_claim(run):
    path = step(run, "records") / "artifact.json"
    data = json.loads(path.read_text())
    del data["claim"]
    path.write_text(json.dumps(data))


def add_key(run):
    path = step(run, "records") / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "license": "MIT"}))


def rename_output(run):
    path = step(run, "records") / "output/records.jsonl"
    path.rename(path.with_name("Records.jsonl"))


def link_step(run):
    folder = step(run, "merged")
    shutil.move(folder, run.parent / "aside")
    folder.symlink_to(run.parent / "aside")


def plant_step(run):
    """Add a signed job that no recipe names, as one of two results to choose from."""
    shutil.copytree(step(run, "records"), run / "steps" / "records-000000000000")


def plant_notice(run):
    (step(run, "records") / "LICENSE").write_text("MIT")


def state_twice(run):
    """State another origin before the true one: some readers take the first of two equal keys."""
    path = step(run, "records") / "artifact.json"
    path.write_text('{"origin": {"kind": "human"}, ' + path.read_text().lstrip()[1:])


def backdate(run):
    edit(step(run, "records"), lambda data: data.update(created="2020-01-01T00:00:00+00:00"))


def exchange_steps(run):
    """Let two whole, signed steps change places."""
    one, two, aside = step(run, "records"), step(run, "merged"), run / "steps" / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


EDITS = {
    "record swapped": (swap_record, "records.jsonl"),
    "record dropped": (drop_record, "records.jsonl"),
    "record relabelled human": (relabel_record, "records.jsonl"),
    "license edited": (edit_license, "artifact.json"),
    "weights swapped": (swap_weights, "model.safetensors"),
    "figure of a report edited": (edit_report, "report.json"),
    "figure of the run edited": (edit_run_report, "report.json"),
    "passage edited in the catalog": (edit_catalog, "ledger.sqlite"),
    "vectors edited": (edit_vectors, "vectors.npy"),
    "seed changed": (edit_seed, "artifact.json"),
    "versions edited": (edit_versions, "artifact.json"),
    "recipe edited": (edit_recipe, "recipe.yaml"),
    "parent dropped from the chain": (drop_parent, "artifact.json"),
    "digest of a parent dropped": (cut_parent_digest, "artifact.json"),
    "file added": (add_file, "more.bin"),
    "file replaced by a link": (link_file, "config.json"),
    "segment line removed": (cut_segment, "segments.jsonl"),
    "journal line removed": (cut_journal, "readings.jsonl"),
    "claims line removed": (cut_claims, "claims.jsonl"),
    "signature removed": (drop_signature, "claims.jsonl"),
    "log edited": (edit_events, "events.jsonl"),
    "signature of another folder": (take_signature_of_another, "artifact.json"),
    "digest of the recipe dropped": (drop_recipe_digest, "artifact.json"),
    "claim dropped": (drop_claim, "artifact.json"),
    "key added beside the claim": (add_key, "artifact.json"),
    "output renamed": (rename_output, "Records.jsonl"),
    "step behind a link": (link_step, "artifact.json"),
    "step added": (plant_step, "records-000000000000/artifact.json"),
    "license laid beside": (plant_notice, "LICENSE"),
    "origin stated twice": (state_twice, "artifact.json"),
    "date of the making edited": (backdate, "artifact.json"),
    "steps exchanged": (exchange_steps, "artifact.json"),
}
UNSEALED = {
    "claim dropped",
    "claims line removed",
    "file replaced by a link",
    "key added beside the claim",
    "license laid beside",
    "log edited",
    "origin stated twice",
    "signature of another folder",
    "signature removed",
    "step added",
    "step behind a link",
    "steps exchanged",
}
"""Edits that digests cannot be made to fit, or need not."""


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_without_a_key_is_named(name, run, place):
    forge, named = EDITS[name]
    forge(run)
    found = verify_signed(run, load_trust([place / "alice.pub"])).findings
    assert any(one.layer == "signature" and one.path.endswith(named) for one in found)
    if name in UNSEALED:
        return
    seal(run)  # every digest and every claim fits now: the signature alone tells
    found = verify_signed(run, load_trust([place / "alice.pub"])).findings
    assert {one.layer for one in found} - {"claim"} == {"signature"}
    assert any(one.path.endswith(named) for one in found)
    assert "integrity.signature" in verify(run, place, "alice")


def test_an_older_signature_of_the_same_folder_is_named(run, place):
    folder = step(run, "records")
    old = {name: (folder / name).read_bytes() for name in ("model.sig", "claims.jsonl")}
    swap_record(run)
    seal(run, key_of(place, "alice"))
    assert verify_signed(run, load_trust([place / "alice.pub"])).findings == ()
    for name, data in old.items():
        (folder / name).write_bytes(data)
    told = verify(run, place, "alice")
    assert "records.jsonl was changed after it was signed" in told
    assert "claims.jsonl names another artifact.json" in told


def test_a_signed_step_of_another_run_is_named(run, place):
    """Alice signed both; the chain tells that this is not the step of that run."""
    other = step(run, "records")
    swap_record(run)
    reseal(other)
    sign_artifact(other, key_of(place, "alice"))
    told = verify(run, place, "alice")
    assert "is not what it was when run was made from it" in told
    assert "parent: " in told


def test_a_parent_that_states_something_else_is_named_by_the_chain(run, place):
    edit(step(run, "index"), lambda data: data["origin"].update(kind="human"))
    sign_artifact(step(run, "index"), key_of(place, "alice"))
    assert "integrity.chain" in verify(run, place, "alice")


# --- Who signs with a key of their own.


def test_another_signer_is_named_and_told_from_a_change(run, place):
    relabel_record(run)
    seal(run, key_of(place, "eve"))
    found = verify_signed(run, load_trust([place / "alice.pub"])).findings
    assert {one.kind for one in found} == {"other-signer"}
    eve = load_public_key(place / "eve.pub").key_id
    assert f"is valid, but signed by another signer: key {eve}" in verify(run, place, "alice")
    assert eve in verify(run, place)


def test_a_foreign_name_plate_is_named(run, place):
    folder = step(run, "records")
    (folder / "signer.pub").write_bytes((place / "eve.pub").read_bytes())
    assert "signer.pub is not the key that signed" in verify(run, place, "alice")


def test_forged_verification_summaries_do_not_count(run, place):
    subject = [{"name": "run/artifact.json"}]
    subject[0]["digest"] = {"sha256": digest_file(run / "artifact.json")}
    job = {"job": "run", "segments": 9, "replayed": list("123456789"), "differences": []}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/verification_summary/v1",
        "predicate": {"verificationResult": "PASSED", "stillroom_replay": {"jobs": [job]}},
    }
    lines = (run / "claims.jsonl").read_text()

    def append(envelope):
        (run / "claims.jsonl").write_text(lines + json.dumps(envelope) + "\n")
        return find_replay(run, read_replays([run], load_trust([place / "carol.pub"])))

    assert append(sign_statement(statement, key_of(place, "carol")))[0].verifier == "trusted"
    assert append(sign_statement(statement, key_of(place, "eve"))) is None
    told = sign_statement(statement, key_of(place, "eve"))
    told["signatures"][0]["keyid"] = load_public_key(place / "carol.pub").key_id
    assert append(told) is None
    (run / "signer.pub").write_bytes((place / "eve.pub").read_bytes())
    assert append(sign_statement(statement, key_of(place, "eve"))) is None
    (run / "signer.pub").write_bytes((place / "alice.pub").read_bytes())
    subject[0]["digest"] = {"sha256": "0" * 64}  # of an older artifact
    assert append(sign_statement(statement, key_of(place, "carol"))) is None


@pytest.mark.parametrize(
    "line",
    ["1", "null", "[[1]]", '"x"', '{"signatures": null}', '{"signatures": [1]}', "[" * 9999, "\xff",
     '{"payload": 1, "payloadType": 2, "signatures": [{"keyid": "KEY", "sig": 3}]}'],
)  # fmt: skip
def test_malformed_claims_are_named(line, run, place):
    folder = step(run, "records")
    own = load_public_key(folder / "signer.pub").key_id
    (folder / "claims.jsonl").write_text(line.replace("KEY", own) + "\n", encoding="latin-1")
    found = verify_signed(folder, Trust(), parents=False).findings
    assert {(one.path, one.layer) for one in found} == {("claims.jsonl", "signature")}
    assert read_replays([folder], Trust()) == []


MADE = {"predicateType": "https://slsa.dev/provenance/v1"}


@pytest.mark.parametrize("statement", [7, [], MADE, {**MADE, "subject": [1], "predicate": []}])
def test_malformed_statements_of_the_signer_are_named(statement, run, place):
    folder = step(run, "records")
    envelope = sign_envelope(json.dumps(statement).encode(), "x", key_of(place, "alice"))
    (folder / "claims.jsonl").write_text(json.dumps(envelope))
    assert "claims.jsonl" in verify(folder, place, "alice")


@pytest.mark.parametrize("name", ["model.sig", "claims.jsonl", "signer.pub"])
@pytest.mark.parametrize("how", ["pipe", "link", "garbage"])
def test_what_is_no_regular_file_is_not_opened(name, how, run):
    path = step(run, "records") / name
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)  # reading it would wait for ever
    elif how == "link":
        path.symlink_to("/dev/zero")  # reading it would not end
    else:
        path.write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    found = verify_signed(step(run, "records"), Trust(), parents=False).findings
    assert found
    assert {one.layer for one in found} == {"signature"}


# --- The signer, who lies and signs everything again: only a replay tells.


def replayed(folder, amount="all"):
    result = plan_replay(folder, ReplayAmount.parse(amount)).run()
    return [f"{job.name.split('/')[-1].split('-')[0]}: {one.name} {one}"
            for job, one in result.differences], result  # fmt: skip


def merge_third(run):
    """Merge three models, and say it were two."""
    stated = step(run, "merged")
    recipe = load_recipe(stated / "recipe.yaml")
    first = recipe.models[0]
    third = first.model_copy(update={"model": first.model.replace("tune1", "tune3")})
    third = recipe.model_copy(update={"models": (*recipe.models, third)})
    run_job(third, Job.start(run.parent / "third", dump_recipe(third)))
    for part in ("output/model.safetensors", "segments.jsonl"):
        shutil.copy(run.parent / "third" / part, stated / part)
    restate_segments(stated)


def restate_segments(folder):
    rows = [[one.name, one.start, one.result] for one in read_segments(folder)]
    stated = {"count": len(rows), "digest": digest_json(sorted(rows))}
    edit(folder, lambda data: data["details"].update(segments=stated))


def forge_start(run):
    """Say that a unit was made from another recipe."""

    def other_start(rows):
        rows[0]["start"] = "0" * 64
        return rows

    edit_rows(step(run, "records") / "segments.jsonl", other_start)
    restate_segments(step(run, "records"))


def cut_segment_well(run):
    cut_segment(run)
    restate_segments(step(run, "records"))


def poison_document(run):
    """Edit a document after it was indexed; the index says it read this one."""
    documents = run.parent / "documents"
    change(documents / "alder.md", "old mill", "new mill")


def other_teacher(run):
    """Let the step's recipe name another teacher than the run's."""
    change(step(run, "records") / "recipe.yaml", "script.json", "other.json")


def other_merge_weights(run):
    path = step(run, "merged") / "recipe.yaml"
    change(path, "tune2", "tune3")


def call_report_a_run(run):
    """Give a report the details of a run, so that nobody evaluates it again."""
    edit_report(run)
    edit(step(run, "report"), lambda data: data["details"].update(steps={}, seconds={}))


def hide_step(run):
    """Leave a step out of the run."""
    name = "merged"
    shutil.rmtree(step(run, name))
    steps = json.loads((run / "steps.json").read_text())
    del steps[name]
    (run / "steps.json").write_text(json.dumps(steps, indent=1))

    def leave_out(data):
        data["parents"] = [one for one in data["parents"] if one["role"] != name]
        del data["details"]["steps"][name]

    edit(run, leave_out)


def add_timed_file(run):
    path = step(run, "records") / "output/more.bin"
    path.write_bytes(b"x")
    edit(
        step(run, "records"),
        lambda data: data["timed_files"].append(["output/more.bin", 1, digest_file(path)]),
    )


def edit_details(run):
    edit(step(run, "merged"), lambda data: data["details"].update(method="slerp"))


def shuffle_records(run):
    edit_rows(step(run, "records") / "output/records.jsonl", lambda rows: rows[::-1])


def repeat_record(run):
    edit_rows(step(run, "records") / "output/records.jsonl", lambda rows: [*rows, rows[0]])


def hide_rejects(run):
    (step(run, "records") / "output/dropped.jsonl").write_text("")


def exchange_answers(run):
    """Let two units have each other's result, in the journal and in what was committed."""
    folder = step(run, "records")
    path = max((folder / "units").glob("*.jsonl"), key=lambda path: path.stat().st_size)
    values = read_journal(path)
    one, two, *_ = values
    values[one], values[two] = values[two], values[one]
    path.unlink()
    journal = Journal(path)
    for key, value in values.items():
        journal.put(key, value)
    journal.close()

    def exchange(rows):
        first, second = (row for row in rows if row["name"].split("/")[1] in {one, two})
        first["result"], second["result"] = second["result"], first["result"]
        return rows

    edit_rows(folder / "segments.jsonl", exchange)
    restate_segments(folder)


def edit_tokenizer(run):
    change(step(run, "merged") / "output/tokenizer.json", '"version"', '"version": "1", "v"')


def edit_architecture(run):
    path = step(run, "merged") / "output/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": 5e5}))


def edit_card(run):
    path = step(run, "merged") / "output/README.md"
    path.write_text(path.read_text() + "Made from licensed data alone.")


def exchange_roles(run):
    def exchange(data):
        one, two = data["parents"][:2]
        one["role"], two["role"] = two["role"], one["role"]

    edit(step(run, "records"), exchange)


def add_parent(run):
    """State a descent from a model of a good name."""
    famous = {"path": "hub:Maker/Large", "digest": "0a1b2c", "claim": ""}
    edit(
        step(run, "merged"),
        lambda data: data["parents"].append({**data["parents"][0], **famous}),
    )


def edit_page(run):
    change(step(run, "report") / "output/report.html", "</body>", "<p>Grade A</p></body>")


def relabel_document(run):
    ledger = sqlite3.connect(step(run, "index") / "output/ledger.sqlite")
    with closing(ledger), ledger:
        key, body = ledger.execute("SELECT key, body FROM contents").fetchone()
        forged = zlib.decompress(body).replace(b'"unknown"', b'"human"')
        assert forged != zlib.decompress(body)
        ledger.execute("UPDATE contents SET body = ? WHERE key = ?", (zlib.compress(forged), key))


def add_segment(run):
    folder = step(run, "records")
    added = {"name": "units/more", "start": "0" * 64, "result": "0" * 64}
    edit_rows(folder / "segments.jsonl", lambda rows: [*rows, added])
    restate_segments(folder)


LIES = {
    "record swapped": (swap_record, "records", "output/records.jsonl differs: line"),
    "record dropped": (drop_record, "records", "output/records.jsonl differs: the job writes id"),
    "record relabelled human": (relabel_record, "records", "output/records.jsonl differs: line 1"),
    "license edited": (edit_license, "records", 'artifact.json origin differs: license is "MIT"'),
    "weights swapped": (swap_weights, "merged", "output/model.safetensors"),
    "third parent merged": (merge_third, "merged", "tensors/"),
    "another parent stated": (other_merge_weights, "merged", "artifact.json parents differs"),
    "statement of the method edited": (
        edit_details,
        "merged",
        'details differs: method is "slerp"',
    ),
    "poisoned document": (poison_document, "index", "documents/"),
    "another teacher": (other_teacher, "records", "artifact.json parents differs"),
    "figure of a report edited": (edit_report, "report", "metrics[0].value is 0.99"),
    "report called a run": (call_report_a_run, "report", "metrics[0].value is 0.99"),
    "passage edited in the catalog": (
        edit_catalog,
        "index",
        "output/ledger.sqlite differs: the row",
    ),
    "vectors edited": (edit_vectors, "index", "vectors.npy does not follow"),
    "seed changed": (edit_seed, "records", "seed is 7, and that of its recipe 0"),
    "recipe edited": (edit_recipe, "records", "was not committed, but the job computes it"),
    "recipe unstated": (
        drop_recipe_digest,
        "records",
        "recipe.yaml is not the recipe whose digest",
    ),
    "parent dropped from the chain": (drop_parent, "merged", "artifact.json parents differs"),
    "digest of a parent dropped": (cut_parent_digest, "records", "artifact.json parents differs"),
    "file added": (add_file, "index", "output/more.bin is listed, but the job does not write it"),
    "file added among the timed": (add_timed_file, "records", "output/more.bin is listed"),
    "segment of other inputs": (forge_start, "records", "made from other inputs than the job has"),
    "segment line removed": (
        cut_segment_well,
        "records",
        "was not committed, but the job computes",
    ),
    "journal line removed": (cut_journal, "report", "but its line is not in committed/readings"),
    "records shuffled": (shuffle_records, "records", "records.jsonl differs: the same rows"),
    "record repeated": (repeat_record, "records", "records.jsonl differs: the same rows"),
    "rejects hidden": (hide_rejects, "records", "output/dropped.jsonl differs: the job writes"),
    "answers exchanged": (exchange_answers, "records", "#0 was committed as"),
    "tokenizer edited": (edit_tokenizer, "merged", "tokenizer.json differs: v"),
    "architecture edited": (edit_architecture, "merged", "config.json differs: rope_theta is 500"),
    "card edited": (edit_card, "merged", "output/README.md does not follow"),
    "roles exchanged": (exchange_roles, "records", "artifact.json parents differs"),
    "parent added": (add_parent, "merged", "artifact.json parents differs"),
    "page of a report edited": (edit_page, "report", "output/report.html does not follow"),
    "document relabelled human": (relabel_document, "index", "ledger.sqlite differs: the row"),
    "segment added": (add_segment, "records", "units/more was committed, but the job does not"),
}
OF_THE_RUN = {
    "figure of the run edited": (edit_run_report, "run: report.json differs: metrics[0].value"),
    "step left out": (hide_step, "artifact.json details.steps differs"),
    "another teacher": (other_teacher, "recipe.yaml differs: model is"),
    "seed changed": (edit_seed, "records: artifact.json seed is 7"),
}


@pytest.fixture
def moved(place, tmp_path):
    """A copy of the run with own documents, since one forger changes those."""
    shutil.copytree(place / "documents", tmp_path / "documents")
    return shutil.copytree(place / "run", tmp_path / "run")


@pytest.mark.parametrize("name", LIES)
def test_a_lie_of_the_signer_is_named_by_replay(name, moved, place):
    forge, job, told = LIES[name]
    forge(moved)
    seal(moved, key_of(place, "alice"))
    if name != "recipe unstated":
        assert verify_signed(moved, load_trust([place / "alice.pub"])).findings == ()
    folder = step(moved, job)
    inputs = {str(place / "documents"): str(moved.parent / "documents")}
    result = plan_replay(folder, ReplayAmount.parse("all"), moved=inputs).run()
    found = [f"{one.name.split('/')[-1]}: {what.name} {what}" for one, what in result.differences]
    assert any(line.startswith(f"{folder.name}: ") and told in line for line in found), found
    assert result.to_statement()["predicate"]["verificationResult"] == "FAILED"


@pytest.mark.parametrize("name", OF_THE_RUN)
def test_a_lie_about_the_run_is_named_by_replay_whatever_is_drawn(name, run, place):
    forge, told = OF_THE_RUN[name]
    forge(run)
    seal(run, key_of(place, "alice"))
    assert verify_signed(run, load_trust([place / "alice.pub"])).findings == ()
    found, _ = replayed(run, "1")
    assert any(told in line for line in found), found


def test_a_lie_about_the_license_in_a_statement_is_named(run, place):
    folder = step(run, "index")
    (envelope,) = read_claims(folder)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    rows = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    (row, *_) = [one for one in rows if one["name"].startswith("document:")]
    row["annotations"]["license"] = "MIT"
    row["annotations"]["origin"] = "human"
    forged = sign_statement(statement, key_of(place, "alice"))
    (folder / "claims.jsonl").write_text(json.dumps(forged) + "\n")
    told = verify(folder, place, "alice")
    assert f"states another license of {row['name']}: 'MIT', not 'unknown'" in told
    assert f"states another origin of {row['name']}: 'human', not 'unknown'" in told


def restate(statement, **changes):
    """Change a field wherever it stands in a statement."""
    for name, value in list(statement.items()):
        if name in changes:
            statement[name] = changes[name]
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                restate(part, **changes)


RESTATED = {
    "builder": ({"id": "urn:someone:else"}, "names other builder"),
    "versions": ({"torch": "1.0"}, "names other builder"),
    "time": ({"finishedOn": "2020-01-01T00:00:00+00:00"}, "names other metadata"),
    "claim": ({"invocationId": "0" * 64}, "names other metadata"),
    "type": ({"buildType": "urn:written:by:hand"}, "names other buildType"),
    "seed": ({"seed": 9}, "names other internalParameters"),
    "kind of an input": ({"kind": "reviewed"}, "names other inputs"),
    "no input": ({"resolvedDependencies": []}, "names other inputs"),
}


@pytest.mark.parametrize("is_only", [True, False])
@pytest.mark.parametrize("name", RESTATED)
def test_a_lie_in_a_statement_is_named(name, is_only, run, place):
    """Also in one that stands before the true one, which a reader might take."""
    changes, told = RESTATED[name]
    folder = step(run, "merged")
    (envelope,) = read_claims(folder)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    restate(statement, **changes)
    lines = [sign_statement(statement, key_of(place, "alice"))] + [envelope] * (not is_only)
    (folder / "claims.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert f"claims.jsonl {told}" in verify(folder, place, "alice")


def test_an_input_stated_twice_and_a_further_field_are_named(run, place):
    folder = step(run, "merged")
    (envelope,) = read_claims(folder)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    inputs = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    inputs.append(inputs[0])
    statement["predicate"]["runDetails"]["byproducts"] = [{"name": "audit"}]
    statement["predicate"]["reviewed"] = "by people"
    forged = sign_statement(statement, key_of(place, "alice"))
    (folder / "claims.jsonl").write_text(json.dumps(forged) + "\n")
    told = verify(folder, place, "alice")
    for field in ("inputs (1 differ)", "byproducts", "reviewed"):
        assert f"names other {field}" in told


def test_other_versions_are_told_by_a_replay(run, place):
    """Nobody can prove the versions of a past run; a replay says that they are not those here."""
    edit_versions(run)
    seal(run, key_of(place, "alice"))
    (job,) = plan_replay(step(run, "merged"), ReplayAmount.parse("1")).jobs
    assert any("torch: made with 1.0" in line for line in job.machine)


TRAININGS = {
    "other learning rate": ({"train": {"learning_rate": 0.0201}}, "train/0-3", "has the loss"),
    "extra steps": ({"train": {"steps": 15}}, "train/start", "differs: the number of steps"),
    "another teacher": ({"teacher": 5}, "train/0-3", "has the loss"),
    "another start": ({"student": 5}, "train/start", "differs: the initial weights"),
    "another seed": ({"seed": 1}, "train/0-3", "read other records"),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_lie_about_a_training_is_named_by_replay(name, place, tmp_path):
    """The signer trains otherwise, and states the recipe of an honest training."""
    changes, segment, told = TRAININGS[name]
    honest = tiny.make(tmp_path / "honest")
    forged = tiny.make(tmp_path / "forged", **changes)
    identity = read_journal(honest / "committed/train.jsonl")["start"]["identity"]
    recipe = (honest / "recipe.yaml").read_text()
    reseal_training(forged, recipe=recipe, plan={"identity": identity})
    sign_artifact(forged, key_of(place, "alice"))
    assert verify_signed(forged, load_trust([place / "alice.pub"])).findings == ()
    assert told in tiny.find(forged)[segment]


def test_other_weights_than_were_trained_are_named_by_replay(place, tmp_path):
    forged = tiny.make(tmp_path / "forged")
    path = forged / "output/model.safetensors"
    save_file({name: value * 1.001 for name, value in load_file(path).items()}, path)
    reseal_training(forged)
    sign_artifact(forged, key_of(place, "alice"))
    assert verify_signed(forged, load_trust([place / "alice.pub"])).findings == ()
    told = tiny.find(forged, "train/start")["output/model.safetensors"]
    assert told == "are not the weights of the committed last state"


# --- What stays open is said, and is not proved.


def test_an_open_end_is_not_hidden(run, place, tmp_path):
    folder = step(run, "records")
    shutil.rmtree(step(run, "report"))
    opened = [one.open for one in replayed(run, "1")[1].open_jobs]
    assert any("was made from it (report), but it is not here" in reason for reason in opened)
    shutil.copytree(step(run, "index"), tmp_path / "far")

    def point_away(data):
        data["parents"][0].update(path=str(tmp_path / "far"), claim="")

    edit(folder, point_away)
    ends = verify_signed(folder, parents=True).open_ends
    assert any("is named without its digest or its claim" in line for line in ends)
    assert any("lies outside: what it states was compared, its files" in line for line in ends)


def test_a_folder_beside_the_run_that_is_no_job_is_an_open_end(run):
    inside = step(run, "merged")
    shutil.copytree(step(run, "merged") / "output", run / "steps" / "plain")

    def name_it(data):
        data["parents"][0].update(path="../plain")

    edit(inside, name_it)
    ends = verify_signed(inside).open_ends
    assert any("../plain is a folder of no job and was not compared" in line for line in ends)


def test_a_replay_of_nothing_is_no_proof(run, place):
    """Whoever makes every job impossible to repeat gets no summary that says passed."""
    folder = step(run, "records")
    change(folder / "recipe.yaml", "minutes: null", "minutes: 5")
    seal(run, key_of(place, "alice"))
    step(run, "index").rename(run.parent / "index")
    edit(folder, lambda data: data.update(parents=data["parents"][1:]))
    sign_artifact(folder, key_of(place, "alice"))
    _, result = replayed(folder)
    assert result.to_statement()["predicate"]["verifiedLevels"] == ["FAILED"]
    told = CliRunner().invoke(stillroom, ["verify", str(folder), "--replay", "all"])
    assert told.exception.code == "replay.nothing"
    assert "budget.minutes may have ended it" in str(told.exception)


@pytest.mark.parametrize(
    ("seconds", "steps"), [({}, None), ("many", None), (None, {"index": "../../x"}), (None, 3)]
)
def test_details_that_no_run_writes_stay_open(seconds, steps, run):
    def spoil(data):
        data["details"].update({"seconds": seconds} if steps is None else {"steps": steps})

    edit(run, spoil)
    (run / "steps" / "x").mkdir()
    (step(run, "merged") / "events.jsonl").write_text('7\n{"time": 3}\n[]\n')
    opened = {one.name: one.open for one in replayed(run, "1")[1].open_jobs}
    assert opened["run"] == "its artifact is not that of a flow"


def test_an_unfinished_or_changed_job_is_not_signed(run, place):
    def sign(path):
        words = ["sign", str(path), "--key", str(place / "alice.key")]
        return CliRunner().invoke(stillroom, words).exception

    from stillroom.errors import ResourceError
    from stillroom.jobs.files import lock_folder

    busy = ResourceError("held", code="resource.busy")
    with lock_folder(run, busy):
        assert sign(run).code == "resource.busy"
    assert sign(run) is None
    changed = next(path for path in sorted(run.rglob("output/*")) if path.is_file())
    before = changed.read_bytes()
    changed.write_bytes(before + b"x")
    assert sign(run).code == "data.damaged"
    changed.write_bytes(before)
    assert sign(run) is None
    (run / "artifact.json").unlink()
    assert sign(run).code == "data.unfinished"


def test_an_index_that_its_owner_updates_stays_signed(moved, place, monkeypatch):
    """An update without the key is named, as any change is; with it the signature is renewed."""
    folder, documents = step(moved, "index"), moved.parent / "documents"
    path = folder / "recipe.yaml"
    edit(folder, lambda data: data["parents"][0].update(path=str(documents)))
    path.write_text(path.read_text().replace(str(place / "documents"), str(documents)))
    edit(folder, lambda data: data.update(recipe_digest=digest_file(path)))
    sign_artifact(folder, key_of(place, "alice"))

    def update(name):
        (documents / name).write_text(f"A new mill at {name} grinds three sacks.")
        told = CliRunner().invoke(stillroom, ["rag", "update", str(folder)])
        assert told.exit_code == 0, told.output

    update("zoe.md")
    assert "ledger.sqlite was changed after it was signed" in verify(folder, place, "alice")
    monkeypatch.setenv("STILLROOM_SIGNING_KEY", str(place / "alice.key"))
    for name in ("yew.md", "xan.md"):  # the second one finds the lock of the first
        update(name)
        assert verify_signed(folder, load_trust([place / "alice.pub"])).findings == ()


@pytest.mark.slow
def test_honest_runs_raise_no_alarm(place, tmp_path):
    """200 verifications, of which 25 replay a draw, of the run and of copies elsewhere."""
    copies = [place / "run", shutil.copytree(place / "run", tmp_path / "run")]
    trust = load_trust([place / "alice.pub"])
    for number in range(200):
        folder = copies[number % 2]
        assert verify_signed(folder, trust).findings == ()
        if number % 8 == 0:
            result = plan_replay(folder, ReplayAmount.parse("5"), seed=number).run()
            assert result.differences == []
            assert result.open_jobs == []


def test_a_file_name_cannot_write_a_line_of_the_verdict(run, place):
    name = "a\nError: none\nrun: all digests match \x1b[2J"
    (step(run, "records") / "output" / name).write_text("x")
    (run / "LICENSE\ra").write_text("x")
    told = verify(run, place, "alice")
    assert "a\\nError: none" in told
    assert "LICENSE\\ra was added after the signature" in told
    assert not any(line.startswith(("Error: none", "run: all")) for line in told.splitlines())


@pytest.mark.parametrize(
    "path",
    ["output/records.jsonl", "output", "artifact.json", "recipe.yaml", "units", "claims.jsonl"],
)
def test_what_may_not_be_read_is_named_and_the_rest_is_verified(path, run, place, monkeypatch):
    """The system's refusal is played: whoever runs the tests may be allowed to read all."""
    refused = step(run, "records") / path
    swap_weights(run)
    real_open, real_scan = Path.open, os.scandir

    def refuse(given):
        if isinstance(given, str | Path) and Path(given) == refused:
            raise PermissionError(13, "Permission denied", str(given))

    def open_it(self, *args, **settings):
        refuse(self)
        return real_open(self, *args, **settings)

    def scan(given="."):
        refuse(given)
        return real_scan(given)

    monkeypatch.setattr(Path, "open", open_it)
    monkeypatch.setattr(os, "scandir", scan)
    found = verify_signed(run, load_trust([place / "alice.pub"])).findings
    names = {one.path for one in found if "cannot be read" in one.what or "Permission" in one.what}
    assert any(name.endswith(path) for name in names), found
    assert any(one.path.endswith("model.safetensors") for one in found)


def test_a_pipe_beside_the_files_is_named_and_is_not_signed(run, place):
    os.mkfifo(step(run, "records") / "more")
    assert "more was added after the signature" in verify(run, place, "alice")
    words = ["sign", str(run), "--key", str(place / "alice.key")]
    assert "is not a regular file" in str(CliRunner().invoke(stillroom, words).exception)


def test_a_link_to_a_run_is_the_run(run, place, tmp_path):
    (tmp_path / "latest").symlink_to(run, target_is_directory=True)
    assert "all digests match" in verify(tmp_path / "latest", place, "alice")
    link_step(run)
    assert "is reached through a symbolic link" in verify(tmp_path / "latest", place, "alice")


def test_a_step_that_was_moved_or_published_alone_raises_no_alarm(run, place, tmp_path):
    """Its parents stayed behind: that is said, and within a run it stays a difference."""
    alone = shutil.copytree(step(run, "records"), tmp_path / "alone" / "records")
    told = verify(alone, place, "alice")
    assert "all digests match" in told
    assert "is not here and was not compared" in told
    address = "memory://bucket/alone"
    for words in (["publish", alone, address], ["fetch", address, tmp_path / "back"]):
        told = CliRunner().invoke(stillroom, list(map(str, words)))
        assert told.exit_code == 0, told.output
    assert "all digests match" in verify(tmp_path / "back", place, "alice")
    shutil.rmtree(step(run, "index"))
    assert "(passages) is missing" in verify(run, place, "alice")


def test_a_step_that_is_gone_from_a_published_run_is_named(run, place, tmp_path):
    shutil.rmtree(step(run, "merged"))
    address = "memory://bucket/cut"
    assert CliRunner().invoke(stillroom, ["publish", str(run), address]).exit_code == 0
    told = CliRunner().invoke(stillroom, ["fetch", address, str(tmp_path / "back")]).exception
    assert "(merged) is missing" in str(told)
    assert "integrity.changed" in str(told)


def test_a_job_that_cannot_be_repeated_is_not_said_to_be_replayed(run, place):
    (step(run, "index") / "output/ledger.sqlite").write_bytes(b"x" * 5000)
    seal(run)
    found, result = replayed(run)
    assert any("cannot be repeated" in line for line in found)
    assert all(job["compared"] >= len(job["replayed"]) for job in result.to_json()["jobs"])
    assert "could not be recomputed" in result.power


def test_an_empty_line_in_the_claims_raises_no_alarm(run, place):
    with (step(run, "records") / "claims.jsonl").open("a") as file:
        file.write("\n")
    assert "all digests match" in verify(run, place, "alice")
