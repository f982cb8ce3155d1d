"""The tables of a ledger, and how a writer opens one.

A row of ``documents`` is one version of one document: seen by the snapshots from ``born`` up to but
not including ``died``. What a parser and a chunker made of its bytes lies in ``contents`` and
``passages`` and is shared by versions that differ in fields, tenant or labels alone. A row of
``placements`` says in which rows of which segment a version's passages are found, so that merging
segments moves rows and changes no document.

The journal is a rollback journal, not a write-ahead log: readers then never create or change a
file, a ledger can be read on a disk that cannot be written, and its bytes between two commits stay
what artifact.json says. Long writes are staged in short transactions that no snapshot shows yet, so
readers wait for milliseconds at most.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from stillroom.provenance.ledger import connect_ledger

__all__ = ["FOREVER", "FORMAT", "PASSAGE_BITS", "create_ledger", "open_ledger"]

FORMAT = 3
FOREVER = 2**62
PASSAGE_BITS = 24
"""A passage's key is its content's key shifted by this many bits, plus its position."""

_SCHEMA = f"""
CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE snapshots(
  number INTEGER PRIMARY KEY, digest TEXT NOT NULL, parent INTEGER NOT NULL, reason TEXT NOT NULL,
  documents INTEGER NOT NULL, passages INTEGER NOT NULL, truncated INTEGER NOT NULL,
  made TEXT NOT NULL);
CREATE TABLE segments(
  number INTEGER PRIMARY KEY, rows INTEGER NOT NULL, files TEXT NOT NULL,
  born INTEGER NOT NULL, died INTEGER NOT NULL DEFAULT {FOREVER});
CREATE TABLE contents(
  key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path TEXT NOT NULL, digest TEXT NOT NULL,
  mark TEXT NOT NULL, passages INTEGER NOT NULL, truncated INTEGER NOT NULL,
  fields TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX contents_by_digest ON contents(digest);
CREATE TABLE passages(
  key INTEGER PRIMARY KEY, id TEXT NOT NULL, embedded BLOB NOT NULL, truncated INTEGER NOT NULL,
  body BLOB NOT NULL);
CREATE UNIQUE INDEX passages_by_id ON passages(id);
CREATE INDEX passages_by_text ON passages(embedded);
CREATE TABLE documents(
  key INTEGER PRIMARY KEY, content INTEGER NOT NULL, path TEXT NOT NULL,
  passages INTEGER NOT NULL, truncated INTEGER NOT NULL,
  bucket INTEGER NOT NULL, mark TEXT NOT NULL,
  tenant TEXT NOT NULL, labels TEXT NOT NULL, fields TEXT NOT NULL,
  born INTEGER NOT NULL, died INTEGER NOT NULL DEFAULT {FOREVER});
CREATE INDEX documents_by_path ON documents(path, died);
CREATE INDEX documents_by_bucket ON documents(bucket, died);
CREATE INDEX documents_by_content ON documents(content);
CREATE INDEX documents_by_birth ON documents(born);
CREATE INDEX documents_by_death ON documents(died);
CREATE TABLE labels(document INTEGER NOT NULL, label TEXT NOT NULL,
  PRIMARY KEY(document, label)) WITHOUT ROWID;
CREATE INDEX labels_by_label ON labels(label, document);
CREATE TABLE fields(document INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, value);
CREATE INDEX fields_by_value ON fields(name, value, document);
CREATE INDEX fields_by_document ON fields(document);
CREATE TABLE placements(
  document INTEGER NOT NULL, segment INTEGER NOT NULL, start INTEGER NOT NULL,
  born INTEGER NOT NULL, died INTEGER NOT NULL DEFAULT {FOREVER},
  PRIMARY KEY(document, born)) WITHOUT ROWID;
CREATE INDEX placements_by_segment ON placements(segment);
CREATE INDEX placements_by_birth ON placements(born);
CREATE INDEX placements_by_death ON placements(died);
CREATE TABLE failures(
  path TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL,
  born INTEGER NOT NULL, died INTEGER NOT NULL DEFAULT {FOREVER});
CREATE TABLE buckets(number INTEGER PRIMARY KEY, digest TEXT NOT NULL);
CREATE VIEW current_documents AS
  SELECT d.key, c.id, d.path, c.digest, c.body FROM documents d JOIN contents c
  ON c.key = d.content
  WHERE d.died = {FOREVER} AND d.born <= (SELECT max(number) FROM snapshots) ORDER BY d.path;
CREATE VIEW current_passages AS
  SELECT p.id, d.path, p.key & {2**PASSAGE_BITS - 1} AS position, p.body
  FROM documents d JOIN passages p
  ON p.key >= d.content << {PASSAGE_BITS} AND p.key < (d.content + 1) << {PASSAGE_BITS}
  WHERE d.died = {FOREVER} AND d.born <= (SELECT max(number) FROM snapshots)
  ORDER BY d.path, p.key;
PRAGMA user_version = {FORMAT};
"""  # noqa: S608


def create_ledger(path: Path) -> sqlite3.Connection:
    """Make an empty ledger, replacing what lies there, and open it for writing."""
    path.unlink(missing_ok=True)
    path.touch()
    connection = open_ledger(path)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.executescript(_SCHEMA)
    return connection


def open_ledger(path: Path) -> sqlite3.Connection:
    """Open a ledger for writing: every commit is on the disk before it returns."""
    connection = connect_ledger(path, write=True)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA cache_size=-65536")
    return connection
