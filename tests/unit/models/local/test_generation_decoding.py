"""Drawing a token at the ends of its settings' ranges."""

import pytest
import torch

from stillroom.models.local.generation import sample_token
from stillroom.records import Sampling

LOGITS = torch.tensor([0.5, 3.0, -1.0, 2.9])


def draw(**sampling):
    return sample_token(LOGITS, [], Sampling(**sampling), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-45, 1e-38, 1e-30])
def test_the_limit_of_cold_is_greedy(temperature):
    assert draw(temperature=temperature) == 1


@pytest.mark.parametrize("top_p", [5e-324, 1e-300, 1e-46, 1e-9])
def test_the_likeliest_token_is_never_left_out(top_p):
    assert draw(temperature=1.0, top_p=top_p) == 1


def test_a_grammar_may_leave_one_token_only():
    masked = torch.full((4,), float("-inf"))
    masked[2] = 1.0
    sampling = Sampling(temperature=1e-300, top_k=3, top_p=0.5)
    assert sample_token(masked, [], sampling, torch.Generator()) == 2
