"""The verdict says the strongest evidence there is, and no more; one bad file costs that file."""

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from stillroom.cli.app import stillroom
from stillroom.forensics.c2pa.signature import init_ca, open_trust_lists, sign_file
from stillroom.forensics.check.check import FileCheckResult, check_file, list_media
from stillroom.forensics.check.origin import examine_origin
from stillroom.forensics.check.report_page import render_check_page
from stillroom.forensics.inference.results import DetectorFinding
from stillroom.forensics.labeling.image import GeneratedImage, LabeledImageWriter, decode_image
from stillroom.forensics.labeling.lookup import refuse_lab_file
from stillroom.forensics.media.audio import DecodedAudio
from stillroom.records import Origin


@pytest.fixture(scope="module")
def media(tmp_path_factory, lab, faces):
    folder = tmp_path_factory.mktemp("media")
    Image.fromarray(faces[3].image).save(folder / "plain.png")
    made = GeneratedImage(faces[0].image, "sbi", 1, "run", "compositeWithTrainedAlgorithmicMedia")
    LabeledImageWriter(lab).write(made, folder / "lab.jpg")
    init_ca(folder / "ca", organization="<b>News</b>")
    sign_file(
        folder / "plain.png",
        folder / "signed.png",
        folder / "ca",
        made_by="a generator",
        refuse=refuse_lab_file,
    )
    data = bytearray((folder / "signed.png").read_bytes())
    data[-30] ^= 1
    (folder / "changed.png").write_bytes(bytes(data))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "notes.txt").write_text("no medium")
    return folder


@pytest.fixture(scope="module")
def found(media, lab):
    """Every file of the folder, checked once: looking for crops of a mark takes its time."""
    return {path.name: check_file(path, lab=lab) for path in list_media([media]).media}


def lists(media):
    return open_trust_lists(user=[media / "ca" / "ca.pem"])


def test_a_file_of_which_nothing_is_known_is_not_called_forged(found):
    said = found["plain.png"].verdict
    assert said == "its origin is unknown; this is not a sign of a forgery"


def test_the_labs_own_mark_is_named(found):
    assert "this lab's watermark" in found["lab.jpg"].verdict


def test_the_labs_own_authority_is_trusted_as_the_users(media, found):
    found = found["lab.jpg"]
    assert (found.credentials.integrity, found.credentials.trust) == ("intact", "lab")
    assert "on the user list, as this lab's own authority" in found.verdict
    assert check_file(media / "lab.jpg").credentials.trust == "untrusted"


def test_a_stripped_file_of_the_lab_has_no_provenance_and_is_found_by_its_mark(
    media, lab, tmp_path
):
    row = next(row for row in lab.ledger.rows() if row["file"] == "lab.jpg")
    Image.fromarray(decode_image((media / "lab.jpg").read_bytes())).save(
        tmp_path / "a.jpg", quality=60
    )
    found = check_file(tmp_path / "a.jpg", lab=lab)
    assert found.credentials.lines()[0].startswith("no provenance")
    assert found.trace.row == row
    assert found.verdict == "carries this lab's watermark: made by this lab, to test detectors"


def test_a_signers_word_is_reported_as_theirs(media, found):
    assert "vouched for by no list" in found["signed.png"].verdict
    said = check_file(media / "signed.png", lists(media)).verdict
    assert "on the user list" in said
    assert "says that it was made or composed by a program" in said


def test_a_generated_picture_that_an_editor_signed_again_stays_generated(media, tmp_path):
    resaved = tmp_path / "resaved.png"
    sign_file(media / "signed.png", resaved, media / "ca", refuse=refuse_lab_file)
    said = check_file(resaved, lists(media)).verdict
    assert "does not say that a program made it, but made it from a file whose credentials" in said
    origin, _ = examine_origin(resaved, Origin("human"))
    assert (origin.kind, origin.chain[-1].method) == ("synthetic", "forensics.check.generated")
    plain = tmp_path / "plain.png"
    sign_file(media / "plain.png", plain, media / "ca", refuse=refuse_lab_file)
    origin, told = examine_origin(plain, Origin("human"))
    assert (origin.kind, origin.chain[-1].method) == ("human", "forensics.check.signed")
    assert told[0].endswith("does not say that a program made it")


def test_a_changed_file_is_said_to_be_changed(found):
    assert "changed since it was signed" in found["changed.png"].verdict


def test_a_bad_file_does_not_stop_the_others(media, found):
    assert set(found) == {"plain.png", "lab.jpg", "signed.png", "changed.png", "broken.jpg"}
    assert [name for name, one in found.items() if one.error] == ["broken.jpg"]
    assert check_file(media / "notes.txt").error
    assert check_file(media / "missing.png").error == "the file does not exist"
    os.mkfifo(media / "pipe.png")
    try:
        assert check_file(media / "pipe.png").error == "it is not a regular file"
    finally:
        (media / "pipe.png").unlink()  # other tests list the folder


def test_the_page_escapes_what_files_say(media):
    page = render_check_page([check_file(media / "signed.png", lists(media))])
    assert "<b>News</b>" not in page
    assert "&lt;b&gt;News&lt;/b&gt;" in page
    assert "default-src 'none'" in page
    assert "http" not in page.split("<pre>")[0].split("</head>")[1]


def test_command_prints_json_and_a_page(media, tmp_path):
    names = [str(media / name) for name in ("broken.jpg", "lab.jpg")]
    words = ["forensics", "check", *names, "--json", "--html", str(tmp_path / "page.html")]
    done = CliRunner().invoke(stillroom, words)
    assert done.exit_code == 1  # one file is broken
    found = json.loads(done.stdout)
    assert len(found["files"]) == 2
    assert all(one["detectors"] == [] for one in found["files"])
    assert any("No detector" in line for line in found["limits"])
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    done = CliRunner().invoke(stillroom, ["forensics", "check", str(media / "lab.jpg")])
    assert done.exit_code == 0
    assert "trust: lab, the signer is on the user list" in done.output


def test_a_map_is_drawn_where_its_places_are():
    finding = DetectorFinding(
        detector="npr",
        fingerprint="f",
        box=(0, 0, 9, 9),
        logit=2.0,
        chance=0.9,
        prevalence=0.5,
        map=((0.0, 0.25), (1.0, 0.0)),
    )
    page = render_check_page([FileCheckResult(Path("a.png"), findings=(finding,))])
    cells = re.findall(r'x="(\d)" y="(\d)" width="1" height="1" fill-opacity="([\d.]+)"', page)
    assert cells == [("1", "0", "0.25"), ("0", "1", "1.00")]


def test_a_file_whose_credentials_are_not_read_says_so(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.bmp")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    results = [check_file(tmp_path / name) for name in ("a.bmp", "a.png")]
    said = ["credentials are not read from .bmp files" in result.quality for result in results]
    assert said == [True, False]


def test_no_band_is_told_of_a_sound_too_short_to_measure_one():
    sound = DecodedAudio(0.05, 16000, 1, "pcm", peak=0.4, clipped=0.0, silent=0.0, band=0.0)
    assert "energy" not in sound.line()
    assert sound.limits() == ("only 0.05 s of sound",)
