"""Former places of moved inputs in what a replay writes: each where the kept output has it."""

import json

import pytest

from stillroom.jobs.progress import QuietReporter
from stillroom.jobs.replay import compare_output
from stillroom.jobs.segments import ReplayRequest
from stillroom.provenance import Artifact, FileEntry, digest_file

NOW, BEFORE = "/srv/b/in", "in"
MOVED = ((NOW, BEFORE), (NOW, "/srv/in"))


def request_of(folder, artifact, moved=MOVED):
    nothing = lambda *_: None  # noqa: E731
    return ReplayRequest(folder, artifact, None, folder, QuietReporter(), nothing, moved)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (f"{NOW} and {NOW}", f"in and {NOW}"),
        (f"{NOW} and {NOW}.", f"{NOW} and /srv/in."),
        (f"{NOW}/a {NOW}", "in/a in"),
        ("nothing", "nothing"),
        (f"x{NOW}", f"x{NOW}"),
    ],
)
def test_a_place_is_restored_where_the_kept_text_has_the_former(text, stored):
    assert request_of(None, None).restore_places(text, stored) == stored


@pytest.mark.parametrize("stored", ["/data/in/a and /data/b", "/data/b and /data/in/a"])
def test_of_places_that_begin_with_another_the_one_that_fits_is_taken(stored):
    request = request_of(None, None, (("/data", "/data/in"),))
    assert request.restore_places(stored.replace("/in", ""), stored) == stored


def test_what_follows_a_place_ends_where_another_place_begins():
    request = request_of(None, None, (("/data/in", "/data"), ("/b", "b")))
    stored = '["/data/in","b"]'
    assert request.restore_places('["/data/in","/b"]', stored) == stored


def test_texts_that_differ_are_restored_as_a_whole():
    assert request_of(None, None).restore_places(f"a {NOW} b", "") == "a in b"
    assert request_of(None, None).restore_places(f"a {NOW} b", "c") == "a in b"
    assert request_of(None, None).restore_places("a", "b") == "a"


def test_one_cell_is_restored_beside_one_that_is_not(tmp_path):
    """As a table of inputs, one named as the recipe has it and one where it lies now."""
    kept = {"of": BEFORE, "at": NOW, "rows": [[NOW, "in/a"]], "in/b": 1}
    written = {"of": NOW, "at": NOW, "rows": [[NOW, f"{NOW}/a"]], f"{NOW}/b": 1}
    artifacts = []
    for name, values in (("kept", kept), ("new", written)):
        (tmp_path / name / "output").mkdir(parents=True)
        path = tmp_path / name / "output" / "r.json"
        path.write_text(json.dumps(values))
        entry = FileEntry("output/r.json", path.stat().st_size, digest_file(path))
        artifacts.append(Artifact("records", (entry,), details=values))
    request = request_of(tmp_path / "kept", artifacts[0])
    outcomes = list(compare_output(request, artifacts[1], tmp_path / "new"))
    assert [outcome.what for outcome in outcomes] == [""] * 4
