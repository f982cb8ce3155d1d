"""Text that a student learns on while it writes it."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import build

from stillroom.distill.data.tokenized import TokenizedRecord, make_batch, tokenize_records
from stillroom.distill.interfaces import FEATURE_LOSSES, METHODS, ROLLOUT_POLICIES
from stillroom.distill.on_policy.collators import SameTokenizerCollator, make_rollout_batch
from stillroom.distill.on_policy.generation import (
    GenerationModel,
    RolloutGenerator,
    compute_sampling_probabilities,
    sample_tokens,
)
from stillroom.distill.on_policy.rollout import (
    CollapseMonitor,
    Rollout,
    find_turn_end,
    make_record,
    make_rollout_prompts,
    measure_repetition,
    summarize_rollouts,
)
from stillroom.distill.on_policy.source import RolloutBatchSource, RolloutBlock
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.distill.types import DecodeStep, StepState
from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import Journal
from stillroom.models.local.causal_lm import find_end_tokens
from stillroom.provenance import read_artifact
from stillroom.records import Link, Message, Record, read_records, write_records
from stillroom.train.data import RecordSource
from stillroom.train.distributed import ProcessGroup
from stillroom.train.loop import train
from stillroom.train.settings import TrainSettings

FAST = {"steps": 6, "batch_size": 4, "threads": 1, "learning_rate": 3e-3, "precision": "float32"}


@pytest.fixture(autouse=True)
def one_thread():
    """Compute on one thread: with more, a row's place in a batch decides its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prompts(loaded, lessons):
    found = make_rollout_prompts(
        loaded[1], make_records(6), lessons, opening_tokens=4, max_tokens=128
    )
    assert None not in found
    return found


@pytest.fixture
def make_generator(loaded):
    def make(policy="on_policy", *, model=None, precision="float32", seed=0, ends=None, **fields):
        chosen = ROLLOUT_POLICIES.build({"name": policy, "max_new_tokens": 12, "rows": 4, **fields})
        rows = loaded[0].config.vocab_size
        student = GenerationModel(model or loaded[0], rows=rows, precision=precision)
        teacher = GenerationModel(loaded[0], rows=rows, precision=precision, is_fixed=True)
        found = find_end_tokens(*loaded) if ends is None else frozenset(ends)
        return RolloutGenerator(chosen, student, teacher, ends=found, max_tokens=128, seed=seed)

    return make


def same(one, two):
    return one.to_json() == two.to_json()


def test_draws_follow_the_chances_and_never_leave_them():
    chances = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0]]).expand(6000, -1)
    numbers = torch.from_numpy(np.random.default_rng(0).random(6000))
    counts = torch.bincount(sample_tokens(chances, numbers), minlength=6) / 6000
    assert counts[[0, 2, 5]].sum() == 0
    torch.testing.assert_close(counts[[1, 3, 4]], chances[0, [1, 3, 4]], atol=0.02, rtol=0)
    edge = sample_tokens(chances[:2], torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64))
    assert edge.tolist() == [1, 4]


def test_chances_are_the_models_own_unless_asked_otherwise():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    torch.testing.assert_close(
        compute_sampling_probabilities(logits, 1.0, 0, 1.0), logits.softmax(-1)
    )
    hot = compute_sampling_probabilities(logits, 2.0, 0, 1.0)
    torch.testing.assert_close(hot, (logits / 2).softmax(-1))
    assert (compute_sampling_probabilities(logits, 1.0, 2, 1.0) > 0).tolist() == [
        [True, True, False, False]
    ]
    assert (compute_sampling_probabilities(logits, 1.0, 0, 0.7) > 0).tolist() == [
        [True, True, False, False]
    ]
    assert compute_sampling_probabilities(logits, 1.0, 0, 0.01).tolist() == [[1.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_rollout_depends_on_seed_step_and_record_alone(make_generator, prompts, precision):
    together = make_generator(precision=precision).generate(prompts, 3, 0.0)
    backwards = make_generator(precision=precision).generate(prompts[::-1], 3, 0.5)[::-1]
    for at, prompt in enumerate(prompts):
        (alone,) = make_generator(precision=precision).generate([prompt], 3, 0.0)
        assert same(alone, together[at])
        assert same(backwards[at], together[at])
    assert not same(
        make_generator(precision=precision).generate(prompts[:1], 4, 0.0)[0], together[0]
    )
    other = make_generator(precision=precision, seed=1).generate(prompts[:1], 3, 0.0)[0]
    assert not same(other, together[0])


def test_knows_how_likely_each_token_was(make_generator, prompts, loaded):
    for fields in ({}, {"temperature": 2.0, "top_k": 40}):
        one = make_generator(**fields).generate(prompts[:1], 0, 0.0)[0]
        ids = torch.tensor([[*prompts[0].ids, *one.ids.tolist()]])
        with torch.no_grad():
            logits = loaded[0](input_ids=ids).logits[0, len(prompts[0].ids) - 1 : -1]
        own = torch.from_numpy(one.ids)[:, None]
        logprobs = logits.log_softmax(-1).gather(-1, own).squeeze(-1)
        np.testing.assert_allclose(one.old, logprobs.numpy(), atol=1e-4)
        drawn = compute_sampling_probabilities(
            logits, fields.get("temperature", 1.0), fields.get("top_k", 0), 1.0
        )
        wanted = logprobs.exp() / drawn.gather(-1, own).squeeze(-1)
        np.testing.assert_allclose(one.importance, wanted.numpy(), rtol=1e-3)
        assert one.own.all()


def test_weights_of_now_write_even_in_bfloat16(make_generator, prompts, loaded):
    model = copy.deepcopy(loaded[0])
    model.train()
    generator = make_generator(model=model, precision="bfloat16")
    before = generator.generate(prompts[:1], 0, 0.0)[0]
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.5)
    after = generator.generate(prompts[:1], 0, 0.0)[0]
    fresh = make_generator(model=model, precision="bfloat16").generate(prompts[:1], 0, 0.0)[0]
    assert same(after, fresh)
    assert not same(after, before)
    assert model.training
    assert all(value.dtype == torch.float32 for value in model.parameters())


def test_an_end_is_known_by_how_it_came_and_any_of_several_ends_it(make_generator, prompts, loaded):
    whole = make_generator(ends=()).generate(prompts, 0, 0.0)
    assert not any(one.finished for one in whole)
    assert {len(one.ids) for one in whole} == {12}
    ends = {int(one.ids[5]) for one in whole}  # one of them may well be the padding token
    cut = make_generator(ends=ends).generate(prompts, 0, 0.0)
    for one, long in zip(cut, whole, strict=True):
        assert one.finished
        assert one.ids[-1] in ends
        assert not set(one.ids[:-1].tolist()) & ends
        assert one.ids.tolist() == long.ids[: len(one.ids)].tolist()
        lesson = one.to_tokenized(prompts[0])
        assert lesson.labels.tolist() == one.ids.tolist()
    # what was cut off by its room learns each of its tokens, and no end
    lesson = whole[0].to_tokenized(prompts[0])
    assert len(lesson.positions) == 12
    assert lesson.positions[-1] == len(lesson.ids) - 2


def test_a_long_prompt_leaves_less_room_and_draws_the_same(make_generator, prompts):
    generator = make_generator(ends=())
    generator.max_tokens = len(prompts[0].ids) + 5
    short = generator.generate(prompts[:1], 0, 0.0)[0]
    assert len(short.ids) == 5
    assert not short.finished
    whole = make_generator(ends=()).generate(prompts[:1], 0, 0.0)[0]
    assert whole.ids[:5].tolist() == short.ids.tolist()


def test_prompts_end_before_the_last_answer(loaded):
    tokenizer = loaded[1]
    turns = (
        Message("user", "One?"), Message("assistant", "1"),
        Message("user", "Two?"), Message("assistant", "2"),
    )  # fmt: skip
    records = [
        Record(turns),
        Record((Message("assistant", "A still turns wine into spirit."),)),
        Record((Message("assistant", "Hi"),)),
        Record((Message("user", "long " * 80), Message("assistant", "yes"))),
    ]
    lessons, _ = tokenize_records(tokenizer, records, max_tokens=400, include_prompt=False)
    found = make_rollout_prompts(tokenizer, records, lessons, opening_tokens=6, max_tokens=60)
    assert found[0].messages == turns[:3]
    text = tokenizer.decode(found[0].ids)
    assert "Two?" in text
    assert "2" not in text
    assert lessons[0].ids[: len(found[0].ids)].tolist() == list(found[0].ids)
    assert found[1].ids == tuple(lessons[1].ids[:6])
    assert found[3] is None
    by_id = {lesson.record_id: prompt for lesson, prompt in zip(lessons, found, strict=True)}
    assert by_id[records[2].id] is None  # as long as its opening: nothing to go on from


def test_prompts_show_the_tools_as_records_do(loaded):
    tokenizer = copy.deepcopy(loaded[1])
    tokenizer.chat_template = "{{ tools[0].name if tools }}\n" + tokenizer.chat_template
    record = Record(
        (Message("user", "One?"), Message("assistant", "1")), {"tools": [{"name": "count"}]}
    )
    lessons, _ = tokenize_records(tokenizer, [record], max_tokens=400, include_prompt=False)
    (prompt,) = make_rollout_prompts(tokenizer, [record], lessons, opening_tokens=6, max_tokens=400)
    assert tokenizer.decode(prompt.ids).startswith("count\n")
    assert lessons[0].ids[: len(prompt.ids)].tolist() == list(prompt.ids)
    empty = np.zeros(0, np.float32)
    rollout = Rollout(record.id, empty.astype(int), empty > 0, empty, empty, True, 0.0)
    link = Link("distill.rollout_policies.on_policy", "f00", (record.id,))
    assert make_record(tokenizer, rollout, prompt, link, {}).tools == record.tools


def test_the_turns_end_is_an_end(loaded):
    (token,) = find_turn_end(loaded[1])
    assert loaded[1].convert_ids_to_tokens(token) == "<|im_end|>"


def test_a_share_of_the_steps_is_drawn_once_a_step():
    policy = ROLLOUT_POLICIES.build({"name": "on_policy", "student_share": 0.3})
    draws = np.random.default_rng(0).random(2000)
    chosen = [policy.decide(StepState(0, 10, draw)) for draw in draws]
    assert chosen.count("student") / 2000 == pytest.approx(0.3, abs=0.03)
    assert set(chosen) == {"student", "records"}
    rest = ROLLOUT_POLICIES.build(
        {"name": "on_policy", "student_share": 0.0, "other_text": "teacher"}
    )
    assert rest.decide(StepState(0, 10, 0.0)) == "teacher"
    assert rest.uses_other_text


@pytest.fixture
def make_source(loaded, lessons, prompts, make_generator, job):
    opened = []

    def make(policy="on_policy", journal="rollouts", *, model=None, steps=4, batch=3, **fields):
        ends = fields.pop("ends", None)
        generator = make_generator(policy, model=model, ends=ends, **fields)
        records = RecordSource(
            lessons,
            ids=[lesson.key for lesson in lessons],
            lengths=[len(lesson.ids) for lesson in lessons],
            valid=[len(lesson.positions) for lesson in lessons],
            load=lambda chosen: make_batch(chosen, None),
            batch_size=batch,
            micro_tokens=64,
            seed=0,
        )
        opened.append(Journal(job.scratch / f"{journal}.jsonl"))
        return RolloutBatchSource(
            records, lessons, prompts, generator.policy, generator, opened[-1],
            collator=SameTokenizerCollator(), size=len(lessons), steps=steps, warn=job.warn,
            level=generator.policy.start_level,
        )  # fmt: skip

    yield make
    for journal in opened:
        journal.close()


def test_tokens_are_counted_after_they_were_written(loaded, make_source, job):
    """The step's gradient is that of the mean over its own tokens: TRL 1.16's is 4x too small."""
    teacher = loaded[0]
    student = copy.deepcopy(teacher).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in student.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.05)
    before = copy.deepcopy(student)
    source = make_source(
        model=student, student_share=1.0, batch=3, max_new_tokens=10, ends=(), steps=1
    )
    objective = DistillationLoss(
        METHODS.build("reverse_kl"), rows=teacher.config.vocab_size, teacher=teacher
    )
    seen = {}

    def watch(model, batch):
        loss = objective(model, batch)
        seen["valid"] = seen.get("valid", 0) + batch.valid
        return loss

    settings = TrainSettings(
        steps=1, threads=1, precision="float32", max_grad_norm=1e9, learning_rate=1e-9
    )
    train(student, source, watch, settings, job)
    assert seen["valid"] == 30
    norm = next(
        json.loads(line)["value"]
        for line in (job.scratch.parent / "metrics.jsonl").read_text().splitlines()
        if json.loads(line)["name"] == "grad_norm"
    )
    total, count = 0.0, 0
    for lesson in source._items:
        q = before(input_ids=torch.from_numpy(lesson.ids)[None]).logits[0].log_softmax(-1)
        with torch.no_grad():
            p = teacher(input_ids=torch.from_numpy(lesson.ids)[None]).logits[0].log_softmax(-1)
        rows = q[lesson.positions], p[lesson.positions]
        total = total + (rows[0].exp() * (rows[0] - rows[1])).sum()
        count += len(lesson.positions)
    (total / count).backward()
    wanted = torch.stack([v.grad.norm() for v in before.parameters()]).norm()
    assert count == 30
    assert norm == pytest.approx(float(wanted), rel=1e-3)


def take_steps(source, model, steps, start=0):
    found = []
    with ProcessGroup() as ranks:
        for step in range(start, steps):
            notes = source.begin(step, model, ranks)
            lessons = [[lesson.ids.tolist() for lesson in source._items], dict(notes)]
            plan = source.plan(step)
            assert sorted(n for group in plan for n in group) == list(range(len(source._items)))
            found.append(lessons)
    return found


def test_goes_on_from_the_journal_as_if_it_had_not_stopped(make_source, loaded):
    whole = take_steps(make_source(journal="a"), loaded[0], 4)
    first = make_source(journal="b")
    assert take_steps(first, loaded[0], 2) == whole[:2]
    first.journal.close()
    again = make_source(journal="b")
    assert take_steps(again, loaded[0], 4, start=1) == whole[1:]
    again.journal.close()
    read = [make_source(journal=name).journal for name in ("a", "b")]
    assert len(read[0]) == 4
    texts = [{key: one[key] for key in one.keys()} for one in read]  # noqa: SIM118  # no dict
    assert texts[0] == texts[1]


def test_a_lost_journal_is_not_made_up(make_source, loaded):
    with pytest.raises(IntegrityError) as caught:
        take_steps(make_source(journal="gone"), loaded[0], 3, start=2)
    assert caught.value.code == "distill.rollouts-lost"


def test_rollouts_serve_several_steps_and_records_beside_them(make_source, loaded, lessons):
    source = make_source(student_share=1.0, reuse=2, beside_records=True, warm_up=0.0, steps=4)
    one, two, three, _ = take_steps(source, loaded[0], 4)
    assert one[0][:3] == two[0][:3] != three[0][:3]
    assert len(one[0]) == 6
    batch = source.load(range(6))
    assert batch.rollout.sum() == sum(len(x.positions) for x in source._items[:3])
    cold = take_steps(make_source(journal="c", student_share=1.0, warm_up=0.5), loaded[0], 4)
    assert [notes["from_student"] for _, notes in cold] == [0, 0, 1, 1]


def test_a_block_survives_json():
    one = Rollout(
        "rec", np.arange(3), np.array([True, False, True]), np.float32([-1, -2, -3]),
        np.float32([1, 2, 1]), True, 0.5, np.float32([-1, -1, -1]),
    )  # fmt: skip
    block = RolloutBlock("replay", 0.1, 2.5, (one,), ((3, 1),))
    again = RolloutBlock.from_json(json.loads(json.dumps(block.to_json())))
    assert again.to_json() == block.to_json()
    assert again.rollouts[0].own.tolist() == [True, False, True]


def make_rollout(ids, *, entropy=2.0):
    count = len(ids)
    zeros = np.zeros(count, np.float32)
    own = np.ones(count, np.bool_)
    return Rollout("rec", np.asarray(ids), own, zeros, zeros + 1, True, entropy)


def test_tells_once_that_text_collapses():
    assert measure_repetition([1, 2, 3, 4, 5, 6]) == 0
    assert measure_repetition([1, 2] * 20) > 0.9
    assert measure_repetition([1]) == 0
    watch = CollapseMonitor()
    good, bad = (
        summarize_rollouts([make_rollout(range(20))]),
        summarize_rollouts([make_rollout([7] * 20, entropy=0.01)]),
    )
    assert not any(watch.update(good) for _ in range(8))
    told = watch.update(bad)
    assert "repeats itself" in told
    assert "certain" in told
    assert not watch.update(bad)
    assert "short" in watch.update(summarize_rollouts([make_rollout([1, 2])]))
    assert summarize_rollouts([]) == {}
    assert not watch.update({})


@pytest.fixture
def make_recipe(teacher_folder, records_file):
    def make(**changes):
        fields = {
            "teacher": str(teacher_folder),
            "records": str(records_file),
            "student": {"keep": (0, 2, 3), "max_parameters": 0.85},
            "train": FAST,
            "rollout_policy": {"name": "on_policy", "max_new_tokens": 10},
            "fidelity": {"records": 0, "baseline": False, "answers": 0, "speed": False},
        }
        return build({**fields, **changes})

    return make


def test_a_run_leaves_its_rollouts_as_records_with_origin(make_recipe, do, teacher_folder):
    artifact, folder = do(
        make_recipe(
            rollout_policy={"name": "on_policy", "other_text": "teacher", "max_new_tokens": 24}
        )
    )
    found = list(read_records(folder / "output/rollouts.jsonl"))
    assert len(found) == 6 * 4
    by = {record.fields["by"] for record in found}
    assert by == {"student", "teacher"}
    known = {record.id for record in make_records(12)}
    for record in found:
        assert record.origin.kind == "synthetic"
        link = record.origin.chain[-1]
        assert link.method == "distill.rollout_policies.on_policy"
        assert link.parents == (record.fields["record"],)
        assert set(link.parents) <= known
        step = record.fields["step"]
        is_students = record.fields["by"] == "student"
        assert link.model.endswith(f"@{step}") is is_students
        assert record.fields["student_tokens"] == (record.fields["tokens"] if is_students else 0)
        assert record.messages[0].role == "user"
        assert record.messages[-1].role == "assistant"
        assert record.fields["finished"] or record.fields["tokens"] == 24
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {line["name"] for line in lines}
    assert {"rollout_tokens", "rollout_finished", "rollout_entropy", "rollout_repetition"} <= names
    assert any(entry.path == "output/rollouts.jsonl" for entry in artifact.files)
    assert read_artifact(folder).digest == artifact.digest


@pytest.mark.parametrize(
    "changes",
    [
        {
            "method": {"name": "distillm2"},
            "rollout_policy": {"name": "on_policy", "beside_records": True},
        },
        pytest.param(
            {"train": {**FAST, "lora": {"rank": 4, "dropout": 0.1}}}, marks=pytest.mark.slow
        ),
        {"train": {**FAST, "precision": "bfloat16"}, "method": "reverse_kl"},
        pytest.param(
            {"train": {**FAST, "gradient_checkpointing": True}, "method": "jsd"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_every_way_gives_the_same_bytes_twice(make_recipe, do, changes):
    rollouts = {"name": "on_policy", "max_new_tokens": 10, **changes.pop("rollout_policy", {})}
    recipe = make_recipe(**changes, rollout_policy=rollouts)
    assert do(recipe, "a")[0].digest == do(recipe, "b")[0].digest


def test_refuses_what_cannot_be(make_recipe, do, tmp_path):
    for settings in ({"targets": {"mode": "top_k"}}, {"rationale": {"form": "tasks"}}):
        with pytest.raises(ValueError, match="Extra inputs"):
            make_recipe(**settings)
    with pytest.raises(ValueError, match=r"use kind distill\.on_policy"):
        make_recipe(rollout_policy=None, method="distillm2")
    alone = [Record((Message("assistant", f"Text {n}."),), {"split": "train"}) for n in range(5)]
    write_records(tmp_path / "short.jsonl", alone)
    with pytest.raises(DataError) as caught:
        do(make_recipe(records=str(tmp_path / "short.jsonl"), fidelity={"records": 0}), "b")
    assert caught.value.code == "distill.no-prompts"


def test_says_which_records_cannot_prompt(make_recipe, do, tmp_path):
    records = make_records(12)
    odd = Record((Message("assistant", "Short."),), {"split": "train"})
    write_records(tmp_path / "mixed.jsonl", [*records, odd])
    artifact, folder = do(make_recipe(records=str(tmp_path / "mixed.jsonl")))
    assert "1 records have no prompt" in (folder / "events.jsonl").read_text()
    assert artifact.details["train"]["steps"] == 6


def test_marks_of_a_batch_follow_the_lessons(lessons, prompts, make_generator):
    one = make_generator().generate(prompts[:1], 0, 0.0)[0]
    mixed = replace(one, own=np.arange(len(one.ids)) % 2 == 0)
    rollout = mixed.to_tokenized(prompts[0], np.arange(len(one.ids), dtype=np.float32))
    batch = make_rollout_batch([lessons[0], rollout])
    count = len(lessons[0].positions)
    assert not batch.rollout[:count].any()
    assert batch.rollout[count:].tolist() == mixed.own.tolist()
    assert batch.sampling.credit[:count].abs().sum() == 0
    assert batch.sampling.rows(count, batch.valid).credit.tolist() == list(range(len(one.ids)))
    assert isinstance(rollout, TokenizedRecord)


def test_speculative_keeps_what_the_teacher_likes_and_says_how_likely_that_was():
    policy = ROLLOUT_POLICIES.build({"name": "speculative", "accept_top_k": 2})
    student = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).expand(40000, -1)
    teacher = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).expand(40000, -1)
    numbers = torch.from_numpy(np.random.default_rng(0).random((40000, 2)))
    turn = DecodeStep(
        0, 9, 0.0, student, teacher, lambda p, which: sample_tokens(p, numbers[:, which])
    )
    choice = policy.choose(turn)
    assert choice.own.double().mean() == pytest.approx(0.3, abs=0.01)  # 0.1 + 0.2
    assert (choice.tokens[choice.own] < 2).all()
    wanted = torch.tensor([0.1 + 0.7 * 0.4, 0.2 + 0.7 * 0.3, 0.7 * 0.2, 0.7 * 0.1])
    counts = torch.bincount(choice.tokens, minlength=4) / 40000
    torch.testing.assert_close(counts, wanted, atol=0.01, rtol=0)
    torch.testing.assert_close(choice.chances, wanted.double()[choice.tokens])


def test_a_teachers_prefix_falls_and_the_student_goes_on():
    policy = ROLLOUT_POLICIES.build({"name": "teacher_prefix", "until": 0.5, "max_new_tokens": 10})
    lengths = [
        sum(policy.needs_teacher_at(at, share) for at in range(10)) for share in (0, 0.25, 0.6)
    ]
    assert lengths == [10, 5, 0]


def test_a_mixture_is_drawn_and_weighted(make_generator, prompts):
    model = copy.deepcopy(make_generator().student.model)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.3)
    kept = make_generator("mixed_sampling", model=model, teacher_share=0.4)
    texts = kept.generate(prompts, 0, 0.0)
    assert all(one.own.all() for one in texts)
    weights = np.concatenate([one.importance for one in texts])
    assert (weights <= 1 / 0.6 + 1e-4).all()  # q / (a p + (1 - a) q) is bounded
    assert weights.std() > 0.01
    prefixed = make_generator("teacher_prefix", model=model, ends=()).generate(prompts, 0, 0.4)
    assert {int((~one.own).sum()) for one in prefixed} == {6}
    assert all(one.own[6:].all() for one in prefixed)


def test_replay_follows_the_held_out_loss():
    policy = ROLLOUT_POLICIES.build({"name": "replay", "buffer": 4, "validate_every": 5})
    assert policy.adapt(0.0, None, 3.0) == 0.0
    assert policy.adapt(0.0, 3.0, 3.05) == 0.0
    assert policy.adapt(0.0, 3.0, 3.2) == pytest.approx(0.1)
    assert policy.adapt(0.95, 3.0, 3.2) == 1.0
    assert [step for step in range(12) if policy.validates(step, 12)] == [0, 5, 10]
    assert policy.decide(StepState(5, 10, 0.6, level=0.5)) == "records"
    assert policy.decide(StepState(5, 10, 0.4, level=0.5, kept=2)) == "student"
    assert policy.decide(StepState(5, 10, 0.4, level=0.5, kept=4)) == "replay"
    assert policy.decide(StepState(5, 10, 0.2, level=0.5, kept=4)) == "student"
    assert policy.decide(StepState(9, 10, 0.2, level=0.5, kept=4)) == "replay"
    rising = ROLLOUT_POLICIES.build({"name": "replay", "buffer": 4, "schedule": "increasing"})
    assert rising.decide(StepState(9, 10, 0.2, level=0.5, kept=4)) == "student"


def test_replay_learns_again_from_what_it_kept(make_source, loaded):
    fields = {"level": 1.0, "buffer": 4, "validate_every": 3}
    losses = iter([1.0, 2.0, 2.0, 9.0])
    source = make_source("replay", journal="r", steps=8, **fields)
    source._validate = lambda model, ranks: next(losses)
    whole = take_steps(source, loaded[0], 8)
    kinds = [source.journal[str(step)]["text_from"] for step in range(8)]
    assert kinds[0] == kinds[1] == "student"
    assert "replay" in kinds
    at = kinds.index("replay")
    seen = [ids for lessons, _ in whole[:at] for ids in lessons]
    assert all(ids in seen for ids in whole[at][0])
    again = make_source("replay", journal="r", steps=8, **fields)
    assert take_steps(again, loaded[0], 8, start=5) == whole[5:]


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout_policy": {"name": "replay", "level": 0.8, "buffer": 6, "validate_every": 2}},
        {"rollout_policy": {"name": "speculative"}, "method": "forward_kl"},
        pytest.param(
            {"rollout_policy": {"name": "teacher_prefix"}, "method": "jsd"}, marks=pytest.mark.slow
        ),
        {
            "rollout_policy": {"name": "mixed_sampling", "beside_records": True, "reuse": 2},
            "method": {"name": "minillm", "ce_weight": 0.1},
        },
        {
            "rollout_policy": {"name": "on_policy", "student_share": 1.0},
            "method": "sampled_reverse_kl",
        },
    ],
    ids=str,
)
def test_every_policy_runs_to_the_same_bytes(make_recipe, do, changes):
    rollouts = {"max_new_tokens": 10, **changes["rollout_policy"]}
    recipe = make_recipe(**{**changes, "rollout_policy": rollouts})
    artifact, folder = do(recipe, "a")
    assert artifact.digest == do(recipe, "b")[0].digest
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if recipe.method.needs_scores:
        assert "sampled_reverse_kl" in {line["name"] for line in lines}
        gaps = [line["value"] for line in lines if line["name"] == "likelihood_gap"]
        assert gaps[0] < 1e-4  # what wrote and what learns are one model


def test_refuses_a_policy_gradient_without_draws_of_its_own(make_recipe, do, tmp_path):
    with pytest.raises(ValueError, match="mixed_sampling"):
        make_recipe(method="minillm", rollout_policy={"name": "speculative"})
    with pytest.raises(ValueError, match="has no loss on text"):
        make_recipe(method="sampled_reverse_kl")
    train_only = [record for record in make_records(12) if record.fields["split"] == "train"]
    write_records(tmp_path / "train.jsonl", train_only)
    with pytest.raises(DataError) as caught:
        do(make_recipe(records=str(tmp_path / "train.jsonl"), rollout_policy={"name": "replay"}))
    assert caught.value.code == "distill.no-held-out"


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "on_policy", "student_share": 0},
        {"name": "mixed_sampling", "student_share": 0},
        {"name": "replay", "level": 0, "level_step": 0},
    ],
)
def test_a_policy_that_never_uses_generated_text_is_refused(settings):
    with pytest.raises(ValueError, match="no step would use generated text"):
        ROLLOUT_POLICIES.build(settings)
    with pytest.raises(ValueError, match="greater than 0"):
        FEATURE_LOSSES.build({"name": "attention", "weight": 0})


def test_a_run_that_warms_up_to_its_end_says_so_in_its_card(make_recipe, do):
    recipe = make_recipe(rollout_policy={"name": "on_policy", "warm_up": 0.99})
    _, folder = do(recipe, "a")
    assert "No step used generated text." in (folder / "output" / "README.md").read_text()
    assert "No step used generated text." in (folder / "events.jsonl").read_text()


def test_generated_text_of_a_stopped_run_counts_when_it_goes_on(make_source, loaded):
    first = make_source(journal="stopped")
    assert not first.has_generated
    take_steps(first, loaded[0], 2)
    first.journal.close()
    assert make_source(journal="stopped").has_generated
