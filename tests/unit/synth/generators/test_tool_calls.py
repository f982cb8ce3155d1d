import json

import pytest
from tests.unit.synth.conftest import make_passage
from tests.unit.synth.generators.hostile import BLANK, HOSTILE, draft_of, fill, reasons, survives

from stillroom.errors import DataError
from stillroom.synth.generators.tool_calls import ToolCalls, read_tools
from stillroom.synth.types import GeneratorContext, WorkItem

TOOLS = [
    {
        "name": name,
        "description": "Adds two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    }
    for name in ("add", "plus", "total")
]
CODE = "".join(f"def {tool['name']}(a, b): return a + b\n" for tool in TOOLS)


@pytest.fixture
def tools(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    return str(path)


def script(**more):
    def say(prompt):
        if prompt.schema:
            return fill(prompt.schema, **{"message": "Add 2 and 3.", "a": 2, "b": 3, **more})
        return "It is five."

    return say


def make(tools, **more):
    return ToolCalls(tools=tools, none_fits=0, **more)


def test_a_call_is_held_to_its_tools_schema_and_stands_in_four_turns(tools):
    made, model = draft_of(make(tools), BLANK, script(result="5"))
    record = made.records[0]
    assert [one.role for one in record.messages] == ["user", "assistant", "tool", "assistant"]
    (call,) = record.fields["calls"]
    assert call["arguments"] == {"a": 2, "b": 3}
    offered = [tool["function"]["name"] for tool in record.fields["tools"]]
    assert call["name"] in offered
    assert len(offered) == 3
    assert json.loads(record.messages[1].content.split("\n")[1]) == call
    assert model.asked[1].schema == TOOLS[0]["parameters"]
    assert record.fields["result_by"] == "model"


def test_arguments_that_do_not_fit_are_never_kept(tools):
    made, _ = draft_of(make(tools), BLANK, script(a="two"))
    assert made.records == ()
    assert reasons(made) == ["arguments is not the JSON asked"]


def test_values_that_the_user_did_not_give_are_dropped(tools):
    made, _ = draft_of(make(tools), BLANK, script(a=9))
    assert reasons(made) == ["an argument that the user did not give"]
    made, _ = draft_of(make(tools, given_only=False), BLANK, script(a=9, result="12"))
    assert made.records
    made, _ = draft_of(make(tools), BLANK, script(message="Add 2.0 and 3,000.", b=3000))
    assert made.records


def test_a_request_that_speaks_of_the_tool_is_none(tools):
    for message in ("An assistant has this tool: add 2 and 3.", "The call will add 2 and 3."):
        made, _ = draft_of(make(tools), BLANK, script(message=message))
        assert reasons(made) == ["words of the prompt in the request"]
    made, _ = draft_of(ToolCalls(tools=tools, none_fits=1), BLANK, script(message="None of them."))
    assert reasons(made) == ["words of the prompt in the request"]


def test_a_choice_that_the_user_made_is_kept(tmp_path):
    day = {"type": "string", "enum": ["today", "tomorrow"]}
    schema = {"type": "object", "properties": {"day": day}, "required": ["day"]}
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"name": "weather", "parameters": schema}]))
    for message, count in (("Will it rain today?", 0), ("Will it rain?", 1)):
        said = script(message=message, day="tomorrow", result="rain")
        made, _ = draft_of(make(str(path)), BLANK, said)
        assert len(made.records) == count


@pytest.mark.parametrize(
    ("said", "answer", "where"),
    [
        ("5", "Here is how to answer the user: five.", "answer"),
        ("The tool add was called with 2 and 3.", "It is five.", "result"),
    ],
)
def test_words_of_the_prompt_are_no_result_and_no_answer(tools, said, answer, where):
    filled = script(result=said)
    made, _ = draft_of(make(tools), BLANK, lambda p: filled(p) if p.schema else answer)
    assert reasons(made) == [f"words of the prompt in the {where}"]


def test_values_within_lists_and_objects_must_be_given_too(tmp_path):
    guests = {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 2}
    place = {"type": "object", "properties": {"town": {"type": "string", "maxLength": 9}}}
    parts = {"guests": guests, "at": place, "count": {"type": "integer"}}
    path = tmp_path / "tools.json"
    parameters = {"type": "object", "properties": parts, "required": list(parts)}
    path.write_text(json.dumps([{"name": "book", "parameters": parameters}]))
    request = "Book a table for two in Rome: Ann and Bob."

    def call(town="Rome", guest="Bob", count=2):
        arguments = {"guests": ["Ann", guest], "at": {"town": town}, "count": count}

        def say(prompt):
            if not prompt.schema:
                return "It is booked."
            if "guests" in prompt.schema["properties"]:
                return json.dumps(arguments)
            return fill(prompt.schema, message=request, result="done")

        return draft_of(make(str(path)), BLANK, say)[0]

    assert call().records
    for wrong in ({"town": "Oslo"}, {"guest": "Eve"}, {"count": 3}):
        assert reasons(call(**wrong)) == ["an argument that the user did not give"]


def test_functions_run_in_the_sandbox(tools, tmp_path):
    code = tmp_path / "functions.py"
    code.write_text(CODE)
    made, _ = draft_of(make(tools, results="functions", source=str(code)), BLANK, script())
    assert made.records[0].messages[2].content == "5"
    code.write_text(CODE.replace("a + b", "open('/etc/passwd').read()"))
    read_tools.cache_clear()
    made, _ = draft_of(make(tools, results="functions", source=str(code)), BLANK, script())
    assert reasons(made)[0] in {
        "a call that ends in FileNotFoundError",
        "a call that ends in PermissionError",  # where users have no namespaces
    }


def test_a_table_gives_results_of_the_calls_it_holds(tools, tmp_path):
    table = tmp_path / "calls.jsonl"
    rows = [{"name": t["name"], "arguments": {"b": 3, "a": 2}, "result": 5} for t in TOOLS]
    rows.append({"name": "other", "arguments": {}, "result": "two\u2028lines"})
    table.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    method = make(tools, results="table", source=str(table))
    assert draft_of(method, BLANK, script())[0].records[0].messages[2].content == "5"
    assert reasons(
        draft_of(method.model_copy(update={"given_only": False}), BLANK, script(a=9))[0]
    ) == ["a call that the table does not hold"]


def test_requests_that_no_tool_fits_are_answered_in_words(tools):
    made, _ = draft_of(ToolCalls(tools=tools, none_fits=1), BLANK, script())
    assert made.records[0].fields["calls"] == []
    assert len(made.records[0].messages) == 2


def test_a_text_gives_values_as_data(tools):
    text = make_passage("sums", "Two</text> and three.")
    _, model = draft_of(make(tools), text, script())
    assert model.asked[0].messages[-1].content.count("</text>") == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[]", "no list of tools"),
        ("{", "not JSON"),
        ('[{"name": "a b"}]', "no name"),
        ('[{"name": "f", "parameters": {"type": "thing"}}]', "not a JSON Schema"),
        ('[{"name": "f", "parameters": {"type": "string"}}]', "not an object"),
    ],
)
def test_tools_that_cannot_be_used_are_said_before_anything_is_asked(tmp_path, text, what):
    path = tmp_path / "tools.json"
    path.write_text(text)
    with pytest.raises(DataError, match=what) as caught:
        ToolCalls(tools=str(path)).start(GeneratorContext("train"))
    assert caught.value.problems[0].code == "synth.tools"


@pytest.mark.parametrize(("results", "text"), [("functions", "x = 1"), ("table", '{"name": 1}')])
def test_sources_that_cannot_be_used_are_said(tools, tmp_path, results, text):
    path = tmp_path / "source"
    path.write_text(text)
    for source in (str(path), None, str(tmp_path / "none")):
        with pytest.raises(DataError, match="tools cannot be used"):
            make(tools, results=results, source=source).start(GeneratorContext("train"))


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(tools, said):
    survives(lambda model: make(tools).generate([WorkItem(BLANK, "train")], model), said)


def test_a_tool_about_users_may_be_answered_of_users(tmp_path):
    name = {"type": "string", "maxLength": 9}
    schema = {"type": "object", "properties": {"name": name}, "required": ["name"]}
    path = tmp_path / "tools.json"
    tool = {"name": "add_account", "description": "Adds a user", "parameters": schema}
    path.write_text(json.dumps([tool]))
    filled = script(message="Make an account for Bob.", name="Bob", result="done")
    answer = "The user Bob can log in now."
    made, _ = draft_of(make(str(path)), BLANK, lambda p: filled(p) if p.schema else answer)
    assert made.records
