"""The tables of an index in PostgreSQL.

As in the folder's ledger a row of ``documents`` is seen by the snapshots from ``born`` up to but
not including ``died``. A row of ``postings`` says for one term which passages of one batch hold it,
how often in headings and in text, and at which places (``spots``, int32 each, headings first); a
batch is what one change brought. ``matrix`` is the digest of a content's vectors.
"""

from __future__ import annotations

from stillroom.rag.store.schema import FOREVER

__all__ = ["FORMAT", "tables_of"]

FORMAT = 1
_WIDEST_PLAIN = 1_900
"""How many numbers of four bytes a row of a page can hold; wider vectors go out of line."""


def tables_of(kind: str, dimensions: int) -> str:
    """Return the statements that make the tables, within a schema that is first in the path.

    Args:
        kind: ``vector`` or ``halfvec``.
        dimensions: Numbers a vector.
    """
    size = dimensions if kind == "vector" else dimensions // 2
    storage = " STORAGE PLAIN" if size <= _WIDEST_PLAIN else ""
    return _TABLES.format(forever=FOREVER, column=f"{kind}({dimensions}){storage}")


_TABLES = """
CREATE TABLE settings(name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE snapshots(
  number bigint PRIMARY KEY, digest text NOT NULL, parent bigint NOT NULL, reason text NOT NULL,
  documents bigint NOT NULL, passages bigint NOT NULL, truncated bigint NOT NULL,
  made text NOT NULL);
CREATE TABLE contents(
  key bigint PRIMARY KEY, id text NOT NULL UNIQUE, path text COLLATE "C" NOT NULL,
  digest text NOT NULL, mark text NOT NULL, passages integer NOT NULL, truncated integer NOT NULL,
  fields text NOT NULL, body bytea NOT NULL, matrix text NOT NULL, batch bigint NOT NULL);
CREATE INDEX contents_by_digest ON contents(digest);
CREATE INDEX contents_by_batch ON contents(batch);
CREATE TABLE passages(
  key bigint PRIMARY KEY, id text NOT NULL UNIQUE, embedded bytea NOT NULL,
  truncated integer NOT NULL, body bytea NOT NULL, headings integer NOT NULL,
  words integer NOT NULL);
CREATE INDEX passages_by_text ON passages(embedded);
CREATE TABLE vectors(key bigint PRIMARY KEY, content bigint NOT NULL, vector {column} NOT NULL);
CREATE INDEX vectors_by_content ON vectors(content);
CREATE TABLE documents(
  key bigint PRIMARY KEY, content bigint NOT NULL, path text COLLATE "C" NOT NULL,
  passages integer NOT NULL, truncated integer NOT NULL, bucket integer NOT NULL,
  mark text NOT NULL, tenant text COLLATE "C" NOT NULL, labels text NOT NULL, fields text NOT NULL,
  born bigint NOT NULL, died bigint NOT NULL DEFAULT {forever});
CREATE INDEX documents_by_path ON documents(path, died);
CREATE INDEX documents_by_bucket ON documents(bucket, died);
CREATE INDEX documents_by_content ON documents(content);
CREATE INDEX documents_by_tenant ON documents(tenant);
CREATE INDEX documents_by_birth ON documents(born);
CREATE INDEX documents_by_death ON documents(died);
CREATE TABLE labels(document bigint NOT NULL, label text COLLATE "C" NOT NULL,
  PRIMARY KEY(document, label));
CREATE INDEX labels_by_label ON labels(label, document);
CREATE TABLE fields(document bigint NOT NULL, name text COLLATE "C" NOT NULL, kind text NOT NULL,
  words text COLLATE "C", number double precision);
CREATE INDEX fields_by_number ON fields(name, number);
CREATE INDEX fields_by_document ON fields(document);
CREATE TABLE failures(
  path text COLLATE "C" NOT NULL, code text NOT NULL, reason text NOT NULL,
  born bigint NOT NULL, died bigint NOT NULL DEFAULT {forever});
CREATE TABLE buckets(number integer PRIMARY KEY, digest text NOT NULL);
CREATE TABLE batches(number bigint PRIMARY KEY, postings bigint NOT NULL, digest text NOT NULL);
CREATE TABLE postings(
  term text COLLATE "C" NOT NULL, batch bigint NOT NULL, keys bigint[] NOT NULL,
  headings integer[] NOT NULL, words integer[] NOT NULL, spots bytea[] NOT NULL,
  PRIMARY KEY(term, batch));
CREATE INDEX postings_by_batch ON postings(batch);
"""
