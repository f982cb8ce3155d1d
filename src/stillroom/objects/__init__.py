"""Object stores: files at addresses such as ``s3://bucket/folder``, through fsspec.

``connect`` opens a store; ``read_range`` reads a part of an object; ``writing`` writes one that
appears whole or not at all; ``mirror`` keeps a copy of a folder here; ``publish`` sends a folder
with its manifest last. Credentials come from the environment and the usual files of each store,
never from an address. Knows nothing of what the files hold.
"""

from stillroom.objects.address import (
    ObjectFile,
    connect,
    exists,
    is_address,
    is_stored,
    joined,
    read_range,
    writing,
)
from stillroom.objects.folders import fetch, publish
from stillroom.objects.mirrors import Remote, address_of, list_objects, local, mirror, remote_of

__all__ = [
    "ObjectFile",
    "Remote",
    "address_of",
    "connect",
    "exists",
    "fetch",
    "is_address",
    "is_stored",
    "joined",
    "list_objects",
    "local",
    "mirror",
    "publish",
    "read_range",
    "remote_of",
    "writing",
]
