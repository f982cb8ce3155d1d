"""A mark counts on the content that it was written into: copied elsewhere, it proves nothing."""

import json

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.unit.forensics.media.test_video import write_clip
from tests.unit.forensics.sounds import write_sound

from stillroom.cli.app import stillroom
from stillroom.forensics.check.check import check_file
from stillroom.forensics.check.origin import examine_origin
from stillroom.forensics.check.report_page import render_check_page
from stillroom.forensics.interfaces import IMAGE_FORGERIES
from stillroom.forensics.labeling.audio import GeneratedAudio, LabeledAudioWriter
from stillroom.forensics.labeling.image import (
    IMAGE_LABELS,
    GeneratedImage,
    LabeledImageWriter,
    decode_image,
)
from stillroom.forensics.labeling.lab import open_lab
from stillroom.forensics.labeling.lookup import look_up_file, look_up_image
from stillroom.forensics.media.audio import compute_stft, invert_stft, load_waveform
from stillroom.forensics.media.transforms import compress_jpeg
from stillroom.forensics.modalities.audio import apply_audio_codec
from stillroom.forensics.synthesis.voices import draw_voice
from stillroom.forensics.watermark.audio import AudioWatermark
from stillroom.forensics.watermark.fingerprint import (
    compare_audio,
    compare_image,
    fingerprint_audio,
    fingerprint_image,
    pack_fingerprint,
)
from stillroom.forensics.watermark.image import ImageWatermark, measure_psnr
from stillroom.records import Origin


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab whose key is always the same: whether a copied mark can be read depends on it."""
    folder = tmp_path_factory.mktemp("fixed")
    (folder / "lab.key").write_bytes(bytes(range(32)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_LAB", str(folder))
        yield open_lab()


@pytest.fixture(scope="module")
def marked(lab, faces, tmp_path_factory):
    """A forgery of the lab's, as it was before its mark, and with it."""
    path = tmp_path_factory.mktemp("marked") / "forgery.png"
    made = GeneratedImage(
        faces[0].image, "sbi", 1, "copied", "compositeWithTrainedAlgorithmicMedia"
    )
    LabeledImageWriter(lab).write(made, path)
    return faces[0].image, decode_image(path.read_bytes())


@pytest.fixture(scope="module")
def copied(marked, faces):
    """The difference of the two, laid on another picture."""
    before, after = marked
    other = faces[3].image.astype(int)
    image = np.clip(other + after.astype(int) - before, 0, 255).astype(np.uint8)
    assert measure_psnr(faces[3].image, image) > 40
    return image


def test_a_mark_that_was_copied_to_another_picture_is_told_as_that(copied, lab, tmp_path):
    path = tmp_path / "copied.png"
    Image.fromarray(copied).save(path)
    found = check_file(path, lab=lab)
    assert ImageWatermark(lab.key).read(copied).payload is not None  # it was there to be found
    assert found.trace.content == "differs"
    for said in (found.verdict, found.trace.line()):
        assert "its content differs from what the mark was written into" in said
        assert "made by this lab" not in said
    assert f"ledger row {found.trace.row['number']}" in found.trace.line()
    done = CliRunner().invoke(stillroom, ["forensics", "trace", str(path), "--json"])
    told = json.loads(done.stdout)["files"][str(path)]
    assert told["content"] == "differs"
    assert told["likeness"] < 0.92
    assert "content" not in told["row"]  # the sketch would help to make a picture that resembles it
    page = render_check_page([found])
    assert "wrote into another picture" in page
    assert IMAGE_LABELS["forged"] not in page


def test_a_copied_mark_makes_a_picture_neither_synthetic_nor_human(copied, tmp_path):
    Image.fromarray(copied).save(tmp_path / "copied.png")
    origin, told = examine_origin(tmp_path / "copied.png", Origin("human"))
    assert (origin.kind, origin.chain[-1].method) == ("unknown", "forensics.check.elsewhere")
    assert "its content differs" in told[0]


def cover(image, *, top=0.0, bottom=0.0, sides=0.0, level=255):
    """Lay a caption or border over shares of a picture."""
    height, width = image.shape[:2]
    covered = np.full_like(image, level)
    rows = slice(round(top * height), height - round(bottom * height))
    columns = slice(round(sides * width), width - round(sides * width))
    covered[rows, columns] = image[rows, columns]
    return covered


CAPTIONS = [
    {"bottom": 0.05},
    {"bottom": 0.1, "level": 0},
    {"top": 0.1, "bottom": 0.1},
    {"top": 0.05, "bottom": 0.05, "sides": 0.05, "level": 0},
]


@pytest.mark.parametrize("covered", CAPTIONS, ids=["thin", "caption", "two", "border"])
def test_a_forgery_under_a_caption_or_border_is_still_told_as_synthetic(
    covered, marked, copied, lab, tmp_path
):
    path = tmp_path / "captioned.jpg"
    Image.fromarray(cover(marked[1], **covered)).save(path, quality=90)
    assert look_up_file(path, lab).content == "same"
    origin, _ = examine_origin(path, Origin("human"))
    assert (origin.kind, origin.chain[-1].method) == ("synthetic", "forensics.check.lab")
    # A caption is no way to make a mark count that was copied.
    assert look_up_image(cover(copied, **covered), lab).content != "same"


@pytest.mark.parametrize(
    "edit",
    [
        lambda image: image,
        lambda image: compress_jpeg(image, 50),
        lambda image: cv2.resize(image, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA),
        lambda image: cv2.GaussianBlur(image, (0, 0), 1),
        lambda image: np.clip(image * 0.8 + 30, 0, 255).astype(np.uint8),
        lambda image: image[:-3, 2:],
        lambda image: image[14:, :-12],
    ],
    ids=["none", "jpeg-50", "smaller", "blur", "paler", "crop-2", "crop-9"],
)
def test_a_mark_on_its_own_picture_counts_after_edits(edit, marked, lab):
    found = look_up_image(np.ascontiguousarray(edit(marked[1])), lab)
    assert found.content == "same"
    assert found.verdict == "carries this lab's watermark: made by this lab, to test detectors"


def test_a_row_from_before_sketches_were_kept_leaves_it_open(lab, faces):
    image = ImageWatermark(lab.key).embed(faces[2].image, 4711)
    found = look_up_image(image, lab)
    assert (found.row, found.content) == (None, "unknown")
    row = {"watermark": format(4711, "012x"), "generator": "sbi", "seed": 1}
    lab.ledger.append(row)
    found = look_up_image(image, lab)
    assert found.content == "unknown"
    assert "whether its content is what was marked is not known" in found.verdict
    assert "is not known" in found.line()


def test_of_a_clips_frames_the_one_that_the_mark_was_written_into_counts(
    copied, marked, lab, tmp_path
):
    write_clip(tmp_path / "both.mp4", [copied] * 10 + [marked[1]] * 10)
    assert look_up_file(tmp_path / "both.mp4", lab).content == "same"
    write_clip(tmp_path / "copied.mp4", [copied] * 10)
    found = check_file(tmp_path / "copied.mp4", lab=lab)
    assert found.trace.content == "differs"
    assert "made by this lab" not in found.verdict


def test_a_mark_that_was_copied_to_another_sound_is_told_as_that(lab, tmp_path):
    voice = draw_voice(5, 0, 4.0).samples
    others = (draw_voice(5, number, 4.0).samples for number in range(1, 9))
    path = tmp_path / "a.wav"
    LabeledAudioWriter(lab).write(
        GeneratedAudio(voice, "vocoder", 1, "copied", "algorithmicMedia"), path
    )
    before, after = (compute_stft(values, 1024, 256) for values in (voice, load_waveform(path)))
    gain = np.clip(np.abs(after) / np.maximum(np.abs(before), 1e-4), 0.2, 5)
    copied = (
        invert_stft(compute_stft(other, 1024, 256) * gain, 1024, 256, len(other))
        for other in others
    )
    # Not every sound carries on what is laid on it.
    values = next(one for one in copied if AudioWatermark(lab.key).read(one).payload is not None)
    found = look_up_file(write_sound(tmp_path / "copied.wav", values), lab)
    assert found.content == "differs"
    assert "made by this lab" not in found.verdict
    edited = apply_audio_codec(load_waveform(path), "aac", 64_000)[5000:] * np.float32(0.4)
    assert look_up_file(write_sound(tmp_path / "edited.wav", edited), lab).content == "same"


def test_a_twins_mark_on_its_own_forgery_does_not_call_it_real(lab, faces, tmp_path):
    forged = IMAGE_FORGERIES.build("swap").forge(faces[:2], np.random.default_rng(1))
    read = {}
    for kind, image in (("real", forged.twin), ("forged", forged.image)):
        (tmp_path / kind).mkdir()
        source = "humanEdits" if kind == "real" else "compositeWithTrainedAlgorithmicMedia"
        made = GeneratedImage(image, kind, 1, "pair", source, kind=kind)
        LabeledImageWriter(lab).write(made, tmp_path / kind / "0.png")
        read[kind] = decode_image((tmp_path / kind / "0.png").read_bytes())
        assert look_up_image(read[kind], lab).content == "same"
        assert look_up_image(compress_jpeg(read[kind], 50), lab).content == "same"
    mark = read["real"].astype(int) - forged.twin
    copied = np.clip(forged.image.astype(int) + mark, 0, 255).astype(np.uint8)
    found = look_up_image(copied, lab)
    assert found.row["kind"] == "real"
    assert found.content == "differs"
    assert f"more to ledger row {found.nearer}" in found.line()
    assert found.nearer == look_up_image(read["forged"], lab).row["number"]
    assert "real twin" not in found.verdict


def test_sketches_of_what_has_no_structure_resemble_each_other_alone(faces):
    flat = np.full((256, 256), 90, np.float32)
    kept = pack_fingerprint(fingerprint_image(flat))
    assert compare_image(kept, fingerprint_image(flat + 40)) > 0.99
    face = cv2.resize(faces[0].image[..., 1], (256, 256)).astype(np.float32)
    assert compare_image(kept, fingerprint_image(face)) < 0.5
    assert compare_image(kept, np.full((16, 16), np.nan)) == 0.0
    silence = np.zeros(48_000, np.float32)
    kept = pack_fingerprint(fingerprint_audio(silence))
    assert compare_audio(kept, silence) > 0.99
    assert compare_audio(kept, draw_voice(5, 1, 4.0).samples) < 0.5
    assert compare_audio(kept, silence[:100]) == 0.0


def test_a_marked_part_says_nothing_of_the_rest_of_a_file(marked, faces, lab, tmp_path):
    write_clip(tmp_path / "one.mp4", [faces[3].image] * 9 + [marked[1]] + [faces[4].image] * 10)
    found = look_up_file(tmp_path / "one.mp4", lab)
    assert found.content == "same"
    assert "in 1 of 20 frames: made by this lab" in found.verdict
    assert "nothing about the rest of the file" in found.verdict
    assert found.to_json()["part"] == "1 of 20 frames"

    path = tmp_path / "part.wav"
    made = GeneratedAudio(draw_voice(0, 1).samples, "vocoder", 1, "r", "trainedAlgorithmicMedia")
    LabeledAudioWriter(lab).write(made, path)
    assert "this lab's watermark: made by" in look_up_file(path, lab).verdict
    joined = np.concatenate([load_waveform(path), draw_voice(9, 7, seconds=20.0).samples])
    found = look_up_file(write_sound(tmp_path / "joined.wav", joined), lab)
    assert "this lab's watermark in 4 of 24 s: made by this lab" in found.verdict
