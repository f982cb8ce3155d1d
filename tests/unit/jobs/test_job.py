import json
import os
import pickle
import signal
import sys

import pytest
from tests.processes import run_process

from stillroom.errors import Cancelled, DataError, ResourceError
from stillroom.jobs import Job, choose_reporter, sum_work_seconds
from stillroom.jobs import job as job_module
from stillroom.jobs.replay import describe_difference
from stillroom.provenance import Parent, read_artifact

RECIPE = "version: 1\nkind: test\n"


def start(out, **settings):
    return Job.start(out, settings.pop("recipe", RECIPE), **settings)


def test_finished_folder_holds_recipe_artifact_events_and_output(tmp_path):
    job = start(tmp_path / "a", seed=7)
    (job.output / "x.txt").write_text("x")
    job.metric("loss", 1.5, step=3)
    artifact = job.finish("records", parents=[Parent("documents", "/d", "abc")])
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "artifact.json",
        "events.jsonl",
        "metrics.jsonl",
        "output",
        "recipe.yaml",
    ]
    assert artifact == read_artifact(tmp_path / "a")
    assert artifact.seed == 7
    assert [entry.path for entry in artifact.files] == ["output/x.txt"]
    assert not list(tmp_path.glob(".*"))


def test_digest_covers_the_output_alone(tmp_path):
    digests = []
    for name, seed in (("a", 0), ("b", 1)):
        job = start(tmp_path / name, seed=seed)
        (job.output / "x").write_text("same")
        digests.append(job.finish("records").digest)
    assert digests[0] == digests[1]


def test_nothing_stands_under_the_final_name_before_the_end(tmp_path):
    job = start(tmp_path / "a")
    (job.output / "x").write_text("x")
    assert not (tmp_path / "a").exists()
    job.close()
    assert not (tmp_path / "a").exists()


def test_taken_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("keep")
    with pytest.raises(DataError, match="exists already") as caught:
        start(tmp_path / "a")
    assert caught.value.code == "data.exists"
    assert (tmp_path / "a" / "mine").read_text() == "keep"


def test_overwrite_keeps_the_old_folder_until_the_new_is_whole(tmp_path):
    job = start(tmp_path / "a")
    (job.output / "x").write_text("old")
    job.finish("records")
    job = start(tmp_path / "a", overwrite=True)
    assert job.previous == tmp_path / "a"
    (job.output / "x").write_text("new")
    assert (tmp_path / "a" / "output" / "x").read_text() == "old"
    job.finish("records")
    assert (tmp_path / "a" / "output" / "x").read_text() == "new"


def test_unfinished_run_wants_resume_or_overwrite(tmp_path):
    job = start(tmp_path / "a")
    job.journal("units").put("one", 1)
    job.close()
    with pytest.raises(DataError, match="--resume") as caught:
        start(tmp_path / "a")
    assert caught.value.code == "data.unfinished"
    again = start(tmp_path / "a", resume=True)
    assert again.journal("units")["one"] == 1
    again.close()
    fresh = start(tmp_path / "a", overwrite=True)
    assert "one" not in fresh.journal("units")
    fresh.close()


def test_what_a_kill_left_half_written_is_no_output(tmp_path):
    job = start(tmp_path / "a")
    (job.output / "pages").mkdir()
    (job.output / "pages/.report.html.4711.tmp").write_text("<html")
    (job.output / "pages/.notes.tmp").write_text("the job's own")
    job.close()
    again = start(tmp_path / "a", resume=True)
    assert [file.path for file in again.finish("records").files] == ["output/pages/.notes.tmp"]


def test_resume_refuses_another_recipe(tmp_path):
    start(tmp_path / "a").close()
    with pytest.raises(DataError, match="another recipe") as caught:
        start(tmp_path / "a", recipe=RECIPE + "seed: 1\n", resume=True)
    assert caught.value.code == "data.other-recipe"
    assert "seed" in caught.value.problems[0].what


def test_two_processes_cannot_write_one_folder(tmp_path):
    job = start(tmp_path / "a")
    code = (
        "import sys, pathlib\nfrom stillroom.jobs import Job\n"
        "from stillroom.errors import ResourceError\n"
        f"try: Job.start(pathlib.Path(sys.argv[1]), {RECIPE!r}, resume=True)\n"
        "except ResourceError as error: print(error.code)"
    )
    done = run_process([sys.executable, "-c", code, str(tmp_path / "a")])
    assert done.stdout.strip() == "resource.busy"
    job.close()


def test_cancel_stops_at_the_next_safe_point_and_says_how_to_resume(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    job = start(tmp_path / "a")
    job.check_cancelled()
    with job.interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Cancelled, match="--resume"):
            job.check_cancelled()
    assert signal.getsignal(signal.SIGINT) is before
    job.close()


def test_killed_between_artifact_and_rename_is_published_at_the_next_start(tmp_path):
    job = start(tmp_path / "a")
    (job.output / "x").write_text("x")
    job.finish("records")
    (tmp_path / "a").rename(tmp_path / ".a.partial")
    (tmp_path / ".a.partial" / "journals").mkdir()
    assert Job.recover(tmp_path / "a")
    assert (tmp_path / "a" / "artifact.json").is_file()
    assert not (tmp_path / "a" / "journals").exists()


def test_seconds_are_those_of_all_sittings(tmp_path):
    lines = [
        {"time": "2026-01-01T00:00:00+00:00", "event": "started"},
        {"time": "2026-01-01T00:00:05+00:00", "event": "phase"},
        {"time": "2026-01-01T01:00:00+00:00", "event": "resumed"},
        {"time": "2026-01-01T01:00:02+00:00", "event": "finished"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "events.jsonl").write_text(text + '{"time": "20')
    assert sum_work_seconds(tmp_path) == 7.0


def test_a_cut_event_does_not_count_the_pause_after_it_as_work(tmp_path):
    first = start(tmp_path / "a")
    first.metric("loss", 2.0)
    first.close()
    for name in ("events.jsonl", "metrics.jsonl"):
        path = first.work / name
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{**row, "time": "2026-01-01T00:00:00+00:00"} for row in rows]
        cut = '{"time": "2026-01-01T0'  # by a full disk
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + cut)
    again = start(tmp_path / "a", resume=True)
    again.metric("loss", 1.0)
    again.close()
    assert sum_work_seconds(again.work) < 60
    last = (again.work / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["value"] == 1.0


def test_full_disk_names_the_disk_and_the_next_step(tmp_path, monkeypatch):
    job = start(tmp_path / "a")
    journal = job.journal("units")

    class Full:
        closed = False

        def write(self, data):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_file", Full())
        _put_on_full_disk(journal)
    job.close()


def _put_on_full_disk(journal):
    with pytest.raises(ResourceError, match="--resume") as caught:
        journal.put("one", 1)
    assert caught.value.code == "resource.disk-full"


def test_errors_cross_process_borders_whole():
    error = DataError("what", code="data.exists", where="w", expected="e", next="n")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert str(again) == str(error)
    assert again.problems == error.problems


def test_a_run_that_another_process_finished_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    out = tmp_path / "out"
    real = job_module.lock_folder

    def lock_late(folder, busy, **settings):
        monkeypatch.setattr(job_module, "lock_folder", real)
        first = Job.start(out, "a: 1", resume=True)
        (first.output / "x").write_text("first")
        first.finish("report")
        folder.mkdir(exist_ok=True)
        return real(folder, busy, **settings)

    monkeypatch.setattr(job_module, "lock_folder", lock_late)
    with pytest.raises(DataError):
        Job.start(out, "a: 1", resume=True)
    assert (out / "output" / "x").read_text() == "first"


def test_warnings_of_all_sessions_are_in_the_artifact_once(tmp_path, capsys):
    for resume in (False, True):
        job = Job.start(
            tmp_path / "out", "recipe", resume=resume, reporter=choose_reporter(quiet=True)
        )
        job.say("3 files")
        job.warn("one file was left out")
        if not resume:
            job.close()
    assert capsys.readouterr().err == "warning: one file was left out\n" * 2
    assert job.finish("records").details["warnings"] == ["one file was left out"]


def test_lines_that_differ_are_named_where_a_text_holds_other_ends_of_lines(tmp_path):
    stored, repeated = tmp_path / "stored.jsonl", tmp_path / "repeated.jsonl"
    for path, last in ((stored, "b"), (repeated, "c")):
        rows = [{"id": "a", "text": "one\u2028two\x85"}, {"id": "b", "text": last}]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    found = describe_difference(stored, repeated)
    assert found.startswith("differs: line 2 (id 'b') is not what the job writes; ")
