"""Texts continued side by side are the texts that each would be alone."""

import pytest
import torch
import transformers

from stillroom.models import load_causal_lm
from stillroom.models.local.generation import BatchedDecoder, round_to_bucket, round_to_lane
from stillroom.testing import tiny_checkpoint

PROMPTS = ([5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2], [11] * 20)


@pytest.fixture(autouse=True)
def one_thread():
    """Compute on one thread: with more, a row's place in a batch decides its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tmp_path_factory):
    if request.param == "llama":
        folder = tiny_checkpoint(tmp_path_factory.mktemp("rows") / "tiny")
        return load_causal_lm(folder, dtype="float32", device="cpu")[0]
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def body(model):
    return getattr(model, model.base_model_prefix)


def go_on(model, prompts, *, rows=4, new=6, width=32):
    """Return the hidden states along a greedy continuation, (new, len(prompts), H)."""
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        texts = BatchedDecoder(body(model), prompts, rows=rows, width=width, room=new)
        found = []
        for _ in range(new):
            found.append(texts.hidden[: len(prompts)].clone())
            texts.push((texts.hidden @ head.T).argmax(-1))
        return torch.stack(found)


def test_equals_reading_the_whole_text_again(model):
    head = model.get_output_embeddings().weight
    cached = go_on(model, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for place in range(6):
            with torch.no_grad():
                hidden = body(model)(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            torch.testing.assert_close(cached[place, row], hidden, rtol=1e-4, atol=1e-5)
            ids.append(int((hidden @ head.T).argmax()))


def test_a_text_has_the_same_bits_whatever_stands_beside_it(model):
    together = go_on(model, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(go_on(model, [prompt])[:, 0], together[:, row])


def test_the_padded_width_follows_from_the_length_alone():
    assert [round_to_bucket(n) for n in (1, 32, 33, 256, 257, 300, 513)] == [
        32, 32, 64, 256, 320, 320, 640,
    ]  # fmt: skip


def test_prompts_of_unequal_lengths_share_a_lane_that_follows_from_each_alone(model):
    unequal = ([5, 6, 7], [11] * 40, [9, 8, 7] * 4)
    assert [round_to_lane(n) for n in (1, 64, 65, 256, 257, 1024)] == [64, 64, 256, 256, 1024, 1024]
    together = go_on(model, unequal, new=4, width=round_to_lane(40))
    for row, prompt in enumerate(unequal):
        alone = go_on(model, [prompt], new=4, width=round_to_lane(len(prompt)))
        assert torch.equal(alone[:, 0], together[:, row])
