import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.distill.targets import draw_any, draw_distinct, keep_top

from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.targets import (
    DenseTargets,
    TopKTargets,
    reduce_to_top_k,
    sample_distinct,
)


def random_logits(rows, size, seed=0):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 4


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 700), k=st.integers(1, 700), seed=st.integers(0, 99))
def test_top_and_tail_are_those_of_a_plain_sort(size, k, seed):
    k = min(k, size)
    logits = random_logits(3, size, seed)
    exact = torch.log_softmax(logits.double(), -1).sort(-1, descending=True)
    found = reduce_to_top_k(logits, k)
    torch.testing.assert_close(found["logprobs"].double(), exact.values[:, :k], rtol=0, atol=1e-4)
    assert torch.equal(found["ids"].sort(-1).values, exact.indices[:, :k].sort(-1).values)
    rest = exact.values[:, k:].exp().sum(-1)
    torch.testing.assert_close(found["tail"].exp().double(), rest, rtol=1e-4, atol=1e-12)


def test_a_small_tail_is_not_lost():
    logits = torch.zeros(1, 1000)
    logits[0, 3] = 40.0
    tail = reduce_to_top_k(logits, 1)["tail"]
    assert float(tail) == pytest.approx(torch.tensor(999.0).log().item() - 40, rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 500), k=st.integers(1, 40), heat=st.sampled_from([0.5, 1.0, 2.0]))
def test_draws_are_distinct_and_in_the_vocabulary(size, k, heat):
    k = min(k, size)
    drawn = sample_distinct(random_logits(4, size), k, torch.rand(4), sampling_temperature=heat)
    assert bool(((drawn.ids >= 0) & (drawn.ids < size)).all())
    for ids, logprobs in zip(drawn.ids, drawn.logprobs, strict=True):
        held = ids[logprobs.isfinite()].tolist()
        assert len(set(held)) == len(held)


@pytest.mark.parametrize("size", [5, 60, 1000])
@pytest.mark.parametrize("heat", [0.7, 1.0, 1.6])
def test_draws_are_unbiased(size, heat):
    logits, count = random_logits(1, size), 20_000
    rng = torch.Generator().manual_seed(1)
    target = draw_distinct(logits.expand(count, -1), 4, rng, heat=heat)
    mean = torch.zeros(size).scatter_add_(0, target.ids.flatten(), target.weights.flatten()) / count
    exact = torch.softmax(logits[0], -1)
    most = target.weights.max()  # a token's chance is at least its probability over this
    error = (most * exact / count).sqrt()
    assert bool(((mean - exact).abs() < 5 * error + 3 * most / count).all())


def test_at_temperature_1_every_row_holds_the_whole_mass():
    rng = torch.Generator().manual_seed(2)
    target = draw_distinct(random_logits(50, 900), 12, rng)
    torch.testing.assert_close(target.weights.sum(-1), torch.ones(50), rtol=1e-5, atol=0)


def test_distinct_draws_vary_less_than_draws_with_replacement():
    logits = random_logits(1, 2000).expand(4000, -1)
    probe = torch.randn(2000, generator=torch.Generator().manual_seed(3))

    def variance(target):
        return float((target.weights * probe[target.ids]).sum(-1).var())

    rng = torch.Generator().manual_seed(4)
    apart = variance(draw_distinct(logits, 12, rng))
    assert apart < 0.5 * variance(draw_any(logits, 12, rng))


def test_a_teacher_that_is_certain_has_one_token():
    logits = torch.full((2, 300), -200.0)
    logits[:, 7] = 100.0
    target = draw_distinct(logits, 4, torch.Generator())
    assert torch.equal(target.ids[:, 0], torch.tensor([7, 7]))
    assert target.weights.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2
    assert bool(target.logprobs.isfinite().all())


def test_top_k_and_tail_hold_the_whole_mass():
    logits = random_logits(3, 40)
    target = keep_top(logits, 4, temperature=2.0)
    assert target.temperature == 2.0
    mass = target.logprobs.exp().sum(-1) + target.tail.exp()
    torch.testing.assert_close(mass, torch.ones_like(mass))
    torch.testing.assert_close(target.logprobs[:, 0], torch.log_softmax(logits / 2, -1).amax(-1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_top_k_alone_starves_the_tail_a_bucket_or_draws_do_not(seed):
    """A student without context, fitted to a long-tailed teacher: the mass it gives the top 12."""
    size, k = 2000, 12
    objective = METHODS.build("forward_kl")
    rng = torch.Generator().manual_seed(seed)
    jitter = torch.randn(size, generator=rng, dtype=torch.float64) * 0.3
    p = torch.softmax(jitter - 1.1 * torch.arange(1, size + 1, dtype=torch.float64).log(), -1)
    p = p.sort(descending=True).values

    def fit(target_of, rate):
        logits = torch.zeros(1, size, dtype=torch.float64)
        for step in range(600):
            _, grad = objective.divergence(logits, target_of())
            logits -= rate / (1 + step / 200) * grad
        q = torch.softmax(logits, -1)[0]
        return float(q[:k].sum()), float((p * (p / q).log()).sum())

    whole = p.log()[None]
    kept = keep_top(whole, k)
    cut = TopKTargets(kept.ids, kept.logprobs, torch.full((1,), -math.inf).double())
    true = float(p[:k].sum())
    starved, far = fit(lambda: cut, 8.0)
    assert starved > 0.9 > 1.4 * true
    assert far > 1
    bucketed, _ = fit(lambda: kept, 8.0)
    assert bucketed == pytest.approx(true, abs=0.01)
    for target_of in (
        lambda: DenseTargets(whole),
        lambda: draw_distinct(whole, k, rng),
        lambda: draw_any(whole, 2 * k, rng),
    ):
        mass, near = fit(target_of, 8.0)
        assert mass == pytest.approx(true, abs=0.03)
        assert near < 0.1 * far
