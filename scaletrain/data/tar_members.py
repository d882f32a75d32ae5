"""The walk over a tar's headers: what lies where, without reading what it holds and without believing what it claims.

Nothing is ever unpacked, so that a name is only a string: an absolute one or one with ``..`` does no harm. Understood
are tars of GNU tar, of POSIX (ustar and pax) and of the seventh edition of Unix, uncompressed.
"""

import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from scaletrain.errors import DataError

BLOCK = 512
PLAIN_FILE = "0"
FOLDER = "5"
_LARGEST_EXTENSION = 1 << 20  # bytes of an extended header
_LARGEST_NAME = 4096  # bytes; what Linux allows for a path
_WINDOW = 1 << 18  # bytes read at once where members are small
_FAR = 1 << 15  # a member of more bytes is jumped over: the window would hold little else
_SHORT_WINDOW = 3 * BLOCK
_SPACES = 8 * ord(" ")
_PLAIN_KINDS = frozenset("0\x007")  # 7 is a file that was to lie in one piece on the disk
_LONG_NAME, _LONG_LINK, _GLOBAL, _SPARSE = "L", "K", "g", "S"
_EXTENSIONS = frozenset("xXgLK")  # headers that say something of the next member; X is Solaris's x
_TELLING = (b" path=", b" size=", b" GNU.sparse")  # records of extended headers that matter here
_WITHOUT_CONTENT = frozenset("123456")  # links, devices, folders, FIFOs
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
_REMEDY = "Copy the shard again from where it came, or make it again (tools/make_shards.py build, tar, webdataset)."


class Member(NamedTuple):
    """A file of a tar, or something that is none.

    Attributes:
        name: As the tar has it, folders with it; bytes that are not UTF-8 are surrogates.
        kind: ``0`` for a plain file, ``5`` for a folder, else the tar's own letter: ``1`` and ``2`` for links, and
            so on.
        offset: First byte of its content in the tar.
        size: Of the content, in bytes.
    """

    name: str
    kind: str
    offset: int
    size: int


def split_name(name: str) -> tuple[str, str] | None:
    """Key and field of a sample's member, by the rule of webdataset.

    Args:
        name: Of the member.

    Returns:
        The key is everything up to the first dot behind the last slash, folders with it; the field is the rest, in
        lower case. None for a name without a dot, a hidden file, and what webdataset keeps for itself (``__NAME__``
        at the beginning).
    """
    folder = name.rfind("/") + 1
    dot = name.find(".", folder)
    if dot <= folder:
        return None
    if name.startswith("__") and name.split("/", 1)[0][2:].endswith("__"):
        return None
    return name[:dot], name[dot + 1 :].lower()


def walk_members(descriptor: int, size: int, shown: str) -> Iterator[Member]:
    """Walks over the members of a tar in their order, by positioned reads of the headers.

    Args:
        descriptor: Of the open tar.
        size: Of the tar, in bytes.
        shown: The tar's path, for messages.

    Yields:
        Each member, files and others, with the name and the size that extended headers give it. Memory is bounded by
        one extended header, time by the tar's size: each step leads at least one block further.

    Raises:
        DataError: A header is damaged or contradicts itself, a member ends behind the tar's end, the end mark is
            missing, or something follows it.
        OSError: The tar cannot be read.
    """
    window, begin, reach = b"", 0, _WINDOW
    offset = 0
    pending = _Pending(shown)
    while True:
        place = offset - begin
        if place + BLOCK > len(window):
            window, begin, place = os.pread(descriptor, reach, offset), offset, 0
        header = window[place : place + BLOCK]
        if len(header) < BLOCK:
            _check_uncompressed(header, offset, shown)
            raise DataError(f"Shard {shown} is truncated: it ends at byte {size} without a tar's end mark. {_REMEDY}")
        if not header[0] and not header.strip(b"\0"):
            pending.check_used(offset)
            _check_end(descriptor, offset, size, shown)
            return
        kind, length = _kind_and_size(header, offset, shown)
        is_extension = kind in _EXTENSIONS
        if pending.size is not None and not is_extension:
            length = pending.size
        payload = offset + BLOCK
        if payload + length > size:
            raise DataError(
                f"Shard {shown} is truncated: the member at byte {offset} ends at byte {payload + length}, the file "
                f"at byte {size}. {_REMEDY}"
            )
        if not is_extension:
            yield _member(header, kind, payload, length, pending)
            if pending.is_used:
                pending = _Pending(shown)
        elif length > _LARGEST_EXTENSION:
            raise DataError(f"{shown}: the extended header at byte {offset} claims {length} bytes. {_REMEDY}")
        else:
            content = window[place + BLOCK : place + BLOCK + length]
            if len(content) < length:
                content = os.pread(descriptor, length, payload)
            pending.take(kind, content, offset)
        offset = payload + -(-length // BLOCK) * BLOCK
        reach = _SHORT_WINDOW if length > _FAR else _WINDOW


class _Pending:
    """What extended headers say of the member that follows them."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.name: bytes | None = None
        self.size: int | None = None
        self.is_used = False

    def take(self, kind: str, content: bytes, offset: int) -> None:
        self.is_used = True
        if kind == _LONG_LINK:
            return
        if kind == _LONG_NAME:
            self._set_name(content.split(b"\0", 1)[0], offset)
            return
        if not any(word in content for word in _TELLING):
            return
        for key, value in self._records(content, offset):
            if key in (b"path", b"size") and kind == _GLOBAL:
                raise DataError(f"{self.shown}: the header at byte {offset} gives all members one {key.decode()}.")
            if key.startswith(b"GNU.sparse"):
                raise DataError(f"{self.shown}: the file behind byte {offset} is stored with holes. Write it without.")
            if key == b"path":
                self._set_name(value, offset)
            elif key == b"size":
                if not value.isdigit() or len(value) > 20:
                    raise DataError(f"{self.shown}: the header at byte {offset} claims a size of {value[:40]!r}.")
                self.size = int(value)

    def check_used(self, offset: int) -> None:
        if self.is_used and (self.name is not None or self.size is not None):
            raise DataError(f"{self.shown}: no member follows the extended header before byte {offset}. {_REMEDY}")

    def _set_name(self, name: bytes, offset: int) -> None:
        if self.name is not None and self.name != name:
            raise DataError(f"{self.shown}: the member behind byte {offset} is given two names. {_REMEDY}")
        if not name or len(name) > _LARGEST_NAME or b"\0" in name:
            raise DataError(
                f"{self.shown}: the member behind byte {offset} has a name of {len(name)} bytes; 1 to {_LARGEST_NAME} "
                "without a zero byte are possible. Use shorter keys."
            )
        self.name = name

    def _records(self, content: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
        """Records ``LENGTH KEY=VALUE`` with a line end; the length counts itself."""
        content = content.rstrip(b"\0")
        start = 0
        while start < len(content):
            space = content.find(b" ", start, start + 20)
            digits = content[start:space] if space > 0 else b""
            stop = start + int(digits) if digits.isdigit() else 0
            key, equals, value = content[space + 1 : stop - 1].partition(b"=")
            if not equals or stop > len(content) or content[stop - 1 : stop] != b"\n":
                raise DataError(f"{self.shown}: the extended header at byte {offset} is damaged. {_REMEDY}")
            yield key, value
            start = stop


def _member(header: bytes, kind: str, payload: int, length: int, pending: _Pending) -> Member:
    # The seventh edition had no letter for folders; some programs look at the name that a longer one replaces.
    raw = header[:100].split(b"\0", 1)[0]
    is_folder = kind == "\0" and (raw.endswith(b"/") or (pending.name or b"").endswith(b"/"))
    if length and (is_folder or kind in _WITHOUT_CONTENT):
        # Programs differ in whether they step over it, so that they would see different members behind it.
        raise DataError(
            f"{pending.shown}: the member at byte {payload - BLOCK} is of type {kind!r} and claims {length} bytes of "
            f"content. {_REMEDY}"
        )
    if kind == _SPARSE:
        raise DataError(f"{pending.shown}: the file at byte {payload - BLOCK} is stored with holes. Write it without.")
    if pending.name is not None:
        raw = pending.name
    elif header[345] and header[257:263] == b"ustar\0":
        raw = header[345:500].split(b"\0", 1)[0] + b"/" + raw
    name = raw.decode("utf-8", "surrogateescape")
    if kind in _PLAIN_KINDS:
        kind = FOLDER if is_folder else PLAIN_FILE
    return Member(name, kind, payload, length)


def _kind_and_size(header: bytes, offset: int, shown: str) -> tuple[str, int]:
    try:
        checksum = _number(header[148:156])
        # Adler-32 holds, in C, one plus the sum of the bytes, modulo a number that names in ASCII do not reach. The
        # header's sum counts its own field as spaces.
        if (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + _SPACES != checksum:
            _check_slowly(header, checksum)
        return chr(header[156]), _number(header[124:136])
    except ValueError:
        _check_uncompressed(header, offset, shown)
        raise DataError(f"{shown}: there is no valid tar header at byte {offset}. {_REMEDY}") from None


def _check_uncompressed(header: bytes, offset: int, shown: str) -> None:
    """Tells what is no header, where it is the beginning of a compressed file."""
    packed = next((name for magic, name in _COMPRESSED.items() if header.startswith(magic)), None)
    if packed and not offset:
        raise DataError(
            f"{shown} is compressed ({packed}); documents are read out of the middle of a shard, which has to be an "
            "uncompressed tar. Decompress it; its members may be compressed (.txt.gz)."
        )


def _check_slowly(header: bytes, checksum: int) -> None:
    others = header[:148] + header[156:]
    unsigned = sum(others) + _SPACES
    # Some old programs took bytes as signed.
    if checksum not in (unsigned, unsigned - 256 * sum(byte > 127 for byte in others)):
        raise ValueError


def _number(field: bytes) -> int:
    """A number in octal digits, or in base 256 where its first bit is set."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ValueError  # less than zero
        return int.from_bytes(field, "big") - (1 << (8 * len(field) - 1))
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit():
        raise ValueError
    return int(digits, 8)


def _check_end(descriptor: int, offset: int, size: int, shown: str) -> None:
    """Tars are filled up with zeros; anything else behind the end mark would be lost without a word."""
    for begin in range(offset, size, _WINDOW):
        if os.pread(descriptor, _WINDOW, begin).strip(b"\0"):
            raise DataError(
                f"{shown} goes on behind the end mark at byte {offset}, as tars do that were joined with cat. Give "
                "each as a shard of its own, or join them with tar --concatenate."
            )
