"""Replaces what identifies a person or opens a door: e-mail addresses, public IP addresses, keys.

Every pattern is bounded in what it looks at, so that no text makes the search slow.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

from scaletrain.corpus.rules import ReplacementRules

EMAIL, IP_ADDRESS, KEY = "<EMAIL>", "<IP_ADDRESS>", "<KEY>"

# A local part has at most 64 characters, a label of a domain at most 63: RFC 5321 and RFC 1035. Searched from the "@",
# of which a text has few, and then backwards.
# Code has attributes behind a matrix product's or a decorator's "@", names of files and units have suffixes: a domain
# ends in two letters, as countries' do, or in a name that is usual, and no call, attribute or path of scp follows it.
_GENERIC = (
    "com|org|net|edu|gov|mil|int|info|biz|pro|app|dev|xyz|online|site|website|tech|cloud|store|shop|blog|email|"
    "live|club|agency|company|digital|solutions|systems|services|software|support|work|space|world|today|academy|"
    "global|group|health|law|media|museum|news|studio|design|aero|coop|jobs|mobi|asia|cat|eus|gal|scot|wales|berlin|"
    "hamburg|koeln|bayern|wien|paris|london|amsterdam|tokyo|nyc"
)
_DOMAIN = re.compile(
    rf"@(?:[A-Za-z0-9-]{{1,63}}\.){{1,8}}(?:(?!js|ts|rb|hs)[a-z]{{2}}|[A-Z]{{2}}|(?i:{_GENERIC}))"
    r"(?![A-Za-z0-9_(-]|\.[A-Za-z0-9]|:[\w.~-]{0,64}/)"
)
# Letters of the alphabets of Europe belong to a name, others stand before it without a space. A backslash takes the
# letter behind it: \n and \t in a string literal are no part of a name.
_NAME = r"A-Za-z0-9._%+\-\u00c0-\u052f"
_LOCAL = re.compile(rf"(?:\\[A-Za-z]|(?<![{_NAME}\\]))([{_NAME}]{{1,64}})\Z")
_NO_PERSONS = ("git", "hg", "svn")
# The first character stands before what is looked for behind it, since re finds the start of a pattern ten times
# faster where it is a plain set.
_IPV4 = re.compile(r"[0-9](?<![\w.][0-9])[0-9]{0,2}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?!\w|\.[0-9])", re.ASCII)
# Global unicast addresses are those of 2000::/3.
_IPV6 = re.compile(r"[23](?<![\w:.][23])[0-9A-Fa-f]{3}:[0-9A-Fa-f:]{1,33}(?:[0-9A-Fa-f]|::)(?!\w|:[\w:])", re.ASCII)
# Versions, sections and object identifiers look like IPv4 addresses. One address in 4,096 has only such numbers.
_LARGEST_OF_A_VERSION = 31
_BEFORE_A_VERSION = re.compile(r"(?:[=~<>!]=[ ]?|\b[A-Z][A-Za-z]{1,30}/|(?i:version|release|build|section)\W{0,4})\Z")
_LONGEST_BEFORE_A_VERSION = 32
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----)){1,20000}"
    r"-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
)
# Each begins with what its issuer begins it with; the second entry is looked for before the pattern is tried.
_KEYS = tuple(
    (mark, re.compile(rf"(?<![A-Za-z0-9-])(?:{pattern})(?![A-Za-z0-9-])"))
    for mark, pattern in (
        ("AKIA", r"AKIA[A-Z2-7]{16}"),
        ("ASIA", r"ASIA[A-Z2-7]{16}"),
        ("AIza", r"AIza[A-Za-z0-9_-]{35}"),
        ("gh", r"gh[pousr]_[A-Za-z0-9]{36,255}"),
        ("github_pat_", r"github_pat_[A-Za-z0-9_]{60,255}"),
        ("glpat-", r"glpat-[A-Za-z0-9_-]{20,300}(?:\.[0-9][0-9a-z]\.?[0-9a-z]{7,9})?"),
        ("hf_", r"hf_[A-Za-z0-9]{34}"),
        ("npm_", r"npm_[A-Za-z0-9]{36}"),
        ("pypi-", r"pypi-[A-Za-z0-9_-]{85,300}"),
        ("sk-", r"sk-(?:[A-Za-z0-9]{48}|(?:proj|svcacct|admin|ant)-[A-Za-z0-9_-]{40,300})"),
        ("k_live_", r"[sr]k_live_[A-Za-z0-9]{16,255}"),
        ("xox", r"xox[abeoprs]-[0-9][A-Za-z0-9-]{9,255}"),
        ("eyJ", r"eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,2000}"),
    )
)


def replace_private(text: str, rules: ReplacementRules) -> tuple[str, Counter[str]]:
    """Puts placeholders where the rules ask for them.

    Args:
        text: Any text.
        rules: What is replaced.

    Returns:
        The text, and how many were replaced by placeholder.

    Source:
        The placeholders are those of StarCoder (Li et al. 2023, StarCoder: may the source be with you!, section 4).
    """
    counts: Counter[str] = Counter()
    if rules.keys:
        text = _replace_keys(text, counts)
    if rules.emails and "@" in text:
        text = _replace_emails(text, counts)
    if rules.ip_addresses:
        text = _replace(_IPV4, text, IP_ADDRESS, counts, _is_public_and_no_version)
        text = _replace(_IPV6, text, IP_ADDRESS, counts, _is_public)
    return text, counts


def _replace_keys(text: str, counts: Counter[str]) -> str:
    if "PRIVATE KEY" in text:
        text = _replace(_PRIVATE_KEY, text, KEY, counts)
    for mark, pattern in _KEYS:
        if mark in text:
            text = _replace(pattern, text, KEY, counts)
    return text


def _replace_emails(text: str, counts: Counter[str]) -> str:
    parts: list[str] = []
    done = 0
    for domain in _DOMAIN.finditer(text):
        # More characters than a local part may have, so that a longer one is seen to be none.
        local = _LOCAL.search(text[max(done, domain.start() - 67) : domain.start()])
        if local and local[1] not in _NO_PERSONS:
            parts += [text[done : domain.start() - len(local[1])], EMAIL]
            done = domain.end()
            counts[EMAIL] += 1
    return "".join([*parts, text[done:]])


def _replace(
    pattern: re.Pattern[str],
    text: str,
    placeholder: str,
    counts: Counter[str],
    is_meant: Callable[[re.Match[str]], bool] = lambda _: True,
) -> str:
    def put(match: re.Match[str]) -> str:
        if not is_meant(match):
            return match[0]
        counts[placeholder] += 1
        return placeholder

    return pattern.sub(put, text)


def _is_public_and_no_version(match: re.Match[str]) -> bool:
    if max(map(int, match[0].split("."))) <= _LARGEST_OF_A_VERSION:
        return False
    before = match.string[max(0, match.start() - _LONGEST_BEFORE_A_VERSION) : match.start()]
    return _is_public(match) and not _BEFORE_A_VERSION.search(before)


def _is_public(match: re.Match[str]) -> bool:
    """Whether it may name a machine on the internet: not 127.0.0.1, 192.168.0.1, 0.0.0.0, or an example's."""
    try:
        parsed = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast
