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
    "hf" + "_" + "aB3" * 11 + "c",
    "glpat" + "-" + "aB3d" * 5,
    "glpat" + "-" + "aB3d" * 7 + ".01.1a2b3c4d5",
    "xox" + "p-" + "123-456-789-abc",
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
        (
            "from 45.33.32.156. or 93.184.216.34:80, http://93.184.216.34/ host=93.184.216.34",
            f"from {IP_ADDRESS}. or {IP_ADDRESS}:80, http://{IP_ADDRESS}/ host={IP_ADDRESS}",
        ),
        ("127.0.0.1 192.168.1.1 10.0.0.1 0.0.0.0 224.0.0.1 1.2.3.4.5 v8.8.8.8 999.1.1.1 3.11.7", None),
        (
            "jörg@example.de, 联系bob@example.com或 иван@почта.example.ru",
            f"{EMAIL}, 联系{EMAIL}或 иван@почта.example.ru",
        ),
        (r"'hello\nbob@example.com\n' {a@b.com}", rf"'hello\n{EMAIL}\n' {{{EMAIL}}}"),
        (r"'import triton\n@triton.jit\n\t@app.route' and \n@x.com", None),
        ("a@b.transpose() x@self.weight x@self.name h@w.to(y) x@y.is_cuda q@k.co.view a@b.mT", None),
        ("logo@2x.png getty@tty1.service vue@2.js git@github.com:user/repo.git", None),
        ("ssh://git@github.com/user/repo deploy@host.example.com:srv/www/", None),
        ("mail bob@example.com: hello, bob@example.com/al@b.io", f"mail {EMAIL}: hello, {EMAIL}/{EMAIL}"),
        ('pkg==4.0.3.1 AssemblyVersion("1.0.0.0") <Version>1.0.0.0</Version> section 8.1.2.2 2.5.29.15', None),
        ('pkg==91.0.44.124 Chrome/91.0.44.124 AssemblyVersion("4.120.7.255") version: 91.0.44.124', None),
        ("64 bytes from 2607:f8b0:4005:805::200e: icmp_seq=1", f"64 bytes from {IP_ADDRESS}: icmp_seq=1"),
        ("2607:f8b0::/32 and 2607:f8b0::1:", f"{IP_ADDRESS}/32 and {IP_ADDRESS}:"),
        ("xoxb-style-selector-class xoxo-abcdefghijkl", None),
        ("my_AK" + "IA" + "Q" * 16 + "_OLD", f"my_{KEY}_OLD"),
        ("at 2001:4860:4860::8888, [2606:4700::1111]", f"at {IP_ADDRESS}, [{IP_ADDRESS}]"),
        ("::1 2001:db8::1 fe80::1 std::de::ad 2026:11:23 2001:::1", None),
        ("sk-learn sk_live AKIA ghp_short eyJhbGci BEGIN PRIVATE KEY", None),
    ],
)
def test_addresses_are_replaced_and_lookalikes_are_not(text: str, expected: str | None) -> None:
    assert replace_private(text, ALL)[0] == (text if expected is None else expected)


def test_nothing_is_done_without_being_asked() -> None:
    text = f"a@b.com 93.184.216.34 {KEYS[0]}"
    assert replace_private(text, ReplacementRules()) == (text, {})


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a@",
        "a.",
        "a@b.",
        "@a.bb",
        "@a.com:a",
        "\\a@b.com",
        "==1.2.3.44 ",
        "glpat-aaaaaaaaaaaaaaaaaaaaaaaaaaaa.01.aaaaaaa",
        "AKIA",
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
