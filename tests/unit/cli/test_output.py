"""What an artifact says of itself reads as words in the terminal."""

from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.cli.output import format_value
from stillroom.jobs import Job


def test_values_are_told_without_brackets_of_python():
    assert format_value(None) == format_value([]) == format_value({}) == "none"
    assert format_value(True) == "yes"
    assert format_value(2.458347554) == "2.45835"
    assert format_value({"kept": 3, "dropped": {"short": 1}}) == "kept: 3, dropped: (short: 1)"
    assert format_value([1, [2, 3]]) == "1, (2, 3)"
    assert format_value([{"name": "linear", "loss": 1.0}, {"name": "ties"}]) == "linear, ties"
    assert format_value([{"loss": 1.0}, {"loss": 2.0}]) == "2 of them"


def test_an_artifact_is_shown_in_aligned_rows(tmp_path):
    job = Job.start(tmp_path / "run", "recipe")
    origin = {"kind": "synthetic", "license": "", "chain": [{"method": "merge.methods.ties"}]}
    job.finish("records", origin=origin, details={"counts": {"kept": 3}, "helped": False})
    told = CliRunner().invoke(stillroom, ["show", str(tmp_path / "run")]).output.splitlines()
    assert "  origin     synthetic, license unsaid, by merge.methods.ties" in told
    assert "  counts     kept: 3" in told
    assert "  helped     no" in told
    assert "  signature  unsigned" in told
