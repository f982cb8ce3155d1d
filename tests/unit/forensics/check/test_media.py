"""A check of clips and recordings: credentials, marked frames, faces over time, sound, a page."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from tests.unit.forensics.media.test_video import wav, write_clip

from stillroom.cli.app import stillroom
from stillroom.forensics.c2pa.signature import init_ca, open_trust_lists, sign_file
from stillroom.forensics.check.check import check_file
from stillroom.forensics.check.report_page import list_manifest_lines, render_check_page
from stillroom.forensics.labeling.lookup import look_up_file, refuse_lab_file
from stillroom.forensics.watermark.image import ImageWatermark


@pytest.fixture(scope="module")
def media(tmp_path_factory, lab, faces):
    folder = tmp_path_factory.mktemp("clips")
    image = ImageWatermark(lab.key).embed(faces[0].image, 77, psnr=38)
    plain = faces[1].image
    write_clip(folder / "clip.mp4", [plain] * 10 + [image] * 10)
    init_ca(folder / "ca", organization="<i>News</i>")
    sign_file(
        folder / "clip.mp4",
        folder / "signed.mp4",
        folder / "ca",
        made_by="a generator",
        refuse=refuse_lab_file,
    )
    wav(folder / "voice.wav", 0.4 * np.sin(np.arange(16000) * 0.3))
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:600])
    return folder


def test_a_signed_clip_is_checked_whole(media, lab):
    lists = open_trust_lists(user=[media / "ca" / "ca.pem"])
    found = check_file(media / "signed.mp4", lists, lab=lab)
    assert (found.credentials.integrity, found.credentials.trust) == ("intact", "user")
    said = "\n".join(found.lines())
    assert "video: 0.8 s, 160x160, mpeg4, 25 frames a second on average" in said
    assert "sound: no audio track" in said
    assert found.trace.watermark == format(77, "012x")
    assert 0 < found.look.marked <= 10
    assert found.trace.covered == "20 frames as they stand"
    assert found.trace.decodings == 11  # ten frames without a mark, then one with
    assert found.trace.chance == 11 * 2**-24
    assert "this lab's watermark" in found.verdict
    page = render_check_page([found])
    assert "Frames over time" in page
    assert "data:image/jpeg;base64," in page
    assert "<i>News</i>" not in page
    assert "&lt;i&gt;News&lt;/i&gt;" in page
    json.dumps(found.to_json())


def test_a_clip_without_a_mark_says_what_was_read_of_it(media, lab, faces, tmp_path):
    write_clip(tmp_path / "plain.mp4", [faces[1].image] * 40)
    traced = look_up_file(tmp_path / "plain.mp4", lab)
    checked = check_file(tmp_path / "plain.mp4", lab=lab).trace
    assert traced == checked
    assert "no watermark of this lab in 32 frames as they stand; that says nothing" in traced.line()
    assert traced.decodings == 32


def test_a_recording_is_checked(media, lab):
    found = check_file(media / "voice.wav", lab=lab)
    assert found.credentials.lines()[0].startswith("no provenance")
    assert "sound: 2.0 s, 8000 Hz, 1 channel" in "\n".join(found.lines())
    assert any("narrow band" in line for line in found.quality)
    assert found.verdict == "its origin is unknown; this is not a sign of a forgery"


def test_a_clip_that_was_cut_off_costs_itself_alone(media):
    words = ["forensics", "check", str(media / "cut.mp4"), str(media / "voice.wav")]
    done = CliRunner().invoke(stillroom, words)
    assert done.exit_code == 1
    assert "cut.mp4: not checked: cut.mp4 is damaged" in done.output
    assert "voice.wav: its origin is unknown" in done.output


def test_the_tree_of_credentials_ends_even_where_it_bites_its_tail():
    store = {
        "active_manifest": "a",
        "manifests": {
            "a": {
                "title": "A",
                "signature_info": {"issuer": "X"},
                "ingredients": [
                    {"title": "B", "relationship": "parentOf", "active_manifest": "b"},
                    {"title": "C"},
                ],
            },
            "b": {"title": "B", "ingredients": [{"title": "A", "active_manifest": "a"}]},
        },
    }
    assert list_manifest_lines(store) == [
        (0, "A, signed by X, no timestamp"),
        (1, "parentOf: B"),
        (2, "B, signed by nobody named, no timestamp"),
        (3, "ingredient: A"),
        (1, "ingredient: C, without credentials"),
    ]
