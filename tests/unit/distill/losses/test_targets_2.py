import math

import pytest
import torch

from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.targets import DenseTargets, SampledTargets, TopKTargets
from stillroom.errors import RecipeError, ShapeError

LOGITS = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


def test_top_k_and_tail_hold_the_whole_mass():
    target = TopKTargets.from_logits(LOGITS, 4, temperature=2.0)
    assert target.temperature == 2.0
    mass = target.logprobs.exp().sum(-1) + target.tail.exp()
    torch.testing.assert_close(mass, torch.ones_like(mass))
    torch.testing.assert_close(target.logprobs[:, 0], torch.log_softmax(LOGITS / 2, -1).amax(-1))


@pytest.mark.parametrize("heat", [0.6, 1.0, 1.7])
def test_draws_are_unbiased_at_any_sampling_temperature(heat):
    rng = torch.Generator().manual_seed(1)
    target = SampledTargets.from_logits(LOGITS, 200_000, rng, sampling_temperature=heat)
    mean = torch.zeros_like(LOGITS).scatter_add_(-1, target.ids, target.weights)
    torch.testing.assert_close(mean, torch.softmax(LOGITS, -1), rtol=0, atol=0.01)


def test_the_same_generator_draws_the_same():
    draws = [
        SampledTargets.from_logits(LOGITS, 9, torch.Generator().manual_seed(5)) for _ in range(2)
    ]
    assert torch.equal(draws[0].ids, draws[1].ids)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_temperature_that_is_not_above_0(bad):
    rng = torch.Generator()
    for make, name in (
        (lambda: TopKTargets.from_logits(LOGITS, 2, temperature=bad), "temperature"),
        (lambda: SampledTargets.from_logits(LOGITS, 2, rng, temperature=bad), "temperature"),
        (
            lambda: SampledTargets.from_logits(LOGITS, 2, rng, sampling_temperature=bad),
            "sampling_temperature",
        ),
    ):
        with pytest.raises(RecipeError, match=name) as caught:
            make()
        assert caught.value.code == "distill.temperature"


@pytest.mark.parametrize("bad", [0, -3, 41])
def test_refuses_a_k_that_the_vocabulary_does_not_have(bad):
    with pytest.raises(ShapeError, match=f"k is {bad}") as caught:
        TopKTargets.from_logits(LOGITS, bad)
    assert caught.value.code == "distill.shape"
    assert "40" in str(caught.value)


def test_refuses_no_draws():
    with pytest.raises(ShapeError, match="draws is 0"):
        SampledTargets.from_logits(LOGITS, 0, torch.Generator())


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
    kept = TopKTargets.from_logits(whole, k)
    cut = TopKTargets(kept.ids, kept.logprobs, torch.full((1,), -math.inf).double())
    true = float(p[:k].sum())
    starved, far = fit(lambda: cut, 8.0)
    assert starved > 0.9 > 1.4 * true
    assert far > 1
    bucketed, _ = fit(lambda: kept, 8.0)
    assert bucketed == pytest.approx(true, abs=0.01)
    for target_of in (
        lambda: DenseTargets(whole),
        lambda: SampledTargets.distinct(whole, k, rng),
        lambda: SampledTargets.from_logits(whole, 2 * k, rng),
    ):
        mass, near = fit(target_of, 8.0)
        assert mass == pytest.approx(true, abs=0.03)
        assert near < 0.1 * far
