"""C2PA content credentials in text: a signed statement of what wrote it, within the text itself.

``carriers`` finds and places them: invisible characters at the end of plain text, an element in
HTML, a comment in structured text. ``jumbf`` encodes what they say (the manifest), ``cose`` signs
it (COSE_Sign1, ``x5chain``), and ``reader`` verifies it offline: the hard binding
(``c2pa.hash.data`` with its exclusions), the claim and its signature. ``provenance.text_marks``
writes them with a key that it chooses. Credentials of pictures and recordings: ``forensics.c2pa``.

Source: C2PA Technical Specification 2.4, annexes A.7 (HTML), A.8 (unstructured text) and A.9
(structured text).
"""

from stillroom.records.text_credentials.carriers import (
    CREDENTIAL_MARKS,
    find_spans,
    has_credential,
    remove_marks,
)
from stillroom.records.text_credentials.jumbf import Disclosure
from stillroom.records.text_credentials.reader import (
    MODEL_SOURCE_TYPES,
    CredentialState,
    TextCredential,
    add_credentials,
    read_credentials,
    read_detached,
)

__all__ = [
    "CREDENTIAL_MARKS",
    "MODEL_SOURCE_TYPES",
    "CredentialState",
    "Disclosure",
    "TextCredential",
    "add_credentials",
    "find_spans",
    "has_credential",
    "read_credentials",
    "read_detached",
    "remove_marks",
]
