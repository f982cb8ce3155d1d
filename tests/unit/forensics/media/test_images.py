"""What is signed goes before what is not; files are known by content."""

import base64
import io
import re
import shutil
import struct

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.unit.forensics.media.test_metadata_claims import SETTINGS, picture
from tests.unit.forensics.media.test_video import wav

from stillroom.cli.app import stillroom
from stillroom.errors import DataError
from stillroom.forensics.c2pa.credentials import read_credentials, verify_file
from stillroom.forensics.c2pa.signer import sign_bytes
from stillroom.forensics.check.check import check_file, list_media
from stillroom.forensics.labeling.dataset_writer import find_unmarked_files
from stillroom.forensics.labeling.image import GeneratedImage, LabeledImageWriter
from stillroom.forensics.labeling.lookup import look_up_file
from stillroom.forensics.media.file_types import identify_bytes
from stillroom.forensics.media.images import load_image
from stillroom.forensics.synthesis.consent import find_camera_evidence


def test_what_is_signed_goes_before_what_is_not(lab, tmp_path):
    path = picture(tmp_path / "a.png", texts={"parameters": SETTINGS})
    data = path.read_bytes()
    for source, says in (("trainedAlgorithmicMedia", False), ("", True)):
        path.write_bytes(sign_bytes(data, "image/png", {}, lab.signer, source_type=source))
        assert ("unsigned" in check_file(path, lab=lab).verdict) is says


def svg():
    return b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0"/></svg>'


def test_drawings_and_raw_photographs_carry_credentials(lab, tmp_path):
    signed = sign_bytes(svg(), "image/svg+xml", {"title": "a"}, lab.signer)
    (tmp_path / "a.svg").write_bytes(signed)
    found = check_file(tmp_path / "a.svg", lab=lab)
    assert (found.credentials.integrity, found.credentials.trust) == ("intact", "lab")
    assert found.quality == (
        "no pixels: .svg is not decoded here, so that no watermark was searched",
    )
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "TIFF")
    raw = sign_bytes(out.getvalue(), "image/x-adobe-dng", {"title": "a"}, lab.signer)
    (tmp_path / "a.dng").write_bytes(raw)
    assert check_file(tmp_path / "a.dng", lab=lab).credentials.integrity == "intact"
    done = CliRunner().invoke(
        stillroom, ["forensics", "provenance", "verify", str(tmp_path / "a.dng")]
    )
    assert done.exit_code == 0
    assert {path.name for path in list_media([tmp_path]).media} == {"a.svg", "a.dng"}


def font(*tables):
    """Return a font of some tables, (tag, bytes); nothing else of it is right."""
    head, body = struct.pack(">4sHHHH", b"\0\1\0\0", len(tables), 0, 0, 0), b""
    first = 12 + 16 * len(tables)
    for tag, data in tables:
        head += struct.pack(">4sIII", tag, 0, first + len(body), len(data))
        body += data
    return head + body


def test_of_a_font_it_is_told_what_its_credentials_name_and_what_is_not_checked(lab, tmp_path):
    signed = sign_bytes(svg(), "image/svg+xml", {"title": "a"}, lab.signer)
    store = base64.b64decode(re.search(rb"manifest[^>]*>([A-Za-z0-9+/=\s]+)<", signed)[1])
    table = struct.pack(">HHIHHII", 0, 1, 0, 0, 0, 20, len(store)) + store
    (tmp_path / "signed.ttf").write_bytes(font((b"head", b"1234"), (b"C2PA", table)))
    (tmp_path / "plain.ttf").write_bytes(font((b"head", b"1234")))
    (tmp_path / "cut.ttf").write_bytes(font((b"C2PA", table[:30])))
    found = verify_file(tmp_path / "signed.ttf", [lab.trust])
    assert (found.integrity, found.trust) == ("unreadable", "")
    assert "whether the font's bytes are those that were signed is not checked" in found.note
    assert found.issuer
    assert verify_file(tmp_path / "plain.ttf").integrity == "none"
    assert verify_file(tmp_path / "cut.ttf").integrity == "unreadable"
    assert read_credentials(b"\0\1\0\0\0", "font/ttf").integrity == "none"


def test_a_captured_picture_does_not_pass_for_nobodys_by_another_name(lab, tmp_path):
    path = picture(tmp_path / "a.png")
    data = sign_bytes(path.read_bytes(), "image/png", {}, lab.signer, source_type="digitalCapture")
    (tmp_path / "a.jpg").write_bytes(data)
    assert find_camera_evidence(tmp_path / "a.jpg") == "credentials of a captured picture"


@pytest.fixture
def misnamed(lab, faces, tmp_path):
    """Media whose names say otherwise, one marked and one not, a recording, and a text."""
    folder = tmp_path / "misnamed"
    folder.mkdir()
    made = GeneratedImage(faces[0].image, "sbi", 1, "run", "compositeWithTrainedAlgorithmicMedia")
    LabeledImageWriter(lab).write(made, folder / "a.jpg")
    (folder / "a.jpg").rename(folder / "marked.dat")
    Image.fromarray(faces[1].image).save(folder / "b.jpg")
    (folder / "b.jpg").rename(folder / "plain")
    wav(folder / "sound.bin", 0.4 * np.sin(np.arange(16_000) * 0.3))
    (folder / "notes.txt").write_text("no medium")
    return folder


def test_files_are_known_by_what_they_begin_with(misnamed, lab, tmp_path):
    listed = list_media([misnamed])
    assert [path.name for path in listed.media] == ["marked.dat", "plain", "sound.bin"]
    found = check_file(misnamed / "marked.dat", lab=lab)
    assert found.credentials.integrity == "intact"
    assert found.trace.content == "same"
    assert "named .dat, and by its content .jpg" in found.quality
    assert check_file(misnamed / "sound.bin", lab=lab).look.sound is not None
    assert look_up_file(misnamed / "marked.dat", lab).watermark
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.mp4")
    assert check_file(tmp_path / "b.mp4").error == ""
    assert identify_bytes(misnamed / "notes.txt") is None


TEXTS = {
    "readme.txt": b"The wide world of forensics, notes.\n",
    "points.txt": b"P2 10 20 points are given\n",
    "gif.txt": "GIF89a is a format of 1989: gr\u00f6\u00dfe.\n".encode("latin-1"),
    "amr.txt": b"#!AMR\n",
    "codec.md": b"fLaC is lossless",
    "pages": b"OggS pages",
    "riff.log": b"RIFF: a WAVE file begins so",
    "pdf.txt": b"%PDF-1.7 is how a document begins.\n",
    "page.html": b"<!-- page -->\n<html><body><svg width='1'></svg></body></html>",
    "report.html": b"<!doctype html><svg></svg>",
    "drawn.xml": b"<?xml version='1.0'?><doc><svg/></doc>",
    "comments.xml": b"<!--a-->" * 500 + b"<doc/>",
}


def test_texts_that_begin_with_the_letters_of_a_format_are_no_media(tmp_path):
    for name, data in TEXTS.items():
        (tmp_path / name).write_bytes(data)
        assert identify_bytes(tmp_path / name) is None, name
    assert list_media([tmp_path]).media == ()


def test_formats_that_are_letters_or_texts_are_known_by_any_name(tmp_path):
    flac = b"fLaC\x00\x00\x00\x22\x10"
    drawn = b"<?xml version='1.0'?><!-- a --><!DOCTYPE svg [<!ENTITY a 'b'>]>\n<svg width='1'/>"
    known = {
        ".gif": b"GIF89a\x08\x00\x08\x00\xf7\x00\x00",
        ".flac": flac,
        ".ogg": b"OggS\x00\x02",
        ".mov": b"\x00\x00\x00\x08wide\x00\x00\x01\x00mdat",
        ".amr": b"#!AMR\n\x3c\x08\x1e",
        ".wav": b"RIFF$$$$WAVEfmt \x10\x00\x00\x00",
        ".ppm": b"P6\n# a comment\n2 1\n255\n\x00\x01\x02\x03\x04\x05",
        ".pgm": b"P2 2 1 # a comment\n255\n0 7\n",
        ".svg": drawn,
        ".pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    }
    for ending, data in known.items():
        path = tmp_path / f"a{ending[1:]}.dat"
        path.write_bytes(data)
        found = identify_bytes(path)
        assert found is not None, ending
        assert (found.ending, found.note) == (ending, f"named .dat, and by its content {ending}")
        named = path.rename(tmp_path / f"a{ending}")
        assert identify_bytes(named).note == ""
    (tmp_path / "white.ppm").write_bytes(b"P6 1 1 255\n\xff\xff\xff")
    assert identify_bytes(tmp_path / "white.ppm").ending == ".ppm"


def test_unmarked_media_are_found_whatever_their_names(misnamed, lab):
    found = find_unmarked_files(misnamed, lab)
    assert set(found) == {"plain", "sound.bin"}
    assert find_unmarked_files(misnamed / "marked.dat", lab) == {}
    assert find_unmarked_files(misnamed / "plain", lab) == {"plain": found["plain"]}
    (misnamed / "cut").write_bytes(b"\xff\xd8\xff\xe0")
    assert "watermark" in find_unmarked_files(misnamed, lab)["cut"]


def test_of_no_media_the_ledger_does_not_say_that_all_are_marked(misnamed, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no medium")

    def ask(*places):
        words = [word for place in places for word in ("--unmarked", str(place))]
        return CliRunner().invoke(stillroom, ["forensics", "ledger", *words])

    for place, code in ((tmp_path / "missing", "data.missing"), (tmp_path / "empty",
                        "forensics.no-media")):  # fmt: skip
        done = ask(place)
        assert done.exit_code == 1
        assert isinstance(done.exception, DataError)
        assert done.exception.code == code
        assert "every mark" not in done.output
    done = ask(misnamed / "marked.dat")
    assert done.exit_code == 0
    assert "every media file carries every mark" in done.output
    for places in ((misnamed, misnamed / "marked.dat"), (misnamed / "marked.dat", misnamed)):
        done = ask(*places)
        assert done.exit_code == 1
        assert f"{misnamed / 'plain'}: lacks ledger" in done.output
        assert f"{misnamed / 'marked.dat'}: every media file" in done.output


@pytest.mark.parametrize("suffix", ["tga", "pcx", "ico"])
def test_a_picture_of_a_format_that_cannot_be_marked_counts_as_unmarked(lab, tmp_path, suffix):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / f"a.{suffix}")
    assert set(find_unmarked_files(tmp_path / "pictures", lab)) == {f"a.{suffix}"}


UNMARKABLE = {
    name: lambda path, name=name: Image.new("RGB", (48, 40), (90, 60, 30)).save(path, name)
    for name in ["ICO", "PCX", "TGA", "DDS", "JPEG2000", "SGI", "ICNS", "QOI"]
} | {
    "PSD": lambda path: path.write_bytes(
        b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 40, 48, 8, 3) + bytes(14 + 3 * 40 * 48)
    ),
    "EXR": lambda path: path.write_bytes(b"v/1\x01\2\0\0\0channels\0chlist\0" + bytes(900)),
    "MPEG": lambda path: path.write_bytes(b"\0\0\1\xba!\0\1\0\1\x80\0\1" + bytes(900)),
    "TS": lambda path: path.write_bytes((b"\x47\x40\0\x10" + bytes(184)) * 6),
}
"""Pictures and videos that nothing can mark, as their programs write them."""
NO_PICTURES = {
    "text": b"a line of text\n" * 60,
    "lines": b"\n\n\n\n\5\1\1\1 more lines\n" * 60,
    "rows": b'{"messages": []}\n' * 60,
    "numpy": b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (20,), }".ljust(
        128
    )
    + bytes(80),
    "safetensors": struct.pack("<Q", 62)
    + b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    + bytes(16),
    "zeros": bytes(4000),
    "database": b"SQLite format 3\0\x10\0\1\1\0@  " + bytes(4000),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(4000),
    "one byte": b"\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", UNMARKABLE)
def test_a_picture_that_cannot_be_marked_is_found_under_another_name(lab, tmp_path, name):
    UNMARKABLE[name](tmp_path / "notes.dat")
    assert set(find_unmarked_files(tmp_path, lab)) == {"notes.dat"}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_is_not_called_one(lab, tmp_path, name):
    (tmp_path / "notes.dat").write_bytes(NO_PICTURES[name])
    with pytest.raises(DataError, match="holds no media"):
        find_unmarked_files(tmp_path, lab)


def test_a_picture_of_thousands_of_scans_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (64, 64)).save(path, progressive=True)
    monkeypatch.setattr("stillroom.forensics.media.images._MAX_SCANNED_PIXELS", 100 * 64 * 64)
    assert load_image(path).format == "JPEG"
    data = path.read_bytes()
    path.write_bytes(data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 100 + data[-2:])
    with pytest.raises(DataError, match=r"a\.jpg has 110 scans of 4096 pixels"):
        load_image(path)


def test_bytes_like_scans_of_other_formats_and_of_clips_behind_a_picture_are_no_scans(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("stillroom.forensics.media.images._MAX_SCANNED_PIXELS", 20 * 64 * 64)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    noise[:, ::2, 1:] = 0xDA, 0xFF  # stored as blue, green, red
    Image.fromarray(noise).save(tmp_path / "a.bmp")
    Image.fromarray(noise).save(tmp_path / "b.jpg", comment=b"\xff\xda" * 99, restart_marker_rows=1)
    with (tmp_path / "b.jpg").open("ab") as file:
        file.write(b"\xff\xda" * 99)
    for name in ("a.bmp", "b.jpg"):
        assert (tmp_path / name).read_bytes().count(b"\xff\xda") > 99
        assert load_image(tmp_path / name).image.shape == (64, 64, 3)
