"""Croissant: a dataset's files and columns as JSON-LD that machines read.

Source: Akhtar et al. 2024, arXiv:2403.19546 (format version 1.0), with the fields of its
vocabulary for responsible use that follow from origin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["describe"]

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_ENCODINGS = {"jsonl": "application/jsonlines", "parquet": "application/x-parquet"}


def describe(
    name: str,
    license: str,
    files: Mapping[str, tuple[str, str]],
    columns: Sequence[str],
    origins: Mapping[str, int],
) -> dict[str, Any]:
    """Return the metadata of a dataset.

    Args:
        name: Of the dataset.
        license: SPDX id, or ``other``.
        files: By split, file name and sha256.
        columns: What every row has as text; lists (of messages) have no data type there, and are
            read from the file itself.
        origins: How many rows are human, synthetic and unknown.
    """
    synthetic = origins.get("synthetic", 0)
    total = sum(origins.values())
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": f"{total} records, {synthetic} of them written by models.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": license,
        "url": "./",
        "rai:dataCollection": ", ".join(f"{count} {kind}" for kind, count in origins.items()),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": file,
                "name": file,
                "contentUrl": file,
                "encodingFormat": _ENCODINGS[file.rpartition(".")[2]],
                "sha256": digest,
            }
            for file, digest in files.values()
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": split,
                "name": split,
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"{split}/{column}",
                        "name": column,
                        "dataType": "sc:Text",
                        "source": {
                            "fileObject": {"@id": file},
                            "extract": {"column": column},
                        },
                    }
                    for column in columns
                ],
            }
            for split, (file, _) in files.items()
        ],
    }
