"""The evaluation of answers: grades, blame, judges, resuming; by scripted models."""

import json

import pytest
from click.testing import CliRunner
from tests.unit.rag.jobs import run_report

from stillroom.cli import stillroom
from stillroom.errors import Cancelled, DataError
from stillroom.evaluate.judges import BinaryJudge
from stillroom.evaluate.qa.questions import EvidenceSpan, JudgedQuestion, read_question_set
from stillroom.flow import run_recipe
from stillroom.models.backends.scripted import ScriptedModel
from stillroom.models.interfaces import Score
from stillroom.rag.evaluation import answer_job
from stillroom.rag.evaluation.answers import (
    AnswerGrader,
    AnswerTrace,
    ShownPassage,
    attribute_failure,
    contains_evidence,
    measure_judge_control,
)
from stillroom.rag.evaluation.retrieval import EvidenceLocation, EvidenceMap, label_ranking
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import CHECKERS
from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.records import Message, Record

QUESTIONS = [
    {
        "id": "cat",
        "question": "How long does a cat sleep?",
        "answer": "sixteen hours",
        "evidence": [{"path": "animals/cats.md", "quote": "sleeps sixteen hours a day"}],
    },
    {
        "id": "dog",
        "question": "Whom does a dog bark at?",
        "answers": ["strangers"],
        "evidence": ["A dog barks at strangers."],
    },
    {"id": "paris", "question": "How many inhabitants has Paris?", "answers": ["2.1 million"]},
    {"id": "moon", "question": "Who walked on the moon?", "answers": []},
    {
        "id": "lost",
        "question": "What do parrots eat?",
        "answers": ["seeds"],
        "evidence": ["Parrots eat seeds."],
    },
]
KEYWORD = "keyword=>generate"
SCRIPT = {
    "How long does a cat sleep?": "A cat sleeps sixteen hours a day [1].",
    "Whom does a dog bark at?": "A dog barks at the moon [1].",
    "How many inhabitants has Paris?": "It has 2.1 million inhabitants.",
    "*": "The documents do not answer this.",
}


@pytest.fixture
def asked(tmp_path):
    def write(rows=QUESTIONS, script=None, name="questions.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "script.json").write_text(json.dumps(SCRIPT if script is None else script))
        return tmp_path / name, f"scripted:{tmp_path / 'script.json'}"

    return write


def make_recipe(built, questions, model, **changes):
    fields = {"pipelines": [KEYWORD, "dense=>generate"], "k": 2, "depth": 5}
    inputs = {"index": str(built), "questions": str(questions), "model": model}
    return AnswerEvaluationRecipe(**{**inputs, **fields, **changes})


def test_every_question_is_graded_and_the_stage_to_blame_is_named(built, asked, tmp_path):
    artifact, report = run_report(make_recipe(built, *asked()), tmp_path / "out")
    assert artifact.kind == "report"
    lines = (tmp_path / "out/output/answers.jsonl").read_text().splitlines()
    rows = {row["question"]: row for row in map(json.loads, lines) if row["pipeline"] == KEYWORD}
    assert {name: row["stage"] for name, row in rows.items()} == {
        "cat": "",
        "dog": "read",  # the passage was shown, the answer is wrong
        "paris": "",
        "moon": "",  # rightly silent
        "lost": "parse",  # no document says so
    }
    assert rows["cat"]["grades"]["citation_recall"] == 1.0
    assert rows["dog"]["grades"]["faithfulness"] == 0.0
    assert rows["cat"]["grades"]["context_recall"] == 1.0
    assert rows["lost"]["grades"]["faithfulness"] is None  # it claims nothing
    metrics = report.metrics
    assert metrics[f"{KEYWORD}/right"].value == pytest.approx(3 / 5)
    assert metrics[f"{KEYWORD}/abstention_precision"].value == pytest.approx(1 / 2)
    assert metrics[f"{KEYWORD}/abstention_recall"].value == 1.0
    assert "measured on" in metrics[f"{KEYWORD}/faithfulness"].note
    titles = [section.title for section in report.sections]
    assert titles == [
        "Pipelines",
        f"Against {KEYWORD}",
        "Where it goes wrong",
        "Worst questions",
        "Cost",
    ]
    texts = [section.text for section in report.sections]
    assert "noise sensitivity: statements that a shown passage supports and" in texts[0]
    assert "Parse: the evidence is not in the text that was read of its document; read:" in texts[2]
    assert "rank: " not in texts[2]  # it is not in the table
    assert "No judge" in report.summary
    assert (tmp_path / "out/output/runs/0-keyword--generate.trec").is_file()


def test_ways_of_answering_are_compared_on_the_same_questions(built, asked, tmp_path):
    script = {**SCRIPT, "*": "Neil Armstrong walked on it."}
    ways = ["dense=>generate", "dense=>corrective:queries=0!drop"]
    asking = make_recipe(built, *asked(script=script), pipelines=ways)
    _, report = run_report(asking, tmp_path / "out")
    metrics = report.metrics
    assert metrics[f"{ways[0]}/abstention_recall"].value == 0.0
    assert metrics[f"{ways[1]}/abstention_recall"].value == 1.0
    assert metrics[f"{ways[1]}/right"].value >= metrics[f"{ways[0]}/right"].value


def shown(name, text="", **span):
    return ShownPassage(name, "d", **{"start": 0, "end": 0, **span}, text=text)


def reading(**changes):
    fields = {
        "text": "It is so [1].",
        "abstained": False,
        "finish_reason": "stop",
        "first": tuple("abcdef"),
        "ranked": tuple("bcadef"),
        "shown": (shown("b"), shown("c")),
        "statements": ({"start": 0, "end": 13, "status": "supported", "cited": [1]},),
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "seconds": 0.0,
        "search_seconds": 0.0,
    }
    return AnswerTrace(**{**fields, **changes})


@pytest.mark.parametrize(
    ("places", "is_right", "stage"),
    [
        ([EvidenceLocation(False, frozenset())], False, "parse"),
        ([EvidenceLocation(True, frozenset())], False, "chunk"),
        ([EvidenceLocation(True, frozenset("z"))], False, "retrieve"),
        ([EvidenceLocation(True, frozenset("e"))], False, "rank"),
        ([EvidenceLocation(True, frozenset("a"))], False, "rerank"),
        ([EvidenceLocation(True, frozenset("b"))], False, "read"),
        (
            [EvidenceLocation(False, frozenset()), EvidenceLocation(True, frozenset("c"))],
            False,
            "read",
        ),
        ([EvidenceLocation(True, frozenset("c"))], True, "cite"),
        ([EvidenceLocation(True, frozenset("b"))], True, ""),
        ([], True, ""),
        ([], False, "read"),
    ],
)
def test_the_stage_to_blame_is_the_one_that_lost_the_evidence(places, is_right, stage):
    assert attribute_failure(reading(), places, is_right=is_right, k=2) == stage


def test_a_hit_that_was_left_out_of_the_prompt_is_blamed_on_showing():
    left_out = reading(shown=(shown("b"),), ranked=tuple("bcadef"))
    assert (
        attribute_failure(left_out, [EvidenceLocation(True, frozenset("c"))], is_right=False, k=2)
        == "show"
    )


def test_a_wider_passage_than_was_found_holds_what_lies_in_it():
    parent = shown("parent", "A cat sleeps. It purrs.", start=10, end=40)
    assert contains_evidence(
        parent, EvidenceLocation(True, frozenset("x"), frozenset({("d", 15, 30)}))
    )
    assert not contains_evidence(
        parent, EvidenceLocation(True, frozenset("x"), frozenset({("d", 15, 41)}))
    )
    assert not contains_evidence(
        parent, EvidenceLocation(True, frozenset("x"), frozenset({("e", 15, 30)}))
    )
    cut_apart = EvidenceLocation(True, frozenset(), quotes=("cat sleeps it purrs",))
    assert contains_evidence(parent, cut_apart)
    assert attribute_failure(reading(shown=(parent,)), [cut_apart], is_right=False, k=2) == "read"
    assert not contains_evidence(parent, EvidenceLocation(True, frozenset(), quotes=("at sleeps",)))


def test_evidence_is_found_by_span_quotation_name_and_answer(index):
    found = EvidenceMap(index)
    cat = next(p for p in map(index.passage_at, range(len(index))) if "purr" in p.text)
    start = cat.start + cat.text.index("A cat")

    def locate(*evidence, answers=("x",)):
        places = found.locate(JudgedQuestion("q", "?", answers, evidence))
        return [EvidenceLocation(one.in_documents, one.passages) for one in places]

    span = EvidenceSpan("", "animals/cats.md", start, start + 10)
    assert locate(span) == [EvidenceLocation(True, frozenset({cat.id}))]
    too_long = EvidenceSpan("", cat.document_id, start, start + 10_000)
    assert locate(too_long) == [EvidenceLocation(True, frozenset())]  # cut apart
    assert locate(EvidenceSpan("A CAT  sleeps, sixteen")) == [
        EvidenceLocation(True, frozenset({cat.id}))
    ]
    assert locate(EvidenceSpan("sleeps sixteen", "animals/dogs.md")) == [
        EvidenceLocation(False, frozenset())
    ]
    assert locate(EvidenceSpan(name="animals/cats.md"))[0].passages == {cat.id}
    assert locate(EvidenceSpan(name="nowhere.md")) == [EvidenceLocation(False, frozenset())]
    assert locate(answers=("sixteen hours", "nothing such"))[0].passages == {cat.id}
    assert locate(EvidenceSpan("ixteen hour")) == [
        EvidenceLocation(False, frozenset())
    ]  # whole words only


def test_a_ranking_names_each_piece_of_evidence_once():
    places = [
        EvidenceLocation(True, frozenset("ab")),
        EvidenceLocation(True, frozenset("b")),
    ]
    ranked = label_ranking("xabc", "q", places)
    assert [name for name, _ in ranked] == ["x", "q#0", "q#1", "c"]
    assert [score for _, score in ranked] == [4.0, 3.0, 2.0, 1.0]


def test_a_judge_decides_and_its_failures_are_counted(built, asked, tmp_path):
    questions, model = asked()
    verdicts = {
        "Given answer: A cat": '{"verdict": "yes"}',
        "Given answer: A dog": "no idea",
        "*": '{"verdict": "no"}',
    }
    (tmp_path / "judge.json").write_text(json.dumps(verdicts))
    labels = tmp_path / "labels.jsonl"
    verdicts = [{"question": name, "right": True} for name in ("cat", "paris")]
    verdicts.append({"question": "cat", "pipeline": "convex", "right": False})  # of another recipe
    labels.write_text("".join(json.dumps(row) + "\n" for row in verdicts))
    judged = make_recipe(
        built,
        questions,
        model,
        pipelines=[KEYWORD],
        judge={
            "model": f"scripted:{tmp_path / 'judge.json'}",
            "mode": "json",
            "labels": str(labels),
        },
    )
    artifact, report = run_report(judged, tmp_path / "out")
    assert report.metrics[f"{KEYWORD}/right"].n == 4  # the dog's verdict could not be read
    assert report.metrics[f"{KEYWORD}/right"].note.startswith("measured on 4 of 5")
    counts = dict(next(one for one in report.sections if one.title == "Judge").table.rows)
    assert int(counts["failed"]) >= 1
    assert int(counts["retried"]) >= 2
    assert report.metrics["judge/accuracy"].value == 0.5  # it calls the right Paris wrong
    assert report.metrics[f"{KEYWORD}/right_corrected"].n == 4
    assert any("1 of 3 labels are not used" in text for text in artifact.details["warnings"])
    assert "Judged by" in report.summary


def test_a_judge_that_is_the_reader_is_said(built, asked, tmp_path):
    questions, model = asked()
    same = make_recipe(
        built, questions, model, pipelines=[KEYWORD], judge={"model": model, "mode": "logprob"}
    )
    _, report = run_report(same, tmp_path / "out")
    assert "the very model that answered" in report.summary
    assert report.metrics[f"{KEYWORD}/right"].n == 5  # by probabilities there is always a verdict


@pytest.mark.parametrize("can_judge", [True, False])
def test_a_judge_is_controlled_with_quotations(built, asked, tmp_path, can_judge):
    facts = {
        "cats": "A cat sleeps sixteen hours a day.",
        "dogs": "Dogs guard the house at night.",
        "python": "It does not need a compiler.",
    }
    rows = [
        {"id": name, "question": f"What of {name}?", "answer": "x", "evidence": [{"quote": quote}]}
        for name, quote in facts.items()
    ]
    questions, model = asked(rows)

    class Judge(ScriptedModel):
        def score(self, prompts, completions):
            return [Score((self.chance(*pair),)) for pair in zip(prompts, completions, strict=True)]

        def chance(self, prompt, word):
            shown, _, rest = prompt.messages[-1].content.partition("\n\nStatement: ")
            holds = rest.split("\n")[0] in shown
            return -1.0 if (holds or not can_judge) == (word == "Yes") else -2.0

    judge = BinaryJudge(Judge({"*": ""}))
    with Index.open(built) as opened:
        bench = AnswerGrader(opened, judge, CHECKERS.build("overlap"), {}, {})
        bench.verdicts = Shelf()
        evidence = EvidenceMap(opened)
        found = []
        for one in read_question_set(questions):
            (place,) = evidence.locate(one)
            found.append((one.evidence[0].quote, opened.passage(min(place.passages)).text))
        metric = measure_judge_control(bench, found)
        assert metric.n == 6
        assert metric.value == (1.0 if can_judge else 0.5)
        assert measure_judge_control(bench, found[:1]) is None
    same = make_recipe(
        built, questions, model, pipelines=[KEYWORD], judge={"model": model, "mode": "json"}
    )
    _, report = run_report(same, tmp_path / "out")
    assert "means nothing" in report.summary  # it writes no verdicts at all


def test_a_checker_prepares_texts_and_judges_a_statement_once(built, monkeypatch):
    held = []
    checker = CHECKERS.build("overlap")
    hold = type(checker).hold
    monkeypatch.setattr(type(checker), "hold", lambda *given: held.append(1) or hold(*given))
    texts = ["A cat sleeps sixteen hours a day.", "Dogs guard the house at night."]
    with Index.open(built) as opened:
        bench = AnswerGrader(opened, None, checker, {}, {})
        said = [
            bench.supports(statement, shown)
            for _ in range(3)
            for statement in ("A cat sleeps sixteen hours.", "Birds sing in the morning.")
            for shown in (texts, texts[1:])
        ]
    assert said == [True, False, False, False] * 3
    assert len(held) == 2  # once for each set of texts


class Shelf(dict):
    put = dict.__setitem__


def test_a_stopped_evaluation_goes_on_to_the_same_answers(built, asked, tmp_path, monkeypatch):
    questions, model = asked()
    run_report(make_recipe(built, questions, model), tmp_path / "whole")
    read, calls = answer_job.run_question, []

    def stop_after_three(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise Cancelled("stop", code="job.cancelled")
        return read(*args, **kwargs)

    monkeypatch.setattr(answer_job, "run_question", stop_after_three)
    with pytest.raises(Cancelled):
        run_report(make_recipe(built, questions, model), tmp_path / "out")
    calls.clear()
    monkeypatch.setattr(
        answer_job, "run_question", lambda *a, **k: calls.append(a) or read(*a, **k)
    )
    run_report(make_recipe(built, questions, model), tmp_path / "out", resume=True)
    assert len(calls) == 10 - 3

    def answers(name):
        text = (tmp_path / name / "output/answers.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        return [{**row, "seconds": 0, "search_seconds": 0, "cpu_seconds": 0} for row in rows]

    assert answers("out") == answers("whole")


def test_questions_made_from_the_index_itself_are_said(built, asked, tmp_path, index):
    passage = next(p for p in map(index.passage_at, range(len(index))) if "purr" in p.text)
    evidence = {"quote": "A cat sleeps sixteen hours a day.", "passage_id": passage.id}
    headed = f"{passage.headings[-1] if passage.headings else passage.title}: How long?"
    rows = [{"id": "a", "question": headed, "answer": "x", "evidence": [evidence]}]
    _, report = run_report(make_recipe(built, *asked(rows)), tmp_path / "out")
    said = next(one for one in report.sections if one.title == "The questions themselves")
    assert [row[:2] for row in said.table.rows] == [("heading", "1 of 1"), ("boundary", "1 of 1")]


def test_by_the_command_line(built, asked, tmp_path):
    questions, model = asked()
    words = ["run", "rag.answer_evaluation", f"index={built}", f"questions={questions}"]
    words += [f"model={model}", "prices={prompt: 2, completion: 8}", "max_questions=4"]
    done = CliRunner().invoke(stillroom, [*words, "--out", str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "questions by the stage to blame" in done.output
    assert "At 2 a million tokens read" in done.output
    assert "4 questions" in done.output


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("q.jsonl", "{}\n", "data.question-set"),
        ("q.jsonl", '{"question": "?"}\n', "data.question-set"),
        ("q.jsonl", '{"question": "?", "answer": 3}\n', "data.question-set"),
        ("q.jsonl", '{"id": 1, "question": "?", "answer": "x"}\n' * 2, "data.question-set"),
        ("q.jsonl", "no JSON\n", "data.question-set"),
        ("q.jsonl", "", "data.no-questions"),
        ("q.csv", "question\nWho?\n", "data.question-set"),
        ("q.csv", "question,answer\nWho?\n", "data.question-set"),
        ("q.csv", 'question,answer\n"Who?,x\n', "data.question-set"),
        ("q.json", '{"data": [{}]}', "data.question-set"),
        ("q.json", "3", "data.question-set"),
    ],
)
def test_a_question_set_that_cannot_be_read_is_refused(tmp_path, name, text, code):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_question_set(tmp_path / name)
    assert caught.value.code == code


def test_question_sets_are_read_as_the_field_keeps_them(tmp_path):
    context = "Paris is old. It has 2.1 million people. It is big."
    squad = {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": "a",
                                "question": "How many?",
                                "answers": [{"text": "2.1 million", "answer_start": 21}],
                            },
                            {"id": "b", "question": "Why?", "is_impossible": True, "answers": []},
                        ],
                    }
                ]
            }
        ]
    }
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    one, two = read_question_set(tmp_path / "squad.json")
    assert one.evidence == (EvidenceSpan("It has 2.1 million people."),)
    assert (one.answers, two.answers, two.is_answerable) == (("2.1 million",), (), False)
    ragas = {"user_input": "Why?", "reference": "So.", "reference_contexts": ["It is so."]}
    (tmp_path / "ragas.jsonl").write_text(json.dumps(ragas) + "\n")
    assert read_question_set(tmp_path / "ragas.jsonl")[0].evidence[0].quote == "It is so."
    rows = [{"id": "x", "question": "?", "correct_chunks": ["url#a"], "correct_answer": "yes"}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert read_question_set(tmp_path / "list.json")[0].evidence[0].name == "url#a"
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_text('{"_id": "d1", "title": "", "text": "It is so."}\n')
    (beir / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "Why?", "metadata": {"answers": ["So."]}}\n'
    )
    (beir / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n")
    (judged,) = read_question_set(beir)
    assert (judged.answers, judged.evidence) == (("So.",), (EvidenceSpan(name="d1"),))
    fields = {"evidence": {"quote": "It is so.", "start": 3, "end": 12}, "document_id": "d"}
    record = Record((Message("user", "Why?"), Message("assistant", "So.")), fields)
    (tmp_path / "records.jsonl").write_text(json.dumps(record.to_json()) + "\n")
    found = read_question_set(tmp_path / "records.jsonl")[0]
    assert (found.text, found.answers) == ("Why?", ("So.",))
    assert found.evidence == (EvidenceSpan("It is so.", "d", 3, 12),)


def test_an_index_with_tenants_is_evaluated_as_one_of_them(asked, tmp_path):
    place = tmp_path / "pages"
    place.mkdir()
    (place / "cats.md").write_text("A cat sleeps sixteen hours a day.\n")
    (place / "dogs.md").write_text("A dog barks at strangers.\n")
    told = [
        {"path": f"{name}.md", "tenant": name, "labels": ["public"]} for name in ("cats", "dogs")
    ]
    (tmp_path / "told.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    recipe = IndexRecipe(
        documents=str(place),
        embedder="builtin:static",
        access="tenants",
        metadata=str(tmp_path / "told.jsonl"),
    )
    run_recipe(recipe, tmp_path / "index")
    rows = [{**QUESTIONS[0], "evidence": [{"quote": "sleeps sixteen hours a day"}]}]
    questions, model = asked(rows)

    def recall(name, **reader):
        recipe = AnswerEvaluationRecipe(
            index=str(tmp_path / "index"),
            questions=str(questions),
            model=model,
            pipelines=[KEYWORD],
            **reader,
        )
        told = run_recipe(recipe, tmp_path / name).details["metrics"]
        return next(one["value"] for one in told if one["name"] == f"{KEYWORD}/context_recall")

    with pytest.raises(DataError):
        recall("nobody")
    assert recall("own", reader={"tenant": "cats"}) == 1.0
    assert recall("other", reader={"tenant": "dogs"}) == 0.0  # the other tenant's page is not there
