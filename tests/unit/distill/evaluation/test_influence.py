"""The job around the library: what it is given, what it gives back, and how it fails."""

import json

import pytest

from stillroom.distill.jobs.influence import JOB_KIND, InfluenceRecipe
from stillroom.errors import BackendError, DataError, MissingExtraError
from stillroom.flow import run_recipe
from stillroom.jobs import Job
from stillroom.jobs.extras import require_extras
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

LIBRARY = """
import json, sys
from pathlib import Path
import numpy as np
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
if {fails}:
    sys.exit("the Hessian is not positive")
rows, asked = ([json.loads(line) for line in Path(options[key]).read_text().splitlines()]
               for key in ("--data.dataset", "--query.dataset"))
shared = lambda a, b: len({{t for t in a["labels"] if t >= 0}} & set(b["labels"]))
fields = [(f"{{kind}}_{{i}}", form) for i in range(len(asked))
          for kind, form in (("score", "<f4"), ("written", "?"))]
scores = np.zeros(len(rows), fields)
for i, query in enumerate(asked):
    scores[f"score_{{i}}"] = [shared(row, query) for row in rows]
    scores[f"written_{{i}}"] = {written}
out = Path(sys.argv[2]) / "scores"
out.mkdir(parents=True)
scores.tofile(out / "scores.bin")
kind = scores.dtype
told = {{"names": list(kind.names), "formats": [kind[n].str for n in kind.names],
         "offsets": [kind.fields[n][1] for n in kind.names], "itemsize": kind.itemsize}}
(out / "info.json").write_text(json.dumps({{"dtype": told}}))
"""
SAID = ["The kiln is hot.", "Ash makes a glaze.", "Bread needs salt."]


@pytest.fixture
def recipe(tmp_path):
    tiny_checkpoint(tmp_path / "student")
    for name, texts in (("records", SAID), ("answers", SAID[1:2])):
        rows = [Record((Message("assistant", text),), {"split": "train"}) for text in texts]
        write_records(tmp_path / f"{name}.jsonl", rows)
    paths = {name: str(tmp_path / name) for name in ("student", "records.jsonl", "answers.jsonl")}
    return InfluenceRecipe(
        student=paths["student"], records=paths["records.jsonl"], answers=paths["answers.jsonl"]
    )


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Install a library of the same command line, which counts the tokens that texts share."""

    def install(*, fails=False, written=True):
        package = tmp_path / "peer" / "bergson"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(LIBRARY.format(fails=fails, written=written))
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        monkeypatch.syspath_prepend(package.parent)

    return install


def test_records_are_scored_and_ranked_for_each_answer(recipe, library, tmp_path):
    library()
    artifact = run_recipe(recipe, tmp_path / "out")
    (row,) = map(json.loads, (tmp_path / "out/output/influence.jsonl").read_text().splitlines())
    best = Record((Message("assistant", SAID[1]),), {"split": "train"})
    assert row["answer"] == best.id
    assert row["records"][0]["record"] == best.id
    scores = [entry["score"] for entry in row["records"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert [parent.role for parent in artifact.parents] == ["student", "records", "answers"]
    (section,) = artifact.details["sections"]
    assert section["table"]["rows"][0][2:] == [best.id, SAID[1]]


@pytest.mark.parametrize("broken", [{"fails": True}, {"written": False}])
def test_a_library_that_fails_is_an_error_with_its_last_words(recipe, library, tmp_path, broken):
    library(**broken)
    with pytest.raises(BackendError) as told:
        run_recipe(recipe, tmp_path / "out")
    assert told.value.code == "distill.influence-failed"
    assert ("the Hessian is not positive" in str(told.value)) == ("fails" in broken)


def test_answers_without_an_assistant_are_refused(recipe, library, tmp_path):
    library()
    write_records(tmp_path / "answers.jsonl", [Record((Message("user", "Why?"),))])
    with pytest.raises(DataError, match="none of the answers has a token of an assistant"):
        JOB_KIND.run(recipe, Job.start(tmp_path / "out", "version: 1\n"))


def test_a_missing_library_names_its_extra_and_the_estimate_needs_none(recipe, monkeypatch):
    monkeypatch.setattr("stillroom.jobs.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"stillroom\[influence\]"):
        require_extras(JOB_KIND.extras, JOB_KIND.run, "influence")
    assert JOB_KIND.estimate(recipe).seconds > 0
