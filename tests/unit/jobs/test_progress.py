import io
import re
import time

import pytest

from stillroom.errors import ResourceError
from stillroom.jobs import Estimate, Machine, Progress, check_fits
from stillroom.jobs.preflight import PreflightFinding, PreflightReport
from stillroom.jobs.progress import LineReporter, choose_reporter


def test_shows_a_line_at_once_and_the_sum_at_the_end():
    stream = io.StringIO()
    with Progress("parse", 3, "files", LineReporter(stream)) as progress:
        assert stream.getvalue() == "parse: 0/3 files\n"
        for _ in progress.over("abc"):
            pass
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("parse: 3/3 files")
    assert last.endswith(" s")


def test_end_time_is_shown_while_work_is_left():
    stream = io.StringIO()
    reporter = LineReporter(stream)
    reporter.every_s = 0.0
    with Progress("parse", 4, "files", reporter) as progress:
        progress.advance()
        assert "/s, ends " in stream.getvalue()


def test_the_end_is_estimated_by_weight_where_units_have_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("stillroom.jobs.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("stillroom.jobs.progress.time.time", lambda: 0.0)
    monkeypatch.setattr("stillroom.jobs.progress.time.localtime", time.gmtime)
    stream = io.StringIO()
    reporter = LineReporter(stream)
    reporter.every_s = 0.0
    with Progress("index", 4, "documents", reporter, weight=1000) as progress:
        progress.advance(weight=0)  # known from before: says nothing of the time
        assert "ends" not in stream.getvalue()
        now[0] += 10
        progress.advance(weight=900)  # one big file of three
        assert stream.getvalue().splitlines()[-1].endswith("ends 00:00:01")
        now[0] += 1
        progress.advance(weight=100)
    assert "4 documents" in stream.getvalue()


def test_a_long_unit_moves_the_line_and_the_end_before_it_is_finished(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("stillroom.jobs.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("stillroom.jobs.progress.time.time", lambda: 0.0)
    monkeypatch.setattr("stillroom.jobs.progress.time.localtime", time.gmtime)
    stream = io.StringIO()
    reporter = LineReporter(stream)
    reporter.every_s = 0.0
    with Progress("index", 3, "documents", reporter, weight=1000) as progress:
        now[0] += 10
        progress.advance_within(100)
        assert stream.getvalue().splitlines()[-1] == "index: 0/3 documents, 10 %, ends 00:01:30"
        now[0] += 10
        progress.advance_within(200)
        progress.advance(weight=800)  # the whole unit, of which a part was told
        assert stream.getvalue().splitlines()[-1] == "index: 1/3 documents, 80 %, ends 00:00:02"
        progress.advance(2, weight=200)
    assert stream.getvalue().splitlines()[-1].startswith("index: 3/3 documents")


def test_the_end_leaves_out_what_the_first_unit_had_to_load(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("stillroom.jobs.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("stillroom.jobs.progress.time.time", lambda: 0.0)
    monkeypatch.setattr("stillroom.jobs.progress.time.localtime", time.gmtime)
    stream = io.StringIO()
    reporter = LineReporter(stream)
    reporter.every_s = 0.0
    with Progress("retrieve", 101, "questions", reporter) as progress:
        for spent in (20, 1, 1):
            now[0] += spent
            progress.advance()
        assert stream.getvalue().splitlines()[-1].endswith("ends 00:01:38")


def test_resumed_units_do_not_count_for_the_rate():
    stream = io.StringIO()
    with Progress("parse", 10, "files", LineReporter(stream), done=9) as progress:
        progress.advance()
    assert "10/10" in stream.getvalue()


def test_what_cannot_fit_is_refused_with_its_knob():
    estimate = Estimate(memory_bytes=8 * 10**9, disk_bytes=10**6, memory_knob="lower train.batch")
    with pytest.raises(ResourceError, match=r"lower train\.batch") as caught:
        check_fits(estimate, Machine(10**9, 10**9, 2), "my.yaml")
    assert caught.value.code == "resource.memory"
    with pytest.raises(ResourceError) as caught:
        check_fits(Estimate(disk_bytes=10**10), Machine(10**9, 10**9, 2), "my.yaml")
    assert caught.value.code == "resource.disk"
    check_fits(estimate, Machine(10**10, 10**9, 2), "my.yaml")


def test_sum_of_estimates_takes_the_peak_of_memory_and_the_sum_of_time():
    both = Estimate(memory_bytes=5, seconds=1, memory_knob="a") + Estimate(
        memory_bytes=3, seconds=2
    )
    assert (both.memory_bytes, both.seconds, both.memory_knob) == (5, 3, "a")


def test_a_high_rate_is_a_number_that_people_read():
    stream = io.StringIO()
    with Progress("digest", 10**6, "documents", LineReporter(stream)) as progress:
        progress.advance(10**6)
    assert re.search(r"documents, \d{1,3}(,\d{3})+/s, ", stream.getvalue())


def test_quiet_hides_progress_and_messages_but_no_warning(capsys):
    reporter = choose_reporter(quiet=True)
    with Progress("parse", 1, "files", reporter) as progress:
        progress.advance()
    reporter.say("3 files")
    reporter.warn("no file can be read")
    findings = [
        PreflightFinding("note", "disk", "3 GB"),
        PreflightFinding("warning", "rows", "none", "add some"),
    ]
    PreflightReport(findings).log(reporter)
    expected = "warning: no file can be read\nwarning: rows: none; add some\n"
    assert capsys.readouterr().err == expected
