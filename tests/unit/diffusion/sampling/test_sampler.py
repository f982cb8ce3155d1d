"""Order, commit rule, remasking, blocks, guidance, ends, lengths: each alone and all together."""

import itertools
import random

import pytest
import torch
from pydantic import ValidationError
from tests.unit.diffusion.conftest import MASK
from tests.unit.diffusion.tables import END, TableModel, likely

from stillroom.diffusion.interfaces import LENGTH_POLICIES, REMASKINGS, UNMASK_ORDERS, UNMASK_RULES
from stillroom.diffusion.sampling.kv_cache import KV_CACHES
from stillroom.diffusion.sampling.sampler import generate
from stillroom.diffusion.sampling.sequence import Candidates, InfillRequest, StepIndex
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.errors import DataError, RecipeError

PROMPT = tuple(range(3, 12))
ATTENTIONS = {
    "full": {},
    "shifted": {"logit_shift": True},
    "blocks": {"attention": "block_causal", "block_size": 4},
    "shifted_blocks": {"attention": "block_causal", "block_size": 4, "logit_shift": True},
    "causal": {"attention": "causal"},
}


def write(model, request=None, *, rows=1, **settings):
    request = request or InfillRequest(PROMPT, 12)
    requests = request if isinstance(request, list) else [request]
    found = generate(model, requests, DecodeSettings(rows=rows, **settings))
    return found if isinstance(request, list) else found[0]


def same(one, other, tolerance=1e-9):
    assert one.ids == other.ids
    assert one.chosen_at == other.chosen_at
    assert one.finish_reason == other.finish_reason
    assert (
        max(abs(a - b) for a, b in zip(one.confidence, other.confidence, strict=True)) < tolerance
    )


# -- the reference algorithm ------------------------------------------------------------------


def llada(model, prompt, length, steps, block_length):
    """LLaDA's algorithm at temperature 0, written plainly: the whole text in every step."""
    x = torch.tensor([*prompt, *[MASK] * length])
    at = torch.arange(len(x))
    blocks = length // block_length
    for block in range(blocks):
        stop = len(prompt) + (block + 1) * block_length
        left = (x[:stop] == MASK).sum()
        per = steps // blocks
        for step in range(per):
            with torch.no_grad():
                hidden = model.states(x[None], at[None], model.attention_mask(at, at)[None])[0]
                logits = model.logits(hidden)
            logits[:, MASK] = -torch.inf
            sure, tokens = logits.softmax(-1).max(-1)
            sure[x != MASK] = -torch.inf
            sure[stop:] = -torch.inf
            quota = left // per + (step < left % per)
            chosen = sure.topk(int(quota)).indices
            x[chosen] = tokens[chosen]
    return x.tolist()


@pytest.mark.parametrize(("steps", "block"), [(16, 16), (8, 8), (6, 8), (4, 4), (16, 4)])
def test_confidence_and_quota_is_llada_s_algorithm(make_model, steps, block):
    model = make_model(double=True)
    found = write(
        model,
        InfillRequest(PROMPT, 16),
        block_length=block,
        commit={"name": "quota", "steps": steps},
        end={"stop_early": False},
    )
    assert list(found.ids) == llada(model, PROMPT, 16, steps, block)
    assert found.steps == found.nfe == steps


def llada_batch(model, prompts, length, steps, block, cfg):
    """The same for a ragged batch: padded on the left, guided, the last block perhaps shorter."""
    most = max(map(len, prompts))
    x = torch.full((len(prompts), most + length), MASK)
    is_text = torch.ones_like(x, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        is_text[row, : most - len(prompt)] = False
        x[row, most - len(prompt) : most] = torch.tensor(prompt)
    x[~is_text] = 0
    at = (is_text.long().cumsum(1) - 1).clamp(min=0)
    seen = (is_text[:, None] & is_text[:, :, None]) | torch.eye(x.shape[1], dtype=torch.bool)
    is_prompt = is_text & (x != MASK)

    def read(ids):
        with torch.no_grad():
            return model.logits(model.states(ids, at, seen))

    blocks = -(-length // block)
    for number in range(blocks):
        stop = min(most + (number + 1) * block, x.shape[1])
        places = stop - most - number * block
        own = max(1, min(steps // blocks + (number < steps % blocks), places))
        for step in range(own):
            logits = read(x)
            if cfg:
                bare = read(torch.where(is_prompt, MASK, x))
                logits = bare + (cfg + 1) * (logits - bare)
            logits[..., MASK] = -torch.inf
            sure, tokens = logits.softmax(-1).max(-1)
            sure[x != MASK] = -torch.inf
            sure[:, stop:] = -torch.inf
            quota = places // own + (step < places % own)
            chosen = torch.zeros_like(is_text).scatter(1, sure.topk(quota).indices, True)
            x = torch.where(chosen, tokens, x)
    return [row[most - len(prompt) :].tolist() for row, prompt in zip(x, prompts, strict=True)]


@pytest.mark.parametrize("cfg", [0.0, 0.7])
@pytest.mark.parametrize(
    ("length", "steps", "block"), [(17, 17, 6), (24, 7, 5), (10, 3, 4), (9, 40, 3), (12, 5, 12)]
)
def test_ragged_prompts_are_written_as_llada_writes_a_padded_batch(
    make_model, length, steps, block, cfg
):
    model = make_model(double=True)
    prompts = [PROMPT[:1], PROMPT, PROMPT[2:5]]
    wanted = llada_batch(model, prompts, length, steps, block, cfg)
    more = {"cfg_scale": cfg, "end": {"stop_early": False}}
    for rows in (1, 3):
        found = write(
            model,
            [InfillRequest(prompt, length) for prompt in prompts],
            rows=rows,
            block_length=block,
            commit={"name": "quota", "steps": steps},
            **more,
        )
        assert [list(one.ids) for one in found] == wanted


# -- everything with everything ---------------------------------------------------------------


def combinations():
    for kind, order, commit, remasking, cache, cfg, warm, end in itertools.product(
        ATTENTIONS,
        UNMASK_ORDERS.names(),
        UNMASK_RULES.names(),
        [None, *REMASKINGS.names()],
        KV_CACHES.names(),
        (0.0, 1.5),
        (0.0, 0.8),
        (False, True),
    ):
        settings = {
            "order": order,
            "commit": {"name": commit, "threshold": 0.02} if commit == "threshold" else commit,
            "remasking": {"name": remasking, "threshold": 0.004}
            if remasking in ("wino", "edit")
            else remasking,
            "cache": cache,
            "cfg_scale": cfg,
            "temperature": warm,
            "block_length": 4,
            "end": {"last": end},
        }
        is_full = kind in ("full", "shifted")
        fits = cache != "block" or not is_full
        fits &= remasking != "wino" or "shifted" not in kind
        fits &= remasking != "remdm" or UNMASK_RULES.get(commit).has_plan
        if fits:
            yield kind, settings


EVERY = list(combinations())


def check_combination(make_model, kind, settings):
    """A row alone, among others in calls of their own, and among others in shared calls."""
    model = make_model(double=True, **ATTENTIONS[kind])
    rows = [InfillRequest(PROMPT[:n], 9 + n, seed=n) for n in (9, 2, 5)]
    rows.append(InfillRequest((4, 5, None, None, 7, None, 6), 3, seed=8))
    alone = [write(model, row, **settings) for row in rows]
    for one, other in zip(alone, write(model, rows, **settings), strict=True):
        assert one == other  # bits too
    for one, other in zip(alone, write(model, rows, rows=3, **settings), strict=True):
        same(one, other)
    assert all(MASK not in one.ids or one.finish_reason == "stop" for one in alone)


@pytest.mark.parametrize("number", range(4))
def test_a_row_alone_is_the_row_in_a_ragged_batch(make_model, number):
    kind, settings = random.Random(number).choice(EVERY)
    check_combination(make_model, kind, settings)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_row_alone_is_the_row_in_a_ragged_batch_in_600_combinations(make_model):
    """A thirtieth of all there are, drawn evenly."""
    for kind, settings in random.Random(0).sample(EVERY, 600):
        check_combination(make_model, kind, settings)


@pytest.mark.parametrize("remasking", [None, "edit", "wino", "remdm"])
@pytest.mark.parametrize("cfg", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["blocks", "shifted_blocks", "causal"])
def test_the_cache_of_finished_blocks_changes_nothing(make_model, kind, cfg, remasking):
    if remasking == "wino" and "shifted" in kind:
        pytest.skip("verification needs logits at the masks themselves")
    model = make_model(double=True, **ATTENTIONS[kind])
    settings = {
        "block_length": 4,
        "cfg_scale": cfg,
        "commit": {"name": "quota", "steps": 9},
        "remasking": {"name": remasking, "threshold": 0.004}
        if remasking in ("edit", "wino")
        else remasking,
    }
    for request in (
        InfillRequest(PROMPT, 14),
        InfillRequest((3,), 9),
        InfillRequest((3, None, 4, None), 2),
    ):
        same(
            write(model, request, cache="block", **settings),
            write(model, request, cache="whole", **settings),
        )


@pytest.mark.parametrize("cache", ["prefix", "dual", "delayed"])
@pytest.mark.parametrize("kind", ["full", "shifted", "blocks"])
@pytest.mark.parametrize("remasking", [None, "edit"])
def test_a_stale_cache_is_exact_when_it_is_refreshed_in_every_step(
    make_model, cache, kind, remasking
):
    model = make_model(double=True, **ATTENTIONS[kind])
    settings = {"block_length": 4, "cfg_scale": 0.5, "remasking": remasking}
    whole = write(model, cache="whole", **settings)
    same(write(model, cache={"name": cache, "refresh": 1}, **settings), whole)
    assert not KV_CACHES.get(cache).is_exact


@pytest.mark.parametrize("cache", ["prefix", "dual", "delayed"])
def test_a_stale_cache_reads_less_and_is_not_called_exact(make_model, cache):
    model, sizes = make_model(double=True), []
    read = model.read
    model.read = lambda readings: sizes.append(len(readings[0].ids)) or read(readings)
    try:
        stale = write(model, cache={"name": cache, "refresh": None}, block_length=4)
        read_stale, sizes[:] = sum(sizes), []
        whole = write(model, cache="whole", block_length=4)
    finally:
        del model.read
    assert read_stale < sum(sizes)
    assert stale.confidence != whole.confidence
    assert whole.drift is None
    assert stale.drift is None if cache == "delayed" else 0 < stale.drift < 2


def test_the_keys_of_one_text_do_not_leak_into_another(make_model):
    model = make_model(double=True, **ATTENTIONS["blocks"])
    first = write(model, InfillRequest(PROMPT, 12), cache="block")
    write(model, InfillRequest((40, 41, 42), 12), cache="block")
    assert write(model, InfillRequest(PROMPT, 12), cache="block") == first


# -- commit rules -----------------------------------------------------------------------------


def view_of(confidence, number=0, opened=None, entropy=None, block=0, blocks=1):
    count = len(confidence)
    found = Candidates(
        torch.arange(count),
        torch.zeros(count, dtype=torch.long),
        torch.zeros(count, 3),
        StepIndex(number, block, blocks, opened or count),
        torch.Generator(),
    )
    found.__dict__["confidence"] = torch.tensor(confidence, dtype=torch.float64)
    if entropy is not None:
        found.__dict__["entropy"] = torch.tensor(entropy, dtype=torch.float64)
    return found


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_quotas_of_any_steps_sum_to_the_places(blocks):
    for count in range(1, 14):
        for steps in range(1, 20):
            rule = UNMASK_RULES.build({"name": "quota", "steps": steps})
            for block in range(blocks):
                left, taken = count, []
                while left:
                    view = view_of([0.5] * left, len(taken), count, None, block, blocks)
                    taken.append(int(rule.take(view).sum()))
                    left -= taken[-1]
                own = max(1, min(count, steps // blocks + (block < steps % blocks)))
                assert sum(taken) == count
                assert len(taken) == own
                assert taken == sorted(taken, reverse=True)
                assert taken[0] - taken[-1] <= 1


@pytest.mark.parametrize(
    ("rule", "confidence", "entropy", "count"),
    [
        ({"name": "threshold", "threshold": 0.9}, [0.95, 0.91, 0.9, 0.2], None, 2),
        ({"name": "threshold", "threshold": 1.0}, [0.95, 0.91], None, 1),
        ({"name": "threshold", "threshold": 0.0}, [0.5, 0.4], None, 2),
        ({"name": "threshold", "least": 3}, [0.5, 0.4, 0.3, 0.2], None, 3),
        ({"name": "factor", "factor": 1.0}, [0.9, 0.8, 0.7, 0.7], None, 2),
        ({"name": "factor", "factor": 0.01}, [0.9, 0.8], None, 1),
        ({"name": "entropy_bound", "gamma": 0.1}, [0.5] * 4, [0.04, 0.05, 0.06, 0.3], 3),
        ({"name": "entropy_bound", "gamma": 0.0}, [0.5] * 3, [0.0, 0.0, 0.7], 3),
        ({"name": "entropy_bound", "gamma": 0.1}, [0.5] * 3, [2.0, 2.0, 2.0], 1),
        ({"name": "top_k", "k": 2}, [0.5] * 5, None, 2),
    ],
)
def test_commit_rules_take_what_their_papers_say(rule, confidence, entropy, count):
    taken = UNMASK_RULES.build(rule).take(view_of(confidence, entropy=entropy))
    assert int(taken.sum()) == count
    assert bool(taken[0])


# -- orders -----------------------------------------------------------------------------------


def test_orders_rank_as_their_names_say():
    chances = torch.tensor(
        [[0.6, 0.39, 0.01], [0.5, 0.25, 0.25], [0.55, 0.32, 0.13]], dtype=torch.float64
    )
    view = Candidates(
        torch.tensor([4, 5, 6]),
        torch.zeros(3, dtype=torch.long),
        chances.log(),
        StepIndex(0, 0, 1, 3),
        torch.Generator().manual_seed(0),
    )

    def rank(name):
        return UNMASK_ORDERS.build(name).score(view).argsort(descending=True).tolist()

    assert rank("confidence") == [0, 2, 1]
    assert rank("margin") == [1, 2, 0]
    entropy = -(chances * chances.log()).sum(-1)
    assert torch.allclose(view.entropy, entropy)
    assert rank("entropy") == entropy.argsort().tolist()
    assert rank("left_to_right") == [0, 1, 2]
    assert sorted(rank("random")) == [0, 1, 2]


def test_order_does_not_hang_on_temperature():
    """Confidence of tempered logits would be 1 everywhere, and the order left to right."""
    chances = [0.5, 0.9, 0.7, 0.6]
    model = TableModel(lambda ids, at: likely(3, chances[at - 1]))
    cold = write(model, InfillRequest((1,), 4), temperature=0.05, commit={"name": "top_k", "k": 1})
    assert [cold.chosen_at[at] for at in (1, 2, 3, 4)] == [3, 0, 1, 2]
    assert cold.confidence[1:] == pytest.approx(chances)


# -- remasking --------------------------------------------------------------------------------


def test_remdm_never_opens_more_than_its_schedule_allows_and_ends_whole():
    import torch as t

    from stillroom.diffusion.sampling.sequence import CommittedTokens

    for kind, eta in (("cap", 1.0), ("rescale", 1.0), ("conf", 1.0), ("cap", 0.2)):
        method = REMASKINGS.build({"name": "remdm", "kind": kind, "eta": eta})
        rng, steps, count = t.Generator().manual_seed(1), 10, 4000
        for number in range(1, steps):
            look = CommittedTokens(
                t.arange(count),
                t.zeros(count, dtype=t.long),
                t.full((count,), 0.5, dtype=t.float64),
                None,
                StepIndex(number, 0, 1, 10),
                steps,
                rng,
            )
            opened, _ = method.review(look)
            allowed = min(1.0, (1 - (number + 1) / steps) / (number / steps))
            wanted = min(eta, allowed) if kind == "cap" else eta * allowed
            spread = 4 * (wanted * (1 - wanted) / count) ** 0.5 + 1e-9
            assert abs(float(opened.double().mean()) - wanted) <= spread
        assert not opened.any()  # the last step takes nothing back
    unsure = t.cat([t.zeros(1), t.ones(99)]).double()
    seen = (t.arange(100), t.zeros(100, dtype=t.long), unsure, None, StepIndex(7, 0, 1, 10), 10)
    for eta in (0.3, 1.0):  # the unsure one the most, and never above (1 - .8) / .7
        method = REMASKINGS.build({"name": "remdm", "kind": "conf", "eta": eta})
        looks = [CommittedTokens(*seen, t.Generator().manual_seed(number)) for number in range(400)]
        share = t.stack([method.review(look)[0] for look in looks]).double().mean(0)
        assert share[0] > 2 * share[1:].mean() or eta == 1
        assert share[0] <= 2 / 7 + 4 * 0.0226  # four errors of 400 draws


def test_verification_takes_back_what_the_rest_does_not_support():
    """The first guess at place 1 is 5; once place 2 stands, only 6 goes with it."""

    def say(ids, at):
        if at == 1:
            return likely(6, 0.99) if ids[2] == 7 else likely(5, 0.6)
        return likely(7, 0.55)

    plain = write(
        TableModel(say), InfillRequest((1,), 2), commit={"name": "threshold", "threshold": 0.5}
    )
    assert plain.new_ids == (5, 7)
    verified = write(
        TableModel(say),
        InfillRequest((1,), 2),
        commit={"name": "threshold", "threshold": 0.5},
        remasking={"name": "wino", "threshold": 0.5, "extra": 4},
    )
    assert verified.new_ids == (6, 7)
    assert verified.reopened == 1


def test_a_verdict_that_is_never_content_still_ends():
    model = TableModel(lambda ids, at: likely(3, 0.2))
    found = write(
        model, InfillRequest((1,), 5), remasking={"name": "wino", "threshold": 1.0, "extra": 64}
    )
    assert found.new_ids == (3,) * 5


def test_editing_replaces_a_token_the_model_has_become_sure_of():
    def say(ids, at):
        if at == 1:
            return likely(6, 0.9) if ids[2] == 7 else likely(5, 0.6)
        return likely(7, 0.55)

    found = write(
        TableModel(say), InfillRequest((1,), 2), remasking={"name": "edit", "threshold": 0.5}
    )
    assert found.new_ids == (6, 7)
    strict = write(
        TableModel(say), InfillRequest((1,), 2), remasking={"name": "edit", "threshold": 0.95}
    )
    assert strict.new_ids == (5, 7)


# -- guidance ---------------------------------------------------------------------------------


def test_guidance_of_zero_is_none_and_reads_once(make_model):
    model = make_model(double=True)
    plain, zero = write(model), write(model, cfg_scale=0.0)
    assert plain == zero
    assert write(model, cfg_scale=1.0).nfe == 2 * write(model, cfg_scale=1.0).steps


def test_guidance_is_its_formula():
    def say(ids, at):
        return likely(4, 0.6) if ids[0] == 1 else likely(5, 0.6)

    found = write(TableModel(say), InfillRequest((1,), 1), cfg_scale=0.5)
    given, masked = likely(4, 0.6), likely(5, 0.6)
    logits = masked + 1.5 * (given - masked)
    logits[9] = -torch.inf
    assert found.new_ids == (4,)
    assert found.confidence[1] == pytest.approx(float(logits.softmax(-1)[4]))


# -- ends -------------------------------------------------------------------------------------


def ending(ids, at):
    """After three words the text ends, and the ends are what the model is surest of."""
    return likely(END, 0.95) if at > 3 else likely(3 + at, 0.5)


def test_a_text_ends_where_nothing_is_open_before_its_end_token():
    model = TableModel(ending)
    early = write(
        model, InfillRequest((1,), 8), commit={"name": "top_k", "k": 1}, order="left_to_right"
    )
    assert early.new_ids == (4, 5, 6)
    assert early.finish_reason == "stop"
    assert early.nfe == 4
    whole = write(
        model,
        InfillRequest((1,), 8),
        commit={"name": "top_k", "k": 1},
        order="left_to_right",
        end={"stop_early": False},
    )
    assert whole.new_ids == early.new_ids
    assert whole.nfe == 8
    assert 9 not in whole.ids


def test_end_tokens_can_be_made_to_wait():
    model = TableModel(ending)
    one = {"commit": {"name": "top_k", "k": 1}, "end": {"stop_early": False}}
    flood = write(model, InfillRequest((1,), 8), **one)
    assert max(flood.chosen_at[4:]) < min(flood.chosen_at[1:4])
    one["end"]["last"] = True
    last = write(model, InfillRequest((1,), 8), **one)
    assert min(last.chosen_at[4:]) > max(last.chosen_at[1:4])
    bold = write(
        model, InfillRequest((1,), 8), commit={"name": "threshold", "threshold": 0}, end=one["end"]
    )
    assert min(bold.chosen_at[4:]) > max(bold.chosen_at[1:4])
    # of 8 open places 4 steps write two each, though five of them have to wait
    even = write(
        model, InfillRequest((1,), 8), commit={"name": "quota", "steps": 4}, end=one["end"]
    )
    assert [even.chosen_at[1:].count(step) for step in range(2)] == [2, 1]
    assert min(even.chosen_at[4:]) > max(even.chosen_at[1:4])


def test_end_tokens_can_be_forbidden_or_made_dearer():
    model = TableModel(ending)
    assert END not in write(model, InfillRequest((1,), 8), end={"never": True}).ids
    assert END in write(model, InfillRequest((1,), 8), end={"penalty": 1.0}).ids
    assert END not in write(model, InfillRequest((1,), 8), end={"penalty": 9.0}).ids


def test_an_end_token_before_given_text_ends_nothing():
    model = TableModel(lambda ids, at: likely(END, 0.9))
    found = write(model, InfillRequest((1, None, 2, None), 0))
    assert found.ids == (1, END, 2, END)
    assert found.finish_reason == "length"


# -- lengths and holes ------------------------------------------------------------------------


def test_holes_are_filled_and_given_tokens_stand(make_model):
    for kind in ("full", "blocks", "causal"):
        request = InfillRequest((4, None, 6, None, None, 7), 0)
        found = write(make_model(double=True, **ATTENTIONS[kind]), request)
        assert [found.ids[at] for at in (0, 2, 5)] == [4, 6, 7]
        assert MASK not in found.ids
        assert found.new_ids == ()


def test_places_are_added_until_the_model_sees_the_end():
    """The text has 20 words; the end is seen only when there is room for it."""
    model = TableModel(lambda ids, at: likely(END, 0.99) if at > 20 else likely(3, 0.95))
    daedal = {"name": "daedal", "initial": 4, "factor": 4, "end_window": 4}
    found = write(model, InfillRequest((1,), 100), length=daedal, end={"stop_early": False})
    assert found.new_ids == (3,) * 20
    assert 24 <= len(found.ids) - 1 <= 32
    short = write(model, InfillRequest((1,), 10), length=daedal)
    assert len(short.ids) == 11


def test_an_unsure_place_becomes_several():
    def say(ids, at):
        length = len(ids) - 1
        if at > length - 2:
            return likely(END, 0.6)
        return likely(3, 0.95) if length > 6 else likely(3, 0.15)

    daedal = {
        "name": "daedal",
        "initial": 6,
        "factor": 3,
        "end_window": 2,
        "extend_below": 0.1,
        "expand_below": 0.2,
    }
    found = write(
        TableModel(say), InfillRequest((1,), 12), length=daedal, end={"stop_early": False}
    )
    assert len(found.ids) - 1 == 8
    assert found.new_ids == (3,) * 6
    assert 9 not in found.ids


@pytest.mark.parametrize("length", [5, 8, 13])
def test_lengths_that_blocks_do_not_divide_give_a_shorter_last_block(make_model, length):
    for kind in ATTENTIONS:
        found = write(
            make_model(double=True, **ATTENTIONS[kind]),
            InfillRequest(PROMPT, length),
            block_length=4,
        )
        assert len(found.ids) == len(PROMPT) + length or found.finish_reason == "stop"


# -- what is asked for and cannot be ----------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"commit": {"name": "threshold", "threshold": 1.1}},
        {"commit": {"name": "quota", "steps": 0}},
        {"block_length": 0},
        {"cfg_scale": float("nan")},
        {"top_p": 0.0},
        {"max_new_tokens": -1},
        {"remasking": "remdm"},
        {"length": "daedal", "cache": "dual"},
        {"colour": "red"},
    ],
)
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(ValidationError):
        DecodeSettings(**settings)


@pytest.mark.parametrize("registry", ["order", "commit", "remasking", "length", "cache"])
def test_an_unknown_name_is_refused_with_the_nearest(registry):
    with pytest.raises(ValidationError, match=r"recipe\.unknown-method"):
        DecodeSettings(**{registry: "confidance"})


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("full", {"cache": "block"}),
        ("blocks", {"block_length": 8}),
        ("blocks", {"length": "daedal"}),
        ("shifted", {"remasking": "wino"}),
    ],
)
def test_what_a_model_cannot_do_is_refused(make_model, kind, settings):
    with pytest.raises(RecipeError) as caught:
        write(make_model(double=True, **ATTENTIONS[kind]), **settings)
    assert caught.value.code == "diffusion.decode"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (InfillRequest((3, MASK), 4), "diffusion.token"),
        (InfillRequest((3, 99999), 4), "diffusion.token"),
        (InfillRequest((-1,), 4), "diffusion.token"),
        (InfillRequest((3, 4), 0), "diffusion.nothing-open"),
        (InfillRequest((), 0), "diffusion.nothing-open"),
        (InfillRequest((3, 4), 5000), "diffusion.too-long"),
    ],
)
def test_a_request_that_cannot_be_written_says_why(make_model, request_, code):
    with pytest.raises(DataError) as caught:
        write(make_model(double=True), request_)
    assert caught.value.code == code


def test_an_empty_prompt_is_written_unless_logits_are_shifted(make_model):
    assert (
        len(write(make_model(double=True), InfillRequest((), 5), end={"never": True}).new_ids) == 5
    )
    with pytest.raises(DataError) as caught:
        write(make_model(double=True, **ATTENTIONS["shifted"]), InfillRequest((), 5))
    assert caught.value.code == "diffusion.first-place"


def test_growing_lengths_take_no_holes(make_model):
    with pytest.raises(DataError) as caught:
        write(make_model(double=True), InfillRequest((3, None, 4), 5), length="daedal")
    assert caught.value.code == "diffusion.holes"


def test_the_mask_is_never_predicted_though_the_model_is_sure_of_it():
    model = TableModel(lambda ids, at: likely(9, 0.999))
    assert 9 not in write(model, InfillRequest((1,), 6)).ids


def test_more_steps_than_places_and_blocks_longer_than_the_text(make_model):
    model = make_model(double=True)
    quota = {"name": "quota", "steps": 500}
    end = {"never": True}
    found = write(model, InfillRequest(PROMPT, 5), commit=quota, end=end)
    assert (found.steps, len(found.new_ids)) == (5, 5)
    long = write(model, InfillRequest(PROMPT, 5), commit=quota, block_length=64, end=end)
    same(found, long)


# -- events -----------------------------------------------------------------------------------


def test_events_tell_every_step_and_cancelling_leaves_the_text_as_it_stands(make_model):
    events = []
    model = make_model(double=True)
    settings = DecodeSettings(commit={"name": "top_k", "k": 1}, end={"never": True})
    (found,) = generate(model, [InfillRequest(PROMPT, 6)], settings, on_step=events.append)
    assert [event.step for event in events] == list(range(6))
    assert [len(event.written) for event in events] == [1] * 6
    assert events[-1].ids == found.ids
    assert sum(events[2].is_open) == 3
    events.clear()
    stopped = generate(
        model,
        [InfillRequest(PROMPT, 6), InfillRequest(PROMPT, 6)],
        settings,
        on_step=events.append,
        is_cancelled=lambda: len(events) >= 2,
    )
    assert [one.finish_reason for one in stopped] == ["cancelled", "cancelled"]
    assert stopped[0].ids.count(MASK) == 4


def test_same_seed_same_text_other_seed_other_text(make_model):
    model = make_model(double=True)
    warm = {"temperature": 1.0, "end": {"never": True}}
    assert write(model, InfillRequest(PROMPT, 9, seed=1), **warm) == write(
        model, InfillRequest(PROMPT, 9, seed=1), **warm
    )
    assert (
        write(model, InfillRequest(PROMPT, 9, seed=1), **warm).ids
        != write(model, InfillRequest(PROMPT, 9, seed=2), **warm).ids
    )


def test_lengths_are_all_methods_of_their_seam():
    assert LENGTH_POLICIES.names() == ["daedal", "fixed"]
