import pytest

from stillroom.errors import BackendError
from stillroom.models.requests import (
    broadcast_sampling,
    count_held_back,
    cut_at_stop,
    limit_new_tokens,
)
from stillroom.records import Prompt, Sampling


def test_one_sampling_serves_all_and_a_list_must_fit():
    prompts = [Prompt(text="a"), Prompt(text="b")]
    assert broadcast_sampling(prompts, Sampling(seed=3)) == [Sampling(seed=3)] * 2
    with pytest.raises(BackendError) as caught:
        broadcast_sampling(prompts, [Sampling()])
    assert caught.value.code == "backend.request"


def test_the_earliest_stop_cuts():
    assert cut_at_stop("one two three", ("three", "two")) == ("one ", True)
    assert cut_at_stop("one", ("", "two")) == ("one", False)


@pytest.mark.parametrize(
    ("text", "held"), [("hello\n", 1), ("hello\n\n", 2), ("hello", 0), ("", 0)]
)
def test_the_beginning_of_a_stop_waits(text, held):
    assert count_held_back(text, ("\n\nQ",)) == held


def test_a_prompt_without_room_is_refused_and_a_tight_one_gets_less():
    assert limit_new_tokens(90, 50, 100, "m") == 10
    with pytest.raises(BackendError, match="100 tokens") as caught:
        limit_new_tokens(100, 1, 100, "m")
    assert caught.value.code == "backend.context"
