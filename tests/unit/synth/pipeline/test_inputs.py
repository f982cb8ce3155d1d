from collections import Counter

import pytest
from tests.unit.synth.conftest import make_passage, make_passages

from stillroom.errors import DataError
from stillroom.records import Document, Message, Record, write_records
from stillroom.synth.jobs.records import RecordsRecipe
from stillroom.synth.pipeline.executor import to_record
from stillroom.synth.pipeline.inputs import (
    iter_work_items,
    order_items,
    read_inputs,
    split_documents,
    split_items,
)
from stillroom.text.chunkers.heading import Heading


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


TEXTS = {
    f"note-{number}": f"Note {number} of the still.\n\nIt was run {number} times.\n\nNo more."
    for number in range(60)
}


def cut(name, text):
    """Return a document's passages as an index has them, one overlapping the next."""
    document = Document(f"{name}.md", "0" * 64, "text/markdown", text)
    chunker = Heading(size=8, overlap=3, min_size=1)
    return list(chunker.chunk(document, count=lambda piece: len(piece.split())))


@pytest.mark.parametrize(
    "copy", [str, str.upper, lambda text: text.replace("\n\n", "\n  \n\n").replace(" of", "  of")]
)
def test_copies_of_a_document_stand_on_one_side(copy):
    names = {name: [name, f"copy-of-{name}", f"third-{name}"] for name in TEXTS}
    passages = {
        one: cut(one, TEXTS[name] if one == name else copy(TEXTS[name]))
        for name, alike in names.items()
        for one in alike
    }
    sides = split_items([item for own in passages.values() for item in own], 0.5, seed=0)
    stands = {name: {sides[passages[one][0].document_id] for one in names[name]} for name in TEXTS}
    assert all(len(found) == 1 for found in stands.values())
    assert {"train", "held_out"} == set.union(*stands.values())
    more = [item for name in TEXTS for item in cut(f"fourth-{name}", TEXTS[name])]
    again = split_items([item for own in passages.values() for item in own] + more, 0.5, seed=0)
    assert sides.items() <= again.items()


def test_documents_without_copies_stand_where_their_ids_say():
    passages = [item for name, text in TEXTS.items() for item in cut(name, text)]
    ids = {passage.document_id for passage in passages}
    assert split_items(passages, 0.3, seed=5) == split_documents(ids, 0.3, seed=5)
    copied = (
        make_passage("copied", "Quite another text."),
        make_passage("copy", "quite another TEXT."),
    )
    sides = split_items([*passages, *copied], 0.3, seed=5)
    assert {name: sides[name] for name in ids} == split_documents(ids, 0.3, seed=5)


def test_two_copies_alone_are_trained_on():
    for seed in range(20):
        copies = make_passage("a", "One text."), make_passage("b", "One  text.")
        assert set(split_items(copies, 0.5, seed).values()) == {"train"}


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
    seeds = list(iter_work_items(passages, "train", seed=0, attempts=2))
    assert len({seed.key for seed in seeds}) == 2 * len(passages)
    assert [seed.attempt for seed in seeds] == [0] * len(passages) + [1] * len(passages)
    assert len({seed.derive(0) for seed in seeds}) == len(seeds)


def answered(number, split=None, **fields):
    more = {} if split is None else {"split": split}
    turns = (Message("user", f"Why {number}?"), Message("assistant", f"Because of {number}."))
    return Record(turns, {**fields, **more})


def plan_of(tmp_path, rows, **settings):
    write_records(tmp_path / "seeds.jsonl", rows)
    made = {"generator": "evol_instruct"} if "pipeline" not in settings else {}
    recipe = RecordsRecipe.model_validate(
        {"seeds": str(tmp_path / "seeds.jsonl"), **({"pipeline": made} if made else {}), **settings}
    )
    return read_inputs(recipe)


def texts_of(inputs, side, name="seeds"):
    return {item.messages[0].content for item in inputs.items[name, side]}


FILTERS_ONLY = {"steps": {"clean": {"from": "seeds", "filters": ["shape"]}}}
BEYOND = "test rows beyond the share of held_out"
TESTS = ["test", "test_sft", "Validation", "dev", "eval-gen", "held_out", "val", "test.clean"]


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_rows_that_a_file_marks_as_test_make_no_training_records(tmp_path, held_out):
    names = [*TESTS, "train", "train_sft", "Training"]
    rows = [answered(number, name) for number, name in enumerate(names)]
    rows += [answered(number, name) for number, name in enumerate(["web", "testimonials"], 50)]
    inputs = plan_of(tmp_path, rows, held_out=held_out)
    tests = {f"Why {number}?" for number in range(len(TESTS))}
    train = {f"Why {number}?" for number in range(len(TESTS), len(names))}
    assert not texts_of(inputs, "train") & tests
    assert train <= texts_of(inputs, "train")
    kept = tests & texts_of(inputs, "held_out")
    if held_out:
        assert kept
    else:
        assert len(texts_of(inputs, "train")) == 5
    assert inputs.sources["seeds"].dropped == {BEYOND: len(TESTS) - len(kept)}
    assert len(inputs.sides) == len(rows) - len(TESTS) + len(kept)


def test_own_test_rows_are_held_out_up_to_the_share(tmp_path):
    tests = [answered(number, "test") for number in range(200)]
    rows = [*tests, *(answered(number, "train") for number in range(200, 240))]
    sizes = {}
    for held_out in (0.01, 0.2, 0.5, 0.9):
        inputs = plan_of(tmp_path, rows, held_out=held_out)
        assert len(texts_of(inputs, "train")) == 40
        sizes[held_out] = len(texts_of(inputs, "held_out"))
        assert inputs.sources["seeds"].dropped.get(BEYOND, 0) == 200 - sizes[held_out]
    assert sizes == {0.01: 1, 0.2: 10, 0.5: 40, 0.9: 200}
    small, large = (
        texts_of(plan_of(tmp_path, rows, held_out=held_out), "held_out") for held_out in (0.2, 0.5)
    )
    assert small < large
    filtered = plan_of(tmp_path, rows, held_out=0.2, pipeline=FILTERS_ONLY)
    assert len(texts_of(filtered, "held_out")) == 200


@pytest.mark.parametrize(
    ("num_tests", "held_out", "dropped"), [(20, 0.3, 3), (2, 0.3, 0), (8, 0.2, 0)]
)
def test_own_test_rows_fill_the_share_before_unmarked_rows(tmp_path, num_tests, held_out, dropped):
    tests = [answered(number, "test") for number in range(num_tests)]
    rows = [*tests, *(answered(number) for number in range(50, 90))]
    inputs = plan_of(tmp_path, rows, held_out=held_out)
    kept = texts_of(inputs, "held_out") & {f"Why {number}?" for number in range(num_tests)}
    assert len(kept) == num_tests - dropped
    assert inputs.sources["seeds"].dropped.get(BEYOND, 0) == dropped
    others = len(texts_of(inputs, "held_out")) - len(kept)
    assert len(texts_of(inputs, "train")) == 40 - others
    assert others == 0 if dropped else others / 40 < held_out + 0.1


def test_test_rows_of_one_source_leave_the_share_of_another(tmp_path):
    write_records(
        tmp_path / "s.jsonl", [answered(n, "test" if n < 30 else None) for n in range(40)]
    )
    index = [answered(number) for number in range(50, 90)]
    write_records(tmp_path / "i.jsonl", index)
    step = {"generator": "rewrite"}
    steps = {"a": {"from": "seeds", **step}, "b": {"from": "index", **step}}
    paths = {"seeds": str(tmp_path / "s.jsonl"), "index": str(tmp_path / "i.jsonl")}
    recipe = RecordsRecipe.model_validate({**paths, "held_out": 0.3, "pipeline": {"steps": steps}})
    inputs = read_inputs(recipe)
    assert len(inputs.items["seeds", "train"]) == 10
    assert len(inputs.items["seeds", "held_out"]) == 4
    assert len(inputs.items["index", "held_out"]) > 5


def test_a_copy_of_a_row_marked_train_is_not_held_out(tmp_path):
    rows = [answered(99, "test"), *(answered(n, "train", copy="a") for n in range(30))]
    rows += [answered(n, copy="b") for n in range(30)]
    inputs = plan_of(tmp_path, rows, held_out=0.5)
    assert not texts_of(inputs, "train") & texts_of(inputs, "held_out")


@pytest.mark.parametrize("held_out", [0.0, 0.2])
@pytest.mark.parametrize("made", ["seeds", "index"])
def test_a_source_of_test_rows_alone_is_refused_where_it_is_made_of(tmp_path, made, held_out):
    other = {"seeds": "index", "index": "seeds"}[made]
    for name, split in ((made, "test"), (other, "train")):
        start = 0 if name == "seeds" else 50
        rows = [answered(start + number, split) for number in range(5)]
        write_records(tmp_path / f"{name}.jsonl", rows)
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("seeds", "index")}
    step = {"from": made, "generator": "rewrite"}
    both = {"make": step, "more": {"from": other, "generator": "rewrite"}}
    recipe = RecordsRecipe.model_validate(
        {**paths, "held_out": held_out, "pipeline": {"steps": both}}
    )
    with pytest.raises(DataError, match=f"{made}.jsonl are test rows"):
        read_inputs(recipe)


def test_test_rows_that_are_only_filtered_stay_beside_a_source_that_is_made_of(tmp_path):
    write_records(tmp_path / "s.jsonl", [answered(number, "test") for number in range(5)])
    write_records(tmp_path / "i.jsonl", [answered(number) for number in range(50, 55)])
    steps = {
        "clean": {"from": "seeds", "filters": ["shape"]},
        "make": {"from": "index", "generator": "rewrite"},
    }
    paths = {"seeds": str(tmp_path / "s.jsonl"), "index": str(tmp_path / "i.jsonl")}
    recipe = RecordsRecipe.model_validate({**paths, "held_out": 0, "pipeline": {"steps": steps}})
    inputs = read_inputs(recipe)
    assert len(inputs.items["seeds", "train"]) == 5
    assert len(inputs.items["index", "train"]) == 5


def test_a_document_or_a_text_of_a_test_row_is_not_trained_on(tmp_path):
    rows = [answered(0, "test", document_id="d"), answered(1, "train", document_id="d")]
    rows += [answered(0, "train"), answered(0), *map(answered, range(2, 9))]
    for held_out in (0.0, 0.3):
        inputs = plan_of(tmp_path, rows, held_out=held_out)
        assert not texts_of(inputs, "train") & {"Why 1?"}
    assert "Why 0?" not in texts_of(plan_of(tmp_path, rows[:1] + rows[2:], held_out=0), "train")


def test_texts_of_test_rows_are_no_passages_to_write_about(tmp_path):
    rows = [answered(0, "test"), *map(answered, range(1, 5))]
    write_records(tmp_path / "r.jsonl", rows)
    recipe = RecordsRecipe.model_validate({"index": str(tmp_path / "r.jsonl"), "held_out": 0})
    found = {item.text for item in read_inputs(recipe).items["index", "train"]}
    assert len(found) == 4
    assert not any("Why 0?" in text for text in found)


def test_files_without_test_rows_are_split_as_before(tmp_path):
    plain, named = (
        [answered(number, split, document_id=f"d{number}") for number in range(30)]
        for split in (None, "train")
    )
    sides = [plan_of(tmp_path, rows, held_out=0.3).sides for rows in (plain, named)]
    assert sides[0] == sides[1]
    assert set(sides[0].values()) == {"train", "held_out"}


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_test_rows_alone_are_refused_where_records_are_made_and_filtered_otherwise(
    tmp_path, held_out
):
    rows = [answered(number, "test") for number in range(20)]
    with pytest.raises(DataError) as caught:
        plan_of(tmp_path, rows, held_out=held_out)
    assert caught.value.code == "synth.test-seeds"
    inputs = plan_of(tmp_path, rows, held_out=held_out, pipeline=FILTERS_ONLY)
    kept = texts_of(inputs, "train") | texts_of(inputs, "held_out")
    assert len(kept) == 20
    assert len(texts_of(inputs, "train")) > 10
    assert to_record(rows[0], "train").fields["split"] == "test"


def test_filtered_rows_keep_their_side_under_its_usual_name(tmp_path):
    names = ["train_sft", "test_sft", "web", None]
    rows = [answered(number, name) for number, name in enumerate(names)]
    inputs = plan_of(tmp_path, rows, held_out=0.3, pipeline=FILTERS_ONLY)
    sides = {
        item.fields.get("split"): to_record(item, side).fields["split"]
        for side in ("train", "held_out")
        for item in inputs.items["seeds", side]
    }
    assert sides["train_sft"] == "train"
    assert sides["test_sft"] == "held_out"
    assert sides["web"] == "web"
