import json
import signal
import subprocess
import sys
import textwrap

import pytest
from tests.processes import run_process

from stillroom.errors import Cancelled, DataError, RecipeError
from stillroom.evaluate import evaluator
from stillroom.evaluate.interfaces import RagSystem, open_rag_system
from stillroom.evaluate.jobs.report import EvaluateRecipe, estimate, run
from stillroom.evaluate.qa import answers as answers_module
from stillroom.evaluate.qa.questions import find_records, select_questions
from stillroom.evaluate.report import Report
from stillroom.jobs import Job
from stillroom.records import Hit, Location, Message, Passage, Prompt, Record, write_records
from stillroom.testing import scripted_model, tiny_checkpoint

TOWNS = ["Ash", "Birch", "Cedar", "Dale", "Elm", "Fen", "Gorse", "Holly", "Iris"]


def passage(at):
    text = f"{TOWNS[at]} was founded in {1800 + at}."
    return Passage("doc", at * 100, at * 100 + len(text), text, Location("a.txt", "d", at, at + 9))


def record(at, **fields):
    question, answer = f"When was {TOWNS[at]} founded?", f"in {1800 + at}"
    fields = {
        "question": question,
        "answer": answer,
        "evidence": {"passage_id": passage(at).id},
        "split": "held_out",
        **fields,
    }
    return Record((Message("user", question), Message("assistant", answer)), fields)


class Towns:
    """Finds the town a question names first, then the others."""

    def retrieve(self, query, k):
        order = sorted(range(len(TOWNS)), key=lambda at: TOWNS[at] not in query)
        return [Hit(passage(at), 1.0 / rank, rank) for rank, at in enumerate(order[:k], 1)]

    def prompt(self, question, hits):
        shown = "\n".join(f"[{hit.rank}] {hit.passage.text}" for hit in hits)
        return Prompt((Message("user", f"{shown}\n\n{question}"),))


def answer_from_passages(prompt):
    text = prompt.messages[-1].content
    if "[1]" not in text:
        return "I do not know."
    return "in " + text.split("\n")[0].rsplit(" ", 1)[1].rstrip(".") + " [1]"


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "open_rag_system", lambda path, name: Towns())
    monkeypatch.setattr(
        answers_module, "open_text_model", lambda ref, backend: scripted_model(answer_from_passages)
    )
    (tmp_path / "index").mkdir()
    write_records(
        tmp_path / "records.jsonl",
        [*(record(at) for at in range(9)), record(0, split="train"), record(1, answer=" ")],
    )
    return tmp_path


def recipe(world, **settings):
    models = {
        "teacher": str(tiny_checkpoint(world / "teacher")),
        "student": str(tiny_checkpoint(world / "student", seed=1, layers=1)),
    }
    retrieval = {"index": str(world / "index")}
    given = {"records": str(world / "records.jsonl"), "retrieval": retrieval}
    return EvaluateRecipe(**{"models": models, **given, **settings})


def do(world, name, chosen, **start):
    job = Job.start(world / name, "recipe: x\n", **start)
    try:
        return run(chosen, job)
    finally:
        job.close()


def test_report_holds_every_promised_metric(world):
    artifact = do(world, "out", recipe(world))
    metrics = Report.read(world / "out" / "output").metrics
    expected = {
        "retrieval/recall@5", "retrieval/ndcg@10", "retrieval/recip_rank",
        "answers/teacher/closed/f1", "answers/teacher/retrieved/f1", "answers/student/retrieved/em",
        "answers/student/closed/f1", "teacher/size_bytes", "student/parameters",
        "student/kl_to_teacher/final", "student/agreement", "teacher/perplexity",
    }  # fmt: skip
    assert expected <= set(metrics)
    assert metrics["retrieval/recall@5"].value == 1.0
    assert metrics["answers/student/retrieved/f1"].value == 1.0  # marks are not words
    assert metrics["answers/student/closed/f1"].value < 0.5
    assert metrics["student/parameters"].value < metrics["teacher/parameters"].value
    assert metrics["student/kl_to_teacher/final"].value > 0
    assert artifact.kind == "report"
    assert artifact.details["left_out"]["not held out"] == 1
    roles = {parent.role for parent in artifact.parents}
    assert roles == {"records", "index", "teacher", "student"}


def test_answers_name_the_passages_that_were_shown(world):
    do(
        world,
        "out",
        recipe(world, fidelity=None, retrieval={"index": str(world / "index"), "top_k": 2}),
    )
    rows = [
        json.loads(line) for line in (world / "out/output/answers.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 2 * 2 * 9
    shown = next(row for row in rows if row["mode"] == "retrieved")["shown"]
    assert len(shown) == 2
    assert shown[0]["path"] == "a.txt"
    assert all(not row["shown"] for row in rows if row["mode"] == "closed")


def test_the_clock_stands_outside_the_artifact(world):
    chosen = recipe(world, fidelity=None)
    one, two = do(world, "one", chosen), do(world, "two", chosen)
    assert one.digest == two.digest
    timings = Report.read(world / "one" / "timings.json")
    assert set(timings.metrics) == {"teacher/tokens_per_second", "student/tokens_per_second"}


def test_stopped_and_resumed_is_the_same_report(world, monkeypatch):
    chosen = recipe(world)
    whole = do(world, "whole", chosen)
    job = Job.start(world / "cut", "recipe: x\n")
    asked = []

    def stop_after_seven(prompt):
        asked.append(prompt)
        if len(asked) == 7:
            job.cancel()
        return answer_from_passages(prompt)

    monkeypatch.setattr(
        answers_module, "open_text_model", lambda ref, backend: scripted_model(stop_after_seven)
    )
    with pytest.raises(Cancelled):
        run(chosen, job)
    job.close()
    again = do(world, "cut", chosen, resume=True)
    assert again.digest == whole.digest
    assert len(asked) == 4 * 9


@pytest.mark.slow  # the next test stops the same job in this process
def test_killed_and_resumed_is_the_same_report(world, tmp_path):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"*": "in 1800"}))
    program = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from stillroom.evaluate.qa import answers
        from stillroom.evaluate.jobs.report import EvaluateRecipe, run
        from stillroom.jobs import Job
        from stillroom.testing import scripted_model
        world, die_at = Path(sys.argv[1]), int(sys.argv[2])
        said = []
        def answer(prompt):
            said.append(1)
            if len(said) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return "in " + prompt.messages[-1].content[9:12]
        answers.open_text_model = lambda ref, backend: scripted_model(answer)
        recipe = EvaluateRecipe(records=str(world / "records.jsonl"), fidelity=None,
                                models={"one": "scripted:a.json", "two": "scripted:b.json"})
        job = Job.start(world / sys.argv[3], "recipe: x\\n", resume=True)
        print(run(recipe, job).digest)
    """)

    def start(die_at, name):
        return run_process([sys.executable, "-c", program, str(world), str(die_at), name])

    assert start(13, "killed").returncode == -signal.SIGKILL
    resumed = start(10_000, "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == start(10_000, "straight").stdout


def test_passages_that_do_not_fit_are_left_out_and_counted(world, monkeypatch):
    monkeypatch.setattr(
        answers_module,
        "open_text_model",
        lambda ref, backend: scripted_model(answer_from_passages, context_length=140),
    )
    artifact = do(world, "out", recipe(world, fidelity=None))
    cut = artifact.details["left_out"]["student, with passages: passage did not fit the context"]
    assert 0 < cut < 50


def test_an_index_of_another_cut_is_measured_by_the_evidence_it_holds(world):
    row = record(3)
    row = Record(
        row.messages, {**row.fields, "evidence": {"passage_id": "gone", "quote": "Dale was"}}
    )
    write_records(world / "records.jsonl", [row])
    do(world, "out", recipe(world, fidelity=None))
    metric = Report.read(world / "out" / "output").metrics["retrieval/recip_rank"]
    assert (metric.value, metric.n) == (1.0, 1)


def test_endpoints_are_evaluated_without_weights_and_said_so(world):
    artifact = do(world, "out", recipe(world, models={"far": "http://127.0.0.1:1/v1"}))
    assert artifact.details["left_out"]["far: an endpoint gives no logits"] == 1
    assert "far/size_bytes" not in Report.read(world / "out" / "output").metrics


def test_fidelity_before_distillation_is_read_from_the_artifact(world):
    distilled = world / "distilled"
    job = Job.start(distilled, "x")
    rows = [{"kl": 4.0, "tokens": 10}, {"kl": 2.0, "tokens": 30}, {"kl": 0.0, "tokens": 0}]
    job.finish("checkpoint", details={"fidelity": {"initial": rows}})
    do(world, "out", recipe(world, fidelity={"distilled": str(distilled)}))
    metric = Report.read(world / "out" / "output").metrics["student/kl_to_teacher/initial"]
    assert (metric.value, metric.n) == (2.5, 2)


def test_nothing_to_ask_is_an_error_that_counts_why():
    with pytest.raises(DataError, match="not held out") as caught:
        select_questions([record(0, split="train")], limit=5, seed=0)
    assert caught.value.code == "data.no-questions"


def test_without_a_question_the_report_says_so_where_the_recipe_goes_on(world):
    write_records(world / "records.jsonl", [record(0, split="train")])
    artifact = do(world, "out", recipe(world, on_too_few="continue"))
    assert artifact.details["questions"] == 0
    assert artifact.details["left_out"]["not held out"] == 1
    report = Report.read(world / "out" / "output")
    assert report.summary.startswith("No held-out question could be asked")
    assert "student/parameters" in report.metrics
    assert not [name for name in report.metrics if name.startswith(("answers/", "retrieval/"))]


def test_the_choice_of_questions_does_not_depend_on_their_order():
    rows = [record(at) for at in range(9)]
    one, skipped = select_questions(rows, limit=4, seed=0)
    two, _ = select_questions(rows[::-1], limit=4, seed=0)
    assert {question.id for question in one} == {question.id for question in two}
    assert skipped == {"more than max_questions": 5}
    assert {q.id for q in select_questions(rows, limit=4, seed=1)[0]} != {q.id for q in one}


def test_records_made_elsewhere_are_asked_whole():
    row = Record((Message("user", "Why?"), Message("assistant", "Because.")))
    questions, _ = select_questions([row, row], limit=5, seed=0)
    assert [(q.text, q.answer) for q in questions] == [("Why?", "Because.")]


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        find_records(tmp_path)
    assert caught.value.code == "data.missing"


def test_an_unknown_answerer_names_the_known(tmp_path):
    with pytest.raises(RecipeError) as caught:
        open_rag_system(tmp_path, "nonesuch")
    assert caught.value.code == "recipe.unknown-answerer"


def test_the_protocol_is_checkable():
    assert isinstance(Towns(), RagSystem)


@pytest.mark.parametrize("models", [{}, {"a/b": "x"}, {"": "x"}])
def test_models_need_plain_names(models):
    with pytest.raises(ValueError, match="name"):
        EvaluateRecipe(records="x", models=models)


def test_estimate_grows_with_the_questions_and_loads_nothing(world):
    small, large = (estimate(recipe(world, max_questions=n)) for n in (10, 1000))
    assert large.seconds > 50 * small.seconds > 0
    assert large.disk_bytes > small.disk_bytes
    assert "teacher" not in small.basis
    assert "far" in estimate(recipe(world, models={"far": "http://x"})).basis


def test_a_model_of_another_backend_is_asked_but_has_no_perplexity(world):
    asked = recipe(world)
    config = world / "student" / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "stillroom_backend": "diffusion"}))
    artifact = do(world, "out", asked)
    note = "student: read by backend 'diffusion', it has no next-token perplexity"
    assert artifact.details["left_out"][note] == 1
    metrics = Report.read(world / "out" / "output").metrics
    assert "teacher/perplexity" in metrics
    assert not any(name.startswith("student/") and "perplexity" in name for name in metrics)
    assert "answers/student/closed/f1" in metrics


def test_endpoints_are_evaluated_without_torch(world, tmp_path):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"*": "in 1800"}))
    program = textwrap.dedent("""
        import sys
        sys.modules["torch"] = sys.modules["transformers"] = None
        from pathlib import Path
        from stillroom.flow import run_recipe
        from stillroom.evaluate.jobs.report import EvaluateRecipe
        models = {"one": f"scripted:{sys.argv[2]}"}
        recipe = EvaluateRecipe(records=sys.argv[1], models=models)
        print(run_recipe(recipe, Path(sys.argv[3])).kind)
    """)
    words = [str(world / "records.jsonl"), str(script), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert done.stdout == "report\n", done.stderr


def test_rows_that_cannot_be_read_are_told_with_the_first_reason(world):
    (world / "records.csv").write_text("Question;Answer\nWhen?;1801\n")
    with pytest.raises(DataError, match="row 1: the row's keys") as caught:
        do(world, "out", recipe(world, records=str(world / "records.csv")))
    assert caught.value.code == "data.no-questions"
    assert "{" not in str(caught.value)


def test_a_checkpoint_that_is_no_artifact_is_named_by_its_fingerprint(world):
    model = tiny_checkpoint(world / "plain")
    settings = recipe(world, models={"plain": str(model)}, fidelity=None)
    (parent,) = (one for one in do(world, "out", settings).parents if one.role == "plain")
    assert parent.digest == evaluator.Checkpoint.open(model).fingerprint
    assert parent.kind == "checkpoint"
