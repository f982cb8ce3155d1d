"""Prompts that begin alike: less is computed, and no byte of an answer changes."""

import json
import random
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from stillroom.checkpoints.gguf import check_gguf
from stillroom.errors import BackendError
from stillroom.models import open_text_model
from stillroom.models.backends import llamacpp
from stillroom.models.local.llamacpp_engine import LlamacppEngine
from stillroom.models.local.prefix_cache import PrefixCache, split_prompt
from stillroom.records import Message, Prompt, Sampling
from stillroom.testing import read_stream, tiny_checkpoint

WORDS = ["mill", "river", "lemon", "question", "sugar", "house", "answer", "north"]
RULES = Message("system", " ".join(random.Random(1).choices(WORDS, k=60)))


@pytest.fixture(scope="module", params=["transformers", "llamacpp"])
def model(request, tmp_path_factory):
    path = folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    settings = {"dtype": "float32", "batch_size": 4}
    if request.param == "llamacpp":
        pytest.importorskip("xllamacpp")
        from stillroom.models.gguf.export import export_gguf

        path = export_gguf(folder, folder.parent / "tiny.gguf").path
        settings = {"num_threads": 2}
    model = open_text_model(str(path), backend=request.param, **settings)
    yield model
    model.close()


def forget(model):
    """Have the next prompts read from their first token."""
    for engine in getattr(model, "_engines", ()):
        engine.forget()
    if hasattr(model, "_prefixes"):
        model._prefixes = PrefixCache(model._prefixes.capacity)


@pytest.fixture
def read(model, monkeypatch):
    """Count the tokens of prompts that are computed."""
    counted = []
    if hasattr(model, "_forward"):
        own = model._forward

        def forward(ids, *more):
            counted.extend([ids.shape[1]] * (ids.shape[0] == 1))
            return own(ids, *more)

        monkeypatch.setattr(model, "_forward", forward)
        return counted
    for engine in model._engines:
        server = engine._server

        def complete(body, take, server=server):
            def watch(event):
                counted.append(event.get("timings", {}).get("prompt_n", 0))
                return take(event)

            return server.handle_completions(body, watch)

        monkeypatch.setattr(engine, "_server", SimpleNamespace(
            handle_completions=complete, listening_address=server.listening_address
        ))  # fmt: skip
    return counted


def talk(words, turns, sampling=None):
    """Return the prompts of a conversation whose answers are the model's own."""
    said = [RULES]

    def go(answer):
        asked = []
        for number in range(turns):
            said.append(Message("user", f"{words} {number}"))
            prompt = Prompt(tuple(said)), sampling or Sampling(8)
            done = answer(*prompt)
            said.append(Message("assistant", done.text))
            asked.append((prompt, done))
        return asked

    return go


def ask(model):
    return lambda prompt, sampling: model.generate([prompt], sampling)[0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_turns_of_a_conversation_are_answered_as_if_read_anew(model, temperature):
    told = talk("mill", 4, Sampling(8, temperature=temperature, seed=3))(ask(model))
    for prompt, done in told:
        forget(model)
        assert ask(model)(*prompt) == done


def test_what_was_read_is_not_read_again(model, read):
    forget(model)
    told = talk("river", 3)(ask(model))
    lengths = [done.prompt_tokens for _, done in told]
    assert sum(read) < sum(lengths) * 0.6
    read.clear()
    other = Prompt((RULES, Message("user", "another question")))
    done = ask(model)(other, Sampling(4))
    assert sum(read) < done.prompt_tokens * 0.6
    read.clear()
    forget(model)
    assert ask(model)(other, Sampling(4)) == done
    assert sum(read) == done.prompt_tokens


def test_clients_at_once_hear_what_each_hears_alone(model):
    asks = [
        (Prompt((RULES, Message("user", f"{word} {at}"))), Sampling(6, temperature=at % 2, seed=at))
        for at, word in enumerate(WORDS * 2)
    ]
    alone = []
    for one in asks:
        forget(model)
        alone.append(ask(model)(*one))
    done = [None] * len(asks)

    def go(at):
        done[at] = read_stream(model.stream(*asks[at]))[1]

    threads = [threading.Thread(target=go, args=(at,)) for at in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == alone


def test_a_stream_left_early_spoils_nothing(model):
    prompt = Prompt((RULES, Message("user", "lemon")))
    stream = model.stream(prompt, Sampling(100))
    next(stream)
    stream.close()
    done = ask(model)(prompt, Sampling(8))
    forget(model)
    assert ask(model)(prompt, Sampling(8)) == done


def test_blocks_are_a_function_of_the_position():
    for length in (1, 63, 64, 65, 700, 3000):
        spans = split_prompt(length)
        assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert spans[:-1] == split_prompt(5000)[: len(spans) - 1]


def test_the_memory_is_bounded_and_what_is_used_stays():
    import torch
    from transformers import DynamicCache

    def fill(ids):
        cache = DynamicCache()
        states = torch.tensor(ids, dtype=torch.float32).reshape(1, 1, -1, 1).expand(1, 2, -1, 4)
        for layer in range(3):
            cache.update(states + layer, states - layer, layer)
        return cache

    block = 64 * 2 * 4 * 4 * 2 * 3
    held = PrefixCache(block * 4)
    rules = list(range(64))
    for number in range(20):
        ids = [*rules, *range(1000 * number, 1000 * number + 70)]
        cache, known = held.restore(ids)
        assert known == (64 if number else 0)
        if known:
            assert torch.equal(cache.layers[2].keys, fill(rules).layers[2].keys)
            assert torch.equal(cache.layers[2].values, fill(rules).layers[2].values)
        held.store(ids, fill(ids))
        assert held.size <= held.capacity
    assert held.restore(rules)[1] == 0  # the last token is read for its logits
    many = list(range(640))
    held.store(many, fill(many))  # its beginning is kept, and no more than fits is ever held
    assert (held.restore(many)[1], held.size) == (256, held.capacity)
    none = PrefixCache(0)
    none.store(rules, fill(rules))
    assert (none.size, none.restore([*rules, 1])[1]) == (0, 0)


def test_an_engine_that_cannot_drop_the_rest_reads_every_prompt_anew(monkeypatch):
    monkeypatch.setattr(LlamacppEngine, "request", lambda engine, path: [])
    bodies = []

    class Server:
        def __init__(self, params):
            pass

        def handle_completions(self, body, take):
            bodies.append(body)
            take({"choices": [{"text": "a"}], "timings": {"prompt_n": len(body["prompt"])}})

    params = SimpleNamespace(
        model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
    )
    library = SimpleNamespace(CommonParams=lambda: params, Server=Server)
    engine = LlamacppEngine(library, Path("x.gguf"), 512, 1, 0, "")
    for last in range(3):
        engine.complete({"prompt": [*range(100), last]}, lambda piece: False)
    assert [body["cache_prompt"] for body in bodies] == [False, True, False, False]
    engine.close()


def test_a_sliding_window_of_llamacpp_is_read_anew(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    from stillroom.models.gguf.export import export_gguf

    path = export_gguf(tiny_checkpoint(tmp_path / "tiny"), tmp_path / "tiny.gguf").path
    keys = check_gguf(path)
    assert "llama.context_length" in keys
    monkeypatch.setattr(
        llamacpp, "check_gguf", lambda path: {**keys, "gemma3.attention.sliding_window": ""}
    )
    with closing(open_text_model(str(path), backend="llamacpp", num_threads=1)) as model:
        for word in WORDS[:2]:
            model.generate([Prompt((RULES, Message("user", word)))], Sampling(2))
            assert model._engines[0].count_shared(model._engines[0]._held) == 0


@pytest.fixture(params=["dynamic", "longrope"])
def scaled(request, tmp_path):
    """A model whose rotary frequencies depend on the length, as published."""
    folder = tiny_checkpoint(tmp_path / "tiny", context_length=128)
    config = json.loads((folder / "config.json").read_text())
    factors = {"short_factor": [1.0] * 8, "long_factor": [float(2 + at) for at in range(8)]}
    config["rope_parameters"] = {
        "rope_type": request.param,
        "rope_theta": 10000.0,
        "factor": 4.0,
        **({} if request.param == "dynamic" else factors),
        "original_max_position_embeddings": 128,
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = open_text_model(
        str(folder), backend="transformers", dtype="float32", batch_size=4, context_length=512
    )
    yield model
    model.close()


def test_scaled_positions_depend_on_the_context_length_only(scaled):
    import torch

    long, short = (Prompt(text=" ".join(WORDS * many)) for many in (12, 2))
    with torch.inference_mode():
        ids = scaled._encode(long)
        assert len(ids) > 256
        blocks = scaled._read_prompt(ids, 512)[2]
        whole = scaled.model(input_ids=torch.tensor([ids])).logits[:, -1]
        assert torch.allclose(blocks, whole, atol=1e-5)
        ids = scaled._encode(short)
        assert len(ids) < 128
        before = scaled._read_prompt(ids, 128)[2]
        scaled.model(input_ids=torch.tensor([scaled._encode(long)]))
        scaled._prefixes.clear()
        assert torch.equal(scaled._read_prompt(ids, 128)[2], before)


def test_a_model_with_recurrent_states_scores_but_is_refused_for_generation(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    folder = tiny_checkpoint(tmp_path / "tiny")
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "model.safetensors").unlink()
    config = MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(folder)
    with closing(open_text_model(str(folder), backend="transformers", dtype="float32")) as model:
        assert len(model.score([Prompt(text="mill")], [" river"])[0].logprobs) > 0
        with pytest.raises(BackendError) as caught:
            model.generate([Prompt(text="mill")], Sampling(2))
    assert caught.value.code == "backend.no-generation"


def test_a_closed_model_keeps_no_prompts(tmp_path):
    model = open_text_model(str(tiny_checkpoint(tmp_path / "tiny")), backend="transformers")
    model.generate([Prompt((RULES,))], Sampling(2))
    assert model._prefixes.size
    model.close()
    assert (model._prefixes.size, len(model._prefixes._blocks)) == (0, 0)
