"""What is neither text nor a folder is refused as any other mistake, not as a fault of ours."""

import importlib

import pytest

from stillroom.errors import StillroomError


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("check", "recipe.encoding"),
        ("forensics_init_ca", "data.exists"),
        ("merge_plan", "recipe.encoding"),
        ("rag_rebuild", "data.not-an-artifact"),
        ("synth_drops", "data.row"),
    ],
)
def test_a_file_of_other_bytes_is_refused_by_its_place(module, code, tmp_path):
    path = tmp_path / "junk.bin"
    path.write_bytes(b"kind: \xe9\xff\x00\n")
    command = importlib.import_module(f"stillroom.cli.{module}").command
    with pytest.raises(StillroomError) as caught:
        command.main([str(path)], standalone_mode=False)
    assert caught.value.code == code
    assert caught.value.problems[0].next


def test_a_folder_without_an_index_is_not_rebuilt(tmp_path):
    command = importlib.import_module("stillroom.cli.rag_rebuild").command
    with pytest.raises(StillroomError) as caught:
        command.main([str(tmp_path)], standalone_mode=False)
    assert caught.value.code == "data.not-an-artifact"
