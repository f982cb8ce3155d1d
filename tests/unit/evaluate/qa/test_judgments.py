"""The store of judgments: nothing that was confirmed is lost, and each question keeps its side."""

import contextlib
import itertools
import json
import random
import time
from dataclasses import replace

import pytest
from tests.processes import preloaded_context

from stillroom.errors import DataError, ResourceError
from stillroom.evaluate.qa.judgments import (
    AskedAnswer,
    Judgment,
    JudgmentStore,
    find_judgments,
    make_moment,
    merge_judgments,
)
from stillroom.evaluate.qa.questions import read_question_set

QUOTE = "The pump must be drained before winter."
EVIDENCE = {
    "document_id": "doc-1", "passage": "pas-1", "start": 3, "end": 42, "quote": QUOTE,
    "file": "pump.md",
}  # fmt: skip


def make(question="When is it drained?", verdict="right", text="Before winter. [1]", **more):
    asked = AskedAnswer(question, text, {1: "pas-1"}, "index", "reader", time=make_moment())
    is_known = verdict in {"right", "quote"}
    fields = {"answers": (QUOTE,), "evidence": (EVIDENCE,)} if is_known else {}
    return Judgment(verdict, replace(asked, **more), time=make_moment(), **fields)


def read_both(store):
    found = {}
    for side in ("train", "test"):
        with contextlib.suppress(DataError):  # no file yet, or wrong answers alone
            found |= {one.text: one for one in read_question_set(store.path_of(side))}
    return found


@pytest.fixture
def store(tmp_path):
    return JudgmentStore(tmp_path / "run.judgments")


def test_a_judgment_comes_back_as_it_was_and_is_a_question_with_evidence(store):
    judgment = make()
    store.add(judgment)
    assert store.read() == [judgment]
    row = json.loads(store.path_of(judgment.side).read_text())
    assert row["origin"]["kind"] == "human"
    assert row["judged"]["index"] == "index"
    assert row["judged"]["reader"] == "reader"
    assert len(row["judged"]["digest"]) == 64
    (question,) = read_question_set(store.path_of(judgment.side))
    assert (question.text, question.answers) == ("When is it drained?", (QUOTE,))
    assert (question.evidence[0].quote, question.evidence[0].name) == (QUOTE, "doc-1")
    assert question.evidence[0].passage_id == ""  # it was not made from a passage
    assert store.folder.stat().st_mode & 0o077 == 0
    assert store.path_of(judgment.side).stat().st_mode & 0o077 == 0


def test_the_last_verdict_on_an_answer_counts(store):
    for verdict in ("right", "wrong", "quote"):
        store.add(make(verdict=verdict))
    store.add(make("And the seal?", verdict="right", text="Two years. [1]"))
    store.add(make("And the seal?", verdict="wrong", text="Two years. [1]"))
    assert [one.verdict for one in store.read()] == ["quote", "wrong"]
    assert set(read_both(store)) == {"When is it drained?"}  # what answers the other is unknown


def test_answers_of_one_question_add_up_and_absent_is_overruled_by_what_comes_later(store):
    store.add(make(verdict="absent", text="None."))
    store.add(make())
    store.add(replace(make(text="In fall. [1]"), answers=("In fall.",)))
    (question,) = read_both(store).values()
    assert question.answers == (QUOTE, "In fall.")
    assert len(question.evidence) == 1
    store.add(make("WHEN is it drained", verdict="absent", text="None, either."))
    (question,) = read_both(store).values()
    assert not question.is_answerable


def test_what_an_older_state_of_the_documents_said_is_no_longer_accepted(store):
    store.add(replace(make(text="Ten bar. [1]"), answers=("Ten bar.",), state="old"))
    store.add(replace(make(text="Nine bar. [1]"), answers=("Nine bar.",), state="new"))
    store.add(replace(make(text="9 bar. [1]"), answers=("9 bar.",), state="new"))
    (question,) = read_both(store).values()
    assert question.answers == ("Nine bar.", "9 bar.")


def test_fields_of_a_later_version_are_left_out(store):
    store.add(make())
    path = store.path_of(make().side)
    row = json.loads(path.read_text())
    row["judged"]["mood"] = "good"
    path.write_text(json.dumps({**row, "more": 1}) + "\n")
    assert store.read()[0].asked.text == "Before winter. [1]"


def test_a_damaged_row_stops_neither_asking_nor_deleting(store):
    store.add(make())
    path = store.path_of(make().side)
    secret = {"id": "abc", "question": "when is it DRAINED", "judged": {"later": "version"}}
    path.write_text(f"{path.read_text()}no row\n{json.dumps(secret)}\n{path.read_text()[:99]}")
    answers = store.folder / "answers.jsonl"
    answers.write_text("no JSON\n{}\n")
    store.keep_answer(make().asked)
    assert store.find_answer("", ("",)).text == make().asked.text
    assert store.delete(make().asked.id, ("",)) == 3
    assert path.read_text() == "no row\n"
    assert answers.read_text() == ""


def test_tenants_do_not_overrule_each_other(store):
    store.add(make(tenant="acme"))
    store.add(make(tenant="bolt", verdict="absent"))
    side = make().side
    assert sorted(len(one.answers) for one in read_question_set(store.path_of(side))) == [0, 1]


def test_a_question_has_one_side_however_it_is_written_and_one_in_five_is_for_tests():
    sides = [make(f"What is number {number}?").side for number in range(2000)]
    assert 0.16 < sides.count("test") / len(sides) < 0.24
    for text in ("When is it drained?", "  when IS it drained", "When is it drained??"):
        assert make(text).side == make().side
    assert {make(f"What is number {n}?", tenant="a").side == sides[n] for n in range(50)} == {True}
    for text in ("?!", "!!"):  # no words: the marks themselves decide
        assert make(text).side == make(f" {text} ").side
        assert make(text).asked.words == text


def test_a_row_that_a_kill_has_cut_is_not_read_and_not_kept(store):
    store.add(make("One?", text="é"))
    path = store.path_of(make("One?").side)
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole + whole[:cut])
        assert len(read_question_set(path)) == 1
        assert len(store.read()) == 1
    store.add(make("One?", text="another"))
    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == 2
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # as an editor may leave it
    store.add(make("One?", text="a third"))
    assert len(store.read()) == 3


def test_a_damaged_row_is_an_error_with_its_place(store):
    store.add(make())
    path = store.path_of(make().side)
    for bad in (
        "{}",
        '{"verdict": "right"}',
        '{"verdict": "maybe", "judged": {}}',
        "no JSON",
        '{"judged": {"citations": 3}}',
        "[]",
    ):
        path.write_text(path.read_text().split("\n")[0] + f"\n{bad}\n" + json.dumps({}) + "\n")
        for read in (store.read, lambda: read_question_set(path)):
            with pytest.raises(DataError) as caught:
                read()
            assert caught.value.code == "data.question-set"
            assert caught.value.problems[0].where == f"{path}:2"
    path.write_bytes(b"\xff\n")
    with pytest.raises(DataError):
        store.read()


def test_only_wrong_answers_are_no_questions(store):
    store.add(make(verdict="wrong"))
    with pytest.raises(DataError, match="no question"):
        read_question_set(store.path_of(make().side))


def test_lines_of_a_question_set_end_where_json_ends(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(
        json.dumps({"question": "a\u2028b?", "answers": ["c\x85d"]}, ensure_ascii=False)
    )
    (question,) = read_question_set(path)
    assert (question.text, question.answers) == ("a\u2028b?", ("c\x85d",))


def test_half_a_character_is_stored_as_a_question_mark(store):
    store.add(make("a \ud800 b?", text="\udfff"))
    (one,) = store.read()
    assert (one.asked.question, one.asked.text) == ("a ? b?", "?")


def _write_many(folder, name):
    for number in range(40):
        JudgmentStore(folder).add(make(f"{name} {number}?"))


def test_writers_do_not_lose_each_others_rows(store):
    context = preloaded_context()
    writers = [context.Process(target=_write_many, args=(store.folder, n)) for n in range(3)]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
    assert [one.exitcode for one in writers] == [0, 0, 0]
    assert len(store.read()) == 120


def _write_on(folder, sending):
    for number in itertools.count():
        JudgmentStore(folder).add(make(f"Number {number}?"))
        sending.send(number)


def test_a_confirmed_judgment_survives_a_kill(store):
    context = preloaded_context()
    rng = random.Random(7)
    for _ in range(3):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_write_on, args=(store.folder, sending))
        process.start()
        sending.close()
        assert receiving.recv() == 0
        time.sleep(rng.random() / 4)
        process.kill()
        confirmed = 1
        with contextlib.suppress(EOFError):
            while True:
                confirmed = 1 + receiving.recv()
        process.join(30)
        receiving.close()
        asked = {one.asked.question for one in store.read()}
        assert {f"Number {number}?" for number in range(confirmed)} <= asked
        assert read_both(store)


def test_the_last_twenty_answers_can_be_judged_by_who_asked(store):
    answers = [
        AskedAnswer(f"Question {n}?", "Yes.", time=make_moment(), tenant="acme" if n == 3 else "")
        for n in range(24)
    ]
    for answer in answers:
        store.keep_answer(answer)
    assert store.find_answer("", ("",)) == answers[-1]
    assert store.find_answer(answers[10].id[:6], ("",)) == answers[10]
    for name, scope in ((answers[2].id, ("",)), (answers[10].id, ("acme",)), ("zz", ("",))):
        with pytest.raises(DataError) as caught:
            store.find_answer(name, scope)
        assert caught.value.code == "judge.no-answer"
    assert (store.folder / "answers.jsonl").stat().st_mode & 0o077 == 0


def test_a_question_is_deleted_with_all_that_was_stored_of_it(store):
    mine = AskedAnswer("When is it drained?", "Late.", time=make_moment())
    store.keep_answer(mine)
    store.add(make())
    store.add(make(verdict="wrong", text="Never."))
    store.add(make("And the seal?"))
    store.add(make(tenant="acme"))
    with pytest.raises(DataError):
        store.delete(mine.id, ("acme",))
    assert store.delete(mine.id, ("",)) == 3
    left = [(one.asked.question, one.asked.tenant) for one in store.read()]
    assert left == [("And the seal?", ""), ("When is it drained?", "acme")]
    files = b"".join(path.read_bytes() for path in store.folder.glob("*.jsonl"))
    assert b"Late." not in files
    assert b"Never." not in files


def test_the_folder_stands_beside_the_run_and_the_run_may_be_made_anew(tmp_path):
    run = tmp_path / "run"
    (run / "steps/index-1").mkdir(parents=True)
    assert find_judgments(run).folder == tmp_path / "run.judgments"
    assert find_judgments(run / "steps/index-1").folder.name == "index-1.judgments"
    (run / "artifact.json").write_text("{}")
    assert find_judgments(run / "steps/index-1").folder == tmp_path / "run.judgments"


def test_what_cannot_be_written_is_an_error(store):
    store.folder.write_text("a file stands here")
    with pytest.raises(ResourceError) as caught:
        store.add(make())
    assert caught.value.code == "judge.unwritable"


def test_a_question_of_the_same_words_with_other_signs_is_another_one(tmp_path):
    store = JudgmentStore(tmp_path / "run.judgments")
    for question in ("What is C?", "What is C++?"):
        store.add(Judgment("absent", AskedAnswer(question, "No."), time=make_moment()))
    first, other = store.read()
    assert first.side == other.side
    assert len(list(merge_judgments(("", one.to_json()) for one in (first, other)))) == 2
    assert store.delete(first.id, ("",)) == 1
    assert store.read() == [other]
