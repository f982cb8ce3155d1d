"""One declaration of the settings of an answer, and what is derived from it."""

import click
import pytest

from stillroom.cli.ask import ask_command
from stillroom.cli.serve import serve_command
from stillroom.errors import DataError, RecipeError
from stillroom.rag.settings import AnswerSettings, read_answer_settings
from stillroom.serve.routes.chat_completions import ChatRequest
from stillroom.serve.routes.responses import ResponsesRequest
from stillroom.serve.views.forms import list_answer_settings

OPTIONS = AnswerSettings.client_options()
REQUEST_FIELDS = {name for name, (_, option) in OPTIONS.items() if option.in_requests}


@pytest.mark.parametrize("command", [ask_command, serve_command])
def test_every_client_option_is_an_option_of_the_command_line(command):
    parameters = {parameter.name: parameter for parameter in command.params}
    context = click.Context(command)
    for name, (setting, _) in OPTIONS.items():
        default = parameters[name].get_default(context)
        assert default == ("" if setting.default is None else setting.default)
    assert isinstance(parameters["unsupported"].type, click.Choice)


@pytest.mark.parametrize("request_type", [ChatRequest, ResponsesRequest])
def test_requests_and_the_form_have_the_fields_that_requests_may_give(request_type):
    assert request_type.model_fields.keys() & OPTIONS.keys() == REQUEST_FIELDS
    shown = {field.path: field for field in list_answer_settings()}
    assert shown.keys() == REQUEST_FIELDS - {"pipeline", "answering"}
    assert (shown["k"].label, shown["k"].low, shown["k"].high) == (
        "Passages shown to the model", 1, 50,
    )  # fmt: skip
    assert shown["neighbours"].high == 10


def test_settings_in_python_are_checked():
    assert read_answer_settings({}) == AnswerSettings()
    with pytest.raises(TypeError, match="neighbors"):
        read_answer_settings({"neighbors": 1})
    with pytest.raises(DataError) as no_depth:
        read_answer_settings({"k": 0})
    assert no_depth.value.problems[0].code == "rag.bad-depth"
    with pytest.raises(RecipeError) as refused:
        read_answer_settings({"neighbours": -1, "unsupported": "keep"})
    assert [problem.code for problem in refused.value.problems] == ["recipe.value"] * 2
