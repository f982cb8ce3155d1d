"""Data types shared by all rooms: documents, passages, prompts, completions and records.

All are frozen dataclasses with conversion to and from JSON. Every Document, Passage and Record has
an Origin: human, synthetic or unknown, the chain of steps that produced it, and its license.
Readers and writers stream JSONL (zstd too) and Parquet, and support common dataset formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.records.document import (
        Anchor,
        Definition,
        Document,
        Heading,
        Location,
        Passage,
        describe_place,
    )
    from stillroom.records.files import (
        RecordWriter,
        count_records,
        encode_record,
        find_record_file,
        read_records,
        write_records,
    )
    from stillroom.records.formats import from_row, guess_format, to_row
    from stillroom.records.origin import (
        Link,
        Origin,
        combine_origins,
        find_license_warnings,
        make_content_id,
    )
    from stillroom.records.types import (
        Answer,
        Citation,
        Completion,
        Hit,
        Message,
        Prompt,
        Record,
        Sampling,
        list_cited_quotes,
    )

__all__ = [
    "Anchor",
    "Answer",
    "Citation",
    "Completion",
    "Definition",
    "Document",
    "Heading",
    "Hit",
    "Link",
    "Location",
    "Message",
    "Origin",
    "Passage",
    "Prompt",
    "Record",
    "RecordWriter",
    "Sampling",
    "combine_origins",
    "count_records",
    "describe_place",
    "encode_record",
    "find_license_warnings",
    "find_record_file",
    "from_row",
    "guess_format",
    "list_cited_quotes",
    "make_content_id",
    "read_records",
    "to_row",
    "write_records",
]

__getattr__ = export_lazily(__name__)
