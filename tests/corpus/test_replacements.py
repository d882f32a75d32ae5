import time

import pytest

from scaletrain.corpus.replacements import EMAIL, IP_ADDRESS, KEY, replace_private
from scaletrain.corpus.rules import ReplacementRules

ALL = ReplacementRules(emails=True, ip_addresses=True, keys=True)
# Put together here, so that no scanner takes this file for one that holds secrets.
BASE64 = "MIIEpAIBAAKCAQEA7bq98F+/\n" * 20
KEYS = [
    "AK" + "IA" + "Q" * 16,
    "ghp" + "_" + "aB3" * 12,
    "github" + "_pat_" + "aB3_" * 20,
    "xox" + "b-" + "12345-abcde",
    "AI" + "za" + "aB3-_" * 7,
    "sk" + "_live_" + "aB3d" * 6,
    "sk" + "-proj-" + "aB3d" * 12,
    "hf" + "_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
    "glpat" + "-" + "aB3d" * 5,
    "ey" + "J" + "hbGciOiJI" * 3 + ".ey" + "J" + "zdWIiOiIx" * 3 + "." + "dBjftJeZ4CVP",
    "-----BEGIN RSA PRIVATE" + f" KEY-----\n{BASE64}-----END RSA PRIVATE" + " KEY-----",
    "-----BEGIN PGP PRIVATE" + f" KEY BLOCK-----\nVersion: 1-2\n\n{BASE64}-----END PGP PRIVATE" + " KEY BLOCK-----",
]


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_keys_of_known_shapes_are_replaced(key: str) -> None:
    text, counts = replace_private(f"key = '{key}'; and {key}.", ALL)
    assert text == f"key = '{KEY}'; and {KEY}." and counts == {KEY: 2}
    assert replace_private(key, ReplacementRules(emails=True, ip_addresses=True)) == (key, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to Bob.x+y@a-b.example.org, or a@b.co.", f"write to {EMAIL}, or {EMAIL}."),
        ("<a@b.com>;c_d@e.io", f"<{EMAIL}>;{EMAIL}"),
        ("@decorator a@b x@y.1 git@host:path " + "a" * 65 + "@b.com", None),
        ("from 8.8.8.8. or 93.184.216.34:80", f"from {IP_ADDRESS}. or {IP_ADDRESS}:80"),
        ("127.0.0.1 192.168.1.1 10.0.0.1 0.0.0.0 224.0.0.1 1.2.3.4.5 v8.8.8.8 999.1.1.1 3.11.7", None),
        ("at 2001:4860:4860::8888, [2606:4700::1111]", f"at {IP_ADDRESS}, [{IP_ADDRESS}]"),
        ("::1 2001:db8::1 fe80::1 std::de::ad 2026:11:23 2001:::1", None),
        ("sk-learn sk_live AKIA ghp_short eyJhbGci BEGIN PRIVATE KEY", None),
    ],
)
def test_addresses_are_replaced_and_lookalikes_are_not(text: str, expected: str | None) -> None:
    assert replace_private(text, ALL)[0] == (text if expected is None else expected)


def test_nothing_is_done_without_being_asked() -> None:
    text = f"a@b.com 8.8.8.8 {KEYS[0]}"
    assert replace_private(text, ReplacementRules()) == (text, {})


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a@",
        "a.",
        "a@b.",
        "@a.bb",
        "1.",
        "2001:",
        "-----BEGIN PRIVATE" + " KEY-----",
        "eyJaaaaaaaaaaaa.",
        "sk-",
        "gh",
    ],
)
def test_no_text_makes_the_search_slow(piece: str) -> None:
    start = time.process_time()
    replace_private(piece * (400_000 // len(piece)), ALL)
    assert time.process_time() - start < 2  # what grows with the square takes minutes
