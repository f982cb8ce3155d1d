"""Texts signed and verified by the commands that sign media."""

import io

import pypdfium2
import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.forensics.c2pa.credentials import TrustList, read_credentials
from stillroom.forensics.c2pa.signature import init_ca
from stillroom.forensics.c2pa.signer import Signer, sign_bytes

TEXT = "A still boils wine.\n"


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authority") / "ca"
    init_ca(folder, organization="Our desk")
    return folder


def call(*arguments, code=0):
    told = CliRunner().invoke(
        stillroom, ["forensics", "provenance", *(str(one) for one in arguments)]
    )
    assert told.exit_code == code, (told.output, told.exception)
    return told.output + (str(told.exception) if code else "")


def test_a_text_is_signed_by_an_authority_and_verified(ca, tmp_path):
    file, out = tmp_path / "a.md", tmp_path / "b.md"
    file.write_text(TEXT)
    assert "intact, user" in call("sign", file, "--ca", ca, "--out", out, "--made-by", "Small")
    told = call("verify", out, "--trust", ca / "ca.pem")
    assert "trust: user, the signer is on the user list" in told
    assert "issuer: Our desk" in told
    assert "model Small" in told
    assert "trust: untrusted" in call("verify", out)
    out.write_text(out.read_text().replace("wine", "beer"))
    told = call("verify", out, "--trust", ca / "ca.pem", code=1)
    assert "broken, the file is changed since it was signed" in told
    assert "no provenance" in call("verify", file)


def test_nobody_signs_what_nobody_says_the_origin_of(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    told = call("sign", tmp_path / "a.txt", "--out", tmp_path / "b.txt", code=1)
    assert "[data.mark]" in told
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    told = call("sign", tmp_path / "p.png", "--out", tmp_path / "q.png", code=1)
    assert "[forensics.no-signer]" in told


def test_the_page_of_an_artifact_is_said_to_be_computed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/artifact.json").write_text("{}")
    (tmp_path / "run/report.html").write_text("<html><head></head><body>1</body></html>")
    out = tmp_path / "report.html"
    call("sign", tmp_path / "run/report.html", "--out", out)
    told = call("verify", out)
    assert "source: algorithmicMedia" in told
    assert "key not kept" in told


def test_a_pdf_is_signed_and_read(ca):
    document, file = pypdfium2.PdfDocument.new(), io.BytesIO()
    document.new_page(100, 100)
    document.save(file)
    settings = {"source_type": "trainedAlgorithmicMedia"}
    signed = sign_bytes(
        file.getvalue(), "application/pdf", {"title": "t"}, Signer.open(ca), **settings
    )
    trust = [TrustList("user", (ca / "ca.pem").read_text())]
    read = read_credentials(signed, "application/pdf", trust)
    assert (read.integrity, read.trust) == ("intact", "user")
    assert read.source_types[0].endswith("trainedAlgorithmicMedia")
