"""Records as a dataset: every shape loads as its readers expect, and nothing vanishes unsaid."""

import errno
import json
from typing import get_args

import pytest
from click.testing import CliRunner
from pyarrow import parquet
from ruamel.yaml import YAML

from stillroom.checkpoints.card import compose_card
from stillroom.cli import stillroom
from stillroom.errors import DataError, ResourceError
from stillroom.jobs import Job, files
from stillroom.jobs.files import draft_folder
from stillroom.provenance import (
    Parent,
    digest_file,
    find_output,
    read_artifact,
    render_tree,
    verify_artifact,
    walk_lineage,
)
from stillroom.records import (
    Link,
    Message,
    Origin,
    Record,
    from_row,
    read_records,
    write_records,
)
from stillroom.synth.output.dataset import export_records, name_size
from stillroom.synth.output.formats import ExportFormat, list_lost_fields

LINK = Link("synth.generators.grounded_qa", "model-1", ("doc-1",), "f" * 64)
MADE = Origin("synthetic", (LINK,), "CC-BY-4.0")


def pair(asked, said, origin=MADE, **fields):
    return Record((Message("user", asked), Message("assistant", said)), fields, origin)


@pytest.fixture
def records(tmp_path):
    rows = [
        pair("Why?", "Because.", split="train", rejected="No."),
        pair("Who?", "Nobody.", Origin("human", (), "CC-BY-4.0"), split="held_out"),
        Record((Message("assistant", "Plain text.\u2028Two lines."),), {"split": "train"}, MADE),
    ]
    write_records(tmp_path / "r.jsonl", rows)
    return tmp_path / "r.jsonl"


def rows_of(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


@pytest.mark.parametrize(
    ("shape", "keys", "count"),
    [
        ("messages", {"messages"}, 3),
        ("sharegpt", {"conversations"}, 3),
        ("alpaca", {"instruction", "input", "output"}, 2),
        ("prompt_completion", {"prompt", "completion"}, 3),
        ("text", {"text"}, 1),
        ("preference", {"prompt", "chosen", "rejected"}, 1),
    ],
)
def test_every_shape_has_its_keys_and_what_does_not_fit_is_counted(
    records, tmp_path, shape, keys, count
):
    told = export_records([records], tmp_path / "out", format=shape)
    found = [row for path in (tmp_path / "out").glob("*.jsonl") for row in rows_of(path)]
    assert told.rows.total() == len(found) == count
    assert told.left_out.total() == 3 - count
    assert all(set(row) == keys | {"id", "origin"} for row in found)


def test_nothing_is_lost_where_fields_are_kept(records, tmp_path):
    export_records([records], tmp_path / "out", with_fields=True)
    (row,) = rows_of(tmp_path / "out/test.jsonl")
    again = from_row({key: value for key, value in row.items() if key != "id"})
    assert (again.messages[0].content, again.origin.license) == ("Who?", "CC-BY-4.0")


def test_the_heading_of_a_card_is_one_line_without_html(records, tmp_path):
    export_records([records], tmp_path / "out", name="<b>Bees\n\n# of")
    assert "\n# &lt;b&gt;Bees # of\n" in (tmp_path / "out/README.md").read_text()


def test_the_card_says_splits_origin_and_license(records, tmp_path):
    words = ["synth", "export", records, "--out", tmp_path / "out", "--name", "Bees: a set"]
    done = CliRunner().invoke(stillroom, list(map(str, words)), catch_exceptions=False)
    assert "1 test, 2 train" in done.output
    card = (tmp_path / "out/README.md").read_text()
    front = YAML(typ="safe").load(card.split("---")[1])
    assert front["pretty_name"] == "Bees: a set"
    assert front["license"] == "cc-by-4.0"
    assert "synthetic" in front["tags"]
    assert {one["split"] for one in front["configs"][0]["data_files"]} == {"train", "test"}
    assert "synthetic: 2 rows (67%)" in card
    assert "`model-1`: 2 rows" in card


def test_no_split_is_written_into_another(tmp_path):
    names = ["train", "test-clean", "held-out", "2024", "train-", "_a", 0]
    rows = [pair(f"Why {n}?", "So.", split=n) for n in names]
    write_records(tmp_path / "r.jsonl", rows)
    done = export_records([tmp_path / "r.jsonl"], tmp_path / "out", name="Splits")
    kept = {"train", "test_clean", "test", "_2024", "train_", "_a", "_0"}
    assert done.rows == dict.fromkeys(kept, 1)


def test_no_name_breaks_a_card(tmp_path):
    link = Link("synth.generators.grounded_qa", "model\n# 1", ("doc",), "f" * 64)
    said = pair("Why?", "So.", Origin("synthetic", (link,), "Mine: see\nLICENSE #2"))
    write_records(tmp_path / "r.jsonl", [said])
    title = 'The "bees" | <b>\U0001f41d\n# and more'
    export_records([tmp_path / "r.jsonl"], tmp_path / "out", name=title)
    card = (tmp_path / "out/README.md").read_text()
    front = YAML(typ="safe").load(card.split("---")[1])
    assert front["pretty_name"] == title
    assert front["license"] == "mine: see\nlicense #2"
    assert card.count("\n# ") == 1
    assert "- `model # 1`: 1 rows" in card
    body = compose_card(title, "Text.").partition("# ")[2]
    assert body.startswith('The "bees" | <b>\U0001f41d # and more\n\n')


def test_parquet_holds_the_same_rows(records, tmp_path):
    export_records([records], tmp_path / "lines")
    export_records([records], tmp_path / "table", kind="parquet")
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == [
        "README.md",
        "artifact.json",
        "croissant.json",
        "test.parquet",
        "train.parquet",
    ]
    found = parquet.read_table(tmp_path / "table/train.parquet").to_pylist()
    assert found == rows_of(tmp_path / "lines/train.jsonl")


def test_croissant_names_every_file_with_its_digest(records, tmp_path):
    export_records([records], tmp_path / "out")
    about = json.loads((tmp_path / "out/croissant.json").read_text())
    for one in about["distribution"]:
        assert one["sha256"] == digest_file(tmp_path / "out" / one["contentUrl"])
    assert {one["@id"] for one in about["recordSet"]} == {"train", "test"}


def test_differing_licenses_are_other_and_said(records, tmp_path):
    write_records(tmp_path / "more.jsonl", [pair("What?", "That.", Origin("human", (), "MIT"))])
    export_records([records, tmp_path / "more.jsonl"], tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert 'license: "other"' in card
    assert "different licenses (CC-BY-4.0, MIT)" in card
    write_records(tmp_path / "more.jsonl", [pair("What?", "That.", Origin("human"))])
    export_records([records, tmp_path / "more.jsonl"], tmp_path / "unsaid")
    assert "nobody says the license of 1 row\n" in (tmp_path / "unsaid/README.md").read_text()


def test_an_old_folder_stays_where_nothing_fits(records, tmp_path):
    export_records([records], tmp_path / "out")
    before = (tmp_path / "out/README.md").read_text()
    with pytest.raises(DataError) as caught:
        export_records([records], tmp_path / "out")
    assert caught.value.problems[0].code == "data.exists"
    write_records(tmp_path / "none.jsonl", [Record((Message("assistant", "Alone."),))])
    with pytest.raises(DataError) as caught:
        export_records([tmp_path / "none.jsonl"], tmp_path / "out", format="alpaca", overwrite=True)
    assert caught.value.problems[0].code == "synth.no-records"
    assert (tmp_path / "out/README.md").read_text() == before


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def traced(tmp_path):
    turns = (("user", "Add 2."), ("assistant", CALL), ("tool", "4"), ("assistant", "It is four."))
    record = Record(tuple(Message(*turn) for turn in turns), {"tools": [TOOL]}, MADE)
    write_records(tmp_path / "calls.jsonl", [record, pair("Why?", "Because.")])
    return tmp_path / "calls.jsonl"


def test_calls_of_tools_are_as_the_shape_has_them(tmp_path):
    export_records([traced(tmp_path)], tmp_path / "openai")
    row, plain = rows_of(tmp_path / "openai/train.jsonl")
    assert row["tools"] == [TOOL]
    asked, call, result, said = row["messages"]
    assert call["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 2}'}
    assert result == {
        "role": "tool",
        "tool_call_id": call["tool_calls"][0]["id"],
        "content": "4",
    }
    assert (asked["content"], call["content"], said["content"]) == ("Add 2.", "", "It is four.")
    assert "tools" not in plain
    export_records([traced(tmp_path)], tmp_path / "sharegpt", format="sharegpt")
    row = rows_of(tmp_path / "sharegpt/train.jsonl")[0]
    names = [turn["from"] for turn in row["conversations"]]
    assert names == ["human", "function_call", "observation", "gpt"]
    assert json.loads(row["tools"]) == [TOOL]
    export_records([traced(tmp_path)], tmp_path / "table", kind="parquet")
    found = parquet.read_table(tmp_path / "table/train.parquet").to_pylist()
    assert found[0]["messages"][1]["tool_calls"] == call["tool_calls"]
    assert json.loads(found[0]["tools"]) == [TOOL]


def without_tools(tmp_path, **fields):
    """Return a file with a record of two calls at once and their results, and a pair of calls."""
    calls = CALL + "\n" + CALL.replace("2", "3")
    turns = (("user", "Add."), ("assistant", f"I look.\n{calls}"), ("tool", "4"), ("tool", "5"))
    said = Record(tuple(Message(*turn) for turn in (*turns, ("assistant", "Nine."))), fields)
    rejected = pair("Add 2.", CALL, rejected=CALL.replace("add", "sub"), **fields)
    write_records(tmp_path / "calls.jsonl", [said, rejected])
    return tmp_path / "calls.jsonl"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_calls_are_written_as_calls_without_definitions_of_tools(tmp_path, kind):
    path = without_tools(tmp_path)
    export_records([path], tmp_path / "out", kind=kind)
    if kind == "jsonl":
        row = rows_of(tmp_path / "out/train.jsonl")[0]
    else:
        row = parquet.read_table(tmp_path / "out/train.parquet").to_pylist()[0]
    _, called, *results, _ = row["messages"]
    assert called["content"] == "I look."
    names = [call["id"] for call in called["tool_calls"]]
    assert [one["tool_call_id"] for one in results] == names
    assert "tools" not in row
    again = read_records(tmp_path / f"out/train.{kind}")
    assert [one.messages for one in again] == [one.messages for one in read_records(path)]


@pytest.mark.parametrize("tools", [[], [TOOL]])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_rejected_call_is_a_call(tmp_path, tools, kind):
    path = without_tools(tmp_path, tools=tools)
    export_records([path], tmp_path / "out", format="preference", kind=kind)
    if kind == "jsonl":
        (row,) = rows_of(tmp_path / "out/train.jsonl")
    else:
        (row,) = parquet.read_table(tmp_path / "out/train.parquet").to_pylist()
    for key, name in (("chosen", "add"), ("rejected", "sub")):
        (turn,) = row[key]
        assert (turn["content"], turn["tool_calls"][0]["function"]["name"]) == ("", name)
    (again,) = read_records(tmp_path / f"out/train.{kind}")
    assert again.fields["rejected"] == CALL.replace("add", "sub")


def test_a_text_about_calls_without_definitions_of_tools_stays(tmp_path):
    told = f"Write it so:\n{CALL}\nThen wait for the result."
    write_records(tmp_path / "r.jsonl", [pair("How do I call a tool?", told)])
    export_records([tmp_path / "r.jsonl"], tmp_path / "out")
    (row,) = rows_of(tmp_path / "out/train.jsonl")
    assert row["messages"][1] == {"role": "assistant", "content": told}


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        ("messages", "jsonl"),
        ("messages", "parquet"),
        ("sharegpt", "jsonl"),
        ("sharegpt", "parquet"),
        ("prompt_completion", "jsonl"),
    ],
)
def test_an_exported_dataset_is_read_back(tmp_path, format, kind):
    path = traced(tmp_path)
    export_records([path], tmp_path / "set", format=format, kind=kind)
    first, second = list(read_records(path))
    again = list(read_records(tmp_path / f"set/train.{kind}"))
    assert [record.messages for record in again] == [first.messages, second.messages]
    assert again[0].tools == [TOOL]


def test_calls_at_once_are_one_turn_of_sharegpt_and_so_are_their_results(tmp_path):
    path = without_tools(tmp_path, tools=[TOOL["function"]])
    export_records([path], tmp_path / "out", format="sharegpt")
    row = rows_of(tmp_path / "out/train.jsonl")[0]
    assert json.loads(row["tools"]) == [TOOL]
    asked, said, calls, results, last = row["conversations"]
    assert (calls["from"], results["from"]) == ("function_call", "observation")
    assert json.loads(calls["value"]) == [
        {"name": "add", "arguments": {"a": number}} for number in (2, 3)
    ]
    assert results["value"] == "4\n</tool_response>\n<tool_response>\n5"
    assert (asked["from"], said["value"], last["from"]) == ("human", "I look.", "gpt")
    again = read_records(tmp_path / "out/train.jsonl")
    assert [one.messages for one in again] == [one.messages for one in read_records(path)]


def test_tools_without_a_type_are_exported_with_it(tmp_path):
    typed = {"type": "function", **TOOL["function"]}
    tools = [TOOL["function"], TOOL, typed, {"type": "web_search"}]
    write_records(tmp_path / "r.jsonl", [pair("Add 2.", CALL, tools=tools)])
    export_records([tmp_path / "r.jsonl"], tmp_path / "out")
    (row,) = rows_of(tmp_path / "out/train.jsonl")
    assert row["tools"] == [TOOL, TOOL, TOOL, {"type": "web_search"}]


@pytest.mark.parametrize(
    ("kind", "with_fields"), [("jsonl", False), ("jsonl", True), ("parquet", False)]
)
@pytest.mark.parametrize("format", ["messages", "sharegpt", "prompt_completion", "preference"])
def test_thoughts_stay_with_their_turns(tmp_path, format, kind, with_fields):
    extras = {"1": {"reasoning_content": "Two and two.", "name": "Ada"}}
    call = Record(
        (Message("user", "Add 2."), Message("assistant", f"So.\n{CALL}")),
        {"message_extras": extras, "rejected": "Five."},
    )
    write_records(tmp_path / "r.jsonl", [call, pair("Why?", "So.", rejected="No.")])
    export_records(
        [tmp_path / "r.jsonl"], tmp_path / "out", format=format, kind=kind, with_fields=with_fields
    )
    again, plain = read_records(tmp_path / f"out/train.{kind}")
    assert again.messages == call.messages
    if format != "preference":
        kept = again.fields["message_extras"]["1"]
        assert kept["reasoning_content"] == "Two and two."
        assert ("name" in kept) == with_fields
    elif kind == "jsonl":
        (row, _) = rows_of(tmp_path / "out/train.jsonl")
        assert row["chosen"][0]["reasoning_content"] == "Two and two."
        assert "reasoning_content" not in row["rejected"][0]
    assert not plain.fields.get("message_extras")


def test_texts_before_calls_are_warned_of_where_trainers_pass_over_them(tmp_path):
    rows = [
        Record((Message("user", f"Add {text}."), Message("assistant", f"{text}{CALL}")), {})
        for text in ("", "So.\n", "Then.\n")
    ]
    write_records(tmp_path / "r.jsonl", rows)
    for format, count in (("sharegpt", 2), ("messages", 0)):
        words = ["synth", "export", str(tmp_path / "r.jsonl"), "--format", format]
        found = CliRunner().invoke(stillroom, [*words, "--out", str(tmp_path / format)])
        assert ("2 rows with a text before a call" in found.output) == bool(count)


def test_fields_of_our_generators_are_bookkeeping_in_their_records_alone(tmp_path):
    made = Origin("synthetic", (Link("synth.generators.rewrite"), Link("synth.filters.judge")))
    for origin, lost in ((made, ["rejected"]), (Origin("human"), ["style", "way", "rejected"])):
        fields = {"style": "wiki", "way": "deep", "rejected": "No."}
        one = Record((Message("user", "q"), Message("assistant", "a")), fields, origin)
        assert list_lost_fields(one, "messages") == lost


def test_fields_that_rows_lack_are_counted_in_one_warning(tmp_path):
    extras = {"1": {"reasoning_content": "Hm.", "name": "Ada"}}
    usual = {"question": "Why?", "answer": "So.", "document_id": "d", "evidence": {"quote": "So."}}
    rows = [
        pair("Why?", "So.", **usual, split="train", seed={}, passage_id="p", note=""),
        pair("Why?", "So.", **usual, margin=0.5, rejected="No.", chosen="So."),
        pair("Why?", "So.", margin=0, label=True, tools=[TOOL], message_extras=extras),
    ]
    write_records(tmp_path / "r.jsonl", rows)
    words = ["synth", "export", str(tmp_path / "r.jsonl"), "--out"]
    found = CliRunner().invoke(stillroom, [*words, str(tmp_path / "one")])
    (line,) = [line for line in found.output.splitlines() if "left out" in line]
    assert "margin (2 rows), rejected (1 row), label (1 row), message_extras.name (1 row);" in line
    alpaca = export_records([tmp_path / "r.jsonl"], tmp_path / "two", format="alpaca")
    assert alpaca.to_json()["lost_fields"]["tools"] == 1
    assert alpaca.lost_fields["message_extras.reasoning_content"] == 1
    for more in (["--with-fields"], ["--format", "stillroom"]):
        whole = CliRunner().invoke(stillroom, [*words, str(tmp_path / more[-1]), *more])
        assert whole.exit_code == 0
        assert "left out" not in whole.output


def test_exported_pairs_are_read_back(tmp_path):
    write_records(tmp_path / "p.jsonl", [pair("Why?", "Because.", rejected="No.")])
    export_records([tmp_path / "p.jsonl"], tmp_path / "set", format="preference")
    (again,) = read_records(tmp_path / "set/train.jsonl")
    assert (again.fields["chosen"], again.fields["rejected"]) == ("Because.", "No.")
    assert [message.content for message in again.messages] == ["Why?", "Because."]


def test_what_is_no_call_stays_text():
    from stillroom.synth.output.formats import to_openai_messages

    for text in ("<tool_call>{broken}</tool_call>", "<tool_call>[1]</tool_call>", "None."):
        assert to_openai_messages([Message("assistant", text)]) == [
            {"role": "assistant", "content": text}
        ]


def test_a_schema_of_parquet_is_never_guessed_from_the_first_rows(tmp_path):
    rows = [pair("When?", f"2024-01-{day:02d} 10:00:00", note=None) for day in range(1, 20)]
    rows += [pair("When?", "Never.", note={"a": 1}), pair("Why?", "x" * 3_000_000, note="text")]
    write_records(tmp_path / "r.jsonl", rows)
    for shape in ("alpaca", "messages", "stillroom"):
        for with_fields in (False, True):
            out = tmp_path / f"{shape}-{with_fields}"
            export_records(
                [tmp_path / "r.jsonl"], out, format=shape, kind="parquet", with_fields=with_fields
            )
            found = parquet.read_table(out / "train.parquet").to_pylist()
            assert len(found) == 21
    told = parquet.read_table(tmp_path / "alpaca-True/train.parquet").to_pylist()
    assert told[0]["output"] == "2024-01-01 10:00:00"
    assert json.loads(told[19]["fields"])["note"] == {"a": 1}
    again = list(read_records(tmp_path / "stillroom-False/train.parquet"))
    assert again == rows


def test_a_field_of_a_columns_name_does_not_take_its_place(tmp_path):
    row = pair("Why?", "Because.", chosen="Because.", rejected="No.", messages="mine")
    write_records(tmp_path / "r.jsonl", [row])
    for shape, key in (("preference", "chosen"), ("messages", "messages")):
        export_records([tmp_path / "r.jsonl"], tmp_path / shape, format=shape, with_fields=True)
        (told,) = rows_of(tmp_path / shape / "train.jsonl")
        assert told[key][-1] == {"role": "assistant", "content": "Because."}
        assert told["origin"]["kind"] == "synthetic"


def test_half_a_character_is_left_out_and_counted(tmp_path):
    write_records(tmp_path / "r.jsonl", [pair("Why?", "It is \ud800."), pair("Who?", "Nobody.")])
    for kind in ("jsonl", "parquet"):
        told = export_records([tmp_path / "r.jsonl"], tmp_path / kind, kind=kind)
        assert (told.rows.total(), told.left_out.total()) == (1, 1)


def test_the_card_tells_the_terms_of_the_teachers_that_an_artifact_names(records, tmp_path):
    export_records([records], tmp_path / "out")
    assert "no model is on record" in (tmp_path / "out/README.md").read_text()
    run = tmp_path / "run"
    job = Job.start(run, "# a run\n")
    write_records(job.output / "records.jsonl", [pair("Why?", "Because.")])
    parents = [
        Parent("teacher", "/data/mine/gemma-3-4b.gguf", "0" * 64),
        Parent("teacher", "https://api.openai.com/v1#gpt-5", "endpoint:x"),
    ]
    job.finish("records", parents=parents, origin=MADE.to_json())
    job.close()
    told = export_records([run], tmp_path / "told")
    card = (tmp_path / "told/README.md").read_text()
    assert "- `gemma-3-4b.gguf`: Gemma terms of use; restricted:" in card
    assert "may not train models that compete" in card
    assert "/data/mine" not in card
    assert set(told.to_json()["teachers"].values()) == {"restricted"}


def test_no_folder_but_a_dataset_is_replaced(records, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(DataError) as caught:
        export_records([records], tmp_path / "mine", overwrite=True)
    assert caught.value.problems[0].code == "data.exists"
    assert (tmp_path / "mine/thesis.txt").exists()
    for _ in range(2):
        export_records([records], tmp_path / "out", overwrite=True)
    assert not list(tmp_path.glob(".*draft"))
    for name in ("notes.txt", "mine.jsonl"):
        (tmp_path / "out" / name).write_text("mine")
        with pytest.raises(DataError, match=name):
            export_records([records], tmp_path / "out", overwrite=True)
        (tmp_path / "out" / name).unlink()
    export_records([records], tmp_path / "out", kind="parquet", overwrite=True)


def test_a_file_of_a_dataset_is_walked_to_what_the_dataset_was_made_from(records, tmp_path):
    export_records([records], tmp_path / "first")
    export_records([tmp_path / "first/train.jsonl"], tmp_path / "second")
    tree = render_tree(walk_lineage(tmp_path / "second"))
    assert "r.jsonl" in tree
    assert "r.jsonl" in render_tree(walk_lineage(tmp_path / "first/train.jsonl"))
    assert "changed since first was written" not in tree
    (tmp_path / "first/train.jsonl").write_text("{}")
    assert "changed since first was written" in render_tree(walk_lineage(tmp_path / "second"))


@pytest.mark.parametrize("shape", ["messages", "sharegpt", "prompt_completion"])
@pytest.mark.parametrize("name", ["kto.jsonl", "kto.csv"])
def test_a_bad_answer_is_not_exported_as_a_good_one(tmp_path, shape, name):
    if name == "kto.csv":
        lines = ["prompt,completion,label", "Why?,Because.,True", "Why?,Green.,False"]
        (tmp_path / name).write_text("\n".join(lines))
    else:
        rows = [pair("Why?", "Because."), pair("Why?", "Green.", label=False)]
        write_records(tmp_path / name, rows)
    told = export_records([tmp_path / name], tmp_path / "out", format=shape)
    assert "Green." not in (tmp_path / "out/train.jsonl").read_text()
    assert told.left_out.total() == 1
    export_records([tmp_path / name], tmp_path / "all", format=shape, with_fields=True)
    assert rows_of(tmp_path / "all/train.jsonl")[1]["label"] is False


def test_a_class_named_false_is_exported(tmp_path):
    rows = [pair("It rains.", label, label=label) for label in ("True", "False")]
    write_records(tmp_path / "classes.jsonl", rows)
    export_records([tmp_path / "classes.jsonl"], tmp_path / "out")
    assert len(rows_of(tmp_path / "out/train.jsonl")) == 2


def test_a_turn_of_weight_0_keeps_its_weight(tmp_path):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bad", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "good"},
    ]
    write_records(tmp_path / "w.jsonl", [from_row({"messages": turns})])
    export_records([tmp_path / "w.jsonl"], tmp_path / "out")
    (row,) = rows_of(tmp_path / "out/train.jsonl")
    assert row["messages"] == turns
    assert from_row(row).turns_without_loss == {1}
    with pytest.raises(DataError, match="weight 0"):
        export_records([tmp_path / "w.jsonl"], tmp_path / "other", format="sharegpt")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dataset_proves_what_it_was_exported_from(records, tmp_path, kind):
    job = Job.start(tmp_path / "job", "kind: synth\n")
    write_records(job.output / "records.jsonl", read_records(records))
    job.finish("records", origin=MADE.to_json())
    out = tmp_path / "out"
    export_records([tmp_path / "job"], out, kind=kind)
    made = read_artifact(out)
    assert (made.origin["kind"], made.origin["license"]) == ("synthetic", "CC-BY-4.0")
    assert "synth.generators.grounded_qa" in render_tree(walk_lineage(out))
    assert not verify_artifact(out)
    assert find_output(out, "records") == out  # as data of another program
    with (out / f"test.{kind}").open("ab") as file:
        file.write(b" ")
    assert [found.path for found in verify_artifact(out)] == [f"test.{kind}"]
    export_records([tmp_path / "job"], out, kind=kind, overwrite=True)
    assert not verify_artifact(out)


def test_a_dataset_of_people_alone_is_human(tmp_path):
    write_records(tmp_path / "r.jsonl", [pair("Who?", "Ann.", Origin("human", (), "CC0-1.0"))])
    export_records([tmp_path / "r.jsonl"], tmp_path / "out")
    assert read_artifact(tmp_path / "out").origin["kind"] == "human"


def test_an_export_that_fails_leaves_the_last_one(records, tmp_path):
    export_records([records], tmp_path / "out")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError):
        export_records([tmp_path / "empty.jsonl"], tmp_path / "out", overwrite=True)
    assert not verify_artifact(tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_a_full_disk_is_named_and_leaves_the_last_one(records, tmp_path, monkeypatch):
    export_records([records], tmp_path / "out")

    def fail(*words, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stillroom.synth.output.dataset.make_croissant", fail)
    with pytest.raises(ResourceError, match="the disk is full"):
        export_records([records], tmp_path / "out", overwrite=True)
    assert not verify_artifact(tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_two_exports_at_once_do_not_mix(records, tmp_path):
    out = tmp_path / "out"
    with draft_folder(out) as draft:
        (draft / "first").touch()
        with pytest.raises(ResourceError, match="another process is writing"):
            export_records([records], out)
        assert (draft / "first").exists()
    (tmp_path / ".next.draft" / "sub").mkdir(parents=True)  # of a writer that was killed
    (tmp_path / ".next.draft" / "output").touch()  # of an earlier version, which wrote there
    (tmp_path / ".next.draft" / "link").symlink_to(out)
    export_records([records], tmp_path / "next")
    assert not (tmp_path / "next/sub").exists()
    assert not list(tmp_path.glob(".*draft"))


def test_a_writer_excludes_others_until_it_has_cleaned_up(tmp_path, monkeypatch):
    real, out = files.replace_folder, tmp_path / "out"

    def try_another(*folders):
        real(*folders)
        with pytest.raises(ResourceError, match="another process is writing"), draft_folder(out):
            pass

    monkeypatch.setattr(files, "replace_folder", try_another)
    with draft_folder(out) as draft:
        (draft / "first").touch()
    assert [path.name for path in out.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_writer_that_ends_while_another_begins_is_named(tmp_path, monkeypatch):
    real = files.lock_folder

    def lock_late(folder, busy):
        folder.rmdir()  # the other has just finished
        return real(folder, busy)

    monkeypatch.setattr(files, "lock_folder", lock_late)
    with pytest.raises(ResourceError, match="another process"), draft_folder(tmp_path / "out"):
        pass


@pytest.mark.parametrize("name", ["faq.csv", "faq.jsonl"])
def test_columns_of_other_names_are_renamed_and_walked_to_the_file(tmp_path, name):
    row = {"frage": "Wer?", "antwort": "Ann."}
    lines = ["frage;antwort", "Wer?;Ann."] if name.endswith("csv") else [json.dumps(row)]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    words = ["synth", "export", str(tmp_path / name), "--format", "stillroom"]
    words += ["--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(stillroom, words)
    assert "--rename KEY=text" in refused.exception.problems[0].next
    words += ["--rename", "frage=question", "--rename", "antwort=answer"]
    done = CliRunner().invoke(stillroom, words)
    assert done.exit_code == 0, done.output
    (record,) = read_records(tmp_path / "out" / "train.jsonl")
    assert [message.content for message in record.messages] == ["Wer?", "Ann."]
    assert str(tmp_path / name) in render_tree(walk_lineage(tmp_path / "out"))


def test_a_column_with_an_equals_sign_in_its_name_is_renamed(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"a=b": "So."}\n')
    words = ["synth", "export", str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(stillroom, [*words, "--format", "text", "--rename", "a=b=text"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("rename", "expected"),
    [
        (["frage=text"], "the row's keys (q, answer) cannot be renamed"),
        (["q=answer"], "the row's keys (q, answer) cannot be renamed"),
        (["q"], "give each as OLD=NEW"),
        (["q=question", "q=text"], "give each as OLD=NEW"),
    ],
)
def test_a_renaming_that_would_lose_something_is_refused(tmp_path, rename, expected):
    (tmp_path / "r.jsonl").write_text('{"q": "Why?", "answer": "So."}\n')
    words = ["synth", "export", str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(stillroom, [*words, *(f"--rename={one}" for one in rename)])
    assert expected in f"{done.output}{done.exception}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (2_000_000, "1M<n<10M"),
        (3 * 10**9, "1B<n<10B"),
        (10**12, "n>1T"),
    ],
)
def test_sizes_are_named_as_on_the_hub(rows, size):
    assert name_size(rows) == size


@pytest.mark.parametrize("shape", [*get_args(ExportFormat)])
def test_an_export_in_parquet_with_fields_is_read_back(tmp_path, shape):
    answers = [f"Wax number {n} is soft." for n in range(3)]
    turns = [[Message("user", f"What is wax {n}?")] for n in range(3)]
    pair = {"rejected": "No.", "chosen": "Yes."} if shape == "preference" else {}
    origin = Origin("synthetic", (Link("synth.generators.rewrite", "m", ("p",), "d"),), "MIT")
    fields = {"split": "train", "question": "q", "answer": "a", "score": 0.5, "list": [1, {"a": 2}]}
    records = [
        Record(((*turn, Message("assistant", text))), {**fields, **pair}, origin)
        for turn, text in zip(turns if shape != "text" else [[]] * 3, answers, strict=True)
    ]
    write_records(tmp_path / "records.jsonl", records)
    for kind in ("jsonl", "parquet"):
        out = tmp_path / kind
        paths = (tmp_path / "records.jsonl",)
        export_records(paths, out, format=shape, kind=kind, name="", with_fields=True)
        if (shape, kind) == ("text", "jsonl"):  # its fields are beside it
            continue
        for record, back in zip(records, read_records(out / f"train.{kind}"), strict=True):
            assert back.origin == origin
            assert back.messages == record.messages
            known = {key: value for key, value in back.fields.items() if key != "id"}
            assert {**fields, **known} == known


def test_columns_of_text_that_are_no_export_stay_as_they_are():
    row = {"messages": [{"role": "user", "content": "q"}], "fields": "{x", "origin": "human"}
    with pytest.raises(DataError):
        from_row(row)
    row = {"text": "t", "fields": '{"a": 1}', "origin": '{"place": "here"}'}
    assert from_row(row).fields == {"fields": '{"a": 1}', "origin": '{"place": "here"}'}
