import pytest

from stillroom.forensics.aggregation import aggregate_frame_scores


@pytest.mark.parametrize(
    ("count", "how", "expected"),
    [
        (6, "mean", 2.5),
        (6, "max", 5.0),
        (1, "top", 0.0),
        (5, "top", 4.0),
        (6, "top", 4.5),  # a fifth of six frames is two, as whole frames
        (35, "top", 31.0),
    ],
)
def test_frames_become_one_score_of_their_clip(count, how, expected):
    assert aggregate_frame_scores(list(range(count))[::-1], how) == expected
