"""Chances of given answers: by an engine's scores, by a server's tokens, or drawn and told so."""

import math

import pytest

from stillroom.errors import BackendError
from stillroom.models import open_text_model
from stillroom.models.cache import wrap_with_cache
from stillroom.models.choice import score_options
from stillroom.records import Message, Prompt
from stillroom.testing import scripted_model

PROMPT = Prompt((Message("user", "Is wax soft? Yes or No."),))


@pytest.fixture
def connect():
    opened = []

    def connect(server):
        opened.append(open_text_model(f"{server.address}#m"))
        return opened[-1]

    yield connect
    for model in opened:
        model.close()


def tokens(**chances):
    return {
        "choices": [
            {
                "message": {"content": "x"},
                "logprobs": {
                    "content": [
                        {
                            "top_logprobs": [
                                {"token": token, "logprob": math.log(chance)}
                                for token, chance in chances.items()
                            ]
                        }
                    ]
                },
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1},
    }


def test_scores_are_shared_among_the_options():
    model = scripted_model({"*": "Yes"})
    (chosen,) = score_options(model, [PROMPT], ("Yes", "No"))
    assert chosen.way == "logprob"
    assert sum(chosen.chances) == pytest.approx(1.0)
    assert chosen.chances[0] > 0.5
    assert chosen.expect([1.0, 0.0]) == pytest.approx(chosen.chances[0])


def test_a_servers_tokens_are_read_with_their_white_space(serve, connect):
    server = serve(
        lambda path, body, headers: tokens(**{" Yes": 0.3, "Yes": 0.3, "No": 0.2, "x": 0.2})
    )
    (chosen,) = score_options(connect(server), [PROMPT], ("Yes", "No"))
    assert chosen.chances == pytest.approx((0.75, 0.25))
    assert chosen.prompt_tokens == 7
    body = server.requests[-1][1]
    assert (body["max_tokens"], body["logprobs"]) == (1, True)


def test_ten_is_not_taken_for_one(serve, connect):
    server = serve(lambda path, body, headers: tokens(**{"10": 0.6, "1": 0.2, "2": 0.2}))
    (chosen,) = score_options(connect(server), [PROMPT], ("1", "2"))
    assert chosen.chances == pytest.approx((0.5, 0.5))


def test_a_server_without_chances_is_asked_to_answer(serve, completion, connect, tmp_path):
    def answer(path, body, headers):
        if "response_format" in body:
            return completion('{"answer": "No"}')
        return completion("No")

    model = wrap_with_cache(connect(serve(answer)), tmp_path / "cache.sqlite")
    (chosen,) = score_options(model, [PROMPT], ("Yes", "No"))
    assert (chosen.chances, chosen.way) == ((0.0, 1.0), "drawn")


def test_no_option_at_all_is_no_answer(serve, connect):
    server = serve(lambda path, body, headers: tokens(maybe=1.0))
    (chosen,) = score_options(connect(server), [PROMPT], ("Yes", "No"))
    assert chosen.chances is None
    assert chosen.expect([1, 0]) is None


def test_another_failure_is_not_hidden(serve, connect):
    server = serve(lambda path, body, headers: (401, {"error": {"message": "no key"}}))
    with pytest.raises(BackendError) as caught:
        score_options(connect(server), [PROMPT], ("Yes", "No"))
    assert caught.value.code == "backend.unauthorized"


def test_scores_of_a_checkpoint_are_its_chances(tmp_path):
    from stillroom.testing import tiny_checkpoint

    model = open_text_model(str(tiny_checkpoint(tmp_path / "m")), backend="transformers")
    (chosen,) = score_options(model, [PROMPT], ("1", "2", "3"))
    totals = [one.total for one in model.score([PROMPT] * 3, ["1", "2", "3"])]
    weights = [math.exp(total) for total in totals]
    assert chosen.chances == pytest.approx([w / sum(weights) for w in weights], abs=1e-6)
    model.close()
