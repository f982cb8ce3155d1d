"""The fuzzer notices what a job that ended well cannot have written."""

import json

from tests.fuzz.commands import find_silent_faults


def test_nan_and_counts_that_differ_are_faults_and_journals_are_not(tmp_path):
    (tmp_path / "journal.jsonl").write_text('0123abcd {"loss": NaN}\n')
    (tmp_path / "good.json").write_text('{"loss": 0.5}')
    counts = {"read": 3, "kept": 2, "fell": 1}
    (tmp_path / "artifact.json").write_text(json.dumps({"details": counts}))
    assert find_silent_faults(tmp_path) == []
    (tmp_path / "rows.jsonl").write_text('{"loss": 1}\n\n{"loss": NaN}\n{"loss": NaN}\n')
    (tmp_path / "artifact.json").write_text(json.dumps({"details": {**counts, "fell": 0}}))
    assert find_silent_faults(tmp_path) == [
        "3 read, kept + fell is 2",
        "rows.jsonl holds NaN",
    ]
