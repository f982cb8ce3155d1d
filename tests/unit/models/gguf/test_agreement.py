"""Agreement of forms: adapter, merged checkpoint and GGUF files give the same answers, or not."""

import json
import math
import shutil

import pytest
import torch
from click.testing import CliRunner

from stillroom.checkpoints import Checkpoint
from stillroom.cli.app import stillroom
from stillroom.errors import CheckpointError, DataError
from stillroom.models.gguf.agreement import compare_export, compare_forms
from stillroom.models.gguf.export import export_gguf
from stillroom.models.local.causal_lm import load_causal_lm
from stillroom.testing import tiny_checkpoint

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers so
QUESTIONS = [f"What does the old still number {n} turn into spirit?" for n in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def exported(folder):
    return export_gguf(folder, folder.parent / "q8.gguf", type="q8_0").path


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A base, and a folder with its adapter and the merged weights."""
    peft = pytest.importorskip("peft")
    place = tmp_path_factory.mktemp("adapted")
    base = tiny_checkpoint(place / "base")
    model, _ = load_causal_lm(base, dtype="float32", device="cpu")
    torch.manual_seed(0)
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    )
    merged = place / "merged"
    shutil.copytree(base, merged)
    tuned.save_pretrained(merged / "adapter")
    config = json.loads((merged / "adapter/adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (merged / "adapter/adapter_config.json").write_text(json.dumps(config))
    tuned.merge_and_unload().save_pretrained(merged)
    return base, merged


def test_forms_of_one_model_agree_and_the_cost_of_eight_bits_is_told(folder, exported):
    found = compare_export(folder, exported, "q8_0", QUESTIONS, max_new_tokens=8)
    whole, small = found.forms
    assert (whole.form, whole.is_gated, small.form, small.is_gated) == ("f16", True, "q8_0", False)
    assert found.is_equal
    assert whole.equal_answers == whole.questions == whole.alike_prompts == 5
    assert whole.positions >= 5
    assert 0 <= whole.kl < 1e-4 < small.kl < 1
    assert small.size_bytes < whole.size_bytes
    assert "q8_0 costs: " in found.describe("tiny.gguf")
    assert not list(exported.parent.glob(".*"))


def test_a_file_is_a_checkpoint_of_its_own_size(exported, tmp_path):
    out = export_gguf(exported, tmp_path / "again.gguf", type="f32").path
    found = compare_forms(exported, {"f32": out}, QUESTIONS[:1], max_new_tokens=2)
    assert found.is_equal
    assert found.size_bytes == exported.stat().st_size


def test_divergence_is_over_the_whole_vocabulary(folder, exported):
    """Where both start from the same prompt, the KL equals one computed from the two models."""
    from stillroom.checkpoints import dequantize_gguf
    from stillroom.models.tokenization.chat_template import render_prompt
    from stillroom.records import Message, Prompt

    found = compare_forms(folder, {"q8_0": exported}, QUESTIONS[:1], positions=1, max_new_tokens=4)
    logprobs = []
    for path in (folder, dequantize_gguf(exported, folder.parent / "cache")):
        model, tokenizer = load_causal_lm(path, dtype="float32", device="cpu")
        text = render_prompt(tokenizer, Prompt((Message("user", QUESTIONS[0]),)))
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            logprobs.append(torch.log_softmax(model(input_ids=ids).logits[0, -1].double(), -1))
    expected = float((logprobs[0].exp() * (logprobs[0] - logprobs[1])).sum())
    # llama.cpp also rounds activations to eight bits.
    assert found.forms[0].kl == pytest.approx(expected, rel=0.7)


def test_adapter_on_its_base_is_compared_with_the_merged_weights(adapted, tmp_path):
    base, merged = adapted
    out = export_gguf(merged, tmp_path / "m.gguf", type="f16").path
    found = compare_export(merged, out, "f16", QUESTIONS[:3], max_new_tokens=6)
    assert [form.form for form in found.forms] == ["adapter", "f16"]
    assert found.is_equal
    assert found.forms[0].kl < 1e-6
    assert found.forms[0].size_bytes < base.joinpath("model.safetensors").stat().st_size
    other = tiny_checkpoint(tmp_path / "other", seed=7)
    found = compare_export(merged, out, "f16", QUESTIONS[:3], base=str(other), max_new_tokens=6)
    assert not found.is_equal
    assert found.describe("m.gguf").startswith("Not shipped: m.gguf is not equal")


def test_adapter_is_judged_by_the_weights_that_it_merges_to(adapted, tmp_path):
    """Rounded as its checkpoint is, it has the same bits: no order of sums decides a near tie."""
    _, merged = adapted
    rounded = tmp_path / "rounded"
    shutil.copytree(merged, rounded)
    load_causal_lm(merged, dtype="bfloat16", device="cpu")[0].save_pretrained(rounded)
    out = export_gguf(rounded, tmp_path / "r.gguf", type="bf16").path
    form = compare_forms(rounded, {"bf16": out}, QUESTIONS[:2], max_new_tokens=4).forms[0]
    assert (form.form, form.equal_answers, form.kl, form.largest_kl) == ("adapter", 2, 0.0, 0.0)
    model, _ = load_causal_lm(rounded, dtype="float32", device="cpu")
    with torch.no_grad():  # the checkpoint is no longer what the adapter gives
        model.lm_head.weight.mul_(1.5)
    model.to(torch.bfloat16).save_pretrained(rounded)
    form = compare_forms(rounded, {"bf16": out}, QUESTIONS[:2], max_new_tokens=4).forms[0]
    assert form.kl > 0


@pytest.mark.parametrize("setting", ["rope_theta", "tie_word_embeddings"])
def test_equal_weights_that_compute_otherwise_are_compared(adapted, tmp_path, setting):
    _, merged = adapted
    other = tmp_path / "other"
    model, _ = load_causal_lm(merged, dtype="float32", device="cpu")
    shutil.copytree(merged, other)
    if setting == "rope_theta":
        model.config.rope_parameters["rope_theta"] = 3.0
    else:
        model.config.tie_word_embeddings = False
        head = model.lm_head.weight * torch.linspace(0.5, 1.5, len(model.lm_head.weight))[:, None]
        model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(other)
    out = export_gguf(other, tmp_path / "o.gguf", type="f32").path
    form = compare_forms(other, {"f32": out}, QUESTIONS[:2], max_new_tokens=4).forms[0]
    assert (form.form, form.kl > 1e-6) == ("adapter", True)


def test_distributions_are_compared_in_some_of_many_questions(folder, exported, monkeypatch):
    monkeypatch.setattr("stillroom.models.gguf.agreement.KL_QUESTIONS", 2)
    asked = {"positions": 3, "max_new_tokens": 6}
    form = compare_forms(folder, {"q8_0": exported}, QUESTIONS, **asked).forms[0]
    assert form.questions == form.alike_prompts == 5
    assert 2 <= form.positions <= 6


def test_adapter_without_its_base_is_told(adapted, tmp_path):
    merged, gone = tmp_path / "merged", str(tmp_path / "gone")
    shutil.copytree(adapted[1], merged)
    config = merged / "adapter/adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": gone})
    )
    out = export_gguf(merged, tmp_path / "m.gguf", type="f16").path
    found = compare_export(merged, out, "f16", QUESTIONS[:1], max_new_tokens=2)
    assert [form.form for form in found.forms] == ["f16"]
    assert found.notes == (f"the adapter was not compared: its base {gone!r} is not here",)
    assert "The adapter was not compared" in found.describe("m.gguf")
    with pytest.raises(CheckpointError) as caught:  # what the user names must be there
        compare_export(merged, out, "f16", QUESTIONS[:1], base=gone, max_new_tokens=2)
    assert caught.value.code == "checkpoint.missing"


def test_another_models_file_is_not_equal(folder, tmp_path):
    other = export_gguf(tiny_checkpoint(tmp_path / "other", seed=3), tmp_path / "o.gguf").path
    found = compare_forms(folder, {"f32": other}, QUESTIONS[:2], max_new_tokens=6)
    assert not found.is_equal
    with pytest.raises(CheckpointError) as caught:
        found.require_equal(other)
    assert caught.value.code == "checkpoint.export-unequal"


def test_no_number_is_equal_to_none(folder, tmp_path):
    from tests.unit.models.gguf.test_export import spoil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    spoil(broken, Checkpoint.open(broken).names()[3], math.nan)
    out = export_gguf(broken, tmp_path / "b.gguf", type="f32").path
    found = compare_forms(folder, {"f32": out}, QUESTIONS[:1], max_new_tokens=4)
    assert not found.is_equal


def test_without_questions_nothing_is_compared(folder, exported):
    with pytest.raises(DataError) as caught:
        compare_forms(folder, {"q8_0": exported}, [])
    assert caught.value.code == "data.no-questions"


def test_command_writes_an_equal_file_and_keeps_the_last_one_otherwise(
    folder, tmp_path, monkeypatch
):
    questions, out = tmp_path / "asked.jsonl", tmp_path / "out.gguf"
    questions.write_text('{"question": "What is a still?", "answers": ["A vessel"]}\n')
    arguments = ["checkpoint", "export", str(folder), "--to", "gguf", "--type", "q8_0"]
    arguments += ["--out", str(out), "--questions", str(questions)]
    done = CliRunner().invoke(stillroom, arguments)
    assert done.exit_code == 0, done.output
    assert "answers: out.gguf is equal to its checkpoint" in done.output
    assert "q8_0 costs: " in done.output
    before = out.read_bytes()
    left = tmp_path / f".out.gguf.{2**22 + 1}.tmp"  # of a killed process, above every number
    left.mkdir()
    monkeypatch.setattr("stillroom.models.gguf.export._interleave", lambda values, heads: values)
    done = CliRunner().invoke(stillroom, [*arguments, "--overwrite"])
    assert done.exit_code == 1
    assert isinstance(done.exception, CheckpointError) or "not equal" in done.output
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_base_without_an_adapter_is_refused(folder, tmp_path):
    arguments = ["checkpoint", "export", str(folder), "--to", "gguf", "--base", str(folder)]
    done = CliRunner().invoke(stillroom, [*arguments, "--out", str(tmp_path / "out.gguf")])
    assert done.exit_code == 2
    assert "--questions" in done.output
