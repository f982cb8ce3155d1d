"""Stages are timed, spans have the names that dashboards know, and no text leaves unasked."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from functools import partial

import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.errors import RecipeError
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.models.backends.scripted import ScriptedModel
from stillroom.rag import observability
from stillroom.rag.generation import answer as answers
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.rag.observability import (
    CONTENT_VARIABLE,
    collect_stages,
    open_span,
    stage,
    start_tracing,
)
from stillroom.records import Answer

# These tests script what the model writes.
ask = partial(answers.ask, answering="generate")
ask_stream = partial(answers.ask_stream, answering="generate")

CANARY = "zanzibarquux"
ANSWER = f"The canary is {CANARY} [1]."


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """Index a document and return its index and a model, both full of a word to look for."""
    place = tmp_path_factory.mktemp("secret")
    (place / "documents").mkdir()
    for name in ("a", "b", "c"):
        text = f"# {name}\n\nThe canary is {CANARY}. It sits in cage {name} and sings.\n"
        (place / "documents" / f"{name}.md").write_text(text)
    job = Job.start(place / "index", "recipe\n")
    run(IndexRecipe(documents=str(place / "documents")), job, embedder=open_embedder("static"))
    job.close()
    return place / "index"


@pytest.fixture
def spans(monkeypatch):
    """Return a list that grows by every span that ends, of a tracer of this test's own."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(observability, "_get_tracer", lambda: provider.get_tracer("test"))
    return exporter.get_finished_spans


def model():
    return ScriptedModel({"*": ANSWER})


def test_an_answer_says_what_each_stage_took(secret):
    with Index.open(secret, embedder=open_embedder("static")) as index:
        answer = ask(index, model(), f"who is {CANARY}?", reranker="mmr")
        took = answer.details["stage_ms"]
        assert set(took) == {
            *("embed", "keyword", "dense", "fuse", "rerank", "retrieve"),
            *("prompt", "generate", "check"),
        }
        parts = sum(took[name] for name in ("embed", "keyword", "dense", "fuse", "rerank"))
        assert 0 < parts <= took["retrieve"]
        *_, streamed = ask_stream(index, model(), "canary?", retriever="keyword")
        assert isinstance(streamed, Answer)
        assert {"keyword", "retrieve", "generate"} <= set(streamed.details["stage_ms"])
        nothing = ask(index, model(), " ")
        assert nothing.details["abstained"]
        assert "generate" not in nothing.details["stage_ms"]


def test_times_are_each_threads_own_and_reach_outer_collectors():
    seen = []

    def work():
        with collect_stages() as times, stage("fuse"):
            pass
        seen.append(set(times.milliseconds))

    with collect_stages() as outer:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with collect_stages() as inner, stage("embed"), stage("dense"):
            pass
        with contextlib.suppress(ValueError), stage("keyword"):
            raise ValueError
    assert seen == [{"fuse"}]
    assert inner.milliseconds.keys() == {"dense", "embed"}
    assert outer.milliseconds.keys() == {"dense", "embed", "keyword"}
    with stage("fuse") as span:  # nobody listens
        assert not span.is_recording
    open_span("ask").end()


def test_spans_have_the_names_of_both_conventions_and_no_text(secret, spans, monkeypatch):
    monkeypatch.delenv(CONTENT_VARIABLE, raising=False)
    with Index.open(secret, embedder=open_embedder("static")) as index:
        ask(index, model(), f"who is {CANARY}?", reranker="mmr")
        list(ask_stream(index, model(), f"where is {CANARY}?"))
        digest = index.digest
    told = spans()
    by_name = {span.name: span for span in told}
    found = by_name["rag.retrieve"].attributes
    assert found["openinference.span.kind"] == "RETRIEVER"
    assert found["gen_ai.operation.name"] == "retrieval"
    assert found["gen_ai.data_source.id"] == digest
    assert found["retrieval.documents.0.document.id"].startswith("pas")
    assert json.loads(found["gen_ai.retrieval.documents"])[0]["score"] > 0
    assert by_name["rag.rerank"].attributes["reranker.model_name"] == "mmr"
    written = by_name["rag.generate"].attributes
    assert written["gen_ai.usage.output_tokens"] == written["llm.token_count.completion"] > 0
    roots = [span for span in told if span.parent is None]
    assert [span.name for span in roots] == ["rag.ask", "rag.ask"]
    assert {span.context.trace_id for span in told} == {span.context.trace_id for span in roots}
    assert CANARY not in "".join(span.to_json() for span in told)


def test_texts_are_told_where_that_is_asked(secret, spans, monkeypatch):
    monkeypatch.setenv(CONTENT_VARIABLE, "1")
    with Index.open(secret, embedder=open_embedder("static")) as index:
        ask(index, model(), f"who is {CANARY}?", reranker="mmr")
    by_name = {span.name: span.attributes for span in spans()}
    assert by_name["rag.ask"]["input.value"] == f"who is {CANARY}?"
    assert by_name["rag.ask"]["output.value"] == ANSWER
    assert CANARY in by_name["rag.retrieve"]["retrieval.documents.0.document.content"]
    assert by_name["rag.rerank"]["reranker.query"] == f"who is {CANARY}?"


def test_no_text_is_in_any_log(secret, tmp_path, caplog, recwarn, capfd):
    caplog.set_level(logging.DEBUG)
    place = tmp_path / "documents"
    place.mkdir()
    (place / "a.md").write_text(f"The canary is {CANARY}.\n")
    (place / "empty.md").write_text("")
    (place / "b.json").write_text(f'{{"broken": "{CANARY}')
    job = Job.start(tmp_path / "index", "recipe\n")
    recipe = IndexRecipe(documents=str(place), max_failed=0.5)
    run(recipe, job, embedder=open_embedder("static"))
    job.close()
    with Index.open(secret, embedder=open_embedder("static")) as index:
        for way in ("keyword", "dense", "hybrid", "convex"):
            ask(index, model(), f"who is {CANARY}?", retriever=way, transform="expand")
        list(ask_stream(index, model(), f"who is {CANARY}?"))
    logs = [path.read_text() for path in (tmp_path / "index").glob("*.jsonl")]
    out, err = capfd.readouterr()
    warned = [str(one.message) for one in recwarn]
    assert len(logs) >= 1
    assert CANARY not in "\n".join([*logs, caplog.text, out, err, *warned])


def test_a_search_shows_its_times(secret):
    def search(*words):
        done = CliRunner().invoke(stillroom, ["rag", "search", str(secret), "canary", *words])
        assert done.exit_code == 0, done.output
        return done.output

    plain = search("--pipeline", "keyword", "--timings")
    assert "keyword" in plain
    assert " ms" in plain
    told = json.loads(search("--pipeline", "keyword", "--timings", "--json"))
    assert set(told["stage_ms"]) == {"keyword", "retrieve"}
    assert "stage_ms" not in json.loads(search("--pipeline", "keyword", "--json"))


def test_spans_go_where_the_variable_says(secret, tmp_path):
    pytest.importorskip("opentelemetry.sdk")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from stillroom.models import open_embedder\n"
        "from stillroom.rag.index.searcher import Index\n"
        "assert 'opentelemetry' not in sys.modules, 'tracing is imported unasked'\n"
        "from stillroom.rag.observability import configure_from_environment\n"
        "from stillroom.rag.retrieval.pipeline import retrieve\n"
        "configure_from_environment()\n"
        "with Index.open(Path(sys.argv[1]), embedder=open_embedder('static')) as index:\n"
        "    retrieve(index, 'canary', retriever='keyword')\n"
    )
    command = [sys.executable, "-c", script, str(secret)]
    file = tmp_path / "spans.jsonl"
    environment = {**os.environ, "STILLROOM_TRACE": str(file), "STILLROOM_METRICS": "otlp"}
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert "STILLROOM_METRICS has no effect" in done.stderr
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["rag.keyword", "rag.retrieve"]
    assert CANARY not in file.read_text()
    with pytest.raises(RecipeError) as caught:
        start_tracing("the moon")
    assert caught.value.code == "rag.trace"
    assert "STILLROOM_TRACE=spans.jsonl" in caught.value.problems[0].next
