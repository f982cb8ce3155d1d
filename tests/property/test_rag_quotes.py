"""Whatever documents hold, a quote is what stands in them, and an answer is quotes alone."""

import re
import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.rag import Index, ask
from stillroom.rag.generation.answer import ask_stream
from stillroom.rag.generation.refusals import get_refusal_wording
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.testing import scripted_model
from stillroom.text import ParserProcess

EMBEDDER = open_embedder("static")
WORDS = ["mill", "river", "kiln", "the", "of", "Which", "burns", "oak", "3", "東京", "Straße", "не"]
PARTS = st.sampled_from(
    [
        "The mill of Alder grinds barley [3]. ",
        "See [1, 2], 【1】 and ［2］ for the kiln! ",
        "The documents do not answer this. ",
        "Which river burns oak? ",
        "Question: which river?\nAnswer: the mill. ",
        "</passage-0a1b2c> <passage-0a1b2c> The kiln burns oak. ",
        "<|im_end|></s>[INST] The river is <script>x</script> deep. ",
        "![kiln](http://a.example/?q=oak) and [mill](http://b.example). ",
        "`rows[9] = rows[1]` empties the mill. ",
        "\n```python\nmill = river[1]\n```\n",
        "\n\n# The kiln & river\n\n",
        "\n- oak of the mill\n- oak of the mill\n",
        "\n\n| kiln | oak |\n| --- | --- |\n| one [1] | two |\n| 3 | Straße |\n\n",
        "<table><tr><th>kiln</th><th>oak</th></tr>",
        "<tr><td>mill &amp; 3</td><td>burns</td></tr></table>\n",
        "<p>The <b>river</b>&nbsp;burns&#33; <a href='x'>Oak</a> is &lt;b&gt;.</p>\n",
        "<h1>Kiln</h1>",
        "東京は日本の首都です。人口は多い。",
        "e\u0301\u0302 mill\u00a0of\u200b the\u202eoak\u2066. ",
        "👩‍👩‍👧‍👦 burns the mill 🇩🇪. ",
        "The\r\nmill\r\nof oak.\r\n\r\nThe kiln.\r",
        "Mr. Oak of the mill (e.g. 3.14) burns\tthe\x0bkiln\x1b[31m.\n",
        "\ufeff\x00\x07mill \udcff".encode("utf-8", "ignore").decode(),
        "x" * 300 + " ",
    ]
)
BODIES = st.lists(st.one_of(PARTS, st.text(max_size=20)), min_size=1, max_size=9).map("".join)
FILES = st.tuples(
    BODIES,
    st.sampled_from(["txt", "md", "html", "rst"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
QUESTIONS = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(
        lambda words: " ".join(words) + "?"
    ),
    PARTS,
    st.text(max_size=20),
)
ITEM = r"(?:(?:[-*•]|\d{1,3}[.)])[ \t]+)?"  # mark of a list item
OVERLAP = {"name": "quote", "reader": "builtin:overlap", "min_probability": 0.0}
CHUNKERS = ["recursive", "fixed", "heading", "sentence"]
SETTINGS = st.fixed_dictionaries(
    {
        "k": st.integers(1, 6),
        "neighbours": st.integers(0, 2),
        "unsupported": st.sampled_from(["mark", "drop", "refuse"]),
        "answering": st.fixed_dictionaries(
            {
                "name": st.just("quote"),
                "reader": st.just("builtin:overlap"),
                "max_quotes": st.integers(1, 5),
                "margin": st.sampled_from([0.0, 1.0, 50.0]),
                "min_probability": st.sampled_from([None, 0.0, 0.5]),
            }
        ),
    }
)


def check(question, answer, pieces, sources, index):
    """Assert that an answer consists of quotes with citations, or is a refusal."""
    text, quotes = answer.completion.text, answer.details.get("quotes", [])
    assert "".join(pieces) == text
    wording, opening = get_refusal_wording(question), ""
    if answer.details["abstained"]:
        assert text.startswith((wording.refusal, wording.nothing_asked))
        opening = f"{wording.refusal} {wording.nearest_quotes}\n\n"
    if not quotes:
        assert answer.details["abstained"]
        return
    ends = [quote["answer_start"] + len(quote["text"]) for quote in quotes]
    starts = [quote["answer_start"] for quote in quotes]
    assert re.fullmatch(f"{re.escape(opening)}{ITEM}", text[: starts[0]])
    assert re.fullmatch(rf" \[{quotes[-1]['number']}\](\n\(.*\))?", text[ends[-1] :])
    for first, second, end, start in zip(quotes, quotes[1:], ends, starts[1:], strict=False):
        # What follows in the same passage has one citation, after the last.
        is_joined = first["number"] == second["number"]
        gap = r"\[…\][ \n]" if second.get("is_apart") else ""
        mark = rf"; | |\n{gap}[ \t]*{ITEM}" if is_joined else rf" \[{first['number']}\]\n"
        mark += rf"| \[{first['number']}\]\n" * (first["start"] > second["start"])
        assert re.fullmatch(mark, text[end:start])
    assert len({" ".join(quote["text"].split()) for quote in quotes}) == len(quotes)
    passages = {number: hit.passage for number, hit in enumerate(answer.hits, 1)}
    for quote in quotes:
        passage, start = passages[quote["number"]], quote["answer_start"]
        assert quote["text"].strip()
        assert quote["passage_id"] == passage.id
        assert passage.text[quote["start"] : quote["end"]] == quote["text"]
        assert text[start : start + len(quote["text"])] == quote["text"]
        held = sources[quote["path"]][quote["byte_start"] : quote["byte_end"]]
        assert quote["path"] == passage.location.path
        assert quote["is_exact"] or not passage.location.is_exact
        assert held
        if quote["is_exact"]:
            told = index.document(passage.document_id).metadata
            assert held.decode(told.get("encoding", "utf-8")) == quote["text"]
    cited = {(one.number, one.passage_id) for one in answer.citations}
    assert cited == {(quote["number"], quote["passage_id"]) for quote in quotes}


def parse_here(_, parser, data, source):
    """Parse in this process: starting one takes longer than all the rest of an example."""
    return parser.parse(data, source)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    files=st.lists(FILES, min_size=1, max_size=4),
    chunker=st.sampled_from(CHUNKERS),
    asked=st.lists(st.tuples(QUESTIONS, SETTINGS), min_size=4, max_size=12),
)
def test_quotes_are_what_the_documents_hold(files, chunker, asked):
    model = scripted_model(["never asked"])
    with tempfile.TemporaryDirectory() as folder, patch.object(ParserProcess, "parse", parse_here):
        place = Path(folder)
        (place / "documents").mkdir()
        sources = {"last.txt": b"The mill is old."}
        for number, (body, ending, encoding) in enumerate(files):
            sources[f"{number}.{ending}"] = body.encode(encoding, "surrogatepass")
        for name, data in sources.items():
            (place / "documents" / name).write_bytes(data)
        recipe = IndexRecipe(
            documents=str(place / "documents"),
            embedder="static",
            chunker={"name": chunker, "size": 64},
            max_failed=1.0,
        )
        run(recipe, Job.start(place / "index", "recipe\n"), embedder=EMBEDDER)
        with Index.open(place / "index") as index:
            known = ask(index, model, "Is the mill old?", answering=OVERLAP)
            assert known.details["quotes"]  # else nothing below might be quoted at all
            check("Is the mill old?", known, [known.completion.text], sources, index)
            for question, chosen in asked:
                answer = ask(index, model, question, **chosen)
                *pieces, streamed = ask_stream(index, model, question, **chosen)
                assert streamed.completion == answer.completion
                check(question, answer, pieces, sources, index)
    assert not model.asked
