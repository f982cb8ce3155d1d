"""DocBook and Mallard manuals."""

import time
from itertools import pairwise
from pathlib import Path

import pytest

from stillroom.errors import DataError
from stillroom.text.parsers import docbook
from stillroom.text.reader import detect_parser, parse_file

BOOK = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE book PUBLIC "-//OASIS//DTD DocBook XML V4.5//EN" "docbookx.dtd" [
  <!ENTITY app "The <productname>Pump</productname>">
  <!ENTITY % addindex "IGNORE">
]>
<book lang="en"><bookinfo><title
>Manual of the <application>Pump</application></title>
<author><personname>Ann Lee</personname></author><keywordset><keyword>pumps</keyword></keywordset>
</bookinfo>
<chapter id="use"><title>Use</title>
<para>Press <guibutton>Start</guibutton>; see <link linkend="x">the valve</link> and
<option>--fast</option>.</para>
<sect1><title>Steps</title>
<orderedlist><listitem><para>Fill it.</para></listitem><listitem><para>Wait.</para></listitem>
</orderedlist>
<variablelist><varlistentry><term>Lamp</term><listitem><para>Green is good.</para></listitem>
</varlistentry></variablelist>
<screen>pump --fast
pump --stop</screen>
<table><title>Limits</title><tgroup cols="2"><thead><row><entry>Part</entry><entry>Bar</entry></row>
</thead><tbody><row><entry>Valve</entry><entry>7</entry></row></tbody></tgroup></table>
<note><title>Heat</title><para>Never run it dry.</para></note>
<indexterm><primary>dryness</primary></indexterm>
</sect1></chapter></book>
"""

PAGE = """<page xmlns="http://projectmallard.org/1.0/" type="topic" id="power">
<info><link type="guide" xref="x"/><revision pkgversion="3"/><title type="sort">1</title>
<credit type="author"><name>Bo</name></credit><desc>Save the battery.</desc></info>
<title>Turn off <gui>Wi-Fi</gui></title>
<steps><item><p>Open the <gui>Activities</gui>.</p></item><item><p>Choose off.</p></item></steps>
<section id="s"><title>Keys</title><terms><item><title>F2</title><p>Off.</p></item></terms>
<code>rfkill list</code><p>It uses <code>rfkill</code>.</p></section></page>
"""


def test_a_book_becomes_markdown_with_the_levels_of_its_sections(parse, bytes_of):
    document = parse("docbook", BOOK)
    assert document.text == (
        "# Manual of the Pump\n\n## Use\n\nPress Start; see the valve and\n--fast.\n\n"
        "### Steps\n\n1. Fill it.\n2. Wait.\n\nLamp\n\nGreen is good.\n\n"
        "```\npump --fast\npump --stop\n```\n\nLimits\n\n"
        "| Part | Bar |\n| --- | --- |\n| Valve | 7 |\n\nHeat:\n\nNever run it dry."
    )
    assert [(one.level, one.title) for one in document.headings] == [
        (1, "Manual of the Pump"),
        (2, "Use"),
        (3, "Steps"),
    ]
    assert document.title == "Manual of the Pump"
    found, place = bytes_of(document, BOOK.encode(), "Green is good")
    assert found == b"Green is good"
    assert place.is_exact


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<keycombo>\n <keycap>Ctrl</keycap>\n <keycap>s</keycap>\n</keycombo>", "Ctrl+s"),
        ("<keycombo action='seq'><keysym>g</keysym> <keysym>t</keysym></keycombo>", "g t"),
        ("<keycombo action='press'><keycap>Alt</keycap><keycap>F</keycap></keycombo>", "Alt-F"),
        (
            "<menuchoice><shortcut><keycombo><keycap>Ctrl</keycap><keycap>S</keycap></keycombo>"
            "</shortcut> <guimenu>File</guimenu> <guimenuitem>Save</guimenuitem></menuchoice>",
            "(Ctrl+S) File \u2192 Save",
        ),
        (
            "<menuchoice><guimenu>File</guimenu><shortcut><keycap>F2</keycap></shortcut>"
            "</menuchoice>",
            "File (F2)",
        ),
        ("<guiseq><gui>File</gui><gui>Open</gui></guiseq>", "File \u2192 Open"),
        ("<keyseq><key>Ctrl</key>+<key>a</key></keyseq>", "Ctrl+a"),
        ("<keyseq type='sequence'><key>a</key><key>b</key></keyseq>", "a b"),
        ('<xref linkend="below"/>', "\u201cThe Pump, again\u201d"),
        ("<xref linkend='lamp'></xref>", "\u201cLamp\u201d"),
        ("<xref linkend='named'/>", "Table 7"),
        ("<xref linkend='sect-far'/>", "sect-far"),
        ("<link linkend='below'/>", "\u201cThe Pump, again\u201d"),
        ("<link linkend='below'>it</link>", "it"),
        ("<ulink url='http://a.example/'/>", "http://a.example/"),
        ("<link xlink:href='far.html'/>", "far.html"),
        ("<xref/>", ""),
        ("<link type='guide' xref='x'/>", ""),
    ],
)
def test_what_a_stylesheet_writes_is_written(tmp_path, markup, text):
    below = (
        "<a b='c'><title>No target</title></a><varlistentry id='lamp'><term>Lamp</term>"
        "</varlistentry><table xreflabel='Table 7' id='named'/>"
        "<sect1 xml:id='below'><!-- x --><title>The &app;,\n <em>again</em>.</title>"
    )
    read = read_book(tmp_path, '<!ENTITY app "Pump">', f"See {markup} now.</para>{below}<para>")
    assert read.startswith(f"See {text} now." if text else "See now.")


def test_what_a_stylesheet_writes_stands_where_its_tag_does(parse, bytes_of):
    data = b"<chapter id='a'><title>Use</title><para>See <xref linkend='a'/> and wait.</para>"
    document = parse("docbook", data)
    found, place = bytes_of(document, data, "\u201cUse\u201d")
    assert (found, place.is_exact) == (b"<xref linkend='a'/>", False)


def test_the_title_of_a_note_is_a_label_unless_it_is_a_sentence(tmp_path):
    text = "A.</para><tip><title>TIP</title><para>B.</para></tip><tip><title>Why?</title><para>C."
    assert read_book(tmp_path, "", text) == "A.\n\nTIP:\n\nB.\n\nWhy?\n\nC."


def test_many_references_and_unclosed_titles_take_no_time(parse):
    for part in ("<a id='x'><title>", "<xref linkend='x'/>", "<a id='x'><!--", "<a id='x", "id="):
        started = time.monotonic()
        parse("docbook", "<para>A text. <xref/><a " + part * 20_000)
        assert time.monotonic() - started < 20, part


def test_a_page_of_mallard_is_read_without_the_links_to_it(parse):
    document = parse("docbook", PAGE)
    assert document.text == (
        "Save the battery.\n\n# Turn off Wi-Fi\n\n1. Open the Activities.\n2. Choose off.\n\n"
        "## Keys\n\nF2\n\nOff.\n\n```\nrfkill list\n```\n\nIt uses rfkill."
    )
    assert document.title == "Turn off Wi-Fi"


@pytest.mark.parametrize(
    ("name", "data", "parser"),
    [
        ("a.xml", BOOK, "docbook"),
        ("a.xml", '<article xmlns="http://docbook.org/ns/docbook"><para>Hello.', "docbook"),
        ("a.xml", '<x:stylesheet xmlns:d="http://docbook.org/ns/docbook">', "txt"),
        ("a.xml", "<settings><name>x</name></settings>", "txt"),
        ("index.docbook", "<chapter><para>Hello.</para></chapter>", "docbook"),
        ("a.xml", "<!-- at\n the top -->\n<!-- > -->\n\n<para>Hello.</para>", "docbook"),
        ("a.xml", "<legalnotice id='x'><para>Copy it.", "docbook"),
        ("a.xml", "<chapter><!-- 1 --> <title>A</title>", "docbook"),
        ("a.xml", "<params><para>", "txt"),
    ],
)
def test_manuals_in_files_of_another_name_are_known_by_their_start(name, data, parser):
    assert detect_parser(name, data.encode()).method_name() == parser


def test_markup_that_never_closes_is_read_to_its_end(parse):
    assert parse("docbook", "<chapter><title>A</title><para>One.<para>Two").text.endswith("Two")
    with pytest.raises(DataError, match="no text"):
        parse("docbook", "<chapter></chapter></book>")


HEAD = """<?xml version="1.0"?>
<!DOCTYPE book PUBLIC "-//OASIS//DTD DocBook XML V4.5//EN" "docbookx.dtd" [
<!-- <!ENTITY own "a comment"> -->
<!ENTITY % ents SYSTEM "shared/names.txt">
%ents;
"""


def read_book(folder, declared, text, name="book.docbook"):
    (folder / name).write_text(
        f"{HEAD}{declared}]>\n<book><title>Pumps</title><para>{text}</para></book>",
        encoding="utf-8",
    )
    return parse_file(folder / name, root=folder).text.removeprefix("# Pumps\n\n")


def test_entities_are_expanded_as_the_files_of_the_folder_declare_them(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/names.txt").write_text('<!ENTITY prog "the <i>Pump</i>">\n')
    (tmp_path / "more.ent").write_text("<!ENTITY maker 'Ann&nbsp;&amp; &prog;'>")
    (tmp_path / "other.xml").write_text('<!DOCTYPE book [<!ENTITY far "distant">]><book/>')
    declared = '<!ENTITY own "here">\n<!ENTITY chap SYSTEM "chap.xml">\n<!ENTITY far "near">\n'
    text = "&prog; of &maker; is &own; &far; &mdash; &no-such.one; &chap;&#65; &lt;x&gt;"
    read = read_book(tmp_path, declared, text)
    assert read == "the Pump of Ann & the Pump is here near \u2014 no-such.one A <x>"
    (tmp_path / "chap.xml").write_text(
        "<chapter id='x'><title>Far</title><p>&far; &own;</p></chapter>"
    )
    assert parse_file(tmp_path / "chap.xml", root=tmp_path).text == "# Far\n\nnear here"


def test_a_name_of_a_sign_may_be_an_entity_of_the_manual(tmp_path):
    (tmp_path / "own.ent").write_text("<!ENTITY prod 'Pump'>")
    (tmp_path / "chap.xml").write_text("<chapter><title>The &prod; &copy;</title></chapter>")
    assert parse_file(tmp_path / "chap.xml", root=tmp_path).text == "# The Pump \u00a9"
    assert not docbook.Docbook.has_entities(b"&copy;&mdash;&uuml;&amp;&apos; a &b")


def test_the_document_that_includes_another_declares_its_entities(tmp_path):
    other = "<!DOCTYPE book [<!ENTITY prog 'Other'>]><book/>"
    for number in range(70):
        (tmp_path / f"a{number:02}.xml").write_text("<chapter><title>A</title></chapter>")
    (tmp_path / "b-other.xml").write_text(other)
    (tmp_path / "main.xml").write_text(
        "<!DOCTYPE book [<!ENTITY c SYSTEM 'chap.xml'><!ENTITY prog 'Pump'>]><book>&c;</book>"
    )
    (tmp_path / "chap.xml").write_text(
        "<chapter><title>The &prog;</title><p>It runs.</p></chapter>"
    )
    assert parse_file(tmp_path / "chap.xml", root=tmp_path).text.startswith("# The Pump")


def test_an_expansion_keeps_the_place_of_its_entity(tmp_path, bytes_of):
    read_book(tmp_path, '<!ENTITY own "our pump">', "Start &own; now.")
    document = parse_file(tmp_path / "book.docbook", root=tmp_path)
    found, place = bytes_of(document, (tmp_path / "book.docbook").read_bytes(), "our pump")
    assert (found, place.is_exact) == (b"&own;", False)


def test_code_that_is_marked_as_characters_is_not_expanded(tmp_path):
    read = read_book(tmp_path, '<!ENTITY x "y">', "<![CDATA[f = &x;]]> &x;")
    assert "f = &x;" in read
    assert read.endswith("y")


@pytest.mark.parametrize("where", ["file:///etc/hostname", "../secret.txt", "http://a.example/x"])
def test_no_file_outside_the_folder_is_opened(tmp_path, where):
    (tmp_path / "secret.txt").write_text('<!ENTITY told "secret">')
    (tmp_path / "book").mkdir()
    (tmp_path / "book/link.ent").symlink_to(tmp_path / "secret.txt")
    declared = f'<!ENTITY % out SYSTEM "{where}">\n<!ENTITY file SYSTEM "{where}">\n'
    assert read_book(tmp_path / "book", declared, "&told;&file;") == "told"


@pytest.mark.parametrize("leaf", ["lol", ""])
def test_entities_of_entities_are_bounded(tmp_path, leaf):
    names = "abcdefgh"
    laughs = "".join(f'<!ENTITY {one} "{f"&{two};" * 2000}">\n' for one, two in pairwise(names))
    declared = f'{laughs}<!ENTITY h "{leaf}">\n<!ENTITY me "&you;">\n<!ENTITY you "&me;&me;">\n'
    started = time.monotonic()
    read = read_book(tmp_path, declared, "Text: &a; &me; &h;.")
    assert time.monotonic() - started < 30
    assert read in {"Text: a me lol.", "Text: me ."}


def test_many_expansions_are_bounded(tmp_path):
    declared = f'<!ENTITY long "{"x" * 1900}">\n'
    read = read_book(tmp_path, declared, "&long; " * 2000)
    assert 900_000 < len(read) < 1_100_000


def test_authors_are_no_text(tmp_path):
    people = (
        "<bookinfo><authorgroup><author><firstname>Ann</firstname><surname>Lee</surname></author>"
        "<editor>Bo</editor></authorgroup></bookinfo>"
    )
    text = f"It runs.</para>{people}<para>It stops."
    assert read_book(tmp_path, "", text) == "It runs.\n\nIt stops."


def test_authors_of_other_works_are_text(tmp_path):
    work = "<biblioentry><author>Ann Lee</author><title>On pumps</title></biblioentry>"
    text = f"See:</para><bibliography>{work}</bibliography><para>End."
    assert read_book(tmp_path, "", text) == "See:\n\nAnn Lee\n\nOn pumps\n\nEnd."


def test_unclosed_comments_of_another_file_take_no_time(tmp_path):
    (tmp_path / "hostile.ent").write_text("<!--" * 60_000)
    started = time.monotonic()
    assert read_book(tmp_path, "", "&own;") == "own"
    assert time.monotonic() - started < 5


def test_no_file_is_read_for_a_document_without_entities(tmp_path, monkeypatch):
    monkeypatch.setattr(docbook, "read_entity_declarations", None)
    assert read_book(tmp_path, "", "x &lt; y &amp;&#65; & &quot;") == 'x < y &A & "'


@pytest.mark.parametrize("name", ["x\0y.ent", "x" * 300, "loop.ent"])
def test_names_that_lead_to_no_file_are_left_out(tmp_path, name):
    (tmp_path / "loop.ent").symlink_to("loop.ent")
    (tmp_path / "z.ent").write_text('<!ENTITY prog "Pump">')
    assert read_book(tmp_path, f'<!ENTITY % x SYSTEM "{name}">', "&prog;") == "Pump"


def test_the_files_that_are_looked_for_are_bounded(tmp_path, monkeypatch):
    (tmp_path / "a.ent").write_text(
        "".join(f'<!ENTITY % x{n} SYSTEM "../{n}.ent">' for n in range(2000))
    )
    looked, resolve = [], Path.resolve

    def count(path, strict=False):
        looked.append(path)
        return resolve(path, strict)

    monkeypatch.setattr(Path, "resolve", count)
    read_book(tmp_path, "", "&own;")
    assert len(looked) < 300
