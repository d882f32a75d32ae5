"""A small archive: indexes as apt writes them, with as many packages as a test wants."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Of each section: words that its packages are described with.
WORDS = {
    "admin": ("daemon", "boot", "disk", "kernel", "account"),
    "games": ("puzzle", "arcade", "player", "dungeon", "chess"),
    "net": ("socket", "proxy", "protocol", "router", "packet"),
    "sound": ("synthesizer", "audio", "mixer", "melody", "samples"),
}
ITALIAN = {"The": "Il", "program": "programma", "of": "di", "and": "e", "for": "per", "This": "Questo", "is": "è"}


@dataclass(frozen=True)
class Entry:
    """A package as its maintainer describes it."""

    name: str
    section: str
    installed_kib: int
    english: str  # a Description field: synopsis, and lines with their indentation
    italian: str | None = None
    source: str | None = None

    @property
    def key(self) -> str:
        """What joins an index with its translations."""
        return hashlib.md5(self.english.encode() + b"\n").hexdigest()


def invented(number: int) -> Entry:
    """A package of one of four sections, described in words of its section and a number that is its own."""
    section = sorted(WORDS)[number % len(WORDS)]
    words = [WORDS[section][number // len(WORDS) // 5**place % 5] for place in range(4)]
    name = "".join(chr(ord("a") + number // 26**place % 26) for place in range(3))
    body = (
        f" The program {name} is for {words[0]} and {words[1]} of {words[2]}.\n"
        f" This is the {words[3]} for the people who want more {words[0]} of all kinds {name}.\n"
        f" .\n This program of {name} is for {words[3]} and {words[2]}."
    )
    english = f"{words[0]} {words[1]} for {name}\n{body}"
    italian = "\n".join(" ".join(ITALIAN.get(word, word) for word in line.split(" ")) for line in english.split("\n"))
    return Entry(f"{name}-{section}", section, 10 + 7 * number, english, italian)


def write_lists(folder: Path, entries: Sequence[Entry], suite: str = "bookworm") -> Path:
    """Writes the indexes of a suite, and returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = folder / f"mirror.example_debian_dists_{suite}"
    stanzas = []
    for entry in entries:
        fields = [f"Package: {entry.name}", f"Installed-Size: {entry.installed_kib}", "Architecture: amd64"]
        fields += [f"Source: {entry.source}"] if entry.source else []
        fields += [f"Description: {entry.english.splitlines()[0]}", f"Description-md5: {entry.key}"]
        fields += ["Tag: role::program, use::gameplaying,", " x11::application", f"Section: {entry.section}"]
        stanzas.append("\n".join(fields) + "\n")
    Path(f"{begin}_main_binary-amd64_Packages").write_text("\n".join(stanzas))
    for language in ("en", "it", "fr", "de"):
        texts = {"en": [entry.english for entry in entries], "it": [entry.italian for entry in entries]}
        described = [
            f"Package: {entry.name}\nDescription-md5: {entry.key}\nDescription-{language}: {text}\n"
            for entry, text in zip(entries, texts.get(language, [None] * len(entries)), strict=True)
            if text is not None
        ]
        Path(f"{begin}_main_i18n_Translation-{language}").write_text("\n".join(described))
    Path(f"{begin}_InRelease").write_text("Origin: Debian\nVersion: 12.99\nDate: Mon, 02 Nov 2026 10:00:00 UTC\n")
    return folder
