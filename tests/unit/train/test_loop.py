import json

import pytest
import torch

from stillroom.errors import Cancelled, DataError, IntegrityError
from stillroom.train.data import RecordSource
from stillroom.train.loop import STATE_FILE, Loss, make_optimizer, train
from stillroom.train.settings import TrainSettings

SETTINGS = TrainSettings(
    steps=12, learning_rate=0.02, warmup=0.1, precision="float32", threads=1, save_every_s=1e9
)


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_learns_and_logs(make_problem, make_job):
    model, source, objective = make_problem()
    job = make_job()
    result = train(model, source, objective, SETTINGS, job)
    assert result.last_loss < result.first_loss
    assert (result.steps, result.ranks, result.precision) == (12, 1, "float32")
    lines = [json.loads(line) for line in (job.work / "metrics.jsonl").read_text().splitlines()]
    names = {line["name"] for line in lines}
    assert names == {"loss", "absolute", "grad_norm", "learning_rate", "tokens_per_s"}
    assert [line["step"] for line in lines if line["name"] == "loss"] == list(range(1, 13))
    assert result.positions == sum(
        source.valid(group) for step in range(12) for group in source.plan(step)
    )


def test_the_throughput_is_named_for_what_is_trained_on(make_problem, make_job):
    model, source, objective = make_problem()
    job = make_job()
    train(model, source, objective, SETTINGS, job, unit="inputs")
    told = (job.work / "metrics.jsonl").read_text()
    assert "inputs_per_s" in told
    assert "tokens" not in told


def test_the_split_into_micro_batches_changes_nothing(make_problem, make_job):
    found = []
    for micro_tokens in (10_000, 6, 1):
        model, source, objective = make_problem(micro_tokens=micro_tokens)
        result = train(model, source, objective, SETTINGS, make_job(f"job{micro_tokens}"))
        found.append((weights(model), result.last_loss))
    for other, loss in found[1:]:
        assert loss == pytest.approx(found[0][1], rel=1e-4)
        for name, value in found[0][0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resumes_to_the_same_bytes(make_problem, make_job, dropout):
    model, source, objective = make_problem(dropout=dropout)
    whole = train(model, source, objective, SETTINGS, make_job("whole"))

    class KilledError(Exception):
        pass

    def kill(step, _):
        if step == 7:
            raise KilledError

    again, source, objective = make_problem(dropout=dropout)
    job = make_job("part")
    every = SETTINGS.model_copy(update={"save_every_s": 0.0})
    with pytest.raises(KilledError):
        train(again, source, objective, every, job, on_step=kill)
    fresh, source, objective = make_problem(dropout=dropout)
    steps = []
    resumed = train(
        fresh, source, objective, every, job, on_step=lambda step, _: steps.append(step)
    )
    assert steps == list(range(7, 13))  # step 7 was done, but not saved, before the kill
    assert same(weights(fresh), weights(model))
    assert (resumed.last_loss, resumed.first_loss) == (whole.last_loss, whole.first_loss)
    assert resumed.tokens == whole.tokens


def test_leaves_no_trace_in_the_caller(make_problem, make_job):
    model, source, objective = make_problem(dropout=0.5)
    model.eval()
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(model, source, objective, SETTINGS, make_job())
    assert torch.equal(torch.rand(1), wanted)
    assert not model.training
    assert torch.get_num_threads() == threads


def test_cancels_between_steps_and_goes_on(make_problem, make_job):
    model, source, objective = make_problem()
    whole = train(model, source, objective, SETTINGS, make_job("whole"))
    again, source, objective = make_problem()
    job = make_job("part")
    with pytest.raises(Cancelled):
        train(
            again,
            source,
            objective,
            SETTINGS,
            job,
            on_step=lambda step, _: job.cancel() if step == 4 else None,
        )
    job.close()
    job = make_job("part", resume=True)
    fresh, source, objective = make_problem()
    done = []
    result = train(
        fresh, source, objective, SETTINGS, job, on_step=lambda step, _: done.append(step)
    )
    assert done[0] == 5
    assert same(weights(fresh), weights(model))
    assert result.last_loss == whole.last_loss


def test_cancels_between_the_micro_batches_of_a_step_and_goes_on(make_problem, make_job):
    model, source, objective = make_problem(micro_tokens=1, dropout=0.3)
    whole = train(model, source, objective, SETTINGS, make_job("whole"))
    again, source, _ = make_problem(micro_tokens=1, dropout=0.3)
    job, read = make_job("part"), []

    def stop(model, batch):
        read.append(batch)
        if len(read) == 6 * 4 + 2:  # the second of the six micro-batches of step 5
            job.cancel()
        return objective(model, batch)

    with pytest.raises(Cancelled):
        train(again, source, stop, SETTINGS, job)
    assert len(read) == 6 * 4 + 2
    job.close()
    fresh, source, objective = make_problem(micro_tokens=1, dropout=0.3)
    result = train(fresh, source, objective, SETTINGS, make_job("part", resume=True))
    assert same(weights(fresh), weights(model))
    assert result.last_loss == whole.last_loss


def test_a_step_that_moves_averages_is_not_saved_half_taken(make_problem, make_job):
    read, stop_at = [], 6 * 4 + 2  # the second of the six micro-batches of step 5

    def run(job, stops=False):
        model, source, objective = make_problem(micro_tokens=1)
        model.register_buffer("seen", torch.zeros(()))

        def count(model, batch):
            model.seen += 1
            read.append(batch)
            if stops and len(read) == stop_at:
                job.cancel()
            return objective(model, batch)

        read.clear()
        try:
            train(model, source, count, SETTINGS, job)
        finally:
            job.close()
        return model

    whole = run(make_job("whole"))
    with pytest.raises(Cancelled):
        run(make_job("part"), stops=True)
    resumed = run(make_job("part", resume=True))
    assert torch.equal(resumed.seen, whole.seen)
    assert same(weights(resumed), weights(whole))


def test_a_loss_that_is_not_finite_names_step_and_records(make_problem, make_job):
    model, source, objective = make_problem(poison=11, batch_size=2, micro_tokens=1)
    with pytest.raises(DataError) as caught:
        train(model, source, objective, SETTINGS, make_job())
    assert caught.value.code == "train.loss-not-finite"
    step = next(s for s in range(12) if any(11 in group for group in source.plan(s)))
    assert str(caught.value) == (
        f"records 11: the loss of optimizer step {step + 1} is not finite  "
        "[train.loss-not-finite]\n  expected a finite number\n  next: lower train.learning_rate, "
        "set train.precision to float32, or remove those records"
    )


def test_a_gradient_that_is_not_finite_stops(make_problem, make_job):
    model, source, objective = make_problem()
    model.outer.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(DataError) as caught:
        train(model, source, objective, SETTINGS, make_job())
    assert caught.value.code == "train.gradient-not-finite"


def test_refuses_the_state_of_another_run(make_problem, make_job):
    model, source, objective = make_problem()
    job = make_job()
    train(model, source, objective, SETTINGS, job)
    other = SETTINGS.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(DataError) as caught:
        train(model, source, objective, other, job)
    assert caught.value.code == "train.other-run"


def test_refuses_a_damaged_state(make_problem, make_job):
    model, source, objective = make_problem()
    job = make_job()
    (job.scratch / STATE_FILE).write_bytes(b"not a state")
    with pytest.raises(IntegrityError) as caught:
        train(model, source, objective, SETTINGS, job)
    assert caught.value.code == "train.state-damaged"


def test_refuses_to_train_on_nothing(make_problem, make_job):
    model, _, objective = make_problem()
    empty = RecordSource(
        [], ids=[], lengths=[], valid=[], load=list, batch_size=1, micro_tokens=1, seed=0
    )
    with pytest.raises(DataError) as caught:
        train(model, empty, objective, SETTINGS, make_job())
    assert caught.value.code == "train.no-records"


def test_only_matrices_decay(make_problem):
    model, _, _ = make_problem()
    optimizer = make_optimizer(list(model.parameters()), TrainSettings(weight_decay=0.5))
    for group in optimizer.param_groups:
        dimensions = {value.ndim for value in group["params"]}
        assert (group["weight_decay"] == 0.5) == (dimensions == {2})


def test_frozen_parameters_stay(make_problem, make_job):
    model, source, objective = make_problem()
    model.inner.requires_grad_(False)
    before = weights(model)
    train(model, source, objective, SETTINGS, make_job())
    after = weights(model)
    assert torch.equal(before["inner.weight"], after["inner.weight"])
    assert not torch.equal(before["outer.weight"], after["outer.weight"])


def test_clips_the_gradient(make_problem, make_job):
    model, source, objective = make_problem()
    job = make_job()
    tight = SETTINGS.model_copy(update={"max_grad_norm": 1e-9, "weight_decay": 0.0, "epsilon": 1.0})
    before = weights(model)
    train(model, source, objective, tight, job)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-7)


def test_a_run_whose_loss_has_no_gradient_says_that_nothing_was_learned(make_problem, make_job):
    model, source, objective = make_problem()
    before = weights(model)

    def flat(network, batch):
        return Loss(objective(network, batch).total * 0)

    settings = SETTINGS.model_copy(update={"steps": 2, "weight_decay": 0.0})
    told = []
    for job, loss in ((make_job(), flat), (make_job("other"), objective)):
        train(model, source, loss, settings, job)
        told.append((job.work / "events.jsonl").read_text())
        assert same(before, weights(model)) == (loss is flat)
    assert "train: the gradient was zero in every step" in told[0]
    assert "warning" not in told[1]
    settings = settings.model_copy(update={"weight_decay": 0.1})
    before = weights(model)
    assert not train(model, source, flat, settings, make_job("decayed")).had_gradient
    assert not same(before, weights(model))
    assert train(model, source, objective, settings, make_job("taught")).had_gradient


def test_a_learning_rate_that_changes_no_weight_is_said_after_a_stop_too(make_problem, make_job):
    tiny = SETTINGS.model_copy(
        update={"steps": 3, "weight_decay": 0.0, "learning_rate": 1e-20, "warmup": 0.0}
    )
    for rate, is_said in ((1e-20, True), (1e-3, False)):
        model, source, objective = make_problem()
        job = make_job(f"rate-{rate}")
        settings = tiny.model_copy(update={"learning_rate": rate})
        for _ in range(2):  # the second run goes on after the last step
            train(model, source, objective, settings, job)
        text = (job.work / "events.jsonl").read_text()
        assert text.count("no weight has changed") == 2 * is_said
