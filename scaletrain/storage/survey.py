"""Finds files of which nothing is known yet, and brings them here: before there is a manifest."""

from typing import BinaryIO

import xxhash

from scaletrain.errors import DataError
from scaletrain.storage.command import output_of
from scaletrain.storage.failures import TransferError
from scaletrain.storage.fetch import Fetcher, Tries
from scaletrain.storage.urls import PIPE, check_url, printable, scheme_of


class Surveyor(Fetcher):
    """A fetcher that can list, and that takes a file as it is."""

    def find(self, pattern: str) -> list[str]:
        """Lists the files whose URL fits a pattern with ``*``, ``?`` or ``[...]``.

        Args:
            pattern: A URL of a storage that can be listed, such as ``s3://bucket/part-*.tar``.

        Returns:
            URLs of the same scheme, sorted.

        Raises:
            DataError: The storage cannot be listed or may not be opened.
        """
        check_url(pattern, self.policy.allow_pipe)
        scheme = scheme_of(pattern)
        found = self._ask_patiently("glob", pattern)
        return sorted(path if scheme_of(path) else f"{scheme}://{path.lstrip('/')}" for path in found)

    def size(self, url: str) -> int | None:
        """Asks the storage for the size of a file.

        Args:
            url: A URL.

        Returns:
            Bytes; None for the output of a command, and where the storage does not tell.

        Raises:
            DataError: It may not be opened, is missing or forbidden.
        """
        check_url(url, self.policy.allow_pipe)
        size = None if scheme_of(url) == PIPE else self._ask_patiently("info", url).get("size")
        return size if isinstance(size, int) else None

    def download(self, url: str, stream: BinaryIO) -> tuple[int, str]:
        """Brings a file here whose size and checksum are not known.

        Args:
            url: A URL.
            stream: Open for binary writing; the file is written from its position 0 on.

        Returns:
            Its size in bytes, as the storage tells it too, and the xxh3-128 of what arrived.

        Raises:
            DataError: It may not be opened, is missing or forbidden, or the storage does not tell its size.
            OSError: The stream cannot be written.
        """
        check_url(url, self.policy.allow_pipe)
        if scheme_of(url) == PIPE:
            return self._download_output(url, stream)
        size = self.size(url)
        if size is None:
            raise DataError(
                f"{printable(url)}: its server does not tell how large it is, so that a cut transfer would not be "
                "seen. Download it, and index the copy."
            )
        checksum = self._transfer(url, stream, size)
        stream.flush()
        return size, checksum

    def _download_output(self, url: str, stream: BinaryIO) -> tuple[int, str]:
        tries = Tries(self.policy, self._report, url)
        while True:
            content = xxhash.xxh3_128()
            stream.seek(0)
            stream.truncate()
            try:
                for part in output_of(url.removeprefix(f"{PIPE}:"), self.policy.stall_s):
                    content.update(part)
                    stream.write(part)
                stream.flush()
                return stream.tell(), content.hexdigest()
            except TransferError as error:
                tries.failed(error)
