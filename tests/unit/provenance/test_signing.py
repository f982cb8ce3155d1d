import datetime
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import Job
from stillroom.provenance import list_run_folders, read_artifact, verify_signed
from stillroom.provenance.artifact import digest_claim, digest_record
from stillroom.provenance.signing import (
    KEY_VARIABLE,
    PublicKey,
    Trust,
    append_claim,
    create_key_pair,
    load_public_key,
    load_signing_key,
    load_trust,
    make_statement,
    open_envelope,
    read_claims,
    sign_artifact,
    sign_envelope,
    sign_statement,
)
from stillroom.provenance.signing.keys import PASSWORD_VARIABLE

pytest.importorskip("cryptography")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    create_key_pair(folder / "alice")
    create_key_pair(folder / "eve", algorithm="ed25519")
    return folder


@pytest.fixture
def signed(run, keys):
    for folder in list_run_folders(run.root):
        sign_artifact(folder, load_signing_key(keys / "alice.key"))
    return run


def check(folder, keys, *names):
    result = verify_signed(folder, load_trust([keys / f"{name}.pub" for name in names]))
    return [(finding.layer, finding.kind, finding.path) for finding in result.findings]


def edit(folder, change):
    """Edit artifact.json as a forger who knows every digest."""
    path = folder / "artifact.json"
    data = json.loads(path.read_text())
    change(data)
    data["claim"] = digest_claim(data)
    data["record"] = digest_record(data)
    path.write_text(json.dumps(data))


def test_a_signed_run_is_valid_for_its_signer_alone(signed, keys, tmp_path):
    assert check(signed.root, keys, "alice") == []
    assert check(signed.root, keys, "alice", "eve") == []
    found = check(signed.root, keys, "eve")
    assert {kind for _, kind, _ in found} == {"other-signer"}
    assert len(found) == 5
    shutil.move(signed.root, tmp_path / "moved")
    assert check(tmp_path / "moved", keys, "alice") == []


def test_an_unsigned_run_is_no_alarm_until_a_signer_is_demanded(run, keys):
    assert not verify_signed(run.root).findings
    assert {kind for _, kind, _ in check(run.root, keys, "alice")} == {"unsigned"}


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(origin={"human": 2}),
        lambda data: data.update(seed=7),
        lambda data: data["versions"].update(torch="9"),
        lambda data: data["details"].update(license="MIT"),
        lambda data: data.update(created="2020-01-01T00:00:00+00:00"),
        lambda data: data["parents"].clear(),
    ],
    ids=["origin", "seed", "versions", "license", "date", "parents"],
)
def test_an_edited_claim_is_found_by_the_signature(signed, keys, change):
    edit(signed.merge, change)
    found = check(signed.merge, keys, "alice")
    assert ("signature", "changed", "artifact.json") in found


def test_an_edited_claim_of_a_parent_is_found_without_a_signature(run):
    edit(run.synth, lambda data: data.update(origin={"human": 2}))
    (finding,) = verify_signed(run.distill).findings
    assert (finding.layer, finding.path) == ("chain", "../synth")


def test_a_careless_edit_is_found_without_a_signature(run):
    path = run.merge / "artifact.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    (finding,) = verify_signed(run.merge, parents=False).findings
    assert finding.layer == "claim"
    data = json.loads(path.read_text())
    del data["claim"]
    path.write_text(json.dumps(data))
    (finding,) = verify_signed(run.merge, parents=False).findings
    assert (finding.layer, finding.kind) == ("claim", "missing")


def test_files_beside_the_output_are_signed_too(signed, keys):
    with (signed.merge / "events.jsonl").open("a") as file:
        file.write("{}\n")
    (signed.merge / "notes.txt").write_text("new")
    assert check(signed.merge, keys, "alice") == [
        ("output", "changed", "events.jsonl"),
        ("signature", "changed", "events.jsonl"),
        ("signature", "changed", "notes.txt"),
    ]


def alter(path, change):
    data = json.loads(path.read_text().splitlines()[0])
    change(data)
    path.write_text(json.dumps(data) + "\n")


def first_of(data):
    return data.get("dsseEnvelope", data)["signatures"]


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("model.sig", lambda data: data.update(note="x"), "members that nothing reads"),
        ("model.sig", lambda data: data["dsseEnvelope"].update(note="x"), "nothing reads"),
        ("model.sig", lambda data: first_of(data)[0].update(keyid="Eve"), "names key 'Eve'"),
        ("model.sig", lambda data: first_of(data)[0].update(keyid={"a": 1}), "names key"),
        (
            "model.sig",
            lambda data: data["verificationMaterial"]["publicKey"].update(hint="Eve"),
            "names key 'Eve'",
        ),
        (
            "model.sig",
            lambda data: data["verificationMaterial"].update(tlogEntries=[{}]),
            "holds tlogEntries, which is not read",
        ),
        ("model.sig", lambda data: first_of(data).append({"sig": ""}), "a second signature"),
        ("claims.jsonl", lambda data: data.update(note="x"), "members that nothing reads"),
        (
            "claims.jsonl",
            lambda data: first_of(data).append({"keyid": "Eve", "sig": "AAAA"}),
            "a second signature, which names key 'Eve'",
        ),
    ],
)
def test_what_stands_beside_a_signature_is_named(signed, keys, name, change, named):
    alter(signed.merge / name, change)
    told = verify_signed(signed.merge, load_trust([keys / "alice.pub"]), parents=False)
    assert told.findings == ()
    (line,) = told.uncovered
    assert line.startswith(name)
    assert named in line


@pytest.mark.parametrize("name", ["model.sig", "claims.jsonl"])
def test_a_member_that_stands_twice_is_refused(signed, keys, name):
    path = signed.merge / name
    path.write_text('{"mediaType": "x", "payload": "e30=",' + path.read_text()[1:])
    path.write_text(path.read_text().replace("{", '{"payload": "e30=",', 1))
    assert ("signature", "changed", name) in check(signed.merge, keys, "alice")


def test_a_statement_of_another_signer_is_named(signed, keys):
    statement = make_statement([], "https://example.org/reviewed", {})
    append_claim(signed.merge, sign_statement(statement, load_signing_key(keys / "eve.key")))
    eve = load_public_key(keys / "eve.pub").key_id
    for names, words in ((["alice"], "not checked: key"), (["alice", "eve"], "by another key")):
        trust = load_trust([keys / f"{name}.pub" for name in names])
        told = verify_signed(signed.merge, trust, parents=False)
        assert told.findings == ()
        (line,) = told.uncovered
        assert line.startswith("claims.jsonl:2 ")
        assert words in line
        assert eve in line


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_claim_that_was_cut_is_gone_when_the_folder_is_signed_again(signed, keys, is_whole):
    path = signed.merge / "claims.jsonl"
    line = path.read_bytes()
    path.write_bytes(line + line[: -1 if is_whole else 300])  # a full disk, or a loss of power
    sign_artifact(signed.merge, load_signing_key(keys / "alice.key"))
    assert check(signed.merge, keys, "alice") == []
    claims = read_claims(signed.merge)
    assert len(claims) == 2 + is_whole
    assert claims[0] == json.loads(line)


@pytest.mark.parametrize("name", ["claims.jsonl", "signer.pub", "model.sig", "artifact.json"])
@pytest.mark.parametrize("make", [os.symlink, lambda _, path: os.mkfifo(path)])
def test_nothing_is_signed_through_a_link_or_a_pipe(signed, keys, tmp_path, name, make):
    (tmp_path / "elsewhere").write_text("mine")
    (signed.merge / name).unlink()
    make(tmp_path / "elsewhere", signed.merge / name)
    with pytest.raises(IntegrityError):
        sign_artifact(signed.merge, load_signing_key(keys / "alice.key"))
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_claims_of_several_processes_are_all_kept(tmp_path):
    claim = {"payloadType": "x", "payload": "e30=", "signatures": []}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: append_claim(tmp_path, claim), range(40)))
    assert len(read_claims(tmp_path)) == 40


def test_files_of_version_control_are_outside_the_signature_and_named(signed, keys):
    (signed.root / ".git").mkdir()
    (signed.root / ".git/config").write_text("x")
    (signed.root / ".git/HEAD").write_text("x")
    told = verify_signed(signed.root, load_trust([keys / "alice.pub"]))
    assert told.findings == ()
    assert told.uncovered == (".git has no digest or signature",)


def test_a_signature_of_another_folder_is_refused(signed, keys):
    for name in ("model.sig", "claims.jsonl"):
        shutil.copy(signed.distill / name, signed.merge / name)
    assert ("signature", "changed", "artifact.json") in check(signed.merge, keys, "alice")


def test_a_signature_outlives_a_power_loss(run, keys, monkeypatch):
    synced, force = set(), os.fsync

    def fsync(file):
        synced.add(os.fstat(file).st_ino)
        force(file)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = run.root
    sign_artifact(folder, load_signing_key(keys / "alice.key"))
    names = ("signer.pub", "claims.jsonl", "model.sig")
    assert synced >= {path.stat().st_ino for path in (folder, *map(folder.joinpath, names))}


def test_the_statement_names_inputs_with_their_origin(signed, keys):
    (envelope,) = read_claims(signed.distill)
    opened = open_envelope(envelope, [load_public_key(keys / "alice.pub")])
    predicate = json.loads(opened.payload)["predicate"]
    teacher, records = predicate["buildDefinition"]["resolvedDependencies"]
    assert teacher["uri"] == "hub:org/teacher"
    assert records["annotations"]["origin"] == {"synthetic": 2}
    assert records["annotations"]["claim"] == read_artifact(signed.synth).claim
    assert predicate["buildDefinition"]["externalParameters"]["recipe"] == "kind: distill\n"
    (envelope,) = read_claims(signed.index)
    opened = open_envelope(envelope, [load_public_key(keys / "alice.pub")])
    definition = json.loads(opened.payload)["predicate"]["buildDefinition"]
    documents = [row for row in definition["resolvedDependencies"] if "document:" in row["name"]]
    assert {row["annotations"]["origin"] for row in documents} == {"human"}
    assert all(len(row["digest"]["sha256"]) == 64 for row in documents)


def test_a_folder_signed_without_its_inputs_is_verified_beside_them(run, keys):
    run.synth.rename(run.synth.with_name("away"))
    sign_artifact(run.distill, load_signing_key(keys / "alice.key"))
    run.synth.with_name("away").rename(run.synth)
    result = verify_signed(run.distill, load_trust([keys / "alice.pub"]), parents=False)
    assert result.findings == ()


def test_a_folder_is_verified_without_its_inputs(signed, keys):
    shutil.rmtree(signed.synth)
    result = verify_signed(signed.distill, load_trust([keys / "alice.pub"]), parents=False)
    assert result.findings == ()


def test_a_dropped_signature_or_claim_is_named(signed, keys):
    (signed.merge / "claims.jsonl").write_text("")
    assert ("signature", "changed", "claims.jsonl") in check(signed.merge, keys, "alice")
    (signed.distill / "model.sig").unlink()
    result = verify_signed(signed.distill, parents=False)
    assert {finding.layer for finding in result.findings} == {"signature"}


def test_another_signer_is_told_from_a_change(signed, keys):
    """Who edits and signs again with an own key has made a valid signature of somebody else."""
    edit(signed.merge, lambda data: data.update(seed=9))
    (signed.merge / "model.sig").unlink()
    sign_artifact(signed.merge, load_signing_key(keys / "eve.key"))
    kinds = {kind for _, kind, path in check(signed.merge, keys, "alice") if path == "."}
    assert kinds == {"other-signer"}


def test_a_job_signs_itself_when_a_key_is_configured(tmp_path, keys, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, str(keys / "alice.key"))
    job = Job.start(tmp_path / "made", "kind: x\n")
    job.journal("units").put("a", 1)
    (job.output / "data.txt").write_text("text")
    job.finish("records", origin={"kind": "human"})
    assert check(tmp_path / "made", keys, "alice") == []
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "absent.key"))
    with pytest.raises(DataError) as caught:
        Job.start(tmp_path / "other", "kind: x\n")
    assert caught.value.problems[0].code == "data.missing"
    assert not (tmp_path / "other").exists()


def issue(
    name, issuer=None, *, days=30, starts=-1, purposes=(), is_authority=False, below=None,
    signs=True, issues=None, extra=None,
):  # fmt: skip
    """Return a certificate with its key: self-signed without an issuer.

    ``below`` is its path length, ``signs`` and ``issues`` are its key usages, and ``extra`` is one
    more critical extension.
    """
    issues = is_authority if issues is None else issues
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signer, signer_name = (issuer[1], issuer[0].subject) if issuer else (key, subject)
    unused = "content_commitment key_encipherment data_encipherment key_agreement crl_sign"
    usage = dict.fromkeys(f"{unused} encipher_only decipher_only".split(), False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=starts))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_authority, below), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=signs, key_cert_sign=issues, **usage), True)
    )
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return builder.sign(signer, hashes.SHA256()), key


def write_chain(folder, *chain):
    """Write a key and its chain; return the signing key."""
    pem = chain[0][1].private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "own.key").write_bytes(pem)
    texts = [one.public_bytes(serialization.Encoding.PEM) for one, _ in chain]
    (folder / "chain.pem").write_bytes(b"".join(texts))
    return load_signing_key(folder / "own.key", certificates=folder / "chain.pem")


CODE = (ExtendedKeyUsageOID.CODE_SIGNING,)
POLICIES = x509.CertificatePolicies(
    [x509.PolicyInformation(x509.ObjectIdentifier("1.3.6.1.4.1.55738.1"), None)]
)
NO_NAMES = x509.NameConstraints(None, [x509.DNSName("example.org")])


@pytest.mark.parametrize(
    ("root", "middle", "leaf", "is_trusted"),
    [
        ({}, {}, {"purposes": CODE}, True),
        ({}, {}, {}, True),
        ({}, {}, {"purposes": (ExtendedKeyUsageOID.SERVER_AUTH,)}, False),
        ({}, {}, {"days": -0.5}, False),
        ({}, {}, {"starts": 1}, False),
        ({}, {"days": -0.5}, {}, False),
        ({}, {"is_authority": False}, {}, False),
        ({"days": -0.5}, {}, {}, False),
        ({"below": 1}, {"below": 0}, {}, True),
        ({"below": 0}, {}, {}, False),
        ({"below": 0}, {"below": 5}, {}, False),
        ({"signs": False}, {"signs": False}, {}, True),
        ({"issues": False}, {}, {}, False),
        ({}, {"issues": False}, {}, False),
        ({}, {"is_authority": False, "issues": True}, {}, False),
        ({}, {}, {"signs": False}, False),
        ({}, {"extra": POLICIES}, {}, True),
        ({}, {"extra": NO_NAMES}, {}, False),
        ({}, {}, {"extra": x509.OCSPNoCheck()}, False),
    ],
    ids=(
        "code no-purpose other-purpose expired future old-middle no-authority old-root "
        "path-length path-too-long path-widened usage-to-issue root-no-issuer middle-no-issuer "
        "usage-without-authority no-signer policies name-limits unread-limit"
    ).split(),
)
def test_certificates_are_trusted_through_a_valid_chain_alone(
    run, tmp_path, root, middle, leaf, is_trusted
):
    top = issue("root", is_authority=True, **root)
    between = issue("middle", top, **{"is_authority": True, **middle})
    sign_artifact(run.merge, write_chain(tmp_path, issue("me", between, **leaf), between))
    (tmp_path / "ca.pem").write_bytes(top[0].public_bytes(serialization.Encoding.PEM))
    ours = load_trust([], [tmp_path / "ca.pem"])
    kinds = [finding.kind for finding in verify_signed(run.merge, ours, parents=False).findings]
    assert kinds == ([] if is_trusted else ["other-signer"])
    foreign = issue("root", is_authority=True)[0]
    (tmp_path / "ca.pem").write_bytes(foreign.public_bytes(serialization.Encoding.PEM))
    theirs = load_trust([], [tmp_path / "ca.pem"])
    (finding,) = verify_signed(run.merge, theirs, parents=False).findings
    assert finding.kind == "other-signer"


@pytest.mark.parametrize(("below", "is_trusted"), [(2, True), (1, False)])
def test_a_path_length_counts_the_authorities_between(keys, below, is_trusted):
    """RFC 5280, 4.2.1.9: those that may follow, the signer's own certificate not counted."""
    chain = [issue("root", is_authority=True, below=below)]
    for name in ("first", "second"):
        chain.append(issue(name, chain[-1], is_authority=True))
    own, key = issue("me", chain[-1])
    trust = Trust((), (chain[0][0],))
    sent = [
        one.public_bytes(serialization.Encoding.DER) for one in (own, *(c[0] for c in chain[:0:-1]))
    ]
    assert trust.covers(PublicKey(key.public_key()), sent) == is_trusted
    assert not trust.covers(PublicKey(key.public_key()), sent[:1])  # no way to the root
    assert not trust.covers(load_public_key(keys / "alice.pub"), sent)  # another's certificate


def test_a_difference_that_two_signatures_cover_is_told_once(signed, keys):
    file = next(path for path in (signed.index / "output").rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes() + b" ")
    found = [one for one in check(signed.root, keys, "alice") if one[0] == "signature"]
    assert found == [("signature", "changed", file.relative_to(signed.root).as_posix())]


def test_a_checkpoint_from_elsewhere_is_signed_without_claims(keys, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    assert list_run_folders(folder) == [folder]
    sign_artifact(folder, load_signing_key(keys / "alice.key"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.safetensors",
        "model.sig",
        "signer.pub",
    ]
    assert check(folder, keys, "alice") == []
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    assert check(folder, keys, "alice") == [("signature", "changed", "model.safetensors")]
    (folder / "model.sig").unlink()
    with pytest.raises(DataError):
        check(folder, keys, "alice")


def test_keys_that_cannot_be_used_are_refused(tmp_path, keys):
    with pytest.raises(DataError) as caught:
        create_key_pair(keys / "alice")
    assert caught.value.problems[0].code == "data.exists"
    assert (keys / "alice.key").stat().st_mode & 0o077 == 0
    create_key_pair(tmp_path / "locked", password=b"secret")
    for password in (None, b"wrong"):
        with pytest.raises(DataError) as caught:
            load_signing_key(tmp_path / "locked.key", password)
        assert caught.value.problems[0].code == "data.key"
        assert PASSWORD_VARIABLE in caught.value.problems[0].next
    assert load_signing_key(tmp_path / "locked.key", b"secret").key_id
    with pytest.raises(DataError, match="has no password") as caught:
        load_signing_key(keys / "alice.key", b"of another key")
    assert caught.value.problems[0].next == f"unset {PASSWORD_VARIABLE}"
    (tmp_path / "no.pub").write_text("no key")
    with pytest.raises(DataError):
        load_public_key(tmp_path / "no.pub")


def test_an_envelope_is_opened_with_its_signers_key_alone(keys):
    envelope = sign_envelope(b"{}", "text/plain", load_signing_key(keys / "alice.key"))
    assert open_envelope(envelope, [load_public_key(keys / "alice.pub")]).payload == b"{}"
    spoiled = {**envelope, "payload": "e30K"}
    for wrong, key in ((envelope, "eve"), (spoiled, "alice"), ({}, "alice")):
        with pytest.raises(IntegrityError) as caught:
            open_envelope(wrong, [load_public_key(keys / f"{key}.pub")])
        assert caught.value.problems[0].code == "integrity.signature"


def test_envelopes_in_url_safe_base64_are_opened_too(signed, keys):
    signer = load_signing_key(keys / "alice.key")
    envelope = sign_envelope(b"\xfb\xff\xfe", "text/plain", signer)
    safe = _make_url_safe(envelope)
    assert safe["payload"] == "-__-"
    assert open_envelope(safe, [signer.public_key]).payload == b"\xfb\xff\xfe"
    path = signed.merge / "model.sig"
    bundle = json.loads(path.read_text())
    path.write_text(json.dumps({**bundle, "dsseEnvelope": _make_url_safe(bundle["dsseEnvelope"])}))
    assert check(signed.merge, keys, "alice") == []


def _make_url_safe(envelope):
    text = json.dumps(envelope["payload"]), json.dumps(envelope["signatures"])
    payload, signatures = (json.loads(one.replace("+", "-").replace("/", "_")) for one in text)
    return {**envelope, "payload": payload, "signatures": signatures}


def test_the_commands_make_keys_sign_and_verify(run, tmp_path, monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)

    def call(*words):
        return CliRunner().invoke(stillroom, [str(word) for word in words])

    assert call("keys", "new", "").exit_code == 2
    assert call("keys", "new", tmp_path / "me").exit_code == 0
    assert "5 folders signed" in call("sign", run.root, "--key", tmp_path / "me.key").output
    result = call("verify", run.root, "--key", tmp_path / "me.pub")
    assert result.exit_code == 0
    assert "5 folders signed by a key you trust" in result.output
    assert "open: steps/index: documents" in result.output
    call("keys", "new", tmp_path / "eve")
    result = call("verify", run.root, "--key", tmp_path / "eve.pub")
    assert "integrity.other-signer" in str(result.exception) + result.output
    edit(run.distill, lambda data: data.update(seed=3))
    path = run.index / "artifact.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    result = call("verify", run.root, "--key", tmp_path / "me.pub")
    assert result.exit_code != 0
    for code in ("integrity.claim", "integrity.chain", "integrity.signature"):
        assert code in str(result.exception) + result.output
