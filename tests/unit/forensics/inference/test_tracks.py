"""Detectors before clips: scores over time."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from tests.unit.forensics.conftest import widen
from tests.unit.forensics.media.test_video import write_clip

from stillroom.cli.app import stillroom
from stillroom.errors import DataError
from stillroom.flow import run_recipe
from stillroom.forensics.inference.results import Calibrator, TrackFinding
from stillroom.forensics.inference.trained_detector import TrainedDetector, write_detector
from stillroom.forensics.media.video import apply_video_codec
from stillroom.forensics.synthesis.faces import draw_face
from stillroom.recipes import parse_recipe

BASE = """
version: 1
kind: forensics.image_detector
seed: 3
model: {name: npr, width: 8}
data:
  type: forgeries
  forgeries: [{name: upsample, roughness: 1.0}]
  count: 12
  split: {test: 0.3, validation: 0.3}
face_size: 128
image_size: 32
train: {steps: 2, batch_size: 3, threads: 1, learning_rate: 0.01}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    out = tmp_path_factory.mktemp("detector") / "base"
    run_recipe(parse_recipe(BASE), out)
    return out


@pytest.fixture(scope="module")
def shown(base):
    """The same detector as if it had been shown to work: what is tested is what is said of it."""
    detector = TrainedDetector.open(base, device="cpu")
    figures = {"auc": {"h264": {"value": 0.9, "low": 0.8, "high": 1.0}}}
    changes = {
        "is_validated": True,
        "metrics": figures,
        "calibrator": Calibrator("platt", 1e-6, 2.0),
    }
    changes["source"] = "person"
    folder = base.parent / "shown"
    folder.mkdir()
    about = type(detector.metadata)(**{**vars(widen(detector.metadata)), **changes})
    write_detector(folder, detector.network, about)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    pytest.importorskip("av")
    path = tmp_path_factory.mktemp("clips") / "face.mp4"
    face = draw_face(11, 1, 160).image
    frames = [np.pad(np.roll(face, n // 4, 1), ((8, 8), (40, 40), (0, 0))) for n in range(24)]
    write_clip(path, frames, codec="libx264")
    return path


def check(clip, *words):
    done = CliRunner().invoke(stillroom, ["forensics", "check", str(clip), *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_face_is_scored_in_every_frame(clip, shown, tmp_path):
    page = tmp_path / "page.html"
    found = json.loads(check(clip, "--detector", shown, "--html", page, "--json"))["files"][0]
    (frames,) = found["detectors"]
    assert frames["detector"] == "npr of upsample"
    assert frames["face"] == 1
    assert len(frames["times"]) == len(frames["logits"]) == len(frames["chances"]) > 12
    assert frames["times"] == sorted(frames["times"])
    assert frames["logit"] == pytest.approx(np.mean(frames["logits"]), abs=1e-5)
    assert frames["top_fifth_logit"] >= frames["logit"]
    assert frames["chance"] == pytest.approx(0.88, abs=0.01)
    assert found["verdict"].startswith("its origin is unknown")
    text = page.read_text()
    assert text.count("<figure class=course>") == 1
    assert "chance over time, face 1" in text
    said = check(clip, "--detector", shown)
    assert "npr of upsample (trained on drawn faces, 12 in all, digest " in said
    assert "), face 1, " in said
    assert "indicates a forgery (chance 0.88 where 0.5 of" in said
    assert "▇" in said


def test_video_is_judged_only_by_who_was_measured_on_video(clip, base, shown):
    config = shown.parent / "unmeasured"
    detector = TrainedDetector.open(shown, device="cpu")
    about = type(detector.metadata)(**{**vars(detector.metadata), "metrics": {}})
    config.mkdir()
    write_detector(config, detector.network, about)
    assert "it was not validated on video frames" in check(clip, "--detector", config)


def test_video_that_was_never_tried_and_strange_faces_are_not_judged(clip, base, shown, tmp_path):
    face = draw_face(11, 1, 160).image
    frames = [np.pad(np.roll(face, n // 4, 1), ((8, 8), (40, 40), (0, 0))) for n in range(8)]
    write_clip(tmp_path / "other.mp4", frames, codec="mpeg4")
    said = check(tmp_path / "other.mp4", "--detector", shown)
    assert "coded as mpeg4, but validated on H.264 video only" in said
    detector = TrainedDetector.open(shown, device="cpu")
    domain = detector.metadata.domain
    narrow = {"still": domain.limit(), "video": dict.fromkeys(domain.clouds, 0.0)}
    domain = replace(domain, limits=narrow)
    (tmp_path / "narrow").mkdir()
    write_detector(tmp_path / "narrow", detector.network, replace(detector.metadata, domain=domain))
    said = check(clip, "--detector", tmp_path / "narrow")
    assert "inconclusive: unlike its training data, in " in said


def test_a_clip_without_faces_says_that_nothing_was_judged(shown, tmp_path):
    write_clip(tmp_path / "empty.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 6)
    assert "found nothing that they can score" in check(tmp_path / "empty.mp4", "--detector", shown)


def test_a_course_is_the_calibrations_word_on_the_mean_and_no_surer():
    course = TrackFinding(
        detector="d",
        fingerprint="f",
        face=1,
        times=(0.0, 1.0),
        logits=(1.0, 3.0),
        chances=(0.7, 0.95),
        logit=2.0,
        top=3.0,
        chance=0.9,
        prevalence=0.5,
    )
    assert "[▆█]" in course.line()
    assert "indicates a forgery (chance 0.90" in course.line()


def test_video_coding_keeps_size_and_count_and_loses_more_at_higher_factors():
    frames = [draw_face(3, n, 97).image for n in range(3)]
    losses = []
    for crf in (18, 40):
        coded = apply_video_codec(frames, crf)
        assert [one.shape for one in coded] == [(97, 97, 3)] * 3
        losses.append(np.abs(coded[0].astype(int) - frames[0]).mean())
    assert losses[0] < losses[1]


def test_frames_that_cannot_be_coded_are_said(monkeypatch):
    from stillroom.forensics.media import video

    monkeypatch.setattr(video, "_CODEC", "no such codec")
    with pytest.raises(DataError) as caught:
        apply_video_codec([np.zeros((16, 16, 3), np.uint8)], 28)
    assert caught.value.code == "forensics.video-coding"
