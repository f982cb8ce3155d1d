"""Provenance: artifacts, digests, lineage and verification.

``digests`` computes SHA-256 and BLAKE3; ``artifact`` is every job's manifest (artifact.json);
``lineage`` walks parents from an artifact to the byte ranges of documents; ``verify`` recomputes
digests and lists changes; ``signing`` signs a job's claims and verifies signatures. Works on files
only; no model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.provenance.artifact import (
        ARTIFACT_FILE,
        Artifact,
        FileEntry,
        Parent,
        find_artifact,
        find_output,
        make_parent,
        read_artifact,
        trace_sources,
    )
    from stillroom.provenance.digests import (
        canonical_json,
        digest_bytes,
        digest_file,
        digest_json,
        digest_large_file,
        digest_like,
        digest_text,
    )
    from stillroom.provenance.evidence import StoredAnswer, read_answer
    from stillroom.provenance.lineage import (
        ProvenanceNode,
        note_other_index,
        render_tree,
        walk_answer,
        walk_lineage,
        walk_record,
    )
    from stillroom.provenance.sources import (
        LEDGER,
        connect_ledger,
        find_passages,
        read_ledger,
        resolve_parent,
    )
    from stillroom.provenance.verify import (
        IntegrityMismatch,
        IntegrityReport,
        list_run_folders,
        verify_artifact,
        verify_signed,
    )

__all__ = [
    "ARTIFACT_FILE",
    "LEDGER",
    "Artifact",
    "FileEntry",
    "IntegrityMismatch",
    "IntegrityReport",
    "Parent",
    "ProvenanceNode",
    "StoredAnswer",
    "canonical_json",
    "connect_ledger",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "digest_large_file",
    "digest_like",
    "digest_text",
    "find_artifact",
    "find_output",
    "find_passages",
    "list_run_folders",
    "make_parent",
    "note_other_index",
    "read_answer",
    "read_artifact",
    "read_ledger",
    "render_tree",
    "resolve_parent",
    "trace_sources",
    "verify_artifact",
    "verify_signed",
    "walk_answer",
    "walk_lineage",
    "walk_record",
]

__getattr__ = export_lazily(__name__)
