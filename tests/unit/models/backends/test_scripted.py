import pytest

from stillroom.errors import BackendError
from stillroom.models import TextModel
from stillroom.models.backends.scripted import Scripted
from stillroom.records import Message, Prompt, Sampling
from stillroom.testing import read_stream, scripted_model


def ask(model, *texts, **sampling):
    prompts = [Prompt(messages=(Message("user", text),)) for text in texts]
    return [c.text for c in model.generate(prompts, Sampling(**sampling))]


def test_answers_from_a_function_and_remembers_what_it_was_asked():
    model = scripted_model(lambda prompt: prompt.messages[-1].content.upper())
    assert ask(model, "rain", "sun") == ["RAIN", "SUN"]
    assert [prompt.messages[0].content for prompt in model.asked] == ["rain", "sun"]
    assert isinstance(model, TextModel)


def test_answers_from_a_list_in_order_and_says_when_it_is_spent():
    model = scripted_model(["one", "two"])
    assert ask(model, "a", "b") == ["one", "two"]
    with pytest.raises(BackendError, match="one more was requested") as caught:
        ask(model, "c")
    assert caught.value.code == "backend.script"


def test_a_map_prefers_the_equal_prompt_then_the_longest_part():
    model = scripted_model({"rain": "wet", "rain in": "very wet", "sun": "dry", "*": "who knows"})
    assert ask(model, "rain", "the rain in spain", "snow") == ["wet", "very wet", "who knows"]


def test_a_map_without_a_fitting_key_is_an_error():
    with pytest.raises(BackendError, match="no answer"):
        ask(scripted_model({"rain": "wet"}), "snow")


def test_limits_and_stops_behave_as_with_a_model():
    model = scripted_model({"*": "one two three. four"})
    assert ask(model, "x", max_new_tokens=2) == ["one two"]
    assert ask(model, "x", stop=("three",)) == ["one two "]
    done = model.generate([Prompt(text="x")], Sampling(max_new_tokens=2))[0]
    assert (done.finish_reason, done.completion_tokens) == ("length", 2)


def test_a_stream_joins_to_the_completion():
    model = scripted_model({"*": "One, two.\n"})
    pieces, told = read_stream(model.stream(Prompt(text="x"), Sampling()))
    assert len(pieces) > 2
    assert told == model.generate([Prompt(text="x")], Sampling())[0]
    assert "".join(pieces) == "One, two.\n"


def test_what_the_script_says_scores_higher_than_what_it_does_not():
    model = scripted_model({"*": "yes"})
    same, other = model.score([Prompt(text="x")] * 2, ["yes", "no"])
    assert same.mean > other.mean
    assert model.score([Prompt(text="x")], [""])[0].mean == 0.0


def test_cancelling_leaves_the_rest_marked():
    model = scripted_model({"*": "yes"})
    asked = []
    done = model.generate(
        [Prompt(text="x")] * 3,
        Sampling(),
        on_done=lambda i, c: asked.append(i),
        is_cancelled=lambda: len(asked) == 1,
    )
    assert [c.finish_reason for c in done] == ["stop", "cancelled", "cancelled"]


def test_the_backend_reads_a_file_and_refuses_what_is_no_script(tmp_path):
    path = tmp_path / "script.json"
    path.write_text('{"*": "hello"}')
    assert ask(Scripted().open(f"scripted:{path}"), "x") == ["hello"]
    for bad in ("{", "[1]", '"text"'):
        path.write_text(bad)
        with pytest.raises(BackendError) as caught:
            Scripted().open(str(path))
        assert caught.value.code == "backend.script"
