"""The rules of OpenSSF model signing 1.0, section by section."""

import base64
import hashlib
import json
import shutil

import pytest

from stillroom.errors import IntegrityError
from stillroom.provenance.signing import (
    Trust,
    check_signature,
    create_key_pair,
    load_public_key,
    load_signing_key,
)
from stillroom.provenance.signing.dsse import sign_envelope
from stillroom.provenance.signing.model_signing import (
    build_bundle,
    compare_resources,
    list_resources,
    open_bundle,
    parse_bundle,
)

pytest.importorskip("cryptography")
IGNORED = ["ignore-me", "model.sig"]
IN_TOTO = "application/vnd.in-toto+json"


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    private, _ = create_key_pair(tmp_path_factory.mktemp("keys") / "me")
    return private


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    for name in ("signme-1", "sub dir/模型.bin", ".cache/weights", "sub dir/.git/config"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    (folder / "empty").touch()
    for name in ("ignore-me", ".gitignore"):
        (folder / name).write_text("not signed")
    return folder


@pytest.fixture
def bundle(model, key):
    return build_bundle("model", list_resources(model, IGNORED), IGNORED, signer(key))


def signer(key):
    return load_signing_key(key)


def judge(bundle, model, key):
    signed, _ = open_bundle(bundle, [load_public_key(key.with_suffix(".pub"))], model / "model.sig")
    return sorted(compare_resources(model, signed))


def restate(bundle, key, change, payload_type=IN_TOTO):
    """Return a validly signed bundle whose statement was changed first."""
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement)
    envelope = sign_envelope(json.dumps(statement).encode(), payload_type, signer(key))
    return {**bundle, "dsseEnvelope": envelope}


def test_every_regular_file_is_signed_but_for_what_section_6_2_leaves_out(model, bundle, key):
    assert judge(bundle, model, key) == []
    listed = parse_bundle(bundle, model).resources
    names = [".cache/weights", "empty", "signme-1", "sub dir/.git/config", "sub dir/模型.bin"]
    assert list(listed) == names


@pytest.mark.parametrize(
    ("name", "how"),
    [("signme-1", "changed"), ("sub dir/.git/config", "changed"), ("new/one", "extra")],
)
def test_changed_missing_and_extra_files_are_named(model, bundle, key, name, how):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("tampered")
    (model / ".cache/weights").unlink()
    (model / "ignore-me").write_text("other")
    shutil.copytree(model / "new", model / ".git") if how == "extra" else None
    assert judge(bundle, model, key) == sorted([(name, how), (".cache/weights", "missing")])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda bundle: bundle.update(mediaType="application/json"),
        lambda bundle: bundle.pop("mediaType"),
        lambda bundle: bundle.pop("dsseEnvelope"),
        lambda bundle: bundle.pop("verificationMaterial"),
        lambda bundle: bundle["verificationMaterial"].pop("publicKey"),
        lambda bundle: bundle["verificationMaterial"].update(publicKey={}),
        lambda bundle: bundle["dsseEnvelope"].update(signatures=[]),
        lambda bundle: bundle["dsseEnvelope"].update(payload="!"),
        lambda bundle: bundle["dsseEnvelope"].update(payloadType="text/plain"),
        lambda bundle: bundle.update(
            verificationMaterial={"certificate": {"rawBytes": ""}, "tlogEntries": []}
        ),
    ],
)
def test_malformed_bundles_are_refused(model, bundle, key, spoil):
    spoil(bundle)
    with pytest.raises(IntegrityError) as caught:
        judge(bundle, model, key)
    assert caught.value.code == "integrity.signature"


def test_a_keyless_signature_is_called_that(model, bundle, key):
    certificate = {"rawBytes": "AAAA"}
    material = {"certificate": certificate, "tlogEntries": [{"logIndex": "1"}]}
    (model / "model.sig").write_text(json.dumps({**bundle, "verificationMaterial": material}))
    found = check_signature(model, Trust((load_public_key(key.with_suffix(".pub")),)))
    ((name, what),) = found.differences
    assert (found.state, name) == ("invalid", "model.sig")
    assert what.startswith("is keyless (sigstore)")
    assert "model_signing verify sigstore" in what


@pytest.mark.parametrize(
    "change",
    [
        lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda statement: statement.update(predicateType="https://example.com/other"),
        lambda statement: statement["predicate"].pop("serialization"),
        lambda statement: statement["predicate"].update(resources=[]),
        lambda statement: statement["predicate"]["serialization"].update(hash_type="md5"),
        lambda statement: statement["predicate"]["serialization"].update(method="tree"),
        lambda statement: statement["predicate"]["serialization"].update(allow_symlinks=True),
        lambda statement: statement["predicate"]["resources"].pop(),
        lambda statement: statement["subject"].append({"name": "x", "digest": {}}),
    ],
)
def test_signed_statements_of_another_form_are_refused(model, bundle, key, change):
    with pytest.raises(IntegrityError):
        judge(restate(bundle, key, change), model, key)


def test_older_forms_of_the_key_and_its_id_are_accepted(model, bundle, key):
    bundle["verificationMaterial"] = {"publicKey": {"rawBytes": "AA==", "keyDetails": "x"}}
    for keyid in (None, "", "any"):
        bundle["dsseEnvelope"]["signatures"][0]["keyid"] = keyid
        assert judge(bundle, model, key) == []
    del bundle["dsseEnvelope"]["signatures"][0]["keyid"]
    assert judge(bundle, model, key) == []


@pytest.mark.parametrize("hash_type", ["sha256", "blake2b", "blake3"])
def test_shards_cover_a_file_from_its_first_byte_to_its_last(model, bundle, key, hash_type):
    from stillroom.provenance.signing.model_signing import _open_hasher

    (model / "signme-1").write_bytes(bytes(range(25)))

    def shard(statement):
        rows = []
        for name in sorted(row["name"] for row in statement["predicate"]["resources"]):
            data = (model / name).read_bytes()
            for begin in range(0, len(data), 10):
                end = min(begin + 10, len(data))
                hasher = _open_hasher(hash_type)
                hasher.update(data[begin:end])
                digest = {"algorithm": hash_type, "digest": hasher.hexdigest()}
                rows.append({"name": f"{name}:{begin}:{end}", **digest})
        rows.sort(key=lambda row: row["name"])
        serialization = statement["predicate"]["serialization"]
        serialization.update(method="shards", shard_size=10, hash_type=hash_type)
        statement["predicate"]["resources"] = rows
        root = hashlib.sha256(b"".join(bytes.fromhex(row["digest"]) for row in rows))
        statement["subject"][0]["digest"]["sha256"] = root.hexdigest()

    sharded = restate(bundle, key, shard)
    assert judge(sharded, model, key) == []
    for data in (bytes(range(26)), bytes(range(24)), bytes(range(20)), bytes(25)):
        (model / "signme-1").write_bytes(data)
        assert judge(sharded, model, key) == [("signme-1", "changed")]


def test_links_are_refused_when_signing_and_a_change_when_verifying(model, bundle, key):
    (model / "signme-1").unlink()
    (model / "signme-1").symlink_to(model / "empty")
    assert judge(bundle, model, key) == [("signme-1", "changed")]
    with pytest.raises(IntegrityError) as caught:
        list_resources(model)
    assert caught.value.code == "integrity.link"


@pytest.mark.peer
def test_the_reference_implementation_and_ours_verify_each_other(model, bundle, key):
    """PyPI model-signing, the reference implementation of the OpenSSF."""
    pytest.importorskip("OpenSSL", reason="model-signing 1.1.1 imports pyOpenSSL, undeclared")
    model_signing = pytest.importorskip("model_signing")

    public, path = key.with_suffix(".pub"), model / "model.sig"
    path.write_text(json.dumps(bundle))
    verifying = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
    verifying.verify(model, path)
    (model / "signme-1").write_text("tampered")
    with pytest.raises(ValueError, match="signme-1"):
        verifying.verify(model, path)
    path.unlink()
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[path])
    signing = model_signing.signing.Config().use_elliptic_key_signer(private_key=key)
    signing.set_hashing_config(hashing).sign(model, path)
    assert judge(json.loads(path.read_text()), model, key) == []
    (model / "extra").write_text("new")
    assert judge(json.loads(path.read_text()), model, key) == [("extra", "extra")]
