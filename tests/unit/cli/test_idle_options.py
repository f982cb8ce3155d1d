"""Options that would have no effect beside the others are usage errors that name them."""

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom

IMPORT = ("forensics", "benchmark", "import", "--out", "m.jsonl")
REBUILD = ("rag", "rebuild", ".")
MIGRATE = ("rag", "migrate", ".")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("ask", ".", "Who?", "--no-mark"), "--no-mark needs --out"),
        (("ask", ".", "Who?", "--overwrite"), "--overwrite needs --out or --evidence"),
        (("attest", ".", "--format", "card", "--overwrite"), "--overwrite needs --out"),
        (("diffusion", "sample", ".", "--overwrite"), "--overwrite needs --html"),
        (("forensics", "check", ".", "--maps"), "--maps needs --detector"),
        (("forensics", "check", ".", "--overwrite"), "--overwrite needs --html"),
        (("forensics", "check", ".", "--prevalence", "0.1"), "--prevalence needs --detector"),
        (
            (*IMPORT, "--folder", ".", "--compression", "raw"),
            "--compression has no effect with --folder",
        ),
        ((*IMPORT, "--folder", ".", "--ff-test", "x"), "--ff-test has no effect with --folder"),
        (
            (*IMPORT, "--folder", ".", "--deepfakebench", "x"),
            "--deepfakebench has no effect with --folder",
        ),
        (
            (*IMPORT, "--deepfakebench", "x", "--ff-test", "x"),
            "--ff-test has no effect with --deepfakebench",
        ),
        (("judge", ".", "--right", "--wrong"), "give one of --right"),
        ((*MIGRATE, "--to", "folder", "name=postgres"), "--to names the store"),
        ((*MIGRATE, "--drop-source", "--queries", "3"), "--queries applies to --to STORE only"),
        ((*MIGRATE, "--drop-source", "prefix=a"), "prefix=a applies to --to STORE only"),
        ((*REBUILD, "--rollback", "--drop-previous"), "give either --rollback"),
        ((*REBUILD, "--rollback", "--recipe", "r"), "--recipe applies to a new index only"),
        ((*REBUILD, "--drop-previous", "--anyway"), "--anyway applies to a new index"),
        ((*MIGRATE, "--drop-source", "name=postgres"), "name=postgres applies to --to STORE only"),
        ((*REBUILD, "--drop-previous", "seed=1"), "seed=1 applies to a new index only"),
        (("rag", "graph-show", ".", "--overwrite"), "--overwrite needs --graphml"),
        (("rag", "graph-show", ".", "--tenant", "a"), "--tenant needs --index"),
        (("rag", "graph-show", ".", "--principal", "a"), "--principal needs --index"),
        (("show", ".", "--within", "."), "--within needs --lineage or --trace"),
        (("show", ".", "--lineage", "--within", "."), "--within applies to answers"),
        (("show", ".", "--min-words", "3"), "--min-words needs --trace"),
        (("show", ".", "--record", "r", "--within", "."), "--within applies to answers"),
        (("show", ".", "--record", "r", "--examples", "3"), "--examples has no effect with --rec"),
        (("show", ".", "--lineage", "--trace"), "--lineage has no effect with --trace"),
        (("show", "ties", "--lineage"), "--lineage applies to a run"),
        (("verify", ".", "--seed", "1"), "--seed needs --replay"),
        (("verify", ".", "--out", "a.json"), "--out needs --replay"),
        (("verify", ".", "--overwrite"), "--overwrite needs --out"),
        (("verify", ".", "--model", "m"), "--model needs --within"),
        (("verify", "pyproject.toml", "--replay", "3"), "--replay applies to a run"),
        (("verify", ".", "--within", ".", "--replay", "3"), "and --within to the evidence"),
    ],
)
def test_an_option_without_effect_is_a_usage_error(call, said):
    result = CliRunner().invoke(stillroom, call)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output


def test_options_of_a_path_that_is_not_there_do_not_hide_that(tmp_path):
    result = CliRunner().invoke(stillroom, ["show", str(tmp_path / "no.json"), "--trace"])
    assert getattr(result.exception, "code", "") == "data.missing"
