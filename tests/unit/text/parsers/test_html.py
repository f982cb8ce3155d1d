import pytest

from stillroom.errors import DataError

PAGE = """<!doctype html>
<html lang="de"><head><title>The &amp; title</title><style>p{}</style></head><body class="nav-open">
<nav><a href="/">Home</a> <a href="/a">About</a></nav>
<main>
  <h1>Größe &amp; <em>Maß</em></h1>
  <p>A first paragraph that is
     wrapped &mdash; with <a href="x">a link</a> in it.
  <p>A second one, never closed.
  <ul><li>one<li>two <b>bold</b><ol><li>deep</ol></ul>
  <pre><code>def f():
    return 1 &lt; 2
</code></pre>
  <table><caption>Prices</caption><tr><th>What<th>Cost<tr><td>Tea | milk<td>2</table>
</main>
<div class="cookie-banner">We use cookies.</div>
<script>alert("<p>no</p>")</script>
<footer>Imprint</footer></body></html>
"""


def test_the_main_text_becomes_markdown_and_the_rest_is_counted(parse):
    document = parse("html", PAGE)
    assert document.text == (
        "# Größe & Maß\n\n"
        "A first paragraph that is\nwrapped — with a link in it.\n\n"
        "A second one, never closed.\n\n"
        "- one\n- two bold\n  1. deep\n\n"
        "```\ndef f():\n    return 1 < 2\n```\n\n"
        "Prices\n\n"
        "| What | Cost |\n| --- | --- |\n| Tea \\| milk | 2 |"
    )
    assert document.title == "The & title"
    assert [(one.level, one.title) for one in document.headings] == [(1, "Größe & Maß")]
    assert document.metadata["declared_language"] == "de"
    assert document.metadata["boilerplate_characters"] > 0


def test_every_piece_leads_to_its_bytes(parse, bytes_of):
    data = PAGE.encode()
    document = parse("html", data)
    for piece in ("Größe", "Maß", "A first paragraph", "a link", "return 1", "bold"):
        found, place = bytes_of(document, data, piece)
        assert found == piece.encode()
        assert place.is_exact
    found, place = bytes_of(document, data, "—")
    assert found == b"&mdash;"
    assert not place.is_exact
    assert bytes_of(document, data, "| Tea")[0] == b"Tea | milk<td>2"
    for anchor in document.anchors:
        if anchor.is_exact:
            piece = document.text[anchor.start : anchor.end]
            assert data[anchor.byte_start : anchor.byte_end].decode() == piece


def test_a_declared_encoding_is_believed(parse, bytes_of):
    page = '<meta charset="iso-8859-2"><p>Zażółć gęślą jaźń, a long enough line.</p>'
    data = page.encode("iso-8859-2")
    document = parse("html", data)
    assert document.text.startswith("Zażółć gęślą jaźń")
    assert bytes_of(document, data, "jaźń")[0] == "jaźń".encode("iso-8859-2")


def test_a_page_without_main_drops_runs_of_links_but_keeps_single_ones(parse):
    links = "".join(f"<li><a href=/{number}>Link number {number}</a></li>" for number in range(9))
    page = f"<ul>{links}</ul><p>{'Real words of the text. ' * 9}</p><p><a href=x>See this</a></p>"
    text = parse("html", page).text
    assert "Link number" not in text
    assert "Real words" in text
    assert "See this" in text


def test_a_page_of_nothing_but_links_keeps_them(parse):
    page = "".join(f"<p><a href=/{number}>Link number {number}</a></p>" for number in range(9))
    assert "Link number 8" in parse("html", page).text


def test_a_table_for_layout_gives_its_blocks(parse):
    page = "<table><tr><td><h2>Left</h2><p>Text of the left.</td><td><p>Right.</td></tr></table>"
    assert parse("html", page).text == "## Left\n\nText of the left.\n\nRight."


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("<pre>a = 1\nb = 2</pre>", "a = 1 b = 2"),
        ("<h4>Total</h4>", "Total"),
        ("<h4>Total</h4><p>of all</p>", "Total of all"),
        ("<p>See</p><pre>x</pre><p>there</p>", "See x there"),
        ("<table><tr><td>a|b<td>2<tr><td>c<td>3</table>", "a\\|b, 2; c, 3"),
        ("<table><tr><td>a<td>2</table>", "a 2"),
        ("<table role=presentation><tr><td>a<td>2<tr><td>c<td>3</table> d", "a 2 c 3 d"),
        ("<table><caption>Sums</caption><tr><th>a<th>2<tr><td>c<td>3</table>", "Sums a, 2; c, 3"),
        ("<ul><li>one<li>two</ul>", "one; two"),
        ("<p>Two:</p><ul><li>one<li>two</ul><p>all</p>", "Two: one; two all"),
        ("x" * 1500, "x" * 1500),
    ],
)
def test_what_is_in_a_cell_leaves_the_table_a_table(parse, bytes_of, cell, shown):
    page = f"<table><tr><th>What<th>Cost<tr><td>Tea<td>{cell}<tr><td>Milk<td>7</table>"
    document = parse("html", page)
    table = f"| What | Cost |\n| --- | --- |\n| Tea | {shown} |\n| Milk | 7 |"
    assert document.text == table
    assert bytes_of(document, page.encode(), "| Milk")[0] == b"Milk<td>7"
    row = bytes_of(document, page.encode(), "| Tea")[0].decode()
    assert row.startswith("Tea<td>")
    assert "Milk" not in row
    if len(shown) < 1000 and "<p>of all" not in cell:
        bare = page.replace("<th>What<th>Cost", "<td>What<td>Cost", 1)
        assert parse("html", bare).text == table


@pytest.mark.parametrize(
    "page",
    [
        "<table role=presentation><tr><td>a<td>b<tr><td>c<td>d</table>",
        "<table><tr><td><h2>Left</h2><p>Text.<td>b<tr><td>c<td>d</table>",
        "<table><tr><td>a<td><pre>b</pre><tr><td><pre>c</pre><td>d</table>",
        "<table><tr><td>Menu<td><p>" + "Text. " * 300 + "<tr><td>c<td>d</table>",
    ],
)
def test_a_table_that_only_arranges_a_page_stays_loose(parse, page):
    assert "|" not in parse("html", page).text


def test_headings_as_labels_of_a_table(parse):
    page = "<table><tr><td><h4>What</h4><td><h4>Cost</h4><tr><td>Tea<td>2</table>"
    assert parse("html", page).text == "| What | Cost |\n| --- | --- |\n| Tea | 2 |"


def test_a_page_that_scripts_would_build_says_so(parse):
    with pytest.raises(DataError, match="scripts") as caught:
        parse("html", "<html><body><div id=app></div><script>x()</script></body></html>")
    assert caught.value.code == "document.no-text"


def test_less_than_signs_and_bad_tags_are_text(parse):
    assert parse("html", "<p>if a < b && c > d then 1<2").text == "if a < b && c > d then 1<2"


def test_code_with_a_fence_in_it_gets_a_longer_fence(parse):
    assert parse("html", "<pre>```\nx\n```</pre>").text == "````\n```\nx\n```\n````"


def test_the_sign_of_a_permalink_is_left_out_and_a_title_in_one_is_kept(parse):
    page = (
        '<h2>Pumps<a class="headerlink" href="#p">\xb6</a></h2>'
        '<h2>Valves<a class="headerlink" href="#v">&#xf0c1;</a></h2>'
        '<h2><a class="permalink" href="#d">How to drain the pump</a></h2>'
        '<p>See <a class="permalink" href="#r">section 5</a> for more.</p>'
    )
    document = parse("html", page)
    assert [one.title for one in document.headings] == ["Pumps", "Valves", "How to drain the pump"]
    assert document.text.endswith("See section 5 for more.")


ROW = "<tr><td>1</td><td>2</td></tr>"


@pytest.mark.parametrize(
    ("table", "rows", "apart"),
    [
        (f"<tr><td>a</td><td>b</td></tr>{ROW}<caption>Cap</caption>", "| 1 | 2 |", "Cap"),
        (f"<tr><td>a</td><td>b</td></tr> stray {ROW}", "| a | b |", "stray"),
        ("<tr><td rowspan=0>a</td><td>b</td></tr><tr><td>1</td></tr>", "| a | 1 |", ""),
        ("<tr><td><pre>a()</pre></td><td>does a</td></tr>" * 2, "| a() | does a |", ""),
        ("<tr><td><pre>a()</pre></td><td><pre>1</pre></td></tr>" * 2, "| a() | 1 |", ""),
        (
            f"{ROW}<tr><td><h3>Pro</h3><p>For many</p></td><td>9</td></tr>",
            "| Pro For many | 9 |",
            "",
        ),
    ],
)
def test_a_table_takes_its_cells_and_nothing_else(parse, table, rows, apart):
    text = parse("html", f"<p>Before.</p><table>{table}</table><p>After.</p>").text
    assert rows in text.splitlines()
    assert not apart or apart in text.splitlines()


def test_a_superscript_number_is_not_read_as_digits_of_the_number_before(parse):
    page = "<p>It gives 10<sup>6</sup> l on 12 m<sup>2</sup>, the 3<sup>rd</sup> of H<sub>2</sub>O"
    assert parse("html", page.encode()).text == "It gives 10⁶ l on 12 m², the 3rd of H2O"
    page = "<p>Na<sup>+</sup>, SO<sub>4</sub><sup>2-</sup>, 2<sup>n+1</sup>, 7<sup>1, 2</sup> no"
    assert parse("html", page.encode()).text == "Na⁺, SO4²⁻, 2ⁿ⁺¹, 7¹, ² no"


def test_a_theme_whose_frame_is_named_after_navigation_keeps_its_main_part_only(parse):
    page = (
        '<body class="wy-body-for-nav"><div class="wy-grid-for-nav">'
        '<nav class="wy-nav-side"><ul><li><a href="a">Usage</a><li><a href="b">Hacking</a></ul>'
        "</nav>"
        '<section class="wy-nav-content-wrap"><div role="main"><h1>Versioning</h1>'
        "<p>Releases come when they are ready.</p></div>"
        '<footer><div role="navigation"><a href="p">Previous</a> <a href="n">Next</a></div>'
        "Built with a theme.</footer></section></div>"
    )
    document = parse("html", page)
    assert document.text == "# Versioning\n\nReleases come when they are ready."


def test_a_side_menu_much_longer_than_the_text_stays_out(parse):
    menu = "".join(f'<li><a href="{n}.html">Section number {n}</a>' for n in range(300))
    page = f'<div id="main"><h1>Fonts</h1><p>A short text.</p></div><ul class="toc">{menu}</ul>'
    assert parse("html", page).text == "# Fonts\n\nA short text."


def test_a_page_that_is_a_table_of_contents_keeps_it_and_a_chapter_drops_its_own(parse):
    links = "".join(f'<li><a href="{n}.html">Chapter number {n}</a>' for n in range(9))
    contents = f'<div class="toc"><ul>{links}</ul></div>'
    for body in (f"<h1>Manual</h1>{contents}", f"<main><h1>Manual</h1>{contents}</main>"):
        text = parse("html", f"{body}<p>Printed by the press of the town.").text
        assert text.startswith("# Manual\n")
        assert "- Chapter number 0\n" in text
        assert "- Chapter number 8" in text
    chapter = f"<h1>Use</h1>{contents}<p>{'It is used by hand. ' * 20}</p>"
    assert "Chapter number" not in parse("html", chapter).text


def test_a_page_of_lists_of_links_keeps_more_than_the_titles_above_them(parse):
    links = "".join(f"<li><p><a href={n}.html>Module {n}</a></p>" for n in range(9))
    page = f"<h1>Pages of the manual</h1><h2>Modules of the program</h2><ul>{links}</ul>"
    assert parse("html", page).text.endswith("Module 8")


def test_a_page_of_nothing_but_links_below_a_title_keeps_them(parse):
    links = "".join(f'<li><a href="{n}.html">Chapter number {n}</a>' for n in range(9))
    for body in (f"<h1>All</h1><ul>{links}</ul>", f"<main><h1>All</h1><ul>{links}</ul></main>"):
        text = parse("html", f'<div class="navbar"><a href="/">Home page</a></div>{body}').text
        assert text.startswith("# All\n\n- Chapter number 0\n")
        assert text.endswith("- Chapter number 8")


@pytest.mark.parametrize(
    "bar",
    [
        '<div class="navheader"><table><tr><th colspan="3">2. Use<tr><td><a href="p">Zurück</a>'
        "<td>Kapitel 2<td>Weiter</table></div>",
        '<a href="2.html">Next</a>\nPrevious\n<a href="toc.html">Contents</a><hr>',
        '<p>&lt;-<a href="1">previous</a><a href="toc">Contents</a><a href="3">next</a>-&gt;',
        '<div class="SRStatus" id="Loading">Loading...</div>'
        '<div class="SRStatus" id="NoMatches">No Matches</div>',
    ],
)
def test_bars_for_turning_pages_are_no_text(parse, bar):
    page = f"{bar}<h2>Use</h2><p>Press the green button, then wait for the lamp.</p>{bar}"
    assert parse("html", page).text == "## Use\n\nPress the green button, then wait for the lamp."


def test_an_anchor_is_no_link(parse):
    items = "".join(f'<p><a name="i{n}">Item {n} of the agreement</a></p>' for n in range(4))
    text = parse("html", f"<p>A preamble that is long enough to stand.</p>{items}").text
    assert "Item 3 of the agreement" in text
    page = '<p>A preamble.</p><a name="x">' + "".join(
        f"<p>Clause {n} stands.</p>" for n in range(9)
    )
    assert "Clause 8 stands." in parse("html", page).text


def test_tags_closed_in_themselves_end_there_in_xhtml(parse):
    page = (
        '<!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"><head><title>T</title>'
        '<script src="a.js"/></head><body><p>Before.</p><script src="b.js"/><div id="main-nav"/>'
        "<div><h1>Class Reference</h1><p>What the class does.</p></div></body></html>"
    )
    text = parse("html", page).text
    assert text == "Before.\n\n# Class Reference\n\nWhat the class does."


def test_a_sign_that_links_to_its_own_heading_is_no_title(parse):
    page = (
        '<h3><span>1 Structures<a class="copiable-link" href="#s"> &para;</a></span></h3><p>Text.'
        '<h3>2 Names<a href="#n" class="copiable-anchor"> ¶</a></h3><p>More.</p>'
    )
    assert [one.title for one in parse("html", page).headings] == ["1 Structures", "2 Names"]


def test_line_ends_of_windows_are_line_ends(parse, bytes_of):
    data = b"<p>It describes only the\r\nbasic usage,\r\n   and no more.</p>"
    document = parse("html", data)
    assert document.text == "It describes only the\nbasic usage,\nand no more."
    assert bytes_of(document, data, "basic usage")[0] == b"basic usage"


def test_a_main_part_of_links_alone_is_kept_without_what_stands_beside_it(parse):
    links = "".join(f'<li><a href="{n}.html">Design document {n}</a>' for n in range(5))
    page = (
        f"<div role=main><h1>All</h1><ul>{links}</ul></div>"
        '<div class="sidebar"><h3>Navigation</h3><p>Searching is not possible on this page, since'
        " it was made without an index; ask whoever installed it for one that has it.</p></div>"
    )
    text = parse("html", page).text
    assert text.startswith("# All\n\n- Design document 0")
    assert "Navigation" not in text


@pytest.mark.parametrize(
    "box",
    [
        '<div class="sidebar"><div class="titlepage"><p>Scripts</p></div>{}</div>',
        '<aside class="sidebar"><p class="sidebar-title">Scripts</p>{}</aside>',
    ],
)
def test_a_box_of_docbook_or_docutils_is_text(parse, box):
    page = f"<h1>Quotas</h1><p>Before.</p>{box.format('<p>Many are set by setquota.</p>')}<p>After."
    text = parse("html", page).text
    assert "Before.\n\nScripts\n\nMany are set by setquota.\n\nAfter." in text.replace("*", "")
    assert "setquota" not in parse("html", page.replace("title", "head")).text


@pytest.mark.parametrize(
    "section",
    [
        '<section id="handling-security-related-bugs"><h2>Bugs</h2>{}</section>',
        '<div class="section" id="the-file-menu"><h2>Bugs</h2>{}</div>',
        '<div class="subsection-level-extent" id="Menu"><h2>Bugs</h2>{}</div>',
        '<h2 id="sharing-bugs">Bugs</h2>{}',
    ],
)
def test_a_section_named_after_its_title_is_no_menu(parse, section):
    text = "<p>Report such a bug to the team in private, and wait for its answer.</p>"
    page = f"<h1>Duties</h1><p>What is to be done, and by whom, is told here.</p>{section}"
    for start, end in (("", ""), ("<main>", "</main>")):
        read = parse("html", start + page.format(text) + end).text
        assert read.endswith(
            "## Bugs\n\nReport such a bug to the team in private, and wait for its answer."
        )


def test_a_list_of_links_that_a_sentence_of_the_main_part_announces_stays(parse):
    links = "".join(f'<li><a href="{n}.html">Design document {n}</a>' for n in range(5))
    page = f"<main><h1>Release 2</h1><p>It implements these designs:</p><ul>{links}</ul></main>"
    assert "Design document 4" in parse("html", page).text


def test_footnotes_in_an_aside_are_text_and_boxes_beside_it_are_not(parse):
    page = (
        "<main><h1>Signing</h1><p>A memo asked for it.<a href='#1'>[1]</a></p>"
        '<aside class="footnote-list brackets"><aside class="footnote" role="doc-footnote">'
        "<p>The office published it in 2008.</p></aside></aside>"
        "<aside><p>Subscribe to our letter.</p></aside></main>"
    )
    text = parse("html", page).text
    assert text.endswith("The office published it in 2008.")


def test_what_an_item_holds_beside_its_first_paragraph_is_indented_as_markdown_asks(
    parse, bytes_of
):
    page = (
        "<body><ol><li><p>Stop it.</p><p>Wait.</p><pre>pump --stop\n\n# twice</pre>"
        "<ul><li>lamp<p>Green.</p></li></ul><table><tr><th>part<th>bar<tr><td>valve<td>7</table>"
        "<p>Then</p><li><p>Fill it.</p></ol><p>An end."
    )
    document = parse("html", page)
    assert document.text == (
        "1. Stop it.\n\n  Wait.\n\n  ```\npump --stop\n\n# twice\n  ```\n\n"
        "  - lamp\n\n    Green.\n\n"
        "  | part | bar |\n  | --- | --- |\n  | valve | 7 |\n\n  Then\n\n2. Fill it.\n\nAn end."
    )
    assert bytes_of(document, page.encode(), "pump --stop\n\n# twice")[1].is_exact


def test_terms_of_a_list_of_definitions_are_known_with_what_explains_them(parse):
    document = parse(
        "html",
        "<h1>Server</h1><p>It has options.</p><dl><dt>-b<dt>burst<dd><p>Sends eight.</p><p>The "
        "default is 8.</p><dl><dt>unit</dt><dd>packets</dd></dl><p>See below.</p></dd><dt>idle</dt>"
        "<dd>Waits.</dd><dt>unexplained</dt></dl><p>That is all.</p>",
    )
    assert [
        (document.get_term(entry), " ".join(document.text[entry.end : entry.stop].split()))
        for entry in document.definitions
    ] == [
        ("-b burst", "Sends eight. The default is 8. unit packets See below."),
        ("unit", "packets"),
        ("idle", "Waits."),
    ]
    assert document.heading_path(document.text.index("packets")) == ("Server", "-b burst", "unit")
    assert document.heading_path(document.text.index("See")) == ("Server", "-b burst")
    assert document.heading_path(document.text.index("burst")) == ("Server",)
    assert document.heading_path(document.text.index("That")) == ("Server",)
    assert type(document).from_json(document.to_json()) == document


def test_a_heading_or_nothing_visible_is_no_term_and_ends_the_entry_before(parse):
    document = parse(
        "html",
        "<h1>Server</h1><p>It has options.</p><dl><dt>idle</dt><dd>Waits.</dd><dt><h4>burst</h4>"
        "</dt><dd>Sends.</dd><dt>unit</dt><dd>Packets.</dd><dt>&#8203;</dt><dd>More.</dd></dl>",
    )
    assert [document.get_term(entry) for entry in document.definitions] == ["idle", "unit"]
    assert document.heading_path(document.text.index("Sends")) == ("Server", "burst")
    assert document.heading_path(document.text.index("More")) == ("Server", "burst")


def test_passages_within_deeply_nested_lists_repeat_the_outer_terms_only(parse):
    nested = "".join(f"<dl><dt>term {number}</dt><dd>" for number in range(2000))
    document = parse("html", f"<h1>Server</h1><p>It has options.</p>{nested}The end.")
    path = document.heading_path(document.text.index("The end"))
    assert path == ("Server", *(f"term {number}" for number in range(6)))


def test_the_name_in_a_table_of_one_row_is_a_term_where_a_page_has_several(parse):
    rows = [
        f"<table><tr><td>{name}</td><td>Type: <i>time</i></td><td>Default: {value}</td></tr>"
        f"</table><p>It sets a limit.</p>"
        for name, value in (("connect_timeout", "5m"), ("data_timeout", "2m"), ("idle", "1m"))
    ]
    page = "<h1>Timeouts</h1>{}<h2>See also</h2><p>Others.</p>"
    document = parse("html", page.format("".join(rows)))
    assert document.heading_path(document.text.index("2m")) == ("Timeouts", "data_timeout")
    assert document.heading_path(document.text.rindex("It sets")) == ("Timeouts", "idle")
    assert document.heading_path(document.text.index("Others")) == ("Timeouts", "See also")
    assert not parse("html", page.format("".join(rows[:2]))).definitions
    for other in ("idle", "5 kg"):  # a name that recurs, or data
        again = rows[0].replace("connect_timeout", other)
        assert not parse("html", page.format("".join([*rows, again]))).definitions
