"""Our marks held against verifiers of others, and theirs read by us.

``pip install --no-deps c2patxt==0.2.0 encypher-c2pa==1.7.1 c2pa-text==3.0.0``: c2patxt pins an
older cryptography than ours, with which it works all the same.
"""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from stillroom.provenance.text_marks import mark_text
from stillroom.records.text_credentials import Disclosure, read_credentials
from stillroom.records.text_credentials.cose import ClaimSigner

pytestmark = pytest.mark.peer

TEXT = "A still — naïve, 蒸留器, 👩‍👩‍👧 — boils wine.\n"
TEXTS = {
    "text/plain": TEXT,
    "text/markdown": f"# Stills\n\n{TEXT}",
    "text/html": f"<html><head><title>ü</title></head><body><p>{TEXT}</p></body></html>",
}
SAID = Disclosure(model_name="Small", model_identifier="gguf:" + "ab" * 32)
SIGNERS = [
    ClaimSigner(ed25519.Ed25519PrivateKey.generate()),
    ClaimSigner(ec.generate_private_key(ec.SECP256R1())),
    ClaimSigner(ec.generate_private_key(ec.SECP384R1())),
]


@pytest.mark.parametrize("signer", SIGNERS)
@pytest.mark.parametrize("media_type", TEXTS)
def test_encypher_accepts_ours_and_refuses_a_changed_word(media_type, signer):
    encypher = pytest.importorskip("encypher_c2pa")
    marked = mark_text(TEXTS[media_type], SAID, signer, media_type)
    told = encypher.verify(marked.encode(), media_type, telemetry=False)
    assert (told["integrity"], told["signature"], told["hard_binding"]) == (
        "valid",
        "valid",
        "match",
    )
    changed = marked.replace("boils", "burns").encode()
    told = encypher.verify(changed, media_type, telemetry=False)
    assert (told["integrity"], told["hard_binding"]) == ("invalid", "mismatch")


@pytest.mark.parametrize("signer", SIGNERS)
def test_c2patxt_accepts_ours_and_refuses_a_changed_word(signer):
    c2patxt = pytest.importorskip("c2patxt")
    marked = mark_text(TEXT, SAID, signer)
    told = c2patxt.verify(marked)
    assert told.state is c2patxt.Provenance.VALID
    named = told.manifest.assertion("c2pa.ai-disclosure")
    assert (named["modelName"], named["modelIdentifier"]) == ("Small", SAID.model_identifier)
    assert c2patxt.verify(marked.replace("boils", "burns")).state is c2patxt.Provenance.INVALID


def test_a_hundred_answers_are_accepted_by_both():
    encypher, c2patxt = pytest.importorskip("encypher_c2pa"), pytest.importorskip("c2patxt")
    for number in range(100):
        marked = mark_text(f"Answer {number} é. " * (number + 1), SAID, SIGNERS[number % 3])
        assert c2patxt.verify(marked).state is c2patxt.Provenance.VALID
        told = encypher.verify(marked.encode(), "text/plain", telemetry=False)
        assert told["integrity"] == "valid"


def test_encyphers_reference_finds_our_carriers():
    c2pa_text = pytest.importorskip("c2pa_text")
    plain, markdown, page = (
        mark_text(text, SAID, SIGNERS[0], kind) for kind, text in TEXTS.items()
    )
    assert c2pa_text.validate_text(plain).valid
    assert c2pa_text.extract_manifest(plain)[1] == TEXT
    assert c2pa_text.extract_structured(markdown).manifest
    assert c2pa_text.extract_html(page).manifest


def test_a_text_that_c2patxt_marked_is_read():
    c2patxt = pytest.importorskip("c2patxt")
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "theirs")])
    start = datetime.datetime.now(datetime.UTC)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .add_extension(x509.KeyUsage(True, *[False] * 8), critical=True)
        .add_extension(x509.ExtendedKeyUsage([c2patxt.C2PA_CLAIM_SIGNING_EKU]), critical=False)
        .sign(key, None)
    )
    said = c2patxt.Disclosure(
        media_type="text/plain", model_type=c2patxt.ModelType.GENERIC, model_name="Theirs"
    )
    marked = c2patxt.embed(TEXT, c2patxt.Signer(private_key=key, certificates=(leaf,)), said)
    (found,) = read_credentials(marked)
    assert (found.state, found.model_name, found.signer) == ("valid", "Theirs", "theirs")
