"""A diffusion checkpoint as a TextModel: complete, stream, score, cancel, be chosen by itself."""

import asyncio
import contextlib
import json
import threading

import httpx
import pytest
from tests.unit.diffusion.conftest import say_diffusion

from stillroom.diffusion.backend import Diffusion
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.errors import BackendError
from stillroom.models.factory import open_text_model
from stillroom.models.interfaces import DenoisingModel, DenoisingStep, TextModel
from stillroom.records import Message, Prompt, Sampling
from stillroom.serve import RequestLimits, ServedModel, create_app
from stillroom.testing import read_stream, tiny_checkpoint

PROMPT = Prompt((Message("user", "Say something."),))


@pytest.fixture(scope="module", params=[{}, {"attention": "block_causal", "block_size": 8}])
def model(request, tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny", hidden=32)
    opened = Diffusion(dtype="float32", commit="top_k").open(
        str(say_diffusion(folder, **request.param))
    )
    yield opened
    opened.close()


def test_it_is_a_text_model(model):
    assert isinstance(model, TextModel)
    assert model.name == "tiny"
    assert model.count_tokens("a jar") > 1
    assert model.context_length == 512


def test_completions_depend_on_their_prompt_alone(model):
    other = Prompt(text="A still turns wine into")
    sampling = Sampling(max_new_tokens=7, temperature=0.8, seed=3)
    done = []
    both = model.generate([PROMPT, other], sampling, on_done=lambda at, one: done.append(at))
    assert done == [0, 1]
    assert model.generate([other], sampling)[0] == both[1]
    assert model.generate([PROMPT], sampling)[0] == both[0]
    assert both[0].completion_tokens <= 7
    assert both[0].prompt_tokens > 5


def test_a_stream_grows_to_the_completion(model):
    sampling = Sampling(max_new_tokens=12)
    (whole,) = model.generate([PROMPT], sampling)
    pieces, told = read_stream(model.stream(PROMPT, sampling))
    assert ("".join(pieces), told) == (whole.text, whole)


@pytest.mark.parametrize(
    ("commit", "remasking"),
    [
        ({"name": "quota"}, {"name": "remdm", "eta": 0.5, "kind": "rescale"}),
        ({"name": "threshold", "threshold": 0.3}, {"name": "wino", "threshold": 0.9, "extra": 8}),
        ({"name": "threshold", "threshold": 0.3}, {"name": "edit", "threshold": 0.0}),
    ],
)
def test_nothing_is_streamed_that_remasking_withdraws(model, monkeypatch, commit, remasking):
    settings = {"commit": commit, "remasking": remasking, "order": "left_to_right"}
    monkeypatch.setattr(
        model, "settings", DecodeSettings.model_validate({**settings, "block_length": 8})
    )
    sampling = Sampling(max_new_tokens=24, temperature=0.8)
    (whole,) = model.generate([PROMPT], sampling)
    pieces, told = read_stream(model.stream(PROMPT, sampling))
    assert ("".join(pieces), told) == (whole.text, whole)
    assert len(pieces) > 1  # blocks that are done are not held back


def test_stops_are_cut(model):
    (whole,) = model.generate([PROMPT], Sampling(max_new_tokens=10))
    stop = whole.text[2:4]
    (cut,) = model.generate([PROMPT], Sampling(max_new_tokens=10, stop=(stop,)))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")


def test_leaving_a_stream_frees_the_model(model):
    stream = model.stream(PROMPT, Sampling(max_new_tokens=400))
    started = threading.active_count()
    stream.close()
    assert threading.active_count() <= started
    assert model.generate([PROMPT], Sampling(max_new_tokens=2))[0].completion_tokens <= 2


def test_a_schema_is_held_whole_and_streamed(model):
    shape = {"jar": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": 0}}
    prompt = Prompt(text="A jar", schema={"type": "object", "properties": shape})
    sampling = Sampling(max_new_tokens=90, stop=("jar",))
    (whole,) = model.generate([prompt], sampling)
    value = json.loads(whole.text)
    assert list(value) == ["jar", "n"]
    assert isinstance(value["n"], int)
    assert whole.finish_reason == "stop"
    pieces, told = read_stream(model.stream(prompt, sampling))
    assert ("".join(pieces), told) == (whole.text, whole)


def test_steps_are_streamed_between_the_pieces(model):
    assert isinstance(model, DenoisingModel)
    sampling = Sampling(max_new_tokens=6)
    items = list(model.stream_canvas(PROMPT, sampling))
    steps = [item for item in items if isinstance(item, DenoisingStep)]
    assert "".join(item for item in items if isinstance(item, str)) == "".join(
        model.stream(PROMPT, sampling)
    )
    assert [step.step for step in steps] == list(range(len(steps)))
    assert all(len(step.pieces) == 6 for step in steps)
    for step in steps:
        assert all(step.pieces[at] is not None for at in step.written)
    assert sum(piece is None for piece in steps[0].pieces) == 5


def test_the_server_shows_the_canvas_and_frees_the_slot_of_who_leaves(model):
    app = create_app(ServedModel("run", model), limits=RequestLimits(running=1, waiting=0))
    body = {"model": "run", "messages": [{"role": "user", "content": "A jar?"}], "stream": True}
    body["stream_options"] = {"include_canvas": True}

    async def ask(client, **more):
        for _ in range(400):  # a slot is given free when its thread has ended, a moment later
            reply = await client.post("/v1/chat/completions", json={**body, **more})
            if reply.status_code != 429:
                return reply
            await asyncio.sleep(0.02)
        raise AssertionError("the slot was never given free")

    async def go():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            shown = await ask(client, max_tokens=5)
            plain = await ask(client, max_tokens=5, stream_options=None)
            refused = await ask(client, max_tokens=5, stream=False)
            leaving = asyncio.create_task(ask(client, max_tokens=400))
            await asyncio.sleep(0.05)
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving
            return shown, plain, refused, await ask(client, max_tokens=2)

    shown, plain, refused, again = asyncio.run(go())
    chunks = [json.loads(line[6:]) for line in shown.text.split("\n\n")[:-2]]
    steps = [chunk["canvas"] for chunk in chunks if "canvas" in chunk]
    assert steps[-1]["pieces"].count(None) == 0
    assert steps[0]["written"]

    def text(reply):
        chunks = [json.loads(line[6:]) for line in reply.text.split("\n\n")[:-2]]
        found = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]]
        return "".join(found)

    assert text(shown) == text(plain)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_canvas")
    assert again.status_code == 200


def test_a_longer_context_may_be_asked_for(tmp_path):
    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", layers=1, hidden=32))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    short, long = (open_text_model(str(folder), context_length=n) for n in (None, 64))
    assert (short.context_length, long.context_length) == (16, 64)
    ask = Sampling(max_new_tokens=24)
    with pytest.raises(BackendError) as caught:
        short.generate([Prompt(text="a" * 20)], ask)
    assert caught.value.code == "backend.context"
    assert long.generate([Prompt(text="a" * 20)], ask)[0].completion_tokens > 0


def test_cancelling_leaves_the_rest_undone(model):
    calls = []

    def is_cancelled():
        calls.append(1)
        return len(calls) > 3

    found = model.generate([PROMPT] * 3, Sampling(max_new_tokens=30), is_cancelled=is_cancelled)
    assert [one.finish_reason for one in found] == ["cancelled"] * 3


def test_scores_are_the_chain_from_left_to_right(model):
    (score,) = model.score([PROMPT], ["Yes, so it is."])
    assert len(score.logprobs) == model.count_tokens("Yes, so it is.")
    assert all(value < 0 for value in score.logprobs)
    assert model.score([PROMPT], [""])[0].logprobs == ()
    from stillroom.diffusion.evaluation.likelihood import score_text
    from stillroom.diffusion.interfaces import ESTIMATORS
    from stillroom.diffusion.sampling.sequence import build_prompt_request

    opened = model.model
    before = list(build_prompt_request(opened.tokenizer, PROMPT, 0).ids)
    after = opened.tokenizer("Yes, so it is.", add_special_tokens=False)["input_ids"]
    places = range(len(before), len(before) + len(after))
    chain = score_text(opened, before + after, places, ESTIMATORS.build("chain_rule"))
    assert score.total == pytest.approx(chain.value, abs=1e-4)


def test_a_bound_is_shared_out(model, tmp_path):
    engine = Diffusion(dtype="float32", estimator={"name": "low_variance", "samples": 4})
    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", hidden=32))
    (score,) = engine.open(str(folder)).score([PROMPT], ["Yes, no."])
    assert len(set(score.logprobs)) == 1


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (Prompt(text="x", schema={"type": "string", "pattern": "a"}), "backend.schema"),
        (Prompt(text="word " * 800), "backend.context"),
    ],
)
def test_what_it_cannot_do_is_said(model, prompt, code):
    with pytest.raises(BackendError) as caught:
        model.generate([prompt], Sampling(max_new_tokens=4))
    assert caught.value.code == code


def test_a_closed_model_says_so(tmp_path):
    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", hidden=32))
    opened = Diffusion().open(str(folder))
    opened.close()
    opened.close()
    with pytest.raises(BackendError) as caught:
        opened.generate([PROMPT], Sampling())
    assert caught.value.code == "backend.closed"
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(BackendError) as caught:
        Diffusion().open(str(folder))
    assert caught.value.code == "backend.tokenizer"


def test_a_checkpoint_names_the_backend_that_serves_it(tmp_path):
    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", hidden=32))
    config = json.loads((folder / "config.json").read_text())
    assert config["stillroom_backend"] == "diffusion"
    from stillroom.models import open_text_model
    from stillroom.models.interfaces import BACKENDS

    if "diffusion" not in BACKENDS.names():  # an installation from before this entry point
        pytest.skip("reinstall the package: pip install -e .")
    opened = open_text_model(str(folder))
    assert opened.generate([PROMPT], Sampling(max_new_tokens=3))[0].model == opened.fingerprint
