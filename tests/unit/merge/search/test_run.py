import json
import math
import multiprocessing
import signal
import sys
import time

import pytest
import torch
from click.testing import CliRunner
from tests.engine_works import PicklingEngine
from tests.processes import Process, preloaded_context
from tests.unit.merge.conftest import rewrite

from stillroom.checkpoints import Checkpoint
from stillroom.cli.merge.analysis import search_command
from stillroom.errors import Cancelled, DataError, MissingExtraError, RecipeError
from stillroom.jobs import Job
from stillroom.merge.engine.merge import open_merge
from stillroom.merge.jobs.search import MergeSearchRecipe, estimate, run
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.jobs.weights import run as run_merge
from stillroom.merge.search import optimizers
from stillroom.merge.search.scoring import MergeScorer, ScoringSettings
from stillroom.merge.search.space import SearchSpace, apply_changes, list_baselines
from stillroom.recipes import dump_recipe, load_recipe
from stillroom.records import Message, Record, read_records, write_records
from stillroom.testing import tiny_checkpoint

WORDS = "the river rises in the north and flows to the sea by old mills of corn".split()
CMA_OF_2, CMA_OF_3 = ({"name": "cma", "population": count} for count in (2, 3))
WEIGHTS = [{"setting": "weight", "model": at, "low": 0, "high": 1} for at in (0, 1)]
RUN = """
import sys
from pathlib import Path
from stillroom.jobs import Job
from stillroom.merge.jobs.search import run
from stillroom.recipes import load_recipe
path = Path(sys.argv[1])
run(load_recipe(path), Job.start(Path(sys.argv[2]), path.read_text(), resume=True))
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "records.jsonl"

    def record(number):
        answer = " ".join(WORDS[number % 7 : number % 7 + 3 + number % 5])
        messages = (Message("user", f"Where is {number}?"), Message("assistant", answer))
        return Record(messages, {"split": "held_out"})

    write_records(path, [record(number) for number in range(32)])
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base, and two copies: a large noise added, and half of it taken away.

    So the base lies on the line between them, at a third of the way, where no hand recipe is.
    """
    folder = tmp_path_factory.mktemp("pair")
    base = tiny_checkpoint(folder / "base")
    rng = torch.Generator().manual_seed(5)
    checkpoint = Checkpoint.open(base)
    noise = {n: 0.4 * torch.randn(checkpoint.shape(n), generator=rng) for n in checkpoint.names()}
    plus = rewrite(base, folder / "plus", lambda name, tensor: tensor + noise[name])
    minus = rewrite(base, folder / "minus", lambda name, tensor: tensor - 0.5 * noise[name])
    return base, plus, minus


def recipe_for(models, records, method="linear", **settings):
    search = {"records": str(records), "evaluations": 24}
    search |= {"optimizer": {"name": "cma", "population": 6}}
    search |= settings.pop("search", {})
    if "space" not in search and "layer_path" not in search:
        search["space"] = WEIGHTS
    return MergeSearchRecipe.model_validate(
        {
            "method": method,
            "models": [{"model": str(path)} for path in models],
            "search": search,
        }
        | settings
    )


def start(out, recipe, **settings):
    return Job.start(out, dump_recipe(recipe), **settings)


def search_once(tmp_path_factory, pair, records, **search):
    """Search in a folder that is never changed; return the recipe, the artifact, the folder."""
    out = tmp_path_factory.mktemp("searched") / "out"
    recipe = recipe_for(pair[1:], records, search=search)
    return recipe, run(recipe, start(out, recipe)), out


@pytest.fixture(scope="module")
def searched(tmp_path_factory, pair, records):
    return search_once(tmp_path_factory, pair, records)


@pytest.fixture(scope="module")
def short(tmp_path_factory, pair, records):
    return search_once(tmp_path_factory, pair, records, evaluations=6)


@pytest.mark.parametrize("optimizer", ["cma", "tpe"])
def test_a_search_finds_what_no_hand_recipe_has_and_proves_it(
    optimizer, searched, tmp_path_factory, pair, records
):
    if optimizer != "cma":
        settings = {"name": optimizer, "batch": 6}
        searched = search_once(tmp_path_factory, pair, records, optimizer=settings)
    _, artifact, out = searched
    details = artifact.details["search"]
    assert details["helped"] is True
    assert details["tried"] == 24
    assert details["records"] == {"search": 16, "choose": 8, "final": 8}
    final = details["final"]
    assert final["difference"]["high"] < 0
    assert final["difference_to_hand"]["high"] < 0
    assert final["kept"]["low"] <= final["kept"]["value"] <= final["kept"]["high"]
    names = [row["name"] for row in details["candidates"]]
    assert names[:4] == ["plus", "minus", "as written", "equal weights"]
    table = json.loads((out / "output" / "search.json").read_text())["trials"]
    assert [row["number"] for row in table] == list(range(24))
    assert "that the search never saw" in (out / "output" / "README.md").read_text()


def test_the_found_recipe_alone_gives_the_same_weights(searched, tmp_path):
    _, artifact, out = searched
    found = load_recipe(out / "best.yaml")
    assert found.kind == "merge.weights"
    assert found.models[0].weight == artifact.details["search"]["changes"]["models"]["0"]["weight"]
    again = run_merge(found, start(tmp_path / "again", found))
    assert again.details["fingerprint"] == artifact.details["fingerprint"]


def test_the_final_value_is_that_of_the_written_model_on_unseen_records(searched, records):
    from stillroom.evaluate.lm.loss import held_out_loss
    from stillroom.merge.search.scoring import draw_records
    from stillroom.models import load_causal_lm

    _, artifact, out = searched
    details = artifact.details["search"]
    drawn = draw_records(str(records), split="", limit=200, seed=0, warn=print)
    model, tokenizer = load_causal_lm(out / "output", dtype="float32")
    losses = held_out_loss(model, tokenizer, drawn[3::4])
    expected = math.fsum(n for n, _ in losses) / sum(t for _, t in losses)
    assert details["final"]["kept"]["value"] == pytest.approx(expected, rel=1e-6)


def test_where_nothing_beats_the_best_parent_it_is_kept_and_said(pair, records, tmp_path):
    base, plus, _ = pair
    space = [{"setting": "weight", "model": 1, "low": 0.5, "high": 1}]
    recipe = recipe_for(
        [base, plus], records, search={"space": space, "evaluations": 4, "optimizer": CMA_OF_2}
    )
    artifact = run(recipe, start(tmp_path / "out", recipe))
    assert artifact.details["search"]["helped"] is False
    assert artifact.details["search"]["kept"] == "base"
    assert Checkpoint.open(tmp_path / "out").fingerprint == Checkpoint.open(base).fingerprint
    card = (tmp_path / "out" / "output" / "README.md").read_text()
    assert "nothing beats the best parent, base" in card
    found = load_recipe(tmp_path / "out" / "best.yaml")
    assert found.method.method_name() == "passthrough"
    assert [model.model for model in found.models] == [str(base)]


def test_a_path_through_layers_is_found_and_written(pair, records, tmp_path):
    base, plus, _ = pair
    path = {"length": 3, "order": "layers"}
    recipe = recipe_for(
        [plus, base],
        records,
        "passthrough",
        search={
            "layer_path": path,
            "evaluations": 12,
            "objective": {"name": "agreement", "teacher": str(base)},
        },
    )
    artifact = run(recipe, start(tmp_path / "out", recipe))
    table = json.loads((tmp_path / "out" / "output" / "search.json").read_text())["trials"]
    lengths = set()
    for row in table:
        parts = [part["sources"][0]["layer_range"] for part in row["changes"]["slices"]]
        lengths.add(sum(stop - begin for begin, stop in parts))
    assert lengths <= {1, 2, 3}
    assert len(lengths) > 1
    assert artifact.details["search"]["kept"] == "base"
    assert artifact.details["search"]["final"]["kept"]["value"] == 1.0


def test_several_processes_find_the_same(pair, records, tmp_path, monkeypatch):
    context = preloaded_context()
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    here = recipe_for(pair[1:], records, search={"evaluations": 4})
    there = recipe_for(pair[1:], records, search={"evaluations": 4, "workers": 2})
    one = run(here, start(tmp_path / "one", here))
    two = run(there, start(tmp_path / "two", there))
    assert one.digest == two.digest


def test_a_killed_search_goes_on_to_the_same_bytes(pair, records, tmp_path):
    recipe = recipe_for(pair[1:], records, search={"evaluations": 16})
    straight = run(recipe, start(tmp_path / "straight", recipe))
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    command = [sys.executable, "-c", RUN, str(file), str(tmp_path / "out")]
    journal = tmp_path / ".out.partial" / "journals" / "trials.jsonl"
    process = Process(command)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if journal.exists() and journal.read_text().count("trial ") >= 5:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate()
    assert not (tmp_path / "out").exists()
    again = run(recipe, start(tmp_path / "out", recipe, resume=True))
    assert again.digest == straight.digest
    assert again.details == straight.details


def test_what_is_tried_is_not_tried_again(short, tmp_path, monkeypatch):
    recipe, straight, _ = short
    job = start(tmp_path / "out", recipe)
    scored, score = [], MergeScorer.score

    def count(self, merge, drawn):
        scored.append([source.weight for source in merge.parents])
        if len(scored) == 7:
            job.cancel()
        return score(self, merge, drawn)

    monkeypatch.setattr(MergeScorer, "score", count)
    with pytest.raises(Cancelled):
        run(recipe, job)
    job.close()
    again = run(recipe, start(tmp_path / "out", recipe, resume=True))
    assert again.digest == straight.digest
    # 2 parents, 2 hand recipes, 6 trials, and the 5 best once more on other records
    assert len(scored) == 2 + 2 + 6 + 5


def test_another_optimizer_version_is_noticed(pair, records, tmp_path, monkeypatch):
    recipe = recipe_for(pair[1:], records, search={"evaluations": 6})
    job = start(tmp_path / "out", recipe)
    score = MergeScorer.score
    monkeypatch.setattr(MergeScorer, "score", lambda *args: (job.cancel(), score(*args))[1])
    with pytest.raises(Cancelled):
        run(recipe, job)
    job.journal("trials").put("trial 0", {"point": [0.25, 0.5], "scores": [[1.0, 1]] * 16})
    job.close()
    monkeypatch.setattr(MergeScorer, "score", score)
    job = start(tmp_path / "out", recipe, resume=True)
    with pytest.raises(DataError) as caught:
        run(recipe, job)
    job.close()
    assert caught.value.code == "merge.search-resume"


def test_candidates_that_cannot_be_merged_are_counted(pair, records, tmp_path):
    # slerp allows 0 to 1: half of this range is outside
    recipe = recipe_for(
        pair[1:],
        records,
        {"name": "slerp"},
        search={
            "space": [{"setting": "t", "low": -1, "high": 1}],
            "evaluations": 12,
        },
    )
    details = run(recipe, start(tmp_path / "out", recipe)).details["search"]
    assert 0 < details["failed_trials"] < 12
    table = json.loads((tmp_path / "out" / "output" / "search.json").read_text())["trials"]
    assert all(row["failed"] for row in table if row["value"] is None)


def test_a_space_in_which_nothing_merges_is_refused(pair, records, tmp_path):
    space = [{"setting": "t", "low": 2, "high": 3}]
    recipe = recipe_for(
        pair[1:],
        records,
        "slerp",
        search={"space": space, "evaluations": 3, "optimizer": CMA_OF_3},
    )
    job = start(tmp_path / "out", recipe)
    with pytest.raises(RecipeError) as caught:
        run(recipe, job)
    job.close()
    assert caught.value.code == "merge.search"


def test_patience_and_time_end_a_search(pair, records, tmp_path):
    recipe = recipe_for(pair[1:], records, search={"evaluations": 500, "patience": 6})
    details = run(recipe, start(tmp_path / "patient", recipe)).details["search"]
    assert details["stopped"] in {"patience", "converged"}
    assert details["tried"] < 500
    recipe = recipe_for(pair[1:], records, search={"evaluations": 500, "time_limit": "100ms"})
    details = run(recipe, start(tmp_path / "timed", recipe)).details["search"]
    assert details["stopped"] == "time"
    assert 0 < details["tried"] < 500


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"space": [{"setting": "weight", "model": 7, "low": 0, "high": 1}]}, "model"),
        ({"space": [{"setting": "densty", "low": 0, "high": 1}]}, "setting"),
        ({"space": [{"setting": "density", "model": 0, "low": 0, "high": 1}]}, "setting"),
        ({"layer_path": {"models": [4]}, "space": []}, "path"),
    ],
)
def test_what_is_not_there_is_not_searched(settings, where, pair, records):
    with pytest.raises(ValueError, match=rf"search\.[\w.]*{where}[\w.]*: .*\[merge\.search\]"):
        recipe_for(pair[1:], records, search=settings)


def test_too_few_records_are_refused(pair, tmp_path):
    few = [Record((Message("user", "a"), Message("assistant", f"b {n}"))) for n in range(5)]
    write_records(tmp_path / "few.jsonl", few)
    recipe = recipe_for(pair[1:], tmp_path / "few.jsonl", search={"split": ""})
    job = start(tmp_path / "out", recipe)
    with pytest.raises(DataError) as caught:
        run(recipe, job)
    job.close()
    assert caught.value.code == "merge.no-records"


@pytest.mark.parametrize("name", ["cma", "tpe"])
def test_a_missing_library_says_which_extra_brings_it(name, pair, records, monkeypatch):
    monkeypatch.setitem(sys.modules, {"cma": "cma", "tpe": "optuna"}[name], None)
    search = recipe_for(pair[1:], records, search={"optimizer": name}).search
    with pytest.raises(MissingExtraError, match="search"):
        optimizers.create_optimizer(search, [0.5, 0.5], 0)


def test_a_point_becomes_settings_gradients_and_paths(pair, records):
    base, plus, minus = pair
    space = [
        {"setting": "density", "low": 0.2, "high": 1},
        {"setting": "weight", "model": 1, "low": -1, "high": 1},
        {
            "setting": "density",
            "model": 0,
            "tensors": ["*mlp*"],
            "low": 0,
            "high": 1,
            "gradient": 2,
        },
    ]
    recipe = recipe_for(
        [plus, minus], records, "ties", base_model=str(base), search={"space": space}
    )
    found = SearchSpace.of(recipe, [])
    assert found.size == len(found.labels) == 4
    assert found.begin()[1] == 1.0
    changes = found.read([0.5, 0.25, 0.0, 1.0])
    changed = apply_changes(recipe, changes)
    assert changed.method.density == pytest.approx(0.6)
    assert changed.models[1].weight == -0.5
    assert changed.parameters[0].value == (0.0, 1.0)
    assert json.loads(json.dumps(changes)) == changes


def test_layers_in_a_row_are_one_slice(pair, records):
    recipe = recipe_for(pair[:2], records, "passthrough", search={"layer_path": {"repeats": 2}})
    space = SearchSpace.of(recipe, [2, 2])
    assert space.size == 8
    assert space.read(space.begin())["slices"] == [
        {"sources": [{"model": 0, "layer_range": [0, 2]}]}
    ]
    point = [0.9, 0.1, 0.1, 0.7, 0.6, 0.8, 0.1, 0.1]
    parts = [part["sources"][0] for part in space.read(point)["slices"]]
    assert parts == [
        {"model": 0, "layer_range": [0, 1]},
        {"model": 1, "layer_range": [1, 2]},
        {"model": 0, "layer_range": [0, 2]},
    ]
    assert space.read([0.1] * 7 + [0.4])["slices"] == [
        {"sources": [{"model": 1, "layer_range": [1, 2]}]}
    ]


def test_hand_recipes_are_the_one_written_and_equal_weights(pair, records):
    recipe = recipe_for(pair[1:], records)
    changes = list_baselines(recipe)["equal weights"]
    assert [model.weight for model in apply_changes(recipe, changes).models] == [0.5, 0.5]


@pytest.mark.parametrize("objective", ["f1", "em", "kl"])
def test_other_objectives_measure_every_record(objective, pair, records, tmp_path):
    base = str(pair[0])
    recipe = MergeWeightsRecipe.model_validate(
        {"method": "passthrough", "models": [{"model": base}]}
    )
    more = {"teacher": base} if objective == "kl" else {"max_new_tokens": 4}
    search = recipe_for(pair[1:], records, search={"objective": {"name": objective} | more}).search
    measure = ScoringSettings(search.objective)
    scorer = MergeScorer(measure, tmp_path / "scratch", print)
    drawn = list(read_records(records))[:4]
    scores = scorer.score(open_merge(recipe), drawn)
    assert len(scores) == 4
    if objective == "kl":
        assert all(value == pytest.approx(0, abs=1e-6) and count > 0 for value, count in scores)
    else:
        assert all(0 <= value <= 1 and count == 1 for value, count in scores)
    assert measure.sign == (1 if objective == "kl" else -1)


def test_the_estimate_counts_the_trials(pair, records):
    few = estimate(recipe_for(pair[1:], records, search={"evaluations": 10}))
    many = estimate(recipe_for(pair[1:], records, search={"evaluations": 1000}))
    assert many.seconds > 10 * few.seconds


def test_the_command_shows_what_was_found(short):
    out = short[2]
    shown = CliRunner().invoke(search_command, [str(out), "--trials", "3"])
    assert shown.exit_code == 0
    assert "that the search never saw" in " ".join(shown.output.split()).lower()
    assert shown.output.count("models.0.weight=") == 3
    data = json.loads(CliRunner().invoke(search_command, [str(out), "--json"]).output)
    assert len(data["search"]["trials"]) == 6


def test_a_folder_without_a_search_is_refused(tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "search.json").write_text("[]")
    shown = CliRunner().invoke(search_command, [str(tmp_path)])
    assert isinstance(shown.exception, DataError)
    assert shown.exception.code == "merge.no-search"


def test_a_clusters_workers_find_what_a_search_here_finds(pair, records, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    recipe = recipe_for(
        pair[1:], records, search={"evaluations": 6, "optimizer": {"name": "cma", "population": 3}}
    )
    here = run(recipe, start(tmp_path / "here", recipe))
    job = start(tmp_path / "there", recipe)
    job.engine = PicklingEngine()
    assert run(recipe, job).digest == here.digest
    assert job.engine.count() == {"_TrialWork": 6}
    left = [path.name for path in (tmp_path / "temporary").iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor")]  # torch's own


@pytest.mark.parametrize(("tensors", "why"), [("*", "not finite"), ("*norm*", "scores")])
def test_candidates_with_numbers_too_large_are_failed_trials(tensors, why, pair, records, tmp_path):
    high = 1e39 if tensors == "*" else 2e37
    item = {"setting": "weight", "tensors": [tensors], "low": high / 2, "high": high}
    space = [item | {"model": at} for at in (0, 1)]
    recipe = recipe_for(
        pair[1:],
        records,
        {"name": "linear", "normalize": False},
        search={"space": space, "evaluations": 4, "optimizer": {"name": "cma", "population": 4}},
    )
    job = start(tmp_path / "out", recipe)
    with pytest.raises(RecipeError, match=why) as caught:
        run(recipe, job)
    job.close()
    assert caught.value.code == "merge.search"


def test_settings_that_count_or_switch_are_searched_as_such(pair, records):
    space = [
        {"setting": "max_iter", "low": 1, "high": 20},
        {"setting": "tol", "low": 0.1, "high": 0.2},
    ]
    recipe = recipe_for(pair[1:], records, "karcher", search={"space": space})
    found = SearchSpace.of(recipe, []).read([0.52, 0.0])["method"]
    assert found == {"max_iter": 11, "tol": 0.1}
    assert isinstance(found["max_iter"], int)
    space = [{"setting": "normalize", "low": 0, "high": 1}]
    recipe = recipe_for(pair[1:], records, search={"space": space})
    assert [SearchSpace.of(recipe, []).read([at])["method"]["normalize"] for at in (0.2, 0.9)] == [
        False,
        True,
    ]


def test_a_search_begins_where_the_recipe_is(pair, records):
    base, plus, minus = pair
    tensors = ["*mlp*"]
    space = [
        {"setting": "scale", "low": 0, "high": 2},
        {"setting": "weight", "model": 0, "low": 0, "high": 4},
        {"setting": "weight", "model": 1, "tensors": tensors, "low": 0, "high": 1},
    ]
    parameters = [{"setting": "weight", "model": 1, "tensors": tensors, "value": 0.25}]
    recipe = recipe_for(
        [plus, minus],
        records,
        {"name": "task_arithmetic", "scale": 0.5},
        base_model=str(base),
        parameters=parameters,
        search={"space": space},
    )
    assert SearchSpace.of(recipe, []).begin() == [0.25, 0.25, 0.25]


def test_a_path_is_no_longer_than_twice_the_first_model(pair, records):
    recipe = recipe_for(pair[:2], records, "passthrough", search={"layer_path": {"repeats": 3}})
    space = SearchSpace.of(recipe, [2, 2])
    slices = space.read([0.9] * space.size)["slices"]
    spans = [part["sources"][0]["layer_range"] for part in slices]
    assert sum(stop - begin for begin, stop in spans) == 4


def test_a_path_does_not_go_with_slices_or_a_model_that_is_not_there(pair, records):
    parts = [{"sources": [{"model": 0, "layer_range": [0, 1]}]}]
    search = {"layer_path": {"models": [0, 7]}}
    with pytest.raises(ValueError, match=r"slices: .*generates slices[\s\S]*layer_path\.models: "):
        recipe_for(pair[:2], records, "passthrough", search=search, slices=parts)
    space = [{"setting": "weight", "model": 0, "low": 0, "high": 1}]
    with pytest.raises(ValueError, match="cannot be searched with slices"):
        recipe_for(pair[:2], records, search={"space": space}, slices=parts)


@pytest.mark.parametrize(
    ("search", "shown"),
    [
        ({"space": [WEIGHTS[0] | {"gradient": 2}]}, "models.0.weight['*']=["),
        ({"layer_path": {"length": 2}}, "0:0-1"),
    ],
)
def test_the_command_shows_gradients_and_paths(search, shown, pair, records, tmp_path):
    method = "passthrough" if "layer_path" in search else "linear"
    recipe = recipe_for(pair[1:], records, method, search=search | {"evaluations": 8})
    run(recipe, start(tmp_path / "out", recipe))
    output = CliRunner().invoke(search_command, [str(tmp_path / "out"), "--trials", "8"]).output
    assert shown in output


@pytest.mark.parametrize(
    "settings",
    [
        {"space": [{"setting": "weight", "model": 0, "low": 1, "high": 1}]},
        {"objective": "kl"},
        {"objective": {"name": "loss", "teacher": "somewhere"}},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, pair, records):
    with pytest.raises(ValueError, match=r"low must|set 'space'|teacher"):
        recipe_for(pair[1:], records, search=settings)
