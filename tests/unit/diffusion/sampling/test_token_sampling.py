"""Tokens are drawn from exactly the distribution that the logits say."""

import pytest
import torch
from scipy.stats import chisquare

from stillroom.diffusion.sampling.token_sampling import (
    draw_exponential,
    sample_tokens,
    suppress_tokens,
)

VOCAB = 50_000


def long_tail(head=100, log_chance=-17.5):
    """Return log-probabilities: a few likely tokens, and a tail of very unlikely ones."""
    logits = torch.full((VOCAB,), log_chance, dtype=torch.float64)
    tail = (VOCAB - head) * torch.tensor(log_chance, dtype=torch.float64).exp()
    logits[:head] = ((1 - tail) / head).log()
    return logits


def draw(logits, count, rng, chunk=250):
    rows = logits.expand(chunk, -1)
    return torch.cat([sample_tokens(rows, temperature=1.0, rng=rng) for _ in range(count // chunk)])


def p_value(logits, tokens, bins):
    """Chi-square of drawn tokens in runs of tokens of about equal mass."""
    chances = logits.softmax(-1)
    edge = torch.bucketize(chances.cumsum(0), torch.linspace(0, 1, bins + 1)[1:-1].double())
    wanted = torch.zeros(bins, dtype=torch.float64).index_add_(0, edge, chances)
    found = torch.bincount(edge[tokens], minlength=bins).double()
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    return chisquare(found.numpy(), (wanted / wanted.sum() * len(tokens)).numpy()).pvalue


@pytest.mark.parametrize(
    "temperature", [0.5, *(pytest.param(one, marks=pytest.mark.slow) for one in (1.0, 2.0))]
)
def test_a_vocabulary_of_50000_is_drawn_as_it_is(temperature):
    rng = torch.Generator().manual_seed(int(temperature * 10))
    logits = torch.randn(VOCAB, generator=rng, dtype=torch.float64) * 3
    rows = logits.expand(250, -1)
    tokens = torch.cat([sample_tokens(rows, temperature=temperature, rng=rng) for _ in range(4)])
    assert p_value(logits / temperature, tokens, 20) > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tail_is_drawn_where_float32_noise_cannot_reach_it():
    """Gumbel noise of 24 bits ends at 16.6: most of a tail of e^-17.5 a token is out of reach."""
    logits, count = long_tail(), 24_000
    chance = float(logits.exp()[100:].sum())
    wanted, spread = count * chance, (count * chance * (1 - chance)) ** 0.5
    rng = torch.Generator().manual_seed(4)
    ours = int((draw(logits, count, rng) >= 100).sum())
    narrow = 0
    for _ in range(count // 250):
        uniform = torch.rand(250, VOCAB, generator=rng).clamp_(max=1 - 2**-24)
        noise = -(-uniform.clamp_min_(1e-30).log()).log()
        narrow += int(((logits.float() + noise).argmax(-1) >= 100).sum())
    assert abs(ours - wanted) < 3 * spread
    assert wanted - narrow > 3 * spread


def test_noise_is_that_of_an_exponential_clock():
    noise = draw_exponential((1000, 1000), torch.Generator().manual_seed(0))
    assert noise.dtype == torch.float64
    assert bool((noise > 0).all())
    assert bool(noise.isfinite().all())
    assert abs(float(noise.mean()) - 1) < 0.005
    assert abs(float(noise.var()) - 1) < 0.01


def test_logits_of_any_size_are_drawn_without_overflow():
    logits = torch.tensor([[900.0, 899.0, -900.0], [-900.0, -899.0, -5000.0]])
    rng = torch.Generator().manual_seed(0)
    tokens = torch.stack([sample_tokens(logits, temperature=1.0, rng=rng) for _ in range(4000)])
    share = (tokens[:, 0] == 0).double().mean()
    assert abs(float(share) - 0.7311) < 0.03
    assert abs(float((tokens[:, 1] == 1).double().mean()) - 0.7311) < 0.03


def test_temperature_zero_is_greedy_and_ties_go_to_the_lowest():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])
    rng = torch.Generator()
    assert sample_tokens(logits, temperature=0, rng=rng).tolist() == [1, 0]


def test_top_k_and_top_p_leave_out_what_they_say():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(2000, -1)
    rng = torch.Generator().manual_seed(0)
    assert set(sample_tokens(logits, temperature=1.0, rng=rng, top_k=2).tolist()) == {0, 1}
    assert set(sample_tokens(logits, temperature=1.0, rng=rng, top_p=0.6).tolist()) == {0, 1}
    assert set(sample_tokens(logits, temperature=1.0, rng=rng, top_p=0.01).tolist()) == {0}
    assert set(sample_tokens(logits, temperature=1.0, rng=rng).tolist()) == {0, 1, 2, 3}


def test_what_is_suppressed_is_never_drawn_and_the_input_is_left_alone():
    logits = torch.zeros(500, 4)
    rng = torch.Generator().manual_seed(0)
    assert set(
        sample_tokens(suppress_tokens(logits, [1, 3]), temperature=5.0, rng=rng).tolist()
    ) == {0, 2}
    assert bool((logits == 0).all())
    assert suppress_tokens(logits, [2], penalty=1.5)[0].tolist() == [0, 0, -1.5, 0]
    assert suppress_tokens(logits, ()) is logits
