"""Texts that are not UTF-8: the error names the byte, and its command converts the file."""

import codecs
import gzip
import json
import shutil
import subprocess

import pytest

from stillroom.errors import DataError
from stillroom.evaluate.qa.questions import read_question_set
from stillroom.records import read_records
from stillroom.records.streams import iter_rows, split_lines

LINES = "".join(
    json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in ("one", "Öl", "ß")
)
TABLE = "text,note\none,a\nÖl,b\n"
NAMES = {"utf-16": "UTF-16", "utf-32": "UTF-32", "utf-16-le": "UTF-16LE", "cp1252": "WINDOWS-1252"}


def refuse(path):
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    return caught.value.problems[0]


@pytest.mark.parametrize("encoding", NAMES)
@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.json", "r.txt", "r.jsonl.gz"])
def test_the_command_converts_the_file(tmp_path, encoding, name):
    folder = tmp_path / "my files"
    folder.mkdir()
    texts = {"csv": TABLE, "json": f"[{LINES.strip().replace(chr(10), ',')}]"}
    text = texts.get(name.rpartition(".")[2], LINES)
    data, path = text.encode(encoding), folder / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    problem = refuse(path)
    assert problem.code == "data.encoding"
    assert problem.where.startswith(str(path))
    offset = data.index("Ö".encode(encoding)) if encoding == "cp1252" else 0
    assert f"byte {offset} is not UTF-8" in problem.what
    assert f"-f {NAMES[encoding]} -t UTF-8" in problem.next
    if encoding != "cp1252":
        assert NAMES[encoding] in problem.what
    if shutil.which("iconv"):
        subprocess.run(["bash", "-c", problem.next], check=True)
        converted = folder / name.removesuffix(".gz").replace("r.", "r.utf8.")
        plain = folder / f"plain.{name.removesuffix('.gz').rpartition('.')[2]}"
        plain.write_text(text, encoding="utf-8")
        assert list(read_records(converted)) == list(read_records(plain))


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.json", "r.txt"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_byte_order_mark_moves_no_place(tmp_path, name, at):
    text = TABLE if name == "r.csv" else LINES
    bad = text.split("\n")
    bad[at] = bad[at].replace("e", "\ue000", 1) if at == 0 else bad[at] + " \ue000"
    data = "\n".join(bad).encode().replace("\ue000".encode(), b"\xff")
    if name == "r.json":
        data = b'["' + data + b'"]'
    for mark in (b"", codecs.BOM_UTF8):
        (tmp_path / name).write_bytes(mark + data)
        place = (mark + data).index(b"\xff")
        assert f"byte {place} is not UTF-8" in refuse(tmp_path / name).what


def test_places_count_from_the_start_of_the_file_in_every_piece(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"text": "one"}\n' * 9 + b'{"text": "\xff"}\n')
    found = [
        row.problems[0].what
        for span in split_lines(path, 40)
        for _, row in iter_rows(path, span)
        if isinstance(row, DataError)
    ]
    assert found == [f"byte {16 * 9 + 10} is not UTF-8"]


def test_a_row_that_is_not_utf_8_is_passed_over_where_rows_are(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "\xff"}\n')
    dropped = {}
    assert len(list(read_records(path, on_drop=dropped.__setitem__))) == 1
    assert dropped == {2: "byte 26 is not UTF-8; expected a text in UTF-8 (data.encoding)"}


def test_questions_say_it_too(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b'{"question": "W\xe4re?"}\n')
    with pytest.raises(DataError) as caught:
        read_question_set(path)
    problem = caught.value.problems[0]
    assert (problem.code, problem.what) == ("data.encoding", "byte 18 is not UTF-8")
