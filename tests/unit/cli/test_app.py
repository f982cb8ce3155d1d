import importlib.util
import json
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from pydantic import ValidationError, create_model

from stillroom.cli import app, output, stillroom
from stillroom.cli.output import print_json
from stillroom.errors import Cancelled, Problem, RecipeError, ResourceError
from stillroom.rag.interfaces import STORES


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Return a function that runs the command line with a root that raises an error."""

    def run(error, *arguments):
        def fail(**settings):
            raise error

        monkeypatch.setattr(sys, "argv", ["stillroom", *arguments])
        monkeypatch.setattr(app.stillroom, "main", fail)
        monkeypatch.setattr(output, "_printed_results", [])
        with pytest.raises(SystemExit) as caught:
            app.main()
        told = capsys.readouterr()
        if "--json" in arguments:
            return caught.value.code, json.loads(told.out)
        assert told.out == ""
        return caught.value.code, told.err

    return run


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (RecipeError("no", code="recipe.value"), 2, "[recipe.value]"),
        (ResourceError("no", code="resource.memory"), 3, "[resource.memory]"),
        (Cancelled("no", code="job.cancelled"), 130, "[job.cancelled]"),
        (click.UsageError("no"), 2, "Error: no"),
        (OSError(36, "File name too long", "x" * 300), 3, "File name too long: xxx"),
        (NotADirectoryError(20, "Not a directory", "a/b"), 3, "[resource.file]"),
        (UnicodeDecodeError("utf-8", b"\xcd", 0, 1, "bad"), 3, "not UTF-8 text: bad at byte 0"),
        (OSError(5, "Input/output error"), 1, "[internal]"),
        (ValueError("no"), 1, "[internal]"),
    ],
)
def test_errors_end_with_their_exit_code(run_main, error, exit_code, said):
    code, told = run_main(error, "make")
    assert code == exit_code
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (RecipeError("no", code="recipe.value", where="a:1:2"), 2, "recipe.value"),
        (Cancelled("no", code="job.cancelled"), 130, "job.cancelled"),
        (KeyboardInterrupt(), 130, "job.cancelled"),
        (click.UsageError("no"), 2, "usage"),
        (PermissionError(13, "Permission denied", b"a"), 3, "resource.file"),
        (ValueError("no"), 1, "internal"),
    ],
)
def test_a_program_reads_every_error_as_json(run_main, error, exit_code, code):
    ended, told = run_main(error, "make", "--json")
    assert ended == exit_code
    assert [one["code"] for one in told["problems"]] == [code]
    assert told["problems"][0].keys() == {"what", "code", "where", "expected", "next"}


def test_settings_that_a_method_refuses_are_named(run_main):
    with pytest.raises(ValidationError) as caught:
        STORES.build({"name": "postgres", "adress": "postgresql://x"})
    code, told = run_main(caught.value, "rag", "migrate", "--json")
    assert code == 2
    assert told["problems"][0]["code"] == "recipe.value"
    assert told["problems"][0]["what"].startswith("adress: Extra inputs")
    assert told["problems"][0]["next"] == "stillroom show postgres lists its settings"


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("DareTies", "stillroom show dare_ties lists its settings"),
        ("KCenter", "stillroom show k_center lists its settings"),
        ("Nobody", "see --help of the command"),
    ],
)
def test_the_next_step_names_a_method_as_show_knows_it(run_main, title, said):
    with pytest.raises(ValidationError) as caught:
        create_model(title, count=(int, ...))(count="many")
    _, told = run_main(caught.value, "merge", "extract", "--json")
    assert told["problems"][0]["next"] == said


def test_an_error_after_the_result_leaves_the_result_alone(monkeypatch, capsys):
    def fail(**settings):
        print_json({"seconds": 1})
        raise ResourceError("no", code="resource.memory")

    monkeypatch.setattr(sys, "argv", ["stillroom", "check", "x.yaml", "--json"])
    monkeypatch.setattr(app.stillroom, "main", fail)
    monkeypatch.setattr(output, "_printed_results", [])
    with pytest.raises(SystemExit):
        app.main()
    told = capsys.readouterr()
    assert json.loads(told.out) == {"version": 1, "seconds": 1}
    assert "[resource.memory]" in told.err


def test_interrupt_says_how_to_go_on_only_where_that_is_possible(run_main):
    assert run_main(KeyboardInterrupt(), "make", "x") == (
        130,
        "interrupted; run the same command again with --resume\n",
    )
    assert run_main(KeyboardInterrupt(), "rag", "index")[1].endswith("--resume\n")
    assert run_main(KeyboardInterrupt(), "ask", "run") == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["forensics", "check", "gone.jpg"], 1), (["--version"], 0), (["forensics", "--help"], 0)],
)
def test_the_process_ends_with_the_code_of_its_command(arguments, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stillroom", *arguments])
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == code
    assert capsys.readouterr().out


def test_debug_raises_the_error_itself(monkeypatch, run_main):
    error = RecipeError("no", code="recipe.value")
    with pytest.raises(RecipeError):
        run_main(error, "make", "--debug")


def problems(count):
    return RecipeError(
        [Problem(f"{n} is wrong", "recipe.value", "", "1", "2") for n in range(count)]
    )


def test_a_screen_holds_what_fits_and_counts_the_rest(run_main):
    _, told = run_main(problems(8), "make")
    assert told == f"{problems(8)}\n"
    _, told = run_main(problems(50), "make")
    lines = told.splitlines()
    assert len(lines) <= 24
    assert lines[-1] == "and 43 more; --debug shows them all"
    assert sum("is wrong" in line for line in lines) == 7


def test_one_problem_is_shown_whole(run_main):
    long = RecipeError("\n".join("line" for _ in range(60)), code="recipe.value")
    _, told = run_main(long, "make")
    assert told.count("line") == 60


def test_unknown_commands_are_answered_with_the_nearest():
    told = CliRunner().invoke(app.stillroom, ["mkae"])
    assert told.exit_code == 2
    assert "No such command 'mkae'; did you mean 'stillroom make'?" in told.stderr
    assert "did you mean" not in CliRunner().invoke(app.stillroom, ["qqqqqq"]).stderr


@pytest.mark.parametrize("what", ["flow/make", "merge.weights/ties", "flow/", "/ties"])
def test_the_schema_of_a_method_is_refused(what):
    refused = CliRunner().invoke(stillroom, ["new", what, "--schema"])
    assert refused.exit_code == 2
    assert "--schema prints the schema of a KIND" in refused.output
    assert CliRunner().invoke(stillroom, ["new", "flow", "--schema"]).exit_code == 0


def test_a_reader_that_goes_ends_a_command_quietly(tmp_path):
    for arguments in (["list", "methods"], ["new", "flow/make"], ["--help"]):
        reading, writing = os.pipe()
        os.close(reading)  # as `head` does once it has enough
        with os.fdopen(writing, "wb") as gone:
            ended = subprocess.run(
                [sys.executable, "-m", "stillroom", *arguments],
                stdout=gone,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_broken_socket_is_no_reader_that_went(run_main, monkeypatch, capsys):
    monkeypatch.setattr(app, "is_output_closed", lambda: False)
    code, told = run_main(BrokenPipeError(32, "Broken pipe"))
    assert code == 1
    assert "[internal]" in told


def test_a_broken_pipe_is_no_signal_that_ends_a_server(monkeypatch):
    before = signal.getsignal(signal.SIGPIPE)
    monkeypatch.setattr(sys, "argv", ["stillroom", "--version"])
    with pytest.raises(SystemExit):
        app.main()
    assert signal.getsignal(signal.SIGPIPE) == before == signal.SIG_IGN


@pytest.mark.parametrize(("cards", "is_spared"), [((), True), ((os.devnull,), False)])
def test_triton_is_not_imported_where_there_is_no_card(monkeypatch, cards, is_spared):
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(app, "_GPU_DEVICES", cards)
    app._disable_triton()
    assert ("triton" in sys.modules) == is_spared
    if is_spared:
        assert importlib.util.find_spec("triton") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("triton")


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_unless_the_user_says_otherwise(monkeypatch, given, kept):
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(sys, "argv", ["stillroom", "--version"])
    with pytest.raises(SystemExit):
        app.main()
    assert os.environ["OMP_WAIT_POLICY"] == kept


def test_a_path_is_printed_once():
    assert str(Problem("/a/b cannot be read", "data.missing", "/a/b")).startswith("/a/b cannot")
    assert str(Problem("it cannot be read", "data.missing", "/a/b")).startswith("/a/b: it cannot")
    assert str(Problem("it cannot be read", "data.missing")).startswith("it cannot be read")
    for what in ("model.bin is a pickle", "models differ"):  # in the folder "model"
        assert str(Problem(what, "data.missing", "model")).startswith(f"model: {what}")
    assert str(Problem("a file is empty", "data.missing", "a")).startswith("a: a file")
