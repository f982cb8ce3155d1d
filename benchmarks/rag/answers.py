"""The end-to-end answer set: docs-qa, more than half of its questions without an answer to find.

For every way of answering: F1 and exactness of what is answered, faithfulness, precision and recall
of citations, and how often the way is silent where it should be and where it should not. All from
one embedded model (SmolLM2-135M), then again through an endpoint of OpenAI's kind, which is our own
server with the same model: what is answered must be the same, word for word.

Runs a job of kind ``rag.answer_evaluation``, so that a run that is stopped goes on where it was;
the first run makes the index. All 77 questions are asked in a drawn order, so that ``--most``
asks a random sample. Intervals are bootstrap, 95 %. STILLROOM_ANSWERS_KEPT names where it is kept.

    python benchmarks/rag/answers.py
    python benchmarks/rag/answers.py --endpoint
"""

import argparse
import contextlib
import json
import random
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.rag.question_sets import BUILD, Asked, build_index, hold_out, read_docs_qa

from stillroom.errors import Cancelled
from stillroom.evaluate import Report
from stillroom.flow import run_recipe
from stillroom.models import open_text_model
from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe

WAYS = ("convex=>generate", "convex=>generate!drop", "convex=>corrective:queries=0!drop")
SHOWN = (
    "right",
    "f1",
    "faithfulness",
    "citation_precision",
    "citation_recall",
    "abstention_precision",
    "abstention_recall",
    "context_recall",
)


def choose(questions: list[Asked], most: int) -> list[Asked]:
    """Return the questions in a drawn order, the first ``most`` of it if that is not 0."""
    drawn = random.Random(0).sample(questions, len(questions))
    return drawn[: most or None]


def write_questions(questions: list[Asked], texts: dict[str, str]) -> Path:
    """Write the questions as JSON lines; evidence is the file that holds the answer."""
    path = BUILD / f"docs-qa/questions-{len(questions)}.jsonl"
    rows = [
        {
            "id": one.id,
            "question": one.text,
            "answers": [one.answer] if one.is_answerable else [],
            "evidence": [{"path": f"{name}.md"} for name in one.right],
        }
        for one in questions
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@contextlib.contextmanager
def endpoint() -> Iterator[str]:
    """Serve the embedded model on this machine as an endpoint; yield its reference."""
    import uvicorn

    from stillroom.serve import ServedModel, create_app

    model = open_text_model(DEFAULT_TEACHER, num_threads=1)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(ServedModel("smol", model)), log_level="error")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1#smol"
    finally:
        server.should_exit = True
        thread.join(10)
        model.close()


def main() -> None:
    """Measure, print one line a figure, and go on where an earlier run stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=0, help="0 asks all")
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--endpoint", action="store_true")
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    given = parser.parse_args()
    texts, questions = hold_out(*read_docs_qa())
    index = build_index("docs-qa", texts)
    asked = write_questions(choose(questions, given.most), texts)
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(endpoint()) if given.endpoint else DEFAULT_TEACHER
        recipe = AnswerEvaluationRecipe(
            index=str(index),
            questions=str(asked),
            model=reference,
            pipelines=given.ways,
            k=given.k,
            depth=10,
        )
        kind = "endpoint" if given.endpoint else "embedded"
        out = BUILD / f"docs-qa/answers-{kind}-{given.most}"
        if given.seconds:
            signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
            signal.alarm(given.seconds)
        try:
            artifact = run_recipe(recipe, out, resume=True, overwrite=True)
        except Cancelled:
            print("stopped; run again to go on", file=sys.stderr)
            return
    report = Report.from_json(artifact.details)
    for name, metric in report.metrics.items():
        if name.rpartition("/")[2] in SHOWN:
            value = {"value": metric.value, "interval": [metric.low, metric.high], "n": metric.n}
            print(json.dumps({"model": kind, "figure": name, **value}), flush=True)


if __name__ == "__main__":
    main()
