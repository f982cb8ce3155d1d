import copy
import json
import logging
import pickle
import random

import numpy as np
import pytest
import torch

from stillroom.errors import BackendError, MissingExtraError
from stillroom.models import TextModel, open_text_model
from stillroom.models.local import grammar
from stillroom.models.local.causal_lm import load_causal_lm, load_tokenizer
from stillroom.models.tokenization.chat_template import render_prompt
from stillroom.records import Message, Prompt, Sampling
from stillroom.testing import read_stream, tiny_checkpoint

WORDS = ["mill", "river", "lemon", "question", "sugar", "house", "answer", "north"]


def chat(*words, **more):
    return Prompt(messages=(Message("user", " ".join(words)),), **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    return open_text_model(str(folder), backend="transformers", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def asks():
    prompts = [chat(*WORDS[: 1 + number % 8], "tell me") for number in range(14)]
    samplings = [
        Sampling(max_new_tokens=12, temperature=0.0 if number % 2 else 1.0, seed=number, top_p=0.9)
        for number in range(14)
    ]
    return prompts, samplings


def test_it_is_a_text_model(model):
    assert isinstance(model, TextModel)
    assert model.context_length == 512
    assert model.count_tokens("the mill") > 0


def test_a_completion_does_not_depend_on_the_prompts_beside_it(model, asks):
    prompts, samplings = asks
    together = model.generate(prompts, samplings)
    alone = [model.generate([p], [s])[0] for p, s in zip(prompts, samplings, strict=True)]
    assert together == alone
    order = list(range(14))
    random.Random(5).shuffle(order)
    shuffled = model.generate([prompts[i] for i in order], [samplings[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(14)] == together


def test_greedy_completions_are_the_reference_ones(model, folder):
    reference, tokenizer = load_causal_lm(folder, dtype="float32")
    prompt = chat("the river")
    ids = torch.tensor([tokenizer(render_prompt(tokenizer, prompt))["input_ids"]])
    with torch.inference_mode():
        for _ in range(10):
            ids = torch.cat([ids, reference(ids).logits[:, -1:].argmax(-1)], 1)
    expected = tokenizer.decode(ids[0, -10:], skip_special_tokens=True)
    assert model.generate([prompt], Sampling(max_new_tokens=10))[0].text == expected


def test_seeds_differ_and_repeat(model):
    def draw(seed):
        return model.generate([chat("mill")], Sampling(16, temperature=1.5, seed=seed))[0].text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_a_stream_joins_to_the_completion_and_stops_hold_back(model):
    (done,) = model.generate([chat("mill")], Sampling(24))
    whole = done.text
    pieces, told = read_stream(model.stream(chat("mill"), Sampling(24)))
    assert ("".join(pieces), told) == (whole, done)
    stop = whole[6:8]
    cut = model.generate([chat("mill")], Sampling(24, stop=(stop,)))[0]
    assert cut.text == whole[: whole.index(stop)]
    assert "".join(model.stream(chat("mill"), Sampling(24, stop=(stop,)))) == cut.text


def test_limits_are_kept_and_named(model):
    done = model.generate([chat("mill")], Sampling(5))[0]
    assert (done.finish_reason, done.completion_tokens) == ("length", 5)
    with pytest.raises(BackendError) as caught:
        model.generate([Prompt(text="mill " * 600)], Sampling())
    assert caught.value.code == "backend.context"


def test_top_k_of_one_is_greedy_and_a_penalty_changes_the_course(model):
    greedy = model.generate([chat("mill")], Sampling(12))[0].text
    narrow = model.generate([chat("mill")], Sampling(12, temperature=2.0, top_k=1))[0].text
    assert narrow == greedy
    penalized = model.generate([chat("mill")], Sampling(12, repetition_penalty=5.0))[0]
    assert penalized.text != greedy


def test_cancelling_between_tokens_keeps_what_is_done(model):
    looks = iter(range(1000))
    done = model.generate([chat("mill")] * 9, Sampling(50), is_cancelled=lambda: next(looks) > 5)
    assert "cancelled" in {c.finish_reason for c in done}


def test_scores_are_log_probabilities_of_the_completion(model, folder):
    reference, tokenizer = load_causal_lm(folder, dtype="float32")
    score = model.score([Prompt(text="the mill")], [" ground corn"])[0]
    before = tokenizer("the mill")["input_ids"]
    after = tokenizer(" ground corn", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        rows = reference(torch.tensor([before + after])).logits[0].log_softmax(-1)
    expected = [float(rows[len(before) - 1 + i, token]) for i, token in enumerate(after)]
    np.testing.assert_allclose(score.logprobs, expected, atol=1e-5)
    assert model.score([Prompt(text="x")], [""])[0].logprobs == ()


def test_hidden_states_have_a_row_a_token(model):
    states = model.hidden_states([Prompt(text="the mill ground")], layer=1)[0]
    assert states.shape == (model.count_tokens("the mill ground"), 64)


def test_a_schema_holds_even_a_model_that_knows_no_language(model):
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["red", "blue"]}, "is_big": {"type": "boolean"}},
        "required": ["kind", "is_big"],
        "additionalProperties": False,
    }
    done = model.generate([chat("mill", schema=schema)], Sampling(60, temperature=1.0))[0]
    value = json.loads(done.text)
    assert set(value) == {"kind", "is_big"}
    assert done.finish_reason == "stop"
    with pytest.raises(BackendError) as caught:
        model.generate([chat("mill", schema={"type": "wat"})], Sampling())
    assert caught.value.code == "backend.schema"


def test_without_llguidance_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"stillroom\[grammar\]"):
        grammar.Grammar(model.tokenizer, 384)


def test_checked_schemas_may_be_nested():
    grammar.check_schema({"type": ["object", "null"], "properties": {"a": {"type": "string"}}})
    for bad in (
        {"properties": {"a": {"type": "text"}}},
        {"items": {"type": "text"}},
        {"anyOf": [{"type": "text"}]},
    ):
        with pytest.raises(BackendError):
            grammar.check_schema(bad)


def test_a_closed_model_says_so(folder):
    closed = open_text_model(str(folder), backend="transformers")
    closed.close()
    closed.close()
    with pytest.raises(BackendError) as caught:
        closed.generate([chat("x")], Sampling())
    assert caught.value.code == "backend.closed"


@pytest.mark.parametrize("odd", ["\ud800", "a \udfff b"])
def test_half_a_character_is_read_as_any_that_is_not_known(model, odd):
    whole = odd.encode("utf-8", "replace").decode().replace("?", "\ufffd")
    greedy = Sampling(max_new_tokens=4)
    for make in (chat, lambda text: Prompt(text=text), lambda text: Prompt(text="a", prefix=text)):
        assert model.generate([make(odd)], greedy) == model.generate([make(whole)], greedy)
    assert read_stream(model.stream(chat(odd), greedy)) == read_stream(
        model.stream(chat(whole), greedy)
    )
    assert model.score([chat(odd)], [odd]) == model.score([chat(whole)], [whole])
    assert model.count_tokens(odd) == model.count_tokens(whole)
    assert model.count_prompt(chat(odd)) == model.count_prompt(chat(whole))


def test_a_tokenizer_that_reads_half_characters_is_saved_by_its_own_name(model, tmp_path):
    from stillroom.models.local.causal_lm import load_tokenizer

    model.tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again).__name__ == type(model.tokenizer).__name__
    assert again("a \ud800")["input_ids"] == model.tokenizer("a \ufffd")["input_ids"]
    assert (
        again(["\ud800", "a"], ["b", "\udfff"])["input_ids"][0][-1] == again("b")["input_ids"][-1]
    )


def test_a_tokenizer_reads_half_characters_whatever_is_asked_of_it_and_after_a_pickle(model):
    told = model.tokenizer
    for one in (told, pickle.loads(pickle.dumps(told)), copy.deepcopy(told)):  # noqa: S301
        assert type(one) is type(told)
        assert one.padding_side == "left"
        assert one.pad_token == told.pad_token
        for read in (one, one.encode, one.tokenize):
            assert read("a \ud800") == read("a \ufffd")
        assert one("a", text_target="\ud800") == one("a", text_target="\ufffd")
        assert one.encode("a", "\ud800") == one.encode("a", "\ufffd")


def test_a_tokenizer_in_python_is_pickled_too(tmp_path):
    from transformers import ByT5Tokenizer

    from stillroom.models.local.causal_lm import load_tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    told = load_tokenizer(tmp_path)
    again = pickle.loads(pickle.dumps(told))  # noqa: S301
    for one in (told, again):
        assert one("a \ud800")["input_ids"] == told("a \ufffd")["input_ids"]
        assert one.encode("a \ud800") == told.encode("a \ufffd")
        assert one.tokenize("a \ud800") == told.tokenize("a \ufffd")


def test_a_tokenizer_does_not_warn_of_texts_that_are_cut_later(folder, caplog):
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = 4
    caplog.set_level("WARNING", "transformers")
    logging.getLogger("transformers").addHandler(caplog.handler)
    tokenizer("a text of more tokens than four")
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records
