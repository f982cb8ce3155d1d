"""What is extracted, added to its base, is the fine-tuned model, up to the error told."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.unit.merge.conftest import rewrite
from tests.unit.merge.lora.test_adapter import refused

from stillroom.checkpoints import Checkpoint
from stillroom.cli.merge.adapters import extract_command
from stillroom.errors import CheckpointError, DataError, RecipeError, ShapeError
from stillroom.merge.lora.adapter import AdaptedCheckpoint, Adapter
from stillroom.merge.lora.extraction import extract_lora, extract_task_vector
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.testing import tiny_checkpoint

Q = "model.layers.0.self_attn.q_proj.weight"


def array(checkpoint, name):
    return checkpoint.tensor(name).double().numpy()


def rows(over, name):
    return over.rows(name, 0, over.base.entry(name).rows, dtype=np.float64)


def test_the_error_by_layer_is_the_tail_of_the_singular_values(family, tmp_path):
    base, (tuned, *_) = (Checkpoint.open(family[0]), [Checkpoint.open(path) for path in family[1]])
    result = extract_lora(tuned, base, tmp_path / "lora", rank=8)
    over = AdaptedCheckpoint(base, Adapter.open(tmp_path / "lora"))
    assert len(result.layers) == 14
    for layer in result.layers:
        delta = array(tuned, layer.name) - array(base, layer.name)
        values = np.linalg.svd(delta, compute_uv=False)
        tail = np.linalg.norm(values[8:])
        gap = np.linalg.norm(rows(over, layer.name) - array(tuned, layer.name))
        assert layer.error == pytest.approx(tail)
        assert gap == pytest.approx(tail, rel=1e-5)
        assert layer.relative == pytest.approx(tail / np.linalg.norm(delta))
    for name in base.names():
        if name in result.whole:
            assert (rows(over, name) == array(tuned, name)).all()
    assert "model.embed_tokens.weight" in result.whole
    assert len(result.whole) + len(result.layers) == len(base.names())
    assert 0 < result.relative < 1


def test_an_error_chooses_the_rank_of_each_tensor(family, tmp_path):
    base, tuned = Checkpoint.open(family[0]), Checkpoint.open(family[1][0])
    result = extract_lora(tuned, base, tmp_path / "lora", error=0.3)
    assert all(layer.relative <= 0.3 for layer in result.layers)
    assert len({layer.rank for layer in result.layers}) > 1
    exact = extract_lora(tuned, base, tmp_path / "exact", error=0.0)
    assert exact.relative < 1e-12


def test_the_randomized_routine_comes_near_and_says_its_own_error(family, tmp_path):
    base, tuned = Checkpoint.open(family[0]), Checkpoint.open(family[1][0])
    exact = extract_lora(tuned, base, tmp_path / "exact", rank=8)
    drawn = extract_lora(tuned, base, tmp_path / "drawn", rank=8, routine="randomized")
    over = AdaptedCheckpoint(base, Adapter.open(tmp_path / "drawn"))
    for best, layer in zip(exact.layers, drawn.layers, strict=True):
        assert best.error <= layer.error * (1 + 1e-9) < best.error * 1.05
        gap = np.linalg.norm(rows(over, layer.name) - array(tuned, layer.name))
        assert gap == pytest.approx(layer.error, rel=1e-5)


def test_tensors_that_did_not_change_are_left_out(family, tmp_path):
    def change(name, tensor):
        return tensor + 0.1 if name == Q else tensor

    tuned = Checkpoint.open(rewrite(family[0], tmp_path / "tuned", change))
    base = Checkpoint.open(family[0])
    result = extract_lora(tuned, base, tmp_path / "lora", rank=1)
    assert [layer.name for layer in result.layers] == [Q]
    assert result.relative < 1e-6  # a constant is of rank one
    assert len(result.unchanged) == len(base.names()) - 1
    vector = extract_task_vector(tuned, base, tmp_path / "vector")
    assert list(vector.norms) == [Q]
    assert Checkpoint.open(tmp_path / "vector").names() == [Q]


def test_a_task_vector_added_to_its_base_is_the_fine_tuned_model(half_family, tmp_path):
    base, tuned = Checkpoint.open(half_family[0]), Checkpoint.open(half_family[1][0])
    result = extract_task_vector(tuned, base, tmp_path / "vector")
    vector = Checkpoint.open(tmp_path / "vector")
    assert vector.config["model_type"] == "task_vector"
    for name in base.names():
        assert vector.entry(name).dtype == "F32"
        whole = (base.tensor(name).float() + vector.tensor(name)).bfloat16()
        assert torch.equal(whole, tuned.tensor(name))
        assert result.norms[name] == pytest.approx(float(vector.tensor(name).double().norm()))


def test_the_same_weights_and_other_models_are_refused(family, tmp_path):
    base, tuned = Checkpoint.open(family[0]), Checkpoint.open(family[1][0])
    wide = Checkpoint.open(tiny_checkpoint(tmp_path / "wide", hidden=32))
    deep = Checkpoint.open(tiny_checkpoint(tmp_path / "deep", layers=3))
    for extract in (extract_lora, extract_task_vector):
        with refused(DataError, "merge.nothing-changed"):
            extract(base, base, tmp_path / "out")
        with refused(ShapeError, "merge.shape"):
            extract(wide, base, tmp_path / "out")
        with refused(CheckpointError, "merge.missing-tensor"):
            extract(deep, base, tmp_path / "out")
        nan = Checkpoint.open(
            rewrite(family[0], tmp_path / "nan", lambda name, tensor: tensor * float("nan"))
        )
        with refused(CheckpointError, "merge.not-finite"):
            extract(nan, base, tmp_path / "out")
        ints = Checkpoint.open(
            rewrite(
                family[0], tmp_path / "ints", lambda name, tensor: tensor.mul(9).to(torch.int64)
            )
        )
        with refused(CheckpointError, "merge.not-floats"):
            extract(ints, base, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        (tmp_path / "full").mkdir(exist_ok=True)
        with refused(DataError, "data.exists"):
            extract(tuned, base, tmp_path / "full")


@pytest.mark.parametrize(
    "settings",
    [{"rank": 0}, {"error": 1.0}, {"error": 0.1, "routine": "randomized"}],
)
def test_settings_that_make_no_sense_are_refused(family, tmp_path, settings):
    base, tuned = Checkpoint.open(family[0]), Checkpoint.open(family[1][0])
    with refused(RecipeError, "merge.extract-settings"):
        extract_lora(tuned, base, tmp_path / "out", **settings)


def test_the_command_prints_the_error_by_layer_and_writes_it_on_the_card(family, tmp_path):
    base, (tuned, *_) = family
    run = CliRunner().invoke
    out = str(tmp_path / "lora")
    arguments = [str(tuned), "--base", str(base), "--out", out, "--rank", "4"]
    shown = run(extract_command, arguments)
    assert shown.exit_code == 0, shown.output
    assert f"{Q} " in shown.output
    assert "4/64" in shown.output
    assert "carried whole: model.norm.weight" in shown.output
    assert Q in (tmp_path / "lora" / "README.md").read_text()
    again = run(extract_command, [*arguments, "--overwrite", "--json"])
    found = json.loads(again.output)["extraction"]
    assert found["layers"][0]["rank"] == 4
    assert isinstance(
        run(extract_command, [*arguments, "--as", "task_vector"]).exception, RecipeError
    )
    vector = [str(tuned), "--base", str(base), "--out", str(tmp_path / "v"), "--as", "task_vector"]
    assert (
        f"task_vector of {len(Checkpoint.open(base).names())} changed"
        in run(extract_command, vector).output
    )


@pytest.mark.parametrize("extract", [extract_lora, extract_task_vector])
def test_what_is_extracted_proves_what_it_was_made_from(family, tmp_path, extract):
    base, tuned = Checkpoint.open(family[0]), Checkpoint.open(family[1][0])
    extract(tuned, base, tmp_path / "out")
    made = read_artifact(tmp_path / "out")
    assert [(one.role, one.digest) for one in made.parents] == [
        ("finetuned", tuned.fingerprint),
        ("base", base.fingerprint),
    ]
    assert not verify_artifact(tmp_path / "out")
    extract(tuned, base, tmp_path / "out", overwrite=True)
    if extract is extract_task_vector:
        assert Checkpoint.open(tmp_path / "out").fingerprint != tuned.fingerprint
