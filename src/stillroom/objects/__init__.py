"""Object stores at addresses such as ``s3://bucket/folder``, through fsspec.

``connect`` opens a store; ``read_range`` reads a part of an object; ``open_for_writing`` writes one
atomically; ``mirror_folder`` keeps a local copy of a folder; ``publish_folder`` uploads a folder
with its manifest last. Credentials come from the environment and the usual files of each store,
never from an address. ``disk`` writes local files atomically.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.objects.address import (
        ObjectFile,
        connect,
        exists,
        is_address,
        is_store_address,
        join_address,
        open_for_writing,
        read_range,
    )
    from stillroom.objects.mirrors import (
        RemoteFolder,
        fetch_folder,
        find_address,
        find_remote,
        list_objects,
        mirror_folder,
        publish_folder,
        resolve_local,
    )

__all__ = [
    "ObjectFile",
    "RemoteFolder",
    "connect",
    "exists",
    "fetch_folder",
    "find_address",
    "find_remote",
    "is_address",
    "is_store_address",
    "join_address",
    "list_objects",
    "mirror_folder",
    "open_for_writing",
    "publish_folder",
    "read_range",
    "resolve_local",
]

__getattr__ = export_lazily(__name__)
