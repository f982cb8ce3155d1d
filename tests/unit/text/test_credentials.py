"""Marked documents: their origin, their text without the mark, and the bytes it stands at."""

import json

import pytest

from stillroom.errors import DataError
from stillroom.provenance.text_marks import open_marker
from stillroom.records import Origin
from stillroom.records.text_credentials import Disclosure, read_credentials
from stillroom.records.text_credentials.carriers import encode_selectors
from stillroom.records.text_credentials.jumbf import build_claim, build_store
from stillroom.text import parse_bytes

TEXT = "# Kräne\n\nA „crane“ lifts, naïve and 👩‍👩‍👧 strong.\n\n## Second\n\nIt also lowers.\n"
PAGE = (
    "<!doctype html><html><head><title>Cranes</title></head><body><h1>Cranes</h1>"
    "<p>A crane that lifts what is heavy, and lowers it again, stands here.</p></body></html>"
)
MODEL = Disclosure(model_name="Small", model_identifier="gguf:" + "cd" * 32)


def mark(text, media_type="text/plain", said=MODEL):
    return open_marker().mark(text, said, media_type)


def parse(name, data, **settings):
    document = parse_bytes(data, name, **settings)
    encoding = document.metadata.get("encoding", "utf-8")
    for anchor in document.anchors:
        if anchor.is_exact:
            span = data[anchor.byte_start : anchor.byte_end]
            assert span.decode(encoding) == document.text[anchor.start : anchor.end]
    for heading in document.headings:
        assert document.text[heading.start :].lstrip("# ").startswith(heading.title)
    assert "C2PA" not in document.text
    assert "\ufeff" not in document.text
    return document


def methods(document):
    return [link.method for link in document.origin.chain]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "README"])
def test_a_marked_file_is_its_text_and_synthetic(name):
    document = parse(name, mark(TEXT).encode(), origin=Origin("human", license="MIT"))
    assert document.text == TEXT
    assert (document.origin.kind, document.origin.license) == ("synthetic", "MIT")
    assert document.origin.chain[0].model == MODEL.model_identifier
    (described,) = document.metadata["credentials"]
    assert (described["state"], described["model_name"]) == ("valid", "Small")
    assert "written by a model by Small" in document.metadata["notices"][0]
    assert document == type(document).from_json(json.loads(json.dumps(document.to_json())))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_other_encodings_are_read_too(encoding):
    document = parse("a.txt", mark(TEXT).encode(encoding))
    assert (document.text, document.origin.kind) == (TEXT, "synthetic")


def test_text_between_marks_keeps_its_bytes():
    data = (
        f"Ä first. {mark('Pasted ü.')} Between, ö. {mark('Pasted again.')}\n\nThe ënd.\n".encode()
    )
    document = parse("a.txt", data)
    assert document.text == "Ä first. Pasted ü. Between, ö. Pasted again.\n\nThe ënd.\n"
    place = document.locate(document.text.index("The ënd"), document.text.index("ënd") + 3)
    assert place.is_exact
    assert data[place.byte_start : place.byte_end].decode() == "The ënd"
    assert methods(document) == ["c2pa.partial", "c2pa.partial"]


def test_a_marked_page_and_a_mark_within_a_page():
    whole = parse("a.html", mark(PAGE, "text/html").encode())
    assert (whole.origin.kind, methods(whole)) == ("synthetic", ["c2pa.valid"])
    pasted = PAGE.replace("stands here", mark("Stands where it was pasted"))
    assert methods(parse("a.html", pasted.encode())) == ["c2pa.partial"]


def test_a_comment_in_markdown_is_no_text():
    document = parse("a.md", mark(TEXT, "text/markdown").encode())
    assert (document.text, methods(document)) == (TEXT, ["c2pa.valid"])


@pytest.mark.parametrize("is_ascii", [True, False])
def test_strings_of_json_are_verified_as_they_were_written(is_ascii):
    rows = [{"text": mark(f'{TEXT}"{number}"'), "n": number} for number in range(2)]
    lines = "\n".join(json.dumps(row, ensure_ascii=is_ascii) for row in rows)
    assert methods(parse("a.jsonl", lines.encode())) == ["c2pa.valid"] * 2
    assert methods(parse("a.json", json.dumps(rows, ensure_ascii=is_ascii).encode())) == [
        "c2pa.valid",
        "c2pa.valid",
    ]


def test_an_edited_and_a_cut_text_stay_a_models():
    marked = mark(TEXT)
    edited = parse("a.txt", marked.replace("lifts", "drops").encode())
    assert (edited.origin.kind, methods(edited)) == ("synthetic", ["c2pa.changed"])
    cut = parse("a.txt", marked[:-500].encode())
    assert (cut.origin.kind, methods(cut)) == ("synthetic", ["c2pa.damaged"])


def test_an_unmarked_text_keeps_the_origin_it_was_given():
    for text in (TEXT, "❤\ufe0f and 葛\U000e0100 and \ufeff within.", "application/c2pa"):
        document = parse_bytes(text.encode(), "a.txt", origin=Origin("human"))
        assert document.origin == Origin("human")
        assert "credentials" not in document.metadata
        assert document.text == text


def test_a_file_with_nothing_but_a_mark_holds_no_text():
    with pytest.raises(DataError, match="holds no text"):
        parse_bytes(mark("").encode(), "a.txt")


def test_a_thousand_marks_in_a_file_are_read_in_time():
    marks = mark("One.")
    document = parse("a.txt", "".join(f"{number} {marks}\n" for number in range(300)).encode())
    assert document.text.startswith("0 One.\n1 One.\n")
    assert len(document.origin.chain) == 1  # the same text, 300 times


def test_a_second_mark_of_the_same_name_hides_no_models_text():
    signer = open_marker().signer
    marked = mark(TEXT)
    name = read_credentials(marked)[0].manifest
    said = {"c2pa.actions.v2": {"actions": [{"digitalSourceType": "x/digitalCreation"}]}}
    hashed = {"exclusions": [{"start": 5, "length": 3000}], "alg": "sha256", "hash": b""}
    boxes, claim = build_claim({**said, "c2pa.hash.data": hashed}, "x", {})
    other = encode_selectors(build_store(name, boxes, claim, signer.wrap(signer.sign(claim))))
    for text in (marked + other, other + marked):
        assert parse("a.txt", text.encode()).origin.kind == "synthetic"
