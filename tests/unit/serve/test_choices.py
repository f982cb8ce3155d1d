"""Several texts of one request: drawn apart, told by their numbers, counted together."""

import re

import pytest
from tests.unit.serve.test_app import ask_documents, chat, check_error, events, request

from stillroom.records import Answer, Completion
from stillroom.serve import RequestLimits, ServedModel, create_app
from stillroom.serve.middleware.metrics import ServerMetrics
from stillroom.testing import scripted_model


class Drawing(type(scripted_model({"*": ""}))):
    """Writes as many words as its seed says, and the seed."""

    def __init__(self):
        super().__init__({"*": ""})
        self.at_once = []

    def stream(self, prompt, sampling):
        done = self.draw(sampling.seed)
        yield from re.findall(r"\S+ ?", done.text)
        return done

    def draw(self, seed):
        text = "word " * seed + (str(seed) if seed else "")
        return Completion(text, prompt_tokens=5, completion_tokens=self.count_tokens(text))

    def generate(self, prompts, sampling, **more):
        self.at_once.append(len(prompts))
        return [self.draw(one.seed) for one in sampling]


def text_of(body, app, path="/v1/completions"):
    return request(app, "POST", path, json_body={"model": "run", "prompt": "On", **body})


def gather(chunks, key):
    """Return the texts of a stream by their numbers, and why each ended."""
    texts, ends = {}, {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            at = choice["index"]
            assert at not in ends
            said = choice["text"] if key == "text" else choice["delta"].get("content", "")
            texts[at] = texts.get(at, "") + said
            if choice["finish_reason"]:
                ends[at] = choice["finish_reason"]
    return texts, ends


def test_each_text_has_a_seed_of_its_own_and_the_first_is_that_of_a_single_one():
    model = Drawing()
    app = create_app(ServedModel("run", model))
    body = chat(app, n=3, seed=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert texts == ["word word 2", "word word word 3", "word word word word 4"]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    assert chat(app, seed=2).json()["choices"] == body["choices"][:1]
    assert model.at_once == [3, 1]  # an engine that writes several side by side may do so


def test_a_seed_beyond_the_last_begins_anew():
    seeds = []

    class Listening(Drawing):
        def generate(self, prompts, sampling, **more):
            seeds.extend(one.seed for one in sampling)
            return [Completion("") for _ in prompts]

    chat(create_app(ServedModel("run", Listening())), n=2, seed=0x7FFFFFFF)
    assert seeds == [0x7FFFFFFF, 0]


@pytest.mark.parametrize("path", ["chat", "text"])
def test_a_stream_tells_each_text_by_its_number(path):
    counters = ServerMetrics()
    app = create_app(ServedModel("run", Drawing()), counters=counters)
    more = {"n": 3, "stream": True, "stream_options": {"include_usage": True}}
    reply = chat(app, **more) if path == "chat" else text_of(more, app)
    chunks = events(reply)
    texts, ends = gather(chunks, path)
    assert texts == {0: "", 1: "word 1", 2: "word word 2"}  # an empty text is a text, too
    assert set(ends.values()) == {"stop"}
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert chunks[-1]["choices"] == []
    if path == "chat":
        opened = [c["choices"][0] for c in chunks if c["choices"]][:3]
        assert [(one["index"], one["delta"]["role"]) for one in opened] == [
            (at, "assistant") for at in range(3)
        ]
    assert 'stillroom_tokens_total{kind="completion"} 5' in counters.render()


@pytest.mark.parametrize("is_stream", [False, True])
def test_answers_from_documents_have_their_own_citations(is_stream):
    counters = ServerMetrics()

    def ask(messages, sampling, k, **more):
        *_, answer = ask_documents(messages, sampling, k, **more)
        text = f"{sampling.seed}: {answer.completion.text}"
        yield text
        completion = Completion(text, "stop", 50, 8 + sampling.seed)
        yield Answer(completion, answer.citations, details={"abstained": False})

    served = ServedModel("run", scripted_model({"*": "x"}), ask)
    reply = chat(create_app(served, counters=counters), n=2, stream=is_stream)
    if is_stream:
        chunks = events(reply)
        texts, ends = gather(chunks, "chat")
        assert ends == {0: "stop", 1: "stop"}
        cited = {
            choice["index"]: choice["delta"]
            for chunk in chunks
            for choice in chunk["choices"]
            if "citations" in choice["delta"]
        }
    else:
        body = reply.json()
        texts = {one["index"]: one["message"]["content"] for one in body["choices"]}
        cited = {one["index"]: one["message"] for one in body["choices"]}
        assert body["usage"]["completion_tokens"] == 17
    assert texts == {at: f"{at}: It rises in the north [1]." for at in range(2)}
    for at in range(2):
        mark = cited[at]["annotations"][0]["url_citation"]
        assert texts[at][mark["start_index"] : mark["end_index"]] == "[1]"
    assert 'stillroom_answers_total{outcome="answered"} 2' in counters.render()


def test_a_streams_usage_and_end_are_the_engines_own():
    class Counting(Drawing):
        def stream(self, prompt, sampling):
            yield "a b c"
            return Completion("a b c", "length", 41, 7)

        def count_tokens(self, text):
            raise AssertionError("what the engine told is not counted again")

    more = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events(chat(create_app(ServedModel("run", Counting())), **more))
    assert gather(chunks, "chat")[1] == {0: "length"}
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 41,
        "completion_tokens": 7,
        "total_tokens": 48,
    }


def test_a_failure_in_a_later_text_ends_the_stream_with_an_error():
    class Failing(Drawing):
        def stream(self, prompt, sampling):
            if sampling.seed == 1:
                raise ZeroDivisionError("secret")
            yield "said"

    reply = chat(create_app(ServedModel("run", Failing())), n=2, stream=True)
    *_, last = [line for line in reply.text.split("\n\n") if line]
    assert '"server_error"' in last
    assert "secret" not in reply.text
    assert "[DONE]" not in reply.text


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"n": 4}, "too_many_choices", "n"),
        ({"n": 0}, "invalid_request", "n"),
        ({"n": 2.5}, "invalid_request", "n"),
        ({"n": 1 << 70}, "too_many_choices", "n"),
        (
            {"n": 2, "stream": True, "stream_options": {"include_canvas": True}},
            "no_canvas",
            "stream_options",
        ),
    ],
)
def test_more_texts_than_are_given_are_refused(body, code, param):
    app = create_app(ServedModel("run", Drawing()), limits=RequestLimits(choices=3))
    for reply in (chat(app, **body), text_of(body, app)):
        assert check_error(reply, 400, code)["param"] == param


def test_all_that_is_drawn_is_given():
    app = create_app(ServedModel("run", Drawing()))
    assert len(text_of({"n": 2, "best_of": 2}, app).json()["choices"]) == 2
    error = check_error(text_of({"n": 2, "best_of": 3}, app), 400, "invalid_request")
    assert error["param"] == "best_of"
