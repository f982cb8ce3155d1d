"""A command that replaces its earlier result does not replace a folder with anything else."""

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.errors import DataError
from stillroom.jobs.files import refuse_existing
from stillroom.testing import tiny_checkpoint

HOLDS = ("report.json", "[0-9][0-9]/*.txt")


def test_only_an_earlier_result_is_replaced(tmp_path):
    refuse_existing(tmp_path / "new", HOLDS, overwrite=False)
    (tmp_path / "00").mkdir()
    (tmp_path / "00" / "a.txt").touch()
    (tmp_path / "report.json").touch()
    for beside in ("model.sig", ".DS_Store", "00/.DS_Store"):
        (tmp_path / beside).touch()
    refuse_existing(tmp_path, HOLDS, overwrite=True)
    with pytest.raises(DataError):
        refuse_existing(tmp_path, HOLDS, overwrite=False)
    (tmp_path / "00" / "photo.jpg").touch()
    with pytest.raises(DataError, match=r"photo\.jpg"):
        refuse_existing(tmp_path, HOLDS, overwrite=True)
    with pytest.raises(DataError):
        refuse_existing(tmp_path / "report.json", HOLDS, overwrite=True)


@pytest.mark.parametrize(
    "words",
    [
        "rag unpack corpus.jsonl",
        "merge extract tuned --base base",
        "merge extract tuned --base base --as task_vector",
        "merge inspect base tuned tuned",
    ],
)
def test_overwrite_keeps_the_files_of_others(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "title": "", "text": "hello"}\n')
    tiny_checkpoint(tmp_path / "base", seed=0)
    tiny_checkpoint(tmp_path / "tuned", seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    refused = CliRunner().invoke(stillroom, [*words.split(), "--out", "mine", "--overwrite"])
    assert isinstance(refused.exception, DataError)
    assert (tmp_path / "mine" / "letter.txt").exists()
    for options in ([], ["--overwrite"]):
        made = CliRunner().invoke(stillroom, [*words.split(), "--out", "out", *options])
        assert made.exit_code == 0, made.output
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
