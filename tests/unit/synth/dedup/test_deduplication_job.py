"""Near duplicates out of files, through the command line."""

import json

import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.errors import DataError, RecipeError
from stillroom.provenance import read_artifact
from stillroom.records import Message, Origin, Record, read_records, write_records

WORDS = "the queen bee leaves the old hive in may with half of the worker bees behind her".split()


def record(text, kind="human", **fields):
    return Record((Message("assistant", text),), fields, Origin(kind))


def texts():
    base = " ".join(WORDS * 3)
    return [base, base + " again", base.replace("may", "June", 1), "Quite another thing.", "…"]


def listed(out):
    text = (out / "output/duplicates.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def run(*arguments):
    words = ["run", "synth.dedup", *map(str, arguments)]
    return CliRunner().invoke(stillroom, words, catch_exceptions=False)


def test_duplicates_are_listed_with_what_is_kept_whatever_the_order(tmp_path):
    kept = []
    for name, order in (("a", [0, 1, 2, 3, 4]), ("b", [3, 2, 4, 1, 0])):
        write_records(tmp_path / f"{name}.jsonl", [record(texts()[at]) for at in order])
        out = tmp_path / name
        result = run(f"records=[{tmp_path / name}.jsonl]", "--out", out, "ngram_size=2", "--json")
        assert result.exit_code == 0, result.output
        told = read_artifact(out).details
        assert (told["read"], told["kept"], told["fell"], told["wordless"]) == (5, 3, 2, 1)
        rows = listed(out)
        ids = {one.id for one in read_records(out)}
        assert {row["kept"] for row in rows} <= ids
        assert not {row["id"] for row in rows} & ids
        assert all(row["jaccard"] >= 0.8 for row in rows)
        kept.append(ids)
    assert kept[0] == kept[1]


def test_the_preferred_record_stays_and_origin_is_that_of_what_is_kept(tmp_path):
    first, second = (record(texts()[0], "human", score=1), record(texts()[1], "synthetic", score=2))
    write_records(tmp_path / "r.jsonl", [first, second])
    result = run(
        f"records=[{tmp_path}/r.jsonl]", "--out", tmp_path / "out", "ngram_size=1", "prefer=score"
    )
    assert result.exit_code == 0, result.output
    assert [one.id for one in read_records(tmp_path / "out")] == [second.id]
    assert read_artifact(tmp_path / "out").origin["kind"] == "synthetic"


def test_fields_alone_may_be_compared(tmp_path):
    same = [record(text, question="What is a hive?") for text in texts()[2:4]]
    write_records(tmp_path / "r.jsonl", same)
    result = run(f"records=[{tmp_path}/r.jsonl]", "--out", tmp_path / "out", "fields=[question]")
    assert "1 of 2 records kept" in result.output


def test_rows_that_cannot_be_read_are_listed(tmp_path):
    write_records(tmp_path / "r.jsonl", [record("one good row")])
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"broken": \n')
    result = run(f"records=[{tmp_path}/r.jsonl]", "--out", tmp_path / "out")
    assert "1 unreadable" in result.output
    assert [row["row"] for row in listed(tmp_path / "out")] == [2]


def test_settings_out_of_range_are_refused(tmp_path):
    write_records(tmp_path / "r.jsonl", [record("one")])
    words = [f"records=[{tmp_path}/r.jsonl]", "--out", tmp_path / "out"]
    for wrong in ("threshold=0", "ngram_size=0"):
        with pytest.raises(RecipeError, match=wrong.partition("=")[0]):
            run(*words, wrong)


def test_a_file_without_records_is_refused(tmp_path):
    (tmp_path / "r.jsonl").write_text("")
    with pytest.raises(DataError) as caught:
        run(f"records=[{tmp_path}/r.jsonl]", "--out", tmp_path / "out")
    assert caught.value.problems[0].code == "synth.no-records"


@pytest.mark.parametrize("setting", ["prefer=score", "prefer=name", "fields=[title]"])
def test_a_field_that_no_record_has_is_refused(tmp_path, setting):
    write_records(tmp_path / "r.jsonl", [record(text, name="x") for text in texts()])
    with pytest.raises(DataError, match=r"no record has a (number|word) in") as caught:
        run(f"records=[{tmp_path}/r.jsonl]", "--out", tmp_path / "out", setting)
    assert caught.value.problems[0].code == "synth.no-field"
    assert caught.value.problems[0].where == setting.partition("=")[0]


def test_records_without_the_preferred_number_are_counted(tmp_path):
    rows = [record(texts()[0], score=1), record("Quite another thing than that.")]
    write_records(tmp_path / "r.jsonl", rows)
    result = run(f"records=[{tmp_path}/r.jsonl]", "--out", tmp_path / "out", "prefer=score")
    assert result.exit_code == 0, result.output
    assert "1 of 2 records have no number in score" in result.output


@pytest.mark.parametrize(("size", "is_warned"), [(100, True), (10, False)])
def test_an_ngram_longer_than_any_text_is_warned_of(tmp_path, size, is_warned):
    write_records(tmp_path / "r.jsonl", [record(text) for text in texts()])
    result = run(f"records=[{tmp_path}/r.jsonl]", "--out", tmp_path / "out", f"ngram_size={size}")
    assert result.exit_code == 0, result.output
    assert f"records hold at most {size} words: only equal ones are found" in result.output
    assert any("at most" in one for one in warnings(tmp_path / "out")) == is_warned


def warnings(out):
    return read_artifact(out).details.get("warnings", [])


LONG = " ".join(WORDS * 3)


def learn(rejected=None, chosen=LONG, **fields):
    more = {} if rejected is None else {"chosen": chosen, "rejected": rejected}
    return Record((Message("user", "Why?"), Message("assistant", chosen)), {**fields, **more})


def test_pairs_with_other_rejected_answers_and_rows_with_other_labels_stay(tmp_path):
    near = LONG.replace("may", "June", 1)
    rows = [
        learn("No."),
        learn("I do not know."),
        learn(LONG[::-1]),
        learn(""),
        learn(label=True),
        learn(label=False),
    ]
    again = [
        learn("No.", near),
        learn(f"{LONG[::-1]} again", near),
        learn(label=1),
        learn(chosen=near, label=0),
        learn(chosen=near, label="False"),
        learn(chosen=near),
    ]
    write_records(tmp_path / "r.jsonl", [*rows, *again])
    out = tmp_path / "out"
    result = run(f"records=[{tmp_path}/r.jsonl]", "--out", out, "ngram_size=2")
    assert result.exit_code == 0, result.output
    kept = [(one.fields.get("rejected", ""), one.fields.get("label")) for one in read_records(out)]
    assert sorted(rejected[:4] for rejected, _ in kept if rejected) == sorted(
        ["No.", "I do", LONG[::-1][:4]]
    )
    labels = [{"False": False}.get(label, label) for rejected, label in kept if not rejected]
    assert (len(labels), set(labels)) == (3, {None, False, True})
    result = run(
        f"records=[{tmp_path}/r.jsonl]", "--out", tmp_path / "f", "ngram_size=2", "fields=[chosen]"
    )
    assert result.exit_code == 0, result.output
    assert "7 of 12" in result.output  # one text, and six without words


def test_labels_that_are_classes_or_scores_separate_no_rows(tmp_path):
    rows = [record(texts()[0], label=label) for label in (0.91, 0.92, "cluster-1", 2, None, True)]
    write_records(tmp_path / "r.jsonl", rows)
    run(f"records=[{tmp_path}/r.jsonl]", "--out", tmp_path / "out")
    kept = [one.fields.get("label") for one in read_records(tmp_path / "out/output/records.jsonl")]
    assert len(kept) == 2
    assert True in kept
