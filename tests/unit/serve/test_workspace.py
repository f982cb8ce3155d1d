from pathlib import Path

import pytest

from stillroom.errors import DataError
from stillroom.serve.workspace import TenantRoot, make_path_redactor, replace_names


def test_places_become_names_and_nothing_else_changes(tmp_path):
    cache = tmp_path / "cache"
    hide = make_path_redactor({tmp_path: "", cache: "(cache)", Path("/"): "all"})
    said = [f"in {tmp_path}/a/b and {cache}/x", {"at": cache, "n": 3}, f"{tmp_path}", f"{cache}s"]
    told = ["in a/b and (cache)/x", {"at": "(cache)", "n": 3}, ".", "caches"]
    assert hide(said) == told
    assert hide({"path": f"{tmp_path}-other/x"}) == {"path": f"{tmp_path}-other/x"}
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    inner = make_path_redactor({tmp_path / "link": "linked"})
    assert inner(str(Path(tmp_path / "real/x"))) == "linked/x"
    assert make_path_redactor({})("/etc") == "/etc"


def test_names_are_put_for_others_in_every_text():
    value = {
        "error": "ab12.png is cut",
        "more": ["(ab12.png)", 3, None],
        "rows": ({"x": "ab12.png"},),
    }
    assert replace_names(value, {"ab12.png": "my photo.png"}) == {
        "error": "my photo.png is cut", "more": ["(my photo.png)", 3, None],
        "rows": [{"x": "my photo.png"}],
    }  # fmt: skip


def test_what_people_judged_is_no_file_of_a_client(tmp_path):
    folder = tmp_path / "run.judgments"
    folder.mkdir()
    (folder / "train.jsonl").write_text("{}")
    assert TenantRoot(tmp_path).list() == ([], True)
    for name in ("run.judgments", "run.judgments/train.jsonl", "RUN.Judgments"):
        with pytest.raises(DataError):
            TenantRoot(tmp_path).find(name)
