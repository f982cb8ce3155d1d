"""A new chunker or embedder is built beside, measured, switched to in one step, and rolled back."""

import json
import shutil
import signal
import sys

import pytest
from click.testing import CliRunner
from tests.processes import run_process

from stillroom.cli import stillroom
from stillroom.errors import DataError, IntegrityError, StillroomError
from stillroom.flow import run_recipe
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.maintenance.rebuild import RecallCheck, drop_previous, rebuild_index, roll_back
from stillroom.rag.maintenance.update import update_index
from stillroom.rag.rerankers.recency import Recency
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.recipes import parse_recipe

CHUNKER = ("chunker.name=recursive", "chunker.size=16")


@pytest.fixture
def recipe(folder):
    return IndexRecipe(documents=str(folder), embedder="static")


@pytest.fixture
def place(recipe, tmp_path):
    run_recipe(recipe, tmp_path / "index")
    return tmp_path / "index"


def digest_of(place):
    with Index.open(place) as index:
        assert retrieve(index, "cat", 1)
        return index.digest


def test_a_rebuild_is_measured_switched_and_rolled_back(place, folder):
    before = digest_of(place)
    (folder / "late.txt").write_text("Owls hunt at night.\n")
    with Index.open(place) as reader:
        told = CliRunner().invoke(stillroom, ["rag", "rebuild", str(place), *CHUNKER])
        assert told.exit_code == 0, (told.output, told.exception)
        assert "known-item questions" in told.output
        assert "mrr@10" in told.output
        assert len(retrieve(reader, "cat", 1)) == 1  # what is open goes on
    after = digest_of(place)
    assert after != before
    assert read_artifact(place).details["rebuilt"]["questions"] == "known-item"
    assert verify_artifact(place) == []
    assert update_index(place).unchanged == 7
    roll_back(place, anyway=True)
    assert digest_of(place) == before
    assert update_index(place).added == 1
    roll_back(place)
    assert digest_of(place) == after
    assert drop_previous(place)
    assert not drop_previous(place)
    with pytest.raises(DataError) as caught:
        roll_back(place)
    assert caught.value.problems[0].code == "rag.no-previous"


def test_what_was_deleted_since_a_rebuild_does_not_answer_after_a_rollback(place, folder):
    assert CliRunner().invoke(stillroom, ["rag", "rebuild", str(place), *CHUNKER]).exit_code == 0
    (folder / "animals/cats.md").unlink()
    (folder / "animals/dogs.md").write_text("Dogs never bark.\n")
    update_index(place)
    told = CliRunner().invoke(stillroom, ["rag", "rebuild", str(place), "--rollback"])
    assert told.exit_code == 0, (told.output, told.exception)
    assert "0 added, 1 changed, 0 renamed, 1 deleted" in told.output
    with Index.open(place) as index:
        held = {index.passage_at(row).location.path: row for row in range(len(index))}
        assert "animals/cats.md" not in held
        assert index.passage_at(held["animals/dogs.md"]).text == "Dogs never bark."
    assert verify_artifact(place) == []
    answering = read_artifact(place).details["index"]
    folder.rename(folder.with_name("moved"))
    refused = CliRunner().invoke(stillroom, ["rag", "rebuild", str(place), "--rollback"])
    assert refused.exit_code != 0
    assert "--anyway" in str(refused.exception)
    assert read_artifact(place).details["index"] == answering
    again = CliRunner().invoke(stillroom, ["rag", "rebuild", str(place), "--rollback", "--anyway"])
    assert again.exit_code == 0, (again.output, again.exception)
    assert read_artifact(place).details["index"] != answering


def test_judged_questions_decide_and_what_is_worse_is_not_switched_to(place, recipe, tmp_path):
    before = digest_of(place)
    queries, qrels = tmp_path / "queries.jsonl", tmp_path / "qrels.tsv"
    asked = {f"q{at}": text for at, text in enumerate(["cat sleeps", "dog barks", "France"] * 4)}
    paths = ["animals/cats.md", "animals/dogs.md", "places/paris.txt"] * 4
    queries.write_text(
        "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in asked.items())
    )
    rows = [f"{name}\t{path}\t1" for name, path in zip(asked, paths, strict=True)]
    qrels.write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n")
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("cats.md", "dogs.md", "paris.txt"):
        (bad / name).write_text("Nothing that was asked.\n")
    (bad / "animals").mkdir()
    (bad / "animals/cats.md").write_text("A cat sleeps.\n")
    worse = IndexRecipe(documents=str(bad), embedder="static")
    questions = RecallCheck(queries, qrels, pipeline="keyword")
    with pytest.raises(IntegrityError) as caught:
        rebuild_index(place, worse, questions)
    assert caught.value.problems[0].code == "rag.rebuild-worse"
    assert "judged" in caught.value.problems[0].what
    assert digest_of(place) == before
    done = rebuild_index(place, worse, questions, anyway=True)
    assert done.is_switched
    assert done.kind == "judged"
    assert digest_of(place) != before
    roll_back(place)
    assert digest_of(place) == before
    again = rebuild_index(place, recipe, questions)
    assert again.board.differences["after"]["mrr@10"][0].value == 0


@pytest.mark.parametrize(
    ("judged", "options", "what"),
    [
        ("animals/cats.md 1\nq2 0 animals/dogs.md 1", {}, "1 judged queries have no text"),
        ("animals/cats.md 0", {}, "nothing is judged relevant"),
        ("no/such.md 1", {}, "no judged id is in the index"),
        ("animals/cats.md 1", {"measures": ("ndgc@10",)}, "'ndgc@10' is not a measure"),
        ("animals/cats.md 1", {"pipeline": "keywrod"}, "keywrod"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_built(
    place, recipe, tmp_path, judged, options, what
):
    queries, qrels = tmp_path / "queries.tsv", tmp_path / "qrels.txt"
    queries.write_text("q1\tcat sleeps\n")
    qrels.write_text(f"q1 0 {judged}\n")
    with pytest.raises(StillroomError) as caught:
        rebuild_index(place, recipe, RecallCheck(queries, qrels, **options))
    assert what in caught.value.problems[0].what
    assert not list(tmp_path.glob(".index*"))


KILLED = """
import os, sys
from pathlib import Path
from stillroom.rag.maintenance import rebuild
from stillroom.rag.maintenance.rebuild import RecallCheck, rebuild_index
from stillroom.recipes import parse_recipe
swap_folders = rebuild.swap_folders
def kill(one, other):
    if sys.argv[2] == "after":
        swap_folders(one, other)
    os.kill(os.getpid(), 9)
rebuild.swap_folders = kill
text = Path(sys.argv[1], "recipe.yaml").read_text()
rebuild_index(Path(sys.argv[1]), parse_recipe(text, "x", sys.argv[3:]), RecallCheck())
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_the_switch_leaves_one_of_the_two_whole(place, when):
    before = digest_of(place)
    killed = run_process(
        [sys.executable, "-c", KILLED, str(place), when, *CHUNKER],
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert verify_artifact(place) == []
    if when == "before":
        assert digest_of(place) == before
        done = CliRunner().invoke(stillroom, ["rag", "rebuild", str(place), *CHUNKER])
        assert done.exit_code == 0, (done.output, done.exception)
    after = digest_of(place)
    assert after != before
    roll_back(place)
    assert digest_of(place) == before
    roll_back(place)
    assert digest_of(place) == after


def stop_deletion(patch, when):
    rmtree = shutil.rmtree

    def delete_in_part(folder, **options):
        if not folder.name.startswith(".index.previous"):
            return rmtree(folder, **options)
        if when == "while it is deleted":
            rmtree(folder / "output")
        raise KeyboardInterrupt

    patch.setattr(shutil, "rmtree", delete_in_part)


@pytest.mark.parametrize("when", ["before anything is deleted", "while it is deleted"])
def test_a_second_rebuild_stopped_after_its_switch_rolls_back_by_one(place, monkeypatch, when):
    text = (place / "recipe.yaml").read_text()
    first = digest_of(place)
    rebuild_index(place, parse_recipe(text, "x", CHUNKER), RecallCheck(), anyway=True)
    second = digest_of(place)
    sized = parse_recipe(text, "x", ("chunker.name=recursive", "chunker.size=24"))
    with monkeypatch.context() as patch:
        stop_deletion(patch, when)
        with pytest.raises(KeyboardInterrupt):
            rebuild_index(place, sized, RecallCheck(), anyway=True)
    third = digest_of(place)
    assert len({first, second, third}) == 3
    roll_back(place, anyway=True)
    assert digest_of(place) == second
    roll_back(place)
    assert digest_of(place) == third
    assert drop_previous(place)
    assert not list(place.parent.glob(".index*"))


def test_what_a_stopped_drop_left_is_not_rolled_back_to(place, monkeypatch):
    text = (place / "recipe.yaml").read_text()
    rebuild_index(place, parse_recipe(text, "x", CHUNKER), RecallCheck(), anyway=True)
    live = digest_of(place)
    with monkeypatch.context() as patch:
        stop_deletion(patch, "while it is deleted")
        with pytest.raises(KeyboardInterrupt):
            drop_previous(place)
    with pytest.raises(DataError) as caught:
        roll_back(place, anyway=True)
    assert caught.value.problems[0].code == "rag.no-previous"
    assert digest_of(place) == live
    assert drop_previous(place)
    assert not list(place.parent.glob(".index*"))


def test_an_index_built_as_the_previous_one_was_is_not_taken_for_it(place, recipe):
    """It is built, but not switched to; what was built is kept for the next rebuild."""
    text = (place / "recipe.yaml").read_text()
    rebuild_index(place, parse_recipe(text, "x", CHUNKER), RecallCheck(), anyway=True)
    shadow = place.with_name(".index.next")
    run_recipe(recipe, shadow)
    with pytest.raises(DataError):
        rebuild_index(place, recipe, RecallCheck(measures=("ndgc@10",)))
    assert shadow.exists()


def test_ages_in_a_comparison_are_those_of_one_day(folder, recipe, tmp_path, monkeypatch):
    (folder / "dated.md").write_text("---\ndate: 2020-01-01\n---\nOwls hunt at night.\n")
    place = tmp_path / "index"
    run_recipe(recipe, place)
    days = []
    rerank = Recency.rerank
    noted = lambda method, *rest: days.append(method.today) or rerank(method, *rest)  # noqa: E731
    monkeypatch.setattr(Recency, "rerank", noted)
    rebuild_index(place, recipe, RecallCheck(pipeline="keyword+recency"), anyway=True)
    assert len(days) > 2
    assert None not in days
    assert len(set(days)) == 1
