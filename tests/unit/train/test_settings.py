import itertools

import pytest
from pydantic import ValidationError

from stillroom.train.settings import TrainSettings, compute_learning_rate


def rates(steps, **settings):
    chosen = TrainSettings(learning_rate=1.0, **settings)
    return [compute_learning_rate(chosen, step, steps) for step in range(steps)]


def test_warmup_rises_to_the_peak_and_never_starts_at_zero():
    found = rates(10, warmup=0.3, schedule="constant")
    assert found[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert found[3:] == [1.0] * 7


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_falls_to_the_final_share(schedule):
    found = rates(20, warmup=0.1, schedule=schedule, final_share=0.1)
    assert found[2] == 1.0
    assert found[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(found[2:]))


def test_cosine_is_half_way_in_the_middle():
    assert rates(11, warmup=0.0, schedule="cosine", final_share=0.0)[5] == pytest.approx(0.5)


def test_one_step_has_the_peak():
    assert rates(1, warmup=0.05, schedule="cosine") == [1.0]


def test_passes_that_no_count_of_steps_can_hold_are_refused():
    with pytest.raises(ValidationError, match="less than or equal to 1000000"):
        TrainSettings(epochs=1e308)
