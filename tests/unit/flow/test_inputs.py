import pytest

from stillroom.errors import CheckpointError, DataError
from stillroom.flow.inputs import check_inputs, find_inputs


def test_every_missing_path_is_said_at_once(tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises(DataError) as caught:
        check_inputs(
            {
                "documents": str(tmp_path / "here"),
                "teacher": str(tmp_path / "none"),
                "embedder": str(tmp_path / "nowhere"),
                "other": "hub:org/name",
                "static": "builtin:static",
            }
        )
    assert [problem.where for problem in caught.value.problems] == [
        "inputs.teacher",
        "inputs.embedder",
    ]
    assert caught.value.code == "data.missing"


def test_a_name_of_the_hub_without_its_scheme_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="write hub:org/name"):
        check_inputs({"teacher": str(tmp_path / "org" / "name")})


def test_hub_names_are_looked_for(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    find_inputs({"teacher": "builtin:static", "documents": "/nowhere"})
    with pytest.raises(CheckpointError) as caught:
        find_inputs({"teacher": "hub:nobody/nothing"})
    assert caught.value.code == "checkpoint.not-found"
