"""Jobs over HTTP: real recipes in real processes, on checkpoints of a few kilobytes."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from stillroom.jobs import Job
from stillroom.provenance import list_run_folders
from stillroom.provenance.signing import (
    KEY_VARIABLE,
    check_signature,
    create_key_pair,
    load_trust,
)
from stillroom.provenance.signing.keys import PASSWORD_VARIABLE
from stillroom.rag.index.view import AccessContext
from stillroom.serve import RequestLimits, create_app
from stillroom.serve.access import ApiKey
from stillroom.serve.jobs import processes
from stillroom.serve.jobs.processes import is_sandbox_available
from stillroom.serve.jobs.recipe_policy import RecipePolicy
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.jobs.store import JobRecord, JobStore, new_job_id
from stillroom.serve.workspace import Workspace
from stillroom.testing import tiny_checkpoint

MERGE = "kind: merge.weights\nmethod: linear\nmodels: [{model: a}, {model: b}]\n"
ENDLESS = {
    "kind": "diffusion.train",
    "model": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1},
    "records": "records.jsonl", "stage": "pretraining", "max_tokens": 32,
    "train": {"steps": 1_000_000, "batch_size": 2, "micro_tokens": 64},
}  # fmt: skip
KEYS = {name: f"{name}-with-a-key-of-length" for name in ("ann", "bob", "reader")}


def fill(folder):
    for name in "ab":
        tiny_checkpoint(folder / name, seed=ord(name), layers=1, hidden=16)
    rows = [
        [{"role": "user", "content": f"n {at}"}, {"role": "assistant", "content": f"is {at}"}]
        for at in range(32)
    ]
    lines = [json.dumps({"messages": turns}) for turns in rows]
    (folder / "records.jsonl").write_text("\n".join(lines))


@contextlib.contextmanager
def live(folder, *, keys=(), **settings):
    """Serve a folder of jobs on a free port; yields a client of the first key."""
    tenants = bool({key.access for key in keys} - {None})
    with Workspace(folder, has_tenants=tenants).open() as workspace:
        runner = JobRunner(workspace, **settings)
        app = create_app(None, api_keys=keys, jobs=runner, limits=RequestLimits())
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=address, timeout=30) as client:
                client.runner = runner
                yield client
        finally:
            server.should_exit = True
            thread.join(30)
            listening.close()
        assert not thread.is_alive()


def bear(client, name):
    client.headers["Authorization"] = f"Bearer {KEYS[name]}"
    return client


def submit(client, recipe=MERGE, **more):
    reply = client.post("/v1/jobs", json={"recipe": recipe, **more})
    assert reply.status_code == 201, reply.text
    assert reply.headers["Location"] == f"/v1/jobs/{reply.json()['id']}"
    return reply.json()["id"]


def follow(client, name, after=0):
    """Return the events from a place on until the job is over."""
    headers = {"Last-Event-ID": str(after)} if after else {}
    found = []
    with client.stream("GET", f"/v1/jobs/{name}/events", headers=headers) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        number = 0
        for line in reply.iter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("data: "):
                found.append((number, json.loads(line[6:])))
    return found


def wait_until(is_so):
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


def wait_for(client, name, *states):
    until = time.monotonic() + 200
    while (job := client.get(f"/v1/jobs/{name}").json())["state"] not in states:
        assert time.monotonic() < until, job
        time.sleep(0.05)
    return job


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    fill(folder)
    with live(folder) as client:
        yield client


@pytest.fixture(scope="module")
def finished(served):
    """A job that is finished, and its events with their places."""
    name = submit(served, MERGE, name="mine", overrides=["seed=7"])
    return name, follow(served, name)


def drop(client, name):
    """Cancel a job whatever it does, and wait until it is gone from the line."""
    for _ in range(2):  # the second time at once
        client.post(f"/v1/jobs/{name}/cancel")
    wait_for(client, name, "cancelled")


def test_a_job_from_recipe_to_file(served, finished):
    name, events = finished
    kinds = [event["event"] for _, event in events]
    assert kinds[:2] == ["state", "state"]
    assert kinds[-2:] == ["state", "end"]
    assert {"started", "progress", "phase", "finished"} <= set(kinds)
    job = served.get(f"/v1/jobs/{name}").json()
    assert (job["state"], job["name"], job["kind"], job["takes"]) == (
        "finished",
        "mine",
        "merge.weights",
        1,
    )
    assert job["artifact"]["kind"] == "checkpoint"
    assert job["artifact"]["path"] == f"jobs/{name}"
    assert "seed: 7" in served.get(f"/v1/jobs/{name}/recipe").text
    # A reader that lost the connection goes on, and one that has all is told to stop.
    number = events[2][0]
    assert follow(served, name, number) == events[3:]
    assert served.get(f"/v1/jobs/{name}/events?after={events[-1][0]}").status_code == 204
    # Its result is a name that the next recipe may take.
    again = submit(served, MERGE.replace("model: a", f"model: jobs/{name}"))
    assert follow(served, again)[-1][1]["state"] == "finished"
    folder = served.runner.workspace.folder / "jobs"
    assert (folder / again).is_dir()
    assert served.delete(f"/v1/jobs/{again}").status_code == 204
    assert served.get(f"/v1/jobs/{again}").status_code == 404
    assert not (folder / again).exists()


def test_files_of_a_job_whole_and_in_ranges(served, finished):
    name, _ = finished
    listed = served.get(f"/v1/jobs/{name}/files").json()
    sizes = {row["path"]: row["size_bytes"] for row in listed["data"]}
    assert listed["finished"]
    assert "output/model.safetensors" in sizes
    path = f"/v1/jobs/{name}/files/output/model.safetensors"
    whole = served.get(path)
    assert len(whole.content) == sizes["output/model.safetensors"]
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    part = served.get(path, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert served.get(path, headers={"Range": "bytes=99999999-"}).status_code == 416
    for bad in ("..%2f..%2fa%2fconfig.json", "output", "none", ".lock", "%2fetc%2fpasswd", "a%00b"):
        assert served.get(f"/v1/jobs/{name}/files/{bad}").status_code == 404


def test_a_job_is_cancelled_and_resumed(served):
    name = submit(served, ENDLESS)
    assert served.delete(f"/v1/jobs/{name}").status_code == 409
    assert served.post(f"/v1/jobs/{name}/resume").status_code == 409
    waiting = submit(served)
    assert served.get(f"/v1/jobs/{waiting}").json()["position"] == 0
    other = JobRecord(new_job_id("merge"), "somebody", "merge")
    assert served.runner.position(other) == 0  # only its own tenant's are counted
    assert served.post(f"/v1/jobs/{waiting}/cancel").json()["state"] == "cancelled"
    assert served.post(f"/v1/jobs/{waiting}/cancel").status_code == 409
    assert served.post(f"/v1/jobs/{name}/cancel").json()["state"] == "cancelling"
    job = wait_for(served, name, "cancelled")
    assert job["can_resume"]
    assert job["error"] is None
    assert served.post(f"/v1/jobs/{waiting}/resume").json()["state"] == "running"
    assert follow(served, waiting)[-1][1]["state"] == "finished"


def test_a_cancel_while_the_process_starts_is_heard(served, monkeypatch):
    started = []

    async def slow(*args, **more):
        started.append(args)
        while len(started) < 2:
            await asyncio.sleep(0.01)
        return await processes.spawn(*args, **more)

    monkeypatch.setattr("stillroom.serve.jobs.runner.spawn", slow)
    name = submit(served, ENDLESS)
    wait_until(lambda: started)
    assert served.post(f"/v1/jobs/{name}/cancel").json()["state"] == "cancelling"
    started.append("go on")
    assert wait_for(served, name, "cancelled")["error"] is None
    assert name not in served.runner._processes


def test_a_cancel_while_a_job_waits_for_its_folder_is_heard(served, monkeypatch):
    monkeypatch.setattr("stillroom.serve.jobs.runner._BUSY_WAIT_S", 0.05)
    folder = served.runner.workspace.folder / "jobs"
    ticket = JobRecord(new_job_id("merge"), "", "merge")
    with contextlib.closing(Job.start(folder / ticket.id, "held: by a process that ends")):
        served.runner.jobs.add(ticket, MERGE)
        drop(served, submit(served))  # whatever is sent makes the runner look
        wait_until(lambda: ticket.id in served.runner._processes)
        wait_until(lambda: ticket.id not in served.runner._processes)  # busy, and asked again
        served.post(f"/v1/jobs/{ticket.id}/cancel")
        wait_for(served, ticket.id, "cancelled")


def test_a_job_whose_process_dies_fails_and_the_server_goes_on(served, monkeypatch):
    lent = []

    async def look(order, folder, scratch, **more):
        assert scratch.is_dir()
        lent.append(scratch)
        return await processes.spawn(order, folder, scratch, **more)

    monkeypatch.setattr("stillroom.serve.jobs.runner.spawn", look)
    name = submit(served, ENDLESS)
    runner = served.runner
    wait_until(lambda: name in runner._processes)
    os.kill(runner._processes[name].pid, signal.SIGKILL)
    error = wait_for(served, name, "failed")["error"]
    assert error["code"] == "job.killed"
    assert "memory" in error["message"]
    assert follow(served, submit(served))[-1][1]["state"] == "finished"
    # Each process had a scratch folder of its own, which went with it.
    assert len(set(lent)) == 2
    assert {one.parent for one in lent} == {runner.workspace.scratch}
    wait_until(lambda: not any(one.exists() for one in lent))


def test_what_goes_wrong_is_said_without_the_servers_paths(served):
    name = submit(served, MERGE.replace("model: b", "model: none"))
    follow(served, name)
    job = served.get(f"/v1/jobs/{name}").json()
    assert job["state"] == "failed"
    assert job["error"]["problems"][0]["next"]
    assert str(served.runner.workspace.folder) not in json.dumps(job)


def test_a_recipe_that_reaches_out_or_is_wrong_is_refused(served):
    for recipe, code in (
        (MERGE.replace("model: b", "model: /etc"), "recipe.outside"),
        (MERGE + "densty: 1\n", "recipe.unknown-key"),
        ("kind: none", "recipe.unknown-kind"),
        ("[", "recipe.yaml"),
    ):
        reply = served.post("/v1/jobs", json={"recipe": recipe})
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == code
        assert reply.json()["error"]["problems"][0]["what"]
        told = served.post("/v1/recipes/check", json={"recipe": recipe}).json()
        assert told["valid"] is False
        assert told["problems"][0]["code"] == code


def test_check_says_what_a_recipe_needs(served):
    told = served.post("/v1/recipes/check", json={"recipe": MERGE}).json()
    assert told["valid"]
    assert told["fits"]
    assert told["problems"] == []
    assert told["estimate"]["disk_bytes"] > 0
    assert told["machine"]["cores"] > 0
    assert told["recipe"].startswith("version: 1\nkind: merge.weights\n")


def test_check_names_settings_without_effect(served):
    assert served.post("/v1/recipes/check", json={"recipe": MERGE}).json()["warnings"] == []
    index = "version: 1\nkind: rag.index\ndocuments: a\nlimits: {ocr: never, ocr_language: de}\n"
    told = served.post("/v1/recipes/check", json={"recipe": index}).json()
    assert told["valid"]
    assert [line.split(":")[0] for line in told["warnings"]] == [
        "limits.ocr_language has no effect"
    ]


def test_kinds_methods_and_names_can_be_listed(served):
    kinds = [row["kind"] for row in served.get("/v1/recipes").json()["data"]]
    assert {"flow", "merge.weights", "rag.index", "synth.records"} <= set(kinds)
    described = served.get("/v1/recipes/merge.weights?method=ties").json()
    assert described["schema"]["properties"]["kind"]
    assert "name: ties" in described["commented"]
    assert served.get("/v1/recipes/none").status_code == 404
    assert served.get("/v1/recipes/merge?method=none").status_code == 404
    rows = {row["path"]: row for row in served.get("/v1/workspace").json()["data"]}
    assert rows["a"]["kind"] == "checkpoint"
    assert rows["records.jsonl"]["size_bytes"] > 0
    inner = served.get("/v1/workspace?path=a").json()["data"]
    assert "a/config.json" in [row["path"] for row in inner]
    for bad in ("..", "/etc", ".stillroom", "none"):
        assert served.get("/v1/workspace", params={"path": bad}).status_code == 404


def test_a_request_that_is_sent_twice_makes_one_job(served):
    headers = {"Idempotency-Key": "once"}
    first = served.post("/v1/jobs", json={"recipe": MERGE}, headers=headers)
    second = served.post("/v1/jobs", json={"recipe": MERGE}, headers=headers)
    other = served.post("/v1/jobs", json={"recipe": MERGE + "seed: 2\n"}, headers=headers)
    assert (first.status_code, second.status_code, other.status_code) == (201, 200, 409)
    assert first.json()["id"] == second.json()["id"]
    drop(served, first.json()["id"])


def test_jobs_are_listed_newest_first_and_by_state(served, finished):
    name = submit(served)
    drop(served, name)
    page = served.get("/v1/jobs?limit=1").json()
    assert [job["id"] for job in page["data"]] == [name]
    assert page["has_more"]
    older = served.get(f"/v1/jobs?before={name}&state=finished").json()["data"]
    assert finished[0] in [job["id"] for job in older]
    assert all(job["id"] < name and job["state"] == "finished" for job in older)
    assert served.get("/v1/jobs?state=odd").status_code == 400


def test_tenants_never_see_each_others_jobs(tmp_path):
    keys = [ApiKey(KEYS["ann"], AccessContext("ann")), ApiKey(KEYS["bob"], AccessContext("bob"))]
    keys.append(ApiKey(KEYS["reader"], AccessContext("ann"), frozenset({"jobs:read"})))
    keys.append(ApiKey("nobodys-key-of-enough-length"))
    space = Workspace(tmp_path, has_tenants=True)
    for name in ("ann", "bob"):
        fill(space.root(name).folder)
    with live(tmp_path, keys=keys) as client:
        name = submit(bear(client, "ann"))
        follow(client, name)
        assert client.get(f"/v1/jobs/{name}").json()["state"] == "finished"
        unknown = bear(client, "bob").get("/v1/jobs/20200101-000000-merge-00000000")
        for path in ("", "/events", "/files", "/files/artifact.json", "/recipe"):
            reply = client.get(f"/v1/jobs/{name}{path}")
            assert reply.status_code == unknown.status_code == 404
        for verb in ("cancel", "resume"):
            assert client.post(f"/v1/jobs/{name}/{verb}").status_code == 404
        assert client.delete(f"/v1/jobs/{name}").status_code == 404
        assert client.get("/v1/jobs").json()["data"] == []
        stolen = MERGE.replace("model: a", f"model: ../ann/jobs/{name}")
        assert client.post("/v1/jobs", json={"recipe": stolen}).status_code == 400
        assert bear(client, "reader").get(f"/v1/jobs/{name}").status_code == 200
        refused = client.post("/v1/jobs", json={"recipe": MERGE})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
        client.headers["Authorization"] = "Bearer nobodys-key-of-enough-length"
        assert client.get("/v1/jobs").json()["error"]["code"] == "no_tenant"


def test_the_line_is_bounded(tmp_path):
    fill(tmp_path)
    with live(tmp_path, waiting=1) as client:
        submit(client, ENDLESS)
        submit(client)
        full = client.post("/v1/jobs", json={"recipe": MERGE})
        assert (full.status_code, full.headers["Retry-After"]) == (429, "30")


def test_no_events_follow_a_place_beyond_any_file(tmp_path):
    fill(tmp_path)
    with live(tmp_path) as client:
        name = submit(client, ENDLESS)
        place = {"Last-Event-ID": "9" * 20}
        reply = client.get(f"/v1/jobs/{name}/events?follow=false", headers=place)
        assert reply.text == ": events of a job\n\n"


def test_what_a_killed_server_left_is_taken_up(tmp_path):
    fill(tmp_path)
    with Workspace(tmp_path).open() as workspace:
        tickets = JobStore(workspace.control)
        left = [
            JobRecord(f"{new_job_id('merge')[:-1]}{number}", "", "merge") for number in range(4)
        ]
        for ticket in left:
            tickets.add(ticket, MERGE)
        tickets.change(left[1].id, state="running", takes=1)
        tickets.change(left[2].id, state="running", takes=5)
        tickets.change(left[3].id, state="running", takes=1, is_cancelling=True)
    with live(tmp_path) as client:
        for ticket in left[:2]:
            assert follow(client, ticket.id)[-1][1]["state"] == "finished"
        assert client.get(f"/v1/jobs/{left[1].id}").json()["takes"] == 2
        job = client.get(f"/v1/jobs/{left[2].id}").json()
        assert job["error"]["code"] == "job.too-many-takes"
        assert client.get(f"/v1/jobs/{left[3].id}").json()["state"] == "cancelled"


@pytest.mark.parametrize("has_tenants", [False, True])
def test_jobs_of_a_server_with_other_keys_are_set_aside(tmp_path, has_tenants, caplog):
    """The keys have got tenants, or lost them, since the job was sent."""
    whose = ("", "ann") if has_tenants else ("ann", "")
    with Workspace(tmp_path, has_tenants=has_tenants).open() as workspace:
        runner = JobRunner(workspace)
        foreign, own = (JobRecord(new_job_id("merge"), tenant, "merge") for tenant in whose)
        lost = JobRecord(new_job_id("merge"), whose[0], "merge", state="running", takes=1)
        for ticket in (foreign, lost, own):
            runner.jobs.add(ticket, MERGE)
        (workspace.control / "broken").mkdir()

        async def go():
            runner.jobs.unread.append("broken")
            runner.start()
            runner._fail(foreign.id, {"code": "x", "what": f"{tmp_path}/a"})
            while not runner.jobs.get(own.id).is_over:
                await asyncio.sleep(0.02)
            await runner.stop()

        asyncio.run(go())
    assert runner.jobs.get(own.id).state == "failed"  # it has no checkpoints; the line went on
    assert runner.jobs.get(lost.id) == lost
    assert foreign.id in caplog.text
    assert "are ignored" in caplog.text
    assert "broken" in caplog.text
    assert str(tmp_path) not in json.dumps(runner.jobs.get(foreign.id).problems)


@pytest.mark.parametrize("may_fetch", [False, True])
def test_a_fenced_job_finds_the_models_of_the_server(tmp_path, monkeypatch, may_fetch):
    if not is_sandbox_available():
        pytest.skip("this kernel has no Landlock")
    models, cache, space = (tmp_path / name for name in ("models", "cache", "space"))
    for folder in (models, space):
        folder.mkdir()
    fill(models)
    held = cache / "models--org--b" / "snapshots" / ("0" * 40)
    held.parent.mkdir(parents=True)
    (models / "b").rename(held)
    (cache / "models--org--b" / "refs").mkdir()
    (cache / "models--org--b" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setenv("STILLROOM_MODELS", str(models))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    recipe = MERGE.replace("model: a", "model: hub:a")
    recipe = recipe.replace("model: b", "model: hub:org/b")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with live(space, policy=RecipePolicy(hub=may_fetch)) as client:
        events = follow(client, submit(client, recipe))
        assert events[-1][1]["state"] == "finished", events
        assert str(tmp_path) not in json.dumps(events)
    assert (tmp_path / "home" / "xet").is_dir() == may_fetch  # else it could not be fenced in


def test_jobs_are_signed_by_a_server_whose_key_they_cannot_read(tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    fill(place)
    private, public = create_key_pair(tmp_path / "operator", password=b"secret")
    monkeypatch.setenv(KEY_VARIABLE, str(private))
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    flow = f"kind: flow\nsteps:\n  mix: {{{MERGE.strip().replace(chr(10), ', ')}}}\n"
    with live(place) as client:
        for recipe in (MERGE, flow):
            name = submit(client, recipe)
            assert follow(client, name)[-1][1]["state"] == "finished"
            for folder in list_run_folders(place / "jobs" / name):
                assert check_signature(folder, load_trust([public])).state == "trusted"


def test_what_a_job_links_to_is_not_signed(tmp_path, monkeypatch):
    (tmp_path / "place").mkdir()
    fill(tmp_path / "place")
    private, _ = create_key_pair(tmp_path / "operator", password=b"secret")
    monkeypatch.setenv(KEY_VARIABLE, str(private))
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    (tmp_path / "others").mkdir()

    async def plant(runner, record, *_args):
        out = runner.out_of(record)
        (out / "steps").mkdir(parents=True)
        (out / "steps" / "x").symlink_to(tmp_path / "others")
        return {"state": "finished"}, 0

    monkeypatch.setattr(JobRunner, "_work", plant)
    with live(tmp_path / "place") as client:
        assert follow(client, submit(client))[-1][1]["state"] == "failed"
    assert list((tmp_path / "others").iterdir()) == []


def test_no_worker_gets_the_servers_secrets(tmp_path, monkeypatch):
    names = ("STILLROOM_API_KEY", KEY_VARIABLE, PASSWORD_VARIABLE)
    for name in names:
        monkeypatch.setenv(name, "secret")
    given = []

    async def look(*_args, env, **_more):
        given.append(env)
        raise OSError

    monkeypatch.setattr(asyncio, "create_subprocess_exec", look)
    with pytest.raises(OSError):  # noqa: PT011  # raised above
        asyncio.run(processes.spawn({"hub": False}, tmp_path, tmp_path))
    assert not given[0].keys() & {*names}


def test_a_job_cannot_read_what_a_recipe_hid_from_the_first_fence(tmp_path):
    """A folder inside holds a link to the outside, which no recipe names."""
    if not is_sandbox_available():
        pytest.skip("this kernel has no Landlock")
    inside, outside = tmp_path / "inside", tmp_path.parent / f"{tmp_path.name}-outside"
    inside.mkdir()
    fill(inside)
    outside.mkdir()
    (inside / "a" / "model.safetensors").rename(outside / "model.safetensors")
    (inside / "a" / "model.safetensors").symlink_to(outside / "model.safetensors")
    with live(inside, policy=RecipePolicy()) as client:
        name = submit(client)
        follow(client, name)
        assert client.get(f"/v1/jobs/{name}").json()["state"] == "failed"


def test_a_job_that_fails_for_no_known_reason_is_told_by_a_number(served):
    ticket = JobRecord(new_job_id("merge"), "", "merge")
    served.runner.jobs.add(ticket, MERGE)
    blocked = served.runner.workspace.folder / "jobs" / f".{ticket.id}.partial"
    (blocked / "recipe.yaml").mkdir(parents=True)  # no job makes that, so none foresees it
    drop(served, submit(served))
    error = wait_for(served, ticket.id, "failed")["error"]
    assert error["code"] == "job.failed"
    number = re.search(r"[0-9a-f]{12}\Z", error["message"])[0]
    log = (served.runner.jobs.folder_of(ticket.id) / "log.txt").read_text()
    assert f"error {number}" in log
    assert "IsADirectoryError" in log
