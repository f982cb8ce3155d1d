import csv
import datetime
import json

import pytest

from stillroom.errors import DataError
from stillroom.records import (
    Link,
    Message,
    Origin,
    Record,
    from_row,
    guess_format,
    read_records,
    to_row,
)
from stillroom.records.types import EXTRAS_FIELD

ASK = {"role": "user", "content": "Why?"}
SAY = {"role": "assistant", "content": "Because."}
TURNS = (Message("user", "Why?"), Message("assistant", "Because."))


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"messages": [ASK, SAY]}, "messages"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Why?"},
                    {"from": "gpt", "value": "Because."},
                ]
            },
            "sharegpt",
        ),
        ({"conversations": [ASK, SAY]}, "sharegpt"),
        ({"instruction": "Why?", "input": "", "output": "Because."}, "alpaca"),
        ({"instruction": "Why?", "output": "Because."}, "alpaca"),
        ({"prompt": "Why?", "completion": "Because."}, "prompt_completion"),
        ({"prompt": [ASK], "completion": [SAY]}, "prompt_completion"),
        ({"prompt": [ASK], "completion": "Because."}, "prompt_completion"),
        ({"prompt": "Why?", "response": "Because."}, "prompt_completion"),
        (
            {
                "messages": [
                    ASK,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "text", "text": "Beca"},
                            {"type": "text", "text": "use."},
                        ],
                    },
                ]
            },
            "messages",
        ),
    ],
)
def test_each_format_gives_the_same_conversation(row, format):
    assert guess_format(row) == format
    record = from_row(row)
    assert record.messages == TURNS
    assert record.fields == {}
    assert record.origin == Origin()


@pytest.mark.parametrize(
    "start", [{"messages": [ASK, SAY]}, {"question": "Why?", "answer": "Because."}]
)
def test_fields_without_an_origin_are_fields(start):
    record = from_row({**start, "fields": {"split": "held_out"}, "level": 2})
    assert record.fields == {"split": "held_out", "level": 2}
    assert record.messages == TURNS
    assert from_row({**start, "fields": "a text"}).fields == {"fields": "a text"}


def test_text_is_one_turn_of_the_assistant():
    assert from_row({"text": "Once."}).messages == (Message("assistant", "Once."),)


def test_alpaca_joins_the_input_and_keeps_system_and_history():
    record = from_row(
        {
            "system": "Be brief.",
            "history": [["Hi", "Hello"]],
            "instruction": "Translate.",
            "input": "chat",
            "output": "cat",
        }
    )
    assert [(m.role, m.content) for m in record.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Translate.\n\nchat"),
        ("assistant", "cat"),
    ]


def test_sharegpt_takes_its_system_and_its_many_names():
    turns = [("human", "a"), ("gpt", "b"), ("observation", "c"), ("ASSISTANT", "d")]
    row = {"system": "s", "conversations": [{"from": f, "value": v} for f, v in turns]}
    roles = [message.role for message in from_row(row).messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


def test_what_a_format_does_not_name_is_kept():
    when = datetime.datetime(2024, 1, 2, 3, 4, 5)
    row = {
        "id": "row-7",
        "messages": [{**ASK, "name": "Ann", "weight": None}, SAY],
        "score": 0.5,
        "when": when,
        "nested": {"a": [1, (2, 3)]},
    }
    record = from_row(row)
    assert record.fields == {
        "id": "row-7",
        "score": 0.5,
        "when": "2024-01-02T03:04:05",
        "nested": {"a": [1, [2, 3]]},
        "message_extras": {"0": {"name": "Ann"}},
    }


@pytest.mark.parametrize(
    ("carried", "origin"),
    [
        ({}, Origin()),
        ({"license": "MIT"}, Origin(license="MIT")),
        ({"origin": "human", "license": "CC0-1.0"}, Origin("human", license="CC0-1.0")),
        ({"origin": {"kind": "synthetic", "license": "MIT"}}, Origin("synthetic", license="MIT")),
        (
            {"origin": {"kind": "synthetic", "chain": [{"method": "m", "parents": ["p"]}]}},
            Origin("synthetic", (Link("m", "", ("p",)),)),
        ),
    ],
)
def test_a_foreign_row_keeps_the_origin_it_carries(carried, origin):
    assert from_row({"text": "x", **carried}).origin == origin


def test_another_kind_of_origin_stays_a_field():
    for other in ["Paris", {"url": "http://x"}, None, 3]:
        record = from_row({"text": "x", "origin": other})
        assert record.origin == Origin()
        assert record.fields == {"origin": other}


@pytest.mark.parametrize(
    "row",
    [
        [],
        "text",
        None,
        {},
        {"a": 1},
        {"text": None},
        {"text": 3},
        {"messages": None},
        {"messages": "hi"},
        {"messages": [None]},
        {"messages": ["hi"]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "king", "content": "x"}]},
        {"messages": [{"role": None, "content": "x"}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
        {"conversations": {"from": "human"}},
        {"instruction": "a", "output": None},
        {"instruction": "a", "output": "b", "history": [["x"]]},
        {"prompt": 1, "completion": "b"},
        {"prompt": "a", "completion": [3]},
        {"text": "x", "score": float("nan")},
        {"text": "x", "score": float("inf")},
        {"text": "x", "raw": b"bytes"},
        {"text": "x", "deep": json.loads("[" * 500 + "]" * 500)},
        {"text": "x", "origin": {"kind": "human", "chain": [3]}},
        {"text": "x", "origin": {"kind": "alien"}},
        {"text": "x", "fields": {"split": "train"}, "split": "held_out"},
        {"messages": [], "fields": [], "origin": {}},
        {"messages": [], "fields": "{", "origin": {}},
        {"messages": [], "fields": '{"a": NaN}', "origin": {}},
        {"messages": [], "fields": f'{{"a": {"9" * 5000}}}', "origin": {}},
        {"messages": [], "fields": {}, "origin": "human"},
        {"messages": [3], "fields": {}, "origin": {}},
        {"messages": [], "fields": {}, "origin": {"kind": "human", "chain": [{}]}},
    ],
)
def test_a_row_that_cannot_be_kept_whole_is_refused(row):
    with pytest.raises(DataError) as caught:
        from_row(row)
    assert caught.value.code in {"data.row", "data.message", "data.origin"}
    assert caught.value.problems[0].expected


def test_an_unknown_format_is_no_fault_of_the_row():
    with pytest.raises(DataError) as caught:
        from_row({"text": "x"}, "sharegtp")
    assert caught.value.code == "data.format"
    with pytest.raises(DataError, match="has no 'conversations'"):
        from_row({"text": "x"}, "sharegpt")


def test_a_format_that_cannot_hold_the_messages_says_so():
    three = Record((*TURNS, Message("user", "And?")))
    for format in ["alpaca", "text", "prompt_completion"]:
        with pytest.raises(DataError, match="cannot hold messages of roles user"):
            to_row(three, format)
    with pytest.raises(DataError):
        to_row(three, "nope")


@pytest.mark.parametrize(
    ("format", "fields"),
    [
        ("alpaca", {"output": "gold"}),
        ("prompt_completion", {"prompt": "a template"}),
        ("question_answer", {"answer": "gold"}),
        ("messages", {"messages": []}),
        ("sharegpt", {"conversations": []}),
    ],
)
def test_a_field_never_takes_the_place_of_what_a_format_writes(format, fields):
    turns = (Message("user", "q"), Message("assistant", "a"))
    with pytest.raises(DataError, match=f"{next(iter(fields))}: both a field and a key"):
        to_row(Record(turns, fields), format)
    same = to_row(Record(turns, {"question": "q", "id": 3}), "question_answer")
    assert (same["question"], same["answer"], same["id"]) == ("q", "a", 3)


def test_rows_of_question_and_answer_are_turns():
    row = {"question": "How many?", "answer": "Twelve.", "id": 3}
    record = from_row(row)
    assert [(one.role, one.content) for one in record.messages] == [
        ("user", "How many?"),
        ("assistant", "Twelve."),
    ]
    assert record.fields == {"id": 3}
    written = to_row(record, "question_answer")
    assert {key: written[key] for key in row} == row


WEATHER = {"name": "get_weather", "arguments": {"city": "Tromsø"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Tromsø"}}\n</tool_call>'
JSON_CALL = json.dumps(WEATHER)


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None, "tool_calls": [{"id": "c", "type": "function", "function": WEATHER}]},
        {"tool_calls": [{"function": {**WEATHER, "arguments": '{"city": "Tromsø"}'}}]},
        {"content": "", "tool_calls": [WEATHER]},
        {"content": None, "function_call": {**WEATHER, "arguments": '{"city": "Tromsø"}'}},
    ],
)
def test_a_call_of_a_tool_is_kept_as_text(turn):
    record = from_row({"messages": [ASK, {"role": "assistant", **turn}], "tools": "[1]"})
    assert [message.content for message in record.messages] == ["Why?", CALL]
    assert record.fields == {"tools": [1]}


def test_calls_follow_the_words_before_them_and_results_the_order_of_the_calls():
    calls = [{"id": name, "function": {**WEATHER, "name": name}} for name in ("b", "a", "c")]
    results = [
        {"role": "tool", "tool_call_id": name, "content": name.upper()} for name in ("a", "c", "b")
    ]
    turn = {"role": "assistant", "content": "Let me see.", "tool_calls": calls}
    record = from_row({"messages": [ASK, turn, *results, SAY]})
    _, called, *said, _ = record.messages
    assert called.content.startswith("Let me see.\n<tool_call>\n")
    assert [message.content for message in said] == ["B", "A", "C"]
    assert record.fields["message_extras"]["2"] == {"tool_call_id": "b"}


def test_calls_of_sharegpt_belong_to_the_turn_before():
    turns = [
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "Let me see."},
        {"from": "function_call", "value": JSON_CALL},
        {"from": "function_call", "value": JSON_CALL},
        {"from": "observation", "value": "3"},
    ]
    record = from_row({"conversations": turns})
    assert [message.role for message in record.messages] == ["user", "assistant", "tool"]
    assert record.messages[1].content == f"Let me see.\n{CALL}\n{CALL}"


def test_parallel_calls_of_sharegpt_may_be_one_list():
    turns = [
        {"from": "human", "value": "Why?"},
        {"from": "function_call", "value": f"[{JSON_CALL}, {JSON_CALL}]"},
        {"from": "observation", "value": "3"},
    ]
    record = from_row({"conversations": turns})
    assert record.messages[1].content == f"{CALL}\n{CALL}"


def test_functions_are_tools_too():
    told = {"name": "get_weather", "parameters": {"type": "object"}}
    record = from_row({"messages": [ASK, SAY], "functions": [told]})
    assert record.tools == [{"type": "function", "function": told}]


@pytest.mark.parametrize(
    ("label", "expected"),
    [(False, {0, 1}), (True, set()), ("False", set()), ("true", set()), (0, set()), (None, set())],
)
def test_only_a_boolean_label_is_that_of_kto(label, expected):
    record = from_row({"prompt": "Why?", "completion": "Green.", "label": label})
    assert record.turns_without_loss == expected
    assert record.fields["label"] is label


@pytest.mark.parametrize("name", ["r.csv", "r.tsv"])
@pytest.mark.parametrize(
    ("header", "names", "expected"),
    [
        (("prompt", "completion", "label"), {}, [False, True, False, "no"]),
        (("prompt", "completion", "mark"), {"mark": "label"}, [False, True, False, "no"]),
        (("instruction", "output", "label"), {}, ["False", "true", " FALSE", "no"]),
        (("question", "answer", "label"), {}, ["False", "true", " FALSE", "no"]),
    ],
)
def test_a_label_of_a_table_is_text(tmp_path, name, header, names, expected):
    rows = [header, *(("Is it?", "It is.", one) for one in ("False", "true", " FALSE", "no"))]
    with (tmp_path / name).open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if name == "r.tsv" else ",").writerows(rows)
    records = list(read_records(tmp_path / name, names=names))
    assert [record.fields["label"] for record in records] == expected
    assert [bool(one.turns_without_loss) for one in records] == [one is False for one in expected]


@pytest.mark.parametrize(
    "call",
    [
        {"id": 1},
        {"function": {**WEATHER, "arguments": "{"}},
        {"function": {"name": "x", "arguments": "3"}},
        "x",
        3,
    ],
)
def test_a_call_that_cannot_be_read_is_refused(call):
    with pytest.raises(DataError, match="call"):
        from_row({"messages": [ASK, {"role": "assistant", "tool_calls": [call]}]})


@pytest.mark.parametrize("row", [{"messages": []}, {"conversations": []}])
def test_a_conversation_without_turns_is_refused(row):
    with pytest.raises(DataError, match="is empty"):
        from_row(row)


def test_a_turn_without_words_is_named_as_such():
    with pytest.raises(DataError, match="the content of an item of messages is null"):
        from_row({"messages": [ASK, {"role": "assistant", "content": None}]})


NO = {"role": "assistant", "content": "No."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": [ASK], "chosen": [SAY], "rejected": [NO]},
        {"chosen": [ASK, SAY], "rejected": [ASK, NO]},
        {"prompt": "Why?", "chosen": [ASK, SAY], "rejected": [ASK, NO]},
    ],
)
def test_preference_pairs_of_trl_are_read(row):
    record = from_row({**row, "score": 2})
    assert record.messages == TURNS
    assert record.fields == {"chosen": "Because.", "rejected": "No.", "score": 2}


def test_pairs_of_llama_factory_and_of_a_system_message_are_read():
    said = {key: {"from": "gpt", "value": key} for key in ("chosen", "rejected")}
    row = {"conversations": [{"from": "human", "value": "Why?"}], "system": "Be brief.", **said}
    record = from_row(row)
    assert [(one.role, one.content) for one in record.messages] == [
        ("system", "Be brief."),
        ("user", "Why?"),
        ("assistant", "chosen"),
    ]
    assert record.fields == {"chosen": "chosen", "rejected": "rejected"}


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Why?", "chosen": "Because.", "rejected": "No."},
        {"chosen": [ASK, SAY], "rejected": [{**ASK, "content": "How?"}, NO]},
        {"prompt": [ASK], "chosen": [ASK], "rejected": [NO]},
        {"prompt": [ASK], "chosen": [SAY], "rejected": []},
    ],
)
def test_pairs_without_one_common_prompt_are_refused(row):
    with pytest.raises(DataError):
        from_row(row)


def test_an_odd_number_of_a_turn_in_a_strangers_record_is_no_fault():
    extras = {"9" * 5000: {"weight": 0}, "\N{SUPERSCRIPT TWO}": {"weight": 0}, "1": {"weight": 0}}
    assert Record(TURNS, {EXTRAS_FIELD: extras}).turns_without_loss == {1}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "response": "Because."},
        {"prompt": [ASK], "completion": [SAY]},
        {"question": "Why?", "answer": "Because."},
        {"instruction": "Why?", "output": "Because."},
        {"messages": [ASK, SAY]},
        {"conversations": [ASK, SAY]},
    ],
)
def test_a_system_column_beside_a_conversation_is_its_system_message(row):
    record = from_row({**row, "system": "Be brief."})
    assert record.messages == (Message("system", "Be brief."), *TURNS)
    assert record.fields == {}
    assert from_row({**row, "system": ""}).messages == TURNS
    with pytest.raises(DataError, match="system is a list"):
        from_row({**row, "system": ["Be brief."]})


def test_the_history_beside_a_prompt_comes_before_it():
    row = {"prompt": "Why?", "response": "Because.", "history": [["Hi", "Hello"]], "system": "s"}
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert [message.role for message in from_row(row).messages] == roles
    with pytest.raises(DataError, match="history is text"):
        from_row({**row, "history": "Hi"})


HELD = "\n\nHuman: Hi\n\nand hello\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": f"{HELD} Because.", "rejected": f"{HELD} No."},
        {"chosen": f"{HELD} Because.".strip(), "rejected": f"{HELD} No.".strip()},
        {"prompt": HELD, "chosen": " Because.", "rejected": " No."},
        {"prompt": HELD, "chosen": f"{HELD} Because.", "rejected": f"{HELD} No."},
        {"prompt": HELD, "completion": " Because."},
    ],
)
def test_a_transcript_of_human_and_assistant_is_read_as_turns(row):
    record = from_row(row)
    before = (Message("user", "Hi\n\nand hello"), Message("assistant", "Hello."))
    assert record.messages == (*before, *TURNS)
    pair = {"chosen": "Because.", "rejected": "No."}
    assert record.fields == (pair if "chosen" in row else {})


@pytest.mark.parametrize(
    "text", ["Human: Why?", "As a\n\nHuman: x\n\nAssistant: y", "\n\nAssistant: y", "Why?"]
)
def test_a_text_that_is_no_transcript_stays_a_question(text):
    record = from_row({"prompt": text, "completion": "Because."})
    assert [message.content for message in record.messages] == [text, "Because."]


def test_transcripts_of_two_questions_are_refused():
    row = {"chosen": f"{HELD} Because.", "rejected": "\n\nHuman: How?\n\nAssistant: No."}
    with pytest.raises(DataError, match="differ before their last turn"):
        from_row(row)


@pytest.mark.parametrize(
    "prompt", [HELD, HELD.strip(), HELD.removesuffix("\n\nAssistant:"), "Hi\n\nand hello"]
)
def test_a_prompt_that_the_transcripts_repeat_is_within_them(prompt):
    pair = {"chosen": f"{HELD} Because.", "rejected": f"{HELD} No."}
    contents = [message.content for message in from_row({"prompt": prompt, **pair}).messages]
    assert contents == ["Hi\n\nand hello", "Hello.", "Why?", "Because."]


def test_turns_may_follow_a_transcript():
    before = ["Hi\n\nand hello", "Hello.", "Why?", "Because."]
    row = {"prompt": HELD, "completion": [SAY]}
    assert [message.content for message in from_row(row).messages] == before
    row = {"prompt": HELD, "chosen": [SAY], "rejected": NO}
    assert [message.content for message in from_row(row).messages] == before


TALK = "Human: Hi\n\nAssistant: Hello."


@pytest.mark.parametrize("end", ["\n\nSay who speaks.", "\n\nHuman: Say who speaks."])
def test_a_question_about_a_transcript_stays_one_text(end):
    for row in (
        {"prompt": TALK + end, "completion": "Two."},
        {"prompt": TALK + end, "chosen": "Two.", "rejected": "One."},
    ):
        assert from_row(row).messages == (Message("user", TALK + end), Message("assistant", "Two."))


def test_an_answer_that_is_a_transcript_stays_one_text():
    start, pair = {"prompt": "Write a talk."}, {"chosen": TALK, "rejected": f"{TALK} No."}
    turns = (Message("user", "Write a talk."), Message("assistant", TALK))
    assert from_row({**start, "completion": TALK}).messages == turns
    for row in (start | pair, {"instruction": "Write a talk.", **pair}):
        assert from_row(row).messages == turns
        assert from_row(row).fields == pair


@pytest.mark.parametrize("instruction", [None, "", "Why?", "Rate the answers."])
def test_an_instruction_beside_whole_conversations_is_a_field(instruction):
    pair = {"chosen": [ASK, SAY], "rejected": [ASK, NO]}
    record = from_row({"instruction": instruction, **pair})
    assert record.messages == TURNS
    assert record.fields["instruction"] == instruction


def test_what_stands_before_a_pair_is_read_once():
    pair = {"chosen": [ASK, SAY], "rejected": [ASK, NO]}
    system = {"role": "system", "content": "s"}
    assert from_row({"prompt": [system, ASK], **pair}).messages == (Message("system", "s"), *TURNS)
    assert from_row({"prompt": " Why?\n", **pair}).messages == TURNS
    for other in ([ASK, {**SAY, "content": "Who knows?"}], [ASK, SAY, {**ASK, "content": "And?"}]):
        with pytest.raises(DataError, match="messages differs"):
            from_row({"messages": other, **pair})
    with pytest.raises(DataError, match="prompt differs"):
        from_row({"prompt": "How?", **pair})


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_pair_of_conversations_beside_the_messages_is_a_pair(key):
    pair = {"chosen": [ASK, SAY], "rejected": [ASK, NO]}
    record = from_row({"prompt": "Why?", key: [ASK, SAY], **pair, "score": 2})
    assert record.messages == TURNS
    assert record.fields == {"chosen": "Because.", "rejected": "No.", "score": 2}
    assert from_row({key: [ASK], "chosen": SAY, "rejected": NO}).messages == TURNS
    with pytest.raises(DataError, match="prompt differs"):
        from_row({"prompt": "How?", key: [{**ASK, "content": "Who?"}], **pair})


def test_pairs_of_alpaca_take_instruction_input_history_and_system():
    start = {"system": "s", "history": [["Hi", "Hello"]], "instruction": "Why?", "input": "This."}
    record = from_row({**start, "chosen": "Because.", "rejected": "No."})
    assert [message.content for message in record.messages] == [
        "s",
        "Hi",
        "Hello",
        "Why?\n\nThis.",
        "Because.",
    ]
    assert record.fields == {"chosen": "Because.", "rejected": "No."}


def test_a_pair_without_a_prompt_says_which_name_it_needs():
    with pytest.raises(DataError) as caught:
        from_row({"question": "Why?", "chosen": "Because.", "rejected": "No."})
    assert "--rename KEY=prompt" in caught.value.problems[0].next
