"""Sweeps: what is shared is made once, the best is measured where it was not chosen, kills."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from tests.unit.rag.jobs import run_report

from stillroom.cli import stillroom
from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.metrics.bootstrap import adjust_p_values
from stillroom.flow import run_recipe
from stillroom.models import open_embedder
from stillroom.provenance import digest_file
from stillroom.rag.embedding.cache import CachedEmbedder
from stillroom.rag.evaluation import sweep_job
from stillroom.rag.evaluation.retrieval import search_query
from stillroom.rag.evaluation.sweep import SweepCost, SweepRow, evaluate_sweep
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import run
from stillroom.rag.jobs.sweep import SweepRecipe, build_variant, list_configurations
from stillroom.rag.rerankers.mmr import Mmr

TOPICS = ["otter", "heron", "badger", "lynx", "weasel", "marten", "beaver", "stoat", "raven", "owl"]


@pytest.fixture
def recipe(tmp_path):
    """Return a function that makes a recipe over forty small documents with known evidence."""
    folder = tmp_path / "documents"
    folder.mkdir()
    rows = []
    for number, (topic, act) in enumerate(
        (topic, act) for topic in TOPICS for act in ("sleeps", "hunts", "nests", "swims")
    ):
        fact = f"The {topic} {act} near river number {number}."
        text = f"# The {topic}\n\nMuch is said of it. {fact} Nobody knows why.\n"
        (folder / f"{topic}-{act}.md").write_text(text)
        rows.append({"id": f"q{number}", "question": f"Where is it that the {topic} {act}?"})
        rows[-1].update(answer=f"river number {number}", evidence=[{"quote": fact}])
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**sweep):
        settings = {
            "questions": str(questions),
            "pipelines": ["keyword", "dense"],
            "grid": {"chunker": ["heading", {"name": "sentence", "size": 16}]},
            **sweep,
        }
        index = {"documents": str(folder), "embedder": "builtin:static"}
        return SweepRecipe(index=index, **settings)

    return make


def test_the_embedder_is_chosen_by_language_as_for_an_index(recipe, tmp_path, monkeypatch):
    asked = []

    def choose(settings, root, files, job):
        asked.append((settings.embedder, len(files)))
        return "builtin:static"

    monkeypatch.setattr("stillroom.rag.evaluation.sweep_job.choose_embedder", choose)
    sweep = recipe(cache=str(tmp_path / "cache"))
    sweep = sweep.model_copy(
        update={"index": sweep.index.model_copy(update={"embedder": "builtin:auto"})}
    )
    artifact, _ = run_report(sweep, tmp_path / "out")
    assert artifact.kind == "report"
    assert asked == [("builtin:auto", 40)] * 2


def test_a_sweep_names_the_best_and_leaves_its_recipe(recipe, tmp_path):
    artifact, report = run_report(recipe(cache=str(tmp_path / "cache")), tmp_path / "out")
    assert artifact.kind == "report"
    assert set(artifact.details["best"]["choices"]) == {"chunker", "pipeline"}
    tables = {section.title: section for section in report.sections}
    assert "On the 20 questions that choose" in tables["Leaderboard"].text
    (changes,) = (table for title, table in tables.items() if title.startswith("Each change"))
    assert len(changes.table.rows) == 3
    assert [section.title for section in report.sections][:2] == [
        "Leaderboard",
        "The best on questions that did not choose it",
    ]
    rows = (tmp_path / "out/output/leaderboard.jsonl").read_text().splitlines()
    assert len(rows) == 4
    assert len(json.loads(rows[0])["values"]) == 40
    best = tmp_path / "out/output/best.yaml"
    assert "--pipeline" in best.read_text().splitlines()[0]
    done = CliRunner().invoke(stillroom, ["check", str(best)])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "cache/indexes").glob("*/artifact.json"))) == 2  # ways share them


def test_what_other_weights_rank_is_searched_again_by_a_resumed_sweep(
    recipe, tmp_path, monkeypatch
):
    sweep = recipe(pipelines=["keyword", "keyword+mmr"], grid={})
    searched = []

    def note(index, pipeline, text, **settings):
        if "leave_out" in settings:  # else it warms up
            searched.append(pipeline.name)
        return search_query(index, pipeline, text, **settings)

    def stop(*settings, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweep_job, "evaluate_sweep", stop)
        with pytest.raises(KeyboardInterrupt):
            run_report(sweep, tmp_path / "out")
    monkeypatch.setattr(sweep_job, "search_query", note)
    monkeypatch.setattr(Mmr, "moment", "other weights")
    run_report(sweep, tmp_path / "out", resume=True)
    assert searched == ["keyword+mmr"] * 40


def test_an_index_of_other_metadata_is_not_taken_from_the_cache(recipe, tmp_path):
    sweep = recipe(cache=str(tmp_path / "cache"), pipelines=["keyword"], grid={})
    told = tmp_path / "told.jsonl"
    index = sweep.index.model_copy(update={"metadata": str(told)})
    for year in (2000, 2020):
        told.write_text(json.dumps({"path": "owl-hunts.md", "fields": {"year": year}}) + "\n")
        sweep = sweep.model_copy(update={"index": index})
        artifact, _ = run_report(sweep, tmp_path / f"out-{year}")
        assert digest_file(told) in {parent.digest for parent in artifact.parents}
    years = set()
    for folder in (tmp_path / "cache/indexes").glob("*/output"):
        with Index.open(folder) as opened:
            years |= {year for year in (2000, 2020) if len(opened.restrict(f"year = {year}"))}
    assert years == {2000, 2020}


def test_single_variants_stand_beside_the_combinations():
    sweep = SweepRecipe(
        index={"documents": "x"},
        questions="q",
        grid={"chunker": ["heading", "sentence"]},
        pipelines=["convex"],
        configurations=[
            {"pipeline": "keyword"},
            {"keyword.k1": 0.9, "chunker": "sentence"},
            {"chunker": "sentence"},  # is there already
        ],
    )
    assert [one.name for one in list_configurations(sweep)] == [
        "heading, convex, as is",
        "sentence, convex, as is",
        "heading, keyword, as is",
        "sentence, convex, 0.9",
    ]
    assert list_configurations(sweep)[3].changes == {"chunker": "sentence", "keyword.k1": 0.9}


def test_what_two_sweeps_share_is_made_once(recipe, tmp_path):
    cache = tmp_path / "cache"
    run_recipe(recipe(grid={}, cache=str(cache)), tmp_path / "one")
    stamps = {path: path.stat().st_mtime_ns for path in cache.glob("indexes/*/artifact.json")}
    grid = {"keyword.k1": [1.2, 0.9], "chunker": ["heading"]}
    run_recipe(recipe(grid=grid, cache=str(cache)), tmp_path / "two")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    lines = (tmp_path / "two/output/leaderboard.jsonl").read_text().splitlines()
    costs = {row["choices"]["keyword.k1"]: row["cost"] for row in map(json.loads, lines)}
    assert costs["0.9"]["embedded"] == 0  # same passages, other keywords
    assert costs["1.2"]["embedded"] == costs["1.2"]["passages"]


def test_recalled_vectors_are_the_very_ones(tmp_path):
    inner = open_embedder("static")
    texts = ["a cat", "a dog", "a cat", "the moon " * 3]
    first = CachedEmbedder(inner, tmp_path / "vectors.sqlite")
    vectors = first.embed(texts, kind="passage")
    assert first.computed == 3
    assert (vectors == inner.embed(texts, kind="passage")).all()
    first.close()
    again = CachedEmbedder(inner, tmp_path / "vectors.sqlite")
    assert (again.embed(texts, kind="passage") == vectors).all()
    assert again.computed == 0
    again.embed(["a cat"], kind="query")
    assert again.computed == 1
    assert again.dimensions == inner.dimensions
    again.close()


@pytest.mark.parametrize(
    "blob",
    [b"", b"abc", bytes(8), None, "x" * 1536]
    + [np.full(1024, number, "<f4").tobytes() for number in (np.nan, 1e38)],
)
def test_a_damaged_vector_of_the_cache_is_computed_again(tmp_path, blob):
    inner, texts = open_embedder("static"), ["a cat", "a dog"]
    first = CachedEmbedder(inner, tmp_path / "vectors.sqlite")
    vectors = first.embed(texts, kind="passage")
    first.close()
    for last, count in ((1, 1), (9, 2)):  # one of a batch, and all of them
        store = sqlite3.connect(tmp_path / "vectors.sqlite")
        with store:
            store.execute("UPDATE vectors SET vector = ? WHERE rowid <= ?", (blob, last))
        store.close()
        again = CachedEmbedder(inner, tmp_path / "vectors.sqlite")
        assert (again.embed(texts, kind="passage") == vectors).all()
        assert again.computed == count
        again.close()


def test_a_file_that_is_no_cache_of_vectors_is_named(tmp_path):
    (tmp_path / "vectors.sqlite").write_bytes(b"no database at all" * 99)
    with pytest.raises(DataError) as caught:
        CachedEmbedder(open_embedder("static"), tmp_path / "vectors.sqlite")
    assert caught.value.code == "data.cache"
    assert "vectors.sqlite" in caught.value.problems[0].what


def test_an_index_of_recalled_vectors_is_the_same_index(recipe, tmp_path):
    from stillroom.jobs import Job

    variant = build_variant(recipe(), {})
    digests = []
    for name, embedder in (
        ("plain", open_embedder("static")),
        ("fresh", CachedEmbedder(open_embedder("static"), tmp_path / "v.sqlite")),
        ("recalled", CachedEmbedder(open_embedder("static"), tmp_path / "v.sqlite")),
    ):
        job = Job.start(tmp_path / name, "recipe\n")
        digests.append(run(variant, job, embedder=embedder).details["index"])
        job.close()
    assert len(set(digests)) == 1


@pytest.mark.parametrize(
    ("group", "given", "changes", "expected"),
    [
        ("dense", {}, {"dense.search": "exact"}, {"search": "exact"}),
        (
            "dense",
            {"search": "approximate"},
            {"dense.least_recall": 0.9},
            {"search": "approximate", "least_recall": 0.9},
        ),
    ],
)
def test_a_group_may_change_its_shape(group, given, changes, expected):
    sweep = SweepRecipe(index={"documents": "x", group: given}, questions="q")
    varied = getattr(build_variant(sweep, changes), group).model_dump()
    assert {key: varied[key] for key in expected} == expected


def measured(name, values, cpu_ms=1.0):
    configuration = list_configurations(
        SweepRecipe(index={"documents": "x"}, pipelines=[name], questions="q")
    )[0]
    cost = SweepCost(cpu_ms, cpu_ms, cpu_ms, 1000, 10, 1.0, 10)
    return SweepRow(configuration, {f"q{at}": v for at, v in enumerate(values)}, cost)


def test_a_winner_by_luck_is_not_recommended():
    rng = np.random.default_rng(0)
    first = measured("first", rng.random(60))
    lucky = [measured(f"noise{at}", rng.random(60)) for at in range(20)]
    outcome = evaluate_sweep([first, *lucky], measure="m", held_out=0.5)
    assert outcome.best is not first
    assert not outcome.is_gain
    better = measured("better", np.minimum(np.array(list(first.values.values())) + 0.2, 1), 3.0)
    outcome = evaluate_sweep([first, better, *lucky], measure="m", held_out=0.5)
    assert outcome.best is better
    assert outcome.is_gain
    verdicts = {one.measured.configuration.pipeline: one for one in outcome.changes}
    assert verdicts["better"].verdict == "gain"
    assert verdicts["better"].cpu_ms == 2.0
    shown = sum(one.verdict == "gain" for one in outcome.changes)
    assert shown == 1  # of twenty comparisons with noise, none survives the correction
    with pytest.raises(DataError) as caught:
        evaluate_sweep([measured("first", [0.0] * 12)], measure="m", held_out=0.5)
    assert caught.value.code == "rag.too-few-queries"


def test_holms_correction():
    assert adjust_p_values([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_p_values([0.9, 0.8]) == [1.0, 1.0]
    assert adjust_p_values([]) == []


def test_what_cannot_be_swept_is_refused_before_anything_is_built(recipe, tmp_path):
    many = {"keyword.k1": [0.1 * at for at in range(13)]}
    for changes, code in (
        ({"grid": many}, "rag.sweep-too-many"),
        ({"grid": {"chunkr": ["heading"]}}, "rag.sweep-setting"),
        ({"grid": {"chunker": ["hedding"]}}, "rag.sweep-setting"),
        ({"grid": {"documents": ["elsewhere"]}}, "rag.sweep-setting"),
        ({"pipelines": ["hybird"]}, "recipe.unknown-method"),
    ):
        with pytest.raises(RecipeError) as caught:
            run_recipe(recipe(**changes), tmp_path / "out")
        assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_judgements_of_passages_cannot_tell_chunkers_apart(recipe, tmp_path):
    from stillroom.jobs import Job
    from stillroom.rag.index.searcher import Index

    job = Job.start(tmp_path / "index", "recipe\n")
    run(build_variant(recipe(), {}), job, embedder=open_embedder("static"))
    job.close()
    with Index.open(tmp_path / "index") as index:
        name = index.passage_at(0).id
    asked = range(20)
    (tmp_path / "q.jsonl").write_text(
        "".join(f'{{"id": "{at}", "text": "otter"}}\n' for at in asked)
    )
    (tmp_path / "qrels.txt").write_text("".join(f"{at} 0 {name} 1\n" for at in asked))
    judged = {"queries": str(tmp_path / "q.jsonl"), "qrels": str(tmp_path / "qrels.txt")}
    with pytest.raises(DataError) as caught:
        run_recipe(recipe(questions=judged), tmp_path / "out")
    assert caught.value.code == "rag.sweep-unit"


def test_too_few_questions_are_refused_before_any_index_is_built(recipe, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "1", "text": "otter"}\n')
    (tmp_path / "qrels.txt").write_text("1 0 otter.md 1\n")
    judged = {"queries": str(tmp_path / "q.jsonl"), "qrels": str(tmp_path / "qrels.txt")}
    with pytest.raises(DataError) as caught:
        run_recipe(recipe(questions=judged, cache=str(tmp_path / "cache")), tmp_path / "out")
    assert caught.value.code == "rag.too-few-queries"
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_leaderboard(recipe, tmp_path):
    from stillroom.recipes import dump_recipe

    (tmp_path / "recipe.yaml").write_text(
        dump_recipe(recipe(pipelines=["keyword", "dense", "convex"]))
    )
    words = [sys.executable, "-m", "stillroom", "run", "recipe.yaml", "--out", "out"]
    work = tmp_path / ".out.partial"
    started = subprocess.Popen([*words, "--quiet"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    journal, end = work / "journals/searches.jsonl", time.monotonic() + 60
    while time.monotonic() < end and started.poll() is None:
        if journal.is_file() and journal.stat().st_size > 2000:
            os.kill(started.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    started.wait()
    assert started.returncode == -signal.SIGKILL
    before = len(journal.read_text().splitlines())
    again = [*words, "--resume", "--json", "--quiet"]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, check=True)
    assert before > 0
    words = [*words[:-1], "whole", "--json", "--quiet"]
    whole = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True)

    def values(name):
        rows = (tmp_path / name / "output/leaderboard.jsonl").read_text().splitlines()
        return [(row["choices"], row["choosing"], row["values"]) for row in map(json.loads, rows)]

    assert values("out") == values("whole")
    assert json.loads(done.stdout)["kind"] == json.loads(whole.stdout)["kind"] == "report"


@pytest.mark.parametrize("kind", ["folder", "missing", "binary"])
def test_metadata_that_cannot_be_read_is_refused_by_its_own_error(recipe, tmp_path, kind):
    sweep, told = recipe(pipelines=["keyword"], grid={}), tmp_path / "told.jsonl"
    if kind == "folder":
        told.mkdir()
    elif kind == "binary":
        told.write_bytes(b"\xff{")
    index = sweep.index.model_copy(update={"metadata": str(told)})
    with pytest.raises(DataError) as caught:
        run_report(sweep.model_copy(update={"index": index}), tmp_path / "out")
    assert caught.value.code == "rag.metadata"
