"""Training: the loss is the bound, the noise is a function of seed and step, and runs resume."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.unit.diffusion.conftest import MASK, say_diffusion

from stillroom.checkpoints import Checkpoint
from stillroom.diffusion.evaluation.likelihood import score_text
from stillroom.diffusion.interfaces import CORRUPTIONS, ESTIMATORS, NOISE_SCHEDULES
from stillroom.diffusion.jobs.autoregressive import AutoregressiveRecipe
from stillroom.diffusion.jobs.train import DiffusionTrainRecipe
from stillroom.diffusion.model.loading import open_diffusion
from stillroom.diffusion.model.metadata import TargetMetadata
from stillroom.diffusion.training.data import TIME_BUCKETS, MaskableExample, tokenize_records
from stillroom.diffusion.training.loss import DiffusionLoss, masked_cross_entropy
from stillroom.diffusion.training.masked import CorruptedDataSource, MaskedDenoising
from stillroom.errors import CheckpointError, DataError, MissingExtraError, RecipeError
from stillroom.flow import estimate_recipe, preflight_recipe, run_recipe
from stillroom.flow.job import find_job_kind
from stillroom.jobs import extras
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.provenance import read_artifact
from stillroom.records import Message, Record, write_records
from stillroom.records.types import EXTRAS_FIELD
from stillroom.testing import tiny_checkpoint

TEXTS = ("the still is warm", "a jar of plums", "the river runs north", "she wrote it down")


def chats(count=12):
    return [
        Record(
            (Message("user", f"Say {n}."), Message("assistant", TEXTS[n % 4])),
            {"split": "held_out" if n % 4 == 3 else "train"},
        )
        for n in range(count)
    ]


def plains(count=16):
    return [
        Record(
            (Message("assistant", f"{TEXTS[n % 4]} {n}"),),
            {"split": "train" if n % 5 else "held_out"},
        )
        for n in range(count)
    ]


@pytest.fixture
def make_recipe(tmp_path):
    def make(records=None, kind=DiffusionTrainRecipe, **settings):
        write_records(tmp_path / "records.jsonl", records or plains())
        scratch = {
            "num_hidden_layers": 1,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "context_length": 64,
        }
        said = {
            "model": scratch,
            "records": str(tmp_path / "records.jsonl"),
            "out": {"dtype": "float32"},
            "validation": {"records": 4},
            **settings,
        }
        said["train"] = {"steps": 3, "threads": 1, "batch_size": 4, **settings.get("train", {})}
        return kind.model_validate(said)

    return make


def lesson(length=9, first=3):
    ids = np.arange(4, 4 + length)
    return MaskableExample("r", ids, ((first, length),))


# -- the head at masked places ----------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_the_chunked_loss_is_the_plain_one_with_its_gradients(monkeypatch, bias):
    monkeypatch.setattr("stillroom.diffusion.training.loss._CHUNK_ELEMENTS", 11 * 3)
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 11, bias=bias).double()
    states = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    labels, scale = torch.randint(10, (8,)), torch.rand(8)
    total, losses = masked_cross_entropy(states, head, labels, scale, mask_token_id=10)
    (total * 3).backward()
    found = [states.grad.clone(), *(p.grad.clone() for p in head.parameters())]
    states.grad = None
    head.zero_grad()
    logits = head(states).float()
    logits = logits.masked_fill(torch.arange(11) == 10, -torch.inf)
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(losses, plain)
    ((plain * scale).sum() * 3).backward()
    for one, other in zip(found, [states.grad, *(p.grad for p in head.parameters())], strict=True):
        assert torch.allclose(one, other, atol=1e-5)


# -- schedules and noisings -------------------------------------------------------------------


@pytest.mark.parametrize("name", NOISE_SCHEDULES.names())
def test_a_schedule_goes_from_nothing_to_everything_and_knows_its_slope(name):
    schedule = NOISE_SCHEDULES.build(name)
    t = np.linspace(0.01, 1, 100)
    share = schedule.share(t)
    assert schedule.share(np.array([0.0]))[0] == pytest.approx(0)
    assert share[-1] == pytest.approx(1)
    assert (np.diff(share) > 0).all()
    step = 1e-6
    slope = (schedule.share(t + step) - schedule.share(t - step)) / (2 * step)
    assert np.allclose(slope, schedule.slope(t), atol=1e-4)


BLOCKS = {"attention": "block_causal", "block_size": 4}


def attention_of(metadata):
    """Return the setting of a recipe for some metadata."""
    values = {"name": metadata.get("attention", "full"), **metadata}
    return {key: value for key, value in values.items() if key != "attention"}


@pytest.mark.parametrize("schedule", NOISE_SCHEDULES.names())
@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("independent", {}),
        ("complementary", BLOCKS),
        pytest.param("independent", BLOCKS, marks=pytest.mark.slow),
        pytest.param("complementary", {}, marks=pytest.mark.slow),
    ],
)
def test_the_expected_loss_is_the_bound_whatever_noising_and_schedule(
    make_model, make_recipe, name, schedule, metadata
):
    """Mean training loss over many steps, in nats a token, against the exact bound."""
    model = make_model(double=True, **metadata)
    text = lesson(9, 3)
    recipe = make_recipe(
        corruption=name,
        noise_schedule=schedule,
        noise={"t_min": 1e-4},
        train={"batch_size": 700, "micro_tokens": 700 * 9},
        attention=attention_of(metadata),
    )
    source = CorruptedDataSource([text], recipe, model.metadata, 10)
    source.begin(0, model.network, None)
    objective = DiffusionLoss(model)
    total = units = 0
    values = []
    with torch.no_grad():
        for group in source.plan(0):
            for start in range(0, len(group), 50):
                part = group[start : start + 50]
                values.append(float(objective(model.network, source.load(part)).total))
                total += values[-1]
                units += source.valid(part)
    exact = score_text(model, text.ids.tolist(), range(3, 9), ESTIMATORS.build("exhaustive"))
    assert units == 700 * 6
    assert total / units == pytest.approx(exact.per_token, rel=0.12)


def test_complements_ask_for_every_token_once():
    noised = np.array([False, True, True, True, True, True])
    rng = np.random.default_rng(0)
    for t in (0.1, 0.5, 1.0):
        one, two = CORRUPTIONS.build("complementary").copies(
            noised, np.full(6, t), NOISE_SCHEDULES.build("linear"), rng
        )
        assert (one.is_learned ^ two.is_learned)[1:].all()
        assert not (one.is_masked | two.is_masked)[0]
        assert two.weight.max() <= 500  # as much as one masked token in 1,000 at least weighs
        assert one.t is None
        assert two.t == pytest.approx(np.full(6, 1 - t))  # what it is logged by


def test_a_complement_is_logged_by_its_own_time():
    noised, rng = np.ones(20_000, dtype=bool), np.random.default_rng(0)
    for name in NOISE_SCHEDULES.names():
        schedule = NOISE_SCHEDULES.build(name)
        _, two = CORRUPTIONS.build("complementary").copies(
            noised, np.full(20_000, 0.8), schedule, rng
        )
        assert schedule.share(two.t[:1])[0] == pytest.approx(two.is_masked.mean(), abs=0.02)


# -- the source -------------------------------------------------------------------------------


def source_of(make_model, make_recipe, lessons, metadata=None, **settings):
    model = make_model(double=True, **(metadata or {}))
    recipe = make_recipe(**{"attention": attention_of(metadata or {}), **settings})
    return CorruptedDataSource(lessons, recipe, model.metadata, 10)


def texts_of(source, step):
    source.begin(step, None, None)
    return [
        (t.record_id, t.ids.tolist(), t.is_masked.tolist(), t.scale.tolist()) for t in source._texts
    ]


def test_noise_is_a_function_of_seed_and_step(make_model, make_recipe):
    lessons = [lesson(n) for n in (6, 9, 12, 7, 8)]
    one = source_of(make_model, make_recipe, lessons)
    other = source_of(make_model, make_recipe, lessons)
    texts_of(other, 5)
    assert texts_of(one, 2) == texts_of(other, 2)
    assert texts_of(one, 2) != texts_of(one, 3)
    again = source_of(make_model, make_recipe, lessons, seed=1)
    assert texts_of(one, 2) != texts_of(again, 2)
    assert one.identity == other.identity != again.identity


def test_micro_batches_do_not_change_a_step(make_model, make_recipe):
    model, found = make_model(double=True), []
    for micro in (8, 40, 1000):
        source = source_of(
            make_model,
            make_recipe,
            [lesson(n) for n in (6, 9, 12, 7)],
            train={"micro_tokens": micro, "batch_size": 6},
        )
        source.begin(1, model.network, None)
        objective = DiffusionLoss(model)
        with torch.no_grad():
            losses = [objective(model.network, source.load(g)) for g in source.plan(1)]
        total = sum(float(loss.total) for loss in losses)
        parts = {name: sum(loss.parts[name] for loss in losses) for name in losses[0].parts}
        found.append((total, parts, sum(source.valid(g) for g in source.plan(1))))
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0])
        assert other[1] == pytest.approx(found[0][1])
        assert other[2] == found[0][2]


def test_a_micro_batch_takes_work_for_its_own_texts_alone(make_model, make_recipe):
    source = source_of(
        make_model, make_recipe, [lesson()], train={"micro_tokens": 20, "batch_size": 6}
    )
    first = source.plan(1)[0]
    source._texts = [text if number in first else None for number, text in enumerate(source._texts)]
    assert source.load(first).ids.shape[0] == len(first) < 6


def test_the_times_of_a_step_are_spread_evenly(make_model, make_recipe):
    source = source_of(make_model, make_recipe, [lesson()], train={"batch_size": 16})
    source.begin(0, None, None)
    times = sorted(text.t[0] for text in source._texts)
    assert np.allclose(np.diff(times), 1 / 16, atol=1e-3)
    loose = source_of(
        make_model,
        make_recipe,
        [lesson()],
        train={"batch_size": 16},
        noise={"low_discrepancy": False},
    )
    loose.begin(0, None, None)
    assert not np.allclose(np.diff(sorted(t.t[0] for t in loose._texts)), 1 / 16, atol=1e-2)


def test_each_block_has_its_own_time(make_model, make_recipe):
    blocks = {"attention": "block_causal", "block_size": 3}
    source = source_of(make_model, make_recipe, [lesson(9, 0)], blocks)
    source.begin(0, None, None)
    t = source._texts[0].t
    assert len(set(t[:3])) == len(set(t[3:6])) == 1
    assert len(set(t)) == 3


def test_prompts_are_given_and_answers_noised(make_model, make_recipe):
    source = source_of(make_model, make_recipe, [lesson(9, 4)], train={"batch_size": 50})
    source.begin(0, None, None)
    masks = np.stack([text.is_masked for text in source._texts])
    assert not masks[:, :4].any()
    assert masks[:, 4:].any(0).all()


def test_of_a_conversation_one_turn_is_learned_with_all_before_it(make_model, make_recipe):
    talk = MaskableExample("r", np.arange(4, 16), ((2, 5), (8, 12)))
    source = source_of(make_model, make_recipe, [talk], train={"batch_size": 40})
    source.begin(0, None, None)
    assert {len(text.ids) for text in source._texts} == {5, 12}
    for text in source._texts:
        assert not text.is_masked[: 2 if len(text.ids) == 5 else 8].any()
    whole = source_of(make_model, make_recipe, [talk], stage={"name": "sft", "one_turn": False})
    whole.begin(0, None, None)
    assert {len(text.ids) for text in whole._texts} == {12}


def test_ends_are_padded_and_learned_and_the_padding_may_be_cut(make_model, make_recipe):
    longest = {"max_tokens": 12}  # which padding does not exceed
    for cut, lengths, settings in (
        (False, {16}, {}),
        (True, set(range(9, 17)), {}),
        (False, {12}, longest),
        (True, set(range(9, 13)), longest),
    ):
        source = source_of(
            make_model,
            make_recipe,
            [lesson(9)],
            train={"batch_size": 200},
            padding={"multiple": 8, "random_length": cut},
            **settings,
        )
        source.begin(0, None, None)
        assert {len(text.ids) for text in source._texts} == lengths
        assert all((text.ids[9:] == 2).all() for text in source._texts)
        assert any(text.is_masked[9:].any() for text in source._texts)


def test_every_answer_weighs_alike_where_that_is_asked(make_model, make_recipe):
    source = source_of(
        make_model,
        make_recipe,
        [lesson(5), lesson(30)],
        loss_normalization="sequence",
        train={"batch_size": 6},
    )
    source.begin(0, None, None)
    assert sum(source.valid(group) for group in source.plan(0)) == 6
    for text in source._texts:
        assert text.scale[0] * text.t[0] == pytest.approx(1 / (len(text.ids) - 3))


def test_attention_is_annealed_and_blocks_grow(make_model, make_recipe):
    source = source_of(make_model, make_recipe, [lesson(12)], attention={"anneal_steps": 8})
    shares = []
    for step in (0, 3, 7):
        source.begin(step, None, None)
        batch = source.load([0])
        shares.append(float(batch.seen[0].float().mean()))
        assert batch.seen[0].tril().sum() == 78
    assert shares[0] < shares[1] < shares[2] == 1
    blocks = {"attention": "block_causal", "block_size": 8}
    growing = {**attention_of(blocks), "growth": [1, 2]}
    source = source_of(make_model, make_recipe, [lesson(12)], blocks, attention=growing)
    assert [source.block_size(step) for step in (0, 2, 3, 5, 9)] == [1, 1, 2, 8, 8]


def test_texts_are_shortened_now_and_then_in_pretraining(make_model, make_recipe):
    source = source_of(
        make_model,
        make_recipe,
        [lesson(30, 1)],
        stage={"name": "pretraining", "truncation_rate": 0.5},
        train={"batch_size": 60},
    )
    source.begin(0, None, None)
    lengths = [len(text.ids) for text in source._texts]
    assert 15 < sum(length == 30 for length in lengths) < 45
    assert min(lengths) >= 2


def test_encoding_finds_answers_turns_and_what_is_cut(plain):
    from stillroom.models.local.causal_lm import load_tokenizer

    tokenizer = load_tokenizer(plain)
    talk = Record(
        (
            Message("user", "One?"),
            Message("assistant", "Yes."),
            Message("user", "Two?"),
            Message("assistant", "No."),
        )
    )
    kwargs = {"max_tokens": 400, "include_prompt": False, "first": 0}
    (found,), counts = tokenize_records(tokenizer, [talk], **kwargs)
    said = [tokenizer.decode(found.ids[a:b]) for a, b in found.turns]
    assert said == ["Yes.<|im_end|>", "No.<|im_end|>"]
    assert counts["tokens_noised"] == found.noised.sum()
    _, counts = tokenize_records(tokenizer, [talk], **{**kwargs, "max_tokens": len(found.ids) - 3})
    assert counts["records_cut"] == 1
    none, counts = tokenize_records(tokenizer, [talk], **{**kwargs, "max_tokens": 3})
    assert (none, counts["records_left_out"]) == ([], 1)
    (whole,), _ = tokenize_records(tokenizer, [talk], **{**kwargs, "include_prompt": True})
    assert whole.turns == ((1, len(whole.ids)),)
    fields = {EXTRAS_FIELD: {"1": {"weight": 0}}}
    rated = [replace(talk, fields={"label": False}), replace(talk, fields=fields)]
    (kept,), counts = tokenize_records(tokenizer, rated, **{**kwargs, "include_prompt": True})
    assert counts["records_left_out"] == 1
    learned = tokenizer.decode(kept.ids[kept.noised])
    assert "Yes." not in learned
    assert "One?" in learned
    assert "No." in learned


# -- the job ----------------------------------------------------------------------------------


def run(recipe, tmp_path, name="out", **more):
    artifact = run_recipe(recipe, tmp_path / name, **more)
    return artifact, tmp_path / name


def metrics(folder):
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["name"], []).append(row["value"])
    return found


def test_a_model_of_characters_learns_and_opens_again(make_recipe, tmp_path):
    recipe = make_recipe(
        stage="pretraining", train={"steps": 60, "batch_size": 8, "learning_rate": 5e-3}
    )
    artifact, folder = run(recipe, tmp_path)
    details = artifact.details
    assert details["after"]["nats_per_token"] < details["before"]["nats_per_token"] - 0.2
    assert details["after"]["is_bound"]
    assert details["after"]["error"] > 0
    model = open_diffusion(str(folder))
    assert model.metadata.attention == "full"
    assert not model.metadata.logit_shift
    assert model.tokenizer.mask_token_id == model.metadata.mask_token_id
    assert model.tokenizer.decode(model.tokenizer("a jar")["input_ids"][1:]) == "a jar"
    logged = metrics(folder)
    assert len(logged["loss"]) == 60
    assert {f"masked_ce/t<{high:g}" for _, high in TIME_BUCKETS} <= set(logged)
    assert logged["masked_ce/t<0.25"][-1] < logged["masked_ce/t<0.25"][0]
    assert read_artifact(folder).kind == "checkpoint"


def test_tools_that_the_model_is_not_shown_are_warned_of(make_recipe, tmp_path):
    records = [
        replace(chat, fields={**chat.fields, "tools": [{"name": "add"}]}) for chat in chats()
    ]
    _, folder = run(make_recipe(records), tmp_path)
    assert "9 of 9 records have tools; the chat template does not show" in (
        folder / "events.jsonl"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": {"name": "block_causal", "block_size": 4}, "padding": {"multiple": 4}},
        {"corruption": "complementary"},
        {"kind": AutoregressiveRecipe},
        {"noise_schedule": "cosine", "logit_shift": True},
    ],
)
def test_every_way_trains_and_measures(make_recipe, tmp_path, settings):
    recipe = make_recipe(
        stage="pretraining", train={"steps": 40, "batch_size": 8, "learning_rate": 5e-3}, **settings
    )
    artifact, folder = run(recipe, tmp_path)
    assert (
        artifact.details["after"]["nats_per_token"] < artifact.details["before"]["nats_per_token"]
    )
    is_causal = "kind" in settings
    assert artifact.details["after"]["is_bound"] is not is_causal
    if is_causal:
        with pytest.raises(CheckpointError):
            open_diffusion(str(folder))
    else:
        block_size = settings.get("attention", {}).get("block_size")
        assert open_diffusion(str(folder)).metadata.block_size == block_size


def test_a_run_that_was_stopped_ends_with_the_same_bytes(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe(
        stage="pretraining",
        validation={"records": 2, "samples": 2, "every": 2},
        train={"steps": 6, "save_every_s": 0},
    )
    whole, _ = run(recipe, tmp_path, "whole")
    calls = []

    def stop(self, network, batch, plain=DiffusionLoss.__call__):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(self, network, batch)

    monkeypatch.setattr(DiffusionLoss, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path, "stopped")
    monkeypatch.undo()
    resumed, folder = run(recipe, tmp_path, "stopped", resume=True)
    assert resumed.details["fingerprint"] == whole.details["fingerprint"]
    assert resumed.details["after"] == whole.details["after"]
    assert resumed.digest == whole.digest  # whatever the folders are called
    assert metrics(folder)["loss"] == metrics(tmp_path / "whole")["loss"]


def test_an_autoregressive_checkpoint_is_trained_on_with_a_mask_of_its_own(make_recipe, tmp_path):
    folder = tiny_checkpoint(tmp_path / "ar", hidden=32)
    recipe = make_recipe(
        chats(), model=str(folder), train={"steps": 2}, attention={"anneal_steps": 2}
    )
    artifact, out = run(recipe, tmp_path)
    assert "mask token" in artifact.details["start"]
    model = open_diffusion(str(out))
    config = json.loads((folder / "config.json").read_text())
    assert model.metadata.logit_shift
    assert model.metadata.mask_token_id == model.tokenizer.mask_token_id == config["vocab_size"]
    assert model.vocabulary == config["vocab_size"] + 1
    assert model.metadata.end_token_ids == (2,)
    assert model.tokenizer.chat_template


def test_a_twin_of_an_autoregressive_checkpoint_learns_from_the_same_start(make_recipe, tmp_path):
    folder = tiny_checkpoint(tmp_path / "ar", hidden=32)
    twin = make_recipe(chats(), AutoregressiveRecipe, model=str(folder), train={"steps": 2})
    artifact, out = run(twin, tmp_path)
    assert not artifact.details["before"]["is_bound"]
    model, tokenizer = load_causal_lm(resolve_checkpoint(str(out)), dtype="float32")
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_the_mask_token_begins_as_the_mean_of_all(tmp_path):
    from stillroom.checkpoints import Checkpoint
    from stillroom.diffusion.model.initialization import prepare_initial_checkpoint

    folder = tiny_checkpoint(tmp_path / "ar", hidden=32)
    full = TargetMetadata("full")
    prepare_initial_checkpoint(str(folder), full, lambda: (), tmp_path / "start", seed=0)
    name = "model.embed_tokens.weight"
    before = Checkpoint.open(folder).tensor(name)
    after = Checkpoint.open(tmp_path / "start").tensor(name)
    assert torch.equal(after[:-1], before)
    assert torch.allclose(after[-1], before.mean(0), atol=1e-6)
    unshifted = TargetMetadata("full", logit_shift=False)
    prepare_initial_checkpoint(str(folder), unshifted, lambda: (), tmp_path / "other", seed=0)
    assert open_diffusion(str(tmp_path / "other")).metadata.logit_shift is False


def test_a_diffusion_checkpoint_is_trained_on_as_it_is(make_recipe, tmp_path):
    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", hidden=32), logit_shift=True)
    artifact, out = run(make_recipe(chats(), model=str(folder), train={"steps": 2}), tmp_path)
    assert artifact.details["start"].startswith("a diffusion checkpoint")
    model = open_diffusion(str(out))
    assert (model.metadata.mask_token_id, model.metadata.logit_shift) == (MASK, True)
    assert {parent.role for parent in artifact.parents} == {"records", "model"}


def test_low_rank_additions_are_trained_and_merged(make_recipe, tmp_path):
    pytest.importorskip("peft")
    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", hidden=32))
    recipe = make_recipe(
        chats(),
        model=str(folder),
        train={"steps": 2, "lora": {"rank": 2}, "learning_rate": 0.05},
        out={},
    )
    artifact, out = run(recipe, tmp_path)
    stored = Checkpoint.open(out / "output")
    assert {stored.tensor(name).dtype for name in stored.names()} == {torch.float16}
    assert open_diffusion(str(out)).vocabulary == open_diffusion(str(folder)).vocabulary
    assert (
        artifact.details["after"]["nats_per_token"] != artifact.details["before"]["nats_per_token"]
    )


def test_what_is_measured_after_training_is_the_stored_checkpoint(make_recipe, tmp_path):
    settings = {"out": {"dtype": "bfloat16"}, "train": {"steps": 2, "learning_rate": 1e-4}}
    first, folder = run(make_recipe(**settings), tmp_path)
    second, _ = run(make_recipe(model=str(folder), **settings), tmp_path, "next")
    assert first.details["after"] == second.details["before"]
    assert first.details["after"] != first.details["before"]
    assert "nothing was learned" not in (folder / "output" / "README.md").read_text()


def test_updates_that_the_stored_type_rounds_off_are_reported(make_recipe, tmp_path):
    _, folder = run(make_recipe(out={"dtype": "bfloat16"}), tmp_path, "start")
    recipe = make_recipe(
        model=str(folder), out={"dtype": "bfloat16"}, train={"learning_rate": 1e-9}
    )
    _, out = run(recipe, tmp_path)
    assert "nothing was learned" in (out / "output" / "README.md").read_text()


def test_an_adapter_of_the_head_that_would_not_be_trained_is_refused(make_recipe, tmp_path):
    pytest.importorskip("peft")
    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", hidden=32, tie=False))
    recipe = make_recipe(
        chats(), model=str(folder), train={"lora": {"targets": ["q_proj", "lm_head"]}}
    )
    with pytest.raises(RecipeError, match="reads the head without its adapter") as caught:
        run(recipe, tmp_path)
    assert caught.value.code == "train.lora-head"


def test_adapted_layers_that_the_model_lacks_are_refused_before_its_data(
    make_recipe, tmp_path, monkeypatch
):
    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", hidden=32))
    recipe = make_recipe(chats(), model=str(folder), train={"lora": {"targets": ["q_projj"]}})
    (finding,) = preflight_recipe(recipe, tmp_path).findings
    assert "no layer q_projj" in finding.what
    assert preflight_recipe(recipe, tmp_path, loads=True) is None
    monkeypatch.setattr(MaskedDenoising, "tokenize", None)
    with pytest.raises(RecipeError) as caught:
        run(recipe, tmp_path)
    assert caught.value.code == "train.lora-targets"


def test_a_vocabulary_of_words(make_recipe, tmp_path):
    scratch = {
        "tokenizer": "builtin:words",
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
    }
    _, folder = run(make_recipe(model=scratch, stage="pretraining"), tmp_path)
    tokenizer = open_diffusion(str(folder)).tokenizer
    assert tokenizer.tokenize("the still runs") == ["the", "still", "runs"]
    assert tokenizer.convert_tokens_to_ids("zebra") == tokenizer.unk_token_id


def test_what_cannot_be_learned_is_refused(make_recipe, tmp_path):
    with pytest.raises(DataError) as caught:
        run(make_recipe(chats(), max_tokens=2), tmp_path)
    assert caught.value.code == "diffusion.no-places"
    scratch = {
        "tokenizer": "builtin:letters",
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
    }
    with pytest.raises(RecipeError) as caught:
        run(make_recipe(model=scratch), tmp_path, "other")
    assert caught.value.code == "diffusion.tokenizer"


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": "block_causal"},
        {"attention": "causal"},
        {"attention": {"name": "full", "block_size": 4}},
        {"attention": {"name": "block_causal", "block_size": 2, "anneal_steps": 3}},
        {"attention": {"name": "full", "growth": [1, 2]}},
        {"noise": {"t_min": 0.5, "t_max": 0.2}},
        {"model": {"hidden_size": 30, "num_attention_heads": 4}},
        {"model": {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 3}},
        {"stage": {"name": "pretraining", "one_turn": True}},
        {"padding": {"multiple": 1}},
        {"train": {"lora": {"keep_adapter": True}}},
        {"kind": AutoregressiveRecipe, "logit_shift": True},
        {"kind": AutoregressiveRecipe, "validation": {"samples": 2}},
    ],
)
def test_settings_that_contradict_each_other_are_refused(make_recipe, settings):
    with pytest.raises((ValidationError, RecipeError)):
        make_recipe(**settings)


@pytest.mark.parametrize("kind", ["autoregressive", "preference", "reward", "train"])
def test_training_is_refused_without_torch_before_earlier_steps_are_run(monkeypatch, kind):
    declared = find_job_kind(f"diffusion.{kind}")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match="'torch'"):
        extras.require_extras(declared.extras, declared.run, "a job")


def test_the_estimate_says_what_it_stands_on(make_recipe):
    found = estimate_recipe(make_recipe())
    assert found.memory_bytes > 0
    assert found.seconds > 0
    assert " records, 3 steps" in found.basis
    assert math.isfinite(estimate_recipe(make_recipe(model="hub:some/model")).seconds)
