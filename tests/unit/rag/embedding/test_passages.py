"""Late pooling in an index: vectors are those of the embedder's spans, and others are refused."""

import numpy as np
import pytest

from stillroom.errors import DataError
from stillroom.models import open_embedder
from stillroom.rag.index.searcher import Index


class Spans:
    """Hashed words whose spans see the first word of the document, too."""

    def __init__(self):
        self.inner = open_embedder("static")
        self.dimensions, self.max_tokens = self.inner.dimensions, self.inner.max_tokens
        self.fingerprint, self.truncated, self.texts = "spans", 0, []
        self.embed, self.count_tokens = self.inner.embed, self.inner.count_tokens

    def embed_tokens(self, texts, *, kind):
        raise AssertionError

    def embed_spans(self, text, spans, *, kind):
        self.texts.append(text)
        first = text.split()[0]
        return self.embed([f"{first} {text[a:b]}" for a, b in spans], kind=kind)


def test_vectors_are_pooled_from_the_whole_document(build, folder, tmp_path):
    text = "Kettles\n\n" + " ".join(f"Rule {at} is that {at} stand here." for at in range(60))
    (folder / "long.txt").write_text(text)
    embedder = Spans()
    chunker = {"name": "fixed", "size": 30}
    artifact = build(embedder=embedder, embedding={"pooling": "late"}, chunker=chunker)
    assert text in embedder.texts
    assert artifact.details["embedded"] == artifact.details["passages"]
    with Index.open(tmp_path / "index", embedder=embedder) as index:
        assert index.description.settings["pooling"] == "late"
        rows = [at for at in range(len(index)) if index.passage_at(at).location.path == "long.txt"]
        spans = [(index.passage_at(at).start, index.passage_at(at).end) for at in rows]
        want = embedder.embed_spans(text, spans, kind="passage")
        np.testing.assert_array_equal(index.vectors_of(rows), want)
    assert len(spans) > 5
    again = build("again", embedder=embedder, chunker={"name": "fixed", "size": 30})
    assert again.digest != artifact.digest


def test_an_embedder_without_token_states_is_refused_before_any_work(build):
    with pytest.raises(DataError) as caught:
        build(embedding={"pooling": "late"})
    assert caught.value.code == "rag.no-late-pooling"
