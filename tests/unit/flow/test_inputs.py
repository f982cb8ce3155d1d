import pytest

from stillroom.cli.recipes import check_command as check
from stillroom.errors import CheckpointError, DataError
from stillroom.flow.inputs import check_inputs, check_rows, digest_input, resolve_inputs
from stillroom.flow.run import run_recipe
from stillroom.jobs.job import write_artifact
from stillroom.provenance import read_artifact
from stillroom.recipes import parse_recipe
from stillroom.records import Origin

FLOW = """\
kind: flow
inputs:
  documents: here
  teacher: none
  embedder: nowhere
  other: hub:org/name
  static: builtin:static
steps:
  index: {kind: rag.index, documents: {from: inputs.documents}}
  records: {kind: synth.records, index: {from: index}, cache: not-made-yet.jsonl}
  student:
    kind: distill.logits
    records: {from: records}
    teacher: lost
    student: {max_parameters: 0.5}
"""


def missing(recipe, **options):
    with pytest.raises(DataError) as caught:
        check_inputs(recipe, **options)
    assert {problem.code for problem in caught.value.problems} == {"data.missing"}
    return [problem.where for problem in caught.value.problems]


def test_every_missing_path_is_said_at_once(tmp_path):
    (tmp_path / "here").mkdir()
    recipe = parse_recipe(FLOW, folder=tmp_path)
    assert missing(recipe) == ["inputs.teacher", "inputs.embedder", "steps.student.teacher"]


def test_a_file_beside_the_asker_is_named_and_never_taken_for_a_hubs_model(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "mine.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    for name, said in (
        ("mine", f"if {tmp_path / 'mine.jsonl'} is meant"),
        ("no", "check the path;"),
        ("x" * 300, "check the path;"),
    ):
        text = f"kind: diffusion.train\nrecords: {name}.jsonl"
        recipe = parse_recipe(text, folder=tmp_path / "recipes")
        with pytest.raises(DataError) as caught:
            check_inputs(recipe, str)
        assert caught.value.problems[0].next.startswith(said)


def test_what_steps_make_hubs_hold_and_addresses_name_is_not_looked_for(tmp_path):
    (tmp_path / "here").mkdir()
    found = ["inputs.teacher=hub:a/b", "inputs.embedder=here", "steps.student.teacher=s3://a/b"]
    assert check_inputs(parse_recipe(FLOW, "recipe", found, folder=tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "kind: merge.select\nmethod: linear\nmodels: [{model: a}, {model: hub:a/b}]\n"
            "select: {records: judged}",
            ["models.0.model", "select.records"],
        ),
        (
            "kind: evaluate.report\nrecords: r\n"
            "models: {teacher: 'http://127.0.0.1:1/v1#m', student: s}",
            ["records", "models.student"],
        ),
        (
            "kind: diffusion.train\nmodel: {tokenizer: t}\nrecords: r",
            ["model.tokenizer", "records"],
        ),
        ("kind: diffusion.train\nmodel: s\nrecords: r", ["model", "records"]),
        (
            "kind: synth.records\nseeds: t\ncache: c\n"
            "pipeline: {steps: {a: {filters: [{name: length, tokenizer: w}]}}}",
            ["seeds"],
        ),
    ],
)
def test_paths_are_found_wherever_a_recipe_may_name_one(text, named, tmp_path):
    assert set(named) <= set(missing(parse_recipe(text, folder=tmp_path)))
    assert "cache" not in missing(parse_recipe(text, folder=tmp_path))


def test_the_longest_name_is_missing_as_any_other(tmp_path):
    recipe = parse_recipe(f"kind: rag.index\ndocuments: {'a' * 5000}", folder=tmp_path)
    assert missing(recipe) == ["documents"]


def test_the_command_says_what_is_missing_and_where(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text("kind: merge.weights\nmethod: linear\nmodels:\n  - model: a\n  - model: .\n")
    with pytest.raises(DataError) as caught:
        check.main([str(path)], standalone_mode=False)
    (problem,) = caught.value.problems
    assert problem.what == f"models.0.model: {tmp_path / 'a'} does not exist"
    assert problem.where == f"{path}:4:12"
    with pytest.raises(DataError) as caught:
        check.main([str(path), "models.0.model=/nowhere/x"], standalone_mode=False)
    assert [one.where for one in caught.value.problems] == ["override 'models.0.model=/nowhere/x'"]


def test_files_whose_rows_cannot_be_read_are_not_called_valid(tmp_path):
    path, records = tmp_path / "train.yaml", tmp_path / "reviews.csv"
    path.write_text("kind: evaluate.questions\nquestions: asked.csv\npart: judged\n")
    (tmp_path / "asked.csv").write_text("Review;Stars\nGood;5\n")
    with pytest.raises(DataError) as caught:
        check.main([str(path)], standalone_mode=False)
    assert "the columns are review, stars" in caught.value.problems[0].what
    assert f"{path}:2:" in caught.value.problems[0].where
    recipe = parse_recipe("kind: synth.dedup\nrecords: [reviews.csv, artifact]\n", folder=tmp_path)
    (tmp_path / "artifact").mkdir()
    records.write_text("Review;Stars\n" + "Good;5\n" * 30)
    with pytest.raises(DataError) as caught:
        check_rows(recipe)
    (problem,) = caught.value.problems
    assert ("Review, Stars" in problem.what, problem.where) == (True, f"{records}, row 1")
    records.write_text("text;stars\nGood;5;6\nBad;1\n")  # the job counts the first
    check_rows(recipe)
    records.write_text("")
    check_rows(recipe)


def test_a_name_of_the_hub_without_its_scheme_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe("kind: rag.index\ndocuments: org/name", folder=tmp_path)
    with pytest.raises(DataError, match="write hub:org/name"):
        check_inputs(recipe)
    for name in ("org/rows.jsonl", "org/rows.jsonl.gz"):
        recipe = parse_recipe(f"kind: rag.index\ndocuments: {name}", folder=tmp_path)
        with pytest.raises(DataError, match="check the path; relative"):
            check_inputs(recipe)
    recipe = parse_recipe("kind: rag.index\ndocuments: org/name", folder=tmp_path)
    (tmp_path / "org").mkdir()  # then a file in this folder is meant
    with pytest.raises(DataError) as caught:
        check_inputs(recipe)
    assert "hub:org" not in caught.value.problems[0].next


def test_hub_names_are_looked_for(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    resolve_inputs({"teacher": "builtin:static", "documents": "/nowhere"})
    with pytest.raises(CheckpointError) as caught:
        resolve_inputs({"teacher": "hub:nobody/nothing"})
    assert caught.value.code == "checkpoint.not-found"


def test_a_job_says_how_many_lines_of_plain_text_it_reads_as_records(tmp_path):
    (tmp_path / "notes.txt").write_text("One thought\nover two lines.\n\nAnother, on one.\n")
    recipe = parse_recipe("kind: synth.dedup\nrecords: [notes.txt]\n", folder=tmp_path)
    run_recipe(recipe, tmp_path / "out")
    line = read_artifact(tmp_path / "out").details["warnings"][0]
    assert "notes.txt is read line by line, as 3 records of plain text" in line


def test_a_folder_that_other_programs_may_edit_is_digested_by_its_bytes(tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_text("{}\n")
    write_artifact(folder, "dataset", parents=[], origin=Origin(), details={})
    before = digest_input(str(folder))
    (folder / "train.jsonl").write_text("[]\n")
    assert digest_input(str(folder)) != before
