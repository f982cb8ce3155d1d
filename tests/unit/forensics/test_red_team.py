"""The lab's rules attacked as a user would: by recipes and commands, with real files."""

import base64
import dataclasses
import io
import re
import struct
from datetime import date

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from stillroom.cli.app import stillroom
from stillroom.errors import DataError, RecipeError
from stillroom.flow import run_recipe
from stillroom.forensics.c2pa.signature import init_ca, sign_file
from stillroom.forensics.check.check import check_file
from stillroom.forensics.check.report_page import render_check_page
from stillroom.forensics.labeling.image import (
    IMAGE_LABELS,
    GeneratedImage,
    LabeledImageWriter,
    decode_image,
)
from stillroom.forensics.labeling.lookup import refuse_lab_file
from stillroom.forensics.synthesis.consent import find_camera_evidence, write_consent
from stillroom.forensics.watermark.image import ImageWatermark
from stillroom.provenance import digest_file
from stillroom.recipes import parse_recipe


@pytest.fixture
def people(tmp_path, faces):
    """A folder of pictures that stand in for photographs of two people."""
    for number, face in enumerate(faces[:2]):
        (tmp_path / "people" / f"person{number}").mkdir(parents=True)
        Image.fromarray(face.image).save(tmp_path / "people" / f"person{number}" / "a.png")
    return tmp_path / "people"


SOURCES = {"consent": "people", "basis": "licensed", "generator": "synthetic"}


def pictures(folder):
    return sorted(folder.rglob("*.png"))


def consent(people, out, **changes):
    fields = {"who": "Anna", "basis": "form", "scope": ["sbi"], "expires": date(2999, 1, 1)}
    write_consent(out, pictures(people), **{**fields, **changes})
    return out


def forge(people, out, *, method="sbi", faces=None, more=""):
    said = "".join(f", {key}: {value}" for key, value in (faces or {}).items())
    kind = next((SOURCES[key] for key in faces or {}), "people")
    text = (
        f"version: 1\nkind: forensics.image_set\nforgery: {{name: {method}}}\n"
        f"count: 2\nimage_size: 128\nfaces: {{type: {kind}, folder: {people}{said}}}\n{more}"
    )
    return run_recipe(parse_recipe(text, "test"), out)


def media_of(folder):
    endings = {".png", ".jpg", ".npy"}
    return [path for path in folder.rglob("*") if path.suffix in endings] if folder.exists() else []


@pytest.mark.parametrize(
    ("changes", "method", "more", "says"),
    [
        ({"expires": date(2020, 1, 1)}, "sbi", "", "expired on 2020-01-01"),
        ({}, "swap", "", "does not cover 'swap'"),
        ({}, "sbi", "benign_edits: [retouch]\n", "does not cover 'retouch'"),
    ],
    ids=["expired", "other-forgery", "other-edit"],
)
def test_a_consent_that_does_not_cover_the_use_forges_nothing(
    changes, method, more, says, people, tmp_path
):
    record = consent(people, tmp_path / "c.json", **changes)
    with pytest.raises(DataError, match=says) as caught:
        forge(people, tmp_path / "run", method=method, faces={"consent": record}, more=more)
    assert caught.value.code == "forensics.consent"
    assert media_of(tmp_path / "run") == []


def test_a_picture_put_beside_those_agreed_to_stops_the_run(people, tmp_path, faces):
    record = consent(people, tmp_path / "c.json")
    Image.fromarray(faces[2].image).save(people / "person0" / "0.png")
    with pytest.raises(DataError, match="does not cover 1 of the files"):
        forge(people, tmp_path / "run", faces={"consent": record})
    assert media_of(tmp_path / "run") == []


def test_a_detectors_basis_does_not_serve_for_files(people, tmp_path):
    with pytest.raises(RecipeError) as caught:
        forge(people, tmp_path / "run", faces={"basis": "a license"})
    assert caught.value.code == "forensics.whose-faces"


def test_consent_is_asked_again_when_a_run_goes_on(people, tmp_path):
    record = consent(people, tmp_path / "c.json")
    text = (
        "version: 1\nkind: forensics.image_set\ncount: 2\nimage_size: 128\n"
        f"faces: {{type: people, folder: {people}, consent: {record}}}\n"
    )
    recipe = parse_recipe(text, "test")

    def stop(self, *given):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabeledImageWriter, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "run")
    record.unlink()
    consent(people, record, expires=date(2020, 1, 1))
    with pytest.raises(DataError) as caught:
        run_recipe(recipe, tmp_path / "run", resume=True)
    assert caught.value.code == "forensics.consent"


def exif(**tags):
    found = Image.Exif()
    names = {"make": 0x010F, "model": 0x0110}
    for name, value in tags.items():
        if name in names:
            found[names[name]] = value
        else:
            found.get_ifd(0x8769)[0x829A] = value
    return found


@pytest.mark.parametrize("tags", [{"make": "Canon"}, {"model": "X100"}, {"exposure": 0.01}])
def test_photographs_do_not_pass_for_pictures_of_nobody(tags, people, tmp_path):
    path = pictures(people)[0]
    Image.open(path).save(path.with_suffix(".jpg"), exif=exif(**tags))
    assert find_camera_evidence(path) == ""
    with pytest.raises(DataError, match=r"a\.jpg is declared as generated by StyleGAN") as caught:
        forge(people, tmp_path / "run", faces={"generator": "StyleGAN"})
    assert caught.value.code == "forensics.photograph"
    assert media_of(tmp_path / "run") == []


@pytest.mark.parametrize(("make", "evidence"), [("", ""), ("Sony", "the camera's make")])
def test_damaged_tags_are_no_fault_and_hide_no_camera(make, evidence, tmp_path):
    count = 2 if make else 1
    end = 8 + 2 + 12 * count + 4
    named = struct.pack(">HHI4s", 0x010F, 2, 4, make.encode()) if make else b""
    far = struct.pack(">HHII", 0x8769, 16, 1, end)  # the place of more tags, beyond any file
    body = struct.pack(">H", count) + named + far + bytes(4) + b"\xff" * 8
    path = tmp_path / "a.jpg"
    Image.new("RGB", (64, 64)).save(path, exif=b"Exif\0\0MM\0*" + struct.pack(">I", 8) + body)
    assert find_camera_evidence(path) == evidence


def test_credentials_of_a_captured_picture_do_not_pass_either(people, lab):
    from stillroom.forensics.c2pa.signer import sign_bytes

    path = pictures(people)[0]
    signed = sign_bytes(
        path.read_bytes(), "image/png", {"title": "a"}, lab.signer, source_type="digitalCapture"
    )
    path.write_bytes(signed)
    assert find_camera_evidence(path) == "credentials of a captured picture"
    path.write_bytes(sign_bytes(signed, "image/png", {"title": "edited"}, lab.signer))
    assert find_camera_evidence(path) == "credentials of a captured picture"


def test_a_bomb_is_refused_before_it_is_asked_for_a_camera(people, tmp_path):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    (people / "person0" / "b.png").write_bytes(bomb.getvalue())
    with pytest.raises(DataError, match=r"b\.png has too many pixels") as caught:
        forge(people, tmp_path / "run", faces={"generator": "StyleGAN"})
    assert caught.value.code == "forensics.picture"
    assert media_of(tmp_path / "run") == []


def test_files_are_of_people_or_of_nobody_not_both(people, tmp_path):
    record = consent(people, tmp_path / "c.json")
    for of_people in ({"consent": record}, {"basis": "a license"}):
        with pytest.raises(RecipeError) as caught:
            forge(people, tmp_path / "run", faces={**of_people, "generator": "StyleGAN"})
        assert caught.value.code == "forensics.whose-faces"


def test_a_claim_that_nobody_is_shown_is_recorded_and_labels_the_twin(people, tmp_path, lab):
    artifact = forge(people, tmp_path / "run", faces={"generator": "StyleGAN"})
    assert artifact.details["faces"] == "synthetic: StyleGAN"
    rows = {row["sha256"]: row for row in lab.ledger.rows()}
    for path in sorted((tmp_path / "run").rglob("*.jpg")):
        row = rows[digest_file(path)]
        is_fake = path.parent.name == "fake"
        assert row["whose"] == "synthetic: StyleGAN"
        assert row["kind"] == ("forged" if is_fake else "synthetic")
        assert row["kind"] == "forged" or row["source_type"] == "trainedAlgorithmicMedia"
        assert IMAGE_LABELS[row["kind"]].encode() in path.read_bytes()
        assert b"synthetic: StyleGAN" in path.read_bytes()


def test_a_real_twin_is_not_said_to_be_made(people, tmp_path, lab):
    record = consent(people, tmp_path / "c.json")
    forge(people, tmp_path / "run", faces={"consent": record})
    twin, fake = (tmp_path / "run/output" / name / "000000.jpg" for name in ("real", "fake"))
    assert IMAGE_LABELS["real"].encode() in twin.read_bytes()
    assert b"Not a photograph" not in twin.read_bytes()
    assert b"Not a photograph" in fake.read_bytes()
    found = check_file(twin, lab=lab)
    assert found.verdict.endswith(
        "kept by this lab as the real twin of a forgery, to test detectors"
    )
    assert "made by" not in found.trace.line()
    page = render_check_page([found])
    assert IMAGE_LABELS["real"] in page
    assert IMAGE_LABELS["forged"] not in page


def test_a_twin_of_before_is_labelled_as_far_as_is_known(forgery, lab):
    found = check_file(forgery, lab=lab)
    before = {"source_type": "humanEdits", "generator": "twin", "seed": 1, "time": "", "number": 0}
    old = dataclasses.replace(found, trace=dataclasses.replace(found.trace, row=before))
    assert "which of these it is is not known" in render_check_page([old])
    assert "made or kept by this lab" in old.verdict


@pytest.fixture
def forgery(lab, faces, tmp_path):
    made = GeneratedImage(faces[0].image, "sbi", 1, "run", "compositeWithTrainedAlgorithmicMedia")
    LabeledImageWriter(lab).write(made, tmp_path / "forgery.png")
    return tmp_path / "forgery.png"


def test_a_stripped_forgery_is_not_signed_as_if_nothing_were_known(forgery, tmp_path):
    init_ca(tmp_path / "ca")
    Image.fromarray(decode_image(forgery.read_bytes())).save(tmp_path / "stripped.jpg", quality=80)
    words = ["forensics", "provenance", "sign", str(tmp_path / "stripped.jpg")]
    words += ["--ca", str(tmp_path / "ca"), "--out", str(tmp_path / "clean.jpg")]
    done = CliRunner().invoke(stillroom, words)
    assert done.exit_code == 1
    assert done.exception.code == "forensics.lab-file"
    assert not (tmp_path / "clean.jpg").exists()
    done = CliRunner().invoke(stillroom, [*words, "--made-by", "the lab"])
    assert done.exit_code == 0, done.output
    found = check_file(tmp_path / "clean.jpg").credentials
    assert any(kind.endswith("trainedAlgorithmicMedia") for kind in found.source_types)


def test_other_peoples_files_are_signed_as_before(tmp_path, faces):
    init_ca(tmp_path / "ca")
    Image.fromarray(faces[3].image).save(tmp_path / "plain.png")
    found = sign_file(
        tmp_path / "plain.png", tmp_path / "signed.png", tmp_path / "ca", refuse=refuse_lab_file
    )
    assert found.integrity == "intact"


def test_a_forgery_leaves_through_the_page_with_label_and_mark(forgery, lab):
    page = render_check_page([check_file(forgery, lab=lab)])
    assert f"<figcaption>{IMAGE_LABELS['forged']}</figcaption>" in page
    data = re.search(r"data:image/jpeg;base64,([^\"]+)", page).group(1)
    assert ImageWatermark(lab.key).read(decode_image(base64.b64decode(data))).payload is not None


def test_no_command_writes_media_but_what_the_marker_made(people, tmp_path, lab):
    """Every file that forging leaves is either marked, or a mask, or text."""
    record = consent(people, tmp_path / "c.json")
    forge(people, tmp_path / "run", faces={"consent": record})
    rows = {row["sha256"]: row for row in lab.ledger.rows()}
    for path in (tmp_path / "run").rglob("*"):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".jpg":
            assert LabeledImageWriter(lab).missing_marks(path, rows) == []
        elif path.suffix == ".npy":
            assert np.load(io.BytesIO(data)).ndim == 2
        else:
            data.decode("utf-8")
