"""The proof of a run: over HTTP, as a page, and in the line of ``show``."""

import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient
from tests.console_folder import KEY, append_summary, build_signed, build_tenants
from tests.unit.serve.test_app import request

from stillroom.cli.app import stillroom
from stillroom.console import create_console
from stillroom.errors import DataError
from stillroom.provenance import Parent, read_artifact
from stillroom.provenance.signing import load_signing_key, load_trust, sign_artifact
from stillroom.serve import create_app
from stillroom.serve.access import ApiKey
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.views.proof import examine_proof
from stillroom.serve.workspace import Workspace

pytest.importorskip("cryptography")
NAMES = ["run", "run/steps/index", "run/steps/records"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("signed")
    build_signed(place)
    return place


@pytest.fixture
def place(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def trust(place, *names):
    return load_trust([place / f"{name}.pub" for name in names])


def examine(place, *names, name="run"):
    return examine_proof(place / "served", name, trust(place, *names) if names else None)


def page(place, path, *names):
    app = create_console(place / "served", key=KEY, trust=trust(place, *names) if names else None)
    with TestClient(app, base_url="http://127.0.0.1:8152") as client:
        client.get(f"/?key={KEY}")
        reply = client.get(path)
        assert reply.status_code == 200, reply.text
        return reply.text


def show(place, *more):
    done = CliRunner().invoke(stillroom, ["show", str(place / "served/run"), *more])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_signed_run_is_shown_with_signer_inputs_and_open_ends(place):
    proof = examine(place, "alice")
    assert proof.state == "trusted"
    assert sorted(one.name for one in proof.folders) == NAMES
    assert all(one.digest and one.claim for one in proof.folders)
    inputs = {one.name: one for one in proof.inputs}
    assert inputs["rivers.txt"].license == "CC0-1.0"
    assert len(inputs["rivers.txt"].digest) == 64
    assert inputs["hub:org/teacher"].digest == ""
    kinds = {one.role: (one.origin, one.license) for one in proof.inputs}
    assert kinds["documents"] == ("human", "CC0-1.0")
    assert kinds["teacher"] == ("unknown", "unknown")
    assert any("hub:org/teacher is named without a digest" in line for line in proof.open_ends)
    assert str(place) not in json.dumps(proof.to_json())


def test_the_page_needs_no_script_and_names_what_is_shown(place):
    text = page(place, "/proof", "alice")
    assert "Every folder is as it was signed" in text
    assert text.count("trusted signer</span>") == 4  # the verdict and three folders
    assert "open: no digest" in text
    assert "hub:org/teacher is named without a digest" in text
    assert '<link rel="stylesheet"' in text
    assert "start the console with" not in text
    assert "start the console with" in page(place, "/proof?at=run")


@pytest.mark.parametrize(
    ("trusted", "state", "words"),
    [((), "unknown-signer", "no signer to trust"), (("bob",), "other-signer", "does not trust")],
)
def test_a_valid_signature_of_somebody_else_is_no_change(place, trusted, state, words):
    proof = examine(place, *trusted)
    assert proof.state == state
    assert words in proof.verdict
    assert not any(one.differences for one in proof.folders)


def test_an_edit_is_named_at_the_folder_in_which_it_lies(place):
    path = place / "served/run/steps/records/artifact.json"
    path.write_text(path.read_text().replace("synthetic", "human"))
    proof = examine(place, "alice")
    by_name = {one.name: one for one in proof.folders}
    assert proof.state == "invalid"
    assert by_name["run/steps/records"].state == "invalid"
    assert "signature: artifact.json was changed after it was signed" in (
        by_name["run/steps/records"].differences
    )
    assert by_name["run/steps/index"].state == "trusted"
    text = page(place, "/proof?at=run", "alice")
    assert "What differs" in text
    assert "artifact.json was changed after it was signed" in text
    assert "invalid: steps/records/artifact.json was changed after it was signed" in show(place)


def test_an_unsigned_run_that_was_changed_is_called_changed(place):
    run = place / "served/run"
    for name in ("model.sig", "signer.pub", "claims.jsonl"):
        for path in list(run.rglob(name)):
            path.unlink()
    assert examine(place, "alice").state == "unsigned"
    assert "signature  unsigned" in show(place)
    (run / "steps/records/output/records.jsonl").write_text("{}\n")
    proof = examine(place)
    assert proof.state == "changed"
    assert next(one for one in proof.folders if one.state == "changed").name == "run/steps/records"


def test_a_replay_counts_if_a_trusted_key_or_the_signer_signed_its_summary(place):
    assert "Nothing was replayed" in examine(place, "alice").replayed
    append_summary(place, "eve")
    assert "No replay counts: 1 of its summaries" in examine(place, "alice").replayed
    assert "1 by keys that are not at hand" in show(place)
    append_summary(place, "alice")
    assert (
        "10 of 40 segments were replayed by the signer itself" in examine(place, "alice").replayed
    )
    assert "by the signer itself" in examine(place).replayed
    append_summary(place, "bob", replayed=40)
    proof = examine(place, "alice", "bob")
    assert proof.state == "trusted"
    assert proof.replayed == (
        "40 of 40 segments were replayed by a verifier whom this server trusts: all gave the same "
        "bytes. 1 of 3 folders was not replayed. Such a draw finds much."
    )
    text = page(place, "/proof?at=run", "alice", "bob")
    assert "open: it was updated in place" in text
    assert "assembled again" in text
    assert "10 of 40 segments, all the same bytes, says its signer" in show(place)
    told = json.loads(show(place, "--json"))
    assert told["signature"]["state"] == "valid"
    assert told["replay"] == {"replayed": 10, "segments": 40, "differences": 0}


def test_a_replay_that_differed_is_named_and_an_old_one_does_not_count(place):
    append_summary(place, "alice", differences=[{"name": "unit 3", "what": "gave other bytes"}])
    proof = examine(place, "alice")
    assert "1 differed" in proof.replayed
    records = next(one for one in proof.folders if one.name.endswith("records"))
    assert records.replay.differences == ("unit 3 gave other bytes",)
    path = place / "served/run/steps/records/artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "created": "2027"}))
    sign_artifact(path.parent, load_signing_key(place / "alice.key"))
    records = next(one for one in examine(place, "alice").folders if one.name.endswith("records"))
    assert records.replay is None


def test_the_route_verifies_within_the_workspace_and_by_scope(place):
    keys = [ApiKey("k" * 20, scopes=frozenset({"jobs:read"})), ApiKey("m" * 20, scopes={"models"})]
    with Workspace(place / "served").open() as workspace:
        app = create_app(
            None, jobs=JobRunner(workspace), api_keys=keys, trust=trust(place, "alice")
        )
        header = {"Authorization": f"Bearer {'k' * 20}"}
        reply = request(app, "GET", "/v1/proof?path=run", headers=header)
        assert reply.status_code == 200
        assert reply.json()["state"] == "trusted"
        assert str(place) not in reply.text
        for name in ("../alice.pub", "nothing", "/etc", "notes"):
            reply = request(app, "GET", f"/v1/proof?path={name}", headers=header)
            assert reply.status_code == 404
            assert str(place) not in reply.text
        other = {"Authorization": f"Bearer {'m' * 20}"}
        assert request(app, "GET", "/v1/proof?path=run", headers=other).status_code == 403
        assert request(app, "GET", "/v1/proof?path=run").status_code == 401


def test_documents_of_tenants_are_not_listed(tmp_path):
    folder = build_tenants(tmp_path)
    proof = examine_proof(folder, "index")
    assert proof.is_guarded
    assert not [one for one in proof.inputs if one.role == "document"]
    assert "a.txt" not in json.dumps(proof.to_json())


def test_what_is_no_artifact_is_refused(place):
    with pytest.raises(DataError) as caught:
        examine(place, name="notes")
    assert caught.value.code == "data.not-an-artifact"


def test_signers_without_a_workspace_are_refused(place):
    command = ["serve", str(place / "served/run"), "--signer", str(place / "alice.pub")]
    done = CliRunner().invoke(stillroom, command)
    assert "serve.nothing" in done.output + str(done.exception)


def test_packaged_readers_are_named_with_their_license(place):
    folder = place / "served/run/steps/records"
    artifact = read_artifact(folder)
    added = [Parent("reader", f"builtin:{name}", "0" * 64) for name in ("reader-large", "overlap")]
    changed = replace(artifact, parents=(*artifact.parents, *added))
    (folder / "artifact.json").write_text(json.dumps(changed.to_json()))
    proof = examine_proof(place / "served", "run")
    shown = {one.name: (one.origin, one.license) for one in proof.inputs}
    assert shown["builtin:reader-large"] == ("packaged with Stillroom", "CC-BY-SA-4.0")
    assert shown["builtin:overlap"] == ("packaged with Stillroom", "Apache-2.0")
    assert shown["hub:org/teacher"] == ("unknown", "unknown")
