"""DocBook and Mallard manuals."""

import pytest

from stillroom.errors import DataError
from stillroom.text.reader import detect_parser

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
        "# Manual of the Pump\n\nAnn Lee\n\n## Use\n\nPress Start; see the valve and\n--fast.\n\n"
        "### Steps\n\n1. Fill it.\n2. Wait.\n\nLamp\n\nGreen is good.\n\n"
        "```\npump --fast\npump --stop\n```\n\nLimits\n\n"
        "| Part | Bar |\n| --- | --- |\n| Valve | 7 |\n\nHeat\n\nNever run it dry."
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
    ],
)
def test_manuals_in_files_of_another_name_are_known_by_their_start(name, data, parser):
    assert detect_parser(name, data.encode()).method_name() == parser


def test_markup_that_never_closes_is_read_to_its_end(parse):
    assert parse("docbook", "<chapter><title>A</title><para>One.<para>Two").text.endswith("Two")
    with pytest.raises(DataError, match="no text"):
        parse("docbook", "<chapter></chapter></book>")
