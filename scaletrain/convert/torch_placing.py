"""Files as ``torch.save`` writes them, laid out first and filled in place later: no tensor is ever in memory.

Such a file is a zip archive whose members are stored as they are. ``torch.serialization.skip_data`` makes torch write
all of it but the numbers, for which it leaves a hole.
"""

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import torch

from scaletrain.convert.placing import Place
from scaletrain.convert.tensors import TensorInfo

_CHUNK_BYTES = 8 << 20
# A member's entry in the directory at an archive's end: signature, the checksum's place in it, and the lengths of the
# three texts that follow. Source: PKWARE's APPNOTE.TXT 6.3.10, section 4.3.12.
_ENTRY = struct.Struct("<4s12xL8x3H12x")
_ENTRY_SIGNATURE, _ENTRY_CHECKSUM_AT = b"PK\x01\x02", 16
# What stands behind a member whose size was not known when it was begun; section 4.3.9.
_DESCRIPTOR = struct.Struct("<4sL")
_DESCRIPTOR_SIGNATURE = b"PK\x07\x08"


def lay_out_torch_file(path: Path, key: str, info: TensorInfo) -> Place:
    """Writes a file that holds one tensor in a dictionary, but for its numbers, whose space is reserved.

    Args:
        path: A new file.
        key: Of the tensor in the dictionary.
        info: The tensor; it has one element at least.

    Returns:
        Where its numbers are to be written; ``seal_torch_file`` follows.

    Raises:
        OSError: The file cannot be written, or there is no space.
    """
    # A tensor over a hole in a file: memory that was never touched would do as well, but systems refuse to promise
    # more of it than they have.
    hole = path.with_name(f"{path.name}.hole")
    tensor = torch.from_file(str(hole), shared=True, size=info.numel, dtype=info.dtype).view(info.shape)
    hole.unlink()
    with torch.serialization.skip_data():
        torch.save({key: tensor}, path)
    with path.open("r+b") as file:
        member = _find_member(file)
        file.seek(member.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
        offset = member.header_offset + 30 + name_bytes + extra_bytes
        os.posix_fallocate(file.fileno(), offset, member.file_size)
    return Place(path, offset, info)


def seal_torch_file(place: Place) -> None:
    """Writes the checksum that the archive has of a tensor's numbers; whoever publishes the file forces it to the disk.

    ``torch.load`` does not look at it. Other readers of zip archives do.

    Args:
        place: As from ``lay_out_torch_file``, filled.

    Raises:
        OSError: The file cannot be written.
    """
    size = place.info.numel * place.info.dtype.itemsize
    with place.path.open("r+b") as file:
        found = struct.pack("<L", _checksum(file, place.offset, size))
        member = _find_member(file)
        file.seek(_find_entry(file, member) + _ENTRY_CHECKSUM_AT)
        file.write(found)
        file.seek(place.offset + size)
        signature, _ = _DESCRIPTOR.unpack(file.read(_DESCRIPTOR.size))
        if signature == _DESCRIPTOR_SIGNATURE:
            file.seek(place.offset + size + 4)
            file.write(found)


def _find_member(file: BinaryIO) -> zipfile.ZipInfo:
    with zipfile.ZipFile(file) as archive:
        return next(member for member in archive.infolist() if member.filename.endswith("/data/0"))


def _find_entry(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where the directory's entry of a member begins."""
    with zipfile.ZipFile(file) as archive:
        at = archive.start_dir
    while True:
        file.seek(at)
        signature, _, name_bytes, extra_bytes, comment_bytes = _ENTRY.unpack(file.read(_ENTRY.size))
        assert signature == _ENTRY_SIGNATURE, f"{file.name} has no entry of {member.filename}"
        if file.read(name_bytes).decode() == member.filename:
            return at
        at += _ENTRY.size + name_bytes + extra_bytes + comment_bytes


def _checksum(file: BinaryIO, offset: int, size: int) -> int:
    file.seek(offset)
    checksum, left = 0, size
    while left:
        chunk = file.read(min(_CHUNK_BYTES, left))
        checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    return checksum
