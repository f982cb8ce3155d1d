import json
import time

import pytest
from markupsafe import escape
from starlette.testclient import TestClient
from tests.console_folder import KEY, write

from stillroom.console import create_console
from stillroom.recipes import parse_recipe
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.views.forms import MAIN_JOB, describe_form, list_forms
from stillroom.serve.workspace import Workspace

HOSTILE = '"><script>alert(1)</script>'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs") / "served"
    write(folder / "documents", {"a.txt": "The still is warm.\n", "b.txt": "The room is cold.\n"})
    return folder


@pytest.fixture(scope="module")
def jobs(place):
    with Workspace(place).open() as workspace:
        app = create_console(place, key=KEY, runner=JobRunner(workspace))
        with TestClient(app, base_url="http://127.0.0.1") as client:
            client.get(f"/?key={KEY}")
            client.headers["x-stillroom-token"] = app.token
            yield client


def walk(settings):
    for one in settings:
        yield one
        yield from walk(one.settings)
        for option in one.options:
            yield from walk(option.settings)


def test_what_must_be_given_is_shown_by_an_example():
    settings, _ = describe_form("merge.weights")
    needed = {one.path: one.example for one in settings if one.is_required}
    assert json.loads(needed["models"]) == [
        {"model": "path/to/model", "weight": 1.0, "last_checkpoints": 1}
    ]
    assert {one.example for one in settings if not one.is_required} == {""}


@pytest.mark.parametrize("name", [one.name for one in list_forms()])
def test_every_kind_has_a_form_of_its_schema(name, jobs):
    settings, commented = describe_form(name)
    assert "kind:" in commented
    asked = list(walk(settings))
    assert all(one.hint or one.control in {"choice", "yaml"} for one in asked), name
    assert not [one.label for one in asked if not one.label or "_" in one.label]
    page = jobs.get("/make/new", params={"kind": name})
    assert page.status_code == 200
    for one in asked:
        if one.control not in {"group", "method"}:
            assert f'data-path="{one.path}"' in page.text


@pytest.mark.parametrize("name", [one.name for one in list_forms()])
def test_no_form_offers_work_on_a_cluster(name):
    """Jobs of clients are refused it."""
    asked = [one for one in walk(describe_form(name)[0]) if one.path.partition(".")[0] == "engine"]
    assert not [one.path for one in asked if one.path == "engine" and one.control != "group"]
    assert not [
        one.path for one in asked if "ray" in (one.label.lower(), *one.hint.lower().split())
    ]


def test_the_main_jobs_settings_are_ones_of_its_recipe():
    settings, commented = describe_form(MAIN_JOB)
    assert {one.path: one.label for one in settings}["steps.report.max_questions"] == (
        "Questions in the report"
    )
    told = [f"{one.path}={one.default}" for one in settings if one.default]
    assert parse_recipe(commented, "form", ["inputs.documents=documents", *told]) == parse_recipe(
        commented, "form", ["inputs.documents=documents"]
    )


def test_kinds_are_listed_by_room_with_the_summary_of_their_module(jobs):
    forms = list_forms()
    assert (forms[0].name, forms[0].room) == (MAIN_JOB, "")
    rooms = [form.room for form in forms[1:]]
    assert rooms == sorted(rooms)
    page = jobs.get("/make").text
    for form in forms[1:]:
        assert form.name.partition(".")[0] == form.room
        assert f'<h3 id="{form.room}">' in page
        assert escape(form.summary) in page


def test_a_method_offers_the_settings_of_each_choice():
    settings, _ = describe_form("merge.weights")
    method = next(one for one in settings if one.path == "method")
    assert (method.control, method.is_required) == ("method", True)
    ties = next(one for one in method.options if one.name == "ties")
    density = next(one for one in ties.settings if one.path == "method.density")
    assert (density.control, density.default) == ("number", "0.2")
    assert settings.index(method) < settings.index(next(s for s in settings if s.path == "seed"))


def test_a_choice_names_the_option_that_a_factory_makes():
    data = next(one for one in describe_form("forensics.image_detector")[0] if one.path == "data")
    faces = next(one for one in data.options[0].settings if one.path == "data.faces")
    assert (data.default, faces.default) == ("forgeries", "drawn")


def test_a_job_is_estimated_started_followed_and_listed(jobs):
    body = {
        "recipe": {"version": 1, "kind": "rag.index"},
        "overrides": ['documents="documents"', 'embedder="static"'],
    }
    told = jobs.post("/v1/recipes/check", json=body).json()
    assert (told["valid"], told["fits"]) == (True, True)
    assert told["estimate"]["memory_bytes"] > 0
    sent = jobs.post("/v1/jobs", json={**body, "name": HOSTILE}).json()
    page = jobs.get(f"/make/jobs/{sent['id']}")
    assert f'data-id="{sent["id"]}"' in page.text
    for _ in range(200):
        if jobs.get(f"/v1/jobs/{sent['id']}").json()["state"] not in {"queued", "running"}:
            break
        time.sleep(0.1)
    head = jobs.get(f"/make/jobs/{sent['id']}?part=head").text
    assert "finished" in head
    assert "<html" not in head
    assert f"/lineage?at=jobs/{sent['id']}" in head
    listed = jobs.get("/make").text
    assert HOSTILE not in listed
    assert "&lt;script&gt;" in listed
    events = jobs.get(f"/v1/jobs/{sent['id']}/events?follow=false").text
    assert "event: progress" in events
    assert jobs.get(f"/lineage?at=jobs/{sent['id']}").status_code == 200


def test_a_recipe_reaches_nothing_outside(jobs):
    body = {"recipe": {"version": 1, "kind": "rag.index"}, "overrides": ['documents="../secret"']}
    told = jobs.post("/v1/recipes/check", json=body).json()
    assert told["valid"] is False
    assert told["problems"][0]["code"] == "recipe.outside"


def test_unknown_kinds_and_jobs_are_said_to_be(jobs):
    assert jobs.get("/make/new?kind=nothing").status_code == 400
    assert jobs.get("/make/jobs/nothing").status_code == 404


def test_nothing_is_written_into_an_artifact(folder):
    app = create_console(folder / "run", key=KEY)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.get(f"/?key={KEY}")
        assert "which jobs do not modify" in client.get("/make").text
        assert client.get("/v1/jobs").status_code == 404
        assert 'data-at="."' in client.get("/ask").text
    told = json.loads((folder / "run/artifact.json").read_text())
    assert told["kind"] == "report"
