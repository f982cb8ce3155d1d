"""The distillation job with two tokenizers: what it leaves, what it refuses, how it goes on."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.unit.distill import zoo
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import build
from transformers import PreTrainedTokenizerFast

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.random_init import CHAT_TEMPLATE
from stillroom.distill.cross_tokenizer.data import TokenizerView, encode_aligned
from stillroom.distill.evaluation.teacher_distance import UNDEFINED_METRICS, CrossTokenizerFidelity
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.preflight import resources
from stillroom.distill.preflight.workload import describe_workload
from stillroom.errors import Cancelled, CheckpointError, DataError
from stillroom.models import load_causal_lm
from stillroom.models.tokenization.token_bytes import read_token_bytes
from stillroom.records import Message, Record
from stillroom.testing import tiny_checkpoint

FAST = {"steps": 25, "batch_size": 6, "threads": 1, "learning_rate": 1e-2, "precision": "float32"}


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("student") / "s", vocabulary=300, seed=5)


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """Return a tiny checkpoint whose tokenizer is SentencePiece's with byte fallback."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("sentencepiece") / "s", vocabulary=600, seed=6)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=zoo.MAKERS["llama_legacy"](), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) <= Checkpoint.open(folder).config["vocab_size"]
    return folder


@pytest.fixture
def make_recipe(teacher_folder, records_file, student_folder):
    def make(**changes):
        fields = {
            "teacher": str(teacher_folder),
            "records": str(records_file),
            "student": str(student_folder),
            "cross_tokenizer_loss": {"name": "chunk_likelihood"},
            "train": FAST,
            "keep_checkpoints": 0,
            "fidelity": {"baseline": False, "answers": 0, "speed": False},
        }
        return build({**fields, **changes})

    return make


def test_a_student_of_another_vocabulary_comes_nearer(make_recipe, do, student_folder):
    artifact, folder = do(make_recipe(fidelity={"baseline": True}))
    found = artifact.details["cross_tokenizer_fidelity"]
    before, after = (CrossTokenizerFidelity.from_json(found[name]) for name in ("initial", "final"))
    assert after.mean("divergence") < 0.7 * before.mean("divergence")
    baseline = CrossTokenizerFidelity.from_json(found["baseline"])
    assert after.mean("divergence") < baseline.mean("divergence")
    assert after.mean("teacher_bits") == before.mean("teacher_bits")
    written = json.loads((folder / "output" / "fidelity.json").read_text())
    assert written["not_defined"] == list(UNDEFINED_METRICS)
    assert written["summary"]["final"]["student_bits"]["value"] == pytest.approx(
        after.mean("student_bits")
    )
    alignment = json.loads((folder / "output" / "alignment.json").read_text())
    assert alignment["in_chunks"]["bytes"] > 0.6  # the rest is special tokens
    assert 0.5 < alignment["compared"]["share"] <= 1
    assert set(alignment["one_to_one_by_class"]) >= {"letters", "digits"}
    model, tokenizer = load_causal_lm(folder / "output", dtype="float32", device="cpu")
    assert tokenizer.chat_template
    assert model.config.vocab_size == Checkpoint.open(student_folder).config["vocab_size"]
    assert [parent.role for parent in artifact.parents] == ["teacher", "records", "student"]
    assert (
        artifact.origin["chain"][0]["method"] == "distill.cross_tokenizer_losses.chunk_likelihood"
    )
    card = (folder / "output" / "README.md").read_text()
    assert "another tokenizer" in card
    assert "base_model" in card


@pytest.mark.parametrize(
    "crossing",
    [
        {"name": "projected_kl", "min_coverage": 0.05},
        {"name": "uld", "min_coverage": 0.05},
        {"name": "chunk_likelihood", "ce_weight": 0.3},
    ],
    ids=str,
)
def test_every_crossing_trains(make_recipe, do, crossing):
    artifact, _ = do(make_recipe(cross_tokenizer_loss=crossing, train={**FAST, "steps": 12}))
    assert artifact.details["train"]["last_loss"] < artifact.details["train"]["first_loss"]


@pytest.mark.parametrize(("vocabulary", "token"), [(60_000, 3), (130_000, 5)])
def test_the_cache_is_estimated_by_the_size_of_the_vocabulary(
    make_recipe, monkeypatch, vocabulary, token
):
    """Token ids of more than 65,536 take four bytes, and a live loss caches nothing."""
    monkeypatch.setattr(resources, "_read_size", lambda reference: (1, vocabulary, ""))
    sizes = resources.ResourceEstimator(describe_workload(make_recipe()))
    assert sizes.cache_bytes == 4 * sizes.counted.positions + token * sizes.counted.tokens
    live = make_recipe(cross_tokenizer_loss={"name": "uld", "min_coverage": 0.05})
    assert resources.ResourceEstimator(describe_workload(live)).cache_bytes == 0


def test_a_sentencepiece_student_learns_from_a_byte_level_teacher(
    make_recipe, do, sentencepiece_folder
):
    artifact, _ = do(make_recipe(student=str(sentencepiece_folder)))
    found = artifact.details["cross_tokenizer_fidelity"]
    before, after = (CrossTokenizerFidelity.from_json(found[name]) for name in ("initial", "final"))
    assert after.mean("divergence") < before.mean("divergence")


def test_stopped_while_the_teacher_speaks_it_ends_with_the_same_bytes(make_recipe, do, monkeypatch):
    whole, _ = do(make_recipe(), "whole")
    real, added = LogitCache.add, []

    def add(self, lesson, rows):
        real(self, lesson, rows)
        added.append(lesson.key)
        if len(added) == 3:
            raise Cancelled("stopped", code="job.cancelled")

    with monkeypatch.context() as patch:
        patch.setattr(LogitCache, "add", add)
        with pytest.raises(Cancelled):
            do(make_recipe(), "part")
    captured = []
    monkeypatch.setattr(
        LogitCache,
        "add",
        lambda self, one, rows: (captured.append(one.key), real(self, one, rows)),
    )
    resumed, _ = do(make_recipe(), "part", resume=True)
    assert not set(captured) & set(added)
    assert resumed.digest == whole.digest


def test_what_is_kept_is_what_the_teacher_says(make_recipe, do, tmp_path, teacher_folder):
    cache = tmp_path / "cache"
    do(
        make_recipe(
            cache=str(cache),
            train={**FAST, "steps": 1, "batch_size": 12},
        )
    )
    header = json.loads((cache / "header.json").read_text())
    assert header["mode"] == "own"
    assert header["about"] == {"name": teacher_folder.name}
    teacher, tokenizer = load_causal_lm(teacher_folder, dtype="float32", device="cpu")
    record = next(one for one in make_records(12) if one.fields["split"] == "train")
    reader = TokenizerView(tokenizer, read_token_bytes(tokenizer), 512)
    (lesson,), _ = encode_aligned(reader, reader, [record], include_prompt=True)
    with torch.no_grad():
        logits = teacher(input_ids=torch.tensor(lesson.teacher_ids)[None]).logits[0].double()
    own = logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(lesson.teacher_ids[1:])[:, None])
    with LogitCache.open(cache) as opened:
        kept = next(one for one in opened.records() if np.array_equal(one.ids, lesson.teacher_ids))
        spoken = opened.read(kept)["logprob"]
    np.testing.assert_allclose(spoken, own[kept.positions, 0], atol=1e-4)


def test_numbers_are_not_lost_on_a_tokenizer_of_single_digits():
    """A number that is one token of the teacher and several digits of the student is one chunk."""
    wide, narrow = (
        TokenizerView(PreTrainedTokenizerFast(tokenizer_object=tokenizer), tokens, 128)
        for tokenizer, tokens in map(zoo.make, ("byte_level", "byte_level_digits"))
    )
    record = Record((Message("assistant", "In 1999 the house kept 345 drops and 12."),))
    heard = []
    (lesson,), _ = encode_aligned(
        wide,
        narrow,
        [record],
        include_prompt=True,
        on_aligned=lambda found, taught, placed: heard.append((found, placed)),
    )
    found, placed = heard[0]
    text = placed.text.tobytes().decode()
    for number in ("1999", "345", "12"):
        at = text.index(number)
        inside = (found.spans[:, 0] <= at + len(number)) & (found.spans[:, 1] > at)
        covered = sum(
            min(end, at + len(number)) - max(begin, at) for begin, end in found.spans[inside]
        )
        assert covered == len(number)
    assert (lesson.chunk_of[1:] >= 0).all()  # nothing predicts the first
    assert int((found.student[:, 1] - found.student[:, 0]).max()) > 1


def test_too_little_in_common_is_refused_before_training(make_recipe, do, tmp_path):
    with pytest.raises(DataError) as caught:
        do(make_recipe(cross_tokenizer_loss={"name": "projected_kl", "min_coverage": 0.95}))
    assert caught.value.code == "distill.coverage"
    assert "cross_tokenizer_loss.min_coverage" in str(caught.value)


def test_two_tokenizers_without_a_crossing_name_it(make_recipe, do):
    with pytest.raises(CheckpointError) as caught:
        do(make_recipe(kind="distill.logits", cross_tokenizer_loss=None))
    assert caught.value.code == "distill.vocabulary"
    assert "kind distill.cross_tokenizer" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"student": {"max_parameters": 0.5}}, "student"),
        ({"method": {"name": "jsd"}}, "method"),
        ({"targets": {"mode": "top_k", "k": 5}}, "targets"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_settings_that_mean_nothing_with_a_crossing_are_refused(make_recipe, changes, named):
    with pytest.raises(ValidationError, match=named):
        make_recipe(**changes)


def test_teacher_that_is_not_finite_is_named(make_recipe, do, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_checkpoint(tmp_path / "broken", layers=1)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError) as caught:
        do(make_recipe(teacher=str(folder)))
    assert caught.value.code == "distill.teacher-not-finite"
    assert "record" in str(caught.value)
