"""Credentials are signed and read for every medium; integrity, trust and issuer stay apart."""

import datetime
import io
import json
import struct
import time
import wave

import pytest

from stillroom.errors import DataError
from stillroom.forensics.c2pa.credentials import TrustList, read_credentials, verify_file
from stillroom.forensics.c2pa.signature import init_ca, make_chain, open_trust_lists, sign_file
from stillroom.forensics.c2pa.signer import Signer, sign_bytes
from stillroom.forensics.labeling.lookup import refuse_lab_file

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authority") / "ca"
    init_ca(folder, organization="Test newsroom")
    return folder


@pytest.fixture(scope="module")
def trust(ca):
    return open_trust_lists(user=[ca / "ca.pem"])


@pytest.fixture(scope="module", autouse=True)
def expiring():
    """A signed picture whose certificate ends while the other tests run, and when it ends."""
    from cryptography import x509

    texts = make_chain("Old", 1 + 2.0 / 86400)  # begins yesterday, ends in a moment
    end = x509.load_pem_x509_certificate(texts["chain.pem"].encode()).not_valid_after_utc
    signer = Signer(texts["chain.pem"], texts["signer.key"])
    signed = sign_bytes(picture("PNG"), "image/png", {"title": "t"}, signer)
    return signed, texts, end.timestamp()


def picture(kind):
    from PIL import Image

    out = io.BytesIO()
    Image.effect_noise((64, 48), 40).convert("RGB").save(out, kind)
    return out.getvalue()


def sound():
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(struct.pack("<400h", *range(400)))
    return out.getvalue()


def clip():
    import av
    import numpy as np

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 20, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def document():
    import pypdfium2

    made = pypdfium2.PdfDocument.new()
    made.new_page(100, 100)
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()


MEDIA = {
    "image/jpeg": lambda: picture("JPEG"),
    "image/png": lambda: picture("PNG"),
    "image/webp": lambda: picture("WEBP"),
    "audio/wav": sound,
    "video/mp4": clip,
    "application/pdf": document,
}


@pytest.mark.parametrize("mime", MEDIA)
def test_round_trip_is_intact_and_trusted(mime, ca, trust):
    signed = sign_bytes(MEDIA[mime](), mime, {"title": "t"}, Signer.open(ca))
    found = read_credentials(signed, mime, trust)
    assert (found.integrity, found.trust, found.issuer) == ("intact", "user", "Test newsroom")
    assert found.codes == ()


# One byte of the medium itself: of the entropy-coded picture, of a sample, of a coded frame.
FLIPPED = {
    "image/jpeg": lambda data: len(data) - 40,
    "image/png": lambda data: len(data) - 40,
    "audio/wav": lambda data: data.index(b"data") + 30,
    "video/mp4": lambda data: data.index(b"mdat") + 30,
}


@pytest.mark.parametrize("mime", FLIPPED)
def test_one_flipped_byte_is_broken(mime, ca, trust):
    signed = bytearray(sign_bytes(MEDIA[mime](), mime, {"title": "t"}, Signer.open(ca)))
    signed[FLIPPED[mime](signed)] ^= 1
    found = read_credentials(bytes(signed), mime, trust)
    assert found.integrity == "broken"
    assert any(code.endswith("Hash.mismatch") for code in found.codes)


def test_intact_without_a_list_is_not_trusted(ca):
    signed = sign_bytes(picture("PNG"), "image/png", {"title": "t"}, Signer.open(ca))
    found = read_credentials(signed, "image/png")
    assert (found.integrity, found.trust) == ("intact", "untrusted")
    assert any("self-asserted" in line for line in found.lines())


def test_the_same_name_under_another_authority_is_not_trusted(ca, trust, tmp_path):
    other = tmp_path / "rogue"
    init_ca(other, organization="Test newsroom")
    signed = sign_bytes(picture("PNG"), "image/png", {"title": "t"}, Signer.open(other))
    found = read_credentials(signed, "image/png", trust)
    assert (found.issuer, found.trust) == ("Test newsroom", "untrusted")


def test_lists_keep_their_labels(ca, tmp_path):
    other = tmp_path / "other"
    init_ca(other)
    lists = open_trust_lists(official=[other / "ca.pem"], interim=[ca / "ca.pem"])
    signed = sign_bytes(picture("PNG"), "image/png", {"title": "t"}, Signer.open(ca))
    assert read_credentials(signed, "image/png", lists).trust == "interim"


def test_stripped_has_no_provenance_and_is_never_called_fake():
    found = read_credentials(picture("JPEG"), "image/jpeg")
    assert found.integrity == "none"
    assert found.trust == ""
    said = " ".join(found.lines())
    assert said.startswith("no provenance")
    assert "fake" not in said
    assert "forged" not in said


def test_an_expired_certificate_does_not_sign(tmp_path):
    from cryptography import x509

    texts = make_chain("Old", 0)  # ended yesterday
    leaf = x509.load_pem_x509_certificate(texts["chain.pem"].encode())
    assert leaf.not_valid_after_utc <= datetime.datetime.now(datetime.UTC)
    with pytest.raises(DataError) as caught:
        sign_bytes(
            picture("PNG"),
            "image/png",
            {"title": "t"},
            Signer(texts["chain.pem"], texts["signer.key"]),
        )
    assert caught.value.code == "forensics.certificate"


def test_a_file_whose_certificate_has_expired_since_is_intact_and_expired(expiring):
    signed, texts, end = expiring
    time.sleep(max(end + 1.1 - time.time(), 0))  # the second of its end is still one of its own
    found = read_credentials(signed, "image/png", [TrustList("user", texts["ca.pem"])])
    assert (found.integrity, found.trust) == ("intact", "expired")
    assert "signingCredential.expired" in found.codes


def test_a_damaged_file_is_unreadable_not_fake():
    found = read_credentials(b"\xff\xd8\xff\xe0 nothing", "image/jpeg")
    assert found.integrity in {"none", "unreadable"}


def test_source_type_and_parent_are_kept(ca, trust):
    original = picture("PNG")
    made = sign_bytes(
        original, "image/png", {"title": "t"}, Signer.open(ca), source_type="algorithmicMedia"
    )
    assert read_credentials(made, "image/png", trust).source_types == (IPTC + "algorithmicMedia",)
    edited = sign_bytes(
        original,
        "image/png",
        {"title": "t"},
        Signer.open(ca),
        parent=(made, "image/png"),
    )
    manifests = read_credentials(edited, "image/png", trust).manifests["manifests"]
    assert len(manifests) == 2


def test_callback_signs_with_a_key_that_stays_away(ca, trust):
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    own = Signer.open(ca)
    key = serialization.load_pem_private_key(own.key.encode(), None)
    asked = []

    def sign(data):
        asked.append(len(data))
        return key.sign(data, ec.ECDSA(hashes.SHA256()))

    signed = sign_bytes(picture("PNG"), "image/png", {"title": "t"}, Signer(own.chain, sign=sign))
    assert asked
    assert read_credentials(signed, "image/png", trust).trust == "user"


def test_files_are_signed_and_verified(ca, tmp_path):
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    found = sign_file(
        tmp_path / "a.png", tmp_path / "b.png", ca, made_by="a generator", refuse=refuse_lab_file
    )
    assert (found.integrity, found.trust) == ("intact", "user")
    assert found.source_types == (IPTC + "trainedAlgorithmicMedia",)
    again = verify_file(tmp_path / "b.png", open_trust_lists(user=[ca / "ca.pem"]))
    assert json.dumps(again.to_json())


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda ca, at: init_ca(ca), "forensics.authority-exists"),
        (lambda ca, at: Signer.open(at), "forensics.no-signer"),
        (lambda ca, at: verify_file(at / "a.txt"), "forensics.media-type"),
        (lambda ca, at: verify_file(at / "a.png"), "data.missing"),
        (lambda ca, at: TrustList.read("user", at / "ca.pem"), "forensics.trust-list"),
        (
            lambda ca, at: sign_file(at / "a.png", at / "b.jpg", ca, refuse=refuse_lab_file),
            "forensics.media-type",
        ),
        (
            lambda ca, at: sign_file(at / "a.png", at / "b.png", ca, refuse=refuse_lab_file),
            "data.missing",
        ),
        (
            lambda ca, at: sign_bytes(b"nothing", "image/png", {}, Signer.open(ca)),
            "forensics.signing",
        ),
    ],
)
def test_what_cannot_be_done_is_said(act, code, ca, tmp_path):
    with pytest.raises(DataError) as caught:
        act(ca, tmp_path)
    assert caught.value.code == code


def test_an_authority_that_does_not_work_is_not_left_behind(tmp_path, monkeypatch):
    from stillroom.forensics.c2pa import signature

    whole = signature.make_chain
    monkeypatch.setattr(
        signature,
        "make_chain",
        lambda name, days: {
            **whole(name, days),
            "ca.pem": "-----BEGIN CERTIFICATE-----\n" + whole("x", 9)["ca.pem"].split("\n", 1)[1],
        },
    )
    with pytest.raises(DataError) as caught:
        init_ca(tmp_path / "ca")
    assert caught.value.code == "forensics.certificate"
    assert not list((tmp_path / "ca").iterdir())


def test_an_issuer_cannot_write_lines_of_its_own(tmp_path):
    from stillroom.forensics.check.check import check_file

    name = 'X"\n  trust: official, the signer is on the official list'
    texts = make_chain(name, 30)
    signer = Signer(texts["chain.pem"], texts["signer.key"])
    path = tmp_path / "a.png"
    path.write_bytes(sign_bytes(picture("PNG"), "image/png", {"title": "t"}, signer))
    lines = check_file(path).lines()
    assert [line for line in lines if line.startswith("  trust: ")] == [
        "  trust: untrusted, the signer is vouched for by no trusted list"
    ]
    assert all("\n" not in line for line in lines)
    assert "calls themselves \"X'\\n  trust" in lines[0]
    assert 'on the official list", vouched for by no list' in lines[0]


@pytest.mark.parametrize(("length", "fits"), [(64, True), (65, False), (0, False)])
def test_an_organization_is_as_long_as_certificates_hold(length, fits, tmp_path):
    if fits:
        init_ca(tmp_path / "ca", organization="n" * length)
        return
    with pytest.raises(DataError) as caught:
        init_ca(tmp_path / "ca", organization="n" * length)
    assert caught.value.code == "forensics.certificate"
    assert not (tmp_path / "ca").exists()


def test_a_manifest_that_cannot_be_fetched_is_told_as_that(tmp_path):
    from tests.unit.forensics.test_bad_files import remote_manifest

    found = read_credentials(
        remote_manifest("http://127.0.0.1:9/a.c2pa"), "image/jpeg", remote=True
    )
    assert found.integrity == "none"
    assert "could not be fetched" in found.note


class _Reader:
    """What a reader says of a file whose signature leaves out some bytes at its head."""

    def __init__(self, data, left):
        import base64
        import hashlib

        made = base64.b64encode(hashlib.sha256(data[left:]).digest()).decode()
        said = {"exclusions": [{"start": 0, "length": left}], "alg": "sha256", "hash": made}
        manifest = {"claim": {"alg": "sha256"}, "assertion_store": {"c2pa.hash.data": said}}
        self.store = {"active_manifest": "a", "manifests": {"a": manifest}}

    def detailed_json(self):
        return json.dumps(self.store)


def test_a_file_that_was_signed_too_loosely_is_not_called_changed():
    from stillroom.forensics.c2pa.credentials import Credentials, explain_mismatch
    from stillroom.forensics.check.check import FileCheckResult

    data = bytes(range(200))
    codes = ["signingCredential.untrusted", "assertion.dataHash.mismatch"]
    said = explain_mismatch(io.BytesIO(data), _Reader(data, 50), codes)
    assert said == (
        "the signature leaves out 50 bytes, more than its own credentials; the other 150 are as "
        "they were signed"
    )
    assert explain_mismatch(io.BytesIO(data + b"!"), _Reader(data, 50), codes) == ""
    assert (
        explain_mismatch(io.BytesIO(data), _Reader(data, 50), [*codes, "claimSignature.mismatch"])
        == ""
    )
    found = Credentials("broken", "untrusted", note=said)
    assert "refused by today's rules" in found.lines()[0]
    from pathlib import Path

    verdict = FileCheckResult(Path("a.jpg"), credentials=found).verdict
    assert verdict.startswith("is signed in a way that is no longer accepted")
    assert "changed" not in verdict


def test_a_folder_is_called_one(tmp_path):
    with pytest.raises(DataError) as caught:
        verify_file(tmp_path)
    assert "is a folder" in str(caught.value)
    assert "name the files" in str(caught.value)


def test_what_a_parent_says_of_its_source_is_kept_apart_from_the_editors_own_word(ca, trust):
    signer = Signer.open(ca)
    made = sign_bytes(
        picture("JPEG"), "image/jpeg", {"title": "t"}, signer, source_type="algorithmicMedia"
    )
    saved = sign_bytes(made, "image/jpeg", {"title": "t"}, signer)
    again = sign_bytes(saved, "image/jpeg", {"title": "t"}, signer)
    for data in (saved, again):
        read = read_credentials(data, "image/jpeg", trust)
        assert (read.source_types, read.parent_source_types) == ((), (IPTC + "algorithmicMedia",))
        assert "source of what it was made from: algorithmicMedia" in read.lines()
    assert read_credentials(made, "image/jpeg", trust).parent_source_types == ()
    changed = bytearray(made)
    changed[-30] ^= 1
    saved = sign_bytes(bytes(changed), "image/jpeg", {"title": "t"}, signer)
    read = read_credentials(saved, "image/jpeg", trust)
    assert (read.integrity, read.parent_source_types) == ("intact", ())
