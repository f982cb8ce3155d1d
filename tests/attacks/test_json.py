"""JSON made to break its reader: nested without end, or with many members of one name."""

import json
import os
import re
import time

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.console.page_context import format_number
from stillroom.errors import BackendError, CheckpointError, DataError
from stillroom.evaluate import json_output, regex_search
from stillroom.evaluate.interfaces import VERIFIERS
from stillroom.evaluate.json_output import parse_json_with_schema
from stillroom.evaluate.regex_search import search_pattern
from stillroom.jobs.replay import sum_phases
from stillroom.models.choice import read_json_answer
from stillroom.models.encoders.text_encoder import read_json_file
from stillroom.models.local.grammar import check_schema
from stillroom.provenance.digests import parse_json
from stillroom.rag.answer_selection.adapted_bert import read_numbers
from stillroom.rag.rerankers.listwise import _parse_permutation
from stillroom.rag.storage.filters import derive_fields
from stillroom.serve.views.folder import list_folder_artifacts, read_kind

DEEP = '{"verdict":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "artifact.json").write_text(DEEP)
    return tmp_path


def test_an_integer_beyond_any_float_is_text_or_no_number(tmp_path):
    big = 10**400
    document = {"path": "a.md", "title": "", "media_type": "", "language": ""}
    fields = derive_fields({**document, "metadata": {"front_matter": {"year": big, "n": [1, big]}}})
    assert fields["year"] == str(big)
    assert fields["n"] == [1, str(big)]
    with pytest.raises(ValueError, match="too large"):
        read_numbers({"rank": big}, ["rank"])
    assert format_number(big).startswith("1000")
    phases = [{"event": "phase", "name": "a", "seconds": seconds} for seconds in (big, 2)]
    lines = [json.dumps(phase) for phase in phases]
    (tmp_path / "events.jsonl").write_text("\n".join([*lines, DEEP]))
    assert sum_phases(tmp_path) == 2


@pytest.mark.parametrize("command", [["show"], ["ask"], ["rag", "search"]])
def test_an_artifact_of_a_stranger_is_refused_as_one_that_cannot_be_read(command, folder):
    question = [] if command == ["show"] else ["What is it?"]
    done = CliRunner().invoke(stillroom, [*command, str(folder / "run"), *question])
    assert isinstance(done.exception, DataError)
    assert "nested too deeply" in str(done.exception)


def test_one_hostile_folder_hides_no_other(folder):
    assert [found.kind for found in list_folder_artifacts(folder)] == ["broken"]
    assert read_kind(folder / "run") != "run"


@pytest.mark.parametrize("change", [{"created": 5}, {"files": [["output/a", "1", "d"]]}])
def test_odd_values_and_pipes_hide_no_other_folder(folder, change):
    stated = {"format": 1, "kind": "records", "files": [], "parents": [], "created": "2026"}
    for name, data in {"fine": stated, "odd": {**stated, **change}}.items():
        (folder / name).mkdir()
        (folder / name / "artifact.json").write_text(json.dumps(data))
        os.mkfifo(folder / name / "recipe.yaml")  # opening one would wait for its writer
    (folder / "unread").mkdir()
    (folder / "unread" / "artifact.json").symlink_to("/proc/self/mem")  # reading it fails
    kinds = {found.name: found.kind for found in list_folder_artifacts(folder)}
    assert kinds == {"fine": "records", "odd": "broken", "run": "broken", "unread": "broken"}


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


DRAFT = "https://json-schema.org/draft/2020-12/schema"


@pytest.fixture
def short_searches(monkeypatch):
    """Searches are stopped within a second of processor time."""
    regex_search._PROCESS.close()
    monkeypatch.setattr(regex_search, "_CPU_S", 0)
    yield
    regex_search._PROCESS.close()


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
        ({"pattern": "("}, '"a"', "not a regular expression"),
    ],
    ids=["fan", "pattern", "no pattern"],
)
def test_a_schema_of_a_record_that_does_not_end_is_no_fit(schema, text, why, short_searches):
    start = time.process_time()
    assert why in parse_json_with_schema(text, schema).problem
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"patternProperties": {"a*" * 25 + "b": {}}}, f'{{"{"a" * 60}": 1}}'),
        (
            {"additionalProperties": False, "patternProperties": {"^(a+)+$": {}}},
            f'{{"{"a" * 40}!": 1}}',
        ),
        ({"allOf": [{"$schema": DRAFT, "pattern": "^(a+)+$"}]}, f'"{"a" * 40}!"'),
    ],
    ids=["pattern of names", "closed", "its own dialect"],
)
def test_every_pattern_of_a_schema_is_searched_within_limits(schema, text, monkeypatch):
    """Else this test does not end: the search that stops is not run here."""
    monkeypatch.setattr(json_output, "time_search", lambda pattern, text: (None, 2.0))
    assert "to an end" in parse_json_with_schema(text, schema).problem


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
    closed = schema | {"$schema": DRAFT, "additionalProperties": False}
    assert not parse_json_with_schema('{"code": "ABC-12", "x_a": 1}', closed).problem
    assert "not match any" in parse_json_with_schema('{"y": 1}', closed).problem


def test_patterns_that_end_share_the_time_of_a_schema(monkeypatch):
    monkeypatch.setattr(json_output, "time_search", lambda pattern, text: (True, 1.9))
    schema = {"items": {"pattern": "a"}}
    assert not parse_json_with_schema('["a", "a"]', schema).problem
    assert "to an end" in parse_json_with_schema('["a", "a", "a", "a", "a", "a"]', schema).problem


SECOND = pytest.mark.slow  # each uses up its second of processor time
ENDLESS = {
    "repeated": "a*" * 25 + "b",
    "optional": "a?" * 40 + "a" * 40,
    "set in a comment": "(?x)#[\n(a+)+$\n#]",
    "comment that opens a set": "(?#[)(a+)+$(?#])",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_pattern_that_may_not_end_is_searched_in_the_process_with_limits(name):
    assert not regex_search._is_plain(ENDLESS[name], 40)


@pytest.mark.parametrize(
    "name", [name if name == "repeated" else pytest.param(name, marks=SECOND) for name in ENDLESS]
)
def test_a_pattern_of_a_record_that_does_not_end_is_no_match(name, short_searches):
    text = "a" * 40 + "!" * ("comment" in name)
    result = VERIFIERS.build({"name": "regex"}).check(text, {"pattern": ENDLESS[name]})
    assert (result.keep, result.reason) == (False, "the pattern does not come to an end")


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(" * 3000, "(a", "(a+)+("])
def test_what_is_no_pattern_is_said(pattern):
    result = VERIFIERS.build({"name": "regex"}).check("a", {"pattern": pattern})
    assert result.reason == "its pattern is not a regular expression"


HONEST = {
    r"[\w.+-]+@[\w-]+\.[\w.-]+": "write to bob.smith+x@ex-ample.co.uk",
    r"^(?:[a-z0-9]+-)*[a-z0-9]+$": "a-slug-1",
    r"^(?=.*[A-Z])(?=.*\d)(?=.*[^\w\s]).{8,}$": "Abcdef1!",
    r"(?s)```(?:python|py)?\s*\n(.*?)\n```": "```py\nx = 1\n```",
    r"/\*(?:[^*]|\*(?!/))*\*/": "a /* comment */",
    r"(?i)[\u0400-\u04FF]+(?:\s+[\u0400-\u04FF]+)*": "слово Слово",
    "|".join(f"word{number}" for number in range(300)): "has word299",
    "\ud800": "half a pair \ud800",
}


@pytest.mark.parametrize("pattern", HONEST)
def test_patterns_that_people_write_match_as_in_python_and_cost_no_process_each(pattern):
    text = "lorem ipsum, " * 150 * (pattern[0] != "^") + HONEST[pattern]
    assert search_pattern(pattern, text) is True
    first = regex_search._PROCESS._process
    for whole in (False, True):
        expected = bool((re.fullmatch if whole else re.search)(pattern, text))
        assert search_pattern(pattern, text, whole=whole) is expected
        assert search_pattern(pattern, "", whole=whole) is False
    assert regex_search._PROCESS._process is first


def test_a_forked_process_searches_in_a_process_of_its_own(recwarn):
    assert search_pattern(r"(\w+ )+\w+", "of the parent")
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            is_quiet = not [one for one in recwarn if one.category is ResourceWarning]
            status = 0 if search_pattern(r"(\w+ )+\w+", "of the child") and is_quiet else 4
        finally:
            regex_search._PROCESS.close()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert search_pattern(r"(\w+ )+\w+", "of the parent")
