"""Zip archives that are safe to open: checked before anything is unpacked.

Knows zip and the dangers of XML in it; nothing of office formats.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass

from stillroom.errors import DataError
from stillroom.text.method import Limits

__all__ = ["Archive", "open_archive"]

_RATIO_FLOOR = 16 * 2**20
_LOCAL_HEADER = 30
_NESTED = (".zip", ".jar", ".7z", ".rar", ".gz", ".xz", ".bz2")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


@dataclass(frozen=True)
class Archive:
    """An archive whose members have been checked against the limits."""

    data: bytes
    file: zipfile.ZipFile
    where: str

    def __contains__(self, name: str) -> bool:
        """Say whether there is a member of that name."""
        return name in self.file.NameToInfo

    def read(self, name: str) -> bytes:
        """Return a member's bytes.

        Raises:
            DataError: If the member is missing, broken or encrypted.
        """
        try:
            info = self.file.getinfo(name)
            with self.file.open(info) as member:
                content = member.read(info.file_size + 1)
        except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            if "password" in str(error):
                raise _encrypted(self.where) from error
            raise _broken(self.where, f"member '{name}': {error}") from error
        if len(content) > info.file_size:
            raise _refused(self.where, f"member '{name}' is larger than it says")
        return content

    def span(self, name: str) -> tuple[int, int]:
        """Return the bytes of the file that hold a member, its local header included."""
        info = self.file.NameToInfo.get(name)
        if info is None:
            return 0, len(self.data)
        start = info.header_offset
        header = self.data[start : start + _LOCAL_HEADER]
        if len(header) < _LOCAL_HEADER:
            return 0, len(self.data)
        name_size, extra_size = struct.unpack("<HH", header[26:30])
        end = start + _LOCAL_HEADER + name_size + extra_size + info.compress_size
        return start, min(end, len(self.data))


def open_archive(data: bytes, where: str, limits: Limits, *, required: str = "") -> Archive:
    """Return an archive after checking all that its directory tells.

    Args:
        data: The whole file.
        where: Named in errors.
        limits: How much it may hold.
        required: A member that must be there.

    Raises:
        DataError: If it is no archive, encrypted, a bomb, or holds unsafe names, other archives,
            or XML that declares entities.
    """
    if data.startswith(_OLE):
        raise _encrypted(where, "the file is password-protected, or of the format before 2007")
    try:
        file = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, struct.error) as error:
        raise _broken(where, str(error)) from error
    archive = Archive(data, file, where)
    _check_sizes(file.infolist(), where, limits, len(data))
    names: set[str] = set()
    for info in file.infolist():
        _check_name(info.filename, where)
        if info.filename in names:
            raise _refused(where, f"member '{info.filename}' stands twice in the archive")
        names.add(info.filename)
        if info.flag_bits & 1:
            raise _encrypted(where)
        if info.filename.lower().endswith(_NESTED):
            raise _refused(where, f"the archive holds another archive, '{info.filename}'")
    if required and required not in archive:
        raise _broken(where, f"the archive holds no '{required}'")
    for info in file.infolist():
        if info.filename.lower().endswith((".xml", ".rels", ".opf", ".ncx", ".vml")):
            _check_xml(archive.read(info.filename), where, info.filename)
    return archive


def _check_sizes(infos: list[zipfile.ZipInfo], where: str, limits: Limits, compressed: int) -> None:
    if len(infos) > limits.archive_entries:
        raise _refused(where, f"the archive holds {len(infos)} members")
    total = sum(info.file_size for info in infos)
    if total > limits.decompressed_bytes:
        raise _refused(where, f"the archive would unpack to {total} bytes")
    if total > _RATIO_FLOOR and total > limits.compression_ratio * max(compressed, 1):
        raise _refused(where, f"the archive would grow {total / compressed:.0f} times")


def _check_name(name: str, where: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\x00" in name:
        raise _refused(where, f"member '{name}' has a name that leaves the archive")


def _check_xml(content: bytes, where: str, name: str) -> None:
    """Refuse entity declarations, in any encoding that XML allows."""
    flat = content.replace(b"\x00", b"").upper()
    if b"<!ENTITY" in flat:
        raise DataError(
            f"member '{name}' declares XML entities",
            code="document.xml-entities",
            where=where,
            expected="XML without entity declarations, as office programs write it",
            next="open and save the file in an office program, or leave it out",
        )


def _broken(where: str, why: str) -> DataError:
    return DataError(
        f"the archive cannot be read: {why}",
        code="document.unreadable",
        where=where,
        expected="a whole file of its format",
        next="get the file anew, or open and save it in its program",
    )


def _encrypted(where: str, why: str = "the file is encrypted") -> DataError:
    return DataError(
        why,
        code="document.encrypted",
        where=where,
        expected="a file that opens without a password",
        next="save a copy without a password",
    )


def _refused(where: str, why: str) -> DataError:
    return DataError(
        why,
        code="document.unsafe-archive",
        where=where,
        expected="an archive within the limits (see Limits), with plain names",
        next="leave the file out, or unpack it and look what it holds",
    )
