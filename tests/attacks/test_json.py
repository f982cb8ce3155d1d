"""JSON made to break its reader: nested without end, or with many members of one name."""

import time

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.errors import BackendError, CheckpointError, DataError
from stillroom.evaluate.interfaces import VERIFIERS
from stillroom.evaluate.json_output import parse_json_with_schema
from stillroom.models.choice import read_json_answer
from stillroom.models.encoders.text_encoder import read_json_file
from stillroom.models.local.generation import check_schema
from stillroom.provenance.digests import parse_json
from stillroom.rag.rerankers.listwise import _parse_permutation
from stillroom.serve.views.folder import list_folder_artifacts, read_kind

DEEP = '{"verdict":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "artifact.json").write_text(DEEP)
    return tmp_path


@pytest.mark.parametrize("command", [["show"], ["ask"], ["rag", "search"]])
def test_an_artifact_of_a_stranger_is_refused_as_one_that_cannot_be_read(command, folder):
    question = [] if command == ["show"] else ["What is it?"]
    done = CliRunner().invoke(stillroom, [*command, str(folder / "run"), *question])
    assert isinstance(done.exception, DataError)
    assert "nested too deeply" in str(done.exception)


def test_one_hostile_folder_hides_no_other(folder):
    assert [found.kind for found in list_folder_artifacts(folder)] == ["broken"]
    assert read_kind(folder / "run") != "run"


def test_an_answer_of_a_model_is_no_verdict_and_stops_no_run():
    assert read_json_answer(DEEP, "verdict") == ""
    assert _parse_permutation(DEEP, 2) == ([0, 1], False)


def test_the_config_of_an_embedder_is_refused_by_its_reader(tmp_path):
    (tmp_path / "modules.json").write_text("[" * 100_000)

    def refuse(place, problem):
        return CheckpointError(problem, code="checkpoint.config")

    with pytest.raises(CheckpointError, match="nested too deeply"):
        read_json_file(tmp_path / "modules.json", refuse, list)


def test_a_name_given_twice_is_found_at_once():
    members = ", ".join(f'"{number}": 1' for number in [*range(50_000), 49_999])
    start = time.process_time()
    with pytest.raises(ValueError, match="'49999' twice"):
        parse_json(f"{{{members}}}")
    assert time.process_time() - start < 1


MANY = {"type": "array", "maxItems": 10_000, "items": {}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**9, "items": {}},
        {"type": "array", "maxItems": 1e400},
        {"type": "array", "minItems": 10**400},
        {"not": {"additionalProperties": {"maxItems": 10**9}}},
        {"prefixItems": [MANY, MANY]},
    ],
)
def test_a_schema_of_a_billion_items_does_not_fill_the_memory(schema):
    with pytest.raises(BackendError, match="minItems and maxItems"):
        check_schema(schema)


def test_a_schema_of_many_items_is_served():
    check_schema({"type": "array", "minItems": 1, "maxItems": 10_000, "items": MANY["items"]})


FAN = {
    "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    | {"d40": {}},
    "$ref": "#/$defs/d0",
}


@pytest.mark.parametrize(
    ("schema", "text", "why"),
    [
        (FAN, "1", "more than 200000 checks"),
        ({"type": "string", "pattern": "^(a+)+$"}, f'"{"a" * 40}!"', "does not come to an end"),
        ({"patternProperties": {"a*" * 25 + "b": {}}}, f'{{"{"a" * 60}": 1}}', "to an end"),
    ],
    ids=["references that fan out", "pattern", "pattern of names"],
)
def test_a_schema_of_a_record_that_does_not_end_is_no_fit(schema, text, why):
    start = time.process_time()
    assert why in parse_json_with_schema(text, schema).problem
    assert time.process_time() - start < 10


def test_schemas_are_checked_as_before():
    schema = {
        "properties": {"code": {"type": "string", "pattern": r"^[A-Z]{3}-\d+$"}},
        "patternProperties": {"^x_": {"type": "integer"}},
    }
    assert not parse_json_with_schema('{"code": "ABC-12", "x_a": 1}', schema).problem
    assert parse_json_with_schema('{"code": "ABC12"}', schema).problem == (
        "code: 'ABC12' does not match '^[A-Z]{3}-\\\\d+$'"
    )
    assert parse_json_with_schema('{"x_a": "1"}', schema).problem.startswith("x_a: ")


@pytest.mark.parametrize("pattern", ["a*" * 25 + "b", "a?" * 40 + "a" * 40])
def test_a_pattern_of_a_record_that_does_not_end_is_no_match(pattern):
    result = VERIFIERS.build({"name": "regex"}).check("a" * 40, {"pattern": pattern})
    assert (result.keep, result.reason) == (False, "the pattern does not come to an end")
