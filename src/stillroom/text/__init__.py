"""Document parsing, chunking, deduplication and text analysis.

``parse_folder`` reads a folder into Documents in which every character has its bytes and page; a
Chunker splits them into Passages. The package also holds text normalization and answer scores
(``unicode``), sentence and language detection, near-duplicate search and n-gram overlap
(``dedup``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.text.chunking.tokens import estimate_tokens
    from stillroom.text.dedup.near_duplicates import Duplicate, find_near_duplicates
    from stillroom.text.dedup.shingles import (
        MinHasher,
        hash_shingles,
        jaccard_similarity,
        ngram_overlap,
    )
    from stillroom.text.interfaces import (
        CHUNKERS,
        PARSERS,
        Chunker,
        ParseLimits,
        Parser,
        SourceFile,
        TokenCounter,
    )
    from stillroom.text.language import detect_language, split_sentences
    from stillroom.text.parser_process import ParserProcess
    from stillroom.text.reader import (
        FolderScan,
        ParseFailure,
        list_documents,
        parse_bytes,
        parse_file,
        parse_folder,
        scan_folder,
    )
    from stillroom.text.unicode import (
        exact_match,
        normalize_text,
        split_words,
        strip_invisible,
        token_f1,
    )

__all__ = [
    "CHUNKERS",
    "PARSERS",
    "Chunker",
    "Duplicate",
    "FolderScan",
    "MinHasher",
    "ParseFailure",
    "ParseLimits",
    "Parser",
    "ParserProcess",
    "SourceFile",
    "TokenCounter",
    "detect_language",
    "estimate_tokens",
    "exact_match",
    "find_near_duplicates",
    "hash_shingles",
    "jaccard_similarity",
    "list_documents",
    "ngram_overlap",
    "normalize_text",
    "parse_bytes",
    "parse_file",
    "parse_folder",
    "scan_folder",
    "split_sentences",
    "split_words",
    "strip_invisible",
    "token_f1",
]

__getattr__ = export_lazily(__name__)
