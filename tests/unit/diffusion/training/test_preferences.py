"""Preferences: the gradient is that of DPO on bounds, and sharing masks takes its noise away."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.unit.diffusion.conftest import say_diffusion

from stillroom.diffusion.evaluation.likelihood import score_text
from stillroom.diffusion.interfaces import ESTIMATORS
from stillroom.diffusion.jobs.preference import DiffusionPreferenceRecipe
from stillroom.diffusion.training.data import MaskableExample, TrainingContext
from stillroom.diffusion.training.loss import DiffusionLoss, compute_logprobs
from stillroom.diffusion.training.preferences import (
    PreferenceDataSource,
    PreferencePair,
    average_bounds,
    compute_margins,
    draw_masks,
    tokenize_pairs,
)
from stillroom.errors import CheckpointError, DataError
from stillroom.flow import estimate_recipe, run_recipe
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint
from stillroom.train.distributed import ProcessGroup

BLOCKS = {"attention": "block_causal", "block_size": 4}


def pairs_of(count=3):
    rng = np.random.default_rng(0)
    made = []
    for n in range(count):
        prompt = rng.integers(4, 250, 3)
        sides = [np.concatenate([prompt, rng.integers(4, 250, 4 + n + k)]) for k in (0, 2)]
        lessons = [MaskableExample(f"r{n}", side, ((3, len(side)),)) for side in sides]
        made.append(PreferencePair(f"r{n}", *lessons))
    return made


def recipe_of(folder, **settings):
    said = {"model": str(folder), "records": "unused", "out": {"dtype": "float32"}, **settings}
    said["train"] = {"steps": 2, "threads": 1, "batch_size": 3, **settings.get("train", {})}
    return DiffusionPreferenceRecipe.model_validate(said)


def test_a_policy_moves_little_unless_it_is_told_to():
    assert vrpo().train.learning_rate <= 1e-5
    assert vrpo(train={"learning_rate": 1e-3}).train.learning_rate == 1e-3


def vrpo(**settings):
    return recipe_of("m", **settings)


def source_of(model, recipe, pairs):
    return PreferenceDataSource(recipe, TrainingContext(model, pairs, 4, None))


@pytest.fixture
def make_fresh(tmp_path):
    """Return a model of its own, which a test may change."""
    from stillroom.diffusion.model.loading import open_diffusion

    def make(**metadata):
        folder = tiny_checkpoint(tmp_path / f"m{len(list(tmp_path.iterdir()))}", hidden=32)
        model = open_diffusion(str(say_diffusion(folder, **metadata)), dtype="float32")
        model.network.double()
        return model

    return make


def shake(model, by, seed=0):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.network.parameters():
            value += by * torch.randn(value.shape, generator=rng, dtype=value.dtype)


# -- the loss and its gradient ------------------------------------------------------------------


def plain_dpo(beta, source, model, reference, texts):
    """DPO on bounds in a few lines: all logits, one graph."""

    def bound(network, text):
        ids = torch.from_numpy(np.where(text.is_masked, model.metadata.mask_token_id, text.ids))
        seen = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
        logits = network(input_ids=ids[None], attention_mask=seen, use_cache=False).logits[0]
        logits[:, model.metadata.mask_token_id] = -torch.inf
        own = logits.log_softmax(-1).gather(-1, torch.from_numpy(text.ids)[:, None])[:, 0]
        return (own * torch.from_numpy(text.scale))[torch.from_numpy(text.is_learned)].sum()

    values = [
        torch.stack([bound(network, text) for text in texts]).view(-1, 2, source.samples).mean(-1)
        for network in (model.network, reference)
    ]
    rise = values[0] - values[1].detach()
    return -torch.nn.functional.logsigmoid(beta * (rise[:, 0] - rise[:, 1]))


@pytest.mark.parametrize("micro_tokens", [16, 1000])
def test_the_gradient_is_that_of_dpo_on_bounds(make_fresh, micro_tokens):
    recipe = vrpo(beta=0.7, num_times=3, train={"micro_tokens": micro_tokens})
    model, pairs = make_fresh(), pairs_of()
    source = source_of(model, recipe, pairs)
    shake(model, 0.02)
    source.begin(1, model.network, ProcessGroup(alone=True))
    objective = DiffusionLoss(model, has_times=False)
    units = sum(source.valid(group) for group in source.plan(1))
    losses = [objective(model.network, source.load(group)) for group in source.plan(1)]
    sum(loss.total for loss in losses).backward()
    ours = {name: p.grad.clone() for name, p in model.network.named_parameters()}
    model.network.zero_grad()
    chosen = [pairs[number] for number in source._records.chosen(1)]
    texts = source._draw(chosen, 1, 11)
    plain = plain_dpo(0.7, source, model, source.reference._copy, texts)
    plain.sum().backward()
    assert units == 3
    total = float(sum(loss.total.detach() for loss in losses))
    assert total == pytest.approx(float(plain.sum().detach()), rel=1e-5)
    for name, parameter in model.network.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-3, atol=1e-5), name


def test_a_model_that_is_its_reference_is_told_nothing_yet(make_fresh):
    model = make_fresh()
    source = source_of(model, vrpo(num_times=2), pairs_of())
    notes = source.begin(0, model.network, ProcessGroup(alone=True))
    told = sum(text.logged_loss for text in source._texts)
    assert told == pytest.approx(3 * math.log(2), abs=1e-9)
    assert notes["preference/margin"] == 0
    assert notes["preference/chosen_rise"] == 0


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("metadata", [{}, BLOCKS])
def test_the_mean_over_masks_is_the_bound(make_model, counted, metadata):
    model = make_model(double=True, **metadata)
    lesson = MaskableExample("r", np.arange(4, 13), ((3, 9),))
    method = vrpo(num_times=1024, fixed_mask_count=counted)
    texts = draw_masks(lesson, method, model.metadata, np.random.default_rng(0))
    logprobs = compute_logprobs(model, texts, micro_tokens=2000)
    found = float(average_bounds(texts, logprobs, 1024)[0])
    exact = score_text(model, lesson.ids.tolist(), range(3, 9), ESTIMATORS.build("exhaustive"))
    assert found == pytest.approx(exact.value, rel=0.02 if counted else 0.15)


# -- less variance ------------------------------------------------------------------------------


def test_shared_masks_and_many_times_take_the_noise_of_the_score_away(make_fresh):
    """The score's spread over draws, with as many readings each."""
    model = make_fresh()
    (pair,) = pairs_of(1)
    start = source_of(model, vrpo(train={"batch_size": 40}), [pair])
    shake(model, 0.003)

    def spread(**settings):
        source = source_of(model, vrpo(train={"batch_size": 40}, **settings), [pair])
        source.reference = start.reference
        texts = source._draw([pair] * 40, 0, 11)
        others = texts if source.recipe.antithetic else source._draw([pair] * 40, 0, 12)
        alone = ProcessGroup(alone=True)
        bounds = source._bounds(texts, alone), source._bounds(others, alone, by_reference=True)
        return float(compute_margins(0.1, *bounds).var())

    plain = {"stratified": False, "fixed_mask_count": False}
    naive = spread(num_times=1, masks_per_time=4, antithetic=False, **plain)
    allocated = spread(num_times=4, antithetic=False, **plain)
    shared = spread(num_times=4, **plain)
    assert allocated < naive
    assert shared < allocated / 10
    assert spread(num_times=4) < shared


# -- records ------------------------------------------------------------------------------------


def pair_record(n, chosen="yes", rejected="not", **fields):
    return Record(
        (Message("user", f"Say {n}."), Message("assistant", chosen)),
        {
            "chosen": chosen,
            "rejected": rejected,
            "split": "held_out" if n % 4 == 3 else "train",
            **fields,
        },
    )


def test_pairs_are_found_in_what_synth_writes(plain):
    from stillroom.models.local.causal_lm import load_tokenizer

    tokenizer = load_tokenizer(plain)
    records = [
        pair_record(0),
        pair_record(1, "one", "one"),
        Record((Message("user", "a"), Message("assistant", "b"))),
        pair_record(2, "so it is up", "so it is down", prefix="so it is "),
    ]
    found = tokenize_pairs(tokenizer, records, max_tokens=200, first=0)
    assert found.counts["records"] == 2
    assert found.counts["records_without_pair"] == found.counts["records_left_out"] == 1

    def scored(lesson):
        return tokenizer.decode(lesson.ids[lesson.noised])

    whole, pivot = found.items
    assert scored(whole.chosen).startswith("yes<|im_end|>")
    assert scored(whole.rejected).startswith("not<|im_end|>")
    assert (scored(pivot.chosen).strip(), scored(pivot.rejected).strip()) == ("up", "down")
    assert tokenizer.decode(pivot.chosen.ids).endswith("so it is up")
    tokenizer.chat_template = "{{ tools[0].name if tools }}\n" + tokenizer.chat_template
    asked = pair_record(0, tools=[{"name": "count"}])
    (pair,) = tokenize_pairs(tokenizer, [asked], max_tokens=200, first=0).items
    assert all(tokenizer.decode(side.ids).startswith("count\n") for side in pair.sides)


# -- the job ------------------------------------------------------------------------------------


@pytest.fixture
def make_job(tmp_path):
    write_records(tmp_path / "pairs.jsonl", [pair_record(n) for n in range(12)])

    def make(name="out", resume=False, metadata=None, **settings):
        folder = tmp_path / "m"
        if not folder.exists():
            say_diffusion(tiny_checkpoint(folder, hidden=32), **(metadata or {}))
        recipe = recipe_of(
            folder,
            **{
                "records": str(tmp_path / "pairs.jsonl"),
                "beta": 0.5,
                "num_times": 4,
                "validation": {"records": 3, "samples": 2},
                **settings,
            },
        )
        return run_recipe(recipe, tmp_path / name, resume=resume)

    return make


@pytest.mark.parametrize("metadata", [{}, BLOCKS])
def test_chosen_answers_become_likelier(make_job, metadata):
    train = {"steps": 12, "learning_rate": 3e-3, "batch_size": 4}
    artifact = make_job(train=train, metadata=metadata)
    before, after = artifact.details["before"], artifact.details["after"]
    assert after["preference/lead_nats"] > before["preference/lead_nats"] + 0.5
    assert after["preference/chosen_likelier"] >= before["preference/chosen_likelier"]
    assert artifact.details["train"]["last_loss"] < artifact.details["train"]["first_loss"]
    assert artifact.details["train"]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert artifact.details["records"]["records"] == 9


def test_a_stopped_run_ends_with_the_same_bytes(make_job, tmp_path, monkeypatch):
    train = {"steps": 4, "save_every_s": 0}
    whole = make_job("whole", train=train)
    calls = []

    def stop(self, step, ranks, plain=PreferenceDataSource.weigh):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, step, ranks)

    monkeypatch.setattr(PreferenceDataSource, "weigh", stop)
    with pytest.raises(KeyboardInterrupt):
        make_job("stopped", train=train)
    monkeypatch.undo()
    resumed = make_job("stopped", train=train, resume=True)
    assert resumed.details["fingerprint"] == whole.details["fingerprint"]


def test_low_rank_additions_are_held_to_the_model_without_them(make_job):
    pytest.importorskip("peft")
    train = {"steps": 3, "lora": {"rank": 2}, "learning_rate": 0.02}
    details = make_job(train=train).details
    assert details["train"]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert details["train"]["last_loss"] < math.log(2)


def test_what_makes_no_preference_is_refused(make_job, tmp_path, plain):
    write_records(
        tmp_path / "plain.jsonl", [Record((Message("assistant", "a b c"),), {"split": "train"})]
    )
    with pytest.raises(DataError) as caught:
        make_job(records=str(tmp_path / "plain.jsonl"))
    assert caught.value.code == "diffusion.no-pairs"
    with pytest.raises(CheckpointError) as refused:
        make_job("other", model=str(plain))
    assert refused.value.code == "diffusion.not-diffusion"
    for settings in (
        {"model": {"num_hidden_layers": 1}},
        {"attention": "full"},
        {"beta": 0},
        {"train": {"steps": 1, "sharding": "fsdp"}},
    ):
        with pytest.raises(ValidationError):
            make_job("bad", **settings)


def test_the_estimate_counts_every_sample(tmp_path):
    write_records(tmp_path / "p.jsonl", [pair_record(n) for n in range(4)])
    plain = {"records": str(tmp_path / "p.jsonl"), "train": {"steps": 50}}
    few = estimate_recipe(recipe_of("hub:a/b", num_times=2, **plain))
    many = estimate_recipe(recipe_of("hub:a/b", num_times=8, **plain))
    assert many.seconds > 3 * few.seconds
