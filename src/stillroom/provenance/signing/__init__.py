"""Signatures of what a job claims: keys, DSSE envelopes, model signing and SLSA provenance.

``keys`` reads and makes keys; ``dsse`` signs statements and keeps a folder's ``claims.jsonl``;
``model_signing`` signs the files of a folder (OpenSSF model signing 1.0); ``artifacts`` states what
made a job (SLSA provenance v1), and signs and verifies its folder.
"""

from stillroom.provenance.signing.artifacts import (
    PUBLIC_KEY_FILE,
    SignatureCheck,
    check_signature,
    find_signer,
    sign_artifact,
)
from stillroom.provenance.signing.dsse import (
    CLAIMS_FILE,
    IN_TOTO_PAYLOAD,
    OpenedEnvelope,
    append_claim,
    make_statement,
    open_envelope,
    read_claims,
    sign_envelope,
    sign_statement,
)
from stillroom.provenance.signing.keys import (
    KEY_VARIABLE,
    KeyAlgorithm,
    PublicKey,
    SigningKey,
    Trust,
    create_key_pair,
    find_configured_key,
    load_public_key,
    load_signing_key,
    load_trust,
    read_password,
)
from stillroom.provenance.signing.model_signing import SIGNATURE_FILE, require_regular_files

__all__ = [
    "CLAIMS_FILE",
    "IN_TOTO_PAYLOAD",
    "KEY_VARIABLE",
    "PUBLIC_KEY_FILE",
    "SIGNATURE_FILE",
    "KeyAlgorithm",
    "OpenedEnvelope",
    "PublicKey",
    "SignatureCheck",
    "SigningKey",
    "Trust",
    "append_claim",
    "check_signature",
    "create_key_pair",
    "find_configured_key",
    "find_signer",
    "load_public_key",
    "load_signing_key",
    "load_trust",
    "make_statement",
    "open_envelope",
    "read_claims",
    "read_password",
    "require_regular_files",
    "sign_artifact",
    "sign_envelope",
    "sign_statement",
]
