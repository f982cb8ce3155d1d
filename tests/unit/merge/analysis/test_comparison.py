"""What an inspection says of models whose agreement and conflict are known beforehand."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.unit.merge.conftest import rewrite
from tests.unit.merge.lora.test_adapter import Q, refused, write_adapter

from stillroom.checkpoints import Checkpoint
from stillroom.cli.merge.analysis import inspect_command
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.merge.analysis import comparison
from stillroom.merge.analysis.comparison import (
    TensorStats,
    inspect_models,
    measure_loss_path,
    open_model,
)
from stillroom.merge.analysis.report import write_inspection
from stillroom.records import from_row


def move(base, folder, seed, *, sign=1.0, scale=0.02):
    rng = torch.Generator().manual_seed(seed)

    def change(name, tensor):
        return tensor + sign * scale * torch.randn(tensor.shape, generator=rng)

    return rewrite(base, folder, change)


def look(base, *models, **settings):
    start = Checkpoint.open(base)
    return inspect_models(start, [open_model(str(m), start) for m in models], **settings)


def records(count=3):
    return [
        from_row(
            {
                "messages": [
                    {"role": "user", "content": f"Question {n}?"},
                    {"role": "assistant", "content": f"The answer is {n}, as it was before."},
                ]
            }
        )
        for n in range(count)
    ]


def test_numbers_equal_those_of_whole_arrays(family):
    base, (one, two, _) = family
    found = look(base, one, two, density=0.1)
    opened = [Checkpoint.open(path) for path in (base, one, two)]
    for name, facts in found.tensors.items():
        start, a, b = (each.tensor(name).double().numpy().ravel() for each in opened)
        a, b = a - start, b - start
        assert facts.relative(0) == pytest.approx(np.linalg.norm(a) / np.linalg.norm(start), 1e-5)
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert facts.cosine(0, 1) == pytest.approx(cosine, abs=1e-5)
        pair = facts.to_json()["pairs"][0]
        assert pair["sign_conflict"] == pytest.approx(np.mean(a * b < 0), abs=1e-6)
        total = np.abs(a).sum() + np.abs(b).sum()
        assert facts.cancelling == pytest.approx(1 - np.abs(a + b).sum() / total, abs=1e-5)
        count = max(1, int(0.1 * a.size))
        kept = [set(np.argsort(-np.abs(v), kind="stable")[:count]) for v in (a, b)]
        overlap = len(kept[0] & kept[1]) / len(kept[0] | kept[1])
        assert pair["kept_overlap"] == pytest.approx(overlap, abs=0.02)


def test_opposite_models_cancel_and_equal_ones_agree(family, tmp_path):
    base = family[0]
    there, back = move(base, tmp_path / "a", 1), move(base, tmp_path / "b", 1, sign=-1.0)
    whole = look(base, there, back).whole
    assert whole.cosine(0, 1) == pytest.approx(-1, abs=1e-5)
    assert whole.cancelling == pytest.approx(1, abs=1e-4)
    pair = whole.to_json()["pairs"][0]
    assert pair["sign_conflict"] == pytest.approx(1)
    assert pair["kept_conflict"] == pytest.approx(1)
    assert pair["kept_overlap"] > 0.9
    same = look(base, there, there)
    assert same.parents == ("a (1)", "a (2)")
    assert same.whole.cosine(0, 1) == pytest.approx(1)
    assert same.whole.cancelling == 0


def test_a_model_that_equals_the_base_has_no_cosine(family):
    base, (one, *_) = family
    whole = look(base, one, base).whole.to_json()
    assert whole["pairs"][0]["cosine"] is None
    assert whole["pairs"][0]["sign_conflict"] is None
    assert whole["norms"][1] == 0


def test_large_tensors_are_streamed_to_the_same_numbers(family, monkeypatch):
    base, (one, two, _) = family
    whole = look(base, one, two).to_json()
    monkeypatch.setattr(comparison, "_SMALL", 0)
    assert look(base, one, two).to_json() == whole


def test_layers_and_modules_sum_up_to_the_whole(family):
    base, models = family
    found = look(base, *models)
    for groups in (found.by_layer(), found.by_module()):
        summed = TensorStats.sum_of(groups.values())
        assert summed.size == found.whole.size
        assert summed.cosine(0, 2) == pytest.approx(found.whole.cosine(0, 2))
    assert list(found.by_layer()) == ["layer 0", "layer 1", "embed_tokens", "norm"]
    assert "q_proj" in found.by_module()
    assert len(found.whole.to_json()["pairs"]) == 3


def test_what_holds_no_floats_is_told(family, tmp_path):
    def change(name, tensor):
        return tensor.to(torch.int64) if name == f"{Q}.weight" else tensor

    ints = rewrite(family[0], tmp_path / "ints", change)
    found = look(ints, ints, ints)
    assert found.skipped == (f"{Q}.weight",)
    assert f"not looked at, no floats: {Q}.weight" in str(found)
    page = write_inspection(found, tmp_path / "page").read_text()
    assert "Not looked at" in page


def test_an_adapter_is_looked_at_over_the_base(family, tmp_path):
    base, (one, *_) = family
    adapter = write_adapter(tmp_path / "adapter")
    found = look(base, one, adapter)
    norms = {name: facts.norm(1) for name, facts in found.tensors.items()}
    assert norms.pop(f"{Q}.weight") > 0
    assert set(norms.values()) == {0.0}


def test_models_that_cannot_be_compared_are_refused(family, tmp_path):
    base, (one, two, _) = family
    with refused(RecipeError, "merge.inspect-settings"):
        look(base, one)
    with refused(RecipeError, "merge.inspect-settings"):
        look(base, one, two, density=0)
    partial = rewrite(base, tmp_path / "p", lambda name, t: None if "norm" in name else t)
    with refused(CheckpointError, "merge.missing-tensor"):
        look(base, one, partial)


def test_the_path_begins_and_ends_at_the_models_own_losses(family, tmp_path):
    from stillroom.evaluate.lm.loss import held_out_loss
    from stillroom.models import load_causal_lm

    base, (one, *_) = family
    start = Checkpoint.open(base)
    adapter = open_model(str(write_adapter(tmp_path / "adapter")), start)
    ends = (Checkpoint.open(one), adapter.weights)
    seen = []
    path = measure_loss_path(("a", "b"), ends, records(), on_point=lambda: seen.append(1))
    assert len(seen) == len(path.losses) == 11
    assert path.shares[0] == 0
    assert path.shares[-1] == 1
    model, tokenizer = load_causal_lm(one, dtype="float32", device="cpu")
    found = held_out_loss(model, tokenizer, records())
    mean = sum(nats for nats, _ in found) / sum(tokens for _, tokens in found)
    assert path.losses[0].value == pytest.approx(mean, rel=1e-5)
    assert path.barrier >= 0
    assert path.to_json()["points"][10]["share"] == 1
    with refused(DataError, "merge.no-records"):
        measure_loss_path(("a", "b"), ends, [])


def test_the_command_writes_a_page_that_fetches_nothing(family, tmp_path):
    base, (one, two, _) = family
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b c d"},
                ]
            }
        )
    ] * 2
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    out = tmp_path / "page"
    arguments = [str(base), str(one), str(two), "--out", str(out), "--records"]
    run = CliRunner().invoke(
        inspect_command, [*arguments, str(tmp_path / "r.jsonl"), "--device", "cpu"]
    )
    assert run.exit_code == 0, run.output
    assert "tune1 and tune2: cosine" in run.output
    assert "layer 1" in run.output
    assert "barrier" in run.output
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 4
    assert "[figure" not in page
    assert "http" not in page.replace("http-equiv", "")
    report = json.loads((out / "report.json").read_text())
    assert "[figure" not in json.dumps(report)
    stored = json.loads((out / "inspection.json").read_text())
    assert "model.norm.weight" in stored["tensors"]
    again = CliRunner().invoke(inspect_command, arguments[:-1])
    assert isinstance(again.exception, DataError)
    shown = CliRunner().invoke(inspect_command, [str(base), str(one), str(two), "--json"])
    assert json.loads(shown.output)["inspection"]["parents"] == ["tune1", "tune2"]
    same = CliRunner().invoke(inspect_command, [str(base), str(base), str(two)])
    assert "nan" not in same.output
    idle = CliRunner().invoke(inspect_command, [str(base), str(one), "--device", "cpu"])
    assert (idle.exit_code, "needs --records" in idle.output) == (2, True)


def test_records_are_drawn_by_a_seed_and_not_the_first_of_a_sorted_file(
    family, tmp_path, monkeypatch
):
    base, (one, two, *_) = family
    rows = [f"{task} {number}" for task in ("sum", "translate") for number in range(40)]
    texts = [
        json.dumps(
            {"messages": [{"role": "user", "content": row}, {"role": "assistant", "content": "x"}]}
        )
        for row in rows
    ]
    (tmp_path / "sorted.jsonl").write_text("\n".join(texts))
    (tmp_path / "turned.jsonl").write_text("\n".join(reversed(texts)))
    drawn = []
    monkeypatch.setattr(
        "stillroom.merge.analysis.comparison.measure_loss_path",
        lambda names, ends, records, **rest: drawn.append(records),
    )
    monkeypatch.setattr("stillroom.merge.analysis.comparison.Inspection.__str__", lambda self: "")
    for file, seed in (("sorted", "1"), ("turned", "1"), ("sorted", "2")):
        arguments = ["--records", str(tmp_path / f"{file}.jsonl"), "--max-records", "20"]
        run = CliRunner().invoke(
            inspect_command, [str(base), str(one), str(two), *arguments, "--seed", seed]
        )
        assert run.exit_code == 0, run.output
    first, turned, other = ([record.id for record in each] for each in drawn)
    assert len(first) == 20
    assert first == turned
    assert first != other
    tasks = [record.messages[0].content.split()[0] for record in drawn[0]]
    assert 4 <= tasks.count("sum") <= 16


def test_names_of_folders_are_escaped(family, tmp_path):
    base, (one, *_) = family
    evil = move(base, tmp_path / "<script>alert(1)<", 5)
    page = write_inspection(look(base, one, evil), tmp_path / "page")
    assert "<script" not in page.read_text()
