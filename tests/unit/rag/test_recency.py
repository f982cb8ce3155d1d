"""Time decay: what is old counts less, by the documents' own dates."""

import datetime
import json
from functools import partial
from pathlib import Path

import pytest

from stillroom.errors import DataError
from stillroom.flow import run_recipe
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.rag.answer_strategies import quote
from stillroom.rag.evaluation import answer_job, retrieval_job, sweep_job
from stillroom.rag.generation import answer as answers
from stillroom.rag.generation.semantic_cache import SemanticCache
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import RERANKERS, Query
from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.jobs.retrieval_evaluation import RetrievalEvaluationRecipe
from stillroom.rag.jobs.sweep import SweepRecipe
from stillroom.rag.rerankers.recency import Recency
from stillroom.rag.retrieval.pipeline import RetrievalPipeline, parse_rag_pipeline, retrieve
from stillroom.records import Hit
from stillroom.testing import scripted_model
from stillroom.testing.checkpoint import tiny_checkpoint

# These tests script what the model writes.
ask = partial(answers.ask, answering="generate")

SAME = "The pump is serviced by the harbour crew. Note {}."
TODAY = datetime.date(2026, 1, 1)


@pytest.fixture
def dated(build, folder, tmp_path):
    """Index five equal texts: of today, a year old, ten years old, of the year 2016, undated."""
    heads = {
        "new": "date: 2026-01-01",
        "year": "date: 2025-01-01",
        "old": "date: 2016-01-01 10:00",
        "decade": "date: 2015",
        "none": "author: nobody",
    }
    for name, head in heads.items():
        (folder / f"{name}.md").write_text(f"---\n{head}\n---\n{SAME.format(name)}\n")
    build()
    with Index.open(tmp_path / "index") as index:
        yield index


def equal_hits(index, names):
    """Return the passages of some files as hits of equal score."""
    held = {index.passage_at(row).location.path: index.passage_at(row) for row in range(len(index))}
    return [Hit(held[f"{name}.md"], 1.0, rank) for rank, name in enumerate(names, 1)]


def shares(index, names, **settings):
    method = RERANKERS.build({"name": "recency", "today": TODAY, **settings})
    found = method.rerank(Query("harbour pump"), equal_hits(index, names), index)
    return {hit.passage.location.path.removesuffix(".md"): hit.score for hit in found}


def test_half_of_what_decays_is_gone_after_each_half_life(dated):
    found = shares(dated, ["old", "decade", "year", "new"], half_life_days=365, floor=0)
    assert list(found) == ["new", "year", "old", "decade"]
    ages = {"new": 0, "year": 365, "old": 3653, "decade": 3654}
    assert found == pytest.approx({name: 0.5 ** (age / 365) for name, age in ages.items()})


def test_the_floor_is_what_the_oldest_keeps(dated):
    found = shares(dated, ["old", "new"], half_life_days=10, floor=0.3)
    assert found == pytest.approx({"new": 1.0, "old": 0.3}, abs=1e-6)


@pytest.mark.parametrize(("undated", "share"), [(None, 0.5), (0, 1.0), (730, 0.25)])
def test_what_has_no_date_has_the_age_that_is_set(dated, undated, share):
    found = shares(dated, ["none", "new"], floor=0, undated_days=undated)
    assert found["none"] == pytest.approx(share)


def test_what_lies_in_the_future_is_not_raised(dated):
    found = shares(dated, ["new", "year"], today=datetime.date(2024, 1, 1))
    assert found == {"new": 1.0, "year": 1.0}


def test_what_fits_better_by_far_stays_before_what_is_new(dated):
    hits = [
        Hit(hit.passage, score, hit.rank)
        for hit, score in zip(
            equal_hits(dated, ["old", "new", "none"]), [3.0, 1.0, 0.0], strict=True
        )
    ]
    method = RERANKERS.build({"name": "recency", "today": TODAY, "floor": 0.5})
    found = method.rerank(Query("pump"), hits, dated)
    assert [hit.passage.location.path for hit in found] == ["old.md", "new.md", "none.md"]
    assert [hit.rank for hit in found] == [1, 2, 3]


def test_a_search_puts_the_newest_of_equal_passages_first(dated):
    found = retrieve(
        dated, "harbour crew", 4, retriever="keyword", reranker={"name": "recency", "today": TODAY}
    )
    assert found[0].passage.location.path == "new.md"


def test_a_field_that_no_document_has_is_refused(dated):
    with pytest.raises(DataError, match="no document has a field 'published'") as caught:
        shares(dated, ["new"], field="published")
    assert caught.value.code == "rag.unknown-field"


def test_mails_are_dated_by_their_header(build, folder, tmp_path):
    for day, name in ((3, "old"), (28, "new")):
        head = f"Subject: Pump\nFrom: a@b.example\nDate: {day} Mar 2024 23:30:00 -0300\n\n"
        (folder / f"{name}.eml").write_text(head + SAME.format(name))
    build()
    with Index.open(tmp_path / "index") as index:
        newer = index.restrict("date >= 2024-03-28")
        assert {newer.passage_at(row).location.path for row in range(len(newer))} == {"new.eml"}
        found = retrieve(index, "harbour pump", 2, reranker="recency")
        assert [hit.passage.location.path for hit in found] == ["new.eml", "old.eml"]


def test_a_kept_answer_is_given_again_on_the_same_day_only(dated, monkeypatch):
    model = scripted_model(lambda prompt: "The harbour crew services the pump [1].")
    cache = SemanticCache()
    try:
        for day, asked in ((1, 1), (1, 1), (2, 2)):
            today = datetime.date(2026, 1, day)
            monkeypatch.setattr(Recency, "_day", property(lambda self, today=today: today))
            ask(dated, model, "who services the pump", reranker="recency", cache=cache)
            assert len(model.asked) == asked
    finally:
        cache.close()


def stop(*settings, **named):
    raise KeyboardInterrupt


def test_a_pipeline_counts_ages_from_the_day_that_it_is_given():
    day = datetime.date(2030, 1, 1)
    undated, dated = "keyword+recency=>corrective", "keyword+recency:today=2026-01-01"
    assert parse_rag_pipeline(undated).on_day(day).moment == "2030-01-01"
    assert parse_rag_pipeline(undated).on_day(day).name == undated
    assert parse_rag_pipeline(dated).on_day(day).moment == "2026-01-01"
    assert parse_rag_pipeline("keyword+mmr").on_day(day) == parse_rag_pipeline("keyword+mmr")


def run_backdated(recipe, folder, monkeypatch, module, name):
    """Stop a job where it begins to search, date its start back, resume it, and return its days."""
    searched = []
    work = getattr(module, name)

    def note(*settings, **named):
        found = [one for one in (*settings, *named.values()) if isinstance(one, RetrievalPipeline)]
        searched.extend(pipeline.moment for pipeline in found)
        return work(*settings, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, folder)
    events = folder.parent / f".{folder.name}.partial/events.jsonl"
    first, *others = events.read_text().splitlines(keepends=True)
    event = {**json.loads(first), "time": "2016-01-02T03:00:00.000+00:00"}
    events.write_text("".join([json.dumps(event) + "\n", *others]))
    with monkeypatch.context() as patch:
        patch.setattr(module, name, note)
        run_recipe(recipe, folder, resume=True)
    return set(searched)


def find_differences(folder):
    result = plan_replay(folder, ReplayAmount.parse("all")).run()
    assert result.drawn
    return [f"{one.name} {one}" for _, one in result.differences]


@pytest.fixture
def asked(tmp_path):
    """Return the queries and the relevant documents of an evaluation of retrieval."""
    queries, qrels = tmp_path / "queries.jsonl", tmp_path / "qrels.txt"
    rows = [{"_id": f"{n}", "text": f"harbour pump {n}"} for n in range(20)]
    queries.write_text("\n".join(map(json.dumps, rows)))
    qrels.write_text("".join(f"{n} 0 new.md 1\n" for n in range(20)))
    return {"queries": str(queries), "qrels": str(qrels)}


def test_an_evaluation_counts_from_the_day_it_was_started(dated, asked, tmp_path, monkeypatch):
    def rank(name, pipeline, is_stopped):
        recipe = RetrievalEvaluationRecipe(
            index=str(tmp_path / "index"), pipelines=[pipeline], **asked
        )
        out = tmp_path / name
        if is_stopped:
            days = run_backdated(recipe, out, monkeypatch, retrieval_job, "search_query")
            assert days == {"2016-01-02"}
        else:
            run_recipe(recipe, out)
        (run,) = out.glob("output/**/*.trec")
        return [line.split()[2:5:2] for line in run.read_text().splitlines()]

    found = rank("out", "keyword+recency", is_stopped=True)
    assert found == rank("same", "keyword+recency:today=2016-01-02", is_stopped=False)
    assert found != rank("now", "keyword+recency", is_stopped=False)


def test_a_sweep_counts_from_the_day_it_was_started(dated, folder, asked, tmp_path, monkeypatch):
    recipe = SweepRecipe(
        index={"documents": str(folder), "embedder": "builtin:static"},
        pipelines=["keyword+recency"],
        questions=asked,
    )
    days = run_backdated(recipe, tmp_path / "out", monkeypatch, sweep_job, "search_query")
    assert days == {"2016-01-02"}


def make_evaluation(folder):
    """Return the recipe of an evaluation of answers whose inputs are in a folder, to be given."""
    asked = [{"id": f"{n}", "question": f"who services the pump {n}?", "answers": ["harbour crew"]}
             for n in range(3)]  # fmt: skip
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    tiny_checkpoint(Path("model"))
    return AnswerEvaluationRecipe(
        index=str(folder / "index"),
        questions=str(folder / "asked.jsonl"),
        model=str(folder / "model"),
        pipelines=["keyword+recency=>quote:reader=builtin:overlap"],
    )


def test_answers_from_relative_places_are_replayed_in_another_folder(dated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_recipe(make_evaluation(Path()), tmp_path / "out")
    monkeypatch.chdir("/")
    names = ("index", "asked.jsonl", "model")
    moved = {str(tmp_path / "out" / name): str(tmp_path / name) for name in names}
    result = plan_replay(tmp_path / "out", ReplayAmount.parse("all"), moved=moved).run()
    assert [f"{one.name} {one}" for _, one in result.differences] == []
    assert result.drawn >= 3


def test_a_reader_of_a_pipeline_that_is_not_here_leaves_the_job_open(dated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overlap = quote.open_available_reader("builtin:overlap")
    monkeypatch.setattr(quote, "open_available_reader", lambda *_: overlap)
    recipe = make_evaluation(tmp_path)
    for number, place in enumerate(("rd", str(tmp_path / "rd"))):
        Path("rd").mkdir(exist_ok=True)
        out = tmp_path / f"out{number}"
        pipelines = [f"keyword=>quote:reader={place},min_probability=0!drop"]
        run_recipe(recipe.model_copy(update={"pipelines": pipelines}), out)
        assert find_differences(out) == []
        Path("rd").rmdir()
        opened = [one.open for one in plan_replay(out, ReplayAmount.parse("all")).jobs]
        assert any(f"names {place}, which is not here" in one for one in opened)


@pytest.mark.parametrize("place", [" builtin:overlap", "~/rd", "c++;a>b"])
def test_a_reader_of_a_pipeline_that_is_here_leaves_no_job_open(
    dated, tmp_path, monkeypatch, place
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    overlap = quote.open_available_reader("builtin:overlap")
    monkeypatch.setattr(quote, "open_available_reader", lambda *_: overlap)
    Path(place).expanduser().mkdir()
    pipelines = [f"keyword=>quote:reader={place},min_probability=0!drop"]
    recipe = make_evaluation(tmp_path).model_copy(update={"pipelines": pipelines})
    run_recipe(recipe, tmp_path / "out")
    assert find_differences(tmp_path / "out") == []
    jobs = plan_replay(tmp_path / "out", ReplayAmount.parse("all")).jobs
    assert not any(place.strip() in one.open for one in jobs)


def test_a_text_that_names_a_relative_input_in_full_is_replayed(folder, tmp_path, monkeypatch):
    (folder / "own.md").write_text(f"---\nsource: {folder}/own.md\n---\nIt sleeps.\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run_recipe(IndexRecipe(documents="../documents", embedder="builtin:static"), tmp_path / "out")
    assert find_differences(tmp_path / "out") == []


def test_answers_are_resumed_and_replayed_on_another_day(dated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, out = make_evaluation(tmp_path), tmp_path / "out"
    days = run_backdated(recipe, out, monkeypatch, answer_job, "run_question")
    assert days == {"2016-01-02"}
    assert find_differences(out) == []
