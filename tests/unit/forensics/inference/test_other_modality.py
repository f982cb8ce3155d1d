"""A detector of audio where one of images is needed."""

import pytest

pytest.importorskip("torch")

from torch import nn

from stillroom.errors import DataError
from stillroom.forensics.inference.results import Calibrator
from stillroom.forensics.inference.trained_detector import DetectorMetadata, TrainedDetector
from stillroom.forensics.interfaces import AUDIO_DETECTORS
from stillroom.forensics.modalities.audio import AudioModality


def test_a_detector_of_audio_is_refused_as_one_of_images():
    method = AUDIO_DETECTORS.build("lfcc")
    metadata = DetectorMetadata(method, AudioModality(16_000), Calibrator("none"))
    detector = TrainedDetector(nn.Linear(1, 1), metadata)
    with pytest.raises(DataError) as refused:
        _ = detector.image_input
    assert refused.value.problems[0].code == "forensics.other-detector"
