"""The gate of a run: a GGUF file is shipped, and answers, only if it is equal to its checkpoint."""

import json

import pytest

from stillroom.errors import DataError
from stillroom.flow import run_recipe
from stillroom.flow.opening import find_checkpoint, find_model
from stillroom.flow.papers.graph import read_graph
from stillroom.flow.papers.model_card import render_card
from stillroom.models import resolve_checkpoint
from stillroom.provenance import read_artifact
from stillroom.recipes import parse_recipe
from stillroom.testing import tiny_checkpoint

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
FLOW = """\
kind: flow
inputs: {documents: documents, model: model}
steps:
  index:
    kind: rag.index
    documents: {from: inputs.documents}
    embedder: builtin:static
  export:
    kind: distill.export
    model: {from: inputs.model}
    base: {from: inputs.model}
    questions: questions.jsonl
    max_new_tokens: 4
answer: {index: index, model: export}
"""


@pytest.fixture
def do(tmp_path):
    """Run the flow; return the run's folder and artifact."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("A still turns wine into spirit.")
    (tmp_path / "questions.jsonl").write_text(
        '{"question": "What does a still do?", "answers": ["it turns wine into spirit"]}\n'
        '{"question": "Who made it?", "answers": []}\n'
    )
    tiny_checkpoint(tmp_path / "model")

    def run():
        recipe = parse_recipe(FLOW, folder=tmp_path)
        return tmp_path / "run", run_recipe(recipe, tmp_path / "run")

    return run


def test_equal_export_answers_and_its_cost_is_told(do, tmp_path):
    run, artifact = do()
    line = artifact.details["decision"]
    assert line.startswith("model.gguf is equal to its checkpoint")
    assert "q8_0 costs: " in line
    assert "it was made from 0." in line
    step = run / artifact.details["steps"]["export"]
    assert find_model(run) == str(step)
    assert resolve_checkpoint(str(step)).name == "model.gguf"
    assert read_artifact(step).kind == "checkpoint"
    rows = {row["name"]: row for row in json.loads((run / "report.json").read_text())["metrics"]}
    assert rows["export/f16/greedy_equal"]["value"] == 1
    assert 0 < rows["export/f16/kl"]["value"] < rows["export/q8_0/kl"]["value"]
    assert rows["export/q8_0/kl"]["n"] == 4
    assert "q8_0 costs: " in (run / "report.html").read_text()
    assert "q8_0 costs: " in render_card(read_graph(run))
    # A run means the checkpoint, not its eight bits, to whoever exports it again.
    assert find_checkpoint(str(run))[0] == tmp_path / "model"


def test_unequal_export_is_told_first_and_not_shipped(do, tmp_path, monkeypatch):
    monkeypatch.setattr("stillroom.models.gguf.export._interleave", lambda values, heads: values)
    run, artifact = do()
    assert artifact.details["decision"].startswith("Not shipped: model.gguf is not equal")
    step = run / artifact.details["steps"]["export"]
    assert read_artifact(step).kind == "report"
    assert not list(step.rglob("*.gguf"))
    assert find_model(run) == str(tmp_path / "model")
    assert "Not shipped: " in (run / "report.html").read_text()
    with pytest.raises(DataError) as caught:  # the run made no model, and more documents make none
        read_graph(run)
    assert f"it uses an input, {tmp_path / 'model'}" in str(caught.value)
    assert "name that model itself" in str(caught.value)
