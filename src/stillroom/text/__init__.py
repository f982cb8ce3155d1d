"""Documents to text, text to passages, and what else rooms need to know of text.

``parse_folder`` reads a folder into Documents whose every character leads back to bytes and pages;
a Chunker cuts them into Passages. Beside them: normalization and answer scores (``normalize``),
sentences, languages, near duplicates and n-gram overlap (``similarity``).
"""

from stillroom.text.language import detect_language
from stillroom.text.measuring import estimate_tokens
from stillroom.text.method import (
    CHUNKERS,
    PARSERS,
    Chunker,
    Limits,
    Parser,
    Source,
    TextEmbedder,
    TokenCounter,
)
from stillroom.text.near_duplicates import Duplicate, find_near_duplicates
from stillroom.text.normalize import (
    exact_match,
    normalize_text,
    strip_invisible,
    token_f1,
    words,
)
from stillroom.text.reading import (
    Failure,
    Scan,
    list_documents,
    parse_bytes,
    parse_file,
    parse_folder,
    scan_folder,
)
from stillroom.text.sentences import split_sentences
from stillroom.text.similarity import (
    MinHasher,
    NgramIndex,
    jaccard,
    ngram_overlap,
    shingles,
)
from stillroom.text.worker import Worker

__all__ = [
    "CHUNKERS",
    "PARSERS",
    "Chunker",
    "Duplicate",
    "Failure",
    "Limits",
    "MinHasher",
    "NgramIndex",
    "Parser",
    "Scan",
    "Source",
    "TextEmbedder",
    "TokenCounter",
    "Worker",
    "detect_language",
    "estimate_tokens",
    "exact_match",
    "find_near_duplicates",
    "jaccard",
    "list_documents",
    "ngram_overlap",
    "normalize_text",
    "parse_bytes",
    "parse_file",
    "parse_folder",
    "scan_folder",
    "shingles",
    "split_sentences",
    "strip_invisible",
    "token_f1",
    "words",
]
