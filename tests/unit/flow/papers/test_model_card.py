"""A model card says what the lineage says, and no more."""

import json
import shutil

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from stillroom.cli.app import stillroom
from stillroom.errors import DataError
from stillroom.flow import run_recipe
from stillroom.flow.papers.graph import read_graph
from stillroom.flow.papers.model_card import render_card
from stillroom.provenance import digest_text
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.records import Message, Origin, Record, write_records


def artifact(folder, kind, *, parents=(), **values):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"role": role, "kind": "", "path": path, "digest": "d" * 64} for role, path in parents]
    told = {"format": 1, "kind": kind, "files": [], "parents": rows, **values}
    (folder / "artifact.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def origin(method, license="apache-2.0"):
    chain = [{"method": method, "model": "", "parents": []}]
    return {"kind": "synthetic", "chain": chain, "license": license}


@pytest.fixture
def run(tmp_path):
    """A run: records by two kinds of origin, a student of them, a merge, and a report."""
    steps = tmp_path / "run" / "steps"
    records = artifact(steps / "records-1", "records", origin={"kind": "synthetic", "license": "X"})
    kinds = ["human", "synthetic", "synthetic", "synthetic"]
    write_records(
        records / "output" / "records.jsonl",
        [Record((Message("user", f"{at}"),), origin=Origin(kind)) for at, kind in enumerate(kinds)],
    )
    artifact(
        steps / "student-1",
        "checkpoint",
        parents=[("teacher", "hub:Maker/Large@abc"), ("records", "../records-1")],
        origin=origin("distill.methods.forward_kl"),
        details={"cache": {"about": {"weights": "dequantized from Q4_1 (GGUF)"}}},
    )
    artifact(
        steps / "merged-1",
        "checkpoint",
        parents=[("model", "../student-1"), ("base", "../gone")],
        origin=origin("merge.methods.ties", "X AND apache-2.0"),
        details={"helped": False, "method": {"name": "ties", "density": 0.2}},
    )
    run = artifact(
        tmp_path / "run",
        "report",
        details={"answer": {"model": "merged"}, "steps": {"merged": "steps/merged-1"}},
    )
    metrics = [
        {"name": "answers/student/closed/f1", "value": 0.4, "low": 0.3, "high": 0.5, "n": 20},
        {
            "name": "answers/student/closed/f1_minus_teacher",
            "value": -0.2,
            "low": -0.3,
            "high": -0.1,
            "n": 20,
        },
        {"name": "student/parameters", "value": 9, "low": None, "high": None, "n": 1},
    ]
    told = {"metrics": [{**one, "unit": ""} for one in metrics]}
    (run / "report.json").write_text(json.dumps(told), encoding="utf-8")
    return run


def front_of(card):
    return YAML(typ="safe").load(card.split("---\n")[1])


def test_front_matter_is_what_hubs_read(run):
    front = front_of(render_card(read_graph(run, name="Bee")))
    assert front["base_model"] == ["Maker/Large"]
    assert front["base_model_relation"] == "finetune"
    assert (front["license"], front["license_name"]) == ("other", "X AND apache-2.0")
    assert front["datasets"] == ["records-1"]
    assert front["stillroom"]["records"] == {"records-1": {"human": 1, "synthetic": 3}}
    measured = front["model-index"][0]["results"][0]["metrics"]
    assert [one["value"] for one in measured] == [0.4, -0.2]
    assert measured[0]["name"] == "answers/student/closed/f1 [0.3, 0.5] (n=20)"


def test_a_student_with_weights_of_its_own_is_no_finetune_of_its_teacher(tmp_path):
    parents = [("teacher", "hub:Maker/Large"), ("student", "hub:Maker/Small")]
    done = artifact(
        tmp_path / "student",
        "checkpoint",
        parents=parents,
        origin=origin("distill.methods.forward_kl"),
        details={"unchanged": True},
    )
    row = {"name": "student/kl", "value": 0.2, "low": None, "n": 1, "unit": ""}
    one = {**row, "note": "one value has no interval"}
    counted = {**row, "name": "student/steps", "note": "counted, not sampled"}
    (done / "output").mkdir(exist_ok=True)
    told = {"report": {"metrics": [one, counted]}}
    (done / "output" / "fidelity.json").write_text(json.dumps(told), encoding="utf-8")
    card = render_card(read_graph(done, name="Bee"))
    assert front_of(card)["base_model"] == ["Maker/Small"]
    assert "built by Stillroom from Maker/Large, Maker/Small" in card
    assert "- Training changed no weight" in card
    assert "- Some metrics come from one record" in card
    assert "student/steps" not in card


def test_a_card_says_that_only_weight_decay_changed_the_weights(tmp_path):
    told = {}
    for name, had_gradient in (("taught", True), ("decayed", False)):
        done = artifact(
            tmp_path / name,
            "checkpoint",
            origin=origin("distill.methods.forward_kl"),
            details={"train": {"steps": 2, "had_gradient": had_gradient}},
        )
        told[name] = render_card(read_graph(done, name="Bee"))
    line = "- The gradient was zero in every step (decayed): nothing was learned"
    assert line in told["decayed"]
    assert "gradient" not in told["taught"]


@pytest.mark.parametrize(
    "said",
    [
        "# Bee",
        "| merged-1 | no merge was kept | kept: one parent |",
        "| student-1 | `distill.methods.forward_kl` |",
        "| records of records-1 | 1 (25%) | 3 (75%) | 0 (0%) | X |",
        "| answers/student/closed/f1 | 0.4  | 0.3 to 0.5 | 20 |",
        "- Some metrics come from 20 records",
        "- It is worse than its teacher at student/closed/f1: -0.2 [-0.3, -0.1] (n=20).",
        "- Merging (merged-1) did not lower the held-out loss.",
        "- 75% of 4 records are synthetic: models or rules wrote them.",
        "- Its teacher's weights were dequantized from Q4_1 (GGUF)",
        "- A parent artifact was deleted: base gone.",
    ],
)
def test_card_says_what_is_on_record(run, said):
    assert said in render_card(read_graph(run, name="Bee"))


def test_without_a_report_the_card_claims_nothing(run):
    card = render_card(read_graph(run / "steps" / "student-1"))
    assert "No evaluation is recorded." in card
    assert "## Evaluation" not in card
    assert "model-index" not in front_of(card)


def test_records_that_are_gone_are_said_to_be(run):
    (run / "steps" / "records-1" / "output" / "records.jsonl").unlink()
    assert "The records of records-1 were deleted" in render_card(read_graph(run))


def test_what_is_no_checkpoint_or_no_report_is_refused(run, tmp_path):
    with pytest.raises(DataError, match="is an artifact of kind records"):
        render_card(read_graph(run / "steps" / "records-1"))
    (tmp_path / "report.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_graph(run, reports=[tmp_path / "report.json"])
    assert caught.value.code == "data.not-a-report"


def test_command_writes_or_prints(run, tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(stillroom, ["attest", "--format", "card", *map(str, arguments)])

    printed = invoke(run, "--name", "Bee").stdout
    done = invoke(run, "--name", "Bee", "--out", tmp_path / "README.md")
    assert done.exit_code == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == printed
    assert isinstance(invoke(run, "--out", tmp_path / "README.md").exception, DataError)
    assert json.loads(invoke(run, "--name", "Bee", "--json").stdout)["papers"][0]["text"] == printed


def test_folders_of_one_name_are_told_apart_by_where_they_lie(tmp_path):
    rows = []
    for home, kinds in (("first", ["human"] * 3), ("second", ["synthetic"])):
        records = artifact(tmp_path / home / "records", "records", origin={"license": home})
        write_records(
            records / "output" / "records.jsonl",
            [
                Record((Message("user", f"{at}"),), origin=Origin(kind))
                for at, kind in enumerate(kinds)
            ],
        )
        (tmp_path / home / "base").mkdir()
        rows += [("records", str(records)), ("base", str(tmp_path / home / "base"))]
    model = artifact(tmp_path / "model", "checkpoint", parents=rows, origin=origin("distill.sft"))
    card = render_card(read_graph(model))
    front = front_of(card)
    assert front["datasets"] == ["first/records", "second/records"]
    assert front["base_model"] == ["first/base", "second/base"]
    assert front["stillroom"]["records"] == {
        "first/records": {"human": 3},
        "second/records": {"synthetic": 1},
    }
    assert "| records of first/records | 3 (100%) | 0 (0%) | 0 (0%) | first |" in card
    assert "25% of 4 records are synthetic: models or rules wrote them" in card


def measure_otherwise(run, change):
    told = json.loads((run / "report.json").read_text(encoding="utf-8"))
    told["metrics"] = change(told["metrics"])
    (run / "report.json").write_text(json.dumps(told), encoding="utf-8")
    return render_card(read_graph(run, name="Bee"))


def test_sizes_alone_are_no_evaluation(run):
    card = measure_otherwise(run, lambda all_: [one for one in all_ if one["n"] == 1])
    assert "No quality was measured on held-out records" in card
    assert "- No evaluation is recorded." in card
    assert "model-index" not in front_of(card)


def test_figures_of_one_record_are_said_to_stand_on_one(run):
    card = measure_otherwise(run, lambda all_: [{**one, "n": 1} for one in all_])
    assert "- Some metrics come from one record and have no interval" in card


@pytest.fixture
def reader(tmp_path):
    """A run whose reader was trained from the packaged one and not kept."""
    steps = tmp_path / "run" / "steps"
    index = artifact(steps / "index-1", "index", origin={"kind": "unknown", "license": ""})
    recipe = f"kind: rag.reader\nindex: {index}\nquestions: [q.jsonl]\nstart: builtin:reader\n"
    artifact(
        steps / "reader-1",
        "checkpoint",
        parents=[("index", "../index-1")],
        origin=origin("rag.reader", ""),
        recipe_digest=digest_text(recipe),
        details={
            "reader": True,
            "kept": "start",
            "train": {"steps": 7},
            "comparison": {"difference": 0.0, "low": -0.1, "high": 0.1, "n": 30},
        },
    )
    (steps / "reader-1" / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return artifact(
        tmp_path / "run",
        "report",
        details={
            "answer": {"index": "index", "reader": "reader", "model": "inputs.teacher"},
            "steps": {"index": "steps/index-1", "reader": "steps/reader-1"},
            "decision": "Use the owned reader.",
        },
    )


def test_card_of_a_reader_says_base_data_licenses_and_what_was_not_kept(reader):
    rows = [{"name": "reader/owned/holds", "value": 0.5, "low": 0.4, "high": 0.6, "n": 30}]
    told = {"metrics": [{**row, "unit": ""} for row in rows]}
    (reader / "report.json").write_text(json.dumps(told), encoding="utf-8")
    card = render_card(read_graph(reader, name="Bee"))
    front = front_of(card)
    assert front["pipeline_tag"] == "question-answering"
    assert front["base_model"] == ["sentence-transformers/all-MiniLM-L6-v2"]
    assert front["license_name"] == "CC-BY-SA-4.0 AND unknown"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert "SQuAD" in card
    line = (
        "Training the initial reader for 7 steps did not measurably help: the share "
        "of 30 held-out questions with a right first sentence changed by +0.00 [-0.10, +0.10], so "
        "its weights are left unchanged."
    )
    assert f"**{line}**" in card
    assert f"{line} They are those of builtin:reader. For documents in English" in card
    assert "Use the owned reader." in card
    assert "| documents of index-1 | 0 (0%) | 0 (0%) | 0 (0%) | unknown |" in card
    assert "base_model_relation" not in front
    assert "The training on these data was not kept: nothing of them is in the weights." in card


def test_card_of_a_kept_start_gives_no_figures_of_the_reader_in_its_place(reader):
    rows = [{"name": "reader/owned/holds", "value": 0.5, "low": 0.4, "high": 0.6, "n": 30}]
    (reader / "report.json").write_text(json.dumps({"metrics": [{**rows[0], "unit": ""}]}))
    artifact(
        reader / "steps" / "report-1",
        "report",
        parents=[("reader", "../reader-1"), ("reader", "builtin:reader-large")],
    )
    told = json.loads((reader / "artifact.json").read_text(encoding="utf-8"))
    told["details"]["steps"]["report"] = "steps/report-1"
    told["parents"] = [{"role": "report", "path": "steps/report-1", "digest": ""}]
    (reader / "artifact.json").write_text(json.dumps(told), encoding="utf-8")
    card = render_card(read_graph(reader, name="Bee"))
    assert "model-index" not in front_of(card)
    assert "evaluation below is of builtin:reader-large" in card


def test_license_of_the_small_start_is_in_the_card(reader):
    path = reader / "steps" / "reader-1" / "artifact.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["parents"].append({"role": "start", "path": "builtin:reader-small", "digest": ""})
    path.write_text(json.dumps(told), encoding="utf-8")
    card = render_card(read_graph(path.parent))
    assert front_of(card)["license_name"] == "CC-BY-SA-4.0 AND unknown"
    assert "large" not in card


@pytest.mark.parametrize(
    ("licenses", "base", "row"),
    [
        (("CC-BY-4.0", "MIT"), "CC-BY-SA-4.0 AND CC-BY-4.0 AND MIT", "CC-BY-4.0 AND MIT"),
        (("CC-BY-4.0", ""), "CC-BY-SA-4.0 AND unknown", "1 unknown, 1 CC-BY-4.0"),
    ],
)
def test_licenses_that_the_documents_state_are_in_the_card(licenses, base, row, reader, tmp_path):
    (tmp_path / "papers").mkdir()
    for name, license in zip("ab", licenses, strict=True):
        front = f"---\nlicense: {license}\n---\n" if license else ""
        (tmp_path / "papers" / f"{name}.md").write_text(f"{front}The ferry {name} sails.\n")
    index = reader / "steps" / "index-1"
    shutil.rmtree(index)
    recipe = IndexRecipe(documents=str(tmp_path / "papers"), embedder="static")
    run_recipe(recipe, index)
    (reader / "report.json").write_text('{"metrics": []}', encoding="utf-8")
    card = render_card(read_graph(reader, name="Bee"))
    assert front_of(card)["license_name"] == base
    assert f"| documents of index-1 | 0 (0%) | 0 (0%) | 2 (100%) | {row} |" in card


def test_changed_recipe_of_a_reader_is_not_believed(reader):
    path = reader / "steps" / "reader-1" / "recipe.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "seed: 2\n", encoding="utf-8")
    assert "builtin:reader" not in render_card(read_graph(path.parent))


@pytest.mark.parametrize(
    ("start", "source"), [("multilingual", "help of LibreOffice (MPL-2.0)"), ("large", "SQuAD 1.1")]
)
def test_card_of_a_reader_names_the_start_and_base_that_were_taken(reader, start, source):
    path = reader / "steps" / "reader-1" / "artifact.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    taken = {"base": "hub:org/encoder", "start": f"builtin:reader-{start}"}
    told["parents"] += [{"role": role, "path": name, "digest": ""} for role, name in taken.items()]
    path.write_text(json.dumps(told), encoding="utf-8")
    card = render_card(read_graph(path.parent))
    assert front_of(card)["base_model"] == ["org/encoder"]
    assert f"so its weights are left unchanged. They are those of builtin:reader-{start}." in card
    assert source in card
    assert "XQuAD" not in card
    assert front_of(card)["license_name"] == "CC-BY-SA-4.0 AND unknown"


def test_license_of_a_student_names_data_without_one(run):
    records = run / "steps" / "records-1" / "artifact.json"
    told = json.loads(records.read_text())
    records.write_text(json.dumps({**told, "origin": {"kind": "unknown", "license": ""}}))
    card = render_card(read_graph(run, name="Bee"))
    assert front_of(card)["license_name"] == "X AND apache-2.0 AND unknown"


def test_card_of_a_run_where_another_reader_won_is_that_of_the_trained_one(reader):
    told = json.loads((reader / "artifact.json").read_text(encoding="utf-8"))
    told["details"]["answer"] |= {"reader": "builtin:overlap", "trained_reader": "reader"}
    (reader / "artifact.json").write_text(json.dumps(told), encoding="utf-8")
    (reader / "report.json").write_text('{"metrics": []}', encoding="utf-8")
    assert "is a sentence reader" in render_card(read_graph(reader, name="Bee"))


def test_card_of_a_reader_without_held_out_questions_gives_no_figure(reader):
    path = reader / "steps" / "reader-1" / "artifact.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    nothing = {"difference": None, "low": None, "high": None, "n": 0}
    path.write_text(
        json.dumps({**told, "details": {**told["details"], "comparison": nothing}}),
        encoding="utf-8",
    )
    line = "for 7 steps helped was not measured, as no held-out question has an answer, so its"
    assert f"Whether training the initial reader {line}" in render_card(read_graph(path.parent))
