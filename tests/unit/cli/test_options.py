import json
import shlex

import click
import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.cli.ask import ask_command
from stillroom.cli.options import (
    count_option,
    debug_option,
    existing_path,
    job_options,
    json_option,
)
from stillroom.cli.output import print_json
from stillroom.errors import DataError
from stillroom.flow.papers.writer import FORMATS


@click.command()
@click.argument("path", type=existing_path)
@json_option
@job_options
def command(path, as_json, resume, overwrite, quiet):
    print_json({"path": str(path), "flags": [as_json, resume, overwrite, quiet]})


@click.command()
@debug_option
def plain():
    click.echo("done")


def flags(*arguments):
    told = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert told.exit_code == 0
    return json.loads(told.stdout)["flags"]


def test_flags_are_off_unless_given():
    assert flags("x") == [False, False, False, False]
    assert flags("x", "--json", "--resume") == [True, True, False, False]
    assert flags("x", "--overwrite", "--quiet", "--debug") == [False, False, True, True]


def test_flags_are_listed_with_what_they_do():
    text = CliRunner().invoke(command, ["--help"]).stdout
    for flag in ("--json", "--resume", "--overwrite", "--quiet", "--debug"):
        assert flag in text


def test_debug_is_taken_by_the_root_and_not_by_commands():
    assert CliRunner().invoke(plain, ["--debug"]).stdout == "done\n"


def test_json_has_its_version_first_and_keeps_letters(tmp_path):
    told = CliRunner().invoke(command, ["Käse"])
    assert told.stdout.startswith('{\n "version": 1,')
    assert "Käse" in told.stdout


@pytest.mark.parametrize("flag", ["--resumee", "--no-quiet"])
def test_unknown_flags_are_refused(flag):
    assert CliRunner().invoke(command, ["x", flag]).exit_code == 2


def test_a_row_is_wrapped_at_a_terminal_and_whole_in_a_pipe(monkeypatch):
    from stillroom.cli.output import format_row

    monkeypatch.setenv("COLUMNS", "40")
    text = "one two three four five six seven eight nine"
    assert format_row("name  ", text) == f"name  {text}"
    rows = format_row("name  ", text, always=True).splitlines()
    assert rows[1].startswith("      ")
    assert max(map(len, rows)) <= 40


def test_a_count_beyond_what_iterators_take_is_a_usage_error(tmp_path):
    told = CliRunner().invoke(stillroom, ["synth", "drops", str(tmp_path), "--n", "9" * 20])
    assert told.exit_code == 2
    assert "--n" in told.stderr


def test_a_list_without_registries_takes_no_registry():
    told = CliRunner().invoke(stillroom, ["list", "kinds", "merge.methods"])
    assert told.exit_code == 2
    assert "takes no REGISTRY" in told.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["synth", "dedup", "a.jsonl"], "it is a kind of job: stillroom run synth.dedup"),
        (["rag", "records"], "it is a kind of job: stillroom run synth.records"),
        (["records"], "it is a kind of job: stillroom run synth.records"),
        (["index", "documents"], "did you mean 'stillroom rag index'?"),
        (["plna"], "did you mean 'stillroom merge plan'?"),
        (["rga", "indx"], "did you mean 'stillroom rag index'?"),
        (["init-ca"], "did you mean 'stillroom forensics provenance init-ca'?"),
        (
            ["export"],
            "did you mean 'stillroom checkpoint export' or 'stillroom forensics export' or "
            "'stillroom synth export'?",
        ),
        (["rag", "ask", "index"], "did you mean 'stillroom ask'?"),
        (["rag", "serch", "index"], "did you mean 'stillroom rag search'?"),
    ],
)
def test_a_command_that_a_group_lacks_is_told_where_it_is(command, said):
    told = CliRunner().invoke(stillroom, command)
    assert told.exit_code == 2
    assert said in told.stderr


@pytest.mark.parametrize("command", [["merge", "ties"], ["papers"], ["plot"], ["linear"]])
def test_a_word_that_is_only_a_little_like_a_command_elsewhere_suggests_none(command):
    assert "did you mean" not in CliRunner().invoke(stillroom, command).stderr


def test_the_help_of_a_room_lists_its_jobs():
    told = " ".join(CliRunner().invoke(stillroom, ["merge", "--help"]).stdout.split())
    assert "Jobs (stillroom run KIND): merge.moe," in told
    assert "Jobs" not in CliRunner().invoke(stillroom, ["keys", "--help"]).stdout


def test_a_wrong_path_leaves_no_unfinished_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["run", "synth.dedup", "--out", "clean", "--quiet"]
    told = CliRunner().invoke(stillroom, [*given, "records=[a.jsonl]"])
    assert isinstance(told.exception, DataError)
    assert "records.0" in str(told.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["foo", "ray:", "rayon:7"])
def test_an_unknown_engine_is_a_usage_error(engine, tmp_path):
    told = CliRunner().invoke(stillroom, ["forensics", "check", str(tmp_path), "--engine", engine])
    assert told.exit_code == 2
    assert "is not local, ray, or ray:ADDRESS" in told.stderr


@pytest.mark.parametrize("arguments", [["verify", ""], ["rag", "index", "docs", "--out", ""]])
def test_an_empty_path_is_a_usage_error(arguments):
    result = CliRunner().invoke(stillroom, arguments)
    assert result.exit_code == 2
    assert "the path is empty" in result.output


def test_an_output_whose_name_is_no_text_is_a_usage_error(tmp_path):
    out = str(tmp_path / "\udc80")
    result = CliRunner().invoke(stillroom, ["rag", "index", str(tmp_path), "--out", out])
    assert result.exit_code == 2
    assert "is not valid UTF-8" in result.output


def test_a_text_that_is_not_utf8_is_a_usage_error_before_work(tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    given = ["distill", "texts", str(tmp_path), "--tokenizer", "model", "--license", "\udc80"]
    result = CliRunner().invoke(stillroom, [*given, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "'\\udc80' is not valid UTF-8" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", [".", "./", "..", "../here/."])
def test_an_output_named_by_dots_is_the_folder_that_they_name(tmp_path, monkeypatch, out):
    here = tmp_path / "here"
    here.mkdir()
    (here / "a.txt").write_text("Text.")
    monkeypatch.chdir(here)
    result = CliRunner().invoke(stillroom, ["rag", "index", ".", "--out", out, "--quiet"])
    assert result.exception.code == "data.exists"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "here"]


def test_a_relevance_level_beyond_what_trec_eval_reads_is_a_usage_error():
    call = ["rag", "score", "q.txt", "r.txt", "--relevance-level", str(2**31)]
    refused = CliRunner().invoke(stillroom, call)
    assert (refused.exit_code, "is not in the range" in refused.stderr) == (2, True)


def test_the_root_is_no_output(monkeypatch):
    monkeypatch.chdir("/")
    for out in ("/", ".", "tmp/.."):
        call = ["make", "tmp", "--out", out]
        refused = CliRunner().invoke(stillroom, call)
        assert (refused.exit_code, "/ has no name" in refused.stderr) == (2, True)


def test_the_bound_of_64_bits_is_enforced_and_not_shown():
    @click.command()
    @count_option("--n", help="Number.")
    def counted(n):
        click.echo(n)

    text = CliRunner().invoke(counted, ["--help"]).stdout
    assert "[x>=1]" in text
    assert "9223372036854775807" not in text
    assert CliRunner().invoke(counted, ["--n", str(2**63 - 1)]).exit_code == 0
    for number, reason in (("0", "x>=1"), (str(2**63), "larger than 9223372036854775807")):
        refused = CliRunner().invoke(counted, ["--n", number])
        assert refused.exit_code == 2
        assert reason in refused.stderr


@pytest.mark.parametrize("option", ["--k", "--neighbours", "--per-document"])
def test_numbers_of_ask_have_the_bound_of_64_bits(option):
    refused = CliRunner().invoke(ask_command, ["run", "Why?", option, str(2**63)])
    assert refused.exit_code == 2
    assert "larger than 9223372036854775807" in refused.stderr


def test_an_own_upper_bound_is_named_for_any_larger_number():
    @click.command()
    @count_option("--n", most=50, help="Number.")
    def counted(n):
        click.echo(n)

    for number in ("51", str(2**63)):
        assert "1<=x<=50" in CliRunner().invoke(counted, ["--n", number]).stderr


def test_attest_without_a_format_lists_the_formats_with_what_each_needs(tmp_path):
    told = CliRunner().invoke(stillroom, ["attest", str(tmp_path)])
    assert told.exit_code == 2
    assert "Missing option '--format'" in told.stderr
    lines = {line.split()[0]: line for line in told.stderr.splitlines() if line.startswith("\t")}
    assert list(lines) == [*FORMATS, "all"]
    assert "with records in its lineage" in lines["croissant"]
    assert "a language model or a sentence reader" in lines["card"]
    assert "with --out FOLDER" in lines["all"]


@pytest.mark.parametrize(
    ("arguments", "metavar"),
    [
        (("ask", "run", "-e option?"), "QUESTION"),
        (("ask", "run", "--verbose does what?", "--json"), "QUESTION"),
        (("ask", "run", "what?", "--k", "3", "-k is what?"), "QUESTION"),
        (("rag", "search", "index", "-e"), "QUERY"),
        (("rag", "search", "index", "--k=3", "-e"), "QUERY"),
    ],
)
def test_a_question_that_begins_with_a_dash_is_shown_the_way(arguments, metavar):
    result = CliRunner().invoke(stillroom, arguments)
    assert result.exit_code == 2
    text = next(text for text in arguments if text.startswith(("-e", "--verbose", "-k ")))
    expected = f"{metavar} that begins with '-' goes after '--', as in: -- {shlex.quote(text)}"
    assert expected in " ".join(result.stderr.split())


def test_a_misspelt_option_gets_no_advice_on_questions():
    missing = CliRunner().invoke(stillroom, ("ask", "run", "--evidenc"))
    assert "Did you mean '--evidence'?" in " ".join(missing.stderr.split())
    for arguments in (
        ("ask", "run", "what?", "--jsn"),
        ("ask", "run", "what?", "--filtre=a b"),
        ("rag", "verify", "-x"),
        ("ask", "-h"),
    ):
        result = CliRunner().invoke(stillroom, arguments)
        assert result.exit_code == 2
        assert "begins with" not in result.stderr
