import json
import shutil
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from stillroom.errors import Cancelled
from stillroom.evaluate import Report
from stillroom.evaluate.qa.questions import EvidenceSpan, JudgedQuestion
from stillroom.flow import run_recipe
from stillroom.jobs import Job
from stillroom.jobs.job import iter_events
from stillroom.jobs.journal import Journal, read_journal
from stillroom.jobs.segments import COMMITTED_FOLDER
from stillroom.models.interfaces import DelegatingModel
from stillroom.provenance import Parent, read_artifact
from stillroom.rag.answer_selection import reader
from stillroom.rag.answer_strategies.generate import Generate
from stillroom.rag.answer_strategies.quote import Quote
from stillroom.rag.evaluation import answer_job, reader_comparison, reader_decision
from stillroom.rag.evaluation.answer_job import GradedAnswer
from stillroom.rag.evaluation.answers import MEASURES, AnswerTrace
from stillroom.rag.evaluation.judged_report import report_judgments
from stillroom.rag.evaluation.reader_comparison import (
    add_comparison,
    find_copies,
    make_key,
    match_quotes,
    select_model_questions,
)
from stillroom.rag.evaluation.reader_decision import SilenceProbe
from stillroom.rag.evaluation.retrieval import EvidenceMap
from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe, ReaderComparison
from stillroom.rag.rerankers.mmr import Mmr
from stillroom.rag.retrieval.pipeline import parse_rag_pipeline
from stillroom.recipes import parse_recipe
from stillroom.records import Prompt, Sampling
from stillroom.testing.checkpoint import tiny_checkpoint

SILENT = AnswerTrace("The documents do not answer this.", True, "", (), (), (), (), 0, 0, 0.0, 0.0)
RECIPE = AnswerEvaluationRecipe(
    index="index",
    questions="questions.jsonl",
    model="model",
    pipelines=["keyword=>generate"],
    compare={
        "readers": {"owned": "own", "shipped": "builtin:reader", "sentence": "builtin:overlap"}
    },
)


def answer(question, text, probability=0.5, quotes=1):
    trace = replace(SILENT, text=text, abstained=False, probability=probability, quotes=quotes)
    return GradedAnswer(question, trace, dict.fromkeys(MEASURES), "")


def ask(rights, *, probabilities=None, silent=()):
    """Return the answers of an arm: right where told, silent where told."""
    rows = []
    for at, is_right in enumerate(rights):
        question = JudgedQuestion(f"{at}", f"What is {at}?", (f"word{at}",))
        row = answer(question, f"It is word{at if is_right else 'less'}. [1]")
        if probabilities:
            row = replace(row, reading=replace(row.reading, probability=probabilities[at]))
        rows.append(replace(row, reading=SILENT) if at in silent else row)
    return rows


def compare(probes=None, **arms):
    report = Report("Answers", "Summary.")
    report.section("Before")
    decision = add_comparison(report, RECIPE, arms, probes or {}, is_synthetic=True)
    return report, decision


def test_better_than_no_model_is_to_be_used():
    report, decision = compare(
        owned=ask([True] * 30),
        shipped=ask([True] * 28 + [False] * 2),
        sentence=ask([True] * 10 + [False] * 20),
        base=ask([False] * 30),
    )
    assert report.summary == decision.line
    assert decision.line == (
        "Reader: the owned reader. It is more often right than word search "
        "(+0.67 [+0.47, +0.80]). Nothing to do."
    )
    assert (decision.arm, decision.reader) == ("owned", "")
    heads = [report.metrics[name].label for name in report.headlines]
    assert heads[:2] == [
        "owned reader: accuracy on answerable questions, as served",
        "owned reader: first quote right, as served",
    ]
    assert not any("/" in name for name in heads)
    assert "only questions by people can decide" in decision.notes[0]
    assert [one.title for one in report.sections] == [
        "How it was decided", "Is it worth it", "Differences", "Answers side by side", "Before",
    ]  # fmt: skip
    assert report.sections[0].text == f"{decision.notes[0]} Summary."
    del report.sections[0]
    assert len(report.sections[2].table.rows) == 10
    named = ("owned reader", "program's own reader", "word search", "generating model")
    assert report.sections[0].table.columns == ("", *named)
    assert report.sections[2].table.columns[2:] == named
    shown = [row[0] for row in report.sections[0].table.rows]
    assert all("as served" in name for name in shown[1:5])
    assert shown[2] == "first quote right, as served"
    assert shown[5:7] == [
        "accuracy on answerable questions at equal coverage",
        "error rate at equal coverage",
    ]
    assert not any("_" in name for name in shown)
    assert not any(" arm" in one.text or "arm" in one.table.columns for one in report.sections[:2])


def test_an_arm_that_is_better_reads_instead():
    _, decision = compare(
        owned=ask([True] * 10 + [False] * 20),
        shipped=ask([True] * 30),
        sentence=ask([True] * 20 + [False] * 10),
    )
    assert decision.line == (
        "Reader: the program's own reader. It is more often right than the owned reader "
        "(+0.67 [+0.47, +0.80]). Nothing to do."
    )
    assert (decision.arm, decision.reader) == ("shipped", "builtin:reader")


def test_nothing_is_called_better_where_the_interval_holds_0():
    _, decision = compare(owned=ask([True] * 30), sentence=ask([True] * 29 + [False]))
    assert decision.line == (
        "Reader: the owned reader. Only 1 of 30 questions tell it from word search. Ask your own: "
        "stillroom make FOLDER --questions FILE."
    )
    assert decision.answers == "the owned reader"


@pytest.mark.parametrize(("apart", "is_decided"), [(3, False), (5, False), (6, True)])
def test_few_questions_on_which_readers_differ_decide_by_the_exact_test(apart, is_decided):
    own = [True] * apart + [False] * (22 - apart)
    report, decision = compare(owned=ask(own), sentence=ask([False] * 22))
    assert report.metrics["reader/owned_minus_sentence"].low > 0  # resampling is sure of it
    if is_decided:
        assert "It is more often right than word search (" in decision.line
    else:
        assert f"Only {apart} of 22 questions tell it from word search." in decision.line
    # No interval beside it says otherwise.
    told = report.sections[2].table.rows[0][1]
    assert ("McNemar" in told) != is_decided


def test_too_few_questions_decide_nothing():
    _, decision = compare(owned=ask([True] * 19), sentence=ask([False] * 19))
    assert "Nothing is proved: 19 questions have an answer, 20 are needed." in decision.line


def test_a_decision_on_one_question_or_none_names_no_figure_that_is_not_there():
    _, decision = compare(owned=ask([True]), sentence=ask([False]))
    assert "Nothing is proved: 1 question has an answer, 20 are needed." in decision.line
    silent = [answer(JudgedQuestion("0", "What?", ()), "No.")]
    _, decision = compare(owned=silent, sentence=silent)
    assert decision.line == (
        "Reader: the owned reader. No question has an answer. Ask your own: stillroom make FOLDER "
        "--questions FILE."
    )


def test_others_are_silent_as_often_as_the_first_where_they_are_least_sure():
    sure = [0.9] * 20
    report, _ = compare(
        probes={
            ("owned", "0"): SilenceProbe(True, 0.1),
            ("sentence", "0"): SilenceProbe(False, 0.25),
            ("sentence", "1"): SilenceProbe(False, 0.95),
        },
        owned=ask([True] * 20, silent={4, 5}),
        sentence=ask([True] * 20, probabilities=[0.3, 0.2, *sure[2:]]),
    )
    figures = {name: metric.value for name, metric in report.metrics.items()}
    assert figures["reader/owned/holds"] == figures["reader/sentence/holds"] == 0.9
    assert figures["reader/sentence/silent_answerable"] == 0.1
    assert figures["reader/owned/silent_unanswerable"] == 1
    assert figures["reader/sentence/silent_unanswerable"] == 0.5
    for arm in ("owned", "sentence"):
        parts = ("holds", "wrong", "silent_answerable")
        assert sum(figures[f"reader/{arm}/{part}"] for part in parts) == pytest.approx(1)


def test_an_answer_that_is_right_in_its_second_quote_opens_with_a_wrong_one():
    questions = [JudgedQuestion(f"{at}", "Where?", ("Bordeaux",)) for at in range(25)]
    text = "It was in Hsinchu. [1]\nIt was in Bordeaux. [2]"
    late = [answer(question, text, quotes=2) for question in questions]
    report, _ = compare(owned=late, base=late)
    assert report.metrics["reader/owned/served_holds"].value == 1
    assert report.metrics["reader/owned/served_first"].value == 0
    row = next(one for one in report.sections[1].table.rows if one[0].startswith("first quote"))
    assert row[1:] == ("0.00 [0.00, 0.14] (n=25)", "not measured")  # the model quotes nothing


def test_a_headline_says_how_often_the_reader_is_silent_without_an_answer():
    probes = {("owned", f"{at}"): SilenceProbe(at < 3, 0.1) for at in range(4)}
    report, _ = compare(probes, owned=ask([True] * 4), sentence=ask([True] * 4))
    names = [name for name in report.headlines if "silent" in name]
    assert names == ["reader/owned/served_silent_unanswerable"]
    assert report.metrics[names[0]].value == 0.75


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (["animals/dogs.md"] * 3, "All 3 questions whose evidence was found are about one file"),
        (["animals/dogs.md"] * 9 + ["animals/cats.md"], "9 of 10 questions whose evidence was"),
        (["animals/dogs.md"] * 8 + ["animals/cats.md"] * 2, ""),
        (["animals/dogs.md", "nowhere.md"], ""),
        ([], ""),
    ],
)
def test_questions_about_one_file_are_said_with_the_decision(index, evidence, said):
    every = EvidenceMap(index)
    questions = [
        JudgedQuestion(f"{at}", "Who?", ("it",), (EvidenceSpan("", name, 0, 0),))
        for at, name in enumerate(evidence)
    ]
    line = every.describe_concentration([every.locate(question) for question in questions])
    assert line.startswith(said)
    assert bool(line) is bool(said)
    assert not said or "animals/dogs.md" in line
    arms = {"owned": ask([True] * 4), "sentence": ask([True] * 4)}
    decision = add_comparison(Report("Answers"), RECIPE, arms, {}, is_synthetic=False, caveat=line)
    assert decision.notes == ((line,) if line else ())


def test_a_reader_with_the_weights_of_the_first_answers_alike():
    readers = {"owned": "builtin:overlap", "shipped": "builtin:overlap"}
    recipe = RECIPE.model_copy(update={"compare": ReaderComparison(readers=readers)})
    arms = {"owned": ask([True] * 4, silent={1}), "shipped": ask([False] * 4)}
    probes = {("owned", "0"): SilenceProbe(True, 0.1), ("shipped", "0"): SilenceProbe(False, 0.9)}
    report = Report("Answers")
    add_comparison(report, recipe, arms, probes, is_synthetic=False)
    for name in ("holds", "silent_answerable", "silent_unanswerable"):
        values = [report.metrics[f"reader/{arm}/{name}"].value for arm in readers]
        assert values[0] == values[1]


def test_what_the_model_wrote_is_cut_to_the_words_of_the_first():
    question = JudgedQuestion("0", "What?", ("corn",))
    report, _ = compare(
        owned=[answer(question, "It is corn. [1]")],
        base=[answer(question, "Well, as far as anybody here knows it is corn.")],
    )
    assert report.metrics["reader/owned/holds"].value == 1
    assert report.metrics["reader/base/holds"].value == 0


def test_other_readers_quote_as_many_sentences():
    reader = replace(parse_rag_pipeline("keyword=>quote"), name="sentence")
    first = answer(JudgedQuestion("0", "What?", ("x",)), "A. B.", quotes=2).reading
    assert match_quotes(reader, None) is reader
    method = match_quotes(reader, first).answering
    assert isinstance(method, Quote)
    assert (method.max_quotes, method.min_probability) == (2, 0)
    writer = parse_rag_pipeline("keyword=>generate")
    assert match_quotes(writer, first) is writer


def test_model_is_asked_a_part_by_seed():
    questions = [JudgedQuestion(f"{at}", "What?", ("x",)) for at in range(10)]
    chosen = select_model_questions(questions, 4, 0)
    assert len(chosen) == 4
    assert chosen == select_model_questions(questions[::-1], 4, 0)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"compare": {"readers": {"base": "builtin:overlap"}}}, "recipe.value"),
        ({"pipelines": ["keyword", "dense"]}, "rag.pipelines"),
    ],
)
def test_settings_that_cannot_be_compared_are_refused(settings, code):
    with pytest.raises(ValidationError, match=rf"\[{code}\]"):
        AnswerEvaluationRecipe.model_validate({**RECIPE.model_dump(), **settings})


def test_copies_of_the_evidence_are_found_in_every_document(index):
    span = EvidenceSpan("A dog barks at strangers.", "animals/cats.md", 0, 5)
    question = JudgedQuestion("0", "Who barks?", ("a dog",), (span,))
    (place,) = find_copies(question, EvidenceMap(index))
    paths = {index.passage(name).location.path for name in place.passages}
    assert paths == {"animals/dogs.md"}
    assert find_copies(replace(question, evidence=()), EvidenceMap(index)) == []


def test_readers_are_compared_through_the_path_that_serves(built, tmp_path):
    rows = [
        {
            "question": "Who barks at strangers?",
            "answer": "a dog",
            "evidence": "A dog barks at strangers.",
        },
        {"question": "Which cat sleeps sixteen hours?", "answer": "A cat"},
        {"question": "Who flies?", "answers": []},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = f"""\
kind: rag.answer_evaluation
index: {built}
questions: q.jsonl
model: "scripted:none"
pipelines: [keyword=>generate]
compare: {{readers: {{first: "builtin:overlap"}}, model_questions: 0}}
"""
    run_recipe(parse_recipe(text, folder=tmp_path), tmp_path / "out")
    details = read_artifact(tmp_path / "out").details
    metrics = {row["name"]: row for row in details["metrics"]}
    assert metrics["reader/first/holds"]["n"] == 2
    assert metrics["reader/first/silent_unanswerable"]["n"] >= 2
    assert details["decision"]["arm"] == "first"
    assert "from 3 passages, or as many more as a reader is calibrated for." in str(details)
    events = list(iter_events(tmp_path / "out"))
    stages = [event["name"] for event in events if event["event"] == "phase"]
    assert stages == ["read", "grade", "abstention"]
    (said,) = (event["text"] for event in events if event["event"] == "said")
    assert not any("is not measured" in one["text"] for one in details["sections"])
    assert "without the documents that answer them (first 2), in about 0 s" in said


def test_of_one_document_nothing_is_asked_without_it_and_the_report_says_so(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "mill.md").write_text("# Mill\n\nThe mill grinds corn.\n")
    question = {"question": "What does the mill grind?", "answer": "corn"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question))
    texts = (
        f"kind: rag.index\ndocuments: {tmp_path}/documents\nembedder: builtin:static\n",
        f"""\
kind: rag.answer_evaluation
index: {tmp_path}/index
questions: q.jsonl
model: "scripted:none"
pipelines: [keyword=>generate]
compare: {{readers: {{first: "builtin:overlap"}}, model_questions: 0}}
""",
    )
    for text, name in zip(texts, ("index", "out"), strict=True):
        run_recipe(parse_recipe(text, folder=tmp_path), tmp_path / name)
    (said,) = (one["text"] for one in iter_events(tmp_path / "out") if one["event"] == "said")
    assert said.startswith("Abstention without the documents that answer is not measured")
    assert said in str(read_artifact(tmp_path / "out").details["sections"])


def test_a_second_run_does_not_generate_again_what_the_last_one_has(built, tmp_path, monkeypatch):
    rows = [
        {"question": "Who barks at strangers while cats purr?", "answer": "a dog"},
        {"question": "Which cat sleeps sixteen hours while dogs guard?", "answer": "A cat"},
    ]
    (tmp_path / "script.json").write_text('{"*": "A dog barks. [1]"}')
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = f"""\
kind: rag.answer_evaluation
index: {built}
questions: q.jsonl
model: "scripted:{tmp_path / "script.json"}"
pipelines: [keyword=>generate]
compare: {{readers: {{first: "builtin:overlap"}}, model_questions: 2}}
"""
    recipe = parse_recipe(text, folder=tmp_path)
    said, calls = [], []
    generate = DelegatingModel.generate

    def count(self, prompts, sampling, **settings):
        calls.extend(prompts)
        return generate(self, prompts, sampling, **settings)

    monkeypatch.setattr(DelegatingModel, "generate", count)
    answers = []
    for number in range(2):
        run_recipe(recipe, tmp_path / "out", overwrite=True)
        if not number:
            with Journal(tmp_path / "out" / "output" / "completions.jsonl") as journal:
                for key in tuple(journal.keys()):
                    journal.put(key, journal[key] | {"spent": [5.0, 5.0]})
        file = tmp_path / "out" / "output" / "answers.jsonl"
        answers.append([json.loads(line) for line in file.read_text().splitlines()])
        said.append([e.get("text", "") for e in iter_events(tmp_path / "out")])
        calls.append("run")
    assert calls.index("run") >= 2
    assert calls[-2:] == ["run", "run"]  # nothing was generated by the second one
    assert not any("taken from the last run" in line for line in said[0])
    assert any("generating model taken from the last run" in line for line in said[1])
    names = ("pipeline", "question", "text", "grades", "shown")
    first, second = ([[row[name] for name in names] for row in rows] for rows in answers)
    assert first == second
    kept = (
        tmp_path / "out" / COMMITTED_FOLDER / f"{name}.jsonl" for name in ("readings", "silence")
    )
    costs = [row["cpu_seconds"] for path in kept for row in read_journal(path).values()]
    assert sum(cost > 4 for cost in costs) == calls.index("run") / 2 == 3  # two wrappers
    files = read_artifact(tmp_path / "out").timed_files
    assert "output/completions.jsonl" in [entry.path for entry in files]
    monkeypatch.setattr(answer_job, "list_installed_versions", lambda: {"torch": "other"})
    run_recipe(recipe, tmp_path / "out", overwrite=True)
    assert calls[-1] != "run"  # another version may write something else


def test_completions_of_a_changed_template_are_not_reused(built, tmp_path):
    """The fingerprint of a checkpoint is that of its weights alone."""
    model = tiny_checkpoint(tmp_path / "model", seed=1)
    recipe = AnswerEvaluationRecipe(index=str(built), questions="q", model=str(model))
    prompt, reused = Prompt(text="A dog"), []
    template = model / "tokenizer_config.json"
    for text in ("", "", "\n"):
        template.write_text(template.read_text() + text)
        with (
            closing(Job.start(tmp_path / "run", "recipe\n", overwrite=True)) as job,
            closing(answer_job.MemoizedModel(recipe, job)) as memoized,
        ):
            memoized.generate([prompt], Sampling(max_new_tokens=2))
            reused.append(memoized.reused)
            job.finish("report")
    assert reused == [0, 1, 0]


def test_a_stop_interrupts_an_answer_that_is_being_generated(tmp_path):
    """An answer may take half a minute, longer than one waits for a stop."""
    model = tiny_checkpoint(tmp_path / "model", seed=1)
    recipe = AnswerEvaluationRecipe(index="i", questions="q", model=str(model))
    with (
        closing(Job.start(tmp_path / "run", "recipe\n")) as job,
        closing(answer_job.MemoizedModel(recipe, job)) as memoized,
    ):
        job.cancel()
        with pytest.raises(Cancelled, match="what was done is kept"):
            memoized.generate(
                [Prompt(text="A dog")], Sampling(max_new_tokens=2), is_cancelled=lambda: False
            )


@pytest.mark.parametrize(
    ("languages", "named"),
    [(["de", "de", "en"], "builtin:reader-multilingual"), (["de", "en", "en"], "builtin:reader")],
)
def test_the_packaged_reader_is_the_one_that_reads_the_index(monkeypatch, languages, named):
    monkeypatch.setattr("stillroom.rag.answer_selection.reader.open_reader", lambda name: None)
    monkeypatch.setattr(reader, "_has_large_reader", lambda: False)
    recipe = reader_comparison.suit_readers(RECIPE, SimpleNamespace(languages=languages))
    readers = {"owned": "own", "shipped": named, "sentence": "builtin:overlap"}
    assert recipe.compare.readers == readers
    arms = {"owned": ask([True] * 10 + [False] * 20), "shipped": ask([True] * 30)}
    decision = add_comparison(Report("Answers"), recipe, arms, {}, is_synthetic=False)
    assert decision.reader == named
    kind = named.removeprefix("builtin:reader").replace("-", " ")
    assert decision.line.startswith(
        f"Reader: the program's own{kind} reader. It is more often right than the owned reader ("
    )


def test_a_start_that_was_kept_is_compared_as_the_packaged_reader_that_reads_in_its_place(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(reader, "open_reader", lambda name: None)
    monkeypatch.setattr(reader, "_has_large_reader", lambda: True)
    opened = SimpleNamespace(fingerprint="large")
    monkeypatch.setattr(reader_comparison, "open_reader", lambda name: opened)
    kept = tmp_path / "kept"
    with closing(Job.start(kept, "recipe\n")) as job:
        shutil.copytree(reader.find_reader("builtin:reader"), job.output, dirs_exist_ok=True)
        compared = {"difference": 0.021, "low": -0.05, "high": 0.1, "n": 43}
        details = {"reader": True, "kept": "start", "comparison": compared, "train": {"steps": 10}}
        job.finish("checkpoint", parents=[Parent("start", "builtin:reader", "")], details=details)
    readers = {"owned": str(kept), "shipped": "builtin:reader"}
    recipe = RECIPE.model_copy(update={"compare": ReaderComparison(readers=readers)})
    recipe = reader_comparison.suit_readers(recipe, SimpleNamespace(languages=["en"]))
    assert set(recipe.compare.readers.values()) == {"builtin:reader-large"}
    assert reader_comparison.find_twins(recipe) == ["shipped"]
    monkeypatch.setattr(reader_comparison, "_measure_bytes", lambda *_: "0")
    arms = {arm: ask([True] * 30) for arm in readers}
    report = Report("Answers")
    decision = add_comparison(report, recipe, arms, {}, is_synthetic=False, trained=str(kept))
    assert decision.reader == ""
    assert decision.line == (
        "Reader: the program's own large reader. Training on these documents showed no gain. "
        "No other reader was compared."
    )
    assert decision.notes[0] == (
        "Training the program's own reader for 10 steps did not measurably help: the share of 43 "
        "held-out questions with a right first sentence changed by +0.02 [-0.05, +0.10], so its "
        "weights are left unchanged."
    )
    assert "Training may help with thousands of people's questions" in decision.notes[1]
    assert report.summary == decision.line
    del report.sections[0]
    assert decision.answers == "the program's own large reader"
    # and has one column, by its name
    for table in (report.sections[0].table, report.sections[2].table):
        heads = [name for name in table.columns if "reader" in name]
        assert heads == ["program's own large reader"]
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert not any("own" in row[0] for row in report.sections[1].table.rows)


def test_a_training_that_helped_says_by_how_much(tmp_path):
    with closing(Job.start(tmp_path / "own", "recipe\n")) as job:
        compared = {"difference": 0.2, "low": 0.1, "high": 0.3, "n": 40}
        details = {"reader": True, "kept": "trained", "comparison": compared}
        job.finish("checkpoint", parents=[Parent("start", "/own/reader", "")], details=details)
    readers = {"owned": str(tmp_path / "own"), "sentence": "builtin:overlap"}
    recipe = RECIPE.model_copy(update={"compare": ReaderComparison(readers=readers)})
    arms = {"owned": ask([True] * 30), "sentence": ask([False] * 30)}
    decision = add_comparison(Report("Answers"), recipe, arms, {}, is_synthetic=False)
    assert decision.line == (
        "Reader: the owned reader. Training on these documents helped. It is more often right than "
        "word search (+1.00 [+1.00, +1.00]). Nothing to do."
    )
    assert decision.notes == (
        "Training the initial reader helped: the share of 40 held-out questions with "
        "a right first sentence changed by +0.20 [+0.10, +0.30], so the trained weights are kept.",
    )


@pytest.mark.parametrize(
    ("start", "packaged", "rights", "reader"),
    [
        ("builtin:reader", "builtin:reader-large", 27, "builtin:reader-large"),
        ("builtin:reader", "builtin:reader-large", 10, ""),  # the trained one is better
        ("builtin:reader", "builtin:reader", 27, ""),  # its start, which training was measured on
        ("/own/reader", "builtin:reader-large", 27, ""),
    ],
)
def test_a_trained_small_reader_has_to_be_better_than_the_packaged_large_one(
    tmp_path, start, packaged, rights, reader
):
    with closing(Job.start(tmp_path / "own", "recipe\n")) as job:
        compared = {"difference": 0.2, "low": 0.1, "high": 0.3, "n": 40}
        details = {"reader": True, "kept": "trained", "comparison": compared}
        job.finish("checkpoint", parents=[Parent("start", start, "")], details=details)
    readers = {"owned": str(tmp_path / "own"), "packaged": packaged, "sentence": "builtin:overlap"}
    recipe = RECIPE.model_copy(update={"compare": ReaderComparison(readers=readers)})
    arms = {
        "owned": ask([True] * 28 + [False] * 2),
        "packaged": ask([at < rights for at in range(30)]),
        "sentence": ask([False] * 30),
    }
    decision = add_comparison(Report("Answers"), recipe, arms, {}, is_synthetic=False)
    assert decision.reader == reader
    if reader:
        assert decision.answers == "the program's own large reader"
        assert "The owned reader is not shown to be better (+0.03 " in decision.line


def leave_untrained(folder, compared, questions=11):
    """Write a reader whose training was measured and not kept."""
    with closing(Job.start(folder, "recipe\n")) as job:
        details = {"reader": True, "kept": "start", "comparison": compared, "questions": questions}
        job.finish("checkpoint", parents=[Parent("start", "builtin:reader", "")], details=details)
    return AnswerEvaluationRecipe.model_validate(
        RECIPE.model_dump()
        | {"compare": {"readers": {"owned": str(folder), "sentence": "builtin:overlap"}}}
    )


UNTESTED = {"difference": 0.0, "low": 0.0, "high": 0.0, "n": 3}


@pytest.mark.parametrize(
    ("rights", "is_synthetic", "told"),
    [
        (30, False, "Training is untested: 3 of 11 questions held out, 20 needed. It is "
         "more often right than word search (+1.00 [+1.00, +1.00]). Nothing to do."),
        (7, False, "Training is untested: 3 of 11 questions held out, 20 needed. Nothing "
         "is proved: 7 questions have an answer, 20 are needed. Add more questions."),
        (3, True, "Neither it nor training could be tested: 3 of 11 questions held out, 20 needed. "
         "Ask your own: stillroom make FOLDER --questions FILE."),
    ],
)  # fmt: skip
def test_the_line_says_how_many_questions_there_were_and_what_fits_next(
    tmp_path, rights, is_synthetic, told
):
    recipe = leave_untrained(tmp_path / "own", UNTESTED)
    arms = {"owned": ask([True] * rights), "sentence": ask([False] * rights)}
    decision = add_comparison(Report("Answers"), recipe, arms, {}, is_synthetic=is_synthetic)
    assert decision.line == f"Reader: the program's own reader. {told}"


def test_a_reader_that_hardly_answers_is_not_to_be_used():
    rights = [at >= 8 for at in range(20)] + [True] * 60 + [False] * 20
    probabilities = [0.9] * 20 + [0.5] * 80
    report, decision = compare(
        owned=ask([True] * 100, silent=set(range(20, 100))),
        sentence=ask(rights, probabilities=probabilities),
    )
    assert decision.line.startswith(
        "Reader: the owned reader. Word search is more often right only because it answers more "
    )
    assert report.metrics["reader/sentence/served_holds"].value == 0.72


def test_answers_with_own_settings_have_a_say():
    served = ask([True] * 30, silent=set(range(25)))
    shipped = [
        replace(row, served=mine.reading)
        for row, mine in zip(ask([True] * 30), served, strict=True)
    ]
    _, decision = compare(owned=ask([True] * 10 + [False] * 20), shipped=shipped)
    assert (decision.arm, decision.reader) == ("owned", "")


@pytest.mark.parametrize("answered", [5, 30])  # of five, McNemar's exact test is not sure
def test_no_reader_is_preferred_that_is_less_silent_without_an_answer(answered):
    probes = {("owned", f"{at}"): SilenceProbe(True, 0.1) for at in range(30)}
    probes |= {("shipped", f"{at}"): SilenceProbe(at >= answered, 0.9) for at in range(30)}
    _, decision = compare(probes, owned=ask([True] * 10 + [False] * 20), shipped=ask([True] * 30))
    assert decision.line.startswith(
        "Reader: the owned reader. The program's own reader is more often right, but less often "
        "rightly silent."
    )
    assert decision.reader == ""


def test_the_model_counts_as_silent_where_the_first_is_and_replaces_no_reader():
    report, decision = compare(
        owned=ask([False] * 20 + [True] * 10),
        shipped=ask([True] * 25 + [False] * 5),
        base=ask([True] * 30),
    )
    assert (decision.arm, decision.reader) == ("shipped", "builtin:reader")
    report, decision = compare(owned=ask([True] * 30, silent=set(range(20))), base=ask([True] * 30))
    assert report.metrics["reader/base/holds"].value == pytest.approx(1 / 3)
    assert report.metrics["reader/base/served_holds"].value == 1


def test_the_model_is_asked_answerable_questions_alone():
    questions = [JudgedQuestion(f"{at}", "What?", ("x",) if at % 2 else ()) for at in range(40)]
    assert select_model_questions(questions, 20, 0) == {f"{at}" for at in range(1, 40, 2)}


@pytest.mark.parametrize(
    ("readers", "head"),
    [
        ({"mine": "/no/such"}, "Reader: the mine reader. No other reader was compared."),
        ({"sentence": "builtin:overlap", "mine": "/no/such"}, "Reader: the sentence reader. It is "
         "more often right than the mine reader ("),
    ],
)  # fmt: skip
def test_lines_of_other_arms_are_true(readers, head):
    recipe = RECIPE.model_copy(update={"compare": ReaderComparison(readers=readers)})
    arms = {arm: ask([not at] * 30) for at, arm in enumerate(readers)}
    report = Report("Answers")
    decision = add_comparison(report, recipe, arms, {}, is_synthetic=False)
    assert decision.line.startswith(head)


@pytest.mark.parametrize("start", ["builtin:reader", "builtin:reader-multilingual"])
def test_questions_that_chose_the_reader_do_not_prove_it_better_than_its_start(start):
    compare = ReaderComparison(readers={"owned": "own", "shipped": start})
    recipe = RECIPE.model_copy(update={"questions": "own", "compare": compare})
    arms = {"owned": ask([True] * 30), "shipped": ask([False] * 30)}
    decision = add_comparison(Report("Answers"), recipe, arms, {}, is_synthetic=False)
    assert "It is not shown better" in decision.line


def test_answers_that_count_as_silence_are_marked():
    report, _ = compare(
        owned=ask([True] * 20, silent={4, 5}),
        sentence=ask([True] * 20, probabilities=[0.3, 0.2] + [0.9] * 18),
    )
    assert report.sections[3].table.rows[0][3].startswith("(counted as silent) It is word0")


def test_journal_keys_change_with_the_weights(monkeypatch):
    pipeline = replace(parse_rag_pipeline("keyword=>quote"), name="owned")
    question = JudgedQuestion("0", "What?", ("x",))
    index, model = SimpleNamespace(digest="d"), SimpleNamespace(fingerprint="f")
    keys = set()
    for weights in ("first", "second"):
        monkeypatch.setattr(reader_comparison, "find_fingerprint", lambda _, told=weights: told)
        keys.add(reader_comparison.make_key(RECIPE, pipeline, question, index, model))
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("text", "method"),
    [("keyword+mmr=>quote", Mmr), ("keyword=>generate", Generate)],
)
def test_journal_keys_change_with_what_retrieves_and_answers(monkeypatch, text, method):
    monkeypatch.setattr(reader_comparison, "find_fingerprint", lambda _: "weights")
    question = JudgedQuestion("0", "What?", ("x",))
    index, model = SimpleNamespace(digest="d"), SimpleNamespace(fingerprint="f")
    keys = set()
    for moment in ("", "2030-01-01", "2030-01-02"):
        monkeypatch.setattr(method, "moment", moment)
        keys.add(make_key(RECIPE, parse_rag_pipeline(text), question, index, model))
    assert len(keys) == 3


def test_journal_keys_do_not_change_with_the_place_of_a_reader(monkeypatch):
    monkeypatch.setattr(reader_comparison, "find_fingerprint", lambda _: "weights")
    pipeline = replace(parse_rag_pipeline("keyword=>quote"), name="owned")
    question = JudgedQuestion("0", "What?", ("x",))
    index, model = SimpleNamespace(digest="d"), SimpleNamespace(fingerprint="f")
    keys = {
        reader_comparison.make_key(
            RECIPE,
            replace(pipeline, answering=pipeline.answering.model_copy(update={"reader": place})),
            question,
            index,
            model,
        )
        for place in ("/old/run/steps/reader", "/new/run/steps/reader")
    }
    assert len(keys) == 1  # so a run that was moved can be replayed


def test_the_model_sees_as_many_passages_as_the_first_reads():
    first = parse_rag_pipeline("keyword=>quote:passages=7")
    base = replace(parse_rag_pipeline("keyword=>generate"), name="base")
    assert reader_comparison.count_passages(RECIPE, base, first) == 7
    assert reader_comparison.count_passages(RECIPE, first, first) == RECIPE.k


def test_readers_with_the_weights_of_the_first_are_not_asked():
    readers = {"owned": "builtin:overlap", "shipped": "builtin:overlap", "other": "/no/such"}
    recipe = RECIPE.model_copy(update={"compare": ReaderComparison(readers=readers)})
    assert reader_comparison.find_twins(recipe) == ["shipped"]


def tell_judgments(monkeypatch, twins=(), **arms):
    readers = {arm: f"/{arm}" for arm in arms} | {"shipped": "builtin:reader"}
    told = RECIPE.model_copy(
        update={"compare": ReaderComparison(readers=readers, untaught="untaught")}
    )
    monkeypatch.setattr(
        "stillroom.rag.evaluation.judged_report.find_twins", lambda recipe: list(twins)
    )
    monkeypatch.setattr(reader_comparison, "find_twins", lambda recipe: list(twins))
    monkeypatch.setattr(reader_comparison, "_measure_bytes", lambda *_: "0")
    return report_judgments(told, arms, {})


@pytest.mark.parametrize(
    ("taught", "control", "line"),
    [
        ([True] * 30, [False] * 30, "The judgments made the reader better: right words +1.00"),
        ([False] * 30, [True] * 30, "The judgments made the reader worse: right words -1.00"),
        ([True] * 30, [True] * 29 + [False], "No significant effect of the judgments: right"),
        (
            [True] * 19,
            [False] * 19,
            "The effect of the judgments is not known yet (20 are required)",
        ),
    ],
)
def test_the_report_says_what_judgments_bought(monkeypatch, taught, control, line):
    report, told = tell_judgments(monkeypatch, owned=ask(taught), untaught=ask(control))
    assert told.startswith(line)
    assert report.summary == told
    assert report.sections[0].title == "Effect of the judgments"
    assert not any(name.startswith("reader/") for name in report.metrics)
    expected = sum(taught) / len(taught) - sum(control) / len(control)
    assert report.metrics["judged/owned_minus_untaught"].value == pytest.approx(expected)
    assert report.metrics["judged/owned/holds"].n == len(taught)


def test_held_out_judgments_without_an_answer_measure_nothing(monkeypatch):
    rows = [replace(ask([True])[0], question=JudgedQuestion("0", "Who?", ()))]
    _, told = tell_judgments(monkeypatch, owned=rows, untaught=rows)
    assert told.startswith("The effect of the judgments is not measured: 0 judged questions")


def test_judgments_that_changed_no_weights_bought_nothing(monkeypatch):
    arms = {"owned": ask([True] * 30), "untaught": []}
    report, told = tell_judgments(monkeypatch, ["untaught"], **arms)
    assert told.startswith("The judgments had no effect yet: with and without them the same")
    assert report.metrics["judged/owned_minus_untaught"].value == 0


def test_without_a_control_the_packaged_reader_is_one(monkeypatch):
    arms = {"owned": ask([True] * 30), "shipped": ask([False] * 30)}
    _, told = tell_judgments(monkeypatch, **arms)
    assert told.startswith("The judgments made the reader better: right words +1.00")


def test_an_answer_has_the_same_key_wherever_its_reader_lies(monkeypatch):
    """A stranger replays a run in another folder, where the segments must have their names."""
    prints = {"/srv/ann/reader": "a" * 64, "/srv/bob/reader": "a" * 64, "/srv/eve": "b" * 64}
    monkeypatch.setattr(reader_comparison, "find_fingerprint", prints.get)
    question, index = JudgedQuestion("0", "What?", ("a",)), SimpleNamespace(digest="i")
    plain = parse_rag_pipeline("keyword")

    def key(place):
        pipeline = replace(plain, name="owned", answering=Quote(reader=place))
        return make_key(RECIPE, pipeline, question, index, SimpleNamespace(fingerprint="m"))

    assert key("/srv/ann/reader") == key("/srv/bob/reader")
    assert key("/srv/ann/reader") != key("/srv/eve")


@pytest.mark.parametrize("outcome", ["", "helped", "even", "hurt", "few", "unmeasured"])
@pytest.mark.parametrize("verdict", reader_decision._VERDICTS)
@pytest.mark.parametrize("is_synthetic", [False, True])
def test_every_line_is_short_and_has_one_figure(verdict, outcome, is_synthetic):
    if outcome in {"few", "unmeasured"} and verdict not in {"untested", "none"}:
        is_synthetic = False  # generated questions are those that were held out: too few for both
    arms = {"owned": ask([True] * 195), "shipped": ask([False] * 195)}
    comparison = reader_comparison.build_comparison(RECIPE, arms, {})
    name, other = "the program's own multilingual reader", "the generating model"
    training = reader_decision._Training(outcome, "13 of 114 questions")
    line = reader_decision._write_line(
        comparison,
        verdict,
        (name, "shipped", " (+0.15 [+0.08, +0.27])"),
        {"shipped": other},
        training,
        is_synthetic=is_synthetic,
    )
    assert len(line.replace("Reader:", "Answers come from").split()) <= 35, line
    assert line.count("[") <= 1
    assert not {"{", "`"} & set(line)
