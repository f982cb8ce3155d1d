"""``stillroom checkpoint``: what it prints, and which checkpoint a run means."""

import json

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.flow.opening import find_checkpoint
from stillroom.provenance import render_tree, verify_artifact, walk_lineage
from stillroom.testing import tiny_checkpoint


def invoke(*arguments):
    return CliRunner().invoke(stillroom, ["checkpoint", *map(str, arguments)])


@pytest.fixture
def run(tmp_path):
    """A finished run of one step, whose model is a tiny checkpoint."""
    step = tmp_path / "run" / "steps" / "merged-1"
    tiny_checkpoint(step / "output")
    about = {"format": 1, "files": [], "parents": []}
    origin = {"kind": "synthetic", "chain": [], "license": "PSF-2.0"}
    told = {**about, "kind": "checkpoint", "origin": origin}
    (step / "artifact.json").write_text(json.dumps(told), encoding="utf-8")
    details = {
        "answer": {"index": "index", "model": "merged"},
        "steps": {"merged": "steps/merged-1"},
    }
    told = {**about, "kind": "report", "details": details}
    (tmp_path / "run" / "artifact.json").write_text(json.dumps(told), encoding="utf-8")
    return tmp_path / "run"


def test_a_run_means_its_model(run):
    folder, artifact = find_checkpoint(str(run))
    assert folder == run / "steps" / "merged-1" / "output"
    assert artifact.origin["license"] == "PSF-2.0"


def test_export_of_a_run_that_trained_no_language_model_says_so(run, tmp_path):
    pytest.importorskip("gguf")
    trained = invoke("export", run, "--to", "gguf", "--out", tmp_path / "a.gguf")
    about = json.loads((run / "artifact.json").read_text(encoding="utf-8"))
    fallback = str(run / "steps/merged-1/output")
    about["details"]["answer"] |= {"model": "inputs.teacher", "fallback": fallback}
    (run / "steps/merged-1/artifact.json").unlink()
    (run / "artifact.json").write_text(json.dumps(about), encoding="utf-8")
    plain = invoke("export", run, "--to", "gguf", "--out", tmp_path / "b.gguf")
    assert (trained.exit_code, plain.exit_code) == (0, 0)
    assert "trained no language model" in plain.stderr
    assert "trained no language model" not in trained.stderr


def test_export_says_what_it_wrote(run, tmp_path):
    gguf = pytest.importorskip("gguf")
    out = tmp_path / "student.gguf"
    done = invoke("export", run, "--to", "gguf", "--type", "q8_0", "--out", out)
    assert done.exit_code == 0, done.output
    assert "llama" in done.output
    assert "15 q8_0" in done.output
    assert "not compared with transformers: add --check" in done.output
    fields = gguf.GGUFReader(out).fields
    assert fields["general.name"].contents() == "student"
    assert fields["general.license"].contents() == "PSF-2.0"
    assert not verify_artifact(out)
    tree = render_tree(walk_lineage(out))
    assert "synthetic, PSF-2.0" in tree
    assert str(run / "steps" / "merged-1") in tree
    again = invoke("export", run, "--to", "gguf", "--out", out, "--overwrite", "--json")
    assert json.loads(again.output)["type"] == "f32"
    assert not verify_artifact(out)
    with out.open("ab") as file:
        file.write(b" ")
    assert [found.path for found in verify_artifact(out)] == ["student.gguf"]
    done = CliRunner().invoke(stillroom, ["verify", str(out)])
    assert done.exception.code == "integrity.changed"
