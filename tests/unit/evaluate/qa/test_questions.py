import json

import pytest

from stillroom.errors import DataError
from stillroom.evaluate.jobs.questions import select_part
from stillroom.evaluate.qa.questions import EvidenceSpan, JudgedQuestion, read_question_set
from stillroom.flow import run_recipe
from stillroom.provenance import read_artifact
from stillroom.rag.evaluation.reader_comparison import are_synthetic
from stillroom.recipes import parse_recipe
from stillroom.records import Message, Origin, Record, write_records

QUESTIONS = [
    JudgedQuestion("1", "Who grinds?", ("the mill",), (EvidenceSpan("The mill grinds."),)),
    JudgedQuestion("2", "Who sleeps?", ("the cat",)),
    JudgedQuestion("3", "Who flies?", ()),
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.csv", 'Question,Answer,Evidence\n"Who, then?",the cat,\n\nWho flies?,,\n'),
        ("q.csv", "\ufeffquestion;answer\nWho, then?;the cat\nWho flies?;\n"),
        ("q.tsv", "id\tanswer\tquestion\na\tthe cat\tWho, then?\nb\t\tWho flies?\n"),
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    first, second = read_question_set(tmp_path / name)
    assert (first.text, first.answers) == ("Who, then?", ("the cat",))
    assert not second.is_answerable


def test_evidence_of_a_table_is_a_quote(tmp_path):
    (tmp_path / "q.csv").write_text("question,answer,evidence\nWho?,I,It was I.\n")
    (question,) = read_question_set(tmp_path / "q.csv")
    assert question.evidence == (EvidenceSpan("It was I."),)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("question\nWho?\n", 1),
        ("question,answer\nWho?,I\nWho?\n", 3),
        ("question,answer\nWho?,I,you\n", 2),
        ('question,answer\n"Who?,I\n', 2),
        ("", 1),
    ],
)
def test_unreadable_table_is_refused_with_its_line(tmp_path, text, line):
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_question_set(tmp_path / "q.csv")
    assert caught.value.code == "data.question-set"
    assert caught.value.problems[0].where.endswith(f"q.csv:{line}")


def test_records_without_held_out_ones_are_asked_as_a_whole(tmp_path):
    def write(*splits):
        records = [
            Record(
                (Message("user", f"{at}?"), Message("assistant", "So.")),
                origin=Origin("synthetic"),
                fields={"split": split},
            )
            for at, split in enumerate(splits)
        ]
        write_records(tmp_path / "records.jsonl", records)
        return [question.text for question in read_question_set(tmp_path / "records.jsonl")]

    assert write("train", "held_out", "train") == ["1?"]
    assert write("train", "train") == ["0?", "1?"]


def test_parts_have_no_question_in_common_and_leave_none_out():
    many = [
        JudgedQuestion(f"{at}", f"Why {at // 2}?", ("so",), (EvidenceSpan(f"So {at}."),))
        for at in range(200)
    ]
    learned, judged = (
        select_part([*many, *QUESTIONS], part, 0.5, 0) for part in ("learned", "judged")
    )
    assert len(learned) + len(judged) == 203
    assert not {question.text for question in learned} & {question.text for question in judged}
    assert {"2", "3"} <= {question.id for question in judged}
    assert 60 < len(learned) < 140


def test_a_part_of_a_file_is_an_artifact_of_unknown_origin(tmp_path):
    rows = [json.dumps(question.to_json()) for question in QUESTIONS]
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    text = "kind: evaluate.questions\nquestions: q.jsonl\npart: judged\nshare: 0.999999\n"
    run_recipe(parse_recipe(text, folder=tmp_path), tmp_path / "part")
    assert read_question_set(tmp_path / "part") == QUESTIONS[1:]
    assert read_artifact(tmp_path / "part").origin["kind"] == "unknown"


def test_an_empty_part_is_refused(tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps(QUESTIONS[1].to_json()))
    text = "kind: evaluate.questions\nquestions: q.jsonl\npart: learned\n"
    with pytest.raises(DataError) as caught:
        run_recipe(parse_recipe(text, folder=tmp_path), tmp_path / "part")
    assert caught.value.code == "data.no-questions"


def test_questions_with_the_same_words_or_evidence_stay_together():
    forms = ("How old is pump {}?", "how old is pump {} ?", "What is the age of pump {}?")
    many = [
        JudgedQuestion(f"{at}-{form}", form.format(at), ("so",), (EvidenceSpan(f"Pump {at}."),))
        for at in range(60)
        for form in forms
    ]
    learned, judged = (select_part(many, part, 0.5, 0) for part in ("learned", "judged"))
    assert learned
    assert judged
    assert not {one.evidence for one in learned} & {one.evidence for one in judged}


def test_a_part_of_generated_questions_stays_generated(tmp_path):
    messages = (Message("user", "Who grinds?"), Message("assistant", "The mill."))
    write_records(tmp_path / "records.jsonl", [Record(messages, origin=Origin("synthetic"))])
    assert are_synthetic(str(tmp_path / "records.jsonl"))
    text = "kind: evaluate.questions\nquestions: records.jsonl\npart: judged\n"
    run_recipe(parse_recipe(text, folder=tmp_path), tmp_path / "part")
    assert read_artifact(tmp_path / "part").origin["kind"] == "synthetic"
    assert are_synthetic(str(tmp_path / "part" / "output" / "questions.jsonl"))


def squad(**row):
    row = {"id": 1, "question": "Who?", "answers": [{"text": "b", "answer_start": 0}], **row}
    return json.dumps({"data": [{"paragraphs": [{"context": "A b.", "qas": [row]}]}]})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.jsonl", '{"question": "Who?", "answer": 0}'),
        ("q.jsonl", '{"question": "Who?", "answer": false}'),
        ("q.csv", "question,answer,answer\nWho?,I,me\n"),
        ("q.csv", "question,answer,Answer\nWho?,I,me\n"),
        ("q.csv", 'question,"answer\n'),
        ("q.json", squad(answers=[{"text": "", "answer_start": 0}])),
        ("q.json", squad(answers=[{"text": 5, "answer_start": 0}])),
        ("q.json", squad(answers=[{"text": "b", "answer_start": "2"}])),
        ("q.json", squad(question=7)),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_question_set(tmp_path / name)
    assert caught.value.code == "data.question-set"


def test_rows_without_any_cell_are_passed_over(tmp_path):
    (tmp_path / "q.csv").write_text("question,answer\nWho?,I\n,\n,,\n")
    assert [question.text for question in read_question_set(tmp_path / "q.csv")] == ["Who?"]


def test_columns_without_a_name_are_passed_over(tmp_path):
    (tmp_path / "q.csv").write_text("question,answer,,\nWho?,I,,\n")
    assert [question.text for question in read_question_set(tmp_path / "q.csv")] == ["Who?"]


def test_a_question_asked_twice_with_different_answers_is_told(tmp_path):
    rows = [("1", "Who owns it?", "Ann"), ("2", "who  owns it?", "Paul"), ("3", "When?", "1871")]
    file = tmp_path / "q.jsonl"
    file.write_text(
        "\n".join(json.dumps({"id": i, "question": q, "answers": [a]}) for i, q, a in rows)
    )
    lines = []
    read_question_set(file, warn=lines.append)
    (line,) = lines
    assert "1 question is asked more than once, 1 of them with different answers" in line
    assert "1 and 2" in line
