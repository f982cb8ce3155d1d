"""Credentials that the room writes and reads, held against a reader of our own of the standard."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image

from stillroom.forensics.c2pa.credentials import TrustList, read_credentials
from stillroom.forensics.c2pa.signature import make_chain
from stillroom.forensics.c2pa.signer import Signer, sign_bytes

pytest.importorskip("cbor2")
pytest.importorskip("c2pa")
from tests.parity.c2pa_reader import read  # it needs cbor2

MIMES = {"JPEG": "image/jpeg", "PNG": "image/png"}


@pytest.fixture(scope="module")
def chain():
    return make_chain("Parity", 30)


@pytest.fixture(scope="module", params=["JPEG", "PNG"])
def signed(request, chain):
    out = io.BytesIO()
    Image.effect_noise((96, 64), 40).convert("RGB").save(out, request.param)
    signer = Signer(chain["chain.pem"], chain["signer.key"])
    mime = MIMES[request.param]
    data = sign_bytes(out.getvalue(), mime, {"title": "t"}, signer, source_type="algorithmicMedia")
    return data, mime, out.getvalue()


def both(data, mime, anchor):
    """Return what the two readers say: integrity, and whether the signer is trusted."""
    ours = read_credentials(data, mime, [TrustList("user", anchor)])
    theirs = read(data, [anchor])
    trusted = "trusted" if ours.is_trusted else ours.trust
    return (ours.integrity, trusted), (theirs.state, theirs.trust)


def test_readers_agree_on_what_is_whole(signed, chain):
    data, mime, plain = signed
    ours, theirs = both(data, mime, chain["ca.pem"])
    assert ours == theirs == ("intact", "trusted")
    ours, theirs = both(plain, mime, chain["ca.pem"])
    assert ours == theirs == ("none", "")


def test_readers_agree_on_a_flipped_byte(signed, chain):
    data, mime, _ = signed
    changed = bytearray(data)
    changed[-40] ^= 1  # of the picture
    ours, theirs = both(bytes(changed), mime, chain["ca.pem"])
    assert ours[0] == theirs[0] == "broken"
    at = data.index(b"algorithmicMedia")  # of what is claimed
    changed = bytearray(data)
    changed[at] ^= 1
    ours, theirs = both(bytes(changed), mime, chain["ca.pem"])
    if ours[0] != "unreadable":  # a PNG's checksum fails first
        assert ours[0] == theirs[0] == "broken"
    assert theirs[0] == "broken"


def test_readers_agree_on_another_authority_of_the_same_name(signed):
    data, mime, _ = signed
    ours, theirs = both(data, mime, make_chain("Parity", 30)["ca.pem"])
    assert ours == theirs == ("intact", "untrusted")


def test_the_second_reader_sees_an_expired_chain(signed, chain):
    data, _, _ = signed
    later = datetime.now(UTC) + timedelta(days=60)
    assert read(data, [chain["ca.pem"]], now=later).trust == "expired"
