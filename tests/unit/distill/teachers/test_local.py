"""What can be known of a teacher by its configuration, before its weights are there."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.unit.distill.families import FAMILIES, make_model, save
from tests.unit.distill.kinds import build, preflight

from stillroom.checkpoints import Checkpoint
from stillroom.distill.pruning.student import count_student_parameters
from stillroom.distill.settings import PruneSettings
from stillroom.distill.teachers.local import outline_checkpoint
from stillroom.errors import CheckpointError, StillroomError
from stillroom.models.hub import find_config

SETTINGS = (
    PruneSettings(max_parameters=0.8),
    PruneSettings(layers=2),
    PruneSettings(prune="width", max_parameters=0.8),
    PruneSettings(prune="inner", max_parameters=0.8),
)


def planned(checkpoint, settings):
    try:
        return count_student_parameters(checkpoint, settings)
    except StillroomError as error:
        return error.code


@pytest.mark.parametrize("family", FAMILIES)
def test_plans_made_by_the_configuration_are_those_of_the_weights(tmp_path, family):
    folder = save(make_model(family), tmp_path / family)
    real = Checkpoint.open(folder)
    with outline_checkpoint(folder / "config.json") as outline:
        assert outline.parameters == real.parameters
        for settings in SETTINGS:
            assert planned(outline, settings) == planned(real, settings)
        assert outline.folder.stat().st_size < 1 << 20
    assert not outline.folder.exists()


def test_a_configuration_of_nothing_known_is_an_error(tmp_path):
    for text in ('{"model_type": "nobody"}', "{", '{"model_type": "llama", "hidden_size": "a"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError) as caught, outline_checkpoint(tmp_path / "config.json"):
            pass
        assert caught.value.code == "checkpoint.unloadable"


@pytest.fixture
def make_recipe(records_file):
    def make(teacher, **student):
        return build({"teacher": teacher, "records": str(records_file), "student": student})

    return make


def find(flight, check):
    return [finding for finding in flight.findings if finding.check == check]


def test_a_shape_that_cannot_be_is_refused_before_anything_is_fetched(
    make_recipe, tmp_path, teacher_folder, monkeypatch
):
    place = tmp_path / "models" / "org" / "name"
    place.mkdir(parents=True)
    shutil.copy(teacher_folder / "config.json", place)
    monkeypatch.setenv("STILLROOM_MODELS", str(tmp_path / "models"))
    assert find_config("hub:org/name", fetch=False) == place / "config.json"
    (fits,) = find(
        preflight(make_recipe("hub:org/name", layers=3, max_parameters=0.9), tmp_path, fetch=False),
        "student's shape",
    )
    assert fits.level == "ok"
    assert "by its configuration" in fits.what
    flight = preflight(make_recipe("hub:org/name", layers=9), tmp_path)
    (refused,) = find(flight, "student's shape")
    assert refused.level == "error"
    assert "was not opened" in find(flight, "teacher")[0].what
    recipe = make_recipe("hub:nobody/nothing", layers=9)
    missing = preflight(recipe, tmp_path, fetch=False)
    assert "not on this disk" in find(missing, "teacher")[0].what
    with pytest.raises(StillroomError) as caught:
        flight.raise_errors()
    assert caught.value.code == "distill.layers"


def test_a_configuration_is_found_where_its_checkpoint_would_be(tmp_path, teacher_folder):
    assert find_config(str(teacher_folder), fetch=False) == teacher_folder / "config.json"
    assert find_config(str(tmp_path), fetch=False) is None
    assert find_config("hub:nobody/nothing", fetch=False) is None
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    assert find_config(str(tmp_path), fetch=False) == tmp_path / "one.gguf"


@pytest.mark.slow
def test_of_a_hub_only_the_configuration_is_fetched(tmp_path, teacher_folder, records_file):
    """A real HTTP hub of one model: a student that cannot be costs a few kilobytes."""
    asked = []
    config = (teacher_folder / "config.json").read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()
            if self.path.endswith("config.json"):
                self.wfile.write(config)

        def answer(self):
            asked.append((self.command, self.path))
            is_config = self.path == "/org/name/resolve/main/config.json"
            self.send_response(200 if is_config else 404)
            self.send_header("Content-Length", str(len(config) if is_config else 0))
            if is_config:
                self.send_header("ETag", '"abc"')
                self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()

    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    recipe = tmp_path / "recipe.yaml"
    fields = {
        "version": 1,
        "kind": "distill.logits",
        "teacher": "hub:org/name",
        "records": str(records_file),
        "student": {"layers": 9},
    }
    recipe.write_text(json.dumps(fields))
    env = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, "-m", "stillroom", "check", str(recipe), "--load"]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
    assert done.returncode != 0
    assert "student's shape" in done.stdout + done.stderr, done.stdout + done.stderr
    assert {path for _, path in asked} == {"/org/name/resolve/main/config.json"}
