"""What of a quote is the document's own: its line ends."""

import pytest

from stillroom.rag.generation.verbatim import describe_quote
from stillroom.records import Location, Passage
from stillroom.text.reader import parse_file

PAGE = (
    "<html><head><title>T</title></head><body><p>Write access was required to read a\n"
    "WAL-mode database,\nin short.<br>Then it\nwas not.</p><pre>first line\nsecond line</pre>"
    "<ul><li>one\nmore</li></ul></body></html>"
)


@pytest.fixture
def describe(tmp_path):
    def describe(name, text):
        (tmp_path / name).write_text(text)
        document = parse_file(tmp_path / name)
        location = Location(document.path, document.digest, 0, len(text))
        passage = Passage(document.id, 0, len(document.text), document.text, location)
        quote = describe_quote(passage, document, 1, 0, len(document.text))
        text = list(quote["text"])
        for place in quote.get("soft_breaks", ()):
            assert text[place] == "\n"
            text[place] = " "
        return "".join(text)

    return describe


def test_line_ends_in_the_source_of_a_page_are_soft(describe):
    shown = describe("page.html", PAGE)
    assert "Write access was required to read a WAL-mode database, in short.\nThen it was" in shown
    assert "first line\nsecond line" in shown
    assert "one more" in shown
    assert "a\nb" in describe("lines.txt", "a\nb\n")


def test_line_ends_in_the_source_of_a_manual_are_soft(describe):
    manual = (
        "<chapter><title>T</title><para>Some of them are\n<keycombo>\n<keycap>Ctrl</keycap>\n"
        "<keycap>s</keycap></keycombo>\nto save.</para><screen>first line\nsecond line</screen>"
    )
    shown = describe("manual.docbook", manual)
    assert "Some of them are Ctrl+s to save." in shown
    assert "first line\nsecond line" in shown
