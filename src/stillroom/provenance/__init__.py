"""Where a thing came from and whether it is still what it was.

``digests`` names bytes; ``artifact`` is the file that every job leaves (artifact.json); ``lineage``
walks parents from an artifact to the byte ranges of documents; ``verify`` recomputes digests and
names what changed. Knows files only: no model is loaded here.
"""

from stillroom.provenance.answers import KeptAnswer, read_answer
from stillroom.provenance.artifact import (
    ARTIFACT_FILE,
    Artifact,
    FileEntry,
    Parent,
    find_artifact,
    find_output,
    make_parent,
    read_artifact,
)
from stillroom.provenance.digests import (
    canonical_json,
    digest_as,
    digest_bytes,
    digest_file,
    digest_json,
    digest_large_file,
    digest_text,
)
from stillroom.provenance.ledger import LEDGER, connect_ledger, read_ledger
from stillroom.provenance.lineage import walk_answer, walk_lineage, walk_record
from stillroom.provenance.sources import find_passages, resolve_parent
from stillroom.provenance.tree import Node, render_tree
from stillroom.provenance.verify import Finding, verify

__all__ = [
    "ARTIFACT_FILE",
    "LEDGER",
    "Artifact",
    "FileEntry",
    "Finding",
    "KeptAnswer",
    "Node",
    "Parent",
    "canonical_json",
    "connect_ledger",
    "digest_as",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "digest_large_file",
    "digest_text",
    "find_artifact",
    "find_output",
    "find_passages",
    "make_parent",
    "read_answer",
    "read_artifact",
    "read_ledger",
    "render_tree",
    "resolve_parent",
    "verify",
    "walk_answer",
    "walk_lineage",
    "walk_record",
]
