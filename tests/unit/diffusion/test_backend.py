"""A diffusion checkpoint as a TextModel: complete, stream, score, cancel, be chosen by itself."""

import json
import threading

import pytest
from tests.unit.diffusion.conftest import say_diffusion

from stillroom.diffusion.backend import Diffusion
from stillroom.errors import BackendError
from stillroom.models.protocols import TextModel
from stillroom.records import Message, Prompt, Sampling
from stillroom.testing import tiny_checkpoint

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
    assert "".join(model.stream(PROMPT, sampling)) == whole.text


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
    from stillroom.diffusion.likelihood import score_text
    from stillroom.diffusion.requests import prompt_request
    from stillroom.diffusion.scoring import ESTIMATORS

    opened = model.model
    before = list(prompt_request(opened.tokenizer, PROMPT, 0).ids)
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
        (Prompt(text="x", schema={"type": "object"}), "backend.schema"),
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
    from stillroom.models.method import BACKENDS

    if "diffusion" not in BACKENDS.names():  # an installation from before this entry point
        pytest.skip("reinstall the package: pip install -e .")
    opened = open_text_model(str(folder))
    assert opened.generate([PROMPT], Sampling(max_new_tokens=3))[0].model == opened.fingerprint
