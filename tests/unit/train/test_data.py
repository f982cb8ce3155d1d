from collections import Counter
from dataclasses import dataclass, replace

from stillroom.records import Message, Record, write_records
from stillroom.train.data import RecordSource, order_records, split_records


@dataclass
class Group:
    record_ids: list
    valid: int = 1
    tokens: int = 1


def make(lengths, *, batch_size=4, micro_tokens=20, seed=0):
    return RecordSource(
        list(range(len(lengths))),
        ids=[str(n) for n in range(len(lengths))],
        lengths=lengths,
        valid=[length - 1 for length in lengths],
        load=lambda group: Group(list(group)),
        batch_size=batch_size,
        micro_tokens=micro_tokens,
        seed=seed,
    )


def test_every_epoch_has_every_record_once():
    source = make([5] * 10, batch_size=4)
    seen = [number for step in range(5) for group in source.plan(step) for number in group]
    assert set(Counter(seen).values()) == {2}
    assert sorted(seen[:10]) != seen[:10]


def test_any_step_can_be_asked_for_in_any_order():
    lengths = [3 + n % 7 for n in range(23)]
    forward = [make(lengths).plan(step) for step in range(40)]
    source = make(lengths)
    assert [source.plan(step) for step in reversed(range(40))] == forward[::-1]


def test_micro_batches_hold_the_padded_limit_and_lose_nothing():
    source = make([2, 19, 7, 7, 30, 1], batch_size=6, micro_tokens=20)
    plan = source.plan(0)
    assert sorted(number for group in plan for number in group) == [0, 1, 2, 3, 4, 5]
    widths = [max([2, 19, 7, 7, 30, 1][n] for n in group) * len(group) for group in plan]
    assert all(width <= 20 or len(group) == 1 for width, group in zip(widths, plan, strict=True))
    assert sum(source.valid(group) for group in plan) == 66 - 6
    assert source.load(plan[0]).record_ids == plan[0]


def test_identity_follows_data_order_and_seed():
    assert make([5, 6]).identity == make([5, 6]).identity
    assert make([5, 6]).identity != make([6, 5]).identity
    assert make([5, 6]).identity != make([5, 6], seed=1).identity


def test_the_first_held_out_records_are_of_every_task_of_a_file_sorted_by_task(tmp_path):
    tasks = [task for task in ("sums", "names", "dates") for _ in range(40)]
    records = [
        Record((Message("user", f"{task} {n}?"), Message("assistant", "x")), {"task": task})
        for n, task in enumerate(tasks)
    ]
    first = order_records(records)[:16]
    assert {record.fields["task"] for record in first} == {"sums", "names", "dates"}
    assert order_records(records[::-1])[:16] == first
    held_out = [replace(one, fields={**one.fields, "split": "held_out"}) for one in records]
    write_records(tmp_path / "r.jsonl", [replace(records[0], fields={"split": "train"}), *held_out])
    split = split_records(tmp_path / "r.jsonl")
    assert {record.fields["task"] for record in split.held_out[:16]} == {"sums", "names", "dates"}
