from collections import Counter

from tests.unit.synth.conftest import make_passages

from stillroom.synth.plan import order_items, plan_seeds, split_documents


def test_share_of_documents_is_held_out():
    split = split_documents([f"doc-{number}" for number in range(2000)], 0.2, seed=0)
    assert 0.17 < Counter(split.values())["held_out"] / 2000 < 0.23


def test_both_sides_are_non_empty_from_two_documents_on():
    for seed in range(50):
        assert set(split_documents(["a", "b"], 0.01, seed).values()) == {"train", "held_out"}
        assert set(split_documents(["a", "b"], 0.99, seed).values()) == {"train", "held_out"}


def test_a_single_document_is_trained_on():
    for seed in range(50):
        assert split_documents(["a"], 0.5, seed) == {"a": "train"}
    assert split_documents([], 0.5, 0) == {}


def test_share_of_zero_holds_nothing_out():
    assert set(split_documents(["a", "b", "c"], 0.0, 1).values()) == {"train"}


def test_another_seed_splits_otherwise():
    ids = [f"doc-{number}" for number in range(100)]
    assert split_documents(ids, 0.5, 1) != split_documents(ids, 0.5, 2)


def test_every_document_comes_before_a_second_passage_of_any():
    passages = make_passages()
    documents = [passage.document_id for passage in order_items(passages, 0)]
    distinct = len(set(documents))
    assert len(set(documents[:distinct])) == distinct
    assert sorted(documents) == sorted(passage.document_id for passage in passages)


def test_order_does_not_depend_on_the_order_of_the_file():
    passages = make_passages()
    assert order_items(passages, 3) == order_items(passages[::-1], 3)


def test_units_repeat_all_passages_per_attempt_with_distinct_keys():
    passages = make_passages()
    seeds = list(plan_seeds(passages, "train", seed=0, attempts=2))
    assert len({seed.key for seed in seeds}) == 2 * len(passages)
    assert [seed.attempt for seed in seeds] == [0] * len(passages) + [1] * len(passages)
    assert len({seed.derive(0) for seed in seeds}) == len(seeds)
