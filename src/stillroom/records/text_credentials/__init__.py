"""C2PA content credentials in text: a signed statement of what wrote it, within the text itself.

``carriers`` finds and places them: invisible characters at the end of plain text, an element in
HTML, a comment in structured text. ``manifest`` encodes what they say, ``signature`` signs it, and
``reader`` verifies it offline. Signing takes a key, which ``provenance.text_marks`` chooses.

Source: C2PA Technical Specification 2.4, annexes A.7 (HTML), A.8 (unstructured text) and A.9
(structured text).
"""

from stillroom.records.text_credentials.carriers import (
    CREDENTIAL_MARKS,
    find_spans,
    has_credential,
    remove_marks,
)
from stillroom.records.text_credentials.manifest import Disclosure
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
