import json

import pytest
from tests.unit.synth.conftest import Shelf, collect, make_passages, make_seed

from stillroom.errors import DataError, RecipeError
from stillroom.jobs import Job
from stillroom.recipes import parse_recipe
from stillroom.records import Message, Record, read_records, write_records
from stillroom.synth.interfaces import Generator
from stillroom.synth.jobs.records import JOB_KIND, RecordsRecipe
from stillroom.synth.output.rejected import read_rejected
from stillroom.synth.pipeline.inputs import order_items
from stillroom.synth.seeds import read_seeds, read_taxonomy
from stillroom.synth.types import (
    GenerationFailure,
    GenerationResult,
    NoSeed,
    RejectedRecord,
    Topic,
    WorkItem,
    get_document_id,
    get_item_text,
    has_unclear_split,
    read_split,
)
from stillroom.testing import scripted_model

TREE = """
license: CC0-1.0
origin: human
mathematics:
  description: numbers and their laws
  algebra:
    - linear equations
    - quadratic equations
  geometry:
    description: of the plane
    examples:
      - {question: What is a square?, answer: Four equal sides at right angles.}
cooking: {topics: [bread, soup]}
"""


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_taxonomy_gives_its_leaves_with_their_paths_in_order(tmp_path):
    topics = read_taxonomy(write(tmp_path / "tree.yaml", TREE))
    assert [topic.path for topic in topics] == [
        ("mathematics", "algebra", "linear equations"),
        ("mathematics", "algebra", "quadratic equations"),
        ("mathematics", "geometry"),
        ("cooking", "bread"),
        ("cooking", "soup"),
    ]
    assert topics[2].examples[0]["question"] == "What is a square?"
    assert topics[2].description == "of the plane"
    assert {topic.origin.license for topic in topics} == {"CC0-1.0"}
    assert topics[0].source.endswith("tree.yaml:7:7")


def test_a_folder_of_instructlab_is_a_taxonomy(tmp_path):
    leaf = tmp_path / "knowledge" / "animals" / "bees"
    leaf.mkdir(parents=True)
    write(
        leaf / "qna.yaml",
        "version: 3\ncreated_by: someone\ntask_description: about bees\nseed_examples:\n"
        "  - context: Bees make wax.\n    questions_and_answers:\n"
        "      - {question: What do bees make?, answer: Wax.}\n",
    )
    (topic,) = read_seeds(str(tmp_path), ("topics",)).items
    assert topic.path == ("knowledge", "animals", "bees")
    assert topic.examples == (
        {"question": "What do bees make?", "answer": "Wax.", "context": "Bees make wax."},
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("- a\n- b\n", "not a mapping"),
        ("a: {examples: [{answer: x}]}\n", "no question"),
        ("a: [[b]]\n", "has no name"),
        ("a: {topics: b}\n", "list or a mapping"),
        ("a: {examples: 3}\n", "not a list"),
        ("a: {examples: [{questions_and_answers: x}]}\n", "not a list of pairs"),
        ("a: {examples: [{questions_and_answers: [x]}]}\n", "not a list of pairs"),
        ("a: [\n", "cannot be read"),
        ("a: 1\na: 2\n", "cannot be read"),
    ],
)
def test_a_broken_taxonomy_is_refused_with_its_line(tmp_path, text, what):
    with pytest.raises(DataError, match=what) as caught:
        read_taxonomy(write(tmp_path / "tree.yaml", text))
    assert caught.value.problems[0].code == "synth.taxonomy"
    assert "tree.yaml" in caught.value.problems[0].where


def test_seeds_know_their_kind_and_refuse_another():
    topic = Topic(("a", "b"))
    for item, kind in (
        (make_passages()[0], "passages"),
        (Record((Message("user", "Why?"),)), "records"),
        (topic, "topics"),
        (NoSeed("train", 3), "nothing"),
    ):
        assert WorkItem(item, "train").kind == kind
    with pytest.raises(TypeError, match="not a record"):
        _ = WorkItem(topic, "train").passage
    with pytest.raises(TypeError, match="not a topic"):
        _ = make_seed("Bees.").topic
    assert get_document_id(Record((), {"document_id": "doc-1"})) == "doc-1"
    assert "b" in get_item_text(topic)


def test_records_are_read_as_what_the_generator_takes(tmp_path):
    path = tmp_path / "tasks.jsonl"
    write_records(path, [Record((Message("user", "Add 1 and 2."), Message("assistant", "3")))])
    assert read_seeds(str(path), ("records",)).items[0].messages[1].content == "3"
    assert read_seeds(str(path), ("passages",)).passages[0].text == "Add 1 and 2.\n\n3"
    with pytest.raises(DataError, match="does not take") as caught:
        read_seeds(str(path), ("topics",))
    assert caught.value.problems[0].code == "synth.wrong-seeds"


class Growing(Generator):
    """Says how many it knew before its round."""

    seed_kinds = ("nothing",)
    default_filters = ()

    @property
    def max_requests(self):
        return 1

    @property
    def max_tokens(self):
        return 1

    def start(self, corpus):
        return _Grown()

    def open(self, seeds, model):
        raise AssertionError("the writer is asked")


class _Grown:
    round_size = 3

    def __init__(self):
        self.known = []

    def generate(self, seeds, model):
        for seed in seeds:
            text = f"{len(self.known)} known, {seed.item.number % 4}"
            yield GenerationResult(seed.key, (Record((Message("assistant", text),)),), asked=1)

    def finalize(self, draft):
        text = draft.records[0].messages[0].content
        if text in self.known:
            return GenerationResult(
                draft.key, failures=(GenerationFailure("known", text),), asked=1
            )
        self.known.append(text)
        return draft


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_pool_grows_by_rounds_whatever_the_group(batch_size):
    def grow(shelf):
        model = scripted_model([])
        return collect(model, Growing(), shelf=shelf, draws=9, batch_size=batch_size)

    shelf = Shelf()
    harvest = grow(shelf)
    said = [record.messages[0].content for record in harvest.records]
    assert said[:4] == ["0 known, 0", "0 known, 1", "0 known, 2", "3 known, 3"]
    for key in list(shelf)[4:]:
        del shelf[key]
    assert grow(shelf) == harvest


def test_items_without_documents_are_ordered_by_hash():
    topics = [Topic((name,)) for name in "abcdef"]
    assert order_items(topics, 1) == order_items(topics[::-1], 1)
    assert order_items(topics, 1) != topics


def test_a_recipe_says_what_its_generator_starts_from():
    with pytest.raises(RecipeError, match="needs passages") as caught:
        parse_recipe("version: 1\nkind: synth.records\n")
    assert caught.value.problems[0].code == "synth.seeds"
    with pytest.raises(RecipeError, match="no step takes it"):
        parse_recipe("version: 1\nkind: synth.records\nindex: a\nseeds: b\n")
    steps = "{steps: {write: {generator: {name: metamath}}}}"
    for pipeline in ("{generator: {name: metamath}}", steps):
        with pytest.raises(RecipeError, match="takes records, and an index gives passages"):
            parse_recipe(f"version: 1\nkind: synth.records\nindex: a\npipeline: {pipeline}\n")


def test_generators_bring_their_filters_unless_the_recipe_names_some():
    assert [one.method_name() for one in RecordsRecipe(index="a").filters][-1] == "decontaminate"
    grown = RecordsRecipe(pipeline={"generator": Growing()})
    assert grown.filters == []
    named = {"generator": Growing(), "filters": ["shape"]}
    assert len(RecordsRecipe(pipeline=named).filters) == 1


def test_out_of_nothing_both_sides_are_written(tmp_path, monkeypatch):
    model = scripted_model([])
    monkeypatch.setattr("stillroom.models.factory.open_text_model", lambda *a, **k: model)
    recipe = RecordsRecipe(
        pipeline={"generator": Growing()}, num_records={"train": 4, "held_out": 1}
    )
    job = Job.start(tmp_path / "out", "kind: synth.records\n")
    artifact = JOB_KIND.run(recipe, job)
    job.close()
    records = list(read_records(tmp_path / "out" / "output" / "records.jsonl"))
    assert len(records) == 5
    assert [parent.role for parent in artifact.parents] == ["teacher"]
    report = json.loads((tmp_path / "out" / "output" / "report.json").read_text())
    assert report["source"] == {"seeds": 0, "dropped": {}}


@pytest.mark.parametrize("name", ["details", "told"])
def test_reasons_of_rejected_records_are_read_by_their_earlier_name_too(tmp_path, name):
    record = Record((Message("user", "q"), Message("assistant", "a")))
    rejected = RejectedRecord("train", "judge", "low", "u", 0.1, record, details={"mark": 2})
    row = rejected.to_json()
    row[name] = row.pop("details")
    assert RejectedRecord.from_json(row).details == {"mark": 2}
    write(tmp_path / "dropped.jsonl", json.dumps(row) + "\n")
    (found,) = read_rejected(tmp_path / "dropped.jsonl")
    assert found.details == {"mark": 2}


@pytest.mark.parametrize(
    ("side", "names"),
    [
        ("train", ["train", "Training", "train_sft", "train_gen", "train[:10]", "train.clean.100"]),
        (
            "held_out",
            ["test", "TEST_prefs", "held_out", "held-out", "Hold out", "holdout_2", "val"],
        ),
        ("held_out", ["validation_mismatched", "test.other", "eval-gen", "test2", "1_test", "dev"]),
        ("held_out", ["mini_test", "public_test", "unseen_test", "test[50%:]", "devtest"]),
        ("held_out", ["test set", "validation set", "test_easy", "test_en", "test_1k", "test_a"]),
        ("held_out", ["test-v1.1", "test-00000-of-00001", "val_seen", "hidden_test", "ood_test"]),
        ("held_out", ["gsm8k_test", "wmt14_test", "few_shot_test", "mnli-dev", "squad_v2.dev"]),
        ("held_out", [["test"], "['test']", "gsm8k/test", "xnli_held_out", "test_dev", "dev-test"]),
        ("held_out", ["test+validation", "test[:5%]+validation[:5%]"]),
        ("train", ["gsm8k_train", "wmt14-train[:5%]", ["train_sft"], "train,train2"]),
        (None, ["driving test", "json_valid", "trainval", ["train", "test"], "test_de_train"]),
        (None, ["dev tools", "test-prep", "train station", "eval/harness", "held hostage", "web"]),
        (
            None,
            ["valid_json", "dev-books", "devops", "unsupervised", "all", "train_test", "", "[]"],
        ),
        (None, [0, None, {"test": 1}, "_", "sft", [], [None], ["web", "books"]]),
    ],
)
def test_sides_by_name(side, names):
    for name in names:
        assert read_split(Record((Message("user", "q"),), {"split": name})) == side, name


def test_names_with_a_part_of_test_rows_that_are_not_read_so_are_unclear():
    unclear = [
        "driving test",
        "test-prep",
        "json_valid",
        "eval/harness",
        ["train", "test"],
        "dev-books",
        "train+test",
    ]
    clear = ["test", "gsm8k_test", "train", "web", "unsupervised", "contest", None, 0, ["test"]]
    fields = [{"split": name} for name in unclear + clear]
    records = [Record((Message("user", "q"),), field) for field in fields]
    assert [has_unclear_split(record) for record in records] == [True] * 7 + [False] * 9
