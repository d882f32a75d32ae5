"""What the kernel's log says of a host's storage and processors, which no counter tells of every driver."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

Kind = Literal["io_errors", "file_system_errors", "server_silences", "machine_checks"]

# As they stand in block/blk-core.c, fs/buffer.c, drivers/nvme; fs/ext4/super.c, fs/xfs, fs/btrfs/messages.c;
# net/sunrpc/clnt.c and Lustre's ptlrpc; arch/x86/kernel/cpu/mce and drivers/firmware/efi/cper.c of Linux.
_PATTERNS: dict[Kind, str] = {
    "io_errors": r"\bI/O error, dev \w+|Buffer I/O error on dev|Medium Error|nvme\d+: .*(timeout|controller is down)",
    "file_system_errors": (
        r"EXT4-fs error|EXT4-fs .*Remounting filesystem read-only|XFS \(.*\): .*(corruption|I/O error|shutting down)"
        r"|BTRFS (error|critical)|BTRFS.* forced readonly"
    ),
    "server_silences": r"(nfs|lockd): server \S+ not responding|Lustre.*: Connection to .* was lost; in progress",
    "machine_checks": r"\[Hardware Error\]: (Machine check events logged|CPU \d+: Machine Check)",
}


class KernelMessages:
    """Counts messages by what they are about, from when it was made."""

    def __init__(self) -> None:
        self._counts: dict[Kind, int] = dict.fromkeys(_PATTERNS, 0)

    def add(self, lines: Iterable[str]) -> dict[Kind, int]:
        """Counts further lines.

        Args:
            lines: Of the kernel's log.

        Returns:
            All that was counted so far, by kind.
        """
        for line in lines:
            for kind in kinds_of(line):
                self._counts[kind] += 1
        return dict(self._counts)


def kinds_of(line: str) -> Sequence[Kind]:
    """What a line of the kernel's log is about; nothing of the known kinds for most.

    Args:
        line: The line, with or without what stands before the message.
    """
    return [kind for kind, pattern in _PATTERNS.items() if re.search(pattern, line, re.IGNORECASE)]
