"""Debian's indexes: brought by apt, read, and packages joined with their descriptions in several languages."""

import gzip
import lzma
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scaletrain.errors import DataError

MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CAT_FILE = Path("/usr/lib/apt/apt-helper")
LANGUAGES = ("en", "it", "fr", "de")
FETCH_LIMIT_S = 600
ITEM = re.compile(r"[*+o•-] ")  # begins a line of a list


@dataclass(frozen=True)
class Description:
    """What a package is, in one language."""

    synopsis: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The paragraphs, with empty lines between them."""
        return "\n\n".join(self.paragraphs)


@dataclass(frozen=True)
class Package:
    """A binary package."""

    name: str
    source: str
    section: str
    installed_kib: int
    english: Description
    translations: dict[str, Description] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The source without numbers: gcc-11 and gcc-12 are described in the same words and belong together."""
        return re.sub(r"[-.+]*\d[\d.]*", "", self.source) or self.source


def fetch_lists(folder: Path, mirror: str = MIRROR, suite: str = SUITE) -> Path:
    """Has apt-get bring the indexes of one suite, checked by its signature; the system's own lists stay as they are.

    Args:
        folder: Where apt's files go.
        mirror: A mirror of Debian's archive.
        suite: The release to take; the indexes of a stable one change about every three months.

    Returns:
        The folder of the lists.

    Raises:
        DataError: There is no apt-get, or the mirror cannot be reached.
    """
    if shutil.which("apt-get") is None:
        raise DataError(
            "There is no apt-get on this machine. Run this on a Debian or Ubuntu machine, or copy its folder of lists "
            "and give it as --lists DIR."
        )
    lists = folder.resolve() / "lists"
    cache = folder.resolve() / "cache"
    for part in (lists / "partial", cache / "archives" / "partial"):
        part.mkdir(parents=True, exist_ok=True)
    signed_by = f" [signed-by={KEYRING}]" if KEYRING.exists() else ""
    sources = folder.resolve() / "sources.list"
    sources.write_text(f"deb{signed_by} {mirror} {suite} main\n")
    options = [
        f"Dir::State::lists={lists}",
        f"Dir::Cache={cache}",
        f"Dir::Etc::sourcelist={sources}",
        "Dir::Etc::sourceparts=-",
        f"Acquire::Languages={','.join(LANGUAGES)}",
        # Sizes differ between architectures: the data must not depend on the machine that prepares them.
        "APT::Architecture=amd64",
        "APT::Architectures=amd64",
        "APT::Update::Error-Mode=any",
        "APT::Sandbox::User=root",
    ]
    command = ["apt-get", "update", *(word for option in options for word in ("-o", option))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"apt-get update has not ended after {FETCH_LIMIT_S} s: is {mirror} reachable?") from error
    if done.returncode:
        raise DataError(f"apt-get update ended with code {done.returncode}:\n{done.stderr.strip()}")
    return lists


def read_packages(lists: Path, suite: str = SUITE) -> list[Package]:
    """Reads the packages of a suite that have an English description.

    Args:
        lists: Folder of apt's lists, plain or compressed.
        suite: The release to take.

    Returns:
        The packages in the order of their names, each name once.

    Raises:
        DataError: A list is missing.
    """
    described = {
        language: _read_descriptions(_find(lists, f"*_dists_{suite}_main_i18n_Translation-{language}*"), language)
        for language in LANGUAGES
    }
    found: dict[str, Package] = {}
    for stanza in read_stanzas(_find(lists, f"*_dists_{suite}_main_binary-*_Packages*")):
        name, key = stanza["Package"], stanza.get("Description-md5", "")
        if name in found or key not in described["en"] or "Section" not in stanza:
            continue
        found[name] = Package(
            name=name,
            source=stanza.get("Source", name).split()[0],
            section=stanza["Section"].rpartition("/")[2],
            installed_kib=int(stanza.get("Installed-Size", 0)),
            english=described["en"][key],
            translations={
                language: described[language][key] for language in LANGUAGES[1:] if key in described[language]
            },
        )
    return [found[name] for name in sorted(found)]


def release_of(lists: Path, suite: str = SUITE) -> str:
    """Version and date of a suite's indexes, as its signed release file says, or the name alone."""
    for path in sorted(lists.glob(f"*_dists_{suite}_*Release")):
        # A clear-signed file: its fields stand between lines of the signature.
        fields = dict(line.split(": ", 1) for line in path.read_text().splitlines() if ": " in line)
        return f"Debian {fields.get('Version', suite)} of {fields.get('Date', 'an unknown date')}"
    return f"Debian {suite}"


def read_stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Reads Debian's control format.

    Args:
        path: An index, plain or compressed.

    Yields:
        The fields of each stanza; further lines of a field keep their line breaks and indentation.
    """
    stanza: dict[str, str] = {}
    name = ""
    for line in _read_text(path).split("\n"):
        if not line:
            if stanza:
                yield stanza
            stanza = {}
        elif line[0] in " \t":
            stanza[name] += "\n" + line
        else:
            name, _, value = line.partition(":")
            stanza[name] = value.strip()
    if stanza:
        yield stanza


def read_description(value: str) -> Description:
    """Reads the value of a Description field.

    Lines that are indented once are running text and are joined. Lines that are indented more, or begin a list's item,
    stand on their own. A lone dot is an empty line.

    Args:
        value: The synopsis, and the lines after it.

    Returns:
        The description with its white space in order.
    """
    synopsis, *lines = value.split("\n")
    paragraphs: list[list[str]] = [[]]
    running = False
    for line in lines:
        words = " ".join(line.split())
        if words in ("", "."):
            paragraphs.append([])
            running = False
        elif line[1:2].isspace() or ITEM.match(words):
            paragraphs[-1].append(words)
            running = not line[1:2].isspace()
        elif running:
            paragraphs[-1][-1] += " " + words
        else:
            paragraphs[-1].append(words)
            running = True
    return Description(" ".join(synopsis.split()), tuple("\n".join(lines) for lines in paragraphs if lines))


def _read_descriptions(path: Path, language: str) -> dict[str, Description]:
    return {
        stanza["Description-md5"]: read_description(stanza[f"Description-{language}"])
        for stanza in read_stanzas(path)
        if f"Description-{language}" in stanza
    }


def _find(lists: Path, pattern: str) -> Path:
    found = sorted(path for path in lists.glob(pattern) if path.is_file())
    if not found:
        raise DataError(
            f"{lists} holds no file {pattern}. Fetch the lists anew, without --lists, or by apt-get update with "
            f"-o Acquire::Languages={','.join(LANGUAGES)}."
        )
    return found[0]


def _read_text(path: Path) -> str:
    if path.suffix == ".gz":
        content = gzip.decompress(path.read_bytes())
    elif path.suffix == ".xz":
        content = lzma.decompress(path.read_bytes())
    elif path.suffix in (".lz4", ".zst", ".bz2"):
        # apt keeps its lists in a format that Python's own library cannot read.
        if not CAT_FILE.exists():
            raise DataError(f"{path.name} can be read with {CAT_FILE} only, which this machine lacks.")
        done = subprocess.run([CAT_FILE, "cat-file", path], capture_output=True)
        if done.returncode:
            raise DataError(f"{path} cannot be read: {done.stderr.decode(errors='replace').strip()}")
        content = done.stdout
    else:
        content = path.read_bytes()
    return content.decode()
