import pytest
from pydantic import ValidationError

from stillroom.train import LoraSettings, TrainSettings


def test_counts_steps_from_epochs():
    assert TrainSettings(epochs=3, batch_size=8).count_steps(100) == 38
    assert TrainSettings(epochs=0.001, batch_size=8).count_steps(3) == 1
    assert TrainSettings(steps=7, epochs=3).count_steps(100) == 7


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 0},
        {"beta1": 1.0},
        {"steps": 0},
        {"warmup": 0.99, "steps": 10},
        {"schedule": "step"},
        {"lerning_rate": 1.0},
        {"lora": {"rank": 0}},
        {"learning_rate": float("nan")},
    ],
)
def test_refuses_what_cannot_be_trained_with(bad):
    with pytest.raises(ValidationError):
        TrainSettings.model_validate(bad)


def test_lora_targets_are_names_or_all():
    assert LoraSettings(targets=("q_proj",)).targets == ("q_proj",)
    with pytest.raises(ValidationError):
        LoraSettings(targets="some")
