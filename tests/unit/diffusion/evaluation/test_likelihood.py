"""The identities of the bound: estimators agree with each other, and say their errors rightly."""

import itertools
import math
import statistics

import pytest
import torch
from tests.unit.diffusion.conftest import MASK

from stillroom.diffusion.evaluation.likelihood import MaskedLikelihood, choose_answer, score_text
from stillroom.diffusion.evaluation.monte_carlo import compute_standard_error
from stillroom.diffusion.interfaces import ESTIMATORS, LikelihoodEstimate
from stillroom.diffusion.sampling.sampler import generate
from stillroom.diffusion.sampling.sequence import InfillRequest
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.errors import DataError

IDS = [4, 9, 17, 3, 44, 21, 8, 30]
KINDS = {
    "full": {},
    "shifted": {"logit_shift": True},
    "blocks": {"attention": "block_causal", "block_size": 3},
    "shifted_blocks": {"attention": "block_causal", "block_size": 3, "logit_shift": True},
}


def score(model, estimator, ids=IDS, places=range(3, 8), **more):
    return score_text(model, ids, places, ESTIMATORS.build(estimator), **more)


class Remembering(MaskedLikelihood):
    """Reads each mask once, together with others: the estimates of a text are then arithmetic."""

    def __init__(self, model, ids=IDS, places=range(3, 8)):
        super().__init__(model, ids, places, rows=16)
        self.known = {}

    def logprobs(self, masks):
        keys = [tuple(mask.tolist()) for mask in masks]
        new = list(dict.fromkeys(key for key in keys if key not in self.known))
        if new:
            self.known.update(zip(new, super().logprobs(torch.tensor(new)), strict=True))
        return torch.stack([self.known[key] for key in keys])

    def estimate(self, settings, seed=0):
        rng = torch.Generator().manual_seed(seed)
        return ESTIMATORS.build(settings).estimate(self, rng)


@pytest.fixture(scope="module", params=list(KINDS))
def scorer(request, make_model):
    return Remembering(make_model(double=True, **KINDS[request.param]))


@pytest.fixture(scope="module", params=list(KINDS))
def model(request, make_model):
    return make_model(double=True, **KINDS[request.param])


def test_all_masks_give_the_mean_over_all_orders(scorer):
    chain = ESTIMATORS.build("chain_rule")
    perms = [
        [torch.tensor(p) for p in itertools.permutations(range(len(group)))]
        for group in scorer.groups
    ]
    values = [chain.score_order(scorer, list(each)) for each in itertools.product(*perms)]
    bound = score(scorer.model, "exhaustive")
    assert bound.error == 0
    assert abs(bound.value - statistics.fmean(values)) < 1e-9
    assert bound.value <= math.log(statistics.fmean([math.exp(v) for v in values])) + 1e-12


def test_both_estimators_are_within_their_errors_and_one_of_them_is_twice_as_good(scorer):
    exact = scorer.estimate("exhaustive").value
    found = {}
    for name in ("low_variance", "inverse_t"):
        bound = scorer.estimate({"name": name, "samples": 400}, seed=2)
        assert abs(bound.value - exact) < 3.3 * bound.error
        found[name] = bound.error
    assert found["low_variance"] <= found["inverse_t"] / 2


def test_random_orders_estimate_the_bound_too(scorer):
    bound = scorer.estimate({"name": "chain_rule", "order": "random", "orders": 60})
    assert abs(bound.value - scorer.estimate("exhaustive").value) < 3.3 * bound.error
    assert bound.kind == "bound"


@pytest.mark.parametrize("name", ["low_variance", "inverse_t"])
@pytest.mark.parametrize("stratified", [False, True])
def test_the_error_that_is_said_is_the_spread_of_repeated_estimates(make_model, name, stratified):
    scorer = Remembering(make_model(double=True))
    settings = {"name": name, "samples": 8, "is_stratified": stratified}
    runs = [scorer.estimate(settings, seed) for seed in range(120)]
    spread = statistics.stdev(run.value for run in runs)
    said = math.sqrt(statistics.fmean(run.error**2 for run in runs))
    assert said > spread * 0.8
    if not stratified:
        assert said < spread * 1.25


def test_one_block_of_one_token_is_the_chain_rule_of_an_autoregressive_model(make_model):
    model = make_model(double=True, attention="block_causal", block_size=1, logit_shift=True)
    bound = score(model, {"name": "low_variance", "samples": 2})
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([IDS])).logits[0]
    logits[:, MASK] = -torch.inf
    wanted = logits.log_softmax(-1)[torch.arange(2, 7), torch.tensor(IDS[3:])].sum()
    assert abs(bound.value - float(wanted)) < 1e-9
    assert bound.error < 1e-12


def test_the_chain_rule_is_what_sampling_in_that_order_multiplies(make_model):
    """The confidences of a text written left to right, one at a time, are its chain."""
    for kind in ("full", "shifted", "blocks", "shifted_blocks"):
        model = make_model(double=True, **KINDS[kind])
        settings = DecodeSettings(
            order="left_to_right",
            commit={"name": "top_k", "k": 1},
            end={"never": False, "stop_early": False},
        )
        (sample,) = generate(model, [InfillRequest(tuple(IDS), 6)], settings)
        places = range(len(IDS), len(sample.ids))
        chain = score(model, "chain_rule", ids=sample.ids, places=places)
        written = sum(math.log(sample.confidence[at]) for at in places)
        assert abs(chain.value - written) < 1e-9
        assert chain.kind == "order"


def test_guidance_of_zero_is_none_and_otherwise_the_formula(make_model):
    model = make_model(double=True)
    plain = score(model, "exhaustive", places=[7])
    assert score(model, "exhaustive", places=[7], cfg_scale=0.0) == plain
    guided = score(model, "exhaustive", places=[7], cfg_scale=0.7)
    assert guided.forwards == 2 * plain.forwards
    at = torch.arange(8)
    rows = torch.tensor([[*IDS[:7], MASK], [MASK] * 8])
    with torch.no_grad():
        states = model.states(
            rows, at.expand(2, -1), model.attention_mask(at, at).expand(2, -1, -1)
        )
        one, two = model.logits(states[:, 7])
    logits = two + 1.7 * (one - two)
    logits[MASK] = -torch.inf
    assert abs(guided.value - float(logits.log_softmax(-1)[IDS[7]])) < 1e-9


def test_rows_in_one_call_change_nothing_but_rounding(model):
    alone = score(model, {"name": "low_variance", "samples": 6})
    together = score(model, {"name": "low_variance", "samples": 6}, rows=4)
    assert abs(alone.value - together.value) < 1e-9


def test_forwards_are_counted_and_samples_for_an_error_told(make_model):
    model = make_model(double=True)
    assert score(model, "exhaustive").forwards == 2**5 - 1
    assert score(model, "chain_rule").forwards == 5
    assert score(model, {"name": "low_variance", "samples": 7}).forwards == 7
    bound = LikelihoodEstimate(-10.0, 0.4, 32, 32, 5)
    assert bound.samples_for(0.2) == 128
    assert bound.per_token == 2.0
    with pytest.raises(ValueError, match="infinitely"):
        bound.samples_for(0)


def test_the_answer_that_is_likeliest_is_chosen_with_its_lead(make_model):
    model = make_model(double=True)
    answers = [[5, 6], [17, 40], [9]]
    exact = choose_answer(model, IDS, answers, ESTIMATORS.build("exhaustive"))
    values = [bound.value for bound in exact.bounds]
    assert exact.best == values.index(max(values))
    assert exact.lead == math.inf
    drawn = choose_answer(
        model, IDS, answers, ESTIMATORS.build({"name": "low_variance", "samples": 8})
    )
    assert 0 <= drawn.lead < math.inf
    assert choose_answer(model, IDS, answers[:1], ESTIMATORS.build("exhaustive")).lead == 0
    by_token = choose_answer(model, IDS, answers, ESTIMATORS.build("exhaustive"), per_token=True)
    rates = [bound.per_token for bound in by_token.bounds]
    assert by_token.best == rates.index(min(rates))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"places": []}, "diffusion.nothing-open"),
        ({"ids": [4, MASK, 5], "places": [2]}, "diffusion.token"),
        ({"ids": list(range(4, 24)), "places": range(20)}, "diffusion.too-long"),
        ({"ids": [4] * 5000, "places": [2]}, "diffusion.too-long"),
    ],
)
def test_what_cannot_be_scored_says_why(make_model, given, code):
    with pytest.raises(DataError) as caught:
        score(make_model(double=True), "exhaustive", **given)
    assert caught.value.code == code


def test_a_shifted_model_does_not_score_its_first_token(make_model):
    with pytest.raises(DataError) as caught:
        score(make_model(double=True, logit_shift=True), "chain_rule", places=[0, 1])
    assert caught.value.code == "diffusion.first-place"


def test_the_error_of_one_draw_is_not_known():
    assert compute_standard_error([1.0]) == math.inf
    assert compute_standard_error([1.0, 1.0, 1.0]) == 0
    assert compute_standard_error([0.0, 1.0], is_paired=True) == pytest.approx(0.5)
