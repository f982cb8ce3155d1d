"""What is said of a job before it runs, beside what the job then did."""

import json

import pytest
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import build, estimate, preflight, run
from tests.unit.distill.teacher_servers import TeacherServer, serving

from stillroom.distill.data import tokenized
from stillroom.distill.data.tokenized import tokenize_records
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.preflight import resources
from stillroom.distill.preflight.resources import ResourceEstimator
from stillroom.distill.preflight.workload import describe_workload
from stillroom.distill.settings import PruneSettings
from stillroom.jobs import Job
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

FAST = {"steps": 9, "batch_size": 4, "threads": 1, "learning_rate": 3e-3, "precision": "float32"}


@pytest.fixture
def make_recipe(teacher_folder, records_file, tmp_path):
    def make(**changes):
        fields = {
            "teacher": str(teacher_folder),
            "records": str(records_file),
            "student": {"max_parameters": 0.85},
            "targets": {"mode": "top_k", "k": 16, "cache": str(tmp_path / "cache")},
            "train": FAST,
            "keep_checkpoints": 0,
            "fidelity": {"baseline": False, "answers": 0, "records": 1, "speed": False},
        }
        return build({**fields, **changes})

    return make


@pytest.fixture
def do(tmp_path):
    def do(recipe):
        job = Job.start(tmp_path / "out", "kind: test\n")
        try:
            return run(recipe, job), tmp_path / "out"
        finally:
            job.close()

    return do


def find(flight, check):
    return [finding for finding in flight.findings if finding.check == check]


@pytest.mark.parametrize(
    "changes",
    [{}, {"targets": {"mode": "sampled", "samples": 5}}, {"include_prompt": False}],
    ids=str,
)
def test_tokens_and_bytes_are_those_of_the_job(make_recipe, do, tmp_path, changes):
    """The estimate once took 12 bytes of the file for a token: half of what there was."""
    if "targets" in changes:
        changes = {"targets": {**changes["targets"], "cache": str(tmp_path / "cache")}}
    recipe = make_recipe(**changes)
    sizes = ResourceEstimator(describe_workload(recipe))
    said = find(preflight(recipe, tmp_path), "logit cache")[0].what
    artifact, _ = do(recipe)
    real = artifact.details["records"]
    counted = sizes.counted
    assert (counted.records, counted.tokens) == (real["records"], real["tokens"])
    assert counted.positions == real["positions"]
    with LogitCache.open(tmp_path / "cache") as cache:
        assert sizes.cache_bytes == cache.size_bytes
        assert f"{cache.size_bytes / cache.rows:.1f} bytes per loss token" in said
    read = counted.mean * sizes.steps * recipe.train.batch_size
    assert artifact.details["train"]["tokens"] == pytest.approx(read, rel=0.05)


def test_bytes_a_token_are_those_of_the_disk_where_steps_reach_few_records(
    make_recipe, do, tmp_path
):
    train = {"steps": 1, "batch_size": 2, "threads": 1, "precision": "float32"}
    recipe = make_recipe(
        train=train, targets={"mode": "top_k", "k": 16, "cache": str(tmp_path / "cache")}
    )
    said = find(preflight(recipe, tmp_path), "logit cache")[0].what
    do(recipe)
    with LogitCache.open(tmp_path / "cache") as cache:
        assert len(cache) == 2
        told = float(said.split(" bytes per loss token")[0].rsplit(" ", 1)[1])
        assert told == pytest.approx(cache.size_bytes / cache.rows, rel=0.02)


def test_of_many_records_a_sample_tells_within_a_tenth(make_recipe, loaded, tmp_path):
    records = [
        Record(
            (Message("user", "Why? " * (1 + n % 7)), Message("assistant", "Heat. " * (n % 31 + 1)))
        )
        for n in range(600)
    ]
    write_records(tmp_path / "many.jsonl", records)
    recipe = make_recipe(records=str(tmp_path / "many.jsonl"))
    counted = ResourceEstimator(describe_workload(recipe)).counted
    _, real = tokenize_records(loaded[1], records, max_tokens=512, include_prompt=True)
    share = counted.records / len(records)
    assert share == pytest.approx(0.9, abs=0.04)  # a tenth is held out
    assert counted.tokens == pytest.approx(real["tokens"] * share, rel=0.1)


def test_what_is_cut_counts_as_it_is_cut(make_recipe, loaded):
    recipe = make_recipe(max_tokens=20)
    learned = [one for one in make_records(12) if one.fields["split"] == "train"]
    _, real = tokenize_records(loaded[1], learned, max_tokens=20, include_prompt=True)
    assert ResourceEstimator(describe_workload(recipe)).counted.tokens == real["tokens"]


def test_the_checks_of_one_job_measure_its_data_once(make_recipe, tmp_path, monkeypatch):
    measure, paths = tokenized.measure_dataset_size, []

    def note(path, *arguments, **settings):
        paths.append(path)
        return measure(path, *arguments, **settings)

    for module in (tokenized, resources):
        monkeypatch.setattr(module, "measure_dataset_size", note)
    recipe = make_recipe()
    flight = preflight(recipe, tmp_path)
    assert find(flight, "memory")
    assert find(flight, "logit cache")
    assert paths == [recipe.records]


def test_without_its_tokenizer_characters_stand_in(make_recipe):
    recipe = make_recipe(teacher="hub:org/name")
    counted = ResourceEstimator(describe_workload(recipe)).counted
    assert "by characters" in counted.basis
    assert counted.records == 9
    assert counted.tokens > 9 * 20


def test_rollouts_features_and_the_baseline_are_in_the_estimate(make_recipe, do):
    live = {"targets": {"mode": "live"}}
    rollouts = {"name": "on_policy", "max_new_tokens": 24, "student_share": 1.0}
    plain, writing, comparing, baseline = (
        ResourceEstimator(describe_workload(make_recipe(**more))).work()
        for more in (
            live,
            {"targets": None, "rollout_policy": rollouts},
            {
                "targets": None,
                "feature_losses": [{"name": "relation"}, {"name": "hidden_state"}],
            },
            {**live, "fidelity": {"baseline": True}},
        )
    )
    assert plain["writing rollouts"] == plain["features"] == plain["the baseline"] == 0
    assert writing["writing rollouts"] > 0.1 * writing["training"]
    assert comparing["features"] > 0
    assert baseline["the baseline"] == baseline["training"] > 0
    recipe = make_recipe(targets=None, rollout_policy=rollouts)
    count, tokens = ResourceEstimator(describe_workload(recipe)).rollouts
    assert "writing rollouts" in estimate(recipe).basis
    artifact, folder = do(recipe)
    told = (folder / "output" / "rollouts.jsonl").read_text()
    lines = [json.loads(line) for line in told.splitlines()]
    written = sum(line["fields"]["tokens"] for line in lines)
    assert len(lines) == count == 9 * 4
    assert 0.3 * tokens <= written <= tokens
    assert artifact.details["train"]["positions"] == written


def test_one_beside_another_is_written_cheaper(make_recipe):
    works = [
        ResourceEstimator(
            describe_workload(
                make_recipe(targets=None, rollout_policy={"name": "on_policy", "rows": rows})
            )
        ).work()["writing rollouts"]
        for rows in (1, 8)
    ]
    assert works[0] > 4 * works[1]


def test_a_server_is_asked_for_as_much_as_was_said(make_recipe, do, loaded, tmp_path):
    server = TeacherServer(*loaded, "prompt_logprobs")
    student = tiny_checkpoint(tmp_path / "student", layers=1, seed=9)
    with serving(server) as address:
        teacher = {"endpoint": address, "price_per_million": 3.0}
        recipe = make_recipe(
            teacher={**teacher, "tokenizer": str(tmp_path / "student")},
            student=str(student),
            fidelity={"baseline": False, "answers": 0, "records": 32, "speed": False},
        )
        (found,) = find(preflight(recipe, tmp_path), "server")
        do(recipe)
    asked = [body for body in server.bodies[1:]]
    tokens = sum(len(body["prompt"]) for body in asked)
    said = [word for word in found.what.split() if word.isdigit()]
    assert int(said[0]) == len(asked)
    assert int(said[1]) == pytest.approx(tokens, rel=0.1)
    assert "which cost about" in found.what


def test_the_bias_is_bounded_and_with_the_teacher_measured(make_recipe, tmp_path):
    bound, measured = (
        find(preflight(make_recipe(), tmp_path, loads=loads), "logit cache")[0].what
        for loads in (False, True)
    )
    assert "at most 95.83% of the teacher's mass" in bound
    assert "measured on" in measured
    sampled = make_recipe(targets={"mode": "sampled", "samples": 4})
    most, real = (
        find(preflight(sampled, tmp_path, loads=loads), "logit cache")[0].what
        for loads in (False, True)
    )
    assert "noise of at most 0.500" in most
    assert float(real.split("noise of ")[1].split()[0]) <= 0.5


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers", "n_layers"])
def test_a_teachers_layers_are_counted_by_every_name_of_their_number(tmp_path, key):
    """Pruning by KL takes a pass per layer; GPT-Neo's and MPT's counted as 30 layers."""
    (tmp_path / "config.json").write_text(json.dumps({key: 6}))
    settings = PruneSettings(layers=2, choose="kl")
    assert resources._count_measured_tokens(str(tmp_path), settings, 1.0) == (
        6 * settings.calibration_records
    )
