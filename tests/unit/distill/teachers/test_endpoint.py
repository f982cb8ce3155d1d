"""A teacher behind a real HTTP server: what it tells equals what it says in this process."""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from tests.unit.distill.kinds import build
from tests.unit.distill.teacher_servers import TeacherServer, serving

from stillroom.checkpoints import Checkpoint
from stillroom.distill.evaluation.teacher_distance import CrossTokenizerFidelity
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.settings import EndpointTeacherSettings
from stillroom.distill.teachers.endpoint import EndpointTeacher
from stillroom.distill.teachers.local import LocalTeacher, ModelScorer, TeacherScorer
from stillroom.errors import BackendError, Cancelled, CheckpointError, DataError, RecipeError
from stillroom.testing import tiny_checkpoint

FAST = {"steps": 8, "batch_size": 4, "threads": 1, "learning_rate": 3e-3, "precision": "float32"}
DIALECTS = ("prompt_logprobs", "echo", "steps")


@pytest.fixture
def serve(loaded):
    """Return a function that gives a server of the tiny teacher and its open address."""
    opened = []

    def serve(dialect="prompt_logprobs", **settings):
        server = TeacherServer(*loaded, dialect, **settings)
        context = serving(server)
        address = context.__enter__()
        opened.append(context)
        return server, address

    yield serve
    for context in opened:
        context.__exit__(None, None, None)


@pytest.fixture
def make_recipe(teacher_folder, records_file, tmp_path):
    student = tiny_checkpoint(tmp_path / "student", layers=1, seed=9)

    def make(address, *, teacher=None, **changes):
        fields = {
            "teacher": {
                "endpoint": address,
                "tokenizer": str(teacher_folder),
                "tries": 2,
                **(teacher or {}),
            },
            "records": str(records_file),
            "student": str(student),
            "train": FAST,
            "keep_checkpoints": 0,
            "include_prompt": False,
            "fidelity": {"baseline": False, "answers": 0, "speed": False},
        }
        return build({**fields, **changes})

    return make


@pytest.fixture
def find(teacher_folder, job):
    opened = []

    def find(address, **settings):
        fields = {"endpoint": address, "tokenizer": str(teacher_folder), "tries": 2}
        teacher = EndpointTeacher.find(EndpointTeacherSettings(**{**fields, **settings}), job)
        opened.append(teacher)
        return teacher

    yield find
    for teacher in opened:
        teacher.close()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_a_server_tells_equals_a_capture_in_this_process(
    serve, find, make_recipe, lessons, job, tmp_path, teacher_folder, dialect
):
    server, address = serve(dialect)
    recipe = make_recipe(address, targets={"mode": "top_k", "logprob_dtype": "float32"})
    lessons = lessons[: 2 if dialect == "steps" else None]
    remote, local = find(address), LocalTeacher.find(str(teacher_folder), job)
    header = remote.header(recipe.targets, local.head_rows, "float32")
    assert header.width == 20
    at_home = local.header(recipe.targets, local.head_rows, "float32").model_copy(
        update={"width": 20}
    )
    with (
        LogitCache.open(tmp_path / "remote", header) as told,
        LogitCache.open(tmp_path / "local", at_home) as said,
    ):
        assert remote.capture(lessons, told, job) == len({one.key for one in lessons})
        local.capture(lessons, said, job)
        told.verify()
        for lesson in lessons:
            ours, theirs = told.read(lesson), said.read(lesson)
            np.testing.assert_allclose(ours["logprobs"], theirs["logprobs"], atol=2e-5)
            np.testing.assert_allclose(ours["tail"], theirs["tail"], atol=2e-5)
            same = (ours["ids"] == theirs["ids"]).mean()
            assert same > 0.99  # ties may stand in another order
    assert all(isinstance(body["prompt"], list) for body in server.bodies)
    assert all(body["temperature"] == 1 for body in server.bodies)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_it_scores_own_tokens_as_the_model_does(serve, find, lessons, loaded, dialect):
    _, address = serve(dialect)
    teacher = find(address, top_logprobs=3)
    assert isinstance(teacher, TeacherScorer)
    some = lessons[:2]
    for told, said in zip(
        teacher.score_tokens(some), ModelScorer(loaded[0]).score_tokens(some), strict=True
    ):
        np.testing.assert_allclose(told, said, atol=2e-5)


@pytest.mark.parametrize("dialect", ["prompt_logprobs", "echo"])
def test_a_job_learns_from_a_server(serve, make_recipe, do, dialect):
    _, address = serve(dialect)
    artifact, folder = do(make_recipe(address, train={**FAST, "steps": 40}))
    before, after = (
        artifact.details["fidelity"]["summary"][name]["kl"]["value"]
        for name in ("initial", "final")
    )
    assert after < 0.8 * before
    teacher = artifact.details["teachers"][0]
    assert teacher["about"]["endpoint"] == address
    assert teacher["about"]["probe"]["dialect"] == dialect
    assert artifact.parents[0].kind == "endpoint"
    assert artifact.parents[0].path == f"{address}#tiny"
    assert "license unknown" in (folder / "output" / "README.md").read_text()
    assert json.loads((folder / "output" / "fidelity.json").read_text())["kind"] == "top_k"


def test_the_server_grants_fewer_than_asked(serve, find, make_recipe):
    _, address = serve(most=7)
    teacher = find(address)
    assert teacher.probe.granted == 7
    assert teacher.header(make_recipe(address).targets, 384, "float32").width == 7


def test_stopped_in_the_middle_it_goes_on_to_the_same_bytes(serve, make_recipe, do, monkeypatch):
    server, address = serve()
    whole, _ = do(make_recipe(address), "whole")
    asked = len(server.bodies)
    real, added = LogitCache.add, []

    def add(self, lesson, rows):
        real(self, lesson, rows)
        added.append(lesson.key)
        if len(added) == 4:
            raise Cancelled("stopped", code="job.cancelled")

    with monkeypatch.context() as patch:
        patch.setattr(LogitCache, "add", add)
        with pytest.raises(Cancelled):
            do(make_recipe(address, teacher={"concurrency": 1}), "part")
    server.bodies.clear()
    resumed, _ = do(make_recipe(address, teacher={"concurrency": 1}), "part", resume=True)
    assert len(server.bodies) == asked - 4
    assert resumed.details["fingerprint"] == whole.details["fingerprint"]


def test_a_bad_moment_is_waited_out(serve, find, lessons, loaded, monkeypatch):
    monkeypatch.setattr("stillroom.models.endpoints.client._backoff", lambda attempt: 0.01)
    server, address = serve()
    teacher = find(address, tries=4)
    server.faults, server.cut = [429, 500], 1
    (told,) = teacher.score_tokens(lessons[:1])
    np.testing.assert_allclose(told, ModelScorer(loaded[0]).score_tokens(lessons[:1])[0], atol=2e-5)


@pytest.mark.parametrize(
    ("fault", "code"), [(429, "backend.rate-limit"), (500, "backend.unavailable")]
)
def test_a_server_that_stays_down_is_an_error_with_the_record(serve, find, lessons, fault, code):
    server, address = serve()
    teacher = find(address)
    server.faults = [fault] * 9
    with pytest.raises(BackendError) as caught:
        teacher.score_tokens(lessons[:1])
    assert caught.value.code == code
    assert lessons[0].record_id in str(caught.value)


def spoil(change):
    def mangle(reply):
        change(reply["choices"][0])
        return reply

    return mangle


AT = -6  # within the answer: what stands after it bears no loss
HOSTILE = {
    "no field": (lambda one: one.pop("prompt_logprobs"), BackendError, "distill.server-reply"),
    "null row": (
        lambda one: one["prompt_logprobs"].__setitem__(AT, None),
        BackendError,
        "distill.server-reply",
    ),
    "text for a number": (
        lambda one: one["prompt_logprobs"][AT].update({"3": {"logprob": "low"}}),
        BackendError,
        "distill.server-reply",
    ),
    "no id": (
        lambda one: one["prompt_logprobs"][AT].update({"the": {"logprob": -1.0}}),
        BackendError,
        "distill.server-reply",
    ),
    "fewer": (
        lambda one: one["prompt_logprobs"].__setitem__(
            AT, dict(list(one["prompt_logprobs"][AT].items())[-2:])
        ),
        (BackendError, CheckpointError),
        "distill.server-reply",
    ),
    "NaN": (
        lambda one: one["prompt_logprobs"][AT].update(
            {key: {"logprob": float("nan")} for key in one["prompt_logprobs"][AT]}
        ),
        DataError,
        "distill.teacher-not-finite",
    ),
    "above one": (
        lambda one: one["prompt_logprobs"][AT].update(
            {key: {"logprob": 2.0} for key in one["prompt_logprobs"][AT]}
        ),
        DataError,
        "distill.teacher-not-finite",
    ),
    "wrong length": (
        lambda one: one["prompt_logprobs"].pop(),
        CheckpointError,
        "distill.server-tokenizer",
    ),
    "other ids": (
        lambda one: one.update(prompt_token_ids=[1, 2]),
        CheckpointError,
        "distill.server-tokenizer",
    ),
    "two choices": (lambda one: None, BackendError, "distill.server-reply"),
}


@pytest.mark.parametrize("case", HOSTILE, ids=str)
def test_hostile_replies_are_errors_that_name_the_record(
    serve, find, make_recipe, lessons, job, tmp_path, case
):
    change, error, code = HOSTILE[case]
    server, address = serve()
    teacher = find(address)
    header = teacher.header(make_recipe(address).targets, 384, "float32")
    server.mangle = spoil(change)
    if case == "two choices":
        server.mangle = lambda reply: {**reply, "choices": reply["choices"] * 2}
    with LogitCache.open(tmp_path / "cache", header) as cache:
        with pytest.raises(error) as caught:
            teacher.capture(lessons[:1], cache, job)
        assert caught.value.code == code
        assert lessons[0].record_id in str(caught.value)
        assert lessons[0] not in cache


def test_a_server_without_prompt_logprobs_is_refused_with_a_way_on(serve, find):
    _, address = serve("silent")
    with pytest.raises(BackendError) as caught:
        find(address)
    assert caught.value.code == "distill.server-logprobs"
    assert "[backend" not in caught.value.problems[0].what
    assert "sequence" in str(caught.value)


def test_a_server_that_names_tokens_by_text_teaches_by_its_own_tokens_alone(
    serve, find, make_recipe, do, monkeypatch
):
    monkeypatch.setattr(TeacherServer, "marks", False)
    _, address = serve("echo")
    teacher = find(address)
    assert teacher.probe.granted == 0
    with pytest.raises(BackendError) as caught:
        teacher.header(make_recipe(address).targets, 384, "float32")
    assert caught.value.code == "distill.server-ids"
    assert "distill.cross_tokenizer" in str(caught.value)
    artifact, _ = do(
        make_recipe(
            address, cross_tokenizer_loss={"name": "chunk_likelihood"}, train={**FAST, "steps": 30}
        )
    )
    found = artifact.details["cross_tokenizer_fidelity"]
    before, after = (CrossTokenizerFidelity.from_json(found[name]) for name in ("initial", "final"))
    assert after.mean("divergence") < before.mean("divergence")


def test_a_student_with_another_tokenizer_learns_from_a_server(serve, make_recipe, do, tmp_path):
    _, address = serve()
    student = tiny_checkpoint(tmp_path / "narrow", vocabulary=300, seed=4)
    artifact, _ = do(
        make_recipe(
            address,
            student=str(student),
            cross_tokenizer_loss={"name": "chunk_likelihood"},
            train={**FAST, "steps": 30},
        )
    )
    found = artifact.details["cross_tokenizer_fidelity"]
    before, after = (CrossTokenizerFidelity.from_json(found[name]) for name in ("initial", "final"))
    assert after.mean("divergence") < before.mean("divergence")
    assert Checkpoint.open(student).config["vocab_size"] == 300


def test_rows_of_distributions_cannot_come_from_a_server(serve, make_recipe, do, tmp_path):
    _, address = serve()
    student = tiny_checkpoint(tmp_path / "narrow", vocabulary=300, seed=4)
    recipe = make_recipe(
        address,
        student=str(student),
        cross_tokenizer_loss={"name": "projected_kl", "min_coverage": 0},
    )
    with pytest.raises(RecipeError) as caught:
        do(recipe)
    assert caught.value.code == "distill.server-target"


def test_another_tokenizer_than_the_servers_is_found_by_the_probe(serve, find, tmp_path):
    server, address = serve()
    server.mangle = spoil(
        lambda one: one.update(
            prompt_logprobs=[None, *({"5": {"logprob": -1.0}} for _ in one["prompt_logprobs"][1:])]
        )
    )
    with pytest.raises(CheckpointError) as caught:
        find(address, top_logprobs=1)
    assert caught.value.code == "distill.server-tokenizer"


def test_another_model_under_the_same_name_is_noticed(
    serve, find, make_recipe, lessons, job, tmp_path, loaded
):
    server, address = serve()
    teacher = find(address)
    header = teacher.header(make_recipe(address).targets, 384, "float32")
    with LogitCache.open(tmp_path / "cache", header) as cache:
        teacher.capture(lessons[:1], cache, job)
    server.logprobs = lambda ids: TeacherServer.logprobs(server, ids).mul(3).log_softmax(-1)
    again = find(address)
    assert again.fingerprint == teacher.fingerprint
    header = again.header(make_recipe(address).targets, 384, "float32")
    with (
        LogitCache.open(tmp_path / "cache", header) as cache,
        pytest.raises(DataError) as caught,
    ):
        again.capture(lessons[1:], cache, job)
    assert caught.value.code == "distill.server-changed"


def test_the_key_goes_only_where_nobody_reads_it(serve, find, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "s3cret")
    server, address = serve()
    find(address, api_key="${env:TEACHER_KEY}")
    assert server.headers[-1]["Authorization"] == "Bearer s3cret"
    with pytest.raises(RecipeError) as caught:
        find("http://192.0.2.7:8000/v1", api_key="${env:TEACHER_KEY}")
    assert caught.value.code == "distill.server-key"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"student": {"max_parameters": 0.5}}, "student"),
        ({"targets": {"mode": "dense"}}, "targets"),
    ],
    ids=str,
)
def test_what_a_server_cannot_give_is_refused_by_the_recipe(make_recipe, changes, named):
    with pytest.raises(ValidationError, match=named):
        make_recipe("http://127.0.0.1:9/v1", **changes)


@pytest.mark.parametrize(
    "changes",
    [{"method": {"name": "forward_kl", "temperature": 2.0}}],
    ids=str,
)
def test_what_a_server_cannot_tell_is_refused(serve, make_recipe, do, changes):
    _, address = serve()
    with pytest.raises(RecipeError) as caught:
        do(make_recipe(address, **changes))
    assert caught.value.code == "distill.server-target"
