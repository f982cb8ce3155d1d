import math
import shutil
from dataclasses import replace

import pytest
import torch
from tests.unit.merge.conftest import rewrite

from stillroom.checkpoints import Checkpoint
from stillroom.errors import Cancelled, DataError
from stillroom.jobs import Job
from stillroom.merge.jobs.select import MergeSelectRecipe, run
from stillroom.merge.search.scoring import MergeScorer
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

SENTENCE = "the river rises in the north and flows to the sea by old mills of corn"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Twenty held-out conversations, and ten of another split that must not judge."""
    path = tmp_path_factory.mktemp("records") / "records.jsonl"

    def record(number, split):
        words = SENTENCE.split()
        answer = " ".join(words[number % 7 : number % 7 + 3 + number % 5])
        messages = (Message("user", f"Where is {number}?"), Message("assistant", answer))
        return Record(messages, {"split": split})

    splits = ["held_out"] * 20 + ["train"] * 10
    write_records(path, [record(number, split) for number, split in enumerate(splits)])
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base, and two copies with the same large noise added and taken away."""
    folder = tmp_path_factory.mktemp("pair")
    base = tiny_checkpoint(folder / "base")
    rng = torch.Generator().manual_seed(5)
    checkpoint = Checkpoint.open(base)
    noise = {
        name: 0.4 * torch.randn(checkpoint.shape(name), generator=rng)
        for name in checkpoint.names()
    }
    plus = rewrite(base, folder / "plus", lambda name, tensor: tensor + noise[name])
    minus = rewrite(base, folder / "minus", lambda name, tensor: tensor - noise[name])
    return base, plus, minus


def start(out, **settings):
    return Job.start(out, "recipe", **settings)


def recipe_for(models, records, **settings):
    chosen = {"records": str(records)} | settings.pop("select", {})
    return MergeSelectRecipe.model_validate(
        {
            "method": "linear",
            "models": [{"model": str(path)} for path in models],
            "select": chosen,
        }
        | settings
    )


def test_a_merge_that_helps_is_kept_and_said_to_help(pair, records, tmp_path):
    base, plus, minus = pair
    artifact = run(recipe_for([plus, minus], records), start(tmp_path / "out"))
    details = artifact.details
    assert [row["name"] for row in details["candidates"]] == ["plus", "minus", "linear"]
    assert details["kept"] == "linear"
    assert details["helped"] is True
    assert details["difference"]["high"] < 0
    assert details["confirmed_on_other_records"] is True
    for row in details["candidates"]:
        assert row["low"] <= row["loss"] <= row["high"]
        assert row["n"] == 15
    assert details["final"]["records"] == 5  # a quarter, by itself
    assert details["final"]["difference"]["high"] < 0
    merged, whole = Checkpoint.open(tmp_path / "out"), Checkpoint.open(base)
    for name in whole.names():
        assert torch.allclose(merged.tensor(name), whole.tensor(name), atol=1e-6)
    assert "records" in [parent.role for parent in artifact.parents]


def test_where_no_merge_helps_the_best_parent_is_kept_as_it_is(pair, records, tmp_path):
    base, plus, _ = pair
    recipe = recipe_for(
        [plus], records, base_model=str(base), select={"interpolations": [0.5, 0.9]}
    )
    artifact = run(recipe, start(tmp_path / "out"))
    names = [row["name"] for row in artifact.details["candidates"]]
    assert names == ["base", "plus", "linear at 0.5", "linear at 0.9"]
    assert artifact.details["kept"] == "base"
    assert artifact.details["helped"] is False
    assert Checkpoint.open(tmp_path / "out").fingerprint == Checkpoint.open(base).fingerprint
    card = (tmp_path / "out" / "output" / "README.md").read_text()
    assert "Merging did not lower the held-out loss" in card


def test_a_merge_as_good_as_its_parent_is_not_called_better(pair, records, tmp_path):
    base, _, _ = pair
    artifact = run(recipe_for([base, base], records), start(tmp_path / "out"))
    assert artifact.details["kept"] == "base"
    assert artifact.details["helped"] is False


def test_checkpoints_along_the_run_are_averaged(pair, records, tmp_path):
    base, plus, minus = pair
    student = shutil.copytree(plus, tmp_path / "student")
    shutil.copytree(base, student / "candidates" / "9")
    shutil.copytree(minus, student / "candidates" / "10")
    shutil.copytree(plus, student / "candidates" / "20")
    recipe = recipe_for([student], records, select={"averages": [2, 3, 7]})
    artifact = run(recipe, start(tmp_path / "out"))
    names = [row["name"] for row in artifact.details["candidates"]]
    assert names == [
        "student",
        "average of the last 2 of student",
        "average of the last 3 of student",
    ]
    assert artifact.details["helped"] is True
    assert artifact.details["skipped_averages"] == [7]


def test_the_same_merge_is_not_scored_twice(pair, records, tmp_path):
    _, plus, minus = pair
    student = shutil.copytree(plus, tmp_path / "student")
    shutil.copytree(minus, student / "candidates" / "10")
    recipe = MergeSelectRecipe.model_validate(
        {
            "method": "run_average",
            "models": [{"model": str(student), "last_checkpoints": 2}],
            "select": {"records": str(records), "averages": [2]},
        }
    )
    artifact = run(recipe, start(tmp_path / "out"))
    names = [row["name"] for row in artifact.details["candidates"]]
    assert names == ["student", "run_average"]


def test_scores_that_are_done_stay_done(pair, records, tmp_path, monkeypatch):
    _, plus, minus = pair
    recipe = recipe_for([plus, minus], records)
    straight = run(recipe, start(tmp_path / "straight"))
    job = start(tmp_path / "out")
    job.cancel()
    with pytest.raises(Cancelled):
        run(recipe, job)
    job.close()
    scored, score = [], MergeScorer.score
    monkeypatch.setattr(
        MergeScorer,
        "score",
        lambda scorer, merge, *rest: (
            scored.append(merge.method.method_name()) or score(scorer, merge, *rest)
        ),
    )
    again = run(recipe, start(tmp_path / "out", resume=True))
    assert scored == ["passthrough", "linear"]  # minus as it is, and the merge
    assert again.digest == straight.digest
    assert again.details["candidates"] == straight.details["candidates"]


def test_the_loss_is_that_of_the_model_that_is_kept(pair, records, tmp_path):
    from stillroom.evaluate.lm.loss import held_out_loss
    from stillroom.models import load_causal_lm
    from stillroom.records import read_records

    _, plus, minus = pair
    recipe = recipe_for([plus, minus], records, select={"test_share": 0})
    artifact = run(recipe, start(tmp_path / "out"))
    assert "final" not in artifact.details
    model, tokenizer = load_causal_lm(tmp_path / "out" / "output", dtype="float32")
    held_out = [r for r in read_records(records) if r.fields["split"] == "held_out"]
    losses = held_out_loss(model, tokenizer, held_out)
    expected = math.fsum(n for n, _ in losses) / sum(t for _, t in losses)
    row = artifact.details["candidates"][-1]
    assert row["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("settings", [{"split": "test"}, {"max_records": 2, "max_tokens": 16}])
def test_records_that_cannot_judge_are_refused(settings, pair, tmp_path):
    long = Record(
        (Message("user", "why " * 200), Message("assistant", "so")), {"split": "held_out"}
    )
    write_records(tmp_path / "long.jsonl", [long])
    job = start(tmp_path / "out")
    with pytest.raises(DataError) as caught:
        run(recipe_for(pair[1:], tmp_path / "long.jsonl", select=settings), job)
    job.close()
    assert caught.value.code == "merge.no-records"


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_judge_the_first_model_is_kept_where_the_recipe_goes_on(count, pair, tmp_path):
    base, plus, minus = pair
    row = Record((Message("user", "why"), Message("assistant", "so")), {"split": "held_out"})
    other = replace(row, fields={"split": "train"})
    write_records(tmp_path / "few.jsonl", [other, *[row] * count])
    recipe = recipe_for([plus, minus], tmp_path / "few.jsonl", on_too_few="continue")
    artifact = run(recipe.model_copy(update={"base_model": str(base)}), start(tmp_path / "out"))
    assert artifact.details["kept"] == "plus"
    assert artifact.details["helped"] is False
    assert artifact.details["candidates"] == []
    assert Checkpoint.open(tmp_path / "out").fingerprint == Checkpoint.open(plus).fingerprint
    card = (tmp_path / "out" / "output" / "README.md").read_text()
    assert f"No merge was judged: {artifact.details['left_out']}. Kept as it is: plus." in card


def test_a_final_part_takes_no_part_in_the_choice(pair, records, tmp_path):
    from stillroom.evaluate.lm.loss import held_out_loss
    from stillroom.merge.search.scoring import draw_records
    from stillroom.models import load_causal_lm

    _, plus, minus = pair
    recipe = recipe_for([plus, minus], records, select={"test_share": 0.4})
    details = run(recipe, start(tmp_path / "out")).details
    assert details["records"] == {"choosing": 6, "confirming": 6}
    assert all(row["n"] == 12 for row in details["candidates"])
    final = details["final"]
    assert final["records"] == final["kept"]["n"] == 8
    assert final["difference"]["high"] < 0
    drawn = draw_records(str(records), split="held_out", limit=200, seed=0, warn=print)
    model, tokenizer = load_causal_lm(tmp_path / "out" / "output", dtype="float32")
    losses = held_out_loss(model, tokenizer, drawn[12:])
    expected = math.fsum(n for n, _ in losses) / sum(t for _, t in losses)
    assert final["kept"]["loss"] == pytest.approx(expected, rel=1e-6)


def test_models_that_cannot_be_filled_in_memory_are_written_and_loaded(
    pair, records, tmp_path, monkeypatch
):
    from stillroom.merge.search import scoring

    _, plus, minus = pair
    recipe = recipe_for([plus, minus], records)
    straight = run(recipe, start(tmp_path / "straight"))
    monkeypatch.setattr(scoring, "_fits", lambda model, plan: False)
    written = run(recipe, start(tmp_path / "written"))
    assert written.details == straight.details
