import pytest
import torch

from stillroom.models import load_causal_lm
from stillroom.models.local.benchmark import measure_model_speed
from stillroom.models.local.causal_lm import find_end_tokens
from stillroom.models.local.generation import complete_prompts
from stillroom.testing import tiny_checkpoint

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [40], [3, 3, 3, 3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("writer") / "tiny")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_causal_lm(folder, dtype="float32")


def greedy(model, prompt, ends, limit):
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(limit):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return tuple(ids[len(prompt) :])


def test_likeliest_tokens_are_those_of_a_plain_loop(loaded):
    model, tokenizer = loaded
    found = complete_prompts(model, tokenizer, PROMPTS, max_new_tokens=9, batch_size=3)
    ends = find_end_tokens(model, tokenizer)
    assert [one.ids for one in found] == [greedy(model, p, ends, 9) for p in PROMPTS]


def test_end_token_that_is_also_the_padding_is_kept_and_ends(loaded):
    model, tokenizer = loaded
    plain = complete_prompts(model, tokenizer, PROMPTS, max_new_tokens=6)
    own = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [own, plain[0].ids[2]]
    try:
        assert tokenizer.pad_token_id in find_end_tokens(model, tokenizer)
        found = complete_prompts(model, tokenizer, PROMPTS, max_new_tokens=6)
    finally:
        model.generation_config.eos_token_id = own
    first = plain[0].ids.index(plain[0].ids[2]) + 1
    assert (found[0].ids, found[0].has_ended) == (plain[0].ids[:first], True)


def test_sampling_ignores_the_models_own_settings_and_the_callers_state(loaded):
    model, tokenizer = loaded
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 5.0
    state = torch.random.get_rng_state()
    drawn = complete_prompts(
        model, tokenizer, [[5, 6]] * 16, max_new_tokens=4, temperature=1.0, seed=1
    )
    again = complete_prompts(
        model, tokenizer, [[5, 6]] * 16, max_new_tokens=4, temperature=1.0, seed=1
    )
    assert len({one.ids for one in drawn}) > 10
    assert drawn == again
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.generation_config.top_k == 1


def test_speed_is_measured(folder):
    found = measure_model_speed(folder)
    assert len(found.prefill_ms) == len(found.decode_ms) == 5
    assert min(found.prefill_ms + found.decode_ms) > 0
    assert found.peak_bytes > 100_000
