"""Looking nodes up, with a resolver whose server is gone: the calls that a program makes to it do not return."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RESOLVER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>
typedef int (*lookup_t)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
int gethostname(char *name, size_t size) { strncpy(name, "localhost", size); return 0; }
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (name && strstr(name, "silent")) for (;;) pause();
    return ((lookup_t)dlsym(RTLD_NEXT, "getaddrinfo"))(name, service, hints, found);
}
"""


@pytest.fixture(scope="module")
def resolver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("resolver") / "resolver.so"
    command = ["gcc", "-x", "c", "-shared", "-fPIC", "-o", str(library), "-", "-ldl"]
    subprocess.run(command, input=RESOLVER, text=True, check=True, timeout=60)
    return library


def look_up(addresses: dict[str, str], resolver: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "scaletrain.hardware.names", json.dumps(addresses), "0.5"]
    environment = os.environ | {"LD_PRELOAD": str(resolver)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    (finding,) = json.loads(done.stdout)
    return dict(finding)


def test_a_silent_resolver_is_not_waited_for(resolver: Path) -> None:
    """More names than are asked for at once, and this host's own, which is known."""
    started_s = time.monotonic()
    found = look_up({"localhost": "127.0.0.1"} | {f"silent{number}": "10.0.0.1" for number in range(200)}, resolver)
    assert time.monotonic() - started_s < 15
    assert found["status"] == "warn"
    assert found["detail"].startswith("silent0, silent1, silent10, ")
    assert "and 192 more" in found["detail"]
    assert "/etc/hosts" in found["detail"]


@pytest.mark.parametrize(
    ("addresses", "status", "words"),
    [
        ({"localhost": "127.0.0.1"}, "ok", "1 nodes"),
        ({"localhost": "::1"}, "ok", "1 nodes"),
        ({"localhost": "localhost"}, "ok", "1 nodes"),
        ({"silent1": "127.0.0.1"}, "warn", "silent1 cannot be looked up"),
        ({"localhost": "silent2"}, "fail", "no address for localhost (silent2)"),
    ],
)
def test_only_addresses_must_be_right(resolver: Path, addresses: dict[str, str], status: str, words: str) -> None:
    found = look_up(addresses, resolver)
    assert found["status"] == status
    assert words in found["detail"]
