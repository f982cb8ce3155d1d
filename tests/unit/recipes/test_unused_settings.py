"""Settings that would do nothing, or cannot be carried out, are refused where they are written."""

import pytest
from pydantic import TypeAdapter, ValidationError

from stillroom.diffusion.interfaces import ATTENTIONS, REMASKINGS
from stillroom.diffusion.sampling.settings import EndSettings
from stillroom.distill.settings import FidelitySettings
from stillroom.evaluate.jobs.report import AnswerSamplingSettings
from stillroom.forensics.jobs.audio_detector import AudioDetectorRecipe
from stillroom.forensics.jobs.image_detector import ForgeryData
from stillroom.forensics.settings import SplitSettings
from stillroom.synth.interfaces import FILTERS
from stillroom.text.interfaces import CHUNKERS


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (EndSettings, {"never": True, "penalty": 1.0}, "without effect: penalty"),
        (EndSettings, {"never": True, "last": True}, "without effect: last"),
        (FidelitySettings, {"records": 0, "keep_baseline": True}, "without effect: keep_baseline"),
        (FidelitySettings, {"baseline": False, "keep_baseline": True}, "without effect"),
        (SplitSettings, {"test": 0.5, "validation": 0.5}, "leave a share for training"),
        (AnswerSamplingSettings, {"top_k": 5}, "without effect: top_k"),
        (AnswerSamplingSettings, {"top_p": 0.5}, "without effect: top_p"),
        (AudioDetectorRecipe, {"count": 8}, "greater than or equal to 9"),
        (ForgeryData, {"count": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_without_effect_are_refused(settings, values, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(settings).validate_python(values)


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (EndSettings, {"never": True}),
        (EndSettings, {"penalty": 1.0}),
        (FidelitySettings, {"records": 0}),
        (FidelitySettings, {"records": 4, "baseline": True, "keep_baseline": True}),
        (SplitSettings, {"test": 0.9, "validation": 0.0}),
        (AnswerSamplingSettings, {"temperature": 0.7, "top_k": 5, "top_p": 0.5}),
        (AnswerSamplingSettings, {"temperature": 0, "top_k": 0, "top_p": 1}),
    ],
)
def test_settings_with_an_effect_are_accepted(settings, values):
    TypeAdapter(settings).validate_python(values)


@pytest.mark.parametrize(
    ("registry", "method"),
    [
        (REMASKINGS, {"name": "wino", "threshold": 0}),
        (REMASKINGS, {"name": "remdm", "eta": 0}),
        (FILTERS, {"name": "language", "languages": ["english"]}),
        (FILTERS, {"name": "language", "languages": ["EN"]}),
        *((CHUNKERS, {"name": name, "size": 50, "overlap": 26}) for name in CHUNKERS.names()),
    ],
)
def test_methods_without_effect_are_refused(registry, method):
    with pytest.raises(ValidationError):
        registry.build(method)


def test_a_small_size_lowers_the_default_of_the_least_size():
    for name in CHUNKERS.names():
        CHUNKERS.build({"name": name, "size": 10, "overlap": 5})


def test_attention_is_annealed_by_the_last_step_or_it_shows():
    attention = ATTENTIONS.build({"name": "full", "anneal_steps": 10})
    assert attention.visible_share(9) == 1
    assert attention.visible_share(4) == 0.5
